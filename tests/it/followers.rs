//! Who follows, between two walks and through them: what events tell is in the tables at once, and told once.

use std::time::Duration;

use lianbo::simulator::{CallbackMode, Options};

use crate::callbacks::{all_posted, comes_to, enter, event, house, post, signed};
use crate::house::{House, eventually, small};
use crate::serve::{SOON, Serving};

const APPLIED: &str = "select count(*) from callbacks where applied_at is not null";
/// Who follows by their dated memberships, all of these, and who follows by the table of followers.
const MEMBERS: &str = "select count(*) filter (left_at is null), count(*), \
                       (select count(*) from followers where active) from memberships";
const STANDING: &str = "select count(*) filter (where active), count(*) from followers";

/// Every change of a person, in order, as `change source`.
async fn changes(house: &House, openid: &str) -> Vec<String> {
    let sql = format!("select change, source from follower_changes where openid = '{openid}' order by seen_at, change");
    house.rows(&sql).await.into_iter().map(|row| row.join(" ")).collect()
}

/// Walks whenever it runs, or takes a younger walk as it is.
fn reuse(house: &House, is_on: bool) {
    let (without, with) = ("kind = \"extract_followers\"\n", "kind = \"extract_followers\"\nreuse_within = \"10d\"\n");
    let (from, to) = if is_on { (without, with) } else { (with, without) };
    house.edit("pipelines/nightly.toml", from, to);
}

/// Posts an event as the platform would, of a moment that the story chooses.
async fn tell(serving: &Serving, openid: &str, name: &str, at: i64) {
    let body = event(openid, &format!("<Event><![CDATA[{name}]]></Event>")).replace("1764000000", &at.to_string());
    let answer = post(serving, &format!("/callback/main?{}", signed()), &body).await;
    assert_eq!(answer, (200, "success".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_and_goes_between_walks_is_in_the_tables_at_once_and_each_change_is_told_once() {
    let house = house(small()).await;
    house.night().await;
    house.pass(60);
    let serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    let matchable = house.simulator.matchable();
    let [gone, back, silent] = [0, 1, 2].map(|index: usize| matchable[index].as_str());
    assert!(house.simulator.unfollow(gone) && house.simulator.unfollow(back));
    all_posted(&house, 2).await;
    comes_to(&house, APPLIED, &[2]).await;
    house.pass(5);
    assert!(house.simulator.follow(back));
    let new = house.simulator.follow_some(1).remove(0);
    all_posted(&house, 4).await;
    comes_to(&house, APPLIED, &[4]).await;
    assert_eq!(house.numbers(STANDING).await, [600, 601]);
    assert_eq!(changes(&house, gone).await, ["unfollow event"]);
    assert_eq!(changes(&house, back).await, ["unfollow event", "follow event"]);
    assert_eq!(changes(&house, &new).await, ["follow event"]);
    let shown = || {
        let catalog = crate::catalog::open(&house.path("data/catalog.duckdb"));
        let count = |sql: &str| catalog.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        // What came within the ten minutes that the catalog may be behind is not waited for.
        (count("select count(*) from followers where active") < 600, count("select count(*) from follower_changes") > 0)
    };
    eventually(SOON, || shown() == (true, true)).await;
    house.lianbo(&["callbacks", "replay"]).await.ends(0);
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [4]);

    let spans = |who: &str| {
        let person = "membership, left_at is null, left_at >= followed_at".to_owned();
        let sql = format!("select {person} from memberships where openid = '{who}' order by membership");
        let house = &house;
        async move { house.rows(&sql).await.into_iter().map(|row| row.join(" ")).collect::<Vec<_>>() }
    };
    assert_eq!(spans(gone).await, ["1 false true"]);
    assert_eq!(spans(back).await, ["1 false true", "2 true "]);
    assert_eq!(spans(&new).await, ["1 true "]);
    assert_eq!(house.numbers(MEMBERS).await, [600, 602, 600]);

    let push = house.run("campaign", &[]).await.ends(0);
    let people = u64::try_from(matchable.len()).unwrap();
    assert_eq!(push.counts()[..2], [people - 1, people - 1]);
    assert_eq!((house.simulator.received(gone), house.simulator.received(back)), (0, 1));

    let walked = house.calls("user/get");
    reuse(&house, true);
    house.night().await;
    assert_eq!(house.calls("user/get"), walked, "the walk was to be taken as it is");
    let asked = format!("select count(*) from profiles where openid = '{new}' and fetched_at is not null");
    assert_eq!(house.numbers(&asked).await, [1]);
    let tied = format!("select count(*) from identities where oa_openid = '{gone}'");
    assert_eq!(house.numbers(&tied).await, [0]);
    assert_eq!(
        house.numbers("select followers from coverage where account = 'main' and miniprogram = 'mall'").await,
        [600]
    );

    reuse(&house, false);
    house.night().await;
    assert!(house.calls("user/get") > walked);
    assert_eq!(house.numbers(STANDING).await, [600, 601]);
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [4], "the walk told again");
    serving.stop().await;

    assert!(house.simulator.unfollow(silent));
    house.pass(60);
    house.night().await;
    assert_eq!(changes(&house, silent).await, ["unfollow walk"]);
    assert_eq!(spans(silent).await, ["1 false true"]);
    assert_eq!(house.numbers(MEMBERS).await, [599, 602, 599]);
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [5]);
    assert_eq!(changes(&house, back).await, ["unfollow event", "follow event"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_during_a_walk_wins_over_it_and_the_walk_over_an_earlier_one() {
    let house = house(Options { latency: Duration::from_millis(250), ..small() }).await;
    house.night().await;
    house.pass(7_200);
    let serving = Serving::begin(&house, &[]).await;
    let matchable = house.simulator.matchable();
    let (leaver, stayer, stranger) = (matchable[0].as_str(), matchable[1].as_str(), "oSTRANGER-of-0123456789abcde");
    let before = house.now().timestamp();
    tell(&serving, stayer, "unsubscribe", before - 3_600).await;
    comes_to(&house, APPLIED, &[1]).await;
    assert_eq!(house.numbers(STANDING).await, [599, 600]);

    let walked = house.calls("user/get");
    let night = house.begin("nightly");
    eventually(SOON, || house.calls("user/get") >= walked + 2).await;
    let during = house.now().timestamp();
    tell(&serving, leaver, "unsubscribe", during).await;
    tell(&serving, stranger, "subscribe", during).await;
    // Repeats and what was overtaken say nothing new.
    tell(&serving, leaver, "subscribe", before - 60).await;
    tell(&serving, leaver, "unsubscribe", during).await;
    let night = crate::house::ended(night).await.ends(0);
    assert_eq!(night.json()["status"], "succeeded");
    comes_to(&house, APPLIED, &[4]).await;
    let standing = |openid: &str| format!("select active from followers where openid = '{openid}'");
    for (openid, active, told) in [
        (leaver, "false", vec!["unfollow event"]),
        (stranger, "true", vec!["follow event"]),
        (stayer, "true", vec!["unfollow event", "follow walk"]),
    ] {
        assert_eq!(house.rows(&standing(openid)).await, [[active]], "{openid}");
        assert_eq!(changes(&house, openid).await, told, "{openid}");
    }
    assert_eq!(house.numbers(STANDING).await, [600, 601]);

    // The next walk is younger than all of it: the platform knows the one, and not the other.
    house.pass(3_600);
    house.night().await;
    assert_eq!(changes(&house, leaver).await, ["unfollow event", "follow walk"]);
    assert_eq!(changes(&house, stranger).await, ["follow event", "unfollow walk"]);
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [6]);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_events_told_of_is_a_drop_against_the_last_walk_all_the_same() {
    let house = house(small()).await;
    let gate = "kind = \"extract_followers\"\nchecks = { max_drop = 0.05 }";
    house.edit("pipelines/nightly.toml", "kind = \"extract_followers\"", gate);
    house.night().await;
    house.pass(60);
    let serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    assert_eq!(house.simulator.unfollow_some(40).len(), 40);
    all_posted(&house, 40).await;
    comes_to(&house, APPLIED, &[40]).await;
    assert_eq!(house.numbers(STANDING).await, [560, 600]);
    let failed = house.run("nightly", &[]).await.ends(1);
    let told = failed.stage("followers")["error"].as_str().unwrap().to_owned();
    assert!(told.contains("main: 560 active followers after 600"), "{told}");
}
