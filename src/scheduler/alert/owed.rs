//! An alert is owed from the moment on that its subject is said to have changed, and until it is delivered: by whoever owes
//! it, by whoever tells the next one or ends a run, or by `serve`; the oldest first, so that nobody reads of a recovery before
//! the failure, and none that is older than a day. Whoever dies in between leaves it to the others: it is told once, or, when
//! the death came right after the post, twice.

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{Alert, Alerts, attempt};
use crate::clock::Timestamp;
use crate::ledger::{AlertChange, AlertChanged, Ledger, LedgerError};

/// What is older has been found out in another way, or wants nobody any more.
const KEPT: TimeDelta = TimeDelta::hours(24);
/// One that could not be posted is not tried sooner than this again.
const AGAIN: TimeDelta = TimeDelta::seconds(30);
/// How often `serve` looks whether one is owed.
const LOOK: std::time::Duration = std::time::Duration::from_secs(10);

/// An alert that is to be delivered.
#[derive(Debug)]
#[must_use]
pub struct Due {
    pub(super) alert: Alert,
    /// When what it tells of happened.
    pub(super) at: Timestamp,
    /// Under which it is owed; `None`: it could not be.
    pub(super) id: Option<i64>,
}

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

    /// Posts what is owed, as far as that goes.
    pub async fn all_owed(&self) {
        match self.post_owed(None).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => debug!(reason, "alerts stay owed"),
            Err(error) => debug!(%error, "alerts that are owed could not be looked for"),
        }
    }

    /// Remembers that `key` is now `state`. Where that is news, `alert` is owed: whoever gets it here delivers it.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; nothing is remembered then.
    pub async fn change(&self, (key, state): (&str, &str), alert: Option<Alert>) -> Result<Option<Due>, LedgerError> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        let at = self.clock.now();
        let text = alert.as_ref().filter(|_| self.settings.webhook.is_some()).map(text_of);
        let change = AlertChange { key, state, alert: text.as_deref() };
        Ok(match (ledger.change_alert(change, at).await?, alert) {
            (AlertChanged::Yes { owed: id }, Some(alert)) => Some(Due { alert, at, id }),
            (AlertChanged::Yes { .. }, None) | (AlertChanged::No, _) => None,
        })
    }

    /// Delivers an alert, up to three tries, after those that are owed before it. Returns whether it was taken, which also
    /// holds when there is nowhere to send to.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, what is owed is delivered later, perhaps once more.
    pub async fn deliver(&self, due: Due) -> bool {
        if self.settings.webhook.is_none() {
            return true;
        }
        let (subject, status) = (due.alert.subject(), due.alert.kind.as_str());
        match self.post_owed(due.id).await {
            Ok(Ok(())) if due.id.is_some() => true,
            Ok(Err(reason)) if due.id.is_some() => {
                error!(
                    subject,
                    status, reason, "alert could not be delivered; `lianbo serve`, or the next alert, tries again"
                );
                false
            }
            Ok(Err(reason)) => {
                error!(subject, status, reason, "alert could not be delivered; it is given up: it could not be kept");
                false
            }
            // A ledger that cannot be read or written keeps nobody from being told.
            Ok(Ok(())) | Err(_) => self.deliver_alone(&due).await,
        }
    }

    /// Delivers an alert whatever else is owed.
    pub(super) async fn deliver_alone(&self, due: &Due) -> bool {
        let (Some(url), Some(client)) = (&self.settings.webhook, &self.client) else {
            return self.settings.webhook.is_none();
        };
        let (subject, status) = (due.alert.subject(), due.alert.kind.as_str());
        match self.post(&due.alert, (url, client, due.at)).await {
            Ok(()) => {
                debug!(subject, status, "alert delivered");
                true
            }
            Err(reason) => {
                error!(subject, status, reason, "alert could not be delivered; it is given up: it could not be kept");
                false
            }
        }
    }

    /// Posts what is owed, one try each (and as many as for a new one for `mine`), up to the first that is not taken: then
    /// says why.
    async fn post_owed(&self, mine: Option<i64>) -> Result<Result<(), String>, LedgerError> {
        let (Some(ledger), Some(url), Some(client)) = (&self.ledger, &self.settings.webhook, &self.client) else {
            return Ok(Ok(()));
        };
        loop {
            let now = self.clock.now();
            let dropped = ledger.drop_alerts_owed(now - KEPT).await?;
            if dropped > 0 {
                error!(dropped, "{dropped} alerts could not be delivered within a day and are given up");
            }
            if !ledger.owes_alerts().await? {
                return Ok(Ok(()));
            }
            let Some(owed) = ledger.take_alert_owed(now, now - AGAIN).await? else {
                return Ok(Err("one that is owed goes before it".to_owned()));
            };
            let Ok(alert) = serde_json::from_str::<Alert>(&owed.alert) else {
                // Written by another version: nobody can read it any more.
                ledger.settle_alert_owed(owed.id).await?;
                continue;
            };
            let is_mine = mine == Some(owed.id);
            let posted = match is_mine {
                true => self.post(&alert, (url, client, owed.at)).await,
                false => attempt(self.request(&alert, (url, client, owed.at))).await,
            };
            if let Err(reason) = posted {
                return Ok(Err(if is_mine { reason } else { format!("one that is owed goes before it: {reason}") }));
            }
            ledger.settle_alert_owed(owed.id).await?;
            if !is_mine {
                info!(subject = alert.subject(), status = alert.kind.as_str(), "an alert was delivered late");
            }
        }
    }

    /// Owes an alert that is no change of a subject.
    pub(super) async fn owe(&self, alert: &Alert, at: Timestamp) -> Option<i64> {
        let owed = self.ledger.as_ref()?.owe_alert(&text_of(alert), at).await;
        owed.inspect_err(|error| debug!(%error, "an alert could not be kept")).ok().flatten()
    }
}

fn text_of(alert: &Alert) -> String {
    serde_json::to_string(alert).expect("words and names always serialize")
}
