//! `lianbo callbacks`: the events that WeChat posted to `serve`, counted by what came of them; and applying them anew.

use chrono::{DateTime, NaiveDateTime, TimeZone, Utc};
use clap::Subcommand;
use serde::Serialize;

use super::context::{Context, who};
use super::exit::{Exit, Failure};
use super::table::{grouped, plain};
use super::token::find_account;
use crate::clock::Timestamp;
use crate::config::read_duration;
use crate::ledger::{AuditEntry, CallbackCount, Replay};
use crate::scheduler::events;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Events of the last week by account, event and what came of them
    List,
    /// Apply kept events anew; what they told already stays as it is
    Replay(ReplayArgs),
}

#[derive(Debug, clap::Args)]
struct ReplayArgs {
    /// The account, as the configuration names it; left out: every one
    account: Option<String>,
    /// Only what was received since: 2h, 3d, or a local time like "2026-11-24 10:00"
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    account: String,
    event: String,
    /// `waiting` while it has not been looked at.
    outcome: String,
    events: u64,
}

#[derive(Serialize)]
struct Replayed {
    /// Events that were made due again, and whatever was due beside them.
    looked_at: u64,
    told: u64,
    settled: u64,
    marked: u64,
    /// Waiting for the outcome of a send.
    early: u64,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.what {
        What::List => list(context).await,
        What::Replay(args) => replay(context, args).await,
    }
}

async fn list(context: &Context) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let counts: Vec<Listed> = app.hands().ledger.count_callbacks().await?.into_iter().map(listed).collect();
    context.print(&serde_json::json!({ "callbacks": &counts }), |_| {
        if counts.is_empty() {
            return "no events: WeChat posts them to /callback/ACCOUNT of `lianbo serve`".to_owned();
        }
        let row = |one: &Listed| vec![one.account.clone(), one.event.clone(), one.outcome.clone(), grouped(one.events)];
        plain(&["account", "event", "outcome", "events"], counts.iter().map(row))
    });
    app.hands().ledger.close().await;
    Ok(Exit::Done)
}

fn listed(count: CallbackCount) -> Listed {
    Listed {
        account: count.account.to_string(),
        event: count.event,
        outcome: count.outcome.unwrap_or_else(|| "waiting".to_owned()),
        events: count.n,
    }
}

async fn replay(context: &Context, args: ReplayArgs) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let account = match &args.account {
        Some(name) => Some(find_account(&settings, name)?.name.clone()),
        None => None,
    };
    let now = context.clock.now();
    let since = args.since.as_deref().map(|text| time(text, now, settings.timezone)).transpose()?;
    let app = context.existing_app().await?;
    let hands = app.hands();
    let due = hands.ledger.replay_callbacks(Replay { account: account.as_ref(), since }, now).await?;
    let applied = events::catch_up(hands).await?;
    let entry = AuditEntry {
        at: now,
        who: who(),
        command: "callbacks replay".to_owned(),
        run_id: None,
        detail: format!("{due} events applied anew"),
    };
    hands.ledger.record_audit(&entry).await?;
    let replayed = Replayed {
        looked_at: applied.looked_at,
        told: applied.told,
        settled: applied.settled,
        marked: applied.marked,
        early: applied.early,
    };
    context.print(&replayed, |done| {
        format!(
            "{} events looked at: {} deliveries learnt something new ({} of them held or unconfirmed before), {} tell of \
             followers, {} wait for their sends",
            grouped(done.looked_at),
            grouped(done.told),
            grouped(done.settled),
            grouped(done.marked),
            grouped(done.early)
        )
    });
    hands.ledger.close().await;
    Ok(Exit::Done)
}

/// A time so long ago, or a local one.
fn time(text: &str, now: Timestamp, zone: chrono_tz::Tz) -> Result<Timestamp, Failure> {
    let ago = read_duration(text).ok().and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    if let Some(ago) = ago {
        return Ok(now - ago);
    }
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.with_timezone(&Utc));
    }
    let formats = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"];
    let local = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text.trim(), format).ok());
    let at = local.and_then(|local| zone.from_local_datetime(&local).earliest());
    at.map(|at| at.with_timezone(&Utc)).ok_or_else(|| {
        Failure::Usage(format!("--since `{text}` is no time: write 2h, 3d, or a local time like \"2026-11-24 10:00\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_while_or_a_local_time() {
        let now = "2026-11-24T02:00:00Z".parse().unwrap();
        let zone = chrono_tz::Asia::Shanghai;
        for text in ["2h", "2026-11-24 08:00", "2026-11-24T00:00:00Z"] {
            assert_eq!(time(text, now, zone).unwrap().to_rfc3339(), "2026-11-24T00:00:00+00:00", "{text}");
        }
        assert!(matches!(time("yesterday", now, zone), Err(Failure::Usage(_))));
    }
}
