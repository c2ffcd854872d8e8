//! Pages and details of so many followers, against a bare client that keeps nothing.

use std::sync::Arc;

use crate::Figure;
use crate::bare::Bare;
use crate::space::{Space, simulator};

const WIDTH: usize = 32;

pub async fn measure(followers: u64) -> Vec<Figure> {
    let world = simulator(followers).await;
    let bare = Arc::new(Bare::new(&world).await);
    let (_, first) = bare.clone().sync(WIDTH).await;
    let space = Space::new(&world, "4GB");
    let ours = tokio::task::block_in_place(|| space.run("sync"));
    let (_, second) = bare.sync(WIDTH).await;
    let bare_seconds = f64::midpoint(first, second);
    let ratio = bare_seconds / ours.seconds;
    vec![Figure {
        name: format!("sync of {followers} followers with details, whole process"),
        ours: ours.seconds,
        bare: bare_seconds,
        unit: "s",
        ratio,
        wanted: "≥ 0.8 of a bare client's speed",
        is_met: ratio >= 0.8,
    }]
}
