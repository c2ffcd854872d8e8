//! Making visible what a run made: all its tables at once, then the catalog, then what the next run needs no more.

use serde_json::Value;

use super::Conductor;
use crate::domain::AccountName;
use crate::ledger::{Lease, Run, StageRecord};
use crate::stage::StageError;
use crate::stage::enrich_unionids::turn_name;
use crate::stage::turns::Turn;

impl Conductor {
    /// Moves every pointer of the run in one transaction, and forgets pages and details that are merged now: gives their
    /// files, which are for the caller to remove. The catalog is rewritten when something goes out next (`goes_out`); at a
    /// run's end it is anyway. A crash in between is repaired by the next command, and `vacuum` finds files that are left.
    pub(super) async fn publish(
        &self,
        lease: &Lease,
        run: &Run,
        records: &[StageRecord],
        goes_out: bool,
    ) -> Result<Vec<String>, StageError> {
        let hands = &self.hands;
        let moved = hands.ledger.publish(lease, &run.run_id, hands.clock.now()).await?;
        if moved.is_empty() {
            return Ok(Vec::new());
        }
        tracing::info!(tables = moved.len(), "published {} tables", moved.len());
        if goes_out && let Err(error) = crate::scheduler::catalog::refresh(hands).await {
            tracing::warn!("the catalog stays as it was: {}", super::stages::chain(&error));
        }
        let mut merged = Vec::new();
        for record in records {
            self.forget_merged(record, &mut merged).await?;
        }
        Ok(merged)
    }

    /// Removes what [`publish`](Self::publish) gave. What cannot be removed is in nobody's way.
    pub(super) async fn remove_merged(&self, merged: Vec<String>) {
        let lake = self.hands.lake.clone();
        let removing = move || merged.iter().try_for_each(|path| lake.remove(path));
        let removed = tokio::task::spawn_blocking(removing).await.map_err(StageError::from);
        if let Err(error) = removed.and_then(|removed| Ok(removed?)) {
            tracing::warn!("merged pages and details stay until `lianbo vacuum`: {}", super::stages::chain(&error));
        }
    }

    async fn forget_merged(&self, record: &StageRecord, merged: &mut Vec<String>) -> Result<(), StageError> {
        let hands = &self.hands;
        let list = |key: &str| record.detail.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        for walk in list("walks") {
            let (Some(id), Some(account)) = (walk["walk"].as_i64(), walk["account"].as_str()) else { continue };
            merged.extend(hands.ledger.walk_parts(id).await?.into_iter().map(|part| part.path));
            hands.ledger.drop_walk(id).await?;
            let account = AccountName::new(account);
            let table = record.table.as_ref().map_or("followers", |table| table.as_str());
            let current = hands.ledger.current(&crate::domain::TableName::new(table)).await?;
            if let Some(snapshot) = current.iter().find(|snapshot| snapshot.slice == account.as_str()) {
                hands.ledger.drop_follower_marks(&account, snapshot.as_of).await?;
                hands.ledger.drop_follower_events(&account, snapshot.as_of).await?;
            }
        }
        let ids: Vec<i64> = list("profile_parts").iter().filter_map(Value::as_i64).collect();
        if ids.is_empty() {
            return Ok(());
        }
        for account in hands.settings.accounts.keys() {
            // Another run that works on the account may be reading them: it drops them with its own.
            if let Some(turn) = Turn::now(hands, &turn_name(account)).await? {
                merged.extend(turn.hold(self.forget_parts(account, &ids)).await?);
            }
        }
        Ok(())
    }

    async fn forget_parts(&self, account: &AccountName, ids: &[i64]) -> Result<Vec<String>, StageError> {
        let hands = &self.hands;
        let parts = hands.ledger.profile_parts(account).await?;
        let (ids, paths): (Vec<i64>, Vec<String>) = parts.into_iter().filter(|(id, _)| ids.contains(id)).unzip();
        hands.ledger.drop_profile_parts(&ids).await?;
        Ok(paths)
    }
}
