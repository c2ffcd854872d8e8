//! Whether the tables hold an account's openids of before: it was moved into another account, where everybody has another
//! one. Asked before a stage asks the platform about them, compares them with a new list, or sends to them.

use super::tables::Visible;
use super::{FailedSlice, Hands, StageContext, StageError};
use crate::domain::AccountName;
use crate::ledger::Ledger;

/// Why nothing can be done for an account now, if that is so.
///
/// # Errors
///
/// [`StageError::Ledger`].
pub async fn refusal(hands: &Hands, visible: &Visible, account: &AccountName) -> Result<Option<String>, StageError> {
    refusal_now(&hands.ledger, visible, (account, &hands.account(account).app_id)).await
}

/// The same of an account with the app id of now, for whoever has no more than the ledger.
///
/// # Errors
///
/// As [`refusal`].
pub async fn refusal_now(
    ledger: &Ledger,
    visible: &Visible,
    (account, now): (&AccountName, &str),
) -> Result<Option<String>, StageError> {
    let open = ledger.open_moves().await?;
    if let Some(own) = open.iter().find(|own| own.account == *account) {
        return Ok(Some(format!(
            "account `{account}` is being moved, and {} of {} openids are asked for: `lianbo migrate {account} --from {}` goes on; \
             nothing is asked, changed or sent for it before",
            own.asked, own.people, own.from_app_id
        )));
    }
    let walked = visible.app_id_of(account).filter(|walked| *walked != now);
    Ok(walked.map(|walked| {
        format!(
            "account `{account}` has the app id {now} in the configuration, and the openids in the tables are those of {walked}: \
             nothing was asked, changed or sent. If {walked} was moved into {now} (账号迁移), `lianbo migrate {account} --from \
             {walked}` gives everybody their openid of now; else put app_id right in config/lianbo.toml, or give the other account \
             a name of its own there; what only rehearsed begins anew with an empty data folder"
        )
    }))
}

/// The same for a stage that does the others nevertheless.
///
/// # Errors
///
/// As [`refusal`].
pub async fn failed(cx: &StageContext<'_>, account: &AccountName) -> Result<Option<FailedSlice>, StageError> {
    let why = refusal(cx.hands, cx.visible, account).await?;
    Ok(why.map(|why| FailedSlice { slice: account.to_string(), why, is_transient: false }))
}

/// The same for a stage of one account.
///
/// # Errors
///
/// [`StageError::Rule`] with the next step; as [`refusal`].
pub async fn refuse(cx: &StageContext<'_>, account: &AccountName) -> Result<(), StageError> {
    match refusal(cx.hands, cx.visible, account).await? {
        Some(why) => Err(StageError::Rule(why)),
        None => Ok(()),
    }
}
