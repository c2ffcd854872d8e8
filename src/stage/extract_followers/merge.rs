//! A finished walk and the rows before it become `followers` and `follower_changes`: as it stands where there is nothing to
//! merge with, by its exceptions where the list is nearly that of last night ([`exceptions`](super::exceptions)), else as a
//! whole.

use std::collections::BTreeSet;

use super::tables::{Pass, followers_sql, walk_source};
use super::walk::Walked;
use super::{Extracted, StageContext, StageError, exceptions};
use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, TableName};
use crate::engine::{Param, Params, TableSource};
use crate::lake::Lake;
use crate::ledger::{FollowerEvent, SnapshotRecord, Walk, WalkPart};
use crate::stage::tables::events;
use crate::stage::{NewSnapshot, blocking, live};

/// Merges a finished walk with the rows before it.
///
/// # Errors
///
/// [`StageError`]; the walk stays for the next try.
pub(super) async fn merge(
    cx: &StageContext<'_>,
    table: &TableName,
    account: &AccountName,
    walked: Walked,
) -> Result<Extracted, StageError> {
    let hands = cx.hands;
    let Walked { walk, is_distinct, exceptions, .. } = walked;
    let parts = hands.ledger.walk_parts(walk.id).await?;
    let known = cx.visible.slice(table.as_str(), account.as_str());
    let told = told_since(cx, account, (known, walk.started_at)).await?;
    let forgotten = live::export_forgotten(hands).await?;
    let is_plain = is_distinct
        && told.events.is_empty()
        && forgotten.is_none()
        && known.is_none()
        && cx.visible.slice("follower_changes", account.as_str()).is_none();
    if is_plain {
        return adopt(cx, table, &walk, (&parts, told.to));
    }
    let night = Night { cx, table, walk: &walk, parts: &parts, told: &told, forgotten };
    if let (Some(known), Some(found)) = (known, exceptions) {
        return exceptions::merge(&night, known, (found, is_distinct)).await;
    }
    whole(&night, known).await
}

/// What a merge is made of.
pub(super) struct Night<'a, 'b> {
    pub cx: &'a StageContext<'b>,
    pub table: &'a TableName,
    pub walk: &'a Walk,
    pub parts: &'a [WalkPart],
    pub told: &'a Told,
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    pub forgotten: Option<(TableSource, String)>,
}

impl Night<'_, '_> {
    /// The changes that were known before.
    pub fn old_changes(&self) -> Option<&SnapshotRecord> {
        self.cx.visible.slice(events::CHANGES, self.walk.account.as_str())
    }

    pub fn params(&self) -> Params {
        Params::from([
            ("account".to_owned(), Param::Text(self.walk.account.to_string())),
            ("walked_at".to_owned(), Param::Timestamp(self.walk.started_at)),
        ])
    }

    /// A snapshot of the table, with the changes beside it, as the stage's outcome.
    pub fn extracted(&self, id: String, (followers, changes): (Made, Made), active: Active) -> Extracted {
        let snapshot = |table: TableName, id: String, made: Made| NewSnapshot {
            slice: self.walk.account.to_string(),
            id,
            as_of: self.walk.started_at,
            rows: made.rows,
            bytes: made.bytes,
            parts: made.parts,
            columns: table_spec(made.of).map(|spec| spec.sql_columns()).unwrap_or_default(),
            table,
        };
        let changes = snapshot(TableName::new(events::CHANGES), format!("{id}-changes"), changes);
        let followers = snapshot(self.table.clone(), id, followers);
        Extracted::Made {
            walk: self.walk.id,
            rows: self.walk.openids,
            active: active.all,
            forgotten: active.forgotten,
            snapshots: recorded(self.cx, [followers, changes], self.told.to),
        }
    }
}

/// The parts of a snapshot that is made.
pub(super) struct Made {
    /// The declared table whose columns they have.
    pub of: &'static str,
    pub rows: u64,
    pub bytes: u64,
    pub parts: Vec<String>,
}

/// Current followers.
pub(super) struct Active {
    pub all: u64,
    /// Of them, those who were forgotten: the list names them, and no change does.
    pub forgotten: u64,
}

/// Followers stand in parts of their own, in the order of the list: the next walk is compared with them one by one. Whoever
/// left stands in others, which stay as they are from night to night.
pub(super) fn is_of_followers(part: &str) -> bool {
    !part.rsplit('/').next().is_some_and(|name| name.starts_with(GONE))
}

/// How parts of those who left are named.
pub(super) const GONE: &str = "gone";

/// One pass over everybody of last night and of tonight.
async fn whole(night: &Night<'_, '_>, known: Option<&SnapshotRecord>) -> Result<Extracted, StageError> {
    let (cx, account) = (night.cx, night.walk.account.as_str());
    let lake = &cx.hands.lake;
    let id = cx.new_snapshot_id();
    let part = |table: &TableName, name: &str| Lake::named_part_path((table, account, &id), name, 1);
    let changes = TableName::new(events::CHANGES);
    let [active_path, gone_path, changes_path] =
        [part(night.table, "part"), part(night.table, GONE), part(&changes, "part")];
    let columns = |table: &str| table_spec(table).map(|spec| spec.sql_columns()).unwrap_or_default();
    let pass = Pass {
        before: cx.visible.bare_slice(lake, (night.table.as_str(), account), "before", columns("followers")),
        walk: walk_source(night.parts.iter().map(|part| lake.absolute(&part.path)).collect()),
        told: write_told(night)?,
        forgotten: night.forgotten.clone(),
        is_first: known.is_none(),
    };
    let old_changes = cx.visible.bare_slice(lake, (events::CHANGES, account), "old_changes", columns(events::CHANGES));
    let targets = [&active_path, &gone_path, &changes_path].map(|path| lake.absolute(path));
    let params = night.params();
    let people = night.walk.openids.max(known.map_or(0, |known| known.rows));
    let (followers, gone, changes, active) = blocking(&cx.hands.joining_engine(people), cx.stop, move |session| {
        let [active_target, gone_target, changes_target] = targets;
        pass.run(session, &params)?;
        session.add_table(&old_changes)?;
        let followers = session.copy(&followers_sql(true), &params, &active_target)?;
        let gone = session.copy(&followers_sql(false), &params, &gone_target)?;
        let new_changes = pass.changes_sql();
        let changes_sql = format!("select * from old_changes\nunion all {new_changes}");
        let changes = session.copy(&changes_sql, &params, &changes_target)?;
        let still_named = format!("select count(*) from after where active and {}", pass.is_forgotten());
        let forgotten = session.count(&still_named, &Params::new())?;
        Ok((followers, gone, changes, Active { all: followers.rows, forgotten }))
    })
    .await?;
    let mut parts = vec![active_path];
    if gone.rows > 0 {
        parts.push(gone_path);
    } else {
        lake.remove(&gone_path)?;
    }
    let (rows, bytes) = (followers.rows + gone.rows, followers.bytes + gone.bytes);
    let followers = Made { of: "followers", rows, bytes, parts };
    let changes = Made { of: events::CHANGES, rows: changes.rows, bytes: changes.bytes, parts: vec![changes_path] };
    Ok(night.extracted(id, (followers, changes), active))
}

/// The pages of a first walk are the table's parts as they are, and nobody changed.
fn adopt(
    cx: &StageContext<'_>,
    table: &TableName,
    walk: &Walk,
    (walked, events_to): (&[WalkPart], i64),
) -> Result<Extracted, StageError> {
    let lake = &cx.hands.lake;
    let id = cx.new_snapshot_id();
    let (mut parts, mut bytes) = (Vec::new(), 0);
    for (number, walked) in (1..).zip(walked) {
        let part = Lake::part_path(table, walk.account.as_str(), &id, number);
        lake.adopt(&walked.path, &part)?;
        bytes += lake.size_bytes(&part)?;
        parts.push(part);
    }
    let snapshot = |table: TableName, id: String| NewSnapshot {
        slice: walk.account.to_string(),
        id,
        as_of: walk.started_at,
        rows: 0,
        bytes: 0,
        parts: Vec::new(),
        columns: table_spec(table.as_str()).map(|spec| spec.sql_columns()).unwrap_or_default(),
        table,
    };
    let changes = snapshot(TableName::new("follower_changes"), format!("{id}-changes"));
    let columns = table_spec("followers").expect("followers is declared").sql_columns();
    let followers = NewSnapshot { rows: walk.openids, bytes, parts, columns, ..snapshot(table.clone(), id) };
    Ok(Extracted::Made {
        walk: walk.id,
        rows: walk.openids,
        active: walk.openids,
        forgotten: 0,
        snapshots: recorded(cx, [followers, changes], events_to),
    })
}

/// The records of snapshots that have every event up to `events_to` in them.
fn recorded(cx: &StageContext<'_>, made: [NewSnapshot; 2], events_to: i64) -> Vec<SnapshotRecord> {
    made.map(|made| {
        let app_id = cx.hands.account(&AccountName::new(&made.slice)).app_id.clone();
        SnapshotRecord { events_to: Some(events_to), app_id: Some(app_id), ..made.record(cx) }
    })
    .into()
}

/// What was told since the snapshot before, as the walk takes it in.
pub(super) struct Told {
    /// In the order of their time.
    pub events: Vec<FollowerEvent>,
    /// Of whom, and of those who are told of for a walk before this one.
    pub people: BTreeSet<OpenId>,
    /// The last event that the new snapshot has in it.
    pub to: i64,
}

/// An account's first walk knows better than all that was told before it.
async fn told_since(
    cx: &StageContext<'_>,
    account: &AccountName,
    (before, walked_at): (Option<&SnapshotRecord>, Timestamp),
) -> Result<Told, StageError> {
    let after = before.and_then(|before| before.events_to).unwrap_or(0);
    let since = to_micros(before.map_or(walked_at, |before| before.as_of)) - events::SECOND_MICROS;
    let mut events = cx.hands.ledger.follower_events(account, after).await?;
    let to = events.iter().map(|event| event.id).max().unwrap_or(after);
    let people = events.iter().map(|event| event.openid.clone()).collect();
    events.retain(|event| to_micros(event.at) > since);
    Ok(Told { events, people, to })
}

/// Writes what was told as the part of a table `told`, for the engine.
fn write_told(night: &Night<'_, '_>) -> Result<TableSource, StageError> {
    let columns = events::COLUMNS.iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect();
    let mut table = TableSource { name: "told".to_owned(), columns, parts: Vec::new(), sql: None, are_alike: false };
    if !night.told.events.is_empty() {
        let account = &night.walk.account;
        let path = format!("work/walks/{account}/told-{}.parquet", night.cx.new_snapshot_id());
        let told = [(account.clone(), night.told.events.clone())];
        table.parts.push(events::write(&night.cx.hands.lake, &path, &told)?);
    }
    Ok(table)
}
