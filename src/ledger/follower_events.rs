//! Every coming and going that was told between walks, in the order it was accepted.
//!
//! The mark of a person ([`marks`](super::marks)) is the last word; these are all of them, so that a follow and the unfollow
//! after it are two changes. A snapshot of followers names the last one that is in it ([`SnapshotRecord`]); whoever reads it
//! lays the later ones over it. They are written with the mark, and dropped some time after a walk took them in.
//!
//! [`SnapshotRecord`]: super::SnapshotRecord

use sqlx::SqliteConnection;

use super::error::Doing;
use super::marks::NewMark;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId};

/// Somebody came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowerEvent {
    pub id: i64,
    pub openid: OpenId,
    pub active: bool,
    pub at: Timestamp,
}

/// A reader that began with the snapshot before may still ask for what the walk took in: in microseconds.
const KEPT_MICROS: i64 = 86_400_000_000;

impl Ledger {
    /// What was told of an account's followers after event `after`, oldest first. Of whom two events of one second said the
    /// opposite, nothing of that second is told until the platform was asked.
    pub async fn follower_events(&self, account: &AccountName, after: i64) -> Result<Vec<FollowerEvent>, LedgerError> {
        let rows = sqlx::query(
            "select id, openid, active, at from follower_events as e
             where account = $1 and id > $2 and not exists (
                 select 1 from follower_marks as m
                 where m.account = e.account and m.openid = e.openid and m.at = e.at and m.undecided)
             order by at, id",
        )
        .bind(account.as_str())
        .bind(after)
        .fetch_all(&self.readers)
        .await
        .doing("list who came and went")?;
        read_all(rows, |row| {
            Ok(FollowerEvent {
                id: row.read("id")?,
                openid: OpenId::new(row.text("openid")?),
                active: row.read("active")?,
                at: row.time("at")?,
            })
        })
    }

    /// Drops what every current snapshot of the account's followers has in it, and is a day older than the walk that began
    /// at `walked_at`.
    pub async fn drop_follower_events(&self, account: &AccountName, walked_at: Timestamp) -> Result<u64, LedgerError> {
        let done = sqlx::query(
            "delete from follower_events where account = $1 and at < $2 and id <= (
                 select min(events_to) from snapshots
                 where slice = $1 and events_to is not null and published_at is not null and superseded_at is null)",
        )
        .bind(account.as_str())
        .bind(to_micros(walked_at).saturating_sub(KEPT_MICROS))
        .execute(&self.writer)
        .await
        .doing("drop who came and went")?;
        Ok(done.rows_affected())
    }
}

/// Keeps a mark's event, unless the person's mark is as late or later: a repeat, or out of order.
pub(super) async fn insert(connection: &mut SqliteConnection, mark: &NewMark<'_>) -> Result<(), LedgerError> {
    const KEEP: &str = "insert into follower_events (account, openid, active, at, source)
         select $1, $2, $3, $4, $5 where not exists (
             select 1 from follower_marks where account = $1 and openid = $2 and at >= $4)";
    mark.write(connection, (KEEP, "keep who came and went")).await
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn each_coming_and_going_is_kept_once_whatever_is_repeated_or_late() {
        let house = House::new().await;
        let (ledger, main, openid) = (&house.ledger, AccountName::new("main"), OpenId::new("oABCDEFGHIJK"));
        for (active, seconds) in [(false, 10), (true, 20), (true, 20), (false, 10), (false, 15), (true, 20)] {
            match active {
                true => ledger.mark_following(&main, &openid, at(seconds), "event").await.unwrap(),
                false => ledger.mark_gone(&main, &openid, at(seconds), "event").await.unwrap(),
            }
        }
        let events = ledger.follower_events(&main, 0).await.unwrap();
        let told: Vec<_> = events.iter().map(|event| (event.active, event.at)).collect();
        assert_eq!(told, [(false, at(10)), (true, at(20))]);
        assert_eq!(ledger.follower_events(&main, events[0].id).await.unwrap(), events[1..]);
        assert_eq!(ledger.drop_follower_events(&main, at(200_000)).await.unwrap(), 0, "no snapshot has them");
    }

    #[tokio::test]
    async fn a_second_that_contradicts_itself_tells_nothing_until_it_is_decided() {
        let house = House::new().await;
        let (ledger, main, openid) = (&house.ledger, AccountName::new("main"), OpenId::new("oABCDEFGHIJK"));
        ledger.mark_following(&main, &openid, at(10), "event").await.unwrap();
        ledger.mark_gone(&main, &openid, at(10), "event").await.unwrap();
        assert_eq!(ledger.follower_events(&main, 0).await.unwrap(), []);
        let decided =
            super::super::FollowerMark { openid: openid.clone(), active: false, at: at(10), source: "asked".into() };
        ledger.decide_mark(&decided, &main).await.unwrap();
        let events = ledger.follower_events(&main, 0).await.unwrap();
        assert_eq!(events.iter().map(|event| event.active).collect::<Vec<_>>(), [true, false]);
    }
}
