//! Who is to be merged, and where they stand: in the parts of tonight's walk, among the followers of before, among those who had
//! left.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::assemble::Shelf;
use crate::lake::{Lake, LakeError};
use crate::stage::extract_followers::roll::{COLUMNS, Exceptions, Met, Missed};

/// Rows that are read at a time.
const CHUNK: usize = 1 << 15;

/// Everybody who is merged, each once.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Their rows of before, who followed.
    pub followed: Vec<Missed>,
    /// And who had left.
    pub had_left: Vec<Missed>,
    /// Where they stand in the walk.
    pub met: Vec<Met>,
    /// Who stands in it once more than once.
    pub repeated: Vec<Met>,
    /// Parts of those who had left that hold any of them.
    pub touched: HashSet<String>,
}

/// Finds everybody of `exceptions` and of `told`, whom events named; `is_distinct`: nobody stands on two pages.
pub(super) fn find(
    shelf: &Shelf,
    exceptions: Exceptions,
    told: HashSet<String>,
    is_distinct: bool,
) -> Result<Found, LakeError> {
    let Exceptions { missed, met } = exceptions;
    let mut found = Found { followed: missed, ..Found::default() };
    let mut places: HashMap<String, Met> = HashMap::new();
    for met in met {
        match places.get(&met.openid) {
            Some(_) => found.repeated.push(met),
            None => drop(places.insert(met.openid.clone(), met)),
        }
    }
    let followed: HashSet<&str> = found.followed.iter().map(|missed| missed.openid.as_str()).collect();
    let mut sought: HashSet<String> =
        told.iter().filter(|openid| !followed.contains(openid.as_str())).cloned().collect();
    sought.extend(places.keys().filter(|openid| !followed.contains(openid.as_str())).cloned());
    had_left(shelf, &mut sought, &mut found)?;
    // Whom nobody has told of and who stands nowhere else is new.
    sought.retain(|openid| !is_distinct || told.contains(openid));
    in_walk(shelf, &sought, (&mut places, &mut found))?;
    found.met = places.into_values().collect();
    Ok(found)
}

/// Looks through those who had left; whoever is found is sought no longer.
fn had_left(shelf: &Shelf, sought: &mut HashSet<String>, found: &mut Found) -> Result<(), LakeError> {
    for part in &shelf.gone {
        read(&shelf.lake, (part, 0..usize::MAX), |_, openid, (first_seen, last_seen)| {
            if sought.remove(openid) {
                found.touched.insert(part.clone());
                found.had_left.push(Missed { openid: openid.to_owned(), first_seen, last_seen });
            }
        })?;
    }
    Ok(())
}

/// Looks for people in the walk who may stand where they stood before: they carried over when they were first seen.
fn in_walk(
    shelf: &Shelf,
    sought: &HashSet<String>,
    (places, found): (&mut HashMap<String, Met>, &mut Found),
) -> Result<(), LakeError> {
    if sought.is_empty() {
        return Ok(());
    }
    let exceptional: HashSet<(u32, u32)> =
        places.values().chain(&found.repeated).map(|met| (met.part, met.row)).collect();
    let mut carried: HashMap<String, (Met, i64)> = HashMap::new();
    for (part, (path, _)) in (1..).zip(&shelf.walked) {
        read(&shelf.lake, (path, 0..usize::MAX), |row, openid, (first_seen, _)| {
            if sought.contains(openid) && !exceptional.contains(&(part, row)) {
                let met = Met { openid: openid.to_owned(), part, row };
                carried.insert(openid.to_owned(), (met, first_seen));
            }
        })?;
    }
    for (openid, (met, first_seen)) in carried {
        // They followed before, and were then seen by a walk before this one: which one makes no difference now.
        found.followed.push(Missed { openid: openid.clone(), first_seen, last_seen: first_seen });
        found.repeated.extend(places.insert(openid, met));
    }
    Ok(())
}

/// Reads openid, first and last seen of some rows of a part.
pub(super) fn read(
    lake: &Lake,
    (part, rows): (&str, Range<usize>),
    mut take: impl FnMut(u32, &str, (i64, i64)),
) -> Result<(), LakeError> {
    let mut from = rows.start;
    while from < rows.end {
        let wanted = CHUNK.min(rows.end - from);
        let mut rows = lake.read_rows(part, &COLUMNS[..3], from..from + wanted)?;
        let (openids, first_seen, last_seen) = (rows.texts(0), rows.integers(1), rows.integers(2));
        for (place, openid) in openids.iter().enumerate() {
            let row = u32::try_from(from + place).unwrap_or(u32::MAX);
            let times = (first_seen[place].unwrap_or_default(), last_seen[place].unwrap_or_default());
            take(row, openid.unwrap_or_default(), times);
        }
        if openids.len() < wanted {
            return Ok(());
        }
        from += openids.len();
    }
    Ok(())
}
