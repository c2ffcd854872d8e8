//! The hall: builds the concrete hands of the house from settings. The only place where all rooms meet; it has no rules.

mod meter;
mod tokens;
mod workspace;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;

use self::meter::LedgerMeter;
use self::tokens::LedgerTokens;
use crate::clock::Clock;
use crate::config::settings::{Account, Settings, TokenSource};
use crate::domain::AccountName;
use crate::engine::{Engine, EngineError};
use crate::lake::{Lake, LakeError};
use crate::ledger::{Holder, Ledger, LedgerError};
use crate::scheduler::alert::Alerts;
use crate::scheduler::conductor::Conductor;
use crate::stage::{Hands, SettleCalls};
use crate::telemetry::Metrics;
use crate::wechat::{TokenKind, WeChat, WeChatError, WeChatSettings};

pub use self::workspace::{Checked, load_and_check};

/// The house, wired.
#[derive(Clone)]
pub struct App {
    pub conductor: Conductor,
    pub metrics: Metrics,
}

/// Why the house could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("the ledger {path} cannot be opened")]
    Ledger {
        path: std::path::PathBuf,
        #[source]
        source: LedgerError,
    },
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error("the client of an account cannot be made")]
    WeChat(#[from] WeChatError),
    #[error("the SQL cannot be checked")]
    Engine(#[from] EngineError),
    #[error("checking broke off")]
    Checking(#[from] tokio::task::JoinError),
}

impl App {
    /// Opens (and where it is missing, creates) the ledger and builds everything around it.
    ///
    /// # Errors
    ///
    /// [`AppError`].
    pub async fn open(settings: Settings, clock: Clock) -> Result<Self, AppError> {
        let path = settings.ledger.path.clone();
        let ledger = Ledger::open(&path).await.map_err(|source| AppError::Ledger { path, source })?;
        Self::build(settings, ledger, clock)
    }

    /// The same, only when the ledger is there: for orders about what ran.
    ///
    /// # Errors
    ///
    /// [`AppError`].
    pub async fn open_existing(settings: Settings, clock: Clock) -> Result<Option<Self>, AppError> {
        let path = settings.ledger.path.clone();
        match Ledger::open_existing(&path).await {
            Ok(Some(ledger)) => Self::build(settings, ledger, clock).map(Some),
            Ok(None) => Ok(None),
            Err(source) => Err(AppError::Ledger { path, source }),
        }
    }

    /// The same for commands that look and leave nothing behind: the data folder need not be writable.
    ///
    /// # Errors
    ///
    /// [`AppError`].
    pub async fn open_to_read(settings: Settings, clock: Clock) -> Result<Option<Self>, AppError> {
        let path = settings.ledger.path.clone();
        let ledger = match Ledger::open_to_read(&path).await {
            Ok(Some(ledger)) => ledger,
            Ok(None) => return Ok(None),
            Err(source) => return Err(AppError::Ledger { path, source }),
        };
        let lake = Lake::new(&settings.lake.root).to_read()?;
        Self::build_on(settings, ledger, lake, clock).map(Some)
    }

    /// The house of a workspace in which nothing ran, for questions about it: every table is there, empty.
    ///
    /// # Errors
    ///
    /// [`AppError`].
    pub async fn blank(settings: Settings, clock: Clock) -> Result<Self, AppError> {
        let path = settings.ledger.path.clone();
        let ledger = Ledger::blank().await.map_err(|source| AppError::Ledger { path, source })?;
        let lake = Lake::new(&settings.lake.root).to_read()?;
        Self::build_on(settings, ledger, lake, clock)
    }

    /// The same house under other settings: its ledger and its numbers stay.
    ///
    /// # Errors
    ///
    /// [`AppError::WeChat`] when no client can be made.
    pub fn with_settings(&self, settings: Settings) -> Result<Self, AppError> {
        let hands = self.hands();
        let app = Self::build(settings, hands.ledger.clone(), hands.clock)?;
        Ok(Self { metrics: self.metrics.clone(), ..app })
    }

    /// The hands every room works with.
    pub fn hands(&self) -> &Hands {
        &self.conductor.hands
    }

    fn build(settings: Settings, ledger: Ledger, clock: Clock) -> Result<Self, AppError> {
        let lake = Lake::new(&settings.lake.root);
        Self::build_on(settings, ledger, lake, clock)
    }

    fn build_on(settings: Settings, ledger: Ledger, lake: Lake, clock: Clock) -> Result<Self, AppError> {
        let engine = engine_on(&settings, &lake);
        let mut accounts = BTreeMap::new();
        let mut meters = BTreeMap::new();
        for account in settings.accounts.values() {
            let meter = Arc::new(LedgerMeter::new(ledger.clone(), account, clock));
            let tokens = Arc::new(LedgerTokens::new(ledger.clone(), account, clock));
            let wechat = WeChat::new(client_settings(account), tokens, meter.clone(), clock)?;
            accounts.insert(account.name.clone(), wechat);
            meters.insert(account.name.clone(), meter);
        }
        let alerts = Alerts::new(&settings.alerts, clock).kept_in(ledger.clone());
        let hands = Hands {
            settings: Arc::new(settings),
            ledger,
            lake,
            engine,
            clock,
            accounts: Arc::new(accounts),
            settle: Arc::new(Meters(meters)),
        };
        let holder = Holder::this_process(clock.random_id(12));
        Ok(Self { conductor: Conductor { hands, holder, alerts }, metrics: Metrics::new() })
    }
}

/// From here on a `memory_limit` leaves room for what an allocator keeps.
const AMPLE_BYTES: u64 = 1_000_000_000;

/// The engine of a workspace; needs no ledger.
pub fn engine(settings: &Settings) -> Engine {
    engine_on(settings, &Lake::new(&settings.lake.root))
}

fn engine_on(settings: &Settings, lake: &Lake) -> Engine {
    let limit = settings.engine.memory_limit_bytes;
    let memory = if limit < AMPLE_BYTES {
        return_memory_early();
        settings.engine.memory_limit.clone()
    } else {
        // DuckDB counts what its tables hold, and takes a sixth more than that: so the whole process keeps to the limit.
        format!("{}KB", limit / 1_000 * 4 / 5)
    };
    Engine::new(memory, settings.engine.threads, lake.spill(), settings.timezone)
}

/// DuckDB's memory comes from the system's allocator, which keeps a pool a thread and what was freed: with a small
/// `memory_limit` more than the limit itself. One pool, and free memory goes back.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no other way to be told")]
fn return_memory_early() {
    const FREE_KEPT: i32 = 1 << 20;
    // SAFETY: mallopt takes plain numbers, may be called at any time, and leaves what is allocated alone.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_KEPT);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn return_memory_early() {}

fn client_settings(account: &Account) -> WeChatSettings {
    WeChatSettings {
        account: account.name.clone(),
        app_id: account.app_id.clone(),
        app_secret: account.app_secret.clone(),
        api_base: account.api_base.clone(),
        token: match &account.token {
            TokenSource::Stable => TokenKind::Stable,
            TokenSource::Legacy => TokenKind::Legacy,
            TokenSource::Centre { url } => TokenKind::Centre { url: url.clone() },
        },
        timeout: account.timeout,
        concurrency: account.concurrency,
        retry_base: WeChatSettings::RETRY_BASE,
    }
}

struct Meters(BTreeMap<AccountName, Arc<LedgerMeter>>);

impl SettleCalls for Meters {
    fn settle(&self) -> BoxFuture<'_, Result<(), LedgerError>> {
        Box::pin(async {
            for meter in self.0.values() {
                meter.settle().await?;
            }
            Ok(())
        })
    }
}
