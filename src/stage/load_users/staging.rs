//! Batches of an export into parts of texts, on a thread beside the one that reads the file: reading and writing take
//! about as long, so that a large file is staged in the time of one of them.
//!
//! The parts live until they are folded, minutes at most: they are not compressed, and say nothing of what is in them.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};

use super::stage_files::Job;
use crate::domain::tables::table_spec;
use crate::domain::{ColumnType, Rows, Values};
use crate::exports::{BadRow, Batch, ExportError, LINE_COLUMN, Sink};
use crate::lake::{LakeError, PartColumn, PartWriter};
use crate::stage::StageError;

/// Batches that are read and not yet taken by the writer.
const WAITING: usize = 2;

/// What became of a file's batches.
pub struct Written {
    pub parts: Vec<PathBuf>,
    pub quarantine: Vec<PathBuf>,
    /// Line and reason.
    pub first_bad: Option<(u64, String)>,
}

/// Lets `read` give its batches to a sink whose rows are written meanwhile. What cannot be written ends the reading.
///
/// # Errors
///
/// [`StageError::Lake`], [`StageError::Interrupted`], and what `read` fails with.
pub fn beside<T>(
    job: &Job,
    read: impl FnOnce(&mut Sink<'_>) -> Result<T, StageError>,
) -> Result<(T, Written), StageError> {
    std::thread::scope(|scope| {
        let (send, batches) = mpsc::sync_channel::<Batch>(WAITING);
        let writer = scope.spawn(move || Writer::new(job).write_all(&batches));
        let report = read(&mut |batch| {
            if job.stop.is_cancelled() {
                return Err(ExportError::from_sink("told to stop"));
            }
            send.send(batch).map_err(|_| ExportError::from_sink("the writer has ended"))
        });
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if job.stop.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        // Why nobody takes batches any more says more than that nobody does.
        let written = written?;
        Ok((report?, written))
    })
}

/// Writes batches; a batch with more columns than the part before begins a new part.
struct Writer<'a> {
    job: &'a Job,
    current: Option<(Vec<String>, PartWriter)>,
    parts: Vec<PathBuf>,
    quarantine: Option<PartWriter>,
    first_bad: Option<(u64, String)>,
}

impl<'a> Writer<'a> {
    fn new(job: &'a Job) -> Self {
        Self { job, current: None, parts: Vec::new(), quarantine: None, first_bad: None }
    }

    fn write_all(mut self, batches: &Receiver<Batch>) -> Result<Written, LakeError> {
        for batch in batches {
            self.take(batch)?;
        }
        self.close()?;
        let quarantine = match self.quarantine.take() {
            Some(writer) => vec![self.job.lake.absolute(&writer.finish()?.path)],
            None => Vec::new(),
        };
        Ok(Written { parts: self.parts, quarantine, first_bad: self.first_bad })
    }

    fn take(&mut self, batch: Batch) -> Result<(), LakeError> {
        if !batch.bad.is_empty() {
            self.take_bad(batch.bad)?;
        }
        if batch.lines.is_empty() {
            return Ok(());
        }
        let names = batch.columns.iter().map(|(name, _)| name);
        let fits = self.current.as_ref().is_some_and(|(own, _)| own.iter().eq(names.clone()));
        if !fits {
            let names: Vec<String> = names.cloned().collect();
            self.close()?;
            let mut schema: Vec<(&str, ColumnType)> =
                names.iter().map(|name| (name.as_str(), ColumnType::Text)).collect();
            schema.push((LINE_COLUMN, ColumnType::Integer));
            let path = format!("{}/file-{:05}-{:03}.parquet", self.job.work, self.job.number, self.parts.len());
            let writer = self.job.lake.writer_of_ids(&path, &schema)?;
            self.current = Some((names, writer));
        }
        let (_, writer) = self.current.as_mut().expect("a part was begun above");
        let count = batch.lines.len();
        let texts = batch.columns.iter().map(|(name, values)| (name.as_str(), PartColumn::Texts(values)));
        let lines = PartColumn::Values(Values::Integer(batch.lines.into_iter().map(Some).collect()));
        writer.write_columns(count, texts.chain([(LINE_COLUMN, lines)]).collect())
    }

    fn take_bad(&mut self, bad: Vec<BadRow>) -> Result<(), LakeError> {
        if self.first_bad.is_none() {
            self.first_bad = bad.first().map(|row| (row.line, row.reason.clone()));
        }
        if self.quarantine.is_none() {
            let path = format!("{}/bad-{:05}.parquet", self.job.work, self.job.number);
            let schema = table_spec("quarantine").expect("quarantine is declared").part_schema();
            self.quarantine = Some(self.job.lake.writer(&path, &schema)?);
        }
        let writer = self.quarantine.as_mut().expect("it was begun above");
        let count = bad.len();
        let (mut lines, mut reasons, mut raws) = (Vec::new(), Vec::new(), Vec::new());
        for row in bad {
            lines.push(i64::try_from(row.line).ok());
            reasons.push(Some(row.reason));
            raws.push(Some(row.raw));
        }
        writer.write(Rows {
            columns: vec![
                ("source".to_owned(), Values::Text(vec![Some(self.job.source.clone()); count])),
                ("file".to_owned(), Values::Text(vec![Some(self.job.shown.clone()); count])),
                ("line".to_owned(), Values::Integer(lines)),
                ("reason".to_owned(), Values::Text(reasons)),
                ("raw".to_owned(), Values::Text(raws)),
            ],
        })
    }

    fn close(&mut self) -> Result<(), LakeError> {
        if let Some((_, writer)) = self.current.take() {
            // After a power cut the file is read anew: nobody waits for the disk.
            let (part, _not_durable) = writer.finish_soon()?;
            self.parts.push(self.job.lake.absolute(&part.path));
        }
        Ok(())
    }
}
