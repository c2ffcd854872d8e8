//! The calls that a run may make for details.

use crate::wechat::{CallCounts, Endpoint};

/// How many there are, and how many have begun.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    calls: u64,
    begun: u64,
}

impl Budget {
    /// `calls` for the whole run, without it any number; those count that `made` tells of, also of before a stop.
    pub fn new(calls: Option<u64>, made: &CallCounts) -> Self {
        Self { calls: calls.unwrap_or(u64::MAX), begun: details(made) }
    }

    /// Whether another call may begin.
    pub fn has_room(&self, made: &CallCounts) -> bool {
        self.left(made) > 0
    }

    pub fn left(&self, made: &CallCounts) -> u64 {
        self.calls.saturating_sub(self.spent(made))
    }

    /// A call begins. It counts at once; its repeats count when they are made.
    pub fn begin(&mut self, made: &CallCounts) {
        self.begun = self.spent(made).saturating_add(1);
    }

    fn spent(&self, made: &CallCounts) -> u64 {
        self.begun.max(details(made))
    }
}

fn details(made: &CallCounts) -> u64 {
    made.made(Endpoint::UserInfoBatchget) + made.made(Endpoint::UserInfo)
}
