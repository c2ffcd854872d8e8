//! The end of a run: the catalog shows it, people are told where they are to act, and the ledger says so last.

use super::stages::chain;
use super::{Conductor, RunError};
use crate::domain::RunStatus;
use crate::ledger::{Lease, LedgerError, Run, RunChange};
use crate::scheduler::alert::{Alert, AlertKind};
use crate::scheduler::catalog;
use crate::scheduler::next_step::{accept, go_on, waits_for_acceptance};
use crate::scheduler::view::RunView;
use crate::stage::StageError;
use crate::stage::live::Ending;

/// What a success afterwards is told as a recovery from.
const FAILURES: [AlertKind; 3] = [AlertKind::Failed, AlertKind::Partial, AlertKind::Halted];

/// How a run ended, with the catalog that is to show it.
pub(super) struct End {
    pub(super) change: RunChange,
    pub(super) catalog: catalog::Begun,
    /// Files of pages and details that nothing refers to any more.
    pub(super) merged: Vec<String>,
}

impl Conductor {
    pub(super) async fn settle(&self, lease: &Lease, run: &Run, end: End, is_only: bool) -> Result<RunView, RunError> {
        let End { mut change, catalog, merged } = end;
        let now = self.hands.clock.now();
        let ledger = &self.hands.ledger;
        let shown = change.status;
        if is_only && !change.status.is_finished() {
            // A single stage is not continued by the next run of the whole pipeline.
            change.status = RunStatus::Cancelled;
        }
        // The catalog first: once the end is recorded, a process that is killed must have nothing left to do, or the next
        // `run` would begin anew where its user thinks that this one never ended.
        let ending = Ending { run_id: &run.run_id, status: change.status, reason: change.reason.as_deref(), at: now };
        let written = catalog::refresh_ending(&self.hands, &ending, catalog);
        if let (Err(error), ()) = tokio::join!(written, self.remove_merged(merged)) {
            tracing::warn!("the catalog stays as it was: {}", chain(&error));
        }
        self.tell(run, &change).await?;
        if change.status == RunStatus::Waiting {
            self.tell_what_expires(run, change.waiting_until, &mut Default::default()).await?;
        }
        ledger.set_run_status(lease, &run.run_id, change, now).await?;
        let run = ledger.run(&run.run_id).await?.ok_or_else(|| RunError::Usage("the run is gone".to_owned()))?;
        let mut view = RunView::of(ledger, &run, now).await?;
        view.status = shown;
        Ok(view)
    }

    /// One alert for one change, and one when all is well again.
    async fn tell(&self, run: &Run, change: &RunChange) -> Result<(), LedgerError> {
        let now = self.hands.clock.now();
        let key = format!("run:{}", run.pipeline);
        let approval = change.reason.as_deref().is_some_and(|reason| reason.starts_with("waits for approval"));
        let waits_long = change.waiting_until.is_some_and(|until| until - now > chrono::TimeDelta::hours(1));
        let (kind, command) = match change.status {
            RunStatus::Failed if self.waits_for_acceptance(run).await? => {
                (Some(AlertKind::Failed), accept(&run.pipeline))
            }
            RunStatus::Failed => (Some(AlertKind::Failed), go_on(&run.pipeline)),
            RunStatus::Partial => (Some(AlertKind::Partial), format!("lianbo runs {}", run.run_id)),
            RunStatus::Halted => (Some(AlertKind::Halted), format!("lianbo push resume {}", run.run_id)),
            RunStatus::Waiting if approval => {
                (Some(AlertKind::WaitsForApproval), format!("lianbo push show {}", run.run_id))
            }
            RunStatus::Waiting if waits_long => (Some(AlertKind::WaitsLong), go_on(&run.pipeline)),
            _ => (None, String::new()),
        };
        // What has merely not ended yet leaves open what was said before.
        if kind.is_none() && !change.status.is_finished() {
            return Ok(());
        }
        let state = kind.map_or("well".to_owned(), |kind| format!("{kind:?}"));
        let before = self.hands.ledger.alert_state(&key).await?.map(|state| state.state);
        let had_failed = before.is_some_and(|before| FAILURES.iter().any(|kind| before == format!("{kind:?}")));
        let is_recovery = had_failed && change.status == RunStatus::Succeeded;
        let alert = kind.or(is_recovery.then_some(AlertKind::Recovered)).map(|kind| Alert {
            kind,
            pipeline: Some(run.pipeline.clone()),
            run_id: Some(run.run_id.clone()),
            why: change.reason.clone().unwrap_or_default(),
            command,
        });
        match self.alerts.change((&key, &state), alert).await? {
            Some(due) => drop(self.alerts.deliver(due).await),
            None => self.alerts.all_owed().await,
        }
        Ok(())
    }

    async fn waits_for_acceptance(&self, run: &Run) -> Result<bool, LedgerError> {
        let stages = self.hands.ledger.stages(&run.run_id).await?;
        Ok(stages.iter().any(|stage| waits_for_acceptance(&stage.detail)))
    }

    /// Tells people that a run stopped whose ledger cannot be written: neither its end nor that it was told can be recorded.
    pub(super) async fn unwritable(&self, run: &Run, source: StageError) -> RunError {
        let remedy = match source.unwritable_ledger() {
            Some(error) if error.is_disk_full() => "Make room on its disk",
            Some(error) if error.is_read_only() => "Make its file and folder writable",
            Some(LedgerError::NoWrites { .. }) => "Mend its disk, or make its file system writable again",
            _ => "End the process that keeps it busy",
        };
        let pipeline = run.pipeline.clone();
        let why = chain(&source);
        let error = RunError::Unwritable { run_id: run.run_id.clone(), pipeline, why, remedy, source };
        let alert = Alert {
            kind: AlertKind::Failed,
            pipeline: Some(run.pipeline.clone()),
            run_id: Some(run.run_id.clone()),
            why: chain(&error),
            command: go_on(&run.pipeline),
        };
        self.alerts.send_past_the_ledger(&alert).await;
        error
    }
}
