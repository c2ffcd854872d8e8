//! What became of a campaign, and the report that others are sent.

use serde_json::Value;

use crate::house::{House, small, wide};

/// A campaign of which a quarter is held out, with the city of each recipient and what else its SELECT gives.
async fn with_holdout(more: &str) -> House {
    let house = House::build(small()).await;
    house.campaign("");
    house.edit(
        "pipelines/campaign.toml",
        "account = \"main\"\n[stages.push]",
        "account = \"main\"\nholdout = 0.25\n[stages.push]",
    );
    house.write(
        "pipelines/campaign/audience.sql",
        &format!(
            "select oa_openid as openid, identities.unionid, mp_openid, city{more} from identities\n\
             join mall_users on mall_users.openid = identities.mp_openid\n"
        ),
    );
    house
}

/// Such a campaign that was sent, and what was ordered afterwards.
async fn held_out() -> House {
    let house = with_holdout("").await;
    house.write("pipelines/orders.toml", "[stages.orders]\nkind = \"sql\"\nfile = \"orders.sql\"\n");
    // Every second who was sent to bought something, and every fourth of the others.
    house.write(
        "pipelines/orders.sql",
        "select unionid, arm, if(arm = 'send', seq % 2 = 0, seq % 4 = 0) as ordered from recipients\n",
    );
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    house.run("orders", &[]).await.ends(0);
    house
}

fn sum(rows: &[Value], arm: &str, column: &str) -> u64 {
    rows.iter().filter(|row| row["arm"] == arm).map(|row| row[column].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_is_judged_by_what_its_people_did_beside_those_who_were_held_out() {
    let house = held_out().await;
    let funnel = async |more: &[&str]| {
        let arguments = [&["funnel", "campaign", "--json"], more].concat();
        let views = house.lianbo(&arguments).await.ends(0).json();
        views[0].clone()
    };
    let arms =
        house.numbers("select count(*) filter (arm = 'send'), count(*) filter (arm = 'holdout') from recipients").await;
    assert!(arms.iter().all(|people| *people > 50), "{arms:?}");

    let whole = funnel(&["--outcome", "orders.ordered"]).await;
    let rows = whole["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!([sum(rows, "send", "recipients"), sum(rows, "holdout", "recipients")], arms[..]);
    assert_eq!(sum(rows, "send", "sent"), arms[0]);
    assert_eq!(sum(rows, "holdout", "sent") + sum(rows, "holdout", "pending"), 0, "nobody of a holdout waits");
    let ordered = house
        .numbers("select count(*) filter (arm = 'send'), count(*) filter (arm = 'holdout') from orders where ordered")
        .await;
    assert_eq!([sum(rows, "send", "outcome"), sum(rows, "holdout", "outcome")], ordered[..]);
    let effect = &whole["effects"][0];
    let share = |of: &str| effect[of].as_f64().unwrap();
    let rate =
        |arm: usize| f64::from(u32::try_from(ordered[arm]).unwrap()) / f64::from(u32::try_from(arms[arm]).unwrap());
    assert!((share("send_rate") - rate(0)).abs() < 1e-9 && (share("holdout_rate") - rate(1)).abs() < 1e-9, "{effect}");
    assert!(share("low") < share("difference") && share("difference") < share("high"), "{effect}");
    assert!(share("low") > 0.0, "a half beside a quarter of so many is no accident: {effect}");

    // A variable of the set, and a column of a table, tell the same people apart in the same way.
    let by_variable = funnel(&["--by", "city", "--outcome", "orders.ordered"]).await;
    let by_column = funnel(&["--by", "mall_users.city", "--outcome", "orders.ordered"]).await;
    let cities = by_variable["rows"].as_array().unwrap();
    assert!(cities.len() > 4, "{cities:?}");
    assert_eq!(by_variable["rows"], by_column["rows"]);
    for column in ["recipients", "outcome"] {
        assert_eq!(sum(cities, "send", column), sum(rows, "send", column), "{column}");
    }
    assert_eq!(by_variable["effects"][0], whole["effects"][0], "segments sum to everybody");
    let day = funnel(&["--by", "day"]).await;
    let today = house.row("select cast(local_date(min(sent_at)) as varchar) from deliveries").await;
    assert_eq!(day["rows"][0]["segment"], Value::from(today[0].clone()));

    // Each view is the answer of its own SQL.
    let again = house.rows(whole["sql"].as_str().unwrap()).await;
    assert_eq!(wide(again.len()), wide(rows.len()));
    assert_eq!(again[0][2], arms[0].to_string());

    for (wrong, said) in [
        (["--by", "colour"], "mp_openid"),
        (["--outcome", "ordered"], "TABLE.COLUMN"),
        (["--outcome", "orders.odrered"], "odrered"),
        (["--by", "oders.ordered"], "oders"),
        (["--by", "city+colour"], "no variable `colour`"),
        (["--by", "error_codes.meaning"], "does not say of whom its rows are"),
        (["--outcome", "orders.arm"], "`send` stands in"),
        (["--outcome", "orders.arm"], "yes, y, t, 是, 有"),
    ] {
        let refused = house.lianbo(&[&["funnel", "campaign"], &wrong[..]].concat()).await.ends(2);
        assert!(refused.stderr.contains(said), "{wrong:?}: {}", refused.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_funnel_takes_what_is_known_of_followers_and_several_segments_at_once() {
    let house = with_holdout(", length(city) as day").await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let funnel = async |more: &[&str]| {
        let arguments = [&["funnel", "campaign", "--json"], more].concat();
        house.lianbo(&arguments).await.ends(0)
    };
    let people = house.numbers("select count(*) from recipients").await[0];
    let of = |answer: &crate::house::Outcome, column: &str| {
        let view = answer.json();
        let rows = view[0]["rows"].as_array().unwrap().clone();
        sum(&rows, "send", column) + sum(&rows, "holdout", column)
    };

    let followed = funnel(&["--outcome", "followers.active"]).await;
    assert_eq!(of(&followed, "outcome"), people, "everybody in the set follows: {followed:?}");
    let by_language = funnel(&["--by", "followers.active", "--outcome", "profiles.subscribe"]).await;
    assert_eq!(by_language.json()[0]["rows"][0]["segment"], "true");

    let both = funnel(&["--by", "city + mall_users.city", "--outcome", "followers.active"]).await;
    assert_eq!(of(&both, "recipients"), people);
    let segment = both.json()[0]["rows"][0]["segment"].as_str().unwrap().to_owned();
    let (one, other) = segment.split_once(" + ").unwrap();
    assert_eq!(one, other, "the same city by both ways");
    assert!(both.json()[0]["effects"].as_array().unwrap().len() > 4, "{both:?}");
    let of_day = funnel(&["--by", "city+day"]).await;
    assert!(of_day.json()[0]["effects"].as_array().unwrap().is_empty());

    // What the set calls a day is reached by its longer name, and the shorter one says so.
    assert!(of_day.stderr.contains("variables.day"), "{of_day:?}");
    let own = funnel(&["--by", "variables.day"]).await;
    assert!(own.json()[0]["rows"][0]["segment"].as_str().unwrap().parse::<u64>().is_ok(), "{own:?}");
    assert_eq!(of(&own, "recipients"), people);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_is_one_file_of_which_every_number_can_be_asked_for_again() {
    let house = held_out().await;
    let path = house.path("report.html");
    let made = house.lianbo(&["report", "-o", path.to_str().unwrap(), "--json"]).await.ends(0).json();
    let html = house.read("report.html");
    for foreign in ["http:", "https:", "<script", "@import", "src="] {
        assert!(!html.contains(foreign), "the file reaches out of itself: {foreign}");
    }
    let plain = |text: &str| {
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&#39;", "'")
            .replace("&quot;", "\"")
            .replace("&amp;", "&")
    };
    let questions: Vec<String> =
        html.split("<pre>").skip(1).map(|rest| plain(rest.split("</pre>").next().unwrap())).collect();
    let sections = made["sections"].as_object().unwrap();
    assert_eq!(questions.len(), sections.len());
    let mut counted: Vec<u64> = Vec::new();
    for sql in &questions {
        counted.push(wide(house.rows(sql).await.len()));
    }
    let mut told: Vec<u64> = sections.values().map(|rows| rows.as_u64().unwrap()).collect();
    counted.sort_unstable();
    told.sort_unstable();
    assert_eq!(counted, told);
    for id in ["coverage", "trend", "match", "segments", "campaigns", "quota"] {
        assert!(sections[id].as_u64().unwrap() > 0, "{id}: {made}");
    }
    let [reachable, sent] = house
        .numbers("select (select reachable from coverage where account = 'main' and miniprogram = 'mall'), (select sent from pushes)")
        .await[..]
    else {
        panic!("two numbers")
    };
    for number in [reachable, sent] {
        assert!(html.contains(&format!("<td class=\"number\">{number}</td>")), "{number} stands nowhere");
    }

    let before = house.read("report.html");
    let refused = house.lianbo(&["report", "-o", "nowhere/report.html"]).await.ends(2);
    assert!(refused.stderr.contains("nowhere/report.html"), "{}", refused.stderr);
    assert_eq!(house.read("report.html"), before);

    // What the workspace lives by is nobody's output.
    let own = [
        "data/ledger.db",
        "data/ledger.db-wal",
        "data/catalog.duckdb",
        "data/lake/x.csv",
        "config/lianbo.toml",
        "pipelines/nightly.toml",
    ];
    let before = house.files();
    for name in own {
        let path = house.path(name).to_str().unwrap().to_owned();
        for command in [&["report", "-o", &path][..], &["sql", "select 1", "--format", "csv", "-o", &path]] {
            let refused = house.lianbo(command).await.ends(2);
            assert!(refused.stderr.contains("of this workspace"), "{command:?}: {}", refused.stderr);
        }
    }
    for (path, bytes) in house.files() {
        let is_live = path.to_string_lossy().contains("ledger.db");
        assert!(is_live || before.get(&path) == Some(&bytes), "{} was changed", path.display());
    }
    assert!(house.numbers("select count(*) from pushes").await == [1]);
}
