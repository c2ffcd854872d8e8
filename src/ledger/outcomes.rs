//! Recording what became of sends: many in one transaction, each only if its attempt is still the one in flight.
//!
//! The counts of the push move by what the database says was changed, in the same transaction.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::pushes::Growth;
use super::sql::{Columns, batches, int, micros, repeated};
use super::{Lease, Ledger, LedgerError, NewSuppression, QuotaCharge, marks, quota, suppressions, tally};
use crate::clock::{Timestamp, to_micros};
use crate::crash::{self, CrashPoint};
use crate::domain::{AccountName, DeliveryEvent, DeliveryState, OpenId, QuotaDay};

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub seq: u64,
    /// The attempt that was made; an outcome of an earlier one changes nothing.
    pub attempt: u32,
    /// Any state that a delivery in flight can come to; `Pending` puts it back.
    pub state: DeliveryState,
    pub reason: Option<String>,
    pub errcode: Option<i64>,
    pub msgid: Option<i64>,
    pub at: Timestamp,
    /// With `Pending`: not before this. With `Unconfirmed`: from when on it may be sent once more, where that was chosen.
    pub retry_at: Option<Timestamp>,
}

/// Calls that were reserved and not made.
#[derive(Debug, Clone, Copy)]
pub struct GiveBack<'a> {
    pub account: &'a AccountName,
    pub endpoint: &'a str,
    pub day: QuotaDay,
    pub n: u64,
}

/// Outcomes, and what they tell about people and quota.
#[derive(Debug, Clone, Copy)]
pub struct OutcomeBatch<'a> {
    pub outcomes: &'a [Outcome],
    pub suppressions: &'a [NewSuppression],
    /// Who turned out not to follow any more.
    pub gone: &'a [(AccountName, OpenId)],
    /// Also says whose `errors` these are; with `n` 0 nothing is given back.
    pub give_back: Option<GiveBack<'a>>,
    /// Calls that failed. Counted at `give_back`'s account and endpoint, so not at all without it.
    pub errors: u64,
    pub now: Timestamp,
}

/// What came of [`Ledger::record_outcomes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// So many deliveries changed; the others of the batch were no longer in flight with that attempt.
    Yes { changed: u64 },
    /// Somebody else has the lease. Nothing was written.
    LeaseLost,
}

const DOING: &str = "record outcomes of sends";

impl Ledger {
    /// Records a batch of outcomes in one transaction.
    ///
    /// # Errors
    ///
    /// [`LedgerError::OutOfStep`] for a state that a delivery in flight cannot come to, before anything is written.
    pub async fn record_outcomes(
        &self,
        lease: &Lease,
        push_key: i64,
        batch: OutcomeBatch<'_>,
    ) -> Result<Recorded, LedgerError> {
        if let Some(outcome) = batch.outcomes.iter().find(|outcome| !can_come_to(outcome.state)) {
            let why = format!("a delivery in flight cannot become {}", outcome.state.as_str());
            return Err(LedgerError::OutOfStep { doing: DOING, why });
        }
        let Some(mut tx) = self.begin_under(lease, DOING).await? else { return Ok(Recorded::LeaseLost) };
        let mut growth = Growth::default();
        let mut changed = 0;
        let (plain, others) = plainly_sent(&mut tx, push_key, batch.outcomes).await?;
        for outcomes in batches(&plain) {
            let sent = settle_sent(&mut tx, push_key, outcomes, batch.now).await?;
            growth.count(DeliveryState::Sent, int(sent));
            changed += sent;
        }
        for outcomes in batches(&others) {
            for state in settle(&mut tx, push_key, outcomes, batch.now).await? {
                growth.count(state, 1);
                changed += 1;
            }
        }
        if changed > 0 {
            growth.apply(&mut tx, push_key).await?;
        }
        suppressions::insert(&mut tx, batch.suppressions).await?;
        for (account, openid) in batch.gone {
            let mark = marks::NewMark { account, openid, is_active: false, at: batch.now, source: "send" };
            marks::upsert(&mut tx, &mark).await?;
        }
        if let Some(GiveBack { account, endpoint, day, n }) = batch.give_back {
            let charge = QuotaCharge { account, endpoint, day, limit: None, keep: 0 };
            if n > 0 {
                quota::subtract_calls(&mut tx, &charge, n).await?;
                tally::reserved(&mut tx, push_key, (day, -int(n))).await?;
            }
            if batch.errors > 0 {
                quota::add_errors(&mut tx, &charge, batch.errors).await?;
            }
        }
        crash::pass(CrashPoint::BeforeOutcomeCommit);
        tx.commit().await.doing(DOING)?;
        crash::pass(CrashPoint::AfterOutcomeCommit);
        Ok(Recorded::Yes { changed })
    }
}

/// Whether some outcome of a send leads to this state, by the law of the domain.
fn can_come_to(state: DeliveryState) -> bool {
    use DeliveryEvent as E;
    [E::Accepted, E::Refused, E::RefusedInDoubt, E::PutBack, E::TakenForReview, E::NoAnswer, E::LeftOut]
        .into_iter()
        .any(|event| DeliveryState::Sending.after(event) == Ok(state))
}

/// Splits outcomes into those that say no more than `sent`, nearly all of a push, and the others.
///
/// Only recipients up to the push's claim are taken as sent plainly: each of them has a row.
async fn plainly_sent<'o>(
    tx: &mut SqliteConnection,
    push_key: i64,
    outcomes: &'o [Outcome],
) -> Result<(Vec<&'o Outcome>, Vec<&'o Outcome>), LedgerError> {
    let row = sqlx::query("select claimed_to from pushes where key = $1")
        .bind(push_key)
        .fetch_optional(tx)
        .await
        .doing(DOING)?;
    let claimed_to = row.map_or(Ok(0), |row| row.count("claimed_to"))?;
    Ok(outcomes.iter().partition(|outcome| {
        let Outcome { seq, state, reason, errcode, retry_at, .. } = outcome;
        (1..=claimed_to).contains(seq)
            && (*state, reason, errcode, retry_at) == (DeliveryState::Sent, &None, &None, &None)
    }))
}

/// Settles as sent what is in flight with the attempts named, and returns how many were.
///
/// The plainest form of [`settle`], at half its cost: every row is there, so nothing is ever inserted and what stands for
/// the openid is never stored.
async fn settle_sent(
    tx: &mut SqliteConnection,
    push_key: i64,
    outcomes: &[&Outcome],
    now: Timestamp,
) -> Result<u64, LedgerError> {
    let sql = format!(
        "insert into deliveries (push_key, seq, state, attempt, msgid, openid, sent_at, updated_at) values {}
         on conflict (push_key, seq) do update set state = 'sent', reason = null, errcode = null, retry_at = null,
             msgid = coalesce(excluded.msgid, deliveries.msgid), sent_at = excluded.sent_at,
             updated_at = excluded.updated_at
             where deliveries.state = 'sending' and deliveries.attempt = excluded.attempt",
        repeated("(?,?,'sent',?,?,'',?,?)", outcomes.len())
    );
    let now = to_micros(now);
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for outcome in outcomes {
        query = query
            .bind(push_key)
            .bind(int(outcome.seq))
            .bind(outcome.attempt)
            .bind(outcome.msgid)
            .bind(to_micros(outcome.at))
            .bind(now);
    }
    Ok(query.execute(tx).await.doing(DOING)?.rows_affected())
}

/// Settles what is in flight with the attempts named, and returns the new states of what was.
///
/// An upsert fed from a join, because that is the form SQLite runs as one lookup per row, which an `update … from` over
/// values is not. The join also means that no row is ever made here. `cross join` keeps SQLite from starting at the
/// deliveries. The guard is said twice, since the join looks before anything is written: of two outcomes for one attempt
/// in a batch, the first counts.
async fn settle(
    tx: &mut SqliteConnection,
    push_key: i64,
    outcomes: &[&Outcome],
    now: Timestamp,
) -> Result<Vec<DeliveryState>, LedgerError> {
    let sql = format!(
        "insert into deliveries (push_key, seq, state, attempt, reason, errcode, msgid, openid, sent_at, retry_at,
             updated_at)
         select d.push_key, d.seq, v.column3, d.attempt, v.column4, v.column5, v.column6, d.openid, v.column7,
             v.column8, ?
         from (values {}) as v cross join deliveries as d
         where d.push_key = ? and d.seq = v.column1 and d.attempt = v.column2 and d.state = 'sending'
         on conflict (push_key, seq) do update set state = excluded.state, reason = excluded.reason,
             errcode = excluded.errcode, msgid = coalesce(excluded.msgid, deliveries.msgid),
             sent_at = excluded.sent_at, retry_at = excluded.retry_at, updated_at = excluded.updated_at
             where deliveries.state = 'sending' and deliveries.attempt = excluded.attempt
         returning state",
        repeated("(?,?,?,?,?,?,?,?)", outcomes.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(to_micros(now));
    for outcome in outcomes {
        let sent_at = (outcome.state == DeliveryState::Sent).then_some(outcome.at);
        query = query
            .bind(int(outcome.seq))
            .bind(outcome.attempt)
            .bind(outcome.state.as_str())
            .bind(outcome.reason.as_deref())
            .bind(outcome.errcode)
            .bind(outcome.msgid)
            .bind(micros(sent_at))
            .bind(micros(outcome.retry_at));
    }
    let rows = query.bind(push_key).fetch_all(tx).await.doing(DOING)?;
    rows.iter().map(|row| row.word("state", DeliveryState::parse)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::super::testing::*;
    use super::super::{Begin, Push};
    use super::*;

    #[tokio::test]
    async fn a_late_worker_records_nothing() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let people = people(1..=2);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let again = Begin { again: &[1], claimed_to: 2, ..fresh(&[]) };
        let _ = house.begin(&push, again).await;
        let late = [outcome(1, 1, DeliveryState::Failed), outcome(2, 1, DeliveryState::Sent)];
        assert_eq!(house.record(&push, &late).await, Recorded::Yes { changed: 1 });
        let current = [outcome(1, 2, DeliveryState::Sent)];
        assert_eq!(house.record(&push, &current).await, Recorded::Yes { changed: 1 });
        assert_eq!(house.record(&push, &current).await, Recorded::Yes { changed: 0 });
        assert_eq!(house.reload(&push).await.counts.sent, 2);

        house.lose_lease().await;
        assert_eq!(house.record(&push, &current).await, Recorded::LeaseLost);
    }

    #[tokio::test]
    async fn an_outcome_for_nobody_makes_no_row_and_an_unlawful_one_is_an_error() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        assert_eq!(house.record(&push, &[outcome(7, 1, DeliveryState::Sent)]).await, Recorded::Yes { changed: 0 });
        assert!(house.ledger.deliveries(push.key, 0, 10).await.unwrap().is_empty());
        let batch = only(&[]);
        let unlawful = [outcome(1, 1, DeliveryState::Sending)];
        let batch = OutcomeBatch { outcomes: &unlawful, ..batch };
        let error = house.ledger.record_outcomes(&house.lease, push.key, batch).await.unwrap_err();
        assert!(matches!(error, LedgerError::OutOfStep { .. }), "{error}");
    }

    #[tokio::test]
    async fn outcomes_tell_about_people_and_quota_in_the_same_breath() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let people = people(1..=3);
        let main = AccountName::new("main");
        let day = QuotaDay::of(at(0));
        let quota = Some(QuotaCharge { account: &main, endpoint: "send", day, limit: None, keep: 0 });
        let _ = house.begin(&push, Begin { quota, ..fresh(&intents(&people)) }).await;
        let outcomes = [outcome(1, 1, DeliveryState::Failed), outcome(2, 1, DeliveryState::Pending)];
        let refusing = NewSuppression {
            unionid: None,
            openid: Some(people[0].1.clone()),
            account: Some(main.clone()),
            template_id: None,
            reason: "refused".into(),
            since: at(1),
            until: None,
        };
        let gone = [(main.clone(), people[1].1.clone())];
        let batch = OutcomeBatch {
            suppressions: &[refusing],
            gone: &gone,
            give_back: Some(GiveBack { account: &main, endpoint: "send", day, n: 1 }),
            errors: 2,
            ..only(&outcomes)
        };
        let recorded = house.ledger.record_outcomes(&house.lease, push.key, batch).await.unwrap();
        assert_eq!(recorded, Recorded::Yes { changed: 2 });
        let usage = &house.ledger.usage(None, None).await.unwrap()[0];
        assert_eq!((usage.calls, usage.errors), (2, 2));
        let asked: Vec<_> = people.iter().map(|(_, openid)| (openid, None)).collect();
        let blocked = house.ledger.blocked_now(&main, &push.template_id, &asked, at(2)).await.unwrap();
        assert_eq!(blocked.len(), 2);
        assert_eq!(blocked[&people[0].1], "refused");
        assert_eq!(blocked[&people[1].1], "unfollowed");
    }

    /// One step of a random history; numbers are reduced to what the push has.
    #[derive(Debug, Clone)]
    enum Step {
        Claim { fresh: u64, skipped: u64 },
        Again(Vec<u64>),
        Settle(Vec<(u64, u32, usize)>),
        SkipRest,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5u64, 0..3u64).prop_map(|(fresh, skipped)| Step::Claim { fresh, skipped }),
            2 => prop::collection::vec(1..25u64, 0..6).prop_map(Step::Again),
            4 => prop::collection::vec((1..25u64, 1..4u32, 0..6usize), 0..10).prop_map(Step::Settle),
            1 => Just(Step::SkipRest),
        ]
    }

    const ENDS: [DeliveryState; 6] = [
        DeliveryState::Sent,
        DeliveryState::Failed,
        DeliveryState::Pending,
        DeliveryState::Held,
        DeliveryState::Unconfirmed,
        DeliveryState::Skipped,
    ];

    async fn take(house: &House, push: &Push, step: Step) {
        let now = house.reload(push).await;
        match step {
            Step::Claim { .. } if now.rest_reason.is_some() => {}
            Step::Claim { fresh: to_send, skipped } => {
                let last = (now.claimed_to + to_send + skipped).min(now.recipients);
                let people = people(now.claimed_to + 1..=last);
                let all = intents(&people);
                let (send, skip) = all.split_at(all.len().min(usize::try_from(to_send).unwrap()));
                let skip: Vec<_> = skip.iter().map(|intent| (*intent, "capped")).collect();
                let batch = Begin { fresh: send, skipped: &skip, claimed_to: last, ..fresh(&[]) };
                let _ = house.begin(push, batch).await;
            }
            Step::Again(mut seqs) => {
                seqs.sort_unstable();
                seqs.dedup();
                let batch = Begin { again: &seqs, claimed_to: now.claimed_to, ..fresh(&[]) };
                let _ = house.begin(push, batch).await;
            }
            Step::Settle(ends) => {
                let outcomes: Vec<_> =
                    ends.into_iter().map(|(seq, attempt, end)| outcome(seq, attempt, ENDS[end])).collect();
                let _ = house.record(push, &outcomes).await;
            }
            Step::SkipRest => {
                house.ledger.skip_rest(&house.lease, push.key, "expired", at(5)).await.unwrap();
            }
        }
    }

    #[test]
    fn counts_add_up_through_any_history_and_no_end_is_left() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        let histories = prop::collection::vec(step(), 1..24);
        runner
            .run(&histories, |history| {
                runtime.block_on(async {
                    let house = House::new().await;
                    let push = house.push("r1", 25).await;
                    let mut before = Vec::new();
                    for step in history {
                        take(&house, &push, step).await;
                        let now = house.reload(&push).await;
                        let recount = house.ledger.state_counts(push.key).await.unwrap();
                        assert!(now.counts.add_up(), "{:?}", now.counts);
                        assert_eq!(now.counts, recount);
                        let rows = house.ledger.deliveries(push.key, 0, 100).await.unwrap();
                        for (seq, state) in before {
                            let is_end = !matches!(state, DeliveryState::Pending | DeliveryState::Sending);
                            let row = rows.iter().find(|row| row.seq == seq).expect("no row is ever lost");
                            assert!(!is_end || row.state == state, "{seq} went from {state:?} to {:?}", row.state);
                        }
                        before = rows.iter().map(|row| (row.seq, row.state)).collect();
                    }
                });
                Ok(())
            })
            .unwrap();
    }
}
