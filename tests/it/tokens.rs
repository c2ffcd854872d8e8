//! The access token: refused now and then though it is good, dead and still given out, dead for good.

use std::time::Duration;

use lianbo::simulator::{Endpoint, Fault, Faults, Options, Order};

use crate::house::{House, crowd, small};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_in_twelve_refused_for_a_good_token_costs_nobody_a_message_and_no_forced_renewal() {
    let house = House::build(Options { latency: Duration::from_millis(4), ..crowd(2_200) }).await;
    house.campaign("rate = \"2000/s\"");
    house.night().await;
    house.simulator.set_faults(Faults { spurious_token_every: 12, ..Faults::default() });
    let (people, tokens) = (house.matchable(), house.calls("stable_token"));
    assert!(people >= 2_000, "{people}");
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    let refused = house.calls("message/template/send") - people;
    assert!(refused >= people / 13, "{refused} were refused");
    assert_eq!(house.simulator.forced_tokens(), 0);
    let tokens = house.calls("stable_token") - tokens;
    assert!(tokens <= 5, "{tokens} calls for a token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_refusals_neither_halts_the_push_nor_forces_a_renewal() {
    let house = House::build(small()).await;
    house.campaign("rate = \"400/s\"\nconcurrency = 8");
    house.night().await;
    // Two coincidences in a row at the very start, and a burst in the midst of it.
    house.simulator.order(Order::next(Fault::Errcode(40001)).at(Endpoint::TemplateSend).times(2));
    house.simulator.order(Order::next(Fault::Errcode(40001)).at(Endpoint::TemplateSend).after(100).times(5));
    let people = house.matchable();
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.calls("message/template/send"), people + 7);
    assert_eq!(house.simulator.forced_tokens(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_token_that_is_still_given_out_is_replaced_by_one_forced_renewal() {
    let house = House::build(Options { latency: Duration::from_millis(5), ..small() }).await;
    house.campaign("rate = \"300/s\"\nconcurrency = 16");
    house.night().await;
    let people = house.matchable();
    let child = house.begin("campaign");
    crate::house::eventually(Duration::from_secs(60), || house.simulator.inbox().messages >= 50).await;
    house.simulator.spoil_token();
    let push = crate::house::ended(child).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.simulator.forced_tokens(), 1);
    let refused = house.calls("message/template/send") - people;
    assert!(refused <= 70, "{refused} calls were made with a dead token");

    // The night begins with a dead one in the ledger: the same, with reads.
    house.pass(60);
    house.simulator.spoil_token();
    house.night().await;
    assert_eq!(house.simulator.forced_tokens(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_stays_refused_halts_the_push_names_the_account_and_goes_on_after_the_mend() {
    let house = House::build(small()).await;
    house.night().await;
    let people = house.matchable();
    house.simulator.order(Order::next(Fault::Errcode(40001)).at(Endpoint::TemplateSend).after(40).times(1_000_000));
    let halted = house.run("campaign", &["--wait"]).await.ends(3);
    let sent = house.simulator.inbox().messages;
    assert_eq!(halted.counts(), [people, sent, 0, 0, 0, 0, people - sent]);
    let reason = halted.json()["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("40001") && reason.contains("main") && reason.contains("push resume"), "{reason}");
    assert!(house.simulator.forced_tokens() <= 1);
    let calls = house.calls("message/template/send") - sent;
    assert!(calls <= 150, "{calls} calls were made in vain");

    house.simulator.clear_orders();
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_tokens_that_are_refused_now_and_then_are_not_fetched_anew_each_time() {
    let house = House::build(crowd(700)).await;
    house.edit("config/lianbo.toml", "timeout = \"3s\"", "timeout = \"3s\"\ntoken = \"legacy\"");
    house.night().await;
    house.simulator.set_faults(Faults { spurious_token_every: 12, ..Faults::default() });
    let people = house.matchable();
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.calls("stable_token"), 0);
    assert!(house.calls("token") <= 3, "{} fetches", house.calls("token"));
}
