//! `memberships`: since when and until when each person followed. It is no snapshot: whoever reads it reads the followers
//! and the changes that are visible, with what events told since, so that the three never disagree.
//!
//! Whoever no change tells of follows since the account's first walk saw them; a change to follow begins a membership, the
//! next one to unfollow ends it. Where somebody is gone and no change says since when (nothing tells of people who were
//! forgotten), it ended when they were last seen.

use std::collections::BTreeSet;

use super::Visible;
use super::events::CHANGES;
use crate::domain::tables::MEMBERSHIPS;
use crate::engine::TableSource;
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;

/// The standard name of the table that a walk makes; another one is known by its snapshots.
const FOLLOWERS: &str = "followers";

impl Visible {
    /// Every snapshot of followers, whatever the stage that walks is called.
    pub(super) fn walked(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.all()
            .filter(|own| own.table.as_str() == FOLLOWERS || (own.events_to.is_some() && own.table.as_str() != CHANGES))
    }

    /// What reads the memberships; nothing where no walk ended yet.
    pub(super) fn memberships(&self, lake: &Lake) -> Option<TableSource> {
        let names: BTreeSet<&str> = self.walked().map(|own| own.table.as_str()).collect();
        let followers: Vec<TableSource> = names.into_iter().filter_map(|name| self.source(lake, name)).collect();
        let changes = self.source(lake, CHANGES)?;
        if followers.is_empty() {
            return None;
        }
        let known: Vec<String> = followers
            .iter()
            .map(|source| {
                format!("select account, openid, first_seen_at, last_seen_at, active from ({})", source.select())
            })
            .collect();
        let sql = SPANS
            .replace("{known}", &known.join(" union all "))
            .replace("{changes}", &format!("select account, openid, change, seen_at from ({})", changes.select()));
        let parts = followers.into_iter().chain([changes]).flat_map(|source| source.parts).collect();
        let columns = super::table_spec(MEMBERSHIPS)?.sql_columns();
        Some(TableSource { name: MEMBERSHIPS.to_owned(), columns, parts, sql: Some(sql), are_alike: false })
    }
}

/// Only whom a change tells of is put in order: most people came once and stayed. Times of events are whole seconds, and may
/// lie before the walk of their second.
const SPANS: &str = "
with known as ({known}), told as ({changes}),
first_told as (
    select account, openid, arg_min(change, (seen_at, change)) as change, min(seen_at) as seen_at
    from told group by account, openid
),
turns as (
    select account, openid, change, seen_at from told
    union all
    select known.account, known.openid, 'follow', least(known.first_seen_at, first_told.seen_at)
    from known join first_told using (account, openid) where first_told.change <> 'follow'
),
in_order as (
    select account, openid, change, seen_at,
           case when lead(change) over person = 'unfollow' then lead(seen_at) over person end as left_at,
           lead(change) over person is null as is_last
    from turns window person as (partition by account, openid order by seen_at, change)
),
gone as (select account, openid, last_seen_at from known where not active)
select account, openid, row_number() over (partition by account, openid order by seen_at) as membership,
       seen_at as followed_at, coalesce(left_at, case when is_last and gone.openid is not null then greatest(seen_at, gone.last_seen_at) end) as left_at
from in_order left join gone using (account, openid) where change = 'follow'
union all
select known.account, known.openid, 1, known.first_seen_at, case when not known.active then known.last_seen_at end
from known anti join first_told on first_told.account = known.account and first_told.openid = known.openid";
