//! A ledger that cannot be written while a push goes on: nobody is sent to of whom it could not be recorded.

use std::time::Duration;

use lianbo::simulator::Options;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use crate::house::{House, crowd, ended, eventually, signal};

const SOON: Duration = Duration::from_secs(30);
/// Ten seconds, and a slow machine's start and end.
const ENDS_WITHIN: Duration = Duration::from_secs(13);

/// Keeps the ledger of a house busy.
async fn busy(house: &House) -> SqliteConnection {
    let path = SqliteConnectOptions::new().filename(house.path("data/ledger.db")).busy_timeout(SOON);
    let mut ledger = SqliteConnection::connect_with(&path).await.unwrap();
    sqlx::query("begin immediate").execute(&mut ledger).await.unwrap();
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_ten_seconds_at_the_most_though_somebody_keeps_the_ledger_busy() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(1_500) }).await;
    house.campaign("rate = \"200/s\"\nconcurrency = 32");
    house.night().await;
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 60).await;
    let mut ledger = busy(&house).await;
    signal(&child, "-TERM");
    let stopped = tokio::time::timeout(ENDS_WITHIN, ended(child)).await.expect("it stops in time");
    assert!(stopped.ends(1).text().contains("keeps the ledger busy"));
    sqlx::query("rollback").execute(&mut ledger).await.unwrap();
    ledger.close().await.unwrap();
    let people = house.matchable();
    assert_eq!(house.run("campaign", &["--continue"]).await.ends(0).counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_somebody_keeps_busy_stops_the_push_which_says_so_and_goes_on_later() {
    let house = House::build(Options { latency: Duration::from_millis(8), ..crowd(1_500) }).await;
    house.campaign("rate = \"200/s\"\nconcurrency = 32");
    house.night().await;
    let people = house.matchable();
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 60).await;
    let mut ledger = busy(&house).await;
    let before = house.simulator.inbox().messages;

    let stopped = tokio::time::timeout(ENDS_WITHIN, ended(child)).await.expect("it does not wait for each write anew");
    let said = stopped.ends(1);
    let json = said.json();
    let error = json["error"].as_str().unwrap_or_default().to_owned();
    let run = (&json["pipeline"], &json["status"], &json["next"]["commands"][0]);
    assert_eq!(run, (&"campaign".into(), &"failed".into(), &"lianbo run campaign --continue".into()), "{json}");
    assert_eq!(json["reason"], json["error"]);
    assert!(json["run_id"].is_string() && json["stages"].as_array().is_some_and(|stages| stages.len() == 2), "{json}");
    for part in [
        "keeps the ledger busy",
        "before the ledger can be written",
        "End the process that keeps it busy",
        "lianbo run campaign --continue",
    ] {
        assert!(error.contains(part), "{said:?}");
    }
    let after = house.simulator.inbox().messages;
    assert!(after - before <= 200, "more than a second's sends went out unrecorded: {before}, {after}");

    sqlx::query("rollback").execute(&mut ledger).await.unwrap();
    ledger.close().await.unwrap();
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
}
