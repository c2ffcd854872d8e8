//! A large push, and a sync, whose process is killed again and again at moments that nobody chose.

use std::time::Duration;

use lianbo::clock::Clock;
use lianbo::simulator::{Faults, IdleEnd, ListEnd, Options};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::Child;

use crate::house::{House, crowd, ended, eventually, signal, small};

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
    fn draw(random: &mut StdRng, most_calls: u64) -> Self {
        match random.random_range(0..4) {
            0 => Self::AfterFirst(Duration::from_millis(random.random_range(0..400))),
            1 => Self::AfterStart(Duration::from_millis(random.random_range(0..600))),
            _ => Self::Calls(random.random_range(1..=most_calls)),
        }
    }

    /// Waits for it, or for the child to end by itself.
    async fn come(self, child: &mut Child, calls: impl Fn() -> u64) {
        let (before, clock) = (calls(), Clock::default());
        let since = |start: std::time::Instant| clock.monotonic() - start;
        let start = clock.monotonic();
        let mut is_over = || child.try_wait().unwrap().is_some();
        match self {
            Self::Calls(n) => eventually(SOON, || calls() >= before + n || is_over()).await,
            Self::AfterStart(wait) => eventually(SOON, || since(start) >= wait || is_over()).await,
            Self::AfterFirst(wait) => {
                eventually(SOON, || calls() > before || is_over()).await;
                let first = clock.monotonic();
                eventually(SOON, || since(first) >= wait || is_over()).await;
            }
        }
    }
}

/// Kills it; false when it had ended well before.
async fn kill(mut child: Child) -> bool {
    if child.try_wait().unwrap().is_none() {
        signal(&child, "-KILL");
    }
    let outcome = ended(child).await;
    assert!([-9, 0].contains(&outcome.code), "{outcome:?}");
    outcome.code == -9
}

fn random() -> StdRng {
    let seed = std::env::var("LIANBO_TEST_SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let seed = seed.unwrap_or_else(|| Clock::default().now().timestamp_micros().unsigned_abs());
    println!("the kills are drawn from LIANBO_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_twenty_thousand_that_is_killed_at_random_reaches_each_of_them_once() {
    let mut random = random();
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
        let mut child = house.begin("campaign");
        Moment::draw(&mut random, MOST_CALLS).come(&mut child, || house.calls(SEND)).await;
        assert!(kill(child).await, "the push was over before the last kill");
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

const PAGE: &str = "user/get";
const DETAILS: &str = "user/info/batchget";
/// Calls of details that may be made again after a kill.
const MOST_REPEATED: u64 = 100;

/// A platform that does to lists, answers and connections what it is reported to do, the same to everybody who asks.
fn odd() -> Faults {
    Faults {
        numbers_as_text: true,
        text_plain: true,
        list_end: ListEnd::SameCursor,
        blank_openids: true,
        repeated_openids: 2,
        total_wobble: 40,
        left_out_every: 90,
        control_characters_every: 11,
        leading_space_every: 9,
        sparse_every: 13,
        idle_ends_after_milliseconds: 200,
        idle_end: IdleEnd::Close,
        ..Faults::default()
    }
}

/// What a night leaves, without when and by which run it was made.
const LEFT: [&str; 7] = [
    "select account, openid, active from followers order by all",
    "select * exclude (fetched_at) from profiles order by all",
    "select account, openid, change from follower_changes order by all",
    "select * from mall_users order by all",
    "select * from identities order by all",
    "select * exclude (as_of, run_id, snapshots) from coverage order by all",
    "select * exclude (as_of, run_id, snapshots) from match_report order by all",
];

/// `LIANBO_KILLS=200 cargo test --test it often_killed` kills it two hundred times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_is_killed_at_random_leaves_what_one_that_was_never_stopped_leaves() {
    let kills: u64 = std::env::var("LIANBO_KILLS").map_or(6, |text| text.parse().unwrap());
    let mut random = random();
    let followers = 1_000 + 60 * kills;
    let options = Options {
        followers,
        users: followers,
        matched_users: followers / 2,
        // All nights are of one day.
        quota: [(PAGE.to_owned(), 1_000_000)].into(),
        page_size: 50,
        latency: Duration::from_millis(15),
        faults: odd(),
        ..small()
    };
    let calm = House::build(options.clone()).await;
    calm.night().await;
    let pages = calm.calls(PAGE);
    let details = calm.calls(DETAILS);
    assert_eq!(pages, followers.div_ceil(50) + 1);

    let house = House::build(options).await;
    let (mut killed, mut in_the_walk, mut in_the_details) = (0, 0, 0);
    while killed < kills {
        let before = [PAGE, DETAILS].map(|endpoint| house.calls(endpoint));
        let mut child = house.begin("nightly");
        let calls = || house.calls(PAGE) + house.calls(DETAILS);
        Moment::draw(&mut random, 6).come(&mut child, calls).await;
        let was_killed = kill(child).await;
        let [walked, asked] = [PAGE, DETAILS].map(|endpoint| house.calls(endpoint));
        killed += u64::from(was_killed);
        in_the_walk += u64::from(was_killed && walked > before[0]);
        in_the_details += u64::from(was_killed && asked > before[1]);
    }
    house.night().await;
    let nights = house.numbers("select count(*) from runs").await[0];
    let (walked, asked) = (house.calls(PAGE), house.calls(DETAILS));
    println!(
        "{kills} kills, {in_the_walk} while pages and {in_the_details} while details were asked for, in {nights} nights: \
         {walked} pages where {} are needed, {asked} calls of details where {details} are",
        nights * pages
    );
    assert!(in_the_walk > kills / 4, "the kills were not amid the walk: {in_the_walk} of {kills}");
    assert!(walked <= nights * pages + kills, "{walked} pages in {nights} nights of {pages} and {kills} kills");
    assert!(asked <= details + MOST_REPEATED * kills, "{asked} calls of details, {details} and {kills} kills");
    for sql in LEFT {
        assert!(house.rows(sql).await == calm.rows(sql).await, "not the same: {sql}");
    }
}
