//! Workbooks of spreadsheet programs: one sheet, a header row, a person a row.
//!
//! The way of the data: `book` finds the sheet and gives its rows one by one → the header row is found and matched to our
//! column names → each cell becomes the text that a csv of the same sheet would hold (`value`) → `batch`. Of an xlsx only
//! the table of its texts is in memory, of an old xls the whole. A cell whose number has lost digits spoils its row: a
//! wrong id is worse than none.

mod book;
mod value;

use std::ops::ControlFlow;
use std::path::Path;

use self::book::{Book, Row};
use self::value::{Value, place};
use super::batch::Collector;
use super::layout::{Layout, cleaned_names, trimmed};
use super::{BadRow, ColumnKind, Encoding, ExportError, FileReport, Job, ReadOptions, Sink};

/// Characters of a refused row that are kept.
const RAW_CHARS: usize = 2000;

/// Which sheet of a workbook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sheet<'a> {
    Name(&'a str),
    /// From the left, hidden ones counted; the first is 1.
    Number(u32),
}

/// The columns of a workbook's sheet.
pub(super) fn layout(job: &Job<'_>) -> Result<Layout, ExportError> {
    let options = job.options;
    let mut book = Book::open(job.input, options.sheet)?;
    let mut header = None;
    book.each_row(&mut |row| {
        header = Header::of_row(row, options);
        Ok(if header.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(header.ok_or_else(|| no_header(&book, options))?.layout(job.input.shown(), options)?.1)
}

/// Reads a whole sheet.
pub(super) fn read(job: &Job<'_>, sink: &mut Sink<'_>) -> Result<FileReport, ExportError> {
    let mut book = Book::open(job.input, job.options.sheet)?;
    let sheet = book.sheet().to_owned();
    let mut sink = Some(sink);
    let mut reading: Option<Reading<'_>> = None;
    book.each_row(&mut |row| {
        if let Some(reading) = &mut reading {
            reading.take(row)?;
        } else if let Some(header) = Header::of_row(row, job.options) {
            let (header, layout) = header.layout(job.input.shown(), job.options)?;
            let sink = sink.take().expect("there is one header");
            let rows = Collector::new(&layout, job.options.batch_rows, sink);
            reading = Some(Reading { header, layout, rows, sheet: &sheet, last_row: row.number });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let reading = reading.ok_or_else(|| no_header(&book, job.options))?;
    reading.rows.end(Encoding::Utf8, job.input.bytes()?)
}

fn no_header(book: &Book, options: &ReadOptions<'_>) -> ExportError {
    ExportError::NoSheetHeader { file: book.file().to_owned(), sheet: book.sheet().to_owned(), row: options.header_row }
}

/// The names of a sheet's columns, and where the first of them stands.
struct Header {
    first_column: u32,
    names: Vec<String>,
}

impl Header {
    /// The header, if it stands in this row: the one asked for, else the first that is not blank.
    fn of_row(row: &Row<'_>, options: &ReadOptions<'_>) -> Option<Self> {
        if options.header_row.is_some_and(|asked| row.number != asked) || row.is_blank() {
            return None;
        }
        let first_column = row.cells.first()?.0;
        let width = row.cells.last()?.0 - first_column + 1;
        let mut cells = vec![String::new(); usize::try_from(width).expect("a sheet has few columns")];
        for (column, cell) in &row.cells {
            let at = usize::try_from(column - first_column).expect("a sheet has few columns");
            cells[at] = Value::of(cell).shown().into_owned();
        }
        Some(Self { first_column, names: cleaned_names(cells.iter().map(String::as_str)) })
    }

    fn layout(self, file: &Path, options: &ReadOptions<'_>) -> Result<(Self, Layout), ExportError> {
        let layout = Layout::of_header(file, &self.names, options)?;
        Ok((self, layout))
    }
}

/// A sheet while its rows are read.
struct Reading<'a> {
    header: Header,
    layout: Layout,
    rows: Collector<'a>,
    sheet: &'a str,
    last_row: u32,
}

impl Reading<'_> {
    fn take(&mut self, row: &Row<'_>) -> Result<(), ExportError> {
        for _ in self.last_row + 1..row.number {
            self.rows.blank();
        }
        self.last_row = row.number;
        if row.is_blank() {
            self.rows.blank();
            return Ok(());
        }
        if let Err(reason) = self.put(row) {
            let shown = row.cells.iter().map(|(_, cell)| Value::of(cell).shown().into_owned());
            let raw = shown.collect::<Vec<_>>().join(",").chars().take(RAW_CHARS).collect();
            self.rows.refuse(BadRow { line: u64::from(row.number), reason, raw });
        }
        self.rows.flush_if_full()
    }

    fn put(&mut self, row: &Row<'_>) -> Result<(), String> {
        let width = u32::try_from(self.header.names.len()).expect("a sheet has few columns");
        let columns = self.header.first_column..self.header.first_column + width;
        if let Some((column, _)) = row.cells.iter().find(|(column, _)| !columns.contains(column)) {
            let place = place(*column, row.number);
            return Err(format!("{place} of sheet {:?} has a value where the header names no column", self.sheet));
        }
        for (at, column) in self.layout.columns.iter().enumerate() {
            let wanted = self.header.first_column + u32::try_from(column.field).expect("a sheet has few columns");
            let Ok(found) = row.cells.binary_search_by_key(&wanted, |(column, _)| *column) else { continue };
            let value = Value::of(&row.cells[found].1);
            if let Some(fault) = value.fault(column.is_id) {
                let place = place(wanted, row.number);
                return Err(format!("{} in {place} of sheet {:?} {fault}", column.name, self.sheet));
            }
            self.rows.put(at, Some(&value.shown()), ColumnKind::Text);
        }
        self.rows.finish(u64::from(row.number)).map_err(super::batch::Refusal::reason)
    }
}

impl Row<'_> {
    /// Whether nothing can be seen in it.
    fn is_blank(&self) -> bool {
        self.cells.iter().all(|(_, cell)| trimmed(&Value::of(cell).shown()).is_empty())
    }
}

#[cfg(test)]
mod tests;
