//! The snapshots a run sees: what it made itself over what was current when it began, with what events told of followers
//! since their walk.

pub mod events;
mod memberships;
mod tags;

use std::collections::BTreeMap;

use self::events::Events;
use crate::clock::Timestamp;
use crate::domain::tables::{FOLLOWER_TAGS, MEMBERSHIPS, table_spec};
use crate::domain::{AccountName, TableName};
use crate::engine::TableSource;
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;

/// Table → slice → snapshot.
#[derive(Debug, Clone, Default)]
pub struct Visible {
    tables: BTreeMap<TableName, BTreeMap<String, SnapshotRecord>>,
    events: Option<Events>,
}

impl Visible {
    /// Overlays `snapshots` on what is there: a newer one of the same table and slice takes its place.
    pub fn add(&mut self, snapshots: impl IntoIterator<Item = SnapshotRecord>) {
        for snapshot in snapshots {
            self.tables.entry(snapshot.table.clone()).or_default().insert(snapshot.slice.clone(), snapshot);
        }
    }

    /// One slice of a table.
    pub fn slice(&self, table: &str, slice: &str) -> Option<&SnapshotRecord> {
        self.tables.get(table)?.get(slice)
    }

    /// All slices of a table, by name.
    pub fn slices(&self, table: &str) -> impl Iterator<Item = &SnapshotRecord> {
        self.tables.get(table).into_iter().flat_map(BTreeMap::values)
    }

    /// The snapshots that a table's rows come from: its own, or those of the tables it is read off.
    pub fn behind(&self, table: &str) -> impl Iterator<Item = &SnapshotRecord> {
        let walked = (table == MEMBERSHIPS).then(|| self.walked());
        let profiles = (table == FOLLOWER_TAGS).then(|| self.profiled());
        self.slices(table).chain(walked.into_iter().flatten()).chain(profiles.into_iter().flatten())
    }

    /// Every snapshot.
    pub fn all(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.tables.values().flat_map(BTreeMap::values)
    }

    /// The names of all tables that have a snapshot.
    pub fn names(&self) -> impl Iterator<Item = &TableName> {
        self.tables.keys()
    }

    pub fn rows(&self, table: &str) -> u64 {
        self.slices(table).map(|snapshot| snapshot.rows).sum()
    }

    /// The app id that an account's openids are of, where a walk of it said so.
    pub fn app_id_of(&self, account: &AccountName) -> Option<&str> {
        let of_account = self.all().filter(|snapshot| snapshot.slice == account.as_str());
        of_account.filter_map(|snapshot| snapshot.app_id.as_deref()).next()
    }

    /// The oldest `as_of` among the slices of `tables`; `None` when none of them has a snapshot.
    pub fn as_of<'a>(&self, tables: impl IntoIterator<Item = &'a str>) -> Option<Timestamp> {
        tables.into_iter().flat_map(|table| self.behind(table)).map(|snapshot| snapshot.as_of).min()
    }

    /// A table as the engine reads it: all parts of all slices; a declared table without a snapshot is there, empty.
    pub fn source(&self, lake: &Lake, table: &str) -> Option<TableSource> {
        let read_off = match table {
            MEMBERSHIPS => self.memberships(lake),
            FOLLOWER_TAGS => self.tags(lake),
            _ => None,
        };
        if read_off.is_some() {
            return read_off;
        }
        self.tables
            .get(table)
            .map(|slices| self.with_events(lake, source_of(lake, table, slices.values()), slices.values()))
            .or_else(|| table_spec(table).map(|spec| empty_source(table, spec.sql_columns())))
    }

    /// A table's snapshot as it was made, without what events told since; nothing where there is none.
    pub fn bare_source(&self, lake: &Lake, table: &str) -> Option<TableSource> {
        self.tables.get(table).map(|slices| source_of(lake, table, slices.values()))
    }

    /// One slice as the engine reads it under `name`; empty with `columns` when there is none.
    pub fn slice_source(
        &self,
        lake: &Lake,
        of: (&str, &str),
        name: &str,
        columns: Vec<(String, String)>,
    ) -> TableSource {
        let bare = self.bare_slice(lake, of, name, columns);
        match self.slice(of.0, of.1) {
            Some(snapshot) => self.with_events(lake, bare, std::iter::once(snapshot)),
            None => bare,
        }
    }

    /// The same without what events told since: the snapshot as it was made.
    pub fn bare_slice(&self, lake: &Lake, of: (&str, &str), name: &str, columns: Vec<(String, String)>) -> TableSource {
        match self.slice(of.0, of.1) {
            Some(snapshot) => source_of(lake, name, std::iter::once(snapshot)),
            None => empty_source(name, columns),
        }
    }

    fn with_events<'a>(
        &self,
        lake: &Lake,
        source: TableSource,
        snapshots: impl Iterator<Item = &'a SnapshotRecord> + Clone,
    ) -> TableSource {
        match &self.events {
            Some(events) => events.lay_over(source, snapshots, (self, lake)),
            None => source,
        }
    }
}

fn source_of<'a>(lake: &Lake, name: &str, snapshots: impl Iterator<Item = &'a SnapshotRecord>) -> TableSource {
    let mut columns: Vec<(String, String)> = Vec::new();
    let mut parts = Vec::new();
    let mut are_alike = true;
    for snapshot in snapshots {
        are_alike &= is_of_parts_alike(snapshot);
        for column in &snapshot.columns {
            if !columns.iter().any(|(known, _)| *known == column.0) {
                columns.push(column.clone());
            }
        }
        parts.extend(snapshot.parts.iter().map(|part| lake.absolute(part)));
    }
    TableSource { name: name.to_owned(), columns, parts, sql: None, are_alike }
}

/// Whether all parts have all columns, also those that are shared with snapshots before. Whoever merges such a table writes parts
/// anew that lack a column of today's, and then alone says that the snapshot has it.
fn is_of_parts_alike(snapshot: &SnapshotRecord) -> bool {
    ["followers", events::CHANGES, "profiles", "identity_changes"]
        .iter()
        .filter_map(|table| table_spec(table))
        .any(|spec| spec.sql_columns() == snapshot.columns)
}

fn empty_source(name: &str, columns: Vec<(String, String)>) -> TableSource {
    TableSource { name: name.to_owned(), columns, parts: Vec::new(), sql: None, are_alike: false }
}
