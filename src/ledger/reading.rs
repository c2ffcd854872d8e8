//! Opening a ledger only to look at it: nothing of it is changed, and its folder need not be writable.
//!
//! SQLite reads a file in WAL mode through an index beside it (`-shm`). Whoever may write to the folder makes one; where
//! somebody works with the ledger there is one. Elsewhere (a read-only mount, another user's folder) nobody is writing:
//! then the file is read as it lies, or, when a process that died left a log (`-wal`) behind, from a copy of both.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::error::Doing;
use super::{Ledger, LedgerError, READERS, migrate, options};

const DOING: &str = "read the ledger";

impl Ledger {
    /// Whether nothing can be written through it.
    pub fn is_to_read(&self) -> bool {
        self.is_to_read
    }

    /// An empty ledger elsewhere, removed with its last clone: how a workspace looks in which nothing ran.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`].
    pub async fn blank() -> Result<Self, LedgerError> {
        let folder = tempfile::Builder::new().prefix("lianbo-").tempdir();
        let folder = folder.map_err(|source| LedgerError::Create { path: std::env::temp_dir(), source })?;
        let ledger = Self::open(&folder.path().join("ledger.db")).await?;
        Ok(Self { _copy: Some(Arc::new(folder)), ..ledger })
    }

    /// Opens the ledger to read, if its file is there; what would write through it fails with [`LedgerError::ReadOnly`].
    ///
    /// A ledger of an older version is brought up to date first, which needs one that can be written.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Unopened`] when this user may not read the file, [`LedgerError::Newer`], [`LedgerError::Older`].
    pub async fn open_to_read(path: &Path) -> Result<Option<Self>, LedgerError> {
        if !super::is_there(path)? {
            return Ok(None);
        }
        std::fs::File::open(path).map_err(|source| LedgerError::Unopened { path: path.to_owned(), source })?;
        // Where it may be, the folder is tidied by the last who looks: that is why this is not opened as read-only.
        let looked = match look(options(path)).await {
            Err(error) if error.is_read_only() => without_index(path).await?,
            looked => Looked { copy: None, ..looked? },
        };
        let known = migrate::newest();
        match looked.version {
            found if found > known => Err(LedgerError::Newer { path: path.to_owned(), found, known }),
            found if found < known => match Self::open(path).await {
                Err(error) if error.is_read_only() => Err(LedgerError::Older { path: path.to_owned(), found, known }),
                opened => opened.map(Some),
            },
            _ => Ok(Some(Self {
                writer: looked.pool.clone(),
                notes: looked.pool.clone(),
                readers: looked.pool,
                path: path.into(),
                is_to_read: true,
                _copy: looked.copy,
            })),
        }
    }
}

/// A ledger that was looked at.
struct Looked {
    pool: SqlitePool,
    version: i64,
    copy: Option<Arc<tempfile::TempDir>>,
}

async fn look(options: SqliteConnectOptions) -> Result<Looked, LedgerError> {
    let pool = SqlitePoolOptions::new()
        .max_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(options.pragma("query_only", "on"));
    // The first look also finds out whether there is an index to read by.
    let version = migrate::version(&pool).await.doing(DOING)?;
    Ok(Looked { pool, version, copy: None })
}

/// Nobody can be writing: whoever does keeps an index.
async fn without_index(path: &Path) -> Result<Looked, LedgerError> {
    let log = beside(path, "-wal");
    if std::fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
        return look(options(path).read_only(true).immutable(true)).await;
    }
    let failed = |source: io::Error| LedgerError::Unopened { path: path.to_owned(), source };
    let folder = tempfile::tempdir().map_err(failed)?;
    let copy = folder.path().join("ledger.db");
    std::fs::copy(path, &copy).map_err(failed)?;
    std::fs::copy(&log, beside(&copy, "-wal")).map_err(failed)?;
    Ok(Looked { copy: Some(Arc::new(folder)), ..look(options(&copy)).await? })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    async fn runs(path: &Path) -> usize {
        let ledger = Ledger::open_to_read(path).await.unwrap().unwrap();
        let runs = ledger.latest_runs(9, None).await.unwrap().len();
        ledger.close().await;
        runs
    }

    #[tokio::test]
    async fn a_reader_sees_what_a_writer_just_wrote_and_changes_nothing() {
        let house = House::new().await;
        house.run("r1").await;
        let reader = Ledger::open_to_read(&house.path).await.unwrap().unwrap();
        assert_eq!(reader.latest_runs(9, None).await.unwrap().len(), 1);
        let error = reader.set_meta("a", "b").await.unwrap_err();
        assert!(error.is_read_only(), "{error}");
        house.run("r2").await;
        assert_eq!(reader.latest_runs(9, None).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_ledger_at_rest_is_read_as_it_lies() {
        let house = House::new().await;
        house.run("r1").await;
        house.ledger.close().await;
        let looked = without_index(&house.path).await.unwrap();
        assert!(looked.copy.is_none());
        looked.pool.close().await;
        assert_eq!(runs(&house.path).await, 1);
    }

    #[tokio::test]
    async fn what_a_dead_process_left_in_the_log_is_read_from_a_copy() {
        let house = House::new().await;
        house.run("r1").await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        for ending in ["", "-wal"] {
            std::fs::copy(beside(&house.path, ending), beside(&path, ending)).unwrap();
        }
        let before = std::fs::read(&path).unwrap();
        let looked = without_index(&path).await.unwrap();
        assert!(looked.copy.is_some());
        let found: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(&looked.pool).await.unwrap();
        assert_eq!(found, 1);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[tokio::test]
    async fn looking_makes_no_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        assert!(Ledger::open_to_read(&path).await.unwrap().is_none());
        assert!(!path.exists());
    }
}
