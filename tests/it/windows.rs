//! Windows and expiry: quiet hours hold and never drop; what is past its time is skipped, never sent late.

use std::time::Duration;

use chrono::{NaiveTime, TimeDelta};
use lianbo::clock::Timestamp;
use lianbo::domain::QuotaDay;
use lianbo::simulator::Options;

use crate::house::{House, Outcome, small};

const WINDOW: &str = "window = \"09:00-21:00\"";

/// The next time that clocks in Shanghai show this.
fn next(house: &House, hour: u32, minute: u32, second: u32) -> Timestamp {
    let day = QuotaDay::of(house.now()).next();
    let time = NaiveTime::from_hms_opt(hour, minute, second).unwrap();
    day.starts_at() + (time - NaiveTime::MIN)
}

fn pass_until(house: &House, at: Timestamp) {
    house.pass((at - house.now()).num_seconds());
}

fn waiting_until(run: &Outcome) -> Timestamp {
    run.json()["waiting_until"].as_str().unwrap_or_else(|| panic!("{run:?}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_window_holds_the_push_until_it_opens_and_drops_nobody() {
    let house = House::build(small()).await;
    house.campaign(WINDOW);
    let opens = next(&house, 9, 0, 0);
    pass_until(&house, opens - TimeDelta::hours(1));
    house.night().await;
    let people = house.matchable();
    for _ in 0..2 {
        let waits = house.run("campaign", &[]).await.ends(75);
        assert_eq!((waits.json()["status"].as_str(), waiting_until(&waits)), (Some("waiting"), opens));
        assert_eq!(waits.counts(), [people, 0, 0, 0, 0, 0, people]);
        assert!(waits.json()["reason"].as_str().unwrap().contains("window"), "{waits:?}");
    }
    assert_eq!(house.calls("message/template/send"), 0);
    pass_until(&house, opens + TimeDelta::seconds(1));
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    assert_eq!(house.calls("message/template/send"), people);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_closes_in_the_midst_of_a_push_is_kept_and_the_rest_goes_the_next_morning() {
    let house = House::build(small()).await;
    house.campaign(&format!("{WINDOW}\nrate = \"60/s\""));
    house.night().await;
    let people = house.matchable();
    let closes = next(&house, 21, 0, 0);
    pass_until(&house, closes - TimeDelta::seconds(4));
    let waits = house.run("campaign", &[]).await.ends(75);
    let sent = house.simulator.inbox().once;
    assert!(0 < sent && sent < people, "{sent} of {people}");
    assert_eq!(waits.counts(), [people, sent, 0, 0, 0, 0, people - sent]);
    assert_eq!(waiting_until(&waits), closes + TimeDelta::hours(12));
    let late =
        format!("select count(*) from deliveries where sent_at > '{}'", closes.naive_utc() + TimeDelta::seconds(1));
    assert_eq!(house.numbers(&late).await, [0]);
    pass_until(&house, closes + TimeDelta::hours(12) + TimeDelta::seconds(1));
    house.edit("pipelines/campaign.toml", "rate = \"60/s\"", "rate = \"5000/s\"");
    let push = house.run("campaign", &[]).await.ends(0);
    assert_eq!(push.counts(), [people, people, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_expires_while_its_window_is_closed_ends_with_everybody_skipped_and_nobody_called() {
    let house = House::build(small()).await;
    house.campaign(&format!("{WINDOW}\nexpires = \"30m\""));
    let opens = next(&house, 9, 0, 0);
    pass_until(&house, opens - TimeDelta::hours(1));
    house.night().await;
    let people = house.matchable();
    let waits = house.run("campaign", &[]).await.ends(75);
    let until = waiting_until(&waits);
    assert!((opens - TimeDelta::minutes(30) - until).abs() < TimeDelta::seconds(60), "it waits until {until}");
    pass_until(&house, opens + TimeDelta::minutes(5));
    let over = house.run("campaign", &[]).await.ends(0);
    assert_eq!(over.counts(), [people, 0, 0, people, 0, 0, 0]);
    let fates = "select state, reason, count(*) from deliveries group by all";
    assert_eq!(house.rows(fates).await, [["skipped", "expired", &people.to_string()]]);
    assert_eq!((house.calls("message/template/send"), house.simulator.inbox().messages), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_days_quota_leaves_over_is_skipped_when_its_time_is_up() {
    let mut options = Options { latency: Duration::from_millis(1), ..small() };
    options.quota.insert("message/template/send".to_owned(), 150);
    let house = House::build(options).await;
    house.campaign("expires = \"20h\"\non_expiry = \"skip\"");
    pass_until(&house, next(&house, 12, 0, 0));
    house.night().await;
    let people = house.matchable();
    assert!(people > 300);
    // A plan asks nobody; it goes by what WeChat told last.
    house.lianbo(&["quota"]).await.ends(0);
    let plan = house.lianbo(&["plan", "campaign", "--json"]).await.ends(0).json();
    for sent in [150, 300] {
        let run = house.run("campaign", &[]).await.ends(75);
        assert_eq!(run.counts(), [people, sent, 0, 0, 0, 0, people - sent]);
        pass_until(&house, waiting_until(&run) + TimeDelta::seconds(1));
    }
    // The second night's wait is cut short: the push is over at eight in the morning.
    let over = house.run("campaign", &[]).await.ends(0);
    assert_eq!(over.counts(), [people, 300, 0, people - 300, 0, 0, 0]);
    assert_eq!(house.simulator.inbox().once, 300);
    assert_eq!(house.calls("message/template/send"), 300);
    assert_eq!(plan["would_expire"], people - 300, "{plan}");
}
