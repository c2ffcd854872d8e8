//! An account that was moved into another one: everybody has another openid there, and nothing of what is known of them,
//! owed to them or kept from them is lost.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lianbo::simulator::{Faults, Options, Simulator};

use crate::house::{House, Outcome, ended, eventually, outcome, signal, small, wide};

const OLD: &str = "wx0000000000000000";
const NEW: &str = "wx9999999999999999";
const MIGRATE: [&str; 5] = ["migrate", "main", "--from", OLD, "--json"];
/// Openids in one call.
const BATCH: u64 = 100;
const ABORTED: i32 = -6;
const KILLED: i32 = -9;

/// What is known of people, under whichever openid they have.
const KNOWN: &str = "select line from (
    select concat_ws('|', 'follower', openid, active, first_seen_at, last_seen_at) as line from followers
    union all select concat_ws('|', 'profile', openid, unionid, unionid_missing, subscribe_time) from profiles
    union all select concat_ws('|', 'identity', oa_openid, unionid, mp_openid) from identities
    union all select concat_ws('|', 'change', openid, change, source) from follower_changes
    union all select concat_ws('|', 'suppressed', openid, reason) from suppressions
    union all select concat_ws('|', 'membership', openid, membership, followed_at, left_at) from memberships
) order by line";
const FOLLOWERS: &str = "select count(*) from followers where active";

/// A campaign to everybody who follows, whatever is known of them.
async fn to_every_follower(house: &House, keys: &str) {
    house.campaign("");
    house.edit(
        "pipelines/campaign.toml",
        "account = \"main\"\n[stages.push]",
        &format!("account = \"main\"\n{keys}\n[stages.push]"),
    );
    house.write(
        "pipelines/campaign/audience.sql",
        "select openid, 'someone' as mp_openid from followers where active and account = 'main'\n",
    );
}

/// A house after two nights: somebody has left, somebody came.
async fn house(options: Options) -> House {
    let house = House::build(options).await;
    house.night().await;
    house.simulator.unfollow_some(5);
    house.simulator.follow_some(3);
    house.pass(86_400);
    house.night().await;
    house
}

/// The account is moved into another one, and the configuration says so. Everybody follows it who followed the first.
async fn move_account(house: &mut House, faults: Faults, changed: impl FnOnce(&mut Options)) -> Vec<String> {
    let old = &house.simulator;
    let mut options = Options { app_id: NEW.to_owned(), faults: Faults::default(), ..old.options().clone() };
    changed(&mut options);
    let new = Simulator::start(options).await.unwrap();
    new.advance(house.clock_offset_seconds.load(Ordering::SeqCst));
    let followers: Vec<String> = house.rows("select openid, active from followers").await.concat();
    let mut followed: BTreeMap<&str, bool> = BTreeMap::new();
    for row in followers.chunks(2) {
        followed.insert(&row[0], row[1] == "true");
    }
    for index in 0..old.options().followers + 10 {
        match followed.get(old.ids(index).0.as_str()) {
            Some(true) => drop(new.follow(&new.ids(index).0)),
            _ => drop(new.unfollow(&new.ids(index).0)),
        }
    }
    new.set_faults(faults);
    house.edit("config/lianbo.toml", &old.base_url(), &new.base_url());
    house.edit("config/lianbo.toml", OLD, NEW);
    let names: Vec<String> =
        (0..old.options().followers + 10).flat_map(|index| [old.ids(index).0, new.ids(index).0]).collect();
    house.simulator = new;
    names
}

/// The lines with the openids of now.
fn moved(lines: &[String], names: &[String]) -> Vec<String> {
    let names: BTreeMap<&str, &str> = names.chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let rename = |word: &str| names.get(word).map_or_else(|| word.to_owned(), |new| (*new).to_owned());
    let mut lines: Vec<String> =
        lines.iter().map(|line| line.split('|').map(rename).collect::<Vec<_>>().join("|")).collect();
    lines.sort_unstable();
    lines
}

async fn known(house: &House) -> Vec<String> {
    let mut lines: Vec<String> = house.rows(KNOWN).await.concat();
    lines.sort_unstable();
    lines
}

/// Of those who follow no more WeChat tells no new openid: their lines stay as they are.
fn still_there(names: &[String], left: &[String]) -> Vec<String> {
    names.chunks(2).filter(|pair| !left.contains(&pair[0])).flatten().cloned().collect()
}

async fn left(house: &House) -> Vec<String> {
    house.rows("select openid from followers where not active").await.concat()
}

async fn migrate(house: &House, more: &[&str]) -> Outcome {
    house.lianbo(&[&MIGRATE[..], more].concat()).await
}

async fn migrate_with(house: &House, name: &str, value: &str) -> Outcome {
    outcome(house.command(&MIGRATE).env(name, value).output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_has_the_openid_of_now_and_the_next_night_finds_nobody_come_or_gone() {
    let mut house = house(Options { bound_share: 0.7, ..small() }).await;
    to_every_follower(&house, "not_again = \"7d\"").await;
    let person = house.row("select openid from followers where active order by openid limit 1").await.remove(0);
    house.lianbo(&["suppress", "add", "--openid", &person, "--account", "main", "--reason", "asked"]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    let sent = house.numbers("select sent from pushes").await[0];
    let (before, gone) = (known(&house).await, left(&house).await);
    house.pass(43_200);

    let names = move_account(&mut house, Faults::default(), |_| ()).await;
    let order = format!("lianbo migrate main --from {OLD}");
    for command in [&["check"][..], &["plan", "nightly"], &["plan", "campaign"]] {
        let told = house.lianbo(command).await.ends(0).text();
        assert!(told.contains(&order), "{command:?}: {told}");
        let told = house.lianbo(&[command, &["--json"]].concat()).await.ends(0).json();
        assert!(told["refused"]["main"].as_str().unwrap().contains(&order), "{command:?}: {told}");
    }
    let refused = house.run("nightly", &[]).await.ends(1);
    let told = refused.stage("followers")["error"].as_str().unwrap().to_owned();
    assert!(told.contains(&format!("lianbo migrate main --from {OLD}")), "{told}");
    let refused = house.run("campaign", &[]).await.ends(1);
    assert!(refused.text().contains("lianbo migrate main"), "{refused:?}");
    assert_eq!((known(&house).await, house.calls("user/get")), (before.clone(), 0), "nothing is done before the move");

    let report = migrate(&house, &[]).await.ends(0).json();
    let followers = house.numbers(FOLLOWERS).await[0];
    assert_eq!((&report["status"], &report["moved"]), (&"succeeded".into(), &followers.into()), "{report}");
    assert_eq!((&report["refused"], &report["refused_followers"]), (&wide(gone.len()).into(), &0.into()), "{report}");
    assert_eq!(report["cancelled_runs"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(known(&house).await, moved(&before, &still_there(&names, &gone)));
    let counted = "select sum(calls) from api_calls where endpoint = 'changeopenid'";
    assert_eq!(house.numbers(counted).await[0], (followers + wide(gone.len())).div_ceil(BATCH));
    assert_eq!(house.numbers("select count(*) from audit where command = 'migrate'").await, [1]);
    assert_eq!(house.lianbo(&["check", "--json"]).await.ends(0).json()["refused"], serde_json::json!({}));
    let again = migrate(&house, &[]).await.ends(0).json();
    assert_eq!((&again["moved"], &again["api_calls"]), (&report["moved"], &serde_json::json!({})), "{again}");

    let changes = "select count(*) from follower_changes";
    let before = house.numbers(changes).await;
    house.pass(3_600);
    house.night().await;
    assert_eq!(house.numbers(changes).await, before, "nobody came or left");
    assert_eq!((house.numbers(FOLLOWERS).await[0], house.simulator.followers()), (followers, followers));
    assert_eq!(house.calls("user/info/batchget"), 0, "profiles are as fresh as they were");

    let run = house.run("campaign", &[]).await.ends(0);
    assert_eq!(house.numbers("select sum(sent) from pushes").await[0], sent, "nobody is sent to again: {run:?}");
    let reasons =
        "select reason, count(*) from left_out where run_id = (select max(run_id) from left_out) group by 1 order by 1";
    let wanted = [["not_again".to_owned(), sent.to_string()], ["suppressed".to_owned(), "1".to_owned()]];
    assert_eq!(house.rows(reasons).await, wanted);
    let without = house.numbers("select count(*) from deliveries where unionid is null").await[0];
    assert!(without > 100, "people without a unionid are told apart by their openid of then: {without}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_counts_what_went_to_the_openid_of_before() {
    let mut house = house(Options { bound_share: 0.5, ..small() }).await;
    to_every_follower(&house, "frequency_cap = { messages = 1, days = 7 }").await;
    house.run("campaign", &[]).await.ends(0);
    let sent = house.numbers("select sum(sent) from pushes").await;
    move_account(&mut house, Faults::default(), |_| ()).await;
    migrate(&house, &[]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    assert_eq!(house.numbers("select sum(sent) from pushes").await, sent);
    let capped = "select count(*) from left_out where reason = 'frequency_cap'";
    assert_eq!(house.numbers(capped).await, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_gives_no_token_costs_no_run_and_a_move_that_halts_neither() {
    let mut house = house(small()).await;
    move_account(&mut house, Faults { unmoved_every: 2, ..Faults::default() }, |_| ()).await;
    house.run("nightly", &[]).await.ends(1);
    let runs = "select run_id, status from runs order by run_id";
    let before = house.rows(runs).await;
    let refused = migrate_with(&house, "LIANBO_MAIN_SECRET", "of another account").await.ends(1);
    assert!(refused.text().contains("40125"), "{refused:?}");
    assert_eq!(house.rows(runs).await, before, "nothing is cancelled for nothing");
    assert_eq!(house.calls("changeopenid"), 0);
    let told = house.run("nightly", &[]).await.ends(1).text();
    assert!(!told.contains("is being moved"), "no move was begun: {told}");
    let before = house.rows(runs).await;
    migrate(&house, &[]).await.ends(3);
    assert_eq!(house.rows(runs).await, before, "a halted move has changed nothing");
    let report = migrate(&house, &["--accept-refused", "they left"]).await.ends(0).json();
    assert_eq!(report["cancelled_runs"].as_array().unwrap().len(), 1, "{report}");
}

/// The same people, and no more of them, wherever the process ends.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_killed_at_any_step_ends_as_one_that_never_was() {
    const POINTS: [&str; 12] = [
        "before_part_rename",
        "after_part_rename",
        "before_copy_rename",
        "after_copy_rename",
        "before_copy_rename",
        "after_copy_rename",
        "before_copy_rename",
        "after_copy_rename",
        "before_publish_commit",
        "after_publish_commit",
        "before_catalog_rename",
        "after_catalog_rename",
    ];
    let options = Options { followers: 250, users: 300, matched_users: 200, ..small() };
    let mut wanted: Option<Vec<String>> = None;
    for (number, point) in (0..).zip(POINTS) {
        let mut house = house(options.clone()).await;
        let (before, gone) = (known(&house).await, left(&house).await);
        let names = move_account(&mut house, Faults::default(), |_| ()).await;
        // The first copy is the list, the others are tables.
        let at = format!("{point}:{}", if (4..8).contains(&number) { number } else { 1 });
        let crashed = migrate_with(&house, "LIANBO_CRASH_AT", &at).await;
        assert_eq!(crashed.code, ABORTED, "{at} was not reached: {crashed:?}");
        let is_over = number >= 9;
        let expected = moved(&before, &still_there(&names, &gone));
        assert_eq!(known(&house).await, if is_over { expected.clone() } else { before }, "after {at}");
        migrate(&house, &[]).await.ends(0);
        assert_eq!(known(&house).await, expected, "after {at}");
        assert_eq!(house.calls("changeopenid"), 3, "after {at}: what was answered is not asked again");
        assert_eq!(house.numbers("select count(*) from audit where command = 'migrate'").await, [1], "after {at}");
        let changes = house.numbers("select count(*) from follower_changes").await;
        house.pass(3_600);
        house.night().await;
        assert_eq!(house.numbers("select count(*) from follower_changes").await, changes, "after {at}");
        let end = house.rows("select count(*) from followers union all select count(*) from identities").await.concat();
        assert_eq!(*wanted.get_or_insert(end.clone()), end, "after {at}");
        // What a process leaves that ends before the move has begun, `vacuum` finds.
        let lists = house.files().into_keys().filter(|path| path.ends_with("list.parquet")).count();
        assert!(number < 4 || lists == 0, "after {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_killed_while_it_asks_repeats_no_more_than_is_under_way() {
    let mut house = house(Options { followers: 1_500, ..small() }).await;
    let (before, gone) = (known(&house).await, left(&house).await);
    let names =
        move_account(&mut house, Faults::default(), |options| options.latency = Duration::from_millis(150)).await;
    let whole = wide(names.len() / 2 - 10 + 3).div_ceil(BATCH);
    for calls in [5, 11] {
        let mut child = house.command(&MIGRATE).spawn().unwrap();
        eventually(Duration::from_secs(60), || house.calls("changeopenid") >= calls).await;
        signal(&child, "-KILL");
        assert_eq!(outcome_of(&mut child).await, KILLED);
        assert_eq!(known(&house).await, before);
    }
    migrate(&house, &[]).await.ends(0);
    assert_eq!(known(&house).await, moved(&before, &still_there(&names, &gone)));
    let made = house.calls("changeopenid");
    assert!(made >= whole && made <= whole + 8, "{made} calls for {whole} batches");
}

async fn outcome_of(child: &mut tokio::process::Child) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let status = child.wait().await.unwrap();
    status.code().or_else(|| status.signal().map(|signal| -signal)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_calls_do_not_reach_goes_on_the_next_day_and_no_run_comes_between() {
    let mut house = house(small()).await;
    let (before, gone) = (known(&house).await, left(&house).await);
    let quota = BTreeMap::from([("changeopenid".to_owned(), 4)]);
    let names = move_account(&mut house, Faults::default(), |options| options.quota = quota).await;
    let report = migrate(&house, &[]).await.ends(75).json();
    // Calls side by side may arrive in another order: an answer behind the one that was refused is asked for again.
    let asked = report["asked"].as_u64().unwrap();
    assert!(report["status"] == "waiting" && (100..=400).contains(&asked) && asked % 100 == 0, "{report}");
    assert!(report["reason"].as_str().unwrap().contains("changeopenid calls"), "{report}");
    assert!(report["waiting_until"].is_string(), "{report}");
    assert_eq!(known(&house).await, before);
    let refused = house.run("nightly", &[]).await.ends(1);
    assert!(refused.text().contains(&format!("is being moved, and {asked} of")), "{refused:?}");
    let person = house.row("select unionid from profiles where unionid is not null limit 1").await.remove(0);
    let refused = house.lianbo(&["forget", "--unionid", &person]).await.ends(2);
    assert!(refused.text().contains("is being moved"), "{refused:?}");
    let other = house.lianbo(&["migrate", "main", "--from", "wx3333333333333333"]).await.ends(2);
    assert!(other.text().contains("--fresh"), "{other:?}");
    house.pass(86_400);
    migrate(&house, &[]).await.ends(0);
    assert_eq!(known(&house).await, moved(&before, &still_there(&names, &gone)));
    house.pass(86_400);
    house.night().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_openid_there_stays_as_gone_with_the_reason() {
    let mut house = house(small()).await;
    let followers = house.numbers(FOLLOWERS).await[0];
    let suppressed = house.rows("select openid from followers where active order by openid").await.concat();
    for openid in &suppressed {
        let reason = ["suppress", "add", "--openid", openid, "--account", "main", "--reason", "asked"];
        if openid.ends_with(['A', 'B']) {
            house.lianbo(&reason).await.ends(0);
        }
    }
    let kept = house.numbers("select count(*) from suppressions").await[0];
    move_account(&mut house, Faults { unmoved_every: 12, ..Faults::default() }, |_| ()).await;
    let report = migrate(&house, &[]).await.ends(0).json();
    let refused = report["refused_followers"].as_u64().unwrap();
    assert!(refused > 20 && refused < 100, "{report}");
    assert_eq!(house.numbers(FOLLOWERS).await, [followers - refused]);
    let told = "select count(*) from moved_openids m join followers f using (openid)
        where m.reason = 'ori_openid error' and m.new_openid is null and not f.active";
    assert_eq!(house.numbers(told).await[0], report["refused"].as_u64().unwrap());
    let left = "select count(*) from follower_changes where source = 'migration' and change = 'unfollow'";
    assert_eq!(house.numbers(left).await, [refused]);
    let ended = "select count(*) from memberships join follower_changes using (openid) where source = 'migration' and left_at is not null";
    assert_eq!(house.numbers(ended).await, [refused]);
    let by_unionid =
        "select count(*) filter (openid is not null), count(*) filter (unionid is not null) from suppressions";
    let now = house.numbers(by_unionid).await;
    assert_eq!(now[0], kept, "suppressions stay");
    // They come back with the walk, under an openid that nobody could tell of.
    house.pass(3_600);
    house.night().await;
    let came = "select count(*) from follower_changes where source = 'walk' and change = 'follow' and openid not in (
        select new_openid from moved_openids where new_openid is not null)";
    let came = house.numbers(came).await[0];
    assert_eq!((came, house.numbers(FOLLOWERS).await[0]), (refused, followers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_most_are_refused_of_changes_nothing_before_a_person_says_so() {
    let mut house = house(small()).await;
    let before = known(&house).await;
    move_account(&mut house, Faults { unmoved_every: 2, ..Faults::default() }, |_| ()).await;
    let wrong = house.lianbo(&["migrate", "main", "--from", "wx3333333333333333"]).await.ends(2);
    assert!(wrong.text().contains(&format!("--from {OLD}")), "{wrong:?}");
    let wrong = house.lianbo(&["migrate", "main", "--from", NEW]).await.ends(2);
    assert!(wrong.text().contains("still has the app id"), "{wrong:?}");
    let halted = migrate(&house, &[]).await.ends(3).json();
    assert!(halted["reason"].as_str().unwrap().contains("ori_openid error"), "{halted}");
    assert_eq!(known(&house).await, before);
    let calls = house.calls("changeopenid");
    house.simulator.set_faults(Faults::default());
    migrate(&house, &[]).await.ends(3);
    assert_eq!(house.calls("changeopenid"), calls, "what was answered is not asked again");
    let done = migrate(&house, &["--fresh"]).await.ends(0).json();
    assert_eq!(done["refused_followers"], 0, "{done}");
    assert_eq!(house.calls("changeopenid"), 2 * calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_is_not_over_keeps_an_account_from_being_moved_and_two_moves_are_one() {
    let mut house = house(small()).await;
    house.campaign("rate = \"40/s\"\nconcurrency = 4");
    let push = house.begin("campaign");
    eventually(Duration::from_secs(60), || house.calls("message/template/send") > 5).await;
    let copy = house.read("config/lianbo.toml");
    house.edit("config/lianbo.toml", OLD, NEW);
    let busy = migrate(&house, &[]).await.ends(75).json();
    assert!(busy["reason"].as_str().unwrap().contains("pipeline `campaign` runs now"), "{busy}");
    house.write("config/lianbo.toml", &copy);
    signal(&push, "-TERM");
    ended(push).await.ends(75);
    move_account(&mut house, Faults::default(), |options| options.latency = Duration::from_millis(100)).await;
    let owed = migrate(&house, &[]).await.ends(75).json();
    assert!(owed["reason"].as_str().unwrap().contains("is not over"), "{owed}");
    let cancel = owed["next"][0].as_str().unwrap().to_owned();
    let words: Vec<&str> = cancel.split(' ').skip(1).collect();
    house.run("campaign", &["--continue"]).await.ends(1);
    assert_eq!(house.calls("message/template/send"), 0, "nobody is sent to under the openid of before");
    house.lianbo(&words).await.ends(0);
    let (one, other) = tokio::join!(migrate(&house, &[]), migrate(&house, &[]));
    let mut codes = [one.code, other.code];
    codes.sort_unstable();
    assert!(codes == [0, 75] || codes == [0, 0], "{one:?} {other:?}");
    assert_eq!(house.numbers("select count(*) from audit where command = 'migrate'").await, [1]);
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
}
