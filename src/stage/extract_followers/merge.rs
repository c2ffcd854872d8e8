//! A finished walk and the rows before it become `followers` and `follower_changes`.

use super::walk::Walked;
use super::{Extracted, StageContext, StageError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, TableName};
use crate::engine::{Param, Params, TableSource};
use crate::lake::Lake;
use crate::ledger::{SnapshotRecord, Walk, WalkPage};
use crate::stage::tables::events;
use crate::stage::{NewSnapshot, blocking, live};

/// Merges a finished walk with the rows before it: one pass in the engine, or none where there is nothing to merge with.
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
    let Walked { walk, is_distinct, .. } = walked;
    let pages = hands.ledger.walk_pages(walk.id).await?;
    let known = cx.visible.slice(table.as_str(), account.as_str());
    let told = write_told(cx, account, (known, walk.started_at)).await?;
    let forgotten = live::export_forgotten(hands).await?;
    let is_plain = is_distinct
        && told.table.parts.is_empty()
        && forgotten.is_none()
        && known.is_none()
        && cx.visible.slice("follower_changes", account.as_str()).is_none();
    if is_plain {
        return adopt(cx, table, &walk, (&pages, told.to));
    }
    let lake = hands.lake.clone();
    let spec = table_spec("followers").expect("followers is declared");
    let changes_spec = table_spec("follower_changes").expect("follower_changes is declared");
    let before = cx.visible.bare_slice(&lake, (table.as_str(), account.as_str()), "before", spec.sql_columns());
    let old_changes = cx.visible.slice("follower_changes", account.as_str()).cloned();
    let id = cx.new_snapshot_id();
    let followers_path = Lake::part_path(table, account.as_str(), &id, 1);
    let changes_path = Lake::part_path(&TableName::new("follower_changes"), account.as_str(), &id, 1);
    let params = Params::from([
        ("account".to_owned(), Param::Text(account.to_string())),
        ("walked_at".to_owned(), Param::Timestamp(walk.started_at)),
    ]);
    let inputs = MergeInputs {
        before,
        walk: TableSource {
            name: "walk".to_owned(),
            columns: vec![("openid".to_owned(), "VARCHAR".to_owned())],
            parts: pages.iter().map(|page| lake.absolute(&page.path)).collect(),
            sql: None,
        },
        told: told.table,
        forgotten,
        old_changes: old_changes.as_ref().map(|old| TableSource {
            name: "old_changes".to_owned(),
            columns: changes_spec.sql_columns(),
            parts: old.parts.iter().map(|part| lake.absolute(part)).collect(),
            sql: None,
        }),
        is_first: known.is_none(),
        followers_target: lake.absolute(&followers_path),
        changes_target: lake.absolute(&changes_path),
    };
    let merged =
        blocking(&hands.sparing_engine(), cx.stop, move |session| merge_in_engine(session, &inputs, &params)).await?;
    let followers = NewSnapshot {
        table: table.clone(),
        slice: account.to_string(),
        id: id.clone(),
        as_of: walk.started_at,
        rows: merged.followers.rows,
        bytes: merged.followers.bytes,
        parts: vec![followers_path],
        columns: spec.sql_columns(),
    };
    let changes = NewSnapshot {
        table: TableName::new("follower_changes"),
        slice: account.to_string(),
        id: format!("{id}-changes"),
        as_of: walk.started_at,
        rows: merged.changes.rows,
        bytes: merged.changes.bytes,
        parts: vec![changes_path],
        columns: changes_spec.sql_columns(),
    };
    Ok(Extracted::Made {
        walk: walk.id,
        rows: walk.openids,
        active: merged.active,
        forgotten: merged.forgotten,
        snapshots: recorded(cx, [followers, changes], told.to),
    })
}

/// The pages of a first walk are the table's parts as they are, and nobody changed.
fn adopt(
    cx: &StageContext<'_>,
    table: &TableName,
    walk: &Walk,
    (pages, events_to): (&[WalkPage], i64),
) -> Result<Extracted, StageError> {
    let lake = &cx.hands.lake;
    let id = cx.new_snapshot_id();
    let (mut parts, mut bytes) = (Vec::new(), 0);
    for page in pages {
        let part = Lake::part_path(table, walk.account.as_str(), &id, page.page);
        lake.adopt(&page.path, &part)?;
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
    made.map(|made| SnapshotRecord { events_to: Some(events_to), ..made.record(cx) }).into()
}

/// What was told since the snapshot before, as the walk takes it in.
struct Told {
    table: TableSource,
    /// The last event that the new snapshot has in it.
    to: i64,
}

/// Writes what was told as the part of a table `told`. An account's first walk knows better than all before it.
async fn write_told(
    cx: &StageContext<'_>,
    account: &AccountName,
    (before, walked_at): (Option<&SnapshotRecord>, Timestamp),
) -> Result<Told, StageError> {
    let after = before.and_then(|before| before.events_to).unwrap_or(0);
    let since = to_micros(before.map_or(walked_at, |before| before.as_of)) - events::SECOND_MICROS;
    let mut told = cx.hands.ledger.follower_events(account, after).await?;
    let to = told.iter().map(|event| event.id).max().unwrap_or(after);
    told.retain(|event| to_micros(event.at) > since);
    let columns = events::COLUMNS.iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect();
    let mut table = TableSource { name: "told".to_owned(), columns, parts: Vec::new(), sql: None };
    if !told.is_empty() {
        let path = format!("work/walks/{account}/told-{}.parquet", cx.new_snapshot_id());
        table.parts.push(events::write(&cx.hands.lake, &path, &[(account.clone(), told)])?);
    }
    Ok(Told { table, to })
}

struct MergeInputs {
    before: TableSource,
    walk: TableSource,
    told: TableSource,
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    forgotten: Option<(TableSource, String)>,
    old_changes: Option<TableSource>,
    is_first: bool,
    followers_target: std::path::PathBuf,
    changes_target: std::path::PathBuf,
}

struct Merged {
    followers: crate::engine::Written,
    changes: crate::engine::Written,
    active: u64,
    /// Of the active, those who were forgotten: the list names them, and no change does.
    forgotten: u64,
}

fn merge_in_engine(
    session: &crate::engine::Session,
    inputs: &MergeInputs,
    params: &Params,
) -> Result<Merged, StageError> {
    let is_forgotten = match &inputs.forgotten {
        Some((table, salt)) => {
            session.add_table(table)?;
            live::forgotten_sql(salt, "openid")
        }
        None => "false".to_owned(),
    };
    for table in [&inputs.before, &inputs.walk, &inputs.told] {
        session.add_table(table)?;
    }
    let is_plain = inputs.before.parts.is_empty() && inputs.told.parts.is_empty();
    session.run(&format!("create view last_word as {}", events::last_words("select * from told")))?;
    session.run(if inputs.is_first { KNOWN_FIRST } else { KNOWN })?;
    let followers = session.copy(if is_plain { FIRST } else { MERGE }, params, &inputs.followers_target)?;
    session.add_table(&TableSource {
        name: "after".to_owned(),
        columns: inputs.before.columns.clone(),
        parts: vec![inputs.followers_target.clone()],
        sql: None,
    })?;
    let old = TableSource {
        name: "old_changes".to_owned(),
        columns: table_spec("follower_changes").expect("follower_changes is declared").sql_columns(),
        parts: Vec::new(),
        sql: None,
    };
    session.add_table(inputs.old_changes.as_ref().unwrap_or(&old))?;
    let turns = events::turns("select * from told", "select $account as account, openid, active from known");
    let new_changes = if inputs.is_first { turns } else { format!("{turns}\nunion all {FOUND}") };
    let changes_sql =
        format!("select * from old_changes\nunion all select * from ({new_changes}) where not {is_forgotten}");
    let changes = session.copy(&changes_sql, params, &inputs.changes_target)?;
    let active = if is_plain {
        followers.rows
    } else {
        session.count("select count(*) from after where active", &Params::new())?
    };
    let still_named = format!("select count(*) from after where active and {is_forgotten}");
    let forgotten = session.count(&still_named, &Params::new())?;
    Ok(Merged { followers, changes, active, forgotten })
}

/// With nothing before it, a walk is the table.
const FIRST: &str = "
select $account as account, openid, $walked_at as first_seen_at, $walked_at as last_seen_at, true as active
from walk group by openid";

/// An event of the walk's first second or later knows better than the walk, which may have passed the person's page.
/// Whoever left without having been known to follow is nobody's follower and has no row.
const MERGE: &str = "
select
    $account as account,
    openid,
    coalesce(before.first_seen_at, least(walked.seen_at, last_word.came_first_at)) as first_seen_at,
    greatest(before.last_seen_at, walked.seen_at, last_word.came_last_at) as last_seen_at,
    case
        when last_word.told_at > $walked_at - interval 1 second then last_word.active
        else walked.seen_at is not null
    end as active
from (select openid, $walked_at as seen_at from walk group by openid) as walked
full outer join before using (openid)
full outer join last_word using (openid)
where walked.seen_at is not null or before.account is not null or last_word.came_first_at is not null";

/// What an event is a change against: the table before; on a first walk, the walk.
const KNOWN: &str = "create view known as select openid, active from before";
const KNOWN_FIRST: &str = "create view known as select distinct openid, true as active from walk";

/// Who changed without an event that told it: found by the walk.
const FOUND: &str = "
select
    local_date($walked_at) as date,
    $account as account,
    after.openid,
    case when after.active then 'follow' else 'unfollow' end as change,
    $walked_at as seen_at,
    'walk' as source
from after
left join known on known.openid = after.openid
left join last_word on last_word.openid = after.openid
where after.active <> coalesce(last_word.active, known.active, false)";
