//! Who needs asking: whoever is new, whoever could not be told last time, and whoever's profile is stale.
//!
//! The profiles of a first night are of one age. Were they all stale at once, that night would be a first night again; so
//! they become stale one after the other, over the second half of `refresh_after`, each at an age of their own that their
//! openid gives. Nobody's profile is older than `refresh_after` when a night has asked, and none younger than half is asked for.

use std::time::Duration;

use chrono::TimeDelta;

use crate::clock::Timestamp;
use crate::engine::{Param, Params};

/// A shorter `refresh_after` spans no nights that could share.
const LEAST_SPREAD: TimeDelta = TimeDelta::days(2);

/// From when on profiles are fresh, and before when they are stale; in between it depends on the openid.
#[derive(Debug, Clone, Copy)]
pub struct Stale {
    before: Timestamp,
    fresh_from: Timestamp,
}

impl Stale {
    pub fn at(now: Timestamp, refresh_after: Duration) -> Self {
        let age = TimeDelta::from_std(refresh_after).unwrap_or(TimeDelta::MAX);
        let ago = |age: TimeDelta| now.checked_sub_signed(age).unwrap_or(Timestamp::MIN_UTC);
        let youngest = if age < LEAST_SPREAD { age } else { age / 2 };
        Self { before: ago(age), fresh_from: ago(youngest) }
    }

    /// Nothing that was fetched before `rebound_at` is fresh.
    pub fn unless_since(self, rebound_at: Option<Timestamp>) -> Self {
        let Some(at) = rebound_at else { return self };
        Self { before: self.before.max(at), fresh_from: self.fresh_from.max(at) }
    }

    /// What [`NEEDED`] is bound with.
    pub fn params(self) -> Params {
        Params::from([
            ("stale_before".to_owned(), Param::Timestamp(self.before)),
            ("fresh_from".to_owned(), Param::Timestamp(self.fresh_from)),
        ])
    }
}

/// The openids that need asking. An openid's place between the two times is the first 32 bits of its md5.
pub const NEEDED: &str = "
select followers.openid
from followers
where followers.active
  and not exists (
      select 1 from fetched
      where fetched.openid = followers.openid and fetched.fetched_at >= $stale_before)
  and not exists (
      select 1 from profiles_before
      where profiles_before.openid = followers.openid
        and case when profiles_before.fetched_at >= $fresh_from then true
                 when profiles_before.fetched_at < $stale_before then false
                 else epoch_us(profiles_before.fetched_at) >= epoch_us($stale_before)
                      + (epoch_us($fresh_from) - epoch_us($stale_before))
                        * (cast('0x' || substr(md5(profiles_before.openid), 1, 8) as ubigint) / 4294967296.0)
            end
        -- Whoever follows, and had left when they were asked, has come back.
        and profiles_before.subscribe is distinct from false
        and coalesce(profiles_before.unionid_missing, '') not in ('not_asked', 'error', 'quarantined'))";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    const PEOPLE: u64 = 3_000;

    fn at(day: f64) -> Timestamp {
        let seconds = 1_800_000_000.0 + day * 86_400.0;
        Timestamp::from_timestamp(seconds as i64, 0).unwrap()
    }

    #[test]
    fn a_first_nights_profiles_become_stale_night_by_night_and_none_is_older_than_refresh_after() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::Asia::Shanghai);
        let session = engine.session().unwrap();
        let ask = |now: f64, days: u64| {
            let params = Stale::at(at(now), Duration::from_secs(days * 86_400)).params();
            session.count(&format!("select count(*) from ({NEEDED})"), &params).unwrap()
        };
        session
            .run(&format!(
                "create table followers as select 'o' || range as openid, true as active from range({PEOPLE});
                 create table profiles_before as select openid, null::varchar as unionid_missing, true as subscribe,
                     make_timestamp({}) as fetched_at from followers;
                 create table fetched as select openid, fetched_at from profiles_before limit 0;",
                at(0.0).timestamp_micros()
            ))
            .unwrap();
        assert_eq!([ask(0.1, 30), ask(14.9, 30), ask(30.1, 30)], [0, 0, PEOPLE]);
        let mut before = 0;
        for night in 16..=30 {
            let stale = ask(f64::from(night), 30);
            let own = stale - before;
            assert!((PEOPLE / 15 * 2 / 3..=PEOPLE / 15 * 3 / 2).contains(&own), "night {night}: {own}");
            before = stale;
        }
        // Since the account was bound anew nothing older counts.
        let rebound = |at: Timestamp| {
            let params = Stale::at(at, Duration::from_secs(30 * 86_400)).unless_since(Some(at)).params();
            session.count(&format!("select count(*) from ({NEEDED})"), &params).unwrap()
        };
        assert_eq!([rebound(at(0.0)), rebound(at(0.1))], [0, PEOPLE]);
        // Too short to be spread over nights.
        assert_eq!([ask(0.9, 1), ask(1.1, 1)], [0, PEOPLE]);
    }
}
