//! Pushes on a platform that loses answers, refuses, runs out of quota, or whose template dies.

use std::time::Duration;

use lianbo::domain::QuotaDay;
use lianbo::simulator::{DuplicateAnswer, Endpoint, Fault, Faults, Options, Order, SALE_TEMPLATE_ID, Template};

use crate::house::{House, crowd, ended, eventually, small};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_after_acceptance_send_nobody_twice() {
    for duplicate_answer in [DuplicateAnswer::SameMsgid, DuplicateAnswer::NewMsgid, DuplicateAnswer::Refused] {
        let house = House::build(small()).await;
        house.night().await;
        let faults = Faults {
            lost_answer_every: 7,
            lost_request_every: 11,
            busy_every: 13,
            duplicate_answer,
            ..Faults::default()
        };
        house.simulator.set_faults(faults);
        let people = house.matchable();
        let push = house.run("campaign", &["--wait"]).await.ends(0);
        assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0], "{duplicate_answer:?}");
        house.everybody_has_one();
        assert!(house.simulator.inbox().repeats_kept_off > 0, "no answer was lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_template_halts_the_push_and_after_the_mend_everybody_is_sent_to_once() {
    let mended = "nEwTeMpLaTe000000000000000000000000000000x1";
    let mut templates = Template::samples();
    templates.push(Template { template_id: mended.to_owned(), ..templates[0].clone() });
    let house = House::build(Options { templates, latency: Duration::from_millis(10), ..crowd(600) }).await;
    house.campaign("rate = \"300/s\"\nconcurrency = 16");
    house.night().await;
    let people = house.matchable();
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 60).await;
    assert!(house.simulator.kill_template(SALE_TEMPLATE_ID));
    let halted = ended(child).await.ends(3);
    assert_eq!(halted.json()["status"], "halted");
    assert_eq!(halted.stderr.matches("the push stops").count(), 1, "{}", halted.stderr);
    let messages = house.simulator.inbox().messages;
    let refused = house.calls("message/template/send") - messages;
    assert!((1..=16).contains(&refused), "{refused} calls were made to a dead template");
    assert_eq!(halted.counts(), [people, messages, 0, 0, 0, 0, people - messages]);

    let again = house.run("campaign", &[]).await.ends(3);
    assert_eq!(again.json()["run_id"], halted.json()["run_id"]);
    assert_eq!(house.calls("message/template/send"), messages + refused, "a halted push sent");
    house.edit("pipelines/campaign.toml", SALE_TEMPLATE_ID, mended);
    house.run("campaign", &[]).await.ends(3);
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_refuses_or_left_is_failed_and_left_out_of_the_next_campaign() {
    let house = House::build(small()).await;
    house.night().await;
    let matchable = house.simulator.matchable();
    let people = house.matchable();
    for openid in &matchable[..20] {
        assert!(house.simulator.refuse_template(openid, SALE_TEMPLATE_ID));
    }
    for openid in &matchable[20..35] {
        assert!(house.simulator.unfollow(openid));
    }
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people - 35, 35, 0, 0, 0, 0]);
    let codes = "select errcode, count(*) from deliveries where state = 'failed' group by errcode order by errcode";
    assert_eq!(house.rows(codes).await, [["43004", "15"], ["43101", "20"]]);

    house.simulator.clear_inbox();
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people - 35, people - 35, 0, 0, 0, 0, 0]);
    let left = "select reason, count(*) from left_out group by reason order by reason";
    assert_eq!(house.rows(left).await, [["gone", "15"], ["refused_template", "20"]]);
    assert_eq!(house.simulator.inbox().once, people - 35);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_under_review_are_held_and_the_push_goes_on() {
    let house = House::build(small()).await;
    house.night().await;
    house.simulator.order(Order::next(Fault::Errcode(40252)).at(Endpoint::TemplateSend).after(5).times(12));
    let people = house.matchable();
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people - 12, 0, 0, 12, 0, 0]);
    assert_eq!(house.simulator.inbox().once, people - 12);
    assert_eq!(push.json()["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_larger_than_the_quota_takes_its_days() {
    let mut options = crowd(2_800);
    options.quota.insert("message/template/send".to_owned(), 1_000);
    let house = House::build(options).await;
    house.write(
        "pipelines/campaign/audience.sql",
        "select oa_openid as openid, mp_openid from identities order by oa_openid limit 2500",
    );
    // Midday in Shanghai, so that no midnight comes by itself.
    let midday = QuotaDay::of(house.now()).next().starts_at() + chrono::TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    // The token centre's and the night's clocks stand at the same midday.
    house.night().await;
    let mut sent = 0;
    for day in [1_000, 1_000, 500] {
        let run = house.run("campaign", &[]).await;
        sent += day;
        assert_eq!(house.simulator.inbox().once, sent, "{run:?}");
        if sent == 2_500 {
            assert_eq!(run.ends(0).counts(), [2_500, 2_500, 0, 0, 0, 0, 0]);
            break;
        }
        let run = run.ends(75);
        assert_eq!(run.counts(), [2_500, sent, 0, 0, 0, 0, 2_500 - sent]);
        let until: lianbo::clock::Timestamp = run.json()["waiting_until"].as_str().unwrap().parse().unwrap();
        let midnight = QuotaDay::of(house.now()).next().starts_at();
        let late = until - midnight;
        assert!((0..=300).contains(&late.num_seconds()), "it waits until {until}, the day ends at {midnight}");
        // Too early there is nothing to do, and nothing is asked.
        let calls = house.calls("message/template/send");
        house.run("campaign", &[]).await.ends(75);
        assert_eq!(house.calls("message/template/send"), calls);
        house.pass((until - house.now()).num_seconds() + 12 * 3_600);
    }
    assert_eq!(house.simulator.inbox().twice_or_more, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_wants_approval_waits_for_the_hash_that_was_seen() {
    let house = House::build(small()).await;
    house.campaign("approve = true");
    house.night().await;
    let people = house.matchable();
    let waits = house.run("campaign", &[]).await.ends(75);
    assert_eq!(house.calls("message/template/send"), 0);
    let seen = house.lianbo(&["push", "show", "campaign", "--json"]).await.ends(0).json();
    let hash = find_hash(&seen);
    let wrong = "0".repeat(hash.len());
    let refused = house.lianbo(&["push", "approve", "campaign", "--hash", &wrong]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    house.run("campaign", &[]).await.ends(75);
    house.lianbo(&["push", "approve", "campaign", "--hash", &hash]).await.ends(0);

    // Another text is another push: the approval was for the one that was seen.
    house.edit("pipelines/campaign.toml", "99.00元", "88.00元");
    house.run("campaign", &[]).await.ends(75);
    assert_eq!(house.calls("message/template/send"), 0);
    let seen = house.lianbo(&["push", "show", "campaign", "--json"]).await.ends(0).json();
    let other = find_hash(&seen);
    assert_ne!(hash, other);
    house.lianbo(&["push", "approve", "campaign", "--hash", &other]).await.ends(0);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.json()["run_id"], waits.json()["run_id"]);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    let audit = "select count(*) from audit where command like '%approve%'";
    assert_eq!(house.numbers(audit).await, [2]);
}

/// The hash that `push show` tells to approve by.
fn find_hash(shown: &serde_json::Value) -> String {
    let hash = shown["pushes"][0]["approval_hash"].as_str();
    hash.unwrap_or_else(|| panic!("no hash is shown: {shown}")).to_owned()
}

/// A sale that names a number plate and a way of delivery, which WeChat documents more narrowly, and more widely, than it takes them.
fn delivered() -> Options {
    let mut options = small();
    let sale = &mut options.templates[0];
    sale.content.push_str("车牌:{{car_number4.DATA}}\n方式:{{const5.DATA}}\n");
    sale.declared.insert("const5".to_owned(), vec!["快递".to_owned(), "自提".to_owned()]);
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_fields_let_through_what_wechat_takes_and_keep_back_what_it_was_not_approved_for() {
    let house = House::build(delivered()).await;
    house.night().await;
    house.edit("pipelines/campaign.toml", "[params]\n", "[params]\nway = \"无人机\"\n");
    let more = "amount3 = \"99.00元\", car_number4 = \"A京·12\", const5 = \"{{ way }}\" }";
    house.edit("pipelines/campaign.toml", "amount3 = \"99.00元\" }", more);
    let said = house.run("campaign", &["--fresh"]).await;
    assert!(said.code != 0 && said.text().contains("car_number4") && !said.text().contains("const5"), "{said:?}");

    let fields = "[fields]\ncar_number = { form = \"any\" }\nconst5 = { values = [\"快递\", \"自提\"] }\n[engine]";
    house.edit("config/lianbo.toml", "[engine]", fields);
    house.lianbo(&["check"]).await.ends(0);
    let said = house.run("campaign", &["--fresh"]).await;
    assert!(said.code != 0 && said.text().contains("takes only 快递, 自提"), "{said:?}");
    assert!(!said.text().contains("car_number4"), "{said:?}");
    assert_eq!(house.calls("message/template/send"), 0, "the look ahead is over before the first send");

    house.run("campaign", &["--fresh", "--param", "way=快递"]).await.ends(0);
    house.everybody_has_one();
}
