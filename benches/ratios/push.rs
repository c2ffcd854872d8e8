//! Sends to so many people, against a bare client sending the same bodies.

use std::sync::Arc;

use crate::Figure;
use crate::bare::{Bare, send_all_apart};
use crate::space::{Space, median, simulator};

const WIDTH: usize = 64;

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
pub async fn simulator_rate(sends: u64) -> Vec<Figure> {
    let world = simulator(sends).await;
    let bare = Arc::new(Bare::new(&world).await);
    let openids = bare.openids().await;
    let seconds = bare.send_all(&openids, WIDTH).await;
    let rate = sends as f64 / seconds;
    vec![Figure {
        name: format!("simulator: {sends} sends from a bare client on the same two cores"),
        ours: rate,
        bare: 15_000.0,
        unit: "sends/s",
        ratio: rate / 15_000.0,
        wanted: "≥ 15 000/s",
        is_met: rate >= 15_000.0,
    }]
}

/// Ours and the bare client take turns: a machine that is slower for a second is so for both.
const ROUNDS: usize = 3;

pub async fn measure(recipients: u64) -> Vec<Figure> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // A world of its own: the same text to the same person within a minute is refused.
        let world = simulator(recipients).await;
        let space = Space::new(&world, "4GB");
        tokio::task::block_in_place(|| space.run("sync"));
        let first = tokio::task::block_in_place(|| send_all_apart(&world, WIDTH));
        world.clear_inbox();
        let run = tokio::task::block_in_place(|| space.run("campaign"));
        let inbox = world.inbox();
        assert_eq!((inbox.once, inbox.most_to_one), (recipients, 1), "not everybody once");
        eprintln!("  bare: {:.3} s, processor {:.3} s", first.seconds, first.cpu_seconds);
        ours.push(run.stage_seconds("push"));
        bare.push(first.seconds);
    }
    let (ours, bare) = (median(ours), median(bare));
    let ratio = bare / ours;
    vec![Figure {
        name: format!("push to {recipients}, the stage with rendering and checks, medians of {ROUNDS}"),
        ours,
        bare,
        unit: "s",
        ratio,
        wanted: "≥ 0.8 of a bare client's speed",
        is_met: ratio >= 0.8,
    }]
}
