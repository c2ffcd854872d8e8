//! What is ordered about a push while it sends, and what the clock says: looked at once a second, however slowly it
//! claims: pause, the stop switch, another rate, the end of its window, its expiry.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::send::Watch;
use super::stand::{local, set_state};
use super::{End, Pushing, approval, reread};
use crate::calendar;
use crate::clock::Timestamp;
use crate::config::settings::{Priority, PushTemplate};
use crate::ledger::{EVERY_ACCOUNT, Push, PushChange, ShareRequest};
use crate::pace::SharedPace;
use crate::stage::StageError;

const EVERY: Duration = Duration::from_secs(1);
/// Of an account's ceiling a service push gets so many parts where a campaign gets one.
const SERVICE_WEIGHT: f64 = 4.0;
/// What holds a push up for less is not worth a word.
const BORNE: chrono::TimeDelta = chrono::TimeDelta::seconds(5);
/// How often it is told again.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long a share of the account's ceiling holds: a push that cannot renew it so long sends nothing more, and one that
/// died leaves it to the others.
const SHARE_HOLDS: Duration = Duration::from_secs(5);
/// How long a look at the run's lease holds for sends. A process that stood still (stopped, or its machine asleep) may find
/// that another has sent to the same people since, so long ago that WeChat would not tell its sends from new ones.
const LEASE_HOLDS: Duration = Duration::from_secs(20);

/// Obeys orders until the sending is over or stops, and says what stands in its way meanwhile.
pub async fn obey(pushing: &Pushing<'_>, (pace, desk): (&SharedPace, &Watch), over: &CancellationToken) {
    let clock = pushing.cx.hands.clock;
    let mut hindered = Hindered::default();
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            () = pushing.stops.halt.cancelled() => return,
            () = clock.sleep(EVERY) => {}
        }
        let looked = tokio::select! {
            () = pushing.stops.ledger_is_kept.cancelled() => return,
            looked = look(pushing, pace) => looked,
        };
        match looked {
            Ok(None) => {}
            Ok(Some(end)) => return pushing.stop(end),
            Err(error @ StageError::LeaseLost) => return pushing.stop(End::Failed(error)),
            // The ledger is busy or away: the claimer and the recorder meet that too, and they decide.
            Err(error) => tracing::debug!(error = %error, "orders could not be looked for"),
        }
        if let Err(error) = hindered.tell(pushing, desk).await {
            tracing::debug!(error = %error, "what stands in the push's way could not be noted");
        }
    }
}

/// What stands in the way of a push that sends: told when it begins, every minute while it lasts, and when it is over.
#[derive(Default)]
struct Hindered {
    since: Option<Timestamp>,
    told: Option<std::time::Instant>,
}

impl Hindered {
    async fn tell(&mut self, pushing: &Pushing<'_>, desk: &Watch) -> Result<(), StageError> {
        let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
        let (now, monotonic) = (clock.now(), clock.monotonic());
        let Some(hindrance) = desk.hindrance(monotonic) else {
            if self.told.take().is_some() {
                set_state(cx, &pushing.push, "sending", PushChange::default()).await?;
                tracing::info!("the push goes on at its pace");
            }
            self.since = None;
            return Ok(());
        };
        let since = *self.since.get_or_insert(now);
        let is_due = match self.told {
            None => now - since >= BORNE,
            Some(told) => monotonic - told >= TOLD_EVERY,
        };
        if !is_due {
            return Ok(());
        }
        self.told = Some(monotonic);
        let until = hindrance.again.map(|at| now + at.saturating_duration_since(monotonic));
        let again = until.map_or(String::new(), |at| format!(", until {}", local(cx, at)));
        tracing::warn!("the push is held up since {}{again}: {}", local(cx, since), hindrance.what);
        let change = PushChange { reason: Some(&hindrance.what), until, ..PushChange::default() };
        set_state(cx, &pushing.push, "sending", change).await
    }
}

async fn look(pushing: &Pushing<'_>, pace: &SharedPace) -> Result<Option<End>, StageError> {
    let clock = pushing.cx.hands.clock;
    if let Some(end) = by_the_clock(pushing, clock.now()) {
        return Ok(Some(end));
    }
    let push = reread(pushing.cx, &pushing.push).await?;
    if let Some(end) = by_order(pushing.plan, &push) {
        return Ok(Some(end));
    }
    if let Some(end) = super::quota::is_held(pushing, clock.now()).await? {
        return Ok(Some(end));
    }
    set_pace(pushing, pace, push.rate_override).await?;
    Ok(None)
}

/// Sets the pace to the ordered or configured rate; where the account has a ceiling, to this push's share of it. It stands
/// open for a while from a moment on at which the run's lease was surely held.
///
/// # Errors
///
/// [`StageError::LeaseLost`]; [`StageError::Ledger`].
pub async fn set_pace(pushing: &Pushing<'_>, pace: &SharedPace, ordered: Option<f64>) -> Result<(), StageError> {
    let clock = pushing.cx.hands.clock;
    let wanted = allowed_rate(pushing, ordered);
    let account = &pushing.plan.account;
    // What the ledger says counts from before the call, so that nothing outlasts it.
    let asked_at = clock.monotonic();
    if !pushing.cx.hands.ledger.holds(pushing.cx.lease).await? {
        return Err(StageError::LeaseLost);
    }
    let Some(ceiling) = pushing.cx.hands.account(account).send_rate else {
        pace.set_rate(wanted, clock.monotonic());
        pace.open_until(Some(asked_at + LEASE_HOLDS));
        return Ok(());
    };
    let weight = match pushing.plan.priority {
        Priority::Service => SERVICE_WEIGHT,
        Priority::Campaign => 1.0,
    };
    let request = ShareRequest { account, push_key: pushing.push.key, wanted, weight, ceiling, ttl: SHARE_HOLDS };
    let share = pushing.cx.hands.ledger.renew_share(pushing.cx.lease, request).await?;
    if share > 0.0 {
        pace.set_rate(share, clock.monotonic());
    }
    pace.open_until(Some(if share > 0.0 { asked_at + SHARE_HOLDS } else { asked_at }));
    Ok(())
}

/// What people ordered that keeps it from sending.
pub fn by_order(plan: &PushTemplate, push: &Push) -> Option<End> {
    match push {
        _ if push.is_paused => Some(End::Paused),
        _ if push.frozen.is_some() => Some(End::Frozen),
        _ if approval::is_missing(plan, push) => Some(End::Unapproved),
        _ => None,
    }
}

/// What a push that the stop switch holds says.
pub fn frozen(push: &Push) -> String {
    match push.frozen.as_deref() {
        Some(EVERY_ACCOUNT) | None => "frozen: every account is; lianbo thaw lifts it".to_owned(),
        Some(account) => format!("frozen: account `{account}` is; lianbo thaw {account} lifts it"),
    }
}

/// The ordered or configured rate, within the account's ceiling, in sends a second.
pub fn allowed_rate(pushing: &Pushing<'_>, ordered: Option<f64>) -> f64 {
    let ceiling = pushing.cx.hands.account(&pushing.plan.account).send_rate.unwrap_or(f64::INFINITY);
    ordered.unwrap_or(pushing.plan.rate).min(ceiling)
}

/// Whether the push has expired, or its window has closed.
pub fn by_the_clock(pushing: &Pushing<'_>, now: Timestamp) -> Option<End> {
    if pushing.expires_at.is_some_and(|at| now >= at) {
        return Some(End::Expired);
    }
    let (window, zone) = (pushing.plan.window?, pushing.cx.hands.settings.timezone);
    let opens = || calendar::window_opens(window, zone, now);
    (!calendar::in_window(window, zone, now)).then(|| End::WindowClosed { opens: opens() })
}
