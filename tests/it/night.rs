//! The night: what the tables say after it, what it cost in calls, and what the second night asks for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::house::{EXPORT, House, small, wide};
use lianbo::simulator::{Faults, Options};

/// The export read once more, by other means: openid to the unionid and city of the newest row.
fn users(house: &House) -> BTreeMap<String, (String, String)> {
    let text = house.read(EXPORT);
    let mut newest: BTreeMap<String, (String, (String, String))> = BTreeMap::new();
    for row in csv::Reader::from_reader(text.as_bytes()).records().map(Result::unwrap) {
        let (login, person) = (row[5].to_owned(), (row[1].to_owned(), row[3].to_owned()));
        let held = newest.entry(row[0].to_owned()).or_insert_with(|| (login.clone(), person.clone()));
        if held.0 <= login {
            *held = (login, person);
        }
    }
    newest.into_iter().map(|(openid, (_, person))| (openid, person)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_night_makes_exact_tables_and_asks_for_no_more_than_it_must() {
    let house = House::build(small()).await;
    let users = users(&house);
    let night = house.night().await;
    assert_eq!(night.json()["status"], "succeeded");

    // Four pages of 200 hold 600: three, and the empty one after the last. Six batches of a hundred.
    assert_eq!(night.stage("followers")["api_calls"], json!({ "user/get": 4 }));
    assert_eq!(night.stage("profiles")["api_calls"], json!({ "user/info/batchget": 6 }));
    assert_eq!((house.calls("user/get"), house.calls("user/info/batchget")), (4, 6));
    assert_eq!(house.numbers("select sum(calls) as n from api_calls where endpoint = 'user/get'").await, [4]);

    let followers = house.numbers("select count(*), count(distinct openid), count(*) filter (active) from followers");
    assert_eq!(followers.await, [600, 600, 600]);
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [0]);
    let profiles = house
        .numbers("select count(*), count(unionid), count(*) filter (unionid_missing = 'not_bound') from profiles")
        .await;
    assert_eq!((profiles[0], profiles[1] + profiles[2]), (600, 600));
    assert!((10..=55).contains(&profiles[2]), "about a twentieth is unbound: {profiles:?}");

    // The matched are who the platform knows to be matchable, by name.
    let matched: BTreeSet<String> =
        house.rows("select oa_openid from identities").await.into_iter().flatten().collect();
    assert_eq!(matched, house.simulator.matchable().into_iter().collect());
    let loaded: BTreeMap<String, (String, String)> = house
        .rows("select openid, unionid, city from mall_users")
        .await
        .into_iter()
        .map(|row| (row[0].clone(), (row[1].clone(), row[2].clone())))
        .collect();
    assert_eq!(loaded, users);

    let with_unionid = wide(users.values().filter(|(unionid, _)| !unionid.is_empty()).count());
    let rows = house
        .rows(
            "select account, miniprogram, followers, followers_with_unionid, users, users_with_unionid, matched, reachable
             from coverage order by all",
        )
        .await;
    let figures = [600, profiles[1], 700, with_unionid, house.matchable(), house.matchable()].map(|n| n.to_string());
    let wanted: Vec<Vec<String>> = [["*", "*"], ["*", "mall"], ["main", "*"], ["main", "mall"]]
        .iter()
        .map(|names| names.iter().map(ToString::to_string).chain(figures.clone()).collect())
        .collect();
    assert_eq!(rows, wanted);
    let report = "select side, sum(people), sum(people) filter (reason = 'matched') from match_report group by side order by side";
    let matched = house.matchable().to_string();
    assert_eq!(house.rows(report).await, [["follower", "600", &matched], ["user", "700", &matched]]);
    let segments =
        "select segment, sum(users), sum(matched) from coverage_by_segment group by segment order by segment";
    assert_eq!(house.rows(segments).await, [["city", "700", &matched], ["subscribe_scene", "700", &matched]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rows_are_put_aside_with_their_lines_and_repeated_people_are_folded_to_the_newest() {
    let house = House::build(small()).await;
    let lines = wide(house.read(EXPORT).lines().count());
    let first = house.read(EXPORT).lines().nth(1).unwrap().to_owned();
    let cells: Vec<&str> = first.split(',').collect();
    let newer = format!("{},{},{},长春,{},2031-01-01 00:00:00", cells[0], cells[1], cells[2], cells[4]);
    let older = format!("{},{},{},哈尔滨,{},2001-01-01 00:00:00", cells[0], cells[1], cells[2], cells[4]);
    let mut bytes = house.read(EXPORT).into_bytes();
    bytes.extend(format!("{newer}\n{older}\ntoo,few\n,u,n,c,2020-01-01 00:00:00,2020-01-01 00:00:00\n\n").into_bytes());
    bytes.extend(b"o1,u1,\xff\xfe,c,2020-01-01 00:00:00,2020-01-01 00:00:00\n");
    std::fs::write(house.path(EXPORT), bytes).unwrap();
    house.night().await;

    let put_aside: Vec<u64> = house
        .rows("select line from quarantine where source = 'mall_users' and file like '%users.csv' order by line")
        .await
        .iter()
        .map(|row| row[0].parse().unwrap())
        .collect();
    assert_eq!(put_aside, [lines + 3, lines + 4, lines + 6]);
    let reasons = house.rows("select distinct reason from quarantine").await;
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    let city = format!("select city from mall_users where openid = '{}'", cells[0]);
    assert_eq!(house.row(&city).await, ["长春"]);
    assert_eq!(house.numbers("select count(*), count(distinct openid) from mall_users").await, [700, 700]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_matched_receives_one_message_and_ids_of_64_bits_stay_exact() {
    let house = House::build(small()).await;
    let text: String = house
        .read(EXPORT)
        .lines()
        .enumerate()
        .map(|(line, text)| match line {
            0 => format!("{text},member\n"),
            _ => format!("{text},{}\n", 9_007_199_254_740_993_u64 + wide(line) * 2),
        })
        .collect();
    house.write(EXPORT, &text);
    house.edit("pipelines/nightly.toml", "columns =", "types = { member = \"bigint\" }\ncolumns =");
    house.write(
        "pipelines/campaign/audience.sql",
        "select i.oa_openid as openid, i.mp_openid, u.member from identities as i join mall_users as u on u.openid = i.mp_openid",
    );
    house.night().await;
    let push = house.run("campaign", &[]).await.ends(0);
    let people = house.matchable();
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    assert_eq!(push.stage("push")["api_calls"]["message/template/send"], json!(people));
    house.everybody_has_one();

    // Each is odd, which no rounding to 53 bits leaves it.
    let even = "select count(*) from recipients where cast(variables->>'member' as bigint) % 2 = 0";
    assert_eq!(house.numbers(even).await, [0]);
    let sums = "select count(*), count(distinct msgid), count(distinct client_msg_id), min(cast(msgid as hugeint)) > 1::hugeint << 60
                from deliveries where state = 'sent' and msgid is not null";
    let row = house.row(sums).await;
    assert_eq!(row, [people.to_string(), people.to_string(), people.to_string(), "true".to_owned()]);
    let csv = house.row("select member, msgid from mall_users, deliveries order by all limit 1").await;
    let json =
        house.lianbo(&["sql", "select member, msgid from mall_users, deliveries order by all limit 1", "--json"]);
    let json = json.await.ends(0).json();
    assert_eq!(json["rows"][0], json!({ "member": csv[0], "msgid": csv[1] }));
    assert_eq!(csv[0], "9007199254740995");
    assert!(csv[1].len() >= 18, "{csv:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_night_asks_for_the_new_ones_alone_and_tells_who_came_and_left() {
    let house = House::build(small()).await;
    house.night().await;
    let (came, left) = (house.simulator.follow_some(120), house.simulator.unfollow_some(45));
    assert_eq!((came.len(), left.len()), (120, 45));
    let second = house.night().await;
    let newcomers: BTreeSet<String> = came.iter().filter(|openid| !left.contains(openid)).cloned().collect();
    let batches = newcomers.len().div_ceil(100);
    let calls = second.stage("profiles")["api_calls"].clone();
    assert_eq!(calls["user/info/batchget"], json!(batches));
    // Whoever is last in a batch and has no unionid is looked at singly.
    assert!(calls["user/info"].as_u64().unwrap_or(0) <= wide(batches), "{calls}");
    assert_eq!(second.stage("profiles")["rows_in"], json!(newcomers.len()));

    let inactive: BTreeSet<String> =
        house.rows("select openid from followers where not active").await.into_iter().flatten().collect();
    assert_eq!(inactive, left.iter().filter(|openid| !came.contains(openid)).cloned().collect());
    let changes = house.rows("select change, openid from follower_changes where source = 'walk'").await;
    let of = |change: &str| -> BTreeSet<String> {
        changes.iter().filter(|row| row[0] == change).map(|row| row[1].clone()).collect()
    };
    assert_eq!((of("follow"), of("unfollow")), (newcomers, inactive));
    let matched: BTreeSet<String> =
        house.rows("select oa_openid from identities").await.into_iter().flatten().collect();
    assert_eq!(matched, house.simulator.matchable().into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_give_everybody_their_neighbours_unionid_are_found_out_and_asked_for_singly() {
    let options = Options { followers: 6_050, users: 700, matched_users: 400, page_size: 1_000, ..Options::default() };
    let house = House::build(options).await;
    house.simulator.set_faults(Faults { shift_every: 1, ..Faults::default() });
    let night = house.night().await;
    assert_eq!((house.calls("user/get"), house.calls("user/info/batchget")), (8, 61));
    // Everybody singly, each batch was looked at once, and those in flight by their last person as well.
    let singly = house.calls("user/info");
    assert!((6_050..6_050 + 61 + 32).contains(&singly), "{singly}");
    assert_eq!(night.stage("profiles")["rows_in"], json!(6_050));
    let profiles = "select count(*), count(distinct openid), count(*) - count(distinct unionid) - count(*) filter (unionid is null) from profiles";
    assert_eq!(house.numbers(profiles).await, [6_050, 6_050, 0]);
    let matched: BTreeSet<String> =
        house.rows("select oa_openid from identities").await.into_iter().flatten().collect();
    assert_eq!(matched, house.simulator.matchable().into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_who_stand_on_two_pages_are_asked_for_once_and_a_budget_leaves_the_rest_for_later() {
    let house = House::build(small()).await;
    house.simulator.set_faults(Faults { repeated_openids: 30, blank_openids: true, ..Faults::default() });
    house.edit("pipelines/nightly.toml", "kind = \"enrich_unionids\"", "kind = \"enrich_unionids\"\nbudget = 4");
    let first = house.night().await;
    assert_eq!(first.stage("profiles")["detail"]["accounts"][0]["not_asked"], json!(200));
    assert_eq!(house.calls("user/info/batchget"), 4);
    let counts = "select (select count(*) from followers), (select count(distinct openid) from followers),
                         (select count(*) from profiles), (select count(*) from profiles where unionid_missing = 'not_asked')";
    assert_eq!(house.numbers(counts).await, [600, 600, 600, 200]);
    house.night().await;
    assert_eq!(house.calls("user/info/batchget"), 6);
    assert_eq!(house.numbers(counts).await, [600, 600, 600, 0]);
}
