//! Mistakes in files and words: each is told with its place, nothing is made, and nobody is called.

use std::path::PathBuf;

use crate::house::{EXPORT, House, SECRET, small};

/// A file, what is replaced in it by what, and what has to be said beside the file, line and column first.
type Mistake = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CONFIG: &str = "config/lianbo.toml";
const NIGHTLY: &str = "pipelines/nightly.toml";
const CAMPAIGN: &str = "pipelines/campaign.toml";
const AUDIENCE: &str = "pipelines/campaign/audience.sql";

const MISTAKES: &[Mistake] = &[
    (CONFIG, "timeout = ", "timeot = ", &["\n  6:1", "timeot", "timeout"]),
    (CONFIG, "timeout = \"3s\"", "timeout = \"3 sheep\"", &["\n  6:11", "3 sheep"]),
    (CONFIG, "Asia/Shanghai", "Asia/Shangai", &["\n  1:12", "Asia/Shangai"]),
    (CONFIG, "${LIANBO_MAIN_SECRET}", "${LIANBO_NO_SUCH_SECRET}", &["\n  4:", "LIANBO_NO_SUCH_SECRET"]),
    (CONFIG, "app_id = \"wx0000000000000000\"\n", "", &["\n  2:", "app_id"]),
    (CONFIG, "[engine]", "[engine", &["\n  9:"]),
    (CONFIG, "memory_limit = \"1GB\"", "memory_limit = \"1KB\"", &["\n  10:16", "\"1KB\"", "200MB or more"]),
    (
        NIGHTLY,
        "columns = { updated_at",
        "columns = { opneid = \"openid\", updated_at",
        &["\n  11:13", "`opneid`", "did you mean `openid`?"],
    ),
    (
        NIGHTLY,
        "columns = { updated_at = \"last_login\" }",
        "columns = { updated_at = \"last_login\" }\nchecks.unique = [\"openid\", \"citi\"]",
        &["\n  12:28", "`citi`", "did you mean `city`?"],
    ),
    (
        NIGHTLY,
        "[stages.profiles]\nkind = \"enrich_unionids\"",
        "[stages.mine]\nkind = \"sql\"\nfile = \"campaign/audience.sql\"\n[stages.profiles]\nkind = \"enrich_unionids\"\nfrom = \"mine\"",
        &["\n  10:8", "`mine` is not a table of followers", "`followers`"],
    ),
    (NIGHTLY, "extract_followers", "extract_folowers", &["\n  4:8", "extract_followers"]),
    (NIGHTLY, "miniprogram = \"mall\"", "miniprogram = \"mal\"", &["\n  9:15", "mall"]),
    (NIGHTLY, "segments = [\"city\"", "segments = [\"citty\"", &["\n  16:", "citty", "city"]),
    (NIGHTLY, "description", "schedule = \"61 0 2 * * *\"\ndescription", &["\n  2:12"]),
    (CAMPAIGN, "recipients = \"audience\"", "recipients = \"audiense\"", &["\n  9:14", "audience"]),
    (CAMPAIGN, "rate = \"5000/s\"", "rate = 5000", &["\n  13:8"]),
    (
        CAMPAIGN,
        "rate = \"5000/s\"",
        "rate = \"5000/s\"\nexpires = \"5h\"\ncanary = { first = 9, wait = \"10h\" }",
        &["\n  15:30", "36000 s", "18000 s", "`expires` (\"5h\")"],
    ),
    (
        CONFIG,
        "[engine]",
        "[fields]\nthng = { most = 30 }\n[engine]",
        &["\n  10:1", "`thng`", "did you mean `thing`?", "`const`"],
    ),
    (CONFIG, "[engine]", "[fields]\nconst4 = { values = [] }\n[engine]", &["\n  10:21", "`const4`", "values = ["]),
    (
        CONFIG,
        "[engine]",
        "[fields]\nthing = { form = \"lettres\" }\n[engine]",
        &["\n  10:18", "`letters`", "`symbols`", "`amount`"],
    ),
    (
        CAMPAIGN,
        "rate = \"5000/s\"",
        "rate = \"5000/s\"\non_expiry = \"wait\"",
        &["\n  14:13", "accepted: `stop`, `skip`"],
    ),
    (CAMPAIGN, "{{ product }}", "{{ produkt }}", &["\n  12:", "produkt", "product"]),
    (CAMPAIGN, "data = { ", "data = { url = \"https://a.example\", ", &["\n  12:", "url"]),
    (AUDIENCE, "mp_openid", "mp_opendi", &["\n  1:", "mp_opendi", "mp_openid"]),
    (AUDIENCE, "from identities", "from identites", &["\n  1:", "identites", "identities"]),
    (AUDIENCE, "select oa_openid", "selct oa_openid", &["\n  1:1"]),
    (AUDIENCE, "where account = 'main'", "where now() is not null", &["\n  1:", "$run_at"]),
    (AUDIENCE, "'main'", "$acount", &["\n  1:", "acount"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_is_told_with_its_place_and_nothing_is_made_or_called() {
    let house = House::build(small()).await;
    let mut wrong = Vec::new();
    for (file, from, to, told) in MISTAKES {
        let right = house.read(file);
        house.edit(file, from, to);
        let before: Vec<PathBuf> = house.files().into_keys().collect();
        for arguments in [&["check"][..], &["run", "nightly", "--yes"]] {
            let said = house.lianbo(arguments).await;
            let missing: Vec<_> = told.iter().chain([file]).filter(|words| !said.text().contains(**words)).collect();
            if said.code != 2 || !missing.is_empty() {
                wrong.push(format!(
                    "{file} with {to:?}: {arguments:?} ends with {}, without {missing:?}: {}",
                    said.code,
                    said.text()
                ));
            }
        }
        let after: Vec<PathBuf> = house.files().into_keys().collect();
        assert_eq!(before, after, "{to:?} made something");
        house.write(file, &right);
    }
    assert!(wrong.is_empty(), "{} of {}\n\n{}", wrong.len(), 2 * MISTAKES.len(), wrong.join("\n\n"));
    assert!(house.simulator.calls().values().all(|calls| *calls == 0), "{:?}", house.simulator.calls());
    house.lianbo(&["check"]).await.ends(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_problems_are_told_at_once_with_their_lines() {
    let house = House::build(small()).await;
    house.edit(CONFIG, "timeout = ", "timeot = ");
    house.edit(NIGHTLY, "extract_followers", "extract_folowers");
    house.edit(CAMPAIGN, "rate = \"5000/s\"", "rate = 5000");
    let problems = house.lianbo(&["check", "--json"]).await.ends(2).json()["problems"].clone();
    let mut places: Vec<String> = problems
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| format!("{}:{}", problem["file"].as_str().unwrap(), problem["line"]))
        .collect();
    places.sort();
    assert_eq!(
        places,
        ["config/lianbo.toml:6", "pipelines/campaign.toml:13", "pipelines/nightly.toml:4"],
        "{problems}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_name_nothing_end_with_2_and_the_nearest_name() {
    let house = House::build(small()).await;
    for (arguments, told) in [
        (&["run", "nigthly"][..], "nightly"),
        (&["run", "nightly", "--only", "folowers"], "followers"),
        (&["run", "campaign", "--param", "produkt=x"], "product"),
        (&["run", "campaign", "--param", "product"], "NAME=VALUE"),
    ] {
        let said = house.lianbo(arguments).await.ends(2);
        assert!(said.text().contains(told), "{arguments:?}: {}", said.text());
    }
    assert!(house.simulator.calls().values().all(|calls| *calls == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_and_no_word_holds_the_secret_or_a_token_or_a_whole_openid_in_a_log() {
    let house = House::build(small()).await;
    let night = house.run("nightly", &["-v"]).await.ends(0);
    house.simulator.refuse_template(&house.simulator.matchable()[0], lianbo::simulator::SALE_TEMPLATE_ID);
    let push = house.run("campaign", &["-v"]).await.ends(0);
    house.edit(CONFIG, "${LIANBO_MAIN_SECRET}", "ffffffffffffffffffffffffffffffff");
    let shown = house.lianbo(&["token", "show", "main"]).await;
    let refused = house.lianbo(&["token", "refresh", "main"]).await;
    let token = house.lianbo(&["token", "show", "main", "--reveal"]).await;
    house.edit(CONFIG, "ffffffffffffffffffffffffffffffff", "${LIANBO_MAIN_SECRET}");
    let token =
        if token.code == 0 { token } else { house.lianbo(&["token", "show", "main", "--reveal"]).await.ends(0) };
    let token: String = token
        .stdout
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == '-'))
        .max_by_key(|word| word.len())
        .unwrap()
        .to_owned();
    assert!(token.len() > 40, "{token:?} is no token");
    let secrets = [SECRET, token.as_str(), "ffffffffffffffffffffffffffffffff", "access_token="];
    for said in [&night, &push, &shown, &refused] {
        assert!(secrets.iter().all(|secret| !said.text().contains(secret)), "{said:?}");
    }
    let users = house.read(EXPORT);
    let ids: Vec<&str> =
        users.lines().skip(1).flat_map(|line| line.split(',').take(2)).filter(|id| !id.is_empty()).collect();
    let openids = house.simulator.matchable();
    for said in [&night, &push] {
        let whole = ids.iter().copied().chain(openids.iter().map(String::as_str)).find(|id| said.stderr.contains(id));
        assert_eq!(whole, None, "a log holds a whole id");
    }
    for (path, bytes) in house.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("ledger.db") {
            continue;
        }
        let holds = |secret: &&str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!secrets.iter().any(holds), "{} holds a secret", path.display());
    }
}
