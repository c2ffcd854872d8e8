//! The command line: a file per command, one place for what they share ([`context`]), exit codes ([`exit`]).
//!
//! Results go to stdout, talk and logs to stderr. `--json` prints one document made from the value that people see. What a
//! command does is done by the rooms below; here are only arguments, output, progress and exit codes.

mod callbacks;
mod check;
mod completions;
mod context;
mod coverage;
mod demo;
mod exit;
mod explain;
mod forget;
mod freeze;
mod funnel;
mod init;
mod measures;
mod migrate;
mod output;
mod plan;
mod progress;
mod push;
mod quota;
mod report;
mod run;
mod run_name;
mod runs;
mod serve;
mod simulate;
mod sql;
mod status;
mod suppress;
mod table;
mod tables;
mod token;
mod vacuum;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};

use context::Context;
use exit::{Exit, Failure};

use crate::clock::Clock;
use crate::telemetry;

/// Reaches the users of a WeChat Mini Program through the followers of an Official Account.
#[derive(Debug, Parser)]
#[command(name = "lianbo", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    /// The workspace; else LIANBO_WORKSPACE, else the nearest folder above with config/lianbo.toml
    #[arg(long, global = true, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Print one JSON document on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Say more (twice: still more)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Say less
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// How logs are written to stderr
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole story on one command, against a built-in WeChat
    Demo(demo::Args),
    /// Make a new workspace with commented files
    Init(init::Args),
    /// Validate configuration, pipelines and SQL
    Check(check::Args),
    /// Say what a run would do; spend and change nothing
    Plan(plan::Args),
    /// Run a pipeline, or continue its unfinished run
    Run(run::Args),
    /// Past runs; one with its stages
    Runs(runs::Args),
    /// Age of the data, what runs or waits and why, quota, next fires
    Status(status::Args),
    /// Scheduler, health and metrics over HTTP
    Serve(serve::Args),
    /// Pushes and what became of each recipient
    Push(push::Args),
    /// One person's whole way, from the follower list to each send
    Explain(explain::Args),
    /// The stop switch: send nothing for an account, or for all
    Freeze(freeze::Args),
    /// Lift the stop switch
    Thaw(freeze::Args),
    /// People never to send to
    Suppress(suppress::Args),
    /// Remove a person from every table and the ledger
    Forget(forget::Args),
    /// Give everybody their new openid after an account was moved into another (账号迁移)
    Migrate(migrate::Args),
    /// A read-only query over the tables
    Sql(sql::Args),
    /// The coverage table and its trend
    Coverage(coverage::Args),
    /// How far a campaign's recipients came, by arm, day or segment
    Funnel(funnel::Args),
    /// One HTML file: coverage, trends, match report, segments, campaigns, quota
    Report(report::Args),
    /// Tables, snapshots, rows, size, age
    Tables(tables::Args),
    /// Calls used and left today
    Quota(quota::Args),
    /// The access token of an account: when it expires; renew it
    Token(token::Args),
    /// Events that WeChat posted, and what came of them; apply them anew
    Callbacks(callbacks::Args),
    /// The WeChat simulator on its own
    Simulate(simulate::Args),
    /// Drop old snapshots and finished staging
    Vacuum(vacuum::Args),
    /// Shell completions
    Completions(completions::Args),
}

/// The whole command line, for completions.
fn command() -> clap::Command {
    Arguments::command()
}

/// Parses, runs the command, and gives its exit code.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let is_talk = matches!(
                error.kind(),
                clap::error::ErrorKind::DisplayHelp
                    | clap::error::ErrorKind::DisplayVersion
                    | clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            // A closed pipe is not a failure.
            let _ = error.print();
            return if is_talk { Exit::Done.into() } else { Exit::Usage.into() };
        }
    };
    let format = match arguments.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let verbosity =
        i8::try_from(arguments.verbose).unwrap_or(i8::MAX) - i8::try_from(arguments.quiet).unwrap_or(i8::MAX);
    if let Err(error) = telemetry::init(format, verbosity) {
        eprintln!("lianbo: {error}");
        return Exit::Usage.into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lianbo: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let context = Context {
        workspace: arguments.workspace,
        is_json: arguments.json,
        is_quiet: arguments.quiet > 0,
        clock: Clock::from_environment(),
    };
    let done = runtime.block_on(dispatch(&context, arguments.command));
    // Blocking work that was told to stop gets a moment; it is not waited for longer.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(&context).into(),
    }
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Demo(args) => demo::run(context, args).await,
        Command::Init(args) => init::run(context, args).await,
        Command::Check(args) => check::run(context, args).await,
        Command::Plan(args) => plan::run(context, args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Runs(args) => runs::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Serve(args) => serve::run(context, args).await,
        Command::Push(args) => push::run(context, args).await,
        Command::Explain(args) => explain::run(context, args).await,
        Command::Freeze(args) => freeze::freeze(context, args).await,
        Command::Thaw(args) => freeze::thaw(context, args).await,
        Command::Suppress(args) => suppress::run(context, args).await,
        Command::Forget(args) => forget::run(context, args).await,
        Command::Migrate(args) => migrate::run(context, args).await,
        Command::Sql(args) => sql::run(context, args).await,
        Command::Coverage(args) => coverage::run(context, args).await,
        Command::Funnel(args) => funnel::run(context, args).await,
        Command::Report(args) => report::run(context, args).await,
        Command::Tables(args) => tables::run(context, args).await,
        Command::Quota(args) => quota::run(context, args).await,
        Command::Token(args) => token::run(context, args).await,
        Command::Callbacks(args) => callbacks::run(context, args).await,
        Command::Simulate(args) => simulate::run(context, args).await,
        Command::Vacuum(args) => vacuum::run(context, args).await,
        Command::Completions(args) => completions::run(context, args).await,
    }
}
