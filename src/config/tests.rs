//! Workspaces as people write them: right ones, and wrong ones with where and how that is told.

use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::Value;
use tempfile::TempDir;

use super::settings::*;
use super::*;

const CONFIG: &str = r#"[accounts.main]
app_id = "wx0000000000000000"
app_secret = "${SECRET}"
[miniprograms.mall]
app_id = "wx1111111111111111"
"#;

fn workspace(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn read(files: &[(&str, &str)]) -> Loaded {
    load(workspace(files).path(), &Environment::from_pairs([("SECRET", "hunter2")]))
}

/// What is wrong with a pipeline `p` beside a config that is right.
fn problems_of_pipeline(text: &str) -> Vec<Value> {
    let loaded = read(&[
        (CONFIG_FILE, CONFIG),
        ("pipelines/p.toml", text),
        ("pipelines/p/audience.sql", "select openid from identities"),
        ("pipelines/p/s.sql", "select 1 as one"),
        ("pipelines/p/empty.sql", "  \n"),
    ]);
    loaded.problems.to_json().as_array().unwrap().clone()
}

fn problems_of_config(text: &str) -> Vec<Value> {
    read(&[(CONFIG_FILE, text)]).problems.to_json().as_array().unwrap().clone()
}

/// Line, column, a part of the message, a part of the hint.
type Told = (usize, usize, &'static str, &'static str);

/// What differs between what was found and what should be told.
fn differs(name: &str, found: &[Value], told: &[Told]) -> Option<String> {
    let same = |(problem, (line, column, message, hint)): (&Value, &Told)| {
        problem["line"] == *line
            && problem["column"] == *column
            && problem["message"].as_str().unwrap().contains(message)
            && problem["hint"].as_str().unwrap_or_default().contains(hint)
    };
    let right = found.len() == told.len() && found.iter().zip(told).all(same);
    (!right).then(|| format!("{name}\nfound {}\nexpected {told:?}\n", serde_json::to_string_pretty(found).unwrap()))
}

fn assert_told(name: &str, found: &[Value], told: &[Told]) {
    let differs = differs(name, found, told);
    assert!(differs.is_none(), "{}", differs.unwrap());
}

fn push(more: &str) -> String {
    format!(
        "[stages.audience]\nkind = \"materialize_recipients\"\n[stages.push]\nkind = \"push_template\"\n\
         recipients = \"audience\"\ntemplate_id = \"t\"\n{more}\n"
    )
}

#[test]
fn the_shipped_workspace_is_right_with_nothing_set_in_the_environment() {
    let folder = workspace(workspace_files());
    let loaded = load(folder.path(), &Environment::default());
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    let settings = loaded.settings.unwrap();
    assert_eq!(settings.pipelines["nightly"].stages.len(), 5);
    let StageKind::PushTemplate(push) = &settings.pipelines["campaign"].stages[1].kind else { panic!("no push") };
    assert_eq!(push.data.iter().map(|field| field.name.as_str()).collect::<Vec<_>>(), ["thing1", "time2", "amount3"]);
    assert_eq!(push.template_id.as_str().chars().count(), 43);
}

#[test]
fn what_is_left_out_has_the_defaults_of_the_contract() {
    let pipeline = push("data = { thing1 = \"{{ product }}\" }")
        + "[stages.followers]\nkind = \"extract_followers\"\n[stages.profiles]\nkind = \"enrich_unionids\"\n\
           [stages.users]\nkind = \"load_users\"\nsource.files = \"data/exports/*.csv\"\n";
    let loaded = read(&[
        (CONFIG_FILE, CONFIG),
        ("pipelines/p.toml", &pipeline),
        ("pipelines/p/audience.sql", "select openid from identities"),
    ]);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    let settings = loaded.settings.unwrap();
    let account = &settings.accounts["main"];
    assert_eq!(account.app_secret.expose_secret(), "hunter2");
    assert_eq!((account.api_base.as_str(), account.page_key.as_str()), ("https://api.weixin.qq.com", "pagepath"));
    assert_eq!((account.concurrency, account.send_rate, account.timeout), (32, None, Duration::from_secs(10)));
    assert!(matches!(account.token, TokenSource::Stable));
    assert!(settings.root.is_absolute());
    assert_eq!(settings.ledger.path, settings.root.join("data/ledger.db"));
    assert_eq!(settings.engine.memory_limit_bytes, 4_000_000_000);
    let pipeline = &settings.pipelines["p"];
    assert_eq!((pipeline.catch_up, pipeline.schedule.is_none()), (CatchUp::Latest, true));
    assert_eq!(pipeline.retry.map(|retry| (retry.times, retry.wait)), Some((3, Duration::from_secs(600))));
    let StageKind::MaterializeRecipients(set) = &pipeline.stages[0].kind else { panic!("no set") };
    assert_eq!((set.account.as_str(), set.max_staleness), ("main", Some(Duration::from_secs(48 * 3600))));
    assert_eq!(set.sql.place.file, Path::new("pipelines/p/audience.sql"));
    let StageKind::PushTemplate(push) = &pipeline.stages[1].kind else { panic!("no push") };
    assert_eq!((push.rate, push.concurrency, push.approve), (50.0, 64, false));
    assert_eq!((push.halt_when.failed_share, push.halt_when.after), (0.2, 200));
    assert_eq!(pipeline.stages[1].table, None);
    assert_eq!(pipeline.stages[2].table.as_ref().unwrap().as_str(), "followers");
    let StageKind::EnrichUnionids(enrich) = &pipeline.stages[3].kind else { panic!("no enrich") };
    assert_eq!(enrich.refresh_after, Duration::from_secs(30 * 86_400));
    let StageKind::LoadUsers(load) = &pipeline.stages[4].kind else { panic!("no load") };
    assert_eq!((load.miniprogram.as_str(), load.max_bad), ("mall", 0.05));
    assert_eq!(load.columns, [("openid".to_owned(), "openid".to_owned())]);
}

#[test]
fn every_key_of_the_contract_is_read() {
    let config = r#"timezone = "Europe/Berlin"
[accounts.main]
app_id = "wx0"
app_secret = "s"
api_base = "http://127.0.0.1:1"
token = { url = "http://centre/token" }
page_key = "path"
concurrency = 8
send_rate = "3000/m"
timeout = "500ms"
[accounts.main.quota]
"message/template/send" = 100000
reserve = { "message/template/send" = 5000 }
[accounts.main.callback]
token = "t"
encoding_aes_key = "0123456789012345678901234567890123456789012"
[miniprograms.mall]
app_id = "wx1"
app_secret = ""
[server]
listen = "0.0.0.0:80"
token = "x"
[alerts]
webhook = "https://hook"
style = "feishu"
heartbeat = ""
"#;
    let pipeline = r#"schedule = "2026-11-24 10:00"
catch_up = "skip"
retry = { times = 0 }
[params]
city = "上海"
least = 3
share = 0.5
on = true
[stages.s]
kind = "sql"
table = "daily"
upsert_by = ["date"]
on_failure = "continue"
checks = { not_null = ["a"], unique = ["a"], min_rows = 1, max_drop = 0.1, sql = "select 1", severity = "warn" }
[stages.audience]
kind = "materialize_recipients"
account = "main"
holdout = 0.1
frequency_cap = { messages = 2, days = 7 }
not_again = "7d"
max = 10
max_staleness = "2h"
[stages.push]
kind = "push_template"
account = ["main"]
recipients = "audience"
needs = ["s"]
template_id = "t"
miniprogram = { pagepath = "pages/x" }
url = "https://x"
data = { b = "2", a = "1" }
rate = "200/s"
concurrency = 100
unconfirmed = "resend"
halt_when = { failed_share = 0.5 }
priority = "service"
approve = true
on_invalid = "skip"
on_expiry = "skip"
window = "09:00-21:00"
daily_limit = 80000
expires = "36h"
canary = { first = 100 }
test_openids = ["o1"]
[stages.publish]
kind = "publish"
format = "csv"
"#;
    let loaded = read(&[
        (CONFIG_FILE, config),
        ("pipelines/p.toml", pipeline),
        ("pipelines/p/audience.sql", "select 1"),
        ("pipelines/p/s.sql", "select 1"),
    ]);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    let settings = loaded.settings.unwrap();
    let account = &settings.accounts["main"];
    assert_eq!((account.send_rate, account.timeout), (Some(50.0), Duration::from_millis(500)));
    assert_eq!(account.quota.ceilings["message/template/send"], 100_000);
    assert_eq!(account.quota.reserve["message/template/send"], 5000);
    assert!(matches!(&account.token, TokenSource::Centre { url } if url == "http://centre/token"));
    assert!(settings.miniprograms["mall"].app_secret.is_none() && settings.alerts.heartbeat.is_none());
    let pipeline = &settings.pipelines["p"];
    assert!(pipeline.retry.is_none() && matches!(pipeline.schedule, Some(Schedule::Once(_))));
    assert_eq!(pipeline.params["least"], ParamValue::Integer(3));
    let sql = &pipeline.stages[0];
    assert_eq!((sql.table.as_ref().unwrap().as_str(), sql.on_failure), ("daily", OnFailure::Continue));
    assert_eq!(sql.checks.as_ref().unwrap().severity, Severity::Warn);
    let StageKind::PushTemplate(push) = &pipeline.stages[2].kind else { panic!("no push") };
    assert_eq!(push.data.iter().map(|field| field.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(push.miniprogram.as_ref().unwrap().app_id, "wx1");
    assert_eq!((push.halt_when.failed_share, push.halt_when.after), (0.5, 200));
    assert_eq!(push.canary.unwrap().first, 100);
    let StageKind::Publish(publish) = &pipeline.stages[3].kind else { panic!("no publish") };
    assert_eq!(publish.tables.iter().map(|table| table.as_str()).collect::<Vec<_>>(), ["daily"]);
}

#[test]
fn rules_of_fields_are_changed_by_type_and_narrowed_by_name() {
    let account = "[accounts.main]\napp_id = \"a\"\napp_secret = \"s\"\n";
    let fields = "[fields]\nthing = { most = 30 }\nshort_thing = { most = 4 }\nphrase = { form = \"any\" }\n\
                  const4 = { values = [\"已发货\", \"已签收\"] }\n";
    let loaded = read(&[(CONFIG_FILE, &format!("{account}{fields}"))]);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    let rules = loaded.settings.unwrap().fields;
    assert!(rules.check("thing1", &"字".repeat(30)).is_ok());
    let problem = rules.check("thing1", &"字".repeat(31)).unwrap_err();
    assert_eq!(problem.rule, "takes `any`, at most 30 characters, as [fields] says");
    assert!(rules.check("short_thing2", "五个字的").is_ok() && rules.check("short_thing2", "五个字的长").is_err());
    assert!(rules.check("phrase1", "13笔").is_ok() && rules.check("phrase1", "一二三四五六").is_err());
    assert_eq!(rules.check("const4", "已退货").unwrap_err().rule, "takes only 已发货, 已签收");
    assert!(rules.check("number1", "3.14").is_ok(), "the others stay as they are");
    let wrong = "[fields]\nthing = { mots = 30 }\nconst4 = { most = 3 }\nphrase = { form = \"latin\" }\n";
    let problems = read(&[(CONFIG_FILE, &format!("{account}{wrong}"))]).problems.to_string();
    for part in ["did you mean `most`", "`values` is missing", "latin", "accepted: `any`, `no_chinese`, `number`"] {
        assert!(problems.contains(part), "{part}: {problems}");
    }
    let wrong = "[fields]\nthng = { most = 30 }\nconst4 = { values = [] }\ncnst5 = { values = [\"a\"] }\nkeyword1 = { values = [\"a\"] }\n";
    let loaded = read(&[(CONFIG_FILE, &format!("{account}{wrong}"))]);
    let told: Vec<(usize, usize, String)> = loaded
        .problems
        .to_json()
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let number = |key: &str| usize::try_from(one[key].as_u64().unwrap()).unwrap();
            (number("line"), number("column"), format!("{} {}", one["message"], one["hint"]))
        })
        .collect();
    assert_eq!(told.iter().map(|(line, column, _)| (*line, *column)).collect::<Vec<_>>(), [(5, 1), (6, 21), (7, 1)]);
    for (at, part) in [
        (0, "`thng` is no type of field"),
        (0, "did you mean `thing`? accepted: "),
        (0, "`phrase`"),
        (1, "no value is left"),
        (2, "did you mean `const`?"),
    ] {
        assert!(told[at].2.contains(part), "{part}: {told:?}");
    }
}

#[test]
fn a_wrong_config_tells_where_and_what_instead() {
    let account = "[accounts.main]\napp_id = \"a\"\napp_secret = \"s\"\n";
    let cases: &[(&str, &[Told])] = &[
        ("[acounts.main]\napp_id = \"a\"\n", &[(1, 2, "unknown key `acounts`", "did you mean `accounts`?")]),
        ("timezone = \"Asia/Shangai\"", &[(1, 12, "not a time zone", "did you mean `Asia/Shanghai`?")]),
        ("[accounts.main]\napp_id = \"a\"", &[(1, 1, "`app_secret` is missing", "export")]),
        ("[accounts.main]\napp_id = \"a\"\napp_secret = \"${NOPE}\"", &[(3, 15, "NOPE is not set", ".env")]),
        ("[accounts.main]\napp_id = \"a\"\napp_secret = \"\"", &[(3, 14, "`app_secret` is empty", "")]),
        (
            "@[accounts.second]\napp_id = \"a\"\napp_secret = \"s\"",
            &[(5, 10, "account `second` and account `main` have one app id, \"a\"", "leave one of both out")],
        ),
        (
            "@[miniprograms]\nmall = { app_id = \"m\" }\nnews = { app_id = \"m\" }\nclub = { app_id = \"a\" }",
            &[
                (6, 19, "mini program `news` and mini program `mall` have one", "AppID of its own"),
                (7, 19, "mini program `club` and account `main` have one", ""),
            ],
        ),
        ("@api_base = \"https://x/\"", &[(4, 12, "a slash at its end", "\"https://x\"")]),
        ("@api_base = \"x\"", &[(4, 12, "not the address", "https://")]),
        ("@token = \"stabel\"", &[(4, 9, "not a way to get a token", "did you mean `stable`?")]),
        ("@timeout = 10", &[(4, 11, "a duration has a unit", "\"10s\"")]),
        ("@timeout = \"10\"", &[(4, 11, "\"10\" is not a duration", "\"36h\"")]),
        ("@concurrency = 0", &[(4, 15, "0 is not a number of calls", "use 1 to 1024")]),
        ("@send_rate = \"0/s\"", &[(4, 13, "would never send", "freeze")]),
        ("@page_key = \"pagpath\"", &[(4, 12, "not a value of `page_key`", "did you mean `pagepath`?")]),
        (
            "@quota = { \"mesage/template/send\" = 1 }",
            &[(4, 11, "is no call", "did you mean `message/template/send`?")],
        ),
        (
            "@[accounts.main.quota]\n\"user/get\" = 5\nreserve = { \"user/get\" = 6 }",
            &[(6, 26, "more than the ceiling of 5", "")],
        ),
        ("@callback = { token = \"t\", encoding_aes_key = \"short\" }", &[(4, 46, "EncodingAESKey", "43")]),
        ("[ledger]\nurl = \"postgres://u:hunter2@h/d\"", &[(2, 7, "not supported yet", "sqlite://")]),
        ("[lake]\nurl = \"s3://bucket/x\"", &[(2, 7, "not supported yet", "data/lake")]),
        ("[engine]\nkind = \"spark\"", &[(2, 8, "not supported yet", "duckdb")]),
        ("[engine]\nkind = \"ducdb\"", &[(2, 8, "not a value", "did you mean `duckdb`?")]),
        ("[engine]\nmemory_limit = \"4\"", &[(2, 16, "not a size", "4GB")]),
        ("[server]\nlisten = \"0.0.0.0:8787\"", &[(2, 10, "needs a token", "LIANBO_TOKEN")]),
        ("[server]\nlisten = \"0.0.0.0:8787\"\ntoken = \"${NOPE:-}\"", &[(2, 10, "needs a token", "LIANBO_TOKEN")]),
        ("[server]\nlisten = \"localhost\"", &[(2, 10, "not an address to listen on", "127.0.0.1:8787")]),
        ("[alerts]\nstyle = \"wecon\"", &[(2, 9, "not a value of `style`", "did you mean `wecom`?")]),
        ("[alerts]\nwebhook = \"hook\"", &[(2, 11, "not an address", "https://")]),
        ("timezone = ", &[(1, 12, "not TOML", "")]),
    ];
    let mut wrong = Vec::new();
    for (text, told) in cases {
        let text = text.strip_prefix('@').map_or_else(|| (*text).to_owned(), |more| format!("{account}{more}"));
        let found = problems_of_config(&text);
        wrong.extend(differs(&text, &found, told));
        assert!(!serde_json::to_string(&found).unwrap().contains("hunter2"), "a secret is shown: {found:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_pipeline_tells_where_and_what_instead() {
    let load = "[stages.u]\nkind = \"load_users\"\n";
    let cases: Vec<(String, Vec<Told>)> = vec![
        (push("data = { a = \"1\" }\nratee = \"200/s\""), vec![(8, 1, "unknown key `ratee` of a `push_template`", "did you mean `rate`?")]),
        (push("data = { a = \"1\" }\ndaily_limit = 0"), vec![(8, 15, "0 is not a number of sends", "approve = true")]),
        (push("[stages.push.data]\na = \"1\"\nrate = \"9/s\""), vec![(9, 1, "`rate` is a key of the push, not a field", "above")]),
        (push("data = { a = \"1\", window = \"x\" }"), vec![(7, 19, "`window` is a key of the push", "beside")]),
        (push("data = {}"), vec![(7, 8, "without fields", "")]),
        (push(""), vec![(3, 1, "`data` is missing", "thing1")]),
        (push("data = { a = 1 }"), vec![(7, 14, "a whole number stands where a text", "")]),
        (push("data = { a = \"1\" }\nminiprogram = { name = \"mal\" }"), vec![(8, 24, "no mini program `mal`", "did you mean `mall`?")]),
        (push("data = { a = \"1\" }\naccount = \"mian\""), vec![(8, 11, "no account `mian`", "did you mean `main`?")]),
        (push("data = { a = \"1\" }\nwindow = \"9-21\""), vec![(8, 10, "not a window", "09:00-21:00")]),
        (push("data = { a = \"1\" }\nhalt_when = { failed_share = 20 }"), vec![(8, 30, "20 is not a share", "for 20 % write 0.2")]),
        (push("data = { a = \"1\" }\ncanary = { wait = \"1m\" }"), vec![(8, 10, "`first` is missing", "")]),
        (push("data = { a = \"1\" }\nexpires = \"5h\"\ncanary = { first = 9, wait = \"10h\" }"), vec![(9, 30, "the canary waits 36000 s, and the push expires after 18000 s", "shorter than `expires` (\"5h\")")]),
        (push("data = { a = \"1\" }\nexpires = \"5m\"\ncanary = { first = 9 }"), vec![(9, 10, "the canary waits 600 s", "\"5m\"")]),
        (push("data = { a = \"1\" }\non_invalid = \"halt\""), vec![(8, 14, "\"halt\" is not a value of `on_invalid`", "accepted: `stop`, `skip`")]),
        (push("data = { a = \"1\" }\npriority = \"campain\""), vec![(8, 12, "not a value of `priority`", "did you mean `campaign`? accepted: `campaign`, `service`")]),
        (push("data = { a = \"1\" }\nrate = 50"), vec![(8, 8, "a rate has a unit", "\"50/s\"")]),
        (push("data = { a = \"1\" }\napprove = \"yes\""), vec![(8, 11, "a text stands where true or false", "")]),
        (push("data = { a = \"1\" }").replace("\"t\"", "\"\""), vec![(6, 15, "`template_id` is empty", "")]),
        (push("data = { a = \"1\" }").replace("= \"audience\"", "= \"audiance\""), vec![(5, 14, "no `materialize_recipients` stage `audiance`", "did you mean `audience`?")]),
        ("[stages.audience]\nkind = \"materialize_recipients\"\nholdout = 1.0\n".into(), vec![(3, 11, "everybody", "")]),
        ("[stages.audience]\nkind = \"materialize_recipients\"\nfrequency_cap = { messages = 2 }\n".into(), vec![(3, 17, "`days` is missing", "")]),
        ("[stages.audience]\nkind = \"materialize_recipients\"\nfile = \"p/nope.sql\"\n".into(), vec![(3, 8, "there is no file pipelines/p/nope.sql", "relative to pipelines/")]),
        ("[stages.nosql]\nkind = \"sql\"\n".into(), vec![(1, 1, "there is no file pipelines/p/nosql.sql", "file")]),
        ("[stages.empty]\nkind = \"sql\"\n".into(), vec![(1, 1, "empty.sql is empty", "SELECT")]),
        ("[stages.s]\nkind = \"sqll\"\n".into(), vec![(2, 8, "not a kind of stage", "did you mean `sql`?")]),
        ("[stages.s]\nfile = \"p/s.sql\"\n".into(), vec![(1, 1, "`kind` is missing", "extract_followers")]),
        ("[stages.s]\nkind = \"sql\"\nneeds = [\"q\"]\n[stages.audience]\nkind = \"materialize_recipients\"\n".into(), vec![(3, 10, "no stage `q`", "audience")]),
        ("[stages.S]\nkind = \"sql\"\nfile = \"p/s.sql\"\n".into(), vec![(1, 9, "cannot name a stage", "lower-case")]),
        ("[stages.runs]\nkind = \"sql\"\nfile = \"p/s.sql\"\n".into(), vec![(1, 1, "`runs` is there from the start", "table =")]),
        ("[stages.s]\nkind = \"sql\"\n[stages.t]\nkind = \"sql\"\nfile = \"p/s.sql\"\ntable = \"s\"\n".into(), vec![(6, 9, "already made at pipelines/p.toml:1", "otherwise")]),
        ("[stages.s]\nkind = \"sql\"\nneeds = [\"t\"]\n[stages.t]\nkind = \"sql\"\nfile = \"p/s.sql\"\nneeds = [\"s\"]\n".into(), vec![(7, 10, "circle: s → t → s", "")]),
        ("[stages.p]\nkind = \"publish\"\ntables = [\"deliverys\"]\n".into(), vec![(3, 11, "no stage makes a table `deliverys`", "did you mean `deliveries`?")]),
        ("[stages.p]\nkind = \"enrich_unionids\"\n[stages.fans]\nkind = \"extract_followers\"\n".into(), vec![(1, 1, "table of followers `followers`", "fans")]),
        (format!("{load}source.files = \"x/*.xlsz\"\n"), vec![(3, 16, "kind of export", "did you mean `.xls")]),
        (format!("{load}source = {{ files = \"x/*.xlsx\", shet = 1, header_row = 0 }}\n"), vec![(3, 32, "unknown key `shet`", "did you mean `sheet`?"), (3, 55, "0 is not a number of rows", "1 to 1048576")]),
        (format!("{load}source = {{ files = \"x/*.zip\", delimiter = \"::\" }}\n"), vec![(3, 43, "\"::\" is not a value of `delimiter`", "`tab`")]),
        (format!("{load}source = {{ files = \"x/*.ndjson\", delimiter = \";\" }}\n"), vec![(3, 34, "`delimiter` means nothing for .ndjson files", "csv")]),
        (format!("{load}source = {{ files = \"x/*.csv.gz\", sheet = \"用户\" }}\n"), vec![(3, 34, "`sheet` means nothing for .csv files", "xlsx")]),
        (format!("{load}source.files = \"x/*.csv\"\non_new_column = \"ignor\"\n"), vec![(4, 17, "\"ignor\" is not a value of `on_new_column`", "did you mean `ignore`?")]),
        (format!("{load}source.files = \"x/*.csv\"\nkeep = [\"a\"]\non_new_column = \"fail\"\n"), vec![(5, 1, "`keep` says already", "leave out one of both")]),
        (format!("{load}source.files = \"x/*.csv\"\nwait_until = \"3am\"\n"), vec![(4, 14, "\"3am\" is not a time of day", "\"03:00\"")]),
        (format!("{load}source.files = \"x/*.csv\"\nwait_til = \"03:00\"\n"), vec![(4, 1, "unknown key `wait_til`", "did you mean `wait_until`?")]),
        (format!("{load}source.files = \"x/*.cvs\"\n"), vec![(3, 16, "kind of export", "did you mean `.csv`?")]),
        (format!("{load}source.database = \"mysql://u:hunter2@h/d\"\n"), vec![(3, 8, "`source.query` is missing", "select")]),
        (format!("{load}source.database = \"oracle://u:hunter2@h/d\"\nsource.query = \" ; \"\n"), vec![(3, 19, "kind of database", "mysql://"), (4, 16, "there is no query", "select")]),
        (format!("{load}source.query = \"select 1\"\nsource.key = \"id\"\n"), vec![(3, 1, "`source.files` is missing", "source.database"), (3, 8, "`query` means nothing without", "source.database"), (4, 8, "`key` means nothing without", "source.database")]),
        (format!("{load}source = {{ database = \"mysql://u:hunter2@h/d?ssl-mode=none\", query = \"select 1\", page_rows = 9 }}\n"), vec![(3, 23, "sslmode", "verify-full"), (3, 82, "`page_rows` means nothing without `source.key`", "unique")]),
        (format!("{load}source = {{ database = \"mysql://u:hunter2@h/d\", query = \"select 1\", files = \"x/*.csv\", encoding = \"gbk\" }}\n"), vec![(3, 68, "`files` means nothing beside", "one of both"), (3, 87, "`encoding` means nothing beside", "")]),
        (format!("{load}source = {{ database = \"mysql://u:hunter2@h/d\", query = \"select 1\", timeout = \"0s\" }}\nmax_age = \"1h\"\nwait_until = \"03:00\"\n"), vec![(3, 78, "no time at all", ""), (4, 1, "`max_age` is about files", "checks"), (5, 1, "`wait_until` is about files", "")]),
        (load.into(), vec![(1, 1, "`source.files` is missing", "data/exports")]),
        (format!("{load}source.files = \"x/*.csv\"\ntypes = {{ a = \"bigintt\" }}\n"), vec![(4, 15, "not a type", "did you mean `bigint`?")]),
        ("schedule = \"30 2 * * *\"\n[stages.s]\nkind = \"sql\"\n".into(), vec![(1, 12, "five fields", "\"0 30 2 * * *\"")]),
        ("schedule = \"0 30 2 * *\"\n[stages.s]\nkind = \"sql\"\n".into(), vec![(1, 12, "second minute hour day month weekday", "\"0 30 2 * * *\"")]),
        ("schedule = \"a b c d e\"\n[stages.s]\nkind = \"sql\"\n".into(), vec![(1, 12, "five fields", "six fields, seconds first")]),
        ("after = [\"q\"]\n[stages.s]\nkind = \"sql\"\n".into(), vec![(1, 10, "no pipeline `q`", "")]),
        ("after = \"p\"\n[stages.s]\nkind = \"sql\"\n".into(), vec![(1, 9, "circle: p → p", "")]),
        ("[params]\ntoday = 1\nlist = [1]\n[stages.s]\nkind = \"sql\"\n".into(), vec![(2, 1, "`today` is there", ""), (3, 8, "a parameter is", "")]),
        ("description = \"nothing\"\n".into(), vec![(1, 1, "no stages", "[stages.NAME]")]),
        ("[stages.s]\nkind = \"sql\"\nchecks = { max_drops = 0.1, min_rows = -1 }\n".into(), vec![(3, 12, "unknown key `max_drops`", "`max_drop`"), (3, 40, "-1 is not a number of rows", "1 or more")]),
        ("[stages.s\nkind = \"sql\"\n".into(), vec![(1, 10, "not TOML", "")]),
    ];
    let mut wrong = Vec::new();
    for (text, told) in cases {
        let found = problems_of_pipeline(&text);
        wrong.extend(differs(&text, &found, &told));
        assert!(!serde_json::to_string(&found).unwrap().contains("hunter2"), "a secret is shown: {found:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn problems_of_all_files_are_told_at_once_also_beside_one_that_is_not_toml() {
    let loaded = read(&[
        (CONFIG_FILE, "[accounts.main]\napp_id = \"a\"\napp_secret = \"literal hunter2\"\napp_secrett = \"hunter2\"\n"),
        ("pipelines/a.toml", "catch_up = \"never\"\n[stages.a]\nkind = \"extract_followers\"\nreuse_within = 5\n"),
        ("pipelines/b.toml", "after = [\"a\"\n"),
    ]);
    assert!(loaded.settings.is_none());
    let shown = loaded.problems.to_string();
    assert!(shown.contains("config/lianbo.toml: 1 problem\n\n  4:1  app_secrett = \"***\"\n"), "{shown}");
    assert!(shown.contains("pipelines/a.toml: 2 problems\n\n  1:12  catch_up = \"never\"\n"), "{shown}");
    assert!(shown.contains("pipelines/b.toml: "), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_workspace_without_its_config_says_so_and_still_reads_the_pipelines() {
    let loaded = read(&[("pipelines/p.toml", "[stages.f]\nkind = \"extract_folowers\"\n")]);
    let found = loaded.problems.to_json();
    assert_eq!(found[0]["message"], "there is no such file");
    assert_eq!(
        found[1]["hint"],
        "did you mean `extract_followers`? accepted: `extract_followers`, `enrich_unionids`, `load_users`, `join_identities`, \
         `measure_coverage`, `sql`, `materialize_recipients`, `push_template`, `publish`"
    );
    assert_eq!(loaded.problems.len(), 2);
}

#[test]
fn a_set_of_one_account_is_not_sent_from_another() {
    let config = format!("{CONFIG}[accounts.other]\napp_id = \"wx2\"\napp_secret = \"s\"\n");
    let pipeline = push("account = \"other\"\ndata = { a = \"1\" }").replacen(
        "recipients\"",
        "recipients\"\naccount = \"main\"",
        1,
    );
    let loaded =
        read(&[(CONFIG_FILE, &config), ("pipelines/p.toml", &pipeline), ("pipelines/p/audience.sql", "select 1")]);
    let found = loaded.problems.to_json();
    assert_told(
        "accounts",
        found.as_array().unwrap(),
        &[(6, 14, "of the account `main`, and this push sends from `other`", "one account")],
    );
    let unsaid = push("data = { a = \"1\" }");
    let loaded =
        read(&[(CONFIG_FILE, &config), ("pipelines/p.toml", &unsaid), ("pipelines/p/audience.sql", "select 1")]);
    let found = loaded.problems.to_json();
    let told: [Told; 2] = [(1, 1, "`account` is missing", "`main`, `other`"), (3, 1, "`account` is missing", "")];
    assert_told("unsaid", found.as_array().unwrap(), &told);
}

#[test]
fn pipelines_that_wait_for_each_other_are_told_once() {
    let stage = |table: &str| format!("[stages.{table}]\nkind = \"extract_followers\"\n");
    let files = [
        (CONFIG_FILE.to_owned(), CONFIG.to_owned()),
        ("pipelines/a.toml".to_owned(), format!("after = [\"b\"]\n{}", stage("fa"))),
        ("pipelines/b.toml".to_owned(), format!("after = [\"c\"]\n{}", stage("fb"))),
        ("pipelines/c.toml".to_owned(), format!("after = [\"a\"]\n{}", stage("fc"))),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let loaded = read(&files);
    assert_eq!(loaded.problems.len(), 1, "{}", loaded.problems);
    assert!(loaded.problems.to_string().contains("circle: a → b → c → a"), "{}", loaded.problems);
}

#[test]
fn fifty_campaigns_with_sets_of_one_name_are_read() {
    let mut files = vec![(CONFIG_FILE.to_owned(), CONFIG.to_owned())];
    for number in 0..50 {
        files.push((format!("pipelines/c{number}.toml"), push("data = { a = \"{{ x }}\" }")));
        files.push((format!("pipelines/c{number}/audience.sql"), "select openid from identities".to_owned()));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let loaded = read(&files);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems);
    assert_eq!(loaded.settings.unwrap().pipelines.len(), 50);
}

#[test]
fn a_draft_names_the_tables_that_could_not_be_read() {
    let loaded = read(&[
        (CONFIG_FILE, CONFIG),
        ("pipelines/p.toml", "[stages.users]\nkind = \"load_users\"\n[stages.f]\nkind = \"extract_followers\"\n"),
    ]);
    let draft = loaded.draft.unwrap();
    assert_eq!(draft.unread_tables.iter().map(|table| table.as_str()).collect::<Vec<_>>(), ["users"]);
    assert_eq!(draft.settings.pipelines["p"].stages.len(), 1);
}

#[test]
fn settings_never_print_a_secret() {
    let loaded = read(&[(CONFIG_FILE, CONFIG)]);
    assert!(!format!("{:?}", loaded.settings.unwrap()).contains("hunter2"));
}
