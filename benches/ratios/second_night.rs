//! A night of which one in two hundred came and one in two hundred left, against the night before it.

use std::collections::BTreeMap;

use lianbo::simulator::{ChurnHabits, Faults, Simulator};

use crate::Figure;
use crate::space::{Cost, Space, median, simulator};

const ROUNDS: usize = 3;
const DETAILS: &str = "user/info/batchget";
/// Seconds over which they come and leave.
const DAY: i64 = 1_000;

pub async fn measure(followers: u64) -> Vec<Figure> {
    let world = simulator(followers).await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let (mut asked_first, mut asked_second) = (0, 0);
    let mut spaces = Vec::new();
    tokio::task::block_in_place(|| {
        for _ in 0..ROUNDS {
            let space = Space::new(&world, "4GB");
            asked_first = night(&world, &space, &mut first);
            change(&world, followers);
            asked_second = night(&world, &space, &mut second);
            spaces.push(space);
        }
    });
    let (first, second) = (median(first), median(second));
    vec![
        figure(
            format!(
                "second night of {followers} followers, 0.5 % came and 0.5 % left, whole processes, medians of {ROUNDS}"
            ),
            (second, first, "s"),
            ("≤ 0.15 of the first's time", 0.15),
        ),
        figure(
            "the same: calls for details".to_owned(),
            (as_float(asked_second), as_float(asked_first), "calls"),
            ("≤ 0.01 of the first's", 0.01),
        ),
    ]
}

/// Runs a night; gives its calls for details.
fn night(world: &Simulator, space: &Space, seconds: &mut Vec<f64>) -> u64 {
    let calls = |calls: BTreeMap<String, u64>| calls.get(DETAILS).copied().unwrap_or(0);
    let before = calls(world.calls());
    let Cost { seconds: own, .. } = space.run("sync");
    seconds.push(own);
    calls(world.calls()) - before
}

/// Lets a two hundredth leave, wherever on the list they stand, and as many come.
pub fn change(world: &Simulator, followers: u64) {
    let rate = as_float(followers) / 200.0 / DAY as f64;
    let churn = |churn_per_second| world.set_faults(Faults { churn_per_second, ..world.faults() });
    churn(ChurnHabits { leave: rate, come: rate, come_back: 0.0 });
    world.advance(DAY);
    churn(ChurnHabits::default());
}

fn figure(name: String, (ours, bare, unit): (f64, f64, &'static str), (wanted, most): (&'static str, f64)) -> Figure {
    let ratio = ours / bare;
    Figure { name, ours, bare, unit, ratio, wanted, is_met: ratio <= most }
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn as_float(count: u64) -> f64 {
    count as f64
}
