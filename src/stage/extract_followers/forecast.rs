//! How many pages a walk would have if it were as long as the last one.

use crate::domain::AccountName;
use crate::domain::tables::table_spec;
use crate::engine::Params;
use crate::stage::{StageContext, StageError, blocking};

/// Current followers of an account by its last walk; nothing when it was never walked.
///
/// # Errors
///
/// [`StageError`] when the table cannot be read.
pub async fn followers_now(cx: &StageContext<'_>, account: &AccountName) -> Result<Option<u64>, StageError> {
    let table = cx.stage.table.as_ref().expect("an extract stage has a table");
    if cx.visible.slice(table.as_str(), account.as_str()).is_none() {
        return Ok(None);
    }
    let columns = table_spec("followers").expect("followers is declared").sql_columns();
    let of = (table.as_str(), account.as_str());
    let source = cx.visible.slice_source(&cx.hands.lake, of, "followers", columns);
    let count = blocking(&cx.hands.engine, cx.stop, move |session| {
        session.add_table(&source)?;
        Ok(session.count("select count(*) from followers where active", &Params::new())?)
    })
    .await?;
    Ok(Some(count))
}
