//! `catalog.duckdb`: a small DuckDB file of views over the current parts, for analysts' own clients.
//!
//! A product, never our store: it is written aside, made durable, and renamed into place, so that a reader always opens a
//! whole one and a run never waits for a reader. The storage version is one that old clients read.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::LakeError;
use crate::crash::{self, CrashPoint};
use crate::domain::quoting::{quoted, text};

/// Of a table's files, in one statement.
const FILES_AT_ONCE: usize = 200;

/// A table as the catalog shows it.
#[derive(Debug, Clone)]
pub struct CatalogTable {
    pub name: String,
    /// What its view reads, with absolute paths.
    pub select: String,
    /// Absolute paths of the Parquet files whose rows together are the view's; none where the view does more than reading.
    pub files: Vec<PathBuf>,
}

/// A catalog on its way, beside the one that is read.
pub struct CatalogWriter {
    connection: Option<duckdb::Connection>,
    target: PathBuf,
    aside: PathBuf,
}

impl CatalogWriter {
    /// Begins a catalog that is to be at `target`. DuckDB takes its time to start: whoever has something else to do before
    /// the tables are known begins first. `macros` are the statements that define `local_time` and `local_date`. Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError::Catalog`] when DuckDB refuses, [`LakeError::Write`] when there is no room beside `target`.
    pub fn begin(target: &Path, macros: &str) -> Result<Self, LakeError> {
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let number = BEGUN.fetch_add(1, Ordering::Relaxed);
        let aside = target.with_extension(format!("duckdb.{}-{number}.tmp", std::process::id()));
        let write_error = |source| LakeError::Write { path: target.to_owned(), source };
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(write_error)?;
        }
        remove_if_there(&aside).map_err(write_error)?;
        let mut writer = Self { connection: None, target: target.to_owned(), aside };
        let connection = duckdb::Config::default()
            .threads(1)
            .and_then(duckdb::Connection::open_in_memory_with_flags)
            .map_err(|error| writer.refused(&error))?;
        // All in one transaction: each of its own would wait for the disk.
        let script = format!(
            "attach {} as catalog (storage_version 'v1.0.0'); use catalog; begin;\n{macros}\
             create table catalog_info(key varchar, value varchar);\n\
             create table catalog_files(table_name varchar, path varchar);\n",
            text(&writer.aside.to_string_lossy())
        );
        connection.execute_batch(&script).map_err(|error| writer.refused(&error))?;
        writer.connection = Some(connection);
        Ok(writer)
    }

    /// Puts the catalog in the place of the one before. `notes` are key and value pairs of a small table `catalog_info`
    /// (generation, when, workspace). Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError::Catalog`] when DuckDB refuses, [`LakeError::Write`] when the file cannot be put in place.
    pub fn finish(mut self, tables: &[CatalogTable], notes: &[(&str, String)]) -> Result<(), LakeError> {
        let connection = self.connection.take().expect("it is there from the beginning to the end");
        // One after the other: a script is parsed as a whole, and the tree of all paths would stand in memory at once.
        let run = |sql: &str| connection.execute_batch(sql).map_err(|error| self.refused(&error));
        for (key, value) in notes {
            run(&format!("insert into catalog_info values ({}, {})", text(key), text(value)))?;
        }
        for table in tables {
            for files in table.files.chunks(FILES_AT_ONCE) {
                let row = |file: &PathBuf| format!("({}, {})", text(&table.name), text(&file.to_string_lossy()));
                let rows: Vec<String> = files.iter().map(row).collect();
                run(&format!("insert into catalog_files values {}", rows.join(", ")))?;
            }
            run(&format!("create view {} as {}", quoted(&table.name), table.select))?;
        }
        run("commit; use memory; detach catalog")?;
        drop(connection);
        let write_error = |source| LakeError::Write { path: self.target.clone(), source };
        std::fs::File::open(&self.aside).and_then(|file| file.sync_all()).map_err(write_error)?;
        crash::pass(CrashPoint::BeforeCatalogRename);
        std::fs::rename(&self.aside, &self.target).map_err(write_error)?;
        crash::pass(CrashPoint::AfterCatalogRename);
        Ok(())
    }

    fn refused(&self, error: &duckdb::Error) -> LakeError {
        LakeError::Catalog { path: self.target.clone(), message: error.to_string() }
    }
}

/// One that was given up leaves nothing beside the catalog.
impl Drop for CatalogWriter {
    fn drop(&mut self) {
        drop(self.connection.take());
        // What cannot be removed is in nobody's way: the next one begins with it.
        let _ = remove_if_there(&self.aside);
    }
}

/// Removes catalogs that a process began and died over, of before `older_than`; says how many files went.
///
/// # Errors
///
/// [`LakeError::Remove`].
pub fn drop_abandoned(target: &Path, older_than: SystemTime) -> Result<u64, LakeError> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name().and_then(|name| name.to_str())) else {
        return Ok(0);
    };
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(0) };
    let mut dropped = 0;
    for entry in entries.flatten() {
        let own = entry.file_name().to_string_lossy().into_owned();
        let is_aside = own.strip_prefix(name).is_some_and(|rest| rest.starts_with('.') && rest.contains(".tmp"));
        let is_old = entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|at| at < older_than);
        if is_aside && is_old {
            let path = entry.path();
            remove_if_there(&path).map_err(|source| LakeError::Remove { path, source })?;
            dropped += 1;
        }
    }
    Ok(dropped)
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
