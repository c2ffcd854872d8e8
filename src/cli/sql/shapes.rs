//! Rows as one JSON document, and as a table for people: each written while the rows still come.

use std::io::{self, Write};

use serde_json::Value;

use crate::cli::table::plain;
use crate::domain::Rows;
use crate::stage::outputs::{RowSink, cell};
use crate::stage::query::json;

/// Rows that one drawn table holds; a longer result goes on in a further one, so that memory stays flat.
const DRAWN: usize = 1000;

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

impl<W: Write + Send> RowSink for Json<W> {
    fn begin(&mut self, columns: &[(String, String)]) -> io::Result<()> {
        self.keys = columns.iter().map(|(name, _)| Value::from(name.as_str()).to_string()).collect();
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

impl<W: Write + Send> RowSink for Plain<W> {
    fn begin(&mut self, columns: &[(String, String)]) -> io::Result<()> {
        self.columns = columns.iter().map(|(name, _)| shown(name)).collect();
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::domain::Values;

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
        let names: Vec<_> = batches[0].columns.iter().map(|(name, _)| (name.clone(), String::new())).collect();
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
