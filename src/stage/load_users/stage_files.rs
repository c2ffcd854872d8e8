//! One file of an export into parts that the fold reads: texts for csv, JSON and sheets ([`staging`](super::staging)), the
//! file itself for Parquet.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::partitions;
use super::staging::{Written, beside};
use crate::config::settings::LoadUsers;
use crate::engine::{Params, Session, TableSource, quoted};
use crate::exports::{self, ColumnKind, FileReport, Format, Input, ReadOptions};
use crate::lake::Lake;
use crate::stage::StageError;

/// Rows of a batch; some batches are in memory at a time.
const BATCH_ROWS: usize = 20_000;

pub struct Job {
    pub input: Input,
    /// As messages and `quarantine` name it.
    pub shown: String,
    pub number: u32,
    pub plan: LoadUsers,
    pub lake: Lake,
    /// Folder for parts, relative to the lake.
    pub work: String,
    /// The stage, as `quarantine.source`.
    pub source: String,
    /// When it is told, reading ends before its next batch.
    pub stop: CancellationToken,
}

/// A column of a staged file.
#[derive(Debug, Clone)]
pub struct StagedColumn {
    /// Our name.
    pub name: String,
    /// What it is in the parts, as SQL: a column of theirs, or one value for all.
    pub sql: String,
    /// The type its values have by themselves.
    pub natural_type: String,
}

/// What tells a row of a database from the others.
pub const KEY_COLUMN: &str = "key of the row";

/// What the engine calls a row's number within its Parquet file.
const ROW_NUMBER: &str = "file_row_number";

/// A file that the fold can read.
#[derive(Debug)]
pub struct Staged {
    pub number: u32,
    pub shown: String,
    pub parts: Vec<PathBuf>,
    pub columns: Vec<StagedColumn>,
    /// Whether the parts are the export itself, so that line numbers come from the reader.
    pub is_parquet: bool,
    /// Of a database the column that is paged along; its values stand in the parts as [`KEY_COLUMN`].
    pub key: Option<String>,
    /// Whether a row may leave a column out, which then says no more than that nobody had a value.
    pub may_omit: bool,
    pub rows: u64,
    pub bad: u64,
    pub first_bad: Option<(u64, String)>,
    pub quarantine: Vec<PathBuf>,
}

/// Stages one file. Blocking.
///
/// # Errors
///
/// [`StageError::Export`] for what is wrong with the file as a whole.
pub fn stage_file(session: &Session, job: &Job) -> Result<Staged, StageError> {
    let (format, _) = job.input.format()?;
    if matches!(format, Format::Parquet) { stage_parquet(session, job) } else { stage_text(job) }
}

fn stage_text(job: &Job) -> Result<Staged, StageError> {
    let options = ReadOptions { batch_rows: BATCH_ROWS, ..super::options_of(&job.plan) };
    let (report, Written { parts, quarantine, first_bad }) =
        beside(job, |sink| Ok::<FileReport, StageError>(exports::read_file(&job.input, &options, sink)?))?;
    let columns = report
        .columns
        .iter()
        .map(|column| StagedColumn {
            name: column.name.clone(),
            sql: quoted(&column.name),
            natural_type: match column.kind {
                ColumnKind::Integer | ColumnKind::LongInteger => "BIGINT",
                ColumnKind::Number => "DOUBLE",
                ColumnKind::Boolean => "BOOLEAN",
                ColumnKind::Empty | ColumnKind::Text => "VARCHAR",
            }
            .to_owned(),
        })
        .collect();
    Ok(Staged {
        number: job.number,
        shown: job.shown.clone(),
        parts,
        columns,
        is_parquet: false,
        key: None,
        may_omit: matches!(job.input.format()?.0, Format::Ndjson | Format::Json),
        rows: report.rows,
        bad: report.bad,
        first_bad,
        quarantine,
    })
}

fn stage_parquet(session: &Session, job: &Job) -> Result<Staged, StageError> {
    let file = job.input.file_itself()?;
    let table = TableSource {
        name: "export".to_owned(),
        columns: Vec::new(),
        parts: vec![file.to_owned()],
        sql: None,
        are_alike: false,
    };
    session.add_table(&table).map_err(|error| {
        // The engine names the file on the disk, which may be a copy that nobody knows.
        let error = error.to_string().replace(&*file.to_string_lossy(), &job.shown);
        StageError::Rule(format!(
            "{}: this is not a Parquet file, or not a whole one: {error}; export it anew",
            job.shown
        ))
    })?;
    let found = session.bind("select * from export", &Params::new())?;
    if let Some((name, _)) = found.iter().find(|(name, _)| name.eq_ignore_ascii_case(ROW_NUMBER)) {
        return Err(StageError::Rule(format!(
            "{}: a column is called `{name}`, under which the engine gives the number of a row; export it by another name",
            job.shown
        )));
    }
    let columns = map_columns(job, &with_partitions(job, &found))?;
    let openid = columns.iter().find(|column| column.name == "openid").expect("openid is always mapped");
    let blank = format!("{} is null", super::exact::id_of(&format!("cast({} as varchar)", openid.sql)));
    let all = session.count("select count(*) from export", &Params::new())?;
    let bad = session.count(&format!("select count(*) from export where {blank}"), &Params::new())?;
    let mut quarantine = Vec::new();
    if bad > 0 {
        let target = job.lake.absolute(&format!("{}/bad-{:05}.parquet", job.work, job.number));
        let sql = format!(
            "select {source} as source, {file} as file, file_row_number + 1 as line, 'no openid' as reason,
                    left(cast(to_json(export_rows) as varchar), 2000) as raw
             from read_parquet({path}, file_row_number = true) as export_rows where {blank}",
            source = crate::engine::text(&job.source),
            file = crate::engine::text(&job.shown),
            path = crate::engine::text(&file.to_string_lossy()),
        );
        session.copy(&sql, &Params::new(), &target)?;
        quarantine.push(target);
    }
    Ok(Staged {
        number: job.number,
        shown: job.shown.clone(),
        parts: vec![file.to_owned()],
        columns,
        is_parquet: true,
        key: None,
        may_omit: false,
        rows: all - bad,
        bad,
        first_bad: (bad > 0).then(|| (0, "no openid".to_owned())),
        quarantine,
    })
}

/// The columns of a Parquet file by their own names. What a folder says stands where the file has the same column, as Hive
/// and Spark have it.
fn with_partitions(job: &Job, found: &[(String, String)]) -> Vec<StagedColumn> {
    let own =
        found.iter().map(|(name, ty)| StagedColumn { name: name.clone(), sql: quoted(name), natural_type: ty.clone() });
    let mut columns: Vec<StagedColumn> = own.collect();
    for (name, value) in partitions::of_path(Path::new(&job.shown)) {
        columns.retain(|column| !column.name.eq_ignore_ascii_case(&name));
        let sql = value.map_or_else(|| "cast(null as varchar)".to_owned(), |value| crate::engine::text(&value));
        columns.push(StagedColumn { name, sql, natural_type: "VARCHAR".to_owned() });
    }
    columns
}

/// The columns of a Parquet export under our names.
///
/// # Errors
///
/// [`StageError::Rule`] naming the column that is missing and those that are there.
fn map_columns(job: &Job, found: &[StagedColumn]) -> Result<Vec<StagedColumn>, StageError> {
    let plan = &job.plan;
    let mut columns = Vec::new();
    for (ours, theirs) in &plan.columns {
        let Some(column) = found.iter().find(|column| column.name == *theirs) else {
            let there: Vec<&str> = found.iter().map(|column| column.name.as_str()).collect();
            return Err(StageError::Rule(format!(
                "{}: column `{theirs}` (for `{ours}`) is missing; the file has {}; mend `columns` or the export",
                job.shown,
                there.join(", ")
            )));
        };
        let is_standard = ["openid", "unionid", "updated_at"].contains(&ours.as_str());
        if is_standard || plan.keep.as_ref().is_none_or(|keep| keep.contains(ours)) {
            columns.push(StagedColumn { name: ours.clone(), ..column.clone() });
        }
    }
    for column in found {
        let name = &column.name;
        let is_mapped = plan.columns.iter().any(|(ours, theirs)| theirs == name || ours == name);
        let is_standard = ["openid", "unionid", "updated_at"].contains(&name.as_str());
        let is_kept = plan.keep.as_ref().is_none_or(|keep| keep.contains(name)) || is_standard;
        if !is_mapped && is_kept {
            columns.push(column.clone());
        }
    }
    Ok(columns)
}
