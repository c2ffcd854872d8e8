//! The guards of a push: when what comes back says that going on would only cost.

use std::collections::BTreeMap;

use crate::config::settings::HaltWhen;
use crate::wechat::lookup_code;

/// Recipients in a row with the same failure that halt a push.
const STREAK: u64 = 20;
/// Share of 40003 among the ended from which the openids are surely not this account's.
const MOST_BAD_OPENIDS: f64 = 0.2;
/// No share is judged before this many ended.
const FEWEST_ENDED: u64 = 50;
const BAD_OPENID: i64 = 40003;

/// Counts recipients by where they ended.
#[derive(Debug, Default)]
pub struct Guard {
    ended: u64,
    failed: u64,
    held: u64,
    by_errcode: BTreeMap<i64, u64>,
    streak: (Option<i64>, u64),
}

impl Guard {
    /// A recipient ended well, or for a reason that is no failure.
    pub fn ended_well(&mut self) {
        self.ended += 1;
        self.streak = (None, 0);
    }

    /// A recipient is held for review: no failure, but many of them are.
    pub fn held(&mut self, rule: HaltWhen) -> Option<String> {
        self.ended += 1;
        self.held += 1;
        self.over_share(self.held, rule, "are held for review (40252)")
    }

    /// A recipient failed; gives why the push must halt, if it must.
    pub fn failed(&mut self, errcode: i64, rule: HaltWhen) -> Option<String> {
        self.ended += 1;
        self.failed += 1;
        *self.by_errcode.entry(errcode).or_default() += 1;
        self.streak = match self.streak {
            (Some(same), count) if same == errcode => (Some(same), count + 1),
            _ => (Some(errcode), 1),
        };
        let meaning = lookup_code(errcode).map_or("a code that is not known", |code| code.meaning);
        if self.streak.1 >= STREAK {
            return Some(format!("{STREAK} recipients in a row failed with {errcode} ({meaning})"));
        }
        let bad_openids = self.by_errcode.get(&BAD_OPENID).copied().unwrap_or(0);
        if errcode == BAD_OPENID && self.ended >= FEWEST_ENDED && share(bad_openids, self.ended) > MOST_BAD_OPENIDS {
            return Some(format!(
                "{bad_openids} of {} openids are not this account's (40003): the mini program's openids may stand in the set",
                self.ended
            ));
        }
        self.over_share(self.failed, rule, "failed")
    }

    fn over_share(&self, count: u64, rule: HaltWhen, what: &str) -> Option<String> {
        let is_over = self.ended >= rule.after && share(count, self.ended) > rule.failed_share;
        is_over.then(|| {
            format!("{count} of {} recipients {what}, more than halt_when allows ({})", self.ended, rule.failed_share)
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: HaltWhen = HaltWhen { failed_share: 0.2, after: 200 };

    #[test]
    fn twenty_failures_of_one_kind_in_a_row_halt() {
        let mut guard = Guard::default();
        for _ in 0..19 {
            assert_eq!(guard.failed(43101, RULE), None);
        }
        assert!(guard.failed(43101, RULE).is_some());
    }

    #[test]
    fn a_success_between_ends_the_streak() {
        let mut guard = Guard::default();
        for _ in 0..19 {
            assert_eq!(guard.failed(43101, RULE), None);
        }
        guard.ended_well();
        assert_eq!(guard.failed(43101, RULE), None);
    }

    #[test]
    fn a_share_of_failures_halts_only_after_enough_ended() {
        let mut guard = Guard::default();
        let mut halted_at = None;
        for ended in 0..400 {
            if ended % 4 == 0 {
                if guard.failed(43004, RULE).is_some() && halted_at.is_none() {
                    halted_at = Some(guard.ended);
                }
            } else {
                guard.ended_well();
            }
        }
        assert_eq!(halted_at, Some(201));
    }
}
