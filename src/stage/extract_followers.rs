//! `extract_followers`: walks user/get page by page into `followers` and `follower_changes`.
//!
//! The way: a page is written as a file, then recorded; that pair is the walk's checkpoint, so a crash repeats at most one
//! page. Only a walk that ended properly is merged, and only it marks people as gone; whoever has a later event of their
//! own (an unsubscribe while the walk was under way) keeps what the event said. Pages stay until the run is published.

mod forecast;

use std::collections::HashSet;

use serde_json::json;

pub use self::forecast::followers_now;
use super::{FailedSlice, NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking};
use crate::clock::Timestamp;
use crate::config::settings::ExtractFollowers;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, OpenId, Rows, TableName, Values};
use crate::engine::{Param, Params, TableSource};
use crate::lake::Lake;
use crate::ledger::{NewPage, SnapshotRecord, Walk};
use crate::wechat::{FollowerPage, WeChatError};

/// The code for an openid that is not of this account: in mid-walk, a cursor that unfollowed.
const BAD_OPENID: i64 = 40003;
/// A walk may start over this often before it is a failure.
const MOST_RESTARTS: u32 = 2;

/// Walks every account of the stage; one that fails keeps its old rows.
///
/// # Errors
///
/// [`StageError`] when nothing could be made for any account, or the ledger or the lake failed.
pub async fn run(cx: &StageContext<'_>, plan: &ExtractFollowers) -> Result<StageOutcome, StageError> {
    let mut report = StageReport::default();
    let mut waiting: Option<(Option<Timestamp>, String)> = None;
    let mut walks = Vec::new();
    for account in &plan.accounts {
        match one_account(cx, plan, account).await {
            Ok(Extracted::Reused) => {}
            Ok(Extracted::Made { walk, snapshots, rows, active }) => {
                walks.push(json!({ "account": account.as_str(), "walk": walk, "active": active }));
                report.rows_in += rows;
                report.rows_out += active;
                report.snapshots.extend(snapshots);
            }
            Err(StageError::WeChat(WeChatError::QuotaSpent { until, .. })) => {
                let reason = format!("the day's user/get calls of account `{account}` are used up");
                let earlier = waiting.as_ref().and_then(|(until, _)| *until);
                waiting = Some((Some(earlier.map_or(until, |at| at.min(until))), reason));
            }
            Err(StageError::WeChat(error)) => {
                report.failed_slices.push(FailedSlice::of_account(account, &error, describe(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    report.detail = json!({ "walks": walks });
    match waiting {
        Some((until, reason)) => Ok(StageOutcome::Waiting { until, reason, report }),
        None => Ok(StageOutcome::Done(report)),
    }
}

enum Extracted {
    /// A younger snapshot was taken as it is.
    Reused,
    Made {
        walk: i64,
        snapshots: Vec<SnapshotRecord>,
        rows: u64,
        active: u64,
    },
}

async fn one_account(
    cx: &StageContext<'_>,
    plan: &ExtractFollowers,
    account: &AccountName,
) -> Result<Extracted, StageError> {
    let table = cx.stage.table.as_ref().expect("an extract stage has a table");
    if let Some(current) = cx.visible.slice(table.as_str(), account.as_str()) {
        let age = (cx.hands.clock.now() - current.as_of).to_std().unwrap_or_default();
        if !plan.reuse_within.is_zero() && age < plan.reuse_within {
            return Ok(Extracted::Reused);
        }
    }
    let walk = match cx.hands.ledger.open_walk(account).await? {
        Some(walk) if walk.run_id == cx.run.run_id || walk.finished_at.is_none() => walk,
        Some(old) => {
            drop_walk(cx, &old).await?;
            cx.hands.ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?
        }
        None => cx.hands.ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?,
    };
    let walk = if walk.finished_at.is_some() { walk } else { walk_to_the_end(cx, account, walk).await? };
    merge(cx, table, account, walk).await
}

async fn walk_to_the_end(cx: &StageContext<'_>, account: &AccountName, mut walk: Walk) -> Result<Walk, StageError> {
    let wechat = cx.wechat(account);
    let ledger = &cx.hands.ledger;
    let mut cursors: HashSet<String> = HashSet::new();
    for page in ledger.walk_pages(walk.id).await? {
        cursors.extend(page.next_openid.map(|cursor| cursor.as_str().to_owned()));
    }
    let mut stepped_back = false;
    loop {
        if cx.stop.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        let cursor = walk.next_openid.clone();
        let answer = tokio::select! {
            answer = wechat.followers_page(cursor.as_ref()) => answer,
            () = cx.stop.cancelled() => return Err(StageError::Interrupted),
        };
        let page = match answer {
            Ok(page) => page,
            Err(error) if error.errcode() == Some(BAD_OPENID) && walk.pages > 0 => {
                walk = recover_cursor(cx, account, walk, &mut stepped_back).await?;
                cursors.clear();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let is_end = ends_walk(&page, cursor.as_ref(), &cursors);
        if !page.openids.is_empty() {
            let path = write_page(cx, account, &walk, &page)?;
            let new = NewPage {
                page: walk.pages + 1,
                path: &path,
                count: u64::try_from(page.openids.len()).unwrap_or(u64::MAX),
                next_openid: page.next_openid.as_ref(),
                total: page.total,
            };
            ledger.record_page(walk.id, new, cx.hands.clock.now()).await?;
            walk.pages += 1;
            walk.openids += u64::try_from(page.openids.len()).unwrap_or(u64::MAX);
        }
        walk.total = page.total.or(walk.total);
        cx.tell("pages", u64::from(walk.pages), walk.total.map(|total| total.div_ceil(10_000)));
        if is_end {
            let now = cx.hands.clock.now();
            ledger.finish_walk(walk.id, now).await?;
            walk.finished_at = Some(now);
            tracing::info!(account = %account, pages = walk.pages, rows = walk.openids, "walked {} pages of followers", walk.pages);
            return Ok(walk);
        }
        if let Some(next) = &page.next_openid {
            cursors.insert(next.as_str().to_owned());
        }
        walk.next_openid = page.next_openid;
    }
}

/// Whether this page is the last: empty, no cursor, the cursor just sent, or one seen earlier in this walk (a loop).
/// Never by a sum reaching `total`, which moves.
fn ends_walk(page: &FollowerPage, sent: Option<&OpenId>, seen: &HashSet<String>) -> bool {
    match &page.next_openid {
        None => true,
        Some(_) if page.openids.is_empty() => true,
        Some(next) => Some(next) == sent || seen.contains(next.as_str()),
    }
}

/// The cursor unfollowed: step back one page once, then start the walk over.
async fn recover_cursor(
    cx: &StageContext<'_>,
    account: &AccountName,
    mut walk: Walk,
    stepped_back: &mut bool,
) -> Result<Walk, StageError> {
    let ledger = &cx.hands.ledger;
    if !*stepped_back {
        *stepped_back = true;
        tracing::warn!(account = %account, page = walk.pages, "the walk's cursor is not accepted any more: one page back");
        ledger.step_back(walk.id).await?;
        let pages = ledger.walk_pages(walk.id).await?;
        walk.pages = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        walk.openids = pages.iter().map(|page| page.count).sum();
        walk.next_openid = pages.last().and_then(|page| page.next_openid.clone());
        return Ok(walk);
    }
    if walk.restarts >= MOST_RESTARTS {
        return Err(StageError::Rule(format!(
            "account `{account}`: user/get refuses its own cursor (40003) again after {MOST_RESTARTS} fresh walks; try later"
        )));
    }
    let restarts = walk.restarts + 1;
    tracing::warn!(account = %account, restarts, "the walk starts over");
    drop_walk(cx, &walk).await?;
    let mut fresh = ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?;
    fresh.restarts = restarts;
    *stepped_back = false;
    Ok(fresh)
}

/// Forgets a walk with its files.
async fn drop_walk(cx: &StageContext<'_>, walk: &Walk) -> Result<(), StageError> {
    for page in cx.hands.ledger.walk_pages(walk.id).await? {
        cx.hands.lake.remove(&page.path)?;
    }
    Ok(cx.hands.ledger.drop_walk(walk.id).await?)
}

fn write_page(
    cx: &StageContext<'_>,
    account: &AccountName,
    walk: &Walk,
    page: &FollowerPage,
) -> Result<String, StageError> {
    let path = format!("work/walks/{account}/{}/page-{:05}.parquet", walk.id, walk.pages + 1);
    let mut writer = cx.hands.lake.writer(&path, &[("openid", ColumnType::Text)])?;
    let openids = page.openids.iter().map(|openid| Some(openid.as_str().to_owned())).collect();
    writer.write(Rows { columns: vec![("openid".to_owned(), Values::Text(openids))] })?;
    Ok(writer.finish()?.path)
}

/// Merges a finished walk with the rows before it: one pass in the engine.
async fn merge(
    cx: &StageContext<'_>,
    table: &TableName,
    account: &AccountName,
    walk: Walk,
) -> Result<Extracted, StageError> {
    let hands = cx.hands;
    let pages = hands.ledger.walk_pages(walk.id).await?;
    let marks = write_marks(cx, account, walk.started_at).await?;
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
        old_changes: old_changes.as_ref().map(|old| TableSource {
            name: "old_changes".to_owned(),
            columns: changes_spec.sql_columns(),
            parts: old.parts.iter().map(|part| lake.absolute(part)).collect(),
        }),
        is_first,
        followers_target: lake.absolute(&followers_path),
        changes_target: lake.absolute(&changes_path),
    };
    let merged = blocking(&hands.engine, cx.stop, move |session| merge_in_engine(session, &inputs, &params)).await?;
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
    old_changes: Option<TableSource>,
    is_first: bool,
    followers_target: std::path::PathBuf,
    changes_target: std::path::PathBuf,
}

struct Merged {
    followers: crate::engine::Written,
    changes: crate::engine::Written,
    active: u64,
}

fn merge_in_engine(
    session: &crate::engine::Session,
    inputs: &MergeInputs,
    params: &Params,
) -> Result<Merged, StageError> {
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
    let changes_sql = if inputs.is_first { "select * from old_changes" } else { CHANGES };
    let changes = session.copy(changes_sql, params, &inputs.changes_target)?;
    let active = if is_plain {
        followers.rows
    } else {
        session.count("select count(*) from after where active", &Params::new())?
    };
    Ok(Merged { followers, changes, active })
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

/// An error of WeChat in one line, with what to do.
pub(super) fn describe(error: &WeChatError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
