//! One pass that merges fetched profiles with those before, after asking singly for every unionid in doubt. Where a walk has
//! told who changed, only what holds their rows is written anew ([`near`](super::near)).
//!
//! In doubt are: an openid whose unionid is another one than before, and both openids of one account that share a unionid
//! (an answer may hand people their neighbour's unionid). What a single call says is believed ([`doubt`]); whom it says
//! nothing of keeps the unionid from before, and without one is quarantined; whom no call was left for stays as before. A unionid once known is not erased because a later answer lacks it.

use std::collections::HashSet;
use std::path::PathBuf;

use super::near::Near;
use super::{Inputs, StageContext, StageError, Tally, digest, doubt};
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

/// Merges the recorded `parts` of an account into its next snapshot. Where asking has met everybody once and nobody is known
/// from before, the parts are the table as they are.
///
/// # Errors
///
/// [`StageError`]; the parts stay for the next run.
pub async fn merge(
    cx: &StageContext<'_>,
    table: &TableName,
    account: &AccountName,
    inputs: &Inputs,
    (parts, tally): (&[(i64, String)], &mut Tally),
) -> Result<MergedProfiles, StageError> {
    let lake = &cx.hands.lake;
    // Another run may have asked for the same account in between.
    let are_ours = parts.len() == tally.parts;
    let near = Near { cx, table, account, inputs, parts, may_be_doubled: !(are_ours && tally.is_distinct) };
    if let Some(merged) = near.merge(tally).await? {
        return Ok(merged);
    }
    let fetched =
        TableSource { parts: parts.iter().map(|(_, path)| lake.absolute(path)).collect(), ..inputs.fetched.clone() };
    let tables = vec![inputs.followers.clone(), inputs.profiles.clone(), fetched];
    let is_first = are_ours && tally.is_complete && inputs.profiles.parts.is_empty();
    let needs_no_look = is_first && tally.is_plain();
    let looked = if needs_no_look {
        let (rows, with_unionid) = (tally.asked, tally.with_unionid);
        Look { doubtful: Vec::new(), is_plain: true, rows, with_unionid, not_asked: 0 }
    } else {
        let may_be_doubled = !(are_ours && tally.is_distinct);
        look(cx, (inputs.people, tables.clone()), (may_be_doubled, !tally.is_complete)).await?
    };
    if looked.is_plain && !parts.is_empty() {
        return adopt(cx, table, account, (inputs, tables), (parts, &looked)).await;
    }
    let doubtful = looked.doubtful;
    let mut confirmed = TableSource { name: "confirmed".to_owned(), parts: Vec::new(), ..inputs.fetched.clone() };
    if !doubtful.is_empty() {
        confirmed.parts.push(doubt::settle(cx, account, inputs, (tally, doubtful)).await?);
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
    let done =
        blocking(&cx.hands.joining_engine(inputs.people), cx.stop, move |session| pass.run(session, &params)).await?;
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

pub(super) fn old_changes(cx: &StageContext<'_>, account: &AccountName) -> TableSource {
    let columns = table_spec("identity_changes").expect("identity_changes is declared").sql_columns();
    cx.visible.slice_source(&cx.hands.lake, ("identity_changes", account.as_str()), "changes_before", columns)
}

/// What one look at the fetched profiles tells.
struct Look {
    doubtful: Vec<OpenId>,
    /// No profiles before, each openid once, nobody in doubt: the parts are the table.
    is_plain: bool,
    rows: u64,
    with_unionid: u64,
    not_asked: u64,
}

/// `may_be_doubled`: somebody may stand in the fetched parts twice. `may_lack`: not everybody who needed it was asked.
async fn look(
    cx: &StageContext<'_>,
    (people, tables): (u64, Vec<TableSource>),
    (may_be_doubled, may_lack): (bool, bool),
) -> Result<Look, StageError> {
    let lake = cx.hands.lake.clone();
    blocking(&cx.hands.joining_engine(people), cx.stop, move |session| {
        let has_before = tables.iter().any(|table| table.name == "profiles_before" && !table.parts.is_empty());
        for table in &tables {
            session.add_table(table)?;
        }
        let differ = if has_before { Differ::default() } else { Differ::read(session, &lake)? };
        let is_doubled = make_latest(session, may_be_doubled && !differ.openids)?;
        let count = |what: &str| session.count(&format!("select count({what}) from latest"), &Params::new());
        let (rows, with_unionid) = (count("*")?, count("unionid")?);
        let is_shared = !differ.unionids && count("distinct unionid")? < with_unionid;
        let mut doubtful = HashSet::new();
        if has_before || is_shared {
            session.stream::<StageError>(DOUBTFUL, &Params::new(), |rows| {
                if let Some((_, Values::Text(found))) = rows.columns.first() {
                    doubtful.extend(found.iter().flatten().map(OpenId::new));
                }
                Ok(true)
            })?;
        }
        let is_plain = !has_before && !is_doubled && doubtful.is_empty();
        let not_asked = if is_plain && may_lack {
            session.count(&format!("select count(*) from (select 1 {NOT_ASKED_FROM})"), &Params::new())?
        } else {
            0
        };
        Ok(Look { doubtful: doubtful.into_iter().collect(), is_plain, rows, with_unionid, not_asked })
    })
    .await
}

/// Whether nobody stands in the fetched parts twice, and no two have one unionid; for certain where it is true.
#[derive(Debug, Default)]
struct Differ {
    openids: bool,
    unionids: bool,
}

impl Differ {
    /// By one reading of all ids in flat memory: the engine would hold every one of them, or spill them.
    fn read(session: &Session, lake: &Lake) -> Result<Self, StageError> {
        let (mut openids, mut unionids) = (lake.fingerprints(), lake.fingerprints());
        session.stream::<StageError>("select openid, unionid from fetched", &Params::new(), |rows| {
            for ((_, values), prints) in rows.columns.iter().zip([&mut openids, &mut unionids]) {
                if let Values::Text(ids) = values {
                    ids.iter().flatten().for_each(|id| prints.note(id));
                }
            }
            Ok(true)
        })?;
        Ok(Self { openids: openids.are_distinct(), unionids: unionids.are_distinct() })
    }
}

/// The fetched parts become the table's parts as they are, with one more for whoever was not asked.
async fn adopt(
    cx: &StageContext<'_>,
    table: &TableName,
    account: &AccountName,
    (inputs, tables): (&Inputs, Vec<TableSource>),
    (parts, look): (&[(i64, String)], &Look),
) -> Result<MergedProfiles, StageError> {
    let lake = &cx.hands.lake;
    let id = cx.new_snapshot_id();
    let mut paths = Vec::new();
    let mut bytes = 0;
    for (_, part) in parts {
        let number = u32::try_from(paths.len() + 1).unwrap_or(u32::MAX);
        let path = Lake::part_path(table, account.as_str(), &id, number);
        lake.adopt(part, &path)?;
        digest::adopt(lake, part, &path);
        bytes += lake.size_bytes(&path)?;
        paths.push(path);
    }
    let mut rows = look.rows;
    if look.not_asked > 0 {
        let path = Lake::part_path(table, account.as_str(), &id, 0);
        let target = lake.absolute(&path);
        let params = Params::from([("account".to_owned(), Param::Text(account.to_string()))]);
        let written = blocking(&cx.hands.joining_engine(inputs.people), cx.stop, move |session| {
            for table in &tables {
                session.add_table(table)?;
            }
            make_latest(session, false)?;
            let columns = table_spec("profiles").expect("profiles is declared").sql_columns();
            let casts: Vec<String> = columns
                .iter()
                .map(|(name, ty)| match name.as_str() {
                    "account" => "$account as account".to_owned(),
                    "openid" => "followers.openid".to_owned(),
                    "unionid_missing" => "'not_asked' as unionid_missing".to_owned(),
                    _ => format!("cast(null as {ty}) as {name}"),
                })
                .collect();
            Ok(session.copy(&format!("select {} {NOT_ASKED_FROM}", casts.join(", ")), &params, &target)?)
        })
        .await?;
        rows += written.rows;
        bytes += written.bytes;
        paths.push(path);
    }
    let snapshot = NewSnapshot {
        table: table.clone(),
        slice: account.to_string(),
        id,
        as_of: inputs.as_of,
        rows,
        bytes,
        parts: paths,
        columns: table_spec("profiles").expect("profiles is declared").sql_columns(),
    };
    Ok(MergedProfiles {
        profiles: snapshot.record(cx),
        changes: None,
        with_unionid: look.with_unionid,
        not_asked: look.not_asked,
        quarantined: 0,
    })
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
        make_latest(session, true)?;
        let has_doubts = !self.confirmed.parts.is_empty();
        if has_doubts {
            session.run(&format!("create temp table doubtful as {DOUBTFUL}"))?;
            session.run(WITH_CONFIRMED)?;
        }
        let has_before = self.tables.iter().any(|table| table.name == "profiles_before" && !table.parts.is_empty());
        let profiles = session.copy(&merge_sql(has_before, has_doubts), params, &self.profiles_target)?;
        session.add_table(&TableSource {
            name: "after".to_owned(),
            columns: table_spec("profiles").expect("profiles is declared").sql_columns(),
            parts: vec![self.profiles_target.clone()],
            sql: None,
            are_alike: false,
        })?;
        let count = |what: &str| session.count(&format!("select count(*) from {what}"), params);
        let changes = if has_doubts { Some(session.copy(CHANGES, params, &self.changes_target)?) } else { None };
        Ok(PassDone {
            profiles,
            changes,
            with_unionid: count("after where unionid is not null")?,
            not_asked: count("after where unionid_missing = 'not_asked'")?,
            quarantined: count("after where unionid_missing = 'quarantined'")?,
        })
    }
}

/// The newest answer of each openid. Only a crash makes two of one; then they are ranked, and
/// the answer is true.
pub(super) fn make_latest(session: &Session, may_be_doubled: bool) -> Result<bool, StageError> {
    let doubled = if may_be_doubled {
        session.count("select count(*) - count(distinct openid) from fetched", &Params::new())?
    } else {
        0
    };
    let from = if doubled == 0 {
        "select * from fetched"
    } else {
        "select * from (
            select *, row_number() over (partition by openid order by fetched_at desc, is_single desc nulls last) as newest
            from fetched
        ) where newest = 1"
    };
    session.run(&format!("create or replace temp view latest as {from}"))?;
    Ok(doubled > 0)
}

pub(super) const DOUBTFUL: &str = "
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
select profiles_before.openid
from latest
join profiles_before on profiles_before.unionid = latest.unionid and profiles_before.openid <> latest.openid
where latest.unionid is not null
union
select latest.openid
from latest
join (
    select unionid from latest where unionid is not null group by unionid having count(*) > 1
) as shared on shared.unionid = latest.unionid";

/// Without whoever had a unionid and could not be asked singly, who stays as they were; with whoever was asked singly only
/// because somebody else's answer names their unionid.
pub(super) const WITH_CONFIRMED: &str = "
alter view latest rename to answered;
create temp view latest as
select * from answered
where not exists (select 1 from doubtful where doubtful.openid = answered.openid)
   or exists (select 1 from confirmed where confirmed.openid = answered.openid)
   or not exists (
       select 1 from profiles_before as before where before.openid = answered.openid and before.unionid is not null)
union all by name
select * from confirmed where not exists (select 1 from answered where answered.openid = confirmed.openid)";

/// The merge, without the joins that have nothing to join.
pub(super) fn merge_sql(has_before: bool, has_doubts: bool) -> String {
    let (unionid, missing) = if has_doubts {
        (
            "case when doubtful.openid is null then latest.unionid else confirmed.unionid end",
            "case when doubtful.openid is null then latest.unionid_missing
                  when confirmed.openid is null or confirmed.unionid_missing in ('error', 'quarantined') then 'quarantined'
                  else confirmed.unionid_missing end",
        )
    } else {
        ("latest.unionid", "latest.unionid_missing")
    };
    let doubts = if has_doubts {
        "left join (select openid from doubtful group by openid) as doubtful on doubtful.openid = latest.openid
         left join confirmed on confirmed.openid = latest.openid"
    } else {
        ""
    };
    let columns: Vec<String> = CARRIED
        .iter()
        .map(|name| {
            if has_before {
                // An answer about somebody who follows is whole, and what it lacks was taken away; others tell three fields.
                format!(
                    "case when believed.subscribe_time is null then coalesce(believed.{name}, before.{name})
                          else believed.{name} end as {name}"
                )
            } else {
                format!("believed.{name}")
            }
        })
        .collect();
    let (known_unionid, known_missing) = if has_before {
        (
            "coalesce(believed.unionid, before.unionid) as unionid",
            "case when coalesce(believed.unionid, before.unionid) is not null then null
                  else coalesce(believed.unionid_missing, before.unionid_missing) end as unionid_missing",
        )
    } else {
        ("believed.unionid", "believed.unionid_missing")
    };
    let mut sql = format!(
        "with believed as (
    select latest.openid, {unionid} as unionid, {missing} as unionid_missing, {carried}, latest.errcode
    from latest {doubts}
)
select $account as account, believed.openid, {known_unionid}, {known_missing}, {columns}, believed.errcode,
       {refusals} as refusals
from believed {before}",
        carried = CARRIED.map(|name| format!("latest.{name}")).join(", "),
        columns = columns.join(", "),
        refusals = if has_before {
            "case when believed.errcode is not null then coalesce(before.refusals, 0) + 1 end"
        } else {
            "case when believed.errcode is not null then 1 end"
        },
        before = if has_before { "left join profiles_before as before on before.openid = believed.openid" } else { "" },
    );
    if has_before {
        sql.push_str(KEPT);
    }
    sql.push_str(NOT_ASKED);
    sql.push_str(NOT_ASKED_FROM);
    if has_before {
        sql.push_str(NOT_ASKED_BEFORE);
    }
    sql
}

/// What is taken from an answer as it is, or from the one before where it is missing.
const CARRIED: [&str; 10] = [
    "subscribe",
    "subscribe_time",
    "subscribe_scene",
    "qr_scene",
    "qr_scene_str",
    "tagid_list",
    "language",
    "remark",
    "groupid",
    "fetched_at",
];

const KEPT: &str = "
union all
select before.account, before.openid, before.unionid, before.unionid_missing, before.subscribe, before.subscribe_time,
       before.subscribe_scene, before.qr_scene, before.qr_scene_str, before.tagid_list, before.language, before.remark,
       before.groupid, before.fetched_at, before.errcode, before.refusals
from profiles_before as before
where coalesce(before.unionid_missing, '') <> 'not_asked'
  and not exists (select 1 from latest where latest.openid = before.openid)";

const NOT_ASKED: &str = "
union all
select
    $account, followers.openid, null, 'not_asked', null, null, null, null, null, null, null, null, null, null, null, null";

const NOT_ASKED_FROM: &str = "
from followers
where followers.active
  and not exists (select 1 from latest where latest.openid = followers.openid)";

const NOT_ASKED_BEFORE: &str = "
  and not exists (
      select 1 from profiles_before
      where profiles_before.openid = followers.openid
        and coalesce(profiles_before.unionid_missing, '') <> 'not_asked')";

/// A unionid that is another one now, and one that two openids have even by their single calls.
pub(super) const CHANGES: &str = "
select * from changes_before
union all
select
    local_date($run_at) as date,
    $account as account,
    null as miniprogram,
    after.openid,
    after.unionid,
    before.unionid as other,
    case when before.unionid <> after.unionid then 'unionid_changed' else 'unionid_shared' end as reason
from after
join (select openid from doubtful group by openid) as doubtful on doubtful.openid = after.openid
left join profiles_before as before on before.openid = after.openid
left join (
    select unionid from after where unionid is not null group by unionid having count(*) > 1
) as shared on shared.unionid = after.unionid
where before.unionid <> after.unionid or shared.unionid is not null";

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
            session
                .add_table(&TableSource {
                    name: name.to_owned(),
                    columns,
                    parts: Vec::new(),
                    sql: None,
                    are_alike: false,
                })
                .unwrap();
        }
        make_latest(&session, true).unwrap();
        session.run(&format!("create temp table doubtful as {DOUBTFUL}")).unwrap();
        let params = Params::from([("account".to_owned(), Param::Text("main".to_owned()))]);
        let declared: Vec<String> =
            table_spec("profiles").unwrap().sql_columns().into_iter().map(|(name, _)| name).collect();
        for (has_before, has_doubts) in [(false, false), (false, true), (true, false), (true, true)] {
            let bound = session.bind(&merge_sql(has_before, has_doubts), &params).unwrap();
            let given: Vec<String> = bound.into_iter().map(|(name, _)| name).collect();
            assert_eq!(given, declared, "{has_before} {has_doubts}");
        }
    }
}
