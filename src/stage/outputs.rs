//! Rows as files for others: `lianbo sql -o` and `publish` write them by the same hands.
//!
//! The same rows in the same order are the same bytes: nothing of when, where or by whom stands in a file. The order is the
//! SELECT's affair. Texts that a spreadsheet would take for a formula are kept from that. Not here: names and renames, and
//! how rows are shown to people.

mod csv;
mod late;
mod sheet;

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

pub use self::csv::{Csv, cell, day, moment};
use self::sheet::Sheet;
pub use self::sheet::SheetError;
use crate::domain::Rows;
use crate::engine::{EngineError, Params, Session, for_parquet};

/// Where rows go. With a [`io::ErrorKind::BrokenPipe`] they end: nobody reads on.
pub trait RowSink: Send {
    /// Called once with names and DuckDB types, before the rows, also when there are none.
    fn begin(&mut self, columns: &[(String, String)]) -> io::Result<()>;
    fn rows(&mut self, rows: &Rows) -> io::Result<()>;
    fn end(&mut self) -> io::Result<()>;
}

/// A SELECT that was bound: what a file is made of.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    pub sql: &'a str,
    pub params: &'a Params,
    /// Names, each once, and DuckDB types.
    pub columns: &'a [(String, String)],
    /// More rows than this are an error; left out, any number.
    pub most_rows: Option<u64>,
}

/// Why rows do not become a file.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Sheet(SheetError),
    #[error("writing the rows")]
    Write(#[source] io::Error),
    #[error("there are more than {0} rows")]
    TooManyRows(u64),
}

impl From<SheetError> for OutputError {
    fn from(error: SheetError) -> Self {
        match error {
            SheetError::Write(source) => Self::Write(source),
            other => Self::Sheet(other),
        }
    }
}

impl Bound<'_> {
    fn each(
        &self,
        session: &Session,
        mut batch: impl FnMut(&Rows) -> Result<(), OutputError>,
    ) -> Result<u64, OutputError> {
        let mut rows_out = 0;
        session.stream_bound::<OutputError>((self.sql, self.columns), self.params, |rows| {
            rows_out += u64::try_from(rows.len()).unwrap_or(u64::MAX);
            if let Some(most) = self.most_rows.filter(|most| rows_out > *most) {
                return Err(OutputError::TooManyRows(most));
            }
            batch(&rows).map(|()| true)
        })?;
        Ok(rows_out)
    }

    /// Streams the rows into `sink` and gives their number, holding a batch at a time. What fails before its first row leaves
    /// nothing behind, not even a header.
    ///
    /// # Errors
    ///
    /// [`OutputError`]; what the sink got before stays there.
    pub fn pour(&self, session: &Session, sink: &mut dyn RowSink) -> Result<u64, OutputError> {
        let (mut has_begun, mut poured) = (false, 0);
        let mut pour = || {
            self.each(session, |rows| {
                if !std::mem::replace(&mut has_begun, true) {
                    sink.begin(self.columns).map_err(OutputError::Write)?;
                }
                poured += u64::try_from(rows.len()).unwrap_or(u64::MAX);
                sink.rows(rows).map_err(OutputError::Write)
            })?;
            if !has_begun {
                sink.begin(self.columns).map_err(OutputError::Write)?;
            }
            sink.end().map_err(OutputError::Write)
        };
        match pour() {
            Err(OutputError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(poured),
            done => done.map(|()| poured),
        }
    }

    /// Writes a file of records, whole and on disk. `is_raw` leaves every text as it is.
    ///
    /// # Errors
    ///
    /// [`OutputError`]; `target` may be there and is not whole then.
    pub fn csv(&self, session: &Session, target: &Path, is_raw: bool) -> Result<u64, OutputError> {
        let file = File::create(target).map_err(OutputError::Write)?;
        let durable = file.try_clone().map_err(OutputError::Write)?;
        let rows = self.pour(session, &mut Csv::new(BufWriter::with_capacity(1 << 16, file), is_raw))?;
        durable.sync_all().map_err(OutputError::Write)?;
        Ok(rows)
    }

    /// Writes a workbook of one sheet, whole and on disk.
    ///
    /// # Errors
    ///
    /// [`OutputError`]; `target` may be there and is not whole then.
    pub fn xlsx(&self, session: &Session, target: &Path, is_raw: bool) -> Result<u64, OutputError> {
        let mut sheet = Sheet::begin(self.columns, is_raw)?;
        self.each(session, |rows| Ok(sheet.rows(rows)?))?;
        Ok(sheet.save(target)?)
    }

    /// Writes Parquet with the SELECT's own types, whole and on disk.
    ///
    /// # Errors
    ///
    /// [`OutputError`]; what was written stays under the name of a part that is not whole.
    pub fn parquet(&self, session: &Session, target: &Path) -> Result<u64, OutputError> {
        let most = self.most_rows.map(|most| most.saturating_add(1));
        let (sql, _) = for_parquet(self.sql, self.columns.to_vec());
        let written = session.copy_at_most(&sql, self.params, (target, most))?;
        match self.most_rows {
            Some(most) if written.rows > most => Err(OutputError::TooManyRows(most)),
            _ => Ok(written.rows),
        }
    }
}

/// The names of the columns, a repeated one with a number after it (`openid`, `openid_1`).
pub fn told_apart(columns: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut apart: Vec<(String, String)> = Vec::with_capacity(columns.len());
    for (name, ty) in columns {
        let mut numbered = (1..).map(|number| format!("{name}_{number}"));
        let mut own = name.clone();
        while apart.iter().any(|(known, _)| *known == own) {
            own = numbered.next().unwrap_or_default();
        }
        apart.push((own, ty));
    }
    apart
}

/// Whether a text would be taken for a formula: as it begins so, in full width as well, or hides that behind a blank.
fn looks_like_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
}

/// Whether values of a DuckDB type that arrive as text are numbers.
fn is_number(ty: &str) -> bool {
    ty.starts_with("DECIMAL") || matches!(ty, "HUGEINT" | "UHUGEINT" | "UBIGINT" | "BIGNUM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_column_gets_a_number_that_nobody_has() {
        let columns = ["a", "a_1", "a", "b", "a"].map(|name| (name.to_owned(), String::new()));
        let names: Vec<String> = told_apart(columns.to_vec()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "a_1", "a_2", "b", "a_3"]);
    }
}
