//! `lianbo completions` (under construction)

use super::context::Context;
use super::exit::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Err(Failure::Usage("not built yet".to_owned()))
}
