//! `lianbo push list`: the latest pushes, one line each.

use serde::Serialize;

use crate::app::App;
use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::table::{grouped, plain};
use crate::cli::words::local;
use crate::clock::Timestamp;
use crate::domain::Counts;
use crate::ledger::Push;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many, latest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
}

#[derive(Debug, Serialize)]
struct Pushes {
    pushes: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    run_id: String,
    pipeline: String,
    stage: String,
    account: String,
    state: String,
    reason: Option<String>,
    is_test: bool,
    frozen_at: Timestamp,
    first_send_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    #[serde(flatten)]
    counts: Counts,
}

impl Line {
    fn of(push: Push) -> Self {
        let is_paused = push.is_paused && push.ended_at.is_none();
        Self {
            run_id: push.run_id.to_string(),
            pipeline: push.pipeline.to_string(),
            stage: push.stage.to_string(),
            account: push.account.to_string(),
            state: if is_paused { "paused".to_owned() } else { push.state },
            reason: push.reason,
            is_test: push.is_test,
            frozen_at: push.frozen_at,
            first_send_at: push.first_send_at,
            ended_at: push.ended_at,
            counts: push.counts,
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let zone = settings.timezone;
    let pushes = match App::open_to_read(settings, context.clock).await? {
        Some(app) => {
            let ledger = &app.hands().ledger;
            let pushes = ledger.latest_pushes(args.limit).await?;
            ledger.close().await;
            pushes
        }
        None => Vec::new(),
    };
    let pushes = Pushes { pushes: pushes.into_iter().map(Line::of).collect() };
    context.print(&pushes, |pushes| {
        if pushes.pushes.is_empty() {
            return "there was no push yet".to_owned();
        }
        let header = [
            "push",
            "pipeline",
            "state",
            "frozen",
            "recipients",
            "sent",
            "failed",
            "skipped",
            "held",
            "unconfirmed",
            "pending",
        ];
        plain(
            &header,
            pushes.pushes.iter().map(|push| {
                let Counts { recipients, sent, failed, skipped, held, unconfirmed, pending } = push.counts;
                let mut row = vec![
                    format!("{}/{}", push.run_id, push.stage),
                    push.pipeline.clone(),
                    format!("{}{}", push.state, if push.is_test { " (test)" } else { "" }),
                    local(push.frozen_at, zone),
                ];
                row.extend([recipients, sent, failed, skipped, held, unconfirmed, pending].map(grouped));
                row
            }),
        )
    });
    Ok(Exit::Done)
}
