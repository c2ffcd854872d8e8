//! Whom a set would hold if it were made now: the same judgement as the stage's own, counted and not written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{check_staleness, filter};
use crate::config::settings::MaterializeRecipients;
use crate::engine::TableSource;
use crate::stage::{StageContext, StageError, blocking, live, sql};

/// Whom the set would hold.
#[derive(Debug, Clone)]
pub struct Forecast {
    pub given: u64,
    pub send: u64,
    pub holdout: u64,
    pub left_out: BTreeMap<String, u64>,
}

/// Judges everybody the SELECT gives over the tables as they stand; nothing when a table it reads was never made.
///
/// # Errors
///
/// What the stage itself would fail with: its SQL, data that is too old, people who follow nobody.
pub async fn forecast(cx: &StageContext<'_>, plan: &MaterializeRecipients) -> Result<Option<Forecast>, StageError> {
    let tables = sql::tables_read(cx, &plan.sql.text).await?;
    let was_made = |table: &String| live::is_live(table) || cx.visible.slices(table).next().is_some();
    if !tables.iter().all(was_made) {
        return Ok(None);
    }
    let sources = sql::sources(cx, &plan.sql.text).await?;
    let mut written = sources.clone();
    let judged = async {
        // What the pipeline itself makes will be young when the set is made.
        let of_others: Vec<TableSource> =
            sources.iter().filter(|source| !is_made_here(cx, &source.name)).cloned().collect();
        check_staleness(cx, plan, &of_others)?;
        let filter = filter(cx, plan, sources, (PathBuf::new(), PathBuf::new())).await?;
        written.extend([&filter.marks, &filter.suppressions].into_iter().chain(&filter.deliveries).cloned());
        blocking(&cx.hands.engine, cx.stop, move |session| filter.count(session)).await
    }
    .await;
    remove_written_out(cx, &written)?;
    let judged = judged?;
    Ok(Some(Forecast {
        given: judged.given,
        send: judged.send,
        holdout: judged.holdout,
        left_out: judged.reasons.into_iter().collect(),
    }))
}

fn is_made_here(cx: &StageContext<'_>, table: &str) -> bool {
    let pipeline = cx.hands.settings.pipelines.get(&cx.run.pipeline);
    let mut stages = pipeline.into_iter().flat_map(|pipeline| &pipeline.stages);
    stages.any(|stage| stage.table.as_ref().is_some_and(|own| own.as_str() == table))
}

/// What the ledger feeds was written out for the engine; a forecast leaves nothing behind.
fn remove_written_out(cx: &StageContext<'_>, sources: &[TableSource]) -> Result<(), StageError> {
    for part in sources.iter().flat_map(|source| &source.parts) {
        let Ok(relative) = part.strip_prefix(cx.hands.lake.root()) else { continue };
        if relative.starts_with(live::FOLDER) {
            cx.hands.lake.remove(&relative.to_string_lossy())?;
        }
    }
    Ok(())
}
