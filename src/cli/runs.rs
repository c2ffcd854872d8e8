//! `lianbo runs`: past runs; one with its stages, counts, calls and errors. [`describe`] is also how `lianbo run` ends.

use std::fmt::Write;

use chrono_tz::Tz;
use serde::Serialize;
use serde_json::Value;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::run_name::find_run;
use super::table::{grouped, plain};
use super::words::{local, local_to_the_second, span};
use crate::app::App;
use crate::clock::Timestamp;
use crate::domain::{PipelineName, RunStatus};
use crate::ledger::Run;
use crate::scheduler::view::{RunView, StageView, is_carried_out};

/// How a run stands that nobody carries out though it came to no end.
pub const PROCESS_GONE: &str = "running, but its process is gone";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run: its id, the beginning of it, or a pipeline's name (its latest run)
    run: Option<String>,
    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    pipeline: Option<String>,
    /// How many, latest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

#[derive(Debug, Serialize)]
struct Runs {
    runs: Vec<Line>,
}

/// A run without its stages.
#[derive(Debug, Serialize)]
struct Line {
    run_id: String,
    pipeline: String,
    status: RunStatus,
    /// As in a run's own report.
    process_gone: bool,
    waiting_until: Option<Timestamp>,
    reason: Option<String>,
    trigger: String,
    scheduled_for: Option<Timestamp>,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    seconds: f64,
    attempt: u32,
    is_test: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let zone = settings.timezone;
    let Some(app) = App::open_to_read(settings, context.clock).await? else {
        if let Some(name) = args.run {
            return Err(Failure::Usage(format!("there is no run `{name}`: nothing ran here yet")));
        }
        context.print(&Runs { runs: Vec::new() }, |runs| listed(runs, zone));
        return Ok(Exit::Done);
    };
    let ledger = &app.hands().ledger;
    let now = context.clock.now();
    if let Some(name) = &args.run {
        let run = find_run(app.hands(), name).await?;
        let view = RunView::of(ledger, &run, now).await?;
        context.print(&view, |view| describe(view, zone));
    } else {
        let pipeline = args.pipeline.map(PipelineName::new);
        let runs = ledger.latest_runs(args.limit, pipeline.as_ref()).await?;
        let mut lines = Vec::with_capacity(runs.len());
        for run in runs {
            let process_gone = run.status == RunStatus::Running && !is_carried_out(ledger, &run).await?;
            lines.push(Line::of(run, process_gone, now));
        }
        let runs = Runs { runs: lines };
        context.print(&runs, |runs| listed(runs, zone));
    }
    ledger.close().await;
    Ok(Exit::Done)
}

impl Line {
    fn of(run: Run, process_gone: bool, now: Timestamp) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a run are far below 2^53")]
        let seconds = (run.ended_at.unwrap_or(now) - run.started_at).num_microseconds().unwrap_or(0) as f64 / 1e6;
        Self {
            run_id: run.run_id.to_string(),
            pipeline: run.pipeline.to_string(),
            status: run.status,
            process_gone,
            waiting_until: run.waiting_until,
            reason: run.reason,
            trigger: run.trigger,
            scheduled_for: run.scheduled_for,
            started_at: run.started_at,
            ended_at: run.ended_at,
            seconds,
            attempt: run.attempt,
            is_test: run.is_test,
        }
    }
}

fn listed(runs: &Runs, zone: Tz) -> String {
    if runs.runs.is_empty() {
        return "nothing ran yet; begin with `lianbo run PIPELINE`".to_owned();
    }
    let rows = runs.runs.iter().map(|run| {
        let test = if run.is_test { " (test)" } else { "" };
        vec![
            run.run_id.clone(),
            format!("{}{test}", run.pipeline),
            if run.process_gone { PROCESS_GONE.to_owned() } else { run.status.as_str().to_owned() },
            local_to_the_second(run.started_at, zone),
            span(run.seconds),
            run.trigger.clone(),
            run.reason.as_deref().map(|reason| first_line(reason, 60)).unwrap_or_default(),
        ]
    });
    plain(&["run", "pipeline", "status", "started", "time", "begun by", "why"], rows)
}

/// The first line of a text, cut where it is too long for a table.
fn first_line(text: &str, most: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= most && line.len() == text.trim_end().len() {
        return line.to_owned();
    }
    line.chars().take(most).chain(std::iter::once('…')).collect()
}

/// A run for people: how it stands and why, a line for each stage, what became of each push, and what goes on with it.
pub fn describe(view: &RunView, zone: Tz) -> String {
    let mut text = format!("run {} of `{}`: {}", view.run_id, view.pipeline, headline(view, zone));
    for line in view.reason.iter().flat_map(|reason| reason.lines()) {
        let _ = write!(text, "\n  {line}");
    }
    if !view.stages.is_empty() {
        let header = ["stage", "status", "rows in", "rows out", "time", "calls"];
        let _ = write!(text, "\n\n{}", plain(&header, view.stages.iter().map(row)));
    }
    for stage in &view.stages {
        if let Some(error) = stage.error.as_deref().filter(|error| Some(*error) != view.reason.as_deref()) {
            let _ = write!(text, "\n{}: {}", stage.name, error.replace('\n', "\n  "));
        }
        if let Some(counts) = counts(stage) {
            let _ = write!(text, "\n{}: {counts}", stage.name);
        } else if let Some(set) = set(stage) {
            let _ = write!(text, "\n{}: {set}", stage.name);
        } else if let Some(discarded) = discarded(stage) {
            let _ = write!(text, "\n{}: {discarded}", stage.name);
        } else if let Some(kept_out) = stage.detail.get("forgotten").and_then(Value::as_u64).filter(|n| *n > 0) {
            let _ =
                write!(text, "\n{}: {} kept out, who still follow and were forgotten", stage.name, grouped(kept_out));
        }
    }
    if let Some(step) = &view.next {
        let _ = write!(text, "\n\nit goes on with: {}", step.commands.join(", then "));
        if !step.needs_person {
            text.push_str(" (or by itself, under `lianbo serve`)");
        }
    }
    text
}

fn headline(view: &RunView, zone: Tz) -> String {
    let took = span(view.seconds);
    let since = local(view.started_at, zone);
    match view.status {
        RunStatus::Running if view.process_gone => {
            format!("{PROCESS_GONE} (begun {since}); lianbo run {} takes it over", view.pipeline)
        }
        RunStatus::Running => format!("running, since {since}"),
        RunStatus::Waiting => match view.waiting_until {
            Some(until) => format!("waiting until {}", local(until, zone)),
            None => "waiting".to_owned(),
        },
        RunStatus::Halted => format!("halted by a guard (begun {since})"),
        RunStatus::Failed => format!("failed after {took}"),
        RunStatus::Partial => format!("partial: not all of it could be made, in {took}"),
        RunStatus::Succeeded => format!("succeeded in {took}"),
        RunStatus::Cancelled => format!("cancelled (begun {since})"),
    }
}

fn row(stage: &StageView) -> Vec<String> {
    let calls: Vec<String> = stage.api_calls.iter().map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
    vec![
        stage.name.clone(),
        stage.status.to_owned(),
        grouped(stage.rows_in),
        grouped(stage.rows_out),
        span(stage.seconds),
        calls.join(", "),
    ]
}

/// The counts of a push stage, those that are not zero; `sent` always.
fn counts(stage: &StageView) -> Option<String> {
    let count = |name: &str| stage.detail.get(name).and_then(Value::as_u64);
    let recipients = count("recipients").filter(|_| stage.kind == "push_template")?;
    let mut said = vec![format!("{} of {} sent", grouped(count("sent")?), grouped(recipients))];
    for name in ["failed", "skipped", "held", "unconfirmed", "pending"] {
        if let Some(n) = count(name).filter(|n| *n > 0) {
            said.push(format!("{} {name}", grouped(n)));
        }
    }
    Some(said.join(", "))
}

/// Answers for details that told of nobody, and who is asked for again because of them.
fn discarded(stage: &StageView) -> Option<String> {
    let accounts =
        stage.detail.get("accounts").and_then(Value::as_array).filter(|_| stage.kind == "enrich_unionids")?;
    let sum = |name: &str| accounts.iter().filter_map(|account| account.get(name).and_then(Value::as_u64)).sum::<u64>();
    let (answers, people) = (sum("discarded"), sum("in_doubt"));
    match (answers, people) {
        (0, 0) => None,
        (_, 0) => {
            Some(format!("{} answers could not be believed, and their people were asked for again", grouped(answers)))
        }
        _ => Some(format!(
            "{} answers could not be believed; {} of their people are asked for again on the next night, in smaller batches",
            grouped(answers),
            grouped(people)
        )),
    }
}

/// Who is in a recipient set, and why the others are not.
fn set(stage: &StageView) -> Option<String> {
    let count = |name: &str| stage.detail.get(name).and_then(Value::as_u64);
    let (given, recipients) = (count("given")?, count("recipients")?);
    let mut said = format!("{} given, {} to be sent to", grouped(given), grouped(recipients));
    if let Some(holdout) = count("holdout").filter(|n| *n > 0) {
        let _ = write!(said, ", {} held out", grouped(holdout));
    }
    for (reason, people) in stage.detail.get("left_out").and_then(Value::as_object).into_iter().flatten() {
        let _ = write!(said, ", {} {reason}", grouped(people.as_u64().unwrap_or(0)));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::from_micros;
    use crate::scheduler::next_step::NextStep;

    fn stage(name: &str, kind: &str, detail: Value) -> StageView {
        StageView {
            name: name.to_owned(),
            kind: kind.to_owned(),
            status: "succeeded",
            rows_in: 3000,
            rows_out: 2500,
            seconds: 1.25,
            api_calls: [("user/get".to_owned(), 1)].into(),
            detail,
            error: None,
        }
    }

    #[test]
    fn a_waiting_run_says_why_until_when_and_what_goes_on() {
        let view = RunView {
            run_id: "20261124-0230-ab12".to_owned(),
            pipeline: "campaign".to_owned(),
            status: RunStatus::Waiting,
            process_gone: false,
            waiting_until: Some("2026-11-24T16:02:00Z".parse().unwrap()),
            reason: Some("the day's 1000 sends of account `main` are used up".to_owned()),
            trigger: "hand".to_owned(),
            scheduled_for: None,
            started_at: from_micros(0),
            ended_at: None,
            seconds: 20.0,
            next: Some(NextStep { commands: vec!["lianbo run campaign --continue".to_owned()], needs_person: false }),
            stages: vec![
                stage(
                    "audience",
                    "materialize_recipients",
                    json!({"given": 2600, "recipients": 2500, "left_out": {"gone": 100}}),
                ),
                stage("push", "push_template", json!({"recipients": 2500, "sent": 998, "failed": 2, "pending": 1500})),
            ],
        };
        let said = describe(&view, chrono_tz::Asia::Shanghai);
        for part in [
            "waiting until 2026-11-25 00:02",
            "1000 sends",
            "push: 998 of 2 500 sent, 2 failed, 1 500 pending",
            "audience: 2 600 given, 2 500 to be sent to, 100 gone",
            "it goes on with: lianbo run campaign --continue (or by itself",
        ] {
            assert!(said.contains(part), "{part} is missing from:\n{said}");
        }
    }
}
