//! What a part of profiles holds, told in a file beside it (`.digest`): how many rows of which kind, and the fingerprints of
//! their ids. A night of which few changed opens only the parts that could concern it, instead of every one of hundreds.
//!
//! A digest is a help and never the truth: one that is missing or not whole is made anew of its part, and a fingerprint that
//! is met makes somebody look closer.
//!
//! ```text
//! MARK  rows  with_unionid  not_asked  quarantined  suspects  oldest  sum  sum   little-endian words of 64 bits
//! fingerprints of openids and unionids, in any order
//! ```
//! The first sum is of the words before it, for whoever looks for no id; the second is of the fingerprints and those words.

use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::StageError;
use crate::clock::{Timestamp, to_micros};
use crate::domain::{ColumnType, Quick, QuickSet, Values, fingerprint};
use crate::engine::{Params, Session};
use crate::lake::{DIGEST, Lake, LakeError, RowsRead};

/// Another one for another way of taking fingerprints.
const MARK: u64 = u64::from_le_bytes(*b"LBDIGST2");
const HEADER_WORDS: usize = 9;
/// Of the header, without the sums.
const KIND_WORDS: usize = 7;
/// Digests that are looked at side by side; the fewer parts are not worth a thread of their own.
const MOST_THREADS: usize = 4;
const PARTS_A_THREAD: usize = 32;
/// Rows that are read at a time where a digest has to be made of its part.
const ROWS_AT_A_TIME: usize = 50_000;
/// What a digest is made of.
pub(super) const COLUMNS: [(&str, ColumnType); 5] = [
    ("openid", ColumnType::Text),
    ("unionid", ColumnType::Text),
    ("unionid_missing", ColumnType::Text),
    ("subscribe", ColumnType::Boolean),
    ("fetched_at", ColumnType::Timestamp),
];

/// The rows of a part, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds {
    pub rows: u64,
    pub with_unionid: u64,
    pub not_asked: u64,
    pub quarantined: u64,
    /// Rows that may have to be asked for again whatever their age.
    suspects: u64,
    /// When the oldest answer came, in microseconds since 1970; the smallest number where a row tells none.
    oldest: i64,
}

impl Default for Kinds {
    fn default() -> Self {
        Self { rows: 0, with_unionid: 0, not_asked: 0, quarantined: 0, suspects: 0, oldest: i64::MAX }
    }
}

impl Kinds {
    /// Counts a row.
    pub fn add(&mut self, missing: Option<&str>, subscribe: Option<bool>, fetched_at: Option<i64>) {
        self.rows += 1;
        self.with_unionid += u64::from(missing.is_none());
        self.not_asked += u64::from(missing == Some("not_asked"));
        self.quarantined += u64::from(missing == Some("quarantined"));
        self.suspects += u64::from(subscribe != Some(true) || !matches!(missing, None | Some("not_bound")));
        self.oldest = self.oldest.min(fetched_at.unwrap_or(i64::MIN));
    }

    /// Counts the rows of another part.
    pub fn join(&mut self, other: &Self) {
        self.rows += other.rows;
        self.with_unionid += other.with_unionid;
        self.not_asked += other.not_asked;
        self.quarantined += other.quarantined;
        self.suspects += other.suspects;
        self.oldest = self.oldest.min(other.oldest);
    }

    /// Whether none of the rows needs asking for by itself.
    fn are_fresh(&self, fresh_from: Timestamp) -> bool {
        self.suspects == 0 && self.oldest >= to_micros(fresh_from)
    }
}

/// What a night looks for in the parts of before.
pub(super) struct Wanted {
    /// Fingerprints of openids and unionids.
    pub ids: QuickSet<u64>,
    /// Rows that are not surely fresh are wanted too.
    pub fresh_from: Option<Timestamp>,
    /// Rows of people who were not asked yet are wanted too.
    pub not_asked: bool,
}

impl Wanted {
    /// Adds the ids that a SELECT gives.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the engine refuses it.
    pub fn take(&mut self, session: &Session, sql: &str, params: &Params) -> Result<(), StageError> {
        session.stream::<StageError>(sql, params, |rows| {
            for (_, values) in &rows.columns {
                if let Values::Text(ids) = values {
                    self.ids.extend(ids.iter().flatten().map(|id| fingerprint(id)));
                }
            }
            Ok(true)
        })
    }
}

/// The kinds of the rows of parts.
///
/// # Errors
///
/// As [`search`].
pub(super) fn kinds_of(lake: &Lake, parts: &[PathBuf]) -> Result<Vec<Kinds>, StageError> {
    let nothing = Wanted { ids: QuickSet::default(), fresh_from: None, not_asked: false };
    search(lake, parts, &nothing).map(|(_, kinds)| kinds)
}

/// The parts that could hold what is wanted, and the kinds of all, in their order.
///
/// # Errors
///
/// [`StageError`] when a part cannot be read or its digest not be written.
pub(super) fn search(
    lake: &Lake,
    parts: &[PathBuf],
    wanted: &Wanted,
) -> Result<(Vec<PathBuf>, Vec<Kinds>), StageError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let share = parts.len().div_ceil(threads).max(PARTS_A_THREAD);
    let looked: Vec<Vec<Looked>> = std::thread::scope(|scope| {
        let look_at_all = |parts: &[PathBuf]| parts.iter().map(|part| look_at(lake, part, wanted)).collect();
        let looking: Vec<_> = parts.chunks(share).map(|parts| scope.spawn(move || look_at_all(parts))).collect();
        looking
            .into_iter()
            .map(|thread| thread.join().expect("looking does not panic"))
            .collect::<Result<_, StageError>>()
    })?;
    let (mut found, mut kinds) = (Vec::new(), Vec::with_capacity(parts.len()));
    for (part, Looked { kinds: own, is_met }) in parts.iter().zip(looked.into_iter().flatten()) {
        kinds.push(own);
        if is_met {
            found.push(part.clone());
        }
    }
    Ok((found, kinds))
}

/// What a digest says.
struct Looked {
    kinds: Kinds,
    is_met: bool,
}

fn look_at(lake: &Lake, part: &Path, wanted: &Wanted) -> Result<Looked, StageError> {
    let digest = path(part);
    if let Ok(looked) = look(&digest, wanted) {
        return Ok(looked);
    }
    // Not there, or not whole.
    make(lake, part)?;
    Ok(look(&digest, wanted).map_err(|source| LakeError::Read { path: digest, source })?)
}

fn look(digest: &Path, wanted: &Wanted) -> io::Result<Looked> {
    let mut reader = Reader::open(digest)?;
    let kinds = reader.kinds;
    let is_stale = wanted.fresh_from.is_some_and(|from| !kinds.are_fresh(from));
    let mut is_met = is_stale || (wanted.not_asked && kinds.not_asked > 0);
    if !is_met && !wanted.ids.is_empty() {
        reader.each(|print| is_met |= wanted.ids.contains(&print))?;
    }
    Ok(Looked { kinds, is_met })
}

/// Gives the digest of a part to its second name; it is fine if there is none.
pub(super) fn adopt(lake: &Lake, from: &str, to: &str) {
    let (from, to) = (path(&lake.absolute(from)), path(&lake.absolute(to)));
    // Where it cannot be linked it is made anew when somebody looks.
    let _ = std::fs::hard_link(from, to);
}

/// Writes the digest of a part that is `parts` joined.
///
/// # Errors
///
/// [`LakeError::Write`].
pub(super) fn join(lake: &Lake, parts: &[String], joined: &str) -> Result<(), LakeError> {
    let target = path(&lake.absolute(joined));
    let write_error = |source| LakeError::Write { path: target.clone(), source };
    let mut writer = Writer::begin(&target).map_err(write_error)?;
    let mut kinds = Kinds::default();
    for part in parts {
        let Ok(mut reader) = Reader::open(&path(&lake.absolute(part))) else { return Ok(()) };
        kinds.join(&reader.kinds);
        let mut written = Ok(());
        let read = reader.each(|print| {
            if written.is_ok() {
                written = writer.push(print);
            }
        });
        written.map_err(write_error)?;
        if read.is_err() {
            return Ok(());
        }
    }
    writer.finish(&kinds).map_err(write_error)
}

/// Writes the digest of the part at `part`, of rows that whoever wrote it still has in hand.
///
/// # Errors
///
/// [`LakeError::Write`].
pub(super) fn write<'a>(part: &Path, kinds: &Kinds, ids: impl Iterator<Item = &'a str>) -> Result<(), LakeError> {
    let target = path(part);
    let write_error = |source| LakeError::Write { path: target.clone(), source };
    let mut writer = Writer::begin(&target).map_err(write_error)?;
    for id in ids {
        writer.push(fingerprint(id)).map_err(write_error)?;
    }
    writer.finish(kinds).map_err(write_error)
}

/// Makes the digest of a part by reading it.
fn make(lake: &Lake, part: &Path) -> Result<(), StageError> {
    let target = path(part);
    let write_error = |source| LakeError::Write { path: target.clone(), source };
    let relative = lake.relative(part);
    let rows = usize::try_from(lake.rows_of(&relative)?).unwrap_or(usize::MAX);
    let mut writer = Writer::begin(&target).map_err(write_error)?;
    let mut kinds = Kinds::default();
    for from in (0..rows).step_by(ROWS_AT_A_TIME) {
        let read = lake.read_rows(&relative, &COLUMNS, from..rows.min(from + ROWS_AT_A_TIME))?;
        take(read, &mut kinds, &mut writer).map_err(write_error)?;
    }
    Ok(writer.finish(&kinds).map_err(write_error)?)
}

fn take(mut read: RowsRead, kinds: &mut Kinds, writer: &mut Writer) -> io::Result<()> {
    let (openids, unionids, missing) = (read.texts(0), read.texts(1), read.texts(2));
    let (subscribe, fetched_at) = (read.booleans(3), read.integers(4));
    for (missing, (subscribe, fetched_at)) in missing.iter().zip(subscribe.into_iter().zip(fetched_at)) {
        kinds.add(missing, subscribe, fetched_at);
    }
    openids.iter().chain(unionids.iter()).flatten().try_for_each(|id| writer.push(fingerprint(id)))
}

fn path(part: &Path) -> PathBuf {
    part.with_extension(DIGEST)
}

/// A digest on its way; it appears under its name when it is whole.
struct Writer {
    file: BufWriter<File>,
    sum: Quick,
    unfinished: PathBuf,
    target: PathBuf,
}

impl Writer {
    fn begin(target: &Path) -> io::Result<Self> {
        let unfinished = target.with_extension(format!("{DIGEST}.tmp"));
        let mut file = BufWriter::with_capacity(64 << 10, File::create(&unfinished)?);
        file.write_all(&[0; HEADER_WORDS * 8])?;
        Ok(Self { file, sum: Quick::default(), unfinished, target: target.to_owned() })
    }

    fn push(&mut self, print: u64) -> io::Result<()> {
        self.sum.write_u64(print);
        self.file.write_all(&print.to_le_bytes())
    }

    fn finish(self, kinds: &Kinds) -> io::Result<()> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        let words = words_of(kinds);
        let sums = [summed(Quick::default(), &words), summed(self.sum, &words)];
        let bytes: Vec<u8> = words.into_iter().chain(sums).flat_map(u64::to_le_bytes).collect();
        file.write_all(&bytes)?;
        std::fs::rename(&self.unfinished, &self.target)
    }
}

fn words_of(kinds: &Kinds) -> [u64; KIND_WORDS] {
    let Kinds { rows, with_unionid, not_asked, quarantined, suspects, oldest } = *kinds;
    [MARK, rows, with_unionid, not_asked, quarantined, suspects, oldest.cast_unsigned()]
}

/// The sum of what was added up already, and the words.
fn summed(mut sum: Quick, words: &[u64]) -> u64 {
    words.iter().for_each(|word| sum.write_u64(*word));
    sum.finish()
}

/// A digest that is read.
struct Reader {
    file: BufReader<File>,
    kinds: Kinds,
    sum: u64,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
        let mut bytes = [0; HEADER_WORDS * 8];
        file.read_exact(&mut bytes)?;
        let mut words = [0; HEADER_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?);
        }
        let [mark, rows, with_unionid, not_asked, quarantined, suspects, oldest, own_sum, sum] = words;
        if mark != MARK || own_sum != summed(Quick::default(), &words[..KIND_WORDS]) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let oldest = oldest.cast_signed();
        Ok(Self { file, kinds: Kinds { rows, with_unionid, not_asked, quarantined, suspects, oldest }, sum })
    }

    /// Gives every fingerprint, and an error after the last one where they are not those that were written.
    fn each(&mut self, mut take: impl FnMut(u64)) -> io::Result<()> {
        let mut sum = Quick::default();
        let mut bytes = [0; 8 * 1024];
        loop {
            let mut length = 0;
            while length < bytes.len() {
                match self.file.read(&mut bytes[length..])? {
                    0 => break,
                    read => length += read,
                }
            }
            for word in bytes[..length].chunks(8) {
                let print = u64::from_le_bytes(word.try_into().map_err(|_| io::ErrorKind::InvalidData)?);
                sum.write_u64(print);
                take(print);
            }
            if length < bytes.len() {
                break;
            }
        }
        let is_whole = summed(sum, &words_of(&self.kinds)) == self.sum;
        if is_whole { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Texts;
    use crate::lake::{PartColumn, Piece};

    const NIGHT: i64 = 1_700_000_000_000_000;

    /// A part of three people: one with a unionid, one without, one who was not asked where `not_asked` says so.
    fn part(lake: &Lake, number: i64, not_asked: bool) -> PathBuf {
        let relative = format!("tables/profiles/main/s/part-{number:04}.parquet");
        let mut writer = lake.writer(&relative, &COLUMNS).unwrap();
        let openids: Vec<String> = (0..3).map(|row| format!("o{number}{row}")).collect();
        let unionid = format!("u{number}");
        let texts = |values: [Option<&str>; 3]| values.into_iter().collect::<Texts>();
        let openids = texts([Some(&openids[0]), Some(&openids[1]), Some(&openids[2])]);
        let unionids = texts([Some(&unionid), None, None]);
        let missing = texts([None, Some("not_bound"), Some(if not_asked { "not_asked" } else { "not_bound" })]);
        let times = vec![Some(NIGHT), Some(NIGHT + number), (!not_asked).then_some(NIGHT)];
        let columns = vec![
            ("openid", PartColumn::Texts(&openids)),
            ("unionid", PartColumn::Texts(&unionids)),
            ("unionid_missing", PartColumn::Texts(&missing)),
            ("subscribe", PartColumn::SameBoolean(true)),
            ("fetched_at", PartColumn::Values(Values::Timestamp(times))),
        ];
        writer.write_columns(3, columns).unwrap();
        writer.finish().unwrap();
        lake.absolute(&relative)
    }

    fn found(lake: &Lake, parts: &[PathBuf], wanted: &Wanted) -> Vec<usize> {
        let (found, kinds) = search(lake, parts, wanted).unwrap();
        assert_eq!(kinds.len(), parts.len());
        found.iter().map(|part| parts.iter().position(|own| own == part).unwrap()).collect()
    }

    fn wanted(ids: &[&str]) -> Wanted {
        Wanted { ids: ids.iter().map(|id| fingerprint(id)).collect(), fresh_from: None, not_asked: false }
    }

    #[test]
    fn only_parts_that_hold_what_is_wanted_are_found_whatever_became_of_their_digests() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let parts: Vec<PathBuf> = (0..4).map(|number| part(&lake, number, number == 3)).collect();
        for round in 0..4 {
            assert_eq!(found(&lake, &parts, &wanted(&["o12", "u2", "oNobody"])), [1, 2]);
            assert_eq!(found(&lake, &parts, &wanted(&[])), [0; 0]);
            assert_eq!(found(&lake, &parts, &Wanted { not_asked: true, ..wanted(&[]) }), [3]);
            let fresh_from = |micros| Some(Timestamp::from_timestamp_micros(micros).unwrap());
            let stale = |micros| Wanted { fresh_from: fresh_from(micros), ..wanted(&[]) };
            // Whoever was not asked is never fresh.
            assert_eq!(found(&lake, &parts, &stale(NIGHT)), [3]);
            assert_eq!(found(&lake, &parts, &stale(NIGHT + 1)), [0, 1, 2, 3]);
            let kinds = kinds_of(&lake, &parts).unwrap();
            let all = kinds.iter().map(|own| (own.rows, own.with_unionid, own.not_asked, own.quarantined));
            assert_eq!(all.collect::<Vec<_>>(), [(3, 1, 0, 0), (3, 1, 0, 0), (3, 1, 0, 0), (3, 1, 1, 0)]);
            for own in parts.iter().map(|part| path(part)) {
                let bytes = std::fs::read(&own).unwrap();
                let changed = |place: usize| {
                    let mut bytes = bytes.clone();
                    bytes[place] ^= 1;
                    bytes
                };
                match round {
                    0 => std::fs::remove_file(&own).unwrap(),
                    1 => std::fs::write(&own, &bytes[..bytes.len() - 3]).unwrap(),
                    // A count, and then a fingerprint.
                    2 => std::fs::write(&own, changed(8)).unwrap(),
                    _ => std::fs::write(&own, changed(bytes.len() - 1)).unwrap(),
                }
            }
        }
        assert_eq!(found(&lake, &parts, &wanted(&["o12"])), [1]);
    }

    #[test]
    fn the_digest_of_joined_parts_is_that_of_all_their_rows() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let parts = [part(&lake, 0, false), part(&lake, 1, true)];
        let before = kinds_of(&lake, &parts).unwrap();
        let relative: Vec<String> = parts.iter().map(|part| lake.relative(part)).collect();
        let joined = "tables/profiles/main/s/joined-0001.parquet";
        let pieces: Vec<Piece> = relative.iter().map(Piece::whole).collect();
        lake.join(&pieces, joined).unwrap().unwrap();
        join(&lake, &relative, joined).unwrap();
        let joined = [lake.absolute(joined)];
        let of_digest = kinds_of(&lake, &joined).unwrap();
        assert_eq!(found(&lake, &joined, &wanted(&["u1"])), [0]);
        std::fs::remove_file(path(&joined[0])).unwrap();
        assert_eq!(of_digest, kinds_of(&lake, &joined).unwrap());
        assert_eq!((of_digest[0].rows, of_digest[0].oldest), (before[0].rows + before[1].rows, i64::MIN));
    }
}
