//! `measure_coverage`: how many of a mini program's users the Official Account can reach, today, per account × mini program
//! and for all of them together (`*`), by segment, and why people do or do not match.
//!
//! One session gathers followers into a narrow table and counts every user beside it in one pass; every figure is a sum over
//! these counts. Today's rows replace today's rows, those of other days stay. Each row names the run and the snapshots it was
//! counted over, and who was suppressed or reached then is kept beside them ([`EVIDENCE`]): a day that is over is measured
//! again from these, and gives the same ([`past`]).

mod figures;
mod gathered;
mod past;
mod segments;
mod shared;
#[cfg(test)]
mod tests;

use serde_json::json;

use self::figures::{Evidence, Figures};
pub use self::segments::Segment;
use super::join_identities::people::{UsersTable, followers_table, profiles_table};
use super::join_identities::users_tables;
use super::tables::Visible;
use super::{NewSnapshot, StageContext, StageError, StageOutcome, StageReport, blocking, live};
use crate::clock::Timestamp;
use crate::config::settings::{JoinIdentities, MeasureCoverage, Settings};
use crate::domain::TableName;
use crate::domain::tables::table_spec;
use crate::engine::{TableSource, Written};
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;

/// The tables this stage makes.
pub const TABLES: [&str; 3] = ["coverage", "match_report", "coverage_by_segment"];
/// Who was suppressed, and who was reached lately, when coverage was measured last.
pub const EVIDENCE: &str = "reach_evidence";

/// Measures and writes today's rows of the three tables.
///
/// # Errors
///
/// [`StageError::Rule`] when a segment is a column of no table, nothing was loaded yet, or what a past day was measured on
/// is not kept any more.
pub async fn run(cx: &StageContext<'_>, plan: &MeasureCoverage) -> Result<StageOutcome, StageError> {
    let inputs = read_tables(&cx.hands.settings);
    let then = past::of(cx, &inputs).await?;
    let seen = then.as_ref().map_or(cx.visible, |then| &then.visible);
    let users: Vec<UsersTable> = inputs
        .users
        .iter()
        .filter(|name| seen.slices(name.as_str()).next().is_some())
        .filter_map(|name| seen.source(&cx.hands.lake, name.as_str()))
        .map(|source| UsersTable::new(&cx.hands.settings, source))
        .collect();
    let followers = required(cx, seen, &inputs.followers)?;
    let profiles = required(cx, seen, &inputs.profiles)?;
    let segments =
        plan.segments.iter().map(|written| segment(written, &users, &profiles)).collect::<Result<Vec<_>, _>>()?;
    let as_of = seen.as_of(inputs.all().map(TableName::as_str)).unwrap_or(cx.run.run_at);
    let id = cx.new_snapshot_id();
    let paths = TABLES.map(|table| Lake::part_path(&TableName::new(table), "", &id, 1));
    let evidence_path = Lake::part_path(&TableName::new(EVIDENCE), "", &id, 1);
    let evidence = match &then {
        Some(past::Then { evidence: Some((kept, _)), .. }) => Evidence::Kept(kept.clone()),
        then => {
            let at = then.as_ref().map_or_else(|| cx.hands.clock.now(), |then| then.at);
            let tables = [live::export(cx.hands, "suppressions").await?, live::export(cx.hands, "deliveries").await?];
            let target = then.is_none().then(|| cx.hands.lake.absolute(&evidence_path));
            Evidence::Ledger { tables, at, lately_from: at - plan.lately, target }
        }
    };
    let evidence_id = match &then {
        None => Some(format!("{id}-{EVIDENCE}")),
        Some(then) => then.evidence.as_ref().map(|(_, id)| id.clone()),
    };
    let figures = Figures {
        followers: TableSource { name: "followers_now".to_owned(), ..followers },
        profiles: TableSource { name: "profiles_now".to_owned(), ..profiles },
        users,
        evidence,
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
        snapshots: past::name_all(seen, &inputs, evidence_id.as_deref()),
        today: cx.run.today,
        targets: paths.clone().map(|path| cx.hands.lake.absolute(&path)),
    };
    let measured = blocking(&cx.hands.sparing_engine(), cx.stop, move |session| figures.write(session)).await?;
    // A past day makes the tables no older than they were.
    let before = cx.visible.slice(TABLES[0], "").map_or(as_of, |before| before.as_of);
    let made = Made { cx, id, as_of: if then.is_some() { as_of.max(before) } else { as_of } };
    let tables = TABLES.iter().zip(measured.written).zip(paths);
    let mut snapshots: Vec<SnapshotRecord> =
        tables.map(|((table, written), path)| made.record(table, &written, path)).collect();
    let rows_out = snapshots.iter().map(|snapshot| snapshot.rows).sum();
    snapshots.extend(measured.evidence.map(|written| made.record(EVIDENCE, &written, evidence_path)));
    Ok(StageOutcome::Done(StageReport {
        rows_in: measured.rows_in,
        rows_out,
        snapshots,
        detail: json!({ "date": cx.run.today.to_string(), "forgotten": measured.forgotten }),
        ..StageReport::default()
    }))
}

struct Made<'a> {
    cx: &'a StageContext<'a>,
    id: String,
    as_of: Timestamp,
}

impl Made<'_> {
    fn record(&self, table: &str, written: &Written, path: String) -> SnapshotRecord {
        NewSnapshot {
            table: TableName::new(table),
            slice: String::new(),
            id: format!("{}-{table}", self.id),
            as_of: self.as_of,
            rows: written.rows,
            bytes: written.bytes,
            parts: vec![path],
            columns: table_spec(table).expect("the coverage tables are declared").sql_columns(),
        }
        .record(self.cx)
    }
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
    ReadTables {
        followers: followers_table(settings),
        profiles: profiles_table(settings),
        users: users_tables(settings, &JoinIdentities::default()),
    }
}

fn required(cx: &StageContext<'_>, seen: &Visible, table: &TableName) -> Result<TableSource, StageError> {
    if seen.slices(table.as_str()).next().is_none() {
        return Err(StageError::Rule(format!("table `{table}` has no rows yet; run the stage that makes it first")));
    }
    seen.source(&cx.hands.lake, table.as_str())
        .ok_or_else(|| StageError::Rule(format!("table `{table}` has no rows yet")))
}

fn segment(written: &str, users: &[UsersTable], profiles: &TableSource) -> Result<Segment, StageError> {
    let in_users = |column: &str| users.iter().any(|table| table.column_type(column).is_some());
    let in_profiles = |column: &str| profiles.columns.iter().any(|(name, _)| name.eq_ignore_ascii_case(column));
    Segment::read(written, &in_users, &in_profiles).map_err(|column| {
        StageError::Rule(format!(
            "segment `{written}`: `{column}` is a column of no users table and not of profiles; mend `segments`"
        ))
    })
}
