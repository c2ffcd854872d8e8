//! What was last said about something, so that one change makes one alert, whichever process sees it; and what could not
//! be said yet.

use super::error::Doing;
use super::sql::{Columns, int};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};

/// What an alert last said of its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertState {
    pub state: String,
    pub changed_at: Timestamp,
}

/// Alerts that are kept at most: who sees none of so many is not helped by more.
const OWED_AT_MOST: u64 = 500;

/// An alert that could not be delivered, as whoever kept it wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedAlert {
    pub id: i64,
    /// When what it tells of happened.
    pub at: Timestamp,
    pub alert: String,
}

impl Ledger {
    /// Keeps an alert that could not be delivered; false when too many are kept.
    pub async fn owe_alert(&self, alert: &str, at: Timestamp) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "insert into alerts_owed (at, alert) select $1, $2 where (select count(*) from alerts_owed) < $3",
        )
        .bind(to_micros(at))
        .bind(alert)
        .bind(int(OWED_AT_MOST))
        .execute(&self.writer)
        .await
        .doing("keep an alert for later")?;
        Ok(done.rows_affected() == 1)
    }

    /// Whether an alert is kept.
    pub async fn owes_alerts(&self) -> Result<bool, LedgerError> {
        sqlx::query_scalar("select exists (select 1 from alerts_owed)")
            .fetch_one(&self.readers)
            .await
            .doing("look whether alerts are owed")
    }

    /// The oldest alert that is kept, for the one caller who tries to post it now; `None` when it was tried after
    /// `not_since`: those behind it wait for it.
    pub async fn take_alert_owed(
        &self,
        now: Timestamp,
        not_since: Timestamp,
    ) -> Result<Option<OwedAlert>, LedgerError> {
        const DOING: &str = "take an alert that is owed";
        let row = sqlx::query(
            "update alerts_owed set tried_at = $1
             where id = (select min(id) from alerts_owed) and (tried_at is null or tried_at <= $2)
             returning id, at, alert",
        )
        .bind(to_micros(now))
        .bind(to_micros(not_since))
        .fetch_optional(&self.writer)
        .await
        .doing(DOING)?;
        row.map(|row| Ok(OwedAlert { id: row.read("id")?, at: row.time("at")?, alert: row.text("alert")? })).transpose()
    }

    /// An alert that was kept is delivered.
    pub async fn settle_alert_owed(&self, id: i64) -> Result<(), LedgerError> {
        sqlx::query("delete from alerts_owed where id = $1")
            .bind(id)
            .execute(&self.writer)
            .await
            .doing("forget an alert that was delivered")?;
        Ok(())
    }

    /// Gives up kept alerts of what happened before `at`; says how many.
    pub async fn drop_alerts_owed(&self, at: Timestamp) -> Result<u64, LedgerError> {
        let old: bool = sqlx::query_scalar("select exists (select 1 from alerts_owed where at < $1)")
            .bind(to_micros(at))
            .fetch_one(&self.readers)
            .await
            .doing("look for old alerts")?;
        if !old {
            return Ok(0);
        }
        let done = sqlx::query("delete from alerts_owed where at < $1")
            .bind(to_micros(at))
            .execute(&self.writer)
            .await
            .doing("give up old alerts")?;
        Ok(done.rows_affected())
    }

    /// What was last said of `key` (a run, a pipeline, an account).
    pub async fn alert_state(&self, key: &str) -> Result<Option<AlertState>, LedgerError> {
        let row = sqlx::query("select state, changed_at from alerts where key = $1")
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .doing("look up an alert")?;
        row.map(|row| Ok(AlertState { state: row.text("state")?, changed_at: row.time("changed_at")? })).transpose()
    }

    /// Remembers what is now so of `key`. True for the one caller that changed it: that one tells.
    pub async fn set_alert_state(&self, key: &str, state: &str, now: Timestamp) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "insert into alerts (key, state, changed_at) values ($1, $2, $3)
             on conflict (key) do update set state = excluded.state, changed_at = excluded.changed_at
             where alerts.state <> excluded.state",
        )
        .bind(key)
        .bind(state)
        .bind(to_micros(now))
        .execute(&self.writer)
        .await
        .doing("remember an alert")?;
        Ok(done.rows_affected() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[tokio::test]
    async fn what_could_not_be_told_is_kept_in_order_tried_by_one_and_given_up_in_the_end() {
        let house = House::new().await;
        let ledger = &house.ledger;
        assert!(!ledger.owes_alerts().await.unwrap());
        assert!(
            ledger.owe_alert("failed", at(0)).await.unwrap() && ledger.owe_alert("recovered", at(10)).await.unwrap()
        );
        let first = ledger.take_alert_owed(at(20), at(0)).await.unwrap().unwrap();
        assert_eq!((first.alert.as_str(), first.at), ("failed", at(0)));
        assert_eq!(ledger.take_alert_owed(at(21), at(1)).await.unwrap(), None, "somebody tries it");
        assert_eq!(ledger.take_alert_owed(at(60), at(20)).await.unwrap(), Some(first.clone()));
        ledger.settle_alert_owed(first.id).await.unwrap();
        let second = ledger.take_alert_owed(at(61), at(21)).await.unwrap().unwrap();
        assert_eq!(second.alert, "recovered");
        assert_eq!(ledger.drop_alerts_owed(at(10)).await.unwrap(), 0);
        assert_eq!(ledger.drop_alerts_owed(at(11)).await.unwrap(), 1);
        assert!(!ledger.owes_alerts().await.unwrap());
    }

    #[tokio::test]
    async fn a_change_is_told_once() {
        let house = House::new().await;
        assert!(house.ledger.set_alert_state("run:1", "halted", at(0)).await.unwrap());
        assert!(!house.ledger.set_alert_state("run:1", "halted", at(1)).await.unwrap());
        assert_eq!(house.ledger.alert_state("run:1").await.unwrap().unwrap().changed_at, at(0));
        assert!(house.ledger.set_alert_state("run:1", "recovered", at(2)).await.unwrap());
    }
}
