//! `extract_followers`: walks user/get page by page into `followers` and `follower_changes`.
//!
//! The way: a page that arrived is put aside (`arrived`), so that a crash repeats at most the one that is asked for; while the
//! next is on its way it is compared with the list before and written into a part (`book`), which is recorded when it is
//! whole. Only a walk that ended properly
//! is merged, and only it marks people as gone; whoever has a later event of their own (an unsubscribe while the walk was under
//! way) keeps what the event said. Pages stay until the run is published. Two pipelines that walk one account take turns.

mod arrived;
mod book;
mod exceptions;
mod forecast;
mod merge;
mod roll;
mod tables;
mod walk;

use serde_json::json;

pub use self::forecast::followers_now;
use super::turns::Turn;
use super::{FailedSlice, StageContext, StageError, StageOutcome, StageReport, moved};
use crate::clock::Timestamp;
use crate::config::settings::ExtractFollowers;
use crate::domain::AccountName;
use crate::ledger::{SnapshotRecord, Walk};
use crate::wechat::WeChatError;

/// Openids on a full page of user/get: WeChat's own limit.
pub const OPENIDS_A_PAGE: u64 = 10_000;

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
        if let Some(failed) = moved::failed(cx, account).await? {
            report.failed_slices.push(failed);
            continue;
        }
        match one_account(cx, plan, account).await {
            Ok(Extracted::Reused) => {}
            Ok(Extracted::Made { walk, snapshots, rows, active, forgotten }) => {
                walks.push(json!({
                    "account": account.as_str(), "walk": walk, "active": active, "forgotten": forgotten,
                }));
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
        /// Of the active, people who were forgotten: they stand in no change.
        forgotten: u64,
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
    let turn = Turn::wait(cx, &format!("walk:{account}")).await?;
    if cx.news.is_some() && cx.visible.slice(table.as_str(), account.as_str()).is_some() {
        // Whoever looks for people to ask for when the walk has ended begins at once then.
        cx.hands.sparing_engine().open_ahead();
    }
    turn.hold(async {
        let ledger = &cx.hands.ledger;
        let walk = match ledger.open_walk(account).await? {
            Some(walk)
                if walk.finished_at.is_none() || (walk.run_id == cx.run.run_id && !is_refused(cx, &walk).await?) =>
            {
                walk
            }
            Some(old) => {
                walk::forget(cx, &old).await?;
                ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?
            }
            None => ledger.begin_walk(account, &cx.run.run_id, cx.hands.clock.now()).await?,
        };
        let walked = match walk.finished_at {
            Some(_) => walk::ended(cx, walk).await?,
            None => walk::to_the_end(cx, account, walk).await?,
        };
        if let Some(news) = cx.news {
            news.tell(account, walked.walk.id, walked.walk.pages);
            news.end(account, (walked.is_whole, walked.is_distinct));
        }
        merge::merge(cx, table, account, walked).await
    })
    .await
}

/// Whether a walk was refused by the stage's checks, and nobody accepts what it found: then the list is looked at once more.
async fn is_refused(cx: &StageContext<'_>, walk: &Walk) -> Result<bool, StageError> {
    let Some(finished_at) = walk.finished_at.filter(|_| !cx.accepts_drop) else { return Ok(false) };
    let is_refused = cx.hands.ledger.has_failed_check((&cx.run.run_id, &cx.stage.name), finished_at).await?;
    if is_refused {
        tracing::info!(account = %walk.account, "what the last walk found was refused by the stage's checks: walking again");
    }
    Ok(is_refused)
}

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
