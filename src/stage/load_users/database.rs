//! Users out of a mini program's database: each page of its query becomes a part in `work/`, which is its checkpoint; what was
//! read is then folded as files are.
//!
//! The parts of a run lie in a folder of its own, named by what is asked, and are read again when the run goes on after a kill
//! or a broken line: only the page that was under way is asked for once more. They are thrown away when the stage is done,
//! and when what they hold was refused: then the database is mended, and read anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::contract::Contract;
use super::stage_files::{KEY_COLUMN, Staged, StagedColumn};
use super::{Origin, check_bad_rows, folded, options_of, parts_before, report, until_stopped};
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::config::settings::{DatabaseSource, LoadUsers};
use crate::domain::{ColumnType, DatabaseAddress, Values};
use crate::engine::{Params, Session, files, quoted, text};
use crate::exports::{Database, DatabaseColumn, ExportError, LINE_COLUMN, Selection, TextBatch};
use crate::lake::{Lake, PartColumn, PartWriter};
use crate::stage::{StageContext, StageError, StageOutcome, blocking};

/// Why a row cannot be taken.
const FAULT_COLUMN: &str = "fault of the row";
/// When its page was asked for.
const READ_AT_COLUMN: &str = "time of its page";
/// Batches on their way to the disk.
const BATCHES: usize = 2;
/// Characters of a query in `quarantine`.
const QUERY_CHARACTERS: usize = 200;

/// Loads the rows of the query.
///
/// # Errors
///
/// [`StageError::Export`] for what is wrong with the database, the query or its key; as for files otherwise.
pub async fn run(cx: &StageContext<'_>, plan: &LoadUsers, source: &DatabaseSource) -> Result<StageOutcome, StageError> {
    let work = format!("work/load/{}-{}-{}", cx.run.run_id, cx.stage.name, hash_of(plan, source));
    let pages = read_pages(cx, plan, source, &work).await?;
    let count = pages.parts.len();
    let made = load(cx, plan, (pages, &work)).await;
    if !matches!(made, Err(StageError::Interrupted | StageError::LeaseLost)) {
        throw_away(&cx.hands.lake, &work)?;
    }
    let (loaded, as_of) = made?;
    let detail = json!({ "database": source.address.shown(), "pages": count });
    Ok(StageOutcome::Done(report(cx, plan, loaded, Origin { as_of, hash: None, detail })))
}

/// The parts of all pages.
struct Pages {
    parts: Vec<PathBuf>,
    columns: Vec<DatabaseColumn>,
    key: Option<String>,
    /// The database and what was asked of it, as `quarantine` names them.
    shown: String,
}

/// What pages depend on, but for the columns that the database gives.
fn hash_of(plan: &LoadUsers, source: &DatabaseSource) -> String {
    let asked = (source.address.shown(), &source.address.user, &source.query, &source.key, source.page_rows);
    short_hash(&format!("{asked:?} {:?} {:?}", plan.columns, plan.keep))
}

fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Certificates are files of the workspace.
fn address_of(cx: &StageContext<'_>, source: &DatabaseSource) -> DatabaseAddress {
    let here = |path: &PathBuf| cx.hands.settings.root.join(path);
    let own = &source.address;
    DatabaseAddress {
        authority: own.authority.as_ref().map(here),
        client: own.client.as_ref().map(|(certificate, key)| (here(certificate), here(key))),
        ..own.clone()
    }
}

async fn read_pages(
    cx: &StageContext<'_>,
    plan: &LoadUsers,
    source: &DatabaseSource,
    work: &str,
) -> Result<Pages, StageError> {
    let selection = Selection {
        query: source.query.clone(),
        key: source.key.clone(),
        page_rows: source.page_rows,
        timeout: source.timeout,
    };
    let address = address_of(cx, source);
    let options = options_of(plan);
    let opened = until_stopped(cx, async { Ok(Database::open(&address, &selection, &options).await?) }).await;
    let mut database = match opened {
        Ok(database) => database,
        Err(error) => return Err(explained(cx, plan, error).await),
    };
    let columns = database.columns();
    let folder =
        Folder { lake: cx.hands.lake.clone(), work, of_columns: short_hash(&format!("{columns:?} {KEY_COLUMN}")) };
    let mut parts = folder.whole_pages();
    // Without a key there is one page, and it is whole.
    let mut has_more = parts.is_empty() || source.key.is_some();
    let mut after = parts.last().map(|part| last_key(&folder.lake, part)).transpose()?.flatten();
    let mut rows = source.page_rows * u64::try_from(parts.len()).unwrap_or(0);
    if !parts.is_empty() {
        tracing::info!(stage = %cx.stage.name, pages = parts.len(), "{} pages are here from before", parts.len());
    }
    while has_more {
        let path = folder.path(parts.len() + 1);
        let job = PageJob { lake: folder.lake.clone(), path: path.clone(), first_row: rows + 1, columns: &columns };
        let page = until_stopped(cx, job.read(&mut database, after.as_deref(), cx.hands.clock.now())).await?;
        rows += page.rows;
        has_more = page.has_more;
        after = page.last_key;
        parts.push(path);
        cx.tell("rows", rows, None);
    }
    database.close().await;
    let query: String = source.query.split_whitespace().collect::<Vec<_>>().join(" ");
    let query: String = query.chars().take(QUERY_CHARACTERS).collect();
    Ok(Pages {
        parts: parts.iter().map(|part| folder.lake.absolute(part)).collect(),
        columns,
        key: source.key.clone(),
        shown: format!("{}: {query}", source.address.shown()),
    })
}

/// A column that is missing, with what it was like in the table before.
async fn explained(cx: &StageContext<'_>, plan: &LoadUsers, error: StageError) -> StageError {
    if !matches!(error, StageError::Export(ExportError::MissingColumn { .. })) {
        return error;
    }
    let (plan, before, stage) = (plan.clone(), parts_before(cx, plan), cx.stage.name.to_string());
    let told = blocking(&cx.hands.engine, cx.stop, move |session| {
        Ok(Contract { stage: &stage, plan: &plan, before: &before }.explained(session, error))
    });
    told.await.unwrap_or_else(|error| error)
}

/// Where pages of a query lie that gives these columns.
struct Folder<'a> {
    lake: Lake,
    work: &'a str,
    of_columns: String,
}

impl Folder<'_> {
    fn path(&self, number: usize) -> String {
        format!("{}/page-{}-{number:06}.parquet", self.work, self.of_columns)
    }

    /// Those that were read before, without a gap: what a power cut or a vacuum took is read again, and all behind it.
    fn whole_pages(&self) -> Vec<String> {
        let pages = (1..).map(|number| self.path(number));
        pages.take_while(|path| self.lake.is_whole(path)).collect()
    }
}

/// The key that the next page begins after.
fn last_key(lake: &Lake, part: &str) -> Result<Option<String>, StageError> {
    let keys = lake.read_texts(part, KEY_COLUMN)?;
    Ok(keys.len().checked_sub(1).and_then(|last| keys.get(last)).map(str::to_owned))
}

/// A page on its way into its part.
struct PageJob<'a> {
    lake: Lake,
    path: String,
    first_row: u64,
    columns: &'a [DatabaseColumn],
}

struct PageRead {
    rows: u64,
    has_more: bool,
    last_key: Option<String>,
}

impl PageJob<'_> {
    /// Reads a page from the database while its rows are written on a thread of its own. Dropped midway, it leaves a file that
    /// nobody reads.
    async fn read(self, database: &mut Database, after: Option<&str>, now: Timestamp) -> Result<PageRead, StageError> {
        let names = self.columns.iter().map(|column| (column.name.clone(), ColumnType::Text));
        let own = [
            (LINE_COLUMN, ColumnType::Integer),
            (KEY_COLUMN, ColumnType::Text),
            (FAULT_COLUMN, ColumnType::Text),
            (READ_AT_COLUMN, ColumnType::Timestamp),
        ];
        let schema: Vec<_> = names.chain(own.map(|(name, ty)| (name.to_owned(), ty))).collect();
        let mut writer = self.lake.writer(&self.path, &schema)?;
        let (send, mut batches) = mpsc::channel::<TextBatch>(BATCHES);
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let (mut line, read_at) = (i64::try_from(self.first_row).unwrap_or(i64::MAX), to_micros(now));
        let written = tokio::task::spawn_blocking(move || {
            let mut last_key = None;
            while let Some(batch) = batches.blocking_recv() {
                last_key = batch.keys.get(batch.rows - 1).map(str::to_owned);
                line = write(&mut writer, &names, &batch, (line, read_at))?;
            }
            Ok::<_, StageError>((writer, last_key))
        });
        let page = database.read_page(after, &send).await;
        drop(send);
        // A full disk is told before that nobody took the rows.
        let (writer, last_key) = written.await??;
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                writer.discard()?;
                return Err(error.into());
            }
        };
        tokio::task::spawn_blocking(move || writer.finish()).await??;
        Ok(PageRead { rows: page.rows, has_more: page.has_more, last_key })
    }
}

/// Writes a batch whose first row is `line`; returns the line behind it.
fn write(
    writer: &mut PartWriter,
    names: &[String],
    batch: &TextBatch,
    (line, read_at): (i64, i64),
) -> Result<i64, StageError> {
    let end = line + i64::try_from(batch.rows).unwrap_or(i64::MAX);
    let mut columns: Vec<(&str, PartColumn<'_>)> =
        names.iter().map(String::as_str).zip(batch.columns.iter().map(PartColumn::Texts)).collect();
    columns.push((LINE_COLUMN, PartColumn::Values(Values::Integer((line..end).map(Some).collect()))));
    columns.push((KEY_COLUMN, PartColumn::Texts(&batch.keys)));
    columns.push((FAULT_COLUMN, PartColumn::Texts(&batch.faults)));
    columns.push((READ_AT_COLUMN, PartColumn::SameTime(read_at)));
    writer.write_columns(batch.rows, columns)?;
    Ok(end)
}

/// Folds the pages; as of when the first of them was asked for.
async fn load(
    cx: &StageContext<'_>,
    plan: &LoadUsers,
    (pages, work): (Pages, &str),
) -> Result<(super::Loaded, Timestamp), StageError> {
    let target = cx.hands.lake.absolute(&format!("{work}/bad.parquet"));
    let (declared, stage) = (plan.types.clone(), cx.stage.name.to_string());
    let now = cx.hands.clock.now();
    let staging = blocking(&cx.hands.engine, cx.stop, move |session| {
        let staging = Staging { session, pages: &pages, declared: &declared, stage: &stage };
        Ok((staging.staged(&target)?, staging.types()?, staging.read_at()?.unwrap_or(now)))
    });
    let (staged, types, as_of) = staging.await?;
    check_bad_rows(plan, &staged)?;
    Ok((folded(cx, plan, vec![staged], types).await?, as_of))
}

/// Pages as the fold wants them.
struct Staging<'a> {
    session: &'a Session,
    pages: &'a Pages,
    declared: &'a BTreeMap<String, String>,
    stage: &'a str,
}

impl Staging<'_> {
    fn pages_sql(&self) -> String {
        format!("from read_parquet({})", files(&self.pages.parts))
    }

    fn staged(&self, quarantine: &Path) -> Result<Staged, StageError> {
        let from = self.pages_sql();
        let bad = format!("{} is not null or openid is null", quoted(FAULT_COLUMN));
        let all = self.session.count(&format!("select count(*) {from}"), &Params::new())?;
        let bad_rows = self.session.count(&format!("select count(*) {from} where {bad}"), &Params::new())?;
        if bad_rows > 0 {
            self.session.copy(&self.bad_rows(&bad), &Params::new(), quarantine)?;
        }
        let columns = self.pages.columns.iter();
        Ok(Staged {
            number: 0,
            shown: self.pages.shown.clone(),
            parts: self.pages.parts.clone(),
            // A row that is bad has no openid for the fold.
            columns: columns
                .map(|column| StagedColumn {
                    name: column.name.clone(),
                    sql: match column.name.as_str() {
                        "openid" => format!("case when {} is null then openid end", quoted(FAULT_COLUMN)),
                        name => quoted(name),
                    },
                    natural_type: "VARCHAR".to_owned(),
                })
                .collect(),
            is_parquet: false,
            key: self.pages.key.clone(),
            may_omit: false,
            rows: all - bad_rows,
            bad: bad_rows,
            first_bad: self.first_bad(quarantine, bad_rows)?,
            quarantine: if bad_rows > 0 { vec![quarantine.to_owned()] } else { Vec::new() },
        })
    }

    fn bad_rows(&self, bad: &str) -> String {
        let columns: Vec<String> =
            self.pages.columns.iter().map(|column| format!("{0} := {0}", quoted(&column.name))).collect();
        let reason = format!("coalesce({}, 'no openid')", quoted(FAULT_COLUMN));
        let reason = match &self.pages.key {
            Some(key) => {
                format!("concat_ws('', {reason}, {}, {}, ')')", text(&format!(" ({key} = ")), quoted(KEY_COLUMN))
            }
            None => reason,
        };
        format!(
            "select {} as source, {} as file, {} as line, {reason} as reason,
                    left(cast(to_json(struct_pack({})) as varchar), 2000) as raw
             {} where {bad}",
            text(self.stage),
            text(&self.pages.shown),
            quoted(LINE_COLUMN),
            columns.join(", "),
            self.pages_sql(),
        )
    }

    fn first_bad(&self, quarantine: &Path, bad_rows: u64) -> Result<Option<(u64, String)>, StageError> {
        if bad_rows == 0 {
            return Ok(None);
        }
        let sql = format!(
            "select line, reason from read_parquet({}) order by line limit 1",
            text(&quarantine.to_string_lossy())
        );
        let found = self.session.query(&sql, &Params::new())?;
        Ok(match (found.columns.first(), found.columns.get(1)) {
            (Some((_, Values::Integer(lines))), Some((_, Values::Text(reasons)))) => {
                let line = lines.first().copied().flatten().and_then(|line| u64::try_from(line).ok());
                line.zip(reasons.first().cloned().flatten())
            }
            _ => None,
        })
    }

    /// The type of every column: what the stage says, else what the database does.
    fn types(&self) -> Result<BTreeMap<String, String>, StageError> {
        let mut types = self.declared.clone();
        for column in &self.pages.columns {
            let is_own = super::fold::STANDARD.iter().any(|(own, _)| *own == column.name);
            if is_own || types.contains_key(&column.name) {
                continue;
            }
            match column.natural_type {
                "VARCHAR" => {}
                "DECIMAL" => {
                    types.insert(column.name.clone(), self.decimal(&column.name)?);
                }
                own => {
                    types.insert(column.name.clone(), own.to_owned());
                }
            }
        }
        Ok(types)
    }

    /// As many digits behind the point as the values have; those that are too long for a decimal stay text, to the digit.
    fn decimal(&self, name: &str) -> Result<String, StageError> {
        let column = quoted(name);
        let sql = format!(
            "select coalesce(max(length(split_part({column}, '.', 2))), 0) as scale,
                    coalesce(max(length(ltrim(split_part({column}, '.', 1), '-'))), 0) as whole,
                    coalesce(bool_or(not regexp_full_match({column}, '-?\\d+(\\.\\d+)?')), false) as is_odd
             {}",
            self.pages_sql()
        );
        let found = self.session.query(&sql, &Params::new())?;
        let number = |at: usize| match found.columns.get(at) {
            Some((_, Values::Integer(values))) => values.first().copied().flatten().unwrap_or(0),
            _ => 0,
        };
        let is_odd = matches!(found.columns.get(2), Some((_, Values::Boolean(values))) if values == &[Some(true)]);
        let (scale, whole) = (number(0), number(1));
        Ok(if is_odd || scale + whole > 38 { "varchar".to_owned() } else { format!("decimal(38,{scale})") })
    }

    fn read_at(&self) -> Result<Option<Timestamp>, StageError> {
        let sql = format!("select min({}) as read_at {}", quoted(READ_AT_COLUMN), self.pages_sql());
        let found = self.session.query(&sql, &Params::new())?;
        Ok(match found.columns.first() {
            Some((_, Values::Timestamp(values))) => values.first().copied().flatten().map(from_micros),
            _ => None,
        })
    }
}

fn throw_away(lake: &Lake, work: &str) -> Result<(), StageError> {
    for path in std::fs::read_dir(lake.absolute(work)).into_iter().flatten().flatten() {
        lake.remove(&format!("{work}/{}", path.file_name().to_string_lossy()))?;
    }
    // The folder is empty now; should something else stand in it, vacuum takes it.
    let _ = std::fs::remove_dir(lake.absolute(work));
    Ok(())
}
