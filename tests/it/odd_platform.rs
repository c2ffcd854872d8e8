//! A platform with its oddities: what comes out of the night is what a well-behaved one would have given.

use lianbo::simulator::{Endpoint, Fault, Faults, InvalidInBatch, ListEnd, Options, Order};

use crate::house::{House, small};

/// The whole night but its times.
const OUTCOME: [&str; 4] = [
    "select account, openid, active from followers order by all",
    "select account, openid, unionid, unionid_missing from profiles order by all",
    "select unionid, account, oa_openid, miniprogram, mp_openid from identities order by all",
    "select account, miniprogram, side, reason, people from match_report order by all",
];

async fn outcome(house: &House) -> Vec<Vec<Vec<String>>> {
    let mut tables = Vec::new();
    for sql in OUTCOME {
        tables.push(house.rows(sql).await);
    }
    tables
}

async fn on_its_best_behaviour() -> Vec<Vec<Vec<String>>> {
    let house = House::build(small()).await;
    house.night().await;
    let tables = outcome(&house).await;
    assert_eq!((tables[0].len(), tables[1].len()), (600, 600));
    tables
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_the_list_is_known_to_end_or_repeat_gives_the_same_tables() {
    let wanted = on_its_best_behaviour().await;
    let list_ends = [ListEnd::EmptyList, ListEnd::EmptyCursor, ListEnd::SameCursor].map(|list_end| Faults {
        list_end,
        blank_openids: true,
        repeated_openids: 7,
        numbers_as_text: true,
        text_plain: true,
        ..Faults::default()
    });
    for faults in list_ends {
        let house = House::build(Options { faults: faults.clone(), ..small() }).await;
        house.night().await;
        assert!(outcome(&house).await == wanted, "{faults:?}");
        assert!(house.calls("user/get") <= 4, "{:?}", house.simulator.calls());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_answers_and_lost_calls_give_the_same_tables() {
    let wanted = on_its_best_behaviour().await;
    let faults = Faults {
        control_characters_every: 9,
        leading_space_every: 11,
        sparse_every: 13,
        spurious_token_every: 6,
        ..Faults::default()
    };
    let house = House::build(Options { faults, ..small() }).await;
    for (fault, endpoint) in [
        (Fault::LostAnswer, Endpoint::UserGet),
        (Fault::NotJson, Endpoint::UserGet),
        (Fault::BrokenJson, Endpoint::UserInfoBatchget),
        (Fault::LostRequest, Endpoint::UserInfoBatchget),
        (Fault::Errcode(-1), Endpoint::UserInfoBatchget),
    ] {
        house.simulator.order(Order::next(fault).at(endpoint));
    }
    house.night().await;
    assert!(outcome(&house).await == wanted);
    assert!(house.calls("user/get") > 4 && house.calls("user/info/batchget") > 6);
    assert_eq!(house.simulator.forced_tokens(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_that_breaks_its_whole_answer_costs_that_person_alone() {
    let wanted = on_its_best_behaviour().await;
    let house =
        House::build(Options { faults: Faults { broken_json_every: 97, ..Faults::default() }, ..small() }).await;
    house.night().await;
    let found = outcome(&house).await;
    assert!(found[0] == wanted[0]);
    let differ: Vec<_> = found[1].iter().zip(&wanted[1]).filter(|(found, wanted)| found != wanted).collect();
    assert!(differ.len() <= 20, "{}", differ.len());
    // Whoever has a unionid has the right one; whoever has none is named as put aside.
    for (found, wanted) in differ {
        assert_eq!((&found[1], &found[2], found[3].as_str()), (&wanted[1], &String::new(), "quarantined"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_openid_of_nobody_spoils_no_one_elses_details() {
    let wanted = on_its_best_behaviour().await;
    for invalid_in_batch in [InvalidInBatch::WholeBatch, InvalidInBatch::ShortAnswer] {
        let faults = Faults { invalid_in_batch, strangers: 2, ..Faults::default() };
        let house = House::build(Options { faults, ..small() }).await;
        house.night().await;
        let found = outcome(&house).await;
        let nobody = |row: &&Vec<String>| row[1].starts_with("oStranger");
        assert_eq!(found[0].len(), 602);
        assert_eq!(found[1].iter().filter(nobody).filter(|row| row[2].is_empty()).count(), 2, "{invalid_in_batch:?}");
        let others: Vec<Vec<String>> = found[1].iter().filter(|row| !nobody(row)).cloned().collect();
        assert!(others == wanted[1], "{invalid_in_batch:?}");
        assert!(found[2] == wanted[2], "{invalid_in_batch:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_while_people_come_and_leave_loses_nobody_who_stayed() {
    let faults = Faults { churn_per_page: 5, gone_cursor_refused: true, ..Faults::default() };
    let house = House::build(Options { faults, page_size: 60, ..small() }).await;
    let before: std::collections::BTreeSet<String> = house.simulator.matchable().into_iter().collect();
    house.night().await;
    let after: std::collections::BTreeSet<String> = house.simulator.matchable().into_iter().collect();
    let stayed: Vec<&String> = before.intersection(&after).collect();
    let found: std::collections::BTreeSet<String> =
        house.rows("select openid from followers where active").await.into_iter().flatten().collect();
    let lost: Vec<&&String> = stayed.iter().filter(|openid| !found.contains(**openid)).collect();
    assert!(lost.is_empty(), "{} of {} were lost", lost.len(), stayed.len());
    assert!(before.len() > stayed.len() || after.len() > stayed.len(), "nobody came or left");
}
