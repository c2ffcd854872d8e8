//! `lianbo funnel RUN`: how far each recipient of a campaign came, by arm, day or segment, and what the message did.

use super::context::Context;
use super::exit::{Exit, Failure};
use super::measures::percent;
use super::run_name::find_own_pushes;
use super::sql::failure;
use super::table::{grouped, plain};
use crate::scheduler::funnel::{Effect, FunnelRow, FunnelView, PersonColumn, funnel};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's id, its beginning, or a pipeline (its latest run); RUN/STAGE where it has several pushes
    #[arg(value_name = "RUN")]
    run: String,
    /// Told apart by `day` (of the send), by a variable of the set (a column of its SELECT; `variables.day` where one is called
    /// so), by TABLE.COLUMN of a table with unionids or with account and openid, or by several: `city + day`
    #[arg(long, value_name = "SEGMENT")]
    by: Option<String>,
    /// Whether it did what it was for: TABLE.COLUMN of a table with unionids or with account and openid, such as
    /// mall_users.ordered_at; true, yes (是, 有), a number other than 0, or a time since the first send. Other words are refused
    #[arg(long, value_name = "TABLE.COLUMN")]
    outcome: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let outcome = args.outcome.as_deref().map(|written| {
        PersonColumn::read(written).ok_or_else(|| {
            Failure::Usage(format!("--outcome is TABLE.COLUMN, such as mall_users.ordered_at, not `{written}`"))
        })
    });
    let outcome = outcome.transpose()?;
    let app = context.app_to_read().await?;
    let hands = app.hands();
    let (_, pushes) = find_own_pushes(hands, &args.run).await?;
    let mut views = Vec::with_capacity(pushes.len());
    for push in &pushes {
        let view = funnel(hands, push, (args.by.as_deref(), outcome.as_ref())).await;
        views.push(view.map_err(|error| failure(error, ""))?);
    }
    context.print(&views, |views| views.iter().map(describe).collect::<Vec<_>>().join("\n\n"));
    hands.ledger.close().await;
    Ok(Exit::Done)
}

fn describe(view: &FunnelView) -> String {
    let mut text = format!("{} of run {} ({})\n{}", view.stage, view.run_id, view.account, rows(view));
    if view.outcome.is_some() {
        text.push_str("\n\n");
        text.push_str(&effects(view));
    }
    text
}

fn rows(view: &FunnelView) -> String {
    let by = view.by.as_deref();
    let mut header = vec!["arm"];
    header.extend(by);
    header.extend([
        "recipients",
        "sent",
        "delivered",
        "not delivered",
        "not told",
        "failed",
        "skipped",
        "held",
        "unconfirmed",
        "pending",
    ]);
    header.extend(view.outcome.as_deref());
    let cells = |row: &FunnelRow| {
        let mut cells = vec![row.arm.clone()];
        cells.extend(by.map(|_| name(row.segment.as_deref())));
        cells.push(grouped(row.recipients));
        let fates = [
            row.sent,
            row.delivered,
            row.blocked + row.delivery_failed,
            row.untold,
            row.failed,
            row.skipped,
            row.held,
            row.unconfirmed,
            row.pending,
        ];
        // A holdout is sent nothing.
        cells.extend(fates.map(|people| if row.arm == "send" { grouped(people) } else { String::new() }));
        cells.extend(row.outcome.map(grouped));
        cells
    };
    plain(&header, view.rows.iter().map(cells))
}

fn name(segment: Option<&str>) -> String {
    segment.map_or_else(|| "(unknown)".to_owned(), str::to_owned)
}

fn effects(view: &FunnelView) -> String {
    if view.effects.is_empty() {
        return if view.needs_send {
            "The holdout has no day of a send: leave --by out to compare the arms.".to_owned()
        } else {
            "No holdout to compare with: give the set a `holdout` and its arms are compared here.".to_owned()
        };
    }
    let row = |effect: &Effect| {
        let segment = effect.segment.as_deref();
        vec![
            if segment.is_none() && *effect == view.effects[0] { "everybody".to_owned() } else { name(segment) },
            percent(Some(effect.send_rate)),
            percent(Some(effect.holdout_rate)),
            points(effect.difference),
            format!("{} to {}", points(effect.low), points(effect.high)),
        ]
    };
    let header = ["", "sent to", "holdout", "difference", "95 % interval"];
    format!(
        "Share with {}\n{}",
        view.outcome.as_deref().unwrap_or_default(),
        plain(&header, view.effects.iter().map(row))
    )
}

/// A difference of shares in percentage points.
fn points(difference: f64) -> String {
    format!("{:+.1}", difference * 100.0)
}
