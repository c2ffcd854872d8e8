//! Who is tied to whom, who could not be, and what the figures of a day are made of.

use std::fmt::Write as _;

use crate::house::{EXPORT, House, small};

const TIED: &str = "select unionid, account, oa_openid, miniprogram, mp_openid, key from identities order by all";
const CONFLICTS: &str = "select miniprogram, openid, unionid, other, reason, key, chosen, rule from identity_conflicts \
                         where date = (select max(date) from identity_conflicts) order by all";
const JOIN: &str = "[stages.identities]\nkind = \"join_identities\"\n";
/// Every figure of a day, without the run that counted it.
const FIGURES: &str = "select * exclude (run_id) from coverage where date = $day order by all";
/// Sides of the match report that are not the whole, and days on which both sides do not tie the same people.
const DO_NOT_ADD_UP: &str = "
    select count(*) from coverage as c where c.account <> '*' and c.miniprogram <> '*' and (
        c.followers <> (select sum(people) from match_report as m where m.date = c.date and m.account = c.account
                         and m.miniprogram = c.miniprogram and m.side = 'follower')
        or c.users <> (select sum(people) from match_report as m where m.date = c.date and m.account = c.account
                         and m.miniprogram = c.miniprogram and m.side = 'user')
        or c.matched <> (select sum(people) from match_report as m where m.date = c.date and m.account = c.account
                         and m.miniprogram = c.miniprogram and m.side = 'user' and m.reason in ('matched', 'conflict'))
        or c.reached_lately > c.reachable or c.reachable > c.matched)";

/// The export with its lines after the header in another order, and lines more.
fn export(house: &House, lines: &[String], is_reversed: bool) {
    let mut own: Vec<&str> = lines.iter().map(String::as_str).collect();
    if is_reversed {
        own[1..].reverse();
    }
    house.write(EXPORT, &format!("{}\n", own.join("\n")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_read_off_the_profiles_by_whoever_asks() {
    let house = House::build(small()).await;
    assert_eq!(house.numbers("select count(*) from follower_tags").await, [0]);
    house.night().await;
    let [tagged, told, wrong] = house
        .numbers(
            "select count(*), (select count(*) from profiles where tagid_list = '[2]'), \
             count(*) filter (tag_id <> 2) from follower_tags",
        )
        .await[..]
    else {
        panic!("three numbers")
    };
    assert!(tagged > 0 && tagged == told && wrong == 0, "{tagged} {told} {wrong}");
    let catalog = crate::catalog::open(&house.path("data/catalog.duckdb"));
    let shown: i64 = catalog.query_row("select count(*) from follower_tags", [], |row| row.get(0)).unwrap();
    assert_eq!(u64::try_from(shown).unwrap(), tagged);
    let listed = house.lianbo(&["tables"]).await.ends(0).stdout;
    assert!(listed.lines().any(|line| line.contains("follower_tags") && line.contains("as profiles")), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_share_a_unionid_are_one_person_by_a_rule_that_no_order_of_lines_changes() {
    let house = House::build(small()).await;
    house.night().await;
    let sound = house.rows(TIED).await;
    assert_eq!(sound.len(), usize::try_from(house.matchable()).unwrap());
    assert!(house.rows(CONFLICTS).await.is_empty());

    let mut lines: Vec<String> = house.read(EXPORT).lines().map(str::to_owned).collect();
    let (older, same) = (sound[0].clone(), sound[1].clone());
    let login = |openid: &str| {
        lines.iter().find(|line| line.starts_with(openid)).unwrap().rsplit(',').next().unwrap().to_owned()
    };
    let same_login = login(&same[4]);
    // The first shares with a newer user, the second with one of the same time and a smaller id; ids come padded.
    lines.push(format!("  zz-newer ,\" {} \",n,c,2020-01-01 00:00:00,2031-01-01 00:00:00", older[0]));
    lines.push(format!("!!smaller,{},n,c,2020-01-01 00:00:00,{same_login}", same[0]));
    lines.push("blank-one,   ,n,c,2020-01-01 00:00:00,2020-01-01 00:00:00".to_owned());
    export(&house, &lines, false);
    let night = house.night().await;
    assert_eq!(night.stage("identities")["detail"]["conflicts"], 2);
    let (tied, conflicts) = (house.rows(TIED).await, house.rows(CONFLICTS).await);
    let row = |openid: &str, unionid: &str, chosen: &str, rule: &str| {
        ["mall", openid, unionid, chosen, "several_users", "unionid", chosen, rule].map(str::to_owned).to_vec()
    };
    let mut wanted =
        vec![row(&older[4], &older[0], "zz-newer", "newest"), row(&same[4], &same[0], "!!smaller", "smallest_id")];
    wanted.sort();
    assert_eq!(conflicts, wanted);
    assert_eq!(tied.len(), sound.len());
    assert_eq!(house.numbers("select count(*), count(distinct unionid) from identities").await, [wide(sound.len()); 2]);
    assert_eq!(house.numbers("select sum(people) from match_report where reason = 'conflict'").await, [2]);
    assert_eq!(house.numbers(DO_NOT_ADD_UP).await, [0]);

    export(&house, &lines, true);
    house.night().await;
    assert!(house.rows(TIED).await == tied && house.rows(CONFLICTS).await == conflicts);

    // What was mended the same day is no conflict any more.
    house.export();
    house.night().await;
    assert!(house.rows(TIED).await == sound && house.rows(CONFLICTS).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_key_ties_whom_no_unionid_does_and_nobody_whom_it_does_not_tell_apart() {
    let house = House::build(small()).await;
    house.night().await;
    // Followers who are no users, by their openid; the last two share a number.
    let free = house
        .rows("select openid, unionid from profiles where unionid is not null and openid not in (select oa_openid from identities) order by openid limit 4")
        .await;
    let tied = house.rows(TIED).await;
    let hash = |n: u32| format!("{n:032x}").replace('0', "A");
    let mut text = house.read(EXPORT).lines().enumerate().fold(String::new(), |mut text, (n, line)| {
        let _ = writeln!(text, "{line},{}", if n == 0 { "phone_hash" } else { "" });
        text
    });
    for (openid, unionid, n) in [("k1", "", 1), ("k2", "of-another", 2), ("k3", "", 3)] {
        let _ = writeln!(
            text,
            "{openid},{unionid},n,c,2020-01-01 00:00:00,2020-01-01 00:00:00, {} ",
            hash(n).to_lowercase()
        );
    }
    house.write(EXPORT, &text);
    let members: Vec<String> = free
        .iter()
        .zip([1, 2, 3, 3])
        .map(|(person, n)| format!("select 'main' as account, '{}' as openid, '{}' as phone_hash", person[0], hash(n)))
        .collect();
    house.write("pipelines/nightly/oa_members.sql", &members.join(" union all "));
    house.edit(
        "pipelines/nightly.toml",
        JOIN,
        &format!("{JOIN}keys = [\"unionid\", \"phone_hash\"]\nbindings = \"oa_members\"\n[stages.oa_members]\nkind = \"sql\"\n"),
    );
    house.night().await;
    let now = house.rows(TIED).await;
    let new: Vec<&Vec<String>> = now.iter().filter(|row| !tied.contains(row)).collect();
    let [one] = new[..] else { panic!("one more: {new:?}") };
    assert_eq!(one[..], [&free[0][1], "main", &free[0][0], "mall", "k1", "phone_hash"].map(str::to_owned));
    let conflicts =
        house.rows("select openid, other, reason, key, chosen, rule from identity_conflicts order by all").await;
    let row = |openid: &str, other: &str, reason: &str| {
        [openid, other, reason, "phone_hash", "", "none"].map(str::to_owned).to_vec()
    };
    let mut wanted = vec![
        row("k2", &free[1][0], "keys_disagree"),
        row("k3", &free[2][0], "several_followers"),
        row("k3", &free[3][0], "several_followers"),
    ];
    wanted.sort();
    assert_eq!(conflicts, wanted);

    house.edit("pipelines/nightly.toml", "\"phone_hash\"]", "\"phone_hsah\"]");
    let refused = house.lianbo(&["check"]).await.ends(2);
    assert!(
        refused.text().contains("phone_hsah") && refused.text().contains("did you mean `phone_hash`"),
        "{}",
        refused.text()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_columns_months_tags_and_several_at_once_and_sum_to_the_whole() {
    let house = House::build(small()).await;
    let segments = "segments = [\"city\", \"subscribe_scene\"]";
    let wide_ones = "segments = [\"city\", \"month(subscribe_time)\", \"month(updated_at)\", \"tag\", \"city + month(subscribe_time)\", \"tag + subscribe_scene\"]";
    house.edit("pipelines/nightly.toml", segments, wide_ones);
    house.night().await;
    let sums = house
        .rows("select segment, sum(users), sum(matched), sum(reachable) from coverage_by_segment group by segment order by segment")
        .await;
    let whole = house
        .row("select users, matched, reachable from coverage where account = 'main' and miniprogram = 'mall'")
        .await;
    let names: Vec<&str> = sums.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(
        names,
        [
            "city",
            "city + month(subscribe_time)",
            "month(subscribe_time)",
            "month(updated_at)",
            "tag",
            "tag + subscribe_scene"
        ]
    );
    // Nobody has two tags here, so that these sum as well.
    assert!(sums.iter().all(|row| row[1..] == whole[..]), "{sums:?} {whole:?}");
    let values = house.rows("select distinct value from coverage_by_segment where segment = 'month(updated_at)'").await;
    assert!(values.iter().all(|row| row[0].len() == 7 && row[0].as_bytes()[4] == b'-'), "{values:?}");
    let tagged = "select sum(users) from coverage_by_segment where segment = 'tag' and value = '2'";
    let by_hand = "select count(*) from identities join follower_tags on openid = oa_openid where tag_id = 2";
    assert_eq!(house.rows(tagged).await, house.rows(by_hand).await);
    let shown = house.lianbo(&["coverage", "--by", "city + month(subscribe_time)"]).await.ends(0).stdout;
    assert!(shown.contains("(unknown)"), "{shown}");

    house.edit("pipelines/nightly.toml", "\"city\", \"month(subscribe_time)\"", "\"city\", \"month(subscribed_time)\"");
    let refused = house.lianbo(&["check"]).await.ends(2);
    assert!(refused.text().contains("did you mean `subscribe_time`"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_day_is_measured_again_from_what_is_kept_and_gives_the_same_numbers() {
    let house = crate::callbacks::house(small()).await;
    house.night().await;
    let day = house.row("select max(date) from coverage").await.remove(0);
    let of_day = |sql: &str| sql.replace("$day", &format!("date '{day}'"));
    let suppressed = house.row("select mp_openid, unionid from identities order by mp_openid limit 1").await;
    house.lianbo(&["suppress", "add", "--unionid", &suppressed[1], "--reason", "asked us to"]).await.ends(0);
    house.night().await;
    let then = house.rows(&of_day(FIGURES)).await;
    let report = "select * exclude (run_id) from match_report where date = $day order by all";
    let then_report = house.rows(&of_day(report)).await;

    // A day later others follow, and nobody is suppressed any more.
    house.pass(86_400);
    house.simulator.follow_some(5);
    house.lianbo(&["suppress", "remove", "--unionid", &suppressed[1]]).await.ends(0);
    house.night().await;
    assert_eq!(house.numbers("select count(distinct date) from coverage").await, [2]);
    house.edit("pipelines/nightly.toml", "[\"city\", \"subscribe_scene\"]", "[\"city\", \"subscribe_scene\", \"tag\"]");
    // Twice: what was measured again can be measured again.
    house.run("nightly", &["--only", "coverage", "--date", &day]).await.ends(0);
    let again = house.run("nightly", &["--only", "coverage", "--date", &day]).await.ends(0);
    let run_id = again.json()["run_id"].as_str().unwrap().to_owned();
    assert_eq!(house.rows(&of_day(FIGURES)).await, then);
    assert_eq!(house.rows(&of_day(report)).await, then_report);
    assert_eq!(house.row(&of_day("select distinct run_id from coverage where date = $day")).await, [run_id]);
    let by_tag = house.rows("select date from coverage_by_segment where segment = 'tag'").await;
    assert!(!by_tag.is_empty() && by_tag.iter().all(|row| row[0] == day), "{by_tag:?}");
    assert_eq!(house.numbers(DO_NOT_ADD_UP).await, [0]);
    // Each number names what it was counted over.
    let named = house.rows("select distinct snapshots from (select snapshots from coverage union all select snapshots from match_report union all select snapshots from coverage_by_segment)").await;
    assert_eq!(named.len(), 2, "{named:?}");
    let trend = house.lianbo(&["coverage", "--json"]).await.ends(0).json();
    let first = &trend["match_report"][0]["trend"];
    assert_eq!(first.as_array().unwrap().len(), 2, "{trend}");

    let early = house.run("nightly", &["--only", "coverage", "--date", "2999-01-01"]).await.ends(2);
    assert!(early.stdout.contains("is not over"), "{}", early.stdout);
    let other = house.run("nightly", &["--only", "identities", "--date", &day]).await.ends(2);
    assert!(other.stdout.contains("measure_coverage"), "{}", other.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_got_a_message_lately_is_reached_and_only_for_as_long() {
    let house = crate::callbacks::house(small()).await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let serving = crate::serve::Serving::begin(&house, &[]).await;
    let told = house.simulator.matchable();
    let sent = house.rows(&format!("select msgid from deliveries where openid = '{}'", told[0])).await;
    let body = crate::callbacks::event(
        &told[0],
        &format!(
            "<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event><MsgID>{}</MsgID><Status><![CDATA[success]]></Status>",
            sent[0][0]
        ),
    )
    .replace("1764000000", &house.now().timestamp().to_string());
    let signed = crate::callbacks::signed();
    let answer = crate::callbacks::post(&serving, &format!("/callback/main?{signed}"), &body).await;
    assert_eq!(answer.0, 200);
    crate::callbacks::comes_to(&house, "select count(*) from deliveries where delivered = 'success'", &[1]).await;
    serving.stop().await;
    house.pass(10);
    let reached = "select reachable, reached_lately from coverage where account = '*' and miniprogram = '*' order by date desc limit 1";
    house.run("nightly", &["--only", "coverage"]).await.ends(0);
    let [reachable, lately] = house.numbers(reached).await[..] else { panic!("two numbers") };
    assert_eq!((reachable, lately), (house.matchable(), 1));
    house.pass(31 * 86_400);
    house.run("nightly", &["--only", "coverage"]).await.ends(0);
    assert_eq!(house.numbers(reached).await[1], 0);
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}
