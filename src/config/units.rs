//! Texts with units → numbers: durations, rates, sizes, windows, schedules, column types.
//!
//! Pure. An error says what was found and what is accepted, as [`Unread`]; who reports it adds the place. Nothing is
//! rounded or clamped.

use std::str::FromStr;
use std::time::Duration;

use chrono::{MappedLocalTime, NaiveDateTime, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use super::problems::{accepted, nearest};
use super::settings::{Schedule, Window};

/// What could not be read, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unread {
    pub message: String,
    pub hint: String,
}

fn unread(message: impl Into<String>, hint: impl Into<String>) -> Unread {
    Unread { message: message.into(), hint: hint.into() }
}

/// A whole number and the rest after it.
fn number_and_rest(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim()))
}

/// `500ms`, `10s`, `10m`, `36h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, Unread> {
    let wrong = || {
        unread(
            format!("\"{text}\" is not a duration"),
            "write a whole number and ms, s, m, h or d: \"10s\", \"36h\", \"7d\"",
        )
    };
    let (number, unit) = number_and_rest(text.trim()).ok_or_else(wrong)?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    // A century is far past any use, and far from where calendars overflow.
    number
        .checked_mul(seconds)
        .filter(|total| *total <= 36_525 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(|| unread(format!("\"{text}\" is longer than a century"), "write a shorter duration: \"36h\""))
}

/// `50/s`, `3000/m`, `10000/h`, in sends a second.
pub(super) fn rate(text: &str) -> Result<f64, Unread> {
    let wrong = || {
        unread(
            format!("\"{text}\" is not a rate"),
            "write a whole number a second, minute or hour: \"50/s\", \"3000/m\"",
        )
    };
    let (number, unit) = number_and_rest(text.trim()).ok_or_else(wrong)?;
    let number = u32::try_from(number).map_err(|_| wrong())?;
    let seconds = match unit.strip_prefix('/').map(str::trim_start) {
        Some("s") => 1.0,
        Some("m") => 60.0,
        Some("h") => 3600.0,
        _ => return Err(wrong()),
    };
    if number == 0 {
        return Err(unread(
            format!("\"{text}\" would never send"),
            "use 1 or more; to hold sends back use `lianbo freeze` or `approve = true`",
        ));
    }
    Ok(f64::from(number) / seconds)
}

/// A duration as somebody typed it.
///
/// # Errors
///
/// What is wrong with it and what would be accepted, as one sentence.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    duration(text).map_err(|unread| format!("{}; {}", unread.message, unread.hint))
}

/// A rate as somebody typed it, in sends a second.
///
/// # Errors
///
/// What is wrong with it and what would be accepted, as one sentence.
pub fn read_rate(text: &str) -> Result<f64, String> {
    rate(text).map_err(|unread| format!("{}; {}", unread.message, unread.hint))
}

/// A size as somebody typed it, in bytes.
///
/// # Errors
///
/// What is wrong with it and what would be accepted, as one sentence.
pub fn read_size(text: &str) -> Result<u64, String> {
    size(text).map_err(|unread| format!("{}; {}", unread.message, unread.hint))
}

/// `4GB`, `200MB`, `2GiB`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, Unread> {
    let wrong =
        || unread(format!("\"{text}\" is not a size"), "write a whole number and KB, MB, GB or TB: \"4GB\", \"200MB\"");
    let (number, unit) = number_and_rest(text.trim()).ok_or_else(wrong)?;
    let bytes = match unit.to_ascii_uppercase().as_str() {
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        "TIB" => 1_u64 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(bytes).ok_or_else(wrong)
}

/// `09:00-21:00`.
pub(super) fn window(text: &str) -> Result<Window, Unread> {
    let hint = "write two times of day: \"09:00-21:00\"; a window past midnight is \"20:00-02:00\"";
    let time = |part: &str| NaiveTime::parse_from_str(part.trim(), "%H:%M");
    let (from, to) = text.split_once('-').unwrap_or((text, ""));
    match (time(from), time(to)) {
        (Ok(from), Ok(to)) if from != to => Ok(Window { from, to }),
        (Ok(_), Ok(_)) => {
            Err(unread(format!("\"{text}\" is a window of no length"), "leave `window` out to send at any hour"))
        }
        _ => Err(unread(format!("\"{text}\" is not a window"), hint)),
    }
}

/// `03:00`.
pub(super) fn time_of_day(text: &str) -> Result<NaiveTime, Unread> {
    NaiveTime::parse_from_str(text.trim(), "%H:%M")
        .map_err(|_| unread(format!("\"{text}\" is not a time of day"), "write hours and minutes: \"03:00\""))
}

/// A zone by its name (`Asia/Shanghai`).
pub(super) fn timezone(text: &str) -> Result<Tz, Unread> {
    Tz::from_str(text).map_err(|_| {
        let near = nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()));
        let hint = near
            .map_or_else(|| "write a name like \"Asia/Shanghai\"".to_owned(), |name| format!("did you mean `{name}`?"));
        unread(format!("\"{text}\" is not a time zone"), hint)
    })
}

/// A cron pattern of six fields, seconds first: the one reading of it, for checking here and for deciding what is due.
///
/// # Errors
///
/// What is wrong with the pattern, in words.
pub fn cron(pattern: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Disallowed).build();
    parser.parse(pattern).map_err(|error| error.to_string())
}

/// Six cron fields, or one local time.
pub(super) fn schedule(text: &str, zone: Tz) -> Result<Schedule, Unread> {
    let text = text.trim();
    for format in ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M"] {
        if let Ok(local) = NaiveDateTime::parse_from_str(text, format) {
            return once(local, zone);
        }
    }
    let fields = text.split_whitespace().count();
    let both = "six fields, seconds first: \"0 30 2 * * *\", or a local time, once: \"2026-11-24 10:00\"";
    if fields == 5 {
        // Either the seconds are missing, as in a crontab, or, seconds first, the day of the week.
        let meant = [format!("0 {text}"), format!("{text} *")].into_iter().find(|meant| cron(meant).is_ok());
        return Err(unread(
            format!("\"{text}\" has five fields, and six are wanted: second minute hour day month weekday"),
            meant.map_or_else(|| format!("write {both}"), |meant| format!("did you mean \"{meant}\"?")),
        ));
    }
    if fields != 6 {
        return Err(unread(format!("\"{text}\" is not a schedule"), format!("write {both}")));
    }
    let pattern =
        cron(text).map_err(|why| unread(format!("\"{text}\" is not a schedule: {why}"), format!("write {both}")))?;
    // From a fixed day, so that checking gives the same answer on any day; the search reaches over every leap year.
    let from = Utc.with_ymd_and_hms(2024, 1, 1, 0, 0, 0).single().expect("a fixed day exists in UTC");
    if pattern.find_next_occurrence(&from, true).is_err() {
        return Err(unread(format!("\"{text}\" never comes"), "name a day that exists"));
    }
    Ok(Schedule::Cron(text.to_owned()))
}

fn once(local: NaiveDateTime, zone: Tz) -> Result<Schedule, Unread> {
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(_) => Ok(Schedule::Once(local)),
        MappedLocalTime::None => Err(unread(
            format!("{local} does not exist in {zone}: the clocks are put forward over it"),
            "choose an hour later or earlier",
        )),
        MappedLocalTime::Ambiguous(..) => Err(unread(
            format!("{local} comes twice in {zone}: the clocks are put back over it"),
            "choose an hour later or earlier",
        )),
    }
}

const COLUMN_TYPES: [&str; 26] = [
    "varchar",
    "text",
    "string",
    "boolean",
    "bool",
    "tinyint",
    "smallint",
    "integer",
    "int",
    "bigint",
    "hugeint",
    "utinyint",
    "usmallint",
    "uinteger",
    "ubigint",
    "float",
    "real",
    "double",
    "decimal",
    "numeric",
    "date",
    "time",
    "timestamp",
    "datetime",
    "uuid",
    "blob",
];

/// A column type as DuckDB knows it (`bigint`, `decimal(12,2)`).
pub(super) fn column_type(text: &str) -> Result<String, Unread> {
    let wrong = |hint: String| unread(format!("\"{text}\" is not a type"), hint);
    let (name, arguments) = match text.trim().split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest)),
        None => (text.trim(), None),
    };
    let Some(known) = COLUMN_TYPES.iter().find(|known| known.eq_ignore_ascii_case(name)) else {
        return Err(wrong(accepted(name, COLUMN_TYPES.into_iter())));
    };
    let Some(arguments) = arguments else { return Ok((*known).to_owned()) };
    let numbers: Option<Vec<u8>> =
        arguments.strip_suffix(')').and_then(|inner| inner.split(',').map(|part| part.trim().parse().ok()).collect());
    match (*known, numbers.as_deref()) {
        ("decimal" | "numeric", Some([width @ 1..=38])) => Ok(format!("decimal({width},0)")),
        ("decimal" | "numeric", Some([width @ 1..=38, scale])) if scale <= width => {
            Ok(format!("decimal({width},{scale})"))
        }
        ("decimal" | "numeric", _) => {
            Err(wrong("write digits in all and digits after the point: \"decimal(12,2)\"".to_owned()))
        }
        _ => Err(wrong(format!("`{known}` takes nothing in brackets"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_rates_and_sizes_need_their_unit() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("36h").unwrap(), Duration::from_secs(129_600));
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(604_800));
        for wrong in ["", "10", "s", "-1s", "1.5h", "10 weeks", "99999999999999999999s", "99999999d"] {
            assert!(duration(wrong).is_err(), "{wrong} was read");
        }
        assert_eq!(rate("50/s").unwrap(), 50.0);
        assert_eq!(rate("3000/m").unwrap(), 50.0);
        for wrong in ["50", "0/s", "50/d", "/s", "50 s"] {
            assert!(rate(wrong).is_err(), "{wrong} was read");
        }
        assert_eq!(size("4GB").unwrap(), 4_000_000_000);
        assert_eq!(size("2GiB").unwrap(), 2_147_483_648);
        assert!(size("4").is_err() && size("4XB").is_err());
    }

    #[test]
    fn a_schedule_is_six_fields_or_a_local_time_that_exists() {
        let shanghai = chrono_tz::Asia::Shanghai;
        assert_eq!(schedule("0 30 2 * * *", shanghai).unwrap(), Schedule::Cron("0 30 2 * * *".to_owned()));
        assert!(matches!(schedule("2026-11-24 10:00", shanghai).unwrap(), Schedule::Once(_)));
        assert!(matches!(schedule("2026-11-24 10:00:30", shanghai).unwrap(), Schedule::Once(_)));
        assert_eq!(schedule("30 2 * * *", shanghai).unwrap_err().hint, "did you mean \"0 30 2 * * *\"?");
        for wrong in ["@daily", "0 61 2 * * *", "2026-13-01 10:00", "0 0 0 31 2 *", "tomorrow", "0 0 0 1 1 * 2030"] {
            assert!(schedule(wrong, shanghai).is_err(), "{wrong} was read");
        }
        let berlin = chrono_tz::Europe::Berlin;
        assert!(schedule("2026-03-29 02:30", berlin).unwrap_err().message.contains("does not exist"));
        assert!(schedule("2026-10-25 02:30", berlin).unwrap_err().message.contains("comes twice"));
    }

    #[test]
    fn windows_zones_and_types_are_checked() {
        assert!(window("09:00-21:00").is_ok() && window("20:00-02:00").is_ok());
        assert!(window("09:00").is_err() && window("9-21").is_err() && window("09:00-09:00").is_err());
        assert_eq!(timezone("Asia/Shangai").unwrap_err().hint, "did you mean `Asia/Shanghai`?");
        assert_eq!(column_type("DECIMAL(12, 2)").unwrap(), "decimal(12,2)");
        assert_eq!(column_type("bigint").unwrap(), "bigint");
        assert_eq!(
            column_type("bigintt").unwrap_err().hint,
            format!("did you mean `bigint`? {}", accepted("", COLUMN_TYPES.into_iter()))
        );
        assert!(column_type("decimal(2,12)").is_err() && column_type("varchar(a)").is_err());
    }
}
