use chrono::NaiveDate;
use proptest::prelude::*;

use super::*;
use crate::domain::{MiniProgramName, Rows};
use crate::engine::Engine;

/// Account, unionid, time of following; the place in the list is the openid.
type Follower = (u8, Option<u8>, Option<u8>);
/// Mini program, unionid, time of the row; the place in the list is the openid.
type User = (u8, Option<u8>, Option<u8>);

fn optional(value: Option<u8>, of: impl Fn(u8) -> String, ty: &str) -> String {
    value.map_or_else(|| format!("cast(null as {ty})"), of)
}

fn unionid(of: Option<u8>) -> String {
    optional(of, |id| format!("'u{id}'"), "varchar")
}

fn time(of: Option<u8>) -> String {
    optional(of, |day| format!("timestamp '2026-01-0{}'", day + 1), "timestamp")
}

/// Identities and conflicts, both in order; people come in the order of `places`.
fn tie(followers: &[(usize, Follower)], users: &[(usize, User)]) -> [Rows; 2] {
    let folder = tempfile::tempdir().unwrap();
    let session = Engine::new("1GB", 1, folder.path().join("spill"), chrono_tz::Asia::Shanghai).session().unwrap();
    let of_followers: Vec<String> = followers.iter().map(|(n, own)| format!("'a{}', 'o{n}', true", own.0)).collect();
    let of_profiles: Vec<String> =
        followers.iter().map(|(n, own)| format!("'a{}', 'o{n}', {}, {}", own.0, unionid(own.1), time(own.2))).collect();
    let of_users = |miniprogram: u8| -> Vec<String> {
        let own = users.iter().filter(|(_, own)| own.0 == miniprogram);
        own.map(|(n, own)| format!("'m{miniprogram}', 'p{n}', {}, {}", unionid(own.1), time(own.2))).collect()
    };
    let text = "VARCHAR";
    let users = [0, 1].map(|miniprogram| UsersTable {
        source: TableSource::of_rows(
            &format!("users{miniprogram}"),
            &[("miniprogram", text), ("openid", text), ("unionid", text), ("updated_at", "TIMESTAMP")],
            &of_users(miniprogram),
        ),
        miniprogram: Some(MiniProgramName::new(format!("m{miniprogram}"))),
    });
    let followers =
        TableSource::of_rows("followers", &[("account", text), ("openid", text), ("active", "BOOLEAN")], &of_followers);
    let profiles = TableSource::of_rows(
        "profiles",
        &[("account", text), ("openid", text), ("unionid", text), ("subscribe_time", "TIMESTAMP")],
        &of_profiles,
    );
    for table in users.iter().map(|table| &table.source).chain([&followers, &profiles]) {
        session.add_table(table).unwrap();
    }
    let join = Join { followers: "followers".to_owned(), profiles, users: users.to_vec(), bindings: None };
    session.run(&format!("create temp table pairs as {}", join.by_unionid())).unwrap();
    let ranked = join.ranked("pairs");
    let day = NaiveDate::from_ymd_opt(2026, 11, 27).unwrap();
    let today = Params::from([("today".to_owned(), Param::Date(day))]);
    session.run(&format!("create temp table chosen as {}", conflicts::chosen_sql(&ranked, "pairs"))).unwrap();
    session.execute(&format!("create temp table told as {}", conflicts::conflicts_sql(&ranked)), &today).unwrap();
    let none = Params::new();
    let count = |sql: &str| session.count(sql, &none).unwrap();
    // Once for a person, account and mini program; nobody is lost, nobody is both.
    assert_eq!(count("select count(*) - count(distinct (unionid, account, miniprogram)) from chosen"), 0);
    assert_eq!(
        count(
            "select count(*) from (select distinct unionid, account, miniprogram from pairs except select unionid, account, miniprogram from chosen)"
        ),
        0
    );
    for (side, column) in [("several_users", "mp_openid"), ("several_followers", "oa_openid")] {
        assert_eq!(
            count(&format!(
                "select (select count(distinct (account, miniprogram, {column})) from pairs)
                      - (select count(distinct (account, miniprogram, {column})) from chosen)
                      - (select count(*) from told where reason = '{side}')"
            )),
            0
        );
    }
    ["chosen", "told"].map(|table| session.query(&format!("select * from {table} order by all"), &none).unwrap())
}

fn numbered<T: Clone>(people: &[T]) -> Vec<(usize, T)> {
    people.iter().cloned().enumerate().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn each_person_is_tied_once_and_the_same_whatever_the_order(
        (followers, mixed_followers) in prop::collection::vec((0..2_u8, prop::option::of(0..4_u8), prop::option::of(0..2_u8)), 0..12)
            .prop_flat_map(|people| (Just(numbered(&people)), Just(numbered(&people)).prop_shuffle())),
        (users, mixed_users) in prop::collection::vec((0..2_u8, prop::option::of(0..4_u8), prop::option::of(0..2_u8)), 0..12)
            .prop_flat_map(|people| (Just(numbered(&people)), Just(numbered(&people)).prop_shuffle())),
    ) {
        let [tied, told] = tie(&followers, &users);
        let [again, told_again] = tie(&mixed_followers, &mixed_users);
        prop_assert_eq!(format!("{tied:?} {told:?}"), format!("{again:?} {told_again:?}"));
    }
}

#[test]
fn users_of_several_tables_are_one_row_with_what_each_table_knows() {
    let folder = tempfile::tempdir().unwrap();
    let session = Engine::new("1GB", 1, folder.path().join("spill"), chrono_tz::Asia::Shanghai).session().unwrap();
    let text = "VARCHAR";
    let columns =
        [("miniprogram", text), ("openid", text), ("unionid", text), ("updated_at", "TIMESTAMP"), ("city", text)];
    let day = |n: u8| time(Some(n));
    let app = TableSource::of_rows(
        "app",
        &columns,
        &[
            format!("'m', 'a', 'u1', {}, '上海'", day(0)),
            format!("'m', ' b ', '  ', {}, null", day(2)),
            format!("'m', 'c', 'u3', {}, null", day(1)),
        ],
    );
    let web = TableSource::of_rows(
        "web",
        &columns,
        &[
            format!("'m', 'a', 'u9', {}, null", day(1)),
            format!("'m', 'b', ' u2', {}, '北京'", day(0)),
            format!("'m', '  ', 'u4', {}, null", day(0)),
        ],
    );
    let tables = [app, web].map(|source| UsersTable { source, miniprogram: None });
    for table in &tables {
        session.add_table(&table.source).unwrap();
    }
    let city = people::UserColumn::new("city", |_| "city".to_owned());
    let sql = format!(
        "select concat_ws(' ', openid, unionid, city) as row from ({}) order by all",
        users_sql(&tables, &[city])
    );
    let rows = |sql: &str| format!("{:?}", session.query(sql, &Params::new()).unwrap());
    for wanted in ["a u9 上海", "b u2 北京", "c u3"] {
        assert!(rows(&sql).contains(wanted), "{wanted}: {}", rows(&sql));
    }
    let several = people::several_unionids_sql(&tables).unwrap();
    let told = rows(&format!("select concat_ws(' ', openid, unionid, chosen, rule) as row from ({several})"));
    assert!(told.contains("[Some(\"a u1 u9 newest\")]"), "{told}");
    let plain =
        tables.map(|table| UsersTable { miniprogram: Some(MiniProgramName::new(table.source.name.clone())), ..table });
    assert!(people::several_unionids_sql(&plain).is_none());
}
