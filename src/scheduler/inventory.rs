//! The tables of a workspace as they stand: rows, size, age and columns, for people and for `--json`.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::config::settings::{Settings, StageKind};
use crate::domain::tables::{TableSpec, USERS, table_spec};
use crate::ledger::{Ledger, LedgerError, SnapshotRecord};
use crate::stage::query::known_tables;
use crate::stage::tables::Visible;

/// Snapshots of a slice that are counted at most.
const COUNTED: u32 = 10_000;

/// A table.
#[derive(Debug, Clone, Serialize)]
pub struct TableView {
    pub table: String,
    /// What a row is; empty for tables that the workspace's own SQL makes.
    pub row: String,
    /// Fed by the ledger: as it is at the moment it is read, and without snapshots.
    pub is_live: bool,
    /// `None` for live tables.
    pub rows: Option<u64>,
    pub bytes: u64,
    /// The oldest of its slices.
    pub as_of: Option<Timestamp>,
    /// Snapshots that are kept, over all slices.
    pub snapshots: u64,
    /// The run that made the youngest of its current snapshots.
    pub run_id: Option<String>,
    pub slices: Vec<SliceView>,
}

/// The current snapshot of an account, of a mini program, or of a table made whole.
#[derive(Debug, Clone, Serialize)]
pub struct SliceView {
    pub slice: String,
    pub snapshot: String,
    pub run_id: String,
    pub stage: String,
    pub rows: u64,
    pub bytes: u64,
    pub as_of: Timestamp,
    pub made_at: Timestamp,
    pub snapshots: u64,
}

/// The columns of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    pub table: String,
    pub row: String,
    pub columns: Vec<ColumnView>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ColumnView {
    pub name: String,
    /// As DuckDB spells it.
    #[serde(rename = "type")]
    pub column_type: String,
    /// Meaning and unit; empty where only the workspace's own SQL or export knows.
    pub meaning: String,
}

/// Every table there is or will be; without a ledger nothing was made yet.
///
/// # Errors
///
/// [`LedgerError`] when the ledger cannot be read.
pub async fn tables(settings: &Settings, ledger: Option<&Ledger>) -> Result<Vec<TableView>, LedgerError> {
    let visible = visible(ledger).await?;
    let mut views = Vec::new();
    for name in known_tables(settings, &visible) {
        let mut slices = Vec::new();
        for record in visible.slices(&name) {
            slices.push(slice(record, ledger).await?);
        }
        // Sets are parts of the lake, though their tables are listed among the ledger's.
        let is_live = table_spec(&name).is_some_and(|spec| spec.is_live) && !is_of_sets(&name);
        let youngest = slices.iter().max_by_key(|slice| slice.made_at);
        views.push(TableView {
            row: row_of(settings, &name),
            is_live,
            rows: (!is_live).then(|| visible.rows(&name)),
            bytes: slices.iter().map(|slice| slice.bytes).sum(),
            as_of: visible.as_of([name.as_str()]),
            snapshots: slices.iter().map(|slice| slice.snapshots).sum(),
            run_id: youngest.map(|slice| slice.run_id.clone()),
            slices,
            table: name,
        });
    }
    Ok(views)
}

/// The columns of the tables in `names`, or of all.
///
/// # Errors
///
/// [`LedgerError`] when the ledger cannot be read.
pub async fn describe(
    settings: &Settings,
    ledger: Option<&Ledger>,
    only: Option<&str>,
) -> Result<Vec<Description>, LedgerError> {
    let visible = visible(ledger).await?;
    let names = known_tables(settings, &visible);
    let names = names.into_iter().filter(|name| only.is_none_or(|only| name.eq_ignore_ascii_case(only)));
    Ok(names.map(|name| description(settings, &visible, name)).collect())
}

async fn visible(ledger: Option<&Ledger>) -> Result<Visible, LedgerError> {
    let mut visible = Visible::default();
    if let Some(ledger) = ledger {
        visible.add(ledger.current_snapshots().await?);
    }
    Ok(visible)
}

async fn slice(record: &SnapshotRecord, ledger: Option<&Ledger>) -> Result<SliceView, LedgerError> {
    let snapshots = match ledger {
        Some(ledger) => ledger.snapshot_history(&record.table, &record.slice, COUNTED).await?.len(),
        None => 0,
    };
    Ok(SliceView {
        slice: record.slice.clone(),
        snapshot: record.id.clone(),
        run_id: record.run_id.to_string(),
        stage: record.stage.to_string(),
        rows: record.rows,
        bytes: record.bytes,
        as_of: record.as_of,
        made_at: record.made_at,
        snapshots: u64::try_from(snapshots).unwrap_or(u64::MAX),
    })
}

fn is_of_sets(name: &str) -> bool {
    matches!(name, "recipients" | "left_out")
}

fn row_of(settings: &Settings, name: &str) -> String {
    match table_spec(name) {
        Some(spec) => spec.row.to_owned(),
        None if is_users_table(settings, name) => "a mini-program user".to_owned(),
        None => String::new(),
    }
}

fn is_users_table(settings: &Settings, name: &str) -> bool {
    let mut stages = settings.pipelines.values().flat_map(|pipeline| &pipeline.stages);
    stages.any(|stage| {
        matches!(stage.kind, StageKind::LoadUsers(_)) && stage.table.as_ref().is_some_and(|own| own.as_str() == name)
    })
}

fn description(settings: &Settings, visible: &Visible, name: String) -> Description {
    let is_users = is_users_table(settings, &name);
    let mut columns: Vec<(String, String)> = table_spec(&name).map(TableSpec::sql_columns).unwrap_or_default();
    for (column, column_type) in visible.slices(&name).flat_map(|record| &record.columns) {
        if !columns.iter().any(|(known, _)| known == column) {
            columns.push((column.clone(), column_type.clone()));
        }
    }
    if columns.is_empty() && is_users {
        columns.extend(USERS.iter().map(|column| (column.name.to_owned(), column.column_type.sql().to_owned())));
    }
    let columns = columns.into_iter().map(|(column, column_type)| ColumnView {
        meaning: meaning(&name, &column, is_users),
        name: column,
        column_type,
    });
    Description { row: row_of(settings, &name), columns: columns.collect(), table: name }
}

fn meaning(table: &str, column: &str, is_users: bool) -> String {
    let declared = table_spec(table).and_then(|spec| spec.columns.iter().find(|own| own.name == column));
    let of_users = || USERS.iter().find(|own| is_users && own.name == column);
    declared.or_else(of_users).map(|own| own.meaning).unwrap_or_default().to_owned()
}

/// All names, for suggestions.
///
/// # Errors
///
/// [`LedgerError`] when the ledger cannot be read.
pub async fn names(settings: &Settings, ledger: Option<&Ledger>) -> Result<Vec<String>, LedgerError> {
    Ok(known_tables(settings, &visible(ledger).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tables::TABLES;

    #[test]
    fn every_declared_column_is_told_with_its_meaning() {
        for spec in TABLES {
            for column in spec.columns {
                assert!(!meaning(spec.name, column.name, false).is_empty(), "{}.{}", spec.name, column.name);
            }
        }
    }

    #[test]
    fn a_users_table_explains_the_columns_it_always_has() {
        assert_eq!(meaning("mall_users", "openid", true), "person towards the mini program");
        assert_eq!(meaning("mall_users", "city", true), "");
        assert_eq!(meaning("cities", "openid", false), "");
    }
}
