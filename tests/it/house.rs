//! A house for one story: a workspace written by hand in a temporary folder, its own WeChat, and the real program.
//!
//! Stories come in by the user's door alone: commands with their exit code and `--json`, and `lianbo sql`. What WeChat's
//! side saw is asked of the simulator. When a house is torn down, the counts of every push it ever made must add up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use lianbo::clock::{Clock, Timestamp};
use lianbo::simulator::{Options, SALE_TEMPLATE_ID, Simulator, write_users_csv};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub const EXPORT: &str = "data/exports/mall/users.csv";

pub const NIGHTLY: &str = r#"
description = "the night"
[stages.followers]
kind = "extract_followers"
[stages.profiles]
kind = "enrich_unionids"
[stages.mall_users]
kind = "load_users"
miniprogram = "mall"
source.files = "data/exports/mall/*.csv"
columns = { updated_at = "last_login" }
[stages.identities]
kind = "join_identities"
[stages.coverage]
kind = "measure_coverage"
segments = ["city", "subscribe_scene"]
"#;

pub const AUDIENCE: &str = "select oa_openid as openid, unionid, mp_openid from identities where account = 'main'\n";

/// A world that a story takes seconds with: 600 followers on four pages, 700 users, 400 of them followers.
pub fn small() -> Options {
    Options { followers: 600, users: 700, matched_users: 400, page_size: 200, ..Options::default() }
}

/// The same with this many people to send to at most.
pub fn crowd(matched_users: u64) -> Options {
    let people = matched_users + matched_users / 8;
    Options { followers: people, users: people, matched_users, page_size: 1_000, ..Options::default() }
}

pub struct House {
    folder: TempDir,
    pub simulator: Simulator,
    pub clock_offset_seconds: AtomicI64,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no document ({error}): {self:?}"))
    }

    /// Fails the story unless the command ended with `code`.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// A stage of a run's report.
    #[track_caller]
    pub fn stage(&self, name: &str) -> Value {
        let json = self.json();
        let stages = json["stages"].as_array().unwrap_or_else(|| panic!("no stages: {json}")).clone();
        stages.into_iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("no stage {name}: {json}"))
    }

    /// A push's seven counts: recipients, sent, failed, skipped, held, unconfirmed, pending.
    #[track_caller]
    pub fn counts(&self) -> [u64; 7] {
        let push = self.stage("push");
        let counts = ["recipients", "sent", "failed", "skipped", "held", "unconfirmed", "pending"]
            .map(|name| push["detail"][name].as_u64().unwrap_or_else(|| panic!("no count {name}: {push}")));
        assert_eq!(counts[0], counts[1..].iter().sum::<u64>(), "the states do not add up: {push}");
        counts
    }

    /// Everything it printed.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl House {
    pub async fn build(options: Options) -> Self {
        let simulator = Simulator::start(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let house = Self { folder, simulator, clock_offset_seconds: AtomicI64::new(0) };
        house.write("config/lianbo.toml", &config(&house.simulator.base_url()));
        house.write("pipelines/nightly.toml", NIGHTLY);
        house.write("pipelines/campaign.toml", &campaign(""));
        house.write("pipelines/campaign/audience.sql", AUDIENCE);
        house.export();
        house
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces the one place of a file that says `from`.
    #[track_caller]
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert_eq!(text.matches(from).count(), 1, "{name} says {from:?} not once");
        self.write(name, &text.replace(from, to));
    }

    /// The mini program hands over its users.
    pub fn export(&self) {
        let mut bytes = Vec::new();
        write_users_csv(&mut bytes, &self.simulator.options().users_options()).unwrap();
        self.write(EXPORT, std::str::from_utf8(&bytes).unwrap());
    }

    /// The campaign, with further keys of its push.
    pub fn campaign(&self, keys: &str) {
        self.write("pipelines/campaign.toml", &campaign(keys));
    }

    /// Lets time pass for both sides.
    pub fn pass(&self, seconds: i64) {
        self.clock_offset_seconds.fetch_add(seconds, Ordering::SeqCst);
        self.simulator.advance(seconds);
    }

    pub fn now(&self) -> Timestamp {
        let offset = chrono::TimeDelta::seconds(self.clock_offset_seconds.load(Ordering::SeqCst));
        Clock::with_offset(offset).now()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lianbo"));
        let is_told = |name: &str| name.starts_with("LIANBO_") || name.starts_with("AWS_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_told(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .env("LIANBO_CLOCK_OFFSET_SECONDS", self.clock_offset_seconds.load(Ordering::SeqCst).to_string())
            .env("LIANBO_MAIN_SECRET", SECRET)
            .arg("--workspace")
            .arg(self.root())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn lianbo(&self, arguments: &[&str]) -> Outcome {
        outcome(self.command(arguments).output().await.unwrap())
    }

    /// Runs a pipeline for its report.
    pub async fn run(&self, pipeline: &str, more: &[&str]) -> Outcome {
        self.lianbo(&[&["run", pipeline, "--yes", "--json"], more].concat()).await
    }

    /// The night has to go well.
    pub async fn night(&self) -> Outcome {
        self.run("nightly", &[]).await.ends(0)
    }

    /// Starts a pipeline in a process that is left to the story.
    pub fn begin(&self, pipeline: &str) -> Child {
        self.command(&["run", pipeline, "--yes", "--json"]).spawn().unwrap()
    }

    /// The rows of a query, as text; NULL is empty.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> impl Future<Output = Vec<Vec<String>>> {
        let command = self.command(&["sql", sql, "--format", "csv", "--raw"]).output();
        let sql = sql.to_owned();
        async move {
            let outcome = outcome(command.await.unwrap());
            assert_eq!(outcome.code, 0, "{sql}: {}", outcome.stderr);
            let mut reader = csv::Reader::from_reader(outcome.stdout.as_bytes());
            reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
        }
    }

    /// A query of one row.
    pub async fn row(&self, sql: &str) -> Vec<String> {
        let mut rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.remove(0)
    }

    /// A query of one row, all numbers.
    pub async fn numbers(&self, sql: &str) -> Vec<u64> {
        let row = self.row(sql).await;
        row.iter().map(|cell| cell.parse().unwrap_or_else(|_| panic!("{sql}: {row:?}"))).collect()
    }

    /// Calls that arrived at an endpoint so far.
    pub fn calls(&self, endpoint: &str) -> u64 {
        self.simulator.calls().get(endpoint).copied().unwrap_or_default()
    }

    /// Everybody who can be matched has exactly one message, and nobody else has any.
    #[track_caller]
    pub fn everybody_has_one(&self) {
        let inbox = self.simulator.inbox();
        let matchable = self.simulator.matchable();
        let without: Vec<&String> = matchable.iter().filter(|openid| self.simulator.received(openid) == 0).collect();
        assert_eq!(without, Vec::<&String>::new(), "were missed; {inbox:?}");
        assert_eq!((inbox.once, inbox.twice_or_more), (wide(matchable.len()), 0), "{inbox:?}");
    }

    /// How many can be matched.
    pub fn matchable(&self) -> u64 {
        wide(self.simulator.matchable().len())
    }

    /// Every file below the workspace with its bytes, sorted.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![self.root().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
                }
            }
        }
        files
    }
}

impl Drop for House {
    /// Whatever the story did to it, the recipients of every push must be accounted for.
    fn drop(&mut self) {
        if std::thread::panicking() || !self.path("data/ledger.db").exists() {
            return;
        }
        let sql = "select count(*) as n from pushes
                   where recipients <> sent + failed + skipped + held + unconfirmed + pending";
        let said = std::process::Command::new(env!("CARGO_BIN_EXE_lianbo"))
            .env("LIANBO_MAIN_SECRET", SECRET)
            .arg("--workspace")
            .arg(self.root())
            .args(["sql", sql, "--format", "csv"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert_eq!(text.trim(), "n\n0", "pushes whose counts do not add up: {}", String::from_utf8_lossy(&said.stderr));
    }
}

/// What a child left to the story ended with.
pub async fn ended(child: Child) -> Outcome {
    outcome(child.wait_with_output().await.unwrap())
}

pub fn outcome(output: std::process::Output) -> Outcome {
    use std::os::unix::process::ExitStatusExt as _;
    let code = output.status.code().or_else(|| output.status.signal().map(|signal| -signal)).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Sends a signal to a child that runs.
pub fn signal(child: &Child, signal: &str) {
    let id = child.id().expect("the child has not been waited for").to_string();
    let status = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
    assert!(status.success());
}

/// Waits until the condition holds, and fails the story after `limit`.
#[track_caller]
pub fn eventually(limit: Duration, condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let mut condition = condition;
    looking(limit, Duration::from_millis(10), async move || condition())
}

/// As [`eventually`], for a condition that a command is asked for.
#[track_caller]
pub fn comes_true(limit: Duration, condition: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    looking(limit, Duration::from_millis(200), condition)
}

/// The limit is counted in looks: while this process or the machine stands still nobody looks, and no patience is lost.
#[track_caller]
fn looking(limit: Duration, every: Duration, mut condition: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let from = std::panic::Location::caller();
    async move {
        let mut look = tokio::time::interval(every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for _ in 0..limit.as_millis() / every.as_millis() {
            if condition().await {
                return;
            }
            look.tick().await;
        }
        panic!("it did not come within {limit:?} of looking: {from}");
    }
}

pub fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}

pub fn config(api_base: &str) -> String {
    format!(
        r#"timezone = "Asia/Shanghai"
[accounts.main]
app_id = "wx0000000000000000"
app_secret = "${{LIANBO_MAIN_SECRET}}"
api_base = "{api_base}"
timeout = "3s"
[miniprograms.mall]
app_id = "wx1111111111111111"
[engine]
memory_limit = "1GB"
threads = 1
"#
    )
}

pub fn campaign(keys: &str) -> String {
    let rate = if keys.contains("rate =") { "" } else { "rate = \"5000/s\"" };
    format!(
        r#"[params]
product = "秋季特惠"
[stages.audience]
kind = "materialize_recipients"
account = "main"
[stages.push]
kind = "push_template"
account = "main"
recipients = "audience"
template_id = "{SALE_TEMPLATE_ID}"
miniprogram = {{ name = "mall", pagepath = "pages/sale/index?u={{{{ mp_openid }}}}" }}
data = {{ thing1 = "{{{{ product }}}}", time2 = "{{{{ now | datetime }}}}", amount3 = "99.00元" }}
{rate}
{keys}
"#
    )
}
