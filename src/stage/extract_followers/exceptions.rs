//! A night of which nearly everybody is where they were: only the others are merged, by the same pass as a whole night.
//!
//! The way: whom the roll found missed or met, and whom events named → their rows of before, looked up → the pass over them
//! alone → their rows now. The pages are the table's next parts, written anew only where such a row stands on them; whoever
//! left stands in parts of their own, which stay as they are but the last; changes are one part more.

mod assemble;
mod find;

use std::collections::HashMap;
use std::path::PathBuf;

use self::assemble::{Assembly, Shelf};
use self::find::{Found, find};
use super::book::Joined;
use super::merge::{Active, Made, Night, is_of_followers};
use super::roll::{COLUMNS, Exceptions, Missed};
use super::tables::Pass;
use super::{Extracted, StageError};
use crate::domain::tables::table_spec;
use crate::domain::{TableName, Texts, Values};
use crate::engine::{Params, Session, TableSource, Written};
use crate::lake::{Lake, LakeError, PartColumn};
use crate::ledger::SnapshotRecord;
use crate::stage::blocking;
use crate::stage::news::Changed;
use crate::stage::tables::events;

/// Rows that are written at a time.
const GROUP: usize = 50_000;

/// A person's row after the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    first_seen: i64,
    last_seen: i64,
    active: bool,
}

/// Merges by exceptions; `is_distinct`: nobody stands on two pages.
///
/// # Errors
///
/// [`StageError`]; the walk stays for the next try.
pub(super) async fn merge(
    night: &Night<'_, '_>,
    known: &SnapshotRecord,
    (exceptions, is_distinct, joined): (Exceptions, bool, Joined),
) -> Result<Extracted, StageError> {
    let cx = night.cx;
    let lake = &cx.hands.lake;
    let account = &night.walk.account;
    let id = cx.new_snapshot_id();
    let work = |what: &str| format!("work/walks/{account}/{what}-{id}.parquet");
    let shelf = Shelf {
        lake: lake.clone(),
        account: account.clone(),
        table: night.table.clone(),
        snapshot: id.clone(),
        pages: night.pages.iter().map(|page| (page.page, page.path.clone())).collect(),
        joined,
        gone: known.parts.iter().filter(|part| !is_of_followers(part)).cloned().collect(),
    };
    let people = night.told.people.iter().map(|openid| openid.as_str().to_owned()).collect();
    let finding = move || find(&shelf, exceptions, people, is_distinct).map(|found| (shelf, found));
    let (shelf, found) = tokio::task::spawn_blocking(finding).await??;
    let changes_path = Lake::part_path(&TableName::new(events::CHANGES), account.as_str(), &id, 1);
    let inputs = Inputs {
        lake: lake.clone(),
        before: work("before"),
        walk: work("met"),
        told: night.told.table.clone(),
        forgotten: night.forgotten.clone(),
        after: Changed::new(lake, work("changed")),
        changes: lake.absolute(&changes_path),
        account: account.to_string(),
        walked_at: crate::clock::to_micros(night.walk.started_at),
    };
    let params = night.params();
    let (inputs, found, done) = blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        let done = inputs.pass(session, &found, &params)?;
        Ok((inputs, found, done))
    })
    .await?;
    let walked_at = inputs.walked_at;
    let (assembled, count) = {
        let rows = done.rows;
        let assembling = move || Assembly::of(&shelf, (&found, &rows), walked_at).map(|made| (made, rows.len()));
        tokio::task::spawn_blocking(assembling).await??
    };
    tracing::debug!(account = %account, people = count, "merged by {count} people who are not where they were");
    let forgotten = still_named(night, &assembled).await?;
    let followers = Made {
        of: "followers",
        rows: assembled.active + assembled.gone_rows,
        bytes: assembled.bytes,
        parts: assembled.parts,
    };
    let changes = more_changes(night, &id, (done.changes, changes_path)).await?;
    if let Some(news) = cx.news {
        news.changed(account, inputs.after.of(known.as_of, id.clone()));
    }
    let active = Active { all: assembled.active, forgotten };
    Ok(night.extracted(id, (followers, changes), active))
}

/// The changes of before with the part of tonight's behind them, if there is any.
async fn more_changes(night: &Night<'_, '_>, id: &str, (new, path): (Written, String)) -> Result<Made, StageError> {
    let lake = &night.cx.hands.lake;
    let (mut rows, mut parts) = night.old_changes().map(|old| (old.rows, old.parts.clone())).unwrap_or_default();
    if new.rows > 0 {
        rows += new.rows;
        parts.push(path);
    } else {
        lake.remove(&path)?;
    }
    let table = TableName::new(events::CHANGES);
    let joined = Lake::named_part_path((&table, night.walk.account.as_str(), id), "joined", 1);
    let own = lake.clone();
    let parts = tokio::task::spawn_blocking(move || own.compact(parts, &joined)).await??;
    let mut bytes = 0;
    for part in &parts {
        bytes += lake.size_bytes(part)?;
    }
    Ok(Made { of: events::CHANGES, rows, bytes, parts })
}

/// How many of the followers were forgotten and are named by the list all the same.
async fn still_named(night: &Night<'_, '_>, assembled: &assemble::Assembled) -> Result<u64, StageError> {
    let Some((table, salt)) = night.forgotten.clone() else { return Ok(0) };
    let (cx, lake) = (night.cx, &night.cx.hands.lake);
    let after = TableSource {
        name: "after".to_owned(),
        columns: table_spec("followers").expect("followers is declared").sql_columns(),
        parts: assembled.parts.iter().map(|part| lake.absolute(part)).collect(),
        sql: None,
        are_alike: false,
    };
    blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        session.add_table(&table)?;
        session.add_table(&after)?;
        let named = crate::stage::live::forgotten_sql(&salt, "openid");
        Ok(session.count(&format!("select count(*) from after where active and {named}"), &Params::new())?)
    })
    .await
}

/// What the pass over the exceptions reads and writes; paths are relative to the lake.
struct Inputs {
    lake: Lake,
    before: String,
    walk: String,
    told: TableSource,
    forgotten: Option<(TableSource, String)>,
    after: Changed,
    changes: PathBuf,
    account: String,
    walked_at: i64,
}

struct Done {
    rows: HashMap<String, Row>,
    changes: Written,
}

impl Inputs {
    fn pass(&self, session: &Session, found: &Found, params: &Params) -> Result<Done, StageError> {
        self.write(found)?;
        let columns = |table: &str| table_spec(table).map(|spec| spec.sql_columns()).unwrap_or_default();
        let table = |name: &str, columns, path: &str| TableSource {
            name: name.to_owned(),
            columns,
            parts: vec![self.lake.absolute(path)],
            sql: None,
            are_alike: false,
        };
        let mut walk = table("walk", vec![("openid".to_owned(), "VARCHAR".to_owned())], &self.walk);
        walk.sql = Some(format!("select *, cast(null as bigint) as place from ({})", walk.select()));
        let pass = Pass {
            before: table("before", columns("followers"), &self.before),
            walk,
            told: self.told.clone(),
            forgotten: self.forgotten.clone(),
            is_first: false,
        };
        pass.run(session, params)?;
        let changes = session.copy(&pass.changes_sql(), params, &self.changes)?;
        let after = "select account, openid, first_seen_at, last_seen_at, active from after";
        session.copy(after, params, &self.lake.absolute(self.after.path()))?;
        let mut rows = HashMap::new();
        session.stream::<StageError>(
            "select openid, first_seen_at, last_seen_at, active from after",
            params,
            |batch| {
                let [
                    (_, Values::Text(openids)),
                    (_, Values::Timestamp(first)),
                    (_, Values::Timestamp(last)),
                    (_, Values::Boolean(active)),
                ] = batch.columns.as_slice()
                else {
                    return Ok(false);
                };
                for (place, openid) in openids.iter().enumerate() {
                    let row = Row {
                        first_seen: first[place].unwrap_or(self.walked_at),
                        last_seen: last[place].unwrap_or(self.walked_at),
                        active: active[place] == Some(true),
                    };
                    rows.insert(openid.clone().unwrap_or_default(), row);
                }
                Ok(true)
            },
        )?;
        self.lake.remove(&self.before)?;
        self.lake.remove(&self.walk)?;
        Ok(Done { rows, changes })
    }

    fn write(&self, found: &Found) -> Result<(), LakeError> {
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let mut writer = self.lake.writer_of_ids(&self.before, &schema)?;
        for (rows, active) in [(&found.followed, true), (&found.had_left, false)] {
            for rows in rows.chunks(GROUP) {
                write_rows(&mut writer, &self.account, (rows, active))?;
            }
        }
        writer.finish_soon().map(|_| ())?;
        let mut writer = self.lake.writer_of_ids(&self.walk, &COLUMNS[..1])?;
        let met: Texts = found.met.iter().map(|met| Some(met.openid.as_str())).collect();
        writer.write_columns(met.len(), vec![("openid", PartColumn::Texts(&met))])?;
        writer.finish_soon().map(|_| ())
    }
}

/// Writes rows of followers, or of those who left, as one row group.
fn write_rows(
    writer: &mut crate::lake::PartWriter,
    account: &str,
    (rows, active): (&[Missed], bool),
) -> Result<(), LakeError> {
    let openids: Texts = rows.iter().map(|row| Some(row.openid.as_str())).collect();
    let times =
        |of: fn(&Missed) -> i64| PartColumn::Values(Values::Timestamp(rows.iter().map(|row| Some(of(row))).collect()));
    let columns = vec![
        ("account", PartColumn::Same(account)),
        ("openid", PartColumn::Texts(&openids)),
        ("first_seen_at", times(|row| row.first_seen)),
        ("last_seen_at", times(|row| row.last_seen)),
        ("active", PartColumn::SameBoolean(active)),
    ];
    writer.write_columns(rows.len(), columns)
}
