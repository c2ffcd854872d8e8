//! Writing rows into one Parquet file through Polars, by one declared schema, with flat memory.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    Column, DataFrame, DataType, Field, IntoColumn, IntoSeries, NamedFrom, ParallelStrategy, ParquetCompression,
    ParquetReader, ParquetWriter, PlSmallStr, Scalar, Schema, SerReader, Series, StatisticsOptions,
    StringChunkedBuilder, TimeUnit,
};

use super::{Lake, LakeError};
use crate::crash::{self, CrashPoint};
use crate::domain::{ColumnType, Rows, Texts, Values};

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Relative to the lake.
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
}

/// A column on its way into a part.
#[derive(Debug)]
pub enum PartColumn<'a> {
    Values(Values),
    Texts(&'a Texts),
    /// One text throughout.
    Same(&'a str),
    /// One time throughout, in microseconds since 1970.
    SameTime(i64),
    SameBoolean(bool),
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
        self.begin_part(relative, schema, (ParquetCompression::Snappy, StatisticsOptions::default()))
    }

    /// The same for rows that are ids more than anything else: ids do not compress, and who is the first of them in the
    /// alphabet helps nobody.
    ///
    /// # Errors
    ///
    /// As [`Lake::writer`].
    pub fn writer_of_ids<N: AsRef<str>>(
        &self,
        relative: &str,
        schema: &[(N, ColumnType)],
    ) -> Result<PartWriter, LakeError> {
        self.begin_part(relative, schema, (ParquetCompression::Uncompressed, StatisticsOptions::empty()))
    }

    fn begin_part<N: AsRef<str>>(
        &self,
        relative: &str,
        schema: &[(N, ColumnType)],
        (compression, statistics): (ParquetCompression, StatisticsOptions),
    ) -> Result<PartWriter, LakeError> {
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
            .with_compression(compression)
            .with_statistics(statistics)
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
        let columns: Vec<(String, PartColumn<'_>)> =
            rows.columns.into_iter().map(|(name, values)| (name, PartColumn::Values(values))).collect();
        self.write_columns(count, columns)
    }

    /// The same from columns of `count` values in whatever form they are held.
    ///
    /// # Errors
    ///
    /// [`LakeError::WriteRows`].
    pub fn write_columns<N: AsRef<str>>(
        &mut self,
        count: usize,
        mut given: Vec<(N, PartColumn<'_>)>,
    ) -> Result<(), LakeError> {
        if count == 0 {
            return Ok(());
        }
        let columns: Vec<Column> = self
            .schema
            .iter()
            .map(|(name, column_type)| {
                let values = given.iter().position(|(own, _)| own.as_ref() == name).map(|at| given.swap_remove(at).1);
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

    /// Leaves nothing behind: for rows that turn out to be none.
    ///
    /// # Errors
    ///
    /// [`LakeError::Remove`].
    pub fn discard(self) -> Result<(), LakeError> {
        std::fs::remove_file(&self.unfinished)
            .map_err(|source| LakeError::Remove { path: self.unfinished.clone(), source })
    }

    /// Makes the file whole, durable, and visible under its name.
    ///
    /// # Errors
    ///
    /// [`LakeError::WriteRows`], [`LakeError::Write`].
    pub fn finish(self) -> Result<Part, LakeError> {
        let (part, whole) = self.end()?;
        whole.file.sync_all().map_err(|source| whole.error(source))?;
        whole.appear()?;
        Ok(part)
    }

    /// Makes the file whole and visible under its name; durable is left to the caller, who does not wait for it now. Until
    /// then a power cut may cut it short ([`Lake::is_whole`]); the end of the process does not.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn finish_soon(self) -> Result<(Part, WholeFile), LakeError> {
        let (part, whole) = self.end()?;
        whole.appear()?;
        Ok((part, whole))
    }

    fn end(self) -> Result<(Part, WholeFile), LakeError> {
        self.writer.finish().map_err(|source| LakeError::WriteRows { path: self.unfinished.clone(), source })?;
        // The writer's buffer is flushed when it is dropped with the footer written; the handle beside it makes it durable.
        drop(self.writer);
        let whole = WholeFile { file: self.file, unfinished: self.unfinished, target: self.target };
        let bytes = whole.file.metadata().map_err(|source| whole.error(source))?.len();
        Ok((Part { path: self.relative, rows: self.rows, bytes }, whole))
    }
}

/// A finished file that is not known to be on the disk yet.
#[derive(Debug)]
#[must_use = "until it is made durable a power cut may cut it short"]
pub struct WholeFile {
    file: File,
    unfinished: PathBuf,
    target: PathBuf,
}

impl WholeFile {
    /// Waits until it is on the disk; blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError::Write`].
    pub fn make_durable(self) -> Result<(), LakeError> {
        self.file.sync_all().map_err(|source| self.error(source))
    }

    /// Takes the name that is read.
    fn appear(&self) -> Result<(), LakeError> {
        crash::pass(CrashPoint::BeforePartRename);
        std::fs::rename(&self.unfinished, &self.target).map_err(|source| self.error(source))?;
        crash::pass(CrashPoint::AfterPartRename);
        Ok(())
    }

    fn error(&self, source: std::io::Error) -> LakeError {
        LakeError::Write { path: self.target.clone(), source }
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
    values: Option<PartColumn<'_>>,
    count: usize,
) -> Result<Column, polars::error::PolarsError> {
    let label = PlSmallStr::from_str(name);
    let series = match values {
        None => return Ok(Column::full_null(label, count, &polars_type(column_type))),
        Some(PartColumn::Same(text)) => {
            return Ok(Column::new_scalar(label, Scalar::from(PlSmallStr::from_str(text)), count));
        }
        Some(PartColumn::SameTime(micros)) => {
            return Ok(Column::new_scalar(label, Scalar::new_datetime(micros, TimeUnit::Microseconds, None), count));
        }
        Some(PartColumn::SameBoolean(value)) => return Ok(Column::new_scalar(label, Scalar::from(value), count)),
        Some(PartColumn::Texts(texts)) if !texts.has_any() => {
            return Ok(Column::full_null(label, count, &DataType::String));
        }
        Some(PartColumn::Texts(texts)) => {
            let mut builder = StringChunkedBuilder::new(label, texts.len());
            texts.iter().for_each(|value| builder.append_option(value));
            return Ok(builder.finish().into_series().into_column());
        }
        Some(PartColumn::Values(values)) => match values {
            Values::Text(values) => {
                Series::new(label, values.iter().map(Option::as_deref).collect::<Vec<Option<&str>>>())
            }
            Values::Integer(values) | Values::Timestamp(values) => Series::new(label, values),
            Values::Float(values) => Series::new(label, values),
            Values::Boolean(values) => Series::new(label, values),
            Values::Date(values) => Series::new(label, values),
        },
    };
    Ok(series.cast(&polars_type(column_type))?.into_column())
}

impl Lake {
    /// One text column of a part, whole: for parts that are known to be short.
    ///
    /// # Errors
    ///
    /// [`LakeError::Read`], [`LakeError::ReadRows`].
    pub fn read_texts(&self, relative: &str, name: &str) -> Result<Texts, LakeError> {
        let path = self.absolute(relative);
        let file = File::open(&path).map_err(|source| LakeError::Read { path: path.clone(), source })?;
        let read = || -> Result<Texts, polars::error::PolarsError> {
            let frame = ParquetReader::new(file)
                .with_columns(Some(vec![name.to_owned()]))
                .read_parallel(ParallelStrategy::None)
                .finish()?;
            Ok(frame.column(name)?.str()?.iter().collect())
        };
        read().map_err(|source| LakeError::ReadRows { path, source })
    }

    /// Whether a part is there from its first to its last byte: a power cut leaves one that was not durable yet short.
    pub fn is_whole(&self, relative: &str) -> bool {
        use std::io::{Read, Seek, SeekFrom};
        const MARK: &[u8; 4] = b"PAR1";
        let marks = || -> std::io::Result<[[u8; 4]; 2]> {
            let mut file = File::open(self.absolute(relative))?;
            let mut marks = [[0; 4]; 2];
            file.read_exact(&mut marks[0])?;
            file.seek(SeekFrom::End(-4))?;
            file.read_exact(&mut marks[1])?;
            Ok(marks)
        };
        marks().is_ok_and(|marks| marks.iter().all(|mark| mark == MARK))
    }
}
