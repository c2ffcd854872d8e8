//! Files → settings, with every problem reported at once.
//!
//! [`find_workspace`] finds the folder, [`Environment`] the variables its files may name, [`load`] reads everything. Two
//! layers: [`file`] has the shape of the TOML and keeps every position; [`settings`] is what the rooms receive, complete and
//! checked. Between them stand [`resolve`] (`config/lianbo.toml`, defaults, what files say of each other) and [`pipeline`]
//! (stages). Checking touches nothing and calls nobody. SQL is not understood here: who binds it adds what is wrong with
//! it to the same [`Problems`], by the places that the settings carry.

mod environment;
mod file;
mod pipeline;
mod problems;
mod resolve;
mod secret;
pub mod settings;
mod shipped;
mod units;
mod workspace;

pub use environment::Environment;
pub use problems::{Problem, Problems, nearest};
pub use resolve::{Draft, Loaded, load};
pub use shipped::workspace_files;
pub use units::{cron, read_duration, read_rate, read_size};
pub use workspace::{CONFIG_FILE, NoWorkspace, WORKSPACE_VARIABLE, find_workspace};

#[cfg(test)]
mod tests;
