//! Taking turns: what only one of all processes may do to an account at a time, whichever pipeline it does it for.

use std::future::Future;
use std::time::Duration;

use super::{Hands, StageContext, StageError};
use crate::ledger::{Acquired, Holder, Lease, LedgerError};

/// A holder that is silent for so long is taken for gone, where its process cannot be looked at.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often somebody who waits looks whether it is their turn.
const LOOK: Duration = Duration::from_millis(100);

/// The right to do one thing to one account.
pub struct Turn<'a> {
    hands: &'a Hands,
    lease: Lease,
}

impl<'a> Turn<'a> {
    /// Waits until nobody else has it.
    ///
    /// # Errors
    ///
    /// [`StageError::Interrupted`], [`StageError::Ledger`].
    pub async fn wait(cx: &StageContext<'a>, name: &str) -> Result<Turn<'a>, StageError> {
        let mut was_told = false;
        loop {
            if let Some(turn) = Self::now(cx.hands, name).await? {
                return Ok(turn);
            }
            if !was_told {
                was_told = true;
                tracing::info!(lease = name, "another run works on the same account: waiting for it");
            }
            tokio::select! {
                () = cx.hands.clock.sleep(LOOK) => {}
                () = cx.stop.cancelled() => return Err(StageError::Interrupted),
            }
        }
    }

    /// `None` when somebody else has it.
    ///
    /// # Errors
    ///
    /// [`StageError::Ledger`].
    pub async fn now(hands: &'a Hands, name: &str) -> Result<Option<Turn<'a>>, StageError> {
        let holder = Holder::this_process(hands.clock.random_id(12));
        match hands.ledger.acquire_lease(name, &holder, LEASE).await? {
            Acquired::Mine(lease) => Ok(Some(Turn { hands, lease })),
            Acquired::HeldBy(_) => Ok(None),
        }
    }

    /// Does `work` and gives the turn back, whatever comes of it. Dropped in between, it lapses after half a minute.
    ///
    /// # Errors
    ///
    /// What `work` returns; [`StageError::Ledger`] when the turn was lost meanwhile.
    pub async fn hold<T>(self, work: impl Future<Output = Result<T, StageError>>) -> Result<T, StageError> {
        let ledger = &self.hands.ledger;
        // Beside the work and not between its steps: the work may be in the middle of a transaction of its own, and the
        // renewal waits for that one.
        let lost = async {
            loop {
                self.hands.clock.sleep(RENEW_EVERY).await;
                match ledger.renew_lease(&self.lease, LEASE).await {
                    Ok(true) => {}
                    Ok(false) => return self.lease.name.clone(),
                    Err(error) => tracing::warn!(%error, "a turn could not be renewed; trying again"),
                }
            }
        };
        let done = tokio::select! {
            done = work => done,
            lease = lost => return Err(LedgerError::LeaseLost { doing: "work on an account alone", lease }.into()),
        };
        ledger.release_lease(&self.lease).await?;
        done
    }
}
