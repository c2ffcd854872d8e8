//! A workspace's files, with what a ledger that is there already tells of its tables.

use std::path::{Path, PathBuf};

use super::{Known, check};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, CONFIG_FILE, Environment, Problems};
use crate::engine::Engine;
use crate::lake::Lake;
use crate::ledger::Ledger;

/// Reads the files of the workspace at `root` and checks them together with their SQL and messages. Calls nobody and
/// makes nothing.
///
/// # Errors
///
/// All problems at once.
pub async fn load_and_check(root: &Path, environment: &Environment, clock: Clock) -> Result<Settings, Problems> {
    let loaded = config::load(root, environment);
    let mut problems = loaded.problems;
    let is_sound = loaded.settings.is_some();
    let (settings, unread) = match (loaded.settings, loaded.draft) {
        (Some(settings), _) => (settings, Default::default()),
        (None, Some(draft)) => (draft.settings, draft.unread_tables),
        (None, None) => return Err(problems),
    };
    let known = Known { unread, now: clock.now(), ..known_tables(&settings.ledger.path).await };
    let checked = tokio::task::spawn_blocking(move || {
        let spill = Lake::new(&settings.lake.root).spill();
        let engine = Engine::new(settings.engine.memory_limit.clone(), 1, spill, settings.timezone);
        if let Err(error) = check(&settings, &engine, &known, &mut problems) {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            problems
                .in_file(CONFIG_FILE, format!("DuckDB does not start, so that no SQL could be checked: {why}"))
                .hint("look at memory_limit below [engine]");
        }
        if is_sound && problems.is_empty() { Ok(settings) } else { Err(problems) }
    });
    match checked.await {
        Ok(checked) => checked,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A ledger that cannot be read is told by who needs it; here it only means that less is known.
async fn known_tables(path: &PathBuf) -> Known {
    let Ok(Some(ledger)) = Ledger::open_existing(path).await else { return Known::default() };
    let known = ledger.current_snapshots().await.map(|snapshots| Known::of_snapshots(&snapshots));
    ledger.close().await;
    known.unwrap_or_default()
}
