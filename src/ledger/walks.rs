//! Walks over an account's followers, page by page, and fetched profiles, until both are merged into tables.
//!
//! A page's file is written first and recorded here after, so that what is recorded is there; a walk that was
//! interrupted goes on from the cursor of its last page.

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::{Columns, int, micros, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId, RunId};

/// A walk over the followers of an account.
#[derive(Debug, Clone, PartialEq)]
pub struct Walk {
    pub id: i64,
    pub account: AccountName,
    /// The run that began it; a later run may go on with it.
    pub run_id: RunId,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub merged: bool,
    /// Recorded pages; they are numbered from 1.
    pub pages: u32,
    pub openids: u64,
    /// The account's followers as WeChat counted them on the last page.
    pub total: Option<u64>,
    /// The cursor that the next page is asked with.
    pub next_openid: Option<OpenId>,
    /// How often it went back a page.
    pub restarts: u32,
}

/// A recorded page of a walk.
#[derive(Debug, Clone, PartialEq)]
pub struct WalkPage {
    pub page: u32,
    /// Its file, relative to the lake.
    pub path: String,
    pub count: u64,
    pub next_openid: Option<OpenId>,
}

/// A page to record.
#[derive(Debug, Clone)]
pub struct NewPage<'a> {
    /// From 1, one more than the last recorded.
    pub page: u32,
    pub path: &'a str,
    pub count: u64,
    pub next_openid: Option<&'a OpenId>,
    pub total: Option<u64>,
}

const SELECT: &str = "select id, account, run_id, started_at, finished_at, merged, pages, openids, total, next_openid,
    restarts from walks";

impl Ledger {
    /// Begins a walk. Its id is the time, or one more than the last: an id that was given once never means another walk,
    /// though walks are deleted and somebody may still hold it.
    pub async fn begin_walk(&self, account: &AccountName, run_id: &RunId, now: Timestamp) -> Result<Walk, LedgerError> {
        const DOING: &str = "begin a walk";
        let row = sqlx::query(
            "insert into walks (id, account, run_id, started_at)
             select case when known.last >= $3 then known.last + 1 else $3 end, $1, $2, $3
             from (select coalesce(max(id), 0) as last from walks) as known
             returning id, account, run_id, started_at, finished_at, merged, pages, openids, total, next_openid, restarts",
        )
        .bind(account.as_str())
        .bind(run_id.as_str())
        .bind(to_micros(now))
        .fetch_one(&self.notes)
        .await
        .doing(DOING)?;
        read_walk(&row)
    }

    /// The latest walk of an account that is not merged yet, finished or not.
    pub async fn open_walk(&self, account: &AccountName) -> Result<Option<Walk>, LedgerError> {
        let row =
            sqlx::query(AssertSqlSafe(format!("{SELECT} where account = $1 and not merged order by id desc limit 1")))
                .bind(account.as_str())
                .fetch_optional(&self.readers)
                .await
                .doing("look up an account's walk")?;
        row.as_ref().map(read_walk).transpose()
    }

    /// Records the next page of a walk.
    ///
    /// # Errors
    ///
    /// [`LedgerError::OutOfStep`] when it is not the next one: somebody else walks the same walk.
    pub async fn record_page(&self, walk_id: i64, new: NewPage<'_>, now: Timestamp) -> Result<(), LedgerError> {
        const DOING: &str = "record a page of a walk";
        let mut tx = self.begin_note(DOING).await?;
        let done = sqlx::query(
            "update walks set pages = $1, openids = openids + $2, total = $3, next_openid = $4
             where id = $5 and pages = $1 - 1 and finished_at is null",
        )
        .bind(new.page)
        .bind(int(new.count))
        .bind(new.total.map(int))
        .bind(new.next_openid.map(OpenId::as_str))
        .bind(walk_id)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 0 {
            let why = format!("page {} is not the next one of an unfinished walk", new.page);
            return Err(LedgerError::OutOfStep { doing: DOING, why });
        }
        sqlx::query(
            "insert into walk_pages (walk_id, page, path, openids, next_openid, recorded_at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(walk_id)
        .bind(new.page)
        .bind(new.path)
        .bind(int(new.count))
        .bind(new.next_openid.map(OpenId::as_str))
        .bind(to_micros(now))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// The recorded pages of a walk, in order.
    pub async fn walk_pages(&self, walk_id: i64) -> Result<Vec<WalkPage>, LedgerError> {
        let rows =
            sqlx::query("select page, path, openids, next_openid from walk_pages where walk_id = $1 order by page")
                .bind(walk_id)
                .fetch_all(&self.readers)
                .await
                .doing("list the pages of a walk")?;
        read_all(rows, read_page)
    }

    /// One recorded page of a walk.
    pub async fn walk_page(&self, walk_id: i64, page: u32) -> Result<Option<WalkPage>, LedgerError> {
        let row =
            sqlx::query("select page, path, openids, next_openid from walk_pages where walk_id = $1 and page = $2")
                .bind(walk_id)
                .bind(page)
                .fetch_optional(&self.readers)
                .await
                .doing("look up a page of a walk")?;
        row.as_ref().map(read_page).transpose()
    }

    /// Removes the last page of a walk, whose cursor was refused, and returns it; `None` when there is no page left.
    pub async fn step_back(&self, walk_id: i64) -> Result<Option<WalkPage>, LedgerError> {
        const DOING: &str = "take back a page of a walk";
        let mut tx = self.begin_note(DOING).await?;
        let removed = sqlx::query(
            "delete from walk_pages where walk_id = $1
                 and page = (select max(page) from walk_pages where walk_id = $1)
             returning page, path, openids, next_openid",
        )
        .bind(walk_id)
        .fetch_optional(&mut *tx)
        .await
        .doing(DOING)?;
        let Some(removed) = removed.as_ref().map(read_page).transpose()? else { return Ok(None) };
        sqlx::query(
            "update walks set pages = pages - 1, openids = openids - $1, restarts = restarts + 1, finished_at = null,
                 next_openid = (select next_openid from walk_pages where walk_id = $2 and page = walks.pages - 1)
             where id = $2",
        )
        .bind(int(removed.count))
        .bind(walk_id)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(Some(removed))
    }

    /// Marks that a walk has reached the end.
    pub async fn finish_walk(&self, walk_id: i64, now: Timestamp) -> Result<(), LedgerError> {
        sqlx::query("update walks set finished_at = $1 where id = $2 and finished_at is null")
            .bind(micros(Some(now)))
            .bind(walk_id)
            .execute(&self.notes)
            .await
            .doing("finish a walk")?;
        Ok(())
    }

    /// Marks that a finished walk is in the tables; its page files may go. Older walks of the account are merged with it.
    pub async fn merge_walk(&self, walk_id: i64) -> Result<(), LedgerError> {
        sqlx::query(
            "update walks set merged = true
             where id <= $1 and account = (select account from walks as merged_walk where merged_walk.id = $1)",
        )
        .bind(walk_id)
        .execute(&self.notes)
        .await
        .doing("mark a walk as merged")?;
        Ok(())
    }

    /// Forgets a walk and its pages.
    pub async fn drop_walk(&self, walk_id: i64) -> Result<(), LedgerError> {
        sqlx::query("delete from walks where id = $1").bind(walk_id).execute(&self.notes).await.doing("drop a walk")?;
        Ok(())
    }

    /// Remembers a file of fetched profiles that no table holds yet. Its id is made as that of a walk.
    pub async fn record_profile_part(
        &self,
        account: &AccountName,
        path: &str,
        rows: u64,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into profile_parts (id, account, path, row_count, recorded_at)
             select case when known.last >= $4 then known.last + 1 else $4 end, $1, $2, $3, $4
             from (select coalesce(max(id), 0) as last from profile_parts) as known
             where true
             on conflict (account, path) do nothing",
        )
        .bind(account.as_str())
        .bind(path)
        .bind(int(rows))
        .bind(to_micros(now))
        .execute(&self.notes)
        .await
        .doing("record fetched profiles")?;
        Ok(())
    }

    /// The files of fetched profiles that no table holds yet, oldest first: their ids and paths.
    pub async fn profile_parts(&self, account: &AccountName) -> Result<Vec<(i64, String)>, LedgerError> {
        let rows = sqlx::query("select id, path from profile_parts where account = $1 order by id")
            .bind(account.as_str())
            .fetch_all(&self.readers)
            .await
            .doing("list fetched profiles")?;
        read_all(rows, |row| Ok((row.read("id")?, row.text("path")?)))
    }

    /// Forgets files of fetched profiles that are merged.
    pub async fn drop_profile_parts(&self, ids: &[i64]) -> Result<(), LedgerError> {
        const DOING: &str = "forget fetched profiles";
        let mut tx = self.begin_note(DOING).await?;
        for id in ids {
            sqlx::query("delete from profile_parts where id = $1").bind(id).execute(&mut *tx).await.doing(DOING)?;
        }
        tx.commit().await.doing(DOING)
    }
}

fn read_walk(row: &SqliteRow) -> Result<Walk, LedgerError> {
    Ok(Walk {
        id: row.read("id")?,
        account: AccountName::new(row.text("account")?),
        run_id: RunId::new(row.text("run_id")?),
        started_at: row.time("started_at")?,
        finished_at: row.optional_time("finished_at")?,
        merged: row.read("merged")?,
        pages: row.read("pages")?,
        openids: row.count("openids")?,
        total: row.optional_count("total")?,
        next_openid: row.optional_text("next_openid")?.map(OpenId::new),
        restarts: row.read("restarts")?,
    })
}

fn read_page(row: &SqliteRow) -> Result<WalkPage, LedgerError> {
    Ok(WalkPage {
        page: row.read("page")?,
        path: row.text("path")?,
        count: row.count("openids")?,
        next_openid: row.optional_text("next_openid")?.map(OpenId::new),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn page<'a>(page: u32, path: &'a str, next: Option<&'a OpenId>) -> NewPage<'a> {
        NewPage { page, path, count: 10_000, next_openid: next, total: Some(25_000) }
    }

    #[tokio::test]
    async fn an_interrupted_walk_goes_on_from_its_last_page_and_steps_back_over_a_refused_cursor() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let walk = ledger.begin_walk(&main, &RunId::new("r1"), at(0)).await.unwrap();
        let (first, second) = (OpenId::new("oFIRSTFIRSTFIRST"), OpenId::new("oSECONDSECOND"));
        ledger.record_page(walk.id, page(1, "p1", Some(&first)), at(1)).await.unwrap();
        ledger.record_page(walk.id, page(2, "p2", Some(&second)), at(2)).await.unwrap();
        let twice = ledger.record_page(walk.id, page(2, "p2", Some(&second)), at(2)).await.unwrap_err();
        assert!(matches!(twice, LedgerError::OutOfStep { .. }), "{twice}");

        let open = ledger.open_walk(&main).await.unwrap().unwrap();
        assert_eq!((open.pages, open.openids, open.next_openid), (2, 20_000, Some(second)));
        assert_eq!(ledger.step_back(walk.id).await.unwrap().unwrap().path, "p2");
        let open = ledger.open_walk(&main).await.unwrap().unwrap();
        assert_eq!((open.pages, open.openids, open.next_openid), (1, 10_000, Some(first)));
        assert_eq!(open.restarts, 1);
        ledger.step_back(walk.id).await.unwrap();
        assert_eq!(ledger.step_back(walk.id).await.unwrap(), None);
        assert_eq!(ledger.open_walk(&main).await.unwrap().unwrap().next_openid, None);
    }

    #[tokio::test]
    async fn a_merged_walk_is_not_open_and_a_dropped_one_is_gone_with_its_pages() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let walk = ledger.begin_walk(&main, &RunId::new("r1"), at(0)).await.unwrap();
        ledger.record_page(walk.id, page(1, "p1", None), at(1)).await.unwrap();
        ledger.finish_walk(walk.id, at(2)).await.unwrap();
        assert_eq!(ledger.open_walk(&main).await.unwrap().unwrap().finished_at, Some(at(2)));
        ledger.merge_walk(walk.id).await.unwrap();
        assert_eq!(ledger.open_walk(&main).await.unwrap(), None);
        ledger.drop_walk(walk.id).await.unwrap();
        assert!(ledger.walk_pages(walk.id).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn fetched_profiles_are_remembered_once_until_merged() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        for path in ["a", "b", "a"] {
            ledger.record_profile_part(&main, path, 100, at(0)).await.unwrap();
        }
        let parts = ledger.profile_parts(&main).await.unwrap();
        assert_eq!(parts.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        ledger.drop_profile_parts(&[parts[0].0]).await.unwrap();
        assert_eq!(ledger.profile_parts(&main).await.unwrap(), parts[1..]);
    }
}
