//! Night after night of comings and goings: the tables are what adding up by hand gives, and what did not change stays the
//! files it was.

use std::collections::{BTreeMap, BTreeSet};

use lianbo::simulator::Options;

use crate::house::{House, small};

const FOLLOWERS: &str = "select openid, first_seen_at, last_seen_at, active from followers order by openid";
const CHANGES: &str = "select seen_at, openid, change, source from follower_changes order by all";
const PROFILES: &str = "select openid, unionid, unionid_missing, subscribe_time from profiles order by openid";

/// What a person at a desk would have written down.
#[derive(Default)]
struct Ledger {
    people: BTreeMap<String, (String, String, bool)>,
    changes: BTreeSet<Vec<String>>,
}

impl Ledger {
    fn night(&mut self, walked_at: &str, list: &BTreeSet<String>) {
        let is_first = self.people.is_empty();
        let mut tell = |openid: &str, what: &str| {
            self.changes.insert([walked_at, openid, what, "walk"].map(str::to_owned).to_vec());
        };
        for (openid, (_, last, active)) in &mut self.people {
            if list.contains(openid) {
                *last = walked_at.to_owned();
            }
            if *active != list.contains(openid) {
                *active = !*active;
                tell(openid, if *active { "follow" } else { "unfollow" });
            }
        }
        for openid in list {
            if !self.people.contains_key(openid) {
                self.people.insert(openid.clone(), (walked_at.to_owned(), walked_at.to_owned(), true));
                if !is_first {
                    tell(openid, "follow");
                }
            }
        }
    }

    fn followers(&self) -> Vec<Vec<String>> {
        let row = |(openid, (first, last, active)): (&String, &(String, String, bool))| {
            vec![openid.clone(), first.clone(), last.clone(), active.to_string()]
        };
        self.people.iter().map(row).collect()
    }
}

/// The parts of the current snapshot of a table.
fn parts(house: &House, table: &str) -> Vec<String> {
    let catalog = crate::catalog::open(&house.path("data/catalog.duckdb"));
    let sql = format!("select sql from duckdb_views() where view_name = '{table}'");
    let view: String = catalog.query_row(&sql, [], |row| row.get(0)).unwrap();
    view.split('\'').filter(|piece| piece.ends_with(".parquet")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nights_of_comings_and_goings_add_up_and_what_did_not_change_stays_the_file_it_was() {
    let house = House::build(Options { page_size: 12, ..small() }).await;
    let mut ledger = Ledger::default();
    let mut list: BTreeSet<String> = BTreeSet::new();
    let mut left: Vec<String> = Vec::new();
    let mut steady = Vec::new();
    for night in 0..6_usize {
        if night > 0 {
            house.pass(86_400);
            // Each night others leave and come; on the third night nobody, on the fifth some come back.
            let leave: Vec<String> =
                list.iter().skip(night * 7).step_by(61).take([0, 9, 4, 0, 5, 3][night]).cloned().collect();
            for openid in leave {
                assert!(house.simulator.unfollow(&openid) && list.remove(&openid));
                left.push(openid);
            }
            list.extend(house.simulator.follow_some([0, 12, 1, 0, 3, 50][night]));
            for openid in left.drain(..[0, 0, 0, 0, 0, 6][night]) {
                assert!(house.simulator.follow(&openid) && list.insert(openid));
            }
        }
        let calls = house.calls("user/info/batchget");
        house.night().await;
        if night == 0 {
            list = house.rows("select openid from followers").await.into_iter().map(|mut row| row.remove(0)).collect();
            steady = parts(&house, "profiles");
        } else {
            assert!(house.calls("user/info/batchget") - calls <= 1, "night {night} asked for more than it must");
        }
        let walked_at = house.row("select max(last_seen_at) from followers").await.remove(0);
        ledger.night(&walked_at, &list);
        assert!(house.rows(FOLLOWERS).await == ledger.followers(), "night {night}");
        assert!(house.rows(CHANGES).await == ledger.changes.iter().cloned().collect::<Vec<_>>(), "night {night}");
        let profiles: Vec<String> = house.rows(PROFILES).await.into_iter().map(|mut row| row.remove(0)).collect();
        assert!(profiles.iter().eq(ledger.people.keys()), "night {night}: everybody who ever followed has one profile");
        let now = parts(&house, "profiles");
        assert!(steady.iter().all(|part| now.contains(part)), "night {night} wrote the profiles of the first anew");
    }
    let gone = |part: &&String| part.rsplit('/').next().unwrap().starts_with("gone-");
    assert_eq!(parts(&house, "followers").iter().filter(gone).count(), 1);
    // Whatever older snapshots held alone goes; what the current ones share with them stays.
    let before = [house.rows(FOLLOWERS).await, house.rows(CHANGES).await, house.rows(PROFILES).await];
    house.pass(7_200);
    house.lianbo(&["vacuum", "--keep", "1"]).await.ends(0);
    let after = [house.rows(FOLLOWERS).await, house.rows(CHANGES).await, house.rows(PROFILES).await];
    assert!(before == after);
    let lake = house.files().into_keys().filter(|file| file.to_string_lossy().contains("/lake/tables/followers/"));
    assert_eq!(lake.count(), parts(&house, "followers").len());
}
