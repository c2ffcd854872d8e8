//! Analysts who ask: of today and of days that are over, within limits, into files that are safe to hand round.

use crate::house::{House, Outcome, small};

async fn ask(house: &House, sql: &str, more: &[&str]) -> Outcome {
    house.lianbo(&[&["sql", sql, "--format", "csv", "-q"], more].concat()).await
}

/// The only number of an answer.
async fn number(house: &House, sql: &str, more: &[&str]) -> String {
    ask(house, sql, more).await.ends(0).stdout.lines().nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_read_as_it_ended_as_long_as_it_is_kept() {
    const DAY: i64 = 86_400;
    let house = House::build(small()).await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let sent_to = house.matchable().to_string();
    let local = |days: i64| {
        let at = house.now().with_timezone(&chrono_tz::Asia::Shanghai).date_naive();
        (at + chrono::TimeDelta::days(days)).to_string()
    };
    let (before, first, second) = (local(-1), local(0), local(1));
    house.pass(DAY);
    assert_eq!(house.simulator.follow_some(120).len(), 120);
    house.night().await;

    let followers = "select count(*) from Followers where active";
    assert_eq!(number(&house, followers, &[]).await, "720");
    assert_eq!(number(&house, followers, &["--at", &second]).await, "720");
    assert_eq!(number(&house, followers, &["--at", &first]).await, "600");
    // Several tables of one day fit together, also those that are read off others; the day is `$today`.
    let fits =
        "select cast($today as varchar) || ' ' || count(*) from followers f join memberships m using (account, openid)
                where f.active and m.left_at is null and (select max(date) from coverage) = $today";
    assert_eq!(number(&house, fits, &["--at", &first]).await, format!("{first} 600"));
    assert_eq!(number(&house, "select count(*) from recipients", &["--at", &first]).await, sent_to);

    for (day, sql, said) in [
        (&before, "from followers", vec!["before its first snapshot", &first, &second]),
        (&local(1), "from followers", vec!["has not come"]),
        (&first, "from deliveries", vec!["`deliveries` is kept by the ledger as it is now", "leave --at out"]),
        (&first, "from folowers", vec!["did you mean `followers`?"]),
    ] {
        let refused = ask(&house, sql, &["--at", day]).await.ends(2);
        assert!(said.iter().all(|said| refused.stderr.contains(said)), "{sql} at {day}: {refused:?}");
    }
    assert!(number(&house, "select count(*) from error_codes", &["--at", &first]).await != "0", "codes have no day");

    house.pass(2 * 3_600);
    house.lianbo(&["vacuum", "--keep", "1"]).await.ends(0);
    let gone = ask(&house, "from followers", &["--at", &first]).await.ends(2);
    assert!(gone.stderr.contains("of main was dropped by a vacuum"), "{gone:?}");
    assert!(gone.stderr.contains(&format!("its snapshots are of {second}")), "{gone:?}");
    assert_eq!(number(&house, followers, &["--at", &second]).await, "720");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_past_a_limit_is_an_error_that_names_it_and_no_part_of_the_answer() {
    let house = House::build(small()).await;
    house.night().await;
    let target = house.path("a.parquet").to_str().unwrap().to_owned();
    let sheet = house.path("a.xlsx").to_str().unwrap().to_owned();
    let endless = "select count(*) from range(1000000000000) as t(i) where i % 7 = 3";
    for (sql, more, said) in [
        (endless, &["--timeout", "300ms"][..], "longer than 300ms, the limit by --timeout"),
        ("from followers", &["--max-rows", "599"], "more than 599 rows, the limit by --max-rows"),
        ("from followers", &["--max-rows", "599", "-o", &target], "more than 599 rows"),
        ("from followers", &["--max-rows", "599", "-o", &sheet], "more than 599 rows"),
        ("select len(list(i)) from range(50000000) as t(i)", &["--memory", "32MB"], "32MB of memory"),
    ] {
        let format: &[&str] = if more.contains(&"-o") { &[] } else { &["--format", "csv"] };
        let refused = house.lianbo(&[&["sql", sql], format, more].concat()).await.ends(1);
        assert!(refused.stderr.contains(said), "{more:?}: {refused:?}");
    }
    let beside = house.files().into_keys().filter(|path| path.parent() == Some(house.root())).count();
    assert_eq!(beside, 0, "no file was left");
    house.lianbo(&["sql", "from followers", "--max-rows", "600", "-o", &target]).await.ends(0);
    house.lianbo(&["sql", "from followers", "--max-rows", "none", "--timeout", "none", "-o", &target]).await.ends(0);
    for (flag, value) in [("--max-rows", "0"), ("--timeout", "0s"), ("--memory", "1MB"), ("--at", "yesterday")] {
        house.lianbo(&["sql", "select 1", flag, value]).await.ends(2);
    }
    let refused = house.lianbo(&["sql", "select 1", "--memory", "100TB"]).await.ends(2);
    assert!(refused.stderr.contains("of memory here: write 16MB to that"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_the_same_bytes_each_time_and_no_text_in_them_is_a_formula() {
    let house = House::build(small()).await;
    house.night().await;
    house.write("pipelines/notes/notes.sql", "select openid, '=cmd|''x''!A1' as note, -1.50 as price, timestamp '2026-11-24 10:00:00' as at from mall_users order by openid\n");
    let publish = |format: &str, raw: &str| {
        format!(
            "[stages.notes]\nkind = \"sql\"\n[stages.out]\nkind = \"publish\"\ntables = [\"notes\"]\nformat = \"{format}\"\n{raw}\n"
        )
    };
    for ending in ["csv", "xlsx", "parquet"] {
        let [one, other] = ["one", "other"].map(|name| house.path(&format!("{name}.{ending}")));
        house.write("pipelines/notes.toml", &publish(ending, ""));
        house.run("notes", &[]).await.ends(0);
        for target in [&one, &other] {
            house.lianbo(&["sql", "from notes", "-o", target.to_str().unwrap()]).await.ends(0);
        }
        let bytes = std::fs::read(&one).unwrap();
        assert!(bytes == std::fs::read(&other).unwrap(), "{ending} differs from itself");
        let published = std::fs::read(house.path(&format!("data/published/notes.{ending}"))).unwrap();
        assert!(bytes == published, "what is published as {ending} is not what is asked for");
    }
    let line = |text: &str| text.lines().nth(1).unwrap().split_once(',').unwrap().1.to_owned();
    assert_eq!(line(&house.read("one.csv")), "'=cmd|'x'!A1,-1.50,2026-11-24 10:00:00");
    let raw = ask(&house, "from notes", &["--raw"]).await.ends(0);
    assert_eq!(line(&raw.stdout), "=cmd|'x'!A1,-1.50,2026-11-24 10:00:00");
    house.write("pipelines/notes.toml", &publish("csv", "raw = true"));
    house.run("notes", &[]).await.ends(0);
    assert_eq!(house.read("data/published/notes.csv"), raw.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_reads_the_tables_and_does_nothing_else() {
    let house = House::build(small()).await;
    house.night().await;
    let secret = house.path("config/lianbo.toml").to_str().unwrap().to_owned();
    let leak = house.path("leak").to_str().unwrap().to_owned();
    let part = house.files().into_keys().find(|path| path.to_string_lossy().contains("tables/profiles")).unwrap();
    let before = house.files().into_keys().collect::<Vec<_>>();
    for sql in [
        format!("select * from read_text('{secret}')"),
        format!("select * from '{secret}'"),
        format!("select * from read_parquet('{}')", part.display()),
        format!("select * from glob('{}/*')", house.root().display()),
        "select * from read_csv('http://127.0.0.1:1/a.csv')".to_owned(),
        format!("copy (select 1) to '{leak}'"),
        format!("attach '{leak}' as leak"),
        format!("export database '{leak}'"),
        "install httpfs".to_owned(),
        "load httpfs".to_owned(),
        "pragma database_list".to_owned(),
        "set threads = 4".to_owned(),
        "create table a as select 1".to_owned(),
        "delete from followers".to_owned(),
        "select 1; select 2".to_owned(),
        format!("select * from enable_logging(storage = 'file', storage_path = '{leak}')"),
        format!("select * from query('select * from read_text(''{secret}'')')"),
        "select * from duckdb_secrets()".to_owned(),
        "call enable_profiling()".to_owned(),
    ] {
        let refused = ask(&house, &sql, &[]).await.ends(2);
        assert_eq!(refused.stdout, "", "{sql}");
    }
    assert_eq!(before, house.files().into_keys().collect::<Vec<_>>(), "a question made something");
}
