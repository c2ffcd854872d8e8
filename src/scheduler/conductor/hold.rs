//! Holding every pipeline at once, so that no run begins or goes on while something is changed below all of them.

use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;
use super::{Conductor, LEASE, RunError, lease_name};
use crate::domain::PipelineName;
use crate::ledger::{Acquired, Lease, Ledger, LedgerError, Run};

/// The leases of pipelines, kept alive.
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

    /// One of them.
    pub fn lease(&self, name: &str) -> Option<&Lease> {
        self.leases.iter().map(|(lease, _)| lease).find(|lease| lease.name == name)
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

/// What came of asking for leases.
pub enum Holding {
    All(Held),
    /// Somebody else has this one; nothing is held.
    Taken(String),
}

impl Conductor {
    /// Takes the lease of every pipeline of the workspace.
    ///
    /// # Errors
    ///
    /// [`RunError::Usage`] when a run goes on; nothing is held then.
    pub async fn hold_every_pipeline(&self) -> Result<Held, RunError> {
        let names: Vec<PipelineName> = self.hands.settings.pipelines.keys().cloned().collect();
        let leases = names.iter().map(lease_name).collect();
        match self.hold(leases, CancellationToken::new()).await? {
            Holding::All(held) => Ok(held),
            Holding::Taken(lease) => Err(runs_now(&PipelineName::new(lease.strip_prefix("run:").unwrap_or(&lease)))),
        }
    }

    /// Takes leases by their names, all or none; `stop` is called when one of them is lost.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; nothing is held then.
    pub async fn hold(&self, names: Vec<String>, stop: CancellationToken) -> Result<Holding, LedgerError> {
        let mut held = Held { ledger: self.hands.ledger.clone(), leases: Vec::new(), stop };
        for name in names {
            match self.hands.ledger.acquire_lease(&name, &self.holder, LEASE).await {
                Ok(Acquired::Mine(lease)) => {
                    let keeper = Keeper::start(self, lease.clone(), held.stop.clone());
                    held.leases.push((lease, keeper));
                }
                Ok(Acquired::HeldBy(_)) => {
                    held.release().await?;
                    return Ok(Holding::Taken(name));
                }
                Err(error) => {
                    held.release().await?;
                    return Err(error);
                }
            }
        }
        Ok(Holding::All(held))
    }

    /// Cancels an unfinished run of a pipeline that is held.
    ///
    /// # Errors
    ///
    /// [`RunError::Ledger`].
    pub async fn cancel_held(&self, held: &Held, run: &Run, who: &str) -> Result<(), RunError> {
        let lease = held.lease(&lease_name(&run.pipeline)).expect("the run's pipeline is held");
        self.cancel(lease, run, who).await.map(|_| ())
    }
}

fn runs_now(name: &PipelineName) -> RunError {
    RunError::Usage(format!("pipeline `{name}` runs now: wait for its end, or stop it, and give the command again"))
}
