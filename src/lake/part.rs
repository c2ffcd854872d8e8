//! Writing rows into one Parquet file through Polars, by one declared schema, with flat memory.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    Column, DataFrame, DataType, Field, IntoColumn, NamedFrom, ParquetCompression, ParquetWriter, PlSmallStr, Schema,
    Series, TimeUnit,
};

use super::{Lake, LakeError};
use crate::domain::{ColumnType, Rows, Values};

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Relative to the lake.
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Writes batches into a file that appears under its name only in [`finish`](Self::finish).
///
/// A writer that is dropped leaves a file ending in `.tmp`, which nobody reads and `vacuum` removes.
pub struct PartWriter {
    relative: String,
    target: PathBuf,
    unfinished: PathBuf,
    file: File,
    writer: BatchedWriter<BufWriter<File>>,
    schema: Vec<(String, ColumnType)>,
    rows: u64,
}

impl Lake {
    /// Begins the file `relative` (to the lake) with the given columns.
    ///
    /// # Errors
    ///
    /// [`LakeError::CreateFolder`], [`LakeError::Write`].
    pub fn writer<N: AsRef<str>>(&self, relative: &str, schema: &[(N, ColumnType)]) -> Result<PartWriter, LakeError> {
        let target = self.absolute(relative);
        let unfinished = target.with_extension("parquet.tmp");
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LakeError::CreateFolder { path: folder.to_owned(), source })?;
        }
        let file = File::create(&unfinished).map_err(|source| LakeError::Write { path: unfinished.clone(), source })?;
        let second = file.try_clone().map_err(|source| LakeError::Write { path: unfinished.clone(), source })?;
        let fields: Schema = schema
            .iter()
            .map(|(name, column_type)| Field::new(PlSmallStr::from_str(name.as_ref()), polars_type(*column_type)))
            .collect();
        let writer = ParquetWriter::new(BufWriter::new(second))
            .with_compression(ParquetCompression::Snappy)
            .set_parallel(false)
            .batched(&fields)
            .map_err(|source| LakeError::WriteRows { path: unfinished.clone(), source })?;
        let schema = schema.iter().map(|(name, ty)| (name.as_ref().to_owned(), *ty)).collect();
        Ok(PartWriter { relative: relative.to_owned(), target, unfinished, file, writer, schema, rows: 0 })
    }
}

impl PartWriter {
    /// Appends one row group. Columns are taken by name; a column that is missing is NULL throughout.
    ///
    /// # Errors
    ///
    /// [`LakeError::WriteRows`].
    pub fn write(&mut self, rows: Rows) -> Result<(), LakeError> {
        let count = rows.len();
        if count == 0 {
            return Ok(());
        }
        let mut given = rows.columns;
        let columns: Vec<Column> = self
            .schema
            .iter()
            .map(|(name, column_type)| {
                let values = given.iter().position(|(own, _)| own == name).map(|at| given.swap_remove(at).1);
                column(name, *column_type, values, count)
            })
            .collect::<Result<_, _>>()
            .map_err(|source| LakeError::WriteRows { path: self.unfinished.clone(), source })?;
        let frame = DataFrame::new(count, columns)
            .and_then(|frame| self.writer.write_batch(&frame))
            .map_err(|source| LakeError::WriteRows { path: self.unfinished.clone(), source });
        self.rows += u64::try_from(count).unwrap_or(u64::MAX);
        frame
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Makes the file whole, durable, and visible under its name.
    ///
    /// # Errors
    ///
    /// [`LakeError::WriteRows`], [`LakeError::Write`].
    pub fn finish(self) -> Result<Part, LakeError> {
        self.writer.finish().map_err(|source| LakeError::WriteRows { path: self.unfinished.clone(), source })?;
        // The writer's buffer is flushed when it is dropped with the footer written; the handle beside it makes it durable.
        drop(self.writer);
        let write_error = |source| LakeError::Write { path: self.target.clone(), source };
        self.file.sync_all().map_err(write_error)?;
        let bytes = self.file.metadata().map_err(write_error)?.len();
        std::fs::rename(&self.unfinished, &self.target).map_err(write_error)?;
        Ok(Part { path: self.relative, rows: self.rows, bytes })
    }
}

fn polars_type(column_type: ColumnType) -> DataType {
    match column_type {
        ColumnType::Text => DataType::String,
        ColumnType::Integer => DataType::Int64,
        ColumnType::Float => DataType::Float64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Timestamp => DataType::Datetime(TimeUnit::Microseconds, None),
        ColumnType::Date => DataType::Date,
    }
}

fn column(
    name: &str,
    column_type: ColumnType,
    values: Option<Values>,
    count: usize,
) -> Result<Column, polars::error::PolarsError> {
    let label = PlSmallStr::from_str(name);
    let series = match values {
        None => return Ok(Column::full_null(label, count, &polars_type(column_type))),
        Some(Values::Text(values)) => {
            Series::new(label, values.iter().map(Option::as_deref).collect::<Vec<Option<&str>>>())
        }
        Some(Values::Integer(values) | Values::Timestamp(values)) => Series::new(label, values),
        Some(Values::Float(values)) => Series::new(label, values),
        Some(Values::Boolean(values)) => Series::new(label, values),
        Some(Values::Date(values)) => Series::new(label, values),
    };
    Ok(series.cast(&polars_type(column_type))?.into_column())
}
