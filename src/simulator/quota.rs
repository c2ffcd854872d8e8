//! The day's counters of every endpoint, and the call counts that are never reset.
//!
//! The day turns at midnight in Shanghai, later by `lag_seconds` when the reset is late. A hidden limit refuses before
//! the figure that quota/get shows is reached: the real one is dynamic and shared with other systems.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::{quota_day, quota_month};
use super::endpoint::Endpoint;

const CLEARS_A_MONTH: u32 = 10;
/// Of single endpoints.
const SINGLE_CLEARS_A_MONTH: u32 = 50;
const SECONDS_A_MINUTE: i64 = 60;

/// What quota/get shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    pub daily_limit: u64,
    pub used: u64,
}

/// Counters for all endpoints of one account.
pub struct Quotas {
    meters: [Meter; Endpoint::COUNT],
    clears: Mutex<Clears>,
    single_clears: Mutex<Clears>,
}

#[derive(Default)]
struct Meter {
    limit: u64,
    today: Mutex<Today>,
    /// By the number of the minute; counted only while there is a limit for it.
    minute: Mutex<(i64, u64)>,
    calls: AtomicU64,
}

#[derive(Default)]
struct Today {
    day: i64,
    used: u64,
}

#[derive(Default)]
struct Clears {
    month: i64,
    used: u32,
}

impl Quotas {
    /// The documented limits for an account of that many followers, with `changed` (by endpoint name) in their place.
    pub fn new(followers: u64, changed: &BTreeMap<String, u64>) -> Self {
        let meters = Endpoint::ALL.map(|endpoint| Meter {
            limit: changed.get(endpoint.name()).copied().unwrap_or_else(|| endpoint.documented_limit(followers)),
            ..Meter::default()
        });
        Self { meters, clears: Mutex::default(), single_clears: Mutex::default() }
    }

    /// Counts that a call arrived, whatever becomes of it.
    pub fn arrived(&self, endpoint: Endpoint) {
        self.meter(endpoint).calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one call of the day's quota; false when there is none left under the limit or the hidden limit.
    pub fn take(&self, endpoint: Endpoint, at_seconds: i64, hidden_limit: Option<u64>) -> bool {
        let meter = self.meter(endpoint);
        let mut today = meter.today(at_seconds);
        let limit = hidden_limit.map_or(meter.limit, |hidden| hidden.min(meter.limit));
        let left = today.used < limit;
        today.used += u64::from(left);
        left
    }

    /// Calls that somebody else of the account made.
    pub fn spend(&self, endpoint: Endpoint, at_seconds: i64, calls: u64) {
        self.meter(endpoint).today(at_seconds).used += calls;
    }

    /// Takes one call of this minute; false when there were `limit` already.
    pub fn take_of_minute(&self, endpoint: Endpoint, at_seconds: i64, limit: u64) -> bool {
        let mut minute = self.meter(endpoint).minute.lock().expect("no holder of a counter panics");
        let number = at_seconds.div_euclid(SECONDS_A_MINUTE);
        if minute.0 != number {
            *minute = (number, 0);
        }
        let left = minute.1 < limit;
        minute.1 += u64::from(left);
        left
    }

    pub fn figure(&self, endpoint: Endpoint, at_seconds: i64) -> Figure {
        let meter = self.meter(endpoint);
        Figure { daily_limit: meter.limit, used: meter.today(at_seconds).used }
    }

    /// Empties every counter; false when this month's clears are used up.
    pub fn clear(&self, at_seconds: i64) -> bool {
        if !Clears::take(&self.clears, at_seconds, CLEARS_A_MONTH) {
            return false;
        }
        self.meters.iter().for_each(|meter| meter.today(at_seconds).used = 0);
        true
    }

    /// Empties one counter; false when this month's clears of that kind are used up.
    pub fn clear_one(&self, endpoint: Endpoint, at_seconds: i64) -> bool {
        let taken = Clears::take(&self.single_clears, at_seconds, SINGLE_CLEARS_A_MONTH);
        if taken {
            self.meter(endpoint).today(at_seconds).used = 0;
        }
        taken
    }

    /// Calls that arrived since the start, by endpoint; those never called are left out.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        Endpoint::ALL
            .into_iter()
            .map(|endpoint| (endpoint.name().to_owned(), self.meter(endpoint).calls.load(Ordering::Relaxed)))
            .filter(|(_, calls)| *calls > 0)
            .collect()
    }

    fn meter(&self, endpoint: Endpoint) -> &Meter {
        &self.meters[endpoint.slot()]
    }
}

impl Clears {
    fn take(clears: &Mutex<Self>, at_seconds: i64, limit: u32) -> bool {
        let mut clears = clears.lock().expect("no holder of the clears panics");
        if clears.month != quota_month(at_seconds) {
            *clears = Self { month: quota_month(at_seconds), used: 0 };
        }
        let left = clears.used < limit;
        clears.used += u32::from(left);
        left
    }
}

impl Meter {
    fn today(&self, at_seconds: i64) -> std::sync::MutexGuard<'_, Today> {
        let mut today = self.today.lock().expect("no holder of a counter panics");
        let day = quota_day(at_seconds);
        if today.day != day {
            *today = Today { day, used: 0 };
        }
        today
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_000;

    #[test]
    fn the_hidden_limit_refuses_before_the_figure_is_reached() {
        let quotas = Quotas::new(100, &BTreeMap::from([("user/get".to_owned(), 5)]));
        assert!(quotas.take(Endpoint::UserGet, NOW, Some(2)));
        assert!(quotas.take(Endpoint::UserGet, NOW, Some(2)));
        assert!(!quotas.take(Endpoint::UserGet, NOW, Some(2)));
        assert_eq!(quotas.figure(Endpoint::UserGet, NOW), Figure { daily_limit: 5, used: 2 });
        assert!(quotas.take(Endpoint::UserGet, NOW, None));
    }

    #[test]
    fn a_new_day_begins_at_nothing_and_a_clear_is_rare() {
        let quotas = Quotas::new(100, &BTreeMap::from([("user/get".to_owned(), 1)]));
        assert!(quotas.take(Endpoint::UserGet, NOW, None));
        assert!(!quotas.take(Endpoint::UserGet, NOW, None));
        assert!(quotas.take(Endpoint::UserGet, NOW + 86_400, None));
        assert!((0..10).all(|_| quotas.clear(NOW + 86_400)));
        assert!(!quotas.clear(NOW + 86_400));
        assert!(quotas.take(Endpoint::UserGet, NOW + 86_400, None));
    }
}
