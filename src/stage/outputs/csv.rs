//! Rows as records: quoted where they must be, and safe to open in a spreadsheet.

use std::io::{self, Write};

use chrono::NaiveDate;

use super::{RowSink, is_number, looks_like_formula};
use crate::clock::{Timestamp, from_micros};
use crate::domain::{Rows, Values};

/// A header, then a record a row. NULL and the empty text look alike. A text that a spreadsheet would take for a formula
/// gets an apostrophe before it, which is how a person types such a text; numbers are no text.
pub struct Csv<W: Write> {
    out: csv::Writer<W>,
    is_raw: bool,
    /// Of each column, whether what arrives as text is to be looked at.
    guarded: Vec<bool>,
}

impl<W: Write> Csv<W> {
    /// With `is_raw` every text is written as it is.
    pub fn new(out: W, is_raw: bool) -> Self {
        Self { out: csv::Writer::from_writer(out), is_raw, guarded: Vec::new() }
    }

    fn text(&mut self, text: &str, is_guarded: bool) -> io::Result<()> {
        if is_guarded && looks_like_formula(text) {
            return self.out.write_field(format!("'{text}")).map_err(io_error);
        }
        self.out.write_field(text).map_err(io_error)
    }
}

impl<W: Write + Send + 'static> RowSink for Csv<W> {
    fn begin(&mut self, columns: &[(String, String)]) -> io::Result<()> {
        self.guarded = columns.iter().map(|(_, ty)| !self.is_raw && !is_number(ty)).collect();
        for (name, _) in columns {
            self.text(name, !self.is_raw)?;
        }
        self.out.write_record(None::<&[u8]>).map_err(io_error)
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            for (at, (_, values)) in rows.columns.iter().enumerate() {
                match values {
                    Values::Text(values) => {
                        self.text(values[row].as_deref().unwrap_or_default(), self.guarded[at])?;
                    }
                    other => self.out.write_field(cell(other, row)).map_err(io_error)?,
                }
            }
            self.out.write_record(None::<&[u8]>).map_err(io_error)?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// One value as text; NULL is empty.
pub fn cell(values: &Values, row: usize) -> String {
    fn text<T>(value: Option<T>, write: impl FnOnce(T) -> String) -> String {
        value.map(write).unwrap_or_default()
    }
    match values {
        Values::Text(values) => values[row].clone().unwrap_or_default(),
        Values::Integer(values) => text(values[row], |number| number.to_string()),
        // The shortest text that reads back as the same number.
        Values::Float(values) => text(values[row], |number| format!("{number:?}")),
        Values::Boolean(values) => text(values[row], |value| value.to_string()),
        Values::Timestamp(values) => text(values[row], time),
        Values::Date(values) => text(values[row], day),
    }
}

/// `2026-11-23`; days without end as the engine writes and reads them.
pub fn day(days: i32) -> String {
    match NaiveDate::from_epoch_days(days) {
        Some(date) => date.to_string(),
        None => endless(days > 0),
    }
}

/// How the engine calls what is after, or before, every time.
fn endless(is_after: bool) -> String {
    if is_after { "infinity" } else { "-infinity" }.to_owned()
}

/// The moment of so many microseconds; `infinity` or `-infinity` where it is none.
///
/// # Errors
///
/// That word.
pub fn moment(micros: i64) -> Result<Timestamp, String> {
    if micros.unsigned_abs() >= i64::MAX.unsigned_abs() { Err(endless(micros > 0)) } else { Ok(from_micros(micros)) }
}

/// `2026-11-23 18:30:00`, with microseconds where there are any.
fn time(micros: i64) -> String {
    let moment = match moment(micros) {
        Ok(moment) => moment,
        Err(endless) => return endless,
    };
    let pattern = if micros % 1_000_000 == 0 { "%Y-%m-%d %H:%M:%S" } else { "%Y-%m-%d %H:%M:%S%.6f" };
    moment.format(pattern).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(is_raw: bool, columns: &[(&str, &str, Values)]) -> String {
        let names: Vec<_> = columns.iter().map(|(name, ty, _)| ((*name).to_owned(), (*ty).to_owned())).collect();
        let rows = columns.iter().map(|(name, _, values)| ((*name).to_owned(), values.clone())).collect();
        let mut sink = Csv::new(Vec::new(), is_raw);
        sink.begin(&names).unwrap();
        sink.rows(&Rows { columns: rows }).unwrap();
        String::from_utf8(sink.out.into_inner().unwrap()).unwrap()
    }

    #[test]
    fn what_must_be_is_quoted_and_null_is_empty() {
        let text = written(
            false,
            &[
                ("who", "VARCHAR", Values::Text(vec![Some("小明, \"x\"".into()), None])),
                ("big", "BIGINT", Values::Integer(vec![Some(1 << 53), Some(i64::MAX)])),
                ("share", "DOUBLE", Values::Float(vec![Some(0.1), Some(f64::NAN)])),
                ("at", "TIMESTAMP", Values::Timestamp(vec![Some(1_763_922_600_000_000), Some(1_763_922_600_000_500)])),
                ("day", "DATE", Values::Date(vec![Some(20_000), None])),
                ("ok", "BOOLEAN", Values::Boolean(vec![Some(true), None])),
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "who,big,share,at,day,ok");
        assert_eq!(lines[1], "\"小明, \"\"x\"\"\",9007199254740992,0.1,2025-11-23 18:30:00,2024-10-04,true");
        assert_eq!(lines[2], ",9223372036854775807,NaN,2025-11-23 18:30:00.000500,,");
    }

    #[test]
    fn a_time_without_end_is_no_other_time() {
        let times = Values::Timestamp(vec![Some(i64::MAX), Some(-i64::MAX), Some(0)]);
        assert_eq!([0, 1, 2].map(|row| cell(&times, row)), ["infinity", "-infinity", "1970-01-01 00:00:00"]);
        let days = Values::Date(vec![Some(i32::MAX), Some(-i32::MAX), None]);
        assert_eq!([0, 1, 2].map(|row| cell(&days, row)), ["infinity", "-infinity", ""]);
    }

    #[test]
    fn no_text_is_a_formula_and_numbers_are_no_text() {
        let texts = ["=1+1", "+8613800000000", "-2", "@SUM(A1)", "\tx", "\r", "＝1+1", "a=1", "'", ""];
        let text = |values: &[&str]| Values::Text(values.iter().map(|value| Some((*value).to_owned())).collect());
        let guarded = written(false, &[("=x", "VARCHAR", text(&texts))]);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(guarded.as_bytes());
        let read: Vec<String> = reader.records().map(|row| row.unwrap()[0].to_owned()).collect();
        let right = ["'=x", "'=1+1", "'+8613800000000", "'-2", "'@SUM(A1)", "'\tx", "'\r", "'＝1+1", "a=1", "'", ""];
        assert_eq!(read, right);
        let raw = written(true, &[("=x", "VARCHAR", text(&texts[..3]))]);
        assert_eq!(raw, "=x\n=1+1\n+8613800000000\n-2\n");
        let numbers = [
            ("i", "BIGINT", Values::Integer(vec![Some(-1)])),
            ("f", "DOUBLE", Values::Float(vec![Some(-0.5)])),
            ("d", "DECIMAL(12,2)", text(&["-99.00"])),
            ("h", "HUGEINT", text(&["-9223372036854775809"])),
        ];
        assert_eq!(written(false, &numbers), "i,f,d,h\n-1,-0.5,-99.00,-9223372036854775809\n");
    }
}
