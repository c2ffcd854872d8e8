//! What became of each stage of a run.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::{Columns, int, read_all, to_json};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{RunId, StageName, StageStatus, TableName};

/// A stage of a run as last recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct StageRecord {
    pub run_id: RunId,
    pub stage: StageName,
    pub kind: String,
    /// The table it makes, if it makes one.
    pub table: Option<TableName>,
    pub status: StageStatus,
    pub rows_in: u64,
    pub rows_out: u64,
    pub started_at: Timestamp,
    pub seconds: f64,
    pub api_calls: BTreeMap<String, u64>,
    /// What this kind of stage has to say, shown as it is.
    pub detail: serde_json::Value,
    pub error: Option<String>,
}

impl Ledger {
    /// Records a stage, in place of what was recorded of it before.
    pub async fn record_stage(&self, lease: &Lease, record: &StageRecord) -> Result<(), LedgerError> {
        const DOING: &str = "record a stage";
        let mut tx = self.begin_held_note(lease, DOING).await?;
        sqlx::query(
            "insert into run_stages (run_id, stage, kind, table_name, status, rows_in, rows_out, started_at, seconds,
                 api_calls, detail, error)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             on conflict (run_id, stage) do update set kind = excluded.kind, table_name = excluded.table_name,
                 status = excluded.status, rows_in = excluded.rows_in, rows_out = excluded.rows_out,
                 started_at = excluded.started_at, seconds = excluded.seconds, api_calls = excluded.api_calls,
                 detail = excluded.detail, error = excluded.error",
        )
        .bind(record.run_id.as_str())
        .bind(record.stage.as_str())
        .bind(&record.kind)
        .bind(record.table.as_ref().map(TableName::as_str))
        .bind(record.status.as_str())
        .bind(int(record.rows_in))
        .bind(int(record.rows_out))
        .bind(to_micros(record.started_at))
        .bind(record.seconds)
        .bind(to_json(&record.api_calls))
        .bind(to_json(&record.detail))
        .bind(&record.error)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// Notes the calls of a stage that goes on; one that is not recorded yet stays so.
    pub async fn note_stage_calls(
        &self,
        lease: &Lease,
        (run_id, stage): (&RunId, &StageName),
        api_calls: &BTreeMap<String, u64>,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "note the calls of a stage";
        let mut tx = self.begin_held_note(lease, DOING).await?;
        sqlx::query("update run_stages set api_calls = $1 where run_id = $2 and stage = $3")
            .bind(to_json(api_calls))
            .bind(run_id.as_str())
            .bind(stage.as_str())
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// The stages of a run, in the order they were first recorded.
    pub async fn stages(&self, run_id: &RunId) -> Result<Vec<StageRecord>, LedgerError> {
        let rows = sqlx::query(
            "select run_id, stage, kind, table_name, status, rows_in, rows_out, started_at, seconds, api_calls, detail,
                 error
             from run_stages where run_id = $1 order by id",
        )
        .bind(run_id.as_str())
        .fetch_all(&self.readers)
        .await
        .doing("list the stages of a run")?;
        read_all(rows, read_stage)
    }
}

fn read_stage(row: &SqliteRow) -> Result<StageRecord, LedgerError> {
    Ok(StageRecord {
        run_id: RunId::new(row.text("run_id")?),
        stage: StageName::new(row.text("stage")?),
        kind: row.text("kind")?,
        table: row.optional_text("table_name")?.map(TableName::new),
        status: row.word("status", StageStatus::parse)?,
        rows_in: row.count("rows_in")?,
        rows_out: row.count("rows_out")?,
        started_at: row.time("started_at")?,
        seconds: row.read("seconds")?,
        api_calls: row.json("api_calls")?,
        detail: row.json("detail")?,
        error: row.optional_text("error")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn stages_keep_their_first_order_and_their_last_record() {
        let house = House::new().await;
        let run_id = house.run("nightly-1").await.run_id;
        let record = |stage: &str, status, rows_out| StageRecord {
            run_id: run_id.clone(),
            stage: StageName::new(stage),
            kind: "extract_followers".into(),
            table: Some(TableName::new("followers")),
            status,
            rows_in: 0,
            rows_out,
            started_at: at(0),
            seconds: 1.5,
            api_calls: BTreeMap::from([("user/get".to_owned(), 3)]),
            detail: serde_json::json!({ "pages": 3 }),
            error: None,
        };
        for (stage, status, rows) in
            [("z", StageStatus::Running, 0), ("a", StageStatus::Running, 0), ("z", StageStatus::Succeeded, 7)]
        {
            house.ledger.record_stage(&house.lease, &record(stage, status, rows)).await.unwrap();
        }
        let stages = house.ledger.stages(&run_id).await.unwrap();
        assert_eq!(stages, [record("z", StageStatus::Succeeded, 7), record("a", StageStatus::Running, 0)]);
        let calls = BTreeMap::from([("user/get".to_owned(), 9)]);
        let a = StageName::new("a");
        house.ledger.note_stage_calls(&house.lease, (&run_id, &a), &calls).await.unwrap();
        assert_eq!(house.ledger.stages(&run_id).await.unwrap()[1].api_calls, calls);
    }
}
