//! The first frozen messages of a push, for people to look at before they approve.

use super::frozen::{self, Message};
use crate::ledger::Push;
use crate::stage::{Hands, StageError};

/// The first `n` messages in the order of the set; nothing when they are not frozen, or the push is over.
///
/// # Errors
///
/// [`StageError`] when the file of the messages cannot be read.
pub async fn preview(hands: &Hands, push: &Push, n: u32) -> Result<Option<Vec<Message>>, StageError> {
    let Some(file) = push.messages_path.as_deref().map(|path| hands.lake.absolute(path)).filter(|path| path.exists())
    else {
        return Ok(None);
    };
    let engine = hands.engine.single_threaded();
    tokio::task::spawn_blocking(move || frozen::first(&engine, file, n).map(Some)).await?
}
