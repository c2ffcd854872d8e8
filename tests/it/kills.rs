//! Processes that die, stop, or run beside each other: everybody is still sent to once, and nothing is lost.

use std::time::Duration;

use crate::house::{House, crowd, ended, eventually, outcome, signal, small};
use lianbo::simulator::{Endpoint, Fault, Options, Order};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_that_is_killed_again_and_again_ends_as_if_it_never_was() {
    let options = Options { page_size: 50, latency: Duration::from_millis(20), ..small() };
    let house = House::build(options).await;
    for (endpoint, after) in [("user/get", 3), ("user/get", 9), ("user/info/batchget", 1), ("user/info/batchget", 4)] {
        let child = house.begin("nightly");
        let calls = || house.calls(endpoint);
        eventually(SOON, || calls() >= after).await;
        signal(&child, "-KILL");
        assert_eq!(ended(child).await.code, -9);
    }
    let night = house.night().await;
    // 12 pages and the empty one; each of two kills in the walk repeats a page at most.
    assert!(house.calls("user/get") <= 13 + 4, "{:?}", house.simulator.calls());
    assert_eq!(house.numbers("select count(*) from runs").await, [1]);
    assert_eq!(night.json()["status"], "succeeded");
    let exact = "select (select count(*) from followers where active), (select count(*) from profiles),
                        (select count(distinct openid) from profiles), (select count(*) from mall_users),
                        (select count(*) from identities), (select count(*) from follower_changes)";
    assert_eq!(house.numbers(exact).await, [600, 600, 600, 700, house.matchable(), 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_has_arrived_is_never_asked_for_again() {
    let undisturbed = House::build(Options { page_size: 50, ..small() }).await;
    undisturbed.night().await;
    let needed = undisturbed.calls("user/get");
    let lists = "select openid, first_seen_at = last_seen_at from followers order by openid";
    let wanted = undisturbed.rows(lists).await;
    for (night, point, repeated) in [
        ("first", "after_page_arrived:1", 0),
        ("first", "after_page_arrived:7", 0),
        // The page is being written, and the next one may have been asked for.
        ("first", "before_part_rename:1", 1),
        ("later", "after_page_arrived:7", 0),
        ("later", "after_part_rename:5", 1),
    ] {
        let house = House::build(Options { page_size: 50, ..small() }).await;
        if night == "later" {
            house.night().await;
            house.pass(86_400);
        }
        let before = house.calls("user/get");
        let mut command = house.command(&["run", "nightly", "--json"]);
        let crashed = outcome(command.env("LIANBO_CRASH_AT", point).output().await.unwrap());
        assert_eq!(crashed.code, -6, "{point}: {crashed:?}");
        house.night().await;
        let calls = house.calls("user/get") - before;
        assert!((needed..=needed + repeated).contains(&calls), "{night} night, {point}: {calls}, {needed} are needed");
        let followers = house.rows(lists).await;
        match night {
            "first" => assert_eq!(followers, wanted, "{point}"),
            _ => assert_eq!(followers.len(), wanted.len(), "{point}"),
        }
        let asides = house.files().into_keys().filter(|path| path.ends_with("arrived"));
        assert_eq!(asides.count(), 0, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_power_cut_kept_from_the_disk_is_asked_for_again() {
    let options = Options { page_size: 50, latency: Duration::from_millis(20), ..small() };
    let house = House::build(options).await;
    let child = house.begin("nightly");
    eventually(SOON, || house.calls("user/info/batchget") >= 3).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    let fetched = house.path("data/lake/work/profiles/main");
    let parts: Vec<_> = std::fs::read_dir(fetched).unwrap().map(|part| part.unwrap().path()).collect();
    assert!(!parts.is_empty(), "nothing was recorded");
    for part in &parts {
        let file = std::fs::File::options().write(true).open(part).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    let night = house.night().await;
    assert!(night.stderr.contains("not whole"), "{}", night.stderr);
    let exact = "select (select count(*) from profiles), (select count(distinct openid) from profiles),
                        (select count(unionid) from profiles), (select count(*) from identities)";
    let unionids = house.numbers("select count(*) from profiles where unionid_missing is null").await[0];
    assert_eq!(house.numbers(exact).await, [600, 600, unionids, house.matchable()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_killed_three_times_reaches_everybody_once() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(1_500) }).await;
    house.campaign("rate = \"600/s\"\nconcurrency = 32");
    house.night().await;
    let people = house.matchable();
    for messages in [120, 430, 900] {
        let child = house.begin("campaign");
        eventually(SOON, || house.simulator.inbox().messages >= messages).await;
        signal(&child, "-KILL");
        assert_eq!(ended(child).await.code, -9);
        let sums =
            "select recipients, sent + failed + skipped + held + unconfirmed + pending, pending > 0, sent from pushes";
        let row = house.row(sums).await;
        assert_eq!((&row[0], &row[1], row[2].as_str()), (&people.to_string(), &people.to_string(), "true"));
        let in_doubt = house.simulator.inbox().messages - row[3].parse::<u64>().unwrap();
        assert!(in_doubt <= 600, "more than a second's sends in doubt: {in_doubt}");
    }
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
    let states = "select count(*), count(distinct openid), count(*) filter (state = 'sent') from deliveries";
    assert_eq!(house.numbers(states).await, [people, people, people]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_killed_and_goes_on_too_late_says_unconfirmed_and_sends_nobody_twice() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(600) }).await;
    house.campaign("rate = \"300/s\"\nconcurrency = 32");
    house.night().await;
    let people = house.matchable();
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 100).await;
    signal(&child, "-KILL");
    ended(child).await;
    house.pass(11 * 60);
    let [recipients, sent, failed, skipped, held, unconfirmed, pending] =
        house.run("campaign", &[]).await.ends(0).counts();
    assert_eq!((recipients, failed, skipped, held, pending), (people, 0, 0, 0, 0));
    assert_eq!(sent + unconfirmed, people);
    assert!(unconfirmed <= 300, "{unconfirmed}");
    let inbox = house.simulator.inbox();
    assert_eq!(inbox.twice_or_more, 0);
    assert!(inbox.once >= sent, "{inbox:?} {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_started_at_once_are_one_run() {
    let house = House::build(Options { latency: Duration::from_millis(5), ..small() }).await;
    house.campaign("rate = \"400/s\"");
    for pipeline in ["nightly", "campaign"] {
        let (one, other) = (house.begin(pipeline), house.begin(pipeline));
        let (one, other) = tokio::join!(ended(one), ended(other));
        let (one, other) = (one.ends(0), other.ends(0));
        assert_eq!(one.json()["run_id"], other.json()["run_id"]);
        let runs = format!("select count(*) from runs where pipeline = '{pipeline}'");
        assert_eq!(house.numbers(&runs).await, [1]);
    }
    assert_eq!((house.calls("user/get"), house.calls("user/info/batchget")), (4, 6));
    house.everybody_has_one();
    assert_eq!(house.calls("message/template/send"), house.matchable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pipelines_that_sync_one_account_at_the_same_time_take_turns() {
    let house = House::build(Options { latency: Duration::from_millis(20), page_size: 50, ..small() }).await;
    for name in ["one", "two", "three"] {
        let stages = format!(
            "[stages.followers_{name}]\nkind = \"extract_followers\"\n\
             [stages.profiles_{name}]\nkind = \"enrich_unionids\"\nfrom = \"followers_{name}\"\n"
        );
        house.write(&format!("pipelines/{name}.toml"), &stages);
    }
    let (one, two) = (house.begin("one"), house.begin("two"));
    let walking = || house.calls("user/get");
    eventually(SOON, || walking() >= 3).await;
    let three = house.begin("three");
    signal(&three, "-KILL");
    let (one, two, _) = tokio::join!(ended(one), ended(two), ended(three));
    for run in [one, two] {
        assert_eq!(run.ends(0).json()["status"], "succeeded");
    }
    house.run("three", &[]).await.ends(0);
    for name in ["one", "two", "three"] {
        let exact = format!(
            "select (select count(*) from followers_{name} where active), (select count(distinct openid) from followers_{name}),
                    (select count(*) from profiles_{name}), (select count(distinct openid) from profiles_{name}),
                    (select count(*) from follower_changes)"
        );
        assert_eq!(house.numbers(&exact).await, [600, 600, 600, 600, 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_beside_one_that_dies_takes_it_over() {
    let house = House::build(Options { latency: Duration::from_millis(5), ..crowd(600) }).await;
    house.campaign("rate = \"200/s\"");
    house.night().await;
    let first = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 20).await;
    let second = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 150).await;
    signal(&first, "-KILL");
    ended(first).await;
    let people = house.matchable();
    assert_eq!(ended(second).await.ends(0).counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_settles_what_is_in_flight_and_the_next_run_goes_on() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(800) }).await;
    house.campaign("rate = \"300/s\"");
    house.night().await;
    let people = house.matchable();
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 100).await;
    signal(&child, "-TERM");
    let stopped = tokio::time::timeout(Duration::from_secs(10), ended(child)).await.expect("it stops within 10 s");
    let stopped = stopped.ends(75);
    assert_eq!(stopped.json()["status"], "waiting");
    assert!(stopped.json()["reason"].as_str().unwrap().contains("interrupted"), "{:?}", stopped.json());
    let [_, sent, .., pending] = stopped.counts();
    assert_eq!((sent, sent + pending), (house.simulator.inbox().messages, people));
    assert_eq!(house.numbers("select count(*) from deliveries where state = 'sending'").await, [0]);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    assert_eq!(push.json()["run_id"], stopped.json()["run_id"]);
    house.everybody_has_one();
    assert_eq!(house.calls("message/template/send"), people, "nobody was even asked for twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_a_run_is_counted_through_stops_repeats_and_refused_tokens() {
    let options = Options { page_size: 50, latency: Duration::from_millis(20), ..crowd(800) };
    let house = House::build(options).await;
    house.campaign("rate = \"300/s\"\nconcurrency = 16");
    let seen = |endpoint: &str| serde_json::Value::from(house.calls(endpoint));
    let child = house.begin("nightly");
    eventually(SOON, || house.calls("user/get") >= 8 && house.calls("user/info/batchget") >= 2).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    let night = house.night().await;
    assert_eq!(night.stage("followers")["api_calls"]["user/get"], seen("user/get"));
    assert_eq!(night.stage("profiles")["api_calls"]["user/info/batchget"], seen("user/info/batchget"));

    let faults = [(Fault::Errcode(-1), 9, 4), (Fault::Errcode(40001), 30, 2), (Fault::LostAnswer, 50, 3)];
    for (fault, after, times) in faults.clone() {
        house.simulator.order(Order::next(fault).at(Endpoint::TemplateSend).after(after).times(times));
    }
    let failed: u64 = faults.iter().map(|(_, _, times)| times).sum();
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 150).await;
    signal(&child, "-TERM");
    let stopped = ended(child).await.ends(75);
    assert_eq!(stopped.stage("push")["api_calls"]["message/template/send"], seen("message/template/send"));
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 400).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    let push = house.run("campaign", &[]).await.ends(0);
    for endpoint in ["message/template/send", "openapi/quota/get", "template/get_all_private_template"] {
        assert_eq!(push.stage("push")["api_calls"][endpoint], seen(endpoint), "{endpoint}");
    }
    let counted = "select calls, errors from api_calls where endpoint = 'message/template/send'";
    assert_eq!(house.numbers(counted).await, [house.calls("message/template/send"), failed]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kill_of_a_push_costs_the_days_count_nothing_that_was_not_called() {
    const SEND: &str = "message/template/send";
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(900) }).await;
    house.campaign("rate = \"200/s\"\nconcurrency = 8");
    house.night().await;
    let counted = "select calls from api_calls where endpoint = 'message/template/send'";
    for kill in 1..=3 {
        let (before, child) = (house.calls(SEND), house.begin("campaign"));
        eventually(SOON, || house.calls(SEND) >= before + 120).await;
        signal(&child, "-KILL");
        ended(child).await;
        assert!(house.numbers(counted).await[0] >= house.calls(SEND), "kill {kill}");
    }
    house.run("campaign", &[]).await.ends(0);
    let (counted, made) = (house.numbers(counted).await[0], house.calls(SEND));
    // A call that was begun, and had not left when the process died.
    assert!((made..=made + 3 * 8).contains(&counted), "{counted} counted, {made} made");
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_suppressed_while_a_push_stands_costs_no_call_when_it_goes_on() {
    const SEND: &str = "message/template/send";
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(500) }).await;
    house.campaign("rate = \"200/s\"\nconcurrency = 8");
    house.night().await;
    let child = house.begin("campaign");
    eventually(SOON, || house.calls(SEND) >= 60).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    let owed = house.rows("select openid from deliveries where state = 'pending' and attempts > 0 limit 3").await;
    assert_eq!(owed.len(), 3, "claimed, and put back by the stop");
    for person in &owed {
        let who = ["suppress", "add", "--openid", &person[0], "--account", "main", "--reason", "asked"];
        house.lianbo(&who).await.ends(0);
    }
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts()[3], 3, "skipped: {push:?}");
    let counted = "select calls from api_calls where endpoint = 'message/template/send'";
    assert_eq!(house.numbers(counted).await, [house.calls(SEND)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_leaves_a_moments_calls_uncounted_and_no_more() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(900) }).await;
    house.campaign("rate = \"200/s\"\nconcurrency = 8");
    house.night().await;
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 400).await;
    signal(&child, "-KILL");
    ended(child).await;
    let push = house.run("campaign", &[]).await.ends(0);
    let counted = push.stage("push")["api_calls"]["message/template/send"].as_u64().unwrap();
    let made = house.calls("message/template/send");
    // A quarter of a second between two notes; a machine at work may be late by as much again and more.
    assert!(counted <= made && made - counted <= 200, "{counted} of {made}");
}
