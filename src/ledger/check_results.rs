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
