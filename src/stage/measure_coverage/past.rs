//! A day that is over, measured again from snapshots that are kept: those its rows name, or for a day that was never measured
//! those that were there at its end.
//!
//! Who was suppressed or reached comes from what was kept beside the figures; for a day that was never measured, from the
//! ledger as far as it still tells. Whoever was forgotten since is in no snapshot any more, and is missing from such a day.

use std::collections::BTreeSet;

use chrono::NaiveDate;

use super::{EVIDENCE, ReadTables};
use crate::clock::Timestamp;
use crate::domain::{TableName, Values, end_of_day};
use crate::engine::{Param, Params, TableSource, quoted};
use crate::ledger::SnapshotRecord;
use crate::stage::tables::Visible;
use crate::stage::{StageContext, StageError, blocking};

/// What a past day was.
pub struct Then {
    pub visible: Visible,
    /// `evidence_kept` with the id of its snapshot, where it was kept.
    pub evidence: Option<(TableSource, String)>,
    /// The moment that the ledger is asked about, where nothing was kept.
    pub at: Timestamp,
}

/// Snapshots that are looked at to find the one of a day.
const MOST_SNAPSHOTS: u32 = 10_000;

/// What the run's day was, when it is over; nothing for today.
///
/// # Errors
///
/// [`StageError::Rule`] when what it was measured on is not kept any more.
pub async fn of(cx: &StageContext<'_>, inputs: &ReadTables) -> Result<Option<Then>, StageError> {
    let (zone, day) = (cx.hands.settings.timezone, cx.run.today);
    // A scheduled run that came late is of its own day, and of now.
    if cx.run.scheduled_for.is_some() || cx.run.run_at.with_timezone(&zone).date_naive() <= day {
        return Ok(None);
    }
    let at = end_of_day(day, zone);
    let named = named_on(cx, day).await?;
    let snapshots =
        if named.is_empty() { at_the_end(cx, inputs, at).await? } else { all_kept(cx, &named, day).await? };
    let (evidence, tables): (Vec<_>, Vec<_>) =
        snapshots.into_iter().partition(|snapshot| snapshot.table.as_str() == EVIDENCE);
    let mut visible = Visible::default();
    visible.add(tables);
    let kept = evidence.into_iter().next().map(|own| {
        let id = own.id.clone();
        let mut kept = Visible::default();
        kept.add([own]);
        (kept, id)
    });
    let evidence = kept.and_then(|(kept, id)| {
        let source = kept.bare_source(&cx.hands.lake, EVIDENCE)?;
        Some((TableSource { name: "evidence_kept".to_owned(), ..source }, id))
    });
    Ok(Some(Then { visible, evidence, at }))
}

/// The snapshots that figures are counted over, that of the evidence with this id among them.
pub fn name_all(visible: &Visible, inputs: &ReadTables, evidence: Option<&str>) -> String {
    let mut tables: Vec<&TableName> = inputs.all().collect();
    tables.sort();
    tables.dedup();
    let read = tables.into_iter().flat_map(|table| visible.slices(table.as_str()));
    let mut names: Vec<String> = read.map(|own| format!("{}/{}@{}", own.table, own.slice, own.id)).collect();
    names.extend(evidence.map(|id| format!("{EVIDENCE}/@{id}")));
    names.join(" ")
}

/// The ids of the snapshots that the rows of a day name.
async fn named_on(cx: &StageContext<'_>, day: NaiveDate) -> Result<BTreeSet<String>, StageError> {
    let Some(source) = cx.visible.source(&cx.hands.lake, "coverage") else { return Ok(BTreeSet::new()) };
    let params = Params::from([("day".to_owned(), Param::Date(day))]);
    let rows = blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        session.add_table(&source)?;
        let sql = format!(
            "select distinct snapshots from (
                 select cast(null as date) as date, cast(null as varchar) as snapshots where false
                 union all by name select * from {}
             ) where date = $day and snapshots is not null",
            quoted(&source.name)
        );
        Ok(session.query(&sql, &params)?)
    })
    .await?;
    let texts = rows.columns.into_iter().flat_map(|(_, values)| match values {
        Values::Text(texts) => texts,
        _ => Vec::new(),
    });
    let names: Vec<String> = texts.flatten().collect();
    let ids = names.iter().flat_map(|names| names.split_whitespace()).filter_map(|name| name.split_once('@'));
    Ok(ids.map(|(_, id)| id.to_owned()).collect())
}

async fn all_kept(
    cx: &StageContext<'_>,
    named: &BTreeSet<String>,
    day: NaiveDate,
) -> Result<Vec<SnapshotRecord>, StageError> {
    let every = cx.hands.ledger.every_snapshot().await?;
    let kept: Vec<SnapshotRecord> = every.into_iter().filter(|own| named.contains(&own.id)).collect();
    if kept.len() < named.len() {
        return Err(StageError::Rule(format!(
            "of the {} snapshots that {day} was measured on {} are not kept any more: its figures stay as they are \
             (`lianbo vacuum --keep N` says how many are kept)",
            named.len(),
            named.len() - kept.len()
        )));
    }
    Ok(kept)
}

/// Of each slice of what is read the snapshot that was there at a time.
async fn at_the_end(
    cx: &StageContext<'_>,
    inputs: &ReadTables,
    at: Timestamp,
) -> Result<Vec<SnapshotRecord>, StageError> {
    let every = cx.hands.ledger.every_snapshot().await?;
    let slices: BTreeSet<(&TableName, &str)> = every
        .iter()
        .filter(|own| inputs.all().any(|table| *table == own.table))
        .map(|own| (&own.table, own.slice.as_str()))
        .collect();
    let mut found = Vec::new();
    for (table, slice) in slices {
        let history = cx.hands.ledger.snapshot_history(table, slice, MOST_SNAPSHOTS).await?;
        found.extend(history.into_iter().find(|own| own.made_at < at));
    }
    Ok(found)
}
