//! Counting read calls against the day's quota before they are made, for all processes together.
//!
//! Calls are reserved in the ledger in small blocks, so that a page of details costs no transaction; what is left of a
//! block goes back when a stage ends. A crash therefore counts at most a block too many, never one too few.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::clock::Clock;
use crate::config::settings::Account;
use crate::domain::{AccountName, QuotaDay};
use crate::ledger::{Ledger, LedgerError, QuotaCharge};
use crate::wechat::{CallEnd, CallMeter, Endpoint, Refused, StoreError};

const BLOCK: u64 = 32;
/// The day's calls are used up.
const QUOTA_SPENT: i64 = 45009;

pub struct LedgerMeter {
    ledger: Ledger,
    account: AccountName,
    ceilings: BTreeMap<String, u64>,
    clock: Clock,
    held: Mutex<BTreeMap<Endpoint, Held>>,
    /// Reserving one block at a time: two tasks that both find none would reserve two.
    reserving: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Held {
    day: QuotaDay,
    calls: u64,
    errors: u64,
    is_spent: bool,
}

impl LedgerMeter {
    pub fn new(ledger: Ledger, account: &Account, clock: Clock) -> Self {
        Self {
            ledger,
            account: account.name.clone(),
            ceilings: account.quota.ceilings.clone(),
            clock,
            held: Mutex::new(BTreeMap::new()),
            reserving: tokio::sync::Mutex::new(()),
        }
    }

    /// Gives back what was reserved and not called, and records the errors seen.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; what was not given back counts as called.
    pub async fn settle(&self) -> Result<(), LedgerError> {
        let held = std::mem::take(&mut *self.held.lock().expect("nobody panics while counting"));
        for (endpoint, held) in held {
            let name = endpoint.as_str();
            if held.calls > 0 {
                self.ledger.give_back_calls(&self.account, name, held.day, held.calls).await?;
            }
            if held.errors > 0 {
                self.ledger.add_errors(&self.account, name, held.day, held.errors).await?;
            }
            if held.is_spent {
                self.ledger.mark_exhausted(&self.account, name, held.day, self.clock.now()).await?;
            }
        }
        Ok(())
    }

    fn take_one(&self, endpoint: Endpoint, day: QuotaDay) -> bool {
        let mut held = self.held.lock().expect("nobody panics while counting");
        match held.get_mut(&endpoint) {
            Some(own) if own.day == day && own.calls > 0 => {
                own.calls -= 1;
                true
            }
            _ => false,
        }
    }

    async fn reserve(&self, endpoint: Endpoint, day: QuotaDay) -> Result<(), Refused> {
        let _one_at_a_time = self.reserving.lock().await;
        if self.take_one(endpoint, day) {
            return Ok(());
        }
        let store = |error: LedgerError| Refused::Store(StoreError::new(error));
        let limit = self.limit(endpoint, day).await.map_err(store)?;
        let block = if endpoint == Endpoint::UserGet { 1 } else { BLOCK };
        let charge = QuotaCharge { account: &self.account, endpoint: endpoint.as_str(), day, limit };
        let mut granted = self.ledger.reserve_calls(&charge, block).await.map_err(store)?;
        if granted == 0 {
            let spread = self.clock.jitter(Duration::from_secs(240)) + Duration::from_secs(60);
            let spread = chrono::TimeDelta::from_std(spread).unwrap_or_default();
            return Err(Refused::QuotaSpent { until: day.next().starts_at() + spread });
        }
        granted -= 1;
        let mut held = self.held.lock().expect("nobody panics while counting");
        let own = held.entry(endpoint).or_insert(Held { day, calls: 0, errors: 0, is_spent: false });
        (own.day, own.calls) = (day, granted);
        Ok(())
    }

    /// Our ceiling, WeChat's own figure or its documented default: the lower of what is known. Token and quota calls
    /// are counted, never refused.
    async fn limit(&self, endpoint: Endpoint, day: QuotaDay) -> Result<Option<u64>, LedgerError> {
        if endpoint.is_token_call() || endpoint == Endpoint::QuotaGet {
            return Ok(None);
        }
        let usage = self.ledger.usage(Some(&self.account), Some(day)).await?;
        let noted = usage.iter().find(|usage| usage.endpoint == endpoint.as_str()).and_then(|usage| usage.wechat_limit);
        let known = noted.or_else(|| endpoint.documented_daily_limit());
        let ceiling = self.ceilings.get(endpoint.as_str()).copied();
        Ok(match (ceiling, known) {
            (Some(ceiling), Some(known)) => Some(ceiling.min(known)),
            (one, other) => one.or(other),
        })
    }
}

impl CallMeter for LedgerMeter {
    fn before(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            let day = QuotaDay::of(self.clock.now());
            if self.take_one(endpoint, day) { Ok(()) } else { self.reserve(endpoint, day).await }
        })
    }

    fn after(&self, endpoint: Endpoint, end: CallEnd) {
        let errcode = match end {
            CallEnd::Answered => return,
            CallEnd::Refused(errcode) => Some(errcode),
            CallEnd::NoAnswer => None,
        };
        let day = QuotaDay::of(self.clock.now());
        let mut held = self.held.lock().expect("nobody panics while counting");
        let own = held.entry(endpoint).or_insert(Held { day, calls: 0, errors: 0, is_spent: false });
        own.errors += 1;
        own.is_spent |= errcode == Some(QUOTA_SPENT);
    }
}
