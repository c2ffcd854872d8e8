//! `publish`: writes tables out as files for others, each whole or not at all.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{StageContext, StageError, StageOutcome, StageReport, blocking, live};
use crate::config::settings::{Publish, PublishFormat};
use crate::domain::Values;
use crate::engine::{Params, Session, TableSource, quoted};

/// Rows an xlsx sheet holds, without its header.
const XLSX_ROWS: u64 = 1_048_575;

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
        failed_slices: Vec::new(),
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
    std::fs::rename(&aside, &target).map_err(io)?;
    Ok((target, rows))
}

fn write_xlsx(session: &Session, source: &TableSource, select: &str, target: &Path) -> Result<u64, StageError> {
    let rows = session.count(&format!("select count(*) from {}", quoted(&source.name)), &Params::new())?;
    if rows > XLSX_ROWS {
        return Err(StageError::Rule(format!(
            "table `{}` has {rows} rows; a sheet of xlsx holds {XLSX_ROWS}: publish it as csv or parquet",
            source.name
        )));
    }
    let failed =
        |error: rust_xlsxwriter::XlsxError| StageError::Rule(format!("cannot write {}: {error}", target.display()));
    let mut book = rust_xlsxwriter::Workbook::new();
    let sheet = book.add_worksheet_with_constant_memory().map_err(failed)?;
    for (at, (name, _)) in session.bind(select, &Params::new())?.iter().enumerate() {
        sheet.write_string(0, column_number(at), name).map_err(failed)?;
    }
    let mut line = 0_u32;
    session.stream::<StageError>(select, &Params::new(), |batch| {
        for row in 0..batch.len() {
            line += 1;
            for (at, (_, values)) in batch.columns.iter().enumerate() {
                write_cell(sheet, (line, column_number(at)), values, row).map_err(failed)?;
            }
        }
        Ok(true)
    })?;
    book.save(target).map_err(failed)?;
    Ok(rows)
}

fn column_number(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

/// Long integers go out as text: a sheet's numbers hold 53 bits.
fn write_cell(
    sheet: &mut rust_xlsxwriter::Worksheet,
    (line, column): (u32, u16),
    values: &Values,
    row: usize,
) -> Result<(), rust_xlsxwriter::XlsxError> {
    const EXACT: i64 = 1 << 53;
    match values {
        Values::Text(values) => {
            if let Some(text) = &values[row] {
                sheet.write_string(line, column, text)?;
            }
        }
        Values::Integer(values) => match values[row] {
            Some(number) if number.abs() < EXACT => {
                #[expect(clippy::cast_precision_loss, reason = "below 53 bits, as the guard says")]
                sheet.write_number(line, column, number as f64)?;
            }
            Some(number) => {
                sheet.write_string(line, column, number.to_string())?;
            }
            None => {}
        },
        Values::Float(values) => {
            if let Some(number) = values[row] {
                sheet.write_number(line, column, number)?;
            }
        }
        Values::Boolean(values) => {
            if let Some(value) = values[row] {
                sheet.write_boolean(line, column, value)?;
            }
        }
        Values::Timestamp(values) => {
            if let Some(micros) = values[row] {
                let text = crate::clock::from_micros(micros).format("%Y-%m-%d %H:%M:%S").to_string();
                sheet.write_string(line, column, text)?;
            }
        }
        Values::Date(values) => {
            if let Some(date) = values[row].and_then(chrono::NaiveDate::from_epoch_days) {
                sheet.write_string(line, column, date.to_string())?;
            }
        }
    }
    Ok(())
}
