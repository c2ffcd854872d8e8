//! Notices changed files and builds the house anew from them.
//!
//! A change is taken over when the files have stopped changing from one look to the next, and only when nothing is wrong
//! with them: else what held before goes on, and the problems are told once. Which runs are under which settings is
//! decided by who begins them: a run keeps the settings it began with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::app::{App, Checked, load_and_check};
use crate::config::settings::Settings;
use crate::config::{CONFIG_FILE, Environment};
use crate::scheduler::alert::{Alert, AlertKind};

/// What is looked at: the settings, the variables beside them, the pipelines with their SQL.
const ENVIRONMENT_FILE: &str = ".env";
const PIPELINES: &str = "pipelines";
/// Of the problems, as much as a chat takes.
const SHOWN_CHARACTERS: usize = 400;

/// File → when it was changed and its length.
type Print = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// Watches the files of a workspace.
pub struct Watcher {
    root: PathBuf,
    /// What was last taken over or refused.
    known: Print,
    /// What the last look saw.
    last: Print,
}

impl Watcher {
    /// The files as they are now are those that were read.
    pub fn new(root: &Path) -> Self {
        let print = print_of(root);
        Self { root: root.to_owned(), known: print.clone(), last: print }
    }

    /// The house under the changed files, when they changed and are sound.
    pub async fn look(&mut self, app: &App) -> Option<App> {
        let print = print_of(&self.root);
        let is_settled = print == self.last;
        self.last = print;
        if !is_settled || self.last == self.known {
            return None;
        }
        self.known.clone_from(&self.last);
        let environment = Environment::of_process(&self.root);
        let refused = match load_and_check(&self.root, &environment).await {
            Ok(Checked { settings: Some(settings), .. }) => match rebuilt(app, settings) {
                Ok(changed) => {
                    tracing::info!("the files have changed: runs that begin from now on are under the new settings");
                    return Some(changed);
                }
                Err(why) => why,
            },
            Ok(Checked { problems, .. }) => problems.to_string().trim().to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!("the files have changed and cannot be used; what held before goes on: {refused}");
        let alert = Alert {
            kind: AlertKind::ReloadRefused,
            pipeline: None,
            run_id: None,
            why: refused.chars().take(SHOWN_CHARACTERS).collect(),
            command: "lianbo check".to_owned(),
        };
        let alerts = app.conductor.alerts.clone();
        tokio::spawn(async move { alerts.send(&alert).await });
        None
    }
}

fn rebuilt(app: &App, settings: Settings) -> Result<App, String> {
    let held = &app.hands().settings;
    if settings.ledger.path != held.ledger.path || settings.lake.root != held.lake.root {
        return Err("another [ledger] or [lake] takes a new start of `lianbo serve`".to_owned());
    }
    if settings.server.listen != held.server.listen {
        tracing::warn!("another [server] listen takes a new start of `lianbo serve`");
    }
    app.with_settings(settings).map_err(|error| error.to_string())
}

/// Files that cannot be looked at are as good as not there: reading them says what is wrong.
fn print_of(root: &Path) -> Print {
    let mut print = Print::new();
    note(&root.join(CONFIG_FILE), &mut print);
    note(&root.join(ENVIRONMENT_FILE), &mut print);
    note_folder(&root.join(PIPELINES), &mut print);
    print
}

fn note(path: &Path, print: &mut Print) {
    if let Ok(metadata) = std::fs::metadata(path) {
        print.insert(path.to_owned(), (metadata.modified().ok(), metadata.len()));
    }
}

fn note_folder(folder: &Path, print: &mut Print) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => note_folder(&entry.path(), print),
            _ => note(&entry.path(), print),
        }
    }
}
