//! The list of tonight beside the list of last night, page by page, while the walk is under way.
//!
//! WeChat gives the list in an order that it keeps for those who stay, so that nearly every person stands where they stood
//! last night, a little further up or down: whoever is met carries over when they were first seen, and a page is written as
//! it will stand in the table. Whom one list has and the other has not (or has elsewhere) is put down as an exception, to be
//! looked at when the walk has ended (`exceptions`). Memory is bounded: a list that has another order from night to night, or
//! more exceptions than [`MOST_EXCEPTIONS`], is nothing for this, and the engine joins the two as wholes (`merge`).

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::mpsc::{Receiver, sync_channel};

use crate::domain::{ColumnType, Quick, Texts, fingerprint};
use crate::lake::{Lake, LakeError};

/// More are not held: 25 MB.
pub(super) const MOST_EXCEPTIONS: usize = 1 << 18;
/// Rows of last night's list that are read at a time.
const CHUNK: usize = 1 << 15;
/// So far ahead of where we stand in it the list of last night is searched for tonight's people.
const WINDOW: usize = 1 << 16;
/// Places on both lists that are compared one by one where they differ, before anything is hashed.
const NEAR: usize = 24;
/// A list that has to be searched through more often has another order.
const MOST_SEARCHES: usize = 256;

/// Somebody of last night's list who is not where they were.
#[derive(Debug, Clone)]
pub(super) struct Missed {
    pub openid: String,
    /// Microseconds since 1970, as the last.
    pub first_seen: i64,
    pub last_seen: i64,
}

/// Somebody of tonight's list who is not where they were, if they were.
#[derive(Debug, Clone)]
pub(super) struct Met {
    pub openid: String,
    /// The part of the walk that has them, from 1.
    pub part: u32,
    /// From 0, in that part.
    pub row: u32,
}

/// The exceptions of a whole walk.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    pub missed: Vec<Missed>,
    pub met: Vec<Met>,
}

/// Both lists as far as they were compared.
pub(super) struct Roll {
    before: Before,
    walked_at: i64,
    exceptions: Exceptions,
    searches: usize,
    /// It is over with comparing: too much differs.
    is_lost: bool,
}

impl Roll {
    /// Begins with the parts of those who followed last night, in the order of that list. `walked_at` is when tonight's walk
    /// began: for whoever was not met before it is when they were first seen.
    pub fn begin(lake: Lake, parts: Vec<String>, walked_at: i64) -> Self {
        Self {
            before: Before::read(lake, parts),
            walked_at,
            exceptions: Exceptions::default(),
            searches: 0,
            is_lost: false,
        }
    }

    /// Compares the next page, which begins at a row of a part; gives when each of its people was first seen, as far as that
    /// shows here. Blocking.
    pub fn meet(&mut self, (part, first_row): (u32, usize), page: &Texts) -> Vec<Option<i64>> {
        let mut first_seen = vec![Some(self.walked_at); page.len()];
        let ids: Vec<&str> = page.iter().map(Option::unwrap_or_default).collect();
        let mut here = 0;
        while here < ids.len() && !self.is_lost {
            here += self.before.run(&ids[here..], &mut first_seen[here..]);
            let rest = &ids[here..];
            if rest.is_empty() {
                break;
            }
            let (new, gone) = self.next_common(rest);
            for openid in &rest[..new] {
                let row = u32::try_from(first_row + here).unwrap_or(u32::MAX);
                self.exceptions.met.push(Met { openid: (*openid).to_owned(), part, row });
                here += 1;
            }
            self.before.skip(gone, &mut self.exceptions.missed);
            self.bound();
        }
        first_seen
    }

    /// What differed on the whole, after the last page; nothing where too much did, or last night's list cannot be read.
    pub fn end(mut self) -> Option<Exceptions> {
        while !self.is_lost && self.before.fill(1) > 0 {
            let ahead = self.before.ahead();
            self.before.skip(ahead, &mut self.exceptions.missed);
            self.bound();
        }
        (!self.is_lost && !self.before.is_broken).then_some(self.exceptions)
    }

    fn bound(&mut self) {
        let Exceptions { missed, met } = &self.exceptions;
        self.is_lost |= missed.len() + met.len() > MOST_EXCEPTIONS || self.before.is_broken;
    }

    /// How many of `ids` to pass over, and how many of last night's list, until both go on with the same person.
    fn next_common(&mut self, ids: &[&str]) -> (usize, usize) {
        if self.before.fill(NEAR) == 0 {
            return (ids.len(), 0);
        }
        for distance in 1..NEAR {
            // Whoever left or came alone first, which is nearly everybody.
            let one_sided = [(0, distance), (distance, 0)];
            let pairs = one_sided.into_iter().chain((1..distance).map(|new| (new, distance - new)));
            for (new, gone) in pairs {
                if new < ids.len() && self.before.peek(gone) == Some(ids[new]) {
                    return (new, gone);
                }
            }
        }
        self.searches += 1;
        self.is_lost |= self.searches > MOST_SEARCHES;
        self.before.fill(WINDOW);
        let places = self.before.places();
        let found = ids.iter().enumerate().find_map(|(new, openid)| {
            let gone = *places.get(&fingerprint(openid))?;
            (self.before.peek(gone) == Some(*openid)).then_some((new, gone))
        });
        // Nobody of this page follows on last night's list as far as we look: all of it is new, and the list waits.
        found.unwrap_or((ids.len(), 0))
    }
}

/// People of last night's list, read ahead on a thread of its own.
struct Before {
    chunks: VecDeque<Chunk>,
    /// Where we stand in the first of them.
    at: usize,
    more: Option<Receiver<Result<Chunk, LakeError>>>,
    /// It cannot be read, or holds somebody who did not follow.
    is_broken: bool,
}

struct Chunk {
    openids: Texts,
    first_seen: Vec<Option<i64>>,
    last_seen: Vec<Option<i64>>,
    all_active: bool,
}

impl Before {
    fn read(lake: Lake, parts: Vec<String>) -> Self {
        let (send, more) = sync_channel(1);
        let reading = move || {
            for part in parts {
                let mut from = 0;
                loop {
                    let chunk = read_chunk(&lake, &part, from);
                    let rows = chunk.as_ref().map_or(0, |chunk| chunk.openids.len());
                    // Whoever compared has no use for the rest any more.
                    if (rows > 0 || chunk.is_err()) && send.send(chunk).is_err() {
                        return;
                    }
                    if rows < CHUNK {
                        break;
                    }
                    from += rows;
                }
            }
        };
        // It ends with the last part, or when nobody takes what it reads.
        let begun = std::thread::Builder::new().name("roll".to_owned()).spawn(reading);
        Self { chunks: VecDeque::new(), at: 0, is_broken: begun.is_err(), more: Some(more) }
    }

    /// Steps over those who stand on both lists one after the other; gives how many. `first_seen` gets theirs.
    fn run(&mut self, ids: &[&str], first_seen: &mut [Option<i64>]) -> usize {
        let mut met = 0;
        while met < ids.len() && self.fill(1) > 0 {
            let chunk = &self.chunks[0];
            let most = (ids.len() - met).min(chunk.openids.len() - self.at);
            let same = (0..most).take_while(|step| chunk.openids.get(self.at + step) == Some(ids[met + step])).count();
            first_seen[met..met + same].copy_from_slice(&chunk.first_seen[self.at..self.at + same]);
            (met, self.at) = (met + same, self.at + same);
            if same < most {
                break;
            }
        }
        met
    }

    /// Passes over people, who are missed.
    fn skip(&mut self, people: usize, missed: &mut Vec<Missed>) {
        for _ in 0..people {
            if self.fill(1) == 0 {
                return;
            }
            let chunk = &self.chunks[0];
            missed.push(Missed {
                openid: chunk.openids.get(self.at).unwrap_or_default().to_owned(),
                first_seen: chunk.first_seen[self.at].unwrap_or_default(),
                last_seen: chunk.last_seen[self.at].unwrap_or_default(),
            });
            self.at += 1;
        }
    }

    /// Who stands so many places further on.
    fn peek(&self, mut place: usize) -> Option<&str> {
        place += self.at;
        for chunk in &self.chunks {
            if place < chunk.openids.len() {
                return chunk.openids.get(place);
            }
            place -= chunk.openids.len();
        }
        None
    }

    /// Where everybody stands who was read ahead, by their fingerprints.
    fn places(&self) -> HashMap<u64, usize, BuildHasherDefault<Quick>> {
        let ahead = self.chunks.iter().flat_map(|chunk| chunk.openids.iter()).skip(self.at);
        let mut places: HashMap<u64, usize, _> = HashMap::default();
        for (place, openid) in ahead.enumerate() {
            places.entry(fingerprint(openid.unwrap_or_default())).or_insert(place);
        }
        places
    }

    /// Reads until so many people are ahead, or the list is at its end; gives how many are.
    fn fill(&mut self, people: usize) -> usize {
        while self.chunks.front().is_some_and(|chunk| self.at == chunk.openids.len()) {
            self.chunks.pop_front();
            self.at = 0;
        }
        while self.ahead() < people && !self.is_broken {
            let Some(next) = self.more.as_ref().and_then(|more| more.recv().ok()) else { break };
            match next {
                Ok(chunk) if chunk.all_active => self.chunks.push_back(chunk),
                // One is from before there were parts of followers alone, the other tells its reason to the engine.
                Ok(_) | Err(_) => self.is_broken = true,
            }
        }
        if self.is_broken {
            (self.more, self.at) = (None, 0);
            self.chunks.clear();
        }
        self.ahead()
    }

    fn ahead(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.openids.len()).sum::<usize>() - self.at
    }
}

/// The columns of followers that are compared.
pub(super) const COLUMNS: [(&str, ColumnType); 4] = [
    ("openid", ColumnType::Text),
    ("first_seen_at", ColumnType::Timestamp),
    ("last_seen_at", ColumnType::Timestamp),
    ("active", ColumnType::Boolean),
];

fn read_chunk(lake: &Lake, part: &str, from: usize) -> Result<Chunk, LakeError> {
    let mut rows = lake.read_rows(part, &COLUMNS, from..from + CHUNK)?;
    Ok(Chunk {
        openids: rows.texts(0),
        first_seen: rows.integers(1),
        last_seen: rows.integers(2),
        all_active: rows.booleans(3).iter().all(|active| *active == Some(true)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lake::PartColumn;

    const WALKED_AT: i64 = 1_000_000;

    fn texts(ids: &[u32]) -> Texts {
        let ids: Vec<String> = ids.iter().map(|id| format!("o6_bmj{id:06}")).collect();
        ids.iter().map(|id| Some(id.as_str())).collect()
    }

    /// The list of last night, in parts of `size`; who has number n was first seen at n.
    fn last_night(lake: &Lake, ids: &[u32], size: usize) -> Vec<String> {
        ids.chunks(size)
            .enumerate()
            .map(|(number, ids)| {
                let path = format!("tables/{number}.parquet");
                let mut writer = lake.writer_of_ids(&path, &COLUMNS).unwrap();
                let first = ids.iter().map(|id| Some(i64::from(*id))).collect();
                let openids = texts(ids);
                writer
                    .write_columns(
                        ids.len(),
                        vec![
                            ("openid", PartColumn::Texts(&openids)),
                            ("first_seen_at", PartColumn::Values(crate::domain::Values::Timestamp(first))),
                            ("last_seen_at", PartColumn::SameTime(7)),
                            ("active", PartColumn::SameBoolean(true)),
                        ],
                    )
                    .unwrap();
                writer.finish().unwrap().path
            })
            .collect()
    }

    /// Compares both; every person who is on both and no exception has carried over what they had.
    fn compare(before: &[u32], now: &[u32], page: usize) -> Option<(Vec<u32>, Vec<u32>)> {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let parts = last_night(&lake, before, 700);
        let mut roll = Roll::begin(lake, parts, WALKED_AT);
        let mut carried: Vec<(u32, Option<i64>)> = Vec::new();
        for (number, ids) in now.chunks(page).enumerate() {
            // Every third page begins a part.
            let place = (u32::try_from(number / 3 + 1).unwrap(), number % 3 * page);
            let first_seen = roll.meet(place, &texts(ids));
            carried.extend(ids.iter().copied().zip(first_seen));
        }
        let exceptions = roll.end()?;
        let number = |openid: &str| openid[6..].parse::<u32>().unwrap();
        let met: Vec<u32> = exceptions.met.iter().map(|met| number(&met.openid)).collect();
        let missed: Vec<u32> = exceptions.missed.iter().map(|missed| number(&missed.openid)).collect();
        for met in &exceptions.met {
            let place = (met.part as usize - 1) * 3 * page + met.row as usize;
            assert_eq!(now[place], number(&met.openid));
            assert_eq!(carried[place].1, Some(WALKED_AT));
        }
        for (id, first_seen) in carried {
            assert!(met.contains(&id) || first_seen == Some(i64::from(id)), "{id} has {first_seen:?}");
        }
        let mut known: Vec<u32> =
            now.iter().copied().filter(|id| !met.contains(id)).chain(missed.iter().copied()).collect();
        known.sort_unstable();
        let mut all = before.to_vec();
        all.sort_unstable();
        assert_eq!(known, all, "everybody of last night was met where they were or is missed");
        Some((met, missed))
    }

    #[test]
    fn who_came_and_who_left_is_all_that_differs() {
        let before: Vec<u32> = (0..5_000).collect();
        let now: Vec<u32> = (0..5_300).filter(|id| id % 200 != 7 || *id >= 5_000).collect();
        let (met, missed) = compare(&before, &now, 1_000).unwrap();
        assert_eq!(met, (5_000..5_300).collect::<Vec<_>>());
        assert_eq!(missed, (0..5_000).filter(|id| id % 200 == 7).collect::<Vec<_>>());
        assert_eq!(compare(&before, &before, 10_000).unwrap(), (vec![], vec![]));
        assert_eq!(compare(&before, &[], 10).unwrap().1.len(), 5_000);
        assert_eq!(compare(&[], &before, 999).unwrap().0.len(), 5_000);
    }

    #[test]
    fn crowds_that_come_and_leave_at_one_place_do_not_make_the_rest_strangers() {
        let before: Vec<u32> = (0..6_000).collect();
        let mut now: Vec<u32> = (10_000..11_500).chain(0..2_000).chain(4_000..5_000).chain(20_000..20_900).collect();
        now.extend(5_500..6_000);
        let (met, missed) = compare(&before, &now, 1_000).unwrap();
        assert_eq!((met.len(), missed.len()), (2_400, 2_500));
    }

    #[test]
    fn who_moved_is_met_and_missed() {
        let before: Vec<u32> = (0..3_000).collect();
        let now: Vec<u32> = (0..3_000).filter(|id| *id != 1_500).chain([1_500]).collect();
        assert_eq!(compare(&before, &now, 100).unwrap(), (vec![1_500], vec![1_500]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn whatever_the_lists_nobody_is_lost(
            gone in prop::collection::hash_set(0_u32..900, 0..300),
            come in prop::collection::vec((0_usize..1_000, 1_000_u32..2_000), 0..200),
            page in 1_usize..400,
        ) {
            let before: Vec<u32> = (0..900).collect();
            let mut now: Vec<u32> = before.iter().copied().filter(|id| !gone.contains(id)).collect();
            let mut taken = std::collections::HashSet::new();
            for (place, id) in come {
                if taken.insert(id) {
                    now.insert(place.min(now.len()), id);
                }
            }
            prop_assert!(compare(&before, &now, page).is_some());
        }
    }
}
