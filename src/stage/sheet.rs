//! Rows as a workbook of one sheet, in constant memory. Texts are cells of text, so that none is taken for a formula; whole
//! numbers that a sheet would round, and every msgid, are text as well.

use std::fs::File;
use std::io;
use std::path::Path;

use rust_xlsxwriter::{Workbook, Worksheet, XlsxError};

use crate::clock::from_micros;
use crate::domain::{Rows, Values};

/// Rows a sheet holds, without its header.
pub const MOST_ROWS: u32 = 1_048_575;
/// Columns a sheet holds.
const MOST_COLUMNS: usize = 16_384;
/// Whole numbers below this are exact in a sheet.
const EXACT: u64 = 1 << 53;

/// Why rows do not become a workbook.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    #[error("a sheet of xlsx holds {MOST_ROWS} rows, and there are more: write csv or parquet")]
    TooManyRows,
    #[error("a sheet of xlsx holds {MOST_COLUMNS} columns, and there are {0}: write csv or parquet")]
    TooManyColumns(usize),
    #[error("row {row}, column `{column}`: {source}; write csv or parquet")]
    Cell { row: u32, column: String, source: XlsxError },
    #[error("the workbook cannot be put together")]
    Book(#[from] XlsxError),
    #[error("cannot write it")]
    Write(#[from] io::Error),
}

/// A workbook while its rows come.
pub struct Sheet {
    book: Workbook,
    columns: Vec<String>,
    row: u32,
}

impl Sheet {
    /// Begins with a header.
    ///
    /// # Errors
    ///
    /// [`SheetError`].
    pub fn begin(columns: &[String]) -> Result<Self, SheetError> {
        if columns.len() > MOST_COLUMNS {
            return Err(SheetError::TooManyColumns(columns.len()));
        }
        let mut book = Workbook::new();
        book.add_worksheet_with_constant_memory()?;
        let mut sheet = Self { book, columns: columns.to_vec(), row: 0 };
        for at in 0..columns.len() {
            let name = sheet.columns[at].clone();
            sheet.cell(at, |page, row, column| page.write_string(row, column, name).map(drop))?;
        }
        Ok(sheet)
    }

    /// Adds rows.
    ///
    /// # Errors
    ///
    /// [`SheetError::TooManyRows`], [`SheetError::Cell`].
    pub fn rows(&mut self, rows: &Rows) -> Result<(), SheetError> {
        for at in 0..rows.len() {
            if self.row == MOST_ROWS {
                return Err(SheetError::TooManyRows);
            }
            self.row += 1;
            for (column, (name, values)) in rows.columns.iter().enumerate() {
                self.cell(column, |page, row, column| write(page, (row, column), (name, values), at))?;
            }
        }
        Ok(())
    }

    fn cell(
        &mut self,
        at: usize,
        write: impl FnOnce(&mut Worksheet, u32, u16) -> Result<(), XlsxError>,
    ) -> Result<(), SheetError> {
        let column = u16::try_from(at).map_err(|_| SheetError::TooManyColumns(at))?;
        let page = self.book.worksheet_from_index(0)?;
        write(page, self.row, column).map_err(|source| {
            let column = self.columns.get(at).cloned().unwrap_or_default();
            SheetError::Cell { row: self.row, column, source }
        })
    }

    /// Writes the workbook to `target` and the disk; gives its rows.
    ///
    /// # Errors
    ///
    /// [`SheetError::Write`]; `target` may be there and is not whole then.
    pub fn save(mut self, target: &Path) -> Result<u64, SheetError> {
        let file = File::create(target)?;
        self.book.save_to_writer(io::BufWriter::new(&file))?;
        file.sync_all()?;
        Ok(u64::from(self.row))
    }
}

fn write(
    page: &mut Worksheet,
    (row, column): (u32, u16),
    (name, values): (&str, &Values),
    at: usize,
) -> Result<(), XlsxError> {
    let mut text = |text: String| page.write_string(row, column, text).map(drop);
    match values {
        Values::Text(values) => values[at].clone().map_or(Ok(()), text),
        Values::Integer(values) => match values[at] {
            Some(number) if name == "msgid" || number.unsigned_abs() > EXACT => text(number.to_string()),
            Some(number) =>
            {
                #[expect(clippy::cast_precision_loss, reason = "below 53 bits, as the guard says")]
                page.write_number(row, column, number as f64).map(drop)
            }
            None => Ok(()),
        },
        Values::Float(values) => match values[at] {
            Some(number) if !number.is_finite() => text(number.to_string()),
            Some(number) => page.write_number(row, column, number).map(drop),
            None => Ok(()),
        },
        Values::Boolean(values) => values[at].map_or(Ok(()), |value| page.write_boolean(row, column, value).map(drop)),
        Values::Timestamp(values) => {
            values[at].map_or(Ok(()), |micros| text(from_micros(micros).format("%Y-%m-%d %H:%M:%S").to_string()))
        }
        Values::Date(values) => {
            let date = values[at].and_then(chrono::NaiveDate::from_epoch_days);
            date.map_or(Ok(()), |date| text(date.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_no_formulas_and_what_a_cell_cannot_hold_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("people.xlsx");
        let mut sheet = Sheet::begin(&["who".to_owned(), "msgid".to_owned()]).unwrap();
        let rows = Rows {
            columns: vec![
                ("who".to_owned(), Values::Text(vec![Some("=1+1".to_owned()), None])),
                ("msgid".to_owned(), Values::Integer(vec![Some(7), Some(i64::MAX)])),
            ],
        };
        sheet.rows(&rows).unwrap();
        assert_eq!(sheet.save(&target).unwrap(), 2);
        assert!(std::fs::read(&target).unwrap().starts_with(b"PK"));
        let mut sheet = Sheet::begin(&["who".to_owned()]).unwrap();
        let long = Rows { columns: vec![("who".to_owned(), Values::Text(vec![Some("x".repeat(40_000))]))] };
        let error = sheet.rows(&long).unwrap_err().to_string();
        assert!(error.starts_with("row 1, column `who`"), "{error}");
    }
}
