//! `join_identities`: current followers joined to the users of every mini program by unionid, then by further keys where the
//! stage names any; each person once for an account and a mini program. Whoever could not be tied alone stands in
//! `identity_conflicts`.
//!
//! The rule. An id is what is left when it was trimmed; a blank one is none. A person has a row for each account and each mini
//! program. Where one unionid has several followers of an account or several users of a mini program, the newest stands,
//! then the smallest openid; the others are conflicts ([`conflicts`]). Of several unionids that the tables hold for one user
//! the newest row's holds ([`people`]). Further keys come after the unionid, in their order, and tie only whom nothing
//! contradicts ([`further`]).
//!
//! Doubled unionids are counted once the join is written; only a night that has any looks closer.

mod conflicts;
mod further;
pub mod people;
#[cfg(test)]
mod tests;

use serde_json::json;

use self::further::Further;
use self::people::{UsersTable, followers_table, profiles_table, updated_at, users_sql};
pub use self::people::{tables_of, users_tables};
use super::sql::write_table;
use super::tables::Visible;
use super::{StageContext, StageError, StageOutcome, StageReport, blocking};
use crate::config::settings::{IDENTITIES, JoinIdentities};
use crate::domain::TableName;
use crate::engine::{Param, Params, TableSource, quoted};
use crate::ledger::SnapshotRecord;

/// Joins and writes `identities` and today's `identity_conflicts`.
///
/// # Errors
///
/// [`StageError::Rule`] when no users table has rows yet, or a further key is no column of both sides; [`StageError::Sql`].
pub async fn run(cx: &StageContext<'_>, plan: &JoinIdentities) -> Result<StageOutcome, StageError> {
    let names: Vec<TableName> = users_tables(&cx.hands.settings, plan)
        .into_iter()
        .filter(|name| cx.visible.slices(name.as_str()).next().is_some())
        .collect();
    if names.is_empty() {
        return Err(StageError::Rule("no users table has been loaded yet; run the load_users stage first".to_owned()));
    }
    let join = Join::new(cx, plan, &names);
    let mut made = Making::new(cx, cx.stage.table.clone().unwrap_or_else(|| TableName::new(IDENTITIES)));
    let identities = quoted(made.identities.as_str());
    let rows_in = made.write(cx, Which::Identities, &join.by_unionid()).await?;
    let mut found: Vec<String> = Vec::new();
    found.extend(people::several_unionids_sql(&join.users).map(|sql| conflicts::of_several_unionids(&sql)));
    let is_doubled = any_doubled(&made.context(cx), made.identities.as_str()).await?;
    let ranked = join.ranked(&identities);
    if is_doubled {
        found.push(conflicts::conflicts_sql(&ranked));
    }
    // Read off the pairs before it is chosen among them.
    made.write(cx, Which::Conflicts, &conflicts::today_sql(&found)).await?;
    if is_doubled {
        made.write(cx, Which::Identities, &conflicts::chosen_sql(&ranked, &identities)).await?;
    }
    let further = join.further();
    for key in &plan.further_keys {
        made.write(cx, Which::Identities, &further.ties(key, &identities)?).await?;
    }
    let told = plan.further_keys.iter().map(|key| further.conflicts(key, &identities));
    let told = told.collect::<Result<Vec<_>, _>>()?;
    if !told.is_empty() {
        made.write(cx, Which::Conflicts, &conflicts::more_sql(&told)).await?;
    }
    let conflicts = count_today(&made.context(cx)).await?;
    let tables: Vec<String> = names.iter().map(ToString::to_string).collect();
    let detail = json!({ "users_tables": tables, "conflicts": conflicts });
    let snapshots: Vec<SnapshotRecord> = made.records.into_iter().flatten().collect();
    let rows_out = snapshots.first().map_or(0, |own| own.rows);
    Ok(StageOutcome::Done(StageReport { rows_in, rows_out, snapshots, detail, ..StageReport::default() }))
}

/// What the join reads.
struct Join {
    followers: String,
    profiles: TableSource,
    users: Vec<UsersTable>,
    bindings: Option<TableSource>,
}

impl Join {
    fn new(cx: &StageContext<'_>, plan: &JoinIdentities, users: &[TableName]) -> Self {
        let settings = &cx.hands.settings;
        let source = |table: &TableName| cx.visible.source(&cx.hands.lake, table.as_str());
        let profiles = profiles_table(settings);
        Self {
            followers: quoted(followers_table(settings).as_str()),
            // Without a snapshot the table's name is what the engine then says is missing.
            profiles: source(&profiles).unwrap_or_else(|| TableSource {
                name: profiles.to_string(),
                columns: Vec::new(),
                parts: Vec::new(),
                sql: None,
                are_alike: false,
            }),
            users: users.iter().filter_map(source).map(|source| UsersTable::new(settings, source)).collect(),
            bindings: plan.bindings.as_ref().and_then(source),
        }
    }

    /// Current followers with their unionid joined to users.
    fn by_unionid(&self) -> String {
        format!(
            "select profiles.unionid, profiles.account, profiles.openid as oa_openid,
       users.miniprogram, users.openid as mp_openid, 'unionid' as key
from {profiles} as profiles
join {followers} as followers
  on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
join ({users}) as users on users.unionid = profiles.unionid",
            profiles = quoted(&self.profiles.name),
            followers = self.followers,
            users = users_sql(&self.users, &[])
        )
    }

    fn ranked(&self, joined: &str) -> String {
        conflicts::ranked_sql(joined, &quoted(&self.profiles.name), &users_sql(&self.users, &[updated_at()]))
    }

    fn further(&self) -> Further<'_> {
        Further {
            followers: &self.followers,
            profiles: &self.profiles,
            users: &self.users,
            bindings: self.bindings.as_ref(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Identities = 0,
    Conflicts = 1,
}

/// The two tables as they come about; each step sees what those before it wrote.
struct Making {
    identities: TableName,
    visible: Visible,
    records: [Option<SnapshotRecord>; 2],
}

impl Making {
    fn new(cx: &StageContext<'_>, identities: TableName) -> Self {
        Self { identities, visible: cx.visible.clone(), records: [None, None] }
    }

    fn context<'a>(&'a self, cx: &'a StageContext<'_>) -> StageContext<'a> {
        StageContext { visible: &self.visible, calls: cx.calls.clone(), ..*cx }
    }

    /// Writes the next state of a table and removes the one it takes the place of; gives the rows that were read.
    async fn write(&mut self, cx: &StageContext<'_>, which: Which, sql: &str) -> Result<u64, StageError> {
        let table = match which {
            Which::Identities => self.identities.clone(),
            Which::Conflicts => TableName::new(CONFLICTS),
        };
        let made = write_table(&self.context(cx), &table, sql, &[]).await?;
        let rows_in = made.rows_in;
        let record = made.into_snapshot(&table).record(cx);
        self.visible.add([record.clone()]);
        if let Some(before) = self.records[which as usize].replace(record) {
            for part in &before.parts {
                cx.hands.lake.remove(part)?;
            }
        }
        Ok(rows_in)
    }
}

/// Whether any unionid ties several openids of one side together: one look, since in a sound night none does. Two that
/// share a hash only cost a closer look.
async fn any_doubled(cx: &StageContext<'_>, table: &str) -> Result<bool, StageError> {
    let doubled = |name: &str| {
        format!("select count(*) - count(distinct hash(unionid, account, miniprogram)) from {}", quoted(name))
    };
    Ok(count(cx, table, doubled, Params::new()).await? > 0)
}

async fn count_today(cx: &StageContext<'_>) -> Result<u64, StageError> {
    let today = Params::from([("today".to_owned(), Param::Date(cx.run.today))]);
    count(cx, CONFLICTS, |name| format!("select count(*) from {} where date = $today", quoted(name)), today).await
}

async fn count(
    cx: &StageContext<'_>,
    table: &str,
    sql: impl FnOnce(&str) -> String,
    params: Params,
) -> Result<u64, StageError> {
    let Some(source) = cx.visible.source(&cx.hands.lake, table) else { return Ok(0) };
    let sql = sql(&source.name);
    blocking(&cx.hands.sparing_engine(), cx.stop, move |session| {
        session.add_table(&source)?;
        Ok(session.count(&sql, &params)?)
    })
    .await
}

const CONFLICTS: &str = "identity_conflicts";
