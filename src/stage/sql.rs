//! `sql`: a table from one SELECT, replaced or upserted; and what every stage with SQL shares: a session that holds the
//! tables the SQL reads.

use std::path::PathBuf;

use serde_json::json;

use super::{NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking, live};
use crate::clock::Timestamp;
use crate::config::settings::SqlStage;
use crate::domain::TableName;
use crate::engine::{EngineError, Params, Session, SqlFacts, TableSource, Written, for_parquet, quoted};
use crate::lake::Lake;

/// Runs the SELECT over what the run sees and writes the table.
///
/// # Errors
///
/// [`StageError::Sql`] for what DuckDB refuses; the table before stays.
pub async fn run(cx: &StageContext<'_>, plan: &SqlStage) -> Result<StageOutcome, StageError> {
    let table = cx.stage.table.as_ref().expect("a sql stage has a table");
    let keys: Vec<String> = plan.upsert_by.iter().map(|key| key.name.clone()).collect();
    let made = write_table(cx, table, &plan.sql.text, &keys).await?;
    let rows_out = made.rows;
    let rows_in = made.rows_in;
    let snapshot = made.into_snapshot(table).record(cx);
    Ok(StageOutcome::Done(StageReport {
        rows_in,
        rows_out,
        snapshots: vec![snapshot],
        detail: json!({}),
        ..StageReport::default()
    }))
}

/// A table written from SQL.
pub struct Made {
    pub id: String,
    pub rows_in: u64,
    pub rows: u64,
    pub bytes: u64,
    pub path: String,
    pub columns: Vec<(String, String)>,
    pub as_of: Timestamp,
}

impl Made {
    pub fn into_snapshot(self, table: &TableName) -> NewSnapshot {
        NewSnapshot {
            table: table.clone(),
            slice: String::new(),
            id: self.id,
            as_of: self.as_of,
            rows: self.rows,
            bytes: self.bytes,
            parts: vec![self.path],
            columns: self.columns,
        }
    }
}

/// Writes `sql` as the next snapshot of `table`; with `upsert_by`, rows of the table before with other keys are kept.
///
/// # Errors
///
/// [`StageError::Sql`].
pub async fn write_table(
    cx: &StageContext<'_>,
    table: &TableName,
    sql: &str,
    upsert_by: &[String],
) -> Result<Made, StageError> {
    let sources = sources(cx, sql).await?;
    let id = cx.new_snapshot_id();
    let path = Lake::part_path(table, "", &id, 1);
    let job = Job {
        stage: cx.stage.name.to_string(),
        sql: sql.to_owned(),
        before: cx.visible.slice(table.as_str(), "").and(cx.visible.source(&cx.hands.lake, table.as_str())),
        upsert_by: upsert_by.to_vec(),
        target: cx.hands.lake.absolute(&path),
        params: cx.params.clone(),
    };
    let as_of = as_of(cx, &sources);
    let (written, columns, rows_in) = blocking(&cx.hands.engine, cx.stop, move |session| {
        let mut rows_in = 0;
        for source in &sources {
            session.add_table(source)?;
            rows_in += session.count(&format!("select count(*) from {}", quoted(&source.name)), &Params::new())?;
        }
        let (written, columns) = job.write(session)?;
        Ok((written, columns, rows_in))
    })
    .await?;
    Ok(Made { id, rows_in, rows: written.rows, bytes: written.bytes, path, columns, as_of })
}

struct Job {
    stage: String,
    sql: String,
    before: Option<TableSource>,
    upsert_by: Vec<String>,
    target: PathBuf,
    params: Params,
}

impl Job {
    fn write(&self, session: &Session) -> Result<(Written, Vec<(String, String)>), StageError> {
        let in_stage = |source| StageError::Sql { stage: self.stage.clone(), source };
        let before = self.before.as_ref().filter(|_| !self.upsert_by.is_empty());
        if let Some(before) = before {
            session.add_table(&TableSource { name: BEFORE.to_owned(), ..before.clone() })?;
        }
        session.confine(&[&self.target])?;
        let columns = session.bind(&self.sql, &self.params).map_err(in_stage)?;
        if before.is_none() {
            let (sql, columns) = for_parquet(&self.sql, columns);
            return Ok((session.copy(&sql, &self.params, &self.target).map_err(in_stage)?, columns));
        }
        let select = self.sql.trim_end().trim_end_matches(';');
        session.execute(&format!("create temp table {FRESH} as\n{select}"), &self.params).map_err(in_stage)?;
        let keys: Vec<String> = self
            .upsert_by
            .iter()
            .map(|key| format!("{FRESH}.{0} is not distinct from {BEFORE}.{0}", quoted(key)))
            .collect();
        let upsert = format!(
            "select * from {FRESH} union all by name select * from {BEFORE} \
             where not exists (select 1 from {FRESH} where {})",
            keys.join(" and ")
        );
        let columns = session.bind(&upsert, &Params::new()).map_err(in_stage)?;
        let (upsert, columns) = for_parquet(&upsert, columns);
        Ok((session.copy(&upsert, &Params::new(), &self.target).map_err(in_stage)?, columns))
    }
}

const FRESH: &str = "_fresh_rows";
const BEFORE: &str = "_rows_before";

/// The tables that `sql` reads, as this run sees them; what the ledger feeds is written out as it is now.
///
/// # Errors
///
/// [`StageError::Sql`] for a table that nobody makes (which checking finds first).
pub async fn sources(cx: &StageContext<'_>, sql: &str) -> Result<Vec<TableSource>, StageError> {
    let facts = inspect(cx, sql).await?;
    let mut sources = Vec::new();
    for table in &facts.tables {
        if live::is_live(&table.name) {
            sources.push(live::export(cx.hands, &table.name).await?);
        } else if let Some(source) = cx.visible.source(&cx.hands.lake, &table.name) {
            sources.push(source);
        } else {
            let message = format!("table `{}` does not exist yet: the stage that makes it has not run", table.name);
            let source = EngineError::Sql { message, offset: Some(table.offset) };
            return Err(StageError::Sql { stage: cx.stage.name.to_string(), source });
        }
    }
    Ok(sources)
}

/// Whether the rows of `sql` come in an order of their own.
///
/// # Errors
///
/// [`StageError::Sql`].
pub async fn is_ordered(cx: &StageContext<'_>, sql: &str) -> Result<bool, StageError> {
    Ok(inspect(cx, sql).await?.is_ordered)
}

/// The names of the tables that `sql` reads.
///
/// # Errors
///
/// [`StageError::Sql`] for what is no single SELECT.
pub async fn tables_read(cx: &StageContext<'_>, sql: &str) -> Result<Vec<String>, StageError> {
    Ok(inspect(cx, sql).await?.tables.into_iter().map(|table| table.name).collect())
}

async fn inspect(cx: &StageContext<'_>, sql: &str) -> Result<SqlFacts, StageError> {
    let engine = &cx.hands.engine;
    if let Some(known) = engine.known_facts(sql) {
        return Ok(known);
    }
    let (text, stage) = (sql.to_owned(), cx.stage.name.to_string());
    let facts = blocking(engine, cx.stop, move |session| {
        session.inspect(&text).map_err(|source| StageError::Sql { stage, source })
    })
    .await?;
    engine.keep_facts(sql, &facts);
    Ok(facts)
}

/// For SQL, the oldest of what it read; of nothing, the run's own time.
pub fn as_of(cx: &StageContext<'_>, sources: &[TableSource]) -> Timestamp {
    cx.visible.as_of(sources.iter().map(|source| source.name.as_str())).unwrap_or(cx.run.run_at)
}
