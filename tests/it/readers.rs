//! Analysts' own tools, out of Python's package registry, over the catalog and the Parquet files while syncs go on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use lianbo::simulator::Options;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::house::{House, ended, small};
use crate::python::python;

/// Pinned, so that a story is about us; the first is the next major version after the one that writes the catalog.
const PACKAGES: [&str; 4] = ["duckdb==2.0.1", "polars==2.1.0", "pandas==3.1.1", "pyarrow==26.0.1"];
/// Grows with the packages.
const SET: &str = "readers-1";
const LOOK: &str = include_str!("readers/look.py");
/// As `lianbo sql` answers.
const FIGURES: &str = "select (select count(*) filter (active) from followers), (select count(*) from profiles),
    (select max_by(followers, date) from coverage where account = 'main' and miniprogram = 'mall'),
    (select count(*) from identities),
    (select max_by(matched, date) from coverage where account = 'main' and miniprogram = 'mall')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tool_reads_while_syncs_go_on_and_sees_one_night_or_another_whole() {
    let Some(python) = python(SET, &PACKAGES).await else { return };
    let house = House::build(Options { latency: Duration::from_millis(30), ..small() }).await;
    house.night().await;
    let mut nights = vec![house.numbers(FIGURES).await];

    let mut reader = Command::new(python)
        .args(["-c", LOOK])
        .arg(house.path("data/catalog.duckdb"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().expect("the reader begins");
    let looks = tokio::spawn(async move {
        let mut looks: Vec<Value> = vec![serde_json::from_str(&first).unwrap()];
        while let Some(line) = lines.next_line().await.unwrap() {
            looks.push(serde_json::from_str(&line).unwrap());
        }
        looks
    });
    for comers in [120, 40, 60] {
        assert_eq!(house.simulator.follow_some(comers).len(), usize::try_from(comers).unwrap());
        house.simulator.unfollow_some(10);
        ended(house.begin("nightly")).await.ends(0);
        nights.push(house.numbers(FIGURES).await);
    }
    house.run("campaign", &[]).await.ends(0);
    drop(reader.stdin.take());
    assert!(reader.wait().await.unwrap().success());

    let mut seen: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let looks = looks.await.unwrap();
    for look in &looks {
        assert!(look["error"].is_null(), "{}: {}", look["reader"], look["error"].as_str().unwrap());
        let figures: Vec<u64> = serde_json::from_value(look["figures"].clone()).unwrap();
        let night = nights.iter().position(|night| *night == figures);
        let night = night.unwrap_or_else(|| panic!("{}: {figures:?} is none of {nights:?}", look["reader"]));
        seen.entry(look["reader"].as_str().unwrap().to_owned()).or_default().insert(night);
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(
        seen.values().all(|nights| nights.len() > 1),
        "nobody read across a sync: {seen:?} of {} looks",
        looks.len()
    );
}
