//! Pushes beside each other, and what one leaves for the next.

use lianbo::simulator::Options;

use crate::house::{AUDIENCE, House, campaign, crowd, ended, small};

/// A second campaign to the same people with other words: WeChat refuses the same words within a minute.
fn second_campaign(house: &House, keys: &str) {
    house.write("pipelines/second.toml", &campaign(keys).replace("秋季特惠", "冬季特惠"));
    house.write("pipelines/second/audience.sql", AUDIENCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pushes_of_an_account_keep_to_its_rate_together() {
    let house = House::build(crowd(300)).await;
    house.edit("config/lianbo.toml", "timeout = \"3s\"", "timeout = \"3s\"\nsend_rate = \"100/s\"");
    second_campaign(&house, "");
    house.night().await;
    let people = house.matchable();
    let (first, second) = (house.begin("campaign"), house.begin("second"));
    for push in [ended(first).await, ended(second).await] {
        assert_eq!(push.ends(0).counts(), [people, people, 0, 0, 0, 0, 0]);
    }
    assert_eq!(house.simulator.inbox().messages, 2 * people);
    let span = "select count(*) as sends, epoch_ms(max(sent_at)) - epoch_ms(min(sent_at)) as millis from deliveries";
    let [sends, millis] = house.numbers(span).await[..] else { panic!("one row of two numbers") };
    assert!(sends - 1 <= millis * 110 / 1_000, "{sends} sends in {millis} ms are more than 110 a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pushes_to_the_same_people_at_once_both_reach_everybody() {
    let house = House::build(Options { latency: std::time::Duration::from_millis(30), ..crowd(200) }).await;
    second_campaign(&house, "");
    house.night().await;
    let people = house.matchable();
    let (first, second) = (house.begin("campaign"), house.begin("second"));
    for push in [ended(first).await, ended(second).await] {
        assert_eq!(push.ends(0).counts(), [people, people, 0, 0, 0, 0, 0]);
    }
    let inbox = house.simulator.inbox();
    assert_eq!((inbox.messages, inbox.most_to_one), (2 * people, 2));
    assert_eq!(house.calls("message/template/send"), 2 * people, "no call was wasted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_test_run_sent_counts_for_no_cap() {
    let house = House::build(small()).await;
    house.night().await;
    let people = house.matchable();
    let tester = &house.simulator.matchable()[0];
    house.campaign(&format!("test_openids = [\"{tester}\"]"));
    let cap = "frequency_cap = { messages = 1, days = 7 }\nnot_again = \"7d\"\n[stages.push]";
    house.edit("pipelines/campaign.toml", "[stages.push]", cap);
    let test = house.run("campaign", &["--test"]).await.ends(0);
    assert_eq!(test.counts(), [1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(house.numbers("select count(*) from deliveries where is_test").await, [1]);
    // The same words to the same person within a minute are refused.
    house.pass(120);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0], "the tester was left out");
    house.edit("pipelines/campaign.toml", "秋季特惠", "冬季特惠");
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [0; 7], "the cap does not hold");
}
