use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::clock::from_micros;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, OpenId, Texts, Values};
use crate::engine::{Engine, Param, Params, Session, TableSource};
use crate::lake::{Lake, PartColumn};
use crate::stage::extract_followers::exceptions::{people, write_rows};
use crate::stage::extract_followers::roll::{Met, Missed};
use crate::stage::extract_followers::tables;
use crate::stage::tables::events;

const SECOND: i64 = SECOND_MICROS;
const WALKED_AT: i64 = 1_000 * SECOND;

/// What is known of a person: who they were, whether the walk met them, and what was told, by seconds before and after it.
type Known = (Option<bool>, bool, Vec<(i64, bool)>);

fn openid(number: usize) -> String {
    format!("o{number:03}")
}

fn found(known: &[Known]) -> Found {
    let mut found = Found::default();
    for (number, (before, is_met, _)) in known.iter().enumerate() {
        let seen = i64::try_from(number).unwrap() * SECOND;
        let missed = Missed { openid: openid(number), first_seen: seen, last_seen: seen + 500 * SECOND };
        match before {
            Some(true) => found.followed.push(missed),
            Some(false) => found.had_left.push(missed),
            None => {}
        }
        if *is_met {
            found.met.push(Met { openid: openid(number), part: 1, row: u32::try_from(number).unwrap() });
        }
    }
    found
}

fn told(known: &[Known]) -> Vec<FollowerEvent> {
    let mut told: Vec<FollowerEvent> = Vec::new();
    for (number, (.., events)) in known.iter().enumerate() {
        told.extend(events.iter().map(|(second, active)| FollowerEvent {
            id: 0,
            openid: OpenId::new(openid(number)),
            active: *active,
            at: from_micros(WALKED_AT + second * SECOND),
        }));
    }
    told.sort_by_key(|event| event.at);
    for (id, event) in (1..).zip(&mut told) {
        event.id = id;
    }
    told
}

/// Rows and changes as texts.
type Outcome = (BTreeSet<String>, BTreeSet<String>);

fn by_pass(known: &[Known]) -> Outcome {
    let (found, told) = (found(known), told(known));
    let (rows, changes) = Pass { found: &found, told: &told, walked_at: WALKED_AT }.run();
    let row = |(openid, row): (&&str, &Row)| format!("{openid} {} {} {}", row.first_seen, row.last_seen, row.active);
    let change = |own: &Change<'_>| {
        let change = if own.came { "follow" } else { "unfollow" };
        format!("{} {change} {} {}", own.openid, own.seen_at, own.source)
    };
    assert!(changes.is_sorted());
    (rows.iter().map(row).collect(), changes.iter().map(change).collect())
}

fn by_sql(known: &[Known]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(folder.path());
    let session = Engine::new("500MB", 1, folder.path(), chrono_tz::Asia::Shanghai).session().unwrap();
    let columns = |table: &str| table_spec(table).unwrap().sql_columns();
    let source =
        |name: &str, columns, parts| TableSource { name: name.to_owned(), columns, parts, sql: None, are_alike: false };
    let told = told(known);
    let told_columns = events::COLUMNS.iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect();
    let told_part = events::write(&lake, "told.parquet", &[(AccountName::new("main"), told)]).unwrap();
    let pass = tables::Pass {
        before: source("before", columns("followers"), vec![write_before(&lake, &found(known))]),
        walk: tables::walk_source(vec![write_walk(&lake, known)]),
        told: source("told", told_columns, vec![told_part]),
        forgotten: None,
        is_first: false,
    };
    let params = Params::from([
        ("account".to_owned(), Param::Text("main".to_owned())),
        ("walked_at".to_owned(), Param::Timestamp(from_micros(WALKED_AT))),
    ]);
    pass.run(&session, &params).unwrap();
    let rows =
        "select concat_ws(' ', openid, epoch_us(first_seen_at), epoch_us(last_seen_at), active) as row from after";
    let changes = format!(
        "select concat_ws(' ', openid, change, epoch_us(seen_at), source) as row from ({})",
        pass.changes_sql()
    );
    (texts(&session, rows, &params), texts(&session, &changes, &params))
}

fn write_before(lake: &Lake, found: &Found) -> PathBuf {
    let mut writer = lake.writer("before.parquet", &table_spec("followers").unwrap().part_schema()).unwrap();
    for (rows, active) in [(&found.followed, true), (&found.had_left, false)] {
        let rows: Vec<(&str, Row)> = rows
            .iter()
            .map(|own| (own.openid.as_str(), Row { first_seen: own.first_seen, last_seen: own.last_seen, active }))
            .collect();
        write_rows(&mut writer, "main", (&people(rows.iter().map(|(openid, row)| (openid, row))), active)).unwrap();
    }
    lake.absolute(&writer.finish().unwrap().path)
}

fn write_walk(lake: &Lake, known: &[Known]) -> PathBuf {
    let mut writer = lake.writer("page-1.parquet", &[("openid", ColumnType::Text)]).unwrap();
    let met: Vec<String> = (0..known.len()).filter(|number| known[*number].1).map(openid).collect();
    let met: Texts = met.iter().map(|openid| Some(openid.as_str())).collect();
    writer.write_columns(met.len(), vec![("openid", PartColumn::Texts(&met))]).unwrap();
    lake.absolute(&writer.finish().unwrap().path)
}

fn texts(session: &Session, sql: &str, params: &Params) -> BTreeSet<String> {
    let rows = session.query(sql, params).unwrap();
    let [(_, Values::Text(rows))] = rows.columns.as_slice() else { panic!("{rows:?}") };
    let count = rows.len();
    let rows: BTreeSet<String> = rows.iter().cloned().map(Option::unwrap).collect();
    assert_eq!(rows.len(), count, "each once");
    rows
}

#[test]
fn who_came_left_came_back_and_was_told_of() {
    let known = vec![
        (None, true, vec![]),
        (Some(true), false, vec![]),
        (Some(false), true, vec![]),
        (Some(true), true, vec![(5, false)]),
        (None, false, vec![(-9, true), (-5, false)]),
        (None, false, vec![(3, false)]),
        (None, true, vec![(7, false)]),
    ];
    let (rows, changes) = by_pass(&known);
    let second = |second: i64| second * SECOND;
    let [walked, long] = [WALKED_AT, second(500)];
    let expected = [
        format!("o000 {walked} {walked} true"),
        format!("o001 {} {} false", second(1), second(1) + long),
        format!("o002 {} {walked} true", second(2)),
        format!("o003 {} {walked} false", second(3)),
        format!("o004 {} {} false", walked - second(9), walked - second(9)),
        format!("o006 {walked} {walked} false"),
    ];
    assert_eq!(rows, BTreeSet::from(expected), "whoever left without having been known to follow has no row");
    let expected = [
        format!("o000 follow {walked} walk"),
        format!("o001 unfollow {walked} walk"),
        format!("o002 follow {walked} walk"),
        format!("o003 unfollow {} event", walked + second(5)),
        format!("o004 follow {} event", walked - second(9)),
        format!("o004 unfollow {} event", walked - second(5)),
        format!("o006 follow {walked} walk"),
        format!("o006 unfollow {} event", walked + second(7)),
    ];
    assert_eq!(changes, BTreeSet::from(expected));
    assert_eq!(by_sql(&known), (rows, changes));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]
    #[test]
    fn the_few_become_what_a_whole_nights_sql_makes_of_them(
        known in prop::collection::vec(
            (prop::option::of(any::<bool>()), any::<bool>(), prop::collection::btree_map(-4_i64..4, any::<bool>(), 0..4)),
            1..60,
        )
    ) {
        let known: Vec<Known> = known.into_iter().map(|(before, is_met, told)| (before, is_met, told.into_iter().collect())).collect();
        prop_assert_eq!(by_pass(&known), by_sql(&known));
    }
}
