//! What a run would do: calls against what is left today, rows, messages, and the days that reading and a push take. Nothing is asked of
//! WeChat, nothing is written, nothing is spent.
//!
//! Estimates come from the tables as they stand: a walk is as long as the last one, an audience is judged for real and
//! counted ([`estimate`]). An unfinished run is planned from where it stands. How a push spreads over days is in [`days`], how
//! the calls of a sync do in [`reads`].

pub(super) mod days;
mod estimate;
mod reads;

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::Serialize;

use self::estimate::Estimator;
pub use self::reads::{ReadDay, ReadPlan};
use super::allowance::{Allowance, allowances};
use super::conductor::stages::tables_first;
use super::{conductor, order};
use crate::clock::{Clock, Timestamp};
use crate::config::settings::{ParamValue, Pipeline, Settings, Stage, StageKind};
use crate::domain::{AccountName, QuotaDay, RunId, RunStatus};
use crate::engine::Engine;
use crate::ledger::Run;
use crate::stage::tables::Visible;
use crate::stage::{Hands, StageError, moved};
use crate::wechat::Endpoint;

/// What is to be planned.
pub struct PlanRequest<'a> {
    pub settings: &'a Settings,
    /// Nothing in a workspace where nothing ran yet.
    pub house: Option<&'a Hands>,
    pub engine: &'a Engine,
    pub clock: Clock,
    pub pipeline: &'a Pipeline,
    pub params: &'a BTreeMap<String, ParamValue>,
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct PlanView {
    pub pipeline: String,
    /// The unfinished run that would be continued.
    pub continues: Option<String>,
    pub stages: Vec<StagePlan>,
    /// Accounts of the pipeline that a run does nothing for: why, and what to do.
    pub refused: BTreeMap<AccountName, String>,
    /// Over all accounts together.
    pub calls: BTreeMap<String, CallPlan>,
    pub accounts: BTreeMap<AccountName, BTreeMap<String, CallPlan>>,
    /// How the calls of walks and details spread over quota days.
    pub reads: Vec<ReadPlan>,
    /// When the last of them would be made; `None` when there is none, or no day has room for all.
    pub reads_end_at: Option<Timestamp>,
    /// Messages of all pushes; `None` while an audience is not known.
    pub messages: Option<u64>,
    /// Of sending at the set rate, without waits.
    pub seconds: f64,
    pub days: Vec<DayPlan>,
    pub would_expire: u64,
    /// When the last message would be sent; `None` when there is none, or not all can be.
    pub ends_at: Option<Timestamp>,
}

/// A stage of the plan.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StagePlan {
    pub name: String,
    pub kind: String,
    /// The unfinished run has done it.
    pub is_done: bool,
    /// Endpoint → calls; `None`: not known yet.
    pub calls: BTreeMap<String, Option<u64>>,
    pub rows: Option<u64>,
    pub messages: Option<u64>,
    /// Of sending at the set rate.
    pub seconds: Option<f64>,
    pub notes: Vec<String>,
    #[serde(skip)]
    by_account: Vec<(AccountName, Endpoint, Option<u64>)>,
    #[serde(skip)]
    reads: Vec<ReadPlan>,
    #[serde(skip)]
    days: Vec<(NaiveDate, u64)>,
    #[serde(skip)]
    would_expire: u64,
    #[serde(skip)]
    ends_at: Option<Timestamp>,
}

impl StagePlan {
    fn add_calls(&mut self, account: &AccountName, endpoint: Endpoint, calls: Option<u64>) {
        let sum = self.calls.entry(endpoint.as_str().to_owned()).or_insert(Some(0));
        *sum = sum.zip(calls).map(|(sum, calls)| sum + calls);
        self.by_account.push((account.clone(), endpoint, calls));
    }
}

/// Calls of an endpoint.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CallPlan {
    /// `None`: not known yet.
    pub needed: Option<u64>,
    /// `None`: no limit is known.
    pub left_today: Option<u64>,
    pub limit: Option<u64>,
}

/// Messages of a quota day.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DayPlan {
    pub date: NaiveDate,
    pub messages: u64,
}

/// Plans the next run of a pipeline, or the rest of its unfinished one.
///
/// # Errors
///
/// [`StageError`] when the ledger or the tables cannot be read. What would make a stage fail is a note of that stage.
pub async fn plan(request: &PlanRequest<'_>) -> Result<PlanView, StageError> {
    let pipeline = request.pipeline;
    let unfinished = match request.house {
        Some(hands) => hands.ledger.unfinished_run(&pipeline.name).await?,
        None => None,
    };
    let now = request.clock.now();
    let every: Vec<Endpoint> = Endpoint::ALL.to_vec();
    let ledger = request.house.map(|hands| &hands.ledger);
    let allowances = allowances(request.settings, ledger, QuotaDay::of(now), &every).await?;
    let continues = unfinished.as_ref().map(|run| run.run_id.to_string());
    let run = unfinished.unwrap_or_else(|| imagined(request, now));
    let mut estimator = Estimator::new(request, run, continues.is_some(), &allowances).await?;
    let mut stages = Vec::new();
    for index in in_order(request).await? {
        stages.push(estimator.stage(&pipeline.stages[index]).await?);
    }
    estimator.tidy()?;
    let refused = refused(request).await?;
    Ok(PlanView { refused, ..summed(pipeline, continues, stages, &allowances) })
}

/// The accounts whose tables have the openids of another app id, or that are being moved.
async fn refused(request: &PlanRequest<'_>) -> Result<BTreeMap<AccountName, String>, StageError> {
    let mut refused = BTreeMap::new();
    let Some(hands) = request.house else { return Ok(refused) };
    let mut visible = Visible::default();
    visible.add(hands.ledger.current_snapshots().await?);
    for account in request.pipeline.stages.iter().flat_map(accounts_of) {
        if !refused.contains_key(account)
            && let Some(why) = moved::refusal(hands, &visible, account).await?
        {
            refused.insert(account.clone(), why);
        }
    }
    Ok(refused)
}

/// The accounts that a stage asks, freezes or sends for.
fn accounts_of(stage: &Stage) -> Vec<&AccountName> {
    match &stage.kind {
        StageKind::ExtractFollowers(plan) => plan.accounts.iter().collect(),
        StageKind::EnrichUnionids(plan) => plan.accounts.iter().collect(),
        StageKind::MaterializeRecipients(plan) => vec![&plan.account],
        StageKind::PushTemplate(plan) => vec![&plan.account],
        StageKind::LoadUsers(_)
        | StageKind::JoinIdentities(_)
        | StageKind::MeasureCoverage(_)
        | StageKind::Sql(_)
        | StageKind::Publish(_) => Vec::new(),
    }
}

/// The stages in the order in which they would run.
async fn in_order(request: &PlanRequest<'_>) -> Result<Vec<usize>, StageError> {
    let (engine, settings) = (request.engine.single_threaded(), request.settings.clone());
    let name = request.pipeline.name.clone();
    let ordered =
        tokio::task::spawn_blocking(move || order::ordered(&settings, &settings.pipelines[&name], &engine)).await??;
    Ok(tables_first(request.pipeline, ordered.order))
}

/// The run that would begin now; it is never written down.
fn imagined(request: &PlanRequest<'_>, now: Timestamp) -> Run {
    Run {
        run_id: RunId::new("plan"),
        pipeline: request.pipeline.name.clone(),
        status: RunStatus::Running,
        reason: None,
        waiting_until: None,
        trigger: "hand".to_owned(),
        scheduled_for: None,
        today: now.with_timezone(&request.settings.timezone).date_naive(),
        run_at: now,
        params: conductor::params_json(request.pipeline, request.params).to_string(),
        is_test: false,
        attempt: 1,
        started_at: now,
        ended_at: None,
        published: false,
        cancel_requested: false,
    }
}

fn summed(
    pipeline: &Pipeline,
    continues: Option<String>,
    stages: Vec<StagePlan>,
    allowances: &[Allowance],
) -> PlanView {
    let mut accounts: BTreeMap<AccountName, BTreeMap<String, CallPlan>> = BTreeMap::new();
    for (account, endpoint, needed) in stages.iter().flat_map(|stage| &stage.by_account) {
        let own = allowances.iter().find(|own| own.account == *account && own.endpoint == endpoint.as_str());
        let plan =
            accounts.entry(account.clone()).or_default().entry(endpoint.as_str().to_owned()).or_insert(CallPlan {
                needed: Some(0),
                left_today: own.and_then(|own| own.left_today),
                limit: own.and_then(|own| own.limit),
            });
        plan.needed = plan.needed.zip(*needed).map(|(sum, needed)| sum + needed);
    }
    let mut calls: BTreeMap<String, CallPlan> = BTreeMap::new();
    for (endpoint, own) in accounts.values().flatten() {
        let add = |sum: Option<u64>, own: Option<u64>| sum.zip(own).map(|(sum, own)| sum.saturating_add(own));
        calls
            .entry(endpoint.clone())
            .and_modify(|sum| {
                *sum = CallPlan {
                    needed: add(sum.needed, own.needed),
                    left_today: add(sum.left_today, own.left_today),
                    limit: add(sum.limit, own.limit),
                };
            })
            .or_insert(*own);
    }
    let pushes = || stages.iter().filter(|stage| stage.kind == "push_template" && !stage.is_done);
    let mut days: BTreeMap<NaiveDate, u64> = BTreeMap::new();
    for (date, messages) in pushes().flat_map(|stage| &stage.days) {
        *days.entry(*date).or_default() += messages;
    }
    let reads: Vec<ReadPlan> = stages.iter().flat_map(|stage| stage.reads.iter().cloned()).collect();
    let all_read = reads.iter().all(|read| read.ends_at.is_some());
    let all_end = pushes().all(|stage| stage.ends_at.is_some() || stage.messages == Some(0));
    PlanView {
        pipeline: pipeline.name.to_string(),
        continues,
        messages: pushes().map(|stage| stage.messages).sum(),
        seconds: pushes().filter_map(|stage| stage.seconds).sum(),
        days: days.into_iter().map(|(date, messages)| DayPlan { date, messages }).collect(),
        would_expire: pushes().map(|stage| stage.would_expire).sum(),
        ends_at: pushes().filter_map(|stage| stage.ends_at).max().filter(|_| all_end),
        reads_end_at: reads.iter().filter_map(|read| read.ends_at).max().filter(|_| all_read),
        reads,
        calls,
        accounts,
        stages,
        refused: BTreeMap::new(),
    }
}
