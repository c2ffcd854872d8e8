//! Alerts that could not be delivered stay in the ledger and are posted later, by whoever tells the next one or by `serve`:
//! the oldest first, so that nobody reads of a recovery before the failure, and none that is older than a day.

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{Alert, Alerts, attempt, payload};
use crate::clock::Timestamp;
use crate::ledger::{Ledger, LedgerError};

/// What is older has been found out in another way, or wants nobody any more.
const KEPT: TimeDelta = TimeDelta::hours(24);
/// One that could not be posted is not tried sooner than this again.
const AGAIN: TimeDelta = TimeDelta::seconds(30);
/// How often `serve` looks whether one is owed.
const LOOK: std::time::Duration = std::time::Duration::from_secs(10);

impl Alerts {
    /// Keeps what cannot be delivered in this ledger.
    pub fn kept_in(self, ledger: Ledger) -> Self {
        Self { ledger: Some(ledger), ..self }
    }

    /// Posts what is owed until `over`.
    ///
    /// # Cancel safety
    ///
    /// Dropped amid a post, that alert may be delivered once more later.
    pub async fn post_later(&self, over: &CancellationToken) {
        tokio::select! {
            () = self.all_owed() => {}
            () = over.cancelled() => return,
        }
        tokio::select! {
            () = self.clock.sleep(LOOK) => {}
            () = over.cancelled() => {}
        }
    }

    async fn all_owed(&self) {
        if let Err(error) = self.post_owed().await {
            debug!(%error, "alerts that are owed could not be looked for");
        }
    }

    /// Posts what is owed, one try each, up to the first that is not taken; says whether nothing is left.
    pub(super) async fn post_owed(&self) -> Result<bool, LedgerError> {
        let (Some(ledger), Some(url), Some(client)) = (&self.ledger, &self.settings.webhook, &self.client) else {
            return Ok(true);
        };
        loop {
            let now = self.clock.now();
            let dropped = ledger.drop_alerts_owed(now - KEPT).await?;
            if dropped > 0 {
                error!(dropped, "{dropped} alerts could not be delivered within a day and are given up");
            }
            if !ledger.owes_alerts().await? {
                return Ok(true);
            }
            let Some(owed) = ledger.take_alert_owed(now, now - AGAIN).await? else { return Ok(false) };
            let Ok(alert) = serde_json::from_str::<Alert>(&owed.alert) else {
                // Written by another version: nobody can read it any more.
                ledger.settle_alert_owed(owed.id).await?;
                continue;
            };
            let body = payload(self.settings.style, &alert, (owed.at, now)).to_string();
            let request = client.post(url).header("content-type", "application/json; charset=utf-8").body(body);
            if let Err(reason) = attempt(request).await {
                debug!(reason, "an alert that is owed could not be delivered yet");
                return Ok(false);
            }
            ledger.settle_alert_owed(owed.id).await?;
            info!(subject = alert.subject(), status = alert.kind.as_str(), "an alert was delivered late");
        }
    }

    /// Keeps an alert for later; says why not where that cannot be.
    pub(super) async fn keep(&self, alert: &Alert, at: Timestamp) -> Result<(), String> {
        let Some(ledger) = &self.ledger else { return Err("there is no ledger to keep it in".to_owned()) };
        let text = serde_json::to_string(alert).map_err(|error| error.to_string())?;
        match ledger.owe_alert(&text, at).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("too many are kept already".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
