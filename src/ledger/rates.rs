//! The ceiling of an account's sends a second, divided between the pushes that go on, in whatever process.
//!
//! A share is granted for a few seconds and renewed every second. What is granted never passes the ceiling in any
//! transaction: who comes new gets what is free, the others come down to their fair part at their next renewal. A push
//! whose process died leaves its share to the others when it runs out, by the database's clock.

use std::time::Duration;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Lease, Ledger, LedgerError};
use crate::domain::{AccountName, Sharer, fair_share};

/// What a push asks of its account's ceiling.
#[derive(Debug, Clone, Copy)]
pub struct ShareRequest<'a> {
    pub account: &'a AccountName,
    pub push_key: i64,
    /// Sends a second that the push would use if it were alone.
    pub wanted: f64,
    /// See [`Sharer::weight`].
    pub weight: f64,
    /// Sends a second of all pushes of the account together.
    pub ceiling: f64,
    /// How long the share holds without another renewal.
    pub ttl: Duration,
}

impl Ledger {
    /// Takes or renews a push's share; gives the sends a second it may use for `ttl` from the moment of the call. May
    /// be 0 while others still hold everything.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`], and whatever a transaction can meet; the share before holds until it runs out.
    pub async fn renew_share(&self, lease: &Lease, request: ShareRequest<'_>) -> Result<f64, LedgerError> {
        const DOING: &str = "divide an account's sends a second";
        let ShareRequest { account, push_key, wanted, weight, ceiling, ttl } = request;
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query("delete from rate_shares where expires_at <= unixepoch('subsec')")
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        let rows = sqlx::query("select wanted, weight, granted from rate_shares where account = $1 and push_key <> $2")
            .bind(account.as_str())
            .bind(push_key)
            .fetch_all(&mut *tx)
            .await
            .doing(DOING)?;
        let others: Vec<Sharer> =
            read_all(&*rows, |row| Ok(Sharer { wanted: row.read("wanted")?, weight: row.read("weight")? }))?;
        let held: f64 = read_all(&*rows, |row| row.read::<f64>("granted"))?.into_iter().sum();
        let granted = fair_share(ceiling, Sharer { wanted, weight }, &others).min(ceiling - held).max(0.0);
        sqlx::query(
            "insert into rate_shares (account, push_key, wanted, granted, expires_at, weight)
             values ($1, $2, $3, $4, unixepoch('subsec') + $5, $6)
             on conflict (account, push_key) do update set wanted = excluded.wanted, granted = excluded.granted,
                 expires_at = excluded.expires_at, weight = excluded.weight",
        )
        .bind(account.as_str())
        .bind(push_key)
        .bind(wanted)
        .bind(granted)
        .bind(ttl.as_secs_f64())
        .bind(weight)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(granted)
    }

    /// Notes whether a push goes before campaigns: they then leave it the sends that it still needs.
    pub async fn set_priority(&self, lease: &Lease, push_key: i64, is_service: bool) -> Result<(), LedgerError> {
        const DOING: &str = "note a push's priority";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query("update pushes set priority = $1 where key = $2")
            .bind(if is_service { "service" } else { "campaign" })
            .bind(push_key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// Leaves a push's share to the others.
    pub async fn release_share(&self, account: &AccountName, push_key: i64) -> Result<(), LedgerError> {
        sqlx::query("delete from rate_shares where account = $1 and push_key = $2")
            .bind(account.as_str())
            .bind(push_key)
            .execute(&self.writer)
            .await
            .doing("give back a share of an account's sends a second")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn pushes_of_an_account_never_hold_more_than_its_ceiling() {
        let house = House::new().await;
        let (main, shop) = (AccountName::new("main"), AccountName::new("shop"));
        let ask = async |account, push_key, wanted, ttl| {
            let ttl = Duration::from_secs(ttl);
            let request = ShareRequest { account, push_key, wanted, weight: 1.0, ceiling: 100.0, ttl };
            house.ledger.renew_share(&house.lease, request).await.unwrap()
        };
        assert_eq!(ask(&main, 1, 500.0, 60).await, 100.0);
        assert_eq!(ask(&main, 2, 500.0, 60).await, 0.0, "all of it is held");
        assert_eq!(ask(&shop, 3, 30.0, 60).await, 30.0, "another account is none of theirs");
        assert_eq!(ask(&main, 1, 500.0, 60).await, 50.0, "the first comes down");
        assert_eq!(ask(&main, 2, 500.0, 60).await, 50.0);
        assert_eq!(ask(&main, 2, 20.0, 60).await, 20.0);
        assert_eq!(ask(&main, 1, 500.0, 0).await, 80.0, "who wants less leaves the rest");
        assert_eq!(ask(&main, 2, 500.0, 60).await, 100.0, "the share of the first ran out");
        house.ledger.release_share(&main, 2).await.unwrap();
        assert_eq!(ask(&main, 1, 500.0, 60).await, 100.0);
    }
}
