//! Events that WeChat posts, the whole way: from the simulator's postmen through a process that serves into the tables.

use std::time::Duration;

use lianbo::simulator::{Callback, CallbackMode, CallbackReport, Faults, FinishHabits, Options};
use serde_json::json;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::house::{House, comes_true, crowd, eventually, small};
use crate::serve::{SOON, Serving};

const TOKEN: &str = "callback-token-0123";
/// The last character carries bits that belong to no byte of the key.
const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

/// A house whose account takes callbacks.
pub async fn house(options: Options) -> House {
    let house = House::build(options).await;
    let config = house.read("config/lianbo.toml");
    let callback = format!("[accounts.main.callback]\ntoken = \"{TOKEN}\"\nencoding_aes_key = \"{KEY}\"\n");
    house.write("config/lianbo.toml", &(config + &callback));
    house
}

/// Enters the address of whoever serves in the account's console.
pub fn enter(house: &House, serving: &Serving, mode: CallbackMode) {
    let url = format!("http://{}/callback/main", serving.address);
    house.simulator.set_callback(&Callback::new(url, TOKEN).sealed(mode, KEY)).unwrap();
}

fn finish(habits: FinishHabits) -> Faults {
    Faults { finish: FinishHabits { delay_milliseconds: 0, ..habits }, ..Faults::default() }
}

/// Waits until the platform has nothing left to post.
pub async fn all_posted(house: &House, posts: u64) -> CallbackReport {
    eventually(SOON, || {
        let report = house.simulator.callbacks();
        report.waiting == 0 && report.taken + report.given_up >= posts
    })
    .await;
    house.simulator.callbacks()
}

/// Waits until a query of one row gives this.
#[track_caller]
pub fn comes_to(house: &House, sql: &str, wanted: &[u64]) -> impl Future<Output = ()> {
    let mut looks = 0;
    comes_true(SOON, async move || {
        let last = house.numbers(sql).await;
        // A story that fails tells what it last saw.
        looks += 1;
        if last != wanted && looks % 20 == 0 {
            println!("{sql} gives {last:?} and not {wanted:?}");
        }
        last == wanted
    })
}

/// The answer to a request that is written out.
async fn ask(serving: &Serving, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(&serving.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

pub fn signed() -> String {
    let mut parts = [TOKEN, "1764000000", "4711"];
    parts.sort_unstable();
    let signature: String = Sha1::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("signature={signature}&timestamp=1764000000&nonce=4711")
}

pub async fn post(serving: &Serving, path: &str, body: &str) -> (u16, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    ask(serving, (head + body).as_bytes()).await
}

pub fn event(openid: &str, inner: &str) -> String {
    format!(
        "<xml><ToUserName><![CDATA[gh_a]]></ToUserName><FromUserName><![CDATA[{openid}]]></FromUserName>\
         <CreateTime>1764000000</CreateTime><MsgType><![CDATA[event]]></MsgType>{inner}</xml>"
    )
}

const FATES: &str = "select count(*) filter (delivered = 'success'), count(*) filter (delivered <> 'success'),
    count(*) filter (delivered is null) from deliveries where run_id = (select max(run_id) from pushes)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finish_events_reach_their_deliveries_in_every_mode_however_they_come() {
    let house = house(small()).await;
    house.night().await;
    let serving = Serving::begin(&house, &[]).await;
    house.simulator.set_faults(finish(FinishHabits {
        spread_milliseconds: 400,
        repeated_every: 5,
        user_block_every: 9,
        system_failed_every: 11,
        freq_limit_every: 13,
        unheard_status_every: 17,
        ..FinishHabits::default()
    }));
    let people = house.matchable();
    for (round, mode) in [CallbackMode::Plain, CallbackMode::Compatible, CallbackMode::Safe].into_iter().enumerate() {
        enter(&house, &serving, mode);
        house.simulator.check_callback();
        let checked = u64::try_from(round).unwrap() + 1;
        eventually(SOON, || house.simulator.callbacks().checks_passed == checked).await;
        house.simulator.clear_inbox();
        house.run("campaign", &[]).await.ends(0);
        all_posted(&house, people * checked).await;
        let inbox = house.simulator.inbox();
        assert!(inbox.undelivered > 0 && inbox.messages + inbox.undelivered == people, "{inbox:?}");
        comes_to(&house, FATES, &[inbox.messages, inbox.undelivered, 0]).await;
        assert_eq!(house.numbers("select count(*) from callbacks").await, [people * checked]);
    }
    let report = house.simulator.callbacks();
    assert_eq!((report.given_up, report.checks_failed), (0, 0), "{report:?}");
    assert!(report.taken > 3 * people, "none came twice: {report:?}");
    let states = "select count(*) filter (state = 'sent' and delivered = 'blocked') > 0,
        count(*) filter (state <> 'sent') from deliveries";
    assert_eq!(house.row(states).await, ["true", "0"]);

    let before = house.rows("select seq, delivered, delivered_at, state from deliveries order by all").await;
    let replayed = house.lianbo(&["callbacks", "replay", "--json"]).await.ends(0).json();
    assert_eq!((&replayed["looked_at"], &replayed["told"]), (&json!(3 * people), &json!(0)));
    assert_eq!(house.rows("select seq, delivered, delivered_at, state from deliveries order by all").await, before);
    let listed = house.lianbo(&["callbacks", "list"]).await.ends(0);
    assert!(listed.stdout.contains("TEMPLATESENDJOBFINISH"), "{listed:?}");
    let (_, metrics) = serving.get("/metrics").await;
    assert!(metrics.contains("lianbo_callbacks_total{account=\"main\",event=\"TEMPLATESENDJOBFINISH\"}"), "{metrics}");
    assert!(metrics.contains("lianbo_callbacks_waiting 0"), "{metrics}");
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_without_an_id_that_overtake_their_answers_find_their_deliveries_and_missing_ones_hang_nothing() {
    let house = house(Options { latency: Duration::from_millis(40), ..small() }).await;
    house.night().await;
    let serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    house.simulator.set_faults(finish(FinishHabits {
        msgid_zero: true,
        missing_every: 6,
        user_block_every: 10,
        ..FinishHabits::default()
    }));
    let push = house.run("campaign", &[]).await.ends(0);
    let people = house.matchable();
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    eventually(SOON, || house.simulator.callbacks().waiting == 0).await;
    let told = house.simulator.callbacks().taken;
    assert!(told > people / 2 && told < people, "{told} of {people}");
    let known = "select count(*) filter (delivered is not null), count(*) filter (delivered is null) from deliveries";
    comes_to(&house, known, &[told, people - told]).await;
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_for_review_is_settled_by_its_event() {
    let house = house(small()).await;
    house.night().await;
    let serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Plain);
    house.simulator.set_faults(Faults { audit_every: 8, ..finish(FinishHabits::default()) });
    let people = house.matchable();
    let held = people / 8;
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people - held, 0, 0, held, 0, 0]);
    eventually(SOON, || house.simulator.callbacks().taken == people - held).await;
    house.simulator.advance(1_900);
    all_posted(&house, people).await;
    comes_to(&house, "select sent, held, failed from pushes", &[people, 0, 0]).await;
    assert_eq!(house.numbers(FATES).await, [people, 0, 0]);
    house.everybody_has_one();
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kill_left_unconfirmed_is_settled_by_events_that_came_before() {
    let house = house(Options { latency: Duration::from_millis(300), ..crowd(300) }).await;
    house.campaign("rate = \"80/s\"\nconcurrency = 64");
    house.night().await;
    let mut serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    house.simulator.set_faults(finish(FinishHabits { msgid_zero: true, ..FinishHabits::default() }));
    let mut child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 60).await;
    // Both at once: whoever serves would go on with a run whose process died.
    serving.child.kill().await.unwrap();
    child.kill().await.unwrap();
    eventually(SOON, || house.simulator.callbacks().waiting == 0).await;
    house.pass(660);
    let push = house.run("campaign", &[]).await.ends(0);
    let outcomes = house.rows("select outcome, count(*) from callbacks group by all order by all").await;
    let [recipients, sent, _, _, _, unconfirmed, _] = push.counts();
    assert!(outcomes.iter().any(|row| row[0] == "settled"), "nothing was in doubt: {outcomes:?} {:?}", push.counts());
    assert_eq!(sent + unconfirmed, recipients);
    let inbox = house.simulator.inbox();
    assert!(sent <= inbox.once && inbox.twice_or_more == 0, "{sent} are sent, and {inbox:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_left_alone_and_who_left_and_came_in_one_second_is_asked_for() {
    let house = house(small()).await;
    house.night().await;
    let serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    let matchable = house.simulator.matchable();
    let (gone, doubted) = (&matchable[0], &matchable[1]);
    assert!(house.simulator.unfollow(gone));
    let asked = house.calls("user/info");
    let now = house.now().timestamp();
    for (openid, event, at) in [
        (gone, "subscribe", now - 60),
        (doubted, "unsubscribe", now + 5),
        (doubted, "subscribe", now + 5),
        (doubted, "LOCATION", now + 5),
    ] {
        let order = json!({ "openid": openid, "event": event, "created_at_seconds": at, "copies": 2 });
        let body = order.to_string();
        let request = format!(
            "POST /_simulator/event HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(house.simulator.base_url().trim_start_matches("http://")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("true"), "{answer}");
    }
    all_posted(&house, 9).await;
    comes_to(&house, "select count(*) from callbacks where applied_at is not null", &[4]).await;
    eventually(SOON, || house.calls("user/info") == asked + 1).await;
    let people = u64::try_from(matchable.len()).unwrap();
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people - 1, people - 1, 0, 0, 0, 0, 0]);
    assert_eq!(house.calls("message/template/send"), people - 1);
    assert_eq!((house.simulator.received(gone), house.simulator.received(doubted)), (0, 1));
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_sign_and_whatever_is_no_event_changes_nothing() {
    let house = house(small()).await;
    let serving = Serving::begin(&house, &[]).await;
    let (query, wrong) = (signed(), signed().replace("nonce=4711", "nonce=4712"));
    let unsubscribe = event("oSOMEBODY", "<Event><![CDATA[unsubscribe]]></Event>");
    let check = |query: &str| {
        format!("GET /callback/main?{query}&echostr=abc HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    };
    assert_eq!(ask(&serving, check(&query).as_bytes()).await, (200, "abc".to_owned()));
    let refused = ask(&serving, check(&wrong).as_bytes()).await;
    assert!(refused.0 == 403 && !refused.1.contains("abc"), "{refused:?}");

    let ours = format!("/callback/main?{query}");
    let bomb =
        format!("<!DOCTYPE xml [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]>{}", unsubscribe.replace("oSOME", "&b;"));
    let large = unsubscribe.replace("</xml>", &format!("<Pad>{}</Pad></xml>", "x".repeat(70_000)));
    let deep = unsubscribe.replace("</xml>", &format!("{}{}</xml>", "<d>".repeat(50), "</d>".repeat(50)));
    let sealed = "<xml><ToUserName>gh_a</ToUserName><Encrypt>AAAA</Encrypt></xml>";
    for (path, body, status) in [
        (format!("/callback/main?{wrong}"), unsubscribe.as_str(), 403),
        ("/callback/main".to_owned(), &unsubscribe, 403),
        (format!("/callback/nobody?{query}"), &unsubscribe, 404),
        (ours.clone(), &bomb, 400),
        (ours.clone(), &deep, 400),
        (ours.clone(), &large, 413),
        (ours.clone(), "", 400),
        (ours.clone(), sealed, 403),
        (format!("{ours}&encrypt_type=aes&msg_signature=00"), sealed, 403),
    ] {
        let answer = post(&serving, &path, body).await;
        assert_eq!(answer.0, status, "{path} {answer:?} {}", &body[..body.len().min(90)]);
    }
    let text = "<xml><FromUserName>oA</FromUserName><CreateTime>1</CreateTime><MsgType>text</MsgType><Content>hi</Content>\
                <MsgId>7</MsgId></xml>";
    assert_eq!(post(&serving, &ours, text).await, (200, "success".to_owned()));
    let unknown = event("oSOMEBODY", "<Event>SCAN</Event><EventKey>9</EventKey>");
    assert_eq!(post(&serving, &ours, &unknown).await, (200, "success".to_owned()));
    assert_eq!(house.numbers("select count(*) from callbacks").await, [0]);
    assert_eq!(post(&serving, &ours, &unsubscribe).await, (200, "success".to_owned()));
    assert_eq!(post(&serving, &ours, &unsubscribe).await, (200, "success".to_owned()));
    assert_eq!(house.numbers("select count(*) from callbacks").await, [1]);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_success_survives_a_kill_and_is_applied_by_the_next_run() {
    let house = house(small()).await;
    house.night().await;
    let mut serving = Serving::begin(&house, &[]).await;
    enter(&house, &serving, CallbackMode::Safe);
    // Ten minutes late, and spread over one: the platform's clock decides how many have come by the kill.
    let late = FinishHabits { delay_milliseconds: 600_000, spread_milliseconds: 60_000, ..FinishHabits::default() };
    house.simulator.set_faults(Faults { finish: late, ..Faults::default() });
    house.run("campaign", &[]).await.ends(0);
    house.simulator.advance(606);
    eventually(SOON, || house.simulator.callbacks().taken >= 20).await;
    serving.child.kill().await.unwrap();
    house.simulator.advance(120);
    let report = all_posted(&house, house.matchable()).await;
    assert!(report.given_up > 0, "the kill came too late: {report:?}");
    let kept = house.numbers("select count(*) from callbacks").await[0];
    assert!(kept >= report.taken, "{kept} were kept of {report:?}");
    house.night().await;
    comes_to(&house, "select count(*) from callbacks where applied_at is not null", &[kept]).await;
    assert_eq!(house.numbers("select count(*) from deliveries where delivered = 'success'").await, [kept]);
}
