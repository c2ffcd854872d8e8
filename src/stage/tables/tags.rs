//! `follower_tags`: who carries which tag. It is no snapshot: whoever reads it reads the profiles that are visible, so that
//! both never disagree.

use super::{Visible, source_of, table_spec};
use crate::domain::tables::FOLLOWER_TAGS;
use crate::engine::TableSource;
use crate::lake::Lake;
use crate::ledger::SnapshotRecord;

/// The standard name of the table of profiles; another one is known by what only `enrich_unionids` makes: a slice an account
/// with this column.
const PROFILES: &str = "profiles";
const ONLY_THEIRS: &str = "unionid_missing";

impl Visible {
    /// Every snapshot of profiles, whatever the stage that asks for them is called.
    pub(super) fn profiled(&self) -> impl Iterator<Item = &SnapshotRecord> {
        self.all().filter(|own| {
            own.table.as_str() == PROFILES
                || (!own.slice.is_empty() && own.columns.iter().any(|(name, _)| name == ONLY_THEIRS))
        })
    }

    /// What reads the tags; nothing where nobody was asked yet.
    pub(super) fn tags(&self, lake: &Lake) -> Option<TableSource> {
        let profiles = source_of(lake, "", self.profiled());
        if profiles.parts.is_empty() {
            return None;
        }
        let sql = TAGS.replace("{profiles}", &profiles.select());
        let columns = table_spec(FOLLOWER_TAGS)?.sql_columns();
        Some(TableSource {
            name: FOLLOWER_TAGS.to_owned(),
            columns,
            parts: profiles.parts,
            sql: Some(sql),
            are_alike: false,
        })
    }
}

/// Ids are whole numbers: a JSON list of them is split as text, which every reader of the catalog can do.
const TAGS: &str = "
select account, openid, try_cast(tag as bigint) as tag_id
from (
    select account, openid, unnest(list_distinct(string_split(trim(tagid_list, '[] '), ','))) as tag
    from ({profiles}) where tagid_list is not null and tagid_list <> '[]'
)
where try_cast(tag as bigint) is not null";
