//! When a mini program last changed a row: whatever it wrote, a UTC time, or nothing.
//!
//! Read are ISO 8601 with a zone or without, `YYYY-MM-DD HH:MM:SS` and shorter, dates (also `20261124`), and Unix times in
//! seconds, milliseconds or microseconds. What has no zone is the wall clock's in the workspace's zone. What is no time
//! keeps its person, who then counts as the oldest; how many there are is told.

use chrono_tz::Tz;

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

/// The UTC time of a column by the type it is stored with, `column` as SQL.
pub fn utc(column: &str, stored_type: &str) -> String {
    match stored_type {
        "TIMESTAMP WITH TIME ZONE" => format!("cast({column} as timestamp)"),
        "TIMESTAMP" | "TIMESTAMP_S" | "TIMESTAMP_MS" | "TIMESTAMP_NS" | "DATE" => format!("utc_time({column})"),
        _ => format!("read_time(cast({column} as varchar))"),
    }
}

/// The values of `staged_rows.updated_at` that say something and are no times.
///
/// # Errors
///
/// [`StageError::Engine`].
pub fn unread(session: &Session) -> Result<Option<Unread>, StageError> {
    let found = session.query(UNREAD, &Params::new())?;
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
/// by way of `timestamptz`. Eight and fourteen digits are a calendar's, as long as the calendar knows them.
const READ_TIME: &str = r"
create or replace temp macro read_time(value) as (
    select case when read between timestamp '0001-01-01' and timestamp '9999-12-31' then read end
    from (select case
        when substr(text, 5, 1) in ('-', '/') and substr(text, 8, 1) = substr(text, 5, 1)
             and (length(text) in (10, 16) or (length(text) = 19 and substr(text, 17, 1) = ':'))
        then utc_time(try_cast(text as timestamp))
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
        then utc_time(try_cast(text as timestamp))
    end as read from (select trim(value) as text))
)";

/// Zero dates and zeroes are how databases and programs write that there was no time.
const UNREAD: &str = r"
select count(*) as unread, arg_min(_file, (_file, _line)) as file, arg_min(_line, (_file, _line)) as line,
       arg_min(updated_at, (_file, _line)) as value
from staged_rows
where _at is null and updated_at is not null
  and not regexp_full_match(lower(trim(updated_at)), '|null|none|\\n|0|0000-00-00.*')";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    fn read(value: &str) -> Option<String> {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::Asia::Shanghai).session().unwrap();
        define(&session, chrono_tz::Asia::Shanghai).unwrap();
        let sql = format!("select cast(read_time('{value}') as varchar) as t");
        match session.query(&sql, &Params::new()).unwrap().columns.remove(0).1 {
            Values::Text(mut values) => values.remove(0),
            other => panic!("{other:?}"),
        }
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
        for value in
            ["", "yesterday", "infinity", "epoch", "2026-02-30", "24.11.2026", "0000-00-00 00:00:00", "12:30:00", "0"]
        {
            assert_eq!(read(value), None, "{value}");
        }
        assert_eq!(read("123456789012345678901234567890"), None);
    }
}
