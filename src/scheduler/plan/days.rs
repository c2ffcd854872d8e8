//! How a push spreads over days: pure arithmetic over rate, window, the day's quota, the push's own limit and its expiry.

use chrono::{NaiveDate, TimeDelta};
use chrono_tz::Tz;

use crate::calendar;
use crate::clock::Timestamp;
use crate::config::settings::Window;
use crate::domain::QuotaDay;

/// No push is looked at further ahead.
const MOST_DAYS: usize = 400;

/// What bounds a push.
pub struct Bounds<'a> {
    pub from: Timestamp,
    pub messages: u64,
    /// Sends a second.
    pub rate: f64,
    pub window: Option<Window>,
    pub zone: Tz,
    pub expires_at: Option<Timestamp>,
    /// Sends that a quota day still allows; `None`: any number.
    pub left: &'a dyn Fn(QuotaDay) -> Option<u64>,
}

/// How a push would go.
#[derive(Debug, Default, PartialEq)]
pub struct Course {
    /// Quota day → messages, days without any left out.
    pub days: Vec<(NaiveDate, u64)>,
    pub would_expire: u64,
    /// Messages that no day of the next year has room for.
    pub no_room: u64,
    pub ends_at: Option<Timestamp>,
}

/// Plays a push through, day by day.
pub fn course(bounds: &Bounds<'_>) -> Course {
    let mut course = Course::default();
    let (mut at, mut pending) = (bounds.from, bounds.messages);
    let last_day = bounds.from + TimeDelta::days(i64::try_from(MOST_DAYS).unwrap_or(i64::MAX));
    while pending > 0 && at < last_day && bounds.expires_at.is_none_or(|end| at < end) {
        at = bounds.window.map_or(at, |window| calendar::window_opens(window, bounds.zone, at));
        let day = QuotaDay::of(at);
        let day_ends = day.next().starts_at();
        let closes = bounds.window.map(|window| calendar::window_closes(window, bounds.zone, at));
        let until = [Some(day_ends), closes, bounds.expires_at].into_iter().flatten().min().unwrap_or(day_ends);
        if until <= at {
            break;
        }
        let sent_today = course.days.last().filter(|(date, _)| *date == day.date()).map_or(0, |(_, n)| *n);
        let allowed = (bounds.left)(day).map_or(u64::MAX, |left| left.saturating_sub(sent_today));
        let sends = pending.min(allowed).min(fits(bounds.rate, until - at));
        course.add(day, sends);
        pending -= sends;
        if pending == 0 {
            course.ends_at = Some(at + needs(bounds.rate, sends));
        }
        at = if sends == allowed { day_ends } else { until };
    }
    match bounds.expires_at {
        Some(_) => course.would_expire = pending,
        None => course.no_room = pending,
    }
    course
}

/// What bounds the asking for details: a night ends with its quota day's calls or its budget, and the next one goes on.
pub struct Nights<'a> {
    pub from: Timestamp,
    pub calls: u64,
    /// Calls a second.
    pub rate: f64,
    /// Calls that a quota day still allows; `None`: any number.
    pub left: &'a dyn Fn(QuotaDay) -> Option<u64>,
    /// When the night after one that began then begins; `None`: never.
    pub next: &'a dyn Fn(Timestamp) -> Option<Timestamp>,
    /// Calls that are to be had within so long are waited for.
    pub worth_waiting: TimeDelta,
}

impl Nights<'_> {
    /// Plays the nights through; also gives what the first of them asks.
    pub fn course(&self) -> (Course, u64) {
        let mut course = Course::default();
        let (mut begins, mut pending, mut first) = (self.from, self.calls, None);
        for _ in 0..MOST_DAYS {
            let (ended, asked) = self.night(&mut course, begins, pending);
            first.get_or_insert(asked);
            pending -= asked;
            if pending == 0 {
                course.ends_at = Some(ended);
                break;
            }
            match (self.next)(begins) {
                // A night that lasts longer keeps the next from beginning.
                Some(next) => begins = next.max(ended),
                None => break,
            }
        }
        course.no_room = pending;
        (course, first.unwrap_or(0))
    }

    /// One night: when it ends, and how many calls it makes.
    fn night(&self, course: &mut Course, mut at: Timestamp, pending: u64) -> (Timestamp, u64) {
        let mut asked = 0;
        loop {
            let day = QuotaDay::of(at);
            let day_ends = day.next().starts_at();
            let of_day = course.days.last().filter(|(date, _)| *date == day.date()).map_or(0, |(_, n)| *n);
            let allowed = (self.left)(day).map_or(u64::MAX, |left| left.saturating_sub(of_day));
            let calls = (pending - asked).min(allowed).min(fits(self.rate, day_ends - at));
            course.add(day, calls);
            asked += calls;
            let ended = at + needs(self.rate, calls);
            if asked == pending || (calls == allowed && day_ends - ended > self.worth_waiting) {
                return (ended, asked);
            }
            at = day_ends;
        }
    }
}

impl Course {
    fn add(&mut self, day: QuotaDay, sends: u64) {
        match self.days.last_mut() {
            _ if sends == 0 => {}
            Some((date, n)) if *date == day.date() => *n += sends,
            _ => self.days.push((day.date(), sends)),
        }
    }
}

/// Messages that a rate sends in a span.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "spans of a day at rates far below 2^32, both positive; the conversion saturates"
)]
fn fits(rate: f64, span: TimeDelta) -> u64 {
    (span.num_milliseconds().max(0) as f64 / 1000.0 * rate).floor() as u64
}

/// The span that messages take at a rate.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "milliseconds of at most a day; the conversion saturates"
)]
fn needs(rate: f64, messages: u64) -> TimeDelta {
    TimeDelta::milliseconds((messages as f64 / rate * 1000.0).ceil().min(1e13) as i64)
}

#[cfg(test)]
mod tests {
    use chrono::NaiveTime;
    use chrono_tz::Asia::Shanghai;

    use super::*;

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn bounds<'a>(messages: u64, left: &'a dyn Fn(QuotaDay) -> Option<u64>) -> Bounds<'a> {
        let from = "2026-11-24T02:00:00Z".parse().unwrap();
        Bounds { from, messages, rate: 50.0, window: None, zone: Shanghai, expires_at: None, left }
    }

    #[test]
    fn a_quota_of_a_thousand_takes_2500_messages_three_days() {
        let course = course(&bounds(2_500, &|_| Some(1_000)));
        let days = [(date("2026-11-24"), 1_000), (date("2026-11-25"), 1_000), (date("2026-11-26"), 500)];
        assert_eq!(course.days, days);
        assert_eq!(course.ends_at, Some("2026-11-25T16:00:10Z".parse().unwrap()));
        assert_eq!((course.would_expire, course.no_room), (0, 0));
    }

    #[test]
    fn a_window_bounds_what_the_rate_can_do_in_a_day() {
        let time = |hour| NaiveTime::from_hms_opt(hour, 0, 0).unwrap();
        let window = Some(Window { from: time(9), to: time(11) });
        // Begun at ten: one hour today, two hours on each day after.
        let course = course(&Bounds { rate: 1.0, window, ..bounds(12_000, &|_| None) });
        let days = [(date("2026-11-24"), 3_600), (date("2026-11-25"), 7_200), (date("2026-11-26"), 1_200)];
        assert_eq!(course.days, days);
    }

    #[test]
    fn whoever_is_pending_at_the_end_expires() {
        let expires_at = Some("2026-11-25T04:00:00Z".parse().unwrap());
        let course = course(&Bounds { expires_at, ..bounds(2_500, &|_| Some(1_000)) });
        assert_eq!(course.days, [(date("2026-11-24"), 1_000), (date("2026-11-25"), 1_000)]);
        assert_eq!((course.would_expire, course.ends_at), (500, None));
    }

    #[test]
    fn a_night_ends_with_the_calls_of_its_day_and_the_next_one_goes_on() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let from = at("2026-11-24T02:00:00Z");
        let daily = |begun: Timestamp| Some(begun + TimeDelta::days(1));
        let used_up = |day: QuotaDay| Some(if day == QuotaDay::of(from) { 0 } else { 40 });
        let nights = |from, calls| Nights {
            from,
            calls,
            rate: 10.0,
            left: &used_up,
            next: &daily,
            worth_waiting: TimeDelta::minutes(30),
        };
        let (course, tonight) = nights(from, 60).course();
        assert_eq!((course.days, tonight), (vec![(date("2026-11-25"), 40), (date("2026-11-26"), 20)], 0));
        assert_eq!(course.ends_at, Some(at("2026-11-26T02:00:02Z")));
        // Shortly before midnight the calls of the next day are waited for.
        let late = at("2026-11-24T15:50:00Z");
        let (course, tonight) = nights(late, 60).course();
        assert_eq!((tonight, course.ends_at), (40, Some(at("2026-11-25T16:00:02Z"))));
        let never = |_: Timestamp| None;
        let (course, _) = Nights { next: &never, ..nights(from, 60) }.course();
        assert_eq!((course.ends_at, course.no_room), (None, 60));
    }

    #[test]
    fn a_quota_of_nothing_ends_the_search() {
        let course = course(&bounds(10, &|_| Some(0)));
        assert_eq!((course.days.len(), course.no_room), (0, 10));
    }
}
