//! A sync with a platform that takes 100 ms for each answer, against what that and the calls in flight allow.

use std::time::Duration;

use crate::Figure;
use crate::space::{Space, simulator_with};

const LATENCY: Duration = Duration::from_millis(100);
/// Calls in flight; the default of `concurrency`.
const WIDTH: u64 = 32;

pub async fn measure(followers: u64) -> Vec<Figure> {
    let world = simulator_with(followers, LATENCY).await;
    let space = Space::new(&world, "4GB");
    let cost = tokio::task::block_in_place(|| space.run("sync"));
    // The token and the first page before any details; then details side by side, longer than all pages one by one.
    let details = followers.div_ceil(100).div_ceil(WIDTH);
    let turns = 2 + u32::try_from(details).expect("so many turns fit");
    let allowed = (LATENCY * turns).as_secs_f64();
    let ratio = allowed / cost.seconds;
    vec![Figure {
        name: format!("sync of {followers} followers, 100 ms an answer, {WIDTH} calls in flight, the whole process"),
        ours: cost.seconds,
        bare: allowed,
        unit: "s",
        ratio,
        wanted: "≥ 0.95 of what latency and concurrency allow",
        is_met: ratio >= 0.95,
    }]
}
