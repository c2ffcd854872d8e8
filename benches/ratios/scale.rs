//! A campaign at three sizes, in two runs each: up to its approval (the set made and frozen, every message rendered and
//! checked), and the sends alone.

use crate::Figure;
use crate::space::{Cost, Space, simulator};

/// Seconds in which a million recipients are to be read, judged and frozen.
const FREEZING: f64 = 10.0;
/// Seconds in which a million messages are to be rendered and checked.
const CHECKING: f64 = 20.0;
const MEMORY_MB: f64 = 300.0;

struct Campaign {
    people: u64,
    prepared: Cost,
    sent: Cost,
}

impl Campaign {
    #[expect(clippy::cast_precision_loss, reason = "sizes for people")]
    fn peak_mb(&self) -> f64 {
        self.prepared.peak_bytes.max(self.sent.peak_bytes) as f64 / 1e6
    }

    /// Microseconds of the processor for each send.
    #[expect(clippy::cast_precision_loss, reason = "sizes for people")]
    fn cost_a_send(&self) -> f64 {
        self.sent.cpu_seconds * 1e6 / self.people as f64
    }
}

pub async fn measure(scale: u64) -> Vec<Figure> {
    let small = campaign(10_000 / scale).await;
    let middle = campaign(100_000 / scale).await;
    let large = campaign(1_000_000 / scale).await;
    let within = |name: &str, seconds: f64, limit: f64| Figure {
        name: format!("{name}, {} people", large.people),
        ours: seconds,
        bare: limit,
        unit: "s",
        ratio: seconds / limit,
        wanted: "within the time",
        is_met: seconds <= limit,
    };
    let (memory, cost) = (large.peak_mb() / middle.peak_mb(), large.cost_a_send() / small.cost_a_send());
    vec![
        within("recipients read, judged and frozen", large.prepared.stage_seconds("audience"), FREEZING),
        within("messages rendered and checked", large.prepared.stage_seconds("push"), CHECKING),
        Figure {
            name: format!("peak memory, a campaign to {} beside {}", large.people, middle.people),
            ours: large.peak_mb(),
            bare: middle.peak_mb(),
            unit: "MB",
            ratio: memory,
            wanted: "≤ 1.2, and under 300 MB",
            is_met: memory <= 1.2 && large.peak_mb() < MEMORY_MB,
        },
        Figure {
            name: format!("processor time a send, {} beside {}", large.people, small.people),
            ours: large.cost_a_send(),
            bare: small.cost_a_send(),
            unit: "µs",
            ratio: cost,
            wanted: "≤ 1.1",
            is_met: cost <= 1.1,
        },
    ]
}

async fn campaign(people: u64) -> Campaign {
    let world = simulator(people).await;
    let space = Space::new(&world, "200MB");
    space.replace("pipelines/campaign.toml", "concurrency = 64\n", "concurrency = 64\napprove = true\n");
    let (prepared, sent) = tokio::task::block_in_place(|| {
        space.run("sync");
        let prepared = space.run_to("campaign", "waiting");
        let shown = space.ask(&["push", "show", "campaign"]);
        let hash = shown["pushes"][0]["approval_hash"].as_str().expect("what is to be approved has a hash");
        space.ask(&["push", "approve", "campaign", "--hash", hash]);
        (prepared, space.run("campaign"))
    });
    let inbox = world.inbox();
    assert_eq!((inbox.once, inbox.most_to_one), (people, 1), "not everybody once");
    Campaign { people, prepared, sent }
}
