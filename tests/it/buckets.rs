//! Users out of a bucket: an S3 server that looks at signatures and rights, out of Python's package registry.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write as _;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::house::{EXPORT, House, ended, eventually, signal, small};
use crate::python::python;
use crate::sealed::{Sealed, trusting};

/// Pinned, so that a story is about us.
const PACKAGES: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];
/// Grows with the packages.
const SET: &str = "buckets-1";
const SERVE: &str = include_str!("buckets/serve.py");
const SOON: Duration = Duration::from_secs(60);

/// A server with a bucket `mall-exports`, which our key may read, and one that it may not.
struct Server {
    endpoint: String,
    key_id: String,
    secret: String,
    folder: TempDir,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Server {
    async fn start() -> Option<Self> {
        let python = python(SET, &PACKAGES).await?;
        let mut process = Command::new(python)
            .args(["-u", "-c", SERVE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = answers.next_line().await.unwrap().expect("the server begins");
        let first: Value = serde_json::from_str(&first).unwrap();
        let text = |name: &str| first[name].as_str().unwrap().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let (endpoint, key_id, secret) = (text("endpoint"), text("key_id"), text("secret"));
        Some(Self { endpoint, key_id, secret, folder, orders, answers, _process: process })
    }

    async fn order(&mut self, order: Value) -> Value {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        let answer = self.answers.next_line().await.unwrap().unwrap_or_else(|| panic!("no answer to {order}"));
        serde_json::from_str(&answer).unwrap()
    }

    async fn put(&mut self, key: &str, bytes: &[u8]) {
        let file = self.folder.path().join("object");
        std::fs::write(&file, bytes).unwrap();
        self.order(json!({ "do": "put", "key": key, "file": file })).await;
    }

    /// Objects that were asked for since the last time, with the part of them; lists go without a name.
    async fn asked(&mut self) -> Vec<(String, String)> {
        let mut asked: Vec<(String, String)> =
            serde_json::from_value(self.order(json!({ "do": "asked" })).await).unwrap();
        asked.sort();
        asked
    }

    /// A house whose only stage loads, `keys` its keys, with our key to the server in its `.env`.
    async fn house(&self, keys: &str) -> House {
        let house = House::build(small()).await;
        for other in [EXPORT, "pipelines/nightly.toml", "pipelines/campaign.toml"] {
            std::fs::remove_file(house.path(other)).unwrap();
        }
        house.write("pipelines/load.toml", &stage(keys));
        self.let_in(&house, &self.secret);
        house
    }

    fn let_in(&self, house: &House, secret: &str) {
        let (endpoint, key_id) = (&self.endpoint, &self.key_id);
        house.write(
            ".env",
            &format!("AWS_ENDPOINT_URL={endpoint}\nAWS_ACCESS_KEY_ID={key_id}\nAWS_SECRET_ACCESS_KEY='{secret}'\n"),
        );
    }
}

fn stage(keys: &str) -> String {
    format!("[stages.mall_users]\nkind = \"load_users\"\nminiprogram = \"mall\"\n{keys}\n")
}

fn of(keys: &[&str]) -> Vec<(String, String)> {
    keys.iter().map(|key| ((*key).to_owned(), String::new())).collect()
}

fn packed(text: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

fn put_here(house: &House, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(house.path(name).parent().unwrap()).unwrap();
    std::fs::write(house.path(name), bytes).unwrap();
}

/// Copies of objects, and the list of them.
fn copies(house: &House) -> Vec<PathBuf> {
    let folder = house.path("data/lake/work/objects/load/mall_users");
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

const USERS: &str = "from mall_users order by openid";
const CSV: &str = "source.files = \"s3://mall-exports/exports/dt=*/users-*.csv.gz\"\ncolumns = { updated_at = \"at\" }\nmax_bad = 0.5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_gives_the_table_that_its_files_would_and_what_is_unchanged_is_not_read_again() {
    let Some(mut server) = Server::start().await else { return };
    let house = server.house(&CSV.replace("s3://mall-exports", "data")).await;
    let (first, second) = ("exports/dt=2026-11-23/users-1.csv.gz", "exports/dt=2026-11-24/users-城 市+1.csv.gz");
    let day = packed("openid,unionid,at,city\noA,uA,2026-11-23,上海\noB,uB,2026-11-23,\n,uX,2026-11-23,北京\n");
    let next = packed("openid,unionid,at,city\noB,uB2,2026-11-24,广州\noC,,2026-11-24,\n");
    for (name, bytes) in [(first, &day), (second, &next), ("exports/dt=2026-11-24/other.csv.gz", &next)] {
        put_here(&house, &format!("data/{name}"), bytes);
        server.put(name, bytes).await;
    }
    house.run("load", &[]).await.ends(0);
    let of_files = house.rows(USERS).await;
    assert_eq!(of_files.len(), 3);

    house.write("pipelines/load.toml", &stage(CSV));
    let loaded = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!(loaded["detail"]["quarantined"], 1, "{loaded}");
    assert_eq!(house.rows(USERS).await, of_files);
    let bad = house.rows("select file, line, reason from quarantine").await;
    assert_eq!(bad, [[format!("s3://mall-exports/{first}"), "4".into(), "no openid".into()]]);
    assert_eq!(server.asked().await, of(&["", first, second]));
    let explained = house.lianbo(&["explain", "oC"]).await.ends(0);
    assert!(explained.text().contains(&format!("s3://mall-exports/{second}")), "{explained:?}");

    let again = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!(again["detail"]["unchanged"], true, "{again}");
    assert_eq!(server.asked().await, of(&[""]));

    server.put(second, &packed("openid,unionid,at,city\noD,uD,2026-11-24,\n")).await;
    house.run("load", &[]).await.ends(0);
    assert_eq!(house.rows("select openid from mall_users order by openid").await, [["oA"], ["oB"], ["oD"]]);
    assert_eq!(server.asked().await, of(&["", second]), "the other is here");
    assert_eq!(copies(&house).len(), 3, "two objects and their list");

    for copy in copies(&house) {
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        std::fs::File::options().write(true).open(copy).unwrap().set_modified(long_ago).unwrap();
    }
    house.lianbo(&["vacuum"]).await.ends(0);
    assert_eq!(copies(&house).len(), 3, "vacuum knows what a stage may read again");
    let secret = server.secret.as_bytes();
    for (path, bytes) in house.files().iter().filter(|(path, _)| !path.ends_with(".env")) {
        assert!(!bytes.windows(secret.len()).any(|bytes| bytes == secret), "{}", path.display());
    }
    house.write("pipelines/load.toml", &stage("source.files = \"data/exports/dt=*/*.csv.gz\""));
    house.lianbo(&["vacuum"]).await.ends(0);
    assert_eq!(copies(&house), Vec::<PathBuf>::new(), "nobody reads them any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_read_over_tls_where_its_certificate_is_trusted() {
    let Some(mut server) = Server::start().await else { return };
    let keys = "source.files = \"s3://mall-exports/exports/*.csv\"";
    let behind = server.endpoint.trim_start_matches("http://").parse().unwrap();
    let sealed = Sealed::before(behind, server.folder.path()).await;
    server.endpoint.clone_from(&sealed.base);
    let house = server.house(keys).await;
    server.put("exports/users.csv", b"openid,unionid\noA,uA\n").await;
    let refused = house.run("load", &[]).await.ends(1);
    assert!(refused.text().contains("certificate"), "{refused:?}");
    assert_eq!(server.asked().await, of(&[]));
    trusting(&house, &sealed.authority, &["run", "load", "-y", "--json"]).await.ends(0);
    assert_eq!(house.rows("select openid, unionid from mall_users").await, [["oA", "uA"]]);
    assert_eq!(server.asked().await, of(&["", "exports/users.csv"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_parquet_in_a_bucket_are_columns_as_on_the_disk() {
    let Some(mut server) = Server::start().await else { return };
    let keys = |place: &str| format!("source.files = \"{place}/users/*\"\ncolumns = {{ updated_at = \"day\" }}");
    let house = server.house(&keys("data")).await;
    for (name, people) in [
        ("users/users.parquet/day=2026-11-23/city=%E4%B8%8A%E6%B5%B7/part-0.parquet", "('oA', 'uA'), ('oB', null)"),
        ("users/users.parquet/day=2026-11-24/city=北京/part-0.parquet", "('oB', 'uB'), (null, 'uC')"),
        ("users/users.parquet/_temporary/part-0.parquet", "('oX', 'uX')"),
    ] {
        let file = house.path(&format!("data/{name}"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let sql = format!("select * from (values {people}) as people(openid, unionid)");
        house.lianbo(&["sql", &sql, "-o", file.to_str().unwrap()]).await.ends(0);
        server.put(name, &std::fs::read(&file).unwrap()).await;
    }
    house.edit("pipelines/load.toml", "minip", "max_bad = 0.5\nminip");
    house.run("load", &[]).await.ends(0);
    let of_files = house.rows("select openid, unionid, updated_at, city from mall_users order by openid").await;
    assert_eq!(of_files, [["oA", "uA", "2026-11-22 16:00:00", "上海"], ["oB", "uB", "2026-11-23 16:00:00", "北京"]]);
    house.write("pipelines/load.toml", &stage(&format!("{}\nmax_bad = 0.5", keys("s3://mall-exports"))));
    house.run("load", &[]).await.ends(0);
    assert_eq!(house.rows("select openid, unionid, updated_at, city from mall_users order by openid").await, of_files);
    let bad = house.rows("select file from quarantine").await;
    assert_eq!(bad, [["s3://mall-exports/users/users.parquet/day=2026-11-24/city=北京/part-0.parquet"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_bucket_is_told_with_its_name_and_what_to_do() {
    let Some(mut server) = Server::start().await else { return };
    server.put("exports/a.csv", b"openid,unionid\noA,uA\n").await;
    let good = "source.files = \"s3://mall-exports/exports/*.csv\"";
    let house = server.house(good).await;
    let fails = async |keys: &str, told: &[&str]| {
        house.write("pipelines/load.toml", &stage(keys));
        let failed = house.run("load", &["--fresh"]).await.ends(1);
        for told in told {
            assert!(failed.text().contains(told), "{told}: {failed:?}");
        }
        for secret in [&server.secret, &server.key_id] {
            assert!(!failed.text().contains(secret.as_str()), "{failed:?}");
        }
    };
    fails(
        "source.files = \"s3://nobodys-exports/exports/*.csv\"",
        &["cannot list s3://nobodys-exports/exports/*.csv", "404 NoSuchBucket", "correct the bucket in source.files"],
    )
    .await;
    fails(
        "source.files = \"s3://others-exports/exports/*.csv\"",
        &["cannot list s3://others-exports/exports/*.csv", "403 AccessDenied", "s3:ListBucket"],
    )
    .await;
    fails(
        "source.files = \"s3://mall-exports/export/*.csv\"",
        &["no file matches `s3://mall-exports/export/*.csv`; put the export there, or mend source.files"],
    )
    .await;
    fails(
        &format!("{good}\nsource.endpoint = \"{}/nothing\"", server.endpoint),
        &["cannot list s3://mall-exports/exports/*.csv"],
    )
    .await;
    server.let_in(&house, "hunter2/hunter2");
    fails(good, &["403 SignatureDoesNotMatch", "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"]).await;
    server.let_in(&house, &server.secret);
    house.pass(40 * 3_600);
    fails(&format!("{good}\nmax_age = \"36h\""), &["longer ago than max_age allows"]).await;
    house.write("pipelines/load.toml", &stage(good));
    house.run("load", &["--fresh"]).await.ends(0);
    assert_eq!(house.rows("select openid from mall_users").await, [["oA"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_checked_and_planned_without_asking_anybody() {
    let house = House::build(small()).await;
    house.edit("pipelines/nightly.toml", "data/exports/mall/*.csv", "s3://mall-exports/dt=*/*.csv.gz");
    house.edit("pipelines/nightly.toml", "minip", "source.endpoint = \"http://127.0.0.1:9\"\nminip");
    house.lianbo(&["check"]).await.ends(0);
    let planned = house.lianbo(&["plan", "nightly"]).await.ends(0);
    let note =
        "lists mall-exports at 127.0.0.1:9 and reads what of it is new or changed: s3://mall-exports/dt=*/*.csv.gz";
    assert!(planned.text().contains(note), "{planned:?}");
    for (from, to, told) in [
        ("s3://mall-exports/dt=*/*.csv.gz", "s3://mall-exports/", "the address names no object"),
        ("s3://mall-exports/", "gs://mall/a.csv", "accepted are files of the workspace and s3://bucket/key"),
        ("gs://mall/a.csv", "data/a.csv", "`endpoint` means nothing without files at s3://"),
        ("data/a.csv", "s3://mall/a.cvs", "did you mean `.csv`?"),
    ] {
        house.edit("pipelines/nightly.toml", from, to);
        let refused = house.lianbo(&["check"]).await.ends(2);
        assert!(refused.text().contains(told), "{told}: {refused:?}");
    }
    house.edit("pipelines/nightly.toml", "s3://mall/a.cvs", "s3://mall/a.csv");
    house.write(".env", "AWS_ACCESS_KEY_ID=hunter2\n");
    let refused = house.lianbo(&["check"]).await.ends(2);
    assert!(refused.text().contains("AWS_SECRET_ACCESS_KEY one is not set"), "{refused:?}");
    assert!(!refused.text().contains("hunter2"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_was_killed_goes_on_with_the_objects_that_are_whole() {
    let Some(mut server) = Server::start().await else { return };
    let house = server.house("source.files = \"s3://mall-exports/*.csv\"").await;
    let rows = |letter: char| -> String { (0..20_000).map(|n| format!("o{letter}{n},u{letter}{n}\n")).collect() };
    for letter in ['a', 'b'] {
        server.put(&format!("{letter}.csv"), format!("openid,unionid\n{}", rows(letter)).as_bytes()).await;
    }
    server.order(json!({ "do": "hold", "key": "b.csv" })).await;
    let child = house.begin("load");
    let ending = |path: &Path| path.extension().is_some();
    // One is whole, and of the other something is on the disk.
    eventually(SOON, || copies(&house).iter().filter(|path| !ending(path)).count() == 1).await;
    eventually(SOON, || copies(&house).iter().any(|path| ending(path))).await;
    signal(&child, "-KILL");
    ended(child).await.ends(-9);
    server.order(json!({ "do": "let_go" })).await;
    assert_eq!(server.asked().await, of(&["", "a.csv", "b.csv"]));
    house.run("load", &[]).await.ends(0);
    assert_eq!(server.asked().await, of(&["", "b.csv"]), "the other one was whole");
    assert_eq!(house.numbers("select count(*), count(distinct openid) from mall_users").await, [40_000, 40_000]);
    assert_eq!(copies(&house).len(), 3, "nothing unfinished stays: {:?}", copies(&house));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_breaks_is_taken_up_at_its_byte_and_a_tired_service_is_asked_again() {
    let Some(mut server) = Server::start().await else { return };
    let house = server.house("source.files = \"s3://mall-exports/*.csv\"").await;
    let people: String = (0..50_000).map(|n| format!("o{n},u{n}\n")).collect();
    let text = format!("openid,unionid\n{people}");
    server.put("a.csv", text.as_bytes()).await;
    server.order(json!({ "do": "cut", "key": "a.csv" })).await;
    server.order(json!({ "do": "refuse", "times": 2 })).await;
    house.run("load", &[]).await.ends(0);
    let part = format!("bytes={}-", text.len() / 2);
    let asked = [("", ""), ("", ""), ("", ""), ("a.csv", ""), ("a.csv", &part)];
    assert_eq!(server.asked().await, asked.map(|(key, part)| (key.to_owned(), part.to_owned())));
    assert_eq!(house.numbers("select count(*), count(distinct unionid) from mall_users").await, [50_000, 50_000]);
    server.put("a.csv", b"openid,unionid\noA,uA\n").await;
    server.order(json!({ "do": "refuse", "times": 100 })).await;
    let failed = house.run("load", &[]).await.ends(1);
    assert!(failed.text().contains("503 SlowDown: Please reduce your request rate."), "{failed:?}");
    assert!(failed.text().contains("run again later"), "{failed:?}");
}
