//! Claiming recipients: in one transaction the day's quota is reserved and the intent to send is written, so that what
//! was counted and what may have been sent cannot part. When [`Ledger::begin_sends`] has returned, the bytes may leave.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::caps::Capped;
use super::error::Doing;
use super::pushes::Growth;
use super::sql::{Columns, batches, int, repeated};
use super::{CapRule, Lease, Ledger, LedgerError, caps, overlap, push_calls, quota, repeats, tally};
use crate::clock::{Timestamp, to_micros};
use crate::crash::{self, CrashPoint};
use crate::domain::{AccountName, DeliveryState, OpenId, QuotaDay, UnionId};

/// A recipient that is claimed for the first time.
#[derive(Debug, Clone, Copy)]
pub struct Intent<'a> {
    pub seq: u64,
    pub openid: &'a OpenId,
    pub unionid: Option<&'a UnionId>,
}

/// Whose quota calls are reserved from.
#[derive(Debug, Clone, Copy)]
pub struct QuotaCharge<'a> {
    pub account: &'a AccountName,
    pub endpoint: &'a str,
    pub day: QuotaDay,
    /// Calls of the day that may not be passed; `None` for no limit.
    pub limit: Option<u64>,
    /// Of what the limit and WeChat's word leave, so many are kept for others.
    pub keep: u64,
}

/// A batch that is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Begin<'a> {
    /// Recipients without a row, each above the push's `claimed_to`.
    pub fresh: &'a [Intent<'a>],
    /// Seqs with a row that is pending or in flight. Others among them are left alone and are not in the answer.
    pub again: &'a [u64],
    /// Whether whoever of those is unconfirmed is sent to once more, when the time for it has come.
    pub once_more: bool,
    /// Seqs with a row that are not sent to after all, and why: pending ones are skipped, unconfirmed ones stay so.
    pub left_out: &'a [(u64, &'a str)],
    /// Recipients without a row that are left out at the last look, and why.
    pub skipped: &'a [(Intent<'a>, &'a str)],
    /// The highest seq that has a row after this.
    pub claimed_to: u64,
    /// `None` makes no reservation.
    pub quota: Option<QuotaCharge<'a>>,
    /// Calls that the push itself may make on the day of that quota.
    pub daily_limit: Option<u64>,
    /// Whoever had so many messages is skipped, `frequency_cap`; whoever is being sent what would be the last comes later.
    pub cap: Option<CapRule>,
    pub now: Timestamp,
}

/// What came of [`Ledger::begin_sends`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Begun {
    /// The intents are durable: each seq with its attempt, first the fresh ones in their order, then those again.
    /// Whoever another push of the account is sending to at this moment is not among them, and owed a little later.
    Yes { attempts: Vec<(u64, u32)> },
    /// The quota has fewer calls left than the batch needs. Nothing was written.
    QuotaShort { left: u64 },
    /// So has the push's own limit of the day. Nothing was written.
    DailyShort { left: u64 },
    /// Somebody else has the lease. Nothing was written.
    LeaseLost,
}

const DOING: &str = "write intents to send";

impl Ledger {
    /// Reserves the quota and writes the intents of a batch, in one transaction.
    ///
    /// Dropping the call before it returns may or may not have written the intents; they are found again as in flight.
    ///
    /// # Errors
    ///
    /// [`LedgerError::OutOfStep`] for a fresh recipient that has a row or whose push claims no more, and whatever a
    /// transaction can meet. Nothing is written then.
    pub async fn begin_sends(&self, lease: &Lease, push_key: i64, batch: Begin<'_>) -> Result<Begun, LedgerError> {
        let Some(mut tx) = self.begin_under(lease, DOING).await? else { return Ok(Begun::LeaseLost) };
        if let Some(short) = too_little_left(&mut tx, push_key, &batch).await? {
            return Ok(short);
        }
        move_claim(&mut tx, push_key, &batch).await?;
        let mut busy = overlap::busy_elsewhere(&mut tx, push_key, batch.now).await?;
        let Capped { over, near } = caps::of_batch(&mut tx, push_key, &batch).await?;
        busy.extend(near.iter().map(|openid| openid.as_str().to_owned()));
        let (capped, fresh): (Vec<Intent<'_>>, Vec<Intent<'_>>) =
            batch.fresh.iter().partition(|intent| over.contains(intent.openid));
        let skipped: Vec<(Intent<'_>, &str)> =
            batch.skipped.iter().copied().chain(capped.into_iter().map(|intent| (intent, caps::REASON))).collect();
        let (deferred, fresh): (Vec<Intent<'_>>, Vec<Intent<'_>>) =
            fresh.into_iter().partition(|intent| busy.contains(intent.openid.as_str()));
        insert_sending(&mut tx, push_key, (&fresh, batch.now)).await?;
        overlap::insert_deferred(&mut tx, push_key, (&deferred, batch.now)).await?;
        insert_skipped(&mut tx, push_key, &Begin { skipped: &skipped, ..batch }).await?;
        repeats::leave_out(&mut tx, push_key, (batch.left_out, batch.now)).await?;
        caps::skip_again(&mut tx, push_key, &over, &batch).await?;
        let again = overlap::without_busy(&mut tx, push_key, (batch.again, batch.now), &busy).await?;
        if batch.once_more {
            repeats::allow(&mut tx, push_key, (&again, batch.now)).await?;
        }
        let mut attempts: Vec<(u64, u32)> = fresh.iter().map(|intent| (intent.seq, 1)).collect();
        attempts.extend(send_again(&mut tx, push_key, (&again, batch.now)).await?);
        if let Some(charge) = &batch.quota {
            let calls = rows(attempts.len());
            quota::add_calls(&mut tx, charge, calls).await?;
            tally::reserved(&mut tx, push_key, (charge.day, int(calls))).await?;
        }
        crash::pass(CrashPoint::BeforeIntentCommit);
        tx.commit().await.doing(DOING)?;
        crash::pass(CrashPoint::AfterIntentCommit);
        Ok(Begun::Yes { attempts })
    }
}

/// Whether the account's day, or the push's own, has fewer calls left than the batch needs.
async fn too_little_left(
    tx: &mut SqliteConnection,
    push_key: i64,
    batch: &Begin<'_>,
) -> Result<Option<Begun>, LedgerError> {
    let Some(charge) = &batch.quota else { return Ok(None) };
    let wanted = rows(batch.fresh.len() + batch.again.len());
    let keep = charge.keep.max(quota::needed_before(tx, push_key).await?);
    let left = quota::left(tx, &QuotaCharge { keep, ..*charge }, batch.now).await?;
    if let Some(left) = left.filter(|left| *left < wanted) {
        return Ok(Some(Begun::QuotaShort { left }));
    }
    let Some(limit) = batch.daily_limit else { return Ok(None) };
    let left = limit.saturating_sub(push_calls::of(tx, push_key, charge.day).await?);
    Ok((left < wanted).then_some(Begun::DailyShort { left }))
}

/// Moves the push's claim over the fresh and the skipped ones; the first intent ever starts its clock.
async fn move_claim(tx: &mut SqliteConnection, push_key: i64, batch: &Begin<'_>) -> Result<(), LedgerError> {
    let new = batch.fresh.iter().chain(batch.skipped.iter().map(|(intent, _)| intent));
    let lowest = new.map(|intent| intent.seq).min();
    let sends = !batch.fresh.is_empty() || !batch.again.is_empty();
    let done = sqlx::query(
        "update pushes set claimed_to = $1, claimed = claimed + $2,
             first_send_at = case when $3 then coalesce(first_send_at, $4) else first_send_at end
         where key = $5 and claimed_to <= $1
             and ($6 is null or (claimed_to < $6 and rest_reason is null))
             and claimed + $2 <= recipients",
    )
    .bind(int(batch.claimed_to))
    .bind(int(rows(batch.fresh.len() + batch.skipped.len())))
    .bind(sends)
    .bind(to_micros(batch.now))
    .bind(push_key)
    .bind(lowest.map(int))
    .execute(tx)
    .await
    .doing(DOING)?;
    if done.rows_affected() == 0 {
        let why = format!("the push does not claim up to {} from {lowest:?}", batch.claimed_to);
        return Err(LedgerError::OutOfStep { doing: DOING, why });
    }
    Ok(())
}

async fn insert_sending(
    tx: &mut SqliteConnection,
    push_key: i64,
    (fresh, now): (&[Intent<'_>], Timestamp),
) -> Result<(), LedgerError> {
    let now = to_micros(now);
    for intents in batches(fresh) {
        let sql = format!(
            "insert into deliveries (push_key, seq, state, attempt, openid, unionid, first_try_at, updated_at) values {}",
            repeated("(?,?,'sending',1,?,?,?,?)", intents.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for intent in intents {
            query = query
                .bind(push_key)
                .bind(int(intent.seq))
                .bind(intent.openid.as_str())
                .bind(intent.unionid.map(UnionId::as_str))
                .bind(now)
                .bind(now);
        }
        query.execute(&mut *tx).await.doing(DOING)?;
    }
    Ok(())
}

async fn insert_skipped(tx: &mut SqliteConnection, push_key: i64, batch: &Begin<'_>) -> Result<(), LedgerError> {
    let now = to_micros(batch.now);
    for skipped in batches(batch.skipped) {
        let sql = format!(
            "insert into deliveries (push_key, seq, state, attempt, reason, openid, unionid, updated_at) values {}",
            repeated("(?,?,'skipped',0,?,?,?,?)", skipped.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (intent, reason) in skipped {
            query = query
                .bind(push_key)
                .bind(int(intent.seq))
                .bind(*reason)
                .bind(intent.openid.as_str())
                .bind(intent.unionid.map(UnionId::as_str))
                .bind(now);
        }
        query.execute(&mut *tx).await.doing(DOING)?;
    }
    if batch.skipped.is_empty() {
        return Ok(());
    }
    let mut growth = Growth::default();
    growth.count(DeliveryState::Skipped, int(rows(batch.skipped.len())));
    growth.apply(tx, push_key).await
}

/// Writes the next attempt of rows that are pending or in flight. What is in flight keeps the time of its first try: that is
/// what WeChat counts a repeat from. Whoever was put back was not sent to, so that the time begins anew.
async fn send_again(
    tx: &mut SqliteConnection,
    push_key: i64,
    (again, now): (&[u64], Timestamp),
) -> Result<Vec<(u64, u32)>, LedgerError> {
    let mut attempts = Vec::with_capacity(again.len());
    for seqs in batches(again) {
        let sql = format!(
            "update deliveries set state = 'sending', attempt = attempt + 1, reason = null, errcode = null,
                 retry_at = null, first_try_at = case when state = 'sending' then coalesce(first_try_at, ?) else ? end,
                 updated_at = ?
             where push_key = ? and seq in ({}) and state in ('pending', 'sending') returning seq, attempt",
            repeated("?", seqs.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        query = query.bind(to_micros(now)).bind(to_micros(now)).bind(to_micros(now)).bind(push_key);
        for seq in seqs {
            query = query.bind(int(*seq));
        }
        for row in query.fetch_all(&mut *tx).await.doing(DOING)? {
            attempts.push((row.count("seq")?, row.read("attempt")?));
        }
    }
    Ok(attempts)
}

fn rows(count: usize) -> u64 {
    u64::try_from(count).expect("a count of rows in memory fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::Counts;

    #[tokio::test]
    async fn a_batch_that_the_quota_cannot_hold_writes_nothing() {
        let house = House::new().await;
        let push = house.push("r1", 100).await;
        let main = AccountName::new("main");
        let charge =
            QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: Some(15), keep: 0 };
        let people = people(1..=20);
        let (first, second) = (intents(&people[..10]), intents(&people[10..]));
        let begun = house.begin(&push, Begin { quota: Some(charge), ..fresh(&first) }).await;
        assert_eq!(begun, Begun::Yes { attempts: (1..=10).map(|seq| (seq, 1)).collect() });
        let begun = house.begin(&push, Begin { quota: Some(charge), ..fresh(&second) }).await;
        assert_eq!(begun, Begun::QuotaShort { left: 5 });
        assert_eq!(house.reload(&push).await.claimed_to, 10);
        assert_eq!(house.ledger.usage(None, None).await.unwrap()[0].calls, 10);
        let none_left = QuotaCharge { limit: None, ..charge };
        house.ledger.mark_exhausted(&main, "send", charge.day, at(1)).await.unwrap();
        let begun = house.begin(&push, Begin { quota: Some(none_left), ..fresh(&second) }).await;
        assert_eq!(begun, Begun::QuotaShort { left: 0 });
    }

    #[tokio::test]
    async fn a_campaign_leaves_a_service_push_the_sends_that_it_still_needs() {
        let house = House::new().await;
        let (campaign, service) = (house.push("r1", 30).await, house.push("r2", 12).await);
        let main = AccountName::new("main");
        let quota =
            Some(QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: Some(20), keep: 5 });
        house.ledger.set_priority(&house.lease, service.key, true).await.unwrap();
        let people = people(1..=42);
        let all = intents(&people);
        let claim = |range: std::ops::Range<usize>| Begin { quota, ..fresh(&all[range]) };
        // One that does not send, and waits for nobody knows what, needs nothing yet.
        assert!(matches!(house.begin(&campaign, claim(0..5)).await, Begun::Yes { .. }));
        let change = crate::ledger::PushChange { state: "sending", ..Default::default() };
        house.ledger.set_push_state(&house.lease, service.key, change, at(0)).await.unwrap();
        let begun = house.begin(&campaign, Begin { claimed_to: 15, ..claim(5..15) }).await;
        assert_eq!(begun, Begun::QuotaShort { left: 3 }, "of 20, 5 are used and 12 are needed");
        let own =
            Begin { claimed_to: 12, quota: quota.map(|charge| QuotaCharge { keep: 0, ..charge }), ..fresh(&all[..12]) };
        assert!(matches!(house.begin(&service, own).await, Begun::Yes { .. }));
    }

    #[tokio::test]
    async fn nobody_is_claimed_twice() {
        let house = House::new().await;
        let push = house.push("r1", 30).await;
        let people = people(1..=31);
        let _ = house.begin(&push, fresh(&intents(&people[..10]))).await;
        for claim in [&people[9..20], &people[..10], &people[10..31]] {
            let error = house.ledger.begin_sends(&house.lease, push.key, fresh(&intents(claim))).await.unwrap_err();
            assert!(matches!(error, LedgerError::OutOfStep { .. }), "{error}");
        }
        assert_eq!(house.ledger.left_in_flight(push.key).await.unwrap().len(), 10);
    }

    #[tokio::test]
    async fn who_another_push_is_sending_to_comes_later_and_costs_no_call() {
        let house = House::new().await;
        let (first, second) = (house.push("r1", 3).await, house.push("r2", 3).await);
        let people = people(1..=3);
        let all = intents(&people);
        let _ = house.begin(&first, fresh(&all[..2])).await;
        let main = AccountName::new("main");
        let quota =
            Some(QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: Some(3), keep: 0 });
        let begun = house.begin(&second, Begin { quota, now: at(1), ..fresh(&all) }).await;
        assert_eq!(begun, Begun::Yes { attempts: vec![(3, 1)] });
        assert_eq!(house.ledger.usage(None, None).await.unwrap()[0].calls, 1);
        assert_eq!(house.reload(&second).await.counts.pending, 3);
        assert!(house.ledger.owed(second.key, at(1), 9).await.unwrap().is_empty(), "not at once");

        let _ = house.record(&first, &[outcome(1, 1, DeliveryState::Sent)]).await;
        let again = Begin { again: &[1, 2], claimed_to: 3, now: at(9), ..fresh(&[]) };
        assert_eq!(house.begin(&second, again).await, Begun::Yes { attempts: vec![(1, 1)] });
        assert!(house.ledger.next_retry_at(second.key).await.unwrap().unwrap() > at(9), "the second waits on");
        let long_after = Begin { again: &[2], claimed_to: 3, now: at(1_000), ..fresh(&[]) };
        assert_eq!(house.begin(&second, long_after).await, Begun::Yes { attempts: vec![(2, 1)] });
    }

    #[tokio::test]
    async fn a_lost_lease_cannot_begin() {
        let house = House::new().await;
        let push = house.push("r1", 30).await;
        house.lose_lease().await;
        let people = people(1..=10);
        assert_eq!(house.begin(&push, fresh(&intents(&people))).await, Begun::LeaseLost);
        assert!(house.ledger.left_in_flight(push.key).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_in_flight_is_begun_again_with_its_next_attempt_and_its_first_time() {
        let house = House::new().await;
        let push = house.push("r1", 30).await;
        let people = people(1..=3);
        let intents = intents(&people);
        let skipped = [(intents[2], "unfollowed")];
        let batch = Begin { fresh: &intents[..2], skipped: &skipped, claimed_to: 3, ..fresh(&[]) };
        let _ = house.begin(&push, batch).await;
        let main = AccountName::new("main");
        let quota =
            Some(QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: None, keep: 0 });
        let again = Begin { again: &[1, 2, 3], claimed_to: 3, now: at(60), quota, ..fresh(&[]) };
        assert_eq!(house.begin(&push, again).await, Begun::Yes { attempts: vec![(1, 2), (2, 2)] });
        let rows = house.ledger.left_in_flight(push.key).await.unwrap();
        assert!(rows.iter().all(|row| row.first_try_at == Some(at(0)) && row.attempt == 2));
        assert_eq!(house.ledger.usage(None, None).await.unwrap()[0].calls, 2, "the skipped one costs no call");
        let push = house.reload(&push).await;
        assert_eq!(push.first_send_at, Some(at(0)));
        assert_eq!(push.counts, Counts { recipients: 30, skipped: 1, pending: 29, ..Counts::default() });
    }
}
