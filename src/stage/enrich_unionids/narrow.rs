//! Looking at few where a walk has told who changed: everybody else follows as they did when their profile was merged.
//!
//! Who needs asking ([`NEEDED`](super::need::NEEDED)) and who has no profile yet is then asked of those who changed, and of
//! those whose profile itself says that it may have to be asked for again; the table of all followers is not joined with
//! that of all profiles.

use std::path::PathBuf;

use super::digest::{self, Wanted};
use crate::clock::Timestamp;
use crate::domain::QuickSet;
use crate::domain::tables::table_spec;
use crate::engine::{Params, Session, TableSource};
use crate::lake::Lake;
use crate::stage::StageError;
use crate::stage::news::Changed;

/// The rows of followers that changed, as the engine reads them under the name `changed`.
pub(super) fn source(lake: &Lake, changed: &Changed) -> TableSource {
    TableSource {
        name: "changed".to_owned(),
        columns: table_spec("followers").expect("followers is declared").sql_columns(),
        parts: vec![lake.absolute(changed.path())],
        sql: None,
        are_alike: false,
    }
}

/// A profile that `NEEDED` asks for of nobody who follows, by itself alone.
const SURELY_FRESH: &str = "
fetched_at >= $fresh_from and subscribe and (unionid_missing is null or unionid_missing = 'not_bound')";

/// Of the parts of profiles those that hold a row which could tell that somebody needs asking.
pub(super) fn parts_that_could_tell(
    session: &Session,
    lake: &Lake,
    parts: &[PathBuf],
    (changed, params, fresh_from): (&TableSource, &Params, Timestamp),
) -> Result<Vec<PathBuf>, StageError> {
    session.add_table(changed)?;
    let mut wanted = Wanted { ids: QuickSet::default(), fresh_from: Some(fresh_from), not_asked: true };
    wanted.take(session, "select openid from changed where active and first_seen_at < $walked_at", params)?;
    digest::search(lake, parts, &wanted).map(|(found, _)| found)
}

/// Makes `followers` of the session those who may need asking: whoever changed, and whose profile is not surely fresh.
pub(super) fn to_who_may_need_asking(
    session: &Session,
    (followers, changed): (&TableSource, &TableSource),
    params: &Params,
) -> Result<(), StageError> {
    session.add_table(changed)?;
    // What is asked about the table is asked of the rows that could tell, each once. Whoever was first seen by this walk has none.
    let looked = format!(
        "create temp table looked as
         select openid, unionid_missing, subscribe, fetched_at, errcode, refusals, true as is_suspect
         from profiles_before where ({SURELY_FRESH}) is not true
         union all
         select openid, unionid_missing, subscribe, fetched_at, errcode, refusals, false
         from profiles_before
         where ({SURELY_FRESH}) and openid in (select openid from changed where active and first_seen_at < $walked_at)"
    );
    session.execute(&looked, params)?;
    session.run(
        "create or replace view profiles_before as select * from looked;
         create temp table suspects as select openid from looked where is_suspect",
    )?;
    to_changed_and(session, followers, "suspects")
}

/// Makes `followers` of the session those who changed, and those of the table `others` who did not.
pub(super) fn to_changed_and(session: &Session, followers: &TableSource, others: &str) -> Result<(), StageError> {
    let has_others = session.count(&format!("select count(*) from {others}"), &Params::new())? > 0;
    let mut sql = "create or replace view followers as select * from changed".to_owned();
    if has_others {
        let all = followers.select();
        sql.push_str(&format!(
            " union all select * from ({all}) as unchanged
              where openid in (select openid from {others}) and openid not in (select openid from changed)"
        ));
    }
    Ok(session.run(&sql)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::need::{NEEDED, Stale};
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::Values;
    use crate::engine::{Engine, Param};

    /// One of each kind of profile, seven times over, for followers old, new and gone.
    const WORLD: &str = "
create table base_profiles as
select 'o' || i as openid,
       case i % 7 when 0 then 'not_asked' when 1 then 'error' when 2 then 'quarantined' when 3 then 'not_bound'
                  when 4 then 'unfollowed' end as unionid_missing,
       case i % 5 when 0 then null when 1 then false else true end as subscribe,
       case i % 11 when 0 then null else make_timestamp(1700000000000000 + i * 3600000000) end as fetched_at, null::bigint as errcode,
       null::bigint as refusals
from range(1500) as t(i);
-- Whoever has no profile, and every thirteenth besides, is not as before.
create table base_changed as
select 'main' as account, 'o' || i as openid, make_timestamp(0) as first_seen_at, make_timestamp(0) as last_seen_at,
       i % 4 > 0 as active
from range(1700) as t(i) where i >= 1500 or i % 13 = 0;
create table base_followers as
select 'main' as account, 'o' || i as openid, make_timestamp(0) as first_seen_at, make_timestamp(0) as last_seen_at,
       case when i >= 1500 or i % 13 = 0 then i % 4 > 0 else i % 9 > 0 end as active
from range(1700) as t(i);
create table fetched as select openid, fetched_at from base_profiles limit 0;
create view profiles_before as select * from base_profiles";

    fn asked(session: &Session, params: &Params) -> Vec<String> {
        let rows = session.query(&format!("{NEEDED} order by 1"), params).unwrap();
        match rows.columns.into_iter().next() {
            Some((_, Values::Text(openids))) => openids.into_iter().flatten().collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn looking_at_few_finds_everybody_whom_looking_at_all_finds() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::UTC);
        let table = |name: &str, from: &str| TableSource {
            name: name.to_owned(),
            columns: Vec::new(),
            parts: Vec::new(),
            sql: Some(format!("select * from {from}")),
            are_alike: false,
        };
        for days in [1, 20, 60, 90] {
            let session = engine.session().unwrap();
            session.run(WORLD).unwrap();
            let now = Timestamp::from_timestamp(1_700_000_000 + 70 * 86_400, 0).unwrap();
            let mut params =
                Stale::at((now, now.date_naive(), chrono_tz::UTC), Duration::from_secs(days * 86_400)).params();
            params.insert("walked_at".to_owned(), Param::Timestamp(now));
            let (followers, changed) = (table("followers", "base_followers"), table("changed", "base_changed"));
            session.add_table(&followers).unwrap();
            let all = asked(&session, &params);
            to_who_may_need_asking(&session, (&followers, &changed), &params).unwrap();
            assert_eq!(asked(&session, &params), all, "{days} days");
            assert!(!all.is_empty());
        }
    }
}
