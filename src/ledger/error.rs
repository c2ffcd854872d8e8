//! What can go wrong with the ledger: said by what was being done, with SQLite's own words as the source.

use std::path::PathBuf;

use sqlx::error::DatabaseError;

/// An error of the ledger. [`LedgerError::is_transient`] says whether trying again helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    #[error("cannot create the ledger {}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("the ledger {} cannot be read by this user{}", path.display(), owner(source))]
    Unopened { path: PathBuf, source: std::io::Error },
    /// What is to be done writes to the ledger.
    #[error(
        "this needs to write to the ledger {}, which cannot be written: its folder must be writable too, for SQLite's \
         -wal and -shm files; do it as a user who may write there",
        path.display()
    )]
    Unwritable { path: PathBuf, source: sqlx::Error },
    #[error("cannot {doing}: the ledger can only be read here; do it as a user who may write to its folder")]
    ReadOnly { doing: &'static str, source: sqlx::Error },
    #[error(
        "the ledger {} is of version {found} and has to be brought to version {known} first, but it cannot be written \
         here; `lianbo status` by a user who may write to its folder does it",
        path.display()
    )]
    Older { path: PathBuf, found: i64, known: i64 },
    #[error("the ledger {} is of version {found}; this program knows versions up to {known}", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("cannot {doing}: the disk is full")]
    DiskFull { doing: &'static str, source: sqlx::Error },
    #[error(
        "cannot set {} KiB aside in {} to record what is sent: nothing is sent before that; make room on that disk",
        bytes / 1024, path.display()
    )]
    NoRoom { path: PathBuf, bytes: u64, source: std::io::Error },
    /// The disk failed amid a write, or its file system was made read-only under an open file.
    #[error("cannot {doing}: the disk of the ledger takes no writes")]
    NoWrites { doing: &'static str, source: sqlx::Error },
    #[error("cannot {doing}: another process keeps the ledger busy")]
    Busy { doing: &'static str, source: sqlx::Error },
    #[error("cannot {doing}")]
    Statement { doing: &'static str, source: sqlx::Error },
    #[error("cannot read the ledger's column {column}")]
    Column { column: &'static str, source: sqlx::Error },
    #[error("the ledger holds a {what} that cannot be: {value}")]
    Unreadable { what: &'static str, value: String },
    #[error("cannot {doing}: the lease {lease:?} went to somebody else")]
    LeaseLost { doing: &'static str, lease: String },
    /// A caller named a row that is not there, or not in the state that the change expects.
    #[error("cannot {doing}: {why}")]
    OutOfStep { doing: &'static str, why: String },
}

impl LedgerError {
    /// Whether the same call may succeed a little later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// For a write that was given up before its own time was over, because somebody keeps the ledger busy.
    pub fn kept_busy(doing: &'static str) -> Self {
        Self::Busy { doing, source: sqlx::Error::PoolTimedOut }
    }

    /// Whether the ledger, or its folder, cannot be written by this user.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly { .. } | Self::Unwritable { .. })
    }

    /// Whether nothing at all can be written to the ledger now: nothing may be sent until something can be.
    pub fn is_unwritable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::NoWrites { .. }) || self.is_read_only() || self.is_disk_full()
    }

    /// Whether the disk was full: nothing was written, and nothing may be sent until something can be.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Create { source, .. } | Self::NoRoom { source, .. } => {
                source.kind() == std::io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }
}

/// Says what a statement was for when it fails.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, LedgerError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, LedgerError> {
        self.map_err(|source| match primary_code(&source) {
            Some(Primary::Full) => LedgerError::DiskFull { doing, source },
            Some(Primary::Busy) => LedgerError::Busy { doing, source },
            Some(Primary::ReadOnly) => LedgerError::ReadOnly { doing, source },
            Some(Primary::NoWrites) => LedgerError::NoWrites { doing, source },
            None => LedgerError::Statement { doing, source },
        })
    }
}

enum Primary {
    Full,
    Busy,
    ReadOnly,
    NoWrites,
}

/// Why nobody else may read it, where that is why.
fn owner(source: &std::io::Error) -> &'static str {
    if source.kind() == std::io::ErrorKind::PermissionDenied {
        ": access tokens are in it, so that only its owner may; run this as its owner, or let the owner grant it"
    } else {
        ""
    }
}

/// SQLite's result codes: the low byte is the kind, the rest the circumstance.
fn primary_code(error: &sqlx::Error) -> Option<Primary> {
    const SQLITE_BUSY: i32 = 5;
    const SQLITE_LOCKED: i32 = 6;
    const SQLITE_READONLY: i32 = 8;
    const SQLITE_FULL: i32 = 13;
    /// The file is there when this room opens it: what cannot be opened is the log or the index beside it.
    const SQLITE_CANTOPEN: i32 = 14;
    /// The shared-memory file could not grow: the disk is full in WAL's own words.
    const SQLITE_IOERR_SHMSIZE: i32 = 10 | (19 << 8);
    /// Writing, syncing and shortening the file or its log.
    const SQLITE_IOERR_OF_WRITES: [i32; 4] = [10 | (3 << 8), 10 | (4 << 8), 10 | (5 << 8), 10 | (6 << 8)];
    if let sqlx::Error::PoolTimedOut = error {
        return Some(Primary::Busy);
    }
    let code = error.as_database_error().and_then(DatabaseError::code)?.parse::<i32>().ok()?;
    match code {
        SQLITE_IOERR_SHMSIZE => Some(Primary::Full),
        code if SQLITE_IOERR_OF_WRITES.contains(&code) => Some(Primary::NoWrites),
        _ => match code & 0xff {
            SQLITE_BUSY | SQLITE_LOCKED => Some(Primary::Busy),
            SQLITE_READONLY | SQLITE_CANTOPEN => Some(Primary::ReadOnly),
            SQLITE_FULL => Some(Primary::Full),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[tokio::test]
    async fn a_full_disk_is_told_apart() {
        let house = House::new().await;
        let pages: i64 = sqlx::query_scalar("pragma page_count").fetch_one(&house.ledger.writer).await.unwrap();
        let limit = format!("pragma max_page_count = {}", pages + 1);
        sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&house.ledger.writer).await.unwrap();
        let long = "x".repeat(1 << 20);
        let error = house.ledger.set_meta("filler", &long).await.unwrap_err();
        assert!(error.is_disk_full() && !error.is_transient(), "{error}");
        assert_eq!(house.ledger.get_meta("filler").await.unwrap(), None);
    }
}
