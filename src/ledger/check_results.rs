//! What the checks of stages came to, run after run.

use super::error::Doing;
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{RunId, StageName, TableName};

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckOutcome {
    Passed,
    /// It is broken and only warns.
    Warned,
    /// It is broken, and the stage with it.
    Failed,
    /// It is broken, and a person accepted that for this run.
    Accepted,
}

impl CheckOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned => "warned",
            Self::Failed => "failed",
            Self::Accepted => "accepted",
        }
    }
}

/// A check with what it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    pub check: String,
    pub outcome: CheckOutcome,
    /// What breaks it.
    pub found: Option<String>,
}

impl Ledger {
    /// Whether a check of a run's stage has failed since.
    pub async fn has_failed_check(
        &self,
        (run_id, stage): (&RunId, &StageName),
        since: Timestamp,
    ) -> Result<bool, LedgerError> {
        let sql = "select exists(select 1 from check_results
                   where run_id = $1 and stage = $2 and outcome = 'failed' and checked_at >= $3)";
        sqlx::query_scalar(sql)
            .bind(run_id.as_str())
            .bind(stage.as_str())
            .bind(to_micros(since))
            .fetch_one(&self.readers)
            .await
            .doing("look for failed checks of a stage")
    }

    /// Adds the results of a stage's checks.
    pub async fn record_checks(
        &self,
        lease: &Lease,
        (run_id, stage, table): (&RunId, &StageName, Option<&TableName>),
        results: &[CheckResult],
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "record the results of checks";
        if results.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin_held_note(lease, DOING).await?;
        for result in results {
            sqlx::query(
                "insert into check_results (checked_at, run_id, stage, table_name, check_name, outcome, found)
                 values ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(to_micros(now))
            .bind(run_id.as_str())
            .bind(stage.as_str())
            .bind(table.map(TableName::as_str))
            .bind(&result.check)
            .bind(result.outcome.as_str())
            .bind(&result.found)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        }
        tx.commit().await.doing(DOING)
    }
}
