//! The way of the data, one step a file: extract → enrich → load → join → cover → materialize → push → publish.
//!
//! A stage reads the snapshots it is given, writes parts under names nobody reads, and returns what it made; what passes
//! between stages is a record of where the rows are, never the rows. A stage does not know what comes after it, and it
//! publishes nothing: the conductor does, when the checks have passed. *Waiting* and *halted* are outcomes, not errors.

pub mod checks;
pub mod enrich_unionids;
pub mod extract_followers;
pub mod join_identities;
pub mod live;
pub mod load_users;
pub mod materialize_recipients;
pub mod measure_coverage;
pub mod moved;
pub mod news;
pub mod outputs;
pub mod publish;
pub mod push_template;
pub mod query;
pub mod sql;
pub mod tables;
pub mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Timestamp};
use crate::config::settings::{Account, Settings, Stage};
use crate::domain::{AccountName, RunId, TableName};
use crate::engine::{Engine, EngineError, Params, Session};
use crate::exports::ExportError;
use crate::lake::{Lake, LakeError};
use crate::ledger::{Lease, Ledger, LedgerError, Run, SnapshotRecord};
use crate::wechat::{CallCounts, WeChat, WeChatError};

use tables::Visible;

/// The hands of the house, as every stage may use them.
#[derive(Clone)]
pub struct Hands {
    pub settings: Arc<Settings>,
    pub ledger: Ledger,
    pub lake: Lake,
    pub engine: Engine,
    pub clock: Clock,
    pub accounts: Arc<BTreeMap<AccountName, WeChat>>,
    /// Gives back reserved calls that were not made.
    pub settle: Arc<dyn SettleCalls>,
}

/// Read calls are reserved in blocks; when a stage ends, what is left of them goes back.
pub trait SettleCalls: Send + Sync {
    /// # Errors
    ///
    /// [`LedgerError`]; what was not given back counts as called.
    fn settle(&self) -> BoxFuture<'_, Result<(), LedgerError>>;
}

impl Hands {
    /// The settings of an account that the configuration names.
    pub fn account(&self, name: &AccountName) -> &Account {
        self.settings.accounts.get(name).expect("account names were checked with the configuration")
    }

    /// The client of an account that the configuration names.
    pub fn wechat(&self, name: &AccountName) -> &WeChat {
        self.accounts.get(name).expect("every configured account has a client")
    }

    /// The engine for the house's own passes. Where memory is short they take a quarter of it: beside DuckDB's own count there
    /// is what its readers and writers hold, and millions are to take no more than fifty thousand.
    pub fn sparing_engine(&self) -> Engine {
        self.engine_with(4)
    }

    /// The same for passes that join everybody with everybody, so many `people`: the pieces that a join is cut into grow with
    /// them. A fifth of little memory holds those of a million, a quarter those of several; of ten million only half does.
    pub fn joining_engine(&self, people: u64) -> Engine {
        self.engine_with(match people {
            0..=1_000_000 => 5,
            1_000_001..=4_000_000 => 4,
            _ => 2,
        })
    }

    /// The engine with one part in so many of the memory, where that is short.
    fn engine_with(&self, one_in: u64) -> Engine {
        const AMPLE_BYTES: u64 = 1_000_000_000;
        const BYTES_A_THREAD: u64 = 256_000_000;
        let limit = self.settings.engine.memory_limit_bytes;
        if limit >= AMPLE_BYTES {
            return self.engine.clone();
        }
        let threads = usize::try_from(limit / BYTES_A_THREAD).unwrap_or(1).max(1);
        self.engine.within(limit / one_in, threads)
    }
}

/// What a stage is given.
pub struct StageContext<'a> {
    pub hands: &'a Hands,
    pub run: &'a Run,
    pub lease: &'a Lease,
    pub stage: &'a Stage,
    /// The snapshots this run sees: what it made itself over what was current when it began.
    pub visible: &'a Visible,
    /// `$today`, `$run_at` and the pipeline's parameters.
    pub params: &'a Params,
    pub stop: &'a CancellationToken,
    pub progress: &'a dyn ProgressSink,
    /// Calls of this stage.
    pub calls: Arc<CallCounts>,
    /// Where a walk tells of its pages, when somebody asks for details beside it.
    pub news: Option<&'a news::WalkNews>,
    /// Whether the operator said that fewer rows than before are right (`--accept-drop`).
    pub accepts_drop: bool,
    /// What was asked beside the walk before this stage began.
    pub ahead: Option<&'a enrich_unionids::Ahead>,
}

impl StageContext<'_> {
    /// An account's client, counting into this stage.
    pub fn wechat(&self, account: &AccountName) -> WeChat {
        self.hands.wechat(account).counting(self.calls.clone())
    }

    /// The id of a snapshot that this stage makes: one a run, stage and attempt.
    pub fn new_snapshot_id(&self) -> String {
        format!("{}-{}", self.run.run_id, self.hands.clock.random_id(8))
    }

    /// A name for one of very many files of a run: so long that no two of a night, nor of all nights, are the same. A file
    /// under a name that is taken would replace the other.
    pub fn new_file_name(&self) -> String {
        format!("{}-{}", self.run.run_id, self.hands.clock.random_id(16))
    }

    /// Waits before something is asked again.
    ///
    /// # Errors
    ///
    /// [`StageError::Interrupted`] when the run is told to stop.
    pub async fn pause(&self, time: Duration) -> Result<(), StageError> {
        tokio::select! {
            () = self.hands.clock.sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(StageError::Interrupted),
        }
    }

    /// Says how far the stage is.
    pub fn tell(&self, unit: &'static str, done: u64, total: Option<u64>) {
        self.progress.update(&Progress { stage: self.stage.name.as_str(), unit, done, total });
    }
}

/// How far a stage is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub stage: &'a str,
    /// `pages`, `details`, `rows`, `messages`, `sends`.
    pub unit: &'static str,
    pub done: u64,
    pub total: Option<u64>,
}

/// Where progress goes: bars on a terminal, a line now and then elsewhere, nowhere in tests.
pub trait ProgressSink: Send + Sync {
    fn update(&self, progress: &Progress<'_>);
}

/// Progress that nobody looks at.
pub struct Quiet;

impl ProgressSink for Quiet {
    fn update(&self, _: &Progress<'_>) {}
}

/// How a stage ended.
pub enum StageOutcome {
    Done(StageReport),
    /// Nothing is wrong; go on at this time (`None`: when somebody says so).
    Waiting {
        until: Option<Timestamp>,
        reason: String,
        report: StageReport,
    },
    /// A guard stopped it: go on only when a person says so.
    Halted {
        reason: String,
        report: StageReport,
    },
}

/// What a stage made.
#[derive(Debug, Default)]
pub struct StageReport {
    pub rows_in: u64,
    pub rows_out: u64,
    pub snapshots: Vec<SnapshotRecord>,
    pub detail: Value,
    /// Accounts or mini programs that failed and keep their old rows.
    pub failed_slices: Vec<FailedSlice>,
    /// What only the operator's `--accept-drop` let pass: it is put down with the reason.
    pub accepted: Vec<String>,
}

/// An account or mini program that failed.
#[derive(Debug)]
pub struct FailedSlice {
    pub slice: String,
    pub why: String,
    /// Whether the same may succeed later without anyone changing anything.
    pub is_transient: bool,
}

impl FailedSlice {
    /// An account whose calls failed.
    pub fn of_account(account: &AccountName, error: &WeChatError, why: String) -> Self {
        Self { slice: account.to_string(), why, is_transient: error.is_transient() }
    }
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("the SQL of stage `{stage}`")]
    Sql {
        stage: String,
        #[source]
        source: EngineError,
    },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    WeChat(#[from] WeChatError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("{0}")]
    Rule(String),
    /// An account's unionids are all others now; only the operator can say that it is meant to be so.
    #[error("{why}")]
    Rebound {
        why: String,
        /// Single calls have confirmed it; else no call was left for them.
        is_certain: bool,
    },
    #[error("another process took over this run")]
    LeaseLost,
    #[error("interrupted")]
    Interrupted,
    #[error("work on a blocking thread broke off")]
    Blocking(#[from] tokio::task::JoinError),
}

impl StageError {
    /// Whether the same stage may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::WeChat(error) => error.is_transient(),
            Self::Ledger(error) => error.is_transient(),
            Self::Export(error) => error.is_transient(),
            Self::Lake(_) | Self::Interrupted | Self::LeaseLost => true,
            Self::Sql { .. } | Self::Engine(_) | Self::Rule(_) | Self::Rebound { .. } | Self::Blocking(_) => false,
        }
    }

    /// Whether a session was stopped amid its work, which is no fault of the work.
    fn is_of_interrupt(&self) -> bool {
        match self {
            Self::Sql { source, .. } | Self::Engine(source) => matches!(source, EngineError::Interrupted),
            Self::Blocking(_) | Self::Interrupted => true,
            _ => false,
        }
    }

    /// The ledger's own error, where it could not be written at all.
    pub fn unwritable_ledger(&self) -> Option<&LedgerError> {
        match self {
            Self::Ledger(error) if error.is_unwritable() => Some(error),
            _ => None,
        }
    }
}

/// Runs blocking work (DuckDB, files) on a thread of its own, stopping it when `stop` is called: DuckDB is interrupted,
/// and the result is [`StageError::Interrupted`]. What the session held is given back while the caller goes on.
pub async fn blocking<T: Send + 'static>(
    engine: &Engine,
    stop: &CancellationToken,
    work: impl FnOnce(&Session) -> Result<T, StageError> + Send + 'static,
) -> Result<T, StageError> {
    let engine = engine.clone();
    watched(stop, move || Ok(engine.session()?), move |session| (work(&session), Some(session))).await
}

/// How often a session that was told to stop is told again: an order between two statements is lost.
const TOLD_AGAIN: Duration = Duration::from_millis(50);

/// Runs `work` on the session that `open` gives, as [`blocking`] does. What `work` leaves of the session is dropped when the
/// caller has its result.
async fn watched<T: Send + 'static>(
    stop: &CancellationToken,
    open: impl FnOnce() -> Result<Session, StageError> + Send + 'static,
    work: impl FnOnce(Session) -> (Result<T, StageError>, Option<Session>) + Send + 'static,
) -> Result<T, StageError> {
    let (send_handle, handle) = tokio::sync::oneshot::channel();
    let (send_result, result) = tokio::sync::oneshot::channel();
    let task = tokio::task::spawn_blocking(move || {
        let session = open()?;
        // Nobody listens any more when the caller was dropped: then the work simply ends.
        let _ = send_handle.send(session.interrupt_handle());
        let (done, _left) = work(session);
        let _ = send_result.send(done);
        Ok(())
    });
    let handle = handle.await.ok();
    let mut result = Box::pin(async move {
        match result.await {
            Ok(done) => done,
            // Without a result the work did not begin, or panicked.
            Err(_) => Err(task.await?.err().unwrap_or(StageError::Interrupted)),
        }
    });
    let Some(handle) = handle else { return result.await };
    tokio::select! {
        done = &mut result => return done,
        () = stop.cancelled() => {}
    }
    loop {
        handle.interrupt();
        match tokio::time::timeout(TOLD_AGAIN, &mut result).await {
            Ok(Err(error)) if error.is_of_interrupt() => return Err(StageError::Interrupted),
            Ok(done) => return done,
            Err(_) => {}
        }
    }
}

/// A record of a snapshot that this stage made and nobody sees yet.
pub struct NewSnapshot {
    pub table: TableName,
    pub slice: String,
    pub id: String,
    pub as_of: Timestamp,
    pub rows: u64,
    pub bytes: u64,
    pub parts: Vec<String>,
    pub columns: Vec<(String, String)>,
}

impl NewSnapshot {
    /// The ledger's record of it.
    pub fn record(self, cx: &StageContext<'_>) -> SnapshotRecord {
        SnapshotRecord {
            id: self.id,
            table: self.table,
            slice: self.slice,
            run_id: RunId::new(cx.run.run_id.as_str()),
            stage: cx.stage.name.clone(),
            as_of: self.as_of,
            rows: self.rows,
            bytes: self.bytes,
            parts: self.parts,
            columns: self.columns,
            source_hash: None,
            made_at: cx.hands.clock.now(),
            fence: cx.lease.fence,
            events_to: None,
            app_id: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Params;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_pass_that_is_told_to_stop_amid_its_sql_is_interrupted_and_has_not_failed() {
        let (engine, stop) = (Engine::new("100MB", 1, "spill", chrono_tz::UTC), CancellationToken::new());
        let begun = stop.clone();
        let endless = blocking(&engine, &stop, move |session| {
            begun.cancel();
            Ok(session.count("select count(*) from range(1000000000000) as t(i) where i % 7 = 3", &Params::new())?)
        });
        assert!(matches!(endless.await, Err(StageError::Interrupted)));
        let in_stage = |source| StageError::Sql { stage: "set".to_owned(), source };
        assert!(in_stage(EngineError::Interrupted).is_of_interrupt());
        assert!(!in_stage(EngineError::UnknownParameter { name: "x".to_owned() }).is_of_interrupt());
    }
}
