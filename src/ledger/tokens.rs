//! The access token of each account, one for all processes, and how often a new one was forced.

use std::time::Duration;

use super::error::Doing;
use super::sql::Columns;
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, QuotaDay};

/// How often a new token may be forced.
#[derive(Debug, Clone, Copy)]
pub struct ForcedLimit {
    pub max_per_day: u32,
    /// Between one and the next.
    pub min_gap: Duration,
}

impl Ledger {
    /// The token of an account with when it expires and when it was fetched.
    pub async fn load_token(
        &self,
        account: &AccountName,
    ) -> Result<Option<(String, Timestamp, Timestamp)>, LedgerError> {
        let row = sqlx::query("select token, expires_at, fetched_at from tokens where account = $1")
            .bind(account.as_str())
            .fetch_optional(&self.readers)
            .await
            .doing("look up an access token")?;
        row.map(|row| Ok((row.text("token")?, row.time("expires_at")?, row.time("fetched_at")?))).transpose()
    }

    /// Keeps a token for all processes. One that was fetched later is never replaced by an earlier one.
    pub async fn save_token(
        &self,
        account: &AccountName,
        token: &str,
        expires_at: Timestamp,
        fetched_at: Timestamp,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into tokens (account, token, expires_at, fetched_at) values ($1, $2, $3, $4)
             on conflict (account) do update set token = excluded.token, expires_at = excluded.expires_at,
                 fetched_at = excluded.fetched_at
             where excluded.fetched_at >= tokens.fetched_at",
        )
        .bind(account.as_str())
        .bind(token)
        .bind(to_micros(expires_at))
        .bind(to_micros(fetched_at))
        .execute(&self.writer)
        .await
        .doing("keep an access token")?;
        Ok(())
    }

    /// Takes one of the day's forced refreshes; false when there is none left or the last one was too short ago.
    pub async fn take_forced(
        &self,
        account: &AccountName,
        day: QuotaDay,
        now: Timestamp,
        limit: ForcedLimit,
    ) -> Result<bool, LedgerError> {
        const DOING: &str = "count a forced refresh of an access token";
        let gap = chrono::TimeDelta::from_std(limit.min_gap).unwrap_or(chrono::TimeDelta::MAX);
        let latest = now.checked_sub_signed(gap).map_or(i64::MIN, to_micros);
        let mut tx = self.begin(DOING).await?;
        // The gap holds across midnight too.
        let recent = sqlx::query("select 1 from forced_tokens where account = $1 and last_at > $2")
            .bind(account.as_str())
            .bind(latest)
            .fetch_optional(&mut *tx)
            .await
            .doing(DOING)?;
        if recent.is_some() || limit.max_per_day == 0 {
            return Ok(false);
        }
        let done = sqlx::query(
            "insert into forced_tokens (account, day, taken, last_at) values ($1, $2, 1, $3)
             on conflict (account, day) do update set taken = forced_tokens.taken + 1, last_at = excluded.last_at
             where forced_tokens.taken < $4",
        )
        .bind(account.as_str())
        .bind(day.to_string())
        .bind(to_micros(now))
        .bind(limit.max_per_day)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(done.rows_affected() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn a_late_process_does_not_put_an_old_token_back() {
        let house = House::new().await;
        let main = AccountName::new("main");
        house.ledger.save_token(&main, "new", at(7200), at(10)).await.unwrap();
        house.ledger.save_token(&main, "old", at(7100), at(5)).await.unwrap();
        assert_eq!(house.ledger.load_token(&main).await.unwrap(), Some(("new".to_owned(), at(7200), at(10))));
    }

    #[tokio::test]
    async fn forced_refreshes_keep_their_gap_and_their_number_a_day() {
        let house = House::new().await;
        let main = AccountName::new("main");
        let limit = ForcedLimit { max_per_day: 2, min_gap: Duration::from_secs(30) };
        let day = QuotaDay::of(at(0));
        let mut taken = Vec::new();
        for second in [0, 10, 30, 60] {
            taken.push(house.ledger.take_forced(&main, day, at(second), limit).await.unwrap());
        }
        assert_eq!(taken, [true, false, true, false]);
        assert!(house.ledger.take_forced(&main, day.next(), at(61), limit).await.unwrap());
    }
}
