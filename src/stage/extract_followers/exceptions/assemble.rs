//! The parts of tonight's followers: those of the walk, with other row groups in place of such as have a row that comes out
//! otherwise, and those who left.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::find::{Found, read};
use super::{GROUP, Person, RowsBy, people, write_rows};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, TableName, Texts, Values};
use crate::lake::{Lake, LakeError, PartColumn, Piece};
use crate::stage::extract_followers::book::PAGES_A_PART;
use crate::stage::extract_followers::merge::GONE;

/// Parts of those who left grow until they have so many rows.
const GONE_ROWS: u64 = 100_000;

/// What there is to assemble.
pub(super) struct Shelf {
    pub lake: Lake,
    pub account: AccountName,
    pub table: TableName,
    pub snapshot: String,
    /// The parts of the walk in its order: path and pages.
    pub walked: Vec<(String, u32)>,
    /// Parts of those who had left.
    pub gone: Vec<String>,
}

/// The parts of the new snapshot.
pub(super) struct Assembled {
    pub parts: Vec<String>,
    pub active: u64,
    pub gone_rows: u64,
    pub bytes: u64,
}

/// What happens to a row of the walk.
enum Mend {
    Set(i64, i64),
    Remove,
}

/// By part, from 1, and row.
type Mends = BTreeMap<u32, BTreeMap<u32, Mend>>;

pub(super) struct Assembly<'a> {
    shelf: &'a Shelf,
    walked_at: i64,
    made: Assembled,
    /// Files that are joined into others and are nobody's then.
    scraps: Vec<String>,
}

impl<'a> Assembly<'a> {
    /// Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`]; what was written is nobody's then.
    pub fn of(shelf: &'a Shelf, (found, rows): (&Found, &RowsBy<'_>), walked_at: i64) -> Result<Assembled, LakeError> {
        let made = Assembled { parts: Vec::new(), active: 0, gone_rows: 0, bytes: 0 };
        let mut assembly = Self { shelf, walked_at, made, scraps: Vec::new() };
        assembly.followers(found, rows)?;
        assembly.gone(found, rows)?;
        for scrap in &assembly.scraps {
            shelf.lake.remove(scrap)?;
        }
        Ok(assembly.made)
    }

    fn followers(&mut self, found: &Found, rows: &RowsBy<'_>) -> Result<(), LakeError> {
        let mends = self.mends(found, rows);
        let (mut number, mut pieces, mut full) = (0, Vec::new(), 0);
        for (part, (path, pages)) in (1..).zip(&self.shelf.walked) {
            // A walk that was broken off has shorter ones.
            if full > 0 && full + pages > PAGES_A_PART {
                number += 1;
                self.part(number, std::mem::take(&mut pieces))?;
                full = 0;
            }
            full += pages;
            match mends.get(&part) {
                None => pieces.push(Piece::whole(path)),
                Some(mends) => pieces.extend(self.mended((part, path), mends)?),
            }
        }
        self.part(number + 1, pieces)?;
        let met: HashSet<&str> = found.met.iter().map(|met| met.openid.as_str()).collect();
        // Whoever came, by an event, after the walk had passed.
        let others = people(rows.iter().filter(|(openid, row)| row.active && !met.contains(*openid)));
        if !others.is_empty() {
            let path = self.scrap("others");
            self.write(&path, &others, true)?;
            self.part(number + 2, vec![Piece::whole(path)])?;
        }
        Ok(())
    }

    /// What differs from how the walk was written, part by part.
    fn mends(&self, found: &Found, rows: &RowsBy<'_>) -> Mends {
        let mut mends = Mends::new();
        for met in &found.repeated {
            mends.entry(met.part).or_default().insert(met.row, Mend::Remove);
        }
        for met in &found.met {
            let mend = match rows.get(met.openid.as_str()) {
                Some(row) if row.active => {
                    if (row.first_seen, row.last_seen) == (self.walked_at, self.walked_at) {
                        continue;
                    }
                    Mend::Set(row.first_seen, row.last_seen)
                }
                _ => Mend::Remove,
            };
            mends.entry(met.part).or_default().insert(met.row, mend);
        }
        mends
    }

    /// A part of the walk after its mends: its row groups, but where a row of one is another now that one written anew.
    fn mended(&mut self, (part, path): (u32, &str), mends: &BTreeMap<u32, Mend>) -> Result<Vec<Piece>, LakeError> {
        let (mut pieces, mut first_row, mut untouched) = (Vec::new(), 0, 0..0);
        for (group, rows) in self.shelf.lake.group_rows(path)?.into_iter().enumerate() {
            let row = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
            let is_touched = mends.range(row(first_row)..row(first_row + rows)).next().is_some();
            if is_touched {
                pieces.extend(some_groups(path, untouched));
                untouched = group + 1..group + 1;
                let name = format!("part-{part:04}-{group:02}");
                pieces.extend(self.written_anew(&name, (path, first_row..first_row + rows), mends)?.map(Piece::whole));
            } else {
                untouched.end = group + 1;
            }
            first_row += rows;
        }
        pieces.extend(some_groups(path, untouched));
        Ok(pieces)
    }

    /// Writes rows with their mends; nothing where nobody is left of them.
    fn written_anew(
        &mut self,
        name: &str,
        rows: (&str, Range<usize>),
        mends: &BTreeMap<u32, Mend>,
    ) -> Result<Option<String>, LakeError> {
        let (mut openids, mut first_seen, mut last_seen) = (Texts::default(), Vec::new(), Vec::new());
        read(&self.shelf.lake, rows, |row, openid, times| {
            let (first, last) = match mends.get(&row) {
                Some(Mend::Remove) => return,
                Some(Mend::Set(first, last)) => (*first, *last),
                None => times,
            };
            openids.push(Some(openid));
            first_seen.push(Some(first));
            last_seen.push(Some(last));
        })?;
        if openids.is_empty() {
            return Ok(None);
        }
        let target = self.scrap(name);
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let mut writer = self.shelf.lake.writer_of_ids(&target, &schema)?;
        let columns = vec![
            ("account", PartColumn::Same(self.shelf.account.as_str())),
            ("openid", PartColumn::Texts(&openids)),
            ("first_seen_at", PartColumn::Values(Values::Timestamp(first_seen))),
            ("last_seen_at", PartColumn::Values(Values::Timestamp(last_seen))),
            ("active", PartColumn::SameBoolean(true)),
        ];
        writer.write_columns(openids.len(), columns)?;
        writer.finish_soon().map(|_| Some(target))
    }

    /// Pieces as one part; such as cannot be joined each as its own.
    fn part(&mut self, number: u32, pieces: Vec<Piece>) -> Result<(), LakeError> {
        let Shelf { lake, account, table, snapshot, .. } = self.shelf;
        let of = (table, account.as_str(), snapshot.as_str());
        let target = Lake::named_part_path(of, "part", number);
        match pieces.as_slice() {
            [] => return Ok(()),
            // It is on the disk when the walk has ended.
            [Piece { path, groups: None }] if self.is_walked(path) => lake.adopt(path, &target)?,
            _ if lake.join(&pieces, &target)?.is_some() => {}
            _ => {
                for (piece, own) in (1..).zip(&pieces) {
                    let target = Lake::named_part_path(of, &format!("part-{number:04}"), piece);
                    lake.join(std::slice::from_ref(own), &target)?;
                    self.take(target)?;
                }
                return Ok(());
            }
        }
        self.take(target)
    }

    fn is_walked(&self, path: &str) -> bool {
        self.shelf.walked.iter().any(|(walked, _)| walked == path)
    }

    fn take(&mut self, part: String) -> Result<(), LakeError> {
        self.made.active += self.shelf.lake.rows_of(&part)?;
        self.made.bytes += self.shelf.lake.size_bytes(&part)?;
        self.made.parts.push(part);
        Ok(())
    }

    /// Those who left: the parts of before, but without those who came back, and the last of them with who left tonight.
    fn gone(&mut self, found: &Found, rows: &RowsBy<'_>) -> Result<(), LakeError> {
        let Shelf { lake, account, table, snapshot, gone, .. } = self.shelf;
        let mut left = people(rows.iter().filter(|(_, row)| !row.active));
        let mut number = 0;
        for part in gone {
            let had = lake.rows_of(part)?;
            let is_open = had < GONE_ROWS && !left.is_empty();
            if !is_open && !found.touched.contains(part) {
                self.made.gone_rows += had;
                self.made.bytes += lake.size_bytes(part)?;
                self.made.parts.push(part.clone());
                continue;
            }
            let mut stay = Vec::new();
            read(lake, (part, 0..usize::MAX), |_, openid, (first_seen, last_seen)| {
                if !rows.contains_key(openid) {
                    stay.push((openid.to_owned(), first_seen, last_seen));
                }
            })?;
            let mut kept: Vec<Person<'_>> =
                stay.iter().map(|(openid, first_seen, last_seen)| (openid.as_str(), *first_seen, *last_seen)).collect();
            if is_open {
                kept.extend(std::mem::take(&mut left));
            }
            number += 1;
            self.leave(&Lake::named_part_path((table, account.as_str(), snapshot), GONE, number), &kept)?;
        }
        self.leave(&Lake::named_part_path((table, account.as_str(), snapshot), GONE, number + 1), &left)
    }

    fn leave(&mut self, path: &str, people: &[Person<'_>]) -> Result<(), LakeError> {
        if people.is_empty() {
            return Ok(());
        }
        self.write(path, people, false)?;
        self.shelf.lake.make_durable(path)?;
        self.made.gone_rows += u64::try_from(people.len()).unwrap_or(0);
        self.made.bytes += self.shelf.lake.size_bytes(path)?;
        self.made.parts.push(path.to_owned());
        Ok(())
    }

    fn write(&self, path: &str, people: &[Person<'_>], active: bool) -> Result<(), LakeError> {
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let mut writer = self.shelf.lake.writer_of_ids(path, &schema)?;
        for rows in people.chunks(GROUP) {
            write_rows(&mut writer, self.shelf.account.as_str(), (rows, active))?;
        }
        writer.finish_soon().map(|_| ())
    }

    fn scrap(&mut self, name: &str) -> String {
        let path = format!("work/walks/{}/{name}-{}.parquet", self.shelf.account, self.shelf.snapshot);
        self.scraps.push(path.clone());
        path
    }
}

fn some_groups(path: &str, groups: Range<usize>) -> Option<Piece> {
    (!groups.is_empty()).then(|| Piece { path: path.to_owned(), groups: Some(groups) })
}
