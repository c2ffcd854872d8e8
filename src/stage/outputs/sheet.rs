//! Rows as a workbook of one sheet, in constant memory. Texts are cells of text, so that none is taken for a formula, marked
//! so that none becomes one when somebody edits it; numbers of more digits than a sheet keeps, and every msgid, are text as
//! well. Days are days, times are times in UTC.

use std::fs::File;
use std::io;
use std::path::Path;

use rust_xlsxwriter::{DocProperties, ExcelDateTime, Format, Workbook, Worksheet, XlsxError};

use super::late::Late;
use super::{cell, is_number, looks_like_formula};
use crate::domain::{Rows, Values};

/// Rows a sheet holds, without its header.
const MOST_ROWS: u32 = 1_048_575;
/// Columns a sheet holds.
const MOST_COLUMNS: usize = 16_384;
/// Characters a cell holds, counted as UTF-16 does.
const MOST_CHARACTERS: usize = 32_767;
/// Digits of a number that a sheet keeps.
const DIGITS: usize = 15;
/// 1970 in days of a sheet, which are right from March 1900 to the end of 9999.
const EPOCH: f64 = 25_569.0;
const DAYS: std::ops::Range<f64> = 61.0..2_958_466.0;
const MICROS_A_DAY: f64 = 86_400_000_000.0;

/// Why rows do not become a workbook.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    #[error("a sheet of xlsx holds {MOST_ROWS} rows, and there are more: write csv or parquet")]
    TooManyRows,
    #[error("a sheet of xlsx holds {MOST_COLUMNS} columns, and there are {0}: write csv or parquet")]
    TooManyColumns(usize),
    #[error(
        "row {row}, column `{column}`: {characters} characters, and a cell of xlsx holds {MOST_CHARACTERS}: write csv or parquet"
    )]
    LongText { row: u32, column: String, characters: usize },
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
    columns: Vec<(String, String)>,
    row: u32,
    formats: Formats,
}

struct Formats {
    day: Format,
    time: Format,
    /// Of a text that looks like a formula: it stays a text when somebody edits it.
    text: Format,
    is_raw: bool,
}

impl Sheet {
    /// Begins with a header of `columns` (names and DuckDB types). With `is_raw` no text is marked as one.
    ///
    /// # Errors
    ///
    /// [`SheetError`].
    pub fn begin(columns: &[(String, String)], is_raw: bool) -> Result<Self, SheetError> {
        if columns.len() > MOST_COLUMNS {
            return Err(SheetError::TooManyColumns(columns.len()));
        }
        let mut book = Workbook::new();
        // When it was made would make other bytes of the same rows.
        book.set_properties(&DocProperties::new().set_creation_datetime(&ExcelDateTime::from_ymd(2000, 1, 1)?));
        let page = book.add_worksheet_with_constant_memory()?;
        for (column, (_, ty)) in (0..).zip(columns) {
            let width = match ty.as_str() {
                "DATE" => 11,
                ty if ty.starts_with("TIMESTAMP") => 20,
                _ => continue,
            };
            page.set_column_width(column, width)?;
        }
        let formats = Formats {
            day: Format::new().set_num_format("yyyy-mm-dd"),
            time: Format::new().set_num_format("yyyy-mm-dd hh:mm:ss"),
            text: Format::new().set_quote_prefix(),
            is_raw,
        };
        let mut sheet = Self { book, columns: columns.to_vec(), row: 0, formats };
        for at in 0..columns.len() {
            let name = sheet.columns[at].0.clone();
            sheet.write(at, &Cell::Text(name.into()))?;
        }
        Ok(sheet)
    }

    /// Adds rows.
    ///
    /// # Errors
    ///
    /// [`SheetError::TooManyRows`], [`SheetError::LongText`], [`SheetError::Cell`].
    pub fn rows(&mut self, rows: &Rows) -> Result<(), SheetError> {
        for at in 0..rows.len() {
            if self.row == MOST_ROWS {
                return Err(SheetError::TooManyRows);
            }
            self.row += 1;
            for (column, (name, values)) in rows.columns.iter().enumerate() {
                let ty = self.columns.get(column).map_or("", |(_, ty)| ty.as_str());
                let cell = Cell::of((name, ty), values, at);
                self.write(column, &cell)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, at: usize, cell: &Cell<'_>) -> Result<(), SheetError> {
        let column = u16::try_from(at).map_err(|_| SheetError::TooManyColumns(at))?;
        let name = || self.columns.get(at).map(|(name, _)| name.clone()).unwrap_or_default();
        if let Cell::Text(text) = cell
            && text.len() > MOST_CHARACTERS
        {
            let characters = text.encode_utf16().count();
            if characters > MOST_CHARACTERS {
                return Err(SheetError::LongText { row: self.row, column: name(), characters });
            }
        }
        let page = self.book.worksheet_from_index(0)?;
        put(page, (self.row, column), cell, &self.formats).map_err(|source| SheetError::Cell {
            row: self.row,
            column: name(),
            source,
        })
    }

    /// Writes the workbook to `target` and the disk; gives its rows.
    ///
    /// # Errors
    ///
    /// [`SheetError::Write`]; `target` may be there and is not whole then.
    pub fn save(mut self, target: &Path) -> Result<u64, SheetError> {
        let file = File::create(target)?;
        let mut late = Late::new(&file);
        self.book.save_to_writer(&mut late)?;
        late.finish_on_disk()?;
        Ok(u64::from(self.row))
    }
}

fn put(page: &mut Worksheet, (row, column): (u32, u16), cell: &Cell<'_>, formats: &Formats) -> Result<(), XlsxError> {
    match cell {
        Cell::Nothing => Ok(()),
        Cell::Text(text) if !formats.is_raw && looks_like_formula(text) => {
            page.write_string_with_format(row, column, text.as_ref(), &formats.text).map(drop)
        }
        Cell::Text(text) => page.write_string(row, column, text.as_ref()).map(drop),
        Cell::Number(number) => page.write_number(row, column, *number).map(drop),
        Cell::Boolean(value) => page.write_boolean(row, column, *value).map(drop),
        Cell::Day(day) => page.write_number_with_format(row, column, *day, &formats.day).map(drop),
        Cell::Time(time) => page.write_number_with_format(row, column, *time, &formats.time).map(drop),
    }
}

/// A value as its cell stands there.
enum Cell<'a> {
    Nothing,
    Text(std::borrow::Cow<'a, str>),
    Number(f64),
    Boolean(bool),
    /// Days since the end of 1899.
    Day(f64),
    Time(f64),
}

impl<'a> Cell<'a> {
    fn of((name, ty): (&str, &str), values: &'a Values, at: usize) -> Self {
        let found = match values {
            Values::Text(values) => {
                let number = |text: &str| is_number(ty).then(|| number(text)).flatten();
                values[at].as_deref().map(|text| number(text).map_or(Self::Text(text.into()), Self::Number))
            }
            Values::Integer(values) => values[at].map(|value| {
                let text = value.to_string();
                let number = if name == "msgid" { None } else { number(&text) };
                number.map_or(Self::Text(text.into()), Self::Number)
            }),
            Values::Float(values) => values[at].map(|value| match value.is_finite() {
                true => Self::Number(value),
                false => Self::Text(value.to_string().into()),
            }),
            Values::Boolean(values) => values[at].map(Self::Boolean),
            Values::Date(values) => values[at].map(|days| {
                let day = f64::from(days) + EPOCH;
                if DAYS.contains(&day) {
                    Self::Day(day)
                } else {
                    Self::Text(cell(&Values::Date(vec![Some(days)]), 0).into())
                }
            }),
            Values::Timestamp(values) => values[at].map(|micros| {
                #[expect(clippy::cast_precision_loss, reason = "below 2^53 within the days that a sheet counts")]
                let time = micros as f64 / MICROS_A_DAY + EPOCH;
                let text = || cell(&Values::Timestamp(vec![Some(micros)]), 0);
                if DAYS.contains(&time) { Self::Time(time) } else { Self::Text(text().into()) }
            }),
        };
        found.unwrap_or(Self::Nothing)
    }
}

/// A number that a sheet shows with every digit it has.
fn number(text: &str) -> Option<f64> {
    let digits = text.chars().filter(char::is_ascii_digit).collect::<String>();
    (digits.trim_start_matches('0').len() <= DIGITS).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use calamine::{Data, Reader as _, Xlsx};

    use super::*;

    fn columns(columns: &[(&str, &str)]) -> Vec<(String, String)> {
        columns.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned())).collect()
    }

    fn texts(values: &[&str]) -> Values {
        Values::Text(values.iter().map(|value| Some((*value).to_owned())).collect())
    }

    fn book(target: &Path) {
        let of =
            [("who", "VARCHAR"), ("id", "BIGINT"), ("price", "DECIMAL(20,2)"), ("at", "TIMESTAMP"), ("day", "DATE")];
        let mut sheet = Sheet::begin(&columns(&of), false).unwrap();
        let rows = Rows {
            columns: vec![
                ("who".to_owned(), texts(&["=1+1", "小明"])),
                ("id".to_owned(), Values::Integer(vec![Some(-7), Some(i64::MAX)])),
                ("price".to_owned(), texts(&["-99.50", "123456789012345678.90"])),
                ("at".to_owned(), Values::Timestamp(vec![Some(1_763_922_600_000_000), Some(-5_000_000_000_000_000)])),
                ("day".to_owned(), Values::Date(vec![Some(20_000), None])),
            ],
        };
        sheet.rows(&rows).unwrap();
        assert_eq!(sheet.save(target).unwrap(), 2);
    }

    #[test]
    fn texts_are_no_formulas_long_ids_are_texts_and_dates_are_dates() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("people.xlsx");
        book(&target);
        let mut read: Xlsx<_> = calamine::open_workbook(&target).unwrap();
        let range = read.worksheet_range_at(0).unwrap().unwrap();
        let cell = |row, column| range.get((row, column)).cloned().unwrap_or(Data::Empty);
        assert_eq!((cell(1, 0), cell(1, 1)), (Data::String("=1+1".to_owned()), Data::Float(-7.0)));
        assert_eq!(cell(2, 1), Data::String(i64::MAX.to_string()));
        assert_eq!((cell(1, 2), cell(2, 2)), (Data::Float(-99.5), Data::String("123456789012345678.90".to_owned())));
        let Data::DateTime(at) = cell(1, 3) else { panic!("{:?}", cell(1, 3)) };
        assert_eq!(at.to_ymd_hms_milli(), (2025, 11, 23, 18, 30, 0, 0));
        assert_eq!(cell(2, 3), Data::String("1811-07-23 15:06:40".to_owned()), "no sheet counts days before 1900");
        let Data::DateTime(day) = cell(1, 4) else { panic!("{:?}", cell(1, 4)) };
        assert_eq!((day.to_ymd_hms_milli(), cell(2, 4)), ((2024, 10, 4, 0, 0, 0, 0), Data::Empty));
    }

    #[test]
    fn the_same_rows_are_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one.xlsx", "other.xlsx"].map(|name| folder.path().join(name));
        book(&one);
        // A book says in seconds when it was made, unless that is kept out of it.
        book(&other);
        assert!(std::fs::read(&one).unwrap() == std::fs::read(&other).unwrap());
        let core = {
            let mut zip = zip::ZipArchive::new(File::open(&one).unwrap()).unwrap();
            io::read_to_string(zip.by_name("docProps/core.xml").unwrap()).unwrap()
        };
        assert!(core.contains("2000-01-01T00:00:00Z"), "{core}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_what_the_error_says() {
        let mut sheet = Sheet::begin(&columns(&[("who", "VARCHAR")]), false).unwrap();
        sheet.rows(&Rows { columns: vec![("who".to_owned(), texts(&["小明"]))] }).unwrap();
        let error = sheet.save(Path::new("/dev/full")).unwrap_err();
        assert!(matches!(&error, SheetError::Write(of) if of.kind() == io::ErrorKind::StorageFull), "{error:?}");
    }

    #[test]
    fn what_a_cell_cannot_hold_is_named() {
        let mut sheet = Sheet::begin(&columns(&[("who", "VARCHAR")]), false).unwrap();
        // Whatever lies beyond the first 65 536 characters counts as two.
        for long in ["x".repeat(32_768), "😀".repeat(16_384)] {
            let long = Rows { columns: vec![("who".to_owned(), Values::Text(vec![Some(long)]))] };
            let error = sheet.rows(&long).unwrap_err().to_string();
            assert!(error.contains("column `who`") && error.contains("32768 characters, and a cell"), "{error}");
        }
    }
}
