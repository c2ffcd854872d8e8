//! Unionids that stand several times on one side. Nearly all stand once, so nobody is grouped to find them: hashes are put
//! beside each other, which takes half of what a group of everybody does and holds no text, and only unionids whose hash
//! stands twice are looked at themselves.
//!
//! `_shared_fu` holds them by account, `_shared_uu` by mini program, with how many (`people`) share them. Where accounts or
//! mini programs have people in common, these stand there as well, with one a row; and so may those whose hash is another's.

use crate::engine::{EngineError, Params, Session};

/// Rows that a unionid may share, and the table of those that do.
pub struct Side<'a> {
    pub table: &'a str,
    /// Within what they are counted: a column of `rows`.
    pub each: &'a str,
    /// A SELECT of `each`, `unionid` and what `more` aggregates.
    pub rows: &'a str,
    pub more: &'a str,
}

impl Side<'_> {
    pub fn gather(&self, session: &Session) -> Result<(), EngineError> {
        session.run(&format!("{PRINT};\n{}", TWICE.replace("{rows}", self.rows)))?;
        // In a sound night nobody is looked at again.
        let found = if any(session, "_twice")? { "" } else { "and false" };
        let shared = SHARED
            .replace("{table}", self.table)
            .replace("{each}", self.each)
            .replace("{rows}", self.rows)
            .replace("{more}", self.more);
        session.run(&shared.replace("{found}", found))?;
        session.run("drop table _twice")
    }
}

pub fn any(session: &Session, rows: &str) -> Result<bool, EngineError> {
    Ok(session.count(&format!("select count(*) from {rows}"), &Params::new())? > 0)
}

/// Two unionids have the same print hardly ever; whoever wants that they do defines it before.
const PRINT: &str = "create macro if not exists print_of(unionid) as hash(unionid)";

const TWICE: &str = "
create temp table _twice as
select print from (
    select print, row_number() over (partition by print) as place
    from (select print_of(unionid) as print from ({rows}) where unionid is not null)
) where place = 2";

const SHARED: &str = "
create temp table {table} as
select {each}, unionid, count(*) as people{more}
from ({rows}) where unionid is not null {found} and print_of(unionid) in (select print from _twice)
group by {each}, unionid";

/// Of several followers with one unionid the one with the smallest openid speaks for all; all count. `{followers}` reads
/// them as they stand in `fu`, with their openid.
pub const MERGED: &str = "
delete from fu using _shared_fu as s where s.people > 1 and s.account = fu.account and s.unionid = fu.unionid;
insert into fu by name
select * exclude (openid) replace (max(standing) over (partition by account, unionid) as standing)
from ({followers}) semi join (select account, unionid from _shared_fu where people > 1) using (account, unionid)
qualify row_number() over (partition by account, unionid order by openid) = 1";

/// Each unionid once, whatever accounts they follow; and users who share one, within each mini program and over all (`*`).
pub const OF_ALL: &str = "
create temp view fu_all as
select unionid, standing from fu anti join _shared_fu using (unionid) where unionid is not null
union all
select unionid, max(standing) from _shared_fu group by unionid;
create temp table _shared_by as
select cast(miniprogram as varchar) as miniprogram, unionid, people from _shared_uu where people > 1
union all
select '*', unionid, sum(people) from _shared_uu group by unionid having sum(people) > 1";

/// By how many the openids of users who match are more than their unionids; and the same of followers.
pub const SURPLUS: &str = "
create temp table _surplus as
select account, miniprogram, standing, sum(people - 1) as people
from _shared_by join (
    select cast(account as varchar) as account, unionid, standing from fu
    union all
    select '*', unionid, standing from fu_all
) using (unionid)
group by account, miniprogram, standing;
create temp table _surplus_followers as
select cast(s.account as varchar) as account, cast(u.miniprogram as varchar) as miniprogram, sum(s.people - 1) as people
from _shared_fu as s join (
    select distinct miniprogram, unionid from ({users}) semi join (select unionid from _shared_fu where people > 1) using (unionid)
) as u on u.unionid = s.unionid
group by s.account, u.miniprogram";
