//! Workspaces whose files are right and whose SQL, tables or messages are not.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::config::{CONFIG_FILE, Environment, load};

const CONFIG: &str = r#"[accounts.main]
app_id = "wx0000000000000000"
app_secret = "s"
[miniprograms.mall]
app_id = "wx1111111111111111"
[engine]
memory_limit = "1GB"
"#;

/// Followers, profiles, users of the export, identities and coverage.
const NIGHTLY: &str = r#"[stages.followers]
kind = "extract_followers"
[stages.profiles]
kind = "enrich_unionids"
[stages.mall_users]
kind = "load_users"
source.files = "data/exports/*"
columns = { openid = "openid", city = "城市" }
types = { amount = "decimal(12,2)" }
[stages.identities]
kind = "join_identities"
[stages.coverage]
kind = "measure_coverage"
segments = ["city"]
"#;

const EXPORT: (&str, &str) = ("data/exports/users.csv", "openid,unionid,城市,amount,visits\no1,u1,上海,9.90,3\n");

struct Workspace(TempDir);

impl Workspace {
    fn new(files: &[(&str, &str)]) -> Self {
        let workspace = Self(tempfile::tempdir().unwrap());
        for (path, text) in [(CONFIG_FILE, CONFIG), ("pipelines/nightly.toml", NIGHTLY)].iter().chain(files) {
            let path = workspace.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        workspace
    }

    fn check(&self, known: &KnownTables) -> Vec<Value> {
        let loaded = load(self.0.path(), &Environment::default());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems);
        let (settings, mut problems) = (loaded.settings.unwrap(), loaded.problems);
        check(&settings, &engine(&settings, self.0.path()), known, &mut problems).unwrap();
        problems.to_json().as_array().unwrap().clone()
    }
}

fn engine(settings: &Settings, folder: &Path) -> Engine {
    Engine::new("1GB", 1, folder.join("spill"), settings.timezone)
}

fn problems_of(files: &[(&str, &str)]) -> Vec<Value> {
    Workspace::new(files).check(&KnownTables::default())
}

/// What is wrong with one SELECT of a pipeline with a parameter, over the export.
fn problems_of_select(sql: &str) -> Vec<Value> {
    let pipeline = "[params]\ncity = \"上海\"\nleast = 3\n[stages.report]\nkind = \"sql\"\n";
    problems_of(&[("pipelines/p.toml", pipeline), ("pipelines/p/report.sql", sql), EXPORT])
}

fn assert_told(problem: &Value, place: (&str, u64, u64), message: &str, hint: &str) {
    let at =
        (problem["file"].as_str().unwrap(), problem["line"].as_u64().unwrap(), problem["column"].as_u64().unwrap());
    assert_eq!(at, place, "{problem:#}");
    assert!(problem["message"].as_str().unwrap().contains(message), "{problem:#}");
    assert!(problem["hint"].as_str().unwrap_or_default().contains(hint), "{problem:#}");
}

fn assert_only(problems: &[Value], place: (&str, u64, u64), message: &str, hint: &str) {
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert_told(&problems[0], place, message, hint);
}

/// A push to a set whose SELECT gives openid, product and unionid.
fn push(more: &str) -> Vec<Value> {
    let pipeline = format!(
        "[params]\nprice = 9\n[stages.audience]\nkind = \"materialize_recipients\"\n[stages.push]\nkind = \"push_template\"\n\
         recipients = \"audience\"\ntemplate_id = \"t\"\n{more}\n"
    );
    let audience = "select oa_openid as openid, unionid, 'tea' as product from identities";
    problems_of(&[("pipelines/c.toml", &pipeline), ("pipelines/c/audience.sql", audience), EXPORT])
}

const REPORT: &str = "pipelines/p/report.sql";

#[test]
fn sound_sql_of_every_kind_passes() {
    for sql in [
        "select city, count(*) as users, sum(amount) as amount from mall_users group by city",
        "select $today as date, u.openid from mall_users as u where u.city = $city and $least > 2 and updated_at is null",
        "with w as (select openid as o from followers where active) select o from w order by o;",
        "select local_date(first_seen_at) as day, count(*) as n from followers group by all -- now()",
        "select f.openid, d.state from followers f left join deliveries d using (account, openid)",
        "select reason from quarantine union all select class from error_codes",
        "select * from report",
    ] {
        let found = problems_of_select(sql);
        assert!(found.is_empty(), "{sql}\n{found:#?}");
    }
}

#[test]
fn an_unknown_table_is_told_with_its_place_and_the_nearest() {
    let found = problems_of_select("select openid\n  from mall_user\n  join nobody using (openid)");
    assert_eq!(found.len(), 2);
    assert_told(&found[0], (REPORT, 2, 8), "no stage makes a table `mall_user`", "did you mean `mall_users`?");
    assert_told(&found[1], (REPORT, 3, 8), "no stage makes a table `nobody`", "tables here: ");
}

#[test]
fn an_unknown_column_is_told_with_its_place_and_the_nearest() {
    let nearest = "did you mean `city`?";
    let found = problems_of_select("select\n  openid, cty\nfrom mall_users");
    assert_only(&found, (REPORT, 2, 11), "there is no column `cty` here", nearest);
    let found = problems_of_select("select '上海' as a, u.cityy from mall_users as u");
    assert_only(&found, (REPORT, 1, 21), "`u` has no column `cityy`", nearest);
    let found = problems_of_select("with w as (select city as town from mall_users)\nselect twn from w");
    assert_only(&found, (REPORT, 2, 8), "there is no column `twn` here", "did you mean `town`?");
    let found = problems_of_select("select x.city from mall_users as u");
    assert_only(&found, (REPORT, 1, 8), "there is no table `x` in this FROM", "");
}

#[test]
fn syntax_and_types_are_told_with_their_place() {
    assert_only(&problems_of_select("select openid\nfrom where"), (REPORT, 2, 6), "syntax error", "");
    assert_only(&problems_of_select("select openid from mall_users where\n"), (REPORT, 1, 36), "end of input", "");
    assert_only(&problems_of_select("delete from mall_users"), (REPORT, 1, 1), "this is not a SELECT", "exactly one");
    assert_only(&problems_of_select("select 1 as a; select 2 as b"), (REPORT, 1, 1), "found 2 statements", "");
    let found = problems_of_select("select openid,\n  sum(city) as s from mall_users group by 1");
    assert_only(&found, (REPORT, 2, 3), "no function matches", "");
    assert!(!found[0]["message"].as_str().unwrap().contains("Candidate"), "{found:#?}");
    let found = problems_of_select("select localdate(first_seen_at) as d from followers");
    assert_only(&found, (REPORT, 1, 8), "there is no function `localdate`", "did you mean `local_date`?");
}

#[test]
fn sql_that_reaches_beyond_the_tables_is_told_with_its_place() {
    let found =
        problems_of_select("select openid from mall_users\nunion all select content from read_text('/etc/hostname')");
    assert_only(&found, (REPORT, 2, 42), "this reaches for `/etc/hostname`, and SQL reads tables alone", "load_users");
    let found = problems_of_select("select * from read_csv('http://127.0.0.1:1/a.csv')");
    assert_only(&found, (REPORT, 1, 25), "this reaches for `http://127.0.0.1:1/a.csv`", "");
}

#[test]
fn functions_of_the_clock_are_refused_with_what_to_use() {
    let found = problems_of_select(
        "select openid from mall_users\nwhere updated_at > cast(now() as timestamp) or current_date > $today",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
    let hint = "use $today or $run_at";
    assert_told(&found[0], (REPORT, 2, 25), "`now()` gives another value when the run is repeated", hint);
    assert_told(&found[1], (REPORT, 2, 48), "`current_date` gives another value", hint);
}

#[test]
fn parameters_must_be_declared_and_named() {
    let found = problems_of_select("select openid from mall_users\nwhere city = $citty and '$no' <> city -- $no");
    assert_only(&found, (REPORT, 2, 14), "`$citty` is no parameter of this pipeline", "did you mean `$city`?");
    let found = problems_of_select("select openid from mall_users where city = ?");
    assert_only(&found, (REPORT, 1, 44), "`?` has no name", "$today");
    let found = problems_of_select("select openid from mall_users where city = $1");
    assert_only(&found, (REPORT, 1, 44), "`$1` has no name", "");
}

#[test]
fn results_are_known_to_later_sql_whatever_the_order_of_the_files() {
    let select = "[stages.late]\nkind = \"sql\"\n[stages.early]\nkind = \"sql\"\n";
    let other = "[stages.total]\nkind = \"sql\"\n";
    let sql = [
        ("pipelines/b.toml", select),
        ("pipelines/a.toml", other),
        ("pipelines/b/early.sql", "select city, count(*) as users from mall_users group by city"),
        ("pipelines/b/late.sql", "select city, users + 1 as more from early"),
        ("pipelines/a/total.sql", "select sum(mroe) as all_of_them from late"),
        EXPORT,
    ];
    assert_only(&problems_of(&sql), ("pipelines/a/total.sql", 1, 12), "no column `mroe`", "did you mean `more`?");
}

#[test]
fn what_is_wrong_upstream_is_told_once() {
    let pipeline = "[stages.one]\nkind = \"sql\"\n[stages.two]\nkind = \"sql\"\n";
    let found = problems_of(&[
        ("pipelines/p.toml", pipeline),
        ("pipelines/p/one.sql", "select nothing from followers"),
        ("pipelines/p/two.sql", "select anything from one"),
    ]);
    assert_only(&found, ("pipelines/p/one.sql", 1, 8), "no column `nothing`", "");
}

#[test]
fn an_export_that_is_not_there_leaves_its_columns_open() {
    let pipeline = ("pipelines/p.toml", "[stages.s]\nkind = \"sql\"\n");
    let files = [pipeline, ("pipelines/p/s.sql", "select whatever from mall_users")];
    assert_eq!(problems_of(&files), Vec::<Value>::new());
    let columns = ["miniprogram", "openid", "unionid", "updated_at", "city"];
    let columns = columns.map(|name| (name.to_owned(), "VARCHAR".to_owned())).to_vec();
    let known = KnownTables { snapshots: [("mall_users".to_owned(), columns)].into(), ..KnownTables::default() };
    let found = Workspace::new(&files).check(&known);
    assert_only(&found, ("pipelines/p/s.sql", 1, 8), "no column `whatever`", "columns here: `miniprogram`, ");
    let known = KnownTables { unread: [TableName::new("elsewhere")].into(), ..KnownTables::default() };
    let files = [pipeline, ("pipelines/p/s.sql", "select a from elsewhere")];
    assert_eq!(Workspace::new(&files).check(&known), Vec::<Value>::new());
}

#[test]
fn types_of_a_json_export_are_not_guessed_at() {
    let export = ("data/exports/users.ndjson", "{\"openid\":\"o1\",\"城市\":\"上海\",\"visits\":3}\n");
    let of = |sql: &str| {
        let pipeline = ("pipelines/p.toml", "[stages.s]\nkind = \"sql\"\n");
        problems_of(&[pipeline, ("pipelines/p/s.sql", sql), export])
    };
    assert_eq!(of("select sum(visits) as v from mall_users"), Vec::<Value>::new());
    assert_only(&of("select sum(visit) as v from mall_users"), ("pipelines/p/s.sql", 1, 12), "`visit`", "`visits`");
}

#[test]
fn a_parquet_export_tells_names_and_types() {
    let pipeline = ("pipelines/p.toml", "[stages.s]\nkind = \"sql\"\n");
    let workspace =
        Workspace::new(&[pipeline, ("pipelines/p/s.sql", "select sum(visits) as v, sum(city) as c from mall_users")]);
    let exports = workspace.0.path().join("data/exports");
    std::fs::create_dir_all(&exports).unwrap();
    let session = Engine::new("1GB", 1, workspace.0.path().join("spill"), chrono_tz::UTC).session().unwrap();
    let rows = "select 'o1' as openid, '上海' as \"城市\", 3 as visits";
    session.copy(rows, &Params::new(), &exports.join("users.parquet")).unwrap();
    let found = workspace.check(&KnownTables::default());
    assert_only(&found, ("pipelines/p/s.sql", 1, 26), "sum(VARCHAR)", "");
}

#[test]
fn an_upsert_needs_its_keys_and_keeps_the_columns_before() {
    let pipeline = "[stages.daily]\nkind = \"sql\"\nupsert_by = [\"date\", \"citty\"]\n[stages.view]\nkind = \"sql\"\n";
    let files = [
        ("pipelines/p.toml", pipeline),
        ("pipelines/p/daily.sql", "select $today as date, city from mall_users"),
        ("pipelines/p/view.sql", "select date, city, old from daily"),
        EXPORT,
    ];
    let old = vec![("old".to_owned(), "BIGINT".to_owned())];
    let known = KnownTables { snapshots: [("daily".to_owned(), old)].into(), ..KnownTables::default() };
    let found = Workspace::new(&files).check(&known);
    assert_only(&found, ("pipelines/p.toml", 3, 22), "gives no column `citty` to upsert by", "did you mean `city`?");
}

#[test]
fn a_set_must_give_openids() {
    let pipeline = "[stages.audience]\nkind = \"materialize_recipients\"\n";
    let sql = "select oa_openid, unionid\nfrom identities";
    let found = problems_of(&[("pipelines/c.toml", pipeline), ("pipelines/c/audience.sql", sql)]);
    assert_only(&found, ("pipelines/c/audience.sql", 1, 1), "gives no column `openid`", "oa_openid as openid");
}

#[test]
fn messages_name_only_what_recipients_have() {
    let sound = "data = { thing1 = \"{{ product }} {{ price }}\", time2 = \"{{ now | datetime }}\" }\n\
                 miniprogram = { pagepath = \"p?c={{ pipeline }}&u={{ unionid }}\" }\nurl = \"https://x/{{ run_id }}\"";
    assert_eq!(push(sound), Vec::<Value>::new());
    let found = push("data = { thing1 = \"for {{ prodct }}\" }\nminiprogram = { pagepath = \"p?u={{ openid }}\" }");
    assert_eq!(found.len(), 2, "{found:#?}");
    let file = "pipelines/c.toml";
    assert_told(&found[0], (file, 9, 27), "`prodct` is no column of `audience`", "did you mean `product`?");
    assert_told(&found[1], (file, 10, 36), "`openid` is who receives", "another name");
}

#[test]
fn texts_that_cannot_be_read_hide_nothing_in_the_others() {
    let found =
        push("data = { thing1 = \"{{ product | datetme }}\", thing2 = \"{{ prodct }}\" }\nurl = \"https://x/{{ u\"");
    assert_eq!(found.len(), 3, "{found:#?}");
    let file = "pipelines/c.toml";
    assert_told(&found[0], (file, 5, 9), "this text cannot be read", "");
    assert_told(&found[1], (file, 9, 33), "datetme", "");
    assert_told(&found[2], (file, 9, 59), "`prodct`", "`product`");
}

#[test]
fn checks_are_bound_where_they_stand() {
    let pipeline = "[stages.s]\nkind = \"sql\"\nchecks = { not_null = [\"cityy\"], unique = [\"CITY\"], sql = \"select 1 from s where citi = ''\" }\n";
    let found =
        problems_of(&[("pipelines/p.toml", pipeline), ("pipelines/p/s.sql", "select city from mall_users"), EXPORT]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_told(&found[0], ("pipelines/p.toml", 3, 24), "`not_null` names `cityy`", "did you mean `city`?");
    assert_told(&found[1], ("pipelines/p.toml", 3, 82), "no column `citi`", "did you mean `city`?");
    let escaped = "[stages.s]\nkind = \"sql\"\nchecks = { sql = \"select \\\"citi\\\" from s\" }\n";
    let found =
        problems_of(&[("pipelines/p.toml", escaped), ("pipelines/p/s.sql", "select city from mall_users"), EXPORT]);
    assert_only(&found, ("pipelines/p.toml", 3, 18), "no column `citi`", "did you mean `city`?");
}

#[test]
fn a_segment_is_a_column_of_users_or_profiles() {
    let nightly = NIGHTLY.replace("[\"city\"]", "[\"subscribe_scene\", \"citi\"]");
    let found = problems_of(&[("pipelines/nightly.toml", &nightly), EXPORT]);
    assert_only(&found, ("pipelines/nightly.toml", 14, 33), "segment `citi`", "did you mean `city`?");
    assert_eq!(
        problems_of(&[("pipelines/nightly.toml", &nightly)]),
        Vec::<Value>::new(),
        "without an export nobody knows"
    );
}

#[test]
fn stages_that_wait_for_each_other_are_named_and_those_behind_them_are_not() {
    let pipeline = "[stages.after]\nkind = \"sql\"\n[stages.one]\nkind = \"sql\"\n[stages.two]\nkind = \"sql\"\nneeds = [\"one\"]\n";
    let found = problems_of(&[
        ("pipelines/p.toml", pipeline),
        ("pipelines/p/after.sql", "select openid from two"),
        ("pipelines/p/one.sql", "select openid from two"),
        ("pipelines/p/two.sql", "select openid from followers"),
    ]);
    assert_only(&found, ("pipelines/p.toml", 3, 9), "the stages `one`, `two` wait for each other", "take one of these");
}

#[test]
fn fifty_pipelines_are_checked_in_a_moment() {
    let mut files: Vec<(String, String)> = Vec::new();
    for number in 0..50 {
        let pipeline = "[stages.audience]\nkind = \"materialize_recipients\"\n[stages.push]\nkind = \"push_template\"\n\
                        recipients = \"audience\"\ntemplate_id = \"t\"\ndata = { thing1 = \"{{ city }}\" }\n";
        let tables = format!("[stages.a{number}]\nkind = \"sql\"\n[stages.b{number}]\nkind = \"sql\"\n");
        files.push((format!("pipelines/p{number}.toml"), format!("{pipeline}{tables}")));
        let select =
            "select i.oa_openid as openid, u.city from identities i join mall_users u on u.openid = i.mp_openid";
        files.push((format!("pipelines/p{number}/audience.sql"), select.to_owned()));
        files.push((
            format!("pipelines/p{number}/a{number}.sql"),
            "select city, count(*) as n from mall_users group by 1".to_owned(),
        ));
        files.push((format!("pipelines/p{number}/b{number}.sql"), format!("select max(n) as n from a{number}")));
    }
    let files: Vec<(&str, &str)> =
        files.iter().map(|(path, text)| (path.as_str(), text.as_str())).chain([EXPORT]).collect();
    let workspace = Workspace::new(&files);
    let clock = Clock::default();
    let began = clock.monotonic();
    assert_eq!(workspace.check(&KnownTables::default()), Vec::<Value>::new());
    let took = clock.monotonic() - began;
    eprintln!("fifty pipelines: {took:?}");
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
}
