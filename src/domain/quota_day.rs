//! The day WeChat counts calls by: midnight to midnight in Shanghai, whatever the workspace's time zone.

use chrono::{DateTime, Days, FixedOffset, NaiveDate, NaiveTime, Utc};

/// A day of WeChat's quota counters (00:00 UTC+8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuotaDay(NaiveDate);

impl QuotaDay {
    /// The quota day that `at` falls into.
    pub fn of(at: DateTime<Utc>) -> Self {
        Self(at.with_timezone(&shanghai()).date_naive())
    }

    /// A day read back from storage.
    pub fn from_date(date: NaiveDate) -> Self {
        Self(date)
    }

    pub fn date(self) -> NaiveDate {
        self.0
    }

    pub fn next(self) -> Self {
        Self(self.0.checked_add_days(Days::new(1)).expect("a quota day is far from the end of the calendar"))
    }

    /// The first instant of this day.
    pub fn starts_at(self) -> DateTime<Utc> {
        self.0
            .and_time(NaiveTime::MIN)
            .and_local_timezone(shanghai())
            .single()
            .expect("a fixed offset has no gaps")
            .with_timezone(&Utc)
    }
}

impl std::fmt::Display for QuotaDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn shanghai() -> FixedOffset {
    FixedOffset::east_opt(8 * 3600).expect("eight hours is a valid offset")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_day_begins_at_sixteen_hours_utc() {
        let before = "2026-11-23T15:59:59Z".parse::<DateTime<Utc>>().unwrap();
        let after = "2026-11-23T16:00:00Z".parse::<DateTime<Utc>>().unwrap();
        assert_eq!(QuotaDay::of(before).to_string(), "2026-11-23");
        assert_eq!(QuotaDay::of(after).to_string(), "2026-11-24");
        assert_eq!(QuotaDay::of(before).next().starts_at(), after);
    }
}
