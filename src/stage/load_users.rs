//! `load_users`: what a mini program hands over becomes its users table; rows that cannot be read stand in `quarantine`.
//!
//! The way: objects of a bucket become files here ([`objects`]) → each file is read into a part of texts (Parquet files by
//! the engine as they are) → one pass folds duplicates to the newest `updated_at`, gives columns their types and drops rows
//! without an openid → the table. A missing column, too many bad rows or a value that is not of its type fail the stage, and
//! the table before stays as it was.

mod contract;
mod database;
mod exact;
mod fold;
mod late;
pub mod objects;
pub mod partitions;
mod stage_files;
mod staging;
mod times;
mod unchanged;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use self::contract::Contract;
use self::stage_files::{Staged, stage_file};
use self::times::Unread;
use super::{NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking};
use crate::clock::Timestamp;
use crate::config::settings::{Encoding, LoadUsers, Settings, SheetChoice};
use crate::domain::tables::table_spec;
use crate::domain::{PipelineName, StageName, TableName};
use crate::exports::{self, Input};
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;
use crate::redact;

/// Loads the files of the stage's glob.
///
/// # Errors
///
/// [`StageError::Rule`] for no match, files too old, too many bad rows; [`StageError::Export`] for what is wrong with a file.
pub async fn run(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<StageOutcome, StageError> {
    if let Some(source) = &plan.database {
        return database::run(cx, plan, source).await;
    }
    let mut tries = 1;
    loop {
        let (files, as_of) = sources(cx, plan).await?;
        let stamps: Vec<_> = files.iter().map(SourceFile::stamp).collect();
        let report = of_files(cx, plan, &files, as_of).await;
        let changed = files.iter().zip(&stamps).find(|(file, stamp)| file.stamp() != **stamp);
        let Some((changed, _)) = changed else { return Ok(StageOutcome::Done(report?)) };
        if let Err(stopped @ (StageError::Interrupted | StageError::LeaseLost)) = report {
            return Err(stopped);
        }
        // Neither what was read nor what was wrong with it is of any file that there ever was.
        let shown = shown(cx, &changed.shown);
        if tries == MOST_TRIES {
            return Err(StageError::Rule(format!(
                "{shown} changed while it was read, {tries} times in a row; have exports written under another name and renamed \
                 when they are whole; the next run reads it"
            )));
        }
        tries += 1;
        tracing::warn!(file = %shown, "{shown} changed while it was read: reading it again");
    }
}

/// A file that changes while it is read is read so often.
const MOST_TRIES: u32 = 3;

async fn of_files(
    cx: &StageContext<'_>,
    plan: &LoadUsers,
    files: &[SourceFile],
    as_of: Timestamp,
) -> Result<StageReport, StageError> {
    let inputs = inputs_of(files)?;
    let hash = unchanged::source_hash(cx, plan, files).await?;
    if let Some((users, quarantine)) = unchanged::made_before(cx, plan, &hash) {
        return Ok(once_more(cx, as_of, [users, quarantine]));
    }
    let work = format!("work/load/{}", cx.new_snapshot_id());
    let loaded = load(cx, plan, &inputs, &work).await;
    for path in std::fs::read_dir(cx.hands.lake.absolute(&work)).into_iter().flatten().flatten() {
        cx.hands.lake.remove(&format!("{work}/{}", path.file_name().to_string_lossy()))?;
    }
    // The folder is empty now; should something else stand in it, vacuum takes it.
    let _ = std::fs::remove_dir(cx.hands.lake.absolute(&work));
    let loaded = loaded?;
    let detail = json!({ "files": inputs.len() });
    Ok(report(cx, plan, loaded, Origin { as_of, hash: Some(hash), detail }))
}

/// A file, and the name that people know it by: its own, or that of the object it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    pub on_disk: PathBuf,
    pub shown: PathBuf,
}

impl SourceFile {
    /// What tells the file from what it becomes: size and time of its last change.
    fn stamp(&self) -> Option<(u64, std::time::SystemTime)> {
        let metadata = std::fs::metadata(&self.on_disk).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    }

    /// What the file holds, as [`Input::all_of`].
    ///
    /// # Errors
    ///
    /// [`exports::ExportError`].
    pub fn inputs(&self) -> Result<Vec<Input>, exports::ExportError> {
        Input::all_of_known_as(&self.on_disk, &self.shown)
    }
}

/// The stage's files, those of a bucket brought here, and when the newest was last modified.
async fn sources(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<(Vec<SourceFile>, Timestamp), StageError> {
    let (found, as_of) = late::awaited(cx, plan).await?;
    let files = match &plan.bucket {
        None => found.into_iter().map(|look| SourceFile { on_disk: look.name.clone(), shown: look.name }).collect(),
        Some(address) => {
            let objects: Vec<_> = found.into_iter().filter_map(|look| look.object).collect();
            objects::fetched(cx, address, &objects).await?
        }
    };
    Ok((files, as_of))
}

async fn until_stopped<T>(
    cx: &StageContext<'_>,
    work: impl Future<Output = Result<T, StageError>>,
) -> Result<T, StageError> {
    tokio::select! {
        done = work => done,
        () = cx.stop.cancelled() => Err(StageError::Interrupted),
    }
}

/// What a load is of.
struct Origin {
    as_of: Timestamp,
    /// Of files: what they hold.
    hash: Option<String>,
    detail: serde_json::Value,
}

/// What a load made: the users and the quarantine.
fn report(cx: &StageContext<'_>, plan: &LoadUsers, loaded: Loaded, origin: Origin) -> StageReport {
    let Origin { as_of, hash, mut detail } = origin;
    let table = cx.stage.table.as_ref().expect("a load stage has a table");
    let users = NewSnapshot {
        table: table.clone(),
        slice: plan.miniprogram.to_string(),
        id: loaded.id.clone(),
        as_of,
        rows: loaded.users.rows,
        bytes: loaded.users.bytes,
        parts: vec![loaded.users_path],
        columns: loaded.columns,
    };
    let quarantine = NewSnapshot {
        table: TableName::new("quarantine"),
        slice: cx.stage.name.to_string(),
        id: format!("{}-quarantine", loaded.id),
        as_of,
        rows: loaded.quarantine.rows,
        bytes: loaded.quarantine.bytes,
        parts: vec![loaded.quarantine_path],
        columns: table_spec("quarantine").expect("quarantine is declared").sql_columns(),
    };
    detail["rows"] = json!(loaded.rows_in);
    detail["quarantined"] = json!(loaded.quarantine.rows);
    detail["duplicates"] = json!(loaded.rows_in.saturating_sub(loaded.users.rows + loaded.quarantine.rows));
    if let Some((rows, first)) = loaded.unread_times {
        detail["unread_times"] = json!({ "rows": rows, "first": first });
    }
    StageReport {
        rows_in: loaded.rows_in,
        rows_out: loaded.users.rows,
        snapshots: [users, quarantine]
            .map(|made| SnapshotRecord { source_hash: hash.clone(), ..made.record(cx) })
            .into(),
        detail,
        ..StageReport::default()
    }
}

/// The tables of the last load, whose files were the same: their parts under new names.
fn once_more(cx: &StageContext<'_>, as_of: Timestamp, before: [&SnapshotRecord; 2]) -> StageReport {
    let id = cx.new_snapshot_id();
    let [users, quarantine] = before.map(|before| {
        let again = NewSnapshot {
            table: before.table.clone(),
            slice: before.slice.clone(),
            id: if before.table.as_str() == "quarantine" { format!("{id}-quarantine") } else { id.clone() },
            as_of,
            rows: before.rows,
            bytes: before.bytes,
            parts: before.parts.clone(),
            columns: before.columns.clone(),
        };
        SnapshotRecord { source_hash: before.source_hash.clone(), ..again.record(cx) }
    });
    let detail = json!({ "unchanged": true, "rows": users.rows, "quarantined": quarantine.rows });
    StageReport { rows_out: users.rows, snapshots: vec![users, quarantine], detail, ..StageReport::default() }
}

struct Loaded {
    id: String,
    rows_in: u64,
    users: crate::engine::Written,
    users_path: String,
    columns: Vec<(String, String)>,
    quarantine: crate::engine::Written,
    quarantine_path: String,
    /// How many values of `updated_at` were no times, and where the first of them stands.
    unread_times: Option<(u64, String)>,
}

async fn load(cx: &StageContext<'_>, plan: &LoadUsers, inputs: &[Input], work: &str) -> Result<Loaded, StageError> {
    let before = parts_before(cx, plan);
    let mut staged = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        if cx.stop.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        let job = stage_files::Job {
            input: input.clone(),
            shown: shown(cx, input.shown()),
            number: u32::try_from(number).unwrap_or(u32::MAX),
            plan: plan.clone(),
            lake: cx.hands.lake.clone(),
            work: work.to_owned(),
            source: cx.stage.name.to_string(),
            stop: cx.stop.clone(),
        };
        let before = before.clone();
        let work = move |session: &crate::engine::Session| {
            stage_file(session, &job).map_err(|error| {
                Contract { stage: &job.source, plan: &job.plan, before: &before }.explained(session, error)
            })
        };
        let one: Staged = blocking(&cx.hands.engine, cx.stop, work).await?;
        check_bad_rows(plan, &one)?;
        staged.push(one);
        cx.tell("files", u64::try_from(staged.len()).unwrap_or(0), u64::try_from(inputs.len()).ok());
    }
    folded(cx, plan, staged, plan.types.clone()).await
}

/// The parts of the table as it is now.
fn parts_before(cx: &StageContext<'_>, plan: &LoadUsers) -> Vec<PathBuf> {
    let table = cx.stage.table.as_ref().expect("a load stage has a table");
    cx.visible
        .slice(table.as_str(), plan.miniprogram.as_str())
        .map(|before| before.parts.iter().map(|part| cx.hands.lake.absolute(part)).collect())
        .unwrap_or_default()
}

/// Folds what was staged into the tables; `types` are those of columns whose values must be of them.
async fn folded(
    cx: &StageContext<'_>,
    plan: &LoadUsers,
    staged: Vec<Staged>,
    types: BTreeMap<String, String>,
) -> Result<Loaded, StageError> {
    let table = cx.stage.table.as_ref().expect("a load stage has a table");
    let id = cx.new_snapshot_id();
    let users_path = Lake::part_path(table, plan.miniprogram.as_str(), &id, 1);
    let quarantine_path = Lake::part_path(&TableName::new("quarantine"), cx.stage.name.as_str(), &id, 1);
    let rows_in = staged.iter().map(|file| file.rows + file.bad).sum();
    let shown: Vec<String> = staged.iter().map(|file| file.shown.clone()).collect();
    let job = fold::Job {
        stage: cx.stage.name.to_string(),
        plan: plan.clone(),
        types,
        timezone: cx.hands.settings.timezone,
        staged,
        before: parts_before(cx, plan),
        users_target: cx.hands.lake.absolute(&users_path),
        quarantine_target: cx.hands.lake.absolute(&quarantine_path),
    };
    let folded = blocking(&cx.hands.engine, cx.stop, move |session| job.fold(session)).await?;
    Ok(Loaded {
        id,
        rows_in,
        users: folded.users,
        users_path,
        columns: folded.columns,
        quarantine: folded.quarantine,
        quarantine_path,
        unread_times: folded.unread_times.map(|unread| tell_unread(&unread, &shown)),
    })
}

/// Says that people count as the oldest because their `updated_at` cannot be read.
fn tell_unread(unread: &Unread, shown: &[String]) -> (u64, String) {
    let (number, line, value) = &unread.first;
    let file = usize::try_from(*number).ok().and_then(|at| shown.get(at));
    let place = format!("{} line {line}", file.map_or("", String::as_str));
    // Where columns are mixed up an id may stand there.
    let value = if value.chars().count() > 20 { redact::shortened(value) } else { value.clone() };
    tracing::warn!(
        rows = unread.rows,
        "{} rows have an updated_at that is no time, first {place}: `{value}`; they count as the oldest",
        unread.rows
    );
    (unread.rows, format!("{place}: {value}"))
}

fn check_bad_rows(plan: &LoadUsers, file: &Staged) -> Result<(), StageError> {
    let all = file.rows + file.bad;
    if all == 0 || share(file.bad, all) <= plan.max_bad {
        return Ok(());
    }
    let first =
        file.first_bad.as_ref().map_or_else(String::new, |(line, reason)| format!(", first line {line}: {reason}"));
    Err(StageError::Rule(format!(
        "{}: {} of {all} rows are bad ({:.1} %{first}); at most {:.1} % are accepted: mend the export, or raise max_bad",
        file.shown,
        file.bad,
        share(file.bad, all) * 100.0,
        plan.max_bad * 100.0
    )))
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// What the files hold: a zip may hold several.
fn inputs_of(files: &[SourceFile]) -> Result<Vec<Input>, StageError> {
    let mut inputs = Vec::new();
    for file in files {
        inputs.extend(file.inputs()?);
    }
    Ok(inputs)
}

/// The files of a stage as they can be seen from here without asking anybody: those that its glob names, or the copies that
/// its last load left of a bucket's objects.
pub fn files_at_hand(
    settings: &Settings,
    (pipeline, stage): (&PipelineName, &StageName),
    plan: &LoadUsers,
) -> Vec<SourceFile> {
    if plan.bucket.is_some() {
        return objects::copies(&Lake::new(&settings.lake.root), pipeline, stage);
    }
    let files = files_of(&settings.root, &plan.files).into_iter();
    files.map(|file| SourceFile { on_disk: file.clone(), shown: file }).collect()
}

/// The files that a glob names below a workspace, sorted by name.
pub fn files_of(root: &std::path::Path, pattern: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in glob::glob(&root.join(pattern).to_string_lossy()).into_iter().flatten().flatten() {
        if path.is_file() {
            files.push(path);
        } else if path.extension().is_some_and(|ending| ending == "parquet") {
            files.extend(files_inside(&path));
        }
    }
    files.sort();
    files.dedup();
    files
}

/// A folder that is called like a file is how Spark writes one; names that begin with `_` or `.` are its own notes.
fn files_inside(folder: &std::path::Path) -> Vec<PathBuf> {
    let pattern = PathBuf::from(glob::Pattern::escape(&folder.to_string_lossy())).join("**/*.parquet");
    let is_note = |path: &PathBuf| {
        let inside = path.strip_prefix(folder).unwrap_or(path);
        inside.components().any(|part| part.as_os_str().to_string_lossy().starts_with(['_', '.']))
    };
    let found = glob::glob(&pattern.to_string_lossy()).into_iter().flatten().flatten();
    found.filter(|path| path.is_file() && !is_note(path)).collect()
}

/// Where users come from as people know it: a database, or the files that a glob names, the first of them.
pub fn shown_source(root: &std::path::Path, plan: &LoadUsers) -> String {
    const SHOWN: usize = 5;
    if plan.database.is_some() || plan.bucket.is_some() {
        return plan.shown_source();
    }
    let files = files_of(root, &plan.files);
    let mut names: Vec<String> = files.iter().take(SHOWN).map(|file| shown_below(root, file)).collect();
    if files.len() > SHOWN {
        names.push(format!("{} more", files.len() - SHOWN));
    }
    names.join(", ")
}

/// How a stage wants its files to be read.
pub fn options_of(plan: &LoadUsers) -> exports::ReadOptions<'_> {
    exports::ReadOptions {
        keep: plan.keep.as_deref(),
        encoding: match plan.encoding {
            Encoding::Auto => exports::Encoding::Auto,
            Encoding::Utf8 => exports::Encoding::Utf8,
            Encoding::Gb18030 => exports::Encoding::Gb18030,
        },
        delimiter: plan.delimiter,
        sheet: plan.sheet.as_ref().map(|sheet| match sheet {
            SheetChoice::Name(name) => exports::Sheet::Name(name),
            SheetChoice::Number(number) => exports::Sheet::Number(*number),
        }),
        header_row: plan.header_row,
        ..exports::ReadOptions::of_columns(&plan.columns)
    }
}

/// A file as people know it: relative to the workspace where it is inside.
fn shown(cx: &StageContext<'_>, file: &std::path::Path) -> String {
    shown_below(&cx.hands.settings.root, file)
}

fn shown_below(root: &std::path::Path, file: &std::path::Path) -> String {
    file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned()
}
