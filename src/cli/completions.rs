//! `lianbo completions SHELL`: a script for the shell to load, on stdout.

use clap_complete::Shell;

use super::context::{Context, print_line};
use super::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell that is to complete
    #[arg(value_enum)]
    shell: Shell,
}

#[expect(clippy::unused_async, reason = "every command has one shape")]
pub async fn run(_context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "lianbo", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end());
    Ok(Exit::Done)
}
