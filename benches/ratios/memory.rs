//! Peak memory at one size and at ten times that size, with `memory_limit = "200MB"`; of each the median of three.

use crate::Figure;
use crate::space::{Cost, Space, median, simulator};

const LIMIT: f64 = 300.0;
const ROUNDS: usize = 3;

pub async fn measure(scale: u64) -> Vec<Figure> {
    let [mut small_push, mut large_push, mut small_sync, mut large_sync] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        small_push.push(push(50_000 / scale).await);
        large_push.push(push(500_000 / scale).await);
        small_sync.push(sync(200_000 / scale).await);
        large_sync.push(sync(2_000_000 / scale).await);
    }
    vec![
        figure("push of ten times as many", small_push, large_push),
        figure("sync of ten times as many", small_sync, large_sync),
    ]
}

async fn sync(followers: u64) -> Cost {
    let world = simulator(followers).await;
    let space = Space::new(&world, "200MB");
    tokio::task::block_in_place(|| space.run("sync"))
}

async fn push(recipients: u64) -> Cost {
    let world = simulator(recipients).await;
    let space = Space::new(&world, "200MB");
    tokio::task::block_in_place(|| {
        space.run("sync");
        space.run("campaign")
    })
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn figure(name: &str, small: Vec<Cost>, large: Vec<Cost>) -> Figure {
    let cpu_seconds = |costs: &[Cost]| median(costs.iter().map(|cost| cost.cpu_seconds).collect());
    let megabytes = |costs: &[Cost]| median(costs.iter().map(|cost| cost.peak_bytes as f64 / 1e6).collect());
    let ratio = megabytes(&large) / megabytes(&small);
    Figure {
        name: format!("peak memory, {name} (processor: {:.1} s, {:.1} s)", cpu_seconds(&small), cpu_seconds(&large)),
        ours: megabytes(&large),
        bare: megabytes(&small),
        unit: "MB",
        ratio,
        wanted: "≤ 1.2, and under 300 MB",
        is_met: ratio <= 1.2 && megabytes(&large) < LIMIT,
    }
}
