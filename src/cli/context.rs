//! What every command shares: the workspace, its settings, the house, and how results are printed.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use crate::app::{self, App};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, Environment};
use crate::domain::AccountName;
use crate::engine;

/// The arguments all commands take, and the clock.
#[derive(Debug)]
pub struct Context {
    pub workspace: Option<PathBuf>,
    pub is_json: bool,
    pub is_quiet: bool,
    pub clock: Clock,
}

impl Context {
    /// The workspace's folder.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] saying where was looked.
    pub fn root(&self) -> Result<PathBuf, Failure> {
        config::find_workspace(self.workspace.as_deref()).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// The settings, without binding SQL: for commands that run none of the pipelines.
    ///
    /// # Errors
    ///
    /// [`Failure::Problems`].
    pub fn settings(&self) -> Result<Settings, Failure> {
        let root = self.root()?;
        let loaded = config::load(&root, &Environment::of_process(&root));
        match loaded.settings {
            Some(settings) => Ok(settings),
            None => Err(Failure::Problems(loaded.problems)),
        }
    }

    /// The settings with every SQL bound against the declared tables: before anything runs.
    ///
    /// # Errors
    ///
    /// [`Failure::Problems`] with all problems at once.
    pub async fn checked_settings(&self) -> Result<Settings, Failure> {
        self.checked().await.map(|(settings, _)| settings)
    }

    /// The same, and why nothing is done for an account now, where that is so.
    ///
    /// # Errors
    ///
    /// As [`checked_settings`](Self::checked_settings).
    pub async fn checked(&self) -> Result<(Settings, BTreeMap<AccountName, String>), Failure> {
        let root = self.root()?;
        let environment = Environment::of_process(&root);
        let checked = app::load_and_check(&root, &environment).await?;
        let settings = checked.settings.ok_or(Failure::Problems(checked.problems))?;
        Ok((settings, checked.refused))
    }

    /// The house, its ledger created where it is missing.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn app(&self, settings: Settings) -> Result<App, Failure> {
        // Opening the ledger is waiting for the disk, and whoever runs something writes a catalog in the end.
        tokio::task::spawn_blocking(engine::make_ready);
        let app = App::open(settings, self.clock).await?;
        if let Err(error) = crate::scheduler::catalog::repair(app.hands()).await {
            tracing::warn!("the catalog could not be written: {error}");
        }
        Ok(app)
    }

    /// The house of a workspace that ran before, for orders about what ran.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when nothing ran yet.
    pub async fn existing_app(&self) -> Result<App, Failure> {
        let settings = self.settings()?;
        let root = settings.root.clone();
        App::open_existing(settings, self.clock).await?.ok_or_else(|| nothing_ran(&root))
    }

    /// The same for commands that only look: the data folder need not be writable.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when nothing ran yet.
    pub async fn app_to_read(&self) -> Result<App, Failure> {
        let settings = self.settings()?;
        let root = settings.root.clone();
        App::open_to_read(settings, self.clock).await?.ok_or_else(|| nothing_ran(&root))
    }

    /// The same, where an answer is due though nothing ran: the tables are empty then.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn app_to_ask(&self) -> Result<App, Failure> {
        let settings = self.settings()?;
        match App::open_to_read(settings.clone(), self.clock).await? {
            Some(app) => Ok(app),
            None => Ok(App::blank(settings, self.clock).await?),
        }
    }

    /// Prints `value` as JSON where that was asked for, else what `human` makes of it.
    pub fn print<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) {
        if self.is_json {
            let json = serde_json::to_string(value).expect("results are plain data");
            print_line(&json);
        } else {
            print_line(human(value).trim_end());
        }
    }

    /// Whether a person sits there who can be asked.
    pub fn is_interactive(&self) -> bool {
        !self.is_json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }
}

fn nothing_ran(root: &std::path::Path) -> Failure {
    Failure::Usage(format!("nothing ran in {} yet; begin with `lianbo run PIPELINE`", root.display()))
}

/// Prints a line on stdout; a closed pipe is not a failure.
pub fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// Cancelled by the first Ctrl-C or SIGTERM.
pub fn stop_on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let interrupted = tokio::signal::ctrl_c();
        let mut terminated = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::warn!("SIGTERM cannot be heard: {error}");
                let _ = interrupted.await;
                return told.cancel();
            }
        };
        tokio::select! {
            _ = interrupted => {}
            _ = terminated.recv() => {}
        }
        eprintln!("stopping: what is in flight is settled first");
        told.cancel();
    });
    stop
}

/// Who orders something: the user of this machine, for `audit`.
pub fn who() -> String {
    let number = || std::fs::metadata("/proc/self").map_or("unknown".to_owned(), |own| format!("uid {}", own.uid()));
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| number());
    format!("{user} (command line)")
}

/// The outcome of a run as an exit.
pub fn exit_of(view: &crate::scheduler::view::RunView) -> Exit {
    Exit::of(view.status)
}
