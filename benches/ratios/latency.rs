//! A sync with a platform that takes 100 ms for each answer, against what that and the calls in flight allow for as many calls.

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
    // The token and the first page before any details; then details side by side, longer than all pages one by one. Looking
    // twice at some (one batch in sixty, and whoever seems to lack a unionid by mistake) is calls like others.
    let made = world.calls();
    let calls = |endpoint: &str| made.get(endpoint).copied().unwrap_or(0);
    assert_eq!(calls("user/info/batchget"), followers.div_ceil(100), "each is asked for once");
    let details = (calls("user/info/batchget") + calls("user/info")).div_ceil(WIDTH);
    let turns = 2 + u32::try_from(details).expect("so many turns fit");
    let allowed = (LATENCY * turns).as_secs_f64();
    let ratio = allowed / cost.seconds;
    vec![Figure {
        name: format!(
            "sync of {followers} followers, 100 ms an answer, {WIDTH} calls in flight, checks among them, the whole process"
        ),
        ours: cost.seconds,
        bare: allowed,
        unit: "s",
        ratio,
        wanted: "≥ 0.95 of what latency and concurrency allow",
        is_met: ratio >= 0.95,
    }]
}
