//! Writing rows into one Parquet file, by one declared schema, with flat memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::error::PolarsError;
use polars::prelude::{ParallelStrategy, ParquetReader, SerReader};
use polars_parquet::write::{CompressionOptions, StatisticsOptions, Version, WriteOptions};

use super::encode::{Encoder, Failure};
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
    encoder: Encoder,
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
        self.begin_part(relative, schema, (CompressionOptions::Snappy, StatisticsOptions::default()))
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
        self.begin_part(relative, schema, (CompressionOptions::Uncompressed, StatisticsOptions::empty()))
    }

    fn begin_part<N: AsRef<str>>(
        &self,
        relative: &str,
        schema: &[(N, ColumnType)],
        (compression, statistics): (CompressionOptions, StatisticsOptions),
    ) -> Result<PartWriter, LakeError> {
        let target = self.absolute(relative);
        let unfinished = target.with_extension("parquet.tmp");
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LakeError::CreateFolder { path: folder.to_owned(), source })?;
        }
        let file = File::create(&unfinished).map_err(|source| LakeError::Write { path: unfinished.clone(), source })?;
        let second = file.try_clone().map_err(|source| LakeError::Write { path: unfinished.clone(), source })?;
        let schema: Vec<_> = schema.iter().map(|(name, ty)| (name.as_ref().to_owned(), *ty)).collect();
        let options = WriteOptions { statistics, compression, version: Version::V1, data_page_size: None };
        let encoder = Encoder::new(second, &schema, options)
            .map_err(|source| LakeError::WriteRows { path: unfinished.clone(), source })?;
        Ok(PartWriter { relative: relative.to_owned(), target, unfinished, file, encoder, schema, rows: 0 })
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
        let columns = self
            .schema
            .iter()
            .map(|(name, _)| given.iter().position(|(own, _)| own.as_ref() == name).map(|at| given.swap_remove(at).1))
            .collect();
        self.encoder
            .write(count, columns)
            .map_err(|source| unwritten(&self.unfinished, (source, &self.encoder.failure())))?;
        self.rows += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(())
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
        // With the footer written, its buffer goes to the file; the handle beside it makes the file durable.
        let failure = self.encoder.failure();
        self.encoder.finish().map_err(|source| unwritten(&self.unfinished, (source, &failure)))?;
        let whole = WholeFile { file: self.file, unfinished: self.unfinished, target: self.target };
        let bytes = whole.file.metadata().map_err(|source| whole.error(source))?.len();
        Ok((Part { path: self.relative, rows: self.rows, bytes }, whole))
    }
}

/// Why rows could not be written: what the system said, where it was that.
fn unwritten(path: &Path, (source, failure): (PolarsError, &Failure)) -> LakeError {
    let path = path.to_owned();
    match failure.take() {
        Some(source) => LakeError::Write { path, source },
        None => LakeError::WriteRows { path, source },
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
