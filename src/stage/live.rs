//! Tables that the ledger feeds, written out as parts for the engine as they are at that moment.
//!
//! `deliveries` is the ledger's rows and, for recipients nobody claimed yet, the frozen set; `recipients` and `left_out` are
//! parts of the lake already.

mod deliveries;

use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Rows, RunId, RunStatus, Values};
use crate::engine::{TableSource, text};
use crate::ledger::{LiveCursor, LiveTable};
use crate::wechat::all_codes;

use super::tables::{Visible, events::Events};
use super::{Hands, StageError};

/// Where tables are written out, relative to the lake.
pub const FOLDER: &str = "work/live";
/// The table of WeChat's codes: the same at all times.
pub const ERROR_CODES: &str = "error_codes";
/// Rows in memory at a time: the ledger's driver takes kilobytes for a row with many columns.
const CHUNK: u32 = 4_000;

/// Whether a table is fed by the ledger (and no snapshot of the lake).
pub fn is_live(name: &str) -> bool {
    live_table(name).is_some() || name == ERROR_CODES
}

fn live_table(name: &str) -> Option<LiveTable> {
    LiveTable::ALL.into_iter().find(|table| table.name() == name)
}

/// Writes the table out and gives it as the engine reads it.
///
/// # Errors
///
/// [`StageError`] when the ledger cannot be read or the lake not be written.
pub async fn export(hands: &Hands, name: &str) -> Result<TableSource, StageError> {
    export_ending(hands, name, None).await
}

/// A run that is about to end, as `runs` will show it.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    pub run_id: &'a RunId,
    pub status: RunStatus,
    pub reason: Option<&'a str>,
    pub at: Timestamp,
}

impl Ending<'_> {
    fn apply(&self, rows: &mut Rows) {
        let is_it = |id: &Option<String>| id.as_deref() == Some(self.run_id.as_str());
        let at = rows.columns.iter().find_map(|(name, values)| match values {
            Values::Text(ids) if name == "run_id" => ids.iter().position(is_it),
            _ => None,
        });
        let Some(at) = at else { return };
        for (name, values) in &mut rows.columns {
            match (name.as_str(), values) {
                ("status", Values::Text(values)) => values[at] = Some(self.status.as_str().to_owned()),
                ("reason", Values::Text(values)) => values[at] = self.reason.map(str::to_owned),
                ("ended_at", Values::Timestamp(values)) => values[at] = Some(to_micros(self.at)),
                _ => {}
            }
        }
    }
}

/// As [`export`], with `ending` in its row of `runs`: what is written out before a run's end is recorded.
///
/// # Errors
///
/// As [`export`].
pub async fn export_ending(hands: &Hands, name: &str, ending: Option<&Ending<'_>>) -> Result<TableSource, StageError> {
    let spec = table_spec(name).expect("live tables are declared");
    let mut source = TableSource {
        name: name.to_owned(),
        columns: spec.sql_columns(),
        parts: Vec::new(),
        sql: None,
        are_alike: false,
    };
    let lake = hands.lake.scratch();
    let mut writer = lake.writer(&live_path(hands, name), &spec.part_schema())?;
    match live_table(name) {
        None => writer.write(error_codes())?,
        Some(LiveTable::Deliveries) => {
            for push in hands.ledger.every_push().await? {
                match deliveries::written(hands, &push).await? {
                    Some(part) => source.parts.push(part),
                    None => writer = deliveries::write(hands, writer, &push).await?,
                }
            }
        }
        Some(table) => {
            let mut cursor = LiveCursor::default();
            loop {
                let (mut rows, next) = hands.ledger.read_live(table, cursor, CHUNK).await?;
                if let (LiveTable::Runs, Some(ending)) = (table, ending) {
                    ending.apply(&mut rows);
                }
                writer.write(rows)?;
                match next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
        }
    }
    if writer.rows() > 0 {
        source.parts.push(lake.absolute(&writer.finish()?.path));
    } else {
        writer.discard()?;
    }
    Ok(source)
}

fn live_path(hands: &Hands, name: &str) -> String {
    format!("{FOLDER}/{name}-{}-rows.parquet", hands.clock.random_id(12))
}

/// Removes what [`export`] wrote, when nobody reads it any more.
///
/// # Errors
///
/// [`StageError::Lake`] when a file cannot be removed.
pub fn discard(hands: &Hands, source: &TableSource) -> Result<(), StageError> {
    let lake = hands.lake.scratch();
    for part in &source.parts {
        if let Ok(relative) = part.strip_prefix(lake.root())
            && relative.starts_with(FOLDER)
        {
            lake.remove(&relative.to_string_lossy())?;
        }
    }
    Ok(())
}

/// What events said of an account's followers since its last walk, as the table `_marks`.
///
/// # Errors
///
/// As [`export`].
pub async fn export_marks(hands: &Hands, account: &AccountName, since: Timestamp) -> Result<TableSource, StageError> {
    let columns = [("openid", ColumnType::Text), ("active", ColumnType::Boolean), ("at", ColumnType::Timestamp)];
    let mut source = TableSource {
        name: "_marks".to_owned(),
        columns: columns.iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect(),
        parts: Vec::new(),
        sql: None,
        are_alike: false,
    };
    let marks = hands.ledger.follower_marks(account, since).await?;
    if marks.is_empty() {
        return Ok(source);
    }
    let path = format!("{FOLDER}/marks-{}.parquet", hands.clock.random_id(12));
    let lake = hands.lake.scratch();
    let mut writer = lake.writer(&path, &columns)?;
    let openids = marks.iter().map(|mark| Some(mark.openid.as_str().to_owned())).collect();
    let active = marks.iter().map(|mark| Some(mark.active)).collect();
    let at = marks.iter().map(|mark| Some(to_micros(mark.at))).collect();
    writer.write(Rows {
        columns: vec![
            ("openid".to_owned(), Values::Text(openids)),
            ("active".to_owned(), Values::Boolean(active)),
            ("at".to_owned(), Values::Timestamp(at)),
        ],
    })?;
    source.parts.push(lake.absolute(&writer.finish()?.path));
    Ok(source)
}

/// What events told of followers since the walks that are visible, to be laid over them.
///
/// # Errors
///
/// As [`export`].
pub async fn export_events(hands: &Hands, visible: &Visible) -> Result<Option<Events>, StageError> {
    let path = format!("{FOLDER}/events-{}.parquet", hands.clock.random_id(12));
    Events::export(&hands.ledger, visible, (&hands.lake.scratch(), &path)).await
}

/// The hashes of everybody who was forgotten as the table `_forgotten`, and their salt; nothing when nobody was.
///
/// # Errors
///
/// As [`export`].
pub async fn export_forgotten(hands: &Hands) -> Result<Option<(TableSource, String)>, StageError> {
    let Some((salt, hashes)) = hands.ledger.forgotten().await? else { return Ok(None) };
    let lake = hands.lake.scratch();
    let path = format!("{FOLDER}/forgotten-{}.parquet", hands.clock.random_id(12));
    let mut writer = lake.writer(&path, &[("hash", ColumnType::Text)])?;
    writer.write(Rows { columns: vec![("hash".to_owned(), Values::Text(hashes.into_iter().map(Some).collect()))] })?;
    let part = lake.absolute(&writer.finish()?.path);
    Ok(Some((
        TableSource {
            name: "_forgotten".to_owned(),
            columns: Vec::new(),
            parts: vec![part],
            sql: None,
            are_alike: false,
        },
        salt,
    )))
}

/// A condition: the id in `column` is among `_forgotten` (see [`export_forgotten`]); false for NULL.
pub fn forgotten_sql(salt: &str, column: &str) -> String {
    format!("({column} is not null and sha256(concat({}, ':', {column})) in (select hash from _forgotten))", text(salt))
}

fn error_codes() -> Rows {
    let codes = all_codes();
    let column = |name: &str, of: fn(&crate::wechat::Code) -> String| {
        (name.to_owned(), Values::Text(codes.iter().map(|code| Some(of(code))).collect()))
    };
    Rows {
        columns: vec![
            ("errcode".to_owned(), Values::Integer(codes.iter().map(|code| Some(code.errcode)).collect())),
            column("class", |code| code.class.as_str().to_owned()),
            column("meaning", |code| code.meaning.to_owned()),
            column("advice", |code| code.advice.to_owned()),
        ],
    }
}
