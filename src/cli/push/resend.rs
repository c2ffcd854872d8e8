//! `lianbo push resend RUN --failed`: a new push of just those whom one that is over did not reach.

use serde::Serialize;

use crate::cli::context::{Context, who};
use crate::cli::exit::{Exit, Failure, of_run};
use crate::cli::run_name::find_own_push;
use crate::cli::table::grouped;
use crate::cli::words::plural;
use crate::scheduler::conductor::Resend;
use crate::scheduler::next_step::go_on;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: super::Which,
    /// Those who failed: it has to be said, whom to send to again
    #[arg(long, required = true)]
    failed: bool,
    /// Of these, only those with this code of WeChat
    #[arg(long, value_name = "N")]
    errcode: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Made {
    run_id: String,
    pipeline: String,
    stage: String,
    resend_of: String,
    recipients: u64,
    next: String,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let (run, push) = find_own_push(app.hands(), &args.which.run).await?;
    let who = who();
    let made = app.conductor.resend(Resend { push: &push, errcode: args.errcode, who: &who }).await.map_err(of_run)?;
    let made = Made {
        run_id: made.run_id.to_string(),
        pipeline: run.pipeline.to_string(),
        stage: push.stage.to_string(),
        resend_of: format!("{}/{}", run.run_id, push.stage),
        recipients: made.people,
        next: go_on(&run.pipeline),
    };
    context.print(&made, |made| {
        format!(
            "run {0} is made to send again to {1} {2} of {3}: `serve`, where it runs, sends within seconds; else `{4}` does",
            made.run_id,
            grouped(made.recipients),
            plural(made.recipients, "person", "people"),
            made.resend_of,
            made.next
        )
    });
    app.hands().ledger.close().await;
    Ok(Exit::Done)
}
