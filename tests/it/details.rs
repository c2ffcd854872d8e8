//! What a night asks of people's details: each call counts, can be stopped before the next, and is not made twice.

use std::time::{Duration, Instant};

use lianbo::simulator::{Faults, InvalidInBatch, Options};

use crate::house::{House, ended, eventually, signal, small};

const ENRICH: &str = "kind = \"enrich_unionids\"";
const TIMEOUT: &str = "timeout = \"3s\"";

/// A house that asks `width` wide.
async fn asking(options: Options, width: u32) -> House {
    let house = House::build(options).await;
    house.edit("config/lianbo.toml", TIMEOUT, &format!("{TIMEOUT}\nconcurrency = {width}"));
    house
}

fn asked(house: &House) -> u64 {
    house.calls("user/info/batchget") + house.calls("user/info")
}

/// Nearly every batch holds somebody who breaks its answer, so that nearly everybody is asked for singly.
fn all_singly() -> Options {
    Options {
        faults: Faults { broken_json_every: 60, ..Faults::default() },
        latency: Duration::from_millis(40),
        ..small()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_amid_single_calls_is_obeyed_at_once_and_none_of_them_is_made_again() {
    let house = asking(all_singly(), 4).await;
    let child = house.begin("nightly");
    eventually(Duration::from_secs(60), || house.calls("user/info") >= 60).await;
    let stopped = Instant::now();
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    let before = house.calls("user/info");
    assert!(before < 500, "it was stopped too late: {before}");
    house.night().await;
    assert!(house.calls("user/info") <= 620, "{:?}", house.simulator.calls());
    let told = "select count(*) filter (unionid is not null or unionid_missing = 'not_bound'), count(*) from profiles";
    let [told, all] = house.numbers(told).await[..] else { panic!("two numbers") };
    assert!(all == 600 && told > 570, "{told} of {all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_amid_single_calls_repeats_at_most_a_hundred() {
    let house = asking(all_singly(), 4).await;
    let mut child = house.begin("nightly");
    eventually(Duration::from_secs(60), || house.calls("user/info") >= 250).await;
    child.kill().await.unwrap();
    house.night().await;
    assert!(house.calls("user/info") <= 720, "{:?}", house.simulator.calls());
    assert_eq!(house.numbers("select count(*), count(distinct openid) from profiles").await, [600, 600]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_calls_and_the_halves_of_batches_are_of_the_budget() {
    for (faults, nights) in [
        (Faults { broken_json_every: 60, ..Faults::default() }, None),
        (Faults { strangers: 3, invalid_in_batch: InvalidInBatch::WholeBatch, ..Faults::default() }, Some(4)),
        (Faults { left_out_every: 9, ..Faults::default() }, Some(4)),
    ] {
        let house = asking(Options { faults: faults.clone(), ..small() }, 8).await;
        house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 40"));
        for _ in 0..nights.unwrap_or(2) {
            let before = asked(&house);
            house.night().await;
            // An answer that cannot be read is asked for a second time by the call itself, the last one's too.
            let spent = asked(&house) - before;
            assert!(spent <= 42, "{spent} calls of 40: {faults:?}");
            house.pass(86_400);
        }
        let left = house.numbers("select count(*) from profiles where unionid_missing = 'not_asked'").await;
        assert!(nights.is_none() || left == [0], "{left:?} are left of {faults:?}");
    }
}
