//! Followers and users gathered: who follows in a narrow table, and every user counted beside it in one pass.
//!
//! `fu` holds a row per account and unionid with its standing, and one per follower without; `_counted` how many users have
//! which standing in each account, and of them each segment's values. Of these come `followers_by`, `users_by` and `ties`:
//! what both sides have in common, by account and mini program, and over all of them (`*`). Counted are openids; what those
//! who share a unionid ([`shared`]) are too many is taken off where people are meant.

use super::figures::Figures;
use super::segments;
use super::shared::{self, MERGED, OF_ALL, SURPLUS, any};
use crate::engine::{Params, Session, quoted, text};
use crate::stage::StageError;
use crate::stage::join_identities::people::{is_plain, users_sql};
use crate::stage::live::forgotten_sql;

impl Figures {
    /// Makes the tables that the figures are read off, of `evidence`; gives how many people were forgotten and follow again.
    pub fn gather(&self, session: &Session) -> Result<u64, StageError> {
        let columns = segments::user_columns(&self.segments);
        let mut users = users_sql(&self.users, &columns);
        session.run(&self.names_sql())?;
        // Rows that have to be chosen among are chosen once.
        if !is_plain(&self.users) {
            session.run(&format!("create temp table _users as {users}"))?;
            "from _users".clone_into(&mut users);
        }
        let narrow = format!("select {MINIPROGRAM} as miniprogram, unionid from ({users})");
        let followers = self.followers_sql(session)?;
        session
            .run(&format!("create temp table fu as select * exclude (openid) from ({followers});\n{FOLLOWERS_BY}"))?;
        let forgotten = if self.forgotten.is_some() { session.count(FORGOTTEN, &Params::new())? } else { 0 };
        let [of_followers, of_users] = [
            ("_shared_fu", "account", "select account, unionid, standing from fu", ", max(standing) as standing"),
            ("_shared_uu", "miniprogram", narrow.as_str(), ""),
        ]
        .map(|(table, each, rows, more)| shared::Side { table, each, rows, more });
        of_followers.gather(session)?;
        of_users.gather(session)?;
        if any(session, "_shared_fu where people > 1")? {
            session.run(&MERGED.replace("{followers}", &followers))?;
        }
        let sets = segments::sets(&self.segments);
        session.run(&format!(
            "{OF_ALL};\n{FOLLOWERS_OF_ALL};\n{}",
            sets.fill(COUNTED).replace("{miniprogram}", MINIPROGRAM).replace("{users}", &users)
        ))?;
        session.run(&SURPLUS.replace("{users}", &narrow))?;
        let is_across = any(session, "(select unionid from _shared_fu group by unionid having count(*) > 1)")?;
        let of_accounts = if is_across { TIED_ACROSS } else { TIED_ALONE }.replace("{users}", &narrow);
        session.run(&sets.fill(&format!("{TIES};\n{USERS_BY}")).replace("{of_accounts}", &of_accounts))?;
        Ok(forgotten)
    }

    /// What is there has a name though it is not configured any more, and what is configured though nobody is there.
    fn names_sql(&self) -> String {
        let of_users = self
            .users
            .iter()
            .map(|table| format!("union select cast(miniprogram as varchar) from {}", quoted(&table.source.name)));
        NAMES
            .replace("{accounts}", &names("account", &self.accounts))
            .replace("{miniprograms}", &names("miniprogram", &self.miniprograms))
            .replace("{of_users}", &of_users.collect::<Vec<_>>().join(" "))
    }

    /// Each follower with the openid: is it somebody to send to who is not suppressed for the whole account, nor was forgotten;
    /// and did a message reach them lately? What nobody is needs no look at each follower.
    fn followers_sql(&self, session: &Session) -> Result<String, StageError> {
        let profile = segments::profile_columns(&self.segments, &self.profiles);
        let profile: String = profile.iter().map(|(alias, sql)| format!(", {sql} as {alias}")).collect();
        let heard = |what: &str| any(session, &format!("evidence where what = '{what}'"));
        let (has_suppressed, has_reached) = (heard("suppressed")?, heard("reached")?);
        let is_suppressed = if has_suppressed { "s.openid is not null or s2.unionid is not null" } else { "false" };
        let was_reached = if has_reached { "r.openid is not null or r2.unionid is not null" } else { "false" };
        let joins = [(has_suppressed, SUPPRESSED), (has_reached, REACHED)];
        let joins: String = joins.iter().filter(|(has, _)| *has).map(|(_, join)| *join).collect();
        let sql = FOLLOWERS
            .replace("{profile}", &profile)
            .replace("{joins}", &joins)
            .replace("{is_forgotten}", &self.is_forgotten())
            .replace("{is_suppressed}", is_suppressed)
            .replace("{was_reached}", was_reached);
        Ok(sql)
    }

    /// A condition on a follower with the profile; no hash is made where nobody was forgotten.
    fn is_forgotten(&self) -> String {
        let Some((_, salt)) = &self.forgotten else { return "false".to_owned() };
        ["followers_now.openid", "profiles_now.unionid"].map(|id| forgotten_sql(salt, id)).join(" or ")
    }
}

/// A table of configured names, so that an account without a follower still has its row.
fn names(column: &str, names: &[String]) -> String {
    if names.is_empty() {
        return format!("select cast(null as varchar) as {column} where false");
    }
    let selects = names.iter().map(|name| format!("select {} as {column}", text(name)));
    selects.collect::<Vec<_>>().join(" union all ")
}

/// As types names are a byte in each row. The standing of a user in an account: 0 has no unionid, 1 has one that no follower
/// has, 2 is a follower who was forgotten, 3 is suppressed, 4 can be reached, 5 was reached lately. Of several followers with
/// one unionid the highest holds.
const NAMES: &str = "
create temp table the_accounts as {accounts};
create temp table the_miniprograms as {miniprograms};
create temp table every_account as
select account from the_accounts union select account from followers_now where active and account is not null;
create type account_name as enum (select account from every_account);
create type miniprogram_name as enum (
    select miniprogram from (select miniprogram from the_miniprograms {of_users}) where miniprogram is not null
);
insert into every_account select null where not exists (from every_account);
create macro has_unionid(standing) as standing >= 1;
create macro is_matched(standing) as standing >= 2;
create macro is_reachable(standing) as standing >= 4;
create macro is_reached(standing) as standing >= 5";

/// Tables that SQL made may hold it as anything.
const MINIPROGRAM: &str = "cast(cast(miniprogram as varchar) as miniprogram_name)";

const FOLLOWERS: &str = "
select cast(followers_now.account as account_name) as account, followers_now.openid, profiles_now.unionid,
       case when profiles_now.unionid is null then coalesce(profiles_now.unionid_missing, 'not_asked') end as missing,
       cast(case when {is_forgotten} then 2 when {is_suppressed} then 3 when {was_reached} then 5 else 4 end as utinyint) as standing
       {profile}
from followers_now
left join profiles_now on profiles_now.account = followers_now.account and profiles_now.openid = followers_now.openid
{joins}
where followers_now.active";

/// A person who is suppressed both for the account and for all is one line: a follower who met two would count twice.
const SUPPRESSED: &str = "
left join (
    select distinct evidence.openid, a.account
    from evidence join (select distinct account from followers_now) as a
      on evidence.account is null or evidence.account = a.account
    where evidence.openid is not null and what = 'suppressed'
) as s on s.openid = followers_now.openid and s.account = followers_now.account
left join (
    select distinct evidence.unionid, a.account
    from evidence join (select distinct account from followers_now) as a
      on evidence.account is null or evidence.account = a.account
    where evidence.unionid is not null and what = 'suppressed'
) as s2 on s2.unionid = profiles_now.unionid and s2.account = followers_now.account";

const REACHED: &str = "
left join (select distinct openid, account from evidence where openid is not null and what = 'reached') as r
  on r.openid = followers_now.openid and r.account = followers_now.account
left join (select distinct unionid, account from evidence where unionid is not null and what = 'reached') as r2
  on r2.unionid = profiles_now.unionid and r2.account = followers_now.account";

/// Openids of each account, by why they have no unionid.
const FOLLOWERS_BY: &str = "
create temp table followers_by as
select cast(account as varchar) as account, missing, count(*) as people from fu group by account, missing";

const FORGOTTEN: &str = "select count(distinct unionid) + count(*) - count(unionid) from fu where standing = 2";

/// The same over all accounts: people, and openids without a unionid.
const FOLLOWERS_OF_ALL: &str = "
insert into followers_by
select '*', missing, sum(people) from followers_by where missing is not null group by missing
union all
select '*', null, count(*) from fu_all";

/// Every user in each account, once for all segments; `of_set` says by what a row is counted.
const COUNTED: &str = "
create temp table _counted as
select account, miniprogram, standing{columns}, {of_set} as of_set, count(*) as users
from (
    select a.account, {miniprogram} as miniprogram,
           cast(coalesce(fu.standing, if(u.unionid is null, 0, 1)) as utinyint) as standing{columns}
    from ({users}) as u cross join (select cast(account as account_name) as account from every_account) as a
    left join fu on fu.account = a.account and fu.unionid = u.unionid
)
group by grouping sets ({sets})";

/// Users who match in any account, where no unionid is a follower of two; and where some are.
const TIED_ALONE: &str = "select '*', miniprogram, standing, sum(users) from each group by miniprogram, standing";
const TIED_ACROSS: &str = "
    select '*', cast(u.miniprogram as varchar), fu_all.standing, count(*)
    from ({users}) as u join fu_all on fu_all.unionid = u.unionid group by u.miniprogram, fu_all.standing";

/// Unionids, followers and users that share them, and how many can be reached.
const TIES: &str = "
create temp table ties as
with each as (
    select cast(account as varchar) as account, cast(miniprogram as varchar) as miniprogram, standing, users
    from _counted where of_set = '{whole}' and is_matched(standing)
),
of_accounts as (from each union all {of_accounts}),
openids as (
    from of_accounts
    union all
    select account, '*', standing, sum(users) from of_accounts group by account, standing
),
people as (
    select openids.*, users - coalesce(_surplus.people, 0) as unionids
    from openids left join _surplus using (account, miniprogram, standing)
)
select account, miniprogram, sum(unionids) as unionids,
       sum(unionids) + coalesce(any_value(_surplus_followers.people), 0) as followers, sum(users) as users,
       sum(if(is_reachable(standing), users, 0)) as users_reachable, sum(if(is_reached(standing), users, 0)) as users_reached,
       sum(if(is_reachable(standing), unionids, 0)) as reachable, sum(if(is_reached(standing), unionids, 0)) as reached
from people left join _surplus_followers using (account, miniprogram)
group by account, miniprogram";

/// Openids of each mini program and of all, and their unionids.
const USERS_BY: &str = "
create temp table users_by as
with each as (
    select cast(miniprogram as varchar) as miniprogram, sum(users) as users,
           sum(if(has_unionid(standing), users, 0)) as with_unionid
    from _counted
    where of_set = '{whole}' and account is not distinct from (select first(cast(account as account_name)) from every_account)
    group by miniprogram
),
surplus as (select miniprogram, sum(people - 1) as people from _shared_by group by miniprogram)
select users.*, with_unionid - coalesce(surplus.people, 0) as unionids
from (from each union all select '*', sum(users), sum(with_unionid) from each) as users left join surplus using (miniprogram)";
