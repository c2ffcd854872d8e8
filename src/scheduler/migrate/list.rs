//! Everybody to ask for: who follows or did, and whoever else is known under an openid of the account, each once, in an order
//! that stays. The list is written before the move begins; how far it was asked is the move's checkpoint.

use super::Moving;
use crate::clock::Timestamp;
use crate::config::settings::StageKind;
use crate::domain::tables::{MOVED_OPENIDS, table_spec};
use crate::domain::{ColumnType, OpenId, Rows, RunId, TableName, Values};
use crate::engine::{Param, Params, TableSource};
use crate::ledger::{AccountMove, MovedRow, SnapshotRecord};
use crate::stage::tables::{Visible, events};
use crate::stage::{StageError, blocking, live};

/// The columns of the answers' part.
pub(super) const ANSWERS: [(&str, ColumnType); 4] = [
    ("place", ColumnType::Integer),
    ("openid", ColumnType::Text),
    ("new_openid", ColumnType::Text),
    ("reason", ColumnType::Text),
];

/// A list that is on the disk.
pub(super) struct List {
    /// Relative to the lake.
    pub path: String,
    pub people: u64,
    /// The first of it.
    pub followers: u64,
}

/// Where the answers of a move are written out.
pub(super) fn answers_path(own: &AccountMove) -> String {
    format!("work/moves/{}/answers.parquet", own.run_id)
}

/// Answers as rows of their part.
pub(super) fn answers(rows: &[MovedRow]) -> Rows {
    let text =
        |of: fn(&MovedRow) -> Option<&str>| Values::Text(rows.iter().map(|row| of(row).map(str::to_owned)).collect());
    let places = rows.iter().map(|row| i64::try_from(row.place).ok()).collect();
    let columns = [
        Values::Integer(places),
        text(|row| Some(row.openid.as_str())),
        text(|row| row.outcome.as_ref().ok().map(OpenId::as_str)),
        text(|row| row.outcome.as_ref().err().map(String::as_str)),
    ];
    Rows { columns: ANSWERS.iter().map(|(name, _)| (*name).to_owned()).zip(columns).collect() }
}

/// Snapshots of followers: of the account, or of the others.
pub(super) fn followers_of<'a>(
    visible: &'a Visible,
    account: &'a str,
    own: bool,
) -> impl Iterator<Item = &'a SnapshotRecord> {
    visible.all().filter(move |snapshot| {
        let is_walked = snapshot.events_to.is_some() && snapshot.table.as_str() != events::CHANGES;
        is_walked && (snapshot.slice == account) == own
    })
}

/// The tables of profiles, whatever the stages that ask are called.
pub(super) fn profile_tables(moving: &Moving<'_>) -> Vec<TableName> {
    let mut tables = crate::stage::join_identities::tables_of(&moving.hands().settings, |kind| {
        matches!(kind, StageKind::EnrichUnionids(_))
    });
    tables.push(TableName::new("profiles"));
    tables.sort();
    tables.dedup();
    tables
}

/// Writes the list of everybody.
///
/// # Errors
///
/// [`StageError`].
pub(super) async fn write(moving: &Moving<'_>, run_id: &RunId) -> Result<List, StageError> {
    let (hands, account) = (moving.hands(), &moving.request.account);
    let visible = moving.visible().await?;
    let path = format!("work/moves/{run_id}/list.parquet");
    let target = hands.lake.absolute(&path);
    let renamed = |source: TableSource, name: &str| TableSource { name: name.to_owned(), ..source };
    let live = [
        renamed(live::export(hands, "suppressions").await?, "_suppressions"),
        renamed(live::export(hands, "deliveries").await?, "_deliveries"),
        live::export_marks(hands, account, Timestamp::UNIX_EPOCH).await?,
    ];
    let columns = |table: &str| table_spec(table).map(|spec| spec.sql_columns()).unwrap_or_default();
    let slice = |table: &str, name: &str| {
        visible.slice_source(&hands.lake, (table, account.as_str()), name, columns(name.trim_start_matches('_')))
    };
    let mut known: Vec<String> = Vec::new();
    for snapshot in followers_of(&visible, account.as_str(), true) {
        let rows = slice(snapshot.table.as_str(), "_followers").select();
        known.push(format!("select openid, cast(null as varchar) as unionid, active from ({rows})"));
    }
    for table in profile_tables(moving) {
        let rows = slice(table.as_str(), "_profiles").select();
        known.push(format!("select openid, unionid, false from ({rows})"));
    }
    let others: Vec<String> = followers_of(&visible, account.as_str(), false)
        .map(|of| {
            let table = (of.table.as_str(), of.slice.as_str());
            format!("select openid from ({})", visible.bare_slice(&hands.lake, table, "others", Vec::new()).select())
        })
        .collect();
    let others = if others.is_empty() { "select '' as openid".to_owned() } else { others.join(" union all ") };
    let sql = EVERYBODY.replace("{known}", &known.join("\nunion all ")).replace("{others}", &others);
    let moved = visible.bare_slice(&hands.lake, (MOVED_OPENIDS, account.as_str()), "_moved", columns(MOVED_OPENIDS));
    let params = Params::from([("account".to_owned(), Param::Text(account.to_string()))]);
    let people = visible.all().filter(|own| own.slice == account.as_str()).map(|own| own.rows).max().unwrap_or(0);
    let tables: Vec<TableSource> = live.iter().cloned().chain([moved]).collect();
    let list = blocking(&hands.joining_engine(people), moving.stop(), move |session| {
        for table in &tables {
            session.add_table(table)?;
        }
        let written = session.copy(&sql, &params, &target)?;
        let list = crate::engine::text(&target.to_string_lossy());
        let followers =
            session.count(&format!("select count(*) from read_parquet([{list}]) where active"), &Params::new())?;
        Ok(List { path, people: written.rows, followers })
    })
    .await;
    for source in &live {
        live::discard(hands, source)?;
    }
    visible.drop_events(&hands.lake)?;
    list
}

/// An openid that no account says to be its own is asked for, unless another account has it.
const EVERYBODY: &str = "
with named (openid, unionid, active) as (
{known}
union all select openid, cast(null as varchar), active from _marks
union all
select openid, cast(null as varchar), false from _suppressions
where account = $account or (account is null and openid not in ({others}))
union all
select openid, cast(null as varchar), false from _deliveries
where account = $account and unionid is null
  and openid not in (select openid from _moved where new_openid is not null)
)
select openid, any_value(unionid) as unionid, bool_or(active) as active
from named where nullif(openid, '') is not null and openid <> 'forgotten'
group by openid order by active desc, openid";
