//! How one token string stands with WeChat, as every call of this process has found it.
//!
//! Under load a few percent of calls are refused for a token that is good, so one refusal says little, and two in a row
//! happen every few hundred calls. What proves a token dead is that nothing gets through: several refusals, over a while,
//! no success by any call between them, and WeChat giving out the same string again. Pure: the time is an argument.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Refusals without a success between them from which a token is under suspicion. Chance alone brings that many about
/// once in 20 000 calls where one in twelve is refused.
const SUSPICIOUS: u32 = 4;
/// How long calls are spared a token that was given up: those that were under way then end by it.
const GIVEN_UP_FOR: Duration = Duration::from_secs(5);
/// How long WeChat's word that the refused token is the right one spares asking again.
const CONFIRMATION_HOLDS: Duration = Duration::from_secs(10);

/// The standing of one string; shared by all copies of it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Accepted at least once, and not refused since: what nearly every answer finds.
    is_clear: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    was_accepted: bool,
    /// Since the last success.
    refusals: u32,
    /// The first of these.
    since: Option<Instant>,
    /// When WeChat last gave out this same string again.
    confirmed_at: Option<Instant>,
    /// A token that was forced, until the first call gets through with it.
    is_on_trial: bool,
    /// When no way was found to replace it, and with which code it was refused.
    given_up: Option<(Instant, i64)>,
}

impl Standing {
    /// A call got through with the token: all suspicion is gone.
    pub fn accepted(&self) {
        if !self.is_clear.load(Ordering::Relaxed) {
            let mut seen = self.seen();
            *seen = Seen { was_accepted: true, confirmed_at: seen.confirmed_at, ..Seen::default() };
            self.is_clear.store(true, Ordering::Relaxed);
        }
    }

    pub fn refused(&self, now: Instant) {
        let mut seen = self.seen();
        self.is_clear.store(false, Ordering::Relaxed);
        seen.refusals = seen.refusals.saturating_add(1);
        seen.since.get_or_insert(now);
    }

    /// The token was forced: the first call shows what it is worth.
    pub fn put_on_trial(&self) {
        let mut seen = self.seen();
        seen.is_on_trial = !seen.was_accepted;
    }

    /// The token is dead, and there is no other.
    pub fn give_up(&self, now: Instant, errcode: i64) {
        self.seen().given_up = Some((now, errcode));
    }

    /// The code of a token that was given up a moment ago.
    pub fn given_up(&self, now: Instant) -> Option<i64> {
        if self.is_clear.load(Ordering::Relaxed) {
            return None;
        }
        let given_up = self.seen().given_up;
        given_up.filter(|(at, _)| now.saturating_duration_since(*at) < GIVEN_UP_FOR).map(|(_, errcode)| errcode)
    }

    /// WeChat was asked for the token and gave this one again.
    pub fn confirmed(&self, now: Instant) {
        self.seen().confirmed_at = Some(now);
    }

    /// Whether the latest refusal is most likely a passing one, not worth asking for another token.
    pub fn is_passing(&self, now: Instant) -> bool {
        let seen = self.seen();
        if seen.was_accepted && seen.refusals < 2 {
            return true;
        }
        let is_confirmed = seen.confirmed_at.is_some_and(|at| now.saturating_duration_since(at) < CONFIRMATION_HOLDS);
        // A word from before the refusals began is worth nothing once there are many of them.
        is_confirmed && (seen.refusals < SUSPICIOUS || seen.confirmed_at >= seen.since)
    }

    /// Whether calls are to be made one by one.
    pub fn is_doubted(&self) -> bool {
        if self.is_clear.load(Ordering::Relaxed) {
            return false;
        }
        let seen = self.seen();
        seen.is_on_trial || seen.refusals >= SUSPICIOUS
    }

    /// When enough time will have passed to judge a token that is under suspicion; `None`: it is not.
    pub fn judged_at(&self, span: Duration) -> Option<Instant> {
        let seen = self.seen();
        seen.since.filter(|_| seen.refusals >= SUSPICIOUS).map(|since| since + span)
    }

    /// Whether nothing has got through for `span`, many times over.
    pub fn is_dead(&self, now: Instant, span: Duration) -> bool {
        self.judged_at(span).is_some_and(|at| at <= now)
    }

    /// Whether WeChat has given out the string again since the refusals began.
    pub fn is_insisted_on(&self) -> bool {
        let seen = self.seen();
        seen.since.is_some() && seen.confirmed_at >= seen.since
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SPAN: Duration = Duration::from_secs(1);

    #[test]
    fn one_success_clears_any_number_of_refusals() {
        let (standing, start) = (Standing::default(), Clock::default().monotonic());
        for _ in 0..100 {
            standing.refused(start);
        }
        assert!(standing.is_dead(start + SPAN, SPAN) && !standing.is_passing(start));
        standing.accepted();
        assert!(!standing.is_dead(start + SPAN * 9, SPAN));
        standing.refused(start + SPAN * 9);
        assert!(standing.is_passing(start + SPAN * 9));
    }

    #[test]
    fn refusals_prove_nothing_before_they_are_many_and_have_lasted() {
        let (standing, start) = (Standing::default(), Clock::default().monotonic());
        for _ in 0..3 {
            standing.refused(start);
        }
        assert!(!standing.is_dead(start + SPAN * 60, SPAN));
        standing.refused(start + SPAN * 60);
        assert!(standing.is_dead(start + SPAN * 60, SPAN));
        let burst = Standing::default();
        for _ in 0..64 {
            burst.refused(start);
        }
        assert!(!burst.is_dead(start + SPAN / 2, SPAN));
        assert_eq!(burst.judged_at(SPAN), Some(start + SPAN));
    }

    #[test]
    fn a_confirmation_spares_asking_again_for_a_while_but_not_against_many_refusals() {
        let (standing, start) = (Standing::default(), Clock::default().monotonic());
        standing.refused(start);
        assert!(!standing.is_passing(start) && !standing.is_insisted_on());
        standing.confirmed(start);
        assert!(standing.is_passing(start + SPAN) && standing.is_insisted_on());
        assert!(!standing.is_passing(start + CONFIRMATION_HOLDS));
        standing.accepted();
        for _ in 0..SUSPICIOUS {
            standing.refused(start + SPAN);
        }
        assert!(!standing.is_passing(start + SPAN * 2) && !standing.is_insisted_on());
    }
}
