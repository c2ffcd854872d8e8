//! The end of a move: its tables become current and the ledger's own rows get their new openids, in one transaction. Which
//! rows those are is looked up before, piece by piece: the transaction is short whatever the number of followers.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::super::deliveries::index_openids;
use super::super::error::Doing;
use super::super::sql::{Columns, batches, read_all, repeated};
use super::super::{AuditEntry, Lease, Ledger, LedgerError, Order, audit, snapshots, suppressions};
use super::{AccountMove, MovedRow};
use crate::clock::to_micros;
use crate::crash::{self, CrashPoint};
use crate::domain::{AccountName, OpenId, UnionId};

/// Those of a move's answers whom the ledger names: in suppressions, and in what events told.
#[derive(Debug, Default)]
pub struct Touched {
    /// The openid of before, and that of now.
    pub moved: Vec<(OpenId, OpenId)>,
    pub refused: Vec<OpenId>,
}

/// A move that is to end.
#[derive(Debug, Clone, Copy)]
pub struct FinishedMove<'a> {
    pub of: &'a AccountMove,
    pub touched: &'a Touched,
    /// Of the refused, those whose unionid is known: what holds for their openid has to hold for whatever openid they come
    /// back with.
    pub unionids: &'a HashMap<OpenId, UnionId>,
    /// What came of it, as it is told.
    pub outcome: &'a str,
    /// For the audit.
    pub detail: &'a str,
}

const DOING: &str = "end the move of an account";
/// Who says of a person that they are gone.
const SOURCE: &str = "migration";

impl Ledger {
    /// Looks up whom of these answers the ledger names, and keeps the openids by which messages of before are found
    /// (`former_openids`); the same again changes nothing.
    pub async fn touched_by_move(
        &self,
        lease: &Lease,
        of: &AccountMove,
        (rows, touched): (&[MovedRow], &mut Touched),
    ) -> Result<(), LedgerError> {
        let mut tx = self.begin_held_note(lease, DOING).await?;
        index_openids(&mut tx).await?;
        for rows in batches(rows) {
            keep_former(&mut tx, of, rows).await?;
            let named = named(&mut tx, &of.account, rows).await?;
            for row in rows.iter().filter(|row| named.contains(row.openid.as_str())) {
                match &row.outcome {
                    Ok(new) => touched.moved.push((row.openid.clone(), new.clone())),
                    Err(_) => touched.refused.push(row.openid.clone()),
                }
            }
        }
        tx.commit().await.doing(DOING)
    }

    /// Publishes what the move made and gives the ledger's rows their new openids; walks and profiles that no table holds
    /// yet are of the openids of before, and forgotten. Gives how many suppressions were moved.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`]; nothing is changed then.
    pub async fn finish_move(
        &self,
        lease: &Lease,
        done: FinishedMove<'_>,
        order: Order<'_>,
    ) -> Result<u64, LedgerError> {
        let account = &done.of.account;
        let mut tx = self.begin_held(lease, DOING).await?;
        snapshots::move_pointers(&mut tx, &done.of.run_id, order.at).await?;
        let mut suppressions = 0;
        for pairs in batches(&done.touched.moved) {
            suppressions += move_suppressions(&mut tx, account, pairs).await?;
            move_marks(&mut tx, account, pairs).await?;
        }
        for openid in &done.touched.refused {
            if let Some(unionid) = done.unionids.get(openid) {
                suppressions += suppress_by_unionid(&mut tx, account, (openid, unionid)).await?;
            }
            mark_gone(&mut tx, account, (openid, order)).await?;
        }
        for sql in [
            "delete from walks where account = $1 and not merged",
            "delete from profile_parts where account = $1",
            "delete from meta where key = 'in_doubt:' || $1",
        ] {
            sqlx::query(sql).bind(account.as_str()).execute(&mut *tx).await.doing(DOING)?;
        }
        sqlx::query("update account_moves set ended_at = $1, outcome = $2 where id = $3 and ended_at is null")
            .bind(to_micros(order.at))
            .bind(done.outcome)
            .bind(done.of.id)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        let entry = AuditEntry {
            at: order.at,
            who: order.who.to_owned(),
            command: "migrate".to_owned(),
            run_id: None,
            detail: done.detail.to_owned(),
        };
        audit::insert(&mut tx, &entry).await?;
        crash::pass(CrashPoint::BeforePublishCommit);
        tx.commit().await.doing(DOING)?;
        crash::pass(CrashPoint::AfterPublishCommit);
        Ok(suppressions)
    }
}

/// The openids that messages without a unionid went to, also those of earlier moves.
async fn keep_former(tx: &mut SqliteConnection, of: &AccountMove, rows: &[MovedRow]) -> Result<(), LedgerError> {
    let moved = |row: &MovedRow| row.outcome.clone().ok().map(|new| (row.openid.clone(), new));
    let pairs: Vec<(OpenId, OpenId)> = rows.iter().filter_map(moved).collect();
    for pairs in batches(&pairs) {
        for tail in [
            "select m.new, m.old, ?, ? from m where exists (
                 select 1 from deliveries as d where d.openid = m.old and d.unionid is null)",
            // Without a WHERE the ON CONFLICT would be read as a condition of the join.
            "select m.new, f.openid, ?, ? from m join former_openids as f on f.new_openid = m.old where true",
        ] {
            let sql = format!(
                "with m (old, new) as (values {}) insert into former_openids (new_openid, openid, account, move_id) {tail}
                 on conflict do nothing",
                repeated("(?, ?)", pairs.len())
            );
            let query = bound(sqlx::query(AssertSqlSafe(sql)), pairs).bind(of.account.as_str()).bind(of.id);
            query.execute(&mut *tx).await.doing(DOING)?;
        }
    }
    Ok(())
}

type Query<'a> = sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bound<'a>(mut query: Query<'a>, pairs: &'a [(OpenId, OpenId)]) -> Query<'a> {
    for (old, new) in pairs {
        query = query.bind(old.as_str()).bind(new.as_str());
    }
    query
}

/// Those of `rows` whom a suppression or an event names.
async fn named(
    tx: &mut SqliteConnection,
    account: &AccountName,
    rows: &[MovedRow],
) -> Result<std::collections::HashSet<String>, LedgerError> {
    let sql = format!(
        "with m (old) as (values {})
         select old from m
         where exists (select 1 from suppressions as s where s.openid = m.old and (s.account is null or s.account = ?))
             or exists (select 1 from follower_marks as f where f.account = ? and f.openid = m.old)
             or exists (select 1 from follower_events as e where e.openid = m.old)",
        repeated("(?)", rows.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for row in rows {
        query = query.bind(row.openid.as_str());
    }
    let found = query.bind(account.as_str()).bind(account.as_str()).fetch_all(&mut *tx).await.doing(DOING)?;
    Ok(read_all(found, |row| row.text("old"))?.into_iter().collect())
}

/// Runs a statement over the pairs `m (old, new)` whose other parameters are all the account.
async fn with_pairs(
    tx: &mut SqliteConnection,
    (statement, accounts): (&str, usize),
    (account, pairs): (&AccountName, &[(OpenId, OpenId)]),
) -> Result<u64, LedgerError> {
    let sql = format!("with m (old, new) as (values {}) {statement}", repeated("(?, ?)", pairs.len()));
    let mut query = bound(sqlx::query(AssertSqlSafe(sql)), pairs);
    for _ in 0..accounts {
        query = query.bind(account.as_str());
    }
    Ok(query.execute(&mut *tx).await.doing(DOING)?.rows_affected())
}

async fn move_suppressions(
    tx: &mut SqliteConnection,
    account: &AccountName,
    pairs: &[(OpenId, OpenId)],
) -> Result<u64, LedgerError> {
    const MOVE: &str = "update suppressions set openid = m.new from m
         where suppressions.openid = m.old and (suppressions.account is null or suppressions.account = ?)";
    with_pairs(tx, (MOVE, 1), (account, pairs)).await
}

/// The later mark of a person stays, whichever account's event it is of.
async fn move_marks(
    tx: &mut SqliteConnection,
    account: &AccountName,
    pairs: &[(OpenId, OpenId)],
) -> Result<(), LedgerError> {
    for statement in [
        ("update follower_events set openid = m.new from m where account = ? and openid = m.old", 1),
        (
            "delete from follower_marks where account = ? and exists (
                 select 1 from m join follower_marks as newer on newer.account = ? and newer.openid = m.new
                 where m.old = follower_marks.openid and newer.at >= follower_marks.at)",
            2,
        ),
        (
            "delete from follower_marks where account = ? and exists (
                 select 1 from m join follower_marks as older on older.account = ? and older.openid = m.old
                 where m.new = follower_marks.openid)",
            2,
        ),
        ("update follower_marks set openid = m.new from m where account = ? and openid = m.old", 1),
    ] {
        with_pairs(tx, statement, (account, pairs)).await?;
    }
    Ok(())
}

/// Suppressions of an openid that nobody has any more, once more for the person's unionid.
async fn suppress_by_unionid(
    tx: &mut SqliteConnection,
    account: &AccountName,
    (openid, unionid): (&OpenId, &UnionId),
) -> Result<u64, LedgerError> {
    let done = sqlx::query(
        "insert into suppressions (unionid, openid, account, template_id, reason, since, until)
         select $1, null, $2, template_id, reason, since, until from suppressions as own
         where openid = $3 and (account is null or account = $2) and reason <> $4 and not exists (
             select 1 from suppressions as known
             where known.unionid = $1 and known.openid is null and coalesce(known.account, $2) = $2
                 and coalesce(known.template_id, '') = coalesce(own.template_id, ''))",
    )
    .bind(unionid.as_str())
    .bind(account.as_str())
    .bind(openid.as_str())
    // The account of now has a blacklist of its own.
    .bind(suppressions::BLACKLISTED)
    .execute(tx)
    .await
    .doing(DOING)?;
    Ok(done.rows_affected())
}

/// An event after the last walk said that the person follows; the account of now does not know the person.
async fn mark_gone(
    tx: &mut SqliteConnection,
    account: &AccountName,
    (openid, order): (&OpenId, Order<'_>),
) -> Result<(), LedgerError> {
    for sql in [
        "insert into follower_events (account, openid, active, at, source)
         select account, openid, false, $3, $4 from follower_marks where account = $1 and openid = $2 and active",
        "update follower_marks set active = false, at = $3, source = $4, undecided = false
         where account = $1 and openid = $2 and active",
    ] {
        sqlx::query(sql)
            .bind(account.as_str())
            .bind(openid.as_str())
            .bind(to_micros(order.at))
            .bind(SOURCE)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
    }
    Ok(())
}
