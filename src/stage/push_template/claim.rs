//! Claiming recipients: quota reserved and intents written for the next batch, never more in doubt than a second's sends.
//!
//! Recipients come in two streams: those owed again (put back, or in flight when a process died), then fresh ones in the
//! order of the set. Each is looked at once more before its intent is written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::frozen::{Message, MessageReader};
use super::quota::Allowance;
use super::{End, Item, Pushing, SaidBy};
use crate::clock::Timestamp;
use crate::config::settings::{StageKind, Unconfirmed};
use crate::domain::{DeliveryState, OpenId, QuotaDay, may_repeat};
use crate::ledger::{Begin, Begun, CapRule, DeliveryRow, Intent, QuotaCharge};
use crate::stage::StageError;

/// Rows of one claim at most: a transaction of a few milliseconds.
const MOST_A_CLAIM: usize = 2_000;
/// How often a pause ordered by another process is looked for before a claim; `orders` looks besides.
const ORDERS_EVERY: Duration = Duration::from_secs(1);

/// How many recipients may be in doubt at once: a second's sends, or one `concurrency`, whichever is more.
pub fn most_in_doubt(pushing: &Pushing<'_>) -> usize {
    let rate = super::orders::allowed_rate(pushing, pushing.push.rate_override);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is positive and far below 2^32"
    )]
    let second = rate.ceil() as usize;
    second.max(pushing.plan.concurrency).max(1)
}

pub struct Claimer<'a> {
    pushing: &'a Pushing<'a>,
    allowance: Allowance,
    permits: Arc<Semaphore>,
    batch_rows: usize,
    claimed_to: u64,
    /// How many more may be sent to before the canary is judged.
    canary_left: Option<u64>,
    looked_at: Option<std::time::Instant>,
}

enum Step {
    Claimed(Vec<Item>),
    /// Everybody left out at the last look: nothing to send of this batch.
    NothingToSend,
    /// As many of a batch as the day still allows. Its rest has no row, so nobody after it may be claimed in this session.
    Last(Vec<Item>, End),
    /// Nothing more may be claimed today; what is claimed is sent.
    RunOut(End),
}

/// What has fewer sends left than a batch needs.
#[derive(Clone, Copy)]
enum Short {
    Canary,
    Account,
    /// The push's own `daily_limit`.
    Own,
}

impl<'a> Claimer<'a> {
    pub fn new(pushing: &'a Pushing<'a>, allowance: Allowance, permits: Arc<Semaphore>, in_doubt_most: usize) -> Self {
        Self {
            pushing,
            allowance,
            permits,
            batch_rows: in_doubt_most.div_ceil(2).clamp(1, MOST_A_CLAIM),
            claimed_to: pushing.push.claimed_to,
            canary_left: super::canary::left(pushing.plan, &pushing.push),
            looked_at: None,
        }
    }

    /// Claims until nobody is left or there is a reason to stop; closing the channel tells the sender.
    pub async fn run(mut self, claimed: mpsc::Sender<Vec<Item>>) {
        let stops = self.pushing.stops.clone();
        tokio::select! {
            // What it was writing is found again as in flight, if it was written.
            () = stops.out_of_patience(self.pushing.cx.hands.clock) => {}
            done = self.claim_all(&claimed) => if let Err(error) = done {
                stops.stop(End::Failed(error));
            }
        }
    }

    async fn claim_all(&mut self, claimed: &mpsc::Sender<Vec<Item>>) -> Result<(), StageError> {
        let push = &self.pushing.push;
        let mut again = self.owed().await?;
        let mut reader =
            if push.rest_reason.is_none() { MessageReader::open(self.pushing)? } else { MessageReader::empty() };
        loop {
            let permits = tokio::select! {
                biased;
                () = self.pushing.stops.halt.cancelled() => return Ok(()),
                permits = self.permits.acquire_many(u32::try_from(self.batch_rows).unwrap_or(u32::MAX)) => permits,
            };
            permits.expect("the semaphore is never closed").forget();
            if let Some(end) = self.orders().await? {
                self.pushing.stop(end);
                return Ok(());
            }
            let step = if again.is_empty() {
                let fresh = reader.next(self.batch_rows).await?;
                if fresh.is_empty() {
                    return Ok(());
                }
                self.claim_fresh(fresh).await?
            } else {
                let rows = next_alike(&mut again, self.batch_rows);
                self.claim_again(rows).await?
            };
            let (batch, end) = match step {
                Step::Claimed(items) => (items, None),
                Step::NothingToSend => (Vec::new(), None),
                Step::Last(items, end) => (items, Some(end)),
                Step::RunOut(end) => (Vec::new(), Some(end)),
            };
            self.permits.add_permits(self.batch_rows - batch.len().min(self.batch_rows));
            if !batch.is_empty() && claimed.send(batch).await.is_err() {
                return Ok(());
            }
            if let Some(end) = end {
                self.pushing.stops.run_out(end);
                return Ok(());
            }
        }
    }

    /// Put back, left in flight by a process that died while a repeat is still safe, or to be sent to once more.
    async fn owed(&self) -> Result<Vec<DeliveryRow>, StageError> {
        let (ledger, push, now) =
            (&self.pushing.cx.hands.ledger, &self.pushing.push, self.pushing.cx.hands.clock.now());
        let mut rows = ledger.left_in_flight(push.key).await?;
        rows.retain(|row| row.first_try_at.is_some_and(|at| may_repeat(at, now)));
        rows.extend(ledger.owed(push.key, now, u32::MAX >> 1).await?);
        if self.may_send_once_more() && push.counts.unconfirmed > 0 {
            rows.extend(ledger.repeats_due(push.key, now).await?);
        }
        Ok(rows)
    }

    /// Whether whoever got no answer is sent to once more after WeChat's window.
    fn may_send_once_more(&self) -> bool {
        self.pushing.plan.unconfirmed == Unconfirmed::Resend && self.pushing.push.rest_reason.is_none()
    }

    /// Before a claim: the clock (window, expiry), and at most once a second a pause and the quota day.
    async fn orders(&mut self) -> Result<Option<End>, StageError> {
        let cx = self.pushing.cx;
        let now = cx.hands.clock.now();
        if let Some(end) = super::orders::by_the_clock(self.pushing, now) {
            return Ok(Some(end));
        }
        let monotonic = cx.hands.clock.monotonic();
        if self.looked_at.is_some_and(|at| monotonic - at < ORDERS_EVERY) {
            return Ok(None);
        }
        self.looked_at = Some(monotonic);
        let push = super::reread(cx, &self.pushing.push).await?;
        if let Some(end) = super::orders::by_order(self.pushing.plan, &push) {
            return Ok(Some(end));
        }
        if QuotaDay::of(now) != self.allowance.day {
            self.allowance = Allowance::look(self.pushing).await?;
        }
        Ok(None)
    }

    async fn claim_fresh(&mut self, messages: Vec<Message>) -> Result<Step, StageError> {
        let Pushing { cx, plan, .. } = *self.pushing;
        let now = cx.hands.clock.now();
        let people: Vec<_> = messages.iter().map(|message| (&message.openid, message.unionid.as_ref())).collect();
        let blocked = cx.hands.ledger.blocked_now(&plan.account, &plan.template_id, &people, now).await?;
        let last = messages.last().map_or(self.claimed_to, |message| message.seq);
        let (mut fresh, mut skipped) = (Vec::new(), Vec::new());
        for message in &messages {
            let intent = Intent { seq: message.seq, openid: &message.openid, unionid: message.unionid.as_ref() };
            match (&message.invalid, blocked.get(&message.openid)) {
                (Some(_), _) => skipped.push((intent, "invalid")),
                (None, Some(reason)) => skipped.push((intent, reason.as_str())),
                (None, None) => fresh.push(intent),
            }
        }
        if let Some(left) = self.canary_left.map(|left| usize::try_from(left).unwrap_or(usize::MAX))
            && left < fresh.len()
        {
            return self.claim_some(messages, &blocked, (left, Short::Canary)).await;
        }
        let begin = Begin {
            fresh: &fresh,
            again: &[],
            once_more: false,
            left_out: &[],
            skipped: &skipped,
            claimed_to: last,
            quota: Some(self.charge()),
            daily_limit: plan.daily_limit,
            cap: self.cap(now),
            now,
        };
        let some = |left| usize::try_from(left).unwrap_or(usize::MAX);
        match cx.hands.ledger.begin_sends(cx.lease, self.pushing.push.key, begin).await? {
            Begun::LeaseLost => Err(StageError::LeaseLost),
            // Only what the day has room for is claimed; the rest waits for the next one.
            Begun::QuotaShort { left } => self.claim_some(messages, &blocked, (some(left), Short::Account)).await,
            Begun::DailyShort { left } => self.claim_some(messages, &blocked, (some(left), Short::Own)).await,
            Begun::Yes { attempts } => {
                self.claimed_to = last;
                let tried = u64::try_from(fresh.len()).unwrap_or(u64::MAX);
                self.canary_left = self.canary_left.map(|left| left.saturating_sub(tried));
                Ok(taken(messages, &attempts, now))
            }
        }
    }

    /// Claims the first recipients of a batch that `allowed` sends reach; none: stop for the day.
    async fn claim_some(
        &mut self,
        mut messages: Vec<Message>,
        blocked: &HashMap<OpenId, String>,
        (allowed, short): (usize, Short),
    ) -> Result<Step, StageError> {
        let mut sends = 0;
        let reach = messages
            .iter()
            .position(|message| {
                let counts = message.invalid.is_none() && !blocked.contains_key(&message.openid);
                sends += usize::from(counts);
                sends > allowed
            })
            .unwrap_or(messages.len());
        messages.truncate(reach);
        if messages.is_empty() {
            return Ok(Step::RunOut(self.spent(short)));
        }
        Ok(match Box::pin(self.claim_fresh(messages)).await? {
            // The rest of the batch is read again when the push goes on.
            Step::Claimed(items) => Step::Last(items, self.spent(short)),
            Step::NothingToSend => Step::RunOut(self.spent(short)),
            // Something else was shorter.
            ended @ (Step::Last(..) | Step::RunOut(_)) => ended,
        })
    }

    /// Why nothing more is claimed.
    fn spent(&self, short: Short) -> End {
        match short {
            Short::Canary => End::CanarySent,
            Short::Own => End::DailyLimit { until: self.allowance.day.next().starts_at() },
            Short::Account => End::QuotaSpent {
                why: format!("the day's sends of account `{}` are used up", self.pushing.plan.account),
                said_by: SaidBy::Ledger,
            },
        }
    }

    async fn claim_again(&mut self, mut rows: Vec<DeliveryRow>) -> Result<Step, StageError> {
        let cx = self.pushing.cx;
        let now = cx.hands.clock.now();
        let seqs: Vec<u64> = rows.iter().map(|row| row.seq).collect();
        let messages = MessageReader::of_seqs(self.pushing, &seqs).await?;
        let Again { send, left_out } = self.look_again(&rows, messages, now).await?;
        let again: Vec<u64> = send.iter().map(|(row, _)| row.seq).collect();
        let left_out: Vec<(u64, &str)> = left_out.iter().map(|(seq, reason)| (*seq, reason.as_str())).collect();
        let begin = Begin {
            fresh: &[],
            again: &again,
            once_more: self.may_send_once_more(),
            left_out: &left_out,
            skipped: &[],
            claimed_to: self.claimed_to,
            quota: Some(self.charge()),
            // Whoever may have the message is asked for in time: the push's own limit does not make them unconfirmed.
            daily_limit: self.pushing.plan.daily_limit.filter(|_| !rows.iter().any(is_in_flight)),
            cap: self.cap(now),
            now,
        };
        let (left, short) = match cx.hands.ledger.begin_sends(cx.lease, self.pushing.push.key, begin).await? {
            Begun::LeaseLost => return Err(StageError::LeaseLost),
            Begun::Yes { attempts } => {
                let attempt_of: HashMap<u64, u32> = attempts.into_iter().collect();
                let items = send
                    .into_iter()
                    .filter_map(|(row, message)| Some(item_again(row, message, (*attempt_of.get(&row.seq)?, now))));
                let items: Vec<Item> = items.collect();
                return Ok(if items.is_empty() { Step::NothingToSend } else { Step::Claimed(items) });
            }
            Begun::QuotaShort { left } => (left, Short::Account),
            Begun::DailyShort { left } => (left, Short::Own),
        };
        if left == 0 {
            return Ok(Step::RunOut(self.spent(short)));
        }
        // The others are still owed, and are read again when the push goes on.
        drop(send);
        rows.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        Box::pin(self.claim_again(rows)).await
    }

    /// The last look at whoever has a row. Who is in flight may have the message: that is not left out.
    async fn look_again<'r>(
        &self,
        rows: &'r [DeliveryRow],
        messages: Vec<Message>,
        now: Timestamp,
    ) -> Result<Again<'r>, StageError> {
        let Pushing { cx, plan, .. } = *self.pushing;
        let people: Vec<_> = rows.iter().map(|row| (&row.openid, row.unionid.as_ref())).collect();
        let blocked = cx.hands.ledger.blocked_now(&plan.account, &plan.template_id, &people, now).await?;
        let mut message_of: HashMap<u64, Message> =
            messages.into_iter().map(|message| (message.seq, message)).collect();
        let mut looked = Again { send: Vec::new(), left_out: Vec::new() };
        for row in rows {
            match (message_of.remove(&row.seq), blocked.get(&row.openid)) {
                (Some(message), _) if is_in_flight(row) => looked.send.push((row, message)),
                (Some(message), None) if message.invalid.is_none() => looked.send.push((row, message)),
                (Some(Message { invalid: None, .. }), Some(reason)) => looked.left_out.push((row.seq, reason.clone())),
                _ => looked.left_out.push((row.seq, "invalid".to_owned())),
            }
        }
        Ok(looked)
    }

    /// The set's frequency cap, looked at once more: other pushes may have sent since the set was made.
    fn cap(&self, now: Timestamp) -> Option<CapRule> {
        let Pushing { cx, plan, .. } = *self.pushing;
        let pipeline = cx.hands.settings.pipelines.get(&cx.run.pipeline).filter(|_| !cx.run.is_test)?;
        let set = pipeline.stages.iter().find(|stage| stage.name == plan.recipients)?;
        let StageKind::MaterializeRecipients(set) = &set.kind else { return None };
        let cap = set.frequency_cap?;
        let since = now.checked_sub_signed(chrono::TimeDelta::try_days(i64::from(cap.days))?)?;
        Some(CapRule { messages: cap.messages, since })
    }

    fn charge(&self) -> QuotaCharge<'_> {
        self.allowance.charge(self.pushing)
    }
}

fn is_in_flight(row: &DeliveryRow) -> bool {
    row.state == DeliveryState::Sending
}

/// The next of `again`, at most `most`: all of them in flight, or none.
fn next_alike(again: &mut Vec<DeliveryRow>, most: usize) -> Vec<DeliveryRow> {
    let kind = again.first().map(is_in_flight);
    let alike = again.iter().take(most).take_while(|row| Some(is_in_flight(row)) == kind).count();
    again.drain(..alike).collect()
}

/// Whoever has a row and was looked at once more.
struct Again<'r> {
    send: Vec<(&'r DeliveryRow, Message)>,
    left_out: Vec<(u64, String)>,
}

/// What is in flight goes out under its id once more; the others begin anew.
fn item_again(row: &DeliveryRow, message: Message, (attempt, now): (u32, Timestamp)) -> Item {
    let is_in_flight = is_in_flight(row);
    Item {
        seq: row.seq,
        attempt,
        openid: message.openid,
        unionid: message.unionid,
        body: message.body,
        first_try_at: if is_in_flight { row.first_try_at.unwrap_or(now) } else { now },
        tries: 0,
        in_doubt: is_in_flight,
        repeats: row.repeats + u32::from(row.state == DeliveryState::Unconfirmed),
        last_errcode: row.errcode,
    }
}

fn taken(messages: Vec<Message>, attempts: &[(u64, u32)], now: Timestamp) -> Step {
    let attempt_of: HashMap<u64, u32> = attempts.iter().copied().collect();
    let items: Vec<Item> = messages
        .into_iter()
        .filter_map(|message| {
            let attempt = *attempt_of.get(&message.seq)?;
            Some(Item {
                seq: message.seq,
                attempt,
                openid: message.openid,
                unionid: message.unionid,
                body: message.body,
                first_try_at: now,
                tries: 0,
                in_doubt: false,
                repeats: 0,
                last_errcode: None,
            })
        })
        .collect();
    if items.is_empty() { Step::NothingToSend } else { Step::Claimed(items) }
}
