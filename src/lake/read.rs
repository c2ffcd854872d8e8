//! Reading rows of a part back, some columns and some rows at a time: nobody holds a part of millions.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;

use polars::error::{PolarsError, PolarsResult};
use polars::prelude::{ParallelStrategy, ParquetReader, SerReader, Series};
use polars_parquet::parquet::read::read_num_rows;

use super::{Lake, LakeError};
use crate::domain::{ColumnType, Texts};

/// A column as it is read.
#[derive(Debug)]
pub enum ColumnRead {
    Texts(Texts),
    /// Times too, in microseconds since 1970.
    Integers(Vec<Option<i64>>),
    Booleans(Vec<Option<bool>>),
}

/// Rows of a part, column by column in the order they were asked for.
#[derive(Debug, Default)]
pub struct RowsRead {
    columns: Vec<Option<ColumnRead>>,
}

impl RowsRead {
    /// Takes the texts at `place`; empty where the column is of another kind.
    pub fn texts(&mut self, place: usize) -> Texts {
        match self.take(place) {
            Some(ColumnRead::Texts(values)) => values,
            _ => Texts::default(),
        }
    }

    /// Takes the numbers or times at `place`; empty where the column is of another kind.
    pub fn integers(&mut self, place: usize) -> Vec<Option<i64>> {
        match self.take(place) {
            Some(ColumnRead::Integers(values)) => values,
            _ => Vec::new(),
        }
    }

    /// Takes the truths at `place`; empty where the column is of another kind.
    pub fn booleans(&mut self, place: usize) -> Vec<Option<bool>> {
        match self.take(place) {
            Some(ColumnRead::Booleans(values)) => values,
            _ => Vec::new(),
        }
    }

    fn take(&mut self, place: usize) -> Option<ColumnRead> {
        self.columns.get_mut(place).and_then(Option::take)
    }
}

impl Lake {
    /// How many rows a part has: read off its footer.
    ///
    /// # Errors
    ///
    /// [`LakeError::Read`], [`LakeError::ReadRows`].
    pub fn rows_of(&self, relative: &str) -> Result<u64, LakeError> {
        let path = self.absolute(relative);
        let file = File::open(&path).map_err(|source| LakeError::Read { path: path.clone(), source })?;
        let rows = read_num_rows(&mut BufReader::new(file))
            .map_err(|source| LakeError::ReadRows { path, source: PolarsError::from(source) })?;
        Ok(u64::try_from(rows).unwrap_or(0))
    }

    /// Some columns of some rows of a part; fewer rows where it ends before. Text, whole numbers, times and truths only.
    ///
    /// # Errors
    ///
    /// [`LakeError::Read`], [`LakeError::ReadRows`]: a column is missing or of another type.
    pub fn read_rows(
        &self,
        relative: &str,
        columns: &[(&str, ColumnType)],
        rows: Range<usize>,
    ) -> Result<RowsRead, LakeError> {
        let path = self.absolute(relative);
        let file = File::open(&path).map_err(|source| LakeError::Read { path: path.clone(), source })?;
        let read = || -> PolarsResult<RowsRead> {
            let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
            let frame = ParquetReader::new(file)
                .with_columns(Some(names))
                .with_slice(Some((rows.start, rows.len())))
                .read_parallel(ParallelStrategy::None)
                .finish()?;
            let column = |(name, column_type): &(&str, ColumnType)| {
                let column = frame.column(name)?.as_materialized_series();
                column_read(column, *column_type).map(Some)
            };
            Ok(RowsRead { columns: columns.iter().map(column).collect::<PolarsResult<_>>()? })
        };
        read().map_err(|source| LakeError::ReadRows { path, source })
    }
}

fn column_read(column: &Series, column_type: ColumnType) -> PolarsResult<ColumnRead> {
    Ok(match column_type {
        ColumnType::Text => ColumnRead::Texts(column.str()?.iter().collect()),
        ColumnType::Boolean => ColumnRead::Booleans(column.bool()?.iter().collect()),
        _ => ColumnRead::Integers(column.to_physical_repr().i64()?.iter().collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::PartColumn;

    #[test]
    fn rows_are_read_back_from_the_middle_of_a_part_across_its_row_groups() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let schema =
            [("openid", ColumnType::Text), ("seen_at", ColumnType::Timestamp), ("active", ColumnType::Boolean)];
        let mut writer = lake.writer_of_ids("work/rows.parquet", &schema).unwrap();
        for group in 0..3 {
            let ids: Vec<String> = (0..10).map(|row| format!("o{group}{row}")).collect();
            let ids: Texts = ids.iter().map(|id| Some(id.as_str())).collect();
            let columns = vec![
                ("openid", PartColumn::Texts(&ids)),
                ("seen_at", PartColumn::SameTime(group)),
                ("active", PartColumn::SameBoolean(group == 1)),
            ];
            writer.write_columns(10, columns).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(lake.rows_of("work/rows.parquet").unwrap(), 30);
        let mut read = lake.read_rows("work/rows.parquet", &schema, 8..22).unwrap();
        let ids = read.texts(0);
        assert_eq!((ids.len(), ids.get(0), ids.get(13)), (14, Some("o08"), Some("o21")));
        assert_eq!(read.integers(1)[1..3], [Some(0), Some(1)]);
        assert_eq!(read.booleans(2)[11..], [Some(true), Some(false), Some(false)]);
        assert_eq!(lake.read_rows("work/rows.parquet", &schema, 29..99).unwrap().texts(0).len(), 1);
        assert!(lake.read_rows("work/rows.parquet", &schema, 30..99).unwrap().texts(0).is_empty());
    }
}
