//! `catalog.duckdb`: a small DuckDB file of views over the current parts, for analysts' own clients.
//!
//! A product, never our store: it is written aside, made durable, and renamed into place, so that a reader always opens a
//! whole one and a run never waits for a reader. The storage version is one that old clients read.

use std::path::{Path, PathBuf};

use super::LakeError;

/// A table as the catalog shows it.
#[derive(Debug, Clone)]
pub struct CatalogTable {
    pub name: String,
    /// Name and DuckDB type, in order.
    pub columns: Vec<(String, String)>,
    /// Absolute paths.
    pub parts: Vec<PathBuf>,
}

/// Writes the catalog at `target`, replacing the one before.
///
/// `macros` are the statements that define `local_time` and `local_date`; `notes` are key and value pairs of a small
/// table `catalog_info` (generation, when, workspace).
///
/// # Errors
///
/// [`LakeError::Catalog`] when DuckDB refuses, [`LakeError::Write`] when the file cannot be put in place.
pub fn write(target: &Path, tables: &[CatalogTable], macros: &str, notes: &[(&str, String)]) -> Result<(), LakeError> {
    let aside = target.with_extension(format!("duckdb.{}.tmp", std::process::id()));
    let write_error = |source| LakeError::Write { path: target.to_owned(), source };
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder).map_err(write_error)?;
    }
    remove_if_there(&aside).map_err(write_error)?;
    let catalog_error =
        |error: duckdb::Error| LakeError::Catalog { path: target.to_owned(), message: error.to_string() };
    let connection = duckdb::Connection::open_in_memory().map_err(catalog_error)?;
    let script = script(&aside, tables, macros, notes);
    connection.execute_batch(&script).map_err(catalog_error)?;
    drop(connection);
    std::fs::File::open(&aside).and_then(|file| file.sync_all()).map_err(write_error)?;
    std::fs::rename(&aside, target).map_err(write_error)
}

fn script(aside: &Path, tables: &[CatalogTable], macros: &str, notes: &[(&str, String)]) -> String {
    let mut script = format!(
        "set threads = 1; attach {} as catalog (storage_version 'v1.0.0'); use catalog; begin;\n{macros}",
        text(&aside.to_string_lossy())
    );
    script.push_str("create table catalog_info(key varchar, value varchar);\n");
    for (key, value) in notes {
        script.push_str(&format!("insert into catalog_info values ({}, {});\n", text(key), text(value)));
    }
    for table in tables {
        script.push_str(&format!("create view {} as {};\n", quoted(&table.name), select(table)));
    }
    // In one transaction: each of its own would wait for the disk.
    script.push_str("commit; use memory; detach catalog;\n");
    script
}

fn select(table: &CatalogTable) -> String {
    if table.parts.is_empty() {
        let nulls: Vec<String> =
            table.columns.iter().map(|(name, ty)| format!("cast(null as {ty}) as {}", quoted(name))).collect();
        return format!("select {} where false", nulls.join(", "));
    }
    let columns: Vec<String> = table.columns.iter().map(|(name, _)| quoted(name)).collect();
    let files: Vec<String> = table.parts.iter().map(|part| text(&part.to_string_lossy())).collect();
    format!("select {} from read_parquet([{}], union_by_name = true)", columns.join(", "), files.join(", "))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
