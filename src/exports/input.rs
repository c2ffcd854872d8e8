//! What is read as one file: a file by itself, or a member of a zip; and its bytes, unpacked while they are read.
//!
//! Of a zip only the list at its end is looked at; a member is read where it lies, by its own size, and held to what the
//! list says of it: a member that unpacks to more, or to something else, fails. Not here: what the bytes say.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use zip::CompressionMethod;

use super::{Compression, ExportError, Format};

const BUFFER_BYTES: usize = 256 << 10;
/// More members than anybody hands over.
const MAX_MEMBERS: usize = 10_000;
/// What all members of a zip may unpack to: a hundred exports of the largest kind.
const MAX_ZIP_BYTES: u64 = 64 << 30;

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    file: PathBuf,
    member: Option<Member>,
    /// The file; of a member the zip and its name in it: `users.zip/mall.csv`.
    shown: PathBuf,
}

/// Where a member lies in its zip.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    at: u64,
    packed_bytes: u64,
    bytes: u64,
    crc32: u32,
    is_deflated: bool,
}

impl Input {
    /// A file as it is.
    pub fn of_file(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        Self { shown: file.clone(), file, member: None }
    }

    /// What a file holds: itself, or of a zip each member, by name. What systems put beside the files in a zip
    /// (`__MACOSX`, names that begin with a dot) is nothing of it.
    ///
    /// # Errors
    /// A zip that is damaged, empty, too large, protected by a password, or packed in a way that is not read.
    pub fn all_of(file: &Path) -> Result<Vec<Self>, ExportError> {
        Self::all_of_known_as(file, file)
    }

    /// The same for a file that people know by another name, which tells its kind.
    ///
    /// # Errors
    /// As [`Self::all_of`].
    pub fn all_of_known_as(file: &Path, shown: &Path) -> Result<Vec<Self>, ExportError> {
        let is_zip = shown.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("zip"));
        if is_zip {
            return members(file, shown);
        }
        Ok(vec![Self { file: file.to_owned(), member: None, shown: shown.to_owned() }])
    }

    /// The name that people know it by.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// The file that holds it on the disk.
    pub fn on_disk(&self) -> &Path {
        &self.file
    }

    /// The file on the disk, if this is one by itself.
    ///
    /// # Errors
    /// [`ExportError::PackedParquet`] for a member of a zip.
    pub fn file_itself(&self) -> Result<&Path, ExportError> {
        match self.member {
            None => Ok(&self.file),
            Some(_) => Err(ExportError::PackedParquet { file: self.shown.clone() }),
        }
    }

    /// Format and compression, as the name says.
    ///
    /// # Errors
    /// [`ExportError::UnknownFormat`].
    pub fn format(&self) -> Result<(Format, Compression), ExportError> {
        Format::of_path(&self.shown)
    }

    /// Its size as it lies there, in bytes.
    pub(super) fn bytes(&self) -> Result<u64, ExportError> {
        match &self.member {
            Some(member) => Ok(member.packed_bytes),
            None => Ok(std::fs::metadata(&self.file).map_err(|source| self.unopened(source))?.len()),
        }
    }

    /// Its bytes, unpacked.
    pub(super) fn reader(&self) -> Result<Box<dyn Read>, ExportError> {
        let reader = self.packed()?;
        Ok(match self.format()?.1 {
            Compression::None => reader,
            Compression::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, reader)))
            }
            Compression::Zstd => {
                Box::new(zstd::stream::read::Decoder::new(reader).map_err(|source| self.unopened(source))?)
            }
        })
    }

    fn packed(&self) -> Result<Box<dyn Read>, ExportError> {
        let mut file = File::open(&self.file).map_err(|source| self.unopened(source))?;
        let Some(member) = &self.member else { return Ok(Box::new(file)) };
        file.seek(SeekFrom::Start(member.at)).map_err(|source| self.unopened(source))?;
        let packed = BufReader::with_capacity(BUFFER_BYTES, file.take(member.packed_bytes));
        let plain: Box<dyn Read> =
            if member.is_deflated { Box::new(flate2::bufread::DeflateDecoder::new(packed)) } else { Box::new(packed) };
        Ok(Box::new(Held { plain, left: member.bytes, expected: member.crc32, found: flate2::Crc::new() }))
    }

    /// For who must jump about in it: the file itself, or what it unpacks to (at most `most` bytes) in one without a name.
    pub(super) fn unpacked(&self, most: u64) -> Result<File, ExportError> {
        if self.member.is_none() && self.format()?.1 == Compression::None {
            return File::open(&self.file).map_err(|source| self.unopened(source));
        }
        let mut plain = tempfile::tempfile().map_err(|source| self.unopened(source))?;
        let bytes = io::copy(&mut self.reader()?.take(most + 1), &mut plain).map_err(|source| ExportError::Read {
            file: self.shown.clone(),
            line: 1,
            source,
        })?;
        if bytes > most {
            return Err(ExportError::TooLarge { file: self.shown.clone(), most });
        }
        plain.seek(SeekFrom::Start(0)).map_err(|source| self.unopened(source))?;
        Ok(plain)
    }

    fn unopened(&self, source: io::Error) -> ExportError {
        ExportError::Open { file: self.shown.clone(), source }
    }
}

fn members(file: &Path, known_as: &Path) -> Result<Vec<Input>, ExportError> {
    let opened = File::open(file).map_err(|source| ExportError::Open { file: known_as.to_owned(), source })?;
    let damaged = |source: zip::result::ZipError| ExportError::BrokenZip { file: known_as.to_owned(), source };
    let mut archive = zip::ZipArchive::new(BufReader::new(opened)).map_err(damaged)?;
    if archive.len() > MAX_MEMBERS {
        return Err(ExportError::TooManyMembers { file: known_as.to_owned(), most: MAX_MEMBERS });
    }
    let mut inputs = Vec::new();
    let mut bytes = 0_u64;
    for number in 0..archive.len() {
        let found = archive.by_index_raw(number).map_err(damaged)?;
        let name = name_of(found.name_raw());
        if found.is_dir() || is_beside(&name) {
            continue;
        }
        let shown = known_as.join(name.trim_start_matches('/'));
        if found.encrypted() {
            return Err(ExportError::Locked { file: shown });
        }
        let is_deflated = match found.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => return Err(ExportError::UnknownPacking { file: shown, method: other.to_string() }),
        };
        bytes = bytes.saturating_add(found.size());
        let at = found.data_start().ok_or_else(|| damaged(zip::result::ZipError::InvalidArchive("no data".into())))?;
        let member = Member {
            at,
            packed_bytes: found.compressed_size(),
            bytes: found.size(),
            crc32: found.crc32(),
            is_deflated,
        };
        inputs.push(Input { file: file.to_owned(), member: Some(member), shown });
    }
    if bytes > MAX_ZIP_BYTES {
        return Err(ExportError::TooLarge { file: known_as.to_owned(), most: MAX_ZIP_BYTES });
    }
    if inputs.is_empty() {
        return Err(ExportError::EmptyZip { file: known_as.to_owned() });
    }
    inputs.sort_by(|one, other| one.shown.cmp(&other.shown));
    Ok(inputs)
}

/// Windows in China writes names in GBK and does not say so.
fn name_of(raw: &[u8]) -> String {
    match std::str::from_utf8(raw) {
        Ok(name) => name.to_owned(),
        Err(_) => encoding_rs::GB18030.decode_without_bom_handling(raw).0.into_owned(),
    }
}

fn is_beside(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    name.starts_with("__MACOSX/") || file.starts_with('.') || matches!(file, "Thumbs.db" | "desktop.ini")
}

/// Bytes of a member, held to the size and the checksum that its zip names.
struct Held<R> {
    plain: R,
    left: u64,
    expected: u32,
    found: flate2::Crc,
}

impl<R: Read> Read for Held<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.plain.read(into)?;
        let damaged = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if count == 0 && !into.is_empty() {
            return match (self.left, self.found.sum() == self.expected) {
                (0, true) => Ok(0),
                (0, false) => damaged("its checksum is not the one that the zip names"),
                (_, _) => damaged("it is shorter than the zip says"),
            };
        }
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return damaged("it unpacks to more than the zip says"),
        }
        self.found.update(&into[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn zipped(members: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in members {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        (folder, path)
    }

    fn text(input: &Input) -> io::Result<String> {
        io::read_to_string(input.reader().unwrap())
    }

    #[test]
    fn members_are_read_by_name_and_what_systems_add_is_left_out() {
        let packed = zstd::encode_all(&b"openid\no2\n"[..], 1).unwrap();
        let (_folder, path) = zipped(&[
            ("b/two.csv.zst", &packed),
            ("__MACOSX/._one.csv", b"x"),
            ("a/.DS_Store", b"x"),
            ("a/one.csv", b"openid\no1\n"),
        ]);
        let inputs = Input::all_of(&path).unwrap();
        let shown: Vec<_> = inputs.iter().map(|input| input.shown().strip_prefix(&path).unwrap()).collect();
        assert_eq!(shown, [Path::new("a/one.csv"), Path::new("b/two.csv.zst")]);
        assert_eq!(text(&inputs[0]).unwrap(), "openid\no1\n");
        assert_eq!(text(&inputs[1]).unwrap(), "openid\no2\n");
    }

    #[test]
    fn a_member_is_held_to_what_its_zip_says() {
        let (_folder, path) = zipped(&[("one.csv", "openid\n".repeat(5000).as_bytes())]);
        let mut input = Input::all_of(&path).unwrap().remove(0);
        let member = input.member.clone().unwrap();
        let as_told = |input: &mut Input, told: Member| {
            input.member = Some(told);
            text(input).unwrap_err().to_string()
        };
        let longer = as_told(&mut input, Member { bytes: 100, ..member.clone() });
        assert!(longer.contains("more than the zip says"), "a bomb is cut off: {longer}");
        let shorter = as_told(&mut input, Member { bytes: member.bytes + 1, ..member.clone() });
        assert!(shorter.contains("shorter"), "{shorter}");
        let other = as_told(&mut input, Member { crc32: member.crc32 ^ 1, ..member });
        assert!(other.contains("checksum"), "{other}");
    }

    #[test]
    fn a_zip_that_cannot_be_read_says_why() {
        let (_folder, empty) = zipped(&[]);
        assert!(matches!(Input::all_of(&empty), Err(ExportError::EmptyZip { .. })));
        let (_folder, path) = zipped(&[("one.csv", b"openid\n")]);
        let mut bytes = std::fs::read(&path).unwrap();
        // The flag "encrypted" in the member's entry of the list at the end.
        let entry = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[entry + 8] |= 1;
        std::fs::write(&path, &bytes).unwrap();
        let locked = Input::all_of(&path).unwrap_err().to_string();
        assert!(locked.contains("users.zip/one.csv is protected by a password"), "{locked}");
        std::fs::write(&path, &bytes[..20]).unwrap();
        assert!(matches!(Input::all_of(&path), Err(ExportError::BrokenZip { .. })));
    }

    #[test]
    fn names_that_windows_wrote_are_legible() {
        assert_eq!(name_of(&encoding_rs::GB18030.encode("用户.csv").0), "用户.csv");
        assert_eq!(name_of("用户.csv".as_bytes()), "用户.csv");
    }
}
