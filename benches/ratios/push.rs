//! Sends to so many people, against a bare client sending the same bodies.

use std::sync::Arc;

use crate::Figure;
use crate::bare::{Bare, send_all_apart};
use crate::space::{Space, simulator};

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

pub async fn measure(recipients: u64) -> Vec<Figure> {
    let world = simulator(recipients).await;
    let space = Space::new(&world, "4GB");
    tokio::task::block_in_place(|| space.run("sync"));
    let first = tokio::task::block_in_place(|| send_all_apart(&world, WIDTH));
    world.clear_inbox();
    let ours = tokio::task::block_in_place(|| space.run("campaign"));
    let inbox = world.inbox();
    assert_eq!((inbox.once, inbox.most_to_one), (recipients, 1), "not everybody once");
    let second = tokio::task::block_in_place(|| send_all_apart(&world, WIDTH));
    eprintln!(
        "  bare before and after: {:.3} s and {:.3} s, processor {:.3} s and {:.3} s",
        first.seconds, second.seconds, first.cpu_seconds, second.cpu_seconds
    );
    let bare_seconds = f64::midpoint(first.seconds, second.seconds);
    let seconds = ours.stage_seconds("push");
    let ratio = bare_seconds / seconds;
    vec![Figure {
        name: format!("push to {recipients}, the stage with rendering and checks"),
        ours: seconds,
        bare: bare_seconds,
        unit: "s",
        ratio,
        wanted: "≥ 0.8 of a bare client's speed",
        is_met: ratio >= 0.8,
    }]
}
