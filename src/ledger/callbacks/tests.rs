//! Events against deliveries in a real ledger: the counts of the push must add up after each.

use super::super::testing::*;
use super::*;
use crate::domain::{Counts, DeliveryState, StageName, TableName};
use crate::ledger::{DeliveryRow, Outcome, Push, SnapshotRecord};

const FINISH: &str = "TEMPLATESENDJOBFINISH";

fn main() -> AccountName {
    AccountName::new("main")
}

fn person(seq: u64) -> OpenId {
    people(seq..=seq).remove(0).1
}

fn finish_event(seq: u64, msgid: i64, seconds: i64, status: &str) -> NewCallback {
    NewCallback {
        account: main(),
        openid: person(seq),
        created_at: at(seconds),
        event: FINISH.into(),
        event_key: String::new(),
        msgid,
        status: Some(status.into()),
    }
}

fn follow_event(seq: u64, seconds: i64, event: &str) -> NewCallback {
    NewCallback { event: event.into(), status: None, ..finish_event(seq, 0, seconds, "") }
}

fn with_msgid(seq: u64, state: DeliveryState, msgid: i64) -> Outcome {
    Outcome { msgid: (msgid != 0).then_some(msgid), ..outcome(seq, 1, state) }
}

/// A push of ten: 1 sent as 101, 2 sent as 102, 3 held, 4 unconfirmed, 5 in flight, 6 failed.
async fn sent_house() -> (House, Push) {
    let house = House::new().await;
    let push = house.push("r1", 10).await;
    let people = people(1..=6);
    let _ = house.begin(&push, fresh(&intents(&people))).await;
    let outcomes = [
        with_msgid(1, DeliveryState::Sent, 101),
        with_msgid(2, DeliveryState::Sent, 102),
        with_msgid(3, DeliveryState::Held, 0),
        with_msgid(4, DeliveryState::Unconfirmed, 0),
        with_msgid(6, DeliveryState::Failed, 0),
    ];
    let _ = house.record(&push, &outcomes).await;
    (house, push)
}

impl House {
    async fn tell(&self, events: &[NewCallback], now: i64) -> Applied {
        self.ledger.keep_callbacks(events, at(now)).await.unwrap();
        self.ledger.apply_callbacks(1000, at(now)).await.unwrap()
    }

    async fn delivery(&self, push: &Push, seq: u64) -> DeliveryRow {
        self.ledger.deliveries(push.key, seq - 1, 1).await.unwrap().remove(0)
    }

    async fn fate(&self, push: &Push, seq: u64) -> (DeliveryState, Option<String>) {
        let row = self.delivery(push, seq).await;
        (row.state, row.delivered)
    }

    async fn counts(&self, push: &Push) -> Counts {
        let counts = self.reload(push).await.counts;
        assert!(counts.add_up());
        assert_eq!(self.ledger.state_counts(push.key).await.unwrap(), counts);
        counts
    }

    async fn outcomes(&self) -> Vec<(String, u64)> {
        let counts = self.ledger.count_callbacks().await.unwrap();
        counts.into_iter().map(|count| (count.outcome.unwrap_or_default(), count.n)).collect()
    }
}

#[tokio::test]
async fn an_event_told_thrice_is_kept_once_and_its_delivery_knows() {
    let (house, push) = sent_house().await;
    let event = finish_event(1, 101, 5, "success");
    assert_eq!(house.ledger.keep_callbacks(&vec![event.clone(); 3], at(5)).await.unwrap(), 1);
    assert_eq!(house.ledger.keep_callbacks(&[event], at(6)).await.unwrap(), 0);
    assert_eq!(house.ledger.waiting_callbacks().await.unwrap(), 1);
    let applied = house.ledger.apply_callbacks(1000, at(6)).await.unwrap();
    assert_eq!(applied, Applied { looked_at: 1, told: 1, ..Applied::default() });
    assert_eq!(house.fate(&push, 1).await, (DeliveryState::Sent, Some("success".into())));
    assert_eq!(house.delivery(&push, 1).await.delivered_at, Some(at(5)));
    assert_eq!(house.ledger.apply_callbacks(1000, at(7)).await.unwrap(), Applied::default());
    assert_eq!(house.counts(&push).await.sent, 2);
}

#[tokio::test]
async fn held_and_unconfirmed_are_settled_with_and_without_an_id() {
    for msgid in [0, 777] {
        let (house, push) = sent_house().await;
        let applied = house
            .tell(&[finish_event(3, msgid, 30, "success"), finish_event(4, msgid, 31, "failed:user block")], 31)
            .await;
        assert_eq!((applied.told, applied.settled), (2, 2));
        assert_eq!(house.fate(&push, 3).await, (DeliveryState::Sent, Some("success".into())));
        assert_eq!(house.fate(&push, 4).await, (DeliveryState::Failed, Some("blocked".into())));
        let (third, fourth) = (house.delivery(&push, 3).await, house.delivery(&push, 4).await);
        assert_eq!((third.sent_at, third.msgid), (Some(at(30)), (msgid != 0).then_some(msgid)));
        assert_eq!((fourth.sent_at, fourth.reason.as_deref()), (None, Some("failed:user block")));
        let counts = house.counts(&push).await;
        assert_eq!((counts.sent, counts.failed, counts.held, counts.unconfirmed), (3, 2, 0, 0));
    }
}

#[tokio::test]
async fn an_event_that_is_early_waits_and_is_claimed_when_its_send_is_recorded() {
    let (house, push) = sent_house().await;
    let applied = house.tell(&[finish_event(5, 105, 1, "success")], 1).await;
    assert_eq!((applied.early, applied.told), (1, 0));
    assert_eq!(house.ledger.apply_callbacks(1000, at(1)).await.unwrap(), Applied::default(), "not at once again");
    let _ = house.record(&push, &[with_msgid(5, DeliveryState::Sent, 105)]).await;
    assert_eq!(house.ledger.apply_callbacks(1000, at(3)).await.unwrap().told, 1);
    assert_eq!(house.fate(&push, 5).await, (DeliveryState::Sent, Some("success".into())));
}

#[tokio::test]
async fn an_early_event_settles_what_became_unconfirmed_and_can_be_hastened() {
    let (house, push) = sent_house().await;
    house.tell(&[finish_event(5, 0, 1, "success")], 1).await;
    for _ in 0..4 {
        house.ledger.hasten_callbacks(at(1)).await.unwrap();
        assert_eq!(house.ledger.apply_callbacks(1000, at(1)).await.unwrap().early, 1);
    }
    assert_eq!(house.ledger.apply_callbacks(1000, at(10)).await.unwrap().looked_at, 0, "it waits longer each time");
    let _ = house.record(&push, &[with_msgid(5, DeliveryState::Unconfirmed, 0)]).await;
    house.ledger.hasten_callbacks(at(10)).await.unwrap();
    assert_eq!(house.ledger.apply_callbacks(1000, at(10)).await.unwrap().settled, 1);
    assert_eq!(house.fate(&push, 5).await.0, DeliveryState::Sent);
    assert_eq!(house.counts(&push).await.unconfirmed, 1);
}

#[tokio::test]
async fn what_nobody_sent_or_another_account_sent_changes_nothing() {
    let (house, push) = sent_house().await;
    let before = house.counts(&push).await;
    let stranger = NewCallback { account: AccountName::new("other"), ..finish_event(3, 101, 5, "success") };
    let events = [
        stranger,
        finish_event(2, 101, 5, "success"),
        finish_event(6, 0, 5, "success"),
        finish_event(9, 909, 5, "success"),
        follow_event(1, 5, "LOCATION"),
    ];
    let applied = house.tell(&events, 5).await;
    assert_eq!((applied.told, applied.early, applied.looked_at), (0, 0, 5));
    assert_eq!(house.counts(&push).await, before);
    assert_eq!(house.outcomes().await, [("ignored".into(), 1), ("unmatched".into(), 3), ("unmatched".into(), 1),]);
}

#[tokio::test]
async fn a_replay_changes_nothing_that_was_told() {
    let (house, push) = sent_house().await;
    let mut events = vec![
        finish_event(1, 101, 5, "success"),
        finish_event(2, 0, 6, "failed: system failed"),
        finish_event(3, 0, 7, "success"),
        finish_event(4, 0, 8, "failed:freq limit"),
        follow_event(1, 9, "unsubscribe"),
    ];
    house.tell(&events, 10).await;
    let rows = house.ledger.deliveries(push.key, 0, 100).await.unwrap();
    let counts = house.counts(&push).await;
    events.reverse();
    assert_eq!(house.ledger.keep_callbacks(&events, at(11)).await.unwrap(), 0);
    let since = Replay { since: Some(at(11)), ..Replay::default() };
    assert_eq!(house.ledger.replay_callbacks(since, at(11)).await.unwrap(), 0);
    assert_eq!(house.ledger.replay_callbacks(Replay::default(), at(11)).await.unwrap(), 5);
    let applied = house.ledger.apply_callbacks(1000, at(11)).await.unwrap();
    assert_eq!((applied.looked_at, applied.told, applied.marked), (5, 0, 1));
    assert_eq!(house.ledger.deliveries(push.key, 0, 100).await.unwrap(), rows);
    assert_eq!(house.counts(&push).await, counts);
    assert_eq!(house.ledger.drop_callbacks(at(11)).await.unwrap(), 5);
    assert_eq!(house.ledger.apply_callbacks(1000, at(20)).await.unwrap(), Applied::default());
}

#[tokio::test]
async fn comings_and_goings_become_marks_unless_a_walk_is_younger() {
    let (house, _push) = sent_house().await;
    let run = house.ledger.latest_runs(1, None).await.unwrap().remove(0);
    let snapshot = SnapshotRecord {
        id: "s1".into(),
        table: TableName::new("followers"),
        slice: "main".into(),
        run_id: run.run_id.clone(),
        stage: StageName::new("followers"),
        as_of: at(100),
        rows: 0,
        bytes: 0,
        parts: Vec::new(),
        columns: Vec::new(),
        source_hash: None,
        made_at: at(100),
        fence: 0,
        events_to: Some(0),
        app_id: None,
    };
    house.ledger.record_snapshot(&house.lease, &snapshot).await.unwrap();
    house.ledger.publish(&house.lease, &run.run_id, at(101)).await.unwrap();
    let applied = house
        .tell(
            &[
                follow_event(1, 99, "unsubscribe"),
                follow_event(2, 100, "unsubscribe"),
                follow_event(3, 105, "subscribe"),
            ],
            110,
        )
        .await;
    assert_eq!(applied.marked, 2);
    let marks = house.ledger.follower_marks(&main(), at(0)).await.unwrap();
    let marks: Vec<_> = marks.iter().map(|mark| (mark.openid.clone(), mark.active)).collect();
    assert_eq!(marks, [(person(2), false), (person(3), true)]);
}

#[tokio::test]
async fn a_thousand_events_go_in_one_batch() {
    let house = House::new().await;
    let push = house.push("r1", 1000).await;
    let people = people(1..=1000);
    let _ = house.begin(&push, fresh(&intents(&people))).await;
    let sent: Vec<_> =
        (1..=1000).map(|seq| with_msgid(seq, DeliveryState::Sent, 5000 + i64::try_from(seq).unwrap())).collect();
    let _ = house.record(&push, &sent).await;
    let events: Vec<_> =
        (1..=1000).map(|seq| finish_event(seq, 5000 + i64::try_from(seq).unwrap(), 9, "success")).collect();
    assert_eq!(house.tell(&events, 9).await.told, 1000);
    let rows = house.ledger.deliveries(push.key, 0, 2000).await.unwrap();
    assert!(rows.iter().all(|row| row.delivered.as_deref() == Some("success")));
}
