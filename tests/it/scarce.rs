//! Nights whose calls for details do not reach: what is kept back, who goes first, and what the next night goes on from.

use std::time::Duration;

use lianbo::simulator::{Faults, InvalidInBatch, Options, Simulator};

use crate::details::{CHANGED, ENRICH, TIMEOUT, asked, asking, moved};
use crate::house::{House, SECRET, ended, eventually, small};

const UNIONIDS: &str = "select openid, unionid from profiles where unionid is not null order by all";
const NOT_ASKED: &str =
    "select count(*) from profiles where coalesce(unionid_missing, '') in ('not_asked', 'quarantined')";
const ACCEPT: &str = "lianbo run nightly --accept-drop \"why\"";

fn budget(house: &House, calls: u32) {
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nbudget = {calls}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_was_bound_anew_is_told_of_though_a_budget_is_used_up_and_is_taken_in_night_by_night() {
    for calls in [3, 14] {
        let house = moved(small(), 8, 1).await;
        budget(&house, calls);
        let before = house.rows(UNIONIDS).await;
        let made = asked(&house);
        let failed = house.run("nightly", &[]).await.ends(1);
        assert!(asked(&house) - made <= u64::from(calls));
        let told = failed.stage("profiles")["error"].as_str().unwrap().to_owned();
        assert!(told.contains("bound to another Open Platform account") && told.contains(ACCEPT), "{told}");
        assert_eq!(failed.json()["next"]["commands"], serde_json::json!([ACCEPT]));
        assert!(house.lianbo(&["status"]).await.ends(1).stdout.contains(&format!("needs you: {ACCEPT}")));
        assert!(house.rows(UNIONIDS).await == before);

        house.run("nightly", &["--accept-drop", "one platform for all brands"]).await.ends(0);
        let mut changed = house.numbers(CHANGED).await[0];
        let mut nights = 0;
        while changed < u64::try_from(before.len()).unwrap() {
            nights += 1;
            house.pass(7_200);
            let made = asked(&house);
            house.night().await;
            assert!(asked(&house) - made <= u64::from(calls));
            let now = house.numbers(CHANGED).await[0];
            assert!(now > changed && nights < 9, "night {nights} of budget {calls}: {now} after {changed}");
            changed = now;
        }
        let after = house.rows(UNIONIDS).await;
        assert!(after.len() == before.len() && after.iter().zip(&before).all(|(now, then)| now[1] != then[1]));
        assert_eq!(house.numbers("select count(*) from audit where command = 'accept-drop'").await, [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_cannot_tell_whether_an_account_was_bound_anew_says_how_large_it_must_be() {
    let house = moved(small(), 8, 1).await;
    budget(&house, 1);
    let before = house.rows(UNIONIDS).await;
    for accept in [&[][..], &["--accept-drop", "it is so"]] {
        let failed = house.run("nightly", accept).await.ends(1);
        let told = failed.stage("profiles")["error"].as_str().unwrap().to_owned();
        for part in
            ["may be bound to another Open Platform account", "budget = 1", "a budget of 2 at least", "--continue"]
        {
            assert!(told.contains(part), "{told}");
        }
        assert!(house.rows(UNIONIDS).await == before);
    }
    house.edit("pipelines/nightly.toml", "budget = 1", "budget = 2");
    let failed = house.run("nightly", &["--continue"]).await.ends(1);
    assert_eq!(failed.json()["next"]["commands"], serde_json::json!([ACCEPT]));
    house.run("nightly", &["--accept-drop", "it is so"]).await.ends(0);
    assert!(house.numbers(CHANGED).await[0] > 80);
}

/// A second account beside the house's own.
async fn with_second(house: &House, followers: u64) -> Simulator {
    let app_id = "wx2222222222222222".to_owned();
    let options = Options { app_id: app_id.clone(), followers, users: 0, matched_users: 0, seed: 2, ..small() };
    let second = Simulator::start(options).await.unwrap();
    second.advance(house.clock_offset_seconds.load(std::sync::atomic::Ordering::SeqCst));
    let config = house.read("config/lianbo.toml");
    let own = format!(
        "[accounts.second]\napp_id = \"{app_id}\"\napp_secret = \"{SECRET}\"\napi_base = \"{}\"\n",
        second.base_url()
    );
    house.write("config/lianbo.toml", &format!("{config}{own}"));
    second
}

fn details_of(second: &Simulator) -> u64 {
    second.calls().get("user/info/batchget").copied().unwrap_or(0)
        + second.calls().get("user/info").copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_goes_to_who_matters_most_in_any_account_and_no_account_waits_for_another() {
    let house = asking(small(), 4).await;
    house.edit("pipelines/nightly.toml", ENRICH, &format!("{ENRICH}\nrefresh_after = \"1h\""));
    house.night().await;
    house.pass(7_200);
    // Everybody of the first is stale, nobody of the second was ever asked.
    let second = with_second(&house, 900).await;
    budget(&house, 8);
    let before = asked(&house);
    house.night().await;
    assert_eq!(
        (asked(&house) - before, details_of(&second)),
        (1, 7),
        "one of two is kept, and goes on when nobody is in doubt"
    );
    house.pass(7_200);
    let (before, of_second) = (asked(&house), details_of(&second));
    house.night().await;
    // Three more calls for those who were never asked; the rest in equal shares.
    let spent = (asked(&house) - before, details_of(&second) - of_second);
    assert!(spent.0 >= 2 && spent.1 >= 4 && spent.0 + spent.1 <= 8, "{spent:?}");
    let never = house.numbers("select count(*) from profiles where unionid_missing = 'not_asked'").await;
    assert_eq!(never, [0]);
}

/// Nights until everybody was told of, each of so many calls at most.
async fn nights_until_all_are_told(house: &House, calls: u64) -> u64 {
    for night in 1..40 {
        let before = asked(house);
        house.night().await;
        assert!(asked(house) - before <= calls, "night {night}");
        if house.numbers(NOT_ASKED).await == [0] {
            return night;
        }
        house.pass(3_600);
    }
    panic!("they are never told of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_openid_that_spoils_its_batch_stands_alone_after_a_few_small_nights_and_the_others_have_their_answer() {
    let faults = Faults { strangers: 1, invalid_in_batch: InvalidInBatch::WholeBatch, ..Faults::default() };
    let house = asking(Options { faults, latency: Duration::from_millis(40), ..small() }, 4).await;
    budget(&house, 2);
    let first = house.night().await;
    let own = &first.stage("profiles")["detail"]["accounts"][0];
    assert_eq!((own["discarded"].as_u64(), own["in_doubt"].as_u64()), (Some(1), Some(100)), "{own}");
    assert!(first.stderr.contains("in small batches of"), "{}", first.stderr);
    let said = house.lianbo(&["runs", "nightly"]).await.ends(0).stdout;
    assert!(said.contains("1 answers could not be believed; 100 of their people are asked for again"), "{said}");
    house.pass(86_400);
    // Five batches more, fourteen pieces of the one that was refused, a few that are looked at, and one call in eight is kept.
    house.edit("pipelines/nightly.toml", "budget = 2", "budget = 8");
    let nights = nights_until_all_are_told(&house, 8).await;
    assert!(nights <= 5, "{nights} nights");
    assert_eq!(house.numbers("select count(*) from profiles where unionid_missing = 'error'").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_has_shifted_is_asked_for_in_pieces_on_small_nights_and_nobody_has_their_neighbours_unionid() {
    let true_ones = {
        let house = asking(small(), 4).await;
        house.night().await;
        house.rows(UNIONIDS).await
    };
    let faults = Faults { strangers: 1, invalid_in_batch: InvalidInBatch::Shift, ..Faults::default() };
    let house = asking(Options { faults, ..small() }, 4).await;
    budget(&house, 6);
    let nights = nights_until_all_are_told(&house, 6).await;
    let told = house.rows(UNIONIDS).await;
    let wrong: Vec<_> = told.iter().filter(|row| !true_ones.contains(row)).collect();
    let lacking: Vec<_> = true_ones.iter().filter(|row| !told.contains(row)).collect();
    assert!(wrong.is_empty() && lacking.is_empty(), "after {nights} nights: {wrong:?} are told, {lacking:?} not");
    assert!(nights <= 10, "{nights} nights");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_for_the_quota_at_the_same_time_asks_once_what_is_left_of_it() {
    let mut options = Options { latency: Duration::from_millis(50), ..small() };
    options.quota.insert("user/info/batchget".to_owned(), 1);
    let house = asking(options, 6).await;
    house.night().await;
    assert_eq!(house.calls("openapi/quota/get"), 1, "{:?}", house.simulator.calls());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_process_was_killed_says_so_and_its_calls_are_counted_as_they_were_made() {
    let house = asking(Options { latency: Duration::from_millis(60), ..small() }, 1).await;
    let mut child = house.begin("nightly");
    eventually(Duration::from_secs(60), || house.calls("user/info/batchget") >= 2).await;
    child.kill().await.unwrap();
    let gone = "running, but its process is gone";
    for command in [&["status"][..], &["runs"], &["runs", "nightly"]] {
        let said = house.lianbo(command).await.stdout;
        assert!(said.contains(gone), "{said}");
    }
    assert!(house.lianbo(&["runs", "nightly"]).await.stdout.contains("lianbo run nightly takes it over"));
    let run = house.lianbo(&["runs", "nightly", "--json"]).await.ends(0).json();
    assert_eq!((&run["status"], &run["process_gone"]), (&"running".into(), &true.into()));

    let taken_over = house.begin("nightly");
    let said = ended(taken_over).await.ends(0);
    assert_eq!(said.json()["process_gone"], false);
    let counted = "select sum(calls) from api_calls where endpoint = 'user/info/batchget'";
    assert_eq!(house.numbers(counted).await, [house.calls("user/info/batchget")]);
    assert!(
        !house.files().keys().any(|path| path.to_string_lossy().contains("-reads-")),
        "nothing is left beside the ledger"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plan_of_a_day_whose_calls_are_used_up_leaves_everybody_to_the_nights_after() {
    let house = asking(small(), 2).await;
    house.edit("config/lianbo.toml", TIMEOUT, &format!("{TIMEOUT}\nquota = {{ \"user/info/batchget\" = 2 }}"));
    house.edit("pipelines/nightly.toml", "description = \"the night\"", "schedule = \"0 30 2 * * *\"");
    let midday = lianbo::domain::QuotaDay::of(house.now()).next().starts_at() + chrono::TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    house.night().await;
    let plan = house.lianbo(&["plan", "nightly", "--json"]).await.ends(0).json();
    let details =
        plan["reads"].as_array().unwrap().iter().find(|read| read["endpoint"] == "user/info/batchget").unwrap();
    let nights: Vec<_> = details["days"].as_array().unwrap().iter().map(|day| day["calls"].as_u64().unwrap()).collect();
    assert_eq!(nights, [2, 2], "{details}");
    let ends_at: lianbo::clock::Timestamp = details["ends_at"].as_str().unwrap().parse().unwrap();
    let second_night =
        midday - chrono::TimeDelta::hours(12) + chrono::TimeDelta::days(2) + chrono::TimeDelta::minutes(150);
    assert!((ends_at - second_night).num_seconds().abs() < 60, "{details}");
    let said = plan["stages"].to_string();
    assert!(said.contains("the day's calls are used up: 400 are left for the nights after"), "{said}");
}
