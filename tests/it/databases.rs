//! Users out of the databases that mini programs keep them in: real servers, read and never written.

use std::time::Duration;

use crate::house::{EXPORT, House, Outcome, comes_true, ended, signal, small};
use crate::servers::{Kind, PASSWORD, Server, both};

const SOON: Duration = Duration::from_secs(120);
/// What every way of handing over users is told of its columns.
const COLUMNS: &str = "columns = { updated_at = \"last_login\", city = \"城市\" }
types = { id = \"bigint\", points = \"ubigint\", paid = \"decimal(12,2)\", born = \"date\", seen = \"timestamp\", vip = \"boolean\" }
max_bad = 0.5";

/// A house with a pipeline of one stage that loads, `keys` its keys.
async fn loading(keys: &str) -> House {
    let house = House::build(small()).await;
    house.write(".env", &format!("MALL_PASSWORD='{PASSWORD}'\n"));
    for other in [EXPORT, "pipelines/nightly.toml", "pipelines/campaign.toml"] {
        std::fs::remove_file(house.path(other)).unwrap();
    }
    load_from(&house, keys);
    house
}

fn load_from(house: &House, keys: &str) {
    let head = "[stages.mall_users]\nkind = \"load_users\"\nminiprogram = \"mall\"\n";
    house.write("pipelines/load.toml", &format!("{head}{keys}\n"));
}

fn database(server: &Server, query: &str, more: &str) -> String {
    source(&server.url("127.0.0.1", ""), query, more)
}

fn source(url: &str, query: &str, more: &str) -> String {
    format!("source.database = \"{url}\"\nsource.query = '''{query}'''\n{more}\n")
}

/// Neither what was printed nor anything below the workspace holds the password, but for the file it was given in.
#[track_caller]
fn keeps_the_secret(house: &House, outcomes: &[&Outcome]) {
    let holds = |bytes: &[u8]| bytes.windows(7).any(|window| window == b"hunter2");
    for outcome in outcomes {
        assert!(!holds(outcome.text().as_bytes()), "{outcome:?}");
    }
    for (path, bytes) in house.files() {
        assert!(!holds(&bytes) || path.ends_with(".env"), "{} holds the password", path.display());
    }
}

/// id, openid, unionid, 城市, points, paid, born, seen, last_login (both of the wall clock in Shanghai), vip
const PEOPLE: [[&str; 10]; 5] = [
    [
        "1",
        "oA",
        "uA",
        "上海",
        "18446744073709551615",
        "19.90",
        "1990-02-03",
        "2026-11-01 08:00:00",
        "2026-11-24 10:30:00",
        "true",
    ],
    ["2", "oB", "", "昆明", "0", "-0.05", "2000-02-29", "2026-11-02 23:59:59", "2026-11-23 00:00:00", "false"],
    ["9007199254740993", "oC", "uC", "", "", "", "", "", "", ""],
    // Somebody who came twice, the newer last; and somebody without an openid.
    [
        "9007199254740994",
        "oA",
        "uX",
        "北京",
        "7",
        "1234567890.12",
        "1990-02-03",
        "2026-11-03 00:00:00",
        "2026-11-24 10:30:01",
        "false",
    ],
    [
        "9007199254740995",
        "",
        "uD",
        "上海",
        "1",
        "1.00",
        "1990-02-03",
        "2026-11-03 00:00:00",
        "2026-11-24 10:30:01",
        "true",
    ],
];
const HEADER: [&str; 10] = ["id", "openid", "unionid", "城市", "points", "paid", "born", "seen", "last_login", "vip"];

fn insert(values: &[[&str; 10]]) -> String {
    let value = |text: &&str| match *text {
        "" => "null".to_owned(),
        "true" | "false" => (*text).to_owned(),
        text => format!("'{text}'"),
    };
    let row = |row: &[&str; 10]| format!("({})", row.iter().map(value).collect::<Vec<_>>().join(", "));
    format!("insert into users values {}", values.iter().map(row).collect::<Vec<_>>().join(", "))
}

async fn fill_with_people(server: &Server) {
    let (letters, quote) = match server.kind {
        // A column of another time, in the letters of its time.
        Kind::MariaDb => ("varchar(20) character set gbk", '`'),
        Kind::Postgres => ("text", '"'),
    };
    let (points, clock) = match server.kind {
        Kind::MariaDb => ("bigint unsigned", "datetime"),
        Kind::Postgres => ("numeric(20)", "timestamp"),
    };
    server
        .run(&format!(
            "create table users (id bigint primary key, openid varchar(64), unionid varchar(64), {quote}城市{quote} {letters},
                points {points}, paid decimal(12,2), born date, seen {clock}, last_login {clock}, vip boolean)"
        ))
        .await;
    server.run(&insert(&PEOPLE)).await;
}

fn workbook() -> Vec<u8> {
    let mut book = rust_xlsxwriter::Workbook::new();
    let sheet = book.add_worksheet();
    for (row, cells) in std::iter::once(&HEADER).chain(&PEOPLE).enumerate() {
        for (column, cell) in cells.iter().enumerate() {
            sheet.write(u32::try_from(row).unwrap(), u16::try_from(column).unwrap(), *cell).unwrap();
        }
    }
    book.save_to_buffer().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_users_through_files_and_databases_are_the_same_table() {
    let Some(servers) = both().await else { return };
    let house = loading("source.files = \"data/exports/csv/*.csv\"").await;
    let lines: Vec<String> = std::iter::once(&HEADER).chain(&PEOPLE).map(|row| row.join(",")).collect();
    house.write("data/exports/csv/users.csv", &(lines.join("\n") + "\n"));
    std::fs::create_dir_all(house.path("data/exports/xlsx")).unwrap();
    std::fs::write(house.path("data/exports/xlsx/users.xlsx"), workbook()).unwrap();
    std::fs::create_dir_all(house.path("data/exports/parquet")).unwrap();
    let text = |cell: &&str| if cell.is_empty() { "null".to_owned() } else { format!("'{cell}'") };
    let tuple = |row: &[&str; 10]| format!("({})", row.iter().map(text).collect::<Vec<_>>().join(", "));
    let parquet = format!(
        "select cast(id as bigint) as id, openid, unionid, 城市, cast(points as ubigint) as points, cast(paid as decimal(12,2)) as paid,
                cast(born as date) as born, cast(seen as timestamp) as seen, cast(last_login as timestamp) as last_login,
                cast(vip as boolean) as vip from (values {}) as people({})",
        PEOPLE.iter().map(tuple).collect::<Vec<_>>().join(", "),
        HEADER.join(", ")
    );
    let target = house.path("data/exports/parquet/users.parquet");
    house.lianbo(&["sql", &parquet, "-o", target.to_str().unwrap()]).await.ends(0);

    let mut sources: Vec<String> = ["csv/*.csv", "xlsx/*.xlsx", "parquet/*.parquet"]
        .map(|files| format!("source.files = \"data/exports/{files}\"\n"))
        .into();
    let query = "select * from users -- everybody\n;";
    for server in &servers {
        fill_with_people(server).await;
        for way in ["source.key = \"id\"\nsource.page_rows = 2", "source.key = \"id\"", ""] {
            sources.push(database(server, query, way));
        }
    }
    let mut tables = Vec::new();
    for source in &sources {
        load_from(&house, &format!("{source}{COLUMNS}"));
        house.lianbo(&["check"]).await.ends(0);
        let report = house.run("load", &["--fresh"]).await.ends(0);
        keeps_the_secret(&house, &[&report]);
        let mut columns = house.rows("select column_name, column_type from (describe mall_users)").await;
        columns.sort();
        let order = columns.iter().map(|column| format!("\"{}\"", column[0])).collect::<Vec<_>>().join(", ");
        let rows = house.rows(&format!("select {order} from mall_users order by openid")).await;
        let bad =
            house.rows("select regexp_replace(reason, ' .id = \\d+.$', ''), count(*) from quarantine group by 1").await;
        tables.push((columns, rows, bad));
    }
    for (source, table) in sources.iter().zip(&tables) {
        assert_eq!(table, &tables[0], "{source}");
    }
    let [columns, rows] = [&tables[0].0, &tables[0].1];
    assert_eq!(rows.len(), 3);
    let typed = |name: &str| columns.iter().find(|column| column[0] == name).unwrap()[1].clone();
    assert_eq!(
        (typed("id").as_str(), typed("paid").as_str(), typed("points").as_str()),
        ("BIGINT", "DECIMAL(12,2)", "UBIGINT")
    );
    let newest =
        house.row("select id, unionid, city, paid, updated_at, seen from mall_users where openid = 'oA'").await;
    let expected = ["9007199254740994", "uX", "北京", "1234567890.12", "2026-11-24 02:30:01", "2026-11-02 16:00:00"];
    assert_eq!(newest, expected);
}

/// A type, what a row of it holds, DuckDB's type for it, and the value in the table.
type Typed = (&'static str, &'static str, &'static str, &'static str);

const MARIA: &[Typed] = &[
    ("tinyint(1)", "1", "BOOLEAN", "true"),
    ("tinyint", "-5", "TINYINT", "-5"),
    ("int unsigned", "4294967295", "UINTEGER", "4294967295"),
    ("bigint unsigned", "18446744073709551615", "UBIGINT", "18446744073709551615"),
    ("bigint", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("decimal(30,10)", "12345678901234567890.0123456789", "DECIMAL(38,10)", "12345678901234567890.0123456789"),
    ("double", "0.1", "DOUBLE", "0.1"),
    ("date", "'2026-11-24'", "DATE", "2026-11-24"),
    ("date", "'0000-00-00'", "DATE", ""),
    ("datetime(3)", "'2026-11-24 10:30:00.250'", "TIMESTAMP", "2026-11-24 02:30:00.250000"),
    ("timestamp null", "from_unixtime(1795487400)", "TIMESTAMP", "2026-11-24 02:30:00"),
    ("varchar(20)", "'😀微信'", "VARCHAR", "😀微信"),
    ("varchar(20) character set gbk", "'微信'", "VARCHAR", "微信"),
    ("varchar(20) collate utf8mb4_bin", "'aB'", "VARCHAR", "aB"),
    ("enum('gold','silver')", "'gold'", "VARCHAR", "gold"),
    ("json", "'{\"a\": 1}'", "VARCHAR", "{\"a\": 1}"),
    ("varbinary(8)", "x'00ff41'", "BLOB", "\\x00\\xFFA"),
    ("bit(10)", "b'1000000001'", "UBIGINT", "513"),
    ("year", "2026", "SMALLINT", "2026"),
    ("bigint", "null", "BIGINT", ""),
];
const POSTGRES: &[Typed] = &[
    ("boolean", "true", "BOOLEAN", "true"),
    ("smallint", "-5", "SMALLINT", "-5"),
    ("integer", "7", "INTEGER", "7"),
    ("bigint", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("numeric(30,10)", "12345678901234567890.0123456789", "DECIMAL(38,10)", "12345678901234567890.0123456789"),
    ("numeric", "1e40", "VARCHAR", "10000000000000000000000000000000000000000"),
    ("double precision", "0.1", "DOUBLE", "0.1"),
    ("date", "'2026-11-24'", "DATE", "2026-11-24"),
    ("timestamp", "'2026-11-24 10:30:00.25'", "TIMESTAMP", "2026-11-24 02:30:00.250000"),
    ("timestamptz", "'2026-11-24 10:30:00+08'", "TIMESTAMP", "2026-11-24 02:30:00"),
    ("text", "'😀微信'", "VARCHAR", "😀微信"),
    ("uuid", "'6a2f41a3-c54c-fce8-32d2-0324e1c32e22'", "VARCHAR", "6a2f41a3-c54c-fce8-32d2-0324e1c32e22"),
    ("jsonb", "'{\"a\": 1}'", "VARCHAR", "{\"a\": 1}"),
    ("bytea", "'\\x00ff41'", "BLOB", "\\x00\\xFFA"),
    ("text[]", "'{a,b}'", "VARCHAR", "{a,b}"),
    ("bigint", "null", "BIGINT", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_keeps_its_own_types_to_the_digit_and_ids_are_texts() {
    let Some(servers) = both().await else { return };
    for server in &servers {
        let typed = if server.kind == Kind::MariaDb { MARIA } else { POSTGRES };
        // Ids that are kept as bytes, which programs do to tell letters apart.
        let id = if server.kind == Kind::MariaDb { "varbinary(64)" } else { "bytea" };
        let columns: Vec<String> = typed.iter().enumerate().map(|(at, it)| format!("c{at} {}", it.0)).collect();
        let values: Vec<&str> = typed.iter().map(|it| it.1).collect();
        // A date that is none is what old programs write.
        let loosely = if server.kind == Kind::MariaDb { "set sql_mode = '';" } else { "" };
        let (columns, values) = (columns.join(", "), values.join(", "));
        server
            .run(&format!(
                "create table typed (openid {id}, {columns}); {loosely} insert into typed values ('oA', {values})"
            ))
            .await;
        let house = loading(&database(server, "select * from typed", "source.key = \"openid\"")).await;
        house.run("load", &[]).await.ends(0);
        let found = house.rows("select column_type from (describe mall_users) where column_name like 'c%'").await;
        let found: Vec<String> = found.into_iter().map(|mut row| row.remove(0)).collect();
        assert_eq!(found, typed.iter().map(|it| it.2).collect::<Vec<_>>(), "{:?}", server.kind);
        let names: Vec<String> = (0..typed.len()).map(|at| format!("c{at}")).collect();
        let row = house.row(&format!("select openid, {} from mall_users", names.join(", "))).await;
        let expected: Vec<&str> = std::iter::once("oA").chain(typed.iter().map(|it| it.3)).collect();
        assert_eq!(row, expected, "{:?}", server.kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_only_read_over_a_line_that_is_checked_and_within_a_time() {
    let Some(servers) = both().await else { return };
    for server in &servers {
        server.run("create table users (id bigint primary key, openid varchar(64), unionid varchar(64))").await;
        server.run("insert into users values (1, 'oA', 'uA'), (2, 'oB', 'uB'); create table touched (id bigint)").await;
        let (touch, slow) = match server.kind {
            Kind::MariaDb => (
                "create function touch() returns bigint begin insert into touched values (1); return 1; end",
                "select *, sleep(20) from users",
            ),
            Kind::Postgres => (
                "create function touch() returns bigint language sql volatile as 'insert into touched values (1) returning id'",
                "select *, pg_sleep(20) from users",
            ),
        };
        server.run(touch).await;
        let house = loading(&database(server, "select *, touch() as touched from users", "source.key = \"id\"")).await;
        let refused = house.run("load", &[]).await.ends(1);
        assert!(
            refused.text().to_lowercase().contains("read-only") || refused.text().contains("READ ONLY"),
            "{refused:?}"
        );
        let several = "select * from users) as a; insert into touched values (2); select * from (select * from users";
        load_from(&house, &database(server, several, ""));
        let several = house.run("load", &["--fresh"]).await.ends(1);
        assert!(several.text().contains("does not take source.query"), "{several:?}");
        assert_eq!(server.value("select cast(count(*) as char(9)) from touched").await.trim(), "0");

        load_from(&house, &database(server, slow, "source.timeout = \"1s\""));
        let slow = house.run("load", &["--fresh"]).await.ends(1);
        assert!(slow.text().contains("took longer than 1 s"), "{slow:?}");

        let everybody = "select * from users";
        house.write(".env", "MALL_PASSWORD=hunter2_but_wrong\n");
        load_from(&house, &database(server, everybody, ""));
        let wrong = house.run("load", &["--fresh"]).await.ends(1);
        assert!(wrong.text().contains("cannot open") && wrong.text().contains("lianbo"), "{wrong:?}");
        keeps_the_secret(&house, &[&refused, &several, &slow, &wrong]);
        house.write(".env", &format!("MALL_PASSWORD='{PASSWORD}'\n"));

        let (verified, authority) = match server.kind {
            Kind::MariaDb => ("?ssl-mode=VERIFY_IDENTITY", "&ssl-ca=config/authority.pem"),
            Kind::Postgres => ("?sslmode=verify-full", "&sslrootcert=config/authority.pem"),
        };
        std::fs::copy(server.authority(), house.path("config/authority.pem")).unwrap();
        let trusted = format!("{verified}{authority}");
        for (host, settings, is_taken) in
            [("localhost", trusted.as_str(), true), ("127.0.0.1", &trusted, false), ("localhost", verified, false)]
        {
            load_from(&house, &source(&server.url(host, settings), everybody, ""));
            let told = house.run("load", &["--fresh"]).await.ends(i32::from(!is_taken));
            assert!(is_taken || told.text().contains("certificate"), "{host}{settings}: {told:?}");
        }
        assert_eq!(house.rows("select openid, unionid from mall_users order by 1").await, [["oA", "uA"], ["oB", "uB"]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_was_killed_asks_for_no_page_again_that_it_has() {
    let Some(servers) = both().await else { return };
    for server in &servers {
        let (many, slowly) = match server.kind {
            Kind::MariaDb => ("select seq, concat('o', seq), 'before' from seq_1_to_5000", "sleep(0.0002) = 0"),
            Kind::Postgres => (
                "select seq, concat('o', seq), 'before' from generate_series(1, 5000) as seq",
                "pg_sleep(0.0002) is not null",
            ),
        };
        server.run("create table users (id bigint primary key, openid varchar(64), unionid varchar(64))").await;
        server.run(&format!("insert into users {many}")).await;
        let query = format!("select * from users where {slowly}");
        let house = loading(&database(server, &query, "source.key = \"id\"\nsource.page_rows = 250")).await;
        let pages = || {
            let pages = |path: &std::path::PathBuf| {
                path.file_name().unwrap().to_string_lossy().starts_with("page-")
                    && path.extension().unwrap() == "parquet"
            };
            house.files().into_keys().filter(pages).count()
        };
        let child = house.begin("load");
        comes_true(SOON, async || pages() >= 3).await;
        signal(&child, "-KILL");
        ended(child).await;
        let kept = pages();
        assert!((3..20).contains(&kept), "{kept}");
        server.run("update users set unionid = 'after'").await;
        let report = house.run("load", &[]).await.ends(0);
        assert_eq!(report.stage("mall_users")["detail"]["pages"], 20, "{report:?}");
        let found =
            house.rows("select unionid, count(*), max(cast(id as bigint)) from mall_users group by 1 order by 3").await;
        let (kept, all) = ((kept * 250).to_string(), "5000".to_owned());
        let after = (5000 - kept.parse::<u64>().unwrap()).to_string();
        assert_eq!(found, [["before", &kept, &kept], ["after", &after, &all]]);
        assert_eq!(pages(), 0, "what is done is thrown away");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_key_a_column_or_a_row_is_told_with_database_and_value() {
    let Some(servers) = both().await else { return };
    for server in &servers {
        let letters =
            if server.kind == Kind::MariaDb { " character set utf8mb4 collate utf8mb4_general_ci" } else { "" };
        server
            .run(&format!(
                "create table users (id bigint, openid varchar(64){letters}, unionid varchar(64), vip varchar(9), at timestamp null)"
            ))
            .await;
        // Ids that a database may take for one another, and a page of two between them.
        let people = "(1, 'oab', 'u1', '1', null), (2, 'oAB', 'u2', '0', null), (3, 'oaB', 'u3', '1', null),
                      (4, 'o''4\\\\', 'u4', 'x', null), (5, ' ', 'u5', '0', null)";
        let people = if server.kind == Kind::MariaDb { people.to_owned() } else { people.replace("\\\\", "\\") };
        server.run(&format!("insert into users values {people}")).await;
        let everybody = "select * from users";
        let house =
            loading(&database(server, everybody, "source.key = \"openid\"\nsource.page_rows = 1\nmax_bad = 0.5")).await;
        house.run("load", &[]).await.ends(0);
        let found = house.rows("select openid from mall_users order by unionid").await;
        assert_eq!(found, [["oab"], ["oAB"], ["oaB"], ["o'4\\"]]);

        let typed = "source.key = \"id\"\ntypes = { vip = \"boolean\" }";
        load_from(&house, &database(server, everybody, &format!("{typed}\nmax_bad = 0.5")));
        house.run("load", &["--fresh"]).await.ends(0);
        let bad = house.rows("select file, line, reason, raw from quarantine order by line").await;
        let shown = server.url("127.0.0.1", "").replace("lianbo:${MALL_PASSWORD}@", "");
        assert_eq!(
            bad[0][..3],
            [format!("{shown}: {everybody}"), "4".into(), "vip is not a boolean: x (id = 4)".into()]
        );
        assert_eq!(bad[1][..3], [format!("{shown}: {everybody}"), "5".into(), "no openid (id = 5)".into()]);
        assert!(bad[1][3].contains("u5"), "{bad:?}");
        for (query, keys, told) in [
            (everybody, "source.key = \"id\"", "1 of 5 rows are bad (20.0 %, first line 5: no openid (id = 5))"),
            (everybody, "source.key = \"idd\"", "which source.query"),
            (everybody, "source.key = \"at\"", "is of type TIMESTAMP"),
            ("select 1 as id, openid from users", "source.key = \"id\"", "the same source.key \"id\" (1)"),
            ("select nullif(id, 3) as id, openid from users", "source.key = \"id\"", "is NULL in a row"),
            (everybody, "columns = { city = \"城市\" }", "no column \"城市\" for city"),
            (everybody, "max_bad = 0.5\non_new_column = \"fail\"", "the column `id`"),
            ("select * from people", "", "does not take source.query"),
            ("select openid from users where id > 9", "", "no row can be loaded from"),
        ] {
            load_from(&house, &database(server, query, keys));
            let failed = house.run("load", &["--fresh"]).await.ends(1);
            assert!(failed.text().contains(told), "{:?} {query} {keys}: {told}: {failed:?}", server.kind);
        }
        assert_eq!(house.numbers("select count(*) from mall_users").await, [3], "the table stays");
        load_from(
            &house,
            &database(server, everybody, "source.key = \"id\"\nmax_bad = 0.5\non_new_column = \"ignore\""),
        );
        house.run("load", &["--fresh"]).await.ends(0);
        assert_eq!(house.numbers("select count(*) from (describe mall_users)").await, [4]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_it_would_read_and_a_check_asks_nobody() {
    // Nobody listens there.
    let keys =
        source("postgres://lianbo:${MALL_PASSWORD}@db.invalid/mall", "select *\nfrom users", "source.key = \"id\"");
    let house = loading(&keys).await;
    let checked = house.lianbo(&["check"]).await.ends(0);
    let planned = house.lianbo(&["plan", "load"]).await.ends(0);
    let told =
        "reads postgres://db.invalid:5432/mall in pages of 50000 rows along `id`, and only reads: select * from users";
    assert!(planned.text().contains(told), "{planned:?}");
    let failed = house.run("load", &[]).await.ends(1);
    assert!(failed.text().contains("cannot open postgres://db.invalid:5432/mall"), "{failed:?}");
    keeps_the_secret(&house, &[&checked, &planned, &failed]);
}
