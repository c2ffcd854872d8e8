//! `data/catalog.duckdb` as an analyst's own DuckDB reads it, while a run goes on.

use std::path::Path;
use std::time::Duration;

use lianbo::simulator::Options;

use crate::house::{House, ended, small};

const FIGURES: &str = "select (select count(*) filter (active) from followers), (select count(*) from profiles),
    (select max(followers) from coverage where account = 'main' and miniprogram = 'mall'),
    (select count(*) from identities),
    (select matched from coverage where account = 'main' and miniprogram = 'mall' order by date desc limit 1)";

pub fn open(path: &Path) -> duckdb::Connection {
    let config = duckdb::Config::default().access_mode(duckdb::AccessMode::ReadOnly).unwrap();
    duckdb::Connection::open_with_flags(path, config).unwrap()
}

fn figures(connection: &duckdb::Connection) -> [i64; 5] {
    connection
        .query_row(FIGURES, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_the_catalog_sees_last_night_whole_or_tonight_whole() {
    let house = House::build(Options { latency: Duration::from_millis(30), ..small() }).await;
    house.night().await;
    let path = house.path("data/catalog.duckdb");
    let matched = i64::try_from(house.matchable()).unwrap();
    let old = [600, 600, 600, matched, matched];
    let held_open = open(&path);
    assert_eq!(figures(&held_open), old);

    assert_eq!(house.simulator.follow_some(120).len(), 120);
    let matched = i64::try_from(house.matchable()).unwrap();
    let new = [720, 720, 720, matched, matched];
    let mut child = house.begin("nightly");
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let (mut seen_old, mut all) = (0, Vec::new());
    while child.try_wait().unwrap().is_none() {
        let found = figures(&open(&path));
        assert!(found == old || found == new, "{found:?} is neither {old:?} nor {new:?}");
        seen_old += usize::from(found == old);
        all.push(found);
        looks.tick().await;
    }
    ended(child).await.ends(0);
    assert!(seen_old > 3, "the run was not watched: {all:?}");
    assert_eq!(figures(&open(&path)), new);
    assert_eq!(figures(&held_open), old, "who reads last night goes on reading it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deliveries_of_a_push_that_is_over_are_written_out_once() {
    let house = House::build(small()).await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let written = || {
        let files = std::fs::read_dir(house.path("data/lake/work/deliveries")).unwrap();
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    let counts = "select count(*), count(distinct openid), count(*) filter (state = 'sent') from deliveries";
    let people = house.matchable();
    let first = written();
    assert_eq!((first.len(), house.numbers(counts).await), (1, vec![people, people, people]));
    house.run("campaign", &["--fresh"]).await.ends(0);
    let both = written();
    assert!(both.len() == 2 && both.contains(&first[0]), "{both:?}");
    assert_eq!(house.numbers(counts).await, [2 * people, people, 2 * people]);
    assert_eq!(written().len(), 2, "a question writes nothing anew");
    std::fs::remove_file(&first[0]).unwrap();
    assert_eq!(house.numbers(counts).await, [2 * people, people, 2 * people]);
}
