//! Pages and details of so many followers, against a bare client that keeps nothing.

use crate::Figure;
use crate::bare::sync_apart;
use crate::space::{Space, simulator};

const WIDTH: usize = 32;

pub async fn measure(followers: u64) -> Vec<Figure> {
    let world = simulator(followers).await;
    let first = tokio::task::block_in_place(|| sync_apart(&world, WIDTH));
    let space = Space::new(&world, "4GB");
    let ours = tokio::task::block_in_place(|| space.run("sync"));
    let second = tokio::task::block_in_place(|| sync_apart(&world, WIDTH));
    eprintln!(
        "  bare before and after: {:.3} s and {:.3} s, processor {:.3} s and {:.3} s",
        first.seconds, second.seconds, first.cpu_seconds, second.cpu_seconds
    );
    let bare_seconds = f64::midpoint(first.seconds, second.seconds);
    let ratio = bare_seconds / ours.seconds;
    vec![Figure {
        name: format!("sync of {followers} followers with details, both whole processes"),
        ours: ours.seconds,
        bare: bare_seconds,
        unit: "s",
        ratio,
        wanted: "≥ 0.8 of a bare client's speed",
        is_met: ratio >= 0.8,
    }]
}
