//! What a person orders about a push while, or before, somebody works on it: these need no lease, and each leaves a line
//! in the audit in the same transaction. Whoever works on the push looks for them.

use super::error::Doing;
use super::sql::Columns;
use super::{AuditEntry, Ledger, LedgerError, Push, WriteTx};
use crate::clock::{Timestamp, to_micros};
use crate::domain::RunId;

/// Who orders, and when.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    pub who: &'a str,
    pub at: Timestamp,
}

/// Of the messages that were accepted: what their finish events say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeliveredCounts {
    pub success: u64,
    pub blocked: u64,
    pub failed: u64,
    /// No event came yet.
    pub unknown: u64,
}

impl Ledger {
    /// Orders a push to pause; false when it is over or paused already.
    pub async fn order_pause(&self, push: &Push, order: Order<'_>) -> Result<bool, LedgerError> {
        const DOING: &str = "pause a push";
        let mut tx = self.begin(DOING).await?;
        let done =
            sqlx::query("update pushes set is_paused = true where key = $1 and ended_at is null and not is_paused")
                .bind(push.key)
                .execute(&mut *tx)
                .await
                .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        audit(&mut tx, push, order, ("push pause", push.stage.to_string())).await?;
        tx.commit().await.doing(DOING)?;
        Ok(true)
    }

    /// Lifts a pause: a push and a run that wait because of it say `resumed` from now on. False when it was not paused.
    pub async fn order_resume(&self, push: &Push, order: Order<'_>) -> Result<bool, LedgerError> {
        const DOING: &str = "lift the pause of a push";
        let mut tx = self.begin(DOING).await?;
        let done = sqlx::query(
            "update pushes set is_paused = false, reason = case when state = 'waiting' then 'resumed' else reason end
             where key = $1 and ended_at is null and is_paused",
        )
        .bind(push.key)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "update runs set reason = 'resumed', waiting_until = null
             where run_id = $1 and status = 'waiting' and waiting_until is null",
        )
        .bind(push.run_id.as_str())
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        audit(&mut tx, push, order, ("push resume", format!("pause of {} lifted", push.stage))).await?;
        tx.commit().await.doing(DOING)?;
        Ok(true)
    }

    /// Orders another rate, in sends a second; `None` goes back to the configured one. False when the push is over.
    pub async fn order_rate(
        &self,
        push: &Push,
        per_second: Option<f64>,
        order: Order<'_>,
    ) -> Result<bool, LedgerError> {
        const DOING: &str = "order a push's rate";
        let mut tx = self.begin(DOING).await?;
        let done = sqlx::query("update pushes set rate_override = $1 where key = $2 and ended_at is null")
            .bind(per_second)
            .bind(push.key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let rate = per_second.map_or("as configured".to_owned(), |rate| format!("{rate}/s"));
        audit(&mut tx, push, order, ("push rate", format!("{}: {rate}", push.stage))).await?;
        tx.commit().await.doing(DOING)?;
        Ok(true)
    }

    /// Approves exactly what has this hash; whether it is the hash of what would be sent, the caller knows. False when the
    /// push is over.
    pub async fn order_approval(&self, push: &Push, hash: &str, order: Order<'_>) -> Result<bool, LedgerError> {
        const DOING: &str = "approve a push";
        let mut tx = self.begin(DOING).await?;
        let done = sqlx::query(
            "update pushes set approved_by = $1, approved_at = $2, approved_hash = $3
             where key = $4 and ended_at is null",
        )
        .bind(order.who)
        .bind(to_micros(order.at))
        .bind(hash)
        .bind(push.key)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        audit(&mut tx, push, order, ("push approve", format!("{}: {hash}", push.stage))).await?;
        tx.commit().await.doing(DOING)?;
        Ok(true)
    }

    /// Links a run's push of the same stage to the one whose failures it sends to again.
    pub async fn record_resend(
        &self,
        run_id: &RunId,
        of: &Push,
        order: Order<'_>,
        detail: String,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "link a push to the one before";
        let mut tx = self.begin(DOING).await?;
        let name = format!("{}/{}", of.run_id, of.stage);
        sqlx::query("insert into resends (run_id, stage, of_push) values ($1, $2, $3)")
            .bind(run_id.as_str())
            .bind(of.stage.as_str())
            .bind(&name)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        let entry = AuditEntry {
            at: order.at,
            who: order.who.to_owned(),
            command: "push resend".to_owned(),
            run_id: Some(run_id.clone()),
            detail: format!("{name}: {detail}"),
        };
        super::audit::insert(&mut tx, &entry).await?;
        tx.commit().await.doing(DOING)
    }

    /// The runs whose pushes sent again to the failures of a push.
    pub async fn resends_of(&self, push: &Push) -> Result<Vec<RunId>, LedgerError> {
        let rows = sqlx::query("select run_id from resends where of_push = $1 and stage = $2 order by run_id")
            .bind(format!("{}/{}", push.run_id, push.stage))
            .bind(push.stage.as_str())
            .fetch_all(&self.readers)
            .await
            .doing("look up who was sent to again")?;
        super::sql::read_all(rows, |row| Ok(RunId::new(row.text("run_id")?)))
    }

    /// The runs whose pushes sent to any of the same people again: of the failures of a push, of those that it was made of,
    /// and of each other, however often.
    pub async fn resends_around(&self, push: &Push) -> Result<Vec<RunId>, LedgerError> {
        let rows = sqlx::query(
            "with recursive before (name) as (
                 select $1 union select r.of_push from resends as r join before as b on b.name = r.run_id || '/' || r.stage),
             around (name, run_id) as (
                 select r.run_id || '/' || r.stage, r.run_id from resends as r join before as b on r.of_push = b.name
                 union select r.run_id || '/' || r.stage, r.run_id
                 from resends as r join around as a on r.of_push = a.name)
             select distinct run_id from around where name <> $1 order by run_id",
        )
        .bind(format!("{}/{}", push.run_id, push.stage))
        .fetch_all(&self.readers)
        .await
        .doing("look up who was sent to again")?;
        super::sql::read_all(rows, |row| Ok(RunId::new(row.text("run_id")?)))
    }

    /// The push whose failures a push sends to again, as `RUN/STAGE`.
    pub async fn resend_of(&self, push: &Push) -> Result<Option<String>, LedgerError> {
        sqlx::query_scalar("select of_push from resends where run_id = $1 and stage = $2")
            .bind(push.run_id.as_str())
            .bind(push.stage.as_str())
            .fetch_optional(&self.readers)
            .await
            .doing("look up which push is sent again")
    }

    /// What WeChat said became of the messages of a push that it accepted.
    pub async fn delivered_counts(&self, push_key: i64) -> Result<DeliveredCounts, LedgerError> {
        let row = sqlx::query(
            "select count(*) filter (where delivered = 'success') as success,
                 count(*) filter (where delivered = 'blocked') as blocked,
                 count(*) filter (where delivered = 'failed') as failed,
                 count(*) filter (where delivered is null) as unknown
             from deliveries where push_key = $1 and state = 'sent'",
        )
        .bind(push_key)
        .fetch_one(&self.readers)
        .await
        .doing("count what was delivered")?;
        Ok(DeliveredCounts {
            success: row.count("success")?,
            blocked: row.count("blocked")?,
            failed: row.count("failed")?,
            unknown: row.count("unknown")?,
        })
    }

    /// Messages of a push that were accepted at `from` or later.
    pub async fn sent_since(&self, push_key: i64, from: Timestamp) -> Result<u64, LedgerError> {
        let row = sqlx::query("select count(*) as n from deliveries where push_key = $1 and sent_at >= $2")
            .bind(push_key)
            .bind(to_micros(from))
            .fetch_one(&self.readers)
            .await
            .doing("count the latest sends of a push")?;
        row.count("n")
    }
}

async fn audit(tx: &mut WriteTx, push: &Push, order: Order<'_>, what: (&str, String)) -> Result<(), LedgerError> {
    let entry = AuditEntry {
        at: order.at,
        who: order.who.to_owned(),
        command: what.0.to_owned(),
        run_id: Some(push.run_id.clone()),
        detail: what.1,
    };
    super::audit::insert(tx, &entry).await
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::RunStatus;
    use crate::ledger::RunChange;

    #[tokio::test]
    async fn a_lifted_pause_waits_for_the_next_run_and_both_orders_are_in_the_audit() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let order = Order { who: "ada", at: at(5) };
        assert!(!house.ledger.order_resume(&push, order).await.unwrap(), "nothing is paused yet");
        assert!(house.ledger.order_pause(&push, order).await.unwrap());
        assert!(!house.ledger.order_pause(&push, order).await.unwrap(), "it is paused already");
        let waiting = RunChange { status: RunStatus::Waiting, reason: Some("paused".into()), waiting_until: None };
        house.ledger.set_run_status(&house.lease, &push.run_id, waiting, at(6)).await.unwrap();
        assert!(house.ledger.order_resume(&push, order).await.unwrap());
        assert!(!house.reload(&push).await.is_paused);
        let run = house.ledger.run(&push.run_id).await.unwrap().unwrap();
        assert_eq!((run.status, run.reason.as_deref()), (RunStatus::Waiting, Some("resumed")));
        let orders: Vec<String> = house.ledger.audit(9).await.unwrap().into_iter().map(|entry| entry.command).collect();
        assert_eq!(orders, ["push resume", "push pause"]);
    }

    #[tokio::test]
    async fn an_approval_is_of_a_hash_and_may_be_taken_back() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let order = Order { who: "ada", at: at(5) };
        assert!(house.ledger.order_approval(&push, "cafe", order).await.unwrap());
        let approved = house.reload(&push).await;
        assert_eq!((approved.approved_by.as_deref(), approved.approved_hash.as_deref()), (Some("ada"), Some("cafe")));
        assert_eq!(house.ledger.audit(1).await.unwrap()[0].detail, "push: cafe");
        house.ledger.void_approval(&house.lease, push.key).await.unwrap();
        assert_eq!(house.reload(&push).await.approved_by, None);
    }

    #[tokio::test]
    async fn whoever_sent_again_is_known_in_every_direction() {
        let house = House::new().await;
        let mut pushes = Vec::new();
        for run in ["r1", "r2", "r3", "r4", "r5"] {
            pushes.push(house.push(run, 10).await);
        }
        // The second and the third are of the first, the fourth is of the second, the fifth of nobody.
        for (run, of) in [(1, 0), (2, 0), (3, 1)] {
            let order = Order { who: "ada", at: at(5) };
            let made = house.ledger.record_resend(&pushes[run].run_id, &pushes[of], order, String::new()).await;
            made.unwrap();
        }
        let around = async |push: usize| {
            let runs = house.ledger.resends_around(&pushes[push]).await.unwrap();
            runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(around(0).await, "r2 r3 r4");
        assert_eq!(around(1).await, "r3 r4");
        assert_eq!(around(2).await, "r2 r4");
        assert_eq!(around(3).await, "r2 r3");
        assert_eq!(around(4).await, "");
    }

    #[tokio::test]
    async fn nothing_is_ordered_of_a_push_that_is_over() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let order = Order { who: "ada", at: at(5) };
        assert!(house.ledger.order_rate(&push, Some(2.5), order).await.unwrap());
        assert_eq!(house.reload(&push).await.rate_override, Some(2.5));
        house.ledger.end_push(&house.lease, push.key, "done", at(6)).await.unwrap();
        assert!(!house.ledger.order_rate(&push, None, order).await.unwrap());
        assert!(!house.ledger.order_pause(&push, order).await.unwrap());
    }
}
