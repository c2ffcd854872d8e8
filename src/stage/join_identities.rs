//! `join_identities`: current followers joined to the users of every mini program by unionid, and whoever could not be
//! tied to one person alone in `identity_conflicts`.

use serde_json::json;

use super::sql::write_table;
use super::{StageContext, StageError, StageOutcome, StageReport};
use crate::config::settings::{IDENTITIES, JoinIdentities, Settings, StageKind};
use crate::domain::TableName;

/// Joins and writes `identities` and today's `identity_conflicts`.
///
/// # Errors
///
/// [`StageError::Rule`] when no users table has rows yet; [`StageError::Sql`].
pub async fn run(cx: &StageContext<'_>, plan: &JoinIdentities) -> Result<StageOutcome, StageError> {
    let table = cx.stage.table.clone().unwrap_or_else(|| TableName::new(IDENTITIES));
    let users: Vec<String> = users_tables(&cx.hands.settings, plan)
        .into_iter()
        .filter(|name| cx.visible.slices(name.as_str()).next().is_some())
        .map(|name| name.to_string())
        .collect();
    if users.is_empty() {
        return Err(StageError::Rule("no users table has been loaded yet; run the load_users stage first".to_owned()));
    }
    let people = People::of(&cx.hands.settings, &users);
    let made = write_table(cx, &table, &people.identities(), &[]).await?;
    let conflicts_table = TableName::new("identity_conflicts");
    let conflicts = write_table(cx, &conflicts_table, &people.conflicts(), &["date".to_owned()]).await?;
    let (rows_in, rows_out, conflict_rows) = (made.rows_in, made.rows, conflicts.rows);
    let snapshots = vec![made.into_snapshot(&table).record(cx), conflicts.into_snapshot(&conflicts_table).record(cx)];
    let detail = json!({ "users_tables": users, "conflicts": conflict_rows });
    Ok(StageOutcome::Done(StageReport { rows_in, rows_out, snapshots, detail, failed_slices: Vec::new() }))
}

/// The users tables a join reads: those it names, else those of every `load_users` stage of the workspace.
pub fn users_tables(settings: &Settings, plan: &JoinIdentities) -> Vec<TableName> {
    if !plan.users.is_empty() {
        return plan.users.clone();
    }
    tables_of(settings, |kind| matches!(kind, StageKind::LoadUsers(_)))
}

/// The tables that stages of a kind make, in the whole workspace.
pub fn tables_of(settings: &Settings, is_kind: impl Fn(&StageKind) -> bool) -> Vec<TableName> {
    let stages = settings.pipelines.values().flat_map(|pipeline| &pipeline.stages);
    stages.filter(|stage| is_kind(&stage.kind)).filter_map(|stage| stage.table.clone()).collect()
}

/// Followers, profiles and users as the standard kinds read them: whatever their tables are called.
pub struct People {
    pub followers: String,
    pub profiles: String,
    pub users: String,
}

impl People {
    /// The FROM items for the given users tables.
    pub fn of(settings: &Settings, users: &[String]) -> Self {
        let first = |tables: Vec<TableName>, standard: &str| {
            tables.into_iter().next().map_or_else(|| standard.to_owned(), |table| table.to_string())
        };
        let users: Vec<String> =
            users.iter().map(|table| format!("select miniprogram, openid, unionid from {table}")).collect();
        Self {
            followers: first(tables_of(settings, |kind| matches!(kind, StageKind::ExtractFollowers(_))), "followers"),
            profiles: first(tables_of(settings, |kind| matches!(kind, StageKind::EnrichUnionids(_))), "profiles"),
            users: users.join(" union all "),
        }
    }

    /// Current followers with their unionid joined to users.
    pub fn identities(&self) -> String {
        format!(
            "select profiles.unionid, profiles.account, profiles.openid as oa_openid,
       users.miniprogram, users.openid as mp_openid
from {profiles} as profiles
join {followers} as followers
  on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
join ({users}) as users on users.unionid = profiles.unionid",
            profiles = self.profiles,
            followers = self.followers,
            users = self.users
        )
    }

    fn conflicts(&self) -> String {
        format!(
            "select $today as date, cast(null as varchar) as account, users.miniprogram, users.openid, users.unionid,
       firsts.openid as other, 'several_users' as reason
from ({users}) as users
join (
    select miniprogram, unionid, min(openid) as openid from ({users}) as all_users
    where unionid is not null group by miniprogram, unionid having count(*) > 1
) as firsts on firsts.miniprogram = users.miniprogram and firsts.unionid = users.unionid
where users.openid <> firsts.openid
union all
select $today as date, profiles.account, cast(null as varchar) as miniprogram, profiles.openid, profiles.unionid,
       firsts.openid as other, 'several_followers' as reason
from {profiles} as profiles
join (
    select account, unionid, min(openid) as openid from {profiles} as all_profiles
    where unionid is not null group by account, unionid having count(*) > 1
) as firsts on firsts.account = profiles.account and firsts.unionid = profiles.unionid
where profiles.openid <> firsts.openid",
            profiles = self.profiles,
            users = self.users
        )
    }
}
