//! What the platform told, applied to deliveries and followers: by whoever serves, as it comes, and around every run, so
//! that what was kept while nobody served is known before anybody is sent to.

use chrono::TimeDelta;

use crate::ledger::{Applied, FollowerMark, LedgerError};
use crate::stage::Hands;

/// Events of one transaction: short enough that those who keep events hardly wait for it.
const BATCH: u32 = 500;
/// People asked for at once: contradictions of one second are rare.
const ASKED_AT_ONCE: u32 = 20;
/// Events are kept so long after there is nothing left to do about them.
pub const KEPT: TimeDelta = TimeDelta::days(7);

/// Applies everything that is due.
///
/// # Errors
///
/// [`LedgerError`]; what was not applied stays due.
pub async fn apply(hands: &Hands) -> Result<Applied, LedgerError> {
    let mut all = Applied::default();
    loop {
        let applied = hands.ledger.apply_callbacks(BATCH, hands.clock.now()).await?;
        all += applied;
        if applied.looked_at < u64::from(BATCH) {
            return Ok(all);
        }
    }
}

/// Applies everything that was kept, also what waits for the outcome of a send: at the beginning and the end of a run.
///
/// # Errors
///
/// As [`apply`].
pub async fn catch_up(hands: &Hands) -> Result<Applied, LedgerError> {
    hands.ledger.hasten_callbacks(hands.clock.now()).await?;
    apply(hands).await
}

/// Asks the platform about people of whom two events of one second said the opposite. Who cannot be asked stays
/// undecided; the last walk counts for them.
///
/// # Errors
///
/// [`LedgerError`].
pub async fn ask_undecided(hands: &Hands) -> Result<(), LedgerError> {
    for (account, openid, at) in hands.ledger.undecided_marks(ASKED_AT_ONCE).await? {
        let Some(wechat) = hands.accounts.get(&account) else { continue };
        match wechat.profile(&openid).await {
            Ok(profile) => {
                let active = profile.subscribe;
                let decided = FollowerMark { openid, active, at, source: "asked".to_owned() };
                hands.ledger.decide_mark(&decided, &account).await?;
            }
            Err(error) => {
                tracing::warn!(account = %account, "whether somebody follows cannot be asked now: {error}");
                break;
            }
        }
    }
    hands.settle.settle().await
}
