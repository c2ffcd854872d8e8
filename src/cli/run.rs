//! `lianbo run`: runs a pipeline, or continues its unfinished run, and reports it.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use chrono::NaiveDate;
use futures::future::BoxFuture;
use serde::Serialize;

use super::context::{Context, exit_of, stop_on_signals, who};
use super::exit::{Exit, Failure, chain, of_run};
use super::progress::Bars;
use super::runs::describe;
use crate::clock::{Clock, Timestamp};
use crate::config::nearest;
use crate::config::settings::{ParamValue, Pipeline, Settings, StageKind};
use crate::domain::{PipelineName, RunStatus, StageName};
use crate::ledger::Ledger;
use crate::scheduler::conductor::{Confirm, RunError, RunRequest, Trigger, Watch, lease_name};
use crate::scheduler::next_step::{NextStep, go_on};
use crate::scheduler::view::RunView;

/// How often `--wait` looks whether a waiting run may go on, when nobody knows until when it waits.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline: a file of pipelines/ without .toml
    pipeline: String,
    /// A parameter in place of the pipeline's own (NAME=VALUE, repeatable)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Make this stage's table alone, from the tables as they stand
    #[arg(long, value_name = "STAGE", conflicts_with = "fresh")]
    only: Option<String>,
    /// Measure a day that is over again, from the snapshots that are kept (with --only and a measure_coverage stage)
    #[arg(long, value_name = "YYYY-MM-DD", requires = "only")]
    date: Option<NaiveDate>,
    /// Cancel the unfinished run and begin anew
    #[arg(long)]
    fresh: bool,
    /// Go on with the unfinished run, or follow it; where there is none, say so and begin nothing
    #[arg(long = "continue", conflicts_with_all = ["fresh", "only", "test"])]
    only_continue: bool,
    /// Go on in spite of max_drop; the reason is recorded
    #[arg(long, value_name = "REASON", value_parser = reason)]
    accept_drop: Option<String>,
    /// Send to the push's test_openids alone
    #[arg(long)]
    test: bool,
    /// Wait for quota, window or approval instead of exiting with 75
    #[arg(long)]
    wait: bool,
    /// Do not ask before the first send
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Words that say something to whoever reads the audit.
fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("say why: it is recorded with who gave the command".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.checked_settings().await?;
    let pipeline = find_pipeline(&settings, &args.pipeline)?;
    let mut request = request(pipeline, &args)?;
    refuse_date(&settings, pipeline, &request)?;
    let app = context.app(settings).await?;
    let stop = stop_on_signals();
    let bars = Bars::new(context);
    let confirm: Option<Box<Confirm>> = if context.is_interactive() && !args.yes { Some(Box::new(ask)) } else { None };
    let mut waited_for: Option<String> = None;
    let view = loop {
        let watch = Watch { progress: &bars, confirm: confirm.as_deref(), stop: &stop };
        let view = match app.conductor.run(&request, &watch).await {
            // While this one waited, another process brought it to its end.
            Err(RunError::NothingUnfinished { latest: Some(latest), .. })
                if waited_for.as_ref() == Some(&latest.run_id) =>
            {
                break *latest;
            }
            Err(RunError::NothingUnfinished { pipeline, latest }) => {
                bars.finish();
                Idle::new(&pipeline, latest.as_deref()).print(context);
                app.hands().ledger.close().await;
                return Ok(Exit::Done);
            }
            Err(error) if context.is_json => {
                bars.finish();
                let broken = BrokenOff::of(&app.hands().ledger, &request.pipeline, &error, context.clock.now()).await;
                let Some(broken) = broken else { return Err(of_run(error)) };
                context.print(&broken, |broken| broken.error.clone());
                return Ok(Exit::Failed);
            }
            ended => ended.map_err(of_run)?,
        };
        if view.status != RunStatus::Waiting || !args.wait || stop.is_cancelled() {
            break view;
        }
        // From now on it is this run that is waited for: no other one is begun in its place.
        request.only_continue = true;
        waited_for = Some(view.run_id.clone());
        let now = context.clock.now();
        let until = view.waiting_until.unwrap_or(now + LOOK_AGAIN);
        tokio::select! {
            () = context.clock.sleep_until(until) => {}
            () = stop.cancelled() => break view,
        }
    };
    bars.finish();
    let zone = app.hands().settings.timezone;
    context.print(&view, |view| describe(view, zone));
    app.hands().ledger.close().await;
    Ok(exit_of(&view))
}

/// The report of a run whose end cannot be recorded: how far it came, and why it stopped there.
#[derive(Debug, Serialize)]
struct BrokenOff {
    #[serde(flatten)]
    run: RunView,
    error: String,
}

impl BrokenOff {
    /// Nothing where no run was broken off, or not even that can be read.
    async fn of(ledger: &Ledger, pipeline: &PipelineName, error: &RunError, now: Timestamp) -> Option<Self> {
        let why = match error {
            RunError::Usage(_) | RunError::NothingUnfinished { .. } => return None,
            RunError::Unwritable { .. } => error.to_string(),
            RunError::Ledger(_) | RunError::Stage(_) => chain(error),
        };
        let run = ledger.latest_runs(1, Some(pipeline)).await.ok()?.pop()?;
        let holder = ledger.lease_holder(&lease_name(pipeline)).await.ok()?;
        if holder.is_some_and(|holder| holder.pid != std::process::id()) {
            return None;
        }
        let mut view = RunView::of(ledger, &run, now).await.ok()?;
        if run.status != RunStatus::Running {
            return None;
        }
        view.status = RunStatus::Failed;
        view.process_gone = false;
        view.reason = Some(why.clone());
        view.next = Some(NextStep { commands: vec![go_on(pipeline)], needs_person: true });
        Some(Self { run: view, error: why })
    }
}

/// What `--continue` says where nothing is left to go on with.
#[derive(Debug, Serialize)]
struct Idle<'a> {
    pipeline: &'a PipelineName,
    continued: bool,
    what: String,
    /// The latest run as it stands.
    latest: Option<&'a RunView>,
}

impl<'a> Idle<'a> {
    fn new(pipeline: &'a PipelineName, latest: Option<&'a RunView>) -> Self {
        let what = match latest {
            Some(run) => format!(
                "pipeline `{pipeline}` has no unfinished run (the latest, {}, is {}): nothing is begun; \
                 `lianbo run {pipeline}` begins anew",
                run.run_id,
                run.status.as_str()
            ),
            None => format!("pipeline `{pipeline}` has not run yet: nothing is begun; `lianbo run {pipeline}` begins"),
        };
        Self { pipeline, continued: false, what, latest }
    }

    fn print(&self, context: &Context) {
        context.print(self, |idle| idle.what.clone());
    }
}

/// The pipeline of that name.
///
/// # Errors
///
/// [`Failure::Usage`] with the nearest name.
pub fn find_pipeline<'a>(settings: &'a Settings, name: &str) -> Result<&'a Pipeline, Failure> {
    settings.pipelines.get(name).ok_or_else(|| {
        let known = settings.pipelines.keys().map(PipelineName::as_str);
        let hint = match nearest(name, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
        };
        Failure::Usage(format!("there is no pipeline `{name}`; {hint}"))
    })
}

fn request(pipeline: &Pipeline, args: &Args) -> Result<RunRequest, Failure> {
    let only = args.only.as_deref().map(|name| find_stage(pipeline, name)).transpose()?;
    Ok(RunRequest {
        pipeline: pipeline.name.clone(),
        params: params(pipeline, &args.params)?,
        only,
        date: args.date,
        fresh: args.fresh,
        only_continue: args.only_continue,
        accept_drop: args.accept_drop.clone(),
        is_test: args.test,
        trigger: Trigger::Hand,
        who: who(),
    })
}

/// Only coverage is measured for a day that is over: every other stage takes what is there now.
fn refuse_date(settings: &Settings, pipeline: &Pipeline, request: &RunRequest) -> Result<(), Failure> {
    let Some(date) = request.date else { return Ok(()) };
    let stage = pipeline.stages.iter().find(|stage| Some(&stage.name) == request.only.as_ref());
    if !stage.is_some_and(|stage| matches!(stage.kind, StageKind::MeasureCoverage(_))) {
        let name = request.only.as_ref().map_or("", |name| name.as_str());
        return Err(Failure::Usage(format!(
            "stage `{name}` cannot be run for another day; --date is for a measure_coverage stage"
        )));
    }
    let today = Clock::from_environment().now().with_timezone(&settings.timezone).date_naive();
    if date >= today {
        return Err(Failure::Usage(format!("{date} is not over; without --date the stage measures today")));
    }
    Ok(())
}

fn find_stage(pipeline: &Pipeline, name: &str) -> Result<StageName, Failure> {
    let mut known = pipeline.stages.iter().map(|stage| stage.name.as_str());
    if known.clone().any(|own| own == name) {
        return Ok(StageName::new(name));
    }
    let hint = match nearest(name, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has: {}", known.by_ref().collect::<Vec<_>>().join(", ")),
    };
    Err(Failure::Usage(format!("pipeline `{}` has no stage `{name}`; {hint}", pipeline.name)))
}

/// `NAME=VALUE` texts as values of the declared types.
///
/// # Errors
///
/// [`Failure::Usage`] for a name that is not declared and for a value that is not of its type.
pub fn params(pipeline: &Pipeline, given: &[String]) -> Result<BTreeMap<String, ParamValue>, Failure> {
    let mut params = BTreeMap::new();
    for text in given {
        let (name, value) =
            text.split_once('=').ok_or_else(|| Failure::Usage(format!("--param `{text}` is not NAME=VALUE")))?;
        let declared = pipeline.params.get(name).ok_or_else(|| {
            let hint = nearest(name, pipeline.params.keys().map(String::as_str))
                .map_or_else(|| "declare it under [params]".to_owned(), |near| format!("did you mean `{near}`?"));
            Failure::Usage(format!("pipeline `{}` has no parameter `{name}`; {hint}", pipeline.name))
        })?;
        let wrong = |what: &str| Failure::Usage(format!("--param {name}: `{value}` is not {what}"));
        let value = match declared {
            ParamValue::Text(_) => ParamValue::Text(value.to_owned()),
            ParamValue::Integer(_) => ParamValue::Integer(value.parse().map_err(|_| wrong("a whole number"))?),
            ParamValue::Float(_) => ParamValue::Float(value.parse().map_err(|_| wrong("a number"))?),
            ParamValue::Boolean(_) => ParamValue::Boolean(value.parse().map_err(|_| wrong("true or false"))?),
        };
        params.insert(name.to_owned(), value);
    }
    Ok(params)
}

/// Asks on the terminal; anything but yes is no.
fn ask(question: String) -> BoxFuture<'static, bool> {
    Box::pin(async move {
        let asked = Arc::new(question);
        let answer = tokio::task::spawn_blocking(move || {
            let mut err = std::io::stderr().lock();
            // Without a terminal nobody would be asked; a closed one answers no below.
            let _ = write!(err, "{asked} [y/N] ");
            let _ = err.flush();
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        })
        .await;
        matches!(answer, Ok(Ok(line)) if ["y", "yes"].contains(&line.trim().to_lowercase().as_str()))
    })
}
