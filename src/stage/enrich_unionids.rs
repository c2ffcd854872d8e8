//! `enrich_unionids`: asks for the profile, and so the unionid, of followers whose profile is missing or stale.
//!
//! The way: the engine streams the openids that need asking → batches of 100 go out `concurrency` wide → answers gather in
//! parts of at most 32 batches, each written while the next gathers and recorded as soon as it is whole, so that a crash
//! repeats at most 100 calls →
//! one pass merges them with the profiles before. A unionid that moved or that two openids share is asked for once more,
//! singly, before it is believed.

mod forecast;
mod merge;
mod part;

use std::sync::Arc;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::forecast::needed;
use self::part::ProfilePart;
use super::extract_followers::describe;
use super::{FailedSlice, StageContext, StageError, StageOutcome, StageReport};
use crate::clock::Timestamp;
use crate::config::settings::EnrichUnionids;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, TableName, Values};
use crate::engine::{Engine, Param, Params, TableSource};
use crate::lake::{LakeError, Part};
use crate::ledger::SnapshotRecord;
use crate::wechat::{ProfileBatch, WeChat, WeChatError};

/// Openids in one call (WeChat's own limit).
pub const BATCH: usize = 100;
/// Calls gathered into one part. A crash repeats at most the part being written, the one being gathered, and those in
/// flight (`concurrency`, 32 by default): under 100 calls.
const CALLS_A_PART: usize = 32;

/// Asks for what is missing in every account of the stage; one that fails keeps its old rows, and its answers for the next run.
///
/// # Errors
///
/// [`StageError`] when the ledger, the lake or the engine failed.
pub async fn run(cx: &StageContext<'_>, plan: &EnrichUnionids) -> Result<StageOutcome, StageError> {
    let mut report = StageReport::default();
    let mut waiting: Option<(Option<Timestamp>, String)> = None;
    let mut parts = Vec::new();
    let mut accounts = Vec::new();
    for account in &plan.accounts {
        match one_account(cx, plan, account).await {
            Ok(done) => {
                report.rows_in += done.asked;
                report.rows_out += done.snapshot.rows;
                parts.extend(done.part_ids);
                accounts.push(json!({
                    "account": account.as_str(), "asked": done.asked, "with_unionid": done.with_unionid,
                    "not_asked": done.not_asked, "quarantined": done.quarantined,
                }));
                report.snapshots.push(done.snapshot);
                report.snapshots.extend(done.changes);
            }
            Err(StageError::WeChat(WeChatError::QuotaSpent { until, endpoint, .. })) => {
                let reason = format!("the day's {} calls of account `{account}` are used up", endpoint.as_str());
                waiting = Some((Some(until), reason));
            }
            Err(StageError::WeChat(error)) => {
                report.failed_slices.push(FailedSlice::of_account(account, &error, describe(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    report.detail = json!({ "accounts": accounts, "profile_parts": parts });
    match waiting {
        Some((until, reason)) => Ok(StageOutcome::Waiting { until, reason, report }),
        None => Ok(StageOutcome::Done(report)),
    }
}

struct Enriched {
    asked: u64,
    with_unionid: u64,
    not_asked: u64,
    quarantined: u64,
    part_ids: Vec<i64>,
    snapshot: SnapshotRecord,
    changes: Option<SnapshotRecord>,
}

async fn one_account(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
    account: &AccountName,
) -> Result<Enriched, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    let inputs = Inputs::gather(cx, plan, table, account).await?;
    let asked = ask(cx, plan, account, &inputs).await?;
    let parts = cx.hands.ledger.profile_parts(account).await?;
    let merged = merge::merge(cx, table, account, &inputs, &parts).await?;
    Ok(Enriched {
        asked,
        with_unionid: merged.with_unionid,
        not_asked: merged.not_asked,
        quarantined: merged.quarantined,
        part_ids: parts.into_iter().map(|(id, _)| id).collect(),
        snapshot: merged.profiles,
        changes: merged.changes,
    })
}

/// The tables an account's enrichment reads.
pub(super) struct Inputs {
    pub followers: TableSource,
    pub profiles: TableSource,
    pub fetched: TableSource,
    pub as_of: Timestamp,
    pub stale_before: Timestamp,
}

impl Inputs {
    async fn gather(
        cx: &StageContext<'_>,
        plan: &EnrichUnionids,
        table: &TableName,
        account: &AccountName,
    ) -> Result<Self, StageError> {
        let lake = &cx.hands.lake;
        let followers_spec = table_spec("followers").expect("followers is declared");
        let profiles_spec = table_spec("profiles").expect("profiles is declared");
        let followers = cx.visible.slice(plan.from.as_str(), account.as_str()).ok_or_else(|| {
            StageError::Rule(format!(
                "table `{}` has no rows of account `{account}` yet; run the stage that extracts them first",
                plan.from
            ))
        })?;
        let refresh_after = chrono::TimeDelta::from_std(plan.refresh_after).unwrap_or(chrono::TimeDelta::MAX);
        Ok(Self {
            as_of: followers.as_of,
            followers: cx.visible.slice_source(
                lake,
                (plan.from.as_str(), account.as_str()),
                "followers",
                followers_spec.sql_columns(),
            ),
            profiles: cx.visible.slice_source(
                lake,
                (table.as_str(), account.as_str()),
                "profiles_before",
                profiles_spec.sql_columns(),
            ),
            fetched: fetched_source(cx, account).await?,
            stale_before: cx.run.run_at.checked_sub_signed(refresh_after).unwrap_or(Timestamp::MIN_UTC),
        })
    }
}

/// What was fetched and not merged yet, of this run or of one before it that did not come to its end.
pub(super) async fn fetched_source(cx: &StageContext<'_>, account: &AccountName) -> Result<TableSource, StageError> {
    let parts = cx.hands.ledger.profile_parts(account).await?;
    Ok(TableSource {
        name: "fetched".to_owned(),
        columns: part::schema().iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect(),
        parts: parts.iter().map(|(_, path)| cx.hands.lake.absolute(path)).collect(),
    })
}

const NEEDED: &str = "
select followers.openid
from followers
where followers.active
  and not exists (
      select 1 from fetched
      where fetched.openid = followers.openid and fetched.fetched_at >= $stale_before)
  and not exists (
      select 1 from profiles_before
      where profiles_before.openid = followers.openid
        and profiles_before.fetched_at >= $stale_before
        and coalesce(profiles_before.unionid_missing, '') not in ('not_asked', 'error', 'quarantined'))";

async fn ask(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
    account: &AccountName,
    inputs: &Inputs,
) -> Result<u64, StageError> {
    let (total, mut needed, reader) = stream_needed(cx, inputs).await?;
    let mut asking = Asking {
        cx,
        account,
        wechat: cx.wechat(account),
        part: ProfilePart::new(account.clone()),
        calls: JoinSet::new(),
        asked: 0,
        total,
        flushing: None,
    };
    let width = cx.hands.account(account).concurrency.max(1);
    let mut budget = plan.budget.unwrap_or(u64::MAX);
    let ended = asking.all(&mut needed, width, &mut budget).await;
    drop(needed);
    let flushed = asking.flush().await;
    let read = reader.await?;
    ended.and(flushed)?;
    read?;
    Ok(asking.asked)
}

/// Batches of openids that need asking, read by the engine on a thread of its own while calls are under way.
async fn stream_needed(
    cx: &StageContext<'_>,
    inputs: &Inputs,
) -> Result<(u64, mpsc::Receiver<Vec<OpenId>>, tokio::task::JoinHandle<Result<(), StageError>>), StageError> {
    let (send, receive) = mpsc::channel::<Vec<OpenId>>(64);
    let (tell_total, total) = tokio::sync::oneshot::channel();
    let engine: Engine = cx.hands.engine.clone();
    let tables = [inputs.followers.clone(), inputs.profiles.clone(), inputs.fetched.clone()];
    let params = Params::from([("stale_before".to_owned(), Param::Timestamp(inputs.stale_before))]);
    let reader = tokio::task::spawn_blocking(move || {
        let session = engine.session()?;
        for table in &tables {
            session.add_table(table)?;
        }
        let is_first = tables.iter().all(|table| table.name == "followers" || table.parts.is_empty());
        let needed = if is_first { "select openid from followers where active" } else { NEEDED };
        // Nobody waits for the total any more when the caller was interrupted: the send below then ends this thread.
        let _ = tell_total.send(session.count(&format!("select count(*) from ({needed})"), &params)?);
        let mut batch = Vec::with_capacity(BATCH);
        session.stream::<StageError>(needed, &params, |rows| {
            let [(_, Values::Text(openids))] = rows.columns.as_slice() else { return Ok(false) };
            for openid in openids.iter().flatten() {
                batch.push(OpenId::new(openid));
                if batch.len() == BATCH && send.blocking_send(std::mem::take(&mut batch)).is_err() {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        if !batch.is_empty() {
            // As above: a closed channel means that nobody wants the rest.
            let _ = send.blocking_send(batch);
        }
        Ok(())
    });
    match total.await {
        Ok(total) => Ok((total, receive, reader)),
        Err(_) => match reader.await? {
            Err(error) => Err(error),
            Ok(()) => Err(StageError::Interrupted),
        },
    }
}

type CallResult = (Vec<OpenId>, Result<ProfileBatch, WeChatError>);

struct Asking<'a, 'b> {
    cx: &'a StageContext<'b>,
    account: &'a AccountName,
    wechat: WeChat,
    part: ProfilePart,
    calls: JoinSet<CallResult>,
    asked: u64,
    total: u64,
    flushing: Option<tokio::task::JoinHandle<Result<Part, LakeError>>>,
}

impl Asking<'_, '_> {
    async fn all(
        &mut self,
        needed: &mut mpsc::Receiver<Vec<OpenId>>,
        width: usize,
        budget: &mut u64,
    ) -> Result<(), StageError> {
        loop {
            while self.calls.len() < width && *budget > 0 && !self.cx.stop.is_cancelled() {
                let Some(batch) = needed.recv().await else { break };
                *budget -= 1;
                let wechat = self.wechat.clone();
                self.calls.spawn(async move {
                    let answer = wechat.profiles(&batch).await;
                    (batch, answer)
                });
            }
            let Some(done) = self.calls.join_next().await else {
                return if self.cx.stop.is_cancelled() { Err(StageError::Interrupted) } else { Ok(()) };
            };
            let (batch, answer) = done?;
            match answer {
                Ok(answer) => self.take(&batch, answer).await?,
                Err(error) => {
                    self.settle_rest().await?;
                    return Err(error.into());
                }
            }
        }
    }

    /// What is in flight when a call fails still counts.
    async fn settle_rest(&mut self) -> Result<(), StageError> {
        while let Some(done) = self.calls.join_next().await {
            if let (batch, Ok(answer)) = done? {
                self.take(&batch, answer).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, batch: &[OpenId], answer: ProfileBatch) -> Result<(), StageError> {
        self.asked += u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.part.add(answer, self.cx.hands.clock.now());
        self.cx.tell("details", self.asked, Some(self.total));
        if self.part.calls() >= CALLS_A_PART { self.begin_flush().await } else { Ok(()) }
    }

    /// Writes the gathered answers on a thread of its own while the next are asked for; one such at a time.
    async fn begin_flush(&mut self) -> Result<(), StageError> {
        self.end_flush().await?;
        if self.part.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.part, ProfilePart::new(self.account.clone()));
        let lake = self.cx.hands.lake.clone();
        let path = format!("work/profiles/{}/{}.parquet", self.account, self.cx.new_snapshot_id());
        self.flushing = Some(tokio::task::spawn_blocking(move || full.write(&lake, &path)));
        Ok(())
    }

    async fn end_flush(&mut self) -> Result<(), StageError> {
        let Some(flushing) = self.flushing.take() else { return Ok(()) };
        let part = flushing.await??;
        let now = self.cx.hands.clock.now();
        Ok(self.cx.hands.ledger.record_profile_part(self.account, &part.path, part.rows, now).await?)
    }

    /// Writes and records everything that is gathered.
    async fn flush(&mut self) -> Result<(), StageError> {
        self.begin_flush().await?;
        self.end_flush().await
    }
}

/// Asks singly for openids whose unionid is in doubt, `concurrency` wide.
pub(super) async fn ask_singly(
    cx: &StageContext<'_>,
    account: &AccountName,
    openids: Vec<OpenId>,
) -> Result<ProfilePart, StageError> {
    let wechat = Arc::new(cx.wechat(account));
    let mut part = ProfilePart::new(account.clone());
    let mut calls: JoinSet<(OpenId, Result<crate::wechat::Profile, WeChatError>)> = JoinSet::new();
    let mut waiting = openids.into_iter();
    let width = cx.hands.account(account).concurrency.max(1);
    loop {
        while calls.len() < width {
            let Some(openid) = waiting.next() else { break };
            let wechat = wechat.clone();
            calls.spawn(async move {
                let answer = wechat.profile(&openid).await;
                (openid, answer)
            });
        }
        let Some(done) = calls.join_next().await else { return Ok(part) };
        let now = cx.hands.clock.now();
        match done? {
            (_, Ok(profile)) => part.add(ProfileBatch { profiles: vec![profile], ..ProfileBatch::default() }, now),
            (openid, Err(error)) => match error.errcode() {
                Some(errcode) => {
                    part.add(ProfileBatch { refused: vec![(openid, errcode)], ..ProfileBatch::default() }, now);
                }
                None => return Err(error.into()),
            },
        }
    }
}
