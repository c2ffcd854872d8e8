//! Who needs asking: whoever is new, whoever could not be told last time, and whoever's profile is stale.
//!
//! The profiles of a first night are of one age. Were they all stale at once, that night would be a first night again; so
//! they become stale one after the other, over the second half of `refresh_after`, each at an age of their own that their
//! openid gives. Nobody's profile is older than `refresh_after` when a night has asked, and none younger than half is asked for.
//!
//! An openid that WeChat refuses is asked for again on the next date, after its second refusal two dates later, and from the
//! third on every four; by itself, since in a batch it costs all others their answer.

use std::time::Duration;

use chrono::{Days, NaiveDate, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::clock::Timestamp;
use crate::engine::{Param, Params};

/// A shorter `refresh_after` spans no nights that could share.
const LEAST_SPREAD: TimeDelta = TimeDelta::days(2);

/// Dates until an openid is asked for again that was refused once, twice, or more often in a row.
const WAITS: [u64; 3] = [1, 2, 4];

/// From when on profiles are fresh, and before when they are stale; in between it depends on the openid.
#[derive(Debug, Clone, Copy)]
pub struct Stale {
    before: Timestamp,
    fresh_from: Timestamp,
    /// Midnights: whoever was refused once, twice, or more often before them is asked for again.
    refused_before: [Timestamp; 3],
}

impl Stale {
    /// For a run of `now`, which is on the date `today` in `zone`.
    pub fn at((now, today, zone): (Timestamp, NaiveDate, Tz), refresh_after: Duration) -> Self {
        let age = TimeDelta::from_std(refresh_after).unwrap_or(TimeDelta::MAX);
        let ago = |age: TimeDelta| now.checked_sub_signed(age).unwrap_or(Timestamp::MIN_UTC);
        let youngest = if age < LEAST_SPREAD { age } else { age / 2 };
        let midnight = |nights: u64| {
            let start = today.checked_sub_days(Days::new(nights - 1)).unwrap_or(today).and_time(NaiveTime::MIN);
            zone.from_local_datetime(&start).earliest().map_or_else(|| start.and_utc(), |at| at.to_utc())
        };
        Self { before: ago(age), fresh_from: ago(youngest), refused_before: WAITS.map(midnight) }
    }

    /// Nothing that was fetched before `rebound_at` is fresh.
    pub fn unless_since(self, rebound_at: Option<Timestamp>) -> Self {
        let Some(at) = rebound_at else { return self };
        Self { before: self.before.max(at), fresh_from: self.fresh_from.max(at), ..self }
    }

    /// Nobody is asked for whose profile was fetched since then.
    pub fn fresh_from(self) -> Timestamp {
        self.fresh_from
    }

    /// What [`NEEDED`] and [`REFUSED`] are bound with.
    pub fn params(self) -> Params {
        let [once, twice, often] = self.refused_before;
        Params::from([
            ("refused_once_before".to_owned(), Param::Timestamp(once)),
            ("refused_twice_before".to_owned(), Param::Timestamp(twice)),
            ("refused_often_before".to_owned(), Param::Timestamp(often)),
            ("stale_before".to_owned(), Param::Timestamp(self.before)),
            ("fresh_from".to_owned(), Param::Timestamp(self.fresh_from)),
        ])
    }
}

/// The openids that need asking, but those that were refused ([`REFUSED`]). An openid's place between the two times is the first 32 bits of its md5.
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
        and (profiles_before.unionid_missing = 'error' or case when profiles_before.fetched_at >= $fresh_from then true
                 when profiles_before.fetched_at < $stale_before then false
                 else epoch_us(profiles_before.fetched_at) >= epoch_us($stale_before)
                      + (epoch_us($fresh_from) - epoch_us($stale_before))
                        * (cast('0x' || substr(md5(profiles_before.openid), 1, 8) as ubigint) / 4294967296.0)
            end
        -- Whoever follows, and had left when they were asked, has come back.
        and profiles_before.subscribe is distinct from false
        and coalesce(profiles_before.unionid_missing, '') not in ('not_asked', 'quarantined')))";

/// The openids that WeChat refused and that are due again.
pub const REFUSED: &str = "
select followers.openid
from followers
join profiles_before on profiles_before.openid = followers.openid
where followers.active and profiles_before.unionid_missing = 'error'
  and profiles_before.fetched_at < case when coalesce(profiles_before.refusals, 1) <= 1 then $refused_once_before
                                        when profiles_before.refusals = 2 then $refused_twice_before
                                        else $refused_often_before end
  and not exists (
      select 1 from fetched
      where fetched.openid = followers.openid and fetched.fetched_at >= $refused_once_before)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    const PEOPLE: u64 = 3_000;

    fn at(day: f64) -> Timestamp {
        let seconds = 1_800_000_000.0 + day * 86_400.0;
        Timestamp::from_timestamp(seconds as i64, 0).unwrap()
    }

    fn run(now: Timestamp) -> (Timestamp, NaiveDate, Tz) {
        let zone = chrono_tz::Asia::Shanghai;
        (now, now.with_timezone(&zone).date_naive(), zone)
    }

    #[test]
    fn the_wait_after_a_refusal_is_counted_in_dates_of_the_workspace() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::Asia::Shanghai);
        let session = engine.session().unwrap();
        // The tenth, a quarter to midnight in Shanghai.
        let refused = "2026-11-10T15:45:00Z".parse::<Timestamp>().unwrap();
        session
            .run(&format!(
                "create table followers as select 'o' || range as openid, true as active from range(5);
                 create table profiles_before as select openid, 'error' as unionid_missing,
                     make_timestamp({}) as fetched_at, nullif(cast(substr(openid, 2) as bigint), 0) as refusals from followers;
                 create table fetched as select openid, fetched_at from profiles_before limit 0;",
                refused.timestamp_micros()
            ))
            .unwrap();
        let due = |hours: i64| {
            let params = Stale::at(run(refused + TimeDelta::hours(hours)), Duration::from_secs(86_400 * 30)).params();
            let sql = format!("select count(*) from ({REFUSED})");
            session.count(&sql, &params).unwrap()
        };
        assert_eq!([0, 1, 24, 25, 48, 72, 73, 96, 97].map(due), [0, 2, 2, 3, 3, 3, 5, 5, 5]);
    }

    #[test]
    fn a_first_nights_profiles_become_stale_night_by_night_and_none_is_older_than_refresh_after() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::Asia::Shanghai);
        let session = engine.session().unwrap();
        let ask = |now: f64, days: u64| {
            let params = Stale::at(run(at(now)), Duration::from_secs(days * 86_400)).params();
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
            let params = Stale::at(run(at), Duration::from_secs(30 * 86_400)).unless_since(Some(at)).params();
            session.count(&format!("select count(*) from ({NEEDED})"), &params).unwrap()
        };
        assert_eq!([rebound(at(0.0)), rebound(at(0.1))], [0, PEOPLE]);
        // Too short to be spread over nights.
        assert_eq!([ask(0.9, 1), ask(1.1, 1)], [0, PEOPLE]);
    }
}
