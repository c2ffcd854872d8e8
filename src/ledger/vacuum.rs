//! Files of the lake that the ledger names beside the snapshots: a sweep of the lake must leave them alone.

use std::collections::BTreeSet;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};

impl Ledger {
    /// Pages of walks and fetched profiles that no table holds yet, and the sets and messages of all pushes, with what was written out of them.
    /// Paths are relative to the lake; a path may be a folder's.
    pub async fn files_in_use(&self) -> Result<BTreeSet<String>, LedgerError> {
        let rows = sqlx::query(
            "select path from (
                 select path from walk_pages where walk_id in (select id from walks where not merged)
                 union select path from profile_parts
                 union select list_path from account_moves where ended_at is null
                 union select set_path from pushes
                 union select messages_path from pushes
                 union select written_path from pushes where written_version = deliveries_version)
             where path is not null and path <> ''",
        )
        .fetch_all(&self.readers)
        .await
        .doing("list the files in use")?;
        read_all(rows, |row| row.text("path")).map(|paths| paths.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::NewWalkPart;
    use super::super::testing::*;
    use crate::domain::AccountName;

    #[tokio::test]
    async fn pages_are_in_use_until_their_walk_is_merged() {
        let house = House::new().await;
        let (main, run) = (AccountName::new("main"), house.run("nightly-1").await);
        let walk = house.ledger.begin_walk(&main, &run.run_id, at(0)).await.unwrap();
        let part = NewWalkPart {
            first_page: 1,
            last_page: 1,
            path: "work/walks/main/1/page-00001.parquet",
            openids: 3,
            next_openid: None,
            total: None,
        };
        house.ledger.record_walk_part(walk.id, part, at(1)).await.unwrap();
        house.ledger.record_profile_part(&main, "work/profiles/main/a.parquet", 3, at(2)).await.unwrap();
        let both = ["work/profiles/main/a.parquet", "work/walks/main/1/page-00001.parquet"];
        assert!(house.ledger.files_in_use().await.unwrap().iter().eq(both.iter()));
        house.ledger.finish_walk(walk.id, at(3)).await.unwrap();
        house.ledger.merge_walk(walk.id).await.unwrap();
        assert!(house.ledger.files_in_use().await.unwrap().iter().eq(both[..1].iter()));
    }
}
