use super::super::testing::*;
use super::super::{NewSuppression, Order};
use super::*;
use crate::domain::{DeliveryState, UnionId};
use std::collections::HashMap;

fn row(place: u64, outcome: Result<&str, &str>) -> MovedRow {
    MovedRow {
        place,
        openid: OpenId::new(format!("old{place}")),
        outcome: outcome.map(OpenId::new).map_err(str::to_owned),
    }
}

async fn begun(house: &House, people: u64) -> AccountMove {
    let main = AccountName::new("main");
    let run_id = RunId::new("move-1");
    let new = NewMove {
        account: &main,
        from_app_id: "wxold",
        to_app_id: "wxnew",
        run_id: &run_id,
        list_path: "work/moves/list.parquet",
        people,
        followers: people,
    };
    house.ledger.begin_move(&house.lease, new.clone(), at(0)).await.unwrap();
    let twice = NewMove { run_id: &RunId::new("move-2"), ..new };
    assert!(house.ledger.begin_move(&house.lease, twice, at(0)).await.is_err(), "one at a time");
    house.ledger.latest_move(&main).await.unwrap().unwrap()
}

#[tokio::test]
async fn answers_go_down_in_the_order_of_the_list_and_never_twice() {
    let house = House::new().await;
    let (ledger, lease) = (&house.ledger, &house.lease);
    let own = begun(&house, 5).await;
    assert!(ledger.files_in_use().await.unwrap().contains("work/moves/list.parquet"));
    let first = [row(1, Ok("new1")), row(2, Err("ori_openid error"))];
    ledger.record_moved(lease, (own.id, 0), &first).await.unwrap();
    let twice = ledger.record_moved(lease, (own.id, 0), &first).await.unwrap_err();
    assert!(matches!(twice, LedgerError::OutOfStep { .. }), "{twice}");
    ledger.record_moved(lease, (own.id, 2), &[row(3, Err("gone")), row(4, Err("gone"))]).await.unwrap();
    let open = ledger.open_moves().await.unwrap();
    assert_eq!(open.iter().map(|own| own.asked).collect::<Vec<_>>(), [4]);
    assert_eq!(ledger.moved(own.id, 1, 2).await.unwrap(), [first[1].clone(), row(3, Err("gone"))]);
    assert_eq!(ledger.refused_followers(&open[0]).await.unwrap(), (3, Some("gone".to_owned())));
    let two = AccountMove { followers: 2, ..open[0].clone() };
    assert_eq!(ledger.refused_followers(&two).await.unwrap().0, 1);
    ledger.drop_move(lease, own.id).await.unwrap();
    assert_eq!(ledger.latest_move(&own.account).await.unwrap(), None);
    begun(&house, 5).await;
}

#[tokio::test]
async fn what_the_ledger_knows_of_a_person_holds_for_the_new_openid() {
    let house = House::new().await;
    let (ledger, lease, main) = (&house.ledger, &house.lease, AccountName::new("main"));
    let own = begun(&house, 5).await;
    let suppressed = |openid: &str, reason: &str| NewSuppression {
        unionid: None,
        openid: Some(OpenId::new(openid)),
        account: Some(main.clone()),
        template_id: None,
        reason: reason.into(),
        since: at(0),
        until: None,
    };
    let all = [suppressed("old1", "asked"), suppressed("old3", "asked"), suppressed("old5", "blacklisted")];
    ledger.add_suppressions(&all).await.unwrap();
    for (openid, active, seconds) in [("old1", true, 1), ("old2", false, 2), ("new2", true, 3), ("old3", true, 1)] {
        match active {
            true => ledger.mark_following(&main, &OpenId::new(openid), at(seconds), "event").await.unwrap(),
            false => ledger.mark_gone(&main, &OpenId::new(openid), at(seconds), "event").await.unwrap(),
        }
    }
    let refused = Err("ori_openid error");
    let rows = [row(1, Ok("new1")), row(2, Ok("new2")), row(3, refused), row(4, Ok("new4")), row(5, refused)];
    let mut touched = Touched::default();
    for _ in 0..2 {
        touched = Touched::default();
        ledger.touched_by_move(lease, &own, (&rows, &mut touched)).await.unwrap();
    }
    assert_eq!((touched.moved.len(), touched.refused.len()), (2, 2), "{touched:?}");
    let unionids = HashMap::from([3, 5].map(|n| (OpenId::new(format!("old{n}")), UnionId::new(format!("union{n}")))));
    let done = FinishedMove { of: &own, touched: &touched, unionids: &unionids, outcome: "{}", detail: "wxold" };
    assert_eq!(ledger.finish_move(lease, done, Order { who: "ada", at: at(9) }).await.unwrap(), 2);
    let kept = ledger.list_suppressions(0, 9).await.unwrap();
    let mut kept: Vec<(Option<&str>, Option<&str>)> = kept
        .iter()
        .map(|one| &one.suppression)
        .map(|one| (one.openid.as_ref().map(OpenId::as_str), one.unionid.as_ref().map(UnionId::as_str)))
        .collect();
    kept.sort_unstable();
    assert_eq!(
        kept,
        [(None, Some("union3")), (Some("new1"), None), (Some("old3"), None), (Some("old5"), None)],
        "no blacklist follows a person"
    );
    let marks = ledger.follower_marks(&main, at(-9)).await.unwrap();
    let marks: Vec<(&str, bool)> = marks.iter().map(|mark| (mark.openid.as_str(), mark.active)).collect();
    assert_eq!(marks, [("new1", true), ("new2", true), ("old3", false)], "the later word stays");
    let own = ledger.latest_move(&main).await.unwrap().unwrap();
    assert_eq!((own.ended_at, own.outcome.as_deref()), (Some(at(9)), Some("{}")));
    assert_eq!(ledger.audit(1).await.unwrap()[0].command, "migrate");
    ledger.clear_moved(lease, own.id).await.unwrap();
    assert_eq!(ledger.moved(own.id, 0, 9).await.unwrap(), []);
    assert_eq!(ledger.open_moves().await.unwrap(), []);
}

#[tokio::test]
async fn a_message_without_a_unionid_is_found_by_the_openid_of_two_moves_ago() {
    let house = House::new().await;
    let (ledger, lease, push) = (&house.ledger, &house.lease, house.push("r1", 1).await);
    let people = people(1..=1);
    let _ = house.begin(&push, fresh(&intents(&people))).await;
    let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Sent)]).await;
    let own = begun(&house, 1).await;
    let old = people[0].1.clone();
    for (from, to) in [(old.as_str(), "second"), ("second", "third")] {
        let moved = [MovedRow { place: 1, openid: OpenId::new(from), outcome: Ok(OpenId::new(to)) }];
        ledger.touched_by_move(lease, &own, (&moved, &mut Touched::default())).await.unwrap();
    }
    let rows = sqlx::query("select new_openid, openid from former_openids order by 1")
        .fetch_all(&ledger.readers)
        .await
        .unwrap();
    let rows = read_all(rows, |row| Ok((row.text("new_openid")?, row.text("openid")?))).unwrap();
    let wanted = [("second", old.as_str()), ("third", old.as_str())];
    assert_eq!(rows, wanted.map(|(new, old)| (new.to_owned(), old.to_owned())));
}
