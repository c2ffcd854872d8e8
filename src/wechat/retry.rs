//! The only place that decides whether a call is made again, and after how long.
//!
//! Busy, broken or unreadable answers wait 1, 2, 4 … seconds, at most 60, at most six tries; no answer at all is borne
//! with for a minute, no connection for half of one; a minute's limit waits for the next minute; what an operator or the
//! calendar must change is never repeated. From the first wait on a line says what is waited for. Sends never come here.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use chrono::Timelike;

use super::code::CodeClass;
use super::endpoint::Endpoint;
use super::error::WeChatError;
use crate::clock::Clock;
use crate::domain::AccountName;
use crate::redact;

const MOST_TRIES: u32 = 6;
const LONGEST_WAIT: u32 = 60;
/// From the first try of a call on; a try that is under way then still ends.
const UNCONNECTED_LIMIT: Duration = Duration::from_secs(30);
const UNANSWERED_LIMIT: Duration = Duration::from_secs(60);
/// Many calls may wait for the same thing: one line tells of them all.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Says what the calls of an account wait for, not once for each of them.
pub(super) struct Waiting {
    account: AccountName,
    clock: Clock,
    told_at: Mutex<Option<Instant>>,
}

impl Waiting {
    pub fn new(account: AccountName, clock: Clock) -> Self {
        Self { account, clock, told_at: Mutex::default() }
    }

    /// One line, unless there was one a moment ago. `goes_on`: what happens next.
    pub fn tell(&self, error: &WeChatError, goes_on: &str) {
        let now = self.clock.monotonic();
        let mut told_at = self.told_at.lock().expect("nobody panics while telling");
        if told_at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY) {
            return;
        }
        *told_at = Some(now);
        let reason = redact::without_secrets(&causes(error), 300);
        tracing::warn!(account = %self.account, "waiting for WeChat: {reason}; {goes_on}");
    }
}

/// What one call still has in it.
pub(super) struct Patience<'a> {
    waiting: &'a Waiting,
    clock: Clock,
    /// What counts as a second.
    base: Duration,
    most_tries: u32,
    began: Instant,
    tries: u32,
}

impl<'a> Patience<'a> {
    /// `is_once`: a person waits, who is told of the first failure.
    pub fn new(waiting: &'a Waiting, base: Duration, is_once: bool) -> Self {
        let clock = waiting.clock;
        let most_tries = if is_once { 1 } else { MOST_TRIES };
        Self { waiting, clock, base, most_tries, began: clock.monotonic(), tries: 0 }
    }

    /// Takes note of a failed try; waits and says `true` when another is worth it. Callers stop it by dropping it.
    pub async fn again(&mut self, error: &WeChatError) -> bool {
        self.tries += 1;
        let Some(wait) = self.wait_after(error) else { return false };
        self.waiting.tell(error, &format!("trying again in {:.0} s", wait.as_secs_f64().max(1.0)));
        self.clock.sleep(wait).await;
        true
    }

    /// What is to be said of the last failure, now that the tries are over.
    pub fn over(&self, error: WeChatError) -> WeChatError {
        match error {
            WeChatError::Transport { endpoint, host, source } => WeChatError::Unreachable {
                account: self.waiting.account.clone(),
                endpoint,
                host,
                tries: self.tries,
                seconds: self.spent().as_secs(),
                source,
            },
            error => error,
        }
    }

    fn spent(&self) -> Duration {
        self.clock.monotonic().saturating_duration_since(self.began)
    }

    fn wait_after(&self, error: &WeChatError) -> Option<Duration> {
        let most_tries = match error {
            WeChatError::Transport { .. } | WeChatError::NotJson { .. } => MOST_TRIES,
            // A broken list of profiles is broken by one person in it: asking for fewer helps, asking again does not.
            WeChatError::Unreadable { endpoint: Endpoint::UserInfoBatchget, .. } => 0,
            WeChatError::Unreadable { .. } => 2,
            WeChatError::Refused { class, .. } => match class {
                CodeClass::Retry | CodeClass::Slow => MOST_TRIES,
                // Good tokens are refused now and then; each try has asked twice.
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
            | WeChatError::Unreachable { .. }
            | WeChatError::LengthRequired { .. }
            | WeChatError::QuotaSpent { .. }
            | WeChatError::TokenRejected { .. }
            | WeChatError::NoForcedRenewal { .. }
            | WeChatError::Store(_)
            | WeChatError::Meter { .. } => 0,
        };
        if self.tries >= most_tries.min(self.most_tries) {
            return None;
        }
        let wait = if error.class() == Some(CodeClass::Slow) { self.next_minute() } else { self.doubled() };
        let limit = match error {
            WeChatError::Transport { source, .. } if source.may_have_left => Some(UNANSWERED_LIMIT),
            WeChatError::Transport { .. } => Some(UNCONNECTED_LIMIT),
            _ => None,
        };
        Some(wait).filter(|wait| limit.is_none_or(|limit| self.spent() + *wait < limit))
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

/// An error with its causes in one line.
fn causes(error: &WeChatError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
