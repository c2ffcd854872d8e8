//! The stages of one run, in order: skip what is done, run, check, record, and know what a failure keeps from running.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use tracing::Instrument;

use super::beside::{Asking, Begun};
use super::conclude::{Ended, INTERRUPTED};
use super::counting::Counted;
use super::{Conductor, Watch};
use crate::clock::Timestamp;
use crate::config::settings::{OnFailure, Pipeline, Stage, StageKind};
use crate::domain::{RunStatus, StageName, StageStatus};
use crate::engine::Params;
use crate::ledger::{Lease, Run, RunChange, StageRecord};
use crate::scheduler::next_step::go_on;
use crate::scheduler::order;
use crate::stage::tables::{Visible, events::Events};
use crate::stage::{self, StageContext, StageError, StageOutcome};
use crate::wechat::CallCounts;

/// How far a run came.
pub enum Carried {
    ToTheEnd { is_partial: bool },
    Failed { reason: String },
    Waiting { until: Option<Timestamp>, reason: String },
    Halted { reason: String },
}

impl Carried {
    pub fn change(self) -> RunChange {
        let change = |status, reason, waiting_until| RunChange { status, reason, waiting_until };
        match self {
            Self::ToTheEnd { is_partial: false } => change(RunStatus::Succeeded, None, None),
            Self::ToTheEnd { is_partial: true } => {
                change(RunStatus::Partial, Some("some accounts or stages failed".to_owned()), None)
            }
            Self::Failed { reason } => change(RunStatus::Failed, Some(reason), None),
            Self::Waiting { until, reason } => change(RunStatus::Waiting, Some(reason), until),
            Self::Halted { reason } => change(RunStatus::Halted, Some(reason), None),
        }
    }
}

pub struct Stages<'a> {
    pub(super) conductor: &'a Conductor,
    pub(super) pipeline: &'a Pipeline,
    pub(super) run: &'a Run,
    pub(super) lease: &'a Lease,
    order: Vec<usize>,
    /// Stage → the stages it reads or needs.
    pub(super) before: BTreeMap<StageName, Vec<StageName>>,
    pub(super) visible: Visible,
    pub(super) records: BTreeMap<StageName, StageRecord>,
    /// Calls that were made for each stage before this process took the run up.
    pub(super) calls_before: BTreeMap<StageName, BTreeMap<String, u64>>,
    /// Stages that asked beside the one before them.
    ahead: BTreeMap<StageName, Begun>,
    pub params: Params,
    pub only: Option<StageName>,
    pub accept_drop: Option<String>,
    pub who: String,
}

/// What a stage's end means for those after it.
pub(super) enum After {
    GoOn,
    Stop(Carried),
}

impl<'a> Stages<'a> {
    /// The stages in order, with what was done of them before.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the ledger cannot be read.
    pub async fn gather(
        conductor: &'a Conductor,
        pipeline: &'a Pipeline,
        run: &'a Run,
        lease: &'a Lease,
    ) -> Result<Self, StageError> {
        let hands = &conductor.hands;
        let mut visible = Visible::default();
        visible.add(hands.ledger.current_snapshots().await?);
        visible.add(hands.ledger.staged_snapshots(&run.run_id).await?);
        let part = format!("work/events/{}-{}.parquet", run.run_id, hands.clock.random_id(4));
        let events = Events::export(&hands.ledger, &visible, (&hands.lake, &part)).await?;
        visible.lay_over(events);
        let recorded = hands.ledger.stages(&run.run_id).await?;
        let calls_before = recorded.iter().map(|record| (record.stage.clone(), record.api_calls.clone())).collect();
        let records = recorded
            .into_iter()
            // What failed, waited or was kept from running is as if it had not been: it runs again.
            .filter(|record| matches!(record.status, StageStatus::Succeeded | StageStatus::Partial))
            .map(|record| (record.stage.clone(), record))
            .collect();
        let (engine, settings, name) = (hands.engine.clone(), hands.settings.clone(), pipeline.name.clone());
        let ordered =
            tokio::task::spawn_blocking(move || order::ordered(&settings, &settings.pipelines[&name], &engine))
                .await??;
        Ok(Self {
            conductor,
            pipeline,
            run,
            lease,
            order: tables_first(pipeline, ordered.order),
            before: ordered.before,
            visible,
            records,
            calls_before,
            ahead: BTreeMap::new(),
            params: Params::new(),
            only: None,
            accept_drop: None,
            who: String::new(),
        })
    }

    /// Removes what was written out for this run alone. What a process that dies leaves, `vacuum` finds.
    pub fn tidy(&self) -> Result<(), StageError> {
        Ok(self.visible.drop_events(&self.conductor.hands.lake)?)
    }

    /// Carries out what is not done yet. What was made is for the caller to publish, where the run came to its end.
    pub async fn all(&mut self, watch: &Watch<'_>) -> Result<Carried, StageError> {
        for index in self.order.clone() {
            let stage = &self.pipeline.stages[index];
            if self.only.as_ref().is_some_and(|only| *only != stage.name) || self.is_done(stage) {
                continue;
            }
            if watch.stop.is_cancelled() {
                return Ok(Carried::Waiting { until: None, reason: INTERRUPTED.to_owned() });
            }
            if let Some(failed) = self.stands_in_the_way(stage) {
                self.skip(stage, &failed).await?;
                continue;
            }
            if goes_out(stage) {
                if let Some(reason) = self.failure() {
                    self.skip(stage, &reason).await?;
                    continue;
                }
                let merged = self.publish(true).await?;
                self.conductor.remove_merged(merged).await;
                if let Some(waiting) = self.confirm(stage, watch).await? {
                    return Ok(waiting);
                }
            }
            let span = tracing::info_span!("stage", stage = %stage.name, kind = stage.kind.as_str());
            match self.one(stage, watch).instrument(span).await? {
                After::GoOn => {}
                After::Stop(carried) => return Ok(carried),
            }
        }
        if let Some(reason) = self.failure() {
            return Ok(Carried::Failed { reason });
        }
        let is_partial =
            self.records.values().any(|record| matches!(record.status, StageStatus::Partial | StageStatus::Failed));
        Ok(Carried::ToTheEnd { is_partial })
    }

    pub(super) fn context<'c>(
        &'c self,
        stage: &'c Stage,
        calls: Arc<CallCounts>,
        watch: &'c Watch<'_>,
    ) -> StageContext<'c> {
        StageContext {
            hands: &self.conductor.hands,
            run: self.run,
            lease: self.lease,
            stage,
            visible: &self.visible,
            params: &self.params,
            stop: watch.stop,
            progress: watch.progress,
            calls,
            news: None,
            accepts_drop: self.accept_drop.is_some(),
            ahead: None,
        }
    }

    pub(super) fn is_done(&self, stage: &Stage) -> bool {
        self.records
            .get(&stage.name)
            .is_some_and(|record| matches!(record.status, StageStatus::Succeeded | StageStatus::Partial))
    }

    /// The stage before this one that keeps it from running, if any.
    fn stands_in_the_way(&self, stage: &Stage) -> Option<String> {
        let before = self.before.get(&stage.name).into_iter().flatten();
        before
            .filter_map(|name| {
                let record = self.records.get(name)?;
                let settings = self.pipeline.stages.iter().find(|own| own.name == *name)?;
                let goes_on = settings.on_failure == OnFailure::Continue;
                let is_bad = match record.status {
                    StageStatus::Partial | StageStatus::Failed => !goes_on,
                    StageStatus::Skipped => true,
                    _ => false,
                };
                is_bad.then(|| format!("stage `{name}` is {}", record.status.as_str()))
            })
            .next()
    }

    /// A failure that nobody said to go on after.
    fn failure(&self) -> Option<String> {
        self.pipeline.stages.iter().find_map(|stage| {
            let record = self.records.get(&stage.name)?;
            let counts = record.status == StageStatus::Failed && stage.on_failure == OnFailure::Stop;
            counts.then(|| format!("stage `{}`: {}", stage.name, record.error.as_deref().unwrap_or("failed")))
        })
    }

    pub async fn publish(&self, goes_out: bool) -> Result<Vec<String>, StageError> {
        let records: Vec<StageRecord> = self.records.values().cloned().collect();
        self.conductor.publish(self.lease, self.run, &records, goes_out).await
    }

    /// Asks before the first send of a push, where there is somebody to ask.
    async fn confirm(&self, stage: &Stage, watch: &Watch<'_>) -> Result<Option<Carried>, StageError> {
        let (StageKind::PushTemplate(plan), Some(confirm)) = (&stage.kind, watch.confirm) else { return Ok(None) };
        let push = self.conductor.hands.ledger.push(&self.run.run_id, &stage.name).await?;
        if push.is_some_and(|push| push.first_send_at.is_some()) {
            return Ok(None);
        }
        let recipients = self.records.get(&plan.recipients).map_or(0, |record| record.rows_out);
        let question = format!(
            "send template {} to {recipients} recipients of account `{}` at {}/s?",
            plan.template_id.as_str(),
            plan.account,
            plan.rate
        );
        if confirm(question).await {
            return Ok(None);
        }
        let reason = format!("not confirmed; {} goes on", go_on(&self.pipeline.name));
        Ok(Some(Carried::Waiting { until: None, reason }))
    }

    async fn one(&mut self, stage: &Stage, watch: &Watch<'_>) -> Result<After, StageError> {
        let hands = &self.conductor.hands;
        let begin = |stages: &Self, name| Begun::now(hands, stages.counts_of(name));
        let begun = self.ahead.remove(&stage.name).unwrap_or_else(|| begin(self, &stage.name));
        self.record(stage, Ended::begun(&begun)).await?;
        let asking = self.goes_beside(stage).map(|stage| Asking { stage, begun: begin(self, &stage.name) });
        let mut counted: Vec<Counted> = vec![(stage.name.clone(), begun.calls.clone())];
        if let Some(asking) = &asking {
            self.record(asking.stage, Ended::begun(&asking.begun)).await?;
            counted.push((asking.stage.name.clone(), asking.begun.calls.clone()));
        }
        let cx = StageContext { ahead: begun.ahead.as_ref(), ..self.context(stage, begun.calls.clone(), watch) };
        let working = async {
            let Some(asking) = asking else { return (execute(&cx).await, None, None) };
            let beside = asking.stage;
            let walked = self.with_beside(&cx, &begun, asking, watch).await;
            (walked.outcome, Some(walked.seconds), Some((beside, walked.asked)))
        };
        let (outcome, seconds, asked) = tokio::select! {
            biased;
            done = working => done,
            never = self.note_calls(&counted) => match never {},
        };
        hands.settle.settle().await?;
        let checked = match &outcome {
            Ok(StageOutcome::Done(report)) => self.check(&cx, report).await,
            _ => Ok(None),
        };
        let ended = Ended {
            seconds: seconds.unwrap_or_else(|| begun.seconds(hands)),
            api_calls: begun.calls.snapshot(),
            ..Ended::begun(&begun)
        };
        if let Some((stage, asked)) = asked {
            self.keep_asked(stage, asked, &outcome).await?;
        }
        let outcome = match (outcome, checked) {
            (Ok(StageOutcome::Done(_)), Ok(Some(broken))) => Err(StageError::Rule(broken)),
            (Ok(StageOutcome::Done(_)), Err(error)) => Err(error),
            (outcome, _) => outcome,
        };
        self.conclude(stage, outcome, ended).await
    }

    /// What asked beside a walk goes on from there after it; where the run stops with the walk, it waits as well.
    async fn keep_asked(
        &mut self,
        stage: &Stage,
        asked: Begun,
        walk: &Result<StageOutcome, StageError>,
    ) -> Result<(), StageError> {
        let waits = match walk {
            Ok(StageOutcome::Done(_)) => false,
            Ok(StageOutcome::Waiting { .. } | StageOutcome::Halted { .. }) => true,
            Err(error) => matches!(error, StageError::Interrupted),
        };
        if waits {
            let ended = Ended { status: StageStatus::Waiting, ..Ended::begun(&asked) };
            self.record(stage, ended).await?;
        }
        self.ahead.insert(stage.name.clone(), asked);
        Ok(())
    }

    async fn skip(&mut self, stage: &Stage, why: &str) -> Result<(), StageError> {
        let hands = &self.conductor.hands;
        let begun = self.ahead.remove(&stage.name).unwrap_or_else(|| Begun::now(hands, self.counts_of(&stage.name)));
        let mut ended = Ended::begun(&begun);
        ended.status = StageStatus::Skipped;
        ended.error = Some(format!("not run: {why}"));
        self.record(stage, ended).await
    }
}

/// The only match over kinds. Each is on the heap: what a stage holds while it waits is large, and a caller's stack is not.
pub(super) async fn execute(cx: &StageContext<'_>) -> Result<StageOutcome, StageError> {
    let stage: BoxFuture<'_, _> = match &cx.stage.kind {
        StageKind::ExtractFollowers(plan) => Box::pin(stage::extract_followers::run(cx, plan)),
        StageKind::EnrichUnionids(plan) => Box::pin(stage::enrich_unionids::run(cx, plan)),
        StageKind::LoadUsers(plan) => Box::pin(stage::load_users::run(cx, plan)),
        StageKind::JoinIdentities(plan) => Box::pin(stage::join_identities::run(cx, plan)),
        StageKind::MeasureCoverage(plan) => Box::pin(stage::measure_coverage::run(cx, plan)),
        StageKind::Sql(plan) => Box::pin(stage::sql::run(cx, plan)),
        StageKind::MaterializeRecipients(plan) => Box::pin(stage::materialize_recipients::run(cx, plan)),
        StageKind::PushTemplate(plan) => Box::pin(stage::push_template::run(cx, plan)),
        StageKind::Publish(plan) => Box::pin(stage::publish::run(cx, plan)),
    };
    stage.await
}

/// Whether a stage lets something out of the house: it runs after everything is checked and published.
fn goes_out(stage: &Stage) -> bool {
    matches!(stage.kind, StageKind::PushTemplate(_) | StageKind::Publish(_))
}

/// Stages that make tables first: nothing goes out before all of them passed. A push makes no table, so no table waits.
pub fn tables_first(pipeline: &Pipeline, order: Vec<usize>) -> Vec<usize> {
    let (out, tables): (Vec<usize>, Vec<usize>) =
        order.into_iter().partition(|index| goes_out(&pipeline.stages[*index]));
    tables.into_iter().chain(out).collect()
}

/// An error with its causes, each once, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
