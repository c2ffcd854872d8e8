//! A large push whose process is killed again and again at moments that nobody chose.

use std::time::Duration;

use lianbo::clock::Clock;
use lianbo::simulator::Options;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::Child;

use crate::house::{House, crowd, ended, eventually, signal};

const PEOPLE: u64 = 20_000;
const KILLS: u32 = 32;
/// Calls between two kills at most; on average half as many, so that the kills are spread over the whole push.
const MOST_CALLS: u64 = 1_000;
const SOON: Duration = Duration::from_secs(60);
const SEND: &str = "message/template/send";

/// What a kill waits for.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many calls more, repeats among them.
    Calls(u64),
    /// So long after its first call.
    AfterFirst(Duration),
    /// So long after its start: often before it sends at all.
    AfterStart(Duration),
}

impl Moment {
    fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..4) {
            0 => Self::AfterFirst(Duration::from_millis(random.random_range(0..400))),
            1 => Self::AfterStart(Duration::from_millis(random.random_range(0..600))),
            _ => Self::Calls(random.random_range(1..=MOST_CALLS)),
        }
    }

    async fn come(self, house: &House) {
        let (before, clock) = (house.calls(SEND), Clock::default());
        let since = |start: std::time::Instant| clock.monotonic() - start;
        let start = clock.monotonic();
        match self {
            Self::Calls(n) => eventually(SOON, || house.calls(SEND) >= before + n).await,
            Self::AfterStart(wait) => eventually(SOON, || since(start) >= wait).await,
            Self::AfterFirst(wait) => {
                eventually(SOON, || house.calls(SEND) > before).await;
                let first = clock.monotonic();
                eventually(SOON, || since(first) >= wait).await;
            }
        }
    }
}

async fn kill(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "the push was over before the last kill");
    signal(&child, "-KILL");
    assert_eq!(ended(child).await.code, -9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_twenty_thousand_that_is_killed_at_random_reaches_each_of_them_once() {
    let seed = std::env::var("LIANBO_TEST_SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let seed = seed.unwrap_or_else(|| Clock::default().now().timestamp_micros().unsigned_abs());
    println!("the kills are drawn from LIANBO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let options = Options { page_size: 10_000, latency: Duration::from_millis(3), ..crowd(PEOPLE + PEOPLE / 10) };
    let house = House::build(options).await;
    house.campaign("rate = \"1500/s\"\nconcurrency = 64");
    house.write(
        "pipelines/campaign/audience.sql",
        &format!(
            "select oa_openid as openid, unionid, mp_openid from identities where account = 'main'
             order by oa_openid limit {PEOPLE}\n"
        ),
    );
    house.night().await;
    for _ in 0..KILLS {
        let child = house.begin("campaign");
        let moment = Moment::draw(&mut random);
        moment.come(&house).await;
        kill(child).await;
    }
    let inbox = house.simulator.inbox();
    assert!(inbox.messages > PEOPLE / 10 && inbox.messages < PEOPLE, "the kills were not amid the push: {inbox:?}");
    let states = "select sent + failed + skipped + held + unconfirmed + pending, pending > 0 from pushes";
    assert_eq!(house.row(states).await, [PEOPLE.to_string(), "true".to_owned()]);

    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [PEOPLE, PEOPLE, 0, 0, 0, 0, 0]);
    let inbox = house.simulator.inbox();
    assert_eq!((inbox.people, inbox.once, inbox.twice_or_more), (PEOPLE, PEOPLE, 0), "{inbox:?}");
    assert!(inbox.repeats_kept_off > 0, "no kill left anybody in doubt: {inbox:?}");
    let states = "select count(*), count(distinct openid), count(*) filter (state = 'sent') from deliveries";
    assert_eq!(house.numbers(states).await, [PEOPLE, PEOPLE, PEOPLE]);
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
}
