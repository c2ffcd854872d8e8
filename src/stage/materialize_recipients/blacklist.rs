//! Whom the account keeps out, asked of WeChat before a set is made: they would be refused at the send, each at the cost of
//! a call. Not every account is granted the list; then they are refused at the send.

use std::collections::HashSet;

use crate::domain::{AccountName, OpenId};
use crate::stage::{StageContext, StageError};
use crate::wechat::WeChatError;

/// The call is not granted to this account.
const NOT_GRANTED: i64 = 48001;
/// Pages of the list; each has a thousand openids or more.
const MOST_PAGES: u32 = 1_000;

/// Brings what the ledger knows of the account's blacklist up to date; what cannot be asked now stays as it was.
///
/// # Errors
///
/// [`StageError::Ledger`]; [`StageError::Interrupted`].
pub async fn pull(cx: &StageContext<'_>, account: &AccountName) -> Result<(), StageError> {
    let listed = tokio::select! {
        listed = listed(cx, account) => listed,
        () = cx.stop.cancelled() => return Err(StageError::Interrupted),
    };
    match listed {
        Ok(openids) => {
            let people = openids.len();
            cx.hands.ledger.replace_blacklist(account, openids, cx.hands.clock.now()).await?;
            tracing::debug!(account = %account, people, "{people} followers are on the account's blacklist");
        }
        Err(WeChatError::Refused { errcode: NOT_GRANTED, .. }) => tracing::warn!(
            account = %account,
            "WeChat does not grant account `{account}` its blacklist (48001): nobody is left out for it, and whoever is on it is \
             refused at the send (43019)"
        ),
        Err(error) => tracing::warn!(
            account = %account,
            "the blacklist of account `{account}` cannot be had now ({error}): the one of last time holds"
        ),
    }
    Ok(())
}

async fn listed(cx: &StageContext<'_>, account: &AccountName) -> Result<HashSet<OpenId>, WeChatError> {
    // Tried once: a list that is refused for long has been seen, and a campaign does not wait for it.
    let wechat = cx.wechat(account).at_once(cx.hands.account(account).timeout);
    let (mut listed, mut after) = (HashSet::new(), None::<OpenId>);
    for _ in 0..MOST_PAGES {
        let page = wechat.blacklist_page(after.as_ref()).await?;
        let before = listed.len();
        listed.extend(page.openids.iter().flatten().map(OpenId::new));
        // A page that brings nobody new would come for ever.
        if page.is_last || listed.len() == before {
            break;
        }
        after = page.next_openid;
    }
    Ok(listed)
}
