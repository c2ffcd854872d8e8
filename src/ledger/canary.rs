//! The canary of a push: its first messages, and what WeChat said became of them. Which of its phases a push is in
//! stands here, so that a restart goes on with the same.

use super::error::Doing;
use super::sql::{Columns, int};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::domain::CanaryCounts;

impl Ledger {
    /// Remembers until when the finish events of a canary are waited for, unless that was set before; gives what holds.
    pub async fn begin_canary_wait(
        &self,
        lease: &Lease,
        push_key: i64,
        until: Timestamp,
    ) -> Result<Timestamp, LedgerError> {
        const DOING: &str = "begin the wait of a canary";
        let mut tx = self.begin_held(lease, DOING).await?;
        let until: i64 = sqlx::query_scalar(
            "update pushes set canary_until = coalesce(canary_until, $1) where key = $2 returning canary_until",
        )
        .bind(to_micros(until))
        .bind(push_key)
        .fetch_one(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(from_micros(until))
    }

    /// Remembers how a canary was judged.
    pub async fn judge_canary(&self, lease: &Lease, push_key: i64, has_passed: bool) -> Result<(), LedgerError> {
        const DOING: &str = "judge a canary";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query("update pushes set canary_verdict = $1 where key = $2")
            .bind(if has_passed { "passed" } else { "failed" })
            .bind(push_key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// What became of the `first` whom a push has sent to, or of everybody so far.
    pub async fn canary_counts(&self, push_key: i64, first: Option<u64>) -> Result<CanaryCounts, LedgerError> {
        let row = sqlx::query(
            "select count(*) as sent_to,
                 count(*) filter (where delivered = 'success') as delivered,
                 count(*) filter (where delivered = 'blocked') as blocked,
                 count(*) filter (where delivered = 'failed') as failed,
                 count(*) filter (where delivered is null and state = 'failed') as refused
             from (select delivered, state from deliveries
                   where push_key = $1 and attempt > 0 and state <> 'skipped' order by seq limit $2)",
        )
        .bind(push_key)
        .bind(first.map_or(-1, int))
        .fetch_one(&self.readers)
        .await
        .doing("count what became of a canary")?;
        Ok(CanaryCounts {
            sent_to: row.count("sent_to")?,
            delivered: row.count("delivered")?,
            blocked: row.count("blocked")?,
            failed: row.count("failed")?,
            refused: row.count("refused")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::DeliveryState;

    #[tokio::test]
    async fn a_canary_keeps_its_first_end_and_its_verdict() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let people = people(1..=3);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Sent), outcome(2, 1, DeliveryState::Failed)]).await;
        let counts = house.ledger.canary_counts(push.key, None).await.unwrap();
        assert_eq!(counts, CanaryCounts { sent_to: 3, refused: 1, ..CanaryCounts::default() });
        let counts = house.ledger.canary_counts(push.key, Some(1)).await.unwrap();
        assert_eq!(counts, CanaryCounts { sent_to: 1, ..CanaryCounts::default() }, "the first, whoever follows");
        let ledger = &house.ledger;
        assert_eq!(ledger.begin_canary_wait(&house.lease, push.key, at(60)).await.unwrap(), at(60));
        assert_eq!(ledger.begin_canary_wait(&house.lease, push.key, at(90)).await.unwrap(), at(60), "set once");
        ledger.judge_canary(&house.lease, push.key, false).await.unwrap();
        let push = house.reload(&push).await;
        assert_eq!((push.canary_until, push.canary_verdict.as_deref()), (Some(at(60)), Some("failed")));
    }
}
