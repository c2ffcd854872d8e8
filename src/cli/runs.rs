//! `lianbo runs` (under construction)

use super::context::Context;
use super::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Err(Failure::Usage("not built yet".to_owned()))
}

/// A run for people.
pub fn describe(view: &crate::scheduler::view::RunView) -> String {
    serde_json::to_string_pretty(view).unwrap_or_default()
}
