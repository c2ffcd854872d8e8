//! Keys after the unionid (a phone's hash, a member's number): whoever the keys before did not tie is tied by the next one.
//!
//! A further key is no proof as a unionid is: where several followers or several users share a value nobody is tied by it,
//! and where it contradicts unionids that are known on both sides these hold. Both stand in `identity_conflicts`.

use super::people::{UserColumn, UsersTable, normalised, users_sql};
use crate::engine::{TableSource, quoted, text};
use crate::stage::StageError;

/// What a join by a further key reads.
pub struct Further<'a> {
    pub followers: &'a str,
    pub profiles: &'a TableSource,
    pub users: &'a [UsersTable],
    /// A table with account, openid and columns for keys.
    pub bindings: Option<&'a TableSource>,
}

impl Further<'_> {
    /// `identities` with those whom `key` ties beside those whom the keys before tied, which `so_far` holds.
    ///
    /// # Errors
    ///
    /// [`StageError::Rule`] when one side has no such column.
    pub fn ties(&self, key: &str, so_far: &str) -> Result<String, StageError> {
        Ok(format!(
            "{both}
select unionid, account, oa_openid, miniprogram, mp_openid, key from {so_far}
union all
select coalesce(_pairs.oa_unionid, _pairs.mp_unionid) as unionid, _pairs.account, _pairs.oa_openid, _pairs.miniprogram,
       _pairs.mp_openid, {name} as key
from _pairs
where followers_with = 1 and users_with = 1 and (oa_unionid is null or mp_unionid is null)
  and not exists (
      select 1 from {so_far} as tied where tied.account = _pairs.account and tied.miniprogram = _pairs.miniprogram
      and (tied.oa_openid = _pairs.oa_openid or tied.mp_openid = _pairs.mp_openid)
  )",
            both = self.both(key)?,
            name = text(key)
        ))
    }

    /// Rows of `identity_conflicts` that `key` brings up, seen from what came out in `tied`.
    ///
    /// # Errors
    ///
    /// As [`Self::ties`].
    pub fn conflicts(&self, key: &str, tied: &str) -> Result<String, StageError> {
        Ok(format!(
            "{both}
select distinct $today as date, _pairs.account, _pairs.miniprogram, _pairs.mp_openid as openid,
       coalesce(_pairs.mp_unionid, _pairs.oa_unionid) as unionid, _pairs.oa_openid as other,
       case when _pairs.oa_unionid <> _pairs.mp_unionid then 'keys_disagree'
            when _pairs.followers_with > 1 then 'several_followers' else 'several_users' end as reason,
       {name} as key, tied.oa_openid as chosen,
       case when tied.oa_openid is null then 'none' else 'earlier_key' end as rule
from _pairs
left join {tied} as tied on tied.account = _pairs.account and tied.miniprogram = _pairs.miniprogram
 and tied.mp_openid = _pairs.mp_openid
where _pairs.oa_unionid <> _pairs.mp_unionid
   or ((_pairs.followers_with > 1 or _pairs.users_with > 1) and tied.oa_openid is null)",
            both = self.both(key)?,
            name = text(key)
        ))
    }

    /// CTEs that end with `pairs`: whom the key would tie, and how many share its value.
    fn both(&self, key: &str) -> Result<String, StageError> {
        let in_users = self.users.iter().any(|table| table.column_type(key).is_some());
        let has = |source: &TableSource| source.columns.iter().any(|(name, _)| name.eq_ignore_ascii_case(key));
        let bindings = self.bindings.filter(|table| has(table));
        if !in_users || (bindings.is_none() && !has(self.profiles)) {
            let side = if in_users { "of neither `bindings` nor the profiles" } else { "of no users table" };
            return Err(StageError::Rule(format!(
                "key `{key}` is a column {side}; a further key has to stand on both sides"
            )));
        }
        let column = UserColumn::new("_value", |table| match table.column_type(key) {
            Some(_) => normalised(&quoted(key)),
            None => "cast(null as varchar)".to_owned(),
        });
        let (join, of) = match bindings {
            Some(table) => (
                format!(
                    "join {} as bound on bound.account = followers.account and bound.openid = followers.openid",
                    quoted(&table.name)
                ),
                "bound",
            ),
            None => (String::new(), "profiles"),
        };
        Ok(format!(
            "with
_follower_values as (
    select distinct followers.account, followers.openid, profiles.unionid, {value} as value
    from {followers} as followers
    left join {profiles} as profiles on profiles.account = followers.account and profiles.openid = followers.openid
    {join}
    where followers.active
),
_user_values as (select miniprogram, openid, unionid, _value as value from ({users}) where _value is not null),
_follower_counts as (
    select account, value, count(distinct openid) as people from _follower_values where value is not null
    group by account, value
),
_user_counts as (select miniprogram, value, count(*) as people from _user_values group by miniprogram, value),
_pairs as (
    select f.account, f.openid as oa_openid, f.unionid as oa_unionid, u.miniprogram, u.openid as mp_openid,
           u.unionid as mp_unionid, _follower_counts.people as followers_with, _user_counts.people as users_with
    from _follower_values as f
    join _user_values as u on u.value = f.value
    join _follower_counts on _follower_counts.account = f.account and _follower_counts.value = f.value
    join _user_counts on _user_counts.miniprogram = u.miniprogram and _user_counts.value = u.value
)",
            value = normalised(&format!("{of}.{}", quoted(key))),
            followers = self.followers,
            profiles = quoted(&self.profiles.name),
            users = users_sql(self.users, &[column]),
        ))
    }
}
