//! Keeps a run's lease alive, and stops the run when it is lost.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Conductor, LEASE};
use crate::ledger::Lease;
use crate::scheduler::catalog;

const RENEW_EVERY: Duration = Duration::from_secs(5);
/// While a run goes on, what the catalog shows of the ledger is at most this old.
const CATALOG_EVERY: u32 = 120;

pub struct Keeper {
    task: JoinHandle<()>,
    done: CancellationToken,
}

impl Keeper {
    /// Renews until [`end`](Self::end); a lost lease stops the run.
    pub fn start(conductor: &Conductor, lease: Lease, stop: CancellationToken) -> Self {
        let done = CancellationToken::new();
        let (ended, hands) = (done.clone(), conductor.hands.clone());
        let task = tokio::spawn(async move {
            let mut renewals: u32 = 0;
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    () = hands.clock.sleep(RENEW_EVERY) => {}
                }
                renewals += 1;
                let renewed = tokio::select! {
                    () = ended.cancelled() => return,
                    renewed = hands.ledger.renew_lease(&lease, LEASE) => renewed,
                };
                match renewed {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::error!(lease = %lease.name, "another process took over: stopping");
                        stop.cancel();
                        return;
                    }
                    Err(error) => tracing::warn!(error = %error, "the lease could not be renewed; trying again"),
                }
                if renewals.is_multiple_of(CATALOG_EVERY)
                    && let Err(error) = catalog::refresh(&hands).await
                {
                    tracing::warn!(error = %error, "the catalog stays as it was");
                }
            }
        });
        Self { task, done }
    }

    pub async fn end(self) {
        self.done.cancel();
        // A panic in there has been printed; the run itself is not touched by it.
        let _ = self.task.await;
    }
}
