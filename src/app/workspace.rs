//! The settings of a workspace, checked as far as that is possible without running anything.

use std::collections::BTreeMap;
use std::path::Path;

use super::{AppError, engine};
use crate::config::settings::Settings;
use crate::config::{self, Environment, Problems};
use crate::domain::AccountName;
use crate::ledger::Ledger;
use crate::scheduler::check::{self, KnownTables};
use crate::stage::moved;
use crate::stage::tables::Visible;

/// What became of reading and checking a workspace.
#[derive(Debug)]
pub struct Checked {
    /// The settings, when nothing is wrong.
    pub settings: Option<Settings>,
    pub problems: Problems,
    /// Accounts that nothing is done for now, though nothing in the files is wrong: why, and what to do.
    pub refused: BTreeMap<AccountName, String>,
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
        (None, None) => return Ok(Checked { settings: None, problems, refused: BTreeMap::new() }),
    };
    let (known, refused) = known(&settings).await;
    let known = KnownTables { unread, ..known };
    tokio::task::spawn_blocking(move || {
        check::check(&settings, &engine(&settings), &known, &mut problems)?;
        let settings = (is_sound && problems.is_empty()).then_some(settings);
        Ok(Checked { settings, problems, refused })
    })
    .await?
}

/// What the ledger tells: what tables hold, and which accounts were moved. A ledger that cannot be read is told by who needs it;
/// here it only means that less is known.
async fn known(settings: &Settings) -> (KnownTables, BTreeMap<AccountName, String>) {
    let Ok(Some(ledger)) = Ledger::open_to_read(&settings.ledger.path).await else { return Default::default() };
    let mut refused = BTreeMap::new();
    let tables = match ledger.current_snapshots().await {
        Ok(snapshots) => {
            let known = KnownTables::of_snapshots(&snapshots);
            let mut visible = Visible::default();
            visible.add(snapshots);
            for account in settings.accounts.values() {
                let why = moved::refusal_now(&ledger, &visible, (&account.name, &account.app_id)).await;
                refused.extend(why.ok().flatten().map(|why| (account.name.clone(), why)));
            }
            known
        }
        Err(_) => KnownTables::default(),
    };
    ledger.close().await;
    (tables, refused)
}
