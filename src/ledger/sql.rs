//! Helpers between SQL and the types of the house: reading columns, and writing many rows with one statement.

use std::ops::Deref;

use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row, Sqlite, Type};

use super::LedgerError;
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::redact::without_secrets;

/// Rows of one statement at most.
const LARGEST_BATCH: usize = 512;

/// Slices of `items` whose lengths are powers of two: few different statements, so that each is parsed once and
/// found again in the statement cache, whatever the number of rows.
pub(super) fn batches<T>(items: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let size = LARGEST_BATCH.min(1 << rest.len().checked_ilog2()?);
        let (batch, left) = rest.split_at(size);
        rest = left;
        Some(batch)
    })
}

/// `tuple` as often as there are rows, for `values`. Bulk statements use `?` and bind every value: SQLite looks up a
/// numbered parameter's name by walking all of them, which is quadratic for thousands.
pub(super) fn repeated(tuple: &str, rows: usize) -> String {
    let mut text = String::with_capacity((tuple.len() + 1) * rows);
    for row in 0..rows {
        if row > 0 {
            text.push(',');
        }
        text.push_str(tuple);
    }
    text
}

/// A count as SQLite stores it.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(to_micros)
}

/// Reads columns of a row by name.
pub(super) trait Columns {
    fn read<T>(&self, column: &'static str) -> Result<T, LedgerError>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite>;

    fn text(&self, column: &'static str) -> Result<String, LedgerError> {
        self.read(column)
    }

    fn optional_text(&self, column: &'static str) -> Result<Option<String>, LedgerError> {
        self.read(column)
    }

    fn time(&self, column: &'static str) -> Result<Timestamp, LedgerError> {
        Ok(from_micros(self.read(column)?))
    }

    fn optional_time(&self, column: &'static str) -> Result<Option<Timestamp>, LedgerError> {
        Ok(self.read::<Option<i64>>(column)?.map(from_micros))
    }

    fn count(&self, column: &'static str) -> Result<u64, LedgerError> {
        let value: i64 = self.read(column)?;
        u64::try_from(value).map_err(|_| LedgerError::Unreadable { what: column, value: value.to_string() })
    }

    fn optional_count(&self, column: &'static str) -> Result<Option<u64>, LedgerError> {
        let value: Option<i64> = self.read(column)?;
        let converted = value.map(u64::try_from).transpose();
        converted.map_err(|_| LedgerError::Unreadable { what: column, value: format!("{value:?}") })
    }

    fn date(&self, column: &'static str) -> Result<chrono::NaiveDate, LedgerError> {
        let value = self.text(column)?;
        value.parse().map_err(|_| LedgerError::Unreadable { what: column, value })
    }

    /// A word of a closed list, read with that list's own `parse`.
    fn word<T>(&self, column: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, LedgerError> {
        let value = self.text(column)?;
        parse(&value).ok_or(LedgerError::Unreadable { what: column, value })
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, LedgerError> {
        let value = self.text(column)?;
        serde_json::from_str(&value)
            .map_err(|_| LedgerError::Unreadable { what: column, value: without_secrets(&value, 80) })
    }
}

impl Columns for SqliteRow {
    fn read<T>(&self, column: &'static str) -> Result<T, LedgerError>
    where
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.try_get(column).map_err(|source| LedgerError::Column { column, source })
    }
}

/// JSON of something that always has one.
pub(super) fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain maps, lists and values always serialize")
}

/// Reads all rows with one function.
pub(super) fn read_all<T>(
    rows: impl Deref<Target = [SqliteRow]>,
    read: impl Fn(&SqliteRow) -> Result<T, LedgerError>,
) -> Result<Vec<T>, LedgerError> {
    rows.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_item_once_in_few_sizes() {
        let items: Vec<usize> = (0..1500).collect();
        let lengths: Vec<usize> = batches(&items).map(<[usize]>::len).collect();
        assert_eq!(lengths, [512, 512, 256, 128, 64, 16, 8, 4]);
        assert_eq!(batches(&items).flatten().copied().collect::<Vec<_>>(), items);
        assert_eq!(batches::<usize>(&[]).count(), 0);
    }
}
