//! Events of the platform: kept before they are answered, and applied to what they tell of.
//!
//! Keeping and applying are two transactions. An event that was kept is due; applying it is safe to repeat, and gives the
//! same whatever the order. One that came before the outcome of its send was recorded stays due and is looked at again,
//! less and less often. Which delivery an event tells of is decided by [`crate::domain::finish`].

mod apply;

use sqlx::AssertSqlSafe;

use super::error::Doing;
use super::sql::{Columns, batches, read_all, repeated};
use super::{Ledger, LedgerError, forgotten};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId};

pub use apply::Applied;

/// Rows that are deleted in one transaction, so that other writers wait only briefly.
const DROPPED_AT_ONCE: i64 = 20_000;

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCallback {
    pub account: AccountName,
    pub openid: OpenId,
    pub created_at: Timestamp,
    pub event: String,
    pub event_key: String,
    /// 0 when the event names none.
    pub msgid: i64,
    pub status: Option<String>,
}

/// Events by name and by what came of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackCount {
    pub account: AccountName,
    pub event: String,
    /// `None` while it has not been looked at.
    pub outcome: Option<String>,
    pub n: u64,
}

/// Which events are to be applied anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Replay<'a> {
    pub account: Option<&'a AccountName>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
}

const DOING: &str = "keep events";

impl Ledger {
    /// Keeps events in one transaction; when this returns they are on the disk. Says how many were new: an event that is
    /// told again is kept once. What tells of a forgotten person is not kept, unless it names a message: then without the
    /// person.
    pub async fn keep_callbacks(&self, events: &[NewCallback], now: Timestamp) -> Result<u64, LedgerError> {
        let now = to_micros(now);
        let mut tx = self.begin(DOING).await?;
        let mut new = 0;
        let forgotten = forgotten::among(&mut tx, events.iter().map(|event| event.openid.as_str())).await?;
        let is_forgotten = |event: &&NewCallback| forgotten.contains(event.openid.as_str());
        let kept: Vec<&NewCallback> = events.iter().filter(|event| event.msgid != 0 || !is_forgotten(event)).collect();
        for events in batches(&kept) {
            let sql = format!(
                "insert into callbacks (account, openid, created_at, event, event_key, msgid, status, received_at,
                     due_at)
                 values {} on conflict do nothing",
                repeated("(?,?,?,?,?,?,?,?,?)", events.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for event in events {
                query = query
                    .bind(event.account.as_str())
                    .bind(if is_forgotten(event) { forgotten::NOBODY } else { event.openid.as_str() })
                    .bind(to_micros(event.created_at))
                    .bind(&event.event)
                    .bind(&event.event_key)
                    .bind(event.msgid)
                    .bind(event.status.as_deref())
                    .bind(now)
                    .bind(now);
            }
            new += query.execute(&mut *tx).await.doing(DOING)?.rows_affected();
        }
        tx.commit().await.doing(DOING)?;
        Ok(new)
    }

    /// Events that are due now or later: kept, and not applied for good.
    pub async fn waiting_callbacks(&self) -> Result<u64, LedgerError> {
        let row = sqlx::query("select count(*) as n from callbacks where due_at is not null")
            .fetch_one(&self.readers)
            .await
            .doing("count the events that wait")?;
        row.count("n")
    }

    /// All events, counted by account, name and outcome.
    pub async fn count_callbacks(&self) -> Result<Vec<CallbackCount>, LedgerError> {
        let rows = sqlx::query(
            "select account, event, outcome, count(*) as n from callbacks group by account, event, outcome
             order by account, event, outcome",
        )
        .fetch_all(&self.readers)
        .await
        .doing("count events")?;
        read_all(rows, |row| {
            Ok(CallbackCount {
                account: AccountName::new(row.text("account")?),
                event: row.text("event")?,
                outcome: row.optional_text("outcome")?,
                n: row.count("n")?,
            })
        })
    }

    /// Makes events due again; says how many. What they told already stays as it is when they are applied anew.
    pub async fn replay_callbacks(&self, which: Replay<'_>, now: Timestamp) -> Result<u64, LedgerError> {
        let done = sqlx::query(
            "update callbacks set due_at = $1
             where ($2 is null or account = $2) and ($3 is null or received_at >= $3)",
        )
        .bind(to_micros(now))
        .bind(which.account.map(AccountName::as_str))
        .bind(which.since.map(to_micros))
        .execute(&self.writer)
        .await
        .doing("make events due again")?;
        Ok(done.rows_affected())
    }

    /// Makes what waits due at once: what it waits for may have come to its end.
    pub async fn hasten_callbacks(&self, now: Timestamp) -> Result<(), LedgerError> {
        sqlx::query("update callbacks set due_at = $1 where due_at > $1")
            .bind(to_micros(now))
            .execute(&self.writer)
            .await
            .doing("make events due at once")?;
        Ok(())
    }

    /// Forgets events that were received before `before` and have nothing left to do; says how many.
    pub async fn drop_callbacks(&self, before: Timestamp) -> Result<u64, LedgerError> {
        let mut dropped = 0;
        loop {
            let done = sqlx::query(
                "delete from callbacks where id in
                     (select id from callbacks where due_at is null and received_at < $1 order by id limit $2)",
            )
            .bind(to_micros(before))
            .bind(DROPPED_AT_ONCE)
            .execute(&self.writer)
            .await
            .doing("forget old events")?;
            dropped += done.rows_affected();
            if done.rows_affected() == 0 {
                return Ok(dropped);
            }
        }
    }
}

#[cfg(test)]
mod tests;
