//! The calls that a run may make for details.
//!
//! Some of them are kept for confirming unionids in doubt: batches that used up all would leave nobody to ask singly, and
//! an account that was bound anew would look like many people in doubt, night after night.

use crate::wechat::{CallCounts, Endpoint};

/// Of a budget one call in so many is kept for confirming.
const KEPT_ONE_IN: u64 = 10;
/// More are not needed to tell that an account was bound anew.
const KEPT_MOST: u64 = 10;
/// Calls of an account from which one asks and one confirms.
pub(super) const LEAST_CALLS: u64 = 2;

/// How many there are, how many of them are kept, and how many have begun.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// What the calls of the whole stage may come to.
    calls: u64,
    kept: u64,
    begun: u64,
}

impl Budget {
    /// `calls` beyond those that `made` tells of, without it any number; `kept` of them are for confirming.
    pub fn new(calls: Option<u64>, kept: u64, made: &CallCounts) -> Self {
        let begun = details(made);
        Self { calls: calls.map_or(u64::MAX, |calls| begun.saturating_add(calls)), kept, begun }
    }

    /// Whether another call may begin.
    pub fn has_room(&self, made: &CallCounts) -> bool {
        self.left(made) > 0
    }

    /// Calls that may begin, without those that are kept.
    pub fn left(&self, made: &CallCounts) -> u64 {
        self.calls.saturating_sub(self.kept).saturating_sub(self.spent(made))
    }

    /// What was kept may be used from now on.
    pub fn release_kept(&mut self) {
        self.kept = 0;
    }

    /// A call begins. It counts at once; its repeats count when they are made.
    pub fn begin(&mut self, made: &CallCounts) {
        self.begun = self.spent(made).saturating_add(1);
    }

    fn spent(&self, made: &CallCounts) -> u64 {
        self.begun.max(details(made))
    }
}

/// How many of so many calls are kept for confirming: of one none, since somebody has to be asked first.
pub(super) fn kept_of(calls: u64) -> u64 {
    if calls < LEAST_CALLS { 0 } else { calls.div_ceil(KEPT_ONE_IN).min(KEPT_MOST) }
}

/// Calls for details that were made.
pub(super) fn details(made: &CallCounts) -> u64 {
    made.made(Endpoint::UserInfoBatchget) + made.made(Endpoint::UserInfo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_kept_one_at_least_and_ten_at_most() {
        assert_eq!([0, 1, 2, 10, 11, 95, 100, 50_000].map(kept_of), [0, 0, 1, 1, 2, 10, 10, 10]);
    }

    #[test]
    fn what_is_kept_is_left_when_it_is_released() {
        let made = CallCounts::going_on_from(&[("user/info".to_owned(), 7)].into());
        let mut budget = Budget::new(Some(3), 1, &made);
        assert_eq!(budget.left(&made), 2);
        budget.begin(&made);
        budget.begin(&made);
        assert!(!budget.has_room(&made));
        budget.release_kept();
        assert_eq!(budget.left(&made), 1);
    }
}
