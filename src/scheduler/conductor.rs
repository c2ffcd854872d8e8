//! One run from its beginning, or from where it stood, to its end.
//!
//! The way: take the pipeline's lease (or follow whoever has it) → continue the unfinished run or begin one → carry out
//! its stages in order, each with its checks ([`stages`]) → publish all tables at once, before the first push or at the
//! end ([`publish`]) → record how it ended. A run that is killed leaves nothing that the next one cannot go on from.

mod beside;
mod cancel;
mod conclude;
mod counting;
mod ending;
mod hold;
mod keeper;
mod lookout;
mod params;
mod publish;
mod resend;
pub(super) mod stages;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::NaiveDate;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use self::cancel::CancelOutcome;
use self::ending::End;
pub use self::hold::{Held, Holding};
use self::keeper::Keeper;
use self::lookout::Lookout;
pub(super) use self::params::{params_json, sql_params};
pub use self::resend::{Resend, Resent};
use self::stages::{Carried, Stages};
use super::alert::Alerts;
use super::catalog;
use super::next_step::go_on;
use super::view::RunView;
use crate::clock::Timestamp;
use crate::config::settings::{ParamValue, Pipeline};
use crate::domain::{PipelineName, RunId, RunStatus, StageName};
use crate::ledger::{Acquired, AuditEntry, FireOutcome, Holder, Lease, LedgerError, NewRun, Run, RunChange};
use crate::stage::{Hands, ProgressSink, StageError};
use crate::wechat::Endpoint;

/// How long a lease lasts without renewal: what another machine waits before it takes over.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// The trigger of a run of one stage alone. Killed, it is not continued: what goes on would be the whole pipeline.
pub(super) const ONLY: &str = "only";
/// How often a follower looks.
const LOOK: Duration = Duration::from_millis(100);

/// Carries runs out with the hands of the house.
#[derive(Clone)]
pub struct Conductor {
    pub hands: Hands,
    pub holder: Holder,
    pub alerts: Alerts,
}

/// What is to be run, and why.
#[derive(Debug, Clone)]
pub struct RunRequest {
    pub pipeline: PipelineName,
    /// Given on the command line; they take the place of declared ones.
    pub params: BTreeMap<String, ParamValue>,
    pub only: Option<StageName>,
    /// The day of a stage that is run alone for a day that is over.
    pub date: Option<NaiveDate>,
    /// Cancel the unfinished run first.
    pub fresh: bool,
    /// Go on with the unfinished run, whatever kind it is of; where there is none begin nothing.
    pub only_continue: bool,
    /// Go on in spite of a `max_drop`, for this reason.
    pub accept_drop: Option<String>,
    pub is_test: bool,
    pub trigger: Trigger,
    pub who: String,
}

/// What made a run begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Hand,
    /// The scheduled time it answers to.
    Schedule(Timestamp),
    /// A waiting run whose time has come, or a retry: continue, never begin.
    Resume,
}

/// Asked once before the first send of a push; `false` leaves the run waiting.
pub type Confirm = dyn Fn(String) -> BoxFuture<'static, bool> + Send + Sync;

/// Why a run could not be carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Wrong usage: exit 2.
    #[error("{0}")]
    Usage(String),
    /// There is no unfinished run to go on with, and none was to be begun: no failure. The latest there is, where any ran.
    #[error("pipeline `{pipeline}` has no unfinished run: nothing is begun")]
    NothingUnfinished { pipeline: PipelineName, latest: Option<Box<RunView>> },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The run stands where the ledger last could be written; nothing is lost.
    #[error(
        "run {run_id} of `{pipeline}` stopped: {why}; nothing is sent before the ledger can be written. {remedy}, then: \
         lianbo run {pipeline} --continue"
    )]
    Unwritable {
        run_id: RunId,
        pipeline: PipelineName,
        /// The source with its causes.
        why: String,
        remedy: &'static str,
        #[source]
        source: StageError,
    },
}

impl RunError {
    fn is_unwritable(&self) -> bool {
        match self {
            Self::Unwritable { .. } => true,
            Self::Ledger(error) => error.is_unwritable(),
            Self::Stage(error) => error.unwritable_ledger().is_some(),
            Self::Usage(_) | Self::NothingUnfinished { .. } => false,
        }
    }
}

/// How a run is watched while it goes on.
pub struct Watch<'a> {
    pub progress: &'a dyn ProgressSink,
    pub confirm: Option<&'a Confirm>,
    pub stop: &'a CancellationToken,
}

impl Conductor {
    /// Runs `request.pipeline`, or follows the process that does, and reports the run as it ended.
    ///
    /// # Errors
    ///
    /// [`RunError::Usage`] for parameters that an unfinished run does not have; [`RunError::Ledger`].
    pub async fn run(&self, request: &RunRequest, watch: &Watch<'_>) -> Result<RunView, RunError> {
        let name = lease_name(&request.pipeline);
        let mut followed: Option<RunId> = None;
        loop {
            match self.hands.ledger.acquire_lease(&name, &self.holder, LEASE).await? {
                Acquired::Mine(lease) => {
                    if let Some(view) = self.followed_to_its_end(followed.as_ref()).await? {
                        self.hands.ledger.release_lease(&lease).await?;
                        return Ok(view);
                    }
                    let result = self.run_under(&lease, request, watch).await;
                    // A lease that cannot be given back runs out by itself, and with this process.
                    if !result.as_ref().is_err_and(RunError::is_unwritable) {
                        self.hands.ledger.release_lease(&lease).await?;
                    }
                    return result;
                }
                Acquired::HeldBy(_) => {
                    if let Some(run) = self.hands.ledger.latest_runs(1, Some(&request.pipeline)).await?.pop() {
                        let is_new = followed.as_ref() != Some(&run.run_id);
                        if run.status == RunStatus::Running && is_new {
                            tracing::info!(run.id = %run.run_id, "pipeline `{}` runs in another process: following it", request.pipeline);
                            followed = Some(run.run_id);
                        }
                    }
                    tokio::select! {
                        () = self.hands.clock.sleep(LOOK) => {}
                        () = watch.stop.cancelled() => return self.view_of_latest(request).await,
                    }
                }
            }
        }
    }

    /// The run that was followed, when it ended in some way; one that still says `running` lost its process.
    async fn followed_to_its_end(&self, followed: Option<&RunId>) -> Result<Option<RunView>, RunError> {
        let Some(run_id) = followed else { return Ok(None) };
        let now = self.hands.clock.now();
        let view = RunView::by_id(&self.hands.ledger, run_id, now).await?;
        Ok(view.filter(|view| view.status != RunStatus::Running))
    }

    async fn view_of_latest(&self, request: &RunRequest) -> Result<RunView, RunError> {
        let latest = self.hands.ledger.latest_runs(1, Some(&request.pipeline)).await?.pop();
        let run = latest.ok_or_else(|| RunError::Usage(format!("pipeline `{}` has not run yet", request.pipeline)))?;
        Ok(RunView::of(&self.hands.ledger, &run, self.hands.clock.now()).await?)
    }

    async fn run_under(&self, lease: &Lease, request: &RunRequest, watch: &Watch<'_>) -> Result<RunView, RunError> {
        let pipeline = self
            .hands
            .settings
            .pipelines
            .get(&request.pipeline)
            .ok_or_else(|| RunError::Usage(format!("there is no pipeline `{}`", request.pipeline)))?;
        let Some(run) = self.open(lease, request, pipeline).await? else {
            return self.view_of_latest(request).await;
        };
        let span = tracing::info_span!("run", run.id = %run.run_id, pipeline = %run.pipeline);
        async {
            let stop = watch.stop.child_token();
            let keeper = Keeper::start(self, lease.clone(), stop.clone());
            let lookout = Lookout::start(self, &run);
            let began = self.hands.clock.monotonic();
            self.hear_events().await;
            let carried = match self.carry_out(lease, request, &run, &Watch { stop: &stop, ..*watch }).await {
                Err(error) if error.unwritable_ledger().is_some() => {
                    keeper.end().await;
                    return Err(self.unwritable(&run, error).await);
                }
                carried => carried,
            };
            self.hear_events().await;
            if let Some(lookout) = lookout {
                lookout.end().await;
            }
            keeper.end().await;
            let end = match carried {
                Ok(end) => end,
                Err(StageError::LeaseLost) => return self.view_of_latest(request).await,
                Err(error) => {
                    let carried = Carried::Failed { reason: stages::chain(&error) };
                    End { change: carried.change(), catalog: catalog::Begun::now(&self.hands), merged: Vec::new() }
                }
            };
            let is_only = request.only.is_some();
            let view = self.settle(lease, &run, end, is_only).await?;
            let seconds = (self.hands.clock.monotonic() - began).as_secs_f64();
            tracing::info!(
                status = view.status.as_str(),
                seconds,
                "run {} of `{}`: {}",
                run.run_id,
                run.pipeline,
                view.status.as_str()
            );
            Ok(view)
        }
        .instrument(span)
        .await
    }

    /// Continues the unfinished run or begins one; `None`: the unfinished one is halted and stays so.
    async fn open(&self, lease: &Lease, request: &RunRequest, pipeline: &Pipeline) -> Result<Option<Run>, RunError> {
        let ledger = &self.hands.ledger;
        let now = self.hands.clock.now();
        let scheduled_for = match request.trigger {
            Trigger::Schedule(at) => Some(at),
            Trigger::Hand | Trigger::Resume => None,
        };
        // Asked under the lease: whoever thinks that it took this time, one run is made of it.
        if let Some(at) = scheduled_for
            && ledger.run_scheduled_for(&request.pipeline, at).await?.is_some()
        {
            return Ok(None);
        }
        let unfinished = ledger.unfinished_run(&request.pipeline).await?;
        if request.only_continue && unfinished.as_ref().is_none_or(|run| run.trigger == ONLY) {
            let latest = self.view_of_latest(request).await.ok().map(Box::new);
            return Err(RunError::NothingUnfinished { pipeline: request.pipeline.clone(), latest });
        }
        if let Some(run) = unfinished {
            let is_other_kind = request.trigger == Trigger::Hand && run.is_test != request.is_test;
            if is_other_kind && !request.fresh && !request.only_continue && run.trigger != ONLY {
                let kind = if run.is_test { "a test run" } else { "no test run" };
                return Err(RunError::Usage(format!(
                    "run {} of `{}` is not finished and is {kind}; finish it first, or cancel it with --fresh",
                    run.run_id, request.pipeline
                )));
            }
            let must_close = scheduled_for.is_some() && run.status == RunStatus::Failed;
            if request.fresh || must_close || run.trigger == ONLY {
                self.cancel(lease, &run, &request.who).await?;
            } else if run.status == RunStatus::Halted {
                return Ok(None);
            } else if request.only.is_some() {
                return Err(RunError::Usage(format!(
                    "run {} of `{}` is not finished; finish it with `{}`, or cancel it with --fresh",
                    run.run_id,
                    request.pipeline,
                    go_on(&request.pipeline)
                )));
            } else {
                self.refuse_other_params(&run, request, pipeline)?;
                let change = RunChange { status: RunStatus::Running, reason: None, waiting_until: None };
                ledger.set_run_status(lease, &run.run_id, change, now).await?;
                return Ok(ledger.run(&run.run_id).await?);
            }
        }
        if request.trigger == Trigger::Resume {
            return Ok(None);
        }
        let trigger = match (scheduled_for, &request.only) {
            (Some(_), _) => "schedule",
            (None, Some(_)) => ONLY,
            (None, None) => "hand",
        };
        let new = NewRun {
            run_id: self.new_run_id(now),
            pipeline: request.pipeline.clone(),
            trigger: trigger.to_owned(),
            scheduled_for,
            today: request.date.unwrap_or_else(|| self.local_date(scheduled_for.unwrap_or(now))),
            run_at: now,
            params: serde_json::to_string(&params_json(pipeline, &request.params)).unwrap_or_default(),
            is_test: request.is_test,
            started_at: now,
        };
        self.refuse_lost_ledger().await?;
        let run = ledger.begin_run(lease, new).await?;
        if let Some(at) = scheduled_for {
            ledger.settle_fire(&run.pipeline, at, &FireOutcome::Run(run.run_id.clone())).await?;
            let detail = format!("scheduled for {}", at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
            self.audit(&run, &request.who, "run", detail).await?;
        }
        Ok(Some(run))
    }

    /// A lake with tables was made by runs. Where the ledger knows of none it is another one, and with the old one went who was
    /// sent what, who is suppressed, and which tables are current: everybody would be new, and might be sent to again.
    async fn refuse_lost_ledger(&self) -> Result<(), RunError> {
        let (ledger, settings) = (&self.hands.ledger, &self.hands.settings);
        if !ledger.latest_runs(1, None).await?.is_empty() || !self.hands.lake.has_tables() {
            return Ok(());
        }
        Err(RunError::Usage(format!(
            "{} knows of no run, and {} holds tables of earlier ones: the ledger was lost or is another one. Restore it from a \
             backup; to begin anew without it, move that folder away",
            settings.ledger.path.display(),
            self.hands.lake.tables().display()
        )))
    }

    /// Cancels a run: whoever is still owed a message is skipped; gives how many.
    async fn cancel(&self, lease: &Lease, run: &Run, who: &str) -> Result<u64, RunError> {
        let (ledger, now) = (&self.hands.ledger, self.hands.clock.now());
        let mut unsent = 0;
        for push in ledger.pushes_of(&run.run_id).await? {
            if push.ended_at.is_none() {
                unsent += ledger.skip_rest(lease, push.key, "cancelled", now).await?;
                ledger.leave_in_doubt(lease, push.key, now).await?;
                ledger.end_push(lease, push.key, "cancelled", now).await?;
                ledger.give_up_room(push.key);
                ledger.settle_tally(lease, push.key, Endpoint::TemplateSend.as_str()).await?;
            }
        }
        tracing::warn!(run.id = %run.run_id, unsent, "run {} is cancelled; {unsent} recipients stay unsent", run.run_id);
        let reason = Some(format!("cancelled; {unsent} recipients stay unsent"));
        let change = RunChange { status: RunStatus::Cancelled, reason, waiting_until: None };
        ledger.set_run_status(lease, &run.run_id, change, now).await?;
        self.audit(run, who, "cancel", format!("{unsent} recipients stay unsent")).await?;
        Ok(unsent)
    }

    /// What the platform told while nobody served is known before anybody is sent to, and what it told early after that.
    async fn hear_events(&self) {
        if let Err(error) = super::events::catch_up(&self.hands).await {
            tracing::warn!(error = %error, "events stay to be applied");
        }
        if let Err(error) = super::reviews::follow_up(&self.hands).await {
            tracing::warn!(error = %error, "messages under review stay to be followed up");
        }
    }

    async fn audit(&self, run: &Run, who: &str, command: &str, detail: String) -> Result<(), LedgerError> {
        let entry = AuditEntry {
            at: self.hands.clock.now(),
            who: who.to_owned(),
            command: command.to_owned(),
            run_id: Some(run.run_id.clone()),
            detail,
        };
        self.hands.ledger.record_audit(&entry).await
    }

    fn refuse_other_params(&self, run: &Run, request: &RunRequest, pipeline: &Pipeline) -> Result<(), RunError> {
        if request.params.is_empty() {
            return Ok(());
        }
        let own: Value = serde_json::from_str(&run.params).unwrap_or_default();
        if own == params_json(pipeline, &request.params) {
            return Ok(());
        }
        Err(RunError::Usage(format!(
            "run {} of `{}` is not finished and has other parameters; finish it without --param, or cancel it with --fresh",
            run.run_id, run.pipeline
        )))
    }

    async fn carry_out(
        &self,
        lease: &Lease,
        request: &RunRequest,
        run: &Run,
        watch: &Watch<'_>,
    ) -> Result<End, StageError> {
        let pipeline = &self.hands.settings.pipelines[&run.pipeline];
        let params = sql_params(run, pipeline);
        let mut stages = Stages::gather(self, pipeline, run, lease).await?;
        stages.params = params;
        stages.only.clone_from(&request.only);
        stages.accept_drop.clone_from(&request.accept_drop);
        stages.who.clone_from(&request.who);
        let carried = stages.all(watch).await;
        stages.tidy()?;
        let carried = carried?;
        crate::memory::give_back();
        let catalog = catalog::Begun::now(&self.hands);
        let merged =
            if matches!(carried, Carried::ToTheEnd { .. }) { stages.publish(false).await? } else { Vec::new() };
        Ok(End { change: carried.change(), catalog, merged })
    }

    fn new_run_id(&self, now: Timestamp) -> RunId {
        let local = now.with_timezone(&self.hands.settings.timezone);
        RunId::new(format!("{}-{}", local.format("%Y%m%d-%H%M%S"), self.hands.clock.random_id(4)))
    }

    fn local_date(&self, at: Timestamp) -> NaiveDate {
        at.with_timezone(&self.hands.settings.timezone).date_naive()
    }
}

/// The lease that whoever carries a run of the pipeline holds.
pub fn lease_name(pipeline: &PipelineName) -> String {
    format!("run:{pipeline}")
}
