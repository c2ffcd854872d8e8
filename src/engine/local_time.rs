//! `local_time(ts)` and `local_date(ts)` as SQL macros: the workspace's zone without DuckDB's ICU extension, which a
//! bundled build lacks and which analysts' clients may not load.
//!
//! The zone's offset changes between 1970 and 2100 become a balanced tree of CASEs, so that a zone with 260 changes
//! costs eight comparisons a row, and Shanghai three or four.

use chrono::{DateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

/// The statements that create both macros in the current schema.
pub fn local_time_macros(timezone: Tz) -> String {
    let steps = offset_steps(timezone);
    let offset = tree(&steps);
    format!(
        "create or replace macro local_time(ts) as (cast(ts as timestamp) + to_seconds({offset}));\n\
         create or replace macro local_date(ts) as cast(local_time(ts) as date);\n"
    )
}

/// The statement that creates `utc_time(ts)`: a wall clock's time in the workspace's zone as UTC. A time that came twice is
/// the earlier one; one that never came is as the clock went on.
pub fn utc_time_macro(timezone: Tz) -> String {
    let steps = offset_steps(timezone);
    let mut by_wall_clock = vec![steps[0]];
    by_wall_clock.extend(steps.windows(2).map(|pair| {
        let ((_, before), (at, after)) = (pair[0], pair[1]);
        (at + chrono::TimeDelta::seconds(before.into()), after)
    }));
    let offset = tree(&by_wall_clock);
    format!("create or replace macro utc_time(ts) as (cast(ts as timestamp) - to_seconds({offset}));\n")
}

/// The seconds east of UTC from each instant on; the first step holds since ever.
fn offset_steps(timezone: Tz) -> Vec<(DateTime<Utc>, i32)> {
    const DAY: i64 = 86_400;
    let (mut from, end) = (0_i64, 4_102_444_800_i64);
    let mut steps = vec![(at(from), seconds_east(timezone, from))];
    while from < end {
        let next = from + DAY;
        let (mut low, mut high) = (from, next);
        let before = seconds_east(timezone, low);
        let after = seconds_east(timezone, high);
        if before != after {
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if seconds_east(timezone, middle) == before { low = middle } else { high = middle }
            }
            steps.push((at(high), after));
        }
        from = next;
    }
    steps
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("the years 1970 to 2100 are representable")
}

fn seconds_east(timezone: Tz, seconds: i64) -> i32 {
    timezone.offset_from_utc_datetime(&at(seconds).naive_utc()).fix().local_minus_utc()
}

fn tree(steps: &[(DateTime<Utc>, i32)]) -> String {
    match steps {
        [] => "0".to_owned(),
        [(_, seconds)] => seconds.to_string(),
        _ => {
            let middle = steps.len() / 2;
            let (before, after) = steps.split_at(middle);
            let from = after[0].0.format("%Y-%m-%d %H:%M:%S");
            format!(
                "case when cast(ts as timestamp) < timestamp '{from}' then {} else {} end",
                tree(before),
                tree(after)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Values;
    use crate::engine::{Engine, Params};

    /// Times as they come out, as texts.
    fn asked(timezone: Tz, expressions: &[&str]) -> Vec<String> {
        let session = Engine::new("100MB", 1, "spill", timezone).session().unwrap();
        session.run(&utc_time_macro(timezone)).unwrap();
        let items: Vec<String> = expressions.iter().map(|one| format!("select cast({one} as varchar) as t")).collect();
        let rows = session.query(&items.join(" union all "), &Params::new()).unwrap();
        match &rows.columns[0].1 {
            Values::Text(values) => values.iter().flatten().cloned().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wall_clock_and_utc_are_each_others_inverse_also_when_clocks_change() {
        let asked = asked(
            chrono_tz::Europe::Berlin,
            &[
                "utc_time(timestamp '2026-07-01 12:00:00')",
                "utc_time(timestamp '2026-10-25 01:59:59')",
                "utc_time(timestamp '2026-10-25 02:30:00')",
                "utc_time(timestamp '2026-10-25 03:00:00')",
                "utc_time(timestamp '2026-03-29 01:59:59')",
                "utc_time(timestamp '2026-03-29 03:00:00')",
                "utc_time(local_time(timestamp '2026-12-24 18:00:00'))",
            ],
        );
        assert_eq!(
            asked,
            [
                "2026-07-01 10:00:00",
                "2026-10-24 23:59:59",
                "2026-10-25 00:30:00",
                "2026-10-25 02:00:00",
                "2026-03-29 00:59:59",
                "2026-03-29 01:00:00",
                "2026-12-24 18:00:00"
            ]
        );
    }

    #[test]
    fn shanghai_is_eight_hours_ahead() {
        assert_eq!(asked(chrono_tz::Asia::Shanghai, &["utc_time(date '2026-11-24')"]), ["2026-11-23 16:00:00"]);
    }
}
