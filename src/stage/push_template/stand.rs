//! How a push stands still, and that everybody is told: the ledger and the log say for what, since when, until when.

use std::time::Duration;

use super::{Push, Pushing, orders, report, reread};
use crate::clock::Timestamp;
use crate::ledger::PushChange;
use crate::stage::{StageContext, StageError, StageOutcome};

/// How often orders are looked for meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// How often a wait is told again.
const TOLD_EVERY: Duration = Duration::from_secs(60);

pub async fn set_state(
    cx: &StageContext<'_>,
    push: &Push,
    state: &str,
    change: PushChange<'_>,
) -> Result<(), StageError> {
    let change = PushChange { state, ..change };
    Ok(cx.hands.ledger.set_push_state(cx.lease, push.key, change, cx.hands.clock.now()).await?)
}

/// The stage ends waiting: somebody, or the clock, goes on with it.
pub async fn wait(
    cx: &StageContext<'_>,
    push: &Push,
    until: Option<Timestamp>,
    reason: String,
) -> Result<StageOutcome, StageError> {
    set_state(cx, push, "waiting", PushChange { reason: Some(&reason), until, ..PushChange::default() }).await?;
    Ok(StageOutcome::Waiting { until, reason, report: report(&reread(cx, push).await?) })
}

/// The stage ends halted: a person decides.
pub async fn halt(
    cx: &StageContext<'_>,
    push: &Push,
    errcode: Option<i64>,
    why: String,
) -> Result<StageOutcome, StageError> {
    let reason = format!("{why}; then: lianbo push resume {}", cx.run.run_id);
    let change = PushChange { reason: Some(&reason), halted_errcode: errcode, ..PushChange::default() };
    set_state(cx, push, "halted", change).await?;
    Ok(StageOutcome::Halted { reason, report: report(&reread(cx, push).await?) })
}

/// Waits in this process, shortly enough for that. Ends early for an order or the clock, which whoever goes on meets again.
///
/// # Errors
///
/// [`StageError::Interrupted`]; [`StageError::Ledger`].
pub async fn wait_here(pushing: &Pushing<'_>, until: Timestamp, reason: &str) -> Result<(), StageError> {
    let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
    let (since, local) = (clock.now(), |at: Timestamp| local(cx, at));
    let change = PushChange { reason: Some(reason), until: Some(until), ..PushChange::default() };
    set_state(cx, &pushing.push, "waiting", change).await?;
    tracing::warn!("the push waits since {} until {}: {reason}", local(since), local(until));
    let mut told = clock.monotonic();
    loop {
        let left = (until - clock.now()).to_std().unwrap_or_default();
        if left.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = clock.sleep(left.min(LOOK)) => {}
            () = cx.stop.cancelled() => return Err(StageError::Interrupted),
        }
        let push = reread(cx, &pushing.push).await?;
        let is_ordered = orders::by_order(pushing.plan, &push).is_some();
        if is_ordered || orders::by_the_clock(pushing, clock.now()).is_some() {
            return Ok(());
        }
        if clock.monotonic() - told >= TOLD_EVERY {
            told = clock.monotonic();
            tracing::info!("the push waits since {} until {}: {reason}", local(since), local(until));
        }
    }
}

/// The time of day where the workspace is.
pub fn local(cx: &StageContext<'_>, at: Timestamp) -> String {
    at.with_timezone(&cx.hands.settings.timezone).format("%H:%M:%S").to_string()
}
