//! What mini programs hand over, as it comes: packed, in other encodings, damaged; and what leaves by `lianbo sql -o`.

use std::io::Write as _;

use crate::house::{EXPORT, House, small};

const LOAD: &str = r#"
[stages.mall_users]
kind = "load_users"
miniprogram = "mall"
source.files = "data/exports/mall/*"
columns = { updated_at = "last_login", city = "城市" }
"#;
const HEADER: &str = "openid,unionid,last_login,城市\n";

/// A house with a pipeline that only loads, and no export yet.
async fn loading(keys: &str) -> House {
    let house = House::build(small()).await;
    house.write("pipelines/load.toml", &format!("{LOAD}{keys}\n"));
    for other in [EXPORT, "pipelines/nightly.toml", "pipelines/campaign.toml"] {
        std::fs::remove_file(house.path(other)).unwrap();
    }
    house
}

impl House {
    fn hand_over(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path("data/exports/mall").join(name), bytes).unwrap();
    }

    async fn users(&self) -> Vec<String> {
        let sql = "select concat_ws('|', openid, unionid, updated_at, city) as u from mall_users order by openid";
        self.rows(sql).await.into_iter().map(|mut row| row.remove(0)).collect()
    }
}

fn utf16(text: &str) -> Vec<u8> {
    [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
}

/// As a spreadsheet program would save it: times as days since 1900.
fn workbook(people: &[[&str; 4]]) -> Vec<u8> {
    use rust_xlsxwriter::{ExcelDateTime, Format, Workbook};
    let mut book = Workbook::new();
    let sheet = book.add_worksheet().set_name("用户").unwrap();
    sheet.write_row(0, 0, HEADER.trim_end().split(',')).unwrap();
    let time = Format::new().set_num_format("yyyy-mm-dd hh:mm");
    for (row, [openid, unionid, at, city]) in (1..).zip(people) {
        for (column, text) in [(0, openid), (1, unionid), (3, city)].into_iter().filter(|(_, text)| !text.is_empty()) {
            sheet.write_string(row, column, *text).unwrap();
        }
        sheet.write_datetime_with_format(row, 2, ExcelDateTime::parse_from_str(at).unwrap(), &time).unwrap();
    }
    book.save_to_buffer().unwrap()
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_people_come_out_of_every_kind_of_file() {
    let house = loading("").await;
    let csv = format!("{HEADER}oA,uA,2026-11-24 10:00:00,上海\noB,,2026-11-23,北京\n");
    let json = r#"{"openid":"oA","unionid":"uA","last_login":1795485600,"城市":"上海"}
{"openid":"oB","unionid":null,"last_login":"2026-11-22T16:00:00Z","城市":"北京"}"#;
    let halves = [format!("{HEADER}oA,uA,2026-11-24 10:00:00,上海\n"), format!("{HEADER}oB,,2026-11-23,北京\n")];
    let people = [["oA", "uA", "2026-11-24 10:00:00", "上海"], ["oB", "", "2026-11-23", "北京"]];
    let files: [(&str, Vec<u8>); 16] = [
        ("plain.csv", csv.clone().into_bytes()),
        ("marked.csv", format!("\u{FEFF}{csv}").into_bytes()),
        ("chinese.csv", encoding_rs::GB18030.encode(&csv).0.into_owned()),
        ("excel.tsv", utf16(&csv.replace(',', "\t"))),
        ("windows.csv", csv.trim_end().replace('\n', "\r\n").into_bytes()),
        ("packed.csv.gz", gzip(csv.as_bytes())),
        ("packed.tsv.zst", zstd::encode_all(csv.replace(',', "\t").as_bytes(), 1).unwrap()),
        ("sniffed.csv", csv.replace(',', ";").into_bytes()),
        ("piped.csv", encoding_rs::GB18030.encode(&csv.replace(',', "|")).0.into_owned()),
        ("unmarked.csv", csv.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        (
            "halves.zip",
            zip(&[("b.csv", halves[1].as_bytes()), ("__MACOSX/._b.csv", b"x"), ("用户/a.csv", halves[0].as_bytes())]),
        ),
        ("book.zip", zip(&[("users.xlsx", &workbook(&people))])),
        ("lines.ndjson", json.as_bytes().to_vec()),
        ("book.xlsx", workbook(&people)),
        ("packed.xlsx.gz", gzip(&workbook(&people))),
        ("old.xls", include_bytes!("exports/users.xls").to_vec()),
    ];
    for (name, bytes) in files {
        house.hand_over(name, &bytes);
        house.run("load", &[]).await.ends(0);
        let users = house.users().await;
        assert_eq!(users, ["oA|uA|2026-11-24 02:00:00|上海", "oB|2026-11-22 16:00:00|北京"], "{name}");
        std::fs::remove_file(house.path("data/exports/mall").join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rows_stand_in_quarantine_and_a_time_that_is_none_keeps_its_person() {
    let house = loading("max_bad = 0.5").await;
    let rows = "\"oA\",\"uA\",\"2026-11-24 10:00:00\",\"上海, \"\"浦东\"\"\"\n\
                oA,uA,2026-11-25,\"two\nlines\"\nshort,x\nlong,a,b,c,d\n,uC,,nobody\n\noD,uD,soon,late\noE,uE,,none";
    house.hand_over("dirty.csv", format!("{HEADER}{rows}").as_bytes());
    let stage = house.run("load", &[]).await.ends(0).stage("mall_users");
    assert_eq!(stage["detail"]["unread_times"]["rows"], 1);
    assert!(stage["detail"]["unread_times"]["first"].as_str().unwrap().ends_with("dirty.csv line 9: soon"), "{stage}");
    assert_eq!(house.users().await, ["oA|uA|2026-11-24 16:00:00|two\nlines", "oD|uD|late", "oE|uE|none"]);
    let bad = house.rows("select line, reason from quarantine order by line").await;
    let expected =
        [["5", "2 fields where the header has 4"], ["6", "5 fields where the header has 4"], ["7", "no openid"]];
    assert_eq!(bad, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_without_end_is_a_bad_value_with_its_line_and_never_another_time() {
    let house = loading("max_bad = 0.5\ntypes = { expires = \"date\", seen = \"timestamp\" }").await;
    let rows = "openid,unionid,last_login,城市,expires,seen\noA,uA,2026-11-24,a,2026-12-31,2026-11-24 10:00:00\n\
                oB,uB,2026-11-24,b,infinity,2026-11-24 10:00:00\noC,uC,2026-11-24,c,2026-12-31,-infinity\n\
                oD,uD,2026-11-24,d,2026-12-31,\noE,uE,infinity,e,,\n";
    house.hand_over("times.csv", rows.as_bytes());
    let stage = house.run("load", &[]).await.ends(0).stage("mall_users");
    let bad = house.rows("select file, line, reason from quarantine order by line").await;
    let told =
        |line: &str, reason: &str| ["data/exports/mall/times.csv".to_owned(), line.to_owned(), reason.to_owned()];
    let expected = [told("3", "expires is not a date: infinity"), told("4", "seen is not a timestamp: -infinity")];
    assert_eq!(bad, expected);
    assert_eq!(stage["detail"]["unread_times"]["rows"], 1, "{stage}");
    let users = house.rows("select openid, expires, seen, updated_at from mall_users order by openid").await;
    assert_eq!(users[0], ["oA", "2026-12-31", "2026-11-24 02:00:00", "2026-11-23 16:00:00"]);
    assert_eq!(users[2], ["oE", "", "", ""]);
    let shown = house.row("select timestamp 'infinity' as a, date '-infinity' as b").await;
    assert_eq!(shown, ["infinity", "-infinity"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_wrong_as_a_whole_leaves_the_table_as_it_was() {
    let house = loading("").await;
    house.hand_over("a.csv", format!("{HEADER}oA,uA,,上海\n").as_bytes());
    house.run("load", &[]).await.ends(0);
    let within = zip(&[("users.csv", b"openid\n"), ("readme.txt", b"x")]);
    let parquet = zip(&[("users.parquet", b"PAR1")]);
    let cases: [(&str, &[u8], &str); 11] = [
        ("a.csv", b"", "no header line"),
        ("a.csv", "open_id,unionid,last_login,城市\nx,y,,z\n".as_bytes(), "did you mean \"open_id\"?"),
        ("a.csv", b"PK\x03\x04", "an Excel workbook"),
        ("a.csv.gz", &gzip(HEADER.repeat(99).as_bytes())[..20], "cut off"),
        ("a.json", HEADER.as_bytes(), "none of its first rows is an object"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.txt", b"x", "no known kind"),
        ("a.zip", &within, "a.zip/readme.txt is of no known kind"),
        ("a.zip", &parquet, "a.zip/users.parquet is Parquet inside of a zip"),
        ("a.zip", &within[..30], "the zip"),
        ("a.xlsx", b"PK\x03\x04", "cannot be opened"),
    ];
    for (name, bytes, message) in cases {
        std::fs::remove_dir_all(house.path("data/exports/mall")).unwrap();
        std::fs::create_dir(house.path("data/exports/mall")).unwrap();
        house.hand_over(name, bytes);
        let failed = house.run("load", &[]).await.ends(1);
        assert!(failed.text().contains(message) && failed.text().contains(name), "{name}: {failed:?}");
        assert_eq!(house.users().await, ["oA|uA|上海"], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_becomes_a_file_of_the_kind_its_name_says_or_none() {
    let house = House::build(small()).await;
    house.night().await;
    let sql = "select '=1+1' as formula, cast(9007199254740993 as bigint) as id, openid from followers order by openid";
    for (name, begins) in
        [("a.csv", &b"formula,id"[..]), ("a.json", b"{\"columns\""), ("a.parquet", b"PAR1"), ("a.xlsx", b"PK")]
    {
        let path = house.path(name).to_str().unwrap().to_owned();
        house.lianbo(&["sql", sql, "-o", &path]).await.ends(0);
        assert!(std::fs::read(&path).unwrap().starts_with(begins), "{name}");
        house.lianbo(&["sql", "select nothing from followers", "-o", &path]).await.ends(2);
        assert!(std::fs::read(&path).unwrap().starts_with(begins), "{name} is what it was");
    }
    let path = house.path("a.txt").to_str().unwrap().to_owned();
    let refused = house.lianbo(&["sql", sql, "-o", &path]).await.ends(2);
    assert!(refused.text().contains(".csv, .json, .parquet or .xlsx"), "{refused:?}");
    let names = house.files().into_keys().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.contains(".tmp")).collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_only_read_the_data_can_look_at_everything() {
    let house = House::build(small()).await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let mode = |mode: &str| {
        let done = std::process::Command::new("chmod").args(["-R", mode]).arg(house.path("data")).status().unwrap();
        assert!(done.success());
    };
    mode("a-w");
    let sent =
        as_a_guest(&house, &["sql", "select count(*) from deliveries where state = 'sent'", "--format", "csv"]).await;
    assert_eq!(sent.ends(0).stdout, format!("count_star()\n{}\n", house.matchable()));
    for looking in [
        &["tables"][..],
        &["status"],
        &["runs"],
        &["coverage"],
        &["check"],
        &["plan", "campaign"],
        &["push", "list"],
        &["push", "show", "campaign"],
        &["push", "failures", "campaign"],
        &["suppress", "list"],
    ] {
        as_a_guest(&house, looking).await.ends(0);
    }
    for writing in [&["run", "nightly"][..], &["freeze"], &["push", "resend", "campaign", "--failed"]] {
        let refused = as_a_guest(&house, writing).await;
        assert!(refused.code != 0 && refused.text().contains("a user who may write"), "{writing:?}: {refused:?}");
    }
    mode("u+w");
}

/// Root may write anywhere, unless it gives that power up.
async fn as_a_guest(house: &House, arguments: &[&str]) -> crate::house::Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let own = house.command(arguments);
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        let mut own = own;
        return crate::house::outcome(own.output().await.unwrap());
    }
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]);
    let own = own.as_std();
    command.arg(own.get_program()).args(own.get_args()).env("LIANBO_MAIN_SECRET", crate::house::SECRET);
    command.stdin(std::process::Stdio::null());
    crate::house::outcome(command.output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_ran_every_table_is_there_and_empty_and_looking_makes_nothing() {
    let house = House::build(small()).await;
    let before: Vec<_> = house.files().into_keys().collect();
    for table in ["runs", "run_stages", "deliveries", "pushes", "api_calls", "audit", "suppressions", "recipients"] {
        assert_eq!(house.rows(&format!("from {table}")).await, Vec::<Vec<String>>::new(), "{table}");
    }
    for table in ["quarantine", "left_out", "follower_changes", "followers", "profiles", "identities", "coverage"] {
        assert_eq!(house.numbers(&format!("select count(*) from {table}")).await, [0], "{table}");
    }
    assert_eq!(before, house.files().into_keys().collect::<Vec<_>>(), "a question made something");
    house.lianbo(&["sql", "from nothing_of_ours"]).await.ends(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_fails_before_its_first_row_prints_nothing() {
    let house = House::build(small()).await;
    house.night().await;
    for format in ["csv", "table", "json"] {
        let sql = "select cast(city as int) as n from mall_users";
        let failed = house.lianbo(&["sql", sql, "--format", format]).await.ends(2);
        assert_eq!(failed.stdout, "", "{format}");
        assert!(failed.stderr.contains("Conversion"), "{failed:?}");
    }
    let empty = house.lianbo(&["sql", "select city from mall_users where false", "--format", "csv"]).await.ends(0);
    assert_eq!(empty.stdout, "city\n", "no rows are an answer, with a header");
}
