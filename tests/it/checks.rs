//! Checks and failures: what is wrong tonight leaves last night as it was, and is never sent to.

use lianbo::simulator::{Options, Simulator};

use crate::house::{AUDIENCE, EXPORT, House, NIGHTLY, SECRET, campaign, config, small};

/// What a reader of the tables sees.
const SEEN: &str = "select oa_openid from identities order by all";
const PEOPLE: &str = "pipelines/people.toml";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_check_keeps_the_old_table_and_a_warning_only_says_so() {
    let house = House::build(small()).await;
    house.night().await;
    let people = |checks: &str| format!("[stages.people]\nkind = \"sql\"\nchecks = {{ {checks} }}\n");
    house.write("pipelines/people/people.sql", "select openid, city from mall_users where unionid is not null\n");
    house.write(PEOPLE, &people("min_rows = 1"));
    house.run("people", &[]).await.ends(0);
    let table = "select * from people order by all";
    let before = house.rows(table).await;

    // All of these hold of no table made from now on: fewer rows, NULLs, cities that stand more than once.
    house.write("pipelines/people/people.sql", "select openid, city, unionid from mall_users limit 300\n");
    for (check, told) in [
        ("not_null = [\"openid\", \"unionid\"]", "not_null unionid"),
        ("unique = [\"city\"]", "unique city"),
        ("min_rows = 301", "min_rows 301"),
        ("max_drop = 0.1", "max_drop 0.1"),
        ("sql = \"select openid from people where city is not null\"", "check sql"),
    ] {
        house.write(PEOPLE, &people(check));
        let failed = house.run("people", &[]).await.ends(1);
        assert_eq!(failed.json()["status"], "failed", "{check}");
        let stage = failed.stage("people");
        assert_eq!(stage["status"], "failed");
        assert!(failed.text().contains(told), "{check}: {}", failed.text());
        assert!(house.rows(table).await == before, "{check} let the table change");
    }
    house.write(PEOPLE, &people("min_rows = 301, max_drop = 0.1, severity = \"warn\""));
    let warned = house.run("people", &[]).await.ends(0);
    assert!(["min_rows 301", "max_drop 0.1"].iter().all(|told| warned.stderr.contains(told)), "{}", warned.stderr);
    assert_eq!(house.rows(table).await.len(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_fails_the_night_publishes_nothing_sends_nothing_and_is_accepted_by_name() {
    let house = House::build(small()).await;
    // One pipeline that syncs, hands out and pushes: none of it must happen on what failed.
    let night = NIGHTLY
        .replace("description = \"the night\"", "")
        .replace("kind = \"extract_followers\"", "kind = \"extract_followers\"\nchecks = { max_drop = 0.05 }");
    let publish = "[stages.hand_out]\nkind = \"publish\"\ntables = [\"identities\"]\nformat = \"csv\"\n";
    house.write("pipelines/nightly.toml", &format!("{}\n{night}\n{publish}", campaign("")));
    house.write("pipelines/nightly/audience.sql", AUDIENCE);
    house.night().await;
    house.everybody_has_one();
    house.simulator.clear_inbox();
    let before = house.rows(SEEN).await;
    let published = house.read("data/published/identities.csv");

    assert_eq!(house.simulator.unfollow_some(200).len(), 200);
    // Trying again does not wear the guard down.
    for _ in 0..2 {
        let failed = house.run("nightly", &[]).await.ends(1);
        assert_eq!(failed.json()["status"], "failed");
        let told = failed.stage("followers")["error"].as_str().unwrap().to_owned();
        for part in
            ["max_drop 0.05", "main: 400 active followers after 600", "33.3 %", "5 %", "run nightly --accept-drop"]
        {
            assert!(told.contains(part), "{part} is missing: {told}");
        }
    }
    assert!(house.rows(SEEN).await == before);
    assert_eq!(house.numbers("select count(*) filter (active) from followers").await, [600]);
    assert_eq!(house.read("data/published/identities.csv"), published);
    assert_eq!(house.simulator.inbox().messages, 0);

    house.run("nightly", &["--accept-drop", " "]).await.ends(2);
    let walked = house.calls("user/get");
    let night = house.run("nightly", &["--accept-drop", "an old campaign's followers left"]).await.ends(0);
    assert_eq!(house.calls("user/get"), walked, "accepted is what was looked at");
    assert_eq!(house.numbers("select count(*) filter (active) from followers").await, [400]);
    assert_eq!(night.counts()[1], house.matchable());
    house.everybody_has_one();
    let audit = "select count(*) from audit where detail like '%an old campaign%'";
    assert_eq!(house.numbers(audit).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_was_short_once_is_looked_at_again_by_the_next_run() {
    let house = House::build(small()).await;
    let gate = "kind = \"extract_followers\"\nchecks = { max_drop = 0.05 }";
    house.edit("pipelines/nightly.toml", "kind = \"extract_followers\"", gate);
    house.night().await;
    let left = house.simulator.unfollow_some(200);
    house.run("nightly", &[]).await.ends(1);
    for openid in &left {
        assert!(house.simulator.follow(openid));
    }
    house.run("nightly", &[]).await.ends(0);
    let lists = "select count(*) filter (active), (select count(*) from follower_changes) from followers";
    assert_eq!(house.numbers(lists).await, [600, 0]);
}

/// A second account beside the house's own, with a platform and followers of its own.
async fn second_account(house: &House, options: Options) -> Simulator {
    let app_id = "wx2222222222222222".to_owned();
    let second = Simulator::start(Options { app_id: app_id.clone(), ..options }).await.unwrap();
    let accounts = format!(
        "{}\n[accounts.second]\napp_id = \"{app_id}\"\napp_secret = \"{SECRET}\"\napi_base = \"{}\"\n",
        config(&house.simulator.base_url()),
        second.base_url()
    );
    house.write("config/lianbo.toml", &accounts);
    second
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_small_account_does_not_hide_behind_a_big_one_that_grew() {
    let house = House::build(small()).await;
    let second = second_account(&house, Options { followers: 20, users: 20, matched_users: 10, ..small() }).await;
    let gate = "kind = \"extract_followers\"\nchecks = { max_drop = 0.05 }";
    house.write("pipelines/nightly.toml", &NIGHTLY.replace("kind = \"extract_followers\"", gate));
    house.night().await;
    let by_account = "select account, count(*) filter (active) from followers group by account order by account";
    assert_eq!(house.rows(by_account).await, [["main", "600"], ["second", "20"]]);

    assert_eq!(house.simulator.follow_some(30).len(), 30);
    assert_eq!(second.unfollow_some(5).len(), 5);
    let failed = house.run("nightly", &[]).await.ends(1);
    let told = failed.stage("followers")["error"].as_str().unwrap().to_owned();
    assert!(told.contains("second: 15 active followers after 20, 25.0 % fewer") && !told.contains("main:"), "{told}");
    assert_eq!(house.rows(by_account).await, [["main", "600"], ["second", "20"]], "neither account's table changes");

    house.run("nightly", &["--accept-drop", "the second shop was closed"]).await.ends(0);
    assert_eq!(house.rows(by_account).await, [["main", "630"], ["second", "15"]]);
    let audit = "select count(*) from audit where command = 'accept-drop' and detail like '%second: 15 active%closed%'";
    assert_eq!(house.numbers(audit).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_small_mini_program_does_not_hide_behind_a_big_one() {
    let house = House::build(small()).await;
    house.night().await;
    let matched = house.rows("select unionid from identities order by unionid limit 10").await;
    house.edit("config/lianbo.toml", "[engine]", "[miniprograms.club]\napp_id = \"wx3333333333333333\"\n[engine]");
    let gate = "kind = \"join_identities\"\nchecks = { max_drop = 0.1 }";
    let club =
        "[stages.club]\nkind = \"load_users\"\nminiprogram = \"club\"\nsource.files = \"data/exports/club/*.csv\"\n";
    let with_club = NIGHTLY
        .replace("kind = \"join_identities\"", gate)
        .replace("[stages.identities]", &format!("{club}[stages.identities]"));
    house.write("pipelines/nightly.toml", &with_club);
    let club = |people: usize| {
        let rows: String =
            matched[..people].iter().enumerate().map(|(n, row)| format!("o{n:027},{}\n", row[0])).collect();
        house.write("data/exports/club/users.csv", &format!("openid,unionid\n{rows}"));
    };
    club(10);
    house.night().await;
    club(8);
    let failed = house.run("nightly", &[]).await.ends(1);
    let told = failed.stage("identities")["error"].as_str().unwrap().to_owned();
    assert!(told.contains("main × club: 8 rows after 10, 20.0 % fewer") && !told.contains("mall"), "{told}");
    let by_miniprogram = "select miniprogram, count(*) from identities group by all order by all";
    assert_eq!(house.rows(by_miniprogram).await, [["club", "10"], ["mall", &house.matchable().to_string()]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_rate_that_falls_publishes_nothing_although_no_table_has_fewer_rows() {
    let house = House::build(small()).await;
    let gate = "kind = \"measure_coverage\"\nchecks = { max_drop = 0.1 }";
    house.edit("pipelines/nightly.toml", "kind = \"measure_coverage\"", gate);
    house.night().await;
    // Half of the export's unionids are of another Open Platform account from today on.
    let whole = house.read(EXPORT);
    let halved: String = whole
        .lines()
        .enumerate()
        .map(|(line, text)| match text.split_once(",o") {
            Some((openid, rest)) if line > 0 && line % 2 == 0 => format!("{openid},x{rest}\n"),
            _ => format!("{text}\n"),
        })
        .collect();
    assert_ne!(whole, halved);
    house.write(EXPORT, &halved);
    // The same day has no earlier date to be compared with.
    house.pass(86_400);
    let seen = "select date, match_rate, coverage_rate from coverage order by all";
    let before = house.rows(seen).await;
    for _ in 0..2 {
        let failed = house.run("nightly", &[]).await.ends(1);
        let told = failed.stage("coverage")["error"].as_str().unwrap().to_owned();
        for part in ["max_drop 0.1", "main × mall: match_rate 0.", "coverage_rate 0.", "lower", "10 %", "--accept-drop"]
        {
            assert!(told.contains(part), "{part} is missing: {told}");
        }
        assert!(!told.contains('*'), "{told}");
        assert!(house.rows(seen).await == before);
    }
    house.run("nightly", &["--accept-drop", "the club moved"]).await.ends(0);
    assert!(house.rows(seen).await.len() > before.len());
    assert_eq!(house.numbers("select count(*) from audit where detail like '%match_rate%the club moved%'").await, [1]);
    // From now on these are the rates to be compared with.
    house.pass(86_400);
    house.night().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coverage_says_how_many_followers_were_not_asked_for_yet() {
    let house = House::build(small()).await;
    house.edit("pipelines/nightly.toml", "kind = \"enrich_unionids\"", "kind = \"enrich_unionids\"\nbudget = 2");
    house.night().await;
    let counted =
        "select not_asked, unreadable, followers from coverage where account = 'main' and miniprogram = 'mall'";
    let [not_asked, unreadable, followers] = house.numbers(counted).await[..] else { panic!("three numbers") };
    assert_eq!((unreadable, followers), (0, 600));
    assert!((400..600).contains(&not_asked), "{not_asked}");
    let report = "select sum(people) from match_report where side = 'follower' and reason = 'not_asked'";
    assert_eq!(house.numbers(report).await, [not_asked]);
    let shown = house.lianbo(&["coverage"]).await.ends(0);
    let line = format!("main: of 600 followers {not_asked} not asked yet");
    assert!(shown.stdout.lines().any(|told| told == line), "{}", shown.stdout);
    house.edit("pipelines/nightly.toml", "\nbudget = 2", "");
    house.night().await;
    assert_eq!(house.numbers(counted).await, [0, 0, 600]);
    assert!(!house.lianbo(&["coverage"]).await.ends(0).stdout.contains("not asked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_without_its_columns_leaves_last_nights_tables() {
    let house = House::build(small()).await;
    house.night().await;
    let before = house.rows(SEEN).await;
    let text = house.read(EXPORT);
    house.write(EXPORT, &text.replacen("openid,unionid", "open_id,union_id", 1));
    let failed = house.run("nightly", &[]).await.ends(1);
    let said = failed.text();
    assert!(said.contains("openid") && said.contains("users.csv"), "{said}");
    assert_eq!(house.numbers("select count(*) from mall_users").await, [700]);
    assert!(house.rows(SEEN).await == before);

    // The mended export finishes the same night.
    house.write(EXPORT, &text);
    let night = house.night().await;
    assert_eq!(night.json()["run_id"], failed.json()["run_id"]);
    assert!(house.rows(SEEN).await == before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_is_refused_keeps_its_rows_while_the_other_gets_new_ones() {
    let house = House::build(small()).await;
    let second = second_account(&house, small()).await;
    house.night().await;
    let by_account = "select account, count(*) filter (active) from followers group by account order by account";
    assert_eq!(house.rows(by_account).await, [["main", "600"], ["second", "600"]]);

    house.simulator.follow_some(30);
    second.follow_some(50);
    second.revoke_tokens();
    let wrong = "f".repeat(32);
    house.edit("config/lianbo.toml", &format!("app_secret = \"{SECRET}\""), &format!("app_secret = \"{wrong}\""));
    let partial = house.run("nightly", &[]).await.ends(1);
    assert_eq!(partial.stage("followers")["status"], "partial");
    let said = partial.text();
    assert!(said.contains("second") && !said.contains(&wrong), "{said}");
    assert_eq!(house.rows(by_account).await, [["main", "630"], ["second", "600"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_without_a_row_keeps_the_people_of_the_night_before_until_somebody_says_so() {
    let house = House::build(small()).await;
    let header = house.read(EXPORT).lines().next().unwrap().to_owned() + "\n";
    let people = "select count(*) from mall_users";
    house.write(EXPORT, &header);
    // A mini program that nobody uses yet is no broken export.
    house.night().await;
    assert_eq!(house.numbers(people).await, [0]);
    house.export();
    house.night().await;
    assert_eq!(house.numbers(people).await, [700]);
    house.write(EXPORT, &header);
    for _ in 0..2 {
        let failed = house.run("nightly", &[]).await.ends(1);
        let told = failed.stage("mall_users")["error"].as_str().unwrap().to_owned();
        for part in [EXPORT, "700", "lianbo run nightly --accept-drop"] {
            assert!(told.contains(part), "{part} is missing: {told}");
        }
        assert_eq!(house.numbers(people).await, [700]);
    }
    house.run("nightly", &["--accept-drop", "the shop was closed"]).await.ends(0);
    assert_eq!(house.numbers(people).await, [0]);
    assert_eq!(house.numbers("select count(*) from audit where detail like '%the shop was closed%'").await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_in_the_manner_of_dbt_fail_or_warn_and_what_they_came_to_is_kept() {
    let house = House::build(small()).await;
    house.night().await;
    let people = |checks: &str| format!("[stages.people]\nkind = \"sql\"\n[stages.people.checks]\n{checks}\n");
    let select = "select openid, city, updated_at, length(city) as size from mall_users";
    house.write("pipelines/people/people.sql", &format!("{select} order by openid limit 400\n"));
    let holding = r#"
accepted_values = { column = "size", values = ["2", "3"] }
relationships = { column = "openid", to = "mall_users.openid" }
freshness = { column = "updated_at", max_age = "3650d" }
row_count_change = { max = 0.2 }
expression = [{ sql = "size > 0 -- letters" }, { sql = "openid <> city", severity = "warn" }]
"#;
    house.write(PEOPLE, &people(holding));
    house.run("people", &[]).await.ends(0);
    let results = "select check_name, outcome, coalesce(found, ''), pipeline, stage, table_name from check_results
                   order by checked_at, check_name";
    let held = house.rows(results).await;
    assert_eq!(held.len(), 6);
    for row in &held {
        assert_eq!(row[1..], ["passed", "", "people", "people", "people"], "{row:?}");
    }
    let before = house.rows("from people order by all").await;

    house.write("pipelines/people/people.sql", &format!("{select} order by openid limit 300\n"));
    for (check, name, found) in [
        (
            "accepted_values = { column = \"city\", values = [\"it's\"] }",
            "accepted_values city",
            "rows, first: city = ",
        ),
        (
            "relationships = { column = \"city\", to = \"mall_users.openid\" }",
            "relationships city → mall_users.openid",
            "; of openid = o",
        ),
        ("freshness = { column = \"updated_at\", max_age = \"1s\" }", "freshness updated_at 1s", "first: newest = "),
        ("row_count_change = { max = 0.2 }", "row_count_change 0.2", "300 rows after 400, 25 % fewer; at most 20 %"),
        ("expression = { sql = \"size > 2\" }", "expression size > 2", "first: openid = "),
    ] {
        house.write(PEOPLE, &people(check));
        let failed = house.run("people", &[]).await.ends(1);
        let told = failed.stage("people")["error"].as_str().unwrap().to_owned();
        assert!(told.contains(name) && told.contains(found), "{check}: {told}");
        assert!(house.rows("from people order by all").await == before, "{check} let the table change");
        let last = house.row("select check_name, outcome from check_results order by checked_at desc limit 1").await;
        assert_eq!(last, [name, "failed"]);
        let warning = check.replace(" }", ", severity = \"warn\" }");
        house.write(PEOPLE, &people(&warning));
        let warned = house.run("people", &[]).await.ends(0);
        assert!(warned.stderr.contains(name), "{warning}: {warned:?}");
        house.write("pipelines/people/people.sql", &format!("{select} order by openid limit 400\n"));
        house.write(PEOPLE, &people("min_rows = 1"));
        house.run("people", &["--fresh"]).await.ends(0);
        house.write("pipelines/people/people.sql", &format!("{select} order by openid limit 300\n"));
    }
    house.write(PEOPLE, &people("row_count_change = { max = 0.2 }"));
    house.run("people", &[]).await.ends(1);
    house.run("people", &["--accept-drop", "a shop was closed"]).await.ends(0);
    let by_outcome = "select outcome, count(*) from check_results group by outcome order by outcome";
    assert_eq!(house.rows(by_outcome).await, [["accepted", "1"], ["failed", "6"], ["passed", "11"], ["warned", "5"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_check_is_told_where_it_stands_before_anything_runs() {
    let house = House::build(small()).await;
    let select = "select openid, city, length(city) as size, updated_at from mall_users\n";
    house.write("pipelines/people/people.sql", select);
    for (check, line, said, hint) in [
        (
            "accepted_values = { column = \"citty\", values = [\"上海\"] }",
            "4:30",
            "`accepted_values` names `citty`",
            "`city`",
        ),
        ("accepted_values = { column = \"city\", value = [\"上海\"] }", "4:38", "unknown key `value`", "`values`"),
        ("accepted_value = { column = \"city\" }", "4:1", "unknown key `accepted_value`", "`accepted_values`"),
        (
            "relationships = { column = \"city\", to = \"cities\" }",
            "4:41",
            "names no column of a table",
            "TABLE.COLUMN",
        ),
        (
            "relationships = { column = \"city\", to = \"mall_user.city\" }",
            "4:17",
            "makes a table `mall_user`",
            "`mall_users`",
        ),
        ("relationships = { column = \"city\", to = \"mall_users.citty\" }", "4:17", "no column `citty`", "`city`"),
        ("relationships = { column = \"city\", to = \"mall_users.town\" }", "4:17", "no column `town`", "`unionid`"),
        ("relationships = { column = \"town\", to = \"mall_users.city\" }", "4:28", "names `town`", "`city`"),
        ("freshness = { column = \"city\" }", "4:13", "`max_age` is missing", "36h"),
        (
            "freshness = { column = \"size\", max_age = \"36h\" }",
            "4:24",
            "`freshness` names `size`, which is bigint and no time",
            "`updated_at`",
        ),
        ("row_count_change = { max = 20 }", "4:28", "20 is not a share", "0.2"),
        ("expression = { sql = \"citty <> ''\" }", "4:22", "citty", "`city`"),
        ("expression = [{ sql = \"city <> ''\", severity = \"loud\" }]", "4:48", "loud", "`warn`"),
    ] {
        house.write(PEOPLE, &format!("[stages.people]\nkind = \"sql\"\n[stages.people.checks]\n{check}\n"));
        let told = house.lianbo(&["check"]).await.ends(2).text();
        let place = format!("  {line}  ");
        assert!([&*place, said, hint].iter().all(|part| told.contains(part)), "{check} at {line}:\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_time_makes_no_table_of_ours_fresh_and_a_text_may_be_one() {
    let house = House::build(small()).await;
    let freshness =
        |column: &str| format!("checks = {{ freshness = {{ column = \"{column}\", max_age = \"36h\" }} }}\n");
    let loading = "columns = { updated_at = \"last_login\" }\n";
    for (after, column, wrong) in [
        ("kind = \"extract_followers\"\n", "openid", Some("varchar")),
        ("kind = \"enrich_unionids\"\n", "subscribe", Some("boolean")),
        ("kind = \"enrich_unionids\"\n", "fetched_at", None),
        (loading, "unionid", Some("varchar")),
        (loading, "city", None),
        (loading, "updated_at", None),
        ("columns = { updated_at = \"last_login\" }\ntypes = { city = \"bigint\" }\n", "city", Some("bigint")),
    ] {
        let first = after.split_inclusive('\n').next().unwrap();
        house.write("pipelines/nightly.toml", &NIGHTLY.replace(first, &format!("{after}{}", freshness(column))));
        let told = house.lianbo(&["check"]).await;
        let Some(ty) = wrong else {
            told.ends(0);
            continue;
        };
        let said = format!("`freshness` names `{column}`, which is {ty} and no time");
        let told = told.ends(2).text();
        assert!(told.contains(&said) && told.contains("pipelines/nightly.toml"), "{column}: {told}");
    }
}
