//! Which snapshots were current at a moment that is over, and what is not kept any more.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::error::Doing;
use super::snapshots::{SELECT, read_snapshot};
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError, SnapshotRecord};
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::domain::TableName;

const DROPPED: &str = "dropped_until:";

/// A snapshot that is or was current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSnapshot {
    pub table: TableName,
    pub slice: String,
    pub published_at: Timestamp,
}

/// Of a slice whose old snapshots were dropped: when the last of these was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedUntil {
    pub table: TableName,
    pub slice: String,
    pub until: Timestamp,
}

impl Ledger {
    /// What was current right before `at`, as far as it is kept.
    pub async fn snapshots_at(&self, at: Timestamp) -> Result<Vec<SnapshotRecord>, LedgerError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{SELECT} where published_at < $1 and (superseded_at is null or superseded_at >= $1)
             order by table_name, slice, published_at"
        )))
        .bind(to_micros(at))
        .fetch_all(&self.readers)
        .await
        .doing("look up the snapshots of a past day")?;
        read_all(rows, read_snapshot)
    }

    /// Every snapshot that is or was current and is kept.
    pub async fn kept_snapshots(&self) -> Result<Vec<KeptSnapshot>, LedgerError> {
        let rows = sqlx::query(
            "select table_name, slice, published_at from snapshots where published_at is not null
             order by table_name, slice, published_at",
        )
        .fetch_all(&self.readers)
        .await
        .doing("list the snapshots that are kept")?;
        read_all(rows, |row| {
            Ok(KeptSnapshot {
                table: TableName::new(row.text("table_name")?),
                slice: row.text("slice")?,
                published_at: row.time("published_at")?,
            })
        })
    }

    /// Where old snapshots were dropped, and of which time.
    pub async fn dropped_until(&self) -> Result<Vec<DroppedUntil>, LedgerError> {
        let rows = sqlx::query("select key, value from meta where key like $1 order by key")
            .bind(format!("{DROPPED}%"))
            .fetch_all(&self.readers)
            .await
            .doing("list what snapshots were dropped")?;
        read_all(rows, |row| {
            let (key, value) = (row.text("key")?, row.text("value")?);
            let of = key.strip_prefix(DROPPED).and_then(|of| of.split_once('/'));
            let (Some((table, slice)), Ok(micros)) = (of, value.parse()) else {
                return Err(LedgerError::Unreadable { what: DROPPED, value });
            };
            Ok(DroppedUntil { table: TableName::new(table), slice: slice.to_owned(), until: from_micros(micros) })
        })
    }
}

/// Notes of snapshots that are about to be forgotten until when they were current, in the transaction that forgets them.
pub(super) async fn note_dropped(connection: &mut SqliteConnection, ids: &[String]) -> Result<(), LedgerError> {
    const DOING: &str = "note which snapshots are dropped";
    let mut until: BTreeMap<String, i64> = BTreeMap::new();
    for id in ids {
        let row = sqlx::query(
            "select table_name, slice, superseded_at from snapshots
             where id = $1 and published_at is not null and superseded_at is not null",
        )
        .bind(id)
        .fetch_optional(&mut *connection)
        .await
        .doing(DOING)?;
        let Some(row) = row else { continue };
        let (table, slice): (String, String) = (row.text("table_name")?, row.text("slice")?);
        let last = until.entry(format!("{DROPPED}{table}/{slice}")).or_default();
        *last = to_micros(row.time("superseded_at")?).max(*last);
    }
    for (key, micros) in until {
        sqlx::query(
            "insert into meta (key, value) values ($1, $2) on conflict (key) do update set value = excluded.value
             where cast(meta.value as bigint) < cast(excluded.value as bigint)",
        )
        .bind(key)
        .bind(micros.to_string())
        .execute(&mut *connection)
        .await
        .doing(DOING)?;
    }
    Ok(())
}
