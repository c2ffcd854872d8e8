//! `lianbo migrate`: an account was moved into another one, and everybody's openid changes with it.

use std::fmt::Write;

use super::context::{Context, stop_on_signals, who};
use super::exit::{Exit, Failure, of_run};
use super::progress::Bars;
use super::table::grouped;
use super::token::find_account;
use crate::scheduler::conductor::Watch;
use crate::scheduler::migrate::{MoveRequest, MoveStatus, Report, migrate};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account, as the configuration names it; its app_id and app_secret there are those of the account of now
    account: String,
    /// App id of the account that was moved into it
    #[arg(long, value_name = "APPID")]
    from: String,
    /// Forget what was asked before, and ask for everybody anew
    #[arg(long)]
    fresh: bool,
    /// Take followers without an openid of now as gone though there are many of them; the reason goes into the audit
    #[arg(long, value_name = "REASON")]
    accept_refused: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let from_app_id = args.from.trim().to_owned();
    if from_app_id.is_empty() {
        return Err(Failure::Usage("--from names no app id".to_owned()));
    }
    let account = find_account(&context.settings()?, &args.account)?.name.clone();
    let app = context.existing_app().await?;
    let request =
        MoveRequest { account, from_app_id, fresh: args.fresh, accept_refused: args.accept_refused, who: who() };
    let bars = Bars::new(context);
    let stop = stop_on_signals();
    let watch = Watch { progress: &bars, confirm: None, stop: &stop };
    let report = migrate(&app.conductor, &request, &watch).await;
    bars.finish();
    let report = report.map_err(of_run)?;
    context.print(&report, describe);
    app.hands().ledger.close().await;
    Ok(match report.status {
        MoveStatus::Succeeded => Exit::Done,
        MoveStatus::Waiting => Exit::Waiting,
        MoveStatus::Halted => Exit::Halted,
    })
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    for run in &report.cancelled_runs {
        let _ =
            writeln!(text, "Run {run} was not finished, and is cancelled: what it had made has the openids of before.");
    }
    if let Some(reason) = &report.reason {
        let _ = write!(text, "{reason}");
        if let Some(until) = report.waiting_until {
            let _ = write!(text, "; there are more from {}", until.format("%Y-%m-%d %H:%M UTC"));
        }
        for command in &report.next {
            let _ = write!(text, "\n  {command}");
        }
        return text;
    }
    let _ = write!(
        text,
        "Account {} is moved from {} to {}: {} openids are those of now",
        report.account,
        report.from_app_id,
        report.to_app_id,
        grouped(report.moved)
    );
    if report.refused > 0 {
        let _ = write!(
            text,
            "\n  {} have none there ({} of them followed) and stay under the openid of before, as gone: lianbo sql \"select reason, \
             count(*) from moved_openids where reason is not null group by 1\"",
            grouped(report.refused),
            grouped(report.refused_followers)
        );
    }
    if report.suppressions > 0 {
        let _ = write!(text, "\n  {} suppressions hold for the openid of now", grouped(report.suppressions));
    }
    for (table, rows) in &report.tables {
        let _ = write!(text, "\n  {table}: {} rows", grouped(*rows));
    }
    text
}
