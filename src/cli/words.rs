//! Times, spans and small drawings as people read them. JSON never comes through here.

use chrono::TimeDelta;
use chrono_tz::Tz;

use crate::clock::Timestamp;

/// A time in the workspace's zone, to the minute: `2026-11-24 02:30`.
pub fn local(at: Timestamp, zone: Tz) -> String {
    at.with_timezone(&zone).format("%Y-%m-%d %H:%M").to_string()
}

/// The same to the second.
pub fn local_to_the_second(at: Timestamp, zone: Tz) -> String {
    at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// A span in seconds, in the two units that matter: `0.4 s`, `3 min 20 s`, `2 h 05 min`, `3 days 4 h`.
pub fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    #[expect(clippy::cast_possible_truncation, reason = "a span shown to people is far below 2^53 seconds")]
    let whole = TimeDelta::seconds(seconds.round().min(1e15) as i64);
    match (whole.num_days(), whole.num_hours(), whole.num_minutes()) {
        (0, 0, 0) => format!("{} s", whole.num_seconds()),
        (0, 0, minutes) => format!("{minutes} min {:02} s", whole.num_seconds() % 60),
        (0, hours, minutes) => format!("{hours} h {:02} min", minutes % 60),
        (1, hours, _) => format!("1 day {} h", hours % 24),
        (days, hours, _) => format!("{days} days {} h", hours % 24),
    }
}

/// Between two times, as [`span`].
pub fn between(from: Timestamp, to: Timestamp) -> String {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a span shown to people")]
    let seconds = (to - from).num_milliseconds() as f64 / 1000.0;
    span(seconds)
}

/// A rate in sends a second, without needless digits: `50/s`, `0.5/s`.
pub fn rate(per_second: f64) -> String {
    if per_second >= 10.0 || per_second.fract() == 0.0 {
        format!("{per_second:.0}/s")
    } else {
        format!("{per_second:.2}/s")
    }
}

/// One small bar for each value, the highest full.
pub fn bars(values: impl IntoIterator<Item = u64>) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<u64> = values.into_iter().collect();
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let height = |value: u64| usize::try_from(value.saturating_mul(7).div_ceil(most)).unwrap_or(7).min(7);
    values.into_iter().map(|value| if value == 0 { ' ' } else { HEIGHTS[height(value)] }).collect()
}

/// `one` for 1, else `many`.
pub fn plural<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_at_most_two_units() {
        let shown = [0.04, 9.96, 12.0, 200.0, 7_500.0, 90_000.0, 273_600.0].map(span);
        assert_eq!(shown, ["0.0 s", "10.0 s", "12 s", "3 min 20 s", "2 h 05 min", "1 day 1 h", "3 days 4 h"]);
    }

    #[test]
    fn bars_stand_for_their_share_of_the_highest() {
        assert_eq!(bars([0, 1, 50, 100]), " ▂▅█");
        assert_eq!(bars([]), "");
    }

    #[test]
    fn times_are_shown_in_the_workspaces_zone() {
        let at = "2026-11-23T18:30:05Z".parse().unwrap();
        assert_eq!(local(at, chrono_tz::Asia::Shanghai), "2026-11-24 02:30");
    }
}
