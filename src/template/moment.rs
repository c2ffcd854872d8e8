//! Points in time inside messages: `now`, timestamps of the lake, and the filters `datetime`, `date`, `time`.
//!
//! Tables hold UTC; a message shows the workspace's zone. A date has no zone and no time of day.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use chrono_tz::Tz;
use minijinja::value::{Object, ObjectRepr, Value};
use minijinja::{Environment, Error, ErrorKind};

use crate::clock::Timestamp;

/// How a point in time is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// `2026-11-23 09:30`
    DateTime,
    /// `2026-11-23`
    Date,
    /// `09:30`
    Time,
}

impl Look {
    pub const ALL: [Self; 3] = [Self::DateTime, Self::Date, Self::Time];

    /// The filter's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DateTime => "datetime",
            Self::Date => "date",
            Self::Time => "time",
        }
    }

    fn pattern(self) -> &'static str {
        match self {
            Self::DateTime => "%Y-%m-%d %H:%M",
            Self::Date => "%Y-%m-%d",
            Self::Time => "%H:%M",
        }
    }
}

/// `at` on the clocks of `zone`.
pub fn show(at: Timestamp, zone: Tz, look: Look) -> String {
    at.with_timezone(&zone).format(look.pattern()).to_string()
}

/// A text that holds a timestamp (UTC unless it says an offset) or a date, as `look` shows it.
///
/// # Errors
///
/// A fragment that says why the text cannot be shown so.
pub fn show_text(text: &str, zone: Tz, look: Look) -> Result<String, String> {
    let trimmed = text.trim();
    if let Ok(date) = NaiveDate::parse_from_str(trimmed, "%Y-%m-%d") {
        return match look {
            Look::Date => Ok(date.format(look.pattern()).to_string()),
            Look::DateTime | Look::Time => Err(format!("`{trimmed}` is a date and has no time of day")),
        };
    }
    match parse_timestamp(trimmed) {
        Some(at) => Ok(show(at, zone, look)),
        None => Err(format!("filter `{}` needs a timestamp or a date", look.as_str())),
    }
}

fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let plain = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
    if let Some(naive) = plain.iter().find_map(|pattern| NaiveDateTime::parse_from_str(text, pattern).ok()) {
        return Some(naive.and_utc());
    }
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.with_timezone(&Utc));
    }
    // DuckDB shortens whole hours: `+08`.
    DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok().map(|at| at.with_timezone(&Utc))
}

/// `now` as the engine sees it: shown in the zone when printed bare.
#[derive(Debug)]
pub struct Moment {
    pub at: Timestamp,
    pub zone: Tz,
}

impl Object for Moment {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self.at, self.zone, Look::DateTime))
    }
}

/// Adds the three filters.
pub fn add_filters(environment: &mut Environment<'static>, zone: Tz) {
    for look in Look::ALL {
        environment.add_filter(look.as_str(), move |value: &Value| filter(value, zone, look));
    }
}

fn filter(value: &Value, zone: Tz, look: Look) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if let Some(moment) = value.downcast_object_ref::<Moment>() {
        return Ok(show(moment.at, zone, look));
    }
    let text = value.as_str().unwrap_or_default();
    show_text(text, zone, look).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
}
