//! A sync at one size and at ten times that size, with `memory_limit = "256MB"`: its time and its peak of memory.

use crate::Figure;
use crate::second_night::change;
use crate::space::{Cost, Space, simulator};

const LIMIT_MB: f64 = 400.0;

pub async fn measure(scale: u64) -> Vec<Figure> {
    let small = nights(1_000_000 / scale).await;
    let large = nights(10_000_000 / scale).await;
    let mut figures = Vec::new();
    for (night, (small, large)) in ["first night", "second night"].into_iter().zip(small.iter().zip(&large)) {
        let (time, memory) = (large.seconds / small.seconds, megabytes(large) / megabytes(small));
        figures.push(Figure {
            name: format!("time, {night} of {} beside {} followers", 10_000_000 / scale, 1_000_000 / scale),
            ours: large.seconds,
            bare: small.seconds,
            unit: "s",
            ratio: time,
            wanted: "≤ 10.5",
            is_met: time <= 10.5,
        });
        figures.push(Figure {
            name: format!("peak memory, the same {night}"),
            ours: megabytes(large),
            bare: megabytes(small),
            unit: "MB",
            ratio: memory,
            wanted: "≤ 1.2, and under 400 MB",
            is_met: memory <= 1.2 && megabytes(large) < LIMIT_MB,
        });
    }
    figures
}

/// A first night, and one of which a hundredth changed.
async fn nights(followers: u64) -> [Cost; 2] {
    let world = simulator(followers).await;
    let space = Space::new(&world, "256MB");
    tokio::task::block_in_place(|| {
        // More pages than the documented day has: the run asks for WeChat's own figure when it gets there.
        let first = space.run("sync");
        change(&world, followers);
        [first, space.run("sync")]
    })
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn megabytes(cost: &Cost) -> f64 {
    cost.peak_bytes as f64 / 1e6
}
