//! When a mini program last changed a row: whatever it wrote, a UTC time, or nothing.
//!
//! Read are ISO 8601 with a zone or without, `YYYY-MM-DD HH:MM:SS` and shorter, dates (also `20261124`), and Unix times in
//! seconds, milliseconds or microseconds. What has no zone is the wall clock's in the workspace's zone. What is no time
//! keeps its person, who then counts as the oldest; how many there are is told.

use chrono_tz::Tz;

use super::fold::{AT, FILE, LINE, ROW};
use crate::domain::Values;
use crate::engine::{Params, Session, utc_time_macro};
use crate::stage::StageError;

/// Values that were no times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    pub rows: u64,
    /// Of the first: the file's number, the line, the value.
    pub first: (u32, u64, String),
}

/// Makes `read_time(text)` usable in the session.
///
/// # Errors
///
/// [`StageError::Engine`].
pub fn define(session: &Session, timezone: Tz) -> Result<(), StageError> {
    session.run(&utc_time_macro(timezone))?;
    Ok(session.run(READ_TIME)?)
}

/// The UTC time of a column by the type it is stored with, `column` as SQL, and the rows to read it from. A text is read step
/// by step, each a column of its own: in one expression each step would be gone through wherever it is mentioned.
pub fn utc(column: &str, stored_type: &str, rows: &str) -> (String, String) {
    match stored_type {
        "TIMESTAMP WITH TIME ZONE" => (format!("within_calendar(cast({column} as timestamp))"), rows.to_owned()),
        "TIMESTAMP" | "TIMESTAMP_S" | "TIMESTAMP_MS" | "TIMESTAMP_NS" | "DATE" => {
            (format!("within_calendar(utc_time({column}))"), rows.to_owned())
        }
        _ => (
            format!("within_calendar(time_of_text({TEXT}, {TIMESTAMP}))"),
            format!(
                "(select *, try_cast({TEXT} as timestamp) as {TIMESTAMP}
                  from (select *, trim(cast({column} as varchar)) as {TEXT} from {rows}))"
            ),
        ),
    }
}

/// No export has columns of these names.
const TEXT: &str = "\"updated_at as text\"";
const TIMESTAMP: &str = "\"updated_at as timestamp\"";

/// The values of `staged_rows.updated_at` that say something and are no times.
///
/// # Errors
///
/// [`StageError::Engine`].
pub fn unread(session: &Session) -> Result<Option<Unread>, StageError> {
    // Zero dates and zeroes are how databases and programs write that there was no time.
    let found = session.query(
        &format!(
            r"select count(*) as unread, arg_min({FILE}, {ROW}) as file, arg_min({LINE}, {ROW}) as line,
                     arg_min(updated_at, {ROW}) as value
              from staged_rows
              where {AT} is null and updated_at is not null
                and not regexp_full_match(lower(trim(updated_at)), '|null|none|\\n|0|0000-00-00.*')"
        ),
        &Params::new(),
    )?;
    let number = |at: usize| match &found.columns[at].1 {
        Values::Integer(values) => values.first().copied().flatten().and_then(|number| u64::try_from(number).ok()),
        _ => None,
    };
    let value = match &found.columns[3].1 {
        Values::Text(values) => values.first().cloned().flatten(),
        _ => None,
    };
    let (Some(rows), Some(file), Some(line), Some(value)) = (number(0), number(1), number(2), value) else {
        return Ok(None);
    };
    Ok((rows > 0).then(|| Unread { rows, first: (u32::try_from(file).unwrap_or(u32::MAX), line, value) }))
}

/// The usual form first: it is the cheapest to tell. A `timestamp` ignores the zone of a text, so that one with a zone goes
/// by way of `timestamptz`. Eight and fourteen digits are a calendar's, as long as the calendar knows them. No SELECT in it:
/// the engine would make a join of the rows with themselves of it.
const READ_TIME: &str = r"
create or replace temp macro before_calendar() as timestamp '0001-01-01' - interval 1 microsecond;
create or replace temp macro after_calendar() as timestamp '9999-12-31' + interval 1 microsecond;
create or replace temp macro within_calendar(ts) as
    nullif(nullif(greatest(least(ts, after_calendar()), before_calendar()), after_calendar()), before_calendar());
create or replace temp macro time_of_text(text, as_timestamp) as (
    case
        when substr(text, 5, 1) in ('-', '/') and substr(text, 8, 1) = substr(text, 5, 1)
             and (length(text) in (10, 16) or (length(text) = 19 and substr(text, 17, 1) = ':'))
        then utc_time(as_timestamp)
        when regexp_full_match(text, '(19|20)\d{6}') and try_strptime(text, '%Y%m%d') is not null
        then utc_time(try_strptime(text, '%Y%m%d'))
        when regexp_full_match(text, '(19|20)\d{12}') and try_strptime(text, '%Y%m%d%H%M%S') is not null
        then utc_time(try_strptime(text, '%Y%m%d%H%M%S'))
        when regexp_full_match(text, '-?\d{1,17}(\.\d+)?')
        then make_timestamp(cast(round(nullif(cast(text as double), 0) * case
            when abs(cast(text as double)) < 1e11 then 1e6
            when abs(cast(text as double)) < 1e14 then 1e3
            else 1 end) as bigint))
        when regexp_matches(text, ':\d{2}(\.\d+)?\s*([Zz]|UTC|GMT|[+-]\d{2}(:?\d{2})?)$')
        then cast(try_cast(regexp_replace(text, '\s*([Zz]|UTC|GMT)$', 'Z') as timestamptz) as timestamp)
        when regexp_matches(text, '^\d{4}')
        then utc_time(as_timestamp)
    end
);
create or replace temp macro read_time(value) as
    within_calendar(time_of_text(trim(value), try_cast(trim(value) as timestamp)))";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    fn read(value: &str) -> Option<String> {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::Asia::Shanghai).session().unwrap();
        define(&session, chrono_tz::Asia::Shanghai).unwrap();
        let (at, rows) = utc("value", "VARCHAR", &format!("(select '{value}' as value)"));
        let sql = format!(
            "select cast({at} as varchar) as step_by_step, cast(read_time(value) as varchar) as at_once from {rows}"
        );
        let read = session.query(&sql, &Params::new()).unwrap().columns;
        let [(_, Values::Text(step_by_step)), (_, Values::Text(at_once))] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(step_by_step, at_once, "{value}");
        at_once[0].clone()
    }

    #[test]
    fn what_databases_and_programs_write_is_one_moment() {
        for value in [
            "2026-11-24 10:30:00",
            "2026-11-24T10:30:00",
            " 2026/11/24 10:30:00 ",
            "2026-11-24 10:30",
            "2026-11-24 10:30:00.000",
            "20261124103000",
            "2026-11-24T02:30:00Z",
            "2026-11-24T02:30:00.000z",
            "2026-11-24 02:30:00 GMT",
            "2026-11-24T10:30:00+08:00",
            "2026-11-24 10:30:00+08",
            "2026-11-24T10:30:00+0800",
            "1795487400",
            "1795487400.0",
            "1795487400000",
            "1795487400000000",
        ] {
            assert_eq!(read(value).as_deref(), Some("2026-11-24 02:30:00"), "{value}");
        }
    }

    #[test]
    fn a_date_begins_when_the_workspaces_day_does() {
        for value in ["2026-11-24", "2026/11/24", "20261124"] {
            assert_eq!(read(value).as_deref(), Some("2026-11-23 16:00:00"), "{value}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for value in [
            "",
            "yesterday",
            "infinity",
            "-infinity",
            "epoch",
            "2026-02-30",
            "24.11.2026",
            "0000-00-00 00:00:00",
            "0000-12-31",
            "12345-01-01",
            "-99999999999999999",
            "12:30:00",
            "0",
        ] {
            assert_eq!(read(value), None, "{value}");
        }
        assert_eq!(read("123456789012345678901234567890"), None);
        assert_eq!(read("0001-01-02").as_deref(), Some("0001-01-01 16:00:00"));
        assert_eq!(read("9999-12-31").as_deref(), Some("9999-12-30 16:00:00"));
    }
}
