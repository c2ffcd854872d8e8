//! The only place that decides whether a call is made again, and after how long.
//!
//! Busy, broken or unreadable answers wait 1, 2, 4 … seconds, at most 60, at most six tries; a minute's limit waits for
//! the next minute; what an operator or the calendar must change is never repeated. Sends never come here.

use std::time::Duration;

use chrono::Timelike;

use super::code::CodeClass;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use crate::clock::Clock;

const MOST_TRIES: u32 = 6;
const LONGEST_WAIT: u32 = 60;

/// What one call still has in it.
pub(super) struct Patience {
    clock: Clock,
    /// What counts as a second.
    base: Duration,
    tries: u32,
}

impl Patience {
    pub fn new(clock: Clock, base: Duration) -> Self {
        Self { clock, base, tries: 0 }
    }

    /// Takes note of a failed try; waits and says `true` when another is worth it. Callers stop it by dropping it.
    pub async fn again(&mut self, error: &WeChatError) -> bool {
        self.tries += 1;
        let Some(wait) = self.wait_after(error) else { return false };
        tracing::debug!(%error, tries = self.tries, wait_ms = wait.as_millis(), "calling WeChat again");
        self.clock.sleep(wait).await;
        true
    }

    fn wait_after(&self, error: &WeChatError) -> Option<Duration> {
        let most_tries = match error {
            WeChatError::Transport { .. } | WeChatError::NotJson { .. } => MOST_TRIES,
            // A broken list of profiles is broken by one person in it: asking for fewer helps, asking again does not.
            WeChatError::Unreadable { endpoint: Endpoint::UserInfoBatchget, .. } => 0,
            WeChatError::Unreadable { .. } => 2,
            WeChatError::Refused { class, .. } => match class {
                CodeClass::Retry | CodeClass::Slow => MOST_TRIES,
                // Good tokens are refused now and then; `token` has renewed it twice by now.
                CodeClass::Token => 3,
                CodeClass::Unknown => 2,
                CodeClass::Quota
                | CodeClass::SlowRecipient
                | CodeClass::Recipient
                | CodeClass::Campaign
                | CodeClass::Operator
                | CodeClass::Done
                | CodeClass::Held => 0,
            },
            WeChatError::Setup { .. }
            | WeChatError::LengthRequired { .. }
            | WeChatError::QuotaSpent { .. }
            | WeChatError::TokenRejected { .. }
            | WeChatError::NoForcedRenewal { .. }
            | WeChatError::Store(_)
            | WeChatError::Meter { .. } => 0,
        };
        if self.tries >= most_tries {
            return None;
        }
        Some(if error.class() == Some(CodeClass::Slow) { self.next_minute() } else { self.doubled() })
    }

    fn doubled(&self) -> Duration {
        let wait = self.base * 2_u32.saturating_pow(self.tries.saturating_sub(1)).min(LONGEST_WAIT);
        (wait + self.clock.jitter(wait / 4)).min(self.base * LONGEST_WAIT)
    }

    /// A little into the next minute, so that not everybody starts on its first instant.
    fn next_minute(&self) -> Duration {
        self.base * (60 - self.clock.now().second().min(59)) + self.clock.jitter(self.base * 2)
    }
}
