//! Pages and details of so many followers, against a bare client that keeps nothing.

use crate::Figure;
use crate::bare::sync_apart;
use crate::space::{Space, median, simulator};

const WIDTH: usize = 32;
/// Ours and the bare client take turns: a machine that is slower for a second is so for both.
const ROUNDS: usize = 5;

/// `wanted`: what share of the bare client's speed.
pub async fn measure(followers: u64, (least, wanted): (f64, &'static str)) -> Vec<Figure> {
    let world = simulator(followers).await;
    let (mut ours, mut bare, mut spaces) = (Vec::new(), Vec::new(), Vec::new());
    tokio::task::block_in_place(|| {
        for _ in 0..ROUNDS {
            let first = sync_apart(&world, WIDTH);
            let space = Space::new(&world, "4GB");
            ours.push(space.run("sync").seconds);
            eprintln!("  bare: {:.3} s, processor {:.3} s", first.seconds, first.cpu_seconds);
            bare.push(first.seconds);
            spaces.push(space);
        }
    });
    let (ours, bare) = (median(ours), median(bare));
    let ratio = bare / ours;
    vec![Figure {
        name: format!("sync of {followers} followers with details, both whole processes, medians of {ROUNDS}"),
        ours,
        bare,
        unit: "s",
        ratio,
        wanted,
        is_met: ratio >= least,
    }]
}
