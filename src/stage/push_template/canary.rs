//! The canary: the first messages go out, their finish events are waited for and judged, and only then the others follow.
//! Each step stands in the ledger, so that a restart goes on where it was. A person who resumes a push that its canary
//! halted has judged for himself.

use std::time::Duration;

use super::patience::Next;
use super::stand::{halt, local, set_state};
use super::{Push, Pushing, orders, reread};
use crate::config::settings::{Canary, PushTemplate};
use crate::domain::{CanaryCounts, CanaryVerdict};
use crate::ledger::PushChange;
use crate::stage::StageError;

const LOOK: Duration = Duration::from_secs(1);
/// Events of one transaction.
const EVENTS: u32 = 500;

/// How many more may be sent to before the canary is judged; `None`: as many as there are.
pub fn left(plan: &PushTemplate, push: &Push) -> Option<u64> {
    let canary = plan.canary.filter(|_| !push.is_test && push.canary_verdict.is_none())?;
    let tried = push.claimed.saturating_sub(push.counts.skipped);
    Some(canary.first.saturating_sub(tried))
}

/// Waits for the finish events of everybody who was sent to, at most until the canary's time is over, and judges.
///
/// # Errors
///
/// [`StageError::Interrupted`]; [`StageError::Ledger`].
pub async fn judge(pushing: &Pushing<'_>, push: &Push, canary: Canary) -> Result<Next, StageError> {
    let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
    let ledger = &cx.hands.ledger;
    let wait = chrono::TimeDelta::from_std(canary.wait).unwrap_or(chrono::TimeDelta::MAX);
    let ends = clock.now().checked_add_signed(wait).unwrap_or(chrono::DateTime::<chrono::Utc>::MAX_UTC);
    let until = ledger.begin_canary_wait(cx.lease, push.key, ends).await?;
    let mut is_told = false;
    loop {
        // Whoever serves applies them too; then this finds none.
        while ledger.apply_callbacks(EVENTS, clock.now()).await?.looked_at >= u64::from(EVENTS) {}
        let seen = ledger.canary_counts(push.key, None).await?;
        match seen.verdict(canary.max_not_delivered, clock.now() >= until) {
            CanaryVerdict::Passed => {
                ledger.judge_canary(cx.lease, push.key, true).await?;
                tracing::info!("the canary passed: {}", told(&seen));
                return Ok(Next::Again);
            }
            CanaryVerdict::Failed => {
                ledger.judge_canary(cx.lease, push.key, false).await?;
                let why = why(&seen, canary, push);
                return Ok(Next::Stop(halt(cx, push, None, why).await?));
            }
            CanaryVerdict::Open if !is_told => {
                is_told = true;
                let reason = format!("the canary waits for the finish events of its {} messages", seen.sent_to);
                let change = PushChange { reason: Some(&reason), until: Some(until), ..PushChange::default() };
                set_state(cx, push, "waiting", change).await?;
                tracing::warn!(
                    "the push waits since {} until {} at the latest: {reason}",
                    local(cx, clock.now()),
                    local(cx, until)
                );
            }
            CanaryVerdict::Open => {}
        }
        tokio::select! {
            () = clock.sleep(LOOK) => {}
            () = cx.stop.cancelled() => return Err(StageError::Interrupted),
        }
        let now = reread(cx, push).await?;
        if orders::by_order(pushing.plan, &now).is_some() || orders::by_the_clock(pushing, clock.now()).is_some() {
            return Ok(Next::Again);
        }
    }
}

fn why(seen: &CanaryCounts, canary: Canary, push: &Push) -> String {
    let none = if seen.untold() == seen.sent_to {
        "; no finish event came at all: check that `lianbo serve` runs and WeChat's server push reaches it"
    } else {
        ""
    };
    format!(
        "the canary: {}; {:.0} % are not known to be delivered, more than max_not_delivered allows ({}){none}; it cost {} sends, \
         {} recipients are unsent",
        told(seen),
        seen.not_delivered_share() * 100.0,
        canary.max_not_delivered,
        seen.sent_to,
        push.counts.pending
    )
}

fn told(seen: &CanaryCounts) -> String {
    let CanaryCounts { sent_to, delivered, blocked, failed, refused } = *seen;
    let untold = seen.untold();
    format!(
        "of {sent_to} messages {delivered} were delivered, {blocked} blocked, {failed} failed, {refused} refused at the send, \
         {untold} not told of"
    )
}
