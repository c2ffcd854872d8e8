//! What becomes of the few who are not where they were and of whom events told: the rules of a whole night's SQL
//! ([`tables`](crate::stage::extract_followers::tables)) over rows in memory, so that a night that changes little starts no
//! engine. A test holds the one to the other.

use std::collections::{HashMap, HashSet};

use super::find::Found;
use super::{Row, RowsBy};
use crate::clock::to_micros;
use crate::ledger::FollowerEvent;
use crate::stage::tables::events::SECOND_MICROS;

/// The few, and what is known of them.
pub(super) struct Pass<'a> {
    pub found: &'a Found,
    /// In the order of their time.
    pub told: &'a [FollowerEvent],
    /// Microseconds since 1970.
    pub walked_at: i64,
}

/// Somebody came or left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change<'a> {
    /// Microseconds since 1970.
    pub seen_at: i64,
    pub openid: &'a str,
    pub came: bool,
    /// `event` or `walk`.
    pub source: &'static str,
}

impl<'a> Pass<'a> {
    /// Everybody's row now, and who came and left, in the order of time.
    pub fn run(&self) -> (RowsBy<'a>, Vec<Change<'a>>) {
        let met: HashSet<&str> = self.found.met.iter().map(|met| met.openid.as_str()).collect();
        let mut told: HashMap<&str, Vec<&FollowerEvent>> = HashMap::new();
        for event in self.told {
            told.entry(event.openid.as_str()).or_default().push(event);
        }
        let told = |openid: &str| told.get(openid).map_or(&[][..], Vec::as_slice);
        let (mut rows, mut changes) = (RowsBy::new(), Vec::new());
        for (people, active) in [(&self.found.followed, true), (&self.found.had_left, false)] {
            for person in people {
                let openid = person.openid.as_str();
                let before = Row { first_seen: person.first_seen, last_seen: person.last_seen, active };
                let row = self.person((openid, Some(before)), (met.contains(openid), told(openid)), &mut changes);
                rows.extend(row.map(|row| (openid, row)));
            }
        }
        let new = self.found.met.iter().map(|met| (met.openid.as_str(), true));
        let named = self.told.iter().map(|event| (event.openid.as_str(), false));
        let mut without_row: HashSet<&str> = HashSet::new();
        for (openid, is_met) in new.chain(named) {
            if rows.contains_key(openid) || without_row.contains(openid) {
                continue;
            }
            match self.person((openid, None), (is_met, told(openid)), &mut changes) {
                Some(row) => drop(rows.insert(openid, row)),
                None => drop(without_row.insert(openid)),
            }
        }
        changes.sort_unstable();
        (rows, changes)
    }

    /// A person's row now, if there is one: whoever left without having been known to follow has none.
    ///
    /// An event of the walk's first second or later knows better than the walk, which may have passed the person's page.
    fn person(
        &self,
        (openid, before): (&'a str, Option<Row>),
        (is_met, told): (bool, &[&FollowerEvent]),
        changes: &mut Vec<Change<'a>>,
    ) -> Option<Row> {
        let mut was_active = before.is_some_and(|before| before.active);
        // Whom the walk met and who left meanwhile had come, though nothing told of it.
        let mut came_unheard = is_met;
        for event in told {
            let at = to_micros(event.at);
            let is_late = at > self.walked_at - SECOND_MICROS;
            if std::mem::take(&mut came_unheard) && is_late && !was_active && !event.active {
                let seen_at = at.min(self.walked_at);
                changes.push(Change { seen_at, openid, came: true, source: "walk" });
                was_active = true;
            }
            // Only what is told first since the walk began says that they stood on the list before it.
            came_unheard |= is_met && !is_late;
            if std::mem::replace(&mut was_active, event.active) != event.active {
                changes.push(Change { seen_at: at, openid, came: event.active, source: "event" });
            }
        }
        let came = || told.iter().filter(|event| event.active).map(|event| to_micros(event.at));
        let walked = is_met.then_some(self.walked_at);
        let seen = || came().chain(walked);
        let first_seen = before.map(|before| before.first_seen).or_else(|| seen().min())?;
        let last_seen = seen().chain(before.map(|before| before.last_seen)).max()?;
        let last_word = told
            .last()
            .filter(|_| told.iter().map(|event| to_micros(event.at)).max() > Some(self.walked_at - SECOND_MICROS));
        let active = last_word.map_or(is_met, |event| event.active);
        if active != was_active {
            changes.push(Change { seen_at: self.walked_at, openid, came: active, source: "walk" });
        }
        Some(Row { first_seen, last_seen, active })
    }
}

#[cfg(test)]
mod tests;
