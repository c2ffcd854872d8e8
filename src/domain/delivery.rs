//! What may become of one recipient's message: the states and their lawful changes, once, as a total match.
//!
//! ```text
//!   Pending ──IntentWritten──▶ Sending ──Accepted──────▶ Sent
//!      ▲  │                     │ │ │ └───TakenForReview─▶ Held ──DeliveredEvent──▶ Sent
//!      │  └─LeftOut─▶ Skipped   │ │ │                      └─────BlockedEvent────▶ Failed
//!      └──────PutBack───────────┘ │ └──NoAnswer──▶ Unconfirmed ──DeliveredEvent──▶ Sent
//!                          Refused▼   RefusedInDoubt▲└──RepeatAllowed──▶ Pending ──IntentWritten──▶ Sending
//!                               Failed      └──Sending        (both at once: nobody in doubt is ever merely pending)
//! ```

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// WeChat keeps one id from going out twice for ten minutes; beyond this age of its first try we do not lean on it any more.
const SAFE_REPEAT: TimeDelta = TimeDelta::minutes(8);
const WINDOW: TimeDelta = TimeDelta::minutes(10);
/// A first try that seems to be further in the future than this was made by a clock that was set since: its age is unknown.
const SKEW: TimeDelta = TimeDelta::minutes(1);

/// How often whoever may have the message is sent it once more at most, where that was chosen: one whose answers never come
/// may get each of these.
const MOST_REPEATS: u32 = 3;

/// Whether a message whose first try may have been accepted can go out again under the same id.
pub fn may_repeat(first_try_at: Timestamp, now: Timestamp) -> bool {
    let age = now - first_try_at;
    age < SAFE_REPEAT && age > -SKEW
}

/// From when on a message that goes out again is one that WeChat does not know: its window, from the first try on, is over.
fn window_is_over_at(first_try_at: Timestamp) -> Timestamp {
    first_try_at + WINDOW
}

/// From when on whoever got no answer, and was sent the message once more `repeats` times already, may be sent it again,
/// where that was chosen; `None`: never.
pub fn once_more_at(first_try_at: Timestamp, repeats: u32) -> Option<Timestamp> {
    (repeats < MOST_REPEATS).then(|| window_is_over_at(first_try_at))
}

/// Where one delivery stands. `Sending` is shown outside as `pending`: an intent is written, the outcome not yet known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Pending,
    Sending,
    Sent,
    Failed,
    Skipped,
    Held,
    Unconfirmed,
}

/// What can happen to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryEvent {
    /// The intent to send is durable; the bytes may leave from now on.
    IntentWritten,
    /// WeChat accepted the message (or said that this very message was accepted before).
    Accepted,
    /// WeChat refused it for good, for this recipient, and no try of it can have been taken.
    Refused,
    /// WeChat refused a repeat for good; a try before it may have been taken.
    RefusedInDoubt,
    /// WeChat refused it for a reason that is not the recipient's, or it was never sent: it is owed again.
    PutBack,
    /// 40252: WeChat decides later. Never repeated.
    TakenForReview,
    /// No answer came while a repeat was safe.
    NoAnswer,
    /// Left out at the last look (no longer follows, suppressed, refusing, capped, expired).
    LeftOut,
    /// The finish event said `success`.
    DeliveredEvent,
    /// The finish event said that it was blocked or failed.
    BlockedEvent,
    /// An operator chose to repeat what is unconfirmed.
    RepeatAllowed,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a delivery that is {} cannot take {event:?}", state.as_str())]
pub struct Unlawful {
    pub state: DeliveryState,
    pub event: DeliveryEvent,
}

impl DeliveryState {
    /// All states, in the order of the message's life.
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Sending, Self::Sent, Self::Failed, Self::Skipped, Self::Held, Self::Unconfirmed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Held => "held",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// The state after `event`.
    ///
    /// # Errors
    ///
    /// [`Unlawful`] when the event cannot happen in this state; the caller keeps the state and reports it.
    pub fn after(self, event: DeliveryEvent) -> Result<Self, Unlawful> {
        use DeliveryEvent as E;
        use DeliveryState as S;
        match (self, event) {
            (S::Pending, E::IntentWritten) => Ok(S::Sending),
            (S::Pending, E::LeftOut) => Ok(S::Skipped),
            // The same intent again after a crash: same id, next attempt.
            (S::Sending, E::IntentWritten) => Ok(S::Sending),
            (S::Sending, E::Accepted) => Ok(S::Sent),
            (S::Sending, E::Refused) => Ok(S::Failed),
            (S::Sending, E::PutBack) => Ok(S::Pending),
            (S::Sending, E::TakenForReview) => Ok(S::Held),
            (S::Sending, E::NoAnswer | E::RefusedInDoubt) => Ok(S::Unconfirmed),
            (S::Sending, E::LeftOut) => Ok(S::Skipped),
            (S::Held | S::Unconfirmed, E::DeliveredEvent) => Ok(S::Sent),
            (S::Held | S::Unconfirmed, E::BlockedEvent) => Ok(S::Failed),
            (S::Unconfirmed, E::RepeatAllowed) => Ok(S::Pending),
            (
                state @ (S::Pending | S::Sending | S::Sent | S::Failed | S::Skipped | S::Held | S::Unconfirmed),
                event,
            ) => Err(Unlawful { state, event }),
        }
    }

    /// Whether the push is done with this recipient: nothing is owed any more.
    pub fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Sending)
    }
}

/// The public counts of a push. The six states always add up to `recipients`; `pending` includes what is in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub recipients: u64,
    pub sent: u64,
    pub failed: u64,
    pub skipped: u64,
    pub held: u64,
    pub unconfirmed: u64,
    pub pending: u64,
}

impl Counts {
    /// Whether the states add up to the recipients.
    pub fn add_up(&self) -> bool {
        self.sent + self.failed + self.skipped + self.held + self.unconfirmed + self.pending == self.recipients
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [DeliveryEvent; 11] = [
        DeliveryEvent::IntentWritten,
        DeliveryEvent::Accepted,
        DeliveryEvent::Refused,
        DeliveryEvent::RefusedInDoubt,
        DeliveryEvent::PutBack,
        DeliveryEvent::TakenForReview,
        DeliveryEvent::NoAnswer,
        DeliveryEvent::LeftOut,
        DeliveryEvent::DeliveredEvent,
        DeliveryEvent::BlockedEvent,
        DeliveryEvent::RepeatAllowed,
    ];

    #[test]
    fn sent_failed_and_skipped_are_ends() {
        for state in [DeliveryState::Sent, DeliveryState::Failed, DeliveryState::Skipped] {
            for event in EVENTS {
                assert!(state.after(event).is_err(), "{state:?} was left by {event:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_sent_to_again_without_leave(history in prop::collection::vec(0..EVENTS.len(), 0..64)) {
            let mut state = DeliveryState::Pending;
            let mut possibly_received = false;
            for event in history.into_iter().map(|i| EVENTS[i]) {
                let Ok(next) = state.after(event) else { continue };
                if matches!(next, DeliveryState::Sent | DeliveryState::Held | DeliveryState::Unconfirmed) {
                    possibly_received = true;
                }
                if event == DeliveryEvent::RepeatAllowed {
                    possibly_received = false;
                }
                prop_assert!(!(possibly_received && next == DeliveryState::Sending), "{state:?} repeated by {event:?}");
                state = next;
            }
        }
    }
}
