//! Serving on a workspace of its own: SQL pipelines only, so that nobody is called. Time is moved, never waited for.

use std::path::Path;
use std::time::Duration;

use chrono::{NaiveDate, TimeDelta};
use chrono_tz::Asia::Shanghai;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::reload::Watcher;
use super::*;
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Environment};
use crate::domain::{PipelineName, RunStatus};
use crate::ledger::{Fire, RunChange};

const NIGHTLY: &str = "schedule = \"0 30 2 * * *\"\n[stages.numbers]\nkind = \"sql\"\n";

/// A workspace with one nightly pipeline.
struct Workspace(tempfile::TempDir);

impl Workspace {
    fn new() -> Self {
        let workspace = Self(tempfile::tempdir().unwrap());
        workspace.write("config/lianbo.toml", "timezone = \"Asia/Shanghai\"\n[server]\ntoken = \"sesame\"\n");
        workspace.pipeline("nightly", NIGHTLY);
        workspace
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn pipeline(&self, name: &str, text: &str) {
        self.write(&format!("pipelines/{name}/numbers.sql"), "select 1 as a");
        let table = format!("{text}table = \"{name}_numbers\"\n");
        self.write(&format!("pipelines/{name}.toml"), &table);
    }

    /// Settings that pass for a process's own environment.
    async fn app(&self, now: Timestamp) -> App {
        let loaded = config::load(self.root(), &Environment::default());
        let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.problems));
        App::open(settings, clock_at(now)).await.unwrap()
    }

    fn root(&self) -> &Path {
        self.0.path()
    }
}

/// A clock that shows `now`, or a little later.
fn clock_at(now: Timestamp) -> Clock {
    Clock::with_offset(now - Clock::default().now())
}

/// A time in November 2026, in the workspace's zone.
fn at(day: u32, hour: u32, minute: u32) -> Timestamp {
    let local = NaiveDate::from_ymd_opt(2026, 11, day).unwrap().and_hms_opt(hour, minute, 0).unwrap();
    local.and_local_timezone(Shanghai).unwrap().to_utc()
}

/// A scheduler that lives in this test.
struct Scheduler {
    app: App,
    clockwork: Clockwork,
    runners: Runners,
}

impl Scheduler {
    /// Begins to be awake at `now`, and looks.
    async fn awake(workspace: &Workspace, now: Timestamp) -> Self {
        let app = workspace.app(now).await;
        let runners = Runners::new(app.metrics.clone(), CancellationToken::new());
        let clockwork = Clockwork::new(runners.clone(), app.metrics.clone(), now);
        let mut scheduler = Self { app, clockwork, runners };
        scheduler.look(now).await;
        scheduler
    }

    /// Looks at `now`, and lets what it began come to its end.
    async fn look(&mut self, now: Timestamp) {
        self.app.conductor.hands.clock = clock_at(now);
        self.clockwork.look(&self.app.conductor).await.unwrap();
        assert!(self.runners.settle(Duration::from_secs(60)).await);
    }

    /// Oldest first: pipeline, local time, outcome and reason.
    async fn fires(&self) -> Vec<String> {
        let told = |fire: Fire| {
            let local = fire.scheduled_for.with_timezone(&Shanghai).format("%d %H:%M");
            let outcome = fire.outcome.unwrap_or_else(|| "open".to_owned());
            format!("{} {local} {outcome} {}", fire.pipeline, fire.reason.unwrap_or_default()).trim().to_owned()
        };
        let fires = self.app.hands().ledger.recent_fires(100).await.unwrap();
        fires.into_iter().rev().map(told).collect()
    }

    async fn runs(&self, pipeline: &str) -> Vec<RunStatus> {
        let runs = self.app.hands().ledger.latest_runs(100, Some(&PipelineName::new(pipeline))).await.unwrap();
        runs.into_iter().rev().map(|run| run.status).collect()
    }

    /// Leaves a pipeline's latest run as somebody else might.
    async fn leave(&self, pipeline: &str, status: RunStatus, reason: &str) {
        let ledger = &self.app.hands().ledger;
        let pipeline = PipelineName::new(pipeline);
        let run = ledger.latest_runs(1, Some(&pipeline)).await.unwrap().remove(0);
        let holder = Holder::this_process("somebody".to_owned());
        let name = crate::scheduler::conductor::lease_name(&pipeline);
        let Acquired::Mine(lease) = ledger.acquire_lease(&name, &holder, Duration::from_secs(60)).await.unwrap() else {
            panic!("the run is still carried");
        };
        let change = RunChange { status, reason: Some(reason.to_owned()), waiting_until: None };
        ledger.set_run_status(&lease, &run.run_id, change, self.app.hands().clock.now()).await.unwrap();
        ledger.release_lease(&lease).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_time_makes_one_run_and_the_next_day_another() {
    let workspace = Workspace::new();
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    assert!(scheduler.fires().await.is_empty(), "a schedule seen now never reaches back");
    for now in [at(24, 2, 29), at(24, 2, 30), at(24, 2, 30), at(24, 2, 31), at(24, 12, 0), at(25, 2, 30)] {
        scheduler.look(now).await;
    }
    assert_eq!(scheduler.fires().await, ["nightly 24 02:30 run", "nightly 25 02:30 run"]);
    assert_eq!(scheduler.runs("nightly").await, [RunStatus::Succeeded; 2]);
    let run = scheduler.app.hands().ledger.latest_runs(1, None).await.unwrap().remove(0);
    assert_eq!((run.trigger.as_str(), run.scheduled_for), ("schedule", Some(at(25, 2, 30))));
    assert_eq!(run.today, NaiveDate::from_ymd_opt(2026, 11, 25).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_on_one_ledger_make_one_run_of_a_scheduled_time() {
    let workspace = Workspace::new();
    let mut one = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    let mut two = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    for day in 24..28 {
        tokio::join!(one.look(at(day, 2, 30)), two.look(at(day, 2, 30)));
        tokio::join!(one.look(at(day, 2, 31)), two.look(at(day, 2, 31)));
    }
    assert_eq!(one.runs("nightly").await, [RunStatus::Succeeded; 4]);
    assert_eq!(one.fires().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_of_days_the_newest_time_runs_and_the_others_are_skipped() {
    let workspace = Workspace::new();
    let mut before = Scheduler::awake(&workspace, at(20, 12, 0)).await;
    before.look(at(21, 2, 30)).await;
    let after = Scheduler::awake(&workspace, at(24, 9, 0)).await;
    let superseded = "skipped a later scheduled time was due as well";
    let expected = [
        "nightly 21 02:30 run".to_owned(),
        format!("nightly 22 02:30 {superseded}"),
        format!("nightly 23 02:30 {superseded}"),
        "nightly 24 02:30 run".to_owned(),
    ];
    assert_eq!(after.fires().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_was_taken_by_a_process_that_died_is_run_by_the_next() {
    let workspace = Workspace::new();
    let before = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    let nightly = PipelineName::new("nightly");
    assert!(before.app.hands().ledger.claim_fire(&nightly, at(24, 2, 30), at(24, 2, 30)).await.unwrap());
    let after = Scheduler::awake(&workspace, at(24, 2, 35)).await;
    assert_eq!(after.fires().await, ["nightly 24 02:30 run"]);
    assert_eq!(after.runs("nightly").await, [RunStatus::Succeeded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_comes_while_a_run_is_halted_or_waits_and_is_skipped_with_the_reason() {
    let workspace = Workspace::new();
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    scheduler.look(at(24, 2, 30)).await;
    scheduler.leave("nightly", RunStatus::Halted, "too many failed").await;
    scheduler.look(at(25, 2, 30)).await;
    scheduler.leave("nightly", RunStatus::Waiting, "waits for approval: somebody's").await;
    scheduler.look(at(26, 2, 30)).await;
    let fires = scheduler.fires().await;
    for (fire, (day, why)) in fires[1..].iter().zip([(25, "is halted: too many failed"), (26, "waits for approval")]) {
        assert!(fire.starts_with(&format!("nightly {day} 02:30 skipped run ")) && fire.contains(why), "{fire}");
    }
    assert_eq!(fires.len(), 3);
    assert_eq!(scheduler.runs("nightly").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_is_closed_by_the_next_scheduled_time() {
    let workspace = Workspace::new();
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    scheduler.look(at(24, 2, 30)).await;
    scheduler.leave("nightly", RunStatus::Failed, "no answer").await;
    scheduler.look(at(25, 2, 30)).await;
    assert_eq!(scheduler.runs("nightly").await, [RunStatus::Cancelled, RunStatus::Succeeded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_were_interrupted_or_lost_their_process_go_on() {
    let workspace = Workspace::new();
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    scheduler.look(at(24, 2, 30)).await;
    for (status, reason) in [(RunStatus::Waiting, "interrupted"), (RunStatus::Running, "")] {
        scheduler.leave("nightly", status, reason).await;
        let next = Scheduler::awake(&workspace, at(24, 3, 0)).await;
        assert_eq!(next.runs("nightly").await, [RunStatus::Succeeded], "{reason}");
    }
    scheduler.leave("nightly", RunStatus::Waiting, "waits for approval: somebody's").await;
    let next = Scheduler::awake(&workspace, at(24, 3, 0)).await;
    assert_eq!(next.runs("nightly").await, [RunStatus::Waiting]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_waits_for_a_success_since_the_other_pipelines_last_time_and_gives_up_at_its_own_next() {
    let workspace = Workspace::new();
    workspace
        .pipeline("campaign", "schedule = \"0 0 10 * * *\"\nafter = [\"nightly\"]\n[stages.numbers]\nkind = \"sql\"\n");
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    scheduler.look(at(24, 2, 30)).await;
    scheduler.leave("nightly", RunStatus::Halted, "a guard").await;
    scheduler.look(at(24, 10, 0)).await;
    assert_eq!(scheduler.fires().await[1], "campaign 24 10:00 open waits for `nightly`");
    scheduler.leave("nightly", RunStatus::Succeeded, "").await;
    scheduler.look(at(24, 10, 5)).await;
    assert_eq!(scheduler.fires().await[1], "campaign 24 10:00 run");
    scheduler.look(at(25, 2, 30)).await;
    scheduler.leave("nightly", RunStatus::Halted, "a guard").await;
    scheduler.look(at(25, 10, 0)).await;
    scheduler.look(at(26, 10, 0)).await;
    let fires = scheduler.fires().await;
    let gave_up = "campaign 25 10:00 skipped waits for `nightly`, until the next scheduled time came";
    assert!(fires.iter().any(|fire| fire == gave_up), "{fires:?}");
    assert_eq!(scheduler.runs("campaign").await, [RunStatus::Succeeded]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_taken_over_when_they_are_sound_and_refused_once_when_not() {
    let workspace = Workspace::new();
    let app = workspace.app(at(23, 12, 0)).await;
    let mut watcher = Watcher::new(workspace.root());
    assert!(watcher.look(&app).await.is_none());
    workspace.pipeline("weekly", "schedule = \"0 0 4 * * 1\"\n[stages.numbers]\nkind = \"sql\"\n");
    assert!(watcher.look(&app).await.is_none(), "files that were just written may be half written");
    let changed = watcher.look(&app).await.expect("the change is taken over");
    let names: Vec<&str> = changed.hands().settings.pipelines.keys().map(PipelineName::as_str).collect();
    assert_eq!(names, ["nightly", "weekly"]);
    workspace.pipeline("weekly", "schedule = \"never\"\n[stages.numbers]\nkind = \"sql\"\n");
    for _ in 0..3 {
        assert!(watcher.look(&changed).await.is_none());
    }
    std::fs::remove_file(workspace.root().join("pipelines/weekly.toml")).unwrap();
    assert!(watcher.look(&changed).await.is_none());
    let changed = watcher.look(&changed).await.expect("a removed pipeline is a change");
    assert_eq!(changed.hands().settings.pipelines.len(), 1);
}

/// A server that runs in a task.
struct Running {
    port: u16,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start(workspace: &Workspace, listen: &str, is_standby: bool) -> Result<Self, ServeError> {
        let app = workspace.app(at(23, 12, 0)).await;
        let options = Options { listen: listen.parse().unwrap(), is_standby };
        let server = Server::start(app, &options).await?;
        let (port, stop) = (server.address().port(), CancellationToken::new());
        let task = tokio::spawn(server.run(stop.clone()));
        Ok(Self { port, stop, task })
    }

    /// The status and the body of a GET.
    async fn get(&self, path: &str, headers: &str) -> (u16, String) {
        let mut line = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: lianbo\r\nconnection: close\r\n{headers}\r\n");
        line.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        line.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn stop(self) -> Result<(), ServeError> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_answered_and_nothing_else() {
    let workspace = Workspace::new();
    let server = Running::start(&workspace, "127.0.0.1:0", false).await.unwrap();
    assert_eq!(server.get("/healthz", "").await, (200, "alive\n".to_owned()));
    assert_eq!(server.get("/readyz", "").await, (200, "ready\n".to_owned()));
    let (status, metrics) = server.get("/metrics", "").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("lianbo_waiting_runs 0\n"), "{metrics}");
    let next = format!("lianbo_next_fire_timestamp_seconds{{pipeline=\"nightly\"}} {}\n", at(24, 2, 30).timestamp());
    assert!(metrics.contains(&next), "{metrics}");
    assert_eq!(server.get("/callback/main", "").await.0, 404);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_be_asked_by_others_wants_its_token_for_the_metrics_alone() {
    let workspace = Workspace::new();
    let server = Running::start(&workspace, "0.0.0.0:0", false).await.unwrap();
    assert_eq!(server.get("/metrics", "").await.0, 401);
    assert_eq!(server.get("/metrics", "authorization: Bearer sesam\r\n").await.0, 401);
    assert_eq!(server.get("/metrics", "authorization: Bearer sesame\r\n").await.0, 200);
    assert_eq!(server.get("/healthz", "").await.0, 200);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_serves_and_a_standby_takes_over_when_it_ends() {
    let workspace = Workspace::new();
    let first = Running::start(&workspace, "127.0.0.1:0", false).await.unwrap();
    let refused = Running::start(&workspace, "127.0.0.1:0", false).await;
    assert!(matches!(refused, Err(ServeError::HeldBy { .. })));
    let standby = Running::start(&workspace, "127.0.0.1:0", true).await.unwrap();
    let (status, why) = standby.get("/readyz", "").await;
    assert!(status == 503 && why.starts_with("standing by"), "{status} {why}");
    assert_eq!(standby.get("/healthz", "").await.0, 200);
    first.stop().await.unwrap();
    let ready = async {
        while standby.get("/readyz", "").await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("the standby takes over");
    standby.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_between_looks_counts_as_having_been_away() {
    let workspace = Workspace::new();
    workspace.pipeline("nightly", &format!("catch_up = \"skip\"\n{NIGHTLY}"));
    let mut scheduler = Scheduler::awake(&workspace, at(23, 12, 0)).await;
    scheduler.look(at(24, 2, 30) - TimeDelta::seconds(5)).await;
    scheduler.look(at(24, 2, 30) + TimeDelta::seconds(5)).await;
    scheduler.look(at(25, 8, 0)).await;
    let fires = scheduler.fires().await;
    assert_eq!(fires[0], "nightly 24 02:30 run");
    assert!(fires[1].starts_with("nightly 25 02:30 skipped it came while"), "{}", fires[1]);
}
