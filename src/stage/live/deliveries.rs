//! `deliveries` as parts: a push that is over is written out once, one that goes on each time anew.
//!
//! The ledger counts the changes of a push's deliveries; a file holds for the count it was written at. An event that comes
//! late, or a person who is forgotten, makes it be written once more.

use std::path::PathBuf;

use super::{CHUNK, Hands, StageError};
use crate::domain::tables::table_spec;
use crate::domain::{RunId, StageName, Values, client_msg_id};
use crate::engine::{Params, TableSource, text};
use crate::lake::PartWriter;
use crate::ledger::{LiveCursor, LiveTable, Push};

/// Where they are written out, relative to the lake.
const FOLDER: &str = "work/deliveries";

/// The file of a push that is over, written now if there is none of this version; nothing while the push goes on, and none
/// is written by whoever only reads.
pub(super) async fn written(hands: &Hands, push: &Push) -> Result<Option<PathBuf>, StageError> {
    let (ledger, lake) = (&hands.ledger, &hands.lake);
    if let Some(path) = push.written_path.as_ref().map(|path| lake.absolute(path)).filter(|path| path.exists()) {
        return Ok(Some(path));
    }
    if ledger.is_to_read() || !ledger.is_over(push.key).await? {
        return Ok(None);
    }
    let path = format!("{FOLDER}/{}-{}.parquet", push.key, hands.clock.random_id(12));
    let spec = table_spec("deliveries").expect("deliveries is declared");
    let writer = write(hands, lake.writer(&path, &spec.part_schema())?, push).await?;
    if writer.rows() == 0 {
        writer.discard()?;
        return Ok(None);
    }
    let part = writer.finish()?;
    if ledger.keep_written(push.key, push.deliveries_version, &part.path).await? {
        return Ok(Some(lake.absolute(&part.path)));
    }
    // Something changed while it was written: this is of no single moment.
    lake.remove(&part.path)?;
    Ok(None)
}

/// Writes a push's deliveries: the ledger's rows, then who was not claimed.
pub(super) async fn write(hands: &Hands, mut writer: PartWriter, push: &Push) -> Result<PartWriter, StageError> {
    let mut cursor = Some(LiveCursor::of_push(push.key));
    while let Some(from) = cursor {
        let (mut rows, next) = hands.ledger.read_live(LiveTable::Deliveries, from, CHUNK).await?;
        add_message_ids(&mut rows);
        writer.write(rows)?;
        cursor = next;
    }
    write_unclaimed(hands, writer, push).await
}

/// `client_msg_id` follows from run, stage and seq; the ledger does not store it.
fn add_message_ids(rows: &mut crate::domain::Rows) {
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

/// Recipients that nobody claimed yet: pending, or skipped for the reason the rest was.
async fn write_unclaimed(hands: &Hands, mut writer: PartWriter, push: &Push) -> Result<PartWriter, StageError> {
    if push.claimed_to >= push.recipients || push.set_path.is_empty() {
        return Ok(writer);
    }
    let engine = hands.sparing_engine().single_threaded();
    let (push, set) = (push.clone(), hands.lake.absolute(&push.set_path));
    tokio::task::spawn_blocking(move || {
        let session = engine.session()?;
        session.add_table(&TableSource {
            name: "set".to_owned(),
            columns: Vec::new(),
            parts: vec![set],
            sql: None,
            are_alike: false,
        })?;
        session.stream::<StageError>(&unclaimed_sql(&push), &Params::new(), |rows| {
            writer.write(rows)?;
            Ok(true)
        })?;
        Ok(writer)
    })
    .await?
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
