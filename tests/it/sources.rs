//! What a stage says of the files it is handed: folders that are columns, columns that come and go, files that are late or
//! the same as before.

use std::time::Duration;

use crate::house::{EXPORT, House, comes_true, ended, signal, small};

/// A house with a pipeline of one stage that loads, `keys` its keys, and no export yet.
async fn loading(keys: &str) -> House {
    let house = House::build(small()).await;
    house.write("pipelines/load.toml", &stage(keys));
    for other in [EXPORT, "pipelines/nightly.toml", "pipelines/campaign.toml"] {
        std::fs::remove_file(house.path(other)).unwrap();
    }
    house
}

fn stage(keys: &str) -> String {
    format!("[stages.mall_users]\nkind = \"load_users\"\nminiprogram = \"mall\"\n{keys}\n")
}

const SOON: Duration = Duration::from_secs(60);
const CSV: &str = "source.files = \"data/exports/mall/*.csv\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_parquet_files_are_columns_of_the_people_in_them() {
    let house = loading(
        "source.files = \"data/exports/mall/*\"\ncolumns = { updated_at = \"day\", city = \"城市\" }\ntypes = { level = \"integer\" }",
    )
    .await;
    for (folder, people) in [
        ("day=2026-11-23/城市=%E4%B8%8A%E6%B5%B7/level=1", "('oA', 'uA'), ('oB', null)"),
        ("day=2026-11-24/城市=北京/level=2", "('oB', 'uB')"),
        ("day=2026-11-24/城市=__HIVE_DEFAULT_PARTITION__/level=3", "('oC', 'uC')"),
        ("_temporary/day=2026-11-25/城市=x/level=4", "('oD', 'uD')"),
    ] {
        let folder = house.path("data/exports/mall/users.parquet").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let target = folder.join("part-0.parquet");
        let sql = format!("select * from (values {people}) as people(openid, unionid)");
        house.lianbo(&["sql", &sql, "-o", target.to_str().unwrap()]).await.ends(0);
    }
    house.lianbo(&["check"]).await.ends(0);
    house.run("load", &[]).await.ends(0);
    let users =
        house.rows("select openid, unionid, updated_at, city, level + 10 from mall_users order by openid").await;
    let expected = [
        ["oA", "uA", "2026-11-22 16:00:00", "上海", "11"],
        ["oB", "uB", "2026-11-23 16:00:00", "北京", "12"],
        ["oC", "uC", "2026-11-23 16:00:00", "", "13"],
    ];
    assert_eq!(users, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instants_of_parquet_are_one_moment_whether_their_type_is_declared_or_not() {
    let house = loading(
        "source.files = \"data/exports/mall/*.parquet\"\ntypes = { paid_at = \"timestamp\", billed_at = \"timestamp\" }",
    )
    .await;
    std::fs::create_dir_all(house.path("data/exports/mall")).unwrap();
    for (file, openid) in [("a", "oA"), ("b", "oB")] {
        let target = house.path(&format!("data/exports/mall/{file}.parquet"));
        let instant = "timestamptz '2026-11-24 10:30:00+08'";
        let sql = format!(
            "select '{openid}' as openid, 'u' as unionid, {instant} as updated_at, {instant} as seen_at, {instant} as paid_at,
                    timestamp '2026-11-24 10:30:00' as billed_at"
        );
        house.lianbo(&["sql", &sql, "-o", target.to_str().unwrap()]).await.ends(0);
    }
    house.run("load", &[]).await.ends(0);
    let columns = "openid, updated_at, seen_at, paid_at, billed_at";
    let users = house.rows(&format!("select {columns} from mall_users order by openid")).await;
    let moment = "2026-11-24 02:30:00";
    assert_eq!(users, [["oA", moment, moment, moment, moment], ["oB", moment, moment, moment, moment]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exports_columns_may_have_any_name() {
    let house = loading("source.files = \"data/exports/mall/*\"\ntypes = { older = \"integer\" }\nmax_bad = 0.5").await;
    let names =
        ["_row", "_line", "_file", "_at", "_hash", "_newest", "_key", "file", "row", "id", "doubled", "staged_rows"];
    let columns = names.join(",");
    let values = |what: &str| names.map(|name| format!("{name}-{what}")).join(",");
    house.write(
        "data/exports/mall/a.csv",
        &format!(
            "openid,unionid,updated_at,older,{columns}\noA,uA,2026-11-23,1,{}\noA,uA,2026-11-24,2,{}\noB,uB,2026-11-23,3,{}\noC,uC,,x,{}\n",
            values("old"),
            values("new"),
            values("other"),
            values("bad")
        ),
    );
    let target = house.path("data/exports/mall/b.parquet");
    let sql = format!(
        "select 'oD' as openid, 'uD' as unionid, 4 as older, {}",
        names.map(|name| format!("'{name}-parquet' as {name}")).join(", ")
    );
    house.lianbo(&["sql", &sql, "-o", target.to_str().unwrap()]).await.ends(0);
    house.run("load", &[]).await.ends(0);
    let users = house.rows(&format!("select openid, older, {columns} from mall_users order by openid")).await;
    let expected = [("oA", "2", "new"), ("oB", "3", "other"), ("oD", "4", "parquet")].map(|(openid, older, what)| {
        let own = names.map(|name| format!("{name}-{what}"));
        [openid, older].map(str::to_owned).into_iter().chain(own).collect::<Vec<_>>()
    });
    assert_eq!(users, expected);
    let refused = house.rows("select line, reason from quarantine").await;
    assert_eq!(refused, [["5", "older is not a integer: x"]]);
    let sql = "select 'oE' as openid, 'uE' as unionid, 7 as File_Row_Number";
    house.lianbo(&["sql", sql, "-o", target.to_str().unwrap()]).await.ends(0);
    let failed = house.run("load", &["--fresh"]).await.ends(1);
    assert!(failed.text().contains("b.parquet: a column is called `File_Row_Number`"), "{failed:?}");
    std::fs::remove_file(&target).unwrap();
    house.write("data/exports/mall/a.csv", "openid,unionid,MiniProgram,older\noA,uA,theirs,1\n");
    let failed = house.run("load", &["--fresh"]).await.ends(1);
    assert!(failed.text().contains("a.csv: the column `MiniProgram` has the name of the column"), "{failed:?}");
    house.edit("pipelines/load.toml", "max_bad = 0.5", "max_bad = 0.5\ncolumns = { theirs = \"MiniProgram\" }");
    house.run("load", &["--fresh"]).await.ends(0);
    assert_eq!(house.rows("select miniprogram, theirs from mall_users").await, [["mall", "theirs"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_of_its_type_only_with_all_its_digits() {
    let house = loading(
        "source.files = \"data/exports/mall/*\"\nmax_bad = 0.9\n\
         types = { n = \"int\", paid = \"decimal(12,2)\", born = \"date\", huge = \"hugeint\" }",
    )
    .await;
    let rows = [
        ("good", "31,19.90,2026-11-24,12345678901234567890", None),
        ("same", "31.0,1.9000,2026-11-24 00:00:00,1", None),
        ("power", "1e3,1e2,2026-11-24,1", None),
        ("half", "1.7,1,2026-11-24,1", Some("n is not a int: 1.7")),
        ("hex", "0x10,1,2026-11-24,1", Some("n is not a int: 0x10")),
        ("thousands", "1_000,1,2026-11-24,1", Some("n is not a int: 1_000")),
        ("cents", "1,12.345,2026-11-24,1", Some("paid is not a decimal(12,2): 12.345")),
        ("noon", "1,1,2026-11-24 12:00:00,1", Some("born is not a date: 2026-11-24 12:00:00")),
        ("wide", "1,1,2026-11-24,1.5", Some("huge is not a decimal(38,0): 1.5")),
    ];
    let text: String = rows.iter().map(|(openid, values, _)| format!("{openid},,{values}\n")).collect();
    house.write("data/exports/mall/a.csv", &format!("openid,unionid,n,paid,born,huge\n{text}"));
    house.run("load", &[]).await.ends(0);
    let users = house.rows("select openid, n, paid, born, huge from mall_users order by openid").await;
    let expected = [
        ["good", "31", "19.90", "2026-11-24", "12345678901234567890"],
        ["power", "1000", "100.00", "2026-11-24", "1"],
        ["same", "31", "1.90", "2026-11-24", "1"],
    ];
    assert_eq!(users, expected);
    let refused = house.rows("select reason from quarantine order by line").await;
    let expected: Vec<Vec<String>> =
        rows.iter().filter_map(|row| row.2).map(|reason| vec![reason.to_owned()]).collect();
    assert_eq!(refused, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_for_nothing_are_nothing_and_long_numbers_keep_their_digits_in_every_kind_of_file() {
    let house = loading("source.files = \"data/exports/mall/*\"").await;
    std::fs::create_dir_all(house.path("data/exports/mall")).unwrap();
    let target = house.path("data/exports/mall/a.parquet");
    let sql = "select * from (values ('o1', 'NULL'), ('o2', '\\N'), ('o3', 'null'), (' o4\u{3000}', '\u{FEFF}u4 '), ('NULL', 'u5'))
               as people(openid, unionid)";
    house.lianbo(&["sql", sql, "-o", target.to_str().unwrap()]).await.ends(0);
    house.write(
        "data/exports/mall/b.ndjson",
        "{\"openid\":\"p1\",\"unionid\":\"NULL\",\"n\":9007199254740993}\n{\"openid\":\"p2\",\"unionid\":\"u\",\"n\":1.5}\n",
    );
    house.edit("pipelines/load.toml", "miniprogram = \"mall\"", "miniprogram = \"mall\"\nmax_bad = 0.5");
    house.run("load", &[]).await.ends(0);
    let users = house.rows("select openid, unionid, n from mall_users order by openid").await;
    let expected = [
        ["o1", "", ""],
        ["o2", "", ""],
        ["o3", "", ""],
        ["o4", "u4", ""],
        ["p1", "", "9007199254740993"],
        ["p2", "u", "1.5"],
    ];
    assert_eq!(users, expected);
    assert_eq!(house.rows("select line, reason from quarantine").await, [["5", "no openid"]]);
    // A sum is wider than Parquet's whole numbers.
    let target = house.path("sum.parquet");
    let sum = "select sum(9007199254740993::bigint) as n";
    house.lianbo(&["sql", sum, "-o", target.to_str().unwrap()]).await.ends(0);
    let session = duckdb::Connection::open_in_memory().unwrap();
    let read = format!("select typeof(n) || ' ' || n from '{}'", target.display());
    assert_eq!(session.query_row(&read, [], |row| row.get::<_, String>(0)).unwrap(), "BIGINT 9007199254740993");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_read_is_read_again_and_refused_when_it_never_rests() {
    let house = loading(CSV).await;
    let file = house.path("data/exports/mall/a.csv");
    house.write("data/exports/mall/a.csv", "openid,unionid\noA,uA\n");
    house.run("load", &[]).await.ends(0);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rows = std::fs::File::options().append(true).open(&file).unwrap();
            for row in 0.. {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                std::io::Write::write_all(&mut rows, format!("o{row},u{row}\n").as_bytes()).unwrap();
                std::thread::yield_now();
            }
        });
        let refused = tokio::runtime::Handle::current();
        let refused = tokio::task::block_in_place(|| refused.block_on(house.run("load", &["--fresh"])));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        refused
    });
    let refused = refused.ends(1);
    assert!(refused.text().contains("a.csv changed while it was read, 3 times in a row"), "{refused:?}");
    assert_eq!(house.rows("select openid from mall_users").await, [["oA"]]);
    house.run("load", &["--fresh"]).await.ends(0);
    let lines = std::fs::read_to_string(&file).unwrap().lines().count() - 1;
    assert_eq!(house.numbers("select count(*) from mall_users").await, [u64::try_from(lines).unwrap()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_come_go_or_change_are_told_with_file_and_value_and_the_table_stays() {
    let keys = format!("{CSV}columns = {{ city = \"城市\" }}\ntypes = {{ age = \"integer\" }}\n");
    let house = loading(&format!("{keys}on_new_column = \"fail\"")).await;
    let file = "data/exports/mall/a.csv";
    house.write(file, "openid,unionid,城市,age\noA,uA,上海,31\n");
    house.run("load", &[]).await.ends(0);
    let new = "openid,unionid,城市,age,手机 号\noA,uA,上海,31,13800138000\n";
    for (content, told) in [
        (new, "a.csv: the column `手机 号` (such as `13800138000`) is new"),
        (new, "`types = { \"手机 号\" = \"varchar\" }`"),
        (
            "openid,unionid,城市\noA,uA,上海\n",
            "a.csv: the column `age` has vanished (in the table before it was such as `31`)",
        ),
        ("openid,unionid,城市,Age\noA,uA,上海,31\n", "did you mean `Age`?"),
        ("openid,unionid,age\noA,uA,31\n", "no column \"城市\" for city"),
        ("openid,unionid,age\noA,uA,31\n", "it was such as `上海`"),
        (
            "openid,unionid,城市,age\noA,uA,上海,old\n",
            "a.csv: 1 rows have a value that is not of its declared type, first on line 2: age is not a",
        ),
        ("openid,unionid,城市,age\noA,uA,上海,old\n", ": `old`;"),
    ] {
        house.write(file, content);
        let failed = house.run("load", &["--fresh"]).await.ends(1);
        assert!(failed.text().contains(told), "{told}: {failed:?}");
        assert_eq!(house.rows("select city, age from mall_users").await, [["上海", "31"]]);
    }
    house.write(file, new);
    house.write("pipelines/load.toml", &stage(&format!("{keys}on_new_column = \"ignore\"")));
    house.run("load", &["--fresh"]).await.ends(0);
    let columns = || house.rows("select column_name from (describe mall_users)");
    let known = ["miniprogram", "openid", "unionid", "updated_at", "city", "age"].map(|name| vec![name.to_owned()]);
    assert_eq!(columns().await, known);
    house.write("pipelines/load.toml", &stage(&keys));
    house.run("load", &[]).await.ends(0);
    assert_eq!(columns().await.len(), known.len() + 1, "it is kept unless the stage says otherwise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_share_of_bad_rows_is_each_files_own() {
    let house = loading(&format!("{CSV}max_bad = 0.1")).await;
    let many: String = (0..100).map(|person| format!("o{person},u{person}\n")).collect();
    house.write("data/exports/mall/large.csv", &format!("openid,unionid\n{many}"));
    house.write("data/exports/mall/small.csv", "openid,unionid\noA,uA\n,uB\n");
    let failed = house.run("load", &[]).await.ends(1);
    assert!(failed.text().contains("small.csv: 1 of 2 rows are bad (50.0 %, first line 3: no openid)"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_file_is_waited_for_until_an_hour_and_the_wait_can_be_stopped() {
    let house = loading(CSV).await;
    let waiting = |hours: i64| {
        let at = house.now() + chrono::TimeDelta::hours(hours);
        let hour = at.with_timezone(&chrono_tz::Asia::Shanghai).format("%H:%M");
        house.write("pipelines/load.toml", &stage(&format!("{CSV}wait_until = \"{hour}\"")));
    };
    waiting(13);
    let failed = house.run("load", &[]).await.ends(1);
    assert!(failed.text().contains("no file matches") && failed.text().contains("has passed"), "{failed:?}");
    waiting(2);
    let running = async || house.numbers("select count(*) from runs where status = 'running'").await == [1];
    let child = house.begin("load");
    comes_true(SOON, running).await;
    signal(&child, "-TERM");
    ended(child).await.ends(75);
    let child = house.begin("load");
    comes_true(SOON, running).await;
    house.write("data/exports/mall/a.csv", "openid,unionid\noA,uA\n");
    ended(child).await.ends(0);
    assert_eq!(house.rows("select openid, unionid from mall_users").await, [["oA", "uA"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_the_same_as_before_are_not_read_again() {
    let house = loading(CSV).await;
    let file = "data/exports/mall/a.csv";
    house.write(file, "openid,unionid\noA,uA\n,uB\noC,uC\n");
    house.edit("pipelines/load.toml", "minip", "max_bad = 0.5\nminip");
    house.run("load", &[]).await.ends(0);
    let parts = || {
        let in_tables = |path: &std::path::PathBuf| path.starts_with(house.path("data/lake/tables"));
        house.files().into_keys().filter(in_tables).collect::<std::collections::BTreeSet<_>>()
    };
    let (before, users) = (parts(), house.rows("from mall_users order by openid").await);
    house.write(file, &house.read(file));
    let again = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!((&again["detail"]["unchanged"], &again["rows_out"]), (&true.into(), &2.into()), "{again}");
    assert_eq!(parts(), before, "no part was written");
    assert_eq!(house.rows("from mall_users order by openid").await, users);
    assert_eq!(house.rows("select line, reason from quarantine").await, [["3", "no openid"]]);
    house.lianbo(&["vacuum", "--keep", "1"]).await.ends(0);
    assert_eq!(house.rows("from mall_users order by openid").await, users, "parts of two snapshots stay");
    house.write(file, "openid,unionid\noA,uX\n");
    let changed = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!(changed["detail"]["unchanged"], serde_json::Value::Null, "{changed}");
    assert_eq!(house.rows("select unionid from mall_users").await, [["uX"]]);
    house.edit("pipelines/load.toml", "minip", "keep = []\nminip");
    let told_otherwise = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!(told_otherwise["detail"]["unchanged"], serde_json::Value::Null, "{told_otherwise}");
}
