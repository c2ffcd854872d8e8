//! `lianbo push show`: how the pushes of a run stand.

use std::fmt::Write;

use chrono_tz::Tz;
use serde::Serialize;

use super::Which;
use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::find_own_pushes;
use crate::cli::table::{grouped, plain};
use crate::cli::words::{bars, local, local_to_the_second, plural, rate, span};
use crate::domain::RunStatus;
use crate::ledger::EVERY_ACCOUNT;
use crate::scheduler::canary_view::{CanaryView, Messages};
use crate::scheduler::next_step::NextStep;
use crate::scheduler::push_view::{PushView, RateView};
use crate::scheduler::view::RunView;

#[derive(Debug, Serialize)]
struct Shown {
    run_id: String,
    pipeline: String,
    status: RunStatus,
    next: Option<NextStep>,
    pushes: Vec<PushView>,
}

pub async fn run(context: &Context, which: Which) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let (hands, now) = (app.hands(), context.clock.now());
    let (run, pushes) = find_own_pushes(hands, &which.run).await?;
    let mut views = Vec::with_capacity(pushes.len());
    for push in pushes {
        views.push(PushView::of(hands, &run, push, now).await?);
    }
    let view = RunView::of(&hands.ledger, &run, now).await?;
    let shown = Shown {
        run_id: view.run_id.clone(),
        pipeline: view.pipeline.clone(),
        status: view.status,
        next: view.next,
        pushes: views,
    };
    let zone = hands.settings.timezone;
    context.print(&shown, |shown| {
        let pushes: Vec<String> = shown.pushes.iter().map(|push| describe(push, zone)).collect();
        let mut text = pushes.join("\n\n");
        if let Some(step) = &shown.next {
            let _ = write!(text, "\n\nit goes on with: {}", step.commands.join(", then "));
        }
        text
    });
    hands.ledger.close().await;
    Ok(Exit::Done)
}

fn describe(push: &PushView, zone: Tz) -> String {
    let test = if push.is_test { ", a test" } else { "" };
    let mut text = format!("push {}/{} of `{}`: {}{test}", push.run_id, push.stage, push.pipeline, push.state);
    if push.state == "sending" && !push.is_carried_out {
        text.push_str(" when its process went away");
    }
    if let Some(since) = push.waits_since {
        let held_up = if push.state == "sending" { ", held up" } else { "" };
        let _ = write!(text, "{held_up} since {}", local(since, zone));
    }
    if let Some(until) = push.waiting_until.filter(|_| matches!(push.state.as_str(), "waiting" | "sending")) {
        let _ = write!(text, " until {}", local(until, zone));
    }
    for line in push.reason.iter().flat_map(|reason| reason.lines()) {
        let _ = write!(text, "\n  {line}");
    }
    let _ = write!(text, "\n\ntemplate {} of account `{}`", push.template_id, push.account);
    let _ = write!(text, "\nfrozen {}", local(push.frozen_at, zone));
    if let Some(hash) = &push.approval_hash {
        let _ = write!(text, ", hash {hash}");
    }
    if let Some(of) = &push.resend_of {
        let _ = write!(text, "\nsends again to failures of {of}");
    }
    for resend in &push.resent_by {
        let (run, status) = (&resend.run_id, resend.status.as_str());
        let _ = write!(text, "\nits failures are sent to again by {run}, {status}: lianbo push show {run}");
    }
    if let Some(account) = &push.frozen {
        let every = account == EVERY_ACCOUNT;
        let named = if every { "every account".to_owned() } else { format!("account `{account}`") };
        let _ = write!(text, "\nthe stop switch of {named} is on: nothing is sent");
    }
    if let (Some(who), Some(at)) = (&push.approved_by, push.approved_at) {
        let _ = write!(text, "\napproved by {who}, {}", local(at, zone));
    }
    if let Some(at) = push.ended_at {
        let _ = write!(text, "\nended {}", local(at, zone));
    }
    let _ = write!(text, "\n\n{}", funnel(push));
    if let Some(view) = &push.canary {
        let _ = write!(text, "\n\n{}", canary(view, zone));
    }
    if !push.errcodes.is_empty() {
        let _ = write!(text, "\n\n{}", codes(push));
    }
    let _ = write!(text, "\n\n{}", speed(&push.rate));
    if let Some(seconds) = push.seconds_left {
        let at = if push.rate.now.is_some() { "at the rate of now" } else { "of sending at the set rate" };
        let _ = write!(text, "\n{} left {at}", span(seconds));
    }
    text
}

/// Which phase the canary is in, and what is known of its messages.
fn canary(view: &CanaryView, zone: Tz) -> String {
    let first = grouped(view.first);
    let mut text = match (view.phase, view.waits_until, view.verdict.as_deref()) {
        ("waiting", Some(until), _) => {
            let until = local_to_the_second(until, zone);
            format!("canary: the first {first} are sent, and their finish events are waited for until {until}")
        }
        (_, _, Some(verdict)) => format!("canary: the first {first} were sent and judged: {verdict}"),
        ("not_judged", _, _) => format!("canary: the push ended before its first {first} were judged"),
        ("sending", _, _) => format!("canary: the first {first} are being sent"),
        _ => format!("canary: the first {first} are not begun with"),
    };
    let Messages { sent_to, delivered, not_delivered, awaited } = view.messages;
    let _ = write!(
        text,
        "\n  {} sent to: {} delivered, {} not delivered, {} not told of yet (at most {:.0} % may not be delivered)",
        grouped(sent_to),
        grouped(delivered),
        grouped(not_delivered),
        grouped(awaited),
        view.max_not_delivered * 100.0
    );
    text
}

/// From the SELECT's rows to each fate, indented by depth.
fn funnel(push: &PushView) -> String {
    let mut rows: Vec<(usize, String, u64)> = Vec::new();
    if let Some(given) = push.given {
        rows.push((0, "given by the SELECT".to_owned(), given));
    }
    rows.extend(push.left_out.iter().map(|(reason, people)| (1, format!("left out: {reason}"), *people)));
    if push.holdout > 0 {
        rows.push((1, "held out".to_owned(), push.holdout));
    }
    let counts = push.counts;
    rows.push((0, "recipients".to_owned(), counts.recipients));
    let fates = [
        ("sent", counts.sent),
        ("failed", counts.failed),
        ("skipped", counts.skipped),
        ("held", counts.held),
        ("unconfirmed", counts.unconfirmed),
        ("pending", counts.pending),
    ];
    for (name, people) in fates {
        rows.push((1, name.to_owned(), people));
        if name == "sent" && people > 0 {
            let told = push.delivered;
            let fates = [
                ("delivered", told.success),
                ("blocked", told.blocked),
                ("failed", told.failed),
                ("not told yet", told.unknown),
            ];
            rows.extend(
                fates.into_iter().filter(|(_, people)| *people > 0).map(|(name, people)| (2, name.to_owned(), people)),
            );
        }
    }
    let digits = rows.iter().map(|(_, _, people)| grouped(*people).len()).max().unwrap_or(0);
    let lines: Vec<String> = rows
        .iter()
        .map(|(depth, name, people)| {
            let share = match (*depth, if *depth == 2 { push.counts.sent } else { push.counts.recipients }) {
                (1 | 2, all) if all > 0 && !name.starts_with("left out") && name != "held out" && *people > 0 => {
                    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
                    let percent = *people as f64 * 100.0 / all as f64;
                    format!("  {percent:.1} %")
                }
                _ => String::new(),
            };
            format!("{:<26}{:>digits$}{share}", format!("{}{name}", "  ".repeat(*depth)), grouped(*people))
        })
        .collect();
    lines.join("\n")
}

fn codes(push: &PushView) -> String {
    let rows = push.errcodes.iter().map(|code| {
        vec![
            grouped(code.people),
            code.state.to_owned(),
            code.errcode.map(|code| code.to_string()).unwrap_or_default(),
            code.meaning.map(str::to_owned).or_else(|| code.reason.clone()).unwrap_or_default(),
            code.advice.unwrap_or_default().to_owned(),
        ]
    });
    plain(&["people", "state", "code", "meaning", "advice"], rows)
}

fn speed(view: &RateView) -> String {
    let set = view.set.map_or_else(|| "no rate set".to_owned(), |set| format!("at most {}", rate(set)));
    let ordered = if view.is_ordered { ", as ordered" } else { "" };
    let now = view.now.map_or_else(String::new, |now| format!(", {} now", rate(now)));
    let mut text = format!("rate: {set}{ordered}{now}");
    let most = view.sent.iter().copied().max().unwrap_or(0);
    if most > 0 {
        let unit = format!("{} {}", view.bucket_seconds, plural(u64::from(view.bucket_seconds), "second", "seconds"));
        let _ = write!(text, "\n{}  most in {unit}: {}", bars(view.sent.iter().copied()), grouped(most));
    }
    text
}
