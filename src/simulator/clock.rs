//! The simulator's own clock: the machine's time moved by an offset that tests and the control API may change.
//!
//! It is apart from the product's clock so that the other side's time can run ahead while ours stands (a token that
//! is dead on WeChat's side only, a quota day that turned there first).

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Datelike, FixedOffset, Utc};

const MICROS_A_SECOND: i64 = 1_000_000;
const SECONDS_A_DAY: i64 = 86_400;
/// Shanghai has had no daylight saving since 1991.
const SHANGHAI_SECONDS: i32 = 8 * 3600;

/// The time on WeChat's side.
#[derive(Debug, Default)]
pub struct SimulatedClock {
    offset_micros: AtomicI64,
}

impl SimulatedClock {
    /// Microseconds since 1970.
    pub fn now_micros(&self) -> i64 {
        self.machine_micros() + self.offset_micros.load(Ordering::Relaxed)
    }

    /// The machine's own time, which orders do not move: how long a connection was really idle.
    #[expect(clippy::disallowed_methods, clippy::unused_self, reason = "the simulator's one place that reads the time")]
    pub fn machine_micros(&self) -> i64 {
        Utc::now().timestamp_micros()
    }

    /// Whole seconds since 1970.
    pub fn now_seconds(&self) -> i64 {
        self.now_micros().div_euclid(MICROS_A_SECOND)
    }

    /// Moves the clock by `seconds`, backwards when negative.
    pub fn advance(&self, seconds: i64) {
        self.offset_micros.fetch_add(seconds.saturating_mul(MICROS_A_SECOND), Ordering::Relaxed);
    }

    /// Sets the clock; it goes on from there.
    pub fn set(&self, at: DateTime<Utc>) {
        let behind = at.timestamp_micros() - self.now_micros();
        self.offset_micros.fetch_add(behind, Ordering::Relaxed);
    }

    /// Waits in real time; dropping the future ends the wait.
    #[expect(clippy::disallowed_methods, reason = "the simulator's one place that waits")]
    pub async fn wait(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// The day of Shanghai that `at_seconds` falls into, as a number that grows by one a day.
pub fn quota_day(at_seconds: i64) -> i64 {
    (at_seconds + i64::from(SHANGHAI_SECONDS)).div_euclid(SECONDS_A_DAY)
}

/// The month of Shanghai that `at_seconds` falls into, as a number that grows by one a month.
pub fn quota_month(at_seconds: i64) -> i64 {
    let zone = FixedOffset::east_opt(SHANGHAI_SECONDS).expect("eight hours is a valid offset");
    let at = DateTime::from_timestamp(at_seconds, 0).unwrap_or_default().with_timezone(&zone);
    i64::from(at.year()) * 12 + i64::from(at.month0())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_day_turns_at_midnight_in_shanghai() {
        let before = "2026-11-23T15:59:59Z".parse::<DateTime<Utc>>().unwrap().timestamp();
        assert_eq!(quota_day(before) + 1, quota_day(before + 1));
    }

    #[test]
    fn a_clock_that_was_set_goes_on_from_there() {
        let clock = SimulatedClock::default();
        let at = "2030-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
        clock.set(at);
        clock.advance(60);
        assert!((at.timestamp() + 60..at.timestamp() + 70).contains(&clock.now_seconds()));
    }
}
