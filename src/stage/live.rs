//! Tables that the ledger feeds, written out as parts for the engine as they are at that moment.
//!
//! `deliveries` is the ledger's rows and, for recipients nobody claimed yet, the frozen set; `recipients` and `left_out` are
//! parts of the lake already.

use crate::clock::{Timestamp, to_micros};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Rows, RunId, RunStatus, StageName, Values, client_msg_id};
use crate::engine::{Params, TableSource, text};
use crate::lake::PartWriter;
use crate::ledger::{LiveCursor, LiveTable, Push};
use crate::wechat::all_codes;

use super::{Hands, StageError};

/// Where tables are written out, relative to the lake.
pub const FOLDER: &str = "work/live";
/// Rows in memory at a time: the ledger's driver takes kilobytes for a row with many columns.
const CHUNK: u32 = 4_000;

/// Whether a table is fed by the ledger (and no snapshot of the lake).
pub fn is_live(name: &str) -> bool {
    live_table(name).is_some() || name == "error_codes"
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
    let mut source = TableSource { name: name.to_owned(), columns: spec.sql_columns(), parts: Vec::new() };
    let path = |part: &str| format!("{FOLDER}/{name}-{}-{part}.parquet", hands.clock.random_id(12));
    let lake = hands.lake.scratch();
    let mut writer = lake.writer(&path("rows"), &spec.part_schema())?;
    match live_table(name) {
        None => writer.write(error_codes())?,
        Some(table) => {
            let mut cursor = LiveCursor::default();
            loop {
                let (mut rows, next) = hands.ledger.read_live(table, cursor, CHUNK).await?;
                if table == LiveTable::Deliveries {
                    add_message_ids(&mut rows);
                }
                if let (LiveTable::Runs, Some(ending)) = (table, ending) {
                    ending.apply(&mut rows);
                }
                writer.write(rows)?;
                match next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
            if table == LiveTable::Deliveries {
                writer = write_unclaimed(hands, writer).await?;
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

/// Removes what [`export`] wrote, when nobody reads it any more.
///
/// # Errors
///
/// [`StageError::Lake`] when a file cannot be removed.
pub fn discard(hands: &Hands, source: &TableSource) -> Result<(), StageError> {
    let lake = hands.lake.scratch();
    for part in &source.parts {
        if let Ok(relative) = part.strip_prefix(lake.root()) {
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
    Ok(Some((TableSource { name: "_forgotten".to_owned(), columns: Vec::new(), parts: vec![part] }, salt)))
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

/// `client_msg_id` follows from run, stage and seq; the ledger does not store it.
fn add_message_ids(rows: &mut Rows) {
    let text = |name: &str| match rows.columns.iter().find(|(own, _)| own == name) {
        Some((_, Values::Text(values))) => values.clone(),
        _ => Vec::new(),
    };
    let (runs, stages) = (text("run_id"), text("stage"));
    let seqs = match rows.columns.iter().find(|(own, _)| own == "seq") {
        Some((_, Values::Integer(values))) => values.clone(),
        _ => Vec::new(),
    };
    let ids = runs
        .into_iter()
        .zip(stages)
        .zip(seqs)
        .map(|((run, stage), seq)| {
            let seq = u64::try_from(seq?).ok()?;
            Some(client_msg_id(&RunId::new(run?), &StageName::new(stage?), seq))
        })
        .collect();
    rows.columns.push(("client_msg_id".to_owned(), Values::Text(ids)));
}

/// Recipients of live pushes that nobody claimed yet: pending, or skipped for the reason the rest was.
async fn write_unclaimed(hands: &Hands, mut writer: PartWriter) -> Result<PartWriter, StageError> {
    for push in hands.ledger.live_pushes().await? {
        if push.claimed_to >= push.recipients || push.set_path.is_empty() {
            continue;
        }
        let engine = hands.engine.single_threaded();
        let set = hands.lake.absolute(&push.set_path);
        writer = tokio::task::spawn_blocking(move || {
            let session = engine.session()?;
            session.add_table(&TableSource { name: "set".to_owned(), columns: Vec::new(), parts: vec![set] })?;
            session.stream::<StageError>(&unclaimed_sql(&push), &Params::new(), |rows| {
                writer.write(rows)?;
                Ok(true)
            })?;
            Ok::<_, StageError>(writer)
        })
        .await??;
    }
    Ok(writer)
}

fn unclaimed_sql(push: &Push) -> String {
    let state = if push.rest_reason.is_some() { "skipped" } else { "pending" };
    let reason = push.rest_reason.as_deref().map_or("cast(null as varchar)".to_owned(), text);
    format!(
        "select run_id, pipeline, {stage} as stage, account, seq, openid, unionid, {template} as template_id,
                '{state}' as state, {reason} as reason,
                substr(sha256(concat_ws('/', run_id, {stage}, seq)), 1, 32) as client_msg_id, 0 as attempts,
                {is_test} as is_test
         from \"set\" where arm = 'send' and seq > {claimed}",
        stage = text(push.stage.as_str()),
        template = text(push.template_id.as_str()),
        claimed = push.claimed_to,
        is_test = push.is_test,
    )
}
