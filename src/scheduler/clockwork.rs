//! One look at the clock: takes the scheduled times that have come, begins what may begin, and lets go on what waited.
//!
//! The way of a scheduled time: [`due`](super::due) finds it → it is written into the ledger, unsettled → a run is begun
//! (the conductor settles it), or it is skipped, with the reason, or it waits for the pipelines named by `after`. Whatever
//! is unsettled after a crash is found by the next look, so that nothing depends on what this process remembers. Being
//! woken, and who may look at all (one process a ledger), is not decided here.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::alert::{Alert, AlertKind};
use super::conductor::{Conductor, Trigger};
use super::due::{self, Known, Missed};
use super::runners::Runners;
use super::standing::Standing;
use crate::clock::Timestamp;
use crate::config::settings::{Pipeline, Schedule};
use crate::domain::PipelineName;
use crate::ledger::{Fire, FireOutcome, LedgerError};
use crate::telemetry::{FIRES_TOTAL, Metrics};

/// The lease of whoever looks: one process a ledger.
pub const LEASE_NAME: &str = "serve";

/// A longer break between two looks counts as having been away: the machine slept, or its clock was set forward.
const BREAK: TimeDelta = TimeDelta::seconds(60);
/// A run that stopped again is not let go on sooner than this.
const BREATH: TimeDelta = TimeDelta::seconds(10);

/// What one scheduler remembers between two looks; all of it can be lost.
pub struct Clockwork {
    runners: Runners,
    metrics: Metrics,
    awake_since: Timestamp,
    last_look: Timestamp,
    /// Pipeline → its schedule as text, and when the ledger first saw that.
    seen: BTreeMap<PipelineName, (String, Timestamp)>,
    /// Unsettled times that are ours.
    taken: BTreeMap<PipelineName, Timestamp>,
    /// What of each pipeline was begun last, and when.
    started: BTreeMap<PipelineName, (Trigger, Timestamp)>,
}

impl Clockwork {
    /// Begins to be awake.
    pub fn new(runners: Runners, metrics: Metrics, now: Timestamp) -> Self {
        Self {
            runners,
            metrics,
            awake_since: now,
            last_look: now,
            seen: BTreeMap::new(),
            taken: BTreeMap::new(),
            started: BTreeMap::new(),
        }
    }

    /// Looks once. Runs that begin are carried by tasks of their own.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; what was not done is done by the next look.
    pub async fn look(&mut self, conductor: &Conductor) -> Result<(), LedgerError> {
        let now = conductor.hands.clock.now();
        if now - self.last_look > BREAK {
            self.awake_since = now;
        }
        self.last_look = now;
        let pipelines = &conductor.hands.settings.pipelines;
        // All times are taken before any is judged: one that waits for another pipeline must see that one's time.
        for pipeline in pipelines.values() {
            if let Some(schedule) = &pipeline.schedule {
                self.take_due(conductor, pipeline, schedule, now).await?;
            }
        }
        let mut waiting: BTreeMap<PipelineName, Vec<Fire>> = BTreeMap::new();
        for fire in conductor.hands.ledger.unsettled_fires().await? {
            waiting.entry(fire.pipeline.clone()).or_default().push(fire);
        }
        for pipeline in pipelines.values() {
            let fires = waiting.remove(&pipeline.name).unwrap_or_default();
            self.move_on(conductor, pipeline, fires, now).await?;
        }
        for fire in waiting.into_values().flatten() {
            self.skip(conductor, &fire, "the pipeline is gone", None).await?;
        }
        Ok(())
    }

    /// Writes the times that have come into the ledger: the one to run unsettled, the others skipped.
    async fn take_due(
        &mut self,
        conductor: &Conductor,
        pipeline: &Pipeline,
        schedule: &Schedule,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let (ledger, zone) = (&conductor.hands.ledger, conductor.hands.settings.timezone);
        let text = format!("{} {zone}", text_of(schedule));
        let first_seen = match self.seen.get(&pipeline.name) {
            Some((known, at)) if *known == text => *at,
            _ => {
                let at = ledger.first_seen(&pipeline.name, &text, now).await?;
                self.seen.insert(pipeline.name.clone(), (text, at));
                at
            }
        };
        let known = Known {
            schedule,
            zone,
            catch_up: pipeline.catch_up,
            first_seen,
            last_fire: ledger.last_fire(&pipeline.name).await?,
            awake_since: self.awake_since,
        };
        let due = due::due(&known, now);
        for (at, missed) in due.skipped {
            self.skip_missed(conductor, pipeline, (at, missed), now).await?;
        }
        if let Some(at) = due.fire
            && ledger.claim_fire(&pipeline.name, at, now).await?
        {
            self.taken.insert(pipeline.name.clone(), at);
        }
        Ok(())
    }

    async fn skip_missed(
        &self,
        conductor: &Conductor,
        pipeline: &Pipeline,
        (at, missed): (Timestamp, Missed),
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        if !conductor.hands.ledger.claim_fire(&pipeline.name, at, now).await? {
            return Ok(());
        }
        let fire = Fire {
            pipeline: pipeline.name.clone(),
            scheduled_for: at,
            claimed_at: now,
            outcome: None,
            run_id: None,
            reason: None,
        };
        let command = missed.is_told().then(|| format!("lianbo run {}", pipeline.name));
        self.skip(conductor, &fire, missed.reason(), command).await
    }

    /// Decides what becomes of a pipeline's unsettled times (oldest first) and of its unfinished run.
    async fn move_on(
        &mut self,
        conductor: &Conductor,
        pipeline: &Pipeline,
        mut fires: Vec<Fire>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let newest = fires.pop();
        for fire in fires {
            let reason = match &fire.reason {
                Some(waited) => format!("{waited}, until the next scheduled time came"),
                None => Missed::Superseded.reason().to_owned(),
            };
            self.skip(conductor, &fire, &reason, Some(format!("lianbo run {}", pipeline.name))).await?;
        }
        if let Some(fire) = newest
            && self.is_open(conductor, &fire, now).await?
        {
            return self.judge(conductor, pipeline, &fire, now).await;
        }
        if self.runners.is_busy(&pipeline.name) || self.has_just_started(&pipeline.name, now) {
            return Ok(());
        }
        let standing = Standing::of(&conductor.hands.ledger, pipeline).await?;
        if let Some(standing) = standing.filter(|standing| standing.goes_on(pipeline.retry, now)) {
            let because = standing.run.reason.as_deref().unwrap_or("its process is gone");
            tracing::info!(run.id = %standing.run.run_id, "run {} goes on: {because}", standing.run.run_id);
            self.start(conductor, pipeline, Trigger::Resume, now);
        }
        Ok(())
    }

    /// Whether a time is still to be judged. One that made a run before a crash is settled with that run; one that a
    /// former process took is taken over.
    async fn is_open(&mut self, conductor: &Conductor, fire: &Fire, now: Timestamp) -> Result<bool, LedgerError> {
        let ledger = &conductor.hands.ledger;
        if let Some(run) = ledger.run_scheduled_for(&fire.pipeline, fire.scheduled_for).await? {
            ledger.settle_fire(&fire.pipeline, fire.scheduled_for, &FireOutcome::Run(run.run_id)).await?;
            return Ok(false);
        }
        let is_ours = self.taken.get(&fire.pipeline) == Some(&fire.scheduled_for);
        if !is_ours && !ledger.reclaim_fire(fire, now).await? {
            return Ok(false);
        }
        self.taken.insert(fire.pipeline.clone(), fire.scheduled_for);
        Ok(true)
    }

    /// Runs, skips, or lets wait.
    async fn judge(
        &mut self,
        conductor: &Conductor,
        pipeline: &Pipeline,
        fire: &Fire,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let ledger = &conductor.hands.ledger;
        let last = self.started.get(&pipeline.name).map(|(trigger, _)| *trigger);
        let is_begun = last == Some(Trigger::Schedule(fire.scheduled_for));
        let is_busy = self.runners.is_busy(&pipeline.name);
        if is_begun && (is_busy || self.has_just_started(&pipeline.name, now)) {
            return Ok(());
        }
        if let Some(standing) = Standing::of(ledger, pipeline).await?
            && let Some(reason) = standing.stands_in_the_way()
        {
            return self.skip(conductor, fire, &reason, Some(standing.way_on())).await;
        }
        if is_busy {
            // The run before is over, its task not quite.
            return Ok(());
        }
        if let Some(waits_for) = self.waits_for(conductor, pipeline).await? {
            if fire.reason.as_ref() != Some(&waits_for) {
                tracing::info!(pipeline = %pipeline.name, "the scheduled run of `{}` {waits_for}", pipeline.name);
                ledger.note_fire(&pipeline.name, fire.scheduled_for, &waits_for).await?;
            }
            return Ok(());
        }
        let local = fire.scheduled_for.with_timezone(&conductor.hands.settings.timezone);
        tracing::info!(pipeline = %pipeline.name, "`{}` fires, scheduled for {}", pipeline.name, local.format("%F %T"));
        self.metrics.add(FIRES_TOTAL, &[("pipeline", pipeline.name.as_str()), ("outcome", "run")], 1);
        ledger.set_alert_state(&alert_key(&pipeline.name), "well", now).await?;
        self.start(conductor, pipeline, Trigger::Schedule(fire.scheduled_for), now);
        Ok(())
    }

    /// The pipelines of `after` that have not succeeded since their own last scheduled time.
    async fn waits_for(&self, conductor: &Conductor, pipeline: &Pipeline) -> Result<Option<String>, LedgerError> {
        let ledger = &conductor.hands.ledger;
        let mut missing = Vec::new();
        for name in &pipeline.after {
            let success = match ledger.last_fire(name).await? {
                Some(since) => ledger.last_success_since(name, since).await?,
                None => ledger.last_success(name).await?,
            };
            if success.is_none() {
                missing.push(format!("`{name}`"));
            }
        }
        Ok((!missing.is_empty()).then(|| format!("waits for {}", missing.join(", "))))
    }

    /// Settles a time that makes no run, and tells people where `command` says what they can do.
    async fn skip(
        &self,
        conductor: &Conductor,
        fire: &Fire,
        reason: &str,
        command: Option<String>,
    ) -> Result<(), LedgerError> {
        let (hands, pipeline) = (&conductor.hands, &fire.pipeline);
        let local = fire.scheduled_for.with_timezone(&hands.settings.timezone).format("%F %T");
        // Before the time is settled: whoever dies in between finds the time again, and the alert is owed.
        let due = match command {
            Some(command) => {
                let alert = Alert {
                    kind: AlertKind::FireSkipped,
                    pipeline: Some(pipeline.clone()),
                    run_id: None,
                    why: format!("scheduled for {local}: {reason}"),
                    command,
                };
                conductor.alerts.change((&alert_key(pipeline), &format!("skipped: {reason}")), Some(alert)).await?
            }
            None => None,
        };
        let outcome = FireOutcome::Skipped(reason.to_owned());
        hands.ledger.settle_fire(pipeline, fire.scheduled_for, &outcome).await?;
        self.metrics.add(FIRES_TOTAL, &[("pipeline", pipeline.as_str()), ("outcome", "skipped")], 1);
        tracing::warn!(pipeline = %pipeline, "`{pipeline}`, scheduled for {local}, is skipped: {reason}");
        if let Some(due) = due {
            // In a task: a chat that does not answer must not keep the next time from being taken.
            let alerts = conductor.alerts.clone();
            tokio::spawn(async move { alerts.deliver(due).await });
        }
        Ok(())
    }

    fn start(&mut self, conductor: &Conductor, pipeline: &Pipeline, trigger: Trigger, now: Timestamp) {
        self.started.insert(pipeline.name.clone(), (trigger, now));
        self.runners.start(conductor.clone(), &pipeline.name, trigger);
    }

    fn has_just_started(&self, pipeline: &PipelineName, now: Timestamp) -> bool {
        self.started.get(pipeline).is_some_and(|(_, at)| now - *at < BREATH)
    }
}

fn alert_key(pipeline: &PipelineName) -> String {
    format!("fire:{pipeline}")
}

/// A schedule as the ledger remembers it.
fn text_of(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Cron(pattern) => pattern.clone(),
        Schedule::Once(local) => format!("once {local}"),
    }
}
