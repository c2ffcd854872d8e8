//! Good rows and refused ones on their way to the sink, and the counts of a file.
//!
//! A row is put together value by value and then either finished or refused; a refused row leaves no trace in the
//! columns. Columns may be added while reading: rows already collected have no value in them.

use super::encoding::Encoding;
use super::layout::{Layout, OPENID, cleaned_id};
use super::{BadRow, Batch, ColumnKind, ColumnReport, ExportError, FileReport, Sink};
use crate::domain::Texts;

/// A batch of long rows ends with fewer of them.
const BATCH_BYTES: usize = 8 << 20;

/// Collects the rows of one file into batches.
pub(super) struct Collector<'a> {
    columns: Vec<Collected>,
    lines: Vec<i64>,
    bad: Vec<BadRow>,
    batch_rows: usize,
    /// Of all that was put into the batch.
    bytes: usize,
    sink: &'a mut Sink<'a>,
    row_count: u64,
    bad_count: u64,
    blank_count: u64,
}

struct Collected {
    name: String,
    is_id: bool,
    kind: ColumnKind,
    /// One value more than there are rows, while a row is being put together and has one here.
    values: Texts,
}

/// Why a row cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoOpenid,
}

impl<'a> Collector<'a> {
    pub(super) fn new(layout: &Layout, batch_rows: usize, sink: &'a mut Sink<'a>) -> Self {
        let mut collector = Self {
            columns: Vec::new(),
            lines: Vec::new(),
            bad: Vec::new(),
            batch_rows: batch_rows.max(1),
            bytes: 0,
            sink,
            row_count: 0,
            bad_count: 0,
            blank_count: 0,
        };
        for column in &layout.columns {
            collector.add_column(&column.name, column.is_id);
        }
        collector
    }

    /// Adds a column behind the others and returns its place.
    pub(super) fn add_column(&mut self, name: &str, is_id: bool) -> usize {
        let mut values = Texts::default();
        for _ in &self.lines {
            values.push(None);
        }
        self.columns.push(Collected { name: name.to_owned(), is_id, kind: ColumnKind::Empty, values });
        self.columns.len() - 1
    }

    /// The name of a column that SQL would not tell from `name`.
    pub(super) fn column_like(&self, name: &str) -> Option<&str> {
        let folded = name.to_lowercase();
        self.columns.iter().map(|column| column.name.as_str()).find(|known| known.to_lowercase() == folded)
    }

    pub(super) fn is_id(&self, column: usize) -> bool {
        self.columns[column].is_id
    }

    /// Whether the row being put together has something, be it null, in a column.
    pub(super) fn has(&self, column: usize) -> bool {
        self.columns[column].values.len() > self.lines.len()
    }

    /// Puts a value of the file into the row. Ids are cleaned.
    pub(super) fn put(&mut self, column: usize, value: Option<&str>, kind: ColumnKind) {
        self.bytes += value.map_or(0, str::len);
        let column = &mut self.columns[column];
        if column.is_id {
            column.values.push(value.and_then(cleaned_id));
            return;
        }
        if value.is_some() {
            column.kind = column.kind.and(kind);
        }
        column.values.push(value);
    }

    /// Takes the row put together, if it has an openid. After a refusal the row must be [refused](Self::refuse).
    pub(super) fn finish(&mut self, line: u64) -> Result<(), Refusal> {
        let rows = self.lines.len();
        let openids = &self.columns[0].values;
        if openids.len() == rows || openids.get(rows).is_none() {
            return Err(Refusal::NoOpenid);
        }
        for column in &mut self.columns {
            if column.values.len() == rows {
                column.values.push(None);
            }
        }
        self.lines.push(i64::try_from(line).expect("a file has fewer than 2^63 lines"));
        self.row_count += 1;
        Ok(())
    }

    /// Drops what was put together and keeps the row as a bad one.
    pub(super) fn refuse(&mut self, bad: BadRow) {
        let rows = self.lines.len();
        for column in &mut self.columns {
            column.values.truncate(rows);
        }
        self.bytes += bad.raw.len();
        self.bad.push(bad);
        self.bad_count += 1;
    }

    pub(super) fn blank(&mut self) {
        self.blank_count += 1;
    }

    /// Hands over a batch when it is large enough.
    pub(super) fn flush_if_full(&mut self) -> Result<(), ExportError> {
        let is_full = self.lines.len() + self.bad.len() >= self.batch_rows || self.bytes >= BATCH_BYTES;
        if is_full { self.flush() } else { Ok(()) }
    }

    /// Hands over what is left and says what the file was.
    pub(super) fn end(mut self, encoding: Encoding, bytes: u64) -> Result<FileReport, ExportError> {
        self.flush()?;
        debug_assert_ne!(encoding, Encoding::Auto);
        let columns = self.columns.iter();
        Ok(FileReport {
            rows: self.row_count,
            bad: self.bad_count,
            blank: self.blank_count,
            encoding,
            columns: columns
                .map(|column| ColumnReport {
                    name: column.name.clone(),
                    kind: if column.is_id { ColumnKind::Text } else { column.kind },
                })
                .collect(),
            bytes,
        })
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        let rows = self.lines.len();
        self.bytes = 0;
        if rows == 0 && self.bad.is_empty() {
            return Ok(());
        }
        let columns = self.columns.iter_mut().map(|column| {
            let room = Texts::with_capacity(rows, column.values.bytes() / rows.max(1) + 1);
            (column.name.clone(), std::mem::replace(&mut column.values, room))
        });
        let columns = columns.collect();
        let lines = std::mem::replace(&mut self.lines, Vec::with_capacity(rows));
        (self.sink)(Batch { columns, lines, bad: std::mem::take(&mut self.bad) })
    }
}

impl Refusal {
    pub(super) fn reason(self) -> String {
        match self {
            Self::NoOpenid => format!("no {OPENID}"),
        }
    }
}

impl ColumnKind {
    /// What values of both kinds have in common.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Empty, kind) | (kind, Self::Empty) => kind,
            (one, same) if one == same => one,
            (Self::Integer, Self::LongInteger) | (Self::LongInteger, Self::Integer) => Self::LongInteger,
            (Self::Integer, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            _ => Self::Text,
        }
    }
}
