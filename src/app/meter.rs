//! Counting read calls against the day's quota before they are made, for all processes together.
//!
//! Calls are reserved in the ledger: details and pages of followers in small blocks, so that not each of them costs a
//! transaction, everything else one by one. What is left of a block goes back when a stage ends; of a process that was killed, when the next one reads
//! for the account. A power cut counts at most two blocks too many, never one too few. What WeChat answered is noted in memory (it must not hold up a call) and goes into the ledger
//! with the next reservation or when the stage ends. Sends are not counted here: a push reserves its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use chrono::TimeDelta;
use futures::future::BoxFuture;

use crate::clock::{Clock, Timestamp};
use crate::config::settings::Account;
use crate::domain::{AccountName, LATE_RESET, QuotaDay};
use crate::ledger::{Ledger, LedgerError, QuotaCharge, QuotaFigure as NotedFigure, ReadTally, Usage};
use crate::wechat::{CallEnd, CallMeter, Endpoint, QuotaFigure, Refused, StoreError};

/// Calls for details reserved at once.
const DETAILS: u64 = 32;
/// Pages of followers reserved at once: of 500 a day.
const PAGES: u64 = 8;
/// The day's calls are used up.
const QUOTA_SPENT: i64 = 45009;
/// 45009 is said of a day and at times of a minute, and the client asks again where the figures say that calls remain.
/// Refusals this long apart, with no answer between them, are not about a minute.
const MINUTE_HAS_PASSED: TimeDelta = TimeDelta::seconds(90);

/// The meter of one account.
pub struct LedgerMeter {
    ledger: Ledger,
    account: AccountName,
    ceilings: BTreeMap<String, u64>,
    clock: Clock,
    notes: Mutex<Notes>,
    /// Reserving one block at a time: two tasks that both find none would reserve two.
    reserving: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Beside the ledger, while anything is reserved.
    tally: Option<ReadTally>,
    /// What dead processes reserved was looked for.
    has_settled_the_dead: bool,
    held: BTreeMap<(Endpoint, QuotaDay), Held>,
    /// The first 45009 since a call of the endpoint was answered.
    refused_since: BTreeMap<Endpoint, Timestamp>,
}

/// What this process knows of an endpoint's day and the ledger does not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Reserved and not made.
    calls: u64,
    errors: u64,
    /// WeChat refuses further calls.
    is_spent: bool,
    /// Half of a block is made: the next one is reserved beside a call, so that nobody stands still for the disk at its end.
    is_half_made: bool,
}

impl LedgerMeter {
    pub fn new(ledger: Ledger, account: &Account, clock: Clock) -> Self {
        Self {
            ledger,
            account: account.name.clone(),
            ceilings: account.quota.ceilings.clone(),
            clock,
            notes: Mutex::new(Notes::default()),
            reserving: tokio::sync::Mutex::new(()),
        }
    }

    /// Gives back what was reserved and not called, and records what was answered.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; what was not given back counts as called.
    pub async fn settle(&self) -> Result<(), LedgerError> {
        let _one_at_a_time = self.reserving.lock().await;
        self.flush().await?;
        let notes = &mut *self.notes();
        if notes.held.values().all(|held| held.calls == 0)
            && let Some(tally) = notes.tally.take()
        {
            tally.end();
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), LedgerError> {
        let held = std::mem::take(&mut self.notes().held);
        for ((endpoint, day), held) in held {
            let name = endpoint.as_str();
            // First what keeps others from calling, then the figures.
            if held.is_spent {
                self.ledger.mark_exhausted(&self.account, name, day, self.clock.now()).await?;
            }
            if held.calls > 0 {
                if let Some(tally) = &self.notes().tally {
                    tally.given_back(name, day, held.calls);
                }
                self.ledger.give_back_calls(&self.account, name, day, held.calls).await?;
            }
            if held.errors > 0 {
                self.ledger.add_errors(&self.account, name, day, held.errors).await?;
            }
        }
        Ok(())
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("nobody panics while counting")
    }

    /// Takes one of the reserved calls, if there is one.
    fn take_one(&self, endpoint: Endpoint, day: QuotaDay) -> bool {
        let notes = &mut *self.notes();
        match notes.held.get_mut(&(endpoint, day)) {
            Some(held) if held.calls > 0 && !held.is_spent => {
                held.calls -= 1;
                held.is_half_made |= held.calls > 0 && held.calls == block(endpoint) / 2;
                if let Some(tally) = &notes.tally {
                    tally.one(endpoint.as_str(), day);
                }
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
        let granted = self.grant(endpoint, day).await?;
        if granted > 0 {
            self.hold(endpoint, day, granted, 1);
            return Ok(());
        }
        // Our own count is of this day: WeChat's reset changes nothing.
        let until = QuotaDay::opens_again(self.clock.now(), false, self.clock.quota_spread());
        Err(Refused::QuotaSpent { until })
    }

    /// The next block while this one is not made yet.
    async fn reserve_early(&self, endpoint: Endpoint, day: QuotaDay) {
        let Ok(_one_at_a_time) = self.reserving.try_lock() else { return };
        match self.grant(endpoint, day).await {
            Ok(granted) => self.hold(endpoint, day, granted, 0),
            // Whoever finds the block used up meets it again.
            Err(error) => tracing::debug!(%error, "calls could not be reserved early"),
        }
    }

    /// Takes note of reserved calls, and of those that are made at once.
    fn hold(&self, endpoint: Endpoint, day: QuotaDay, calls: u64, made: u64) {
        let notes = &mut *self.notes();
        notes.held.entry((endpoint, day)).or_default().calls += calls - made;
        if let Some(tally) = &notes.tally
            && calls > 0
        {
            tally.reserved(endpoint.as_str(), day, calls);
            (0..made).for_each(|_| tally.one(endpoint.as_str(), day));
        }
    }

    /// Before the first calls are reserved: what a killed process left goes back, and what this one reserves is noted.
    async fn begin_tally(&self, endpoint: Endpoint) -> Result<(), LedgerError> {
        if block(endpoint) == 1 {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut self.notes().has_settled_the_dead, true);
        if is_first {
            self.ledger.settle_reads_of_the_dead(&self.account).await?;
        }
        let mut notes = self.notes();
        if notes.tally.is_none() && notes.held.values().all(|held| held.calls == 0) {
            notes.tally = self.ledger.begin_reads(&self.account, &self.clock.random_id(12));
        }
        Ok(())
    }

    /// As many calls as the day allows, at most a block.
    async fn grant(&self, endpoint: Endpoint, day: QuotaDay) -> Result<u64, Refused> {
        let store = |error: LedgerError| Refused::Store(StoreError::new(error));
        self.begin_tally(endpoint).await.map_err(store)?;
        let limit = self.limit(endpoint, day).await.map_err(store)?;
        let charge = QuotaCharge { account: &self.account, endpoint: endpoint.as_str(), day, limit, keep: 0 };
        // What WeChat refused, and what is left of another day, must be in the ledger before it is asked again.
        if self.notes().held.iter().any(|((own, own_day), held)| *own == endpoint && (held.is_spent || *own_day != day))
        {
            self.flush().await.map_err(store)?;
        }
        self.ledger.reserve_calls(&charge, block(endpoint)).await.map_err(store)
    }

    /// What the ledger has of an endpoint's day.
    async fn usage(&self, endpoint: Endpoint, day: QuotaDay) -> Result<Option<Usage>, LedgerError> {
        let usage = self.ledger.usage(Some(&self.account), Some(day)).await?;
        Ok(usage.into_iter().find(|usage| usage.endpoint == endpoint.as_str()))
    }

    /// Our ceiling, WeChat's own figure or its documented default: the lower of what is known.
    async fn limit(&self, endpoint: Endpoint, day: QuotaDay) -> Result<Option<u64>, LedgerError> {
        if is_never_refused(endpoint) {
            return Ok(None);
        }
        let noted = self.usage(endpoint, day).await?.and_then(|usage| usage.wechat_limit);
        let known = noted.or_else(|| endpoint.documented_daily_limit());
        let ceiling = self.ceilings.get(endpoint.as_str()).copied();
        Ok(match (ceiling, known) {
            (Some(ceiling), Some(known)) => Some(ceiling.min(known)),
            (one, other) => one.or(other),
        })
    }

    pub(super) fn note_end(&self, endpoint: Endpoint, end: CallEnd, now: Timestamp) {
        let notes = &mut *self.notes();
        if end == CallEnd::Answered {
            notes.refused_since.remove(&endpoint);
            return;
        }
        let held = notes.held.entry((endpoint, QuotaDay::of(now))).or_default();
        held.errors += 1;
        if end != CallEnd::Refused(QUOTA_SPENT) || is_never_refused(endpoint) {
            return;
        }
        // WeChat does not count what it refuses for its quota, and no more do we.
        held.calls += 1;
        // Shortly after midnight it is said of the day before, and must not close the new one.
        let day = QuotaDay::of(now - LATE_RESET);
        let since = *notes.refused_since.entry(endpoint).or_insert(now);
        if QuotaDay::of(since - LATE_RESET) != day {
            notes.refused_since.insert(endpoint, now);
        } else if now - since >= MINUTE_HAS_PASSED {
            notes.held.entry((endpoint, day)).or_default().is_spent = true;
        }
    }
}

/// Without a token nothing can be called, and `quota/get` is how one learns that there is quota again: both are counted
/// and never refused, whatever was noted of them.
fn is_never_refused(endpoint: Endpoint) -> bool {
    endpoint.is_token_call() || endpoint == Endpoint::QuotaGet
}

/// How many calls are reserved at once. Only these come by the hundred; of the few others each would leave a block behind when
/// its process is killed.
pub(super) fn block(endpoint: Endpoint) -> u64 {
    match endpoint {
        Endpoint::UserInfo | Endpoint::UserInfoBatchget => DETAILS,
        Endpoint::UserGet => PAGES,
        _ => 1,
    }
}

impl CallMeter for LedgerMeter {
    fn before(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            let day = QuotaDay::of(self.clock.now());
            if self.take_one(endpoint, day) { Ok(()) } else { self.reserve(endpoint, day).await }
        })
    }

    fn during(&self, endpoint: Endpoint) -> BoxFuture<'_, ()> {
        let day = QuotaDay::of(self.clock.now());
        let is_half_made =
            self.notes().held.get_mut(&(endpoint, day)).is_some_and(|held| std::mem::take(&mut held.is_half_made));
        Box::pin(async move {
            if is_half_made {
                self.reserve_early(endpoint, day).await;
            }
        })
    }

    fn told(&self, endpoint: Endpoint, figure: Option<QuotaFigure>) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let now = self.clock.now();
            let (name, day) = (endpoint.as_str(), QuotaDay::of(now));
            if let Some(QuotaFigure { daily_limit: limit, used, .. }) = figure {
                let noted = NotedFigure { limit, used, at: now };
                self.ledger.note_wechat_quota(&self.account, name, day, noted).await.map_err(StoreError::new)?;
            }
            let usage = self.usage(endpoint, day).await.map_err(StoreError::new)?;
            let counted = usage.map_or(0, |usage| usage.calls);
            let unmade = self.notes().held.get(&(endpoint, day)).map_or(0, |held| held.calls);
            Ok(counted.saturating_sub(unmade))
        })
    }

    fn goes_by_default(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move {
            let Some(default) = endpoint.documented_daily_limit() else { return Ok(false) };
            let ceiling = self.ceilings.get(endpoint.as_str()).copied();
            if is_never_refused(endpoint) || ceiling.is_some_and(|ceiling| ceiling <= default) {
                return Ok(false);
            }
            let usage = self.usage(endpoint, QuotaDay::of(self.clock.now())).await.map_err(StoreError::new)?;
            Ok(usage.is_none_or(|usage| usage.wechat_limit.is_none() && usage.exhausted_at.is_none()))
        })
    }

    fn after(&self, endpoint: Endpoint, end: CallEnd) {
        self.note_end(endpoint, end, self.clock.now());
    }
}
