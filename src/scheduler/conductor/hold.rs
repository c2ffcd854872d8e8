//! Holding every pipeline at once, so that no run begins or goes on while something is changed below all of them.

use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;
use super::{Conductor, LEASE, RunError, lease_name};
use crate::domain::PipelineName;
use crate::ledger::{Acquired, Lease, Ledger, LedgerError};

/// The leases of every pipeline, kept alive.
pub struct Held {
    ledger: Ledger,
    leases: Vec<(Lease, Keeper)>,
    stop: CancellationToken,
}

impl Held {
    /// Cancelled when a lease is lost: then nothing more may be changed.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Lets every pipeline go.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; a lease that is not released runs out by itself.
    pub async fn release(self) -> Result<(), LedgerError> {
        for (lease, keeper) in self.leases {
            keeper.end().await;
            self.ledger.release_lease(&lease).await?;
        }
        Ok(())
    }
}

impl Conductor {
    /// Takes the lease of every pipeline of the workspace.
    ///
    /// # Errors
    ///
    /// [`RunError::Usage`] when a run goes on; nothing is held then.
    pub async fn hold_every_pipeline(&self) -> Result<Held, RunError> {
        let stop = CancellationToken::new();
        let mut held = Held { ledger: self.hands.ledger.clone(), leases: Vec::new(), stop };
        let names: Vec<PipelineName> = self.hands.settings.pipelines.keys().cloned().collect();
        for name in names {
            match self.hands.ledger.acquire_lease(&lease_name(&name), &self.holder, LEASE).await {
                Ok(Acquired::Mine(lease)) => {
                    let keeper = Keeper::start(self, lease.clone(), held.stop.clone());
                    held.leases.push((lease, keeper));
                }
                Ok(Acquired::HeldBy(_)) => {
                    held.release().await?;
                    let text =
                        format!("pipeline `{name}` runs now: wait for its end, or stop it, and give the command again");
                    return Err(RunError::Usage(text));
                }
                Err(error) => {
                    held.release().await?;
                    return Err(error.into());
                }
            }
        }
        Ok(held)
    }
}
