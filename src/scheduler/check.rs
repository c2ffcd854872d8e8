//! (room under construction)

use std::path::Path;

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, Environment, Problems};

/// Loads and checks a workspace.
pub async fn load_and_check(root: &Path, environment: &Environment, _clock: Clock) -> Result<Settings, Problems> {
    let loaded = config::load(root, environment);
    match loaded.settings {
        Some(settings) => Ok(settings),
        None => Err(loaded.problems),
    }
}
