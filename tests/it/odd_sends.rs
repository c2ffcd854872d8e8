//! Sends on an odd platform: what is not WeChat's answer, codes that condemn, codes that do not, and a day that ends early.

use std::collections::BTreeMap;
use std::time::Duration;

use lianbo::clock::Timestamp;
use lianbo::domain::QuotaDay;
use lianbo::simulator::{Endpoint, Fault, Faults, Options, Order};

use crate::house::{House, comes_true, crowd, ended, signal, small};

/// A house after its night, and how many can be sent to.
async fn after_the_night(options: Options) -> (House, u64) {
    let house = House::build(options).await;
    house.night().await;
    let people = house.matchable();
    (house, people)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_wechats_and_answers_that_come_late_send_nobody_twice() {
    let (house, people) = after_the_night(small()).await;
    for (fault, after) in
        [(Fault::NotJson, 10), (Fault::BrokenJson, 40), (Fault::Status(502), 60), (Fault::LateAnswer(3_500), 80)]
    {
        house.simulator.order(Order::next(fault).at(Endpoint::TemplateSend).after(after).times(3));
    }
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert!(house.calls("message/template/send") >= people + 12);
    assert!(house.simulator.inbox().repeats_kept_off >= 6, "{:?}", house.simulator.inbox());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_412_halts_at_once_and_says_that_the_request_had_no_length() {
    let (house, people) = after_the_night(small()).await;
    house.campaign("concurrency = 8");
    house.simulator.order(Order::next(Fault::Status(412)).at(Endpoint::TemplateSend).times(1_000));
    let halted = house.run("campaign", &[]).await.ends(3);
    assert_eq!(halted.counts(), [people, 0, 0, 0, 0, 0, people]);
    let reason = halted.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("412") && reason.contains("length"), "{reason}");
    assert!((1..=8).contains(&house.calls("message/template/send")));
    house.simulator.clear_orders();
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_not_listed_is_never_repeated_and_fails_the_night_with_what_to_do() {
    let house = House::build(Options { faults: Faults { ip_not_listed: true, ..Faults::default() }, ..small() }).await;
    let failed = house.run("nightly", &[]).await.ends(1);
    let reason = failed.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("40164") && reason.contains("203.0.113.7"), "{reason}");
    assert_eq!((house.calls("stable_token"), house.calls("user/get")), (1, 0));
    house.simulator.set_faults(Faults::default());
    house.night().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_refused_for_everybody_alike_halts_and_a_persons_own_field_fails_that_person_alone() {
    let (house, people) = after_the_night(small()).await;
    house.campaign("concurrency = 8");
    let spoilt = |field: &str, times| {
        let text = format!("argument invalid! data.{field}.value invalid");
        Order::next(Fault::Refusal(47003, text)).at(Endpoint::TemplateSend).after(20).times(times)
    };
    // thing1 and amount3 are constant in this campaign.
    house.simulator.order(spoilt("amount3", 1_000));
    let halted = house.run("campaign", &[]).await.ends(3);
    let sent = house.simulator.inbox().messages;
    assert_eq!(halted.counts(), [people, sent, 0, 0, 0, 0, people - sent]);
    let reason = halted.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("47003") && reason.contains("amount3"), "{reason}");
    assert!(house.calls("message/template/send") - sent <= 8);

    house.simulator.clear_orders();
    house.edit("pipelines/campaign.toml", "99.00元", "{{ price }}元");
    house.write(
        "pipelines/campaign/audience.sql",
        "select oa_openid as openid, unionid, mp_openid, '88.00' as price from identities where account = 'main'",
    );
    house.simulator.clear_inbox();
    house.simulator.order(spoilt("amount3", 5));
    let push = house.run("campaign", &["--fresh"]).await.ends(0);
    assert_eq!(push.counts(), [people, people - 5, 5, 0, 0, 0, 0]);
    let failed = "select errcode, reason, count(*) from deliveries where state = 'failed' group by all";
    assert_eq!(house.rows(failed).await, [["47003", "field `amount3` refused", "5"]]);
    assert_eq!(house.simulator.inbox().once, people - 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_days_quota_that_ends_before_the_panel_says_so_waits_for_tomorrow_and_loses_nobody() {
    let (house, people) = after_the_night(small()).await;
    let midday = QuotaDay::of(house.now()).next().starts_at() + chrono::TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    // The panel's limit itself is spent by other systems: used up there, and 45009 comes for real.
    let mut hidden = BTreeMap::new();
    hidden.insert("message/template/send".to_owned(), 100);
    house.simulator.set_faults(Faults { hidden_limits: hidden, ..Faults::default() });
    house.campaign("concurrency = 8\nrate = \"200/s\"");
    let mut child = house.begin("campaign");
    crate::house::eventually(Duration::from_secs(30), || house.simulator.inbox().messages == 100).await;
    // WeChat's own figure leaves plenty, so it may be a minute's limit: it is not hammered meanwhile.
    let looked = tokio::time::timeout(Duration::from_secs(3), child.wait()).await;
    assert!(looked.is_err(), "it gave up at once: {looked:?}");
    let refused = house.calls("message/template/send") - 100;
    assert!((1..=8).contains(&refused), "{refused} calls to a spent quota");
    crate::house::signal(&child, "-INT");
    let waits = crate::house::ended(child).await.ends(75);
    assert_eq!(waits.counts(), [people, 100, 0, 0, 0, 0, people - 100]);

    house.simulator.set_faults(Faults::default());
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_quota_of_the_follower_list_waits_for_the_next_day_and_goes_on_from_its_page() {
    let mut options = Options { page_size: 100, ..small() };
    options.quota.insert("user/get".to_owned(), 4);
    let house = House::build(options).await;
    let midday = QuotaDay::of(house.now()).next().starts_at() + chrono::TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    let first = house.run("nightly", &[]).await.ends(75);
    let until: Timestamp = first.json()["waiting_until"].as_str().unwrap().parse().unwrap();
    let midnight = QuotaDay::of(house.now()).next().starts_at();
    assert!((0..=300).contains(&(until - midnight).num_seconds()), "it waits until {until}");
    house.pass((until - house.now()).num_seconds() + 1);
    let night = house.run("nightly", &[]).await.ends(0);
    assert_eq!(night.json()["run_id"], first.json()["run_id"]);
    assert_eq!(house.numbers("select count(*), count(distinct openid) from followers where active").await, [600, 600]);
    // Seven pages and, at the most, one that is asked for twice.
    assert!(house.calls("user/get") <= 9, "{}", house.calls("user/get"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_platform_is_borne_with_and_nobody_is_missed() {
    let (house, people) = after_the_night(crowd(500)).await;
    house.simulator.set_faults(Faults { busy_every: 9, lost_request_every: 23, ..Faults::default() });
    let push = house.run("campaign", &["--wait"]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

impl House {
    /// A campaign to so many people alone, slow enough that whoever is tried again comes before the next.
    fn few(&self, people: u64, keys: &str) {
        self.campaign(&format!("rate = \"3/s\"\nconcurrency = 1\n{keys}"));
        self.write(
            "pipelines/campaign/audience.sql",
            &format!(
                "select oa_openid as openid, unionid, mp_openid from identities where account = 'main'
                 order by oa_openid limit {people}\n"
            ),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_have_a_message_and_is_refused_the_second_time_is_not_sent_it_again_with_the_failed() {
    let (house, _) = after_the_night(small()).await;
    house.few(8, "");
    let at_sends = |fault| Order::next(fault).at(Endpoint::TemplateSend);
    house.simulator.order(at_sends(Fault::LostAnswer).after(3));
    // An order counts from when the one before it is used up: this is the next call.
    house.simulator.order(at_sends(Fault::Errcode(43101)));
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [8, 7, 0, 0, 0, 1, 0], "{push:?}");
    assert_eq!((house.calls("message/template/send"), house.simulator.inbox().people), (9, 8));
    let told = house.lianbo(&["push", "failures", "campaign"]).await.ends(0).stdout;
    for part in ["unconfirmed", "43101", "refused, but an earlier try may have arrived"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let refused = house.numbers("select count(*) from suppressions where reason = 'refused_template'").await;
    assert_eq!(refused, [1], "what was said of the person holds all the same");
    let nobody = house.lianbo(&["push", "resend", "campaign", "--failed"]).await.ends(2);
    assert!(nobody.stderr.contains("nobody of"), "{nobody:?}");
    assert_eq!(house.simulator.inbox().twice_or_more, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_got_no_answer_is_sent_to_once_more_after_wechats_window_where_that_was_chosen() {
    let (house, _) = after_the_night(small()).await;
    house.few(1, "unconfirmed = \"resend\"");
    house.simulator.order(Order::next(Fault::LostRequest).at(Endpoint::TemplateSend).times(6));
    let child = house.begin("campaign");
    let waits = async || {
        let push = house.lianbo(&["push", "show", "campaign", "--json"]).await;
        push.code == 0 && push.json()["pushes"][0]["unconfirmed"] == 1 && push.json()["pushes"][0]["state"] == "waiting"
    };
    comes_true(Duration::from_secs(60), waits).await;
    signal(&child, "-TERM");
    let stopped = ended(child).await.ends(75);
    assert_eq!((stopped.counts(), house.simulator.inbox().messages), ([1, 0, 0, 0, 0, 1, 0], 0));
    house.pass(601);
    let push = house.run("campaign", &["--continue"]).await.ends(0);
    assert_eq!(push.counts(), [1, 1, 0, 0, 0, 0, 0]);
    assert_eq!((house.simulator.inbox().once, house.calls("message/template/send")), (1, 7));
}

/// A push to one person of whom nobody knows whether the first message arrived, once WeChat's window is over.
async fn in_doubt_for_long(fault: Fault) -> House {
    let (house, _) = after_the_night(small()).await;
    house.few(1, "unconfirmed = \"resend\"");
    house.simulator.order(Order::next(fault).at(Endpoint::TemplateSend).times(6));
    let child = house.begin("campaign");
    let waits = async || {
        let push = house.lianbo(&["push", "show", "campaign", "--json"]).await;
        push.code == 0 && push.json()["pushes"][0]["unconfirmed"] == 1 && push.json()["pushes"][0]["state"] == "waiting"
    };
    comes_true(Duration::from_secs(60), waits).await;
    signal(&child, "-TERM");
    assert_eq!(ended(child).await.ends(75).counts(), [1, 0, 0, 0, 0, 1, 0]);
    house.pass(601);
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_when_sent_to_once_more_stays_unconfirmed_and_is_not_among_the_failed() {
    let house = in_doubt_for_long(Fault::LostRequest).await;
    house.simulator.order(Order::next(Fault::Errcode(43004)).at(Endpoint::TemplateSend));
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [1, 0, 0, 0, 0, 1, 0], "the first message may have arrived");
    assert_eq!(house.calls("message/template/send"), 7);
    let told = house.lianbo(&["push", "failures", "campaign"]).await.ends(0).stdout;
    assert!(told.contains("43004") && told.contains("an earlier try may have arrived"), "{told}");
    house.lianbo(&["push", "resend", "campaign", "--failed"]).await.ends(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_left_before_the_message_was_sent_once_more_is_not_skipped_as_if_nothing_had_been_sent() {
    let house = in_doubt_for_long(Fault::LostRequest).await;
    let openid = house.row("select openid from deliveries").await.remove(0);
    house.lianbo(&["suppress", "add", "--openid", &openid, "--reason", "asked"]).await.ends(0);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!((push.counts(), house.calls("message/template/send")), ([1, 0, 0, 0, 0, 1, 0], 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_sent_to_once_more_for_ever() {
    let house = in_doubt_for_long(Fault::LostRequest).await;
    for session in 1..=3 {
        // The process is killed amid each of them, and goes on too late to repeat it under its id.
        house.simulator.order(Order::next(Fault::LostRequest).at(Endpoint::TemplateSend).times(6));
        let child = house.begin("campaign");
        let calls = 6 + session;
        crate::house::eventually(Duration::from_secs(30), || house.calls("message/template/send") >= calls).await;
        signal(&child, "-KILL");
        ended(child).await;
        house.simulator.clear_orders();
        house.pass(1_201);
    }
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [1, 0, 0, 0, 0, 1, 0]);
    let repeats = house.calls("message/template/send");
    house.pass(1_201);
    house.run("campaign", &["--continue"]).await;
    assert_eq!(house.calls("message/template/send"), repeats);
}
