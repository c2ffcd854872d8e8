//! `publish`: writes tables out as files for others, each whole or not at all.

use std::path::PathBuf;

use serde_json::json;

use super::outputs::{Bound, OutputError};
use super::{StageContext, StageError, StageOutcome, StageReport, blocking, live};
use crate::config::settings::{Publish, PublishFormat};
use crate::crash::{self, CrashPoint};
use crate::engine::{Params, Session, TableSource, quoted};

/// Writes each table of the stage as `to/TABLE.FORMAT`.
///
/// # Errors
///
/// [`StageError::Rule`] for a table without a snapshot, or one too long for xlsx.
pub async fn run(cx: &StageContext<'_>, plan: &Publish) -> Result<StageOutcome, StageError> {
    let mut sources = Vec::new();
    for table in &plan.tables {
        if live::is_live(table.as_str()) {
            sources.push(live::export(cx.hands, table.as_str()).await?);
            continue;
        }
        let source = cx
            .visible
            .source(&cx.hands.lake, table.as_str())
            .ok_or_else(|| StageError::Rule(format!("table `{table}` does not exist yet")))?;
        sources.push(source);
    }
    let plan = plan.clone();
    let files = blocking(&cx.hands.engine, cx.stop, move |session| {
        sources.iter().map(|source| write(session, source, &plan)).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let rows = files.iter().map(|(_, rows)| rows).sum();
    let names: Vec<String> = files.iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect();
    Ok(StageOutcome::Done(StageReport {
        rows_in: rows,
        rows_out: rows,
        snapshots: Vec::new(),
        detail: json!({ "files": names }),
        ..StageReport::default()
    }))
}

fn write(session: &Session, source: &TableSource, plan: &Publish) -> Result<(PathBuf, u64), StageError> {
    session.add_table(source)?;
    let extension = match plan.format {
        PublishFormat::Parquet => "parquet",
        PublishFormat::Csv => "csv",
        PublishFormat::Xlsx => "xlsx",
    };
    let target = plan.to.join(format!("{}.{extension}", source.name));
    let aside = plan.to.join(format!(".{}.{extension}.tmp", source.name));
    let io = |error: std::io::Error| StageError::Rule(format!("cannot write {}: {error}", target.display()));
    std::fs::create_dir_all(&plan.to).map_err(io)?;
    let (sql, params) = (format!("select * from {}", quoted(&source.name)), Params::new());
    let columns = session.bind(&sql, &params)?;
    let bound = Bound { sql: &sql, params: &params, columns: &columns, most_rows: None };
    let written = match plan.format {
        PublishFormat::Parquet => bound.parquet(session, &aside),
        PublishFormat::Csv => bound.csv(session, &aside, plan.is_raw),
        PublishFormat::Xlsx => bound.xlsx(session, &aside, plan.is_raw),
    };
    let rows = written.map_err(|error| match error {
        OutputError::Engine(error) => error.into(),
        OutputError::Write(error) => io(error),
        other => StageError::Rule(format!("table `{}` does not become {}: {other}", source.name, target.display())),
    })?;
    crash::pass(CrashPoint::BeforeExportRename);
    std::fs::rename(&aside, &target).map_err(io)?;
    crash::pass(CrashPoint::AfterExportRename);
    Ok((target, rows))
}
