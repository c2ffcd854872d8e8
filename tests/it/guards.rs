//! What a push does when the day or the account turns against it: it stops in time, keeps the rest, and says for what it
//! waits, since when, and until when.

use std::collections::BTreeMap;
use std::time::Duration;

use lianbo::domain::QuotaDay;
use lianbo::simulator::{Endpoint, Fault, Faults, Options, Order};
use serde_json::Value;

use crate::house::{House, crowd, ended, eventually, signal, small};

const SENDS: &str = "message/template/send";
/// Long enough for a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);

/// A house after its night at midday in Shanghai, so that no midnight comes by itself.
async fn at_midday(options: Options) -> (House, u64) {
    let house = House::build(options).await;
    let midday = QuotaDay::of(house.now()).next().starts_at() + chrono::TimeDelta::hours(12);
    house.pass((midday - house.now()).num_seconds());
    house.night().await;
    let people = house.matchable();
    (house, people)
}

/// The campaign's push as `push show` tells of it.
async fn shown(house: &House) -> Value {
    house.lianbo(&["push", "show", "campaign", "--json"]).await.ends(0).json()["pushes"][0].clone()
}

/// Looks at the push until it says what is looked for.
async fn shown_when(house: &House, is_it: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            // Before its set is made there is no push.
            let push = house.lianbo(&["push", "show", "campaign", "--json"]).await;
            let push = if push.code == 0 { push.json()["pushes"][0].clone() } else { Value::Null };
            if is_it(&push) {
                return push;
            }
        }
    };
    tokio::time::timeout(SOON, looking).await.expect("the push never says so")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_the_day_amid_other_trouble_waits_one_minute_and_says_so() {
    let (house, people) = at_midday(small()).await;
    house.campaign("concurrency = 8\nrate = \"200/s\"");
    let at_sends = |fault| Order::next(fault).at(Endpoint::TemplateSend);
    house.simulator.order(at_sends(Fault::Errcode(-1)).after(60).times(4));
    house.simulator.order(at_sends(Fault::Errcode(40001)).times(2));
    house.simulator.order(at_sends(Fault::Errcode(40252)).times(3));
    house.simulator.order(at_sends(Fault::Errcode(45009)));
    // WeChat does not say its figure either, and that holds nothing up.
    house.simulator.order(Order::next(Fault::Errcode(-1)).at(Endpoint::QuotaGet).after(1).times(50));
    let began = house.now();
    let child = house.begin("campaign");
    let waits = shown_when(&house, |push| push["state"] == "waiting").await;
    let time = |key: &str| waits[key].as_str().unwrap().parse::<lianbo::clock::Timestamp>().unwrap();
    assert!(time("waits_since") - began < chrono::TimeDelta::seconds(60), "{waits}");
    let minute = (time("waiting_until") - time("waits_since")).num_seconds();
    assert!((55..=60).contains(&minute), "{waits}");
    let reason = waits["reason"].as_str().unwrap();
    assert!(reason.contains("45009") && reason.contains("minute"), "{reason}");
    let calls = house.calls(SENDS);
    let text = house.lianbo(&["push", "show", "campaign"]).await.ends(0).stdout;
    assert!(text.contains("waiting since") && text.contains(" until "), "{text}");
    assert_eq!(house.calls(SENDS), calls, "it sends while it waits");

    let push = ended(child).await.ends(0);
    assert_eq!(push.counts(), [people, people - 3, 0, 0, 3, 0, 0]);
    assert!(push.stderr.contains("the push waits since"), "{}", push.stderr);
    assert!(house.now() - began < chrono::TimeDelta::seconds(150), "it stood still");
    assert_eq!(house.simulator.inbox().twice_or_more, 0);
    assert_eq!(shown(&house).await["waits_since"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_obeyed_while_a_minute_is_waited_for() {
    let (house, people) = at_midday(small()).await;
    house.campaign("concurrency = 8\nrate = \"200/s\"");
    house.simulator.order(Order::next(Fault::Errcode(45009)).at(Endpoint::TemplateSend).after(50));
    let child = house.begin("campaign");
    shown_when(&house, |push| push["state"] == "waiting").await;
    house.lianbo(&["push", "pause", "campaign"]).await.ends(0);
    let paused = tokio::time::timeout(Duration::from_secs(10), ended(child)).await.expect("it did not stop").ends(75);
    assert!(paused.json()["reason"].as_str().unwrap().contains("paused"), "{paused:?}");
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    house.run("campaign", &["--wait"]).await.ends(0);
    house.everybody_has_one();
    assert_eq!(house.simulator.inbox().once, people);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_is_busy_all_the_time_slows_the_push_and_the_push_says_why() {
    let (house, _) = at_midday(small()).await;
    house.campaign("rate = \"20/s\"");
    house.simulator.set_faults(Faults { busy_every: 2, ..Faults::default() });
    let child = house.begin("campaign");
    let held_up = shown_when(&house, |push| push["reason"].is_string()).await;
    let reason = held_up["reason"].as_str().unwrap();
    assert!(reason.contains("the pace is down to") && reason.contains("-1"), "{reason}");
    assert_eq!(held_up["state"], "sending");
    house.simulator.set_faults(Faults::default());
    signal(&child, "-INT");
    let stopped = ended(child).await.ends(75);
    assert!(stopped.stderr.contains("held up since"), "{}", stopped.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_somebody_else_spends_the_days_sends_the_push_stops_in_time_and_keeps_the_rest() {
    let mut options = crowd(900);
    options.quota.insert(SENDS.to_owned(), 5_000);
    let (house, people) = at_midday(options).await;
    house.campaign("concurrency = 4\nrate = \"25/s\"");
    let child = house.begin("campaign");
    eventually(SOON, || house.simulator.inbox().messages >= 30).await;
    // Another system of the account sends as well.
    house.simulator.spend(Endpoint::TemplateSend, 4_600);
    let waits = tokio::time::timeout(SOON * 2, ended(child)).await.expect("it went on").ends(75);
    let sent = house.simulator.inbox().messages;
    assert!(sent < 401, "{sent} were sent");
    assert_eq!(waits.counts(), [people, sent, 0, 0, 0, 0, people - sent]);
    let reason = waits.json()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("used up") && reason.contains("somebody else sends"), "{reason}");
    assert!(waits.stderr.contains("corrected"), "{}", waits.stderr);
    assert_eq!(house.calls(SENDS), sent, "no send was refused for it");
    let asked = house.numbers("select sum(calls) from api_calls where endpoint = 'openapi/quota/get'").await[0];
    assert!((3..=30).contains(&asked) && asked == house.calls("openapi/quota/get"), "{asked} looks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_push_that_is_refused_for_the_day_stops_the_others_of_its_account() {
    let (house, people) = at_midday(crowd(900)).await;
    house.campaign("concurrency = 4\nrate = \"20/s\"");
    let other = house.read("pipelines/campaign.toml").replace("秋季特惠", "年末特惠");
    house.write("pipelines/second.toml", &other);
    house.write("pipelines/second/audience.sql", &house.read("pipelines/campaign/audience.sql"));
    let (first, second) = (house.begin("campaign"), house.begin("second"));
    eventually(SOON, || house.simulator.inbox().messages >= 20).await;
    house.simulator.set_faults(Faults { hidden_limits: BTreeMap::from([(SENDS.to_owned(), 1)]), ..Faults::default() });
    let calls = house.calls(SENDS);
    for pipeline in ["campaign", "second"] {
        let command = ["push", "show", pipeline, "--json"];
        let looking = async { while house.lianbo(&command).await.ends(0).json()["pushes"][0]["state"] != "waiting" {} };
        tokio::time::timeout(SOON, looking).await.expect("it goes on");
    }
    let refused = house.calls(SENDS) - calls;
    assert!(refused <= 60, "{refused} calls to a spent quota");
    for child in [&first, &second] {
        signal(child, "-INT");
    }
    let first = ended(first).await.ends(75);
    let second = ended(second).await.ends(75);
    assert_eq!(first.counts()[1] + second.counts()[1], house.simulator.inbox().messages);
    assert_eq!((first.counts()[0], second.counts()[0]), (people, people));
}

/// Waits until the push has ended and gives its report.
async fn within(child: tokio::process::Child, seconds: u64) -> crate::house::Outcome {
    tokio::time::timeout(Duration::from_secs(seconds), ended(child)).await.expect("it goes on and on")
}

mod canary {
    use lianbo::simulator::{Callback, FinishHabits};

    use super::*;
    use crate::serve::Serving;

    const TOKEN: &str = "callback-token-0123";

    /// A house whose account takes callbacks, and whose campaign has a canary of 40.
    async fn house(wait: &str, finish: FinishHabits) -> (House, u64) {
        let house = House::build(small()).await;
        house.night().await;
        let config = house.read("config/lianbo.toml");
        house.write("config/lianbo.toml", &format!("{config}[accounts.main.callback]\ntoken = \"{TOKEN}\"\n"));
        house.campaign(&format!("canary = {{ first = 40, wait = \"{wait}\", max_not_delivered = 0.3 }}"));
        house.simulator.set_faults(Faults { finish, ..Faults::default() });
        let people = house.matchable();
        (house, people)
    }

    fn enter(house: &House, serving: &Serving) {
        let url = format!("http://{}/callback/main", serving.address);
        house.simulator.set_callback(&Callback::new(url, TOKEN)).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_canary_that_is_delivered_lets_the_rest_go_whatever_was_killed_between() {
        let late = FinishHabits { delay_milliseconds: 6_000, ..FinishHabits::default() };
        let (house, people) = house("10m", late).await;
        let serving = Serving::begin(&house, &[]).await;
        enter(&house, &serving);
        let first = house.begin("campaign");
        eventually(SOON, || house.simulator.inbox().messages == 40).await;
        signal(&first, "-KILL");
        ended(first).await;
        let second = house.begin("campaign");
        let waits = shown_when(&house, |push| push["state"] == "waiting").await;
        assert!(waits["reason"].as_str().unwrap().contains("canary"), "{waits}");
        assert_eq!(house.simulator.inbox().messages, 40, "nobody else is sent to meanwhile");
        let canary = &waits["canary"];
        assert_eq!(
            (&canary["phase"], &canary["verdict"], &canary["first"]),
            (&"waiting".into(), &Value::Null, &40.into())
        );
        let n = |name: &str| canary[name].as_u64().unwrap();
        assert_eq!((n("sent_to"), n("delivered") + n("not_delivered") + n("awaited")), (40, 40), "{canary}");
        assert_eq!(canary["waits_until"], waits["waiting_until"]);
        let until = waits["waiting_until"].clone();
        signal(&second, "-KILL");
        ended(second).await;
        let third = house.begin("campaign");
        let waits = shown_when(&house, |push| push["state"] != "waiting" || push["waiting_until"] == until).await;
        assert!(waits["waiting_until"] == until || waits["state"] != "waiting", "the wait began anew: {waits}");
        assert_eq!(within(third, 120).await.ends(0).counts(), [people, people, 0, 0, 0, 0, 0]);
        house.everybody_has_one();
        let told = house.lianbo(&["push", "show", "campaign"]).await.ends(0).stdout;
        for part in ["canary: the first 40 were sent and judged: passed", "40 sent to: "] {
            assert!(told.contains(part), "{part}: {told}");
        }
        serving.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_canary_that_is_blocked_halts_says_what_it_cost_and_goes_on_when_a_person_says_so() {
        let blocked = FinishHabits { user_block_every: 1, ..FinishHabits::default() };
        let (house, people) = house("10m", blocked).await;
        let serving = Serving::begin(&house, &[]).await;
        enter(&house, &serving);
        let halted = within(house.begin("campaign"), 120).await.ends(3);
        assert_eq!(halted.counts(), [people, 40, 0, 0, 0, 0, people - 40]);
        let reason = halted.json()["reason"].as_str().unwrap().to_owned();
        for part in ["canary", "blocked", "it cost 40 sends", "push resume"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        assert_eq!(house.calls(SENDS), 40);
        house.run("campaign", &[]).await.ends(3);
        house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
        let push = house.run("campaign", &[]).await.ends(0);
        assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
        assert_eq!(house.calls(SENDS), people);
        serving.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_canary_of_which_nobody_tells_halts_when_its_time_is_over() {
        let (house, people) = house("3s", FinishHabits::default()).await;
        let halted = within(house.begin("campaign"), 60).await.ends(3);
        assert_eq!(halted.counts(), [people, 40, 0, 0, 0, 0, people - 40]);
        let reason = halted.json()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("no finish event came at all") && reason.contains("serve"), "{reason}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_canary_without_callbacks_is_refused_before_anything_is_sent() {
        let house = House::build(small()).await;
        house.campaign("canary = { first = 40 }");
        let refused = house.lianbo(&["check"]).await.ends(2);
        assert!(refused.text().contains("receives none") && refused.text().contains("callback"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_review_refused_is_asked_for_once_it_can_know_and_never_sent_again() {
    for blocked_as_object in [false, true] {
        let (house, people) = at_midday(small()).await;
        let audit_every = if blocked_as_object { 300 } else { 8 };
        let faults = Faults { audit_every, audit_refused_every: 1, blocked_as_object, ..Faults::default() };
        house.simulator.set_faults(faults);
        let push = house.run("campaign", &[]).await.ends(0);
        let held = push.counts()[4];
        assert!(held > 0);
        let asked = || house.calls("wxa/sec/queryblocktmplmsg");
        assert_eq!(asked(), 0, "it cannot know yet");
        house.simulator.set_faults(Faults { blocked_as_object, ..Faults::default() });
        house.pass(32 * 60);
        house.night().await;
        assert_eq!(asked(), 1);
        let fates = "select count(*) filter (state = 'held'), count(*) filter (state = 'failed') from deliveries";
        assert_eq!(house.numbers(fates).await, [0, held]);
        let why = "select distinct reason, errcode from deliveries where state = 'failed'";
        assert_eq!(house.rows(why).await, [["refused by WeChat's review", "40252"]]);
        house.pass(3_600);
        house.night().await;
        assert_eq!(asked(), 1, "nobody is held any more");
        let counted = "select sum(calls) from api_calls where endpoint = 'wxa/sec/queryblocktmplmsg'";
        assert_eq!(house.numbers(counted).await, [1]);
        assert_eq!(house.calls(SENDS), people);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_on_the_accounts_blacklist_is_left_out_and_an_account_without_the_list_goes_on() {
    let (house, people) = at_midday(small()).await;
    let kept_out = house.simulator.matchable()[..15].to_vec();
    for openid in &kept_out {
        assert!(house.simulator.blacklist(openid));
    }
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people - 15, people - 15, 0, 0, 0, 0, 0]);
    let reasons = "select reason, count(*) from suppressions group by all";
    assert_eq!(house.rows(reasons).await, [["blacklisted", "15"]]);
    assert_eq!(house.numbers("select count(*) from left_out").await, [15]);

    house.simulator.order(Order::next(Fault::Errcode(48001)).at(Endpoint::Blacklist).times(100));
    let push = house.run("campaign", &[]).await.ends(0);
    assert!(push.stderr.contains("48001") && push.stderr.contains("does not grant"), "{}", push.stderr);
    assert_eq!(push.counts()[0], people - 15, "what was known still holds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_push_goes_before_a_campaign_and_may_use_the_reserve() {
    let mut options = crowd(400);
    options.quota.insert(SENDS.to_owned(), 500);
    let (house, people) = at_midday(options).await;
    house.edit(
        "config/lianbo.toml",
        "timeout = \"3s\"",
        "timeout = \"3s\"\nquota.reserve = { \"message/template/send\" = 100 }",
    );
    house.campaign("");
    let waits = house.run("campaign", &[]).await;
    assert!(people <= 400, "{people}");
    let sent = people.min(400);
    assert_eq!(waits.counts()[1], sent);
    let service = house.read("pipelines/campaign.toml") + "priority = \"service\"\n";
    house.write("pipelines/second.toml", &service.replace("秋季特惠", "订单已发"));
    house.write("pipelines/second/audience.sql", &house.read("pipelines/campaign/audience.sql"));
    let served = house.run("second", &[]).await.ends(75);
    assert_eq!(served.counts()[1], 500 - sent, "it uses the reserve to its last call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frequency_cap_is_looked_at_once_more_at_the_send() {
    let (house, people) = at_midday(small()).await;
    house.campaign("approve = true");
    let capped = "[stages.audience]\nfrequency_cap = { messages = 1, days = 7 }";
    house.edit("pipelines/campaign.toml", "[stages.audience]", capped);
    house.run("campaign", &[]).await.ends(75);
    // The set is frozen. Then another campaign reaches all but some whom WeChat refuses.
    house.write("pipelines/second.toml", &crate::house::campaign("").replace("秋季特惠", "年末特惠"));
    house.write("pipelines/second/audience.sql", &house.read("pipelines/campaign/audience.sql"));
    house.simulator.order(Order::next(Fault::Errcode(43019)).at(Endpoint::TemplateSend).after(20).times(15));
    let second = house.run("second", &["--wait"]).await.ends(0);
    let failed = second.counts()[2];
    assert_eq!(second.counts()[1], people - failed);
    let hash = shown(&house).await["approval_hash"].as_str().unwrap().to_owned();
    house.lianbo(&["push", "approve", "campaign", "--hash", &hash]).await.ends(0);
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, failed, 0, people - failed, 0, 0, 0]);
    let why = "select distinct reason from deliveries where pipeline = 'campaign' and state = 'skipped'";
    assert_eq!(house.rows(why).await, [["frequency_cap"]]);
}
