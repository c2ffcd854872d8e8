//! `lianbo plan`: what a run would do; spends and changes nothing.

use std::fmt::Write;

use chrono_tz::Tz;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::run::{find_pipeline, params};
use super::table::{grouped, plain};
use super::words::{local, plural, rate, span};
use crate::app::{self, App};
use crate::scheduler::plan::{CallPlan, PlanRequest, PlanView, ReadPlan, StagePlan, plan};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline: a file of pipelines/ without .toml
    pipeline: String,
    /// A parameter in place of the pipeline's own (NAME=VALUE, repeatable)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.checked_settings().await?;
    let pipeline = find_pipeline(&settings, &args.pipeline)?;
    let params = params(pipeline, &args.params)?;
    let app = App::open_to_read(settings.clone(), context.clock).await?;
    let engine = app.as_ref().map_or_else(|| app::engine(&settings), |app| app.hands().engine.clone());
    let request = PlanRequest {
        settings: &settings,
        house: app.as_ref().map(App::hands),
        engine: &engine,
        clock: context.clock,
        pipeline,
        params: &params,
    };
    let view = plan(&request).await?;
    if let Some(app) = &app {
        app.hands().ledger.close().await;
    }
    context.print(&view, |view| describe(view, settings.timezone));
    Ok(Exit::Done)
}

fn describe(view: &PlanView, zone: Tz) -> String {
    let mut text = match &view.continues {
        Some(run_id) => format!("`lianbo run {}` would go on with run {run_id}:", view.pipeline),
        None => format!("`lianbo run {}` would begin a new run:", view.pipeline),
    };
    let _ = write!(
        text,
        "\n\n{}",
        plain(&["stage", "kind", "rows", "messages", "calls"], view.stages.iter().map(stage_row))
    );
    for stage in &view.stages {
        for note in &stage.notes {
            let _ = write!(text, "\n{}: {note}", stage.name);
        }
    }
    for why in view.refused.values() {
        let _ = write!(text, "\n\nas things stand it would fail: {why}");
    }
    if !view.accounts.is_empty() {
        let rows = view.accounts.iter().flat_map(|(account, calls)| {
            calls.iter().map(move |(endpoint, call)| call_row(account.as_str(), endpoint, *call))
        });
        let header = ["account", "calls", "needed", "left today", "a day", ""];
        let _ = write!(text, "\n\n{}", plain(&header, rows));
    }
    for read in &view.reads {
        let _ = write!(text, "\n\n{}", reading(read, zone));
    }
    if let Some(messages) = view.messages.filter(|messages| *messages > 0) {
        let _ = write!(text, "\n\n{}", sending(view, messages, zone));
    }
    text.push_str("\n\nnothing was sent, spent or changed");
    text
}

fn stage_row(stage: &StagePlan) -> Vec<String> {
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), grouped);
    let calls: Vec<String> = stage.calls.iter().map(|(name, n)| format!("{name} {}", number(*n))).collect();
    let is_push = stage.kind == "push_template";
    let calls = if stage.is_done { "done".to_owned() } else { calls.join(", ") };
    let messages = if is_push && !stage.is_done { number(stage.messages) } else { String::new() };
    let rows = if is_push { String::new() } else { number(stage.rows) };
    vec![stage.name.clone(), stage.kind.clone(), rows, messages, calls]
}

fn call_row(account: &str, endpoint: &str, call: CallPlan) -> Vec<String> {
    let is_short = call.needed.zip(call.left_today).is_some_and(|(needed, left)| needed > left);
    vec![
        account.to_owned(),
        endpoint.to_owned(),
        call.needed.map_or_else(|| "?".to_owned(), grouped),
        call.left_today.map(grouped).unwrap_or_default(),
        call.limit.map_or_else(|| "no limit known".to_owned(), grouped),
        if is_short { "more than is left today" } else { "" }.to_owned(),
    ]
}

/// A line, and one for each day where there are several.
fn reading(read: &ReadPlan, zone: Tz) -> String {
    let pace = if read.is_assumed { "assumed, nothing was run yet" } else { "as in the last run" };
    let mut text = format!(
        "{}: {} {} of {} at {} ({pace})",
        read.account,
        grouped(read.calls),
        plural(read.calls, "call", "calls"),
        read.endpoint,
        rate(read.calls_per_second)
    );
    for day in read.days.iter().filter(|_| read.days.len() > 1) {
        let _ = write!(text, "\n  {}  {}", day.date, grouped(day.calls));
    }
    match read.ends_at {
        Some(at) => {
            let _ = write!(text, "\nthe last one about {}", local(at, zone));
        }
        None => text.push_str("\nno day of the next year has room for all of them: raise the quota"),
    }
    text
}

fn sending(view: &PlanView, messages: u64, zone: Tz) -> String {
    let mut text = format!(
        "{} {}, {} of sending at the set rate",
        grouped(messages),
        plural(messages, "message", "messages"),
        span(view.seconds)
    );
    for day in &view.days {
        let _ = write!(text, "\n  {}  {}", day.date, grouped(day.messages));
    }
    if let Some(at) = view.ends_at {
        let _ = write!(text, "\nthe last one about {}", local(at, zone));
    }
    if view.would_expire > 0 {
        let _ = write!(text, "\n{} would expire unsent", grouped(view.would_expire));
    }
    text
}
