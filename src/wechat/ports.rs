//! What the client asks of the house: a place for the token, a meter for the calls. Implemented where the rooms meet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use secrecy::SecretString;

use super::endpoint::Endpoint;
use super::wire::QuotaFigure;
use crate::clock::Timestamp;

/// The store behind a port failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(Box<dyn std::error::Error + Send + Sync>);

impl StoreError {
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// An access token as it is kept between processes.
#[derive(Debug, Clone)]
pub struct StoredToken {
    pub access_token: SecretString,
    pub expires_at: Timestamp,
    pub fetched_at: Timestamp,
}

/// Where the one token of an account is kept for all processes.
///
/// # Contract
/// - `load` sees what the last finished `save` of any process wrote.
/// - Between `lock` and the guard's release no other caller, in any process, holds the lock.
/// - All methods may be dropped at any await: nothing half written stays behind.
pub trait TokenStore: Send + Sync {
    fn load(&self) -> BoxFuture<'_, Result<Option<StoredToken>, StoreError>>;

    /// Waits, bounded by the store, until this caller alone may renew.
    fn lock(&self) -> BoxFuture<'_, Result<Box<dyn RefreshGuard>, StoreError>>;

    fn save(&self, token: StoredToken) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reserves one of today's forced renewals (at most 5 a day, at least 30 s apart); `false` when none is left.
    fn take_forced(&self) -> BoxFuture<'_, Result<bool, StoreError>>;
}

/// The right to renew. Dropped without `release` (the caller was cancelled) it lapses after the store's own bound.
pub trait RefreshGuard: Send {
    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>>;
}

/// A call that may not be made now.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the day's calls are used up until {until}")]
    QuotaSpent { until: Timestamp },
    #[error("counting the call failed")]
    Store(#[source] StoreError),
}

/// How a call that was made ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    Answered,
    /// Answered with this errcode.
    Refused(i64),
    /// No answer that could be read.
    NoAnswer,
}

/// Asked before and told after each call but sends (whose quota is reserved in batches before they are made):
/// counts, and refuses what is over the day's quota.
pub trait CallMeter: Send + Sync {
    fn before(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<(), Refused>>;

    /// What is better done while a call is under way than before the next one.
    fn during(&self, endpoint: Endpoint) -> BoxFuture<'_, ()>;

    /// Takes note of what WeChat says of an endpoint's quota after it refused a call, where it says anything; gives how many
    /// calls of ours it has counted today by our own count.
    fn told(&self, endpoint: Endpoint, figure: Option<QuotaFigure>) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Whether a call that is refused before it is made is so by the documented default alone: WeChat has not said what the
    /// account's figure of today is, and larger accounts have larger ones.
    fn goes_by_default(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Must not block. A call whose future was dropped is never told.
    fn after(&self, endpoint: Endpoint, end: CallEnd);
}

/// Calls made, by endpoint; tries count one by one, fetching tokens does not count.
#[derive(Debug, Default)]
pub struct CallCounts {
    made: [AtomicU64; Endpoint::ALL.len()],
    failed_sends: AtomicU64,
    beside: RwLock<Option<Arc<dyn SendMark>>>,
}

/// Told of each send before it is made.
pub trait SendMark: std::fmt::Debug + Send + Sync {
    /// Must not block.
    fn one(&self);
}

impl CallCounts {
    /// Goes on from what was counted before, as [`snapshot`](Self::snapshot) gave it.
    pub fn going_on_from(before: &BTreeMap<String, u64>) -> Self {
        let counts = Self::default();
        for endpoint in Endpoint::ALL {
            let calls = before.get(endpoint.as_str()).copied().unwrap_or(0);
            counts.made[endpoint.index()].store(calls, Ordering::Relaxed);
        }
        counts
    }

    /// Tells somebody of each send from now on, or nobody.
    pub fn tell_sends(&self, beside: Option<Arc<dyn SendMark>>) {
        *self.beside.write().unwrap_or_else(PoisonError::into_inner) = beside;
    }

    pub(super) fn add(&self, endpoint: Endpoint) {
        if endpoint == Endpoint::TemplateSend
            && let Some(mark) = &*self.beside.read().unwrap_or_else(PoisonError::into_inner)
        {
            mark.one();
        }
        self.made[endpoint.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_failed_send(&self) {
        self.failed_sends.fetch_add(1, Ordering::Relaxed);
    }

    pub fn made(&self, endpoint: Endpoint) -> u64 {
        self.made[endpoint.index()].load(Ordering::Relaxed)
    }

    /// Sends that were refused or not answered since this was asked last.
    pub fn take_failed_sends(&self) -> u64 {
        self.failed_sends.swap(0, Ordering::Relaxed)
    }

    /// The endpoints called at least once.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        Endpoint::ALL
            .into_iter()
            .map(|endpoint| (endpoint.as_str().to_owned(), self.made(endpoint)))
            .filter(|(_, calls)| *calls > 0)
            .collect()
    }
}
