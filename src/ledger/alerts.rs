//! What was last said about something, so that one change makes one alert, whichever process sees it; and what is still to
//! be said.

use sqlx::SqliteConnection;

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

/// An alert that was not delivered yet, as whoever owed it wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedAlert {
    pub id: i64,
    /// When what it tells of happened.
    pub at: Timestamp,
    pub alert: String,
}

/// What is now so of a subject, and the alert that tells of it where that is news.
#[derive(Debug, Clone, Copy)]
pub struct AlertChange<'a> {
    pub key: &'a str,
    pub state: &'a str,
    pub alert: Option<&'a str>,
}

/// What came of [`Ledger::change_alert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum AlertChanged {
    /// It was so before: nothing is to be told.
    No,
    /// It is news; its alert is owed under this id, unless none was given or too many are kept.
    Yes { owed: Option<i64> },
}

impl Ledger {
    /// Remembers what is now so of a subject. For the one caller that changed it, the alert is owed from the same moment on:
    /// whoever dies before it is posted leaves it to others.
    pub async fn change_alert(&self, change: AlertChange<'_>, now: Timestamp) -> Result<AlertChanged, LedgerError> {
        const DOING: &str = "remember an alert";
        let mut tx = self.begin(DOING).await?;
        if !set_state(&mut tx, (change.key, change.state), now).await? {
            return Ok(AlertChanged::No);
        }
        let owed = match change.alert {
            Some(alert) => owe(&mut tx, alert, now).await?,
            None => None,
        };
        tx.commit().await.doing(DOING)?;
        Ok(AlertChanged::Yes { owed })
    }

    /// Owes an alert that is no change of a subject; gives its id, unless too many are kept.
    pub async fn owe_alert(&self, alert: &str, at: Timestamp) -> Result<Option<i64>, LedgerError> {
        let mut connection = self.writer.acquire().await.doing("keep an alert for later")?;
        owe(&mut connection, alert, at).await
    }

    /// Whether an alert is owed.
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

    /// An alert that was owed is delivered.
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

    /// Remembers what is now so of `key`, of which nothing is to be told; says whether that is news.
    pub async fn set_alert_state(&self, key: &str, state: &str, now: Timestamp) -> Result<bool, LedgerError> {
        let mut connection = self.writer.acquire().await.doing("remember an alert")?;
        set_state(&mut connection, (key, state), now).await
    }
}

async fn set_state(
    connection: &mut SqliteConnection,
    (key, state): (&str, &str),
    now: Timestamp,
) -> Result<bool, LedgerError> {
    let done = sqlx::query(
        "insert into alerts (key, state, changed_at) values ($1, $2, $3)
         on conflict (key) do update set state = excluded.state, changed_at = excluded.changed_at
         where alerts.state <> excluded.state",
    )
    .bind(key)
    .bind(state)
    .bind(to_micros(now))
    .execute(connection)
    .await
    .doing("remember an alert")?;
    Ok(done.rows_affected() == 1)
}

async fn owe(connection: &mut SqliteConnection, alert: &str, at: Timestamp) -> Result<Option<i64>, LedgerError> {
    let row = sqlx::query(
        "insert into alerts_owed (at, alert) select $1, $2 where (select count(*) from alerts_owed) < $3 returning id",
    )
    .bind(to_micros(at))
    .bind(alert)
    .bind(int(OWED_AT_MOST))
    .fetch_optional(connection)
    .await
    .doing("keep an alert for later")?;
    row.map(|row| row.read("id")).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn what_could_not_be_told_is_kept_in_order_tried_by_one_and_given_up_in_the_end() {
        let house = House::new().await;
        let ledger = &house.ledger;
        assert!(!ledger.owes_alerts().await.unwrap());
        let failed = ledger.owe_alert("failed", at(0)).await.unwrap();
        assert!(failed < ledger.owe_alert("recovered", at(10)).await.unwrap());
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
    async fn a_change_is_owed_once_and_from_the_moment_it_is_remembered() {
        let house = House::new().await;
        let ledger = &house.ledger;
        let halted = AlertChange { key: "run:1", state: "halted", alert: Some("it halted") };
        let AlertChanged::Yes { owed: Some(id) } = ledger.change_alert(halted, at(0)).await.unwrap() else {
            panic!("it is not owed");
        };
        assert_eq!(ledger.change_alert(halted, at(1)).await.unwrap(), AlertChanged::No);
        assert_eq!(ledger.alert_state("run:1").await.unwrap().unwrap().changed_at, at(0));
        // Whoever changed it died: anybody else finds it.
        let other = Ledger::open(&house.path).await.unwrap();
        assert_eq!(other.take_alert_owed(at(2), at(1)).await.unwrap().map(|owed| owed.id), Some(id));
        let well = AlertChange { state: "well", alert: None, ..halted };
        assert_eq!(ledger.change_alert(well, at(2)).await.unwrap(), AlertChanged::Yes { owed: None });
        assert!(!ledger.set_alert_state("run:1", "well", at(3)).await.unwrap());
    }
}
