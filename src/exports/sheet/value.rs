//! What a cell says, as the text that a csv of the same sheet would hold.
//!
//! A spreadsheet keeps every number as a double: whole numbers beyond 2^53 have lost digits before we see them, and times
//! are days since 1900 or 1904. Both are said here once.

use std::borrow::Cow;

use calamine::{Data, ExcelDateTime};

/// The largest whole number of which a double still knows every neighbour.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A cell as the workbook has it.
pub(super) enum Cell<'a> {
    /// A text that stands in the workbook's table of texts.
    Shared(&'a str),
    Own(Data),
}

/// A cell as we read it.
pub(super) enum Value<'a> {
    Borrowed(&'a str),
    Owned(String),
    /// A whole number with more digits than a spreadsheet keeps.
    Worn(f64),
    /// A formula that failed, as the program shows it.
    Failed(String),
}

impl<'a> Value<'a> {
    pub(super) fn of(cell: &'a Cell<'_>) -> Self {
        match cell {
            Cell::Shared(text) => Self::Borrowed(text),
            Cell::Own(data) => Self::of_data(data),
        }
    }

    fn of_data(data: &'a Data) -> Self {
        match data {
            Data::Empty => Self::Borrowed(""),
            Data::String(text) | Data::DateTimeIso(text) | Data::DurationIso(text) => Self::Borrowed(text),
            Data::Int(number) => Self::Owned(number.to_string()),
            Data::Bool(is_so) => Self::Borrowed(if *is_so { "true" } else { "false" }),
            Data::Float(number) if number.fract() == 0.0 && number.abs() > EXACT => Self::Worn(*number),
            // `{}` gives the shortest digits that read as the same number: a typed 19.9 comes out as 19.9.
            Data::Float(number) => Self::Owned(format!("{number}")),
            Data::DateTime(at) => Self::Owned(written(at)),
            Data::Error(fault) => Self::Failed(fault.to_string()),
        }
    }

    /// The text of it, or what comes nearest.
    pub(super) fn shown(&self) -> Cow<'_, str> {
        match self {
            Self::Borrowed(text) => Cow::Borrowed(text),
            Self::Owned(text) | Self::Failed(text) => Cow::Borrowed(text),
            Self::Worn(number) => Cow::Owned(format!("{number:e}")),
        }
    }

    /// Why the row that has this value cannot be taken.
    pub(super) fn fault(&self, is_id: bool) -> Option<String> {
        match self {
            Self::Worn(number) => Some(format!(
                "is the number {number:e}: a spreadsheet keeps 15 digits of a number, the others are lost; have the \
                 column written as text"
            )),
            Self::Failed(shown) if is_id => Some(format!("is a formula that failed ({shown})")),
            Self::Borrowed(_) | Self::Owned(_) | Self::Failed(_) => None,
        }
    }
}

/// A time of the wall clock where the sheet was written: `2026-11-24 10:00:00`, a date alone, or a time of day alone.
fn written(at: &ExcelDateTime) -> String {
    if at.is_duration() {
        return hours(at.as_f64());
    }
    let (year, month, day, hour, minute, second, milli) = at.to_ymd_hms_milli();
    let time = match milli {
        0 => format!("{hour:02}:{minute:02}:{second:02}"),
        _ => format!("{hour:02}:{minute:02}:{second:02}.{milli:03}"),
    };
    if (0.0..1.0).contains(&at.as_f64()) {
        return time;
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    if time == "00:00:00" { date } else { format!("{date} {time}") }
}

/// `[h]:mm:ss`, which may pass a day.
fn hours(days: f64) -> String {
    let seconds = (days.abs() * 86_400.0).round();
    let sign = if days < 0.0 { "-" } else { "" };
    let (hours, rest) = ((seconds / 3600.0).floor(), seconds % 3600.0);
    format!("{sign}{hours:.0}:{:02.0}:{:02.0}", (rest / 60.0).floor(), rest % 60.0)
}

/// A cell's name: `C5`. The column is counted from 0, the row from 1.
pub(super) fn place(column: u32, row: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = column + 1;
    while rest > 0 {
        let letter = (rest - 1) % 26;
        letters.insert(0, char::from_u32(u32::from(b'A') + letter).expect("a letter"));
        rest = (rest - 1 - letter) / 26;
    }
    letters.into_iter().collect::<String>() + &row.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use calamine::ExcelDateTimeType::{DateTime, TimeDelta};

    fn shown(data: &Data) -> String {
        Value::of_data(data).shown().into_owned()
    }

    #[test]
    fn numbers_keep_their_digits_or_say_that_they_lost_them() {
        assert_eq!(shown(&Data::Float(13_800_138_000.0)), "13800138000");
        assert_eq!(shown(&Data::Float(19.9)), "19.9");
        assert_eq!(shown(&Data::Float(-0.000_001)), "-0.000001");
        assert_eq!(shown(&Data::Float(9_007_199_254_740_992.0)), "9007199254740992");
        let worn = Data::Float(123_456_789_012_345_678.0);
        assert!(Value::of_data(&worn).fault(false).unwrap().contains("15 digits"));
        assert_eq!(shown(&worn), "1.2345678901234568e17");
    }

    #[test]
    fn days_since_1900_or_1904_become_dates_and_times() {
        let at = |days: f64, is_1904| shown(&Data::DateTime(ExcelDateTime::new(days, DateTime, is_1904)));
        assert_eq!(at(46_350.416_666_666_664, false), "2026-11-24 10:00:00");
        assert_eq!(at(44_888.416_666_666_664, true), "2026-11-24 10:00:00", "1462 days lie between both epochs");
        assert_eq!(at(46_350.0, false), "2026-11-24");
        assert_eq!(at(0.5, false), "12:00:00");
        assert_eq!(shown(&Data::DateTime(ExcelDateTime::new(1.5, TimeDelta, false))), "36:00:00");
    }

    #[test]
    fn cells_are_called_as_the_program_calls_them() {
        for (column, name) in [(0, "A1"), (25, "Z1"), (26, "AA1"), (701, "ZZ1"), (702, "AAA1")] {
            assert_eq!(place(column, 1), name);
        }
    }
}
