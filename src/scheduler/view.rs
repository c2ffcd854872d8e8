//! A run as it is shown: the same value for people and for `--json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::next_step::{Facts, NextStep, next_step};
use crate::clock::Timestamp;
use crate::domain::{RunId, RunStatus};
use crate::ledger::{Ledger, LedgerError, Run, StageRecord};

/// A run with its stages.
#[derive(Debug, Clone, Serialize)]
pub struct RunView {
    pub run_id: String,
    pub pipeline: String,
    pub status: RunStatus,
    /// It is `running` as far as the ledger knows, but the process that carried it out is gone: the next `run` takes it over.
    pub process_gone: bool,
    pub waiting_until: Option<Timestamp>,
    pub reason: Option<String>,
    pub trigger: String,
    pub scheduled_for: Option<Timestamp>,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub seconds: f64,
    /// What goes on with it, where something does.
    pub next: Option<NextStep>,
    pub stages: Vec<StageView>,
}

/// A stage of a run.
#[derive(Debug, Clone, Serialize)]
pub struct StageView {
    pub name: String,
    pub kind: String,
    pub status: &'static str,
    pub rows_in: u64,
    pub rows_out: u64,
    pub seconds: f64,
    pub api_calls: BTreeMap<String, u64>,
    pub detail: Value,
    pub error: Option<String>,
}

impl RunView {
    /// A run as it stands now.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub async fn of(ledger: &Ledger, run: &Run, now: Timestamp) -> Result<Self, LedgerError> {
        let stages = ledger.stages(&run.run_id).await?;
        let mut views: Vec<StageView> = stages.into_iter().map(StageView::of).collect();
        let (mut is_paused, mut is_approved, mut frozen) = (false, false, None);
        for push in ledger.pushes_of(&run.run_id).await? {
            is_paused |= push.is_paused && push.ended_at.is_none();
            frozen = frozen.or(push.frozen.filter(|_| push.ended_at.is_none()));
            is_approved |= push.approved_by.is_some() && push.ended_at.is_none();
            let Some(view) = views.iter_mut().find(|view| view.name == push.stage.as_str()) else { continue };
            let counts = serde_json::to_value(push.counts).unwrap_or_default();
            if let (Value::Object(detail), Value::Object(counts)) = (&mut view.detail, counts) {
                detail.extend(counts);
            }
        }
        let until = run.ended_at.unwrap_or(now);
        let is_running = run.status == RunStatus::Running;
        let is_carried_out = is_running && is_carried_out(ledger, run).await?;
        let mut view = Self {
            run_id: run.run_id.to_string(),
            pipeline: run.pipeline.to_string(),
            status: run.status,
            process_gone: is_running && !is_carried_out,
            waiting_until: run.waiting_until,
            reason: run.reason.clone(),
            trigger: run.trigger.clone(),
            scheduled_for: run.scheduled_for,
            started_at: run.started_at,
            ended_at: run.ended_at,
            seconds: seconds_between(run.started_at, until),
            next: None,
            stages: views,
        };
        view.next = next_step(&view, Facts { is_carried_out, is_paused, frozen: frozen.as_deref(), is_approved });
        Ok(view)
    }

    /// The same, by id.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of); `None` when there is no such run.
    pub async fn by_id(ledger: &Ledger, run_id: &RunId, now: Timestamp) -> Result<Option<Self>, LedgerError> {
        match ledger.run(run_id).await? {
            Some(run) => Self::of(ledger, &run, now).await.map(Some),
            None => Ok(None),
        }
    }
}

/// Whether a living process works on the pipeline of a run.
///
/// # Errors
///
/// [`LedgerError`] when the ledger cannot be read.
pub async fn is_carried_out(ledger: &Ledger, run: &Run) -> Result<bool, LedgerError> {
    Ok(ledger.lease_holder(&super::conductor::lease_name(&run.pipeline)).await?.is_some())
}

impl StageView {
    fn of(record: StageRecord) -> Self {
        Self {
            name: record.stage.to_string(),
            kind: record.kind,
            status: record.status.as_str(),
            rows_in: record.rows_in,
            rows_out: record.rows_out,
            seconds: record.seconds,
            api_calls: record.api_calls,
            detail: if record.detail.is_null() { Value::Object(serde_json::Map::new()) } else { record.detail },
            error: record.error,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^53")]
pub(super) fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    (to - from).num_microseconds().unwrap_or(i64::MAX) as f64 / 1e6
}
