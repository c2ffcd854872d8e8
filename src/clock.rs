//! The only place that reads the time, sleeps, or draws random numbers.
//!
//! `LIANBO_CLOCK_OFFSET_SECONDS` moves this clock against the machine's: for rehearsing tomorrow's fire or a change of
//! quota day against the simulator.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rand::Rng;

/// A point in time, UTC.
pub type Timestamp = DateTime<Utc>;

/// The time as this process sees it. Cheap to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    offset: TimeDelta,
}

impl Clock {
    /// The machine's clock, moved by `LIANBO_CLOCK_OFFSET_SECONDS` when that is set to a whole number.
    pub fn from_environment() -> Self {
        let seconds = std::env::var("LIANBO_CLOCK_OFFSET_SECONDS").ok().and_then(|text| text.parse::<i64>().ok());
        Self { offset: seconds.and_then(TimeDelta::try_seconds).unwrap_or_default() }
    }

    /// The machine's clock, moved by `offset`.
    pub fn with_offset(offset: TimeDelta) -> Self {
        Self { offset }
    }

    /// How far this clock runs ahead of the machine's.
    pub fn offset(&self) -> TimeDelta {
        self.offset
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the time")]
    pub fn now(&self) -> Timestamp {
        Utc::now() + self.offset
    }

    /// A point that only moves forward, for measuring spans and pacing.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the time")]
    pub fn monotonic(&self) -> std::time::Instant {
        std::time::Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that sleeps")]
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Sleeps until `at`, in steps of at most a minute, so that a clock that is set is noticed.
    pub async fn sleep_until(&self, at: Timestamp) {
        loop {
            let left = (at - self.now()).to_std().unwrap_or_default();
            if left.is_zero() {
                return;
            }
            self.sleep(left.min(Duration::from_secs(60))).await;
        }
    }

    /// A duration between zero and `most`, for spreading retries.
    #[expect(clippy::disallowed_methods, reason = "the one place that draws random numbers")]
    pub fn jitter(&self, most: Duration) -> Duration {
        most.mul_f64(rand::rng().random::<f64>())
    }

    /// How much later than a midnight, or than a refusal right after one, calls are tried: up to four minutes.
    pub fn quota_spread(&self) -> chrono::TimeDelta {
        chrono::TimeDelta::from_std(self.jitter(Duration::from_secs(240))).unwrap_or_default()
    }

    /// `length` characters of `[a-z0-9]`, for ids.
    #[expect(clippy::disallowed_methods, reason = "the one place that draws random numbers")]
    pub fn random_id(&self, length: usize) -> String {
        const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut rng = rand::rng();
        (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
    }
}

/// Microseconds since 1970, as times are stored.
pub fn to_micros(at: Timestamp) -> i64 {
    at.timestamp_micros()
}

/// The reverse of [`to_micros`].
pub fn from_micros(micros: i64) -> Timestamp {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}
