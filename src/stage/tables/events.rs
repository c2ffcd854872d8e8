//! Comings and goings that were told since a walk, laid over the snapshots of followers that the walk made.
//!
//! The ledger keeps them in order; they are written out as one small part, and whoever reads `followers` or
//! `follower_changes` reads the snapshot joined with it: what was told a second ago is seen, and a snapshot of millions is
//! not written anew for one person. The next walk takes them in by the same rules (`extract_followers/merge.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Visible;
use crate::clock::to_micros;
use crate::domain::{AccountName, ColumnType, Rows, Values};
use crate::engine::{TableSource, text};
use crate::lake::{Lake, LakeError};
use crate::ledger::{FollowerEvent, Ledger, SnapshotRecord};
use crate::stage::StageError;

/// Times of events are whole seconds, rounded down: one of the second in which a walk began is later than the walk.
pub const SECOND_MICROS: i64 = 1_000_000;
/// The table of changes, whichever stage walks.
pub const CHANGES: &str = "follower_changes";

/// A part with what was told of followers since the walks that are visible.
#[derive(Debug, Clone)]
pub struct Events {
    part: PathBuf,
    /// The last event of each account that any was told of.
    accounts: BTreeMap<String, i64>,
}

impl Events {
    /// Writes them out to `path`, relative to `lake`; nothing where none came since.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the ledger cannot be read or the lake not be written.
    pub async fn export(
        ledger: &Ledger,
        visible: &Visible,
        (lake, path): (&Lake, &str),
    ) -> Result<Option<Self>, StageError> {
        let mut told: Vec<(AccountName, Vec<FollowerEvent>)> = Vec::new();
        for (account, after) in since(visible) {
            let account = AccountName::new(account);
            let events = ledger.follower_events(&account, after).await?;
            if !events.is_empty() {
                told.push((account, events));
            }
        }
        if told.is_empty() {
            return Ok(None);
        }
        let part = write(lake, path, &told)?;
        let last = |events: &[FollowerEvent]| events.iter().map(|event| event.id).max();
        let accounts = told.into_iter().filter_map(|(account, events)| Some((account.to_string(), last(&events)?)));
        Ok(Some(Self { part, accounts: accounts.collect() }))
    }

    /// Where they are.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// `source` of these snapshots with them laid over it, where they concern it.
    pub(super) fn lay_over<'a>(
        &self,
        mut source: TableSource,
        snapshots: impl Iterator<Item = &'a SnapshotRecord> + Clone,
        (visible, lake): (&Visible, &Lake),
    ) -> TableSource {
        let is_changes = snapshots.clone().any(|snapshot| snapshot.table.as_str() == CHANGES);
        let told = snapshots.filter(|snapshot| self.is_behind(snapshot));
        if !is_changes {
            let Some(told) = self.told(told) else { return source };
            source.sql = Some(followers_sql(&source.select(), &told));
            source.parts.push(self.part.clone());
            return source;
        }
        // A change is one against the followers of the same walk.
        let walked: Vec<&SnapshotRecord> = told.filter_map(|changes| visible.walked_with(changes)).collect();
        let Some(told) = self.told(walked.iter().copied()) else { return source };
        let followers = super::source_of(lake, "", walked.into_iter());
        source.sql = Some(changes_sql(&source.select(), &told, &followers.select()));
        source.parts.extend(followers.parts);
        source.parts.push(self.part.clone());
        source
    }

    /// Whether anything came after a snapshot of followers.
    fn is_behind(&self, snapshot: &SnapshotRecord) -> bool {
        self.accounts.get(&snapshot.slice).is_some_and(|last| snapshot.events_to.is_some_and(|to| to < *last))
    }

    /// The SELECT of what came after these snapshots; nothing where they are none of followers.
    fn told<'a>(&self, snapshots: impl Iterator<Item = &'a SnapshotRecord>) -> Option<String> {
        let after: Vec<String> = snapshots
            .filter_map(|snapshot| {
                Some(format!(
                    "(account = {} and id > {} and seen_at > make_timestamp({}))",
                    text(&snapshot.slice),
                    snapshot.events_to?,
                    to_micros(snapshot.as_of).saturating_sub(SECOND_MICROS)
                ))
            })
            .collect();
        let part = text(&self.part.to_string_lossy());
        (!after.is_empty()).then(|| {
            format!(
                "select account, openid, n, active, seen_at from read_parquet([{part}]) where {}",
                after.join(" or ")
            )
        })
    }
}

impl Visible {
    /// Lays comings and goings over every table of followers that is read from now on.
    pub fn lay_over(&mut self, events: Option<Events>) {
        self.events = events;
    }

    /// Removes what was written out to `lake`, when nobody reads it any more.
    ///
    /// # Errors
    ///
    /// [`LakeError::Remove`].
    pub fn drop_events(&self, lake: &Lake) -> Result<(), LakeError> {
        let path = self.events.as_ref().and_then(|events| events.part.strip_prefix(lake.root()).ok());
        path.map_or(Ok(()), |path| lake.remove(&path.to_string_lossy()))
    }

    /// Whether events can concern a table.
    pub fn hears_events(&self, table: &str) -> bool {
        self.behind(table).any(|snapshot| snapshot.events_to.is_some())
    }

    /// The followers of the walk that these changes are of.
    fn walked_with(&self, changes: &SnapshotRecord) -> Option<&SnapshotRecord> {
        self.all().find(|own| {
            own.table != changes.table
                && own.events_to.is_some()
                && (&own.slice, &own.run_id, &own.stage) == (&changes.slice, &changes.run_id, &changes.stage)
        })
    }
}

/// Account → the last event that every visible snapshot of its followers has in it.
fn since(visible: &Visible) -> BTreeMap<&str, i64> {
    let mut since: BTreeMap<&str, i64> = BTreeMap::new();
    for snapshot in visible.all() {
        let Some(to) = snapshot.events_to else { continue };
        let least = since.entry(&snapshot.slice).or_insert(to);
        *least = to.min(*least);
    }
    since
}

/// Writes events as a part, numbered in the order of their time; gives its absolute path.
///
/// # Errors
///
/// [`LakeError`].
pub fn write(lake: &Lake, path: &str, told: &[(AccountName, Vec<FollowerEvent>)]) -> Result<PathBuf, LakeError> {
    let mut writer = lake.writer(path, &COLUMNS)?;
    for (account, events) in told {
        let accounts = events.iter().map(|_| Some(account.to_string())).collect();
        let openids = events.iter().map(|event| Some(event.openid.as_str().to_owned())).collect();
        let column = |name: &str, values| (name.to_owned(), values);
        writer.write(Rows {
            columns: vec![
                column("account", Values::Text(accounts)),
                column("openid", Values::Text(openids)),
                column("id", Values::Integer(events.iter().map(|event| Some(event.id)).collect())),
                column("n", Values::Integer((1..).map(Some).take(events.len()).collect())),
                column("active", Values::Boolean(events.iter().map(|event| Some(event.active)).collect())),
                column("seen_at", Values::Timestamp(events.iter().map(|event| Some(to_micros(event.at))).collect())),
            ],
        })?;
    }
    Ok(lake.absolute(&writer.finish()?.path))
}

/// The columns of [`write`].
pub const COLUMNS: [(&str, ColumnType); 6] = [
    ("account", ColumnType::Text),
    ("openid", ColumnType::Text),
    ("id", ColumnType::Integer),
    ("n", ColumnType::Integer),
    ("active", ColumnType::Boolean),
    ("seen_at", ColumnType::Timestamp),
];

/// The last word on each person of `told`, and when the person was first and last told to follow.
pub fn last_words(told: &str) -> String {
    format!(
        "select account, openid, arg_max(active, n) as active, max(seen_at) as told_at,
                min(seen_at) filter (where active) as came_first_at, max(seen_at) filter (where active) as came_last_at
         from ({told}) group by account, openid"
    )
}

/// Who turned from one standing to the other by each of `told`: against the one before, the first against `known`.
pub fn turns(told: &str, known: &str) -> String {
    format!(
        "select local_date(seen_at) as date, account, openid, case when active then 'follow' else 'unfollow' end as change,
                seen_at, 'event' as source
         from (
             select told.account, told.openid, told.active, told.seen_at,
                    coalesce(
                        lag(told.active) over (partition by told.account, told.openid order by told.n),
                        known.active, false) as was_active
             from ({told}) as told
             left join ({known}) as known on known.account = told.account and known.openid = told.openid
         ) where active <> was_active"
    )
}

/// Whoever left without having been known to follow is nobody's follower and has no row.
fn followers_sql(followers: &str, told: &str) -> String {
    format!(
        "select account, openid, coalesce(walked.first_seen_at, told.came_first_at) as first_seen_at,
                greatest(walked.last_seen_at, told.came_last_at) as last_seen_at,
                coalesce(told.active, walked.active) as active
         from ({followers}) as walked
         full outer join ({}) as told using (account, openid)
         where walked.openid is not null or told.came_first_at is not null",
        last_words(told)
    )
}

fn changes_sql(changes: &str, told: &str, followers: &str) -> String {
    format!("{changes} union all {}", turns(told, followers))
}
