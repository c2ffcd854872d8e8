//! Walks over an account's followers, part by part, and fetched profiles, until both are merged into tables.
//!
//! A part is one page of the list or several. Its file is written first and recorded here after, so that what is recorded is
//! there; a walk that was interrupted goes on from the cursor of its last page.

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

/// Recorded pages of a walk that are one file.
#[derive(Debug, Clone, PartialEq)]
pub struct WalkPart {
    /// The number of its last page; its first one comes after the last of the part before.
    pub last_page: u32,
    /// Its file, relative to the lake.
    pub path: String,
    pub openids: u64,
    /// The cursor after its last page.
    pub next_openid: Option<OpenId>,
}

/// A part to record.
#[derive(Debug, Clone)]
pub struct NewWalkPart<'a> {
    /// From 1, one more than the last recorded.
    pub first_page: u32,
    pub last_page: u32,
    pub path: &'a str,
    pub openids: u64,
    /// As the last page says.
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

    /// Records the next part of a walk.
    ///
    /// # Errors
    ///
    /// [`LedgerError::OutOfStep`] when it is not the next one: somebody else walks the same walk.
    pub async fn record_walk_part(
        &self,
        walk_id: i64,
        new: NewWalkPart<'_>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "record pages of a walk";
        let mut tx = self.begin_note(DOING).await?;
        let done = sqlx::query(
            "update walks set pages = $1, openids = openids + $2, total = $3, next_openid = $4
             where id = $5 and pages = $6 - 1 and finished_at is null",
        )
        .bind(new.last_page)
        .bind(int(new.openids))
        .bind(new.total.map(int))
        .bind(new.next_openid.map(OpenId::as_str))
        .bind(walk_id)
        .bind(new.first_page)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 0 {
            let why = format!("page {} is not the next one of an unfinished walk", new.first_page);
            return Err(LedgerError::OutOfStep { doing: DOING, why });
        }
        sqlx::query(
            "insert into walk_pages (walk_id, page, path, openids, next_openid, recorded_at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(walk_id)
        .bind(new.last_page)
        .bind(new.path)
        .bind(int(new.openids))
        .bind(new.next_openid.map(OpenId::as_str))
        .bind(to_micros(now))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// The recorded parts of a walk, in order.
    pub async fn walk_parts(&self, walk_id: i64) -> Result<Vec<WalkPart>, LedgerError> {
        let rows =
            sqlx::query("select page, path, openids, next_openid from walk_pages where walk_id = $1 order by page")
                .bind(walk_id)
                .fetch_all(&self.readers)
                .await
                .doing("list the pages of a walk")?;
        read_all(rows, read_part)
    }

    /// The recorded part of a walk that has the page after `page`.
    pub async fn walk_part_after(&self, walk_id: i64, page: u32) -> Result<Option<WalkPart>, LedgerError> {
        let row = sqlx::query(
            "select page, path, openids, next_openid from walk_pages where walk_id = $1 and page > $2
             order by page limit 1",
        )
        .bind(walk_id)
        .bind(page)
        .fetch_optional(&self.readers)
        .await
        .doing("look up a page of a walk")?;
        row.as_ref().map(read_part).transpose()
    }

    /// Removes the last part of a walk and returns it; `None` when there is no part left.
    pub async fn step_back(&self, walk_id: i64) -> Result<Option<WalkPart>, LedgerError> {
        const DOING: &str = "take back pages of a walk";
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
        let Some(removed) = removed.as_ref().map(read_part).transpose()? else { return Ok(None) };
        sqlx::query(
            "update walks set openids = openids - $1, restarts = restarts + 1, finished_at = null,
                 (pages, next_openid) = (
                     select coalesce(max(page), 0), next_openid from walk_pages where walk_id = $2)
             where id = $2",
        )
        .bind(int(removed.openids))
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

fn read_part(row: &SqliteRow) -> Result<WalkPart, LedgerError> {
    Ok(WalkPart {
        last_page: row.read("page")?,
        path: row.text("path")?,
        openids: row.count("openids")?,
        next_openid: row.optional_text("next_openid")?.map(OpenId::new),
    })
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::super::testing::*;
    use super::*;

    /// Pages of ten thousand.
    fn part<'a>(pages: RangeInclusive<u32>, path: &'a str, next: Option<&'a OpenId>) -> NewWalkPart<'a> {
        let (first_page, last_page) = (*pages.start(), *pages.end());
        let openids = u64::try_from(pages.count()).unwrap() * 10_000;
        NewWalkPart { first_page, last_page, path, openids, next_openid: next, total: Some(75_000) }
    }

    #[tokio::test]
    async fn an_interrupted_walk_goes_on_from_its_last_page_and_steps_back_over_a_refused_cursor() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let walk = ledger.begin_walk(&main, &RunId::new("r1"), at(0)).await.unwrap();
        let (first, second) = (OpenId::new("oFIRSTFIRSTFIRST"), OpenId::new("oSECONDSECOND"));
        ledger.record_walk_part(walk.id, part(1..=2, "p1", Some(&first)), at(1)).await.unwrap();
        ledger.record_walk_part(walk.id, part(3..=7, "p3", Some(&second)), at(2)).await.unwrap();
        for late in [part(3..=7, "p3", Some(&second)), part(7..=8, "p7", None), part(9..=9, "p9", None)] {
            let error = ledger.record_walk_part(walk.id, late, at(2)).await.unwrap_err();
            assert!(matches!(error, LedgerError::OutOfStep { .. }), "{error}");
        }
        let after =
            |page| async move { ledger.walk_part_after(walk.id, page).await.unwrap().map(|part| part.last_page) };
        let parts = [after(0).await, after(1).await, after(2).await, after(6).await, after(7).await];
        assert_eq!(parts, [Some(2), Some(2), Some(7), Some(7), None]);

        let open = ledger.open_walk(&main).await.unwrap().unwrap();
        assert_eq!((open.pages, open.openids, open.next_openid), (7, 70_000, Some(second)));
        assert_eq!(ledger.step_back(walk.id).await.unwrap().unwrap().path, "p3");
        let open = ledger.open_walk(&main).await.unwrap().unwrap();
        assert_eq!((open.pages, open.openids, open.next_openid), (2, 20_000, Some(first)));
        assert_eq!(open.restarts, 1);
        ledger.step_back(walk.id).await.unwrap();
        assert_eq!(ledger.step_back(walk.id).await.unwrap(), None);
        let open = ledger.open_walk(&main).await.unwrap().unwrap();
        assert_eq!((open.pages, open.openids, open.next_openid), (0, 0, None));
    }

    #[tokio::test]
    async fn a_merged_walk_is_not_open_and_a_dropped_one_is_gone_with_its_pages() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let walk = ledger.begin_walk(&main, &RunId::new("r1"), at(0)).await.unwrap();
        ledger.record_walk_part(walk.id, part(1..=1, "p1", None), at(1)).await.unwrap();
        ledger.finish_walk(walk.id, at(2)).await.unwrap();
        assert_eq!(ledger.open_walk(&main).await.unwrap().unwrap().finished_at, Some(at(2)));
        ledger.merge_walk(walk.id).await.unwrap();
        assert_eq!(ledger.open_walk(&main).await.unwrap(), None);
        ledger.drop_walk(walk.id).await.unwrap();
        assert!(ledger.walk_parts(walk.id).await.unwrap().is_empty());
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
