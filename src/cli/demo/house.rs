//! The demo's house: the unpacked workspace, its simulator, and this very program as a child process in it.
//!
//! Children see none of the caller's `LIANBO_` variables: an address of the real WeChat that is exported in the shell must
//! not reach them. Their logs are warnings alone, so that the bars stay whole.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::super::context::Context;
use super::super::exit::Failure;
use super::super::init::{EXPORTS, write_new};
use super::super::simulate::{Export, write_export};
use super::tally::Failed;
use crate::app::App;
use crate::clock::Clock;
use crate::config::{self, Environment, workspace_files};
use crate::domain::{Counts, PipelineName, RunStatus};
use crate::ledger::Push;
use crate::simulator::{Options, SALE_TEMPLATE_ID, Simulator};

/// The campaign's parameter that takes in everybody who can be reached.
pub const EVERY_CITY: &[&str] = &["--param", "city=*"];
/// The line of the shipped campaign that is sped up, so that the push takes seconds instead of minutes.
const SHIPPED_RATE: &str = "rate = \"50/s\"";
/// How long the whole push would take, in seconds, as far as the rates allow.
const PUSH_SECONDS: u64 = 10;
/// Sends a second, least and most.
const RATES: (u64, u64) = (50, 2_500);
/// Failures that are shown.
const MOST_FAILURES: u32 = 20;

pub struct House {
    pub root: PathBuf,
    pub simulator: Simulator,
    pub export: Export,
    /// Sends a second.
    pub rate: u64,
    /// This very program.
    pub program: PathBuf,
    clock: Clock,
    environment: Vec<(&'static str, String)>,
}

/// A run as the child reports it.
#[derive(Debug, Deserialize)]
pub struct Ended {
    pub run_id: String,
    pub pipeline: String,
    pub status: RunStatus,
    pub reason: Option<String>,
    pub seconds: f64,
    pub stages: Vec<EndedStage>,
}

#[derive(Debug, Deserialize)]
pub struct EndedStage {
    pub name: String,
    pub status: String,
    pub rows_out: u64,
    pub seconds: f64,
    pub api_calls: std::collections::BTreeMap<String, u64>,
    pub detail: Value,
}

impl Ended {
    pub fn stage(&self, name: &str) -> Option<&EndedStage> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Rows the stage made; 0 when there is no such stage.
    pub fn rows_of(&self, name: &str) -> u64 {
        self.stage(name).map_or(0, |stage| stage.rows_out)
    }
}

impl House {
    /// Unpacks the workspace into `folder` (or a temporary one that stays) and starts its world.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the folder has something in it.
    pub async fn build(context: &Context, folder: Option<PathBuf>, options: Options) -> Result<Self, Failure> {
        let root = choose(folder)?;
        let simulator = Simulator::start(options).await.context("starting the simulator")?;
        let options = simulator.options();
        let environment = vec![
            ("LIANBO_API_BASE", simulator.base_url()),
            ("LIANBO_MAIN_APP_ID", options.app_id.clone()),
            ("LIANBO_MAIN_SECRET", options.app_secret.clone()),
            ("LIANBO_MALL_APP_ID", options.miniprogram_app_id.clone()),
            ("LIANBO_TEMPLATE_ID", SALE_TEMPLATE_ID.to_owned()),
        ];
        let rate = (options.matched_users / PUSH_SECONDS).clamp(RATES.0, RATES.1);
        unpack(&root, rate, &environment)?;
        let export = write_export(&root.join(EXPORTS).join("users.csv"), options)?;
        let program = std::env::current_exe().context("finding this program")?;
        Ok(Self { root, simulator, export, rate, program, clock: context.clock, environment })
    }

    pub fn options(&self) -> &Options {
        self.simulator.options()
    }

    /// Runs a pipeline to its end.
    pub async fn run(&self, pipeline: &str, more: &[&str]) -> Result<Ended, Failure> {
        let arguments = [&["run", pipeline, "--yes"], more].concat();
        let json = self.json(&arguments).await?;
        Ok(serde_json::from_value(json).with_context(|| format!("reading the report of `lianbo run {pipeline}`"))?)
    }

    /// Starts a pipeline; its report goes nowhere.
    pub fn begin(&self, pipeline: &str, more: &[&str]) -> Result<Child, Failure> {
        let arguments = [&["run", pipeline, "--yes", "--json"], more].concat();
        let mut command = self.command(&arguments);
        Ok(command.stdout(Stdio::null()).spawn().with_context(|| format!("starting `lianbo run {pipeline}`"))?)
    }

    /// Runs a command for its document.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let doing = || format!("running `lianbo {}`", arguments.join(" "));
        let mut command = self.command(&[arguments, &["--json"]].concat());
        let output = command.stdout(Stdio::piped()).output().await.with_context(doing)?;
        let document = serde_json::from_slice(&output.stdout)
            .map_err(|_| anyhow!("it ended with {} and without a document", output.status))
            .with_context(doing)?;
        Ok(document)
    }

    /// Runs a command for people to read.
    pub async fn show(&self, arguments: &[&str]) -> Result<(), Failure> {
        let doing = || format!("running `lianbo {}`", arguments.join(" "));
        let status = self.command(arguments).status().await.with_context(doing)?;
        if status.success() { Ok(()) } else { Err(Failure::Other(anyhow!("{}: it ended with {status}", doing()))) }
    }

    /// What the ledger says of the campaign's push.
    pub async fn push_counts(&self) -> Result<Counts, Failure> {
        let (app, push) = self.push().await?;
        let counts = push.counts;
        app.hands().ledger.close().await;
        Ok(counts)
    }

    /// Whom the campaign did not reach, and why.
    pub async fn failures(&self) -> Result<Vec<Failed>, Failure> {
        let (app, push) = self.push().await?;
        let rows = app.hands().ledger.failures(push.key, 0, MOST_FAILURES).await?;
        app.hands().ledger.close().await;
        Ok(rows.into_iter().map(Failed::of).collect())
    }

    async fn push(&self) -> Result<(App, Push), Failure> {
        let environment = Environment::from_pairs(self.environment.iter().map(|(name, value)| (*name, value.as_str())));
        let loaded = config::load(&self.root, &environment);
        let settings = loaded.settings.ok_or(Failure::Problems(loaded.problems))?;
        let app = App::open_existing(settings, self.clock).await?.ok_or_else(|| anyhow!("the ledger is gone"))?;
        let ledger = &app.hands().ledger;
        let campaign = PipelineName::new("campaign");
        let run =
            ledger.latest_runs(1, Some(&campaign)).await?.pop().ok_or_else(|| anyhow!("there was no campaign"))?;
        let push = ledger.pushes_of(&run.run_id).await?.pop().ok_or_else(|| anyhow!("the campaign has no push yet"))?;
        Ok((app, push))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LIANBO_") {
                command.env_remove(name);
            }
        }
        command
            .env("LIANBO_LOG", "warn")
            .arg("--workspace")
            .arg(&self.root)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

fn choose(folder: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let Some(folder) = folder else {
        let folder = tempfile::Builder::new().prefix("lianbo-demo-").tempdir().context("making a temporary folder")?;
        return Ok(folder.keep());
    };
    let making = || format!("making {}", folder.display());
    std::fs::create_dir_all(&folder).with_context(making)?;
    if std::fs::read_dir(&folder).with_context(making)?.next().is_some() {
        let folder = folder.display();
        return Err(Failure::Usage(format!("{folder} is not empty; name a new folder with --in, or leave --in out")));
    }
    Ok(folder.canonicalize().with_context(making)?)
}

fn unpack(root: &Path, rate: u64, environment: &[(&str, String)]) -> Result<(), Failure> {
    for (path, text) in workspace_files() {
        let text = match *path {
            "pipelines/campaign.toml" => text.replace(SHIPPED_RATE, &format!("rate = \"{rate}/s\"")),
            _ => (*text).to_owned(),
        };
        write_new(&root.join(path), &text)?;
    }
    let lines: String = environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    write_new(&root.join(".env"), &format!("# The simulator of `lianbo demo`.\n{lines}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_campaign_has_the_rate_and_the_parameter_that_the_demo_changes() {
        let file = |name| workspace_files().iter().find(|(path, _)| *path == name).unwrap().1;
        assert_eq!(file("pipelines/campaign.toml").matches(SHIPPED_RATE).count(), 1);
        assert!(file("pipelines/campaign/audience.sql").contains("$city = '*'"));
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine"), "").unwrap();
        assert!(matches!(choose(Some(folder.path().to_owned())), Err(Failure::Usage(_))));
        assert!(choose(Some(folder.path().join("new"))).unwrap().is_dir());
    }
}
