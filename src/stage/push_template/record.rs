//! Committing outcomes in groups: 100 ms or 500 rows, whichever is first; one transaction each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, Semaphore};

use super::{End, Item, Pushing};
use crate::clock::Timestamp;
use crate::domain::{AccountName, DeliveryState, OpenId, QuotaDay, UnionId};
use crate::ledger::{GiveBack, NewSuppression, Outcome, OutcomeBatch, QuotaCharge, Recorded};
use crate::stage::StageError;
use crate::wechat::Endpoint;

const MOST_ROWS: usize = 500;
const MOST_DELAY: Duration = Duration::from_millis(100);
/// Rows of one transaction at most, when they gathered while the one before was written.
const MOST_AT_ONCE: usize = 2_000;
/// A person who refused a template may be asked again after this: they can switch it back on.
const REFUSAL_HOLDS: TimeDelta = TimeDelta::days(90);
/// The person refused this template.
const REFUSED_TEMPLATE: i64 = 43101;
/// The person does not follow any more.
const GONE: [i64; 2] = [43004, 50005];

/// A recipient whose fate of this attempt is known.
#[derive(Debug)]
pub struct Settled {
    pub outcome: Outcome,
    openid: OpenId,
    unionid: Option<UnionId>,
    /// Claimed but not sent: its call is given back.
    never_sent: bool,
}

impl Settled {
    pub fn new(item: Item, outcome: Outcome) -> Self {
        Self { outcome, openid: item.openid, unionid: item.unionid, never_sent: false }
    }
}

/// A recipient who is owed a message again; or, if an earlier one may have arrived, the repeat of it.
pub fn put_back(item: Item, now: Timestamp) -> Settled {
    let state = item.put_back_to();
    let outcome = Outcome {
        seq: item.seq,
        attempt: item.attempt,
        state,
        reason: None,
        errcode: item.last_errcode,
        msgid: None,
        at: now,
        retry_at: (state == DeliveryState::Unconfirmed).then_some(now),
    };
    let never_sent = item.tries == 0;
    Settled { never_sent, ..Settled::new(item, outcome) }
}

/// Where settled recipients wait to be recorded: never more than are claimed. Whoever puts one here goes on at once, and
/// the recorder is woken only for the first and for a full group.
#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<Vec<Settled>>,
    changed: Notify,
    over: AtomicBool,
    /// Messages that were sent for the first time since they were claimed.
    first_tries: AtomicU64,
}

impl Outbox {
    pub fn put(&self, one: Settled) {
        let mut waiting = self.waiting();
        waiting.push(one);
        let count = waiting.len();
        drop(waiting);
        if count == 1 || count == MOST_ROWS {
            self.changed.notify_one();
        }
    }

    /// A claimed message goes out for the first time, by the call that its claim reserved.
    pub fn first_try(&self) {
        self.first_tries.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing more comes.
    pub fn close(&self) {
        self.over.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn len(&self) -> usize {
        self.waiting().len()
    }

    fn take(&self) -> Vec<Settled> {
        let mut waiting = self.waiting();
        if waiting.len() <= MOST_AT_ONCE {
            return std::mem::replace(&mut *waiting, Vec::with_capacity(MOST_ROWS));
        }
        let rest = waiting.split_off(MOST_AT_ONCE);
        std::mem::replace(&mut *waiting, rest)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Settled>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Recorder<'a> {
    pushing: &'a Pushing<'a>,
    permits: Arc<Semaphore>,
    outbox: Arc<Outbox>,
    day: QuotaDay,
    done: u64,
    /// Sends of this stage before this session.
    sends_before: u64,
    /// Calls beyond those that claims reserved, as far as they are in the ledger.
    charged: u64,
    /// The name of this session's tally.
    tally: String,
}

impl<'a> Recorder<'a> {
    pub fn new(pushing: &'a Pushing<'a>, tally: String, permits: Arc<Semaphore>, outbox: Arc<Outbox>) -> Self {
        let day = QuotaDay::of(pushing.cx.hands.clock.now());
        let counts = pushing.push.counts;
        let sends_before = pushing.cx.calls.made(Endpoint::TemplateSend);
        let done = counts.recipients - counts.pending;
        Self { pushing, permits, outbox, day, done, sends_before, charged: 0, tally }
    }

    /// Records until the sender ends. When the ledger cannot be written the push stops before the next send.
    pub async fn run(mut self) {
        loop {
            let is_over = self.gather().await;
            let group = self.outbox.take();
            let recorded = match group.is_empty() {
                true if is_over => return self.end().await,
                true => continue,
                false => self.commit(group).await,
            };
            if let Err(error) = recorded {
                return self.pushing.stop(End::Failed(error));
            }
        }
    }

    /// Waits until a group is due; says whether the sender had ended before.
    async fn gather(&self) -> bool {
        let clock = self.pushing.cx.hands.clock;
        while self.outbox.len() == 0 {
            if self.outbox.is_over() {
                return true;
            }
            self.outbox.changed.notified().await;
        }
        let due = clock.sleep(MOST_DELAY);
        tokio::pin!(due);
        while self.outbox.len() < MOST_ROWS && !self.outbox.is_over() {
            tokio::select! {
                () = self.outbox.changed.notified() => {}
                () = &mut due => break,
            }
        }
        false
    }

    async fn commit(&mut self, group: Vec<Settled>) -> Result<(), StageError> {
        let Pushing { cx, plan, .. } = *self.pushing;
        let now = cx.hands.clock.now();
        let outcomes: Vec<Outcome> = group.iter().map(|one| one.outcome.clone()).collect();
        let gone: Vec<(AccountName, OpenId)> = group
            .iter()
            .filter(|one| failed_with(one, &GONE))
            .map(|one| (plan.account.clone(), one.openid.clone()))
            .collect();
        let unused = u64::try_from(group.iter().filter(|one| one.never_sent).count()).unwrap_or(u64::MAX);
        let batch = OutcomeBatch {
            outcomes: &outcomes,
            suppressions: &self.refusals(&group, now),
            gone: &gone,
            give_back: Some(GiveBack {
                account: &plan.account,
                endpoint: Endpoint::TemplateSend.as_str(),
                day: self.day,
                n: unused,
            }),
            errors: cx.calls.take_failed_sends(),
            now,
        };
        let key = self.pushing.push.key;
        let recorded = match cx.hands.ledger.record_outcomes(cx.lease, key, batch).await {
            Err(error) if error.is_disk_full() => {
                // The room is for exactly this; nothing more is sent, and what was sent is known.
                self.pushing.room.give_up();
                let recorded = cx.hands.ledger.record_outcomes(cx.lease, key, batch).await?;
                self.pushing.stop(End::Failed(error.into()));
                recorded
            }
            recorded => recorded?,
        };
        if recorded == Recorded::LeaseLost {
            return Err(StageError::LeaseLost);
        }
        self.charge_repeats().await?;
        self.permits.add_permits(group.len());
        self.day = QuotaDay::of(now);
        let ended = outcomes.iter().filter(|outcome| outcome.state != DeliveryState::Pending).count();
        self.done += u64::try_from(ended).unwrap_or(0);
        cx.tell("sends", self.done, Some(self.pushing.push.recipients));
        Ok(())
    }

    /// What is still in flight for its repeats has no outcome, and made calls all the same.
    async fn end(&mut self) {
        let Pushing { cx, plan, .. } = *self.pushing;
        let errors = cx.calls.take_failed_sends();
        let counted = async {
            self.charge_repeats().await?;
            self.give_back_unmade().await?;
            if errors > 0 {
                let endpoint = Endpoint::TemplateSend.as_str();
                cx.hands.ledger.add_errors(&plan.account, endpoint, self.day, errors).await?;
            }
            Ok::<_, StageError>(())
        };
        if let Err(error) = counted.await {
            self.pushing.stop(End::Failed(error));
        }
    }

    /// Whoever was kept back by the stop with their turn begun, and whoever is in doubt and was not asked for again, took no
    /// call, and has no outcome that says so: what is reserved beyond the calls made goes back.
    async fn give_back_unmade(&self) -> Result<(), StageError> {
        let Pushing { cx, push, .. } = self.pushing;
        let made = cx.calls.made(Endpoint::TemplateSend) - self.sends_before;
        let tally = (Endpoint::TemplateSend.as_str(), self.tally.as_str(), made);
        Ok(cx.hands.ledger.end_tally(cx.lease, push.key, tally).await?)
    }

    /// A claim reserves one call; every other is charged here: repeats, and second tries after a refused token.
    async fn charge_repeats(&mut self) -> Result<(), StageError> {
        let cx = self.pushing.cx;
        let made = cx.calls.made(Endpoint::TemplateSend) - self.sends_before;
        let beyond = made.saturating_sub(self.outbox.first_tries.load(Ordering::Relaxed));
        let new = beyond.saturating_sub(self.charged);
        if new > 0 {
            let charge = QuotaCharge {
                account: &self.pushing.plan.account,
                endpoint: Endpoint::TemplateSend.as_str(),
                day: self.day,
                limit: None,
                keep: 0,
            };
            cx.hands.ledger.charge_calls(self.pushing.push.key, &charge, new).await?;
            self.charged += new;
        }
        Ok(())
    }

    fn refusals(&self, group: &[Settled], now: crate::clock::Timestamp) -> Vec<NewSuppression> {
        let plan = self.pushing.plan;
        group
            .iter()
            .filter(|one| failed_with(one, &[REFUSED_TEMPLATE]))
            .map(|one| NewSuppression {
                unionid: one.unionid.clone(),
                openid: Some(one.openid.clone()),
                account: Some(plan.account.clone()),
                template_id: Some(plan.template_id.clone()),
                reason: "refused_template".to_owned(),
                since: now,
                until: now.checked_add_signed(REFUSAL_HOLDS),
            })
            .collect()
    }
}

fn failed_with(one: &Settled, errcodes: &[i64]) -> bool {
    let is_refused = matches!(one.outcome.state, DeliveryState::Failed | DeliveryState::Unconfirmed);
    is_refused && one.outcome.errcode.is_some_and(|code| errcodes.contains(&code))
}
