//! What a person or a schedule ordered, and when.

use sqlx::SqliteConnection;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::RunId;

/// A line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: Timestamp,
    pub who: String,
    pub command: String,
    pub run_id: Option<RunId>,
    pub detail: String,
}

impl Ledger {
    /// Adds a line.
    pub async fn record_audit(&self, entry: &AuditEntry) -> Result<(), LedgerError> {
        let mut connection = self.writer.acquire().await.doing("write the audit")?;
        insert(&mut connection, entry).await
    }

    /// The latest lines, latest first.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, LedgerError> {
        let rows = sqlx::query("select at, who, command, run_id, detail from audit order by id desc limit $1")
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .doing("read the audit")?;
        read_all(rows, |row| {
            Ok(AuditEntry {
                at: row.time("at")?,
                who: row.text("who")?,
                command: row.text("command")?,
                run_id: row.optional_text("run_id")?.map(RunId::new),
                detail: row.text("detail")?,
            })
        })
    }
}

pub(super) async fn insert(connection: &mut SqliteConnection, entry: &AuditEntry) -> Result<(), LedgerError> {
    sqlx::query("insert into audit (at, who, command, run_id, detail) values ($1, $2, $3, $4, $5)")
        .bind(to_micros(entry.at))
        .bind(&entry.who)
        .bind(&entry.command)
        .bind(entry.run_id.as_ref().map(RunId::as_str))
        .bind(&entry.detail)
        .execute(connection)
        .await
        .doing("write the audit")?;
    Ok(())
}
