//! What was last said about something, so that one change makes one alert, whichever process sees it.

use super::error::Doing;
use super::sql::Columns;
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};

/// What an alert last said of its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertState {
    pub state: String,
    pub changed_at: Timestamp,
}

impl Ledger {
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
    async fn a_change_is_told_once() {
        let house = House::new().await;
        assert!(house.ledger.set_alert_state("run:1", "halted", at(0)).await.unwrap());
        assert!(!house.ledger.set_alert_state("run:1", "halted", at(1)).await.unwrap());
        assert_eq!(house.ledger.alert_state("run:1").await.unwrap().unwrap().changed_at, at(0));
        assert!(house.ledger.set_alert_state("run:1", "recovered", at(2)).await.unwrap());
    }
}
