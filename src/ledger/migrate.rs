//! Brings the tables of a ledger up to date: forward only, one transaction for all steps.

use std::path::Path;

use sqlx::SqlitePool;

use super::LedgerError;
use super::error::Doing;

/// The steps, in order; a step that was released is never changed.
const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("migrations/0001_ledger.sql")),
    (2, include_str!("migrations/0002_send_rows.sql")),
    (3, include_str!("migrations/0003_callbacks.sql")),
    (4, include_str!("migrations/0004_control.sql")),
    (6, include_str!("migrations/0006_waits.sql")),
    (7, include_str!("migrations/0007_canary.sql")),
    (8, include_str!("migrations/0008_written_deliveries.sql")),
    (9, include_str!("migrations/0009_msgids.sql")),
    (10, include_str!("migrations/0010_tallies_and_alerts.sql")),
    (15, include_str!("migrations/0015_follower_events.sql")),
    (18, include_str!("migrations/0018_repeats_and_calls.sql")),
    (19, include_str!("migrations/0019_moved_accounts.sql")),
    (20, include_str!("migrations/0020_check_results.sql")),
];

/// The version that this program makes.
pub(super) fn newest() -> i64 {
    MIGRATIONS.iter().map(|(version, _)| *version).max().unwrap_or(0)
}

/// The version of a ledger; 0 while it is being made.
pub(super) async fn version(readers: &SqlitePool) -> Result<i64, sqlx::Error> {
    let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_master where name = 'schema_versions'")
        .fetch_one(readers)
        .await?;
    if tables == 0 {
        return Ok(0);
    }
    sqlx::query_scalar("select coalesce(max(version), 0) from schema_versions").fetch_one(readers).await
}

/// # Errors
///
/// [`LedgerError::Newer`] for a file that a later version of the program wrote: nothing is touched then.
pub(super) async fn migrate(writer: &SqlitePool, path: &Path) -> Result<(), LedgerError> {
    const DOING: &str = "bring the ledger's tables up to date";
    let known = newest();
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
    let made: Vec<i64> =
        sqlx::query_scalar("select version from schema_versions").fetch_all(&mut *tx).await.doing(DOING)?;
    // By their own numbers: a step that was added between others is made as well.
    for (version, statements) in MIGRATIONS.iter().filter(|(version, _)| !made.contains(version)) {
        sqlx::raw_sql(*statements).execute(&mut *tx).await.doing(DOING)?;
        sqlx::query("insert into schema_versions (version) values ($1)")
            .bind(version)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
    }
    tx.commit().await.doing(DOING)
}
