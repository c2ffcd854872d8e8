//! Which scheduled times are due: a pure function over what is known of a schedule and the time.
//!
//! A schedule is known since it was first seen, and was heard last at the latest time that anybody took; what lies
//! between that and now is due. Of several, the newest is run and the others are skipped. What lies before the scheduler
//! was awake was missed, and `catch_up` says what becomes of it. Whether a run may begin is not decided here.

use chrono::TimeDelta;
use chrono_tz::Tz;

use crate::calendar::{fires_between, next_fire};
use crate::clock::Timestamp;
use crate::config::settings::{CatchUp, Schedule};

/// Missed times that are written down one by one; older ones are only passed over.
const WRITTEN: usize = 50;
/// Times looked through in one go.
const CHUNK: usize = 1_000;
/// Beyond so many missed times (a rhythm of seconds that was down for hours) only the last hours are looked through.
const MOST: usize = 50_000;

/// What is known of a schedule.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub schedule: &'a Schedule,
    pub zone: Tz,
    pub catch_up: CatchUp,
    /// Nothing before this is ever run.
    pub first_seen: Timestamp,
    /// The latest time that was taken.
    pub last_fire: Option<Timestamp>,
    /// Since when the scheduler has been looking without a break.
    pub awake_since: Timestamp,
}

/// What is to be done about the times that came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The one to run.
    pub fire: Option<Timestamp>,
    /// Those to write down as skipped, in order.
    pub skipped: Vec<(Timestamp, Missed)>,
}

/// Why a time is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// A later one is due as well.
    Superseded,
    /// It came while nobody looked, and `catch_up` is `skip`.
    WhileDown,
    /// A one-off time that was over when the schedule was first seen.
    BeforeSeen,
}

impl Missed {
    /// In a sentence.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Superseded => "a later scheduled time was due as well",
            Self::WhileDown => "it came while `serve` was not running, and catch_up is \"skip\"",
            Self::BeforeSeen => "its time was over when the schedule was first seen",
        }
    }

    /// Whether a person wants to hear of it.
    pub fn is_told(self) -> bool {
        self != Self::Superseded
    }
}

/// What is due at `now`.
pub fn due(known: &Known<'_>, now: Timestamp) -> Due {
    let mut due = Due::default();
    if let Some(at) = over_when_seen(known) {
        due.skipped.push((at, Missed::BeforeSeen));
    }
    let from = known.last_fire.map_or(known.first_seen, |last| last.max(known.first_seen));
    let mut times = newest(known, from, now);
    let Some(last) = times.pop() else { return due };
    let is_missed = last < known.awake_since && known.catch_up == CatchUp::Skip;
    let others = if is_missed { Missed::WhileDown } else { Missed::Superseded };
    due.skipped.extend(times.into_iter().map(|at| (at, others)));
    if is_missed {
        due.skipped.push((last, Missed::WhileDown));
    } else {
        due.fire = Some(last);
    }
    due
}

/// A one-off time that nobody has taken and that had passed before anyone saw the schedule.
fn over_when_seen(known: &Known<'_>) -> Option<Timestamp> {
    let Schedule::Once(_) = known.schedule else { return None };
    let at = next_fire(known.schedule, known.zone, Timestamp::MIN_UTC)?;
    (at <= known.first_seen && known.last_fire.is_none_or(|last| last < at)).then_some(at)
}

/// The last times after `from` up to `to`, in order.
fn newest(known: &Known<'_>, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let mut newest: Vec<Timestamp> = Vec::new();
    let (mut from, mut seen) = (from, 0);
    loop {
        let times = fires_between(known.schedule, known.zone, (from, to), CHUNK);
        let Some(last) = times.last().copied() else { return newest };
        let is_all = times.len() < CHUNK;
        seen += times.len();
        newest.extend(times);
        newest.drain(..newest.len().saturating_sub(WRITTEN));
        if is_all {
            return newest;
        }
        from = if seen < MOST { last } else { last.max(to - TimeDelta::hours(1)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDateTime;
    use chrono_tz::Asia::Shanghai;
    use chrono_tz::Europe::Berlin;

    fn local(zone: Tz, text: &str) -> Timestamp {
        let naive = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
        naive.and_local_timezone(zone).earliest().unwrap().to_utc()
    }

    fn at(text: &str) -> Timestamp {
        local(Shanghai, &format!("2026-11-{text}"))
    }

    fn nightly() -> Schedule {
        Schedule::Cron("0 30 2 * * *".to_owned())
    }

    fn once(text: &str) -> Schedule {
        Schedule::Once(NaiveDateTime::parse_from_str(&format!("2026-11-{text}"), "%Y-%m-%d %H:%M:%S").unwrap())
    }

    /// Seen for the first time, by a scheduler that began to look then.
    fn known<'a>(schedule: &'a Schedule, first_seen: &str) -> Known<'a> {
        Known {
            schedule,
            zone: Shanghai,
            catch_up: CatchUp::Latest,
            first_seen: at(first_seen),
            last_fire: None,
            awake_since: at(first_seen),
        }
    }

    #[test]
    fn a_time_is_due_from_its_second_on_and_not_before() {
        let schedule = nightly();
        let known = known(&schedule, "23 12:00:00");
        assert_eq!(due(&known, at("24 02:29:59")), Due::default());
        assert_eq!(due(&known, at("24 02:30:00")).fire, Some(at("24 02:30:00")));
        assert_eq!(due(&known, at("24 02:30:07")).fire, Some(at("24 02:30:00")));
    }

    #[test]
    fn a_time_that_was_taken_is_not_due_again() {
        let schedule = nightly();
        let known = Known { last_fire: Some(at("24 02:30:00")), ..known(&schedule, "23 12:00:00") };
        assert_eq!(due(&known, at("24 02:30:01")), Due::default());
        assert_eq!(due(&known, at("25 02:30:00")).fire, Some(at("25 02:30:00")));
    }

    #[test]
    fn a_schedule_seen_now_never_reaches_back() {
        let schedule = nightly();
        assert_eq!(due(&known(&schedule, "24 02:30:01"), at("24 02:30:01")), Due::default());
        let changed = Known { last_fire: Some(at("20 02:30:00")), ..known(&schedule, "24 12:00:00") };
        assert_eq!(due(&changed, at("24 12:00:00")), Due::default(), "what came before the change was another's");
    }

    #[test]
    fn after_a_stop_the_newest_missed_time_runs_once_and_the_others_are_skipped() {
        let schedule = nightly();
        let known = Known {
            last_fire: Some(at("20 02:30:00")),
            awake_since: at("23 09:00:00"),
            ..known(&schedule, "19 12:00:00")
        };
        let found = due(&known, at("23 09:00:00"));
        assert_eq!(found.fire, Some(at("23 02:30:00")));
        let superseded = |text| (at(text), Missed::Superseded);
        assert_eq!(found.skipped, [superseded("21 02:30:00"), superseded("22 02:30:00")]);
    }

    #[test]
    fn catch_up_skip_runs_none_of_what_was_missed_but_what_comes_later() {
        let schedule = nightly();
        let known = Known {
            catch_up: CatchUp::Skip,
            last_fire: Some(at("21 02:30:00")),
            awake_since: at("23 09:00:00"),
            ..known(&schedule, "19 12:00:00")
        };
        let found = due(&known, at("23 09:00:00"));
        assert_eq!(found.fire, None);
        assert_eq!(found.skipped, [(at("22 02:30:00"), Missed::WhileDown), (at("23 02:30:00"), Missed::WhileDown)]);
        let later = Known { last_fire: Some(at("23 02:30:00")), ..known };
        assert_eq!(due(&later, at("24 02:30:00")).fire, Some(at("24 02:30:00")));
    }

    #[test]
    fn a_late_look_of_a_scheduler_that_was_awake_is_not_a_miss() {
        let schedule = nightly();
        let known = Known { catch_up: CatchUp::Skip, ..known(&schedule, "23 12:00:00") };
        assert_eq!(due(&known, at("24 02:30:40")).fire, Some(at("24 02:30:00")));
    }

    #[test]
    fn a_one_off_time_fires_once_and_never_again() {
        let schedule = once("24 10:00:00");
        let fresh = known(&schedule, "23 12:00:00");
        assert_eq!(due(&fresh, at("24 09:59:59")), Due::default());
        assert_eq!(due(&fresh, at("24 10:00:00")).fire, Some(at("24 10:00:00")));
        let taken = Known { last_fire: Some(at("24 10:00:00")), ..fresh };
        assert_eq!(due(&taken, at("28 00:00:00")), Due::default());
    }

    #[test]
    fn a_one_off_time_missed_while_down_is_caught_up() {
        let schedule = once("24 10:00:00");
        let known = Known { awake_since: at("24 18:00:00"), ..known(&schedule, "23 12:00:00") };
        assert_eq!(due(&known, at("24 18:00:00")).fire, Some(at("24 10:00:00")));
        let skipping = Known { catch_up: CatchUp::Skip, ..known };
        assert_eq!(due(&skipping, at("24 18:00:00")).skipped, [(at("24 10:00:00"), Missed::WhileDown)]);
    }

    #[test]
    fn a_one_off_time_over_when_first_seen_is_written_down_once_and_not_run() {
        let schedule = once("20 10:00:00");
        let fresh = known(&schedule, "23 12:00:00");
        let expected = Due { fire: None, skipped: vec![(at("20 10:00:00"), Missed::BeforeSeen)] };
        assert_eq!(due(&fresh, at("23 12:00:00")), expected);
        let written = Known { last_fire: Some(at("20 10:00:00")), ..fresh };
        assert_eq!(due(&written, at("23 12:00:01")), Due::default());
    }

    #[test]
    fn a_clock_that_is_set_back_fires_nothing_twice() {
        let schedule = nightly();
        let known = Known { last_fire: Some(at("24 02:30:00")), ..known(&schedule, "23 12:00:00") };
        assert_eq!(due(&known, at("24 01:00:00")), Due::default());
        assert_eq!(due(&known, at("24 02:30:00")), Due::default());
    }

    #[test]
    fn a_repeated_hour_fires_a_daily_time_once_and_a_skipped_one_still_fires() {
        let schedule = nightly();
        let mut known = Known { zone: Berlin, ..known(&schedule, "19 12:00:00") };
        let mut fired = Vec::new();
        for (from, hours) in [("2026-10-24 12:00:00", 36), ("2027-03-27 12:00:00", 36)] {
            known.last_fire = Some(local(Berlin, from));
            known.first_seen = local(Berlin, from);
            for minute in 0..hours * 60 {
                let now = local(Berlin, from) + TimeDelta::minutes(minute);
                if let Some(fire) = due(&known, now).fire {
                    fired.push(fire.with_timezone(&Berlin).format("%m-%d %H:%M").to_string());
                    known.last_fire = Some(fire);
                }
            }
        }
        assert_eq!(fired, ["10-25 02:30", "03-28 03:00"]);
    }

    #[test]
    fn a_rhythm_of_seconds_that_was_down_for_a_week_is_caught_up_once() {
        let schedule = Schedule::Cron("* * * * * *".to_owned());
        let known = Known { awake_since: at("23 12:00:00"), ..known(&schedule, "16 12:00:00") };
        let found = due(&known, at("23 12:00:00"));
        assert_eq!(found.fire, Some(at("23 12:00:00")));
        assert_eq!(found.skipped.len(), WRITTEN - 1);
    }
}
