//! Committing outcomes in groups: 100 ms or 500 rows, whichever is first; one transaction each.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Semaphore, mpsc};

use super::{End, Item, Pushing};
use crate::domain::{AccountName, DeliveryState, OpenId, QuotaDay, UnionId};
use crate::ledger::{GiveBack, NewSuppression, Outcome, OutcomeBatch, QuotaCharge, Recorded};
use crate::stage::StageError;
use crate::wechat::Endpoint;

const MOST_ROWS: usize = 500;
const MOST_DELAY: Duration = Duration::from_millis(100);
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
    tries: u32,
    /// Claimed but not sent: its call is given back.
    pub never_sent: bool,
}

impl Settled {
    pub fn new(item: Item, outcome: Outcome) -> Self {
        Self { outcome, openid: item.openid, unionid: item.unionid, tries: item.tries, never_sent: false }
    }
}

pub struct Recorder<'a> {
    pushing: &'a Pushing<'a>,
    permits: Arc<Semaphore>,
    group: Vec<Settled>,
    day: QuotaDay,
}

impl<'a> Recorder<'a> {
    pub fn new(pushing: &'a Pushing<'a>, permits: Arc<Semaphore>) -> Self {
        let day = QuotaDay::of(pushing.cx.hands.clock.now());
        Self { pushing, permits, group: Vec::with_capacity(MOST_ROWS), day }
    }

    /// Records until the sender ends. When the ledger cannot be written the push stops before the next send.
    pub async fn run(mut self, mut settled: mpsc::UnboundedReceiver<Settled>) {
        let clock = self.pushing.cx.hands.clock;
        let mut due = None;
        loop {
            let left = due.map_or(MOST_DELAY, |at: std::time::Instant| at.saturating_duration_since(clock.monotonic()));
            let is_open = tokio::select! {
                one = settled.recv() => match one {
                    Some(one) => {
                        due.get_or_insert_with(|| clock.monotonic() + MOST_DELAY);
                        self.group.push(one);
                        while self.group.len() < MOST_ROWS && let Ok(one) = settled.try_recv() {
                            self.group.push(one);
                        }
                        true
                    }
                    None => false,
                },
                () = clock.sleep(left), if due.is_some() => true,
            };
            let is_due = due.is_some_and(|at| at <= clock.monotonic());
            if !self.group.is_empty() && (!is_open || is_due || self.group.len() >= MOST_ROWS) {
                if let Err(error) = self.commit().await {
                    return self.pushing.stop(End::Failed(error));
                }
                due = None;
            }
            if !is_open {
                return;
            }
        }
    }

    async fn commit(&mut self) -> Result<(), StageError> {
        let Pushing { cx, plan, .. } = *self.pushing;
        let group = std::mem::take(&mut self.group);
        let now = cx.hands.clock.now();
        let outcomes: Vec<Outcome> = group.iter().map(|one| one.outcome.clone()).collect();
        let gone: Vec<(AccountName, OpenId)> = group
            .iter()
            .filter(|one| failed_with(one, &GONE))
            .map(|one| (plan.account.clone(), one.openid.clone()))
            .collect();
        let unused = group.iter().filter(|one| one.never_sent).count();
        let batch = OutcomeBatch {
            outcomes: &outcomes,
            suppressions: &self.refusals(&group, now),
            gone: &gone,
            give_back: Some(GiveBack {
                account: &plan.account,
                endpoint: Endpoint::TemplateSend.as_str(),
                day: self.day,
                n: u64::try_from(unused).unwrap_or(u64::MAX),
            }),
            errors: u64::try_from(outcomes.iter().filter(|one| one.errcode.is_some()).count()).unwrap_or(u64::MAX),
            now,
        };
        match cx.hands.ledger.record_outcomes(cx.lease, self.pushing.push.key, batch).await? {
            Recorded::LeaseLost => return Err(StageError::LeaseLost),
            Recorded::Yes { .. } => {}
        }
        self.charge_repeats(&group).await?;
        self.permits.add_permits(group.len());
        self.day = QuotaDay::of(now);
        Ok(())
    }

    /// A claim reserves one call; every repeat within it is another.
    async fn charge_repeats(&self, group: &[Settled]) -> Result<(), StageError> {
        let repeats: u64 = group.iter().map(|one| u64::from(one.tries.saturating_sub(1))).sum();
        if repeats > 0 {
            let charge = QuotaCharge {
                account: &self.pushing.plan.account,
                endpoint: Endpoint::TemplateSend.as_str(),
                day: self.day,
                limit: None,
            };
            self.pushing.cx.hands.ledger.reserve_calls(&charge, repeats).await?;
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
    one.outcome.state == DeliveryState::Failed && one.outcome.errcode.is_some_and(|code| errcodes.contains(&code))
}
