//! Looking at few where a walk has told who changed: everybody else follows as they did when their profile was merged.
//!
//! Who needs asking ([`NEEDED`](super::need::NEEDED)) and who has no profile yet is then asked of those who changed, and of
//! those whose profile itself says that it may have to be asked for again; the table of all followers is not joined with
//! that of all profiles.

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
    }
}

/// A profile that `NEEDED` asks for of nobody who follows, by itself alone.
const SURELY_FRESH: &str = "
fetched_at >= $fresh_from and subscribe and (unionid_missing is null or unionid_missing = 'not_bound')";

/// Makes `followers` of the session those who may need asking: whoever changed, and whose profile is not surely fresh.
pub(super) fn to_who_may_need_asking(
    session: &Session,
    (followers, changed): (&TableSource, &TableSource),
    params: &Params,
) -> Result<(), StageError> {
    session.add_table(changed)?;
    let suspects = format!(
        "create temp table suspects as
         select openid from profiles_before where ({SURELY_FRESH}) is not true"
    );
    session.execute(&suspects, params)?;
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
