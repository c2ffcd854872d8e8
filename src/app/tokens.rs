//! The one token of an account, kept in the ledger for every process of the workspace.

use std::time::Duration;

use futures::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::clock::Clock;
use crate::config::settings::{Account, TokenSource};
use crate::domain::{AccountName, QuotaDay};
use crate::ledger::{Acquired, ForcedLimit, Holder, Lease, Ledger};
use crate::wechat::{RefreshGuard, StoreError, StoredToken, TokenStore};

/// A renewal that lasts longer has lost its process.
const LOCK: Duration = Duration::from_secs(30);
/// How long to wait for another process's renewal.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);
/// Forced renewals are a budget of WeChat (20 a day): we take fewer.
const FORCED: ForcedLimit = ForcedLimit { max_per_day: 5, min_gap: Duration::from_secs(30) };

pub struct LedgerTokens {
    ledger: Ledger,
    /// The account with a fingerprint of what its token belongs to: another app id, address or kind has another token.
    key: AccountName,
    clock: Clock,
}

impl LedgerTokens {
    pub fn new(ledger: Ledger, account: &Account, clock: Clock) -> Self {
        let kind = match &account.token {
            TokenSource::Stable => "stable",
            TokenSource::Legacy => "legacy",
            TokenSource::Centre { url } => url,
        };
        let hash = Sha256::digest(format!("{}|{}|{kind}", account.app_id, account.api_base));
        let fingerprint: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { ledger, key: AccountName::new(format!("{}@{fingerprint}", account.name)), clock }
    }
}

impl TokenStore for LedgerTokens {
    fn load(&self) -> BoxFuture<'_, Result<Option<StoredToken>, StoreError>> {
        Box::pin(async {
            let stored = self.ledger.load_token(&self.key).await.map_err(StoreError::new)?;
            Ok(stored.map(|(token, expires_at, fetched_at)| StoredToken {
                access_token: SecretString::from(token),
                expires_at,
                fetched_at,
            }))
        })
    }

    fn lock(&self) -> BoxFuture<'_, Result<Box<dyn RefreshGuard>, StoreError>> {
        Box::pin(async {
            let name = format!("token:{}", self.key);
            // One id a holding: two renewals of one process exclude each other as well.
            let holder = Holder::this_process(self.clock.random_id(12));
            let until = self.clock.monotonic() + PATIENCE;
            loop {
                match self.ledger.acquire_lease(&name, &holder, LOCK).await.map_err(StoreError::new)? {
                    Acquired::Mine(lease) => {
                        return Ok(Box::new(Guard { ledger: self.ledger.clone(), lease }) as Box<dyn RefreshGuard>);
                    }
                    Acquired::HeldBy(_) if self.clock.monotonic() < until => self.clock.sleep(LOOK).await,
                    Acquired::HeldBy(other) => {
                        let text = format!("process {} has been renewing the token for {PATIENCE:?}", other.pid);
                        return Err(StoreError::new(text));
                    }
                }
            }
        })
    }

    fn save(&self, token: StoredToken) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.ledger
                .save_token(&self.key, token.access_token.expose_secret(), token.expires_at, token.fetched_at)
                .await
                .map_err(StoreError::new)
        })
    }

    fn take_forced(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async {
            let now = self.clock.now();
            self.ledger.take_forced(&self.key, QuotaDay::of(now), now, FORCED).await.map_err(StoreError::new)
        })
    }
}

struct Guard {
    ledger: Ledger,
    lease: Lease,
}

impl RefreshGuard for Guard {
    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async move { self.ledger.release_lease(&self.lease).await.map_err(StoreError::new) })
    }
}
