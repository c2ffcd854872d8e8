//! When a schedule fires, and when a window is open: pure functions over time.
//!
//! Schedules and windows are written in local time, and local time has gaps and repetitions. One rule for all of them:
//! - A local time that does not exist (clocks go forward) stands for the first instant after the gap.
//! - A local time that exists twice (clocks go back) stands for the first of the two.
//! - Times that fall on one instant fire once.
//! - A pattern whose hours are all 24 means "every so often", not times of day: it follows the clock as it runs, through
//!   both halves of a repeated hour, and does not fire for minutes that never were.
//!
//! `croner` reads patterns and finds the next matching local time; where that lies in real time is decided here, since
//! its own answer may lie before the point it was asked about. What to do about a fire that was missed is not here.

use chrono::{Days, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Timelike};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::clock::Timestamp;
use crate::config::settings::{Schedule, Window};

/// The first fire after `after`; `None` when there is none any more, or when the pattern cannot be read.
pub fn next_fire(schedule: &Schedule, zone: Tz, after: Timestamp) -> Option<Timestamp> {
    Calendar::of(schedule, zone)?.next(after)
}

/// The fires after `from` up to and including `to`, in order, at most `limit` of them.
pub fn fires_between(
    schedule: &Schedule,
    zone: Tz,
    (from, to): (Timestamp, Timestamp),
    limit: usize,
) -> Vec<Timestamp> {
    let Some(calendar) = Calendar::of(schedule, zone) else { return Vec::new() };
    let following = |at: &Timestamp| calendar.next(*at);
    std::iter::successors(calendar.next(from), following).take_while(|at| *at <= to).take(limit).collect()
}

/// A schedule, read.
struct Calendar {
    pattern: Pattern,
    zone: Tz,
}

enum Pattern {
    Once(NaiveDateTime),
    /// Times of day.
    Times(Box<Cron>),
    /// Every so often: all hours match.
    Rhythm(Box<Cron>),
}

impl Calendar {
    fn of(schedule: &Schedule, zone: Tz) -> Option<Self> {
        let pattern = match schedule {
            Schedule::Once(local) => Pattern::Once(*local),
            Schedule::Cron(text) => {
                let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Disallowed).build();
                let cron = Box::new(parser.parse(text).ok()?);
                let all_hours = (0..24).all(|hour| cron.pattern.hour_match(hour).unwrap_or(false));
                if all_hours { Pattern::Rhythm(cron) } else { Pattern::Times(cron) }
            }
        };
        Some(Self { pattern, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        // Patterns know whole seconds: nothing lies between a second's start and any point within it.
        let after = after.with_nanosecond(0)?;
        match &self.pattern {
            Pattern::Once(local) => Some(instant(self.zone, *local)).filter(|at| *at > after),
            Pattern::Times(cron) => self.next_time(cron, after),
            Pattern::Rhythm(cron) => self.next_beat(cron, after),
        }
    }

    /// Local times in order; those of a repeated hour may lie behind us and are passed over.
    fn next_time(&self, cron: &Cron, after: Timestamp) -> Option<Timestamp> {
        let mut local = local_time(self.zone, after);
        loop {
            local = next_local(cron, local, false)?;
            let at = instant(self.zone, local);
            if at > after {
                return Some(at);
            }
        }
    }

    /// Within a stretch of one offset the next local time is the next instant; a change of offset begins a new stretch.
    fn next_beat(&self, cron: &Cron, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let local = next_local(cron, local_time(self.zone, from), inclusive)?;
            let at = local.and_utc() - offset(self.zone, from);
            match offset_change(self.zone, from, at) {
                None => return Some(at),
                Some(change) => (from, inclusive) = (change, true),
            }
        }
    }
}

/// The next local time of a pattern, as if no clock were ever changed.
fn next_local(cron: &Cron, from: NaiveDateTime, inclusive: bool) -> Option<NaiveDateTime> {
    cron.find_next_occurrence(&from.and_utc(), inclusive).ok().map(|found| found.naive_utc())
}

/// What the clocks of `zone` show.
fn local_time(zone: Tz, at: Timestamp) -> NaiveDateTime {
    at.with_timezone(&zone).naive_local()
}

fn offset(zone: Tz, at: Timestamp) -> TimeDelta {
    TimeDelta::seconds(zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc().into())
}

/// The instant a local time stands for, by the rule of this file.
fn instant(zone: Tz, local: NaiveDateTime) -> Timestamp {
    if let Some(at) = zone.from_local_datetime(&local).earliest() {
        return at.to_utc();
    }
    // In a gap. No zone has ever skipped more than a day; its minute is looked for, since gaps end on whole minutes.
    let minute = local.with_second(0).and_then(|local| local.with_nanosecond(0)).unwrap_or(local);
    (1..=24 * 60)
        .find_map(|minutes| zone.from_local_datetime(&(minute + TimeDelta::minutes(minutes))).earliest())
        .map_or_else(|| local.and_utc(), |at| at.to_utc())
}

/// The first instant after `from`, up to `to`, from which the offset is another than at `from`.
fn offset_change(zone: Tz, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
    let before = offset(zone, from);
    // Day by day, lest two changes that cancel each other are passed over.
    let mut same = from;
    let mut changed = loop {
        if same >= to {
            return None;
        }
        let next = (same + TimeDelta::days(1)).min(to);
        if offset(zone, next) != before {
            break next;
        }
        same = next;
    };
    while changed - same > TimeDelta::seconds(1) {
        let middle = same + TimeDelta::seconds((changed - same).num_seconds() / 2);
        if offset(zone, middle) == before { same = middle } else { changed = middle }
    }
    Some(changed)
}

/// The first instant at or after `from` at which the clocks of `zone` show a time of day.
pub fn next_time_of_day(time: NaiveTime, zone: Tz, from: Timestamp) -> Timestamp {
    let today = local_time(zone, from).date();
    let days = [Some(today), today.succ_opt()].into_iter().flatten();
    days.map(|day| instant(zone, day.and_time(time))).find(|at| *at >= from).unwrap_or(from)
}

/// Whether `now` lies in the window.
pub fn in_window(window: Window, zone: Tz, now: Timestamp) -> bool {
    openings(window, zone, now).any(|(opens, closes)| opens <= now && now < closes)
}

/// The first instant at or after `now` that lies in the window: `now` itself while it is open.
pub fn window_opens(window: Window, zone: Tz, now: Timestamp) -> Timestamp {
    let next = openings(window, zone, now).find(|(_, closes)| now < *closes);
    next.map_or(now, |(opens, _)| opens.max(now))
}

/// When the window that is open at `now`, or else the next one, closes. A window of the whole day closes where the next
/// one opens.
pub fn window_closes(window: Window, zone: Tz, now: Timestamp) -> Timestamp {
    let next = openings(window, zone, now).find(|(_, closes)| now < *closes);
    next.map_or(now, |(_, closes)| closes)
}

/// The windows around `now`, in order, as `[opens, closes)`; one that a gap swallows whole is left out.
fn openings(window: Window, zone: Tz, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
    let today = local_time(zone, now).date();
    let days = [today.pred_opt(), Some(today), today.succ_opt(), today.checked_add_days(Days::new(2))];
    days.into_iter()
        .flatten()
        .filter_map(move |day| opening(window, zone, day))
        .filter(|(opens, closes)| opens < closes)
}

fn opening(window: Window, zone: Tz, day: NaiveDate) -> Option<(Timestamp, Timestamp)> {
    let last = if window.from < window.to { day } else { day.succ_opt()? };
    Some((instant(zone, day.and_time(window.from)), instant(zone, last.and_time(window.to))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono_tz::America::New_York;
    use chrono_tz::Asia::Shanghai;
    use chrono_tz::Australia::Lord_Howe;
    use chrono_tz::Europe::Berlin;
    use proptest::prelude::*;

    fn utc(text: &str) -> Timestamp {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").expect("a time").and_utc()
    }

    fn cron(text: &str) -> Schedule {
        Schedule::Cron(text.to_owned())
    }

    fn fires(pattern: &str, zone: Tz, from: &str, to: &str) -> Vec<String> {
        let found = fires_between(&cron(pattern), zone, (utc(from), utc(to)), 1_000);
        found.into_iter().map(|at| at.with_timezone(&zone).format("%m-%d %H:%M%z").to_string()).collect()
    }

    fn window(from: &str, to: &str) -> Window {
        let time = |text| NaiveTime::parse_from_str(text, "%H:%M").expect("a time");
        Window { from: time(from), to: time(to) }
    }

    #[test]
    fn a_time_of_day_comes_today_or_tomorrow() {
        let three = NaiveTime::from_hms_opt(3, 0, 0).unwrap();
        let next = |from| next_time_of_day(three, Shanghai, utc(from));
        assert_eq!(next("2026-11-23 18:30:00"), utc("2026-11-23 19:00:00"));
        assert_eq!(next("2026-11-23 19:00:00"), utc("2026-11-23 19:00:00"));
        assert_eq!(next("2026-11-23 19:00:01"), utc("2026-11-24 19:00:00"));
        let gap = NaiveTime::from_hms_opt(2, 30, 0).unwrap();
        assert_eq!(next_time_of_day(gap, Berlin, utc("2026-03-29 00:00:00")), utc("2026-03-29 01:00:00"));
    }

    #[test]
    fn a_daily_time_fires_daily_in_its_zone() {
        assert_eq!(
            next_fire(&cron("0 30 2 * * *"), Shanghai, utc("2026-11-23 00:00:00")),
            Some(utc("2026-11-23 18:30:00"))
        );
        assert_eq!(
            next_fire(&cron("0 30 2 * * *"), Shanghai, utc("2026-11-23 18:30:00")),
            Some(utc("2026-11-24 18:30:00")),
            "the fire itself is behind us"
        );
        let just_before = utc("2026-11-23 18:30:00") - TimeDelta::nanoseconds(1);
        assert_eq!(next_fire(&cron("0 30 2 * * *"), Shanghai, just_before), Some(utc("2026-11-23 18:30:00")));
    }

    #[test]
    fn a_skipped_time_fires_once_right_after_the_gap() {
        assert_eq!(
            fires("0 30 2 * * *", Berlin, "2026-03-28 00:00:00", "2026-03-31 00:00:00"),
            ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"]
        );
        assert_eq!(
            fires("0 15 2 * * *", Lord_Howe, "2026-10-03 12:00:00", "2026-10-05 00:00:00"),
            ["10-04 02:30+1100", "10-05 02:15+1100"]
        );
        assert_eq!(
            fires("0 */10 2 * * *", New_York, "2026-03-08 05:00:00", "2026-03-09 05:00:00"),
            ["03-08 03:00-0400"],
            "a whole hour of times falls on one instant"
        );
    }

    #[test]
    fn a_repeated_time_fires_the_first_time_only() {
        assert_eq!(
            fires("0 30 2 * * *", Berlin, "2026-10-24 12:00:00", "2026-10-26 12:00:00"),
            ["10-25 02:30+0200", "10-26 02:30+0100"]
        );
        assert_eq!(
            fires("0 0,30 1 * * *", New_York, "2026-11-01 00:00:00", "2026-11-02 00:00:00"),
            ["11-01 01:00-0400", "11-01 01:30-0400"]
        );
        assert_eq!(
            fires("0 45 1 * * *", Lord_Howe, "2026-04-04 00:00:00", "2026-04-05 16:00:00"),
            ["04-05 01:45+1100", "04-06 01:45+1030"]
        );
    }

    #[test]
    fn a_rhythm_goes_on_in_real_time_through_every_change() {
        for (zone, from) in [
            (Berlin, "2026-03-28 20:00:00"),
            (Berlin, "2026-10-24 20:00:00"),
            (New_York, "2026-03-08 01:00:00"),
            (New_York, "2026-11-01 01:00:00"),
            (Lord_Howe, "2026-10-03 10:00:00"),
            (Lord_Howe, "2026-04-04 10:00:00"),
        ] {
            let from = utc(from);
            let found = fires_between(&cron("0 */10 * * * *"), zone, (from, from + TimeDelta::hours(12)), 1_000);
            let expected: Vec<_> = (1..=72).map(|step| from + TimeDelta::minutes(10 * step)).collect();
            assert_eq!(found, expected, "{zone} {from}");
        }
        assert_eq!(
            fires("0 30 * * * *", Berlin, "2026-10-25 00:00:00", "2026-10-25 02:00:00"),
            ["10-25 02:30+0200", "10-25 02:30+0100"]
        );
        assert_eq!(
            fires("0 30 * * * *", Berlin, "2026-03-29 00:00:00", "2026-03-29 02:00:00"),
            ["03-29 01:30+0100", "03-29 03:30+0200"]
        );
    }

    #[test]
    fn a_single_date_fires_once_and_never_again() {
        let local = |text| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").expect("a time");
        let once = Schedule::Once(local("2026-11-24 10:00"));
        assert_eq!(next_fire(&once, Shanghai, utc("2026-11-24 01:59:59")), Some(utc("2026-11-24 02:00:00")));
        assert_eq!(next_fire(&once, Shanghai, utc("2026-11-24 02:00:00")), None);
        let skipped = Schedule::Once(local("2026-03-29 02:30"));
        assert_eq!(next_fire(&skipped, Berlin, utc("2026-03-01 00:00:00")), Some(utc("2026-03-29 01:00:00")));
        assert_eq!(
            fires_between(&once, Shanghai, (utc("2026-01-01 00:00:00"), utc("2027-01-01 00:00:00")), 9).len(),
            1
        );
    }

    #[test]
    fn a_day_that_was_skipped_whole_is_gone_through() {
        let apia = chrono_tz::Pacific::Apia;
        assert_eq!(
            fires("0 0 9 * * *", apia, "2011-12-29 00:00:00", "2011-12-31 12:00:00"),
            ["12-29 09:00-1000", "12-31 00:00+1400", "12-31 09:00+1400"]
        );
    }

    #[test]
    fn fires_are_bounded_by_limit_and_end() {
        let range = (utc("2026-01-01 00:00:00"), utc("2026-01-01 00:01:00"));
        assert_eq!(fires_between(&cron("* * * * * *"), Shanghai, range, 1_000).len(), 60);
        assert_eq!(fires_between(&cron("* * * * * *"), Shanghai, range, 7).len(), 7);
        assert!(fires_between(&cron("not a pattern"), Shanghai, range, 7).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_scheduled_local_day_fires_exactly_once_in_a_year(
            year in 2020..2036_i32,
            zone in prop::sample::select(vec![Berlin, New_York, Lord_Howe, Shanghai]),
            (hour, minute) in (0..24_u32, 0..60_u32),
        ) {
            let start = instant(zone, NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap());
            let end = instant(zone, NaiveDate::from_ymd_opt(year + 1, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap());
            let range = (start - TimeDelta::seconds(1), end - TimeDelta::seconds(1));
            let found = fires_between(&cron(&format!("0 {minute} {hour} * * *")), zone, range, 1_000);
            let days: Vec<_> = found.iter().map(|at| local_time(zone, *at).date()).collect();
            let all_days: Vec<_> = NaiveDate::from_ymd_opt(year, 1, 1).unwrap().iter_days()
                .take_while(|day| day.format("%Y").to_string() == year.to_string()).collect();
            prop_assert_eq!(days, all_days);
        }

        #[test]
        fn asking_from_anywhere_gives_the_same_fires(
            minutes in 0..525_600_i64,
            seconds in 0..60_i64,
            zone in prop::sample::select(vec![Berlin, New_York, Lord_Howe]),
            pattern in prop::sample::select(vec!["0 30 2 * * *", "0 */7 1,2 * * *", "0 30 * * * *", "15 */20 * * * *"]),
        ) {
            let at = utc("2026-01-01 00:00:00") + TimeDelta::minutes(minutes) + TimeDelta::seconds(seconds);
            let next = next_fire(&cron(pattern), zone, at).expect("it fires for ever");
            prop_assert!(next > at);
            let walked = fires_between(&cron(pattern), zone, (at - TimeDelta::hours(30), next), 10_000);
            prop_assert_eq!(walked.last(), Some(&next));
            prop_assert!(walked.iter().rev().nth(1).is_none_or(|before| *before <= at));
        }

        #[test]
        fn windows_open_and_close_where_they_say(
            minutes in 0..525_600_i64,
            (from, to) in (0..1_440_u32, 0..1_440_u32),
            zone in prop::sample::select(vec![Berlin, New_York, Lord_Howe, Shanghai]),
        ) {
            let time = |minutes: u32| NaiveTime::from_hms_opt(minutes / 60, minutes % 60, 0).unwrap();
            let window = Window { from: time(from), to: time(to) };
            let now = utc("2026-01-01 00:00:00") + TimeDelta::minutes(minutes);
            let (opens, closes) = (window_opens(window, zone, now), window_closes(window, zone, now));
            prop_assert!(now <= opens && opens < closes);
            prop_assert_eq!(opens == now, in_window(window, zone, now));
            prop_assert!(in_window(window, zone, opens));
            prop_assert!(in_window(window, zone, closes - TimeDelta::seconds(1)));
            prop_assert!(from == to || !in_window(window, zone, closes));
        }
    }

    #[test]
    fn a_window_of_the_day_and_one_over_midnight() {
        let day = window("09:00", "21:00");
        let morning: Timestamp = utc("2026-11-23 00:59:59");
        assert!(!in_window(day, Shanghai, morning));
        assert_eq!(window_opens(day, Shanghai, morning), utc("2026-11-23 01:00:00"));
        assert!(in_window(day, Shanghai, utc("2026-11-23 01:00:00")));
        assert!(!in_window(day, Shanghai, utc("2026-11-23 13:00:00")), "the end is outside");
        assert_eq!(window_opens(day, Shanghai, utc("2026-11-23 13:00:00")), utc("2026-11-24 01:00:00"));

        let night = window("22:00", "06:00");
        assert!(in_window(night, Tz::UTC, utc("2026-11-23 23:00:00")));
        assert!(in_window(night, Tz::UTC, utc("2026-11-23 05:59:59")));
        assert!(!in_window(night, Tz::UTC, utc("2026-11-23 06:00:00")));
        assert_eq!(window_closes(night, Tz::UTC, utc("2026-11-23 23:00:00")), utc("2026-11-24 06:00:00"));
    }

    #[test]
    fn a_window_that_a_gap_swallows_does_not_open_that_day() {
        let gone = window("02:10", "02:50");
        assert_eq!(window_opens(gone, Berlin, utc("2026-03-29 00:00:00")), utc("2026-03-30 00:10:00"));
    }
}
