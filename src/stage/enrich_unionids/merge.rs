//! One pass that merges fetched profiles with those before, after asking singly for every unionid in doubt.
//!
//! In doubt are: an openid whose unionid is another one than before, and a unionid that two openids of one account share
//! (an answer may hand people their neighbour's unionid). What a single call confirms is believed; what it does not is
//! quarantined: the row stays, its unionid is NULL. A unionid once known is not erased because a later answer lacks it.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{Inputs, StageContext, StageError, ask_singly};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, TableName, Values};
use crate::engine::{Param, Params, Session, TableSource, Written};
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;
use crate::stage::{NewSnapshot, blocking};

pub struct MergedProfiles {
    pub profiles: SnapshotRecord,
    pub changes: Option<SnapshotRecord>,
    pub with_unionid: u64,
    pub not_asked: u64,
    pub quarantined: u64,
}

/// Merges the recorded `parts` of an account into its next snapshot.
///
/// # Errors
///
/// [`StageError`]; the parts stay for the next run.
pub async fn merge(
    cx: &StageContext<'_>,
    table: &TableName,
    account: &AccountName,
    inputs: &Inputs,
    parts: &[(i64, String)],
) -> Result<MergedProfiles, StageError> {
    let lake = &cx.hands.lake;
    let fetched =
        TableSource { parts: parts.iter().map(|(_, path)| lake.absolute(path)).collect(), ..inputs.fetched.clone() };
    let tables = vec![inputs.followers.clone(), inputs.profiles.clone(), fetched];
    let doubtful = doubtful(cx, tables.clone()).await?;
    let mut confirmed = TableSource { name: "confirmed".to_owned(), parts: Vec::new(), ..inputs.fetched.clone() };
    if !doubtful.is_empty() {
        tracing::warn!(account = %account, people = doubtful.len(), "unionids in doubt: asking singly for {} people", doubtful.len());
        let asked = ask_singly(cx, account, doubtful).await?;
        let path = format!("work/profiles/{account}/confirmed-{}.parquet", cx.new_snapshot_id());
        confirmed.parts.push(lake.absolute(&asked.write(lake, &path)?.path));
    }
    let id = cx.new_snapshot_id();
    let profiles_path = Lake::part_path(table, account.as_str(), &id, 1);
    let changes_path = Lake::part_path(&TableName::new("identity_changes"), account.as_str(), &id, 1);
    let (profiles_target, changes_target) = (lake.absolute(&profiles_path), lake.absolute(&changes_path));
    let changes_before = old_changes(cx, account);
    let params = Params::from([
        ("account".to_owned(), Param::Text(account.to_string())),
        ("run_at".to_owned(), Param::Timestamp(cx.run.run_at)),
    ]);
    let pass = Pass { tables, confirmed, changes_before, profiles_target, changes_target };
    let done = blocking(&cx.hands.engine, cx.stop, move |session| pass.run(session, &params)).await?;
    let profiles = NewSnapshot {
        table: table.clone(),
        slice: account.to_string(),
        id: id.clone(),
        as_of: inputs.as_of,
        rows: done.profiles.rows,
        bytes: done.profiles.bytes,
        parts: vec![profiles_path],
        columns: table_spec("profiles").expect("profiles is declared").sql_columns(),
    };
    let changes = done.changes.map(|written| {
        NewSnapshot {
            table: TableName::new("identity_changes"),
            slice: account.to_string(),
            id: format!("{id}-changes"),
            as_of: inputs.as_of,
            rows: written.rows,
            bytes: written.bytes,
            parts: vec![changes_path],
            columns: table_spec("identity_changes").expect("identity_changes is declared").sql_columns(),
        }
        .record(cx)
    });
    Ok(MergedProfiles {
        profiles: profiles.record(cx),
        changes,
        with_unionid: done.with_unionid,
        not_asked: done.not_asked,
        quarantined: done.quarantined,
    })
}

fn old_changes(cx: &StageContext<'_>, account: &AccountName) -> TableSource {
    let columns = table_spec("identity_changes").expect("identity_changes is declared").sql_columns();
    cx.visible.slice_source(&cx.hands.lake, ("identity_changes", account.as_str()), "changes_before", columns)
}

async fn doubtful(cx: &StageContext<'_>, tables: Vec<TableSource>) -> Result<Vec<OpenId>, StageError> {
    blocking(&cx.hands.engine, cx.stop, move |session| {
        for table in &tables {
            session.add_table(table)?;
        }
        session.run(LATEST)?;
        let mut openids = HashSet::new();
        session.stream::<StageError>(DOUBTFUL, &Params::new(), |rows| {
            if let Some((_, Values::Text(found))) = rows.columns.first() {
                openids.extend(found.iter().flatten().map(OpenId::new));
            }
            Ok(true)
        })?;
        Ok(openids.into_iter().collect())
    })
    .await
}

struct Pass {
    tables: Vec<TableSource>,
    confirmed: TableSource,
    changes_before: TableSource,
    profiles_target: PathBuf,
    changes_target: PathBuf,
}

struct PassDone {
    profiles: Written,
    changes: Option<Written>,
    with_unionid: u64,
    not_asked: u64,
    quarantined: u64,
}

impl Pass {
    fn run(&self, session: &Session, params: &Params) -> Result<PassDone, StageError> {
        for table in self.tables.iter().chain([&self.confirmed, &self.changes_before]) {
            session.add_table(table)?;
        }
        session.run(LATEST)?;
        session.run(&format!("create temp table doubtful as {DOUBTFUL}"))?;
        let profiles = session.copy(MERGE, params, &self.profiles_target)?;
        session.add_table(&TableSource {
            name: "after".to_owned(),
            columns: table_spec("profiles").expect("profiles is declared").sql_columns(),
            parts: vec![self.profiles_target.clone()],
        })?;
        let count = |what: &str| session.count(&format!("select count(*) from {what}"), params);
        let has_changes = !self.confirmed.parts.is_empty();
        let changes = if has_changes { Some(session.copy(CHANGES, params, &self.changes_target)?) } else { None };
        Ok(PassDone {
            profiles,
            changes,
            with_unionid: count("after where unionid is not null")?,
            not_asked: count("after where unionid_missing = 'not_asked'")?,
            quarantined: count("after where unionid_missing = 'quarantined'")?,
        })
    }
}

/// The newest answer of each openid.
const LATEST: &str = "
create or replace temp view latest as
select * from (
    select *, row_number() over (partition by openid order by fetched_at desc) as newest from fetched
) where newest = 1";

const DOUBTFUL: &str = "
select latest.openid
from latest
join profiles_before on profiles_before.openid = latest.openid
where profiles_before.unionid is not null and latest.unionid is not null
  and profiles_before.unionid <> latest.unionid
union
select latest.openid
from latest
join profiles_before on profiles_before.unionid = latest.unionid and profiles_before.openid <> latest.openid
where latest.unionid is not null
union
select latest.openid
from latest
join (
    select unionid from latest where unionid is not null group by unionid having count(*) > 1
) as shared on shared.unionid = latest.unionid";

const MERGE: &str = "
with believed as (
    select
        latest.openid,
        case
            when doubtful.openid is null then latest.unionid
            when confirmed.unionid = latest.unionid then latest.unionid
        end as unionid,
        case
            when doubtful.openid is not null and confirmed.unionid is distinct from latest.unionid then 'quarantined'
            else latest.unionid_missing
        end as unionid_missing,
        latest.subscribe, latest.subscribe_time, latest.subscribe_scene, latest.qr_scene, latest.qr_scene_str,
        latest.tagid_list, latest.language, latest.remark, latest.groupid, latest.fetched_at
    from latest
    left join (select openid from doubtful group by openid) as doubtful on doubtful.openid = latest.openid
    left join confirmed on confirmed.openid = latest.openid
),
known as (
    select openid from believed
    union
    select openid from profiles_before where coalesce(unionid_missing, '') <> 'not_asked'
)
select
    $account as account,
    known.openid,
    case
        when believed.unionid_missing = 'quarantined' then null
        else coalesce(believed.unionid, before.unionid)
    end as unionid,
    case
        when believed.unionid_missing = 'quarantined' then 'quarantined'
        when coalesce(believed.unionid, before.unionid) is not null then null
        else coalesce(believed.unionid_missing, before.unionid_missing)
    end as unionid_missing,
    coalesce(believed.subscribe, before.subscribe) as subscribe,
    coalesce(believed.subscribe_time, before.subscribe_time) as subscribe_time,
    coalesce(believed.subscribe_scene, before.subscribe_scene) as subscribe_scene,
    coalesce(believed.qr_scene, before.qr_scene) as qr_scene,
    coalesce(believed.qr_scene_str, before.qr_scene_str) as qr_scene_str,
    coalesce(believed.tagid_list, before.tagid_list) as tagid_list,
    coalesce(believed.language, before.language) as language,
    coalesce(believed.remark, before.remark) as remark,
    coalesce(believed.groupid, before.groupid) as groupid,
    coalesce(believed.fetched_at, before.fetched_at) as fetched_at
from known
left join believed on believed.openid = known.openid
left join profiles_before as before on before.openid = known.openid
union all
select
    $account, followers.openid, null, 'not_asked', null, null, null, null, null, null, null, null, null, null
from followers
where followers.active
  and not exists (select 1 from believed where believed.openid = followers.openid)
  and not exists (
      select 1 from profiles_before
      where profiles_before.openid = followers.openid
        and coalesce(profiles_before.unionid_missing, '') <> 'not_asked')";

const CHANGES: &str = "
select * from changes_before
union all
select
    local_date($run_at) as date,
    $account as account,
    null as miniprogram,
    after.openid,
    after.unionid,
    before.unionid as other,
    case when before.unionid is not null and before.unionid <> after.unionid then 'unionid_changed'
         else 'unionid_shared' end as reason
from after
join (select openid from doubtful group by openid) as doubtful on doubtful.openid = after.openid
left join profiles_before as before on before.openid = after.openid";

#[cfg(test)]
mod tests {
    use super::super::part;
    use super::*;
    use crate::engine::Engine;

    #[test]
    fn the_parts_have_the_columns_that_the_merge_reads() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::Asia::Shanghai);
        let session = engine.session().unwrap();
        let columns: Vec<(String, String)> =
            part::schema().iter().map(|(name, ty)| ((*name).to_owned(), ty.sql().to_owned())).collect();
        for name in ["followers", "profiles_before", "fetched", "confirmed"] {
            let columns = match name {
                "followers" => table_spec("followers").unwrap().sql_columns(),
                "profiles_before" => table_spec("profiles").unwrap().sql_columns(),
                _ => columns.clone(),
            };
            session.add_table(&TableSource { name: name.to_owned(), columns, parts: Vec::new() }).unwrap();
        }
        session.run(LATEST).unwrap();
        session.run(&format!("create temp table doubtful as {DOUBTFUL}")).unwrap();
        let params = Params::from([("account".to_owned(), Param::Text("main".to_owned()))]);
        let given: Vec<String> = session.bind(MERGE, &params).unwrap().into_iter().map(|(name, _)| name).collect();
        let declared: Vec<String> =
            table_spec("profiles").unwrap().sql_columns().into_iter().map(|(name, _)| name).collect();
        assert_eq!(given, declared);
    }
}
