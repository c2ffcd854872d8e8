//! Brings the tables of a ledger up to date: forward only, one transaction for all steps.

use std::path::Path;

use sqlx::SqlitePool;

use super::LedgerError;
use super::error::Doing;

/// The steps, in order; a step that was released is never changed.
const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("migrations/0001_ledger.sql")),
    (2, include_str!("migrations/0002_send_rows.sql")),
    (3, include_str!("migrations/0003_callbacks.sql")),
];

/// # Errors
///
/// [`LedgerError::Newer`] for a file that a later version of the program wrote: nothing is touched then.
pub(super) async fn migrate(writer: &SqlitePool, path: &Path) -> Result<(), LedgerError> {
    const DOING: &str = "bring the ledger's tables up to date";
    let known = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    let mut tx = writer.begin_with("begin immediate").await.doing(DOING)?;
    sqlx::query("create table if not exists schema_versions (version integer primary key)")
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
    let found: i64 = sqlx::query_scalar("select coalesce(max(version), 0) from schema_versions")
        .fetch_one(&mut *tx)
        .await
        .doing(DOING)?;
    if found > known {
        return Err(LedgerError::Newer { path: path.to_owned(), found, known });
    }
    for (version, statements) in MIGRATIONS.into_iter().filter(|(version, _)| *version > found) {
        sqlx::raw_sql(statements).execute(&mut *tx).await.doing(DOING)?;
        sqlx::query("insert into schema_versions (version) values ($1)")
            .bind(version)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
    }
    tx.commit().await.doing(DOING)
}
