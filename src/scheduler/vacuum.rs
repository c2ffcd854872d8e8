//! What nothing refers to any more goes: old snapshots, then files that neither the ledger nor the catalog names.
//!
//! A reader may still be at what was current a moment ago, and a run at what was current when it began: nothing goes that
//! was superseded or written within the last hour, or since the start of a run that is going on.

use std::collections::HashSet;
use std::time::Duration;

use chrono::TimeDelta;
use serde::Serialize;

use super::catalog;
use crate::clock::Timestamp;
use crate::domain::RunStatus;
use crate::lake::catalog::drop_abandoned;
use crate::ledger::{AuditEntry, SnapshotRecord};
use crate::stage::load_users::objects;
use crate::stage::{Hands, StageError};

/// Nothing younger than this goes.
const YOUNGEST: TimeDelta = TimeDelta::hours(1);

/// What a vacuum dropped.
#[derive(Debug, Serialize)]
pub struct Vacuumed {
    /// Snapshots kept of each slice of a table, the current one included.
    pub keep: usize,
    /// What was superseded or written after this was left alone.
    pub older_than: Timestamp,
    pub snapshots: Vec<DroppedSnapshot>,
    /// Files removed, of these snapshots and of finished staging.
    pub files: u64,
    pub bytes: u64,
}

/// A snapshot that is gone.
#[derive(Debug, Serialize)]
pub struct DroppedSnapshot {
    pub table: String,
    /// The account or mini program; empty for a table made whole.
    pub slice: String,
    pub id: String,
    pub run_id: String,
    pub as_of: Timestamp,
    pub rows: u64,
    pub bytes: u64,
}

/// A catalog that nobody finished in this time is nobody's.
const ABANDONED_AFTER: TimeDelta = TimeDelta::hours(1);

/// Drops all but the `keep` latest snapshots of each slice, and what nothing names. `who` is for the audit.
///
/// # Errors
///
/// [`StageError`]; what was dropped before stays dropped, and the next vacuum goes on.
pub async fn vacuum(hands: &Hands, keep: usize, who: String) -> Result<Vacuumed, StageError> {
    // The catalog must name what is current, and nothing older, before anything goes.
    catalog::repair(hands).await?;
    let now = hands.clock.now();
    let older_than = oldest_in_use(hands, now).await?;
    let old = hands.ledger.droppable(keep.max(1), older_than).await?;
    // Forgotten first: a crash in between leaves files without a name, which the sweep of the next vacuum finds.
    let ids: Vec<String> = old.iter().map(|snapshot| snapshot.id.clone()).collect();
    hands.ledger.forget_snapshots(&ids).await?;
    let kept = kept(hands).await?;
    let mut vacuumed = Vacuumed { keep: keep.max(1), older_than, snapshots: Vec::new(), files: 0, bytes: 0 };
    for snapshot in old {
        for part in snapshot.parts.iter().filter(|part| !kept.contains(*part)) {
            vacuumed.bytes += hands.lake.size_bytes(part).unwrap_or(0);
            vacuumed.files += 1;
            hands.lake.remove(part)?;
        }
        vacuumed.snapshots.push(DroppedSnapshot::of(snapshot));
    }
    let (lake, grace) = (hands.lake.clone(), (now - older_than).to_std().unwrap_or(Duration::ZERO));
    // Files carry the machine's time, whatever this process's clock says.
    let machine_now = now - hands.clock.offset();
    let swept = tokio::task::spawn_blocking(move || lake.drop_unreferenced(&kept, grace, machine_now)).await??;
    let abandoned = drop_abandoned(&catalog::path(hands), (machine_now - ABANDONED_AFTER).into())?;
    vacuumed.files += swept.files + abandoned;
    vacuumed.bytes += swept.bytes;
    let detail = format!("{} snapshots, {} files, {} bytes", vacuumed.snapshots.len(), vacuumed.files, vacuumed.bytes);
    let entry = AuditEntry { at: now, who, command: "vacuum".to_owned(), run_id: None, detail };
    hands.ledger.record_audit(&entry).await?;
    Ok(vacuumed)
}

impl DroppedSnapshot {
    fn of(record: SnapshotRecord) -> Self {
        Self {
            table: record.table.to_string(),
            slice: record.slice,
            id: record.id,
            run_id: record.run_id.to_string(),
            as_of: record.as_of,
            rows: record.rows,
            bytes: record.bytes,
        }
    }
}

/// An hour ago, or the start of the oldest run that is going on.
async fn oldest_in_use(hands: &Hands, now: Timestamp) -> Result<Timestamp, StageError> {
    let running = hands.ledger.runs_with_status(&[RunStatus::Running]).await?;
    let began = running.iter().map(|run| run.started_at).min();
    Ok(began.map_or(now - YOUNGEST, |began| began.min(now - YOUNGEST)))
}

/// Every file that the ledger or the catalog names, and copies of objects that a stage may read again.
async fn kept(hands: &Hands) -> Result<HashSet<String>, StageError> {
    let mut kept: HashSet<String> = hands.ledger.known_parts().await?.into_iter().collect();
    kept.extend(hands.ledger.files_in_use().await?);
    kept.extend(objects::in_use(&hands.lake, &hands.settings));
    if let Some(parts) = hands.ledger.get_meta(catalog::PARTS_KEY).await? {
        let parts = serde_json::from_str::<Vec<String>>(&parts)
            .map_err(|_| StageError::Rule("the ledger's note of the catalog's files cannot be read".to_owned()))?;
        kept.extend(parts);
    }
    Ok(kept)
}
