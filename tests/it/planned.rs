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
