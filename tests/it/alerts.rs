//! Whoever is to act is told, once a change, in the words of their chat; and while all is well a heart beats.

use std::time::Duration;

use lianbo::simulator::SALE_TEMPLATE_ID;
use serde_json::Value;

use crate::chat::Chat;
use crate::house::{House, comes_true, ended, eventually, signal, small, wide};
use crate::serve::{Serving, schedule_soon};

const SOON: Duration = Duration::from_secs(60);
const CONFIG: &str = "config/lianbo.toml";

/// A house that tells a chat.
async fn telling(style: &str) -> (House, Chat) {
    let (house, chat) = (House::build(small()).await, Chat::open().await);
    let config = house.read(CONFIG);
    house.write(CONFIG, &format!("{config}{}", chat.settings(style)));
    (house, chat)
}

/// A pipeline that is good or not, as its one number says.
fn judge(house: &House, is_good: bool, schedule: &str) {
    house.write("pipelines/judge/figures.sql", &format!("select {} as n\n", u8::from(is_good)));
    let check = "checks = { sql = \"select n from figures where n = 0\" }";
    house.write("pipelines/judge.toml", &format!("{schedule}\n[stages.figures]\nkind = \"sql\"\n{check}\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_and_a_recovery_are_told_once_each_in_the_shape_of_every_chat() {
    for style in ["plain", "wecom", "feishu", "dingtalk"] {
        let (house, chat) = telling(style).await;
        for (is_good, told) in [(true, 0), (false, 1), (false, 1), (true, 2), (true, 2)] {
            judge(&house, is_good, "");
            let run = house.run("judge", &[]).await.ends(i32::from(!is_good));
            assert_eq!(chat.alerts().len(), told, "{style}, {is_good}: {:?}; {run:?}", chat.alerts());
            assert!(!run.text().contains("sesame"), "{run:?}");
        }
        let said = chat.alerts().iter().map(|alert| words(style, alert)).collect::<Vec<_>>();
        let [failed, recovered] = &said[..] else { panic!("{said:?}") };
        for part in ["judge", "failed", "check sql", "lianbo run judge --continue"] {
            assert!(failed.contains(part), "{style}: {failed}");
        }
        assert!(recovered.contains("judge") && recovered.contains("succeeds again"), "{style}: {recovered}");
        assert_eq!(chat.heartbeats(), 0, "no run was scheduled");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_chat_that_is_down_could_not_be_told_is_told_later_in_its_order_and_not_after_a_day() {
    let (house, chat) = telling("plain").await;
    chat.set_down(true);
    judge(&house, false, "");
    let run = house.run("judge", &[]).await.ends(1);
    assert!(run.stderr.contains("could not be delivered") && run.stderr.contains("tries again"), "{run:?}");
    house.pass(25 * 3_600);
    // Whoever tells the next one tries the old one first: that is a day old, and is given up.
    judge(&house, true, "");
    house.run("judge", &[]).await.ends(0);
    house.pass(600);
    judge(&house, false, "");
    house.run("judge", &[]).await.ends(1);
    house.pass(600);
    let serving = Serving::begin(&house, &[]).await;
    chat.set_down(false);
    eventually(SOON, || chat.alerts().len() >= 2).await;
    serving.stop().await;
    assert_eq!(chat.statuses(), ["recovered", "failed"]);
    let first = &chat.alerts()[0];
    assert!(first["what"].as_str().unwrap().contains("told late"), "{first}");
    judge(&house, true, "");
    house.run("judge", &[]).await.ends(0);
    assert_eq!(chat.statuses(), ["recovered", "failed", "recovered"], "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_while_telling_leaves_it_to_the_next_run_though_that_has_nothing_to_tell() {
    let (house, chat) = telling("plain").await;
    judge(&house, false, "");
    chat.set_mute(true);
    let child = house.begin("judge");
    eventually(SOON, || chat.unanswered() > 0).await;
    signal(&child, "-KILL");
    ended(child).await.ends(-9);
    chat.set_mute(false);
    // It was tried a moment ago: whoever tried may still be at it.
    house.pass(31);
    house.run("judge", &[]).await.ends(1);
    assert_eq!(chat.statuses(), ["failed"]);
    house.run("judge", &[]).await.ends(1);
    assert_eq!(chat.statuses(), ["failed"], "once");
}

/// What a person reads in the chat.
fn words(style: &str, alert: &Value) -> String {
    let text = match style {
        "feishu" => alert["content"]["text"].as_str().filter(|_| alert["msg_type"] == "text"),
        "plain" => return format!("{} {} {}", alert["what"], alert["why"], alert["command"]),
        _ => alert["text"]["content"].as_str().filter(|_| alert["msgtype"] == "text"),
    };
    let text = text.unwrap_or_else(|| panic!("not the shape of {style}: {alert}"));
    assert!(text.starts_with("[Lianbo]"), "{text}");
    text.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_the_fires_it_skips_and_the_recovery_are_told_and_the_heart_beats_after_it() {
    let (house, chat) = telling("plain").await;
    house.night().await;
    let campaign = house.read("pipelines/campaign.toml");
    let gone = campaign.replace(SALE_TEMPLATE_ID, "gOnE0000000000000000000000000000000000000x1");
    house.write("pipelines/campaign.toml", &format!("schedule = \"*/4 * * * * *\"\n{gone}"));
    let serving = Serving::begin(&house, &[]).await;
    let because_halted = |alert: &&Value| alert["why"].as_str().is_some_and(|why| why.contains("is halted"));
    eventually(SOON, || chat.alerts().iter().any(|alert| because_halted(&alert))).await;
    serving.stop().await;
    let alerts = chat.alerts();
    let halted = alerts.iter().find(|alert| alert["status"] == "halted").unwrap_or_else(|| panic!("{alerts:?}"));
    assert!(halted["why"].as_str().unwrap().contains("40037"), "{halted}");
    let run_id = halted["run_id"].as_str().unwrap();
    assert_eq!(halted["command"], format!("lianbo push resume {run_id}"));
    let skipped: Vec<&Value> = alerts.iter().filter(because_halted).collect();
    let [skipped] = skipped[..] else { panic!("told more than once: {alerts:?}") };
    assert_eq!((&skipped["status"], &skipped["command"]), (&"fire_skipped".into(), &halted["command"]));
    assert!(skipped["why"].as_str().unwrap().contains(run_id), "{skipped}");
    assert_eq!((house.simulator.inbox().messages, chat.heartbeats()), (0, 0));

    house.write("pipelines/campaign.toml", &format!("schedule = \"0 0 3 1 1 *\"\n{campaign}"));
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    let serving = Serving::begin(&house, &[]).await;
    eventually(SOON, || chat.statuses().last().is_some_and(|last| last == "recovered")).await;
    eventually(SOON, || chat.heartbeats() == 1).await;
    serving.stop().await;
    house.everybody_has_one();
    let told: Vec<String> = chat.statuses().into_iter().filter(|status| status != "fire_skipped").collect();
    assert_eq!((told, chat.heartbeats()), (vec!["halted".to_owned(), "recovered".to_owned()], 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_waits_for_approval_is_told_with_what_to_look_at_and_its_success_is_no_recovery() {
    let (house, chat) = telling("plain").await;
    house.campaign("approve = true");
    house.night().await;
    schedule_soon(&house, 3);
    let serving = Serving::begin(&house, &[]).await;
    eventually(SOON, || chat.statuses() == ["waits_for_approval"]).await;
    let waits = chat.alerts().remove(0);
    let run_id = waits["run_id"].as_str().unwrap();
    assert_eq!(waits["command"], format!("lianbo push show {run_id}"));
    let shown = house.lianbo(&["push", "show", run_id, "--json"]).await.ends(0).json();
    let hash = shown["pushes"][0]["approval_hash"].as_str().unwrap().to_owned();
    house.lianbo(&["push", "approve", run_id, "--hash", &hash]).await.ends(0);
    eventually(SOON, || chat.heartbeats() == 1).await;
    serving.stop().await;
    house.everybody_has_one();
    assert_eq!(chat.statuses(), ["waits_for_approval"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_failure_and_its_recovery_are_told_once_and_only_success_beats_the_heart() {
    let (house, chat) = telling("plain").await;
    judge(&house, false, "schedule = \"*/2 * * * * *\"");
    let serving = Serving::begin(&house, &[]).await;
    // A slow machine may pass over a time because the run before it still goes on, and say so.
    let told = || chat.statuses().into_iter().filter(|status| status != "fire_skipped").collect::<Vec<_>>();
    eventually(SOON, || told() == ["failed"]).await;
    let runs = "select count(*) from runs where pipeline = 'judge'";
    comes_true(SOON, async || house.numbers(runs).await[0] >= 3).await;
    assert_eq!((told(), chat.heartbeats()), (vec!["failed".to_owned()], 0));
    judge(&house, true, "schedule = \"*/2 * * * * *\"");
    eventually(SOON, || told() == ["failed", "recovered"] && chat.heartbeats() >= 2).await;
    serving.stop().await;
    assert_eq!(told(), ["failed", "recovered"]);
    let succeeded = "select count(*) from runs where pipeline = 'judge' and status = 'succeeded'";
    let succeeded = house.numbers(succeeded).await[0];
    assert!(succeeded >= 2 && wide(chat.heartbeats()) <= succeeded, "{succeeded}, {}", chat.heartbeats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_cannot_end_before_it_expires_is_told_once_while_it_goes_on() {
    let (house, chat) = telling("plain").await;
    house.night().await;
    house.campaign("rate = \"5000/s\"\nexpires = \"1h\"");
    house.run("campaign", &[]).await.ends(0);
    assert_eq!(chat.statuses(), Vec::<String>::new(), "this one has time enough");

    house.campaign("rate = \"5/s\"\nexpires = \"20s\"\non_expiry = \"skip\"");
    let child = house.begin("campaign");
    eventually(SOON, || !chat.alerts().is_empty()).await;
    house.lianbo(&["push", "pause", "campaign"]).await.ends(0);
    let waits = ended(child).await.ends(75);
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    let over = house.run("campaign", &[]).await.ends(0);
    assert!(over.counts()[3] > 0, "somebody was skipped: {over:?}");
    assert_eq!(chat.statuses(), ["will_expire"]);
    let told = chat.alerts().remove(0);
    let run_id = waits.json()["run_id"].as_str().unwrap().to_owned();
    assert_eq!(told["command"], format!("lianbo push show {run_id}/push"));
    for part in ["expires at", "5.0/s", "would not be sent to"] {
        assert!(told["why"].as_str().unwrap().contains(part), "{part} is missing: {told}");
    }
}
