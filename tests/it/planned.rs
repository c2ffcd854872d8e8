//! `plan`: what it foretells is what the run then does, and asking for it costs nothing.

use chrono::TimeDelta;
use lianbo::clock::Timestamp;
use lianbo::domain::QuotaDay;
use lianbo::simulator::Options;
use serde_json::Value;

use crate::house::{House, Outcome, small};

/// Foretold calls of an endpoint.
fn needed(plan: &Value, endpoint: &str) -> u64 {
    plan["calls"][endpoint]["needed"].as_u64().unwrap_or_else(|| panic!("no {endpoint} in {plan}"))
}

/// Calls that the stages of a run say they made.
fn made(run: &Outcome, endpoint: &str) -> u64 {
    let json = run.json();
    let stages = json["stages"].as_array().unwrap();
    stages.iter().filter_map(|stage| stage["api_calls"][endpoint].as_u64()).sum()
}

async fn plan(house: &House, pipeline: &str) -> Value {
    let before = house.simulator.calls();
    let files = house.files();
    let plan = house.lianbo(&["plan", pipeline, "--json"]).await.ends(0).json();
    assert_eq!(house.simulator.calls(), before, "a plan called WeChat");
    let after = house.files();
    let touched: Vec<_> =
        files.keys().chain(after.keys()).filter(|path| files.get(*path) != after.get(*path)).collect();
    let touched: Vec<_> = touched.iter().filter(|path| !path.to_string_lossy().contains("ledger.db-")).collect();
    assert!(touched.is_empty(), "a plan wrote {touched:?}");
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nights_plan_names_the_calls_that_it_then_makes() {
    let house = House::build(Options { page_size: 10_000, ..small() }).await;
    house.night().await;
    house.simulator.follow_some(230);
    house.lianbo(&["run", "nightly", "--only", "followers", "--yes"]).await.ends(0);
    let foretold = plan(&house, "nightly").await;
    let before = house.simulator.calls();
    let night = house.night().await;
    for endpoint in ["user/get", "user/info/batchget"] {
        let seen = house.calls(endpoint) - before[endpoint];
        assert_eq!((needed(&foretold, endpoint), made(&night, endpoint)), (seen, seen), "{endpoint}: {foretold}");
        let left = foretold["calls"][endpoint]["left_today"].as_u64();
        if let Some(limit) = foretold["calls"][endpoint]["limit"].as_u64() {
            assert_eq!(left, Some(limit - before[endpoint]), "{endpoint}: {foretold}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaigns_plan_names_its_calls_messages_and_days_and_each_day_keeps_to_it() {
    let mut options = small();
    options.quota.insert("message/template/send".to_owned(), 150);
    let house = House::build(options).await;
    house.edit(
        "config/lianbo.toml",
        "timeout = \"3s\"",
        "timeout = \"3s\"\nquota = { \"message/template/send\" = 150 }",
    );
    let midday = QuotaDay::of(house.now()).next().starts_at() + TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    house.night().await;
    let people = house.matchable();
    house.lianbo(&["quota"]).await.ends(0);
    let foretold = plan(&house, "campaign").await;
    assert_eq!((foretold["messages"].as_u64(), needed(&foretold, "message/template/send")), (Some(people), people));
    let days: Vec<(String, u64)> = foretold["days"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| (day["date"].as_str().unwrap().to_owned(), day["messages"].as_u64().unwrap()))
        .collect();
    assert_eq!(days.iter().map(|(_, messages)| messages).sum::<u64>(), people);
    assert_eq!(days.len(), 3, "{foretold}");

    let lists = house.calls("template/get_all_private_template");
    let mut sent = 0;
    for (at, (date, messages)) in days.iter().enumerate() {
        assert_eq!(QuotaDay::of(house.now()).to_string(), *date);
        let run = house.run("campaign", &[]).await;
        sent += messages;
        assert_eq!(house.simulator.inbox().once, sent, "on {date}: {run:?}");
        if at + 1 == days.len() {
            let run = run.ends(0);
            assert_eq!(run.counts(), [people, people, 0, 0, 0, 0, 0]);
            break;
        }
        let until: Timestamp = run.ends(75).json()["waiting_until"].as_str().unwrap().parse().unwrap();
        let rest = plan(&house, "campaign").await;
        assert_eq!(rest["messages"].as_u64(), Some(people - sent), "{rest}");
        house.pass((until - house.now()).num_seconds() + 3_600);
    }
    assert_eq!(house.calls("message/template/send"), people);
    assert_eq!(
        house.calls("template/get_all_private_template") - lists,
        needed(&foretold, "template/get_all_private_template")
    );
    house.everybody_has_one();
}

/// Calls of an endpoint by quota day, and when the last is made.
fn read(plan: &Value, endpoint: &str) -> (Vec<u64>, Timestamp) {
    let reads = plan["reads"].as_array().unwrap();
    let read = reads.iter().find(|read| read["endpoint"] == endpoint).unwrap_or_else(|| panic!("{endpoint}: {plan}"));
    let days = read["days"].as_array().unwrap().iter().map(|day| day["calls"].as_u64().unwrap()).collect();
    (days, read["ends_at"].as_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_walk_that_met_its_quota_is_planned_from_wechats_total_over_the_days_that_it_takes() {
    let mut options = Options { followers: 90_000, users: 100, matched_users: 50, page_size: 10_000, ..small() };
    options.quota.insert("user/get".to_owned(), 4);
    let house = House::build(options).await;
    house.edit("config/lianbo.toml", "timeout = \"3s\"", "timeout = \"3s\"\nquota = { \"user/get\" = 4 }");
    let never = plan(&house, "nightly").await;
    assert_eq!(never["calls"]["user/get"]["needed"], Value::Null);
    let midday = QuotaDay::of(house.now()).next().starts_at() + TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());

    house.run("nightly", &[]).await.ends(75);
    assert_eq!(house.calls("user/get"), 4);
    let foretold = plan(&house, "nightly").await;
    // Nine pages and the one that finds the end: four were asked for, none is left today, then four and two.
    assert_eq!(needed(&foretold, "user/get"), 6);
    let (days, ends_at) = read(&foretold, "user/get");
    assert_eq!(days, [4, 2]);
    let last_day = QuotaDay::of(midday).next().next();
    assert_eq!(QuotaDay::of(ends_at), last_day);
    assert!(ends_at - last_day.starts_at() < TimeDelta::minutes(1), "{ends_at}");
    let asked = house.calls("user/info/batchget");
    assert_eq!(needed(&foretold, "user/info/batchget"), 900 - asked);
    assert_eq!(needed(&foretold, "user/info"), (900 - asked) / 60);
    assert!(read(&foretold, "user/info/batchget").1 >= ends_at, "the last page's people are asked for after it");
    let shown = house.lianbo(&["plan", "nightly"]).await.ends(0).stdout;
    let day = format!("  {}  2", last_day.date());
    assert!(shown.contains("main: 6 calls of user/get") && shown.contains(&day) && shown.contains("about"), "{shown}");

    for code in [75, 0] {
        house.pass((QuotaDay::of(house.now()).next().starts_at() - house.now()).num_seconds() + 60);
        house.run("nightly", &[]).await.ends(code);
    }
    assert_eq!(QuotaDay::of(house.now()), last_day);
    assert_eq!((house.calls("user/get"), house.calls("user/info/batchget")), (10, 900));

    // The next night is as quick as this one was.
    let next = plan(&house, "nightly").await;
    let reads = next["reads"].as_array().unwrap();
    assert!(reads.iter().all(|read| read["endpoint"] != "user/get" || read["is_assumed"] == false), "{next}");
}
