//! Accounts that were moved into another one: whom to ask for, what was answered, and what the openids of before have become.
//!
//! The answers of one call and how far the list is asked go down together: that is the checkpoint. What a move changes of
//! the state itself is one transaction ([`finish`]).

mod finish;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

pub use self::finish::{FinishedMove, Touched};
use super::error::Doing;
use super::sql::{Columns, batches, int, read_all, repeated};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId, RunId};

/// An account that is or was moved.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountMove {
    pub id: i64,
    pub account: AccountName,
    pub from_app_id: String,
    pub to_app_id: String,
    /// Under which its snapshots are made; no run has it.
    pub run_id: RunId,
    /// Everybody to ask for, relative to the lake.
    pub list_path: String,
    pub people: u64,
    /// The first of the list: those who follow.
    pub followers: u64,
    /// So many of the list are answered for.
    pub asked: u64,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// What came of it, as it was told.
    pub outcome: Option<String>,
}

/// A move to begin: its list is on the disk.
#[derive(Debug, Clone)]
pub struct NewMove<'a> {
    pub account: &'a AccountName,
    pub from_app_id: &'a str,
    pub to_app_id: &'a str,
    pub run_id: &'a RunId,
    pub list_path: &'a str,
    pub people: u64,
    pub followers: u64,
}

/// What became of one openid of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedRow {
    /// On the list, from 1.
    pub place: u64,
    pub openid: OpenId,
    /// The openid of now, or why there is none.
    pub outcome: Result<OpenId, String>,
}

const SELECT: &str =
    "select id, account, from_app_id, to_app_id, run_id, list_path, people, followers, asked, started_at,
    ended_at, outcome from account_moves";
const RECORD: &str = "record what openids have become";

impl Ledger {
    /// Begins to move an account.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`]; [`LedgerError::Statement`] while another move of the account goes on.
    pub async fn begin_move(&self, lease: &Lease, new: NewMove<'_>, now: Timestamp) -> Result<(), LedgerError> {
        const DOING: &str = "begin to move an account";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query(
            "insert into account_moves (account, from_app_id, to_app_id, run_id, list_path, people, followers, started_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(new.account.as_str())
        .bind(new.from_app_id)
        .bind(new.to_app_id)
        .bind(new.run_id.as_str())
        .bind(new.list_path)
        .bind(int(new.people))
        .bind(int(new.followers))
        .bind(to_micros(now))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// The latest move of an account, over or not.
    pub async fn latest_move(&self, account: &AccountName) -> Result<Option<AccountMove>, LedgerError> {
        let sql = format!("{SELECT} where account = $1 order by id desc limit 1");
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(account.as_str())
            .fetch_optional(&self.readers)
            .await
            .doing("look up how an account was moved")?;
        row.as_ref().map(read_move).transpose()
    }

    /// The moves that are not over.
    pub async fn open_moves(&self) -> Result<Vec<AccountMove>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!("{SELECT} where ended_at is null order by account")))
            .fetch_all(&self.readers)
            .await
            .doing("list accounts that are being moved")?;
        read_all(rows, read_move)
    }

    /// Forgets a move that is not over, with its answers.
    pub async fn drop_move(&self, lease: &Lease, id: i64) -> Result<(), LedgerError> {
        const DOING: &str = "forget a move that is not over";
        self.clear_moved(lease, id).await?;
        let mut tx = self.begin_held(lease, DOING).await?;
        for sql in [
            "delete from former_openids where move_id = $1",
            "delete from account_moves where id = $1 and ended_at is null",
        ] {
            sqlx::query(sql).bind(id).execute(&mut *tx).await.doing(DOING)?;
        }
        tx.commit().await.doing(DOING)
    }

    /// Records the answers of a call: of those on the list from `asked` on, which is how far it was asked until now.
    ///
    /// # Errors
    ///
    /// [`LedgerError::OutOfStep`] when somebody else asked meanwhile; [`LedgerError::LeaseLost`].
    pub async fn record_moved(
        &self,
        lease: &Lease,
        (id, asked): (i64, u64),
        rows: &[MovedRow],
    ) -> Result<(), LedgerError> {
        let mut tx = self.begin_held_note(lease, RECORD).await?;
        let done = sqlx::query("update account_moves set asked = asked + $1 where id = $2 and asked = $3")
            .bind(int(u64::try_from(rows.len()).unwrap_or(u64::MAX)))
            .bind(id)
            .bind(int(asked))
            .execute(&mut *tx)
            .await
            .doing(RECORD)?;
        if done.rows_affected() == 0 {
            let why = format!("the list is not asked up to its place {asked}");
            return Err(LedgerError::OutOfStep { doing: RECORD, why });
        }
        for rows in batches(rows) {
            let sql = format!(
                "insert into moved_openids (move_id, place, openid, new_openid, reason) values {}",
                repeated("(?, ?, ?, ?, ?)", rows.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for row in rows {
                query = query
                    .bind(id)
                    .bind(int(row.place))
                    .bind(row.openid.as_str())
                    .bind(row.outcome.as_ref().ok().map(OpenId::as_str))
                    .bind(row.outcome.as_ref().err());
            }
            query.execute(&mut *tx).await.doing(RECORD)?;
        }
        tx.commit().await.doing(RECORD)
    }

    /// Answers of a move in the order of its list, from after a place.
    pub async fn moved(&self, id: i64, after: u64, limit: u32) -> Result<Vec<MovedRow>, LedgerError> {
        let rows = sqlx::query(
            "select place, openid, new_openid, reason from moved_openids
             where move_id = $1 and place > $2 order by place limit $3",
        )
        .bind(id)
        .bind(int(after))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .doing("read what openids have become")?;
        read_all(rows, |row| {
            let new = row.optional_text("new_openid")?.map(OpenId::new);
            let reason = row.optional_text("reason")?.unwrap_or_default();
            let (place, openid) = (row.count("place")?, OpenId::new(row.text("openid")?));
            Ok(MovedRow { place, openid, outcome: new.ok_or(reason) })
        })
    }

    /// Of those who follow, how many have no new openid, and the reason that most of them have.
    pub async fn refused_followers(&self, of: &AccountMove) -> Result<(u64, Option<String>), LedgerError> {
        let rows = sqlx::query(
            "select reason, count(*) as n from moved_openids
             where move_id = $1 and place <= $2 and new_openid is null group by reason order by n desc, reason",
        )
        .bind(of.id)
        .bind(int(of.followers))
        .fetch_all(&self.readers)
        .await
        .doing("count who has no new openid")?;
        let counts = read_all(rows, |row| Ok((row.optional_text("reason")?, row.count("n")?)))?;
        let most = counts.first().and_then(|(reason, _)| reason.clone());
        Ok((counts.iter().map(|(_, n)| n).sum(), most))
    }

    /// Removes the answers of a move, a piece at a time: nobody waits long for the ledger.
    pub async fn clear_moved(&self, lease: &Lease, id: i64) -> Result<(), LedgerError> {
        const DOING: &str = "clear away the answers of a move";
        const PIECE: i64 = 20_000;
        loop {
            let mut tx = self.begin_held_note(lease, DOING).await?;
            let done = sqlx::query(
                "delete from moved_openids where move_id = $1 and place <= $2 + (
                     select min(place) from moved_openids where move_id = $1)",
            )
            .bind(id)
            .bind(PIECE)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
            tx.commit().await.doing(DOING)?;
            if done.rows_affected() == 0 {
                return Ok(());
            }
        }
    }
}

fn read_move(row: &SqliteRow) -> Result<AccountMove, LedgerError> {
    Ok(AccountMove {
        id: row.read("id")?,
        account: AccountName::new(row.text("account")?),
        from_app_id: row.text("from_app_id")?,
        to_app_id: row.text("to_app_id")?,
        run_id: RunId::new(row.text("run_id")?),
        list_path: row.text("list_path")?,
        people: row.count("people")?,
        followers: row.count("followers")?,
        asked: row.count("asked")?,
        started_at: row.time("started_at")?,
        ended_at: row.optional_time("ended_at")?,
        outcome: row.optional_text("outcome")?,
    })
}

#[cfg(test)]
mod tests;
