//! The canary of a push as it is shown: which of its phases it is in, what became of its messages, and its verdict.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::config::settings::PushTemplate;
use crate::domain::CanaryCounts;
use crate::ledger::{Ledger, LedgerError, Push};

/// A canary as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct CanaryView {
    /// `pending`, `sending`, `waiting` (for finish events), `judged`, or `not_judged`: the push ended before.
    pub phase: &'static str,
    /// Messages that go out first.
    pub first: u64,
    pub max_not_delivered: f64,
    #[serde(flatten)]
    pub messages: Messages,
    /// Until when finish events are waited for, while they are.
    pub waits_until: Option<Timestamp>,
    /// `passed` or `failed`.
    pub verdict: Option<String>,
}

/// What became of the messages of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Messages {
    pub sent_to: u64,
    pub delivered: u64,
    /// Blocked, failed, or refused at the send.
    pub not_delivered: u64,
    /// No event tells of them yet.
    pub awaited: u64,
}

impl From<CanaryCounts> for Messages {
    fn from(seen: CanaryCounts) -> Self {
        let awaited = seen.untold();
        let not_delivered = seen.sent_to.saturating_sub(seen.delivered + awaited);
        Self { sent_to: seen.sent_to, delivered: seen.delivered, not_delivered, awaited }
    }
}

impl CanaryView {
    /// The canary of a push; `None` where it has none.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub async fn of(ledger: &Ledger, plan: Option<&PushTemplate>, push: &Push) -> Result<Option<Self>, LedgerError> {
        let Some(canary) = plan.and_then(|plan| plan.canary).filter(|_| !push.is_test) else { return Ok(None) };
        let messages = ledger.canary_counts(push.key, Some(canary.first)).await?.into();
        let phase = match (&push.canary_verdict, push.canary_until, push.first_send_at) {
            (Some(_), _, _) => "judged",
            (None, _, _) if push.ended_at.is_some() => "not_judged",
            (None, Some(_), _) => "waiting",
            (None, None, Some(_)) => "sending",
            (None, None, None) => "pending",
        };
        Ok(Some(Self {
            phase,
            first: canary.first,
            max_not_delivered: canary.max_not_delivered,
            messages,
            waits_until: push.canary_until.filter(|_| phase == "waiting"),
            verdict: push.canary_verdict.clone(),
        }))
    }
}
