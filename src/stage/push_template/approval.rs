//! What an approval is for: the set, the template and every text, by the hash of the messages, and how fast and when they
//! leave. Whatever of it changes, the hash is another one, and the push waits for approval again.

use sha2::{Digest, Sha256};

use super::{StageContext, StageError, StageOutcome, wait};
use crate::config::settings::PushTemplate;
use crate::ledger::Push;

/// The hash that is approved; nothing before the messages are frozen.
pub fn approval_hash(plan: &PushTemplate, push: &Push) -> Option<String> {
    let messages = push.message_hash.as_deref()?;
    let rate = push.rate_override.unwrap_or(plan.rate);
    let approved = format!("{messages}/{}/{rate}/{:?}", push.account, plan.window);
    Some(Sha256::digest(approved.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Whether the push waits for a person's approval.
pub fn is_missing(plan: &PushTemplate, push: &Push) -> bool {
    plan.approve && (push.approved_hash.is_none() || push.approved_hash != approval_hash(plan, push))
}

/// Waits for approval; one of something else is taken back.
///
/// # Errors
///
/// [`StageError::Ledger`].
pub async fn wait_for(cx: &StageContext<'_>, plan: &PushTemplate, push: &Push) -> Result<StageOutcome, StageError> {
    let again = push.approved_hash.is_some();
    if again {
        cx.hands.ledger.void_approval(cx.lease, push.key).await?;
    }
    let hash = approval_hash(plan, push).unwrap_or_default();
    let why = if again { " again, since what was approved has changed" } else { "" };
    let reason = format!("waits for approval{why}: lianbo push approve {} --hash {hash}", cx.run.run_id);
    let mut outcome = wait(cx, push, None, reason).await?;
    if let StageOutcome::Waiting { report, .. } = &mut outcome {
        report.detail["approval_hash"] = hash.into();
    }
    Ok(outcome)
}
