//! The settings of a workspace, checked as far as that is possible without running anything.

use std::path::Path;

use super::{AppError, engine};
use crate::config::settings::Settings;
use crate::config::{self, Environment, Problems};
use crate::ledger::Ledger;
use crate::scheduler::check::{self, KnownTables};

/// What became of reading and checking a workspace.
#[derive(Debug)]
pub struct Checked {
    /// The settings, when nothing is wrong.
    pub settings: Option<Settings>,
    pub problems: Problems,
}

/// Reads the files of the workspace at `root` and checks them together with their SQL and messages, so that all problems
/// are told at once. Calls nobody and makes nothing; a ledger that is there already tells what tables hold now.
///
/// # Errors
///
/// [`AppError::Engine`] when DuckDB does not start. Problems of the files are no error.
pub async fn load_and_check(root: &Path, environment: &Environment) -> Result<Checked, AppError> {
    let loaded = config::load(root, environment);
    let mut problems = loaded.problems;
    let is_sound = loaded.settings.is_some();
    let (settings, unread) = match (loaded.settings, loaded.draft) {
        (Some(settings), _) => (settings, Default::default()),
        (None, Some(draft)) => (draft.settings, draft.unread_tables),
        (None, None) => return Ok(Checked { settings: None, problems }),
    };
    let known = KnownTables { unread, ..known_tables(&settings).await };
    tokio::task::spawn_blocking(move || {
        check::check(&settings, &engine(&settings), &known, &mut problems)?;
        let settings = (is_sound && problems.is_empty()).then_some(settings);
        Ok(Checked { settings, problems })
    })
    .await?
}

/// A ledger that cannot be read is told by who needs it; here it only means that less is known.
async fn known_tables(settings: &Settings) -> KnownTables {
    let Ok(Some(ledger)) = Ledger::open_to_read(&settings.ledger.path).await else { return KnownTables::default() };
    let known = match ledger.current_snapshots().await {
        Ok(snapshots) => KnownTables::of_snapshots(&snapshots),
        Err(_) => KnownTables::default(),
    };
    ledger.close().await;
    known
}
