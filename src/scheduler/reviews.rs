//! Messages under the platform's review: asked about once it can have decided, now and then, for a day. Those that passed
//! come by themselves, with a finish event; those that were refused are learnt only by asking. None is sent again.

use std::time::Duration;

use chrono::TimeDelta;

use crate::clock::from_micros;
use crate::domain::FINISH_WINDOW;
use crate::ledger::{LedgerError, RefusedMessage, Review, ReviewTimes};
use crate::stage::Hands;
use crate::wechat::WeChatError;

/// Within about half an hour the platform decides.
const DECIDED_AFTER: TimeDelta = TimeDelta::minutes(30);
/// A template is not asked about more often.
const EVERY: TimeDelta = TimeDelta::minutes(30);
/// Pages of a list that is read at once.
const MOST_PAGES: u32 = 20;
/// Nothing waits for these answers.
const ASK_AT_MOST: Duration = Duration::from_secs(10);

/// Asks about every template of which messages are held long enough; gives how many turned out refused.
///
/// # Errors
///
/// [`LedgerError`]; a template that cannot be asked about now is asked about later.
pub async fn follow_up(hands: &Hands) -> Result<u64, LedgerError> {
    let now = hands.clock.now();
    let times =
        ReviewTimes { held_before: now - DECIDED_AFTER, held_after: now - FINISH_WINDOW, asked_before: now - EVERY };
    let due = hands.ledger.reviews_due(times).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let mut settled = 0;
    for review in due {
        let (refused, largest_id) = match refused(hands, &review).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(
                    account = %review.account,
                    "WeChat does not say what its review refused ({error}): asked again in half an hour"
                );
                (Vec::new(), review.largest_id)
            }
        };
        let review = Review { largest_id, ..review };
        let count = hands.ledger.apply_review(&review, &refused, hands.clock.now()).await?;
        if count > 0 {
            tracing::info!(
                account = %review.account, count,
                "{count} messages that were under review were refused and are not delivered"
            );
        }
        settled += count;
    }
    hands.settle.settle().await?;
    Ok(settled)
}

/// The messages refused since the last look, newest first, and the newest id.
async fn refused(hands: &Hands, review: &Review) -> Result<(Vec<RefusedMessage>, u64), WeChatError> {
    let (mut refused, mut largest, mut below) = (Vec::new(), review.largest_id, None);
    let Some(wechat) = hands.accounts.get(&review.account) else { return Ok((refused, largest)) };
    let wechat = wechat.at_once(ASK_AT_MOST);
    for _ in 0..MOST_PAGES {
        let (page, may_be_more) = wechat.blocked_messages(&review.template_id, below).await?;
        let smallest = page.iter().map(|message| message.id).min();
        for message in page.into_iter().filter(|message| message.id > review.largest_id) {
            largest = largest.max(message.id);
            let sent_at = message.sent_at_seconds.map(|seconds| from_micros(seconds.saturating_mul(1_000_000)));
            refused.push(RefusedMessage { openid: message.openid, sent_at });
        }
        let is_known = smallest.is_none_or(|id| id <= review.largest_id.saturating_add(1));
        // A list that does not move on would be read for ever.
        if !may_be_more || is_known || below.is_some_and(|before| smallest >= Some(before)) {
            break;
        }
        below = smallest;
    }
    Ok((refused, largest))
}
