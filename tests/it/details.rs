//! What a night asks of people's details: each call counts, can be stopped before the next, and is not made twice.

use std::time::Duration;

use chrono::TimeDelta;
use lianbo::clock::{Clock, Timestamp};
use lianbo::domain::QuotaDay;
use lianbo::simulator::{Faults, InvalidInBatch, Options};
use serde_json::json;

use crate::house::{House, ended, eventually, signal, small};

pub const ENRICH: &str = "kind = \"enrich_unionids\"";
pub const TIMEOUT: &str = "timeout = \"3s\"";

/// A house that asks `width` wide.
pub async fn asking(options: Options, width: u32) -> House {
    let house = House::build(options).await;
    house.edit("config/lianbo.toml", TIMEOUT, &format!("{TIMEOUT}\nconcurrency = {width}"));
    house
}

pub fn asked(house: &House) -> u64 {
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
    let stopped = Clock::default().monotonic();
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
        // Forty, beside the tenth that is kept for confirming.
        house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 45"));
        for _ in 0..nights.unwrap_or(2) {
            let before = asked(&house);
            house.night().await;
            // An answer that cannot be read is asked for a second time by the call itself, the last one's too.
            let spent = asked(&house) - before;
            assert!(spent <= 47, "{spent} calls of 45: {faults:?}");
            house.pass(86_400);
        }
        let left = house.numbers("select count(*) from profiles where unionid_missing = 'not_asked'").await;
        assert!(nights.is_none() || left == [0], "{left:?} are left of {faults:?}");
    }
}

/// Every profile is asked for again by the next night; every `one_in`-th person has another unionid by then.
pub async fn moved(options: Options, width: u32, one_in: u64) -> House {
    let house = asking(options, width).await;
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nrefresh_after = \"1h\""));
    house.night().await;
    house.pass(7_200);
    house.simulator.set_faults(Faults { changed_unionid_every: one_in, ..Faults::default() });
    house
}

pub const CHANGED: &str = "select count(*) from identity_changes where reason = 'unionid_changed'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unionids_in_doubt_are_confirmed_within_the_budget_and_who_does_not_fit_stays_as_before() {
    let house = moved(small(), 8, 40).await;
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 10"));
    let before = house.rows("select openid, unionid from profiles where unionid is not null order by all").await;
    let mut changed = 0;
    let mut nights = 0;
    loop {
        nights += 1;
        let calls = asked(&house);
        let night = house.night().await;
        assert!(asked(&house) - calls <= 10);
        let now = house.numbers(CHANGED).await[0];
        let waiting = night.stage("profiles")["detail"]["accounts"][0]["unconfirmed"].as_u64().unwrap();
        let told = format!("no call is left to ask singly for {waiting} people");
        assert_eq!(night.stderr.contains(&told), waiting > 0, "{}", night.stderr);
        assert!(now > changed || waiting == 0, "night {nights}: {now} changed, {waiting} wait");
        changed = now;
        let after = house.rows("select openid, unionid from profiles where unionid is not null order by all").await;
        assert_eq!(after.len(), before.len());
        assert_eq!(after.iter().zip(&before).filter(|(now, then)| now != then).count(), usize::try_from(now).unwrap());
        if waiting == 0 {
            break;
        }
        house.pass(7_200);
    }
    assert!(nights > 1 && changed > 6, "{nights} nights, {changed} changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_amid_doubts_is_obeyed_at_once_and_whoever_was_asked_singly_is_not_asked_again() {
    let house = moved(Options { latency: Duration::from_millis(120), ..small() }, 1, 25).await;
    let before = house.calls("user/info");
    let child = house.begin("nightly");
    eventually(Duration::from_secs(60), || house.calls("user/info") >= before + 6).await;
    let stopped = Clock::default().monotonic();
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    house.night().await;
    let changed = house.numbers(CHANGED).await[0];
    let singly = house.calls("user/info") - before;
    assert!(changed > 10 && (changed..=changed + 6).contains(&singly), "{singly} calls for {changed} people");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_bound_to_another_open_platform_account_is_told_of_and_taken_in_when_the_operator_says_so() {
    let house = moved(small(), 8, 1).await;
    let unionids = "select openid, unionid from profiles where unionid is not null order by all";
    let before = house.rows(unionids).await;
    let singly = house.calls("user/info");
    let failed = house.run("nightly", &[]).await.ends(1);
    let told = failed.stage("profiles")["error"].as_str().unwrap().to_owned();
    for part in ["bound to another Open Platform account", "10 asked singly", "--accept-drop"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(house.calls("user/info") - singly <= 20, "{:?}", house.simulator.calls());
    assert!(house.rows(unionids).await == before);

    let batches = house.calls("user/info/batchget");
    house.run("nightly", &["--accept-drop", "one platform for all brands"]).await.ends(0);
    assert_eq!(house.calls("user/info/batchget"), batches, "what was asked is kept");
    let after = house.rows(unionids).await;
    assert_eq!(after.len(), before.len());
    assert!(after.iter().zip(&before).all(|(now, then)| now[0] == then[0] && now[1] != then[1]));
    assert_eq!(house.numbers(CHANGED).await[0], u64::try_from(before.len()).unwrap());
    let audit = "select detail from audit where command = 'accept-drop'";
    assert!(house.row(audit).await[0].contains("one platform for all brands"));

    house.edit("pipelines/nightly.toml", "refresh_after = \"1h\"", "refresh_after = \"30d\"");
    let batches = house.calls("user/info/batchget");
    house.night().await;
    assert_eq!(house.calls("user/info/batchget"), batches, "everybody was asked since");
}

/// How many profiles were asked for before, and how many of them in the last hour.
pub async fn fetched_lately(house: &House, of: &str) -> u64 {
    let since = (house.now() - TimeDelta::hours(1)).format("%F %T");
    house.numbers(&format!("select count(*) from profiles where fetched_at > timestamp '{since}' {of}")).await[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_goes_to_an_audience_first_then_to_the_newest_followers() {
    let house = asking(small(), 8).await;
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 3"));
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    house.pass(86_400);
    let new = house.simulator.follow_some(40);
    house.edit("pipelines/nightly.toml", "budget = 3", "budget = 1");
    house.night().await;
    let those = new.iter().map(|openid| format!("'{openid}'")).collect::<Vec<_>>().join(", ");
    assert_eq!(fetched_lately(&house, &format!("and openid in ({those})")).await, 40);
    assert_eq!(fetched_lately(&house, "").await, 100, "the rest went to others who were never asked");

    house.pass(86_400);
    house.simulator.follow_some(40);
    house.edit("pipelines/nightly.toml", "budget = 1", "budget = 1\nrefresh_after = \"1h\"");
    house.night().await;
    let in_a_set = "and openid in (select openid from recipients where arm = 'send')";
    let members = house.numbers(&format!("select count(*) from profiles where true {in_a_set}")).await[0];
    assert!(members > 100, "{members}");
    assert_eq!(fetched_lately(&house, in_a_set).await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_days_calls_for_details_are_used_up_the_night_ends_and_the_next_one_goes_on() {
    let mut options = small();
    options.quota.insert("user/info/batchget".to_owned(), 4);
    let house = asking(options, 2).await;
    let midday = QuotaDay::of(house.now()).next().starts_at() + TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    let night = house.night().await;
    let account = &night.stage("profiles")["detail"]["accounts"][0];
    assert_eq!((&account["not_asked"], &account["quota_spent"]), (&json!(200), &json!("user/info/batchget")));
    let told = "the day's user/info/batchget calls of account `main` are used up: 200 followers are not asked yet";
    assert!(night.stderr.contains(told), "{}", night.stderr);
    let counted = "select not_asked from coverage where account = 'main' and miniprogram = 'mall' order by date desc";
    assert_eq!(house.rows(counted).await[0], ["200"]);
    let again = house.night().await;
    assert_eq!(again.stage("profiles")["detail"]["accounts"][0]["not_asked"], 200, "the day has none left");

    // Shortly after midnight the counters may not be empty yet: that is a matter of minutes.
    house.simulator.set_faults(Faults { quota_reset_lag_seconds: 600, ..Faults::default() });
    house.pass((QuotaDay::of(house.now()).next().starts_at() - house.now()).num_seconds() + 1);
    let waits = house.run("nightly", &[]).await.ends(75).json();
    let until: Timestamp = waits["waiting_until"].as_str().unwrap().parse().unwrap();
    assert!(until - house.now() <= TimeDelta::minutes(6), "{waits}");
    house.pass(1_200);
    house.night().await;
    assert_eq!(house.rows(counted).await[0], ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_ceiling_for_details_ends_a_night_as_wechats_does_and_the_plan_tells_so() {
    let house = asking(small(), 2).await;
    house.edit("config/lianbo.toml", TIMEOUT, &format!("{TIMEOUT}\nquota = {{ \"user/info/batchget\" = 2 }}"));
    let midday = QuotaDay::of(house.now()).next().starts_at() + TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    for left in [400, 200, 0] {
        let night = house.night().await;
        assert_eq!(night.stage("profiles")["detail"]["accounts"][0]["not_asked"], left);
        house.pass(86_400);
        if left == 400 {
            let plan = house.lianbo(&["plan", "nightly"]).await.ends(0).stdout;
            assert!(plan.contains("the day's quota leaves 200 for the nights after"), "{plan}");
        }
    }
    assert_eq!(house.calls("user/info/batchget"), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_openid_keeps_its_code_and_is_asked_for_by_itself_after_one_two_and_four_nights() {
    let faults = Faults { strangers: 2, invalid_in_batch: InvalidInBatch::WholeBatch, ..Faults::default() };
    let house = asking(Options { faults, ..small() }, 4).await;
    house.night().await;
    let refused = "select errcode, refusals, count(*) from profiles where unionid_missing = 'error' group by all";
    assert_eq!(house.numbers(refused).await, [40_003, 1, 2]);
    let mut nights = Vec::new();
    for night in 1..=7 {
        let (batches, singly) = (house.calls("user/info/batchget"), house.calls("user/info"));
        house.pass(86_400);
        house.night().await;
        assert_eq!(house.calls("user/info/batchget"), batches, "no batch is spoilt by them");
        if house.calls("user/info") > singly {
            assert_eq!(house.calls("user/info") - singly, 2);
            nights.push(night);
        }
    }
    assert_eq!(nights, [1, 3, 7]);
    house.night().await;
    assert_eq!(house.numbers(refused).await, [40_003, 4, 2]);
}
