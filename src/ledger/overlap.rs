//! Two pushes of an account may have the same person in their sets. Whoever one is sending to at a moment is left for a
//! little later by the other: asked and written in the transaction that claims, so that no two processes miss each other.

use std::collections::HashSet;

use chrono::TimeDelta;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::LedgerError;
use super::claims::Intent;
use super::error::Doing;
use super::sql::{Columns, batches, int, repeated};
use crate::clock::{Timestamp, to_micros};
use crate::domain::UnionId;

/// After so long no send of a process that died is on its way any more, nor repeated.
const IN_FLIGHT_AT_MOST: TimeDelta = TimeDelta::minutes(10);
/// When whoever was left for later is tried again.
const LATER: TimeDelta = TimeDelta::seconds(2);
const DOING: &str = "look up who is being sent to";

/// The openids that other pushes of the account are sending to. Costs one look when no other push is open.
pub(super) async fn busy_elsewhere(
    tx: &mut SqliteConnection,
    push_key: i64,
    now: Timestamp,
) -> Result<HashSet<String>, LedgerError> {
    let open = sqlx::query(
        "select key from pushes
         where account = (select account from pushes where key = $1) and key <> $1 and ended_at is null",
    )
    .bind(push_key)
    .fetch_all(&mut *tx)
    .await
    .doing(DOING)?;
    if open.is_empty() {
        return Ok(HashSet::new());
    }
    let others: HashSet<i64> = open.iter().map(|row| row.read("key")).collect::<Result<_, _>>()?;
    // The sign keeps SQLite at the small index of what is in flight.
    let rows = sqlx::query(
        "select push_key, openid from deliveries
         where state = 'sending' and +push_key <> $1 and updated_at > $2",
    )
    .bind(push_key)
    .bind(to_micros(now.checked_sub_signed(IN_FLIGHT_AT_MOST).unwrap_or(now)))
    .fetch_all(tx)
    .await
    .doing(DOING)?;
    let mut busy = HashSet::new();
    for row in &rows {
        if others.contains(&row.read("push_key")?) {
            busy.insert(row.text("openid")?);
        }
    }
    Ok(busy)
}

/// Gives recipients that are left for later their row: pending, without an attempt.
pub(super) async fn insert_deferred(
    tx: &mut SqliteConnection,
    push_key: i64,
    (deferred, now): (&[Intent<'_>], Timestamp),
) -> Result<(), LedgerError> {
    let later = later_than(now);
    for intents in batches(deferred) {
        let sql = format!(
            "insert into deliveries (push_key, seq, state, attempt, openid, unionid, retry_at, updated_at) values {}",
            repeated("(?,?,'pending',0,?,?,?,?)", intents.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for intent in intents {
            query = query
                .bind(push_key)
                .bind(int(intent.seq))
                .bind(intent.openid.as_str())
                .bind(intent.unionid.map(UnionId::as_str))
                .bind(later)
                .bind(to_micros(now));
        }
        query.execute(&mut *tx).await.doing(DOING)?;
    }
    Ok(())
}

/// Those of `again` whom nobody else is sending to; the others, where they are not in flight, wait a little longer.
pub(super) async fn without_busy(
    tx: &mut SqliteConnection,
    push_key: i64,
    (again, now): (&[u64], Timestamp),
    busy: &HashSet<String>,
) -> Result<Vec<u64>, LedgerError> {
    if busy.is_empty() {
        return Ok(again.to_vec());
    }
    let mut left_for_later = HashSet::new();
    for seqs in batches(again) {
        let sql =
            format!("select seq, openid from deliveries where push_key = ? and seq in ({})", repeated("?", seqs.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(push_key);
        for seq in seqs {
            query = query.bind(int(*seq));
        }
        for row in query.fetch_all(&mut *tx).await.doing(DOING)? {
            if busy.contains(&row.text("openid")?) {
                left_for_later.insert(row.count("seq")?);
            }
        }
    }
    for seq in &left_for_later {
        sqlx::query(
            "update deliveries set retry_at = $1
             where push_key = $2 and seq = $3 and (state = 'pending' or (state = 'unconfirmed' and retry_at < $1))",
        )
        .bind(later_than(now))
        .bind(push_key)
        .bind(int(*seq))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
    }
    Ok(again.iter().copied().filter(|seq| !left_for_later.contains(seq)).collect())
}

fn later_than(now: Timestamp) -> i64 {
    to_micros(now.checked_add_signed(LATER).unwrap_or(now))
}
