//! Whoever got no answer may be sent the message once more, where that was chosen. Until the new intent is written they stay
//! `unconfirmed`: an event may settle them at any moment, and whoever is not sent to after all has not become anything else.

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::deliveries::DeliveryRow;
use super::error::Doing;
use super::pushes::Growth;
use super::sql::{Columns, batches, int, repeated};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::DeliveryState;

const DUE: &str = "where push_key = $1 and state = 'unconfirmed' and retry_at <= $2 order by seq";

impl Ledger {
    /// From when on the first of those may be sent to once more who got no answer.
    pub async fn next_repeat_at(&self, push_key: i64) -> Result<Option<Timestamp>, LedgerError> {
        let row = sqlx::query(
            "select min(retry_at) as retry_at from deliveries where push_key = $1 and state = 'unconfirmed'",
        )
        .bind(push_key)
        .fetch_one(&self.readers)
        .await
        .doing("look up who is sent to once more")?;
        row.optional_time("retry_at")
    }

    /// Whoever got no answer and may be sent to once more by now, by seq.
    pub async fn repeats_due(&self, push_key: i64, now: Timestamp) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.select_deliveries(DUE, &[push_key, to_micros(now)]).await
    }

    /// Nobody goes on with a push: whoever is in flight may have the message or not. Gives how many.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`], and what a transaction can meet.
    pub async fn leave_in_doubt(&self, lease: &Lease, push_key: i64, now: Timestamp) -> Result<u64, LedgerError> {
        const DOING: &str = "leave in doubt whoever was in flight";
        let mut tx = self.begin_held(lease, DOING).await?;
        let left = sqlx::query(
            "update deliveries set state = 'unconfirmed', reason = 'no answer', retry_at = null, updated_at = $1
             where state = 'sending' and +push_key = $2",
        )
        .bind(to_micros(now))
        .bind(push_key)
        .execute(&mut *tx)
        .await
        .doing(DOING)?
        .rows_affected();
        if left > 0 {
            let mut growth = Growth::default();
            growth.count(DeliveryState::Unconfirmed, int(left));
            growth.apply(&mut tx, push_key).await?;
        }
        tx.commit().await.doing(DOING)?;
        Ok(left)
    }
}

/// Allows it to those of `seqs` whose time has come, in the transaction that writes their intents.
pub(super) async fn allow(
    tx: &mut SqliteConnection,
    push_key: i64,
    (seqs, now): (&[u64], Timestamp),
) -> Result<(), LedgerError> {
    let mut allowed = 0;
    for seqs in batches(seqs) {
        let sql = format!(
            "update deliveries set state = 'pending', repeats = repeats + 1
             where push_key = ? and state = 'unconfirmed' and retry_at <= ? and seq in ({})",
            repeated("?", seqs.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(push_key).bind(to_micros(now));
        for seq in seqs {
            query = query.bind(int(*seq));
        }
        allowed += query.execute(&mut *tx).await.doing("allow messages to be sent once more")?.rows_affected();
    }
    if allowed == 0 {
        return Ok(());
    }
    let mut growth = Growth::default();
    growth.count(DeliveryState::Unconfirmed, -int(allowed));
    growth.apply(tx, push_key).await
}

/// Leaves out whoever has a row and is not to be sent to after all, and why: who was put back is skipped; who may have the
/// message stays unconfirmed, and is not sent it once more.
pub(super) async fn leave_out(
    tx: &mut SqliteConnection,
    push_key: i64,
    (left_out, now): (&[(u64, &str)], Timestamp),
) -> Result<(), LedgerError> {
    let mut skipped = 0;
    for (seq, reason) in left_out {
        let row = sqlx::query(
            "update deliveries set state = case when state = 'pending' then 'skipped' else state end,
                 reason = case when state = 'pending' then $1 else reason end, retry_at = null, updated_at = $2
             where push_key = $3 and seq = $4 and state in ('pending', 'unconfirmed') returning state",
        )
        .bind(*reason)
        .bind(to_micros(now))
        .bind(push_key)
        .bind(int(*seq))
        .fetch_optional(&mut *tx)
        .await
        .doing("leave out whoever is not to be sent to")?;
        let state = row.map(|row| row.word("state", DeliveryState::parse)).transpose()?;
        skipped += i64::from(state == Some(DeliveryState::Skipped));
    }
    if skipped == 0 {
        return Ok(());
    }
    let mut growth = Growth::default();
    growth.count(DeliveryState::Skipped, skipped);
    growth.apply(tx, push_key).await
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Begin, Begun, Outcome, QuotaCharge};
    use super::*;
    use crate::domain::{AccountName, Counts, QuotaDay};

    fn unanswered(seq: u64, attempt: u32, until: i64) -> Outcome {
        Outcome { retry_at: Some(at(until)), ..outcome(seq, attempt, DeliveryState::Unconfirmed) }
    }

    #[tokio::test]
    async fn whoever_got_no_answer_stays_unconfirmed_until_the_new_intent_is_written() {
        let house = House::new().await;
        let push = house.push("r1", 3).await;
        let people = people(1..=3);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let _ = house.record(&push, &[unanswered(1, 1, 600), unanswered(2, 1, 900)]).await;
        let due = async |now| {
            let rows = house.ledger.repeats_due(push.key, at(now)).await.unwrap();
            rows.iter().map(|row| (row.seq, row.repeats)).collect::<Vec<_>>()
        };
        assert_eq!(due(599).await, []);
        assert_eq!(due(600).await, [(1, 0)]);
        assert_eq!(house.ledger.next_repeat_at(push.key).await.unwrap(), Some(at(600)));
        let again = Begin { again: &[1, 2], claimed_to: 3, now: at(600), ..fresh(&[]) };
        assert_eq!(house.begin(&push, again).await, Begun::Yes { attempts: vec![] }, "it was not chosen");
        assert_eq!(house.reload(&push).await.counts.unconfirmed, 2);
        let again = Begin { once_more: true, ..again };
        assert_eq!(house.begin(&push, again).await, Begun::Yes { attempts: vec![(1, 2)] }, "the second is not due");
        let row = &house.ledger.left_in_flight(push.key).await.unwrap()[0];
        assert_eq!((row.seq, row.repeats, row.first_try_at), (1, 1, Some(at(600))), "WeChat counts anew");
        let _ = house.record(&push, &[unanswered(1, 2, 1_200)]).await;
        assert_eq!(due(1_200).await, [(1, 1), (2, 0)]);
        assert_eq!(house.reload(&push).await.counts, house.ledger.state_counts(push.key).await.unwrap());
    }

    #[tokio::test]
    async fn whoever_is_left_out_at_a_repeated_claim_takes_no_call_and_who_may_have_it_is_not_skipped() {
        let house = House::new().await;
        let push = house.push("r1", 4).await;
        let people = people(1..=4);
        let main = AccountName::new("main");
        let charge = QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: None, keep: 0 };
        let quota = Some(charge);
        let _ = house.begin(&push, Begin { quota, ..fresh(&intents(&people)) }).await;
        let ends =
            [outcome(1, 1, DeliveryState::Pending), unanswered(2, 1, 600), outcome(3, 1, DeliveryState::Pending)];
        let _ = house.record(&push, &ends).await;
        let left_out = [(1, "unfollowed"), (2, "unfollowed"), (4, "unfollowed")];
        let again = Begin {
            again: &[3],
            left_out: &left_out,
            once_more: true,
            claimed_to: 4,
            quota,
            now: at(700),
            ..fresh(&[])
        };
        assert_eq!(house.begin(&push, again).await, Begun::Yes { attempts: vec![(3, 2)] });
        let counts = house.reload(&push).await.counts;
        assert_eq!(counts, Counts { recipients: 4, skipped: 1, unconfirmed: 1, pending: 2, ..Counts::default() });
        assert_eq!(counts, house.ledger.state_counts(push.key).await.unwrap());
        assert_eq!(house.ledger.usage(None, None).await.unwrap()[0].calls, 5, "four, and one again");
        assert_eq!(house.ledger.next_repeat_at(push.key).await.unwrap(), None);
        let rows = house.ledger.deliveries(push.key, 0, 9).await.unwrap();
        assert_eq!((rows[0].reason.as_deref(), rows[1].reason.as_deref()), (Some("unfollowed"), None));
        assert_eq!(rows[3].state, DeliveryState::Sending, "in flight: it may have been taken");
    }

    #[tokio::test]
    async fn whoever_is_in_flight_when_a_push_is_given_up_is_in_doubt() {
        let house = House::new().await;
        let push = house.push("r1", 3).await;
        let people = people(1..=2);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Sent)]).await;
        assert_eq!(house.ledger.skip_rest(&house.lease, push.key, "cancelled", at(2)).await.unwrap(), 1);
        assert_eq!(house.ledger.leave_in_doubt(&house.lease, push.key, at(2)).await.unwrap(), 1);
        let counts = house.reload(&push).await.counts;
        assert_eq!(counts, Counts { recipients: 3, sent: 1, skipped: 1, unconfirmed: 1, ..Counts::default() });
        assert_eq!(counts, house.ledger.state_counts(push.key).await.unwrap());
    }
}
