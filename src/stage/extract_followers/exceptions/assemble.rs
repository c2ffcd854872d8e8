//! The parts of tonight's followers: the pages, joined into larger parts, and those who left.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::find::{Found, read};
use super::{GROUP, Person, RowsBy, people, write_rows};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, TableName, Texts, Values};
use crate::lake::{Lake, LakeError, PartColumn};
use crate::stage::extract_followers::book::{Joined, PAGES_A_PART};
use crate::stage::extract_followers::merge::GONE;

/// Parts of those who left grow until they have so many rows.
const GONE_ROWS: u64 = 100_000;

/// What there is to assemble.
pub(super) struct Shelf {
    pub lake: Lake,
    pub account: AccountName,
    pub table: TableName,
    pub snapshot: String,
    /// Their number and path.
    pub pages: Vec<(u32, String)>,
    /// Parts that were joined of them already.
    pub joined: Joined,
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

/// What happens to a row of a page.
enum Mend {
    Set(i64, i64),
    Remove,
}

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
        let mut mends = self.mends(found, rows);
        let pages = self.shelf.pages.chunks(PAGES_A_PART as usize);
        let mut number = 0;
        for pages in pages {
            number += 1;
            let is_plain = pages.iter().all(|(page, _)| !mends.contains_key(page));
            match self.shelf.joined.get(&number) {
                Some(joined) if is_plain => self.take(number, joined)?,
                _ => self.mended_part(number, pages, &mut mends)?,
            }
        }
        let met: HashSet<&str> = found.met.iter().map(|met| met.openid.as_str()).collect();
        // Whoever came, by an event, after the walk had passed.
        let others = people(rows.iter().filter(|(openid, row)| row.active && !met.contains(*openid)));
        if !others.is_empty() {
            let path = self.scrap("others");
            self.made.active += u64::try_from(others.len()).unwrap_or(0);
            self.write(&path, &others, true)?;
            self.join(number + 1, &[path])?;
        }
        Ok(())
    }

    /// Takes a part that was joined while the walk went on.
    fn take(&mut self, number: u32, joined: &str) -> Result<(), LakeError> {
        let Shelf { lake, account, table, snapshot, .. } = self.shelf;
        let target = Lake::named_part_path((table, account.as_str(), snapshot), "part", number);
        lake.rename(joined, &target)?;
        self.made.active += lake.rows_of(&target)?;
        self.made.bytes += lake.size_bytes(&target)?;
        self.made.parts.push(target);
        Ok(())
    }

    /// Joins pages after their mends.
    fn mended_part(
        &mut self,
        number: u32,
        pages: &[(u32, String)],
        mends: &mut BTreeMap<u32, HashMap<u32, Mend>>,
    ) -> Result<(), LakeError> {
        self.scraps.extend(self.shelf.joined.get(&number).cloned());
        let mut pieces = Vec::new();
        for (page, path) in pages {
            match mends.remove(page) {
                None => {
                    self.made.active += self.shelf.lake.rows_of(path)?;
                    pieces.push(path.clone());
                }
                Some(mends) => pieces.extend(self.mended((*page, path), &mends)?),
            }
        }
        if pieces.is_empty() { Ok(()) } else { self.join(number, &pieces) }
    }

    /// What differs from how the pages were written, page by page.
    fn mends(&self, found: &Found, rows: &RowsBy<'_>) -> BTreeMap<u32, HashMap<u32, Mend>> {
        let mut mends: BTreeMap<u32, HashMap<u32, Mend>> = BTreeMap::new();
        for met in &found.repeated {
            mends.entry(met.page).or_default().insert(met.row, Mend::Remove);
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
            mends.entry(met.page).or_default().insert(met.row, mend);
        }
        mends
    }

    /// Writes a page anew with its mends; nothing where nobody is left on it.
    fn mended(&mut self, (page, path): (u32, &str), mends: &HashMap<u32, Mend>) -> Result<Option<String>, LakeError> {
        let (mut openids, mut first_seen, mut last_seen) = (Texts::default(), Vec::new(), Vec::new());
        read(&self.shelf.lake, path, |row, openid, times| {
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
        self.made.active += u64::try_from(openids.len()).unwrap_or(0);
        let target = self.scrap(&format!("page-{page:05}"));
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

    /// Pages as one part; such as cannot be joined each as its own.
    fn join(&mut self, number: u32, pieces: &[String]) -> Result<(), LakeError> {
        let Shelf { lake, account, table, snapshot, .. } = self.shelf;
        let of = (table, account.as_str(), snapshot.as_str());
        let target = Lake::named_part_path(of, "part", number);
        if let Some(part) = lake.join(pieces, &target)? {
            self.made.bytes += part.bytes;
            self.made.parts.push(target);
            return Ok(());
        }
        for (piece, path) in (1..).zip(pieces) {
            let target = Lake::named_part_path(of, &format!("part-{number:04}"), piece);
            lake.adopt(path, &target)?;
            lake.make_durable(&target)?;
            self.made.bytes += lake.size_bytes(&target)?;
            self.made.parts.push(target);
        }
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
            read(lake, part, |_, openid, (first_seen, last_seen)| {
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
