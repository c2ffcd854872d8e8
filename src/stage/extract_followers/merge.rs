//! A finished walk and the rows before it become `followers` and `follower_changes`.

use super::walk::Walked;
use super::{Extracted, StageContext, StageError};
use crate::clock::Timestamp;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Rows, TableName, Values};
use crate::engine::{Param, Params, TableSource};
use crate::lake::Lake;
use crate::ledger::{Walk, WalkPage};
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
    let marks = write_marks(cx, account, walk.started_at).await?;
    let forgotten = live::export_forgotten(hands).await?;
    let is_plain = is_distinct
        && marks.parts.is_empty()
        && forgotten.is_none()
        && cx.visible.slice(table.as_str(), account.as_str()).is_none()
        && cx.visible.slice("follower_changes", account.as_str()).is_none();
    if is_plain {
        return adopt(cx, table, &walk, &pages);
    }
    let lake = hands.lake.clone();
    let spec = table_spec("followers").expect("followers is declared");
    let changes_spec = table_spec("follower_changes").expect("follower_changes is declared");
    let before = cx.visible.slice_source(&lake, (table.as_str(), account.as_str()), "before", spec.sql_columns());
    let is_first = cx.visible.slice(table.as_str(), account.as_str()).is_none();
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
        },
        marks,
        forgotten,
        old_changes: old_changes.as_ref().map(|old| TableSource {
            name: "old_changes".to_owned(),
            columns: changes_spec.sql_columns(),
            parts: old.parts.iter().map(|part| lake.absolute(part)).collect(),
        }),
        is_first,
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
        snapshots: vec![followers.record(cx), changes.record(cx)],
    })
}

/// The pages of a first walk are the table's parts as they are, and nobody changed.
fn adopt(cx: &StageContext<'_>, table: &TableName, walk: &Walk, pages: &[WalkPage]) -> Result<Extracted, StageError> {
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
        snapshots: vec![followers.record(cx), changes.record(cx)],
    })
}

/// Events younger than the walk, as a part: they know better than the walk.
async fn write_marks(
    cx: &StageContext<'_>,
    account: &AccountName,
    since: Timestamp,
) -> Result<TableSource, StageError> {
    let marks = cx.hands.ledger.follower_marks(account, since).await?;
    let columns = vec![("openid", ColumnType::Text), ("active", ColumnType::Boolean), ("at", ColumnType::Timestamp)];
    let mut source = TableSource {
        name: "marks".to_owned(),
        columns: columns.iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect(),
        parts: Vec::new(),
    };
    if marks.is_empty() {
        return Ok(source);
    }
    let path = format!("work/walks/{account}/marks-{}.parquet", cx.new_snapshot_id());
    let mut writer = cx.hands.lake.writer(&path, &columns)?;
    writer.write(Rows {
        columns: vec![
            (
                "openid".to_owned(),
                Values::Text(marks.iter().map(|mark| Some(mark.openid.as_str().to_owned())).collect()),
            ),
            ("active".to_owned(), Values::Boolean(marks.iter().map(|mark| Some(mark.active)).collect())),
            (
                "at".to_owned(),
                Values::Timestamp(marks.iter().map(|mark| Some(crate::clock::to_micros(mark.at))).collect()),
            ),
        ],
    })?;
    source.parts.push(cx.hands.lake.absolute(&writer.finish()?.path));
    Ok(source)
}

struct MergeInputs {
    before: TableSource,
    walk: TableSource,
    marks: TableSource,
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
            live::forgotten_sql(salt, "after.openid")
        }
        None => "false".to_owned(),
    };
    for table in [&inputs.before, &inputs.walk, &inputs.marks] {
        session.add_table(table)?;
    }
    let is_plain = inputs.before.parts.is_empty() && inputs.marks.parts.is_empty();
    let followers = session.copy(if is_plain { FIRST } else { MERGE }, params, &inputs.followers_target)?;
    session.add_table(&TableSource {
        name: "after".to_owned(),
        columns: inputs.before.columns.clone(),
        parts: vec![inputs.followers_target.clone()],
    })?;
    let old = TableSource {
        name: "old_changes".to_owned(),
        columns: table_spec("follower_changes").expect("follower_changes is declared").sql_columns(),
        parts: Vec::new(),
    };
    session.add_table(inputs.old_changes.as_ref().unwrap_or(&old))?;
    let changes_sql = if inputs.is_first {
        "select * from old_changes".to_owned()
    } else {
        format!("{CHANGES}\n  and not {is_forgotten}")
    };
    let changes = session.copy(&changes_sql, params, &inputs.changes_target)?;
    let active = if is_plain {
        followers.rows
    } else {
        session.count("select count(*) from after where active", &Params::new())?
    };
    let still_named = format!("select count(*) from after where after.active and {is_forgotten}");
    let forgotten = session.count(&still_named, &Params::new())?;
    Ok(Merged { followers, changes, active, forgotten })
}

/// With nothing before it, a walk is the table.
const FIRST: &str = "
select $account as account, openid, $walked_at as first_seen_at, $walked_at as last_seen_at, true as active
from walk group by openid";

const MERGE: &str = "
select
    $account as account,
    coalesce(walked.openid, before.openid) as openid,
    coalesce(before.first_seen_at, $walked_at) as first_seen_at,
    case when walked.openid is not null then $walked_at else before.last_seen_at end as last_seen_at,
    coalesce(marks.active, walked.openid is not null) as active
from (select openid from walk group by openid) as walked
full outer join before on before.openid = walked.openid
left join marks on marks.openid = coalesce(walked.openid, before.openid)";

const CHANGES: &str = "
select * from old_changes
union all
select
    local_date($walked_at) as date,
    $account as account,
    after.openid,
    case when after.active then 'follow' else 'unfollow' end as change,
    coalesce(marks.at, $walked_at) as seen_at,
    case when marks.openid is not null then 'event' else 'walk' end as source
from after
left join before on before.openid = after.openid
left join marks on marks.openid = after.openid
where after.active <> coalesce(before.active, false)";
