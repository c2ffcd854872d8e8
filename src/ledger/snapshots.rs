//! Which snapshots of the lake's tables there are, and which of them are current.
//!
//! A snapshot belongs to a table and a slice of it (an account, a mini program, or `''` for a table without slices).
//! A run stages snapshots one by one; publishing makes all of them current at once. Not here: the files.

use std::collections::BTreeSet;

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::sql::{Columns, int, read_all, to_json};
use super::{Lease, Ledger, LedgerError, kept, meta};
use crate::clock::{Timestamp, to_micros};
use crate::crash::{self, CrashPoint};
use crate::domain::{RunId, StageName, TableName};

/// A snapshot of a slice of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRecord {
    pub id: String,
    pub table: TableName,
    pub slice: String,
    pub run_id: RunId,
    pub stage: StageName,
    pub as_of: Timestamp,
    pub rows: u64,
    pub bytes: u64,
    /// Paths relative to the lake.
    pub parts: Vec<String>,
    /// Names and DuckDB types, in order.
    pub columns: Vec<(String, String)>,
    pub source_hash: Option<String>,
    pub made_at: Timestamp,
    pub fence: i64,
    /// Of a table of followers: the last of [`FollowerEvent`](super::FollowerEvent)s that is in it.
    pub events_to: Option<i64>,
    /// Of a table of followers: the account's app id when they were walked, where it is known. Their openids are of that one.
    pub app_id: Option<String>,
}

pub(super) const SELECT: &str = "select id, table_name, slice, run_id, stage, as_of, row_count, bytes, parts, columns,
    source_hash, made_at, fence, events_to, app_id from snapshots";

impl Ledger {
    /// Stages a snapshot that is complete on disk. An earlier staged one of the same run, table and slice becomes
    /// droppable.
    pub async fn record_snapshot(&self, lease: &Lease, record: &SnapshotRecord) -> Result<(), LedgerError> {
        const DOING: &str = "record a snapshot";
        let mut tx = self.begin_held_note(lease, DOING).await?;
        sqlx::query(
            "update snapshots set superseded_at = $1
             where run_id = $2 and table_name = $3 and slice = $4 and published_at is null and superseded_at is null",
        )
        .bind(to_micros(record.made_at))
        .bind(record.run_id.as_str())
        .bind(record.table.as_str())
        .bind(&record.slice)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        sqlx::query(
            "insert into snapshots (id, table_name, slice, run_id, stage, as_of, row_count, bytes, parts, columns,
                 source_hash, made_at, fence, events_to, app_id)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(&record.id)
        .bind(record.table.as_str())
        .bind(&record.slice)
        .bind(record.run_id.as_str())
        .bind(record.stage.as_str())
        .bind(to_micros(record.as_of))
        .bind(int(record.rows))
        .bind(int(record.bytes))
        .bind(to_json(&record.parts))
        .bind(to_json(&record.columns))
        .bind(&record.source_hash)
        .bind(to_micros(record.made_at))
        .bind(record.fence)
        .bind(record.events_to)
        .bind(&record.app_id)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// Every snapshot that was not dropped: current, superseded and staged.
    pub async fn every_snapshot(&self) -> Result<Vec<SnapshotRecord>, LedgerError> {
        self.select_snapshots("order by table_name, slice, made_at", &[]).await
    }

    /// Puts other parts in the place of a snapshot's own, which hold less than those did; gives rows and bytes.
    pub async fn replace_parts(
        &self,
        id: &str,
        parts: &[String],
        (rows, bytes): (u64, u64),
    ) -> Result<(), LedgerError> {
        const DOING: &str = "replace the parts of a snapshot";
        let mut tx = self.begin(DOING).await?;
        sqlx::query("update snapshots set parts = $1, row_count = $2, bytes = $3 where id = $4")
            .bind(to_json(&parts))
            .bind(int(rows))
            .bind(int(bytes))
            .bind(id)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        meta::grow_snapshots_generation(&mut tx).await?;
        tx.commit().await.doing(DOING)
    }

    /// What a run has staged and not published.
    pub async fn staged_snapshots(&self, run_id: &RunId) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let tail = "where run_id = $1 and published_at is null and superseded_at is null order by table_name, slice";
        self.select_snapshots(tail, &[run_id.as_str()]).await
    }

    /// Makes all staged snapshots of a run current and those before them superseded, in one transaction, and marks the
    /// run as published. Returns the tables and slices that changed; again, it changes nothing.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`] when the lease went to somebody else: nothing is changed then.
    pub async fn publish(
        &self,
        lease: &Lease,
        run_id: &RunId,
        now: Timestamp,
    ) -> Result<Vec<(TableName, String)>, LedgerError> {
        const DOING: &str = "publish a run's snapshots";
        let mut tx = self.begin_held(lease, DOING).await?;
        let mut changed = move_pointers(&mut tx, run_id, now).await?;
        sqlx::query("update runs set published = true where run_id = $1")
            .bind(run_id.as_str())
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        crash::pass(CrashPoint::BeforePublishCommit);
        tx.commit().await.doing(DOING)?;
        crash::pass(CrashPoint::AfterPublishCommit);
        changed.sort();
        Ok(changed)
    }

    /// The current snapshots of all tables and slices.
    pub async fn current_snapshots(&self) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let tail = "where published_at is not null and superseded_at is null order by table_name, slice";
        self.select_snapshots(tail, &[]).await
    }

    /// The current snapshots of a table, one per slice.
    pub async fn current(&self, table: &TableName) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let tail = "where table_name = $1 and published_at is not null and superseded_at is null order by slice";
        self.select_snapshots(tail, &[table.as_str()]).await
    }

    /// The snapshots of a slice that are or were current, latest first.
    pub async fn snapshot_history(
        &self,
        table: &TableName,
        slice: &str,
        limit: u32,
    ) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{SELECT} where table_name = $1 and slice = $2 and published_at is not null
             order by published_at desc, made_at desc limit $3"
        )))
        .bind(table.as_str())
        .bind(slice)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .doing("list the snapshots of a table")?;
        read_all(rows, read_snapshot)
    }

    /// What may be dropped: of each slice what was superseded before `older_than` and is not among its `keep` latest
    /// published ones (the current one counts), and what was made before `older_than` and will never be published,
    /// because it was replaced or its run is finished or unknown.
    pub async fn droppable(&self, keep: usize, older_than: Timestamp) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{SELECT} where id in (
                 select id from (
                     select id, superseded_at,
                         row_number() over (partition by table_name, slice order by published_at desc, made_at desc)
                             as place
                     from snapshots where published_at is not null) as ranked
                 where place > $1 and superseded_at < $2)
             or (published_at is null and made_at < $2 and (superseded_at < $2 or not exists (
                 select 1 from runs where runs.run_id = snapshots.run_id
                     and runs.status not in ('succeeded', 'partial', 'cancelled'))))
             order by made_at"
        )))
        .bind(int(u64::try_from(keep).unwrap_or(u64::MAX)))
        .bind(to_micros(older_than))
        .fetch_all(&self.readers)
        .await
        .doing("list droppable snapshots")?;
        read_all(rows, read_snapshot)
    }

    /// Forgets snapshots whose files are dropped. A current one is never forgotten; returns how many were.
    pub async fn forget_snapshots(&self, ids: &[String]) -> Result<u64, LedgerError> {
        const DOING: &str = "forget snapshots";
        let mut tx = self.begin(DOING).await?;
        let mut forgotten = 0;
        kept::note_dropped(&mut tx, ids).await?;
        for id in ids {
            let done = sqlx::query(
                "delete from snapshots where id = $1 and (published_at is null or superseded_at is not null)",
            )
            .bind(id)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
            forgotten += done.rows_affected();
        }
        tx.commit().await.doing(DOING)?;
        Ok(forgotten)
    }

    /// Every part that any snapshot names: what a sweep of the lake's folder must leave alone.
    pub async fn known_parts(&self) -> Result<BTreeSet<String>, LedgerError> {
        let rows = sqlx::query("select parts from snapshots")
            .fetch_all(&self.readers)
            .await
            .doing("list the parts of all snapshots")?;
        Ok(read_all(rows, |row| row.json::<Vec<String>>("parts"))?.into_iter().flatten().collect())
    }

    /// `tail` is one of the constants above; what comes from outside is bound.
    async fn select_snapshots(&self, tail: &'static str, values: &[&str]) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let mut query = sqlx::query(AssertSqlSafe(format!("{SELECT} {tail}")));
        for value in values {
            query = query.bind(*value);
        }
        read_all(query.fetch_all(&self.readers).await.doing("look up snapshots")?, read_snapshot)
    }
}

/// Makes what a run has staged current, inside a writing transaction; gives the tables and slices that changed.
pub(super) async fn move_pointers(
    tx: &mut SqliteConnection,
    run_id: &RunId,
    now: Timestamp,
) -> Result<Vec<(TableName, String)>, LedgerError> {
    const DOING: &str = "publish a run's snapshots";
    sqlx::query(
        "update snapshots set superseded_at = $1
         where published_at is not null and superseded_at is null and exists (
             select 1 from snapshots as staged
             where staged.run_id = $2 and staged.published_at is null and staged.superseded_at is null
                 and staged.table_name = snapshots.table_name and staged.slice = snapshots.slice)",
    )
    .bind(to_micros(now))
    .bind(run_id.as_str())
    .execute(&mut *tx)
    .await
    .doing(DOING)?;
    let rows = sqlx::query(
        "update snapshots set published_at = $1
         where run_id = $2 and published_at is null and superseded_at is null returning table_name, slice",
    )
    .bind(to_micros(now))
    .bind(run_id.as_str())
    .fetch_all(&mut *tx)
    .await
    .doing(DOING)?;
    let changed = read_all(rows, |row| Ok((TableName::new(row.text("table_name")?), row.text("slice")?)))?;
    if !changed.is_empty() {
        meta::grow_snapshots_generation(tx).await?;
    }
    Ok(changed)
}

pub(super) fn read_snapshot(row: &SqliteRow) -> Result<SnapshotRecord, LedgerError> {
    Ok(SnapshotRecord {
        id: row.text("id")?,
        table: TableName::new(row.text("table_name")?),
        slice: row.text("slice")?,
        run_id: RunId::new(row.text("run_id")?),
        stage: StageName::new(row.text("stage")?),
        as_of: row.time("as_of")?,
        rows: row.count("row_count")?,
        bytes: row.count("bytes")?,
        parts: row.json("parts")?,
        columns: row.json("columns")?,
        source_hash: row.optional_text("source_hash")?,
        made_at: row.time("made_at")?,
        fence: row.read("fence")?,
        events_to: row.read("events_to")?,
        app_id: row.optional_text("app_id")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::domain::RunStatus;

    fn snapshot(id: &str, table: &str, run: &RunId, made: i64) -> SnapshotRecord {
        SnapshotRecord {
            id: id.into(),
            table: TableName::new(table),
            slice: "main".into(),
            run_id: run.clone(),
            stage: StageName::new(table),
            as_of: at(made),
            rows: 3,
            bytes: 1000,
            parts: vec![format!("{table}/{id}.parquet")],
            columns: vec![("openid".into(), "VARCHAR".into())],
            source_hash: None,
            made_at: at(made),
            fence: 1,
            events_to: None,
            app_id: None,
        }
    }

    fn ids(records: Vec<SnapshotRecord>) -> Vec<String> {
        records.into_iter().map(|record| record.id).collect()
    }

    #[tokio::test]
    async fn publishing_is_all_or_nothing() {
        let house = House::new().await;
        let run = house.run("nightly-1").await.run_id;
        for table in ["followers", "profiles"] {
            let record = snapshot(&format!("{table}-1"), table, &run, 1);
            house.ledger.record_snapshot(&house.lease, &record).await.unwrap();
        }
        assert!(house.ledger.current_snapshots().await.unwrap().is_empty());
        assert_eq!(house.ledger.snapshots_generation().await.unwrap(), 0);

        let usurper = house.lose_lease().await;
        let error = house.ledger.publish(&house.lease, &run, at(2)).await.unwrap_err();
        assert!(matches!(error, LedgerError::LeaseLost { .. }), "{error}");
        assert!(house.ledger.current_snapshots().await.unwrap().is_empty());
        assert!(!house.ledger.run(&run).await.unwrap().unwrap().published);

        let changed = house.ledger.publish(&usurper, &run, at(3)).await.unwrap();
        assert_eq!(changed.len(), 2);
        assert_eq!(ids(house.ledger.current_snapshots().await.unwrap()), ["followers-1", "profiles-1"]);
        assert!(house.ledger.run(&run).await.unwrap().unwrap().published);
        assert_eq!(house.ledger.snapshots_generation().await.unwrap(), 1);
        assert!(house.ledger.publish(&usurper, &run, at(4)).await.unwrap().is_empty());
        assert_eq!(house.ledger.snapshots_generation().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn old_replaced_and_abandoned_snapshots_are_droppable_and_current_ones_never() {
        let house = House::new().await;
        let ledger = &house.ledger;
        let run = house.run("nightly-1").await.run_id;
        for night in 1..=4 {
            let record = snapshot(&format!("night-{night}"), "followers", &run, night * 10);
            ledger.record_snapshot(&house.lease, &record).await.unwrap();
            ledger.publish(&house.lease, &run, at(night * 10 + 1)).await.unwrap();
        }
        ledger.record_snapshot(&house.lease, &snapshot("replaced", "profiles", &run, 50)).await.unwrap();
        ledger.record_snapshot(&house.lease, &snapshot("staged", "profiles", &run, 51)).await.unwrap();
        assert_eq!(ids(ledger.staged_snapshots(&run).await.unwrap()), ["staged"]);
        assert_eq!(ids(ledger.droppable(2, at(100)).await.unwrap()), ["night-1", "night-2", "replaced"]);
        assert_eq!(ids(ledger.droppable(0, at(22)).await.unwrap()), ["night-1"]);
        let over = super::super::RunChange { status: RunStatus::Cancelled, reason: None, waiting_until: None };
        ledger.set_run_status(&house.lease, &run, over, at(60)).await.unwrap();
        let all = ids(ledger.droppable(0, at(100)).await.unwrap());
        assert_eq!(all, ["night-1", "night-2", "night-3", "replaced", "staged"]);
        let named = [all, vec!["night-4".to_owned()]].concat();
        assert_eq!(ledger.forget_snapshots(&named).await.unwrap(), 5);
        let followers = TableName::new("followers");
        assert_eq!(ids(ledger.current(&followers).await.unwrap()), ["night-4"]);
        assert_eq!(ids(ledger.snapshot_history(&followers, "main", 5).await.unwrap()), ["night-4"]);
        assert_eq!(ledger.known_parts().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_past_moment_has_what_was_current_then_and_what_was_dropped_is_known() {
        let house = House::new().await;
        let ledger = &house.ledger;
        let run = house.run("nightly-1").await.run_id;
        for night in 1..=3 {
            let record = snapshot(&format!("night-{night}"), "followers", &run, night * 10);
            ledger.record_snapshot(&house.lease, &record).await.unwrap();
            ledger.publish(&house.lease, &run, at(night * 10 + 1)).await.unwrap();
        }
        let then = async |seconds| ids(ledger.snapshots_at(at(seconds)).await.unwrap());
        assert_eq!((then(11).await, then(12).await), (vec![], vec!["night-1".to_owned()]));
        assert_eq!((then(21).await, then(22).await), (vec!["night-1".to_owned()], vec!["night-2".to_owned()]));
        assert_eq!(then(1_000).await, ["night-3"]);
        assert!(ledger.dropped_until().await.unwrap().is_empty());
        ledger.forget_snapshots(&["night-2".to_owned(), "night-3".to_owned()]).await.unwrap();
        ledger.forget_snapshots(&["night-1".to_owned()]).await.unwrap();
        let dropped = ledger.dropped_until().await.unwrap();
        assert_eq!(dropped.len(), 1);
        assert_eq!((dropped[0].table.as_str(), &*dropped[0].slice, dropped[0].until), ("followers", "main", at(31)));
        let kept = ledger.kept_snapshots().await.unwrap();
        assert_eq!(kept.iter().map(|own| own.published_at).collect::<Vec<_>>(), [at(31)]);
    }
}
