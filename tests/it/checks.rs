//! Checks and failures: what is wrong tonight leaves last night as it was, and is never sent to.

use lianbo::simulator::{Options, Simulator};

use crate::house::{EXPORT, House, SECRET, config, small};

const CHECKED: &str = "kind = \"extract_followers\"\nchecks = { max_drop = 0.05 }";

/// Every table's current snapshot.
const SNAPSHOTS: &str = "select oa_openid from identities order by all";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_fails_the_night_publishes_nothing_sends_nothing_and_is_accepted_by_name() {
    let house = House::build(small()).await;
    house.edit("pipelines/nightly.toml", "kind = \"extract_followers\"", CHECKED);
    // One pipeline that syncs and pushes: the push must not happen on what failed.
    let push = house.read("pipelines/campaign.toml");
    let (_, push) = push.split_once("[stages.audience]").unwrap();
    let nightly = house.read("pipelines/nightly.toml");
    house.write(
        "pipelines/nightly.toml",
        &format!("[params]\nproduct = \"秋季特惠\"\n{}\n[stages.audience]{push}", nightly.replace("description", "# ")),
    );
    house.write("pipelines/nightly/audience.sql", crate::house::AUDIENCE);
    house.edit("pipelines/nightly.toml", "rate = \"5000/s\"", "rate = \"5000/s\"\ntest_openids = []");
    house.night().await;
    let people = house.matchable();
    house.everybody_has_one();
    house.simulator.clear_inbox();
    let before = house.rows(SNAPSHOTS).await;

    let left = house.simulator.unfollow_some(200);
    assert_eq!(left.len(), 200);
    let failed = house.run("nightly", &[]).await.ends(1);
    assert_eq!(failed.json()["status"], "failed");
    assert!(failed.text().contains("max_drop"), "{}", failed.text());
    assert_eq!(house.rows(SNAPSHOTS).await, before);
    assert_eq!(house.numbers("select count(*) filter (active) from followers").await, [600]);
    assert_eq!(house.simulator.inbox().messages, 0);
    // Trying again does not wear the guard down.
    house.run("nightly", &[]).await.ends(1);
    assert_eq!(house.simulator.inbox().messages, 0);

    let night = house.run("nightly", &["--accept-drop", "an old campaign's followers left"]).await.ends(0);
    assert_eq!(house.numbers("select count(*) filter (active) from followers").await, [400]);
    assert!(house.matchable() < people);
    assert_eq!(night.counts()[1], house.matchable());
    house.everybody_has_one();
    let audit = "select count(*) from audit where detail like '%an old campaign%'";
    assert_eq!(house.numbers(audit).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_without_its_columns_leaves_last_nights_tables() {
    let house = House::build(small()).await;
    house.night().await;
    let before = house.rows(SNAPSHOTS).await;
    let text = house.read(EXPORT);
    house.write(EXPORT, &text.replacen("openid,unionid", "open_id,union_id", 1));
    let failed = house.run("nightly", &[]).await.ends(1);
    let said = failed.text();
    assert!(said.contains("openid") && said.contains("users.csv"), "{said}");
    assert_eq!(house.numbers("select count(*) from mall_users").await, [700]);
    assert_eq!(house.rows(SNAPSHOTS).await, before);

    // The mended export finishes the same night.
    house.write(EXPORT, &text);
    let night = house.night().await;
    assert_eq!(night.json()["run_id"], failed.json()["run_id"]);
    assert_eq!(house.rows(SNAPSHOTS).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_refuses_keeps_its_rows_while_the_other_gets_new_ones() {
    let house = House::build(small()).await;
    let second = Simulator::start(Options { app_id: "wx2222222222222222".to_owned(), ..small() }).await.unwrap();
    let accounts = format!(
        "{}\n[accounts.second]\napp_id = \"wx2222222222222222\"\napp_secret = \"{SECRET}\"\napi_base = \"{}\"\n",
        config(&house.simulator.base_url()),
        second.base_url()
    );
    house.write("config/lianbo.toml", &accounts);
    house.night().await;
    let by_account = "select account, count(*) filter (active) from followers group by account order by account";
    assert_eq!(house.rows(by_account).await, [["main", "600"], ["second", "600"]]);
    let stars = house.numbers("select matched from coverage where account = '*' and miniprogram = '*'").await;
    assert!(stars[0] >= house.matchable());

    house.simulator.follow_some(30);
    second.follow_some(50);
    second.revoke_tokens();
    house.edit("config/lianbo.toml", &format!("app_secret = \"{SECRET}\""), "app_secret = \"ffffffffffffffffffffffffffffffff\"");
    let partial = house.run("nightly", &[]).await.ends(1);
    assert_eq!(partial.stage("followers")["status"], "partial");
    assert!(partial.text().contains("second"), "{}", partial.text());
    assert!(!partial.text().contains("ffffffffffffffffffff"));
    assert_eq!(house.rows(by_account).await, [["main", "630"], ["second", "600"]]);
}
