//! A night of which nearly everybody is where they were: only the others are merged, by the same rules as a whole night.
//!
//! The way: whom the roll found missed or met, and whom events named → their rows of before, looked up (`find`) → what becomes
//! of them (`pass`) → their rows now. The walk's parts are the table's next ones, written anew only where such a row stands in them;
//! whoever left stands in parts of their own, which stay as they are but the last (`assemble`); changes are one part more. No
//! engine is started for them.

mod assemble;
mod find;
mod pass;

use std::collections::{HashMap, HashSet};

use chrono_tz::Tz;

use self::assemble::{Assembled, Assembly, Shelf};
use self::find::find;
use self::pass::{Change, Pass};
use super::merge::{Active, Made, Night, is_of_followers};
use super::roll::Exceptions;
use super::{Extracted, StageError};
use crate::clock::from_micros;
use crate::domain::tables::table_spec;
use crate::domain::{TableName, Texts, Values, person_hash};
use crate::engine::{Params, TableSource};
use crate::lake::{Lake, LakeError, PartColumn};
use crate::ledger::{FollowerEvent, SnapshotRecord, WalkPart};
use crate::stage::blocking;
use crate::stage::news::Changed;
use crate::stage::tables::events;

/// Rows that are written at a time.
const GROUP: usize = 50_000;

/// A person's row after the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// Microseconds since 1970, as the next.
    first_seen: i64,
    last_seen: i64,
    active: bool,
}

/// Everybody's row who is merged.
type RowsBy<'a> = HashMap<&'a str, Row>;

/// Merges by exceptions; `is_distinct`: nobody stands on two pages.
///
/// # Errors
///
/// [`StageError`]; the walk stays for the next try.
pub(super) async fn merge(
    night: &Night<'_, '_>,
    known: &SnapshotRecord,
    (exceptions, is_distinct): (Exceptions, bool),
) -> Result<Extracted, StageError> {
    let cx = night.cx;
    let lake = &cx.hands.lake;
    let account = &night.walk.account;
    let id = cx.new_snapshot_id();
    let shelf = Shelf {
        lake: lake.clone(),
        account: account.clone(),
        table: night.table.clone(),
        snapshot: id.clone(),
        walked: with_pages(night.parts),
        gone: known.parts.iter().filter(|part| !is_of_followers(part)).cloned().collect(),
    };
    let changes_path = Lake::part_path(&TableName::new(events::CHANGES), account.as_str(), &id, 1);
    let merging = Merging {
        told: night.told.events.clone(),
        named: night.told.people.iter().map(|openid| openid.as_str().to_owned()).collect(),
        forgotten: if night.forgotten.is_some() { cx.hands.ledger.forgotten().await? } else { None },
        timezone: cx.hands.settings.timezone,
        changed: Changed::new(lake, format!("work/walks/{account}/changed-{id}.parquet")),
        changes: changes_path.clone(),
        walked_at: crate::clock::to_micros(night.walk.started_at),
        shelf,
    };
    let Done { assembled, changed, changes, people } =
        tokio::task::spawn_blocking(move || merging.merge(exceptions, is_distinct)).await??;
    tracing::debug!(account = %account, people, "merged by {people} people who are not where they were");
    let forgotten = still_named(night, &assembled).await?;
    let followers = Made {
        of: "followers",
        rows: assembled.active + assembled.gone_rows,
        bytes: assembled.bytes,
        parts: assembled.parts,
    };
    let changes = more_changes(night, &id, (changes, changes_path)).await?;
    if let Some(news) = cx.news {
        news.changed(account, changed.of(known.as_of, id.clone()));
    }
    let active = Active { all: assembled.active, forgotten };
    Ok(night.extracted(id, (followers, changes), active))
}

/// The paths of a walk's parts, and how many pages each has.
fn with_pages(parts: &[WalkPart]) -> Vec<(String, u32)> {
    let before = std::iter::once(0).chain(parts.iter().map(|part| part.last_page));
    parts.iter().zip(before).map(|(part, before)| (part.path.clone(), part.last_page - before)).collect()
}

/// The changes of before with the part of tonight's behind them, if there is any.
async fn more_changes(night: &Night<'_, '_>, id: &str, (new, path): (u64, String)) -> Result<Made, StageError> {
    let lake = &night.cx.hands.lake;
    let (mut rows, mut parts) = night.old_changes().map(|old| (old.rows, old.parts.clone())).unwrap_or_default();
    if new > 0 {
        rows += new;
        parts.push(path);
    }
    // Nobody reads them tonight, and what is wrong with one is to be told before more is built on it.
    if let Some(damaged) = parts.iter().find(|part| !lake.is_whole(part)) {
        return Err(StageError::Rule(format!(
            "{} of table `{}` is damaged or gone: restore it from a backup",
            lake.absolute(damaged).display(),
            events::CHANGES
        )));
    }
    let table = TableName::new(events::CHANGES);
    let joined = Lake::named_part_path((&table, night.walk.account.as_str(), id), "joined", 1);
    let own = lake.clone();
    let parts = tokio::task::spawn_blocking(move || own.compact(parts, &joined)).await??;
    let mut bytes = 0;
    for part in &parts {
        bytes += lake.size_bytes(part)?;
    }
    Ok(Made { of: events::CHANGES, rows, bytes, parts })
}

/// How many of the followers were forgotten and are named by the list all the same.
async fn still_named(night: &Night<'_, '_>, assembled: &Assembled) -> Result<u64, StageError> {
    let Some((table, salt)) = night.forgotten.clone() else { return Ok(0) };
    let (cx, lake) = (night.cx, &night.cx.hands.lake);
    let after = TableSource {
        name: "after".to_owned(),
        columns: table_spec("followers").expect("followers is declared").sql_columns(),
        parts: assembled.parts.iter().map(|part| lake.absolute(part)).collect(),
        sql: None,
        are_alike: false,
    };
    blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        session.add_table(&table)?;
        session.add_table(&after)?;
        let named = crate::stage::live::forgotten_sql(&salt, "openid");
        Ok(session.count(&format!("select count(*) from after where active and {named}"), &Params::new())?)
    })
    .await
}

/// What the merge of the exceptions reads and writes.
struct Merging {
    shelf: Shelf,
    /// What the walk takes in of what was told, in its order.
    told: Vec<FollowerEvent>,
    /// Whom any event named.
    named: HashSet<String>,
    /// A salt, and the hashes of those who were forgotten.
    forgotten: Option<(String, Vec<String>)>,
    timezone: Tz,
    changed: Changed,
    /// Relative to the lake.
    changes: String,
    /// Microseconds since 1970.
    walked_at: i64,
}

struct Done {
    assembled: Assembled,
    changed: Changed,
    /// Rows of the part of changes; with none there is no part.
    changes: u64,
    people: usize,
}

impl Merging {
    fn merge(mut self, exceptions: Exceptions, is_distinct: bool) -> Result<Done, LakeError> {
        let found = find(&self.shelf, exceptions, std::mem::take(&mut self.named), is_distinct)?;
        let told = std::mem::take(&mut self.told);
        let (rows, mut changes) = Pass { found: &found, told: &told, walked_at: self.walked_at }.run();
        self.leave_out_forgotten(&mut changes);
        self.write_changes(&changes)?;
        self.write_changed(&rows)?;
        let assembled = Assembly::of(&self.shelf, (&found, &rows), self.walked_at)?;
        let (changes, people) = (u64::try_from(changes.len()).unwrap_or(u64::MAX), rows.len());
        Ok(Done { assembled, changed: self.changed, changes, people })
    }

    /// Nothing says of them when they came and left.
    fn leave_out_forgotten(&self, changes: &mut Vec<Change<'_>>) {
        let Some((salt, hashes)) = &self.forgotten else { return };
        let hashes: HashSet<&str> = hashes.iter().map(String::as_str).collect();
        changes.retain(|change| !hashes.contains(person_hash(salt, change.openid).as_str()));
    }

    fn write_changes(&self, changes: &[Change<'_>]) -> Result<(), LakeError> {
        if changes.is_empty() {
            return Ok(());
        }
        let schema = table_spec(events::CHANGES).expect("follower_changes is declared").part_schema();
        let mut writer = self.shelf.lake.writer(&self.changes, &schema)?;
        for changes in changes.chunks(GROUP) {
            let texts =
                |of: fn(&Change<'_>) -> &'static str| -> Texts { changes.iter().map(|own| Some(of(own))).collect() };
            let openids: Texts = changes.iter().map(|own| Some(own.openid)).collect();
            let turned = texts(|own| if own.came { "follow" } else { "unfollow" });
            let sources = texts(|own| own.source);
            let dates = changes.iter().map(|own| Some(self.date(own.seen_at))).collect();
            let times = changes.iter().map(|own| Some(own.seen_at)).collect();
            let columns = vec![
                ("date", PartColumn::Values(Values::Date(dates))),
                ("account", PartColumn::Same(self.shelf.account.as_str())),
                ("openid", PartColumn::Texts(&openids)),
                ("change", PartColumn::Texts(&turned)),
                ("seen_at", PartColumn::Values(Values::Timestamp(times))),
                ("source", PartColumn::Texts(&sources)),
            ];
            writer.write_columns(changes.len(), columns)?;
        }
        writer.finish().map(|_| ())
    }

    /// The workspace's date, in days since 1970.
    fn date(&self, micros: i64) -> i32 {
        from_micros(micros).with_timezone(&self.timezone).date_naive().to_epoch_days()
    }

    fn write_changed(&self, rows: &RowsBy<'_>) -> Result<(), LakeError> {
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let mut writer = self.shelf.lake.writer_of_ids(self.changed.path(), &schema)?;
        for active in [true, false] {
            let rows = people(rows.iter().filter(|(_, row)| row.active == active));
            for rows in rows.chunks(GROUP) {
                write_rows(&mut writer, self.shelf.account.as_str(), (rows, active))?;
            }
        }
        writer.finish_soon().map(|_| ())
    }
}

/// Rows in the order of their openids.
fn people<'r, 'a: 'r>(rows: impl Iterator<Item = (&'r &'a str, &'r Row)>) -> Vec<Person<'a>> {
    let mut people: Vec<Person<'a>> = rows.map(|(openid, row)| (*openid, row.first_seen, row.last_seen)).collect();
    people.sort_unstable();
    people
}

/// Openid, first and last seen.
type Person<'a> = (&'a str, i64, i64);

/// Writes rows of followers, or of those who left, as one row group.
fn write_rows(
    writer: &mut crate::lake::PartWriter,
    account: &str,
    (rows, active): (&[Person<'_>], bool),
) -> Result<(), LakeError> {
    let openids: Texts = rows.iter().map(|(openid, ..)| Some(*openid)).collect();
    let times = |of: fn(&Person<'_>) -> i64| {
        PartColumn::Values(Values::Timestamp(rows.iter().map(|row| Some(of(row))).collect()))
    };
    let columns = vec![
        ("account", PartColumn::Same(account)),
        ("openid", PartColumn::Texts(&openids)),
        ("first_seen_at", times(|row| row.1)),
        ("last_seen_at", times(|row| row.2)),
        ("active", PartColumn::SameBoolean(active)),
    ];
    writer.write_columns(rows.len(), columns)
}
