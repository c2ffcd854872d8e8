//! Rows as CSV, as one JSON document, and as a table for people: each written while the rows still come.

use std::io::{self, Write};

use chrono::NaiveDate;
use serde_json::Value;

use crate::cli::table::plain;
use crate::clock::from_micros;
use crate::domain::{Rows, Values};
use crate::stage::query::{RowSink, json};

/// Rows that one drawn table holds; a longer result goes on in a further one, so that memory stays flat.
const DRAWN: usize = 1000;

/// A header, then a record a row; quoted where it must be. NULL and the empty text look alike.
pub struct Csv<W: Write>(csv::Writer<W>);

impl<W: Write> Csv<W> {
    pub fn new(out: W) -> Self {
        Self(csv::Writer::from_writer(out))
    }
}

impl<W: Write + Send + 'static> RowSink for Csv<W> {
    fn begin(&mut self, columns: &[String]) -> io::Result<()> {
        self.0.write_record(columns).map_err(io_error)
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            for (_, values) in &rows.columns {
                match values {
                    Values::Text(values) => self.0.write_field(values[row].as_deref().unwrap_or_default()),
                    other => self.0.write_field(cell(other, row)),
                }
                .map_err(io_error)?;
            }
            self.0.write_record(None::<&[u8]>).map_err(io_error)?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// `{"columns":[…],"rows":[{…}]}`.
pub struct Json<W: Write> {
    out: W,
    /// As JSON text, in order.
    keys: Vec<String>,
    is_first: bool,
}

impl<W: Write> Json<W> {
    pub fn new(out: W) -> Self {
        Self { out, keys: Vec::new(), is_first: true }
    }
}

impl<W: Write + Send + 'static> RowSink for Json<W> {
    fn begin(&mut self, columns: &[String]) -> io::Result<()> {
        self.keys = columns.iter().map(|name| Value::from(name.as_str()).to_string()).collect();
        write!(self.out, "{{\"columns\":[{}],\"rows\":[", self.keys.join(","))
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            self.out.write_all(if std::mem::take(&mut self.is_first) { b"\n{" } else { b",\n{" })?;
            for (at, (name, values)) in rows.columns.iter().enumerate() {
                let comma = if at > 0 { "," } else { "" };
                write!(self.out, "{comma}{}:{}", self.keys[at], json(name, values, row))?;
            }
            self.out.write_all(b"}")?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(b"]}\n")?;
        self.out.flush()
    }
}

/// Columns below each other, numbers to the right.
pub struct Plain<W: Write> {
    out: W,
    columns: Vec<String>,
    waiting: Vec<Vec<String>>,
    is_first: bool,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W) -> Self {
        Self { out, columns: Vec::new(), waiting: Vec::new(), is_first: true }
    }

    fn draw(&mut self) -> io::Result<()> {
        self.is_first = false;
        let header: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        writeln!(self.out, "{}", plain(&header, self.waiting.drain(..)))
    }
}

impl<W: Write + Send + 'static> RowSink for Plain<W> {
    fn begin(&mut self, columns: &[String]) -> io::Result<()> {
        self.columns = columns.iter().map(|name| shown(name)).collect();
        Ok(())
    }

    fn rows(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            if self.waiting.len() == DRAWN {
                self.draw()?;
            }
            self.waiting.push(rows.columns.iter().map(|(_, values)| shown(&cell(values, row))).collect());
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.is_first || !self.waiting.is_empty() {
            self.draw()?;
        }
        self.out.flush()
    }
}

/// A text that cannot move the cursor of a terminal: it came from outside.
fn shown(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
    } else {
        text.to_owned()
    }
}

/// One value as text; NULL is empty.
fn cell(values: &Values, row: usize) -> String {
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
        Values::Date(values) => text(values[row].and_then(NaiveDate::from_epoch_days), |date| date.to_string()),
    }
}

/// `2026-11-23 18:30:00`, with microseconds where there are any.
fn time(micros: i64) -> String {
    let pattern = if micros % 1_000_000 == 0 { "%Y-%m-%d %H:%M:%S" } else { "%Y-%m-%d %H:%M:%S%.6f" };
    from_micros(micros).format(pattern).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(of: impl FnOnce(Kept) -> Box<dyn RowSink>, batches: &[Rows]) -> String {
        let kept = Kept::default();
        let mut sink = of(kept.clone());
        let names: Vec<String> = batches[0].columns.iter().map(|(name, _)| name.clone()).collect();
        sink.begin(&names).unwrap();
        for batch in batches {
            sink.rows(batch).unwrap();
        }
        sink.end().unwrap();
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn rows() -> Rows {
        Rows {
            columns: vec![
                ("who".into(), Values::Text(vec![Some("小明, \"x\"".into()), None])),
                ("msgid".into(), Values::Integer(vec![Some(7), Some(i64::MAX)])),
                ("big".into(), Values::Integer(vec![Some(1 << 53), Some((1 << 53) + 1)])),
                ("share".into(), Values::Float(vec![Some(0.1), Some(f64::NAN)])),
                ("at".into(), Values::Timestamp(vec![Some(1_763_922_600_000_000), Some(1_763_922_600_000_500)])),
                ("day".into(), Values::Date(vec![Some(20_000), None])),
                ("ok".into(), Values::Boolean(vec![Some(true), None])),
            ],
        }
    }

    #[test]
    fn csv_quotes_what_it_must_and_leaves_null_empty() {
        let text = written(|out| Box::new(Csv::new(out)), &[rows()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "who,msgid,big,share,at,day,ok");
        assert_eq!(lines[1], "\"小明, \"\"x\"\"\",7,9007199254740992,0.1,2025-11-23 18:30:00,2024-10-04,true");
        assert_eq!(lines[2], ",9223372036854775807,9007199254740993,NaN,2025-11-23 18:30:00.000500,,");
    }

    #[test]
    fn json_keeps_ids_of_64_bits_exact() {
        let text = written(|out| Box::new(Json::new(out)), &[rows(), rows()]);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["columns"][1], "msgid");
        let [first, second] = [&document["rows"][0], &document["rows"][3]];
        assert_eq!((&first["msgid"], &first["big"]), (&Value::from("7"), &Value::from(1_i64 << 53)));
        assert_eq!(
            (&second["msgid"], &second["big"]),
            (&Value::from("9223372036854775807"), &Value::from("9007199254740993"))
        );
        assert_eq!(
            (&first["at"], &second["at"]),
            (&Value::from("2025-11-23T18:30:00Z"), &Value::from("2025-11-23T18:30:00.000500Z"))
        );
        assert_eq!((&second["who"], &second["share"]), (&Value::Null, &Value::from("NaN")));
    }

    #[test]
    fn an_empty_result_is_whole_in_every_shape() {
        let none = [Rows { columns: vec![("n".into(), Values::Integer(Vec::new()))] }];
        assert_eq!(written(|out| Box::new(Csv::new(out)), &none), "n\n");
        assert_eq!(written(|out| Box::new(Json::new(out)), &none), "{\"columns\":[\"n\"],\"rows\":[]}\n");
        assert!(written(|out| Box::new(Plain::new(out)), &none).contains('n'));
    }

    #[test]
    fn a_drawn_table_cannot_move_the_cursor() {
        let evil = Rows { columns: vec![("a".into(), Values::Text(vec![Some("x\u{1b}[2J".into())]))] };
        let text = written(|out| Box::new(Plain::new(out)), &[evil]);
        assert!(text.contains("x\\u{1b}[2J") && !text.contains('\u{1b}'));
    }
}
