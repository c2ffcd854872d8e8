//! Nights after the first, and days that a sync waits for: what was known stays known, and what was spent stays spent.

use std::time::Duration;

use chrono::TimeDelta;
use lianbo::domain::QuotaDay;
use lianbo::simulator::{Faults, Options};
use serde_json::json;

use crate::house::{House, crowd, ended, eventually, outcome, signal, small};

const PROFILES: &str = "select openid, unionid, unionid_missing from profiles order by all";
const ENRICH: &str = "kind = \"enrich_unionids\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_whose_batches_are_shifted_erases_no_unionid_and_records_no_change() {
    let house = House::build(crowd(1_600)).await;
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nrefresh_after = \"1h\""));
    house.night().await;
    let wanted = house.rows(PROFILES).await;
    house.pass(7_200);
    house.simulator.set_faults(Faults { shift_every: 700, ..Faults::default() });
    let second = house.night().await;
    assert_eq!(second.stage("profiles")["rows_in"], json!(1_800));
    assert!(house.calls("user/info") > 50, "somebody was in doubt: {:?}", house.simulator.calls());
    assert!(house.rows(PROFILES).await == wanted);
    assert_eq!(house.numbers("select count(*) from identity_changes").await, [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_asked_after_leaving_is_asked_again_once_they_are_back() {
    let house = House::build(small()).await;
    house.edit(
        "pipelines/nightly.toml",
        "kind = \"extract_followers\"",
        "kind = \"extract_followers\"\nreuse_within = \"1h\"",
    );
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 5"));
    house.night().await;
    let of =
        |what: &str| format!("select openid from profiles where unionid_missing = '{what}' order by openid limit 1");
    let openid = house.row(&of("not_asked")).await.remove(0);
    assert!(house.simulator.unfollow(&openid));
    house.night().await;
    assert!(house.row(&of("unfollowed")).await == [openid.as_str()]);
    assert!(house.simulator.follow(&openid));
    house.pass(7_200);
    house.night().await;
    let back = format!(
        "select f.active, coalesce(p.unionid_missing, '') <> 'unfollowed', p.subscribe
                        from followers as f join profiles as p using (openid) where openid = '{openid}'"
    );
    assert_eq!(house.row(&back).await, ["true", "true", "true"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_is_a_runs_however_often_it_is_stopped() {
    let house = House::build(Options { latency: Duration::from_millis(150), ..small() }).await;
    house.edit("config/lianbo.toml", "timeout = \"3s\"", "timeout = \"3s\"\nconcurrency = 1");
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = 4"));
    let calls = || house.calls("user/info/batchget") + house.calls("user/info");
    let child = house.begin("nightly");
    eventually(Duration::from_secs(30), || calls() >= 2).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    assert!(calls() < 4, "it was stopped too late");
    let night = house.run("nightly", &[]).await.ends(0);
    assert_eq!(calls(), 4);
    assert!(night.stage("profiles")["detail"]["accounts"][0]["not_asked"].as_u64().unwrap() >= 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_that_lags_behind_midnight_costs_minutes_and_not_another_day() {
    let mut options = Options { faults: Faults { quota_reset_lag_seconds: 600, ..Faults::default() }, ..small() };
    for (endpoint, quota) in [("user/get", 3), ("message/template/send", 250)] {
        options.quota.insert(endpoint.to_owned(), quota);
    }
    let house = House::build(options).await;
    let midday = QuotaDay::of(house.now()).next().starts_at() + TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    for pipeline in ["nightly", "campaign"] {
        house.run(pipeline, &[]).await.ends(75);
        let midnight = QuotaDay::of(house.now()).next().starts_at();
        house.pass((midnight - house.now()).num_seconds() + 1);
        let mut tries = 0;
        loop {
            let run = house.run(pipeline, &[]).await;
            if run.code == 0 {
                break;
            }
            tries += 1;
            let run = run.ends(75).json();
            let until: chrono::DateTime<chrono::Utc> = run["waiting_until"].as_str().unwrap().parse().unwrap();
            assert!(until - house.now() <= TimeDelta::minutes(6), "{pipeline}: waits until {until} at {}", house.now());
            house.pass((until - house.now()).num_seconds() + 1);
        }
        assert!(tries > 0 && house.now() - midnight < TimeDelta::minutes(16), "{pipeline}: {tries} tries");
    }
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_page_amid_the_list_marks_nobody_as_gone_and_a_list_that_stays_short_is_for_the_operator() {
    let house = House::build(small()).await;
    house.night().await;
    let active = "select count(*) filter (active), count(*) filter (not active) from followers";
    house.simulator.set_faults(Faults { empty_page: 2, ..Faults::default() });
    let failed = house.run("nightly", &[]).await.ends(1);
    assert!(failed.stderr.contains("200 followers where WeChat counts 600"), "{}", failed.stderr);
    assert!(failed.stderr.contains("--accept-drop"), "{}", failed.stderr);
    assert_eq!(house.numbers(active).await, [600, 0]);
    house.simulator.set_faults(Faults::default());
    let pages = house.calls("user/get");
    house.run("nightly", &[]).await.ends(0);
    assert_eq!(
        (house.numbers(active).await, house.calls("user/get") - pages),
        (vec![600, 0], 3),
        "the first page is kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_walk_that_was_killed_goes_on_behind_the_pages_that_arrived_and_knows_how_many_follow() {
    for arrived in [1, 2, 40] {
        let people = if arrived == 40 { 600 } else { 60 };
        let house = House::build(Options { followers: people, page_size: 10, ..small() }).await;
        house.night().await;
        house.simulator.unfollow_some(3);
        let faults = Faults { empty_page: arrived + 1, ..Faults::default() };
        house.simulator.set_faults(faults.clone());
        let mut command = house.command(&["run", "nightly", "--json"]);
        let at = format!("after_page_arrived:{arrived}");
        let killed = outcome(command.env("LIANBO_CRASH_AT", at).output().await.unwrap());
        assert_eq!(killed.code, -6, "{killed:?}");
        // The page behind those comes back empty, and nobody follows by what it says.
        let total_off = -i64::try_from(people).unwrap();
        house.simulator.set_faults(Faults { total_off, ..faults });
        let pages = house.calls("user/get");
        let failed = house.run("nightly", &[]).await.ends(1);
        let seen = format!("{} followers where WeChat counts", arrived * 10);
        assert!(failed.stderr.contains(&seen), "{}", failed.stderr);
        assert_eq!(house.calls("user/get") - pages, 3, "no page that arrived is asked for again");
        house.simulator.set_faults(Faults::default());
        house.run("nightly", &[]).await.ends(0);
        let active =
            "select count(*) filter (active), count(*) filter (not active), count(distinct openid) from followers";
        assert_eq!(house.numbers(active).await, [people - 3, 3, people]);
        assert_eq!(house.numbers("select count(*) from follower_changes").await, [3]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_walk_that_cannot_be_read_is_walked_again() {
    let house = House::build(Options { followers: 60, page_size: 10, ..small() }).await;
    let mut command = house.command(&["run", "nightly", "--json"]);
    let killed = outcome(command.env("LIANBO_CRASH_AT", "after_page_arrived:5").output().await.unwrap());
    assert_eq!(killed.code, -6, "{killed:?}");
    let part = house.files().into_keys().find(|path| path.to_string_lossy().ends_with("page-00002.parquet")).unwrap();
    let part = house.path("").join(part);
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[100..200].fill(0xff);
    std::fs::write(&part, bytes).unwrap();
    let went_on = house.run("nightly", &[]).await.ends(0);
    assert!(went_on.stderr.contains("a part of the walk is damaged"), "{}", went_on.stderr);
    let active = "select count(*) filter (active), count(distinct openid) from followers";
    assert_eq!(house.numbers(active).await, [60, 60]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_total_that_is_wrong_or_moves_ends_no_walk_and_fails_none() {
    for faults in [Faults { total_off: -90, ..Faults::default() }, Faults { total_wobble: 60, ..Faults::default() }] {
        let house = House::build(Options { faults: faults.clone(), ..small() }).await;
        house.night().await;
        assert_eq!(house.numbers("select count(*) filter (active) from followers").await, [600], "{faults:?}");
        assert!(house.calls("user/get") <= 4, "{faults:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_was_lost_and_a_part_that_was_damaged_are_told_before_anything_is_built_on_what_is_left() {
    let house = House::build(small()).await;
    house.night().await;
    house.simulator.unfollow_some(3);
    house.night().await;
    let part = house.files().into_keys().find(|path| path.to_string_lossy().contains("tables/follower_changes/main/"));
    let part = house.path("").join(part.unwrap());
    let whole = std::fs::read(&part).unwrap();
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    house.simulator.unfollow_some(3);
    let damaged = house.run("nightly", &[]).await.ends(1);
    assert!(damaged.text().contains("of table `follower_changes` is damaged or gone"), "{damaged:?}");
    std::fs::write(&part, &whole).unwrap();
    house.night().await;
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [6]);

    let ledger = house.path("data/ledger.db");
    let kept = house.path("kept.db");
    std::fs::rename(&ledger, &kept).unwrap();
    for lost in [None, Some("")] {
        if let Some(content) = lost {
            std::fs::write(&ledger, content).unwrap();
        }
        let refused = house.run("nightly", &[]).await.ends(2);
        assert!(refused.text().contains("the ledger was lost or is another one"), "{refused:?}");
    }
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(house.path(&format!("data/ledger.db{end}")));
    }
    std::fs::rename(&kept, &ledger).unwrap();
    house.night().await;
}
