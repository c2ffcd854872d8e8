//! The ledger: what was done and what is owed, in one SQLite file that several processes share.
//!
//! Every SQL statement about state is in this room, one file per noun. A change names the state it expects and says
//! whether it was still so. What belongs to a run names the lease it is done under: the lease's fence grows with each
//! holder, so that a holder who was thought dead can write nothing once another has taken over. Transactions are short
//! and none is open while anybody waits for the network. Time is an argument; only leases are judged by the database's
//! own clock, because several machines must agree on it.
//!
//! One connection writes (`begin immediate`, so that waiting happens at the start and never half way), a few others
//! read; WAL keeps them out of each other's way. Dropping a call half way rolls its transaction back.
//!
//! Not here: which transitions are lawful (`domain`), what is due (`scheduler`), the tables of the lake.

mod alerts;
mod audit;
mod callbacks;
mod canary;
mod caps;
mod check_results;
mod claims;
mod deliveries;
mod error;
mod fires;
mod follower_events;
mod forgotten;
mod freezes;
mod kept;
mod leases;
mod marks;
mod meta;
mod migrate;
mod moves;
mod orders;
mod outcomes;
mod overlap;
mod push_calls;
mod pushes;
mod quota;
mod rates;
mod read_tally;
mod reading;
mod repeats;
mod reviews;
mod room;
mod runs;
mod snapshots;
mod sql;
mod stages;
mod suppressions;
mod tables;
mod tally;
mod tokens;
mod vacuum;
mod walks;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod testing;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Sqlite, SqlitePool, Transaction};

use crate::clock::Clock;

pub use alerts::{AlertChange, AlertChanged, AlertState, OwedAlert};
pub use audit::AuditEntry;
pub use callbacks::{Applied, CallbackCount, NewCallback, Replay};
pub use caps::CapRule;
pub use check_results::{CheckOutcome, CheckResult};
pub use claims::{Begin, Begun, Intent, QuotaCharge};
pub use deliveries::{DeliveryRow, ErrcodeCount};
pub use error::LedgerError;
pub use fires::{Fire, FireOutcome};
pub use follower_events::FollowerEvent;
pub use forgotten::{Forgetting, Forgotten};
pub use freezes::{EVERY_ACCOUNT, Freeze};
pub use kept::{DroppedUntil, KeptSnapshot};
pub use leases::{Acquired, Holder, Lease};
pub use marks::FollowerMark;
pub use moves::{AccountMove, FinishedMove, MovedRow, NewMove, Touched};
pub use orders::{DeliveredCounts, Order};
pub use outcomes::{GiveBack, Outcome, OutcomeBatch, Recorded};
pub use pushes::{NewPush, Push, PushChange};
pub use quota::{QuotaFigure, Usage};
pub use rates::ShareRequest;
pub use read_tally::ReadTally;
pub use reviews::{RefusedMessage, Review, ReviewTimes};
pub use room::Room;
pub use runs::{NewRun, Run, RunChange};
pub use snapshots::SnapshotRecord;
pub use stages::StageRecord;
pub use suppressions::{NewSuppression, Suppression};
pub use tables::{LiveCursor, LiveTable};
pub use tally::CallTally;
pub use tokens::ForcedLimit;
pub use walks::{NewWalkPart, Walk, WalkPart};

use error::Doing;

/// How long a writer waits for another process before it gives up: longer than anybody of the house keeps it, and short
/// enough that a stop is over within its ten seconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(8);
/// Several processes that start at once can meet `locked` while one of them switches the file to WAL, whatever the
/// busy timeout: that is tried again this often, a few dozen milliseconds apart.
const OPEN_ATTEMPTS: u32 = 100;
const READERS: u32 = 4;

/// The ledger of a workspace. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Ledger {
    writer: SqlitePool,
    /// Writes what may be done again: leases, pages, parts, counted reads, stages. A commit here does not wait for the disk;
    /// the next one of `writer` takes it there, so that no commit is ever there without those before it. A process that
    /// dies loses nothing, a power cut the last of these.
    notes: SqlitePool,
    readers: SqlitePool,
    path: Arc<Path>,
    is_to_read: bool,
    /// Where it is read from when it cannot be read where it lies.
    _copy: Option<Arc<tempfile::TempDir>>,
}

/// An open transaction of the writer. Dropped without a commit, it is rolled back.
type WriteTx = Transaction<'static, Sqlite>;

impl Ledger {
    /// Opens the ledger, making its folder and file where they are missing and bringing its tables up to date.
    ///
    /// # Errors
    ///
    /// When the file cannot be made, opened or migrated, and when a newer version of the program wrote it.
    pub async fn open(path: &Path) -> Result<Self, LedgerError> {
        create_file(path).map_err(|source| LedgerError::Create { path: path.to_owned(), source })?;
        let unwritable = |error: LedgerError| match error {
            LedgerError::ReadOnly { source, .. } => LedgerError::Unwritable { path: path.to_owned(), source },
            other => other,
        };
        let writer = connect_writer(path).await.map_err(unwritable)?;
        migrate::migrate(&writer, path).await.map_err(unwritable)?;
        let notes = pool(1).connect_lazy_with(options(path).synchronous(SqliteSynchronous::Normal));
        let readers = pool(READERS).connect_lazy_with(options(path).pragma("query_only", "on"));
        Ok(Self { writer, notes, readers, path: path.into(), is_to_read: false, _copy: None })
    }

    /// Opens the ledger only if its file is there: for orders about what ran.
    ///
    /// # Errors
    ///
    /// As [`Ledger::open`].
    pub async fn open_existing(path: &Path) -> Result<Option<Self>, LedgerError> {
        if is_there(path)? { Self::open(path).await.map(Some) } else { Ok(None) }
    }

    /// Closes all connections. The last one to close folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.notes.close().await;
        self.writer.close().await;
    }

    /// Begins to write: waits for writers of other processes here, so that nothing later in the transaction does.
    async fn begin(&self, doing: &'static str) -> Result<WriteTx, LedgerError> {
        begin_in(&self.writer, doing).await
    }

    /// As [`Ledger::begin`], for what may be done again.
    async fn begin_note(&self, doing: &'static str) -> Result<WriteTx, LedgerError> {
        begin_in(&self.notes, doing).await
    }

    /// Begins to write under a lease; `None` when the lease is lost, and nothing may be written any more.
    async fn begin_under(&self, lease: &Lease, doing: &'static str) -> Result<Option<WriteTx>, LedgerError> {
        let mut tx = self.begin(doing).await?;
        Ok(leases::is_held(&mut tx, lease).await?.then_some(tx))
    }

    /// As [`Ledger::begin_under`], where a lost lease is an error of the caller's.
    async fn begin_held(&self, lease: &Lease, doing: &'static str) -> Result<WriteTx, LedgerError> {
        let tx = self.begin_under(lease, doing).await?;
        tx.ok_or_else(|| LedgerError::LeaseLost { doing, lease: lease.name.clone() })
    }

    /// As [`Ledger::begin_held`], for what may be done again.
    async fn begin_held_note(&self, lease: &Lease, doing: &'static str) -> Result<WriteTx, LedgerError> {
        let mut tx = self.begin_note(doing).await?;
        let is_held = leases::is_held(&mut tx, lease).await?;
        is_held.then_some(tx).ok_or_else(|| LedgerError::LeaseLost { doing, lease: lease.name.clone() })
    }
}

async fn begin_in(pool: &SqlitePool, doing: &'static str) -> Result<WriteTx, LedgerError> {
    match pool.begin_with("begin immediate").await {
        // A full disk ends SQLite's transaction behind the driver's back, which from then on believes itself inside
        // one: that connection is of no more use.
        Err(sqlx::Error::InvalidSavePointStatement) => {
            pool.acquire().await.doing(doing)?.close().await.doing(doing)?;
            pool.begin_with("begin immediate").await.doing(doing)
        }
        begun => begun.doing(doing),
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Whether there is a ledger; a file without a byte is none yet.
fn is_there(path: &Path) -> Result<bool, LedgerError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LedgerError::Unopened { path: path.to_owned(), source }),
    }
}

/// Makes the folder and an empty file that only its owner may read: access tokens are in it.
fn create_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(256)
        .disable_statement_logging()
}

async fn connect_writer(path: &Path) -> Result<SqlitePool, LedgerError> {
    let clock = Clock::default();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let connected = pool(1).connect_with(options(path).journal_mode(SqliteJournalMode::Wal)).await;
        match connected.doing("open the ledger") {
            Ok(pool) => return Ok(pool),
            Err(error) if error.is_transient() && attempt < OPEN_ATTEMPTS => {
                clock.sleep(Duration::from_millis(5) + clock.jitter(Duration::from_millis(50))).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[tokio::test]
    async fn first_starters_race_and_all_get_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/ledger.db");
        let opened = futures::future::join_all((0..8).map(|_| Ledger::open(&path))).await;
        for ledger in opened {
            let ledger = ledger.unwrap();
            assert!(ledger.latest_runs(10, None).await.unwrap().is_empty());
            ledger.close().await;
        }
    }

    #[tokio::test]
    async fn a_transaction_that_sqlite_itself_ended_keeps_nobody_from_writing() {
        let house = House::new().await;
        let mut tx = house.ledger.begin("write").await.unwrap();
        // What SQLite does by itself when the disk is full while it commits.
        sqlx::query("rollback").execute(&mut *tx).await.unwrap();
        assert!(tx.commit().await.is_err());
        let push = house.push("r1", 10).await;
        assert_eq!(house.reload(&push).await.recipients, 10);
    }

    #[tokio::test]
    async fn looking_leaves_no_file_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        assert!(Ledger::open_existing(&path).await.unwrap().is_none());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_of_a_newer_version_is_refused() {
        let house = House::new().await;
        sqlx::query("insert into schema_versions (version) values (9999)").execute(&house.ledger.writer).await.unwrap();
        let error = Ledger::open(&house.path).await.unwrap_err();
        assert!(matches!(error, LedgerError::Newer { found: 9999, .. }), "{error}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn nobody_but_the_owner_reads_the_file() {
        let house = House::new().await;
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&house.path).unwrap().permissions());
        assert_eq!(mode & 0o077, 0);
    }
}
