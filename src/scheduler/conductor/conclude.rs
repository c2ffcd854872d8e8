//! How a stage ended: judged by its checks, recorded, and what that means for those after it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::beside::Begun;
use super::stages::{After, Carried, Stages, chain};
use crate::clock::Timestamp;
use crate::config::settings::{Severity, Stage};
use crate::domain::StageStatus;
use crate::ledger::{AuditEntry, CheckOutcome, CheckResult, LedgerError, StageRecord};
use crate::scheduler::standing;
use crate::stage::{self, StageContext, StageError, StageOutcome, StageReport};

impl Stages<'_> {
    pub(super) async fn conclude(
        &mut self,
        stage: &Stage,
        outcome: Result<StageOutcome, StageError>,
        mut ended: Ended,
    ) -> Result<After, StageError> {
        match outcome {
            Ok(StageOutcome::Done(report)) => {
                let all_failed = report.snapshots.is_empty() && !report.failed_slices.is_empty();
                ended.status = match (all_failed, report.failed_slices.is_empty()) {
                    (true, _) => StageStatus::Failed,
                    (false, true) => StageStatus::Succeeded,
                    (false, false) => StageStatus::Partial,
                };
                for snapshot in &report.snapshots {
                    self.conductor.hands.ledger.record_snapshot(self.lease, snapshot).await?;
                }
                self.visible.add(report.snapshots.iter().cloned());
                let failures: Vec<String> =
                    report.failed_slices.iter().map(|failed| format!("{}: {}", failed.slice, failed.why)).collect();
                ended.error = (!failures.is_empty()).then(|| failures.join("; "));
                let is_transient = report.failed_slices.iter().any(|failed| failed.is_transient);
                ended.report = report;
                if all_failed {
                    ended.mark(is_transient);
                }
                self.record(stage, ended).await?;
                Ok(After::GoOn)
            }
            Ok(StageOutcome::Waiting { until, reason, report }) => {
                ended.status = StageStatus::Waiting;
                ended.report = report;
                ended.error = Some(reason.clone());
                self.record(stage, ended).await?;
                Ok(After::Stop(Carried::Waiting { until, reason }))
            }
            Ok(StageOutcome::Halted { reason, report }) => {
                ended.status = StageStatus::Halted;
                ended.report = report;
                ended.error = Some(reason.clone());
                self.record(stage, ended).await?;
                Ok(After::Stop(Carried::Halted { reason }))
            }
            Err(StageError::Interrupted) => {
                ended.status = StageStatus::Waiting;
                ended.error = Some(INTERRUPTED.to_owned());
                self.record(stage, ended).await?;
                Ok(After::Stop(Carried::Waiting { until: None, reason: INTERRUPTED.to_owned() }))
            }
            Err(StageError::LeaseLost) => Err(StageError::LeaseLost),
            Err(error) => {
                tracing::error!(stage = %stage.name, "stage `{}` failed: {}", stage.name, chain(&error));
                ended.status = StageStatus::Failed;
                ended.error = Some(chain(&error));
                ended.mark(error.is_transient());
                // Each write to a ledger that somebody keeps busy waits its full time: one was enough to know.
                if matches!(error.unwritable_ledger(), Some(LedgerError::Busy { .. })) {
                    return Err(error);
                }
                match (self.record(stage, ended).await, error.unwritable_ledger()) {
                    // What went wrong first is told, not that it cannot be recorded.
                    (Err(_), Some(_)) => Err(error),
                    (recorded, _) => recorded.map(|()| After::GoOn),
                }
            }
        }
    }

    /// The stage's checks; the text of a broken one, unless it only warns or its drop was accepted.
    pub(super) async fn check(
        &self,
        cx: &StageContext<'_>,
        report: &StageReport,
    ) -> Result<Option<String>, StageError> {
        let mut verdicts: Vec<_> = stage::checks::emptied(cx, &report.snapshots).into_iter().collect();
        if let Some(checks) = &cx.stage.checks {
            verdicts.extend(stage::checks::run(cx, checks, &report.snapshots).await?);
        }
        for (text, reason) in report.accepted.iter().zip(self.accept_drop.iter().cycle()) {
            self.audit("accept-drop", format!("{text}; {reason}")).await?;
        }
        let (mut fatal, mut results) = (Vec::new(), Vec::new());
        for one in verdicts {
            let outcome = match &one.found {
                None => CheckOutcome::Passed,
                Some(found) => {
                    let text = format!("check {} is broken: {found}", one.check);
                    let accepted = self.accept_drop.as_ref().filter(|_| stage::checks::may_be_accepted(&one.check));
                    match (one.severity, accepted) {
                        (Severity::Warn, _) => {
                            tracing::warn!("{text}");
                            CheckOutcome::Warned
                        }
                        (Severity::Fail, Some(reason)) => {
                            tracing::warn!("{text}; accepted: {reason}");
                            self.audit("accept-drop", format!("{text}; {reason}")).await?;
                            CheckOutcome::Accepted
                        }
                        (Severity::Fail, None) => {
                            fatal.push(text);
                            CheckOutcome::Failed
                        }
                    }
                }
            };
            results.push(CheckResult { check: one.check, outcome, found: one.found });
        }
        let of = (&self.run.run_id, &cx.stage.name, cx.stage.table.as_ref());
        let now = self.conductor.hands.clock.now();
        self.conductor.hands.ledger.record_checks(self.lease, of, &results, now).await?;
        Ok((!fatal.is_empty()).then(|| fatal.join("; ")))
    }

    async fn audit(&self, command: &str, detail: String) -> Result<(), StageError> {
        let entry = AuditEntry {
            at: self.conductor.hands.clock.now(),
            who: self.who.clone(),
            command: command.to_owned(),
            run_id: Some(self.run.run_id.clone()),
            detail,
        };
        Ok(self.conductor.hands.ledger.record_audit(&entry).await?)
    }

    pub(super) async fn record(&mut self, stage: &Stage, ended: Ended) -> Result<(), StageError> {
        let record = StageRecord {
            run_id: self.run.run_id.clone(),
            stage: stage.name.clone(),
            kind: stage.kind.as_str().to_owned(),
            table: stage.table.clone(),
            status: ended.status,
            rows_in: ended.report.rows_in,
            rows_out: ended.report.rows_out,
            started_at: ended.started_at,
            seconds: ended.seconds,
            api_calls: ended.api_calls,
            detail: if ended.report.detail.is_null() { json!({}) } else { ended.report.detail },
            error: ended.error,
        };
        self.conductor.hands.ledger.record_stage(self.lease, &record).await?;
        if record.status != StageStatus::Running {
            tracing::info!(
                stage = %stage.name, rows = record.rows_out, seconds = record.seconds,
                "stage `{}`: {}, {} rows", stage.name, record.status.as_str(), record.rows_out
            );
        }
        self.records.insert(stage.name.clone(), record);
        Ok(())
    }
}

pub(super) const INTERRUPTED: &str = "interrupted";

/// What a stage came to, as it is recorded.
pub(super) struct Ended {
    pub(super) status: StageStatus,
    pub(super) started_at: Timestamp,
    pub(super) seconds: f64,
    pub(super) api_calls: BTreeMap<String, u64>,
    pub(super) report: StageReport,
    pub(super) error: Option<String>,
}

impl Ended {
    pub(super) fn begun(begun: &Begun) -> Self {
        Self {
            status: StageStatus::Running,
            started_at: begun.started_at,
            seconds: 0.0,
            api_calls: begun.calls.snapshot(),
            report: StageReport { detail: Value::Null, ..StageReport::default() },
            error: None,
        }
    }

    /// Notes whether the failure may pass by itself: what a retry asks.
    fn mark(&mut self, is_transient: bool) {
        if self.report.detail.is_null() {
            self.report.detail = json!({});
        }
        if let Value::Object(detail) = &mut self.report.detail {
            detail.insert(standing::TRANSIENT.to_owned(), Value::Bool(is_transient));
        }
    }
}
