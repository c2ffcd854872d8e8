//! `lianbo status`: one look at the workspace; exit 1 when a person is needed.

use std::fmt::Write;

use chrono_tz::Tz;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::runs::PROCESS_GONE;
use super::table::{grouped, plain};
use super::words::{between, local, plural, span};
use crate::app::App;
use crate::clock::Timestamp;
use crate::ledger::EVERY_ACCOUNT;
use crate::scheduler::status::{DataAge, StatusView};
use crate::scheduler::view::RunView;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(context: &Context, _args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let (zone, now) = (settings.timezone, context.clock.now());
    let app = App::open_to_read(settings.clone(), context.clock).await?;
    let ledger = app.as_ref().map(|app| &app.hands().ledger);
    let view = StatusView::of(&settings, ledger, now).await?;
    if let Some(ledger) = ledger {
        ledger.close().await;
    }
    context.print(&view, |view| describe(view, zone));
    Ok(if view.needs_person { Exit::Failed } else { Exit::Done })
}

fn describe(view: &StatusView, zone: Tz) -> String {
    let mut text = format!("workspace {}, {}", view.workspace, local(view.at, zone));
    for freeze in &view.frozen {
        let (name, thaw) = match freeze.account.as_str() {
            EVERY_ACCOUNT => ("every account".to_owned(), "lianbo thaw".to_owned()),
            account => (format!("account `{account}`"), format!("lianbo thaw {account}")),
        };
        let since = local(freeze.at, zone);
        let _ =
            write!(text, "\n\n{name} is frozen since {since}, by {}: nothing is sent; `{thaw}` lifts it", freeze.who);
    }
    if view.has_run {
        if !view.data.is_empty() {
            let rows = view.data.iter().map(|age| data_row(age, zone));
            let _ = write!(text, "\n\n{}", plain(&["data of", "table", "rows", "as of", "age"], rows));
        }
        let rows = view.runs.iter().map(|run| run_row(run, view.at, zone));
        let _ = write!(text, "\n\n{}", plain(&["pipeline", "status", "when", "run"], rows));
        for run in view.runs.iter().filter(|run| run.next.is_some()) {
            let _ = write!(text, "\n\n{}", open_matter(run, view.at, zone));
        }
    } else {
        text.push_str(
            "\n\nnothing ran here yet; begin with `lianbo run PIPELINE`, or let `lianbo serve` wait for the schedule",
        );
    }
    let _ = write!(text, "\n\n{}\n\n{}", quota(view, zone), fires(view, zone));
    let serve = match &view.serve {
        Some(serve) => format!("serve lives: process {} on {}", serve.pid, serve.host),
        None => "serve is not running: schedules do not fire, and nothing goes on by itself".to_owned(),
    };
    let _ = write!(text, "\n\n{serve}");
    text
}

fn data_row(age: &DataAge, zone: Tz) -> Vec<String> {
    let side = if age.side == "account" { "account" } else { "mini program" };
    vec![
        format!("{side} {}", age.name),
        age.table.to_string(),
        age.rows.map(grouped).unwrap_or_default(),
        age.as_of.map_or_else(|| "never".to_owned(), |at| local(at, zone)),
        age.age_seconds.map(span).unwrap_or_default(),
    ]
}

fn run_row(run: &RunView, now: Timestamp, zone: Tz) -> Vec<String> {
    let when = match run.ended_at {
        Some(at) => format!("{}, {} ago", local(at, zone), between(at, now)),
        None => format!("since {}", local(run.started_at, zone)),
    };
    let status = if run.process_gone { PROCESS_GONE } else { run.status.as_str() };
    vec![run.pipeline.clone(), status.to_owned(), when, run.run_id.clone()]
}

/// Why a run is not at its end, until when, and what goes on with it.
fn open_matter(run: &RunView, now: Timestamp, zone: Tz) -> String {
    let mut text = if run.process_gone {
        format!("`{0}` is {PROCESS_GONE}; the next lianbo run {0}, or serve, takes it over", run.pipeline)
    } else {
        format!("`{}` is {}", run.pipeline, run.status.as_str())
    };
    if let Some(until) = run.waiting_until {
        let _ = write!(text, " until {} (in {})", local(until, zone), between(now, until));
    }
    if let Some(reason) = &run.reason {
        let _ = write!(text, ": {}", reason.replace('\n', "\n  "));
    }
    if let Some(step) = &run.next {
        let _ = write!(
            text,
            "\n  {}: {}",
            if step.needs_person { "needs you" } else { "goes on with" },
            step.commands.join(", then ")
        );
    }
    text
}

fn quota(view: &StatusView, zone: Tz) -> String {
    let rows = view.quota.iter().map(|one| {
        let mut notes = Vec::new();
        if one.is_exhausted {
            notes.push("WeChat refuses more today".to_owned());
        }
        if one.reserve > 0 {
            notes.push(format!("{} of what is left for service pushes", grouped(one.reserve)));
        }
        if let Some(told) = one.wechat {
            notes.push(format!("WeChat said {} used at {}", grouped(told.used), local(told.at, zone)));
        }
        vec![
            one.account.to_string(),
            one.endpoint.to_owned(),
            grouped(one.used),
            if one.reserved > 0 { grouped(one.reserved) } else { String::new() },
            one.left_today.map_or_else(|| "no limit known".to_owned(), grouped),
            notes.join("; "),
        ]
    });
    plain(&["account", &format!("calls on {}", view.quota_day), "used", "of it under way", "left", ""], rows)
}

fn fires(view: &StatusView, zone: Tz) -> String {
    if view.fires.is_empty() {
        return "no pipeline has a schedule".to_owned();
    }
    let lines: Vec<String> = view
        .fires
        .iter()
        .map(|fire| {
            let when = match fire.at {
                Some(at) => format!("fires {} (in {})", local(at, zone), between(view.at, at)),
                None => "fires no more".to_owned(),
            };
            let after: Vec<&str> = fire.after.iter().map(|name| name.as_str()).collect();
            let count = u64::try_from(after.len()).unwrap_or(u64::MAX);
            let after = match count {
                0 => String::new(),
                _ => format!(", after {} {}", plural(count, "pipeline", "pipelines"), after.join(", ")),
            };
            format!("{} {when}{after}", fire.pipeline)
        })
        .collect();
    lines.join("\n")
}
