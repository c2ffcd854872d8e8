//! `join_identities`: current followers joined to the users of every mini program by unionid, and whoever could not be
//! tied to one person alone in `identity_conflicts`.

use serde_json::json;

use super::sql::write_table;
use super::{StageContext, StageError, StageOutcome, StageReport, blocking};
use crate::config::settings::{IDENTITIES, JoinIdentities, Settings, StageKind};
use crate::domain::TableName;
use crate::engine::Params;

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
    let (rows_in, rows_out) = (made.rows_in, made.rows);
    let joined = made.into_snapshot(&table).record(cx);
    let mut visible = cx.visible.clone();
    visible.add([joined.clone()]);
    let after = StageContext { visible: &visible, calls: cx.calls.clone(), ..*cx };
    let conflicts = if any_doubled(&after, &table).await? {
        write_table(&after, &conflicts_table, &conflicts(table.as_str()), &["date".to_owned()]).await?
    } else {
        write_table(&after, &conflicts_table, NO_CONFLICTS, &["date".to_owned()]).await?
    };
    let conflict_rows = conflicts.rows;
    let snapshots = vec![joined, conflicts.into_snapshot(&conflicts_table).record(cx)];
    let detail = json!({ "users_tables": users, "conflicts": conflict_rows });
    Ok(StageOutcome::Done(StageReport { rows_in, rows_out, snapshots, detail, ..StageReport::default() }))
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
}

/// Whether any unionid ties several openids of one side together: one look, since in a sound night none does. Two that
/// share a hash only cost a closer look.
async fn any_doubled(cx: &StageContext<'_>, table: &TableName) -> Result<bool, StageError> {
    let Some(source) = cx.visible.source(&cx.hands.lake, table.as_str()) else { return Ok(false) };
    blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        session.add_table(&source)?;
        let doubled = format!(
            "select count(*) - count(distinct hash(unionid, account, miniprogram)) from {}",
            crate::engine::quoted(&source.name)
        );
        Ok(session.count(&doubled, &Params::new())? > 0)
    })
    .await
}

/// Today without a conflict: yesterday's rows stay.
const NO_CONFLICTS: &str = "select * from identity_conflicts where date = $today and false";

/// Unionids that tie several openids of one side together, among the joined.
fn conflicts(identities: &str) -> String {
    format!(
        "with doubled as (
    select unionid, account, miniprogram, min(oa_openid) as oa_openid, min(mp_openid) as mp_openid
    from {identities} group by unionid, account, miniprogram having count(*) > 1
)
select $today as date, joined.account, joined.miniprogram, joined.mp_openid as openid, joined.unionid,
       doubled.mp_openid as other, 'several_users' as reason
from {identities} as joined
join doubled on doubled.unionid = joined.unionid and doubled.account = joined.account
 and doubled.miniprogram = joined.miniprogram
where joined.mp_openid <> doubled.mp_openid
union
select $today as date, joined.account, joined.miniprogram, joined.oa_openid as openid, joined.unionid,
       doubled.oa_openid as other, 'several_followers' as reason
from {identities} as joined
join doubled on doubled.unionid = joined.unionid and doubled.account = joined.account
 and doubled.miniprogram = joined.miniprogram
where joined.oa_openid <> doubled.oa_openid"
    )
}
