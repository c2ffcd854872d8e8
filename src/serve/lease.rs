//! The right to serve: one process a ledger, kept alive while it serves, waited for by a standby.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::ServeError;
use super::router::House;
use crate::clock::Clock;
use crate::ledger::{Acquired, Holder, Lease, Ledger};
use crate::scheduler::clockwork::LEASE_NAME;

/// How long the lease lasts without renewal: what a standby on another machine waits before it takes over.
pub const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often a standby asks.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Renews the lease in a task of its own.
pub struct Keeper {
    task: JoinHandle<bool>,
    done: CancellationToken,
}

impl Keeper {
    /// Renews until [`end`](Self::end); when the lease is lost, cancels `over`.
    pub fn start(ledger: Ledger, clock: Clock, lease: Lease, over: CancellationToken) -> Self {
        let done = CancellationToken::new();
        let ended = done.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ended.cancelled() => return true,
                    () = clock.sleep(RENEW_EVERY) => {}
                }
                match ledger.renew_lease(&lease, LEASE).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::error!("another process serves this workspace now: stopping");
                        over.cancel();
                        return false;
                    }
                    Err(error) => tracing::warn!(error = %error, "the lease could not be renewed; trying again"),
                }
            }
        });
        Self { task, done }
    }

    /// Stops renewing; says whether the lease was ours to the end.
    pub async fn end(self) -> bool {
        self.done.cancel();
        self.task.await.unwrap_or(false)
    }
}

/// Waits until the lease is free; `None` when told to stop first.
///
/// # Errors
///
/// [`ServeError::Ledger`].
pub async fn wait_for(house: &House, holder: &Holder, stop: &CancellationToken) -> Result<Option<Lease>, ServeError> {
    let app = house.app();
    loop {
        match app.hands().ledger.acquire_lease(LEASE_NAME, holder, LEASE).await? {
            Acquired::Mine(lease) => {
                tracing::info!("nobody else serves this workspace any more: taking over");
                return Ok(Some(lease));
            }
            Acquired::HeldBy(_) => {
                tokio::select! {
                    () = app.hands().clock.sleep(ASK_EVERY) => {}
                    () = stop.cancelled() => return Ok(None),
                }
            }
        }
    }
}
