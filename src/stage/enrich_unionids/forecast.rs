//! How many followers an enrichment would ask for if it ran now.

use super::Inputs;
use super::need::NEEDED;
use crate::config::settings::EnrichUnionids;
use crate::domain::AccountName;
use crate::stage::{StageContext, StageError, blocking};

/// Followers of an account whose profile is missing or stale; nothing when the account was never walked.
///
/// # Errors
///
/// [`StageError`] when the tables cannot be read.
pub async fn needed(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
    account: &AccountName,
) -> Result<Option<u64>, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    if cx.visible.slice(plan.from.as_str(), account.as_str()).is_none() {
        return Ok(None);
    }
    let inputs = Inputs::gather(cx, plan, table, account).await?;
    let params = inputs.stale.params();
    let tables = [inputs.followers, inputs.profiles, inputs.fetched];
    let count = blocking(&cx.hands.engine, cx.stop, move |session| {
        for table in &tables {
            session.add_table(table)?;
        }
        Ok(session.count(&format!("select count(*) from ({NEEDED}) as needed"), &params)?)
    })
    .await?;
    Ok(Some(count))
}
