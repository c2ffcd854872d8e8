//! Tables as immutable Parquet snapshots in a folder: where parts lie, how they are written, what may be dropped.
//!
//! ```text
//! LAKE/tables/TABLE/SLICE/SNAPSHOT/part-0001.parquet   parts of snapshots; the ledger says which are current
//! …/part-0001.digest                                   what a part holds, told beside it; nothing is lost with it
//! LAKE/work/…                                         what a stage keeps for itself: pages, details, messages
//! LAKE/spill/…                                        where the engine spills
//! ```
//! A slice is an account, a mini program, or `_` for a table made whole. What is *not* here: SQL, and which snapshot is
//! current.

pub mod catalog;
mod encode;
mod join;
mod part;
mod prints;
mod read;
mod vacuum;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use join::Piece;
pub use part::{Part, PartColumn, PartWriter, WholeFile};
pub use prints::{Fingerprints, Noted};
pub use read::{ColumnRead, RowsRead};
pub use vacuum::Dropped;

use crate::domain::TableName;

/// How a file ends that tells what the part beside it holds; it goes when its part goes.
pub const DIGEST: &str = "digest";

/// A folder of tables.
#[derive(Debug, Clone)]
pub struct Lake {
    root: PathBuf,
    /// Where a lake that cannot be written keeps what is written for one question.
    scratch: Option<Arc<tempfile::TempDir>>,
}

/// What went wrong with a file of the lake.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    #[error("cannot create the folder {path}{}", advice(source))]
    CreateFolder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write {path}{}", advice(source))]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot write rows to {path}")]
    WriteRows {
        path: PathBuf,
        #[source]
        source: polars::error::PolarsError,
    },
    #[error("cannot remove {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read rows of {path}")]
    ReadRows {
        path: PathBuf,
        #[source]
        source: polars::error::PolarsError,
    },
    #[error("cannot write the catalog {path}: {message}")]
    Catalog { path: PathBuf, message: String },
}

/// What to do, where the system's own words do not say so.
fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => ": the disk that it lies on is full; make room on it",
        std::io::ErrorKind::QuotaExceeded => ": no more room is granted on the disk that it lies on",
        _ => "",
    }
}

impl LakeError {
    /// Whether the disk has no room left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::CreateFolder { source, .. } | Self::Write { source, .. } => {
                source.kind() == std::io::ErrorKind::StorageFull
            }
            Self::WriteRows { source: polars::error::PolarsError::IO { error, .. }, .. } => {
                error.kind() == std::io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }
}

impl Lake {
    /// The lake at `root`; nothing is created before something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), scratch: None }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same lake for somebody who only reads it: one that cannot be written gets a temporary folder elsewhere for
    /// what a question needs to write, removed with the last clone.
    ///
    /// # Errors
    ///
    /// [`LakeError::CreateFolder`] when there is no room for that folder either.
    pub fn to_read(self) -> Result<Self, LakeError> {
        // The file has no name, so that nobody sees it and nothing stays.
        if tempfile::tempfile_in(&self.root).is_ok() {
            return Ok(self);
        }
        let scratch = tempfile::Builder::new().prefix("lianbo-").tempdir();
        let scratch = scratch.map_err(|source| LakeError::CreateFolder { path: std::env::temp_dir(), source })?;
        Ok(Self { scratch: Some(Arc::new(scratch)), ..self })
    }

    /// Where what is written for one question goes: this lake, or where it cannot be written a folder elsewhere.
    pub fn scratch(&self) -> Self {
        match &self.scratch {
            Some(folder) => Self { root: folder.path().to_owned(), scratch: self.scratch.clone() },
            None => self.clone(),
        }
    }

    /// Where the engine may spill.
    pub fn spill(&self) -> PathBuf {
        self.scratch().root.join("spill")
    }

    /// The folder of all tables.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// Whether anything was ever made of a table.
    pub fn has_tables(&self) -> bool {
        std::fs::read_dir(self.tables()).is_ok_and(|mut tables| tables.next().is_some())
    }

    /// The path of part `number` of a snapshot, relative to the lake.
    pub fn part_path(table: &TableName, slice: &str, snapshot: &str, number: u32) -> String {
        Self::named_part_path((table, slice, snapshot), "part", number)
    }

    /// The same of a part that says by its `name` what is in it.
    pub fn named_part_path(of: (&TableName, &str, &str), name: &str, number: u32) -> String {
        let (table, slice, snapshot) = of;
        let slice = if slice.is_empty() { "_" } else { slice };
        format!("tables/{table}/{slice}/{snapshot}/{name}-{number:04}.parquet")
    }

    /// Waits until a file that was written without waiting is on the disk; blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError::Write`].
    pub fn make_durable(&self, relative: &str) -> Result<(), LakeError> {
        let path = self.absolute(relative);
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(|source| LakeError::Write { path, source })
    }

    /// A relative path of the ledger as a path of this machine.
    pub fn absolute(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path of this machine as it stands in the ledger.
    pub fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Bytes of a part.
    ///
    /// # Errors
    ///
    /// [`LakeError::Read`] when it is not there.
    pub fn size_bytes(&self, relative: &str) -> Result<u64, LakeError> {
        let path = self.absolute(relative);
        std::fs::metadata(&path).map(|meta| meta.len()).map_err(|source| LakeError::Read { path, source })
    }

    /// Gives a file of `work/` a second name as a part: no byte is copied where the file system can link.
    ///
    /// # Errors
    ///
    /// [`LakeError::CreateFolder`], [`LakeError::Write`].
    pub fn adopt(&self, from: &str, part: &str) -> Result<(), LakeError> {
        let (from, path) = (self.absolute(from), self.absolute(part));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LakeError::CreateFolder { path: folder.to_owned(), source })?;
        }
        if std::fs::hard_link(&from, &path).is_ok() {
            return Ok(());
        }
        std::fs::copy(&from, &path).map(|_| ()).map_err(|source| LakeError::Write { path, source })
    }

    /// Gives a file another name, which nobody reads yet.
    ///
    /// # Errors
    ///
    /// [`LakeError::CreateFolder`], [`LakeError::Write`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), LakeError> {
        let path = self.absolute(to);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| LakeError::CreateFolder { path: folder.to_owned(), source })?;
        }
        std::fs::rename(self.absolute(from), &path).map_err(|source| LakeError::Write { path, source })
    }

    /// Removes one file that nothing refers to any more; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// [`LakeError::Remove`].
    pub fn remove(&self, relative: &str) -> Result<(), LakeError> {
        let path = self.absolute(relative);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(LakeError::Remove { path, source }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ColumnType, Rows, Texts, Values};

    #[test]
    fn a_full_disk_is_named_when_rows_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        std::os::unix::fs::symlink("/dev/full", folder.path().join("users.parquet.tmp")).unwrap();
        let mut writer = lake.writer("users.parquet", &[("id", ColumnType::Integer)]).unwrap();
        let mut write = || {
            // More than what is held back for a while.
            for part in 0..20 {
                let ids = (part * 10_000..(part + 1) * 10_000).map(Some).collect();
                writer.write(Rows { columns: vec![("id".to_owned(), Values::Integer(ids))] })?;
            }
            Ok::<_, LakeError>(())
        };
        let error = write().unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert!(error.to_string().ends_with("the disk that it lies on is full; make room on it"), "{error}");
        let nothing = lake.writer("users.parquet", &[("id", ColumnType::Integer)]).unwrap();
        assert!(nothing.finish().unwrap_err().is_disk_full(), "also where only the end cannot be written");
    }

    #[test]
    fn a_part_appears_only_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let schema = [("openid", ColumnType::Text), ("seen_at", ColumnType::Timestamp)];
        let mut writer = lake.writer("work/page.parquet", &schema).unwrap();
        let rows = Rows {
            columns: vec![
                ("openid".into(), Values::Text(vec![Some("o1".into()), None])),
                ("seen_at".into(), Values::Timestamp(vec![Some(1_700_000_000_000_000), None])),
            ],
        };
        writer.write(rows).unwrap();
        assert!(!lake.absolute("work/page.parquet").exists());
        let again: Texts = [Some("o2"), None].into_iter().collect();
        let columns = vec![("openid", PartColumn::Texts(&again)), ("seen_at", PartColumn::SameTime(1))];
        writer.write_columns(2, columns).unwrap();
        let part = writer.finish().unwrap();
        assert_eq!(part.rows, 4);
        let read = lake.read_texts("work/page.parquet", "openid").unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), [Some("o1"), None, Some("o2"), None]);
        assert!(lake.absolute("work/page.parquet").exists());
    }
}
