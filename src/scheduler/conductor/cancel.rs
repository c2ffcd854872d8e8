//! Cancelling a run that waits, is halted, failed, or is going on in another process.

use std::time::Duration;

use super::{Conductor, LEASE, LOOK, RunError};
use crate::domain::{RunId, RunStatus};
use crate::ledger::{Acquired, Lease, Order, Run};

/// How long another process may take to come to rest: sends in flight settle within eight seconds.
const REST_LIMIT: Duration = Duration::from_secs(15);

/// What came of cancelling a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It is cancelled; so many recipients stay unsent.
    Cancelled { unsent: u64 },
    /// It was over before.
    Over(RunStatus),
    /// Its pushes are paused, but another process is still at a stage that makes tables.
    StillRunning,
}

impl Conductor {
    /// Cancels a run. One that another process carries out is paused first, so that it comes to rest by itself.
    ///
    /// # Errors
    ///
    /// [`RunError::Ledger`]; the run then is as it was, or paused.
    pub async fn cancel_run(&self, run_id: &RunId, who: &str) -> Result<CancelOutcome, RunError> {
        let ledger = &self.hands.ledger;
        let Some(run) = ledger.run(run_id).await? else {
            return Err(RunError::Usage(format!("there is no run {run_id}")));
        };
        if run.status.is_finished() {
            return Ok(CancelOutcome::Over(run.status));
        }
        let Some(lease) = self.at_rest(&run, who).await? else { return Ok(CancelOutcome::StillRunning) };
        let outcome = self.cancel_under(&lease, run_id, who).await;
        ledger.release_lease(&lease).await?;
        outcome
    }

    async fn cancel_under(&self, lease: &Lease, run_id: &RunId, who: &str) -> Result<CancelOutcome, RunError> {
        match self.hands.ledger.run(run_id).await? {
            Some(run) if run.status.is_finished() => Ok(CancelOutcome::Over(run.status)),
            Some(run) => Ok(CancelOutcome::Cancelled { unsent: self.cancel(lease, &run, who).await? }),
            None => Err(RunError::Usage(format!("there is no run {run_id}"))),
        }
    }

    /// The pipeline's lease, once nobody else has it; nothing when the other process does not come to rest in time.
    async fn at_rest(&self, run: &Run, who: &str) -> Result<Option<Lease>, RunError> {
        let (ledger, clock) = (&self.hands.ledger, self.hands.clock);
        let name = format!("run:{}", run.pipeline);
        let mut gives_up_at = None;
        loop {
            if let Acquired::Mine(lease) = ledger.acquire_lease(&name, &self.holder, LEASE).await? {
                return Ok(Some(lease));
            }
            let now = clock.monotonic();
            match gives_up_at {
                None => {
                    gives_up_at = Some(now + REST_LIMIT);
                    for push in ledger.pushes_of(&run.run_id).await? {
                        ledger.order_pause(&push, Order { who, at: clock.now() }).await?;
                    }
                }
                Some(at) if now >= at => return Ok(None),
                Some(_) => {}
            }
            clock.sleep(LOOK).await;
        }
    }
}
