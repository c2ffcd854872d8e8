//! The shapes of times, dates and amounts.

use chrono::{NaiveDate, NaiveTime};

/// Digits before the decimal point of a well-formed amount.
pub fn amount_digits(value: &str) -> Option<usize> {
    const SIGNS: [char; 9] = ['¥', '￥', '$', '＄', '€', '£', '￡', '₩', '฿'];
    let value = value.strip_prefix(SIGNS).unwrap_or(value);
    let value = value.strip_suffix('元').unwrap_or(value);
    let (whole, decimals) = value.split_once('.').unwrap_or((value, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(decimals)).then_some(whole.len())
}

/// A time, perhaps with a date before it; or two of them joined by `~`.
pub fn is_time(value: &str) -> bool {
    points(value).is_some_and(|points| points.iter().all(|point| point.time))
}

/// A date, perhaps with a time behind it; or two of them joined by `~`, the second with a time alone if wanted.
pub fn is_date(value: &str) -> bool {
    points(value).is_some_and(|points| match points.as_slice() {
        [first, rest @ ..] => first.date && rest.iter().all(|second| second.date || first.time),
        [] => false,
    })
}

/// What one side of a `~` holds.
struct Point {
    date: bool,
    time: bool,
}

fn points(value: &str) -> Option<Vec<Point>> {
    let sides: Vec<&str> = value.split(['~', '～']).collect();
    if sides.len() > 2 {
        return None;
    }
    sides.into_iter().map(|side| point(side.trim())).collect()
}

fn point(text: &str) -> Option<Point> {
    if is_clock(text) {
        return Some(Point { date: false, time: true });
    }
    let date_ends = text.find('日').map(|at| at + '日'.len_utf8()).or_else(|| text.find(' ')).unwrap_or(text.len());
    let (date, time) = text.split_at(date_ends);
    let time = time.trim();
    (is_day(date) && (time.is_empty() || is_clock(time))).then_some(Point { date: true, time: !time.is_empty() })
}

/// `9:30`, `09:30`, `09:30:00`.
fn is_clock(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let (hours, others) = parts.split_first().expect("a split has a first part");
    let number = |part: &str, widths: &[usize]| {
        let plain = widths.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| part.parse::<u32>().ok()).flatten()
    };
    match (number(hours, &[1, 2]), others) {
        (Some(hours), [minutes]) => {
            number(minutes, &[2]).is_some_and(|minutes| NaiveTime::from_hms_opt(hours, minutes, 0).is_some())
        }
        (Some(hours), [minutes, seconds]) => number(minutes, &[2])
            .zip(number(seconds, &[2]))
            .is_some_and(|(minutes, seconds)| NaiveTime::from_hms_opt(hours, minutes, seconds).is_some()),
        _ => false,
    }
}

/// `2026-11-23`, `2026/11/23`, `2026.11.23`, `2026年11月23日`.
fn is_day(text: &str) -> bool {
    ["%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y年%m月%d日"].iter().any(|pattern| {
        NaiveDate::parse_from_str(text, pattern).is_ok_and(|day| (1900..=9999).contains(&chrono::Datelike::year(&day)))
    })
}
