//! `lianbo push`: pushes and what became of each recipient ([`show`], [`failures`], [`preview`]), and what a person orders
//! about one ([`orders`]). Nothing is sent from here: an order is written down, and whoever carries the run out obeys it.

mod failures;
mod list;
mod orders;
mod preview;
mod resend;
mod show;

use clap::Subcommand;

use super::context::Context;
use super::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// RUN is an id, its beginning, or a pipeline's name (its latest run); RUN/STAGE where a run has several pushes.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The run's id, its beginning, or a pipeline's name; RUN/STAGE where a run has several pushes
    run: String,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The latest pushes
    List(list::Args),
    /// How a push stands: funnel, codes, rate, time left
    Show(Which),
    /// The first messages as they will leave
    Preview(preview::Args),
    /// Approve exactly the messages of this hash
    Approve(orders::Approve),
    /// Hold a push within two seconds
    Pause(Which),
    /// Lift a pause or a halt; `lianbo run PIPELINE --continue`, or serve, goes on
    Resume(Which),
    /// Cancel the push and its run: whoever is pending stays unsent
    Cancel(Which),
    /// Change the rate, also while it sends
    Rate(orders::Rate),
    /// Who failed, was skipped, is held or unconfirmed, and why
    Failures(failures::Args),
    /// Make a new push of just those who failed
    Resend(resend::Args),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.what {
        What::List(args) => list::run(context, args).await,
        What::Show(which) => show::run(context, which).await,
        What::Preview(args) => preview::run(context, args).await,
        What::Approve(args) => orders::approve(context, args).await,
        What::Pause(which) => orders::pause(context, which).await,
        What::Resume(which) => orders::resume(context, which).await,
        What::Cancel(which) => orders::cancel(context, which).await,
        What::Rate(args) => orders::rate(context, args).await,
        What::Failures(args) => failures::run(context, args).await,
        What::Resend(args) => resend::run(context, args).await,
    }
}
