//! What was learnt of single followers between two walks: by an event or by a send that was refused. A walk that began
//! later knows better; its marks are dropped then. Two events of one second that contradict each other leave a mark that
//! says nothing until the platform is asked.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::sql::{Columns, batches, read_all, repeated};
use super::{Ledger, LedgerError, follower_events};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId, UnionId};

/// Times of events are whole seconds, rounded down.
const SECOND_MICROS: i64 = 1_000_000;

/// What is known of a follower since the last walk.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowerMark {
    pub openid: OpenId,
    pub active: bool,
    pub at: Timestamp,
    /// `send`, `event`, or `asked` where the platform was asked.
    pub source: String,
}

/// A mark to keep.
pub(super) struct NewMark<'a> {
    pub(super) account: &'a AccountName,
    pub(super) openid: &'a OpenId,
    pub(super) is_active: bool,
    pub(super) at: Timestamp,
    pub(super) source: &'a str,
}

impl NewMark<'_> {
    /// Runs a statement of ours whose $1 to $5 are account, openid, whether they follow, when, and who said so.
    pub(super) async fn write(
        &self,
        connection: &mut SqliteConnection,
        (statement, doing): (&'static str, &'static str),
    ) -> Result<(), LedgerError> {
        sqlx::query(statement)
            .bind(self.account.as_str())
            .bind(self.openid.as_str())
            .bind(self.is_active)
            .bind(to_micros(self.at))
            .bind(self.source)
            .execute(connection)
            .await
            .doing(doing)?;
        Ok(())
    }
}

impl Ledger {
    /// Those of `ids` whom an event named.
    pub async fn marked(&self, ids: &[String]) -> Result<Vec<String>, LedgerError> {
        let mut found = Vec::new();
        for ids in batches(ids) {
            let marks = repeated("?", ids.len());
            let sql = format!("select distinct openid from follower_marks where openid in ({marks})");
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for id in ids {
                query = query.bind(id);
            }
            let rows = query.fetch_all(&self.readers).await.doing("look up whom events named")?;
            found.extend(read_all(rows, |row| row.text("openid"))?);
        }
        Ok(found)
    }

    /// Remembers that somebody no longer follows.
    pub async fn mark_gone(
        &self,
        account: &AccountName,
        openid: &OpenId,
        at: Timestamp,
        source: &str,
    ) -> Result<(), LedgerError> {
        self.mark(&NewMark { account, openid, is_active: false, at, source }).await
    }

    /// Remembers that somebody follows (again).
    pub async fn mark_following(
        &self,
        account: &AccountName,
        openid: &OpenId,
        at: Timestamp,
        source: &str,
    ) -> Result<(), LedgerError> {
        self.mark(&NewMark { account, openid, is_active: true, at, source }).await
    }

    async fn mark(&self, mark: &NewMark<'_>) -> Result<(), LedgerError> {
        const DOING: &str = "mark a follower";
        let mut tx = self.begin(DOING).await?;
        upsert(&mut tx, mark).await?;
        tx.commit().await.doing(DOING)
    }

    /// The marks of an account that a walk begun at `since` does not know better than, by openid. Times of events are whole
    /// seconds, rounded down: one of the second in which it began is later.
    pub async fn follower_marks(
        &self,
        account: &AccountName,
        since: Timestamp,
    ) -> Result<Vec<FollowerMark>, LedgerError> {
        let rows = sqlx::query(
            "select openid, active, at, source from follower_marks
             where account = $1 and at > $2 and not undecided order by openid",
        )
        .bind(account.as_str())
        .bind(to_micros(since).saturating_sub(SECOND_MICROS))
        .fetch_all(&self.readers)
        .await
        .doing("list the marks of followers")?;
        read_all(rows, |row| {
            Ok(FollowerMark {
                openid: OpenId::new(row.text("openid")?),
                active: row.read("active")?,
                at: row.time("at")?,
                source: row.text("source")?,
            })
        })
    }

    /// People of whom two events of one second said the opposite, as (account, openid, when).
    pub async fn undecided_marks(&self, limit: u32) -> Result<Vec<(AccountName, OpenId, Timestamp)>, LedgerError> {
        let rows = sqlx::query("select account, openid, at from follower_marks where undecided order by at limit $1")
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .doing("list undecided followers")?;
        read_all(rows, |row| {
            Ok((AccountName::new(row.text("account")?), OpenId::new(row.text("openid")?), row.time("at")?))
        })
    }

    /// Writes what the platform said of somebody undecided, unless a later event has said more since.
    pub async fn decide_mark(&self, decided: &FollowerMark, account: &AccountName) -> Result<(), LedgerError> {
        const DOING: &str = "decide whether somebody follows";
        let mut tx = self.begin(DOING).await?;
        let FollowerMark { openid, active, at, source } = decided;
        let mark = NewMark { account, openid, is_active: *active, at: *at, source };
        for statement in [
            "insert into follower_events (account, openid, active, at, source)
             select account, openid, $3, at, $5 from follower_marks
             where account = $1 and openid = $2 and at = $4 and undecided",
            "update follower_marks set active = $3, source = $5, undecided = false
             where account = $1 and openid = $2 and at = $4 and undecided",
        ] {
            mark.write(&mut tx, (statement, DOING)).await?;
        }
        tx.commit().await.doing(DOING)
    }

    /// Drops the marks of an account that a walk begun at `before`, now in the tables, knows better than.
    pub async fn drop_follower_marks(&self, account: &AccountName, before: Timestamp) -> Result<u64, LedgerError> {
        let done = sqlx::query("delete from follower_marks where account = $1 and at <= $2")
            .bind(account.as_str())
            .bind(to_micros(before).saturating_sub(SECOND_MICROS))
            .execute(&self.writer)
            .await
            .doing("drop the marks of followers")?;
        Ok(done.rows_affected())
    }
}

/// Keeps a mark unless a later one is there: events may come out of order. One of the same moment that says the opposite
/// makes it undecided, in whichever order they come and however often; what the platform was asked for stays.
pub(super) async fn upsert(connection: &mut SqliteConnection, mark: &NewMark<'_>) -> Result<(), LedgerError> {
    const MARK: &str = "insert into follower_marks (account, openid, active, at, source) values ($1, $2, $3, $4, $5)
         on conflict (account, openid) do update set active = excluded.active, at = excluded.at,
             source = excluded.source,
             undecided = excluded.at = follower_marks.at
                 and (follower_marks.undecided or excluded.active <> follower_marks.active)
         where excluded.at > follower_marks.at
             or (excluded.at = follower_marks.at and follower_marks.source <> 'asked')";
    follower_events::insert(connection, mark).await?;
    mark.write(connection, (MARK, "mark a follower")).await
}

/// Adds those of `people` that are marked as gone.
pub(super) async fn gone(
    connection: &mut SqliteConnection,
    account: &AccountName,
    people: &[(&OpenId, Option<&UnionId>)],
    blocked: &mut HashMap<OpenId, String>,
) -> Result<(), LedgerError> {
    for people in batches(people) {
        let sql = format!(
            "select openid from follower_marks where not active and not undecided and account = ? and openid in ({})",
            repeated("?", people.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(account.as_str());
        for (openid, _) in people {
            query = query.bind(openid.as_str());
        }
        for row in query.fetch_all(&mut *connection).await.doing("look up who is gone")? {
            blocked.insert(OpenId::new(row.text("openid")?), "unfollowed".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::TemplateId;

    #[tokio::test]
    async fn the_latest_mark_of_a_follower_counts_until_a_later_walk() {
        let house = House::new().await;
        let (ledger, main, openid) = (&house.ledger, AccountName::new("main"), OpenId::new("oABCDEFGHIJK"));
        let blocked = async || {
            let asked = [(&openid, None)];
            ledger.blocked_now(&main, &TemplateId::new("t"), &asked, at(99)).await.unwrap().len()
        };
        ledger.mark_following(&main, &openid, at(10), "event").await.unwrap();
        ledger.mark_gone(&main, &openid, at(5), "event").await.unwrap();
        assert_eq!(blocked().await, 0);
        ledger.mark_gone(&main, &openid, at(20), "send").await.unwrap();
        assert_eq!(blocked().await, 1);
        assert_eq!(ledger.follower_marks(&main, at(20)).await.unwrap()[0].source, "send");
        assert_eq!(ledger.drop_follower_marks(&main, at(20)).await.unwrap(), 0);
        assert_eq!(ledger.drop_follower_marks(&main, at(21)).await.unwrap(), 1);
        assert_eq!(blocked().await, 0);
    }

    #[tokio::test]
    async fn two_events_of_one_second_decide_nothing_until_somebody_asks() {
        for order in [[true, false], [false, true]] {
            let house = House::new().await;
            let (ledger, main, openid) = (&house.ledger, AccountName::new("main"), OpenId::new("oABCDEFGHIJK"));
            let tell = async |active: bool, seconds| match active {
                true => ledger.mark_following(&main, &openid, at(seconds), "event").await.unwrap(),
                false => ledger.mark_gone(&main, &openid, at(seconds), "event").await.unwrap(),
            };
            for active in [order[0], order[1], order[0]] {
                tell(active, 10).await;
            }
            assert_eq!(ledger.undecided_marks(9).await.unwrap(), [(main.clone(), openid.clone(), at(10))]);
            assert_eq!(ledger.follower_marks(&main, at(0)).await.unwrap(), []);
            let asked = FollowerMark { openid: openid.clone(), active: false, at: at(10), source: "asked".into() };
            ledger.decide_mark(&asked, &main).await.unwrap();
            tell(true, 10).await;
            assert_eq!(ledger.follower_marks(&main, at(0)).await.unwrap(), [asked]);
            tell(true, 11).await;
            assert!(ledger.follower_marks(&main, at(0)).await.unwrap()[0].active);
            assert_eq!(ledger.undecided_marks(9).await.unwrap(), []);
        }
    }
}
