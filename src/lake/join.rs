//! Several parts become one: their row groups are copied byte for byte, and one footer tells where they lie now.
//!
//! No value is read, so that this costs what copying costs. Parts of different columns or of different writers are not
//! joined. Of a part it may be some row groups alone, where others take the place of the rest.
//!
//! A table that grows by a part a night would be thousands of files one day. The rule: of more than [`MOST_SMALL`] parts below
//! [`SMALL_BYTES`] the smallest become one, a night's share of the table at a time ([`Lake::compact`]).

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use polars::error::PolarsError;
use polars_parquet::parquet::error::ParquetError;
use polars_parquet::parquet::metadata::ThriftFileMetadata;
use polars_parquet::parquet::write::write_metadata_sidecar;
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;
use polars_parquet_format::{ColumnMetaData, RowGroup};

use super::{Lake, LakeError, Part};
use crate::crash::{self, CrashPoint};

/// So many small parts a slice of a table may have.
const MOST_SMALL: usize = 32;
/// A part is small below this.
const SMALL_BYTES: u64 = 8 << 20;
/// At least so many are joined at a time, more than a night adds.
const LEAST_JOINED: usize = 8;
/// And beyond these no more than this part of the table's bytes, so that it costs a night little.
const SHARE_OF_TABLE: u64 = 32;

const MARK: &[u8; 4] = b"PAR1";
/// The length of the footer, and the mark after it.
const TAIL_BYTES: i64 = 8;

/// What goes into a joined part: a part, or some of its row groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Relative to the lake.
    pub path: String,
    /// All of them where it does not say.
    pub groups: Option<Range<usize>>,
}

impl Piece {
    pub fn whole(path: impl Into<String>) -> Self {
        Self { path: path.into(), groups: None }
    }
}

impl Lake {
    /// Writes the rows of `pieces`, in this order, into the one part `target`, durable; nothing where they do not have the
    /// same columns written the same way.
    ///
    /// # Errors
    ///
    /// [`LakeError`]; nothing is left under the name then.
    pub fn join(&self, pieces: &[Piece], target: &str) -> Result<Option<Part>, LakeError> {
        let path = self.absolute(target);
        let write_error = |source| LakeError::Write { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LakeError::CreateFolder { path: folder.to_owned(), source })?;
        }
        let unfinished = path.with_extension("parquet.tmp");
        let mut joined = Joined::begin(&unfinished).map_err(write_error)?;
        for piece in pieces {
            let from = self.absolute(&piece.path);
            let mut source = Source::open(&from).map_err(|error| error.of(&from))?;
            if !joined.takes(&source.footer) {
                drop(joined);
                std::fs::remove_file(&unfinished).map_err(write_error)?;
                return Ok(None);
            }
            let lies = match &piece.groups {
                Some(groups) => source.keep(groups).map_err(|error| error.of(&from))?,
                None => source.all(),
            };
            joined.append(&mut source, lies).map_err(write_error)?;
        }
        let rows = joined.rows();
        let (file, bytes) = joined.finish().map_err(|error| error.of(&unfinished))?;
        file.sync_all().map_err(write_error)?;
        crash::pass(CrashPoint::BeforePartRename);
        std::fs::rename(&unfinished, &path).map_err(write_error)?;
        crash::pass(CrashPoint::AfterPartRename);
        Ok(Some(Part { path: target.to_owned(), rows, bytes }))
    }

    /// How many rows each row group of a part has.
    ///
    /// # Errors
    ///
    /// [`LakeError::Read`], [`LakeError::ReadRows`].
    pub fn group_rows(&self, relative: &str) -> Result<Vec<usize>, LakeError> {
        let path = self.absolute(relative);
        let footer = Source::open(&path).map_err(|error| error.of(&path))?.footer;
        Ok(footer.row_groups.iter().map(|group| usize::try_from(group.num_rows).unwrap_or(0)).collect())
    }
}

impl Lake {
    /// Joins some of the small parts of a slice into `target` where there are too many of them; gives the parts it has then.
    /// Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`]; the parts that were given are whole then.
    pub fn compact(&self, parts: Vec<String>, target: &str) -> Result<Vec<String>, LakeError> {
        let mut sized = Vec::with_capacity(parts.len());
        for part in &parts {
            sized.push((self.size_bytes(part)?, part.clone()));
        }
        let share = sized.iter().map(|(bytes, _)| bytes).sum::<u64>() / SHARE_OF_TABLE;
        let mut small: Vec<(u64, String)> = sized.into_iter().filter(|(bytes, _)| *bytes < SMALL_BYTES).collect();
        if small.len() <= MOST_SMALL {
            return Ok(parts);
        }
        small.sort();
        let Some(joined) = self.smallest_alike(&small, share)? else { return Ok(parts) };
        let pieces: Vec<Piece> = joined.iter().map(Piece::whole).collect();
        if self.join(&pieces, target)?.is_none() {
            return Ok(parts);
        }
        let mut left: Vec<String> = parts.into_iter().filter(|part| !joined.contains(part)).collect();
        left.push(target.to_owned());
        Ok(left)
    }

    /// The first of `small` that can be joined with each other, up to `share` bytes of them.
    fn smallest_alike(&self, small: &[(u64, String)], share: u64) -> Result<Option<Vec<String>>, LakeError> {
        struct Alike {
            footer: ThriftFileMetadata,
            parts: Vec<String>,
            bytes: u64,
        }
        let mut kinds: Vec<Alike> = Vec::new();
        for (bytes, part) in small {
            let path = self.absolute(part);
            let footer = Source::open(&path).map_err(|error| error.of(&path))?.footer;
            let place = kinds.iter().position(|kind| is_alike(&kind.footer, &footer)).unwrap_or_else(|| {
                kinds.push(Alike { footer, parts: Vec::new(), bytes: 0 });
                kinds.len() - 1
            });
            let kind = &mut kinds[place];
            if kind.parts.len() >= LEAST_JOINED && kind.bytes + bytes > share {
                break;
            }
            kind.parts.push(part.clone());
            kind.bytes += bytes;
        }
        let most = kinds.into_iter().max_by_key(|kind| kind.parts.len());
        Ok(most.map(|kind| kind.parts).filter(|parts| parts.len() >= LEAST_JOINED))
    }
}

/// Whether two parts have the same columns, written by the same hand.
fn is_alike(one: &ThriftFileMetadata, other: &ThriftFileMetadata) -> bool {
    one.schema == other.schema && one.created_by == other.created_by && one.version == other.version
}

/// What went wrong with a file, before it is known which.
enum Trouble {
    Io(io::Error),
    Parquet(ParquetError),
}

impl Trouble {
    fn of(self, path: &Path) -> LakeError {
        match self {
            Self::Io(source) => LakeError::Read { path: path.to_owned(), source },
            Self::Parquet(source) => LakeError::ReadRows { path: path.to_owned(), source: PolarsError::from(source) },
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A part that is read.
struct Source {
    file: File,
    footer: ThriftFileMetadata,
    /// Where the footer begins: what lies before it are pages and the indexes that the footer alone refers to.
    ends_at: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Trouble> {
        let mut file = File::open(path)?;
        let tail_at = file.seek(SeekFrom::End(-TAIL_BYTES))?;
        let mut tail = [0; 8];
        file.read_exact(&mut tail)?;
        let [a, b, c, d, mark @ ..] = tail;
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        let Some(ends_at) = tail_at.checked_sub(length).filter(|_| mark == *MARK) else {
            return Err(Trouble::Parquet(out_of_spec("the file has no footer")));
        };
        let mut footer = Vec::new();
        file.seek(SeekFrom::Start(ends_at))?;
        (&file).take(length).read_to_end(&mut footer)?;
        // Texts of a footer are shorter than it; the bound is against lengths that are not.
        let mut protocol = TCompactInputProtocol::new(footer.as_slice(), footer.len() * 16 + 1024);
        let footer = ThriftFileMetadata::read_from_in_protocol(&mut protocol)
            .map_err(|error| Trouble::Parquet(out_of_spec(&error.to_string())))?;
        Ok(Self { file, footer, ends_at })
    }

    /// Where everything lies that is copied with all of its row groups.
    fn all(&self) -> Range<u64> {
        MARK.len() as u64..self.ends_at
    }

    /// Lets go of the other row groups; gives where these lie.
    fn keep(&mut self, groups: &Range<usize>) -> Result<Range<u64>, Trouble> {
        let groups =
            self.footer.row_groups.get(groups.clone()).ok_or_else(|| out_of_spec("there is no such row group"));
        self.footer.row_groups = groups.map_err(Trouble::Parquet)?.to_vec();
        self.footer.num_rows = self.footer.row_groups.iter().map(|group| group.num_rows).sum();
        let columns = self.footer.row_groups.iter().flat_map(|group| &group.columns);
        let (mut from, mut to) = (self.ends_at, MARK.len() as u64);
        for column in columns.filter_map(|column| column.meta_data.as_ref()) {
            let begins = column
                .dictionary_page_offset
                .map_or(column.data_page_offset, |dictionary| dictionary.min(column.data_page_offset));
            let place = |at: i64| u64::try_from(at).unwrap_or(u64::MAX);
            from = from.min(place(begins));
            to = to.max(place(begins.saturating_add(column.total_compressed_size)));
        }
        let is_within = MARK.len() as u64 <= from && from <= to && to <= self.ends_at;
        is_within
            .then_some(from..to)
            .ok_or_else(|| Trouble::Parquet(out_of_spec("a row group lies outside of the file")))
    }
}

/// A part that is being written.
struct Joined {
    writer: BufWriter<File>,
    at: u64,
    footer: Option<ThriftFileMetadata>,
}

impl Joined {
    fn begin(path: &Path) -> io::Result<Self> {
        let mut writer = BufWriter::new(File::create(path)?);
        writer.write_all(MARK)?;
        Ok(Self { writer, at: 4, footer: None })
    }

    fn takes(&self, other: &ThriftFileMetadata) -> bool {
        let is_plain = other.encryption_algorithm.is_none()
            && other.row_groups.iter().flat_map(|group| &group.columns).all(|column| column.file_path.is_none());
        is_plain && self.footer.as_ref().is_none_or(|own| is_alike(own, other))
    }

    /// Copies what lies there of `source`, with all row groups of its footer.
    fn append(&mut self, source: &mut Source, lies: Range<u64>) -> io::Result<()> {
        let moved = i64::try_from(self.at).unwrap_or(i64::MAX) - i64::try_from(lies.start).unwrap_or(i64::MAX);
        source.file.seek(SeekFrom::Start(lies.start))?;
        let length = lies.end - lies.start;
        // Straight from file to file, where the system can.
        self.writer.flush()?;
        let copied = io::copy(&mut (&source.file).take(length), self.writer.get_mut())?;
        if copied != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += copied;
        let footer = &mut source.footer;
        footer.row_groups.iter_mut().for_each(|group| move_group(group, moved));
        match &mut self.footer {
            None => self.footer = Some(footer.clone()),
            Some(own) => {
                own.num_rows += footer.num_rows;
                own.row_groups.append(&mut footer.row_groups);
            }
        }
        Ok(())
    }

    fn rows(&self) -> u64 {
        self.footer.as_ref().and_then(|footer| u64::try_from(footer.num_rows).ok()).unwrap_or(0)
    }

    fn finish(mut self) -> Result<(File, u64), Trouble> {
        let mut footer = self.footer.take().ok_or_else(|| Trouble::Parquet(out_of_spec("nothing is no part")))?;
        for (place, group) in (0..).zip(&mut footer.row_groups) {
            group.ordinal = i16::try_from(place).ok();
        }
        // A file of nothing but a footer: the mark, the footer as it is wanted here, its length, and the mark again.
        let mut alone = Vec::new();
        write_metadata_sidecar(&mut alone, &footer).map_err(Trouble::Parquet)?;
        self.writer.write_all(&alone[MARK.len()..])?;
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    }
}

fn out_of_spec(what: &str) -> ParquetError {
    ParquetError::OutOfSpec(what.to_owned())
}

/// The row group as it lies so many bytes further on. The indexes of its pages name places in the file it came from: nobody
/// is led to them any more.
fn move_group(group: &mut RowGroup, bytes: i64) {
    let shift = |offset: &mut i64| *offset += bytes;
    group.file_offset.iter_mut().for_each(shift);
    for column in &mut group.columns {
        if column.file_offset > 0 {
            shift(&mut column.file_offset);
        }
        (column.offset_index_offset, column.offset_index_length) = (None, None);
        (column.column_index_offset, column.column_index_length) = (None, None);
        let Some(ColumnMetaData {
            data_page_offset,
            index_page_offset,
            dictionary_page_offset,
            bloom_filter_offset,
            ..
        }) = &mut column.meta_data
        else {
            continue;
        };
        shift(data_page_offset);
        [index_page_offset, dictionary_page_offset, bloom_filter_offset].into_iter().flatten().for_each(shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ColumnType, Rows, Texts, Values};
    use crate::lake::PartColumn;

    const SCHEMA: [(&str, ColumnType); 3] =
        [("openid", ColumnType::Text), ("scene", ColumnType::Text), ("n", ColumnType::Integer)];

    fn part(lake: &Lake, path: &str, ids: std::ops::Range<i64>, of_ids: bool) -> String {
        let begun = if of_ids { lake.writer_of_ids(path, &SCHEMA) } else { lake.writer(path, &SCHEMA) };
        let mut writer = begun.unwrap();
        let texts: Vec<String> = ids.clone().map(|id| format!("o{id:05}")).collect();
        let texts: Texts = texts.iter().map(|id| Some(id.as_str())).collect();
        let scenes: Texts = ids.clone().map(|id| (id % 3 > 0).then_some(["A", "B"][(id % 2) as usize])).collect();
        let columns = vec![
            ("openid", PartColumn::Texts(&texts)),
            ("scene", PartColumn::Texts(&scenes)),
            ("n", PartColumn::Values(Values::Integer(ids.map(Some).collect()))),
        ];
        writer.write_columns(texts.len(), columns).unwrap();
        writer.finish().unwrap().path
    }

    #[test]
    fn joined_parts_hold_the_rows_of_all_in_their_order_and_can_be_joined_again() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        for of_ids in [true, false] {
            let parts: Vec<String> = [0..1_000, 1_000..1_001, 1_001..3_000]
                .into_iter()
                .map(|ids| part(&lake, &format!("work/{}.parquet", ids.start), ids, of_ids))
                .collect();
            let pieces: Vec<Piece> = parts.iter().map(Piece::whole).collect();
            let once = lake.join(&pieces[..2], "tables/once.parquet").unwrap().unwrap();
            assert_eq!(once.rows, 1_001);
            let twice = [Piece::whole(once.path), pieces[2].clone()];
            let twice = lake.join(&twice, "tables/twice.parquet").unwrap().unwrap();
            assert_eq!((twice.rows, lake.size_bytes(&twice.path).unwrap()), (3_000, twice.bytes));
            let mut read = lake.read_rows(&twice.path, &SCHEMA, 0..9_000).unwrap();
            let (ids, scenes, numbers) = (read.texts(0), read.texts(1), read.integers(2));
            for id in 0..3_000_i64 {
                let place = usize::try_from(id).unwrap();
                assert_eq!(ids.get(place), Some(format!("o{id:05}").as_str()));
                assert_eq!(scenes.get(place), (id % 3 > 0).then_some(["A", "B"][place % 2]));
                assert_eq!(numbers[place], Some(id));
            }
            let mut read = lake.read_rows(&twice.path, &SCHEMA, 1_500..1_502).unwrap();
            assert_eq!(read.texts(0).get(0), Some("o01500"));
        }
    }

    #[test]
    fn some_row_groups_of_a_part_go_without_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        for of_ids in [true, false] {
            let groups = [0..700, 700..701, 701..900, 900..1_900];
            let parts = groups.clone().map(|ids| part(&lake, &format!("work/{}.parquet", ids.start), ids, of_ids));
            let all = lake.join(&parts.map(Piece::whole), "tables/all.parquet").unwrap().unwrap().path;
            assert_eq!(lake.group_rows(&all).unwrap(), groups.map(|ids| ids.count()));
            let other = part(&lake, "work/other.parquet", 5_000..5_010, of_ids);
            let some = |groups| Piece { path: all.clone(), groups: Some(groups) };
            let pieces = [some(2..4), Piece::whole(other), some(0..1)];
            let spliced = lake.join(&pieces, "tables/spliced.parquet").unwrap().unwrap();
            let wanted: Vec<i64> = (701..1_900).chain(5_000..5_010).chain(0..700).collect();
            let mut read = lake.read_rows(&spliced.path, &SCHEMA, 0..9_000).unwrap();
            let (ids, scenes) = (read.texts(0), read.texts(1));
            assert_eq!(read.integers(2), wanted.iter().copied().map(Some).collect::<Vec<_>>());
            for (place, id) in wanted.iter().enumerate() {
                assert_eq!(ids.get(place), Some(format!("o{id:05}").as_str()));
                assert_eq!(scenes.get(place), (id % 3 > 0).then_some(["A", "B"][(id % 2) as usize]));
            }
            let again = lake.join(&[Piece { path: spliced.path, groups: Some(1..3) }], "tables/again.parquet");
            assert_eq!(again.unwrap().unwrap().rows, 1_010);
            assert!(lake.join(&[some(3..5)], "tables/none.parquet").is_err());
        }
    }

    #[test]
    fn however_many_nights_add_a_part_there_are_never_many_small_ones_and_no_row_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let mut parts: Vec<String> =
            (0..60).map(|id| part(&lake, &format!("work/first-{id}.parquet"), id..id + 1, true)).collect();
        for night in 60..120 {
            // A pass of the engine writes in a hand of its own now and then.
            parts.push(part(&lake, &format!("work/night-{night}.parquet"), night..night + 1, night % 10 > 0));
            parts = lake.compact(parts, &format!("tables/joined-{night}.parquet")).unwrap();
        }
        assert!(parts.len() <= MOST_SMALL + LEAST_JOINED, "{} parts", parts.len());
        let mut ids: Vec<i64> = Vec::new();
        for part in &parts {
            ids.extend(lake.read_rows(part, &SCHEMA[2..], 0..9_000).unwrap().integers(0).into_iter().flatten());
        }
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..120));
    }

    #[test]
    fn parts_of_other_columns_are_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let own = part(&lake, "work/own.parquet", 0..10, true);
        let mut writer = lake.writer("work/other.parquet", &[("openid", ColumnType::Text)]).unwrap();
        writer.write(Rows { columns: vec![("openid".into(), Values::Text(vec![Some("o".into())]))] }).unwrap();
        let other = writer.finish().unwrap().path;
        let pieces = [own, other].map(Piece::whole);
        assert_eq!(lake.join(&pieces, "tables/joined.parquet").unwrap(), None);
        assert!(!lake.absolute("tables/joined.parquet").exists());
        assert!(!lake.absolute("tables/joined.parquet.tmp").exists());
    }
}
