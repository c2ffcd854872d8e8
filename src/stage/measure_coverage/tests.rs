use chrono::{NaiveDate, TimeDelta};
use proptest::prelude::*;

use super::figures::{Evidence, Figures};
use super::*;
use crate::domain::MiniProgramName;
use crate::engine::{Engine, Params, Session};

fn or_null(value: Option<String>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| format!("'{value}'"))
}

/// Account, unionid, month of following, tags.
type Follower = (u8, Option<u8>, u8, u8);
/// Mini program, unionid, city.
type User = (u8, Option<u8>, Option<u8>);
/// Account (or all), unionid or else the openid of a follower with this number.
type Word = (Option<u8>, bool, u8);

const T: &str = "VARCHAR";

struct World {
    followers: Vec<Follower>,
    users: Vec<User>,
    suppressed: Vec<Word>,
    reached: Vec<Word>,
    users_are: UsersAre,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UsersAre {
    Loaded,
    MadeBySql,
}

impl World {
    fn measure(&self) -> (tempfile::TempDir, Session) {
        self.measure_by("hash(unionid)")
    }

    fn measure_by(&self, print: &str) -> (tempfile::TempDir, Session) {
        let folder = tempfile::tempdir().unwrap();
        let session = Engine::new("1GB", 1, folder.path().join("spill"), chrono_tz::Asia::Shanghai).session().unwrap();
        session.run(&format!("create macro print_of(unionid) as {print}")).unwrap();
        let targets = TABLES.map(|table| folder.path().join(format!("{table}.parquet")));
        self.figures(targets.clone()).write(&session).unwrap();
        for (table, target) in TABLES.iter().zip(targets) {
            let columns = table_spec(table).unwrap().sql_columns();
            let name = (*table).to_owned();
            session
                .add_table(&TableSource { name, columns, parts: vec![target], sql: None, are_alike: false })
                .unwrap();
        }
        (folder, session)
    }

    fn figures(&self, targets: [std::path::PathBuf; 3]) -> Figures {
        let numbered = || self.followers.iter().enumerate();
        let followers: Vec<String> =
            numbered().map(|(n, own)| format!("'a{}', 'o{n}', {}", own.0, n % 7 != 6)).collect();
        let profiles: Vec<String> = numbered()
            .map(|(n, (account, unionid, month, tags))| {
                let missing = if unionid.is_none() { "'not_bound'" } else { "null" };
                let tags = ["[]", "[2]", "[2,7]"][usize::from(*tags)];
                let unionid = or_null(unionid.map(|id| format!("u{id}")));
                format!("'a{account}', 'o{n}', {unionid}, {missing}, timestamp '2026-0{month}-03', '{tags}'")
            })
            .collect();
        let users = [0, 1].map(|miniprogram| {
            let own = self.users.iter().enumerate().filter(|(_, own)| own.0 == miniprogram);
            let rows: Vec<String> = own
                .map(|(n, (_, unionid, city))| {
                    let [unionid, city] =
                        [unionid.map(|id| format!("u{id}")), city.map(|id| format!("c{id}"))].map(or_null);
                    format!("'m{miniprogram}', 'p{n}', {unionid}, timestamp '2026-01-0{}', {city}", n % 3 + 1)
                })
                .collect();
            let columns = [("miniprogram", T), ("openid", T), ("unionid", T), ("updated_at", "TIMESTAMP"), ("city", T)];
            let source = TableSource::of_rows(&format!("users{miniprogram}"), &columns, &rows);
            let loaded = self.users_are == UsersAre::Loaded;
            UsersTable { source, miniprogram: loaded.then(|| MiniProgramName::new(format!("m{miniprogram}"))) }
        });
        let whom = |(account, by_unionid, n): &Word| {
            let [unionid, openid] =
                [by_unionid.then(|| format!("u{n}")), (!by_unionid).then(|| format!("o{n}"))].map(or_null);
            format!("{}, {openid}, {unionid}", or_null(account.map(|n| format!("a{n}"))))
        };
        let suppressed: Vec<String> =
            self.suppressed.iter().map(|word| format!("{}, null, timestamp '2026-01-01', null", whom(word))).collect();
        let reached: Vec<String> = self
            .reached
            .iter()
            .map(|(account, by, n)| {
                format!("{}, 'success', false, timestamp '2026-11-20'", whom(&(account.or(Some(0)), *by, *n)))
            })
            .collect();
        let profiles = TableSource::of_rows(
            "profiles_now",
            &[
                ("account", T),
                ("openid", T),
                ("unionid", T),
                ("unionid_missing", T),
                ("subscribe_time", "TIMESTAMP"),
                ("tagid_list", T),
            ],
            &profiles,
        );
        let at = NaiveDate::from_ymd_opt(2026, 11, 27).unwrap();
        let now = at.and_hms_opt(1, 0, 0).unwrap().and_utc();
        let written = ["city", "month(subscribe_time)", "city + month(updated_at)", "tag", "tag+city"];
        let segments = written.map(|written| segment(written, &users, &profiles).unwrap());
        Figures {
            followers: TableSource::of_rows(
                "followers_now",
                &[("account", T), ("openid", T), ("active", "BOOLEAN")],
                &followers,
            ),
            profiles,
            users: users.to_vec(),
            evidence: Evidence::Ledger {
                tables: [
                    TableSource::of_rows(
                        "suppressions",
                        &[
                            ("account", T),
                            ("openid", T),
                            ("unionid", T),
                            ("template_id", T),
                            ("since", "TIMESTAMP"),
                            ("until", "TIMESTAMP"),
                        ],
                        &suppressed,
                    ),
                    TableSource::of_rows(
                        "deliveries",
                        &[
                            ("account", T),
                            ("openid", T),
                            ("unionid", T),
                            ("delivered", T),
                            ("is_test", "BOOLEAN"),
                            ("delivered_at", "TIMESTAMP"),
                        ],
                        &reached,
                    ),
                ],
                at: now,
                lately_from: now - TimeDelta::days(30),
                target: None,
            },
            forgotten: None,
            before: TABLES.map(|table| {
                let columns = table_spec(table).unwrap().sql_columns();
                TableSource { name: format!("{table}_before"), columns, parts: Vec::new(), sql: None, are_alike: false }
            }),
            accounts: vec!["a0".to_owned(), "a1".to_owned()],
            miniprograms: vec!["m0".to_owned(), "m1".to_owned()],
            segments: segments.to_vec(),
            as_of: now,
            run_id: "run".to_owned(),
            snapshots: "followers/a0@1".to_owned(),
            today: at,
            targets,
        }
    }
}

/// Rows of coverage that do not agree with their report, their segments or themselves.
const DO_NOT_ADD_UP: &str = "
with report as (
    select account, miniprogram, coalesce(sum(people) filter (side = 'follower'), 0) as followers,
           coalesce(sum(people) filter (side = 'user'), 0) as users,
           coalesce(sum(people) filter (side = 'user' and reason in ('matched', 'conflict')), 0) as matched,
           coalesce(sum(people) filter (side = 'user' and reason = 'matched'), 0) as tied_users,
           coalesce(sum(people) filter (side = 'follower' and reason = 'matched'), 0) as tied_followers
    from match_report group by account, miniprogram
)
select count(*) from coverage as c
left join report as r on r.account = c.account and r.miniprogram = c.miniprogram
where c.reached_lately > c.reachable or c.reachable > c.matched or c.matched > c.users_with_unionid
   or (c.account <> '*' and c.miniprogram <> '*' and (
        c.followers <> coalesce(r.followers, 0) or c.users <> coalesce(r.users, 0) or c.matched <> coalesce(r.matched, 0)
        or coalesce(r.tied_users, 0) <> coalesce(r.tied_followers, 0)))";

/// Segments of one value a person that do not sum to the whole.
const SEGMENTS_DO_NOT_SUM: &str = "
select count(*) from (
    select account, miniprogram, segment, sum(users) as users, sum(matched) as matched, sum(reachable) as reachable,
           sum(reached_lately) as reached_lately
    from coverage_by_segment where segment not like 'tag%' group by account, miniprogram, segment
) as s join coverage as c on c.account = s.account and c.miniprogram = s.miniprogram
where s.users <> c.users or s.matched <> c.matched or s.reachable <> c.reachable or s.reached_lately <> c.reached_lately";

/// Both sides as they were given, a row a person and account or mini program.
const GIVEN: &str = "
with u as (select *, coalesce(unionid, miniprogram || '/' || openid) as person from (from users0 union all from users1)),
f as (
    select followers_now.account, followers_now.openid, unionid, coalesce(unionid, followers_now.account || '/' || openid) as person
    from followers_now join profiles_now using (account, openid) where active
)";

/// By hand: whom a message can reach in an account, or in any.
const BY_HAND: &str = "
select count(*) from coverage as c where c.account <> '*' and c.miniprogram <> '*' and (c.reachable, c.reached_lately) <> (
    select (count(distinct openid) filter (can_send), count(distinct openid) filter (can_send and was_reached))
    from (
        select u.openid, f.openid as follower,
               not exists (select 1 from suppressions as s where (s.account is null or s.account = f.account)
                           and (s.openid = f.openid or s.unionid = f.unionid)) as can_send,
               exists (select 1 from deliveries as d where d.account = f.account
                       and (d.openid = f.openid or d.unionid = f.unionid)) as was_reached
        from u join f on f.unionid = u.unionid
        where u.miniprogram = c.miniprogram and f.account = c.account
    )
)";

/// By hand: followers and users of each row of coverage; people where all accounts or all mini programs are meant.
const COUNTED_BY_HAND: &str = "
select count(*) from coverage as c
where (c.followers, c.followers_with_unionid) <> (
        select if(c.account = '*', (count(distinct person), count(distinct unionid)), (count(*), count(unionid)))
        from f where c.account in ('*', f.account)
    ) or (c.users, c.users_with_unionid, c.matched) <> (
        select if('*' in (c.account, c.miniprogram),
                  (count(distinct person), count(distinct unionid), count(distinct unionid) filter (is_matched)),
                  (count(*), count(unionid), count(*) filter (is_matched)))
        from (select u.*, exists (select 1 from f where f.unionid = u.unionid and c.account in ('*', f.account)) as is_matched
              from u where c.miniprogram in ('*', u.miniprogram))
    )";

/// By hand: why people do or do not match; of those who share a unionid one is matched.
const REPORTED_BY_HAND: &str = "
, hand as (
    select f.account, m.miniprogram, 'follower' as side,
           case when f.unionid is null then 'not_bound'
                when not exists (select 1 from u where u.unionid = f.unionid and u.miniprogram = m.miniprogram) then 'not_a_user'
                when row_number() over (partition by f.account, m.miniprogram, f.unionid) = 1 then 'matched'
                else 'conflict' end as reason
    from f cross join (values ('m0'), ('m1')) as m(miniprogram)
    union all
    select a.account, u.miniprogram, 'user',
           case when u.unionid is null then 'no_unionid'
                when not exists (select 1 from f where f.unionid = u.unionid and f.account = a.account) then 'does_not_follow'
                when row_number() over (partition by a.account, u.miniprogram, u.unionid) = 1 then 'matched'
                else 'conflict' end
    from u cross join (values ('a0'), ('a1')) as a(account)
),
counted as (select account, miniprogram, side, reason, count(*) as people from hand group by all),
reported as (select account, miniprogram, side, reason, people from match_report)
select (select count(*) from (from counted except from reported)) + (select count(*) from (from reported except from counted))";

/// By hand: users of each account by each segment; of several followers with one unionid the first openid tells.
const SEGMENTS_BY_HAND: &str = "
, heard as (
    select f.account, f.openid, f.unionid,
           not exists (select 1 from suppressions as s where (s.account is null or s.account = f.account)
                       and (s.openid = f.openid or s.unionid = f.unionid)) as can_send,
           exists (select 1 from deliveries as d where d.account = f.account
                   and (d.openid = f.openid or d.unionid = f.unionid)) as was_reached
    from f where unionid is not null
),
following as (
    select account, unionid, min(openid) as openid, bool_or(can_send) as is_reachable,
           bool_or(can_send and was_reached) as is_reached
    from heard group by account, unionid
),
each as (
    select a.account, u.miniprogram, coalesce(city, '(unknown)') as town, city, updated_at, subscribe_time,
           case tagid_list when '[2]' then ['2'] when '[2,7]' then ['2', '7'] else [null] end as tags,
           following.unionid is not null as is_matched, is_reachable, is_reached
    from u cross join (values ('a0'), ('a1')) as a(account)
    left join following on following.account = a.account and following.unionid = u.unionid
    left join profiles_now on profiles_now.account = following.account and profiles_now.openid = following.openid
),
valued as (
    select 'city' as segment, city as value, * from each
    union all select 'month(subscribe_time)', strftime(subscribe_time, '%Y-%m'), * from each
    union all select 'city + month(updated_at)', town || ' + ' || strftime(updated_at, '%Y-%m'), * from each
    union all select 'tag', unnest(tags), * from each
    union all select 'tag+city', unnest([coalesce(tag, '(unknown)') || ' + ' || town for tag in tags]), * from each
),
counted as (
    select account, miniprogram, segment, value, count(*) as users, count(*) filter (is_matched) as matched,
           count(*) filter (is_reachable) as reachable, count(*) filter (is_reached) as reached_lately
    from valued group by all
),
reported as (
    select account, miniprogram, segment, value, users, matched, reachable, reached_lately from coverage_by_segment
)
select (select count(*) from (from counted except from reported)) + (select count(*) from (from reported except from counted))";

const ALL_BY_HAND: [&str; 4] = [BY_HAND, COUNTED_BY_HAND, REPORTED_BY_HAND, SEGMENTS_BY_HAND];

/// Two followers and three users share a unionid, one of each has another.
fn shared() -> World {
    World {
        followers: vec![(0, Some(1), 2, 2), (0, Some(1), 1, 1), (0, Some(2), 1, 0)],
        users: vec![(0, Some(1), None), (0, Some(1), Some(1)), (0, Some(2), Some(1)), (1, Some(1), Some(0))],
        suppressed: vec![(Some(0), false, 0)],
        reached: vec![(Some(0), false, 2)],
        users_are: UsersAre::Loaded,
    }
}

#[test]
fn who_shares_a_unionid_counts_as_an_openid_and_as_one_person_and_the_first_openid_tells_the_segment() {
    let (_folder, session) = shared().measure();
    let is_one = |sql: &str| assert_eq!(session.count(sql, &Params::new()).unwrap(), 1, "{sql}");
    let coverage = "select count(*) from coverage where account = 'a0'";
    is_one(&format!(
        "{coverage} and miniprogram = 'm0' and users = 3 and matched = 3 and reachable = 3 and reached_lately = 1"
    ));
    is_one(&format!(
        "{coverage} and miniprogram = '*' and users = 2 and matched = 2 and reachable = 2 and reached_lately = 1"
    ));
    let report =
        "select count(*) from match_report where account = 'a0' and miniprogram = 'm0' and reason = 'conflict'";
    is_one(&format!("{report} and side = 'follower' and people = 1"));
    is_one(&format!("{report} and side = 'user' and people = 1"));
    let segment = "select count(*) from coverage_by_segment where account = 'a0' and miniprogram = 'm0'";
    is_one(&format!(
        "{segment} and segment = 'month(subscribe_time)' and value = '2026-02' and users = 2 and reachable = 2"
    ));
    is_one(&format!("{segment} and segment = 'tag' and value = '7' and users = 2 and reached_lately = 0"));
}

#[test]
fn unionids_that_share_a_hash_are_told_apart() {
    let world = shared();
    let (_folder, session) = world.measure_by("length(unionid)");
    for by_hand in ALL_BY_HAND {
        assert_eq!(session.count(&format!("{GIVEN}{by_hand}"), &Params::new()).unwrap(), 0, "{by_hand}");
    }
}

#[test]
fn who_is_suppressed_twice_is_one_follower() {
    let twice = vec![(Some(0), false, 0), (None, false, 0), (Some(0), true, 1), (None, true, 1)];
    let world = World {
        followers: vec![(0, None, 1, 0), (0, Some(1), 1, 0)],
        users: vec![(0, Some(1), None)],
        suppressed: twice,
        reached: vec![(Some(0), false, 1), (Some(0), true, 1), (Some(0), false, 1)],
        users_are: UsersAre::Loaded,
    };
    let (_folder, session) = world.measure();
    for by_hand in [BY_HAND, COUNTED_BY_HAND, REPORTED_BY_HAND] {
        assert_eq!(session.count(&format!("{GIVEN}{by_hand}"), &Params::new()).unwrap(), 0);
    }
    let counted =
        "select count(*) from coverage where account = 'a0' and followers = 2 and miniprogram = 'm0' and matched = 1";
    assert_eq!(session.count(&format!("{counted} and reachable = 0"), &Params::new()).unwrap(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_figure_adds_up(
        followers in prop::collection::vec((0..2_u8, prop::option::of(0..6_u8), 1..3_u8, 0..3_u8), 0..14),
        users in prop::collection::vec((0..2_u8, prop::option::of(0..6_u8), prop::option::of(0..2_u8)), 0..14),
        (one_account, one_miniprogram, hashes_meet, users_are_made_by_sql) in any::<(bool, bool, bool, bool)>(),
        suppressed in prop::collection::vec((prop::option::of(0..2_u8), any::<bool>(), 0..6_u8), 0..4),
        reached in prop::collection::vec((prop::option::of(0..2_u8), any::<bool>(), 0..6_u8), 0..4),
    ) {
        let users_are = if users_are_made_by_sql { UsersAre::MadeBySql } else { UsersAre::Loaded };
        let mut world = World { followers, users, suppressed, reached, users_are };
        // What is true of one name alone is taken over for all of them: another way through the SQL.
        world.followers.iter_mut().filter(|_| one_account).for_each(|own| own.0 = 0);
        world.users.iter_mut().filter(|_| one_miniprogram).for_each(|own| own.0 = 0);
        let (_folder, session) =
            if hashes_meet { world.measure_by("hash(unionid) % 2") } else { world.measure() };
        let count = |sql: &str| session.count(sql, &Params::new()).unwrap();
        prop_assert_eq!(count("select count(*) from coverage"), 9);
        prop_assert_eq!(count(DO_NOT_ADD_UP), 0);
        prop_assert_eq!(count(SEGMENTS_DO_NOT_SUM), 0);
        for by_hand in ALL_BY_HAND {
            prop_assert_eq!(count(&format!("{GIVEN}{by_hand}")), 0);
        }
    }
}
