//! The day WeChat counts calls by: midnight to midnight in Shanghai, whatever the workspace's time zone.

use chrono::{DateTime, Days, FixedOffset, NaiveDate, NaiveTime, TimeDelta, Utc};

/// A day of WeChat's quota counters (00:00 UTC+8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuotaDay(NaiveDate);

/// WeChat's counters may be emptied so much later than midnight: what is refused until then says nothing of the new day.
pub const LATE_RESET: TimeDelta = TimeDelta::minutes(30);
/// How soon it is asked again then, and how long after midnight at the earliest.
const SOON: TimeDelta = TimeDelta::minutes(1);

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

    /// When calls that are refused at `now`, because the day's are used up, are asked for again: after the next midnight,
    /// or soon where `may_be_late` and the reset of the last midnight may still be on its way. `spread` keeps everybody's
    /// calls apart.
    pub fn opens_again(now: DateTime<Utc>, may_be_late: bool, spread: TimeDelta) -> DateTime<Utc> {
        let today = Self::of(now);
        let is_late = may_be_late && now - today.starts_at() < LATE_RESET;
        let from = if is_late { now } else { today.next().starts_at() };
        from + SOON + spread
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

    #[test]
    fn a_refusal_shortly_after_midnight_is_the_day_befores_and_one_later_is_the_days() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let spread = TimeDelta::seconds(90);
        let opens = |now: &str, may_be_late| QuotaDay::opens_again(at(now), may_be_late, spread);
        assert_eq!(opens("2026-11-23T15:59:00Z", true), at("2026-11-23T16:02:30Z"));
        assert_eq!(opens("2026-11-23T16:02:30Z", true), at("2026-11-23T16:05:00Z"));
        assert_eq!(opens("2026-11-23T16:02:30Z", false), at("2026-11-24T16:02:30Z"));
        assert_eq!(opens("2026-11-23T16:30:00Z", true), at("2026-11-24T16:02:30Z"));
    }
}
