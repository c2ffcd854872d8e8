//! `publish`: writes tables out as files for others, each whole or not at all.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::sheet::{Sheet, SheetError};
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
    let (to, format) = (plan.to.clone(), plan.format);
    let files = blocking(&cx.hands.engine, cx.stop, move |session| {
        sources.iter().map(|source| write(session, source, &to, format)).collect::<Result<Vec<_>, _>>()
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

fn write(
    session: &Session,
    source: &TableSource,
    to: &Path,
    format: PublishFormat,
) -> Result<(PathBuf, u64), StageError> {
    session.add_table(source)?;
    let (extension, options) = match format {
        PublishFormat::Parquet => ("parquet", Some("format parquet, compression zstd")),
        PublishFormat::Csv => ("csv", Some("format csv, header true")),
        PublishFormat::Xlsx => ("xlsx", None),
    };
    let target = to.join(format!("{}.{extension}", source.name));
    let aside = to.join(format!(".{}.{extension}.tmp", source.name));
    let io = |error: std::io::Error| StageError::Rule(format!("cannot write {}: {error}", target.display()));
    std::fs::create_dir_all(to).map_err(io)?;
    let select = format!("select * from {}", quoted(&source.name));
    let rows = match options {
        Some(options) => session.copy_as(&select, &aside, options)?,
        None => write_xlsx(session, source, &select, &aside)?,
    };
    std::fs::File::open(&aside).and_then(|file| file.sync_all()).map_err(io)?;
    crash::pass(CrashPoint::BeforeExportRename);
    std::fs::rename(&aside, &target).map_err(io)?;
    crash::pass(CrashPoint::AfterExportRename);
    Ok((target, rows))
}

fn write_xlsx(session: &Session, source: &TableSource, select: &str, target: &Path) -> Result<u64, StageError> {
    let failed = |error: SheetError| {
        StageError::Rule(format!("table `{}` does not become {}: {error}", source.name, target.display()))
    };
    let columns = session.bind(select, &Params::new())?;
    let names: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
    let mut sheet = Sheet::begin(&names).map_err(failed)?;
    session.stream::<StageError>(select, &Params::new(), |batch| sheet.rows(&batch).map_err(failed).map(|()| true))?;
    sheet.save(target).map_err(failed)
}
