//! Whether any of very many ids came twice: their fingerprints, sorted piece by piece into files, and merged at the end.
//!
//! Memory does not grow with the ids. A table of so many would miss the processor's cache with each of them besides; a list
//! does not. Two ids have one fingerprint once in thousands of millions of people squared, so that "distinct" is certain and
//! "perhaps not" is looked at by whoever hears it.
//!
//! Where it is known that only a few could have come twice nothing is sorted: they are looked for among all ([`Noted`]).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;

use super::Lake;
use crate::domain::{QuickSet, fingerprint};

/// Fingerprints held in memory: 2 MB.
const MOST: usize = 1 << 18;

/// The fingerprints of all ids so far.
#[derive(Debug)]
pub struct Fingerprints {
    prints: Vec<u64>,
    /// Sorted pieces, in files without a name that end with this object.
    pieces: Vec<File>,
    folder: PathBuf,
    most: usize,
    /// Something came twice, or a piece could not be written.
    is_in_doubt: bool,
}

impl Lake {
    /// Takes fingerprints, the many of them into files of this lake.
    pub fn fingerprints(&self) -> Fingerprints {
        Fingerprints {
            prints: Vec::new(),
            pieces: Vec::new(),
            folder: self.scratch().spill(),
            most: MOST,
            is_in_doubt: false,
        }
    }
}

impl Fingerprints {
    pub fn note(&mut self, id: &str) {
        if self.is_in_doubt {
            return;
        }
        self.prints.push(fingerprint(id));
        if self.prints.len() == self.most {
            // Whoever has no room for eight bytes a person finds out by what they were taken for; this is no reason to fail.
            self.is_in_doubt = self.put_piece_aside().unwrap_or(true);
        }
    }

    /// Whether every id came once for certain; blocks for as long as reading eight bytes an id takes.
    pub fn are_distinct(&mut self) -> bool {
        self.prints.sort_unstable();
        let doubt = self.is_in_doubt || has_repeats(self.prints.iter().copied());
        !doubt && (self.pieces.is_empty() || self.merge_is_distinct().unwrap_or(false))
    }

    /// Says whether something came twice in this piece.
    fn put_piece_aside(&mut self) -> io::Result<bool> {
        self.prints.sort_unstable();
        std::fs::create_dir_all(&self.folder)?;
        let mut writer = BufWriter::new(tempfile::tempfile_in(&self.folder)?);
        for print in &self.prints {
            writer.write_all(&print.to_le_bytes())?;
        }
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.pieces.push(file);
        let repeats = has_repeats(self.prints.iter().copied());
        self.prints.clear();
        Ok(repeats)
    }

    fn merge_is_distinct(&mut self) -> io::Result<bool> {
        let mut readers: Vec<BufReader<&File>> = self.pieces.iter().map(BufReader::new).collect();
        let mut own = self.prints.iter().copied();
        let mut heads = BinaryHeap::new();
        for place in 0..=readers.len() {
            heads.extend(head(&mut readers, &mut own, place)?);
        }
        let mut last = None;
        // Putting the next in the place of the first costs half of taking one away and adding one.
        while let Some(mut first) = heads.peek_mut() {
            let Reverse((print, place)) = *first;
            if last.replace(print) == Some(print) {
                return Ok(false);
            }
            match head(&mut readers, &mut own, place)? {
                Some(next) => *first = next,
                None => drop(PeekMut::pop(first)),
            }
        }
        for piece in &mut self.pieces {
            piece.rewind()?;
        }
        Ok(true)
    }
}

/// The fingerprints of ids as they come, the many of them in a file without a name.
#[derive(Debug)]
pub struct Noted {
    prints: Vec<u64>,
    file: Option<BufWriter<File>>,
    folder: PathBuf,
    most: usize,
    /// Not all could be kept.
    is_broken: bool,
}

impl Lake {
    /// Notes ids, the many of them in a file of this lake.
    pub fn noted(&self) -> Noted {
        Noted { prints: Vec::new(), file: None, folder: self.scratch().spill(), most: MOST, is_broken: false }
    }
}

impl Noted {
    pub fn note(&mut self, id: &str) {
        if self.is_broken {
            return;
        }
        self.prints.push(fingerprint(id));
        if self.prints.len() == self.most {
            self.is_broken = self.put_aside().is_err();
        }
    }

    /// Whether somebody of `few` may have come more often than once; for certain not if not. Blocks for as long as reading
    /// eight bytes an id takes.
    pub fn may_repeat<'a>(&mut self, few: impl Iterator<Item = &'a str>) -> bool {
        let few: QuickSet<u64> = few.map(fingerprint).collect();
        self.is_broken || self.repeats(&few).unwrap_or(true)
    }

    fn repeats(&mut self, few: &QuickSet<u64>) -> io::Result<bool> {
        let mut met = QuickSet::default();
        let mut comes_again = |print: u64| few.contains(&print) && !met.insert(print);
        if let Some(writer) = &mut self.file {
            writer.rewind()?;
            let mut reader = BufReader::with_capacity(1 << 16, writer.get_ref());
            let mut print = [0; 8];
            while !reader.fill_buf()?.is_empty() {
                reader.read_exact(&mut print)?;
                if comes_again(u64::from_le_bytes(print)) {
                    return Ok(true);
                }
            }
        }
        Ok(self.prints.iter().any(|print| comes_again(*print)))
    }

    fn put_aside(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            std::fs::create_dir_all(&self.folder)?;
            self.file = Some(BufWriter::new(tempfile::tempfile_in(&self.folder)?));
        }
        let writer = self.file.as_mut().expect("it was made if it was not there");
        for print in self.prints.drain(..) {
            writer.write_all(&print.to_le_bytes())?;
        }
        Ok(())
    }
}

/// The next fingerprint of the piece at `place`; the one after the last piece is in memory.
fn head(
    readers: &mut [BufReader<&File>],
    own: &mut impl Iterator<Item = u64>,
    place: usize,
) -> io::Result<Option<Reverse<(u64, usize)>>> {
    let Some(reader) = readers.get_mut(place) else { return Ok(own.next().map(|print| Reverse((print, place)))) };
    let mut bytes = [0; 8];
    match reader.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(Reverse((u64::from_le_bytes(bytes), place)))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn has_repeats(sorted: impl Iterator<Item = u64>) -> bool {
    let mut last = None;
    sorted.into_iter().any(|print| last.replace(print) == Some(print))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints(folder: &tempfile::TempDir) -> Fingerprints {
        Fingerprints { most: 100, ..Lake::new(folder.path()).fingerprints() }
    }

    #[test]
    fn nobody_is_taken_for_somebody_else_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut prints = prints(&folder);
        for number in 0..1_234 {
            prints.note(&format!("o6_bmjrPTlm6_2sgVt7hMZOP{number:07}"));
        }
        assert_eq!((prints.pieces.len(), prints.prints.len()), (12, 34));
        assert!(prints.are_distinct() && prints.are_distinct(), "also when it is asked again");
        prints.note("o6_bmjrPTlm6_2sgVt7hMZOP0000007");
        assert!(!prints.are_distinct(), "it stands in the first piece");
    }

    #[test]
    fn who_comes_twice_is_noticed_in_memory_and_within_a_piece() {
        let folder = tempfile::tempdir().unwrap();
        let mut few = prints(&folder);
        ["oA", "oB", "oA"].iter().for_each(|id| few.note(id));
        assert!(!few.are_distinct());
        let mut many = prints(&folder);
        (0..100).for_each(|number| many.note(&format!("o{}", number % 99)));
        assert!(many.is_in_doubt && !many.are_distinct());
    }

    #[test]
    fn without_room_for_them_nothing_is_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let mut prints = Fingerprints { folder: blocked.join("below"), ..prints(&folder) };
        (0..101).for_each(|number| prints.note(&format!("o{number}")));
        assert!(!prints.are_distinct());
    }

    #[test]
    fn who_is_looked_for_is_found_where_they_came_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut noted = Noted { most: 100, ..Lake::new(folder.path()).noted() };
        let id = |number: u32| format!("o{number:05}");
        for number in (0..250).chain([7, 230]).chain(250..420) {
            noted.note(&id(number));
        }
        let mut may_repeat = |few: &[u32]| {
            let few: Vec<String> = few.iter().map(|number| id(*number)).collect();
            noted.may_repeat(few.iter().map(String::as_str))
        };
        assert_eq!(
            [&[7][..], &[5, 6, 230], &[8, 419], &[900], &[]].map(&mut may_repeat),
            [true, true, false, false, false]
        );
        noted.note(&id(419));
        assert!(noted.may_repeat([id(419).as_str()].into_iter()), "once before and once after it was asked");
        assert!(!noted.may_repeat([id(418).as_str()].into_iter()));
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let mut without_room = Noted { folder: blocked.join("below"), most: 2, ..Lake::new(folder.path()).noted() };
        ["oA", "oB"].iter().for_each(|id| without_room.note(id));
        assert!(without_room.may_repeat(["oC"].into_iter()));
    }
}
