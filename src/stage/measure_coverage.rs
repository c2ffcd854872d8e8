//! `measure_coverage`: how many of a mini program's users the Official Account can reach, today, per account × mini program
//! and for all of them together (`*`), by segment, and why people do or do not match.
//!
//! One session gathers followers and users once into two narrow tables; every figure is a count over these. Today's rows
//! replace today's rows, those of other days stay.

mod figures;

use serde_json::json;

use self::figures::{Figures, SegmentColumn};
use super::join_identities::{tables_of, users_tables};
use super::{NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking, live};
use crate::config::settings::{JoinIdentities, MeasureCoverage, Settings, StageKind};
use crate::domain::TableName;
use crate::domain::tables::table_spec;
use crate::engine::TableSource;
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;

/// The tables this stage makes.
pub const TABLES: [&str; 3] = ["coverage", "match_report", "coverage_by_segment"];

/// Measures and writes today's rows of the three tables.
///
/// # Errors
///
/// [`StageError::Rule`] when a segment is a column of no table, or nothing was loaded yet.
pub async fn run(cx: &StageContext<'_>, plan: &MeasureCoverage) -> Result<StageOutcome, StageError> {
    let inputs = read_tables(&cx.hands.settings);
    let users: Vec<TableSource> = inputs
        .users
        .iter()
        .filter(|name| cx.visible.slices(name.as_str()).next().is_some())
        .filter_map(|name| cx.visible.source(&cx.hands.lake, name.as_str()))
        .collect();
    let followers = required(cx, &inputs.followers)?;
    let profiles = required(cx, &inputs.profiles)?;
    let segments = plan
        .segments
        .iter()
        .map(|segment| segment_column(segment, &users, &profiles))
        .collect::<Result<Vec<_>, _>>()?;
    let suppressions = live::export(cx.hands, "suppressions").await?;
    let read = inputs.users.iter().chain([&inputs.followers, &inputs.profiles]);
    let as_of = cx.visible.as_of(read.map(TableName::as_str)).unwrap_or(cx.run.run_at);
    let id = cx.new_snapshot_id();
    let paths = TABLES.map(|table| Lake::part_path(&TableName::new(table), "", &id, 1));
    let figures = Figures {
        followers: TableSource { name: "followers_now".to_owned(), ..followers },
        profiles: TableSource { name: "profiles_now".to_owned(), ..profiles },
        users,
        suppressions,
        forgotten: live::export_forgotten(cx.hands).await?,
        before: TABLES.map(|table| {
            let columns = table_spec(table).expect("the coverage tables are declared").sql_columns();
            cx.visible.slice_source(&cx.hands.lake, (table, ""), &format!("{table}_before"), columns)
        }),
        accounts: cx.hands.settings.accounts.keys().map(ToString::to_string).collect(),
        miniprograms: cx.hands.settings.miniprograms.keys().map(ToString::to_string).collect(),
        segments,
        as_of,
        run_id: cx.run.run_id.to_string(),
        today: cx.run.today,
        targets: paths.clone().map(|path| cx.hands.lake.absolute(&path)),
    };
    let measured = blocking(&cx.hands.sparing_engine(), cx.stop, move |session| figures.write(session)).await?;
    let snapshots: Vec<SnapshotRecord> = TABLES
        .iter()
        .zip(measured.written)
        .zip(paths)
        .map(|((table, written), path)| {
            NewSnapshot {
                table: TableName::new(*table),
                slice: String::new(),
                id: format!("{id}-{table}"),
                as_of,
                rows: written.rows,
                bytes: written.bytes,
                parts: vec![path],
                columns: table_spec(table).expect("the coverage tables are declared").sql_columns(),
            }
            .record(cx)
        })
        .collect();
    let rows_out = snapshots.iter().map(|snapshot| snapshot.rows).sum();
    Ok(StageOutcome::Done(StageReport {
        rows_in: measured.rows_in,
        rows_out,
        snapshots,
        detail: json!({ "date": cx.run.today.to_string(), "forgotten": measured.forgotten }),
        ..StageReport::default()
    }))
}

/// The tables coverage reads, by the kinds of the stages that make them.
pub struct ReadTables {
    pub followers: TableName,
    pub profiles: TableName,
    pub users: Vec<TableName>,
}

impl ReadTables {
    pub fn all(&self) -> impl Iterator<Item = &TableName> {
        self.users.iter().chain([&self.followers, &self.profiles])
    }
}

/// The tables coverage reads in a workspace.
pub fn read_tables(settings: &Settings) -> ReadTables {
    let first = |standard: &str, is_kind: fn(&StageKind) -> bool| {
        tables_of(settings, is_kind).into_iter().next().unwrap_or_else(|| TableName::new(standard))
    };
    ReadTables {
        followers: first("followers", |kind| matches!(kind, StageKind::ExtractFollowers(_))),
        profiles: first("profiles", |kind| matches!(kind, StageKind::EnrichUnionids(_))),
        users: users_tables(settings, &JoinIdentities { users: Vec::new() }),
    }
}

fn required(cx: &StageContext<'_>, table: &TableName) -> Result<TableSource, StageError> {
    if cx.visible.slices(table.as_str()).next().is_none() {
        return Err(StageError::Rule(format!("table `{table}` has no rows yet; run the stage that makes it first")));
    }
    cx.visible
        .source(&cx.hands.lake, table.as_str())
        .ok_or_else(|| StageError::Rule(format!("table `{table}` has no rows yet")))
}

fn segment_column(segment: &str, users: &[TableSource], profiles: &TableSource) -> Result<SegmentColumn, StageError> {
    let has = |table: &TableSource| table.columns.iter().any(|(name, _)| name == segment);
    let in_users: Vec<String> = users.iter().filter(|table| has(table)).map(|table| table.name.clone()).collect();
    if in_users.is_empty() && !has(profiles) {
        return Err(StageError::Rule(format!(
            "segment `{segment}` is a column of no users table and not of profiles; mend `segments`"
        )));
    }
    Ok(SegmentColumn { name: segment.to_owned(), in_users })
}
