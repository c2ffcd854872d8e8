//! The stop switch: while an account stands here, nothing is sent for it by anybody. It is a row, so that it survives restarts
//! and is seen by every process.

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{AuditEntry, Ledger, LedgerError, Order};
use crate::clock::{Timestamp, to_micros};
use crate::domain::AccountName;

/// How every account together is called here.
pub const EVERY_ACCOUNT: &str = "*";

/// A stop switch that is on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Freeze {
    /// `*`: every account.
    pub account: String,
    pub who: String,
    pub at: Timestamp,
}

impl Ledger {
    /// Turns the switch of an account, or of all, on; false when it is on already.
    pub async fn freeze(&self, account: Option<&AccountName>, order: Order<'_>) -> Result<bool, LedgerError> {
        const DOING: &str = "freeze an account";
        let account = account.map_or(EVERY_ACCOUNT, AccountName::as_str);
        let mut tx = self.begin(DOING).await?;
        let done =
            sqlx::query("insert into freezes (account, who, at) values ($1, $2, $3) on conflict (account) do nothing")
                .bind(account)
                .bind(order.who)
                .bind(to_micros(order.at))
                .execute(&mut *tx)
                .await
                .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        super::audit::insert(&mut tx, &entry("freeze", account, order)).await?;
        tx.commit().await.doing(DOING)?;
        Ok(true)
    }

    /// Turns the switch of an account off, or without one every switch that is on; runs that wait because of it say
    /// `resumed` from now on. Gives what was thawed.
    pub async fn thaw(&self, account: Option<&AccountName>, order: Order<'_>) -> Result<Vec<String>, LedgerError> {
        const DOING: &str = "thaw an account";
        let mut tx = self.begin(DOING).await?;
        let rows = sqlx::query("delete from freezes where $1 is null or account = $1 returning account")
            .bind(account.map(AccountName::as_str))
            .fetch_all(&mut *tx)
            .await
            .doing(DOING)?;
        let thawed = read_all(rows, |row| row.text("account"))?;
        if thawed.is_empty() {
            return Ok(thawed);
        }
        sqlx::query(
            "update runs set reason = 'resumed', waiting_until = null
             where status = 'waiting' and run_id in (
                 select run_id from pushes where state = 'waiting' and reason like 'frozen%' and ended_at is null
                     and not exists (select 1 from freezes where account in (pushes.account, '*')))",
        )
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        for account in &thawed {
            super::audit::insert(&mut tx, &entry("thaw", account, order)).await?;
        }
        tx.commit().await.doing(DOING)?;
        Ok(thawed)
    }

    /// Every switch that is on.
    pub async fn freezes(&self) -> Result<Vec<Freeze>, LedgerError> {
        let rows = sqlx::query("select account, who, at from freezes order by account")
            .fetch_all(&self.readers)
            .await
            .doing("list frozen accounts")?;
        read_all(rows, |row| Ok(Freeze { account: row.text("account")?, who: row.text("who")?, at: row.time("at")? }))
    }
}

fn entry(command: &str, account: &str, order: Order<'_>) -> AuditEntry {
    let detail = if account == EVERY_ACCOUNT { "every account".to_owned() } else { format!("account {account}") };
    AuditEntry { at: order.at, who: order.who.to_owned(), command: command.to_owned(), run_id: None, detail }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::RunStatus;
    use crate::ledger::{PushChange, RunChange};

    #[tokio::test]
    async fn a_frozen_account_stays_so_until_it_is_thawed_and_its_runs_go_on_then() {
        let house = House::new().await;
        let (ledger, push, order) = (&house.ledger, house.push("r1", 10).await, Order { who: "ada", at: at(5) });
        let main = AccountName::new("main");
        assert_eq!(push.frozen, None);
        assert!(ledger.freeze(Some(&main), order).await.unwrap());
        assert!(!ledger.freeze(Some(&main), order).await.unwrap(), "it is on already");
        assert!(ledger.freeze(None, order).await.unwrap());
        assert_eq!(house.reload(&push).await.frozen.as_deref(), Some("main"));
        let waiting = PushChange { state: "waiting", reason: Some("frozen by ada"), halted_errcode: None, until: None };
        ledger.set_push_state(&house.lease, push.key, waiting, at(6)).await.unwrap();
        let waits = RunChange { status: RunStatus::Waiting, reason: Some("frozen by ada".into()), waiting_until: None };
        ledger.set_run_status(&house.lease, &push.run_id, waits, at(6)).await.unwrap();
        assert_eq!(ledger.thaw(Some(&main), order).await.unwrap(), ["main"]);
        assert_eq!(house.reload(&push).await.frozen.as_deref(), Some("*"));
        let reason = async || ledger.run(&push.run_id).await.unwrap().unwrap().reason;
        assert_eq!(reason().await.as_deref(), Some("frozen by ada"), "the other switch holds it");
        assert_eq!(ledger.thaw(None, order).await.unwrap(), ["*"]);
        assert_eq!(reason().await.as_deref(), Some("resumed"));
        assert!(ledger.freezes().await.unwrap().is_empty());
        let orders: Vec<String> = ledger.audit(9).await.unwrap().into_iter().map(|entry| entry.command).collect();
        assert_eq!(orders, ["thaw", "thaw", "freeze", "freeze"]);
    }
}
