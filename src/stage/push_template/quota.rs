//! What the account may still send today: our own ceilings and WeChat's figure, the lower of them. Asked before the
//! sending begins and again while it goes on, beside the sends and never in their way: somebody else may send for the
//! same account, and then the day is over sooner than our own count says.

use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::patience::MINUTE;
use super::stand::local;
use super::{End, Pushing, SaidBy, send::Watch};
use crate::clock::Timestamp;
use crate::config::settings::Priority;
use crate::domain::QuotaDay;
use crate::ledger::{QuotaCharge, QuotaFigure, Usage};
use crate::stage::StageError;
use crate::wechat::{Endpoint, WeChatError};

/// A figure that does not come so soon is gone without: the sends do not wait for it.
const ASK_AT_MOST: Duration = Duration::from_secs(5);
/// While it sends, the figure is asked for so often, or after a part of the sends that were left: at the least and at the
/// most so many.
const EVERY: Duration = Duration::from_secs(60);
const PART: u64 = 20;
const EVERY_SENDS: (u64, u64) = (100, 5_000);
/// But never more often than this.
const NOT_BEFORE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);
const SENDS: Endpoint = Endpoint::TemplateSend;

/// The day's limit as we may use it, in our own count of calls.
#[derive(Debug, Clone)]
pub struct Allowance {
    pub day: QuotaDay,
    /// Our own count may reach this, whatever WeChat says.
    limit: Option<u64>,
    /// Of it, and of what WeChat leaves, kept for others.
    reserve: u64,
    usage: Option<Usage>,
    /// Why WeChat did not say its figure.
    pub untold: Option<String>,
    zone: chrono_tz::Tz,
}

impl Allowance {
    /// Asks WeChat (one call, tried once) and the ledger. When WeChat does not say, what it said today or its documented
    /// default stands in.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the ledger fails, or WeChat refuses for a reason that condemns the account.
    pub async fn look(pushing: &Pushing<'_>) -> Result<Self, StageError> {
        let (cx, account) = (pushing.cx, &pushing.plan.account);
        let day = QuotaDay::of(cx.hands.clock.now());
        let before = usage(pushing, day).await?;
        let untold = match cx.wechat(account).at_once(ASK_AT_MOST).quota(SENDS).await {
            Ok(figure) => {
                let noted = QuotaFigure { limit: figure.daily_limit, used: figure.used, at: cx.hands.clock.now() };
                let room = before.as_ref().map_or(0, |usage| usage.calls) + figure.remain;
                cx.hands.ledger.note_wechat_quota(account, SENDS.as_str(), day, noted).await?;
                cx.hands.ledger.set_quota_room(account, SENDS.as_str(), day, room).await?;
                None
            }
            Err(error @ (WeChatError::TokenRejected { .. } | WeChatError::NoForcedRenewal { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(account = %account, "WeChat does not tell its quota ({error}): what it last said, or the configured or documented limit, holds");
                Some(error.to_string())
            }
        };
        let usage = usage(pushing, day).await?;
        let quota = &cx.hands.account(account).quota;
        let ceiling = quota.ceilings.get(SENDS.as_str()).copied();
        let is_told = usage.as_ref().is_some_and(|usage| usage.room.is_some());
        let limit = if is_told { ceiling } else { ceiling.or(SENDS.documented_daily_limit()) };
        let reserve = match pushing.plan.priority {
            Priority::Service => 0,
            Priority::Campaign => quota.reserve.get(SENDS.as_str()).copied().unwrap_or(0),
        };
        Ok(Self { day, limit, reserve, usage, untold, zone: cx.hands.settings.timezone })
    }

    /// Calls left when it was looked at.
    pub fn left(&self) -> u64 {
        let used = self.usage.as_ref().map_or(0, |usage| usage.calls);
        self.whole().saturating_sub(used)
    }

    /// Whether what ends the day may be the count of the day before: WeChat counts more than we have sent today, and our own
    /// limit is not reached.
    pub fn may_be_yesterdays(&self) -> bool {
        let usage = self.usage.as_ref();
        let ours = usage.map_or(0, |usage| usage.calls);
        let is_ours = self.limit.is_some_and(|limit| limit.saturating_sub(self.reserve) <= ours);
        !is_ours && usage.and_then(|usage| usage.wechat_used).is_none_or(|used| used > ours + ours / 50)
    }

    /// Calls of ours that the day has room for.
    pub fn whole(&self) -> u64 {
        let room = self.usage.as_ref().and_then(|usage| usage.room);
        let whole = [self.limit, room].into_iter().flatten().min().unwrap_or(u64::MAX);
        whole.saturating_sub(self.reserve)
    }

    /// Whose calls, and how many, a claim takes.
    pub fn charge<'a>(&self, pushing: &'a Pushing<'_>) -> QuotaCharge<'a> {
        QuotaCharge {
            account: &pushing.plan.account,
            endpoint: SENDS.as_str(),
            day: self.day,
            limit: self.limit,
            keep: self.reserve,
        }
    }

    /// Until when nothing is granted because WeChat refused, and why.
    pub fn held(&self, now: Timestamp) -> Option<(Timestamp, String)> {
        let until = self.usage.as_ref()?.held_until.filter(|until| *until > now)?;
        let since = (until - MINUTE).with_timezone(&self.zone).format("%H:%M:%S");
        Some((
            until,
            format!("WeChat refused a send of the account with 45009 at {since}: no push of it sends for a minute"),
        ))
    }

    /// What WeChat counted beyond our own calls, in words.
    pub fn others_too(&self) -> Option<String> {
        let usage = self.usage.as_ref()?;
        let others = usage.wechat_used?.checked_sub(usage.calls)?;
        (others > usage.calls / 50 + 1)
            .then(|| format!("WeChat counts {others} sends that are not ours: somebody else sends for the account"))
    }
}

/// Compares our count with WeChat's while the push sends, until it is over, and tells the account's other pushes of a
/// 45009 at once.
pub async fn watch(pushing: &Pushing<'_>, (desk, claims): (&Watch, &Claims<'_>), over: &CancellationToken) {
    let clock = pushing.cx.hands.clock;
    let mut left = claims.left;
    let mut looked: (Instant, u64) = (clock.monotonic(), desk.sends());
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            () = pushing.stops.halt.cancelled() => return hold_others(pushing).await,
            () = clock.sleep(LOOK) => {}
        }
        let waited = clock.monotonic() - looked.0;
        let sends = (left / PART).clamp(EVERY_SENDS.0, EVERY_SENDS.1);
        let is_due = waited >= EVERY || (waited >= NOT_BEFORE && desk.sends() - looked.1 >= sends);
        if !is_due {
            continue;
        }
        looked = (clock.monotonic(), desk.sends());
        match compare(pushing, claims).await {
            Ok(remain) => left = remain,
            Err(error) => tracing::debug!(error = %error, "the quota could not be compared"),
        }
    }
}

/// The recipients that are claimed and whose outcome is not recorded: their calls may not have been made yet.
pub struct Claims<'a> {
    pub permits: &'a Semaphore,
    pub most: usize,
    /// Sends that were left when the sending began.
    pub left: u64,
}

async fn compare(pushing: &Pushing<'_>, claims: &Claims<'_>) -> Result<u64, StageError> {
    let (cx, account) = (pushing.cx, &pushing.plan.account);
    let day = QuotaDay::of(cx.hands.clock.now());
    let unsent = u64::try_from(claims.most.saturating_sub(claims.permits.available_permits())).unwrap_or(0);
    let calls = usage(pushing, day).await?.map_or(0, |usage| usage.calls);
    let figure = cx.wechat(account).at_once(ASK_AT_MOST).quota(SENDS).await?;
    let noted = QuotaFigure { limit: figure.daily_limit, used: figure.used, at: cx.hands.clock.now() };
    cx.hands.ledger.note_wechat_quota(account, SENDS.as_str(), day, noted).await?;
    let room = calls.saturating_sub(unsent) + figure.remain;
    let believed = usage(pushing, day).await?.and_then(|usage| usage.room).unwrap_or(figure.daily_limit);
    // WeChat's figures are right within a hundredth.
    if room + figure.used / 100 + unsent < believed {
        tracing::warn!(
            account = %account,
            "WeChat leaves {} sends today, the ledger believed {}: somebody else sends for the account; corrected",
            figure.remain,
            believed.saturating_sub(calls)
        );
        cx.hands.ledger.set_quota_room(account, SENDS.as_str(), day, room).await?;
    }
    Ok(figure.remain)
}

/// A send was refused with 45009: nobody else of the account need find out for himself.
async fn hold_others(pushing: &Pushing<'_>) {
    if !pushing.stops.is_quota_refused() {
        return;
    }
    let now = pushing.cx.hands.clock.now();
    let ledger = &pushing.cx.hands.ledger;
    let held = ledger.hold_calls(&pushing.plan.account, SENDS.as_str(), QuotaDay::of(now), now + MINUTE).await;
    if let Err(error) = held {
        tracing::debug!(error = %error, "other pushes of the account are not held");
    }
}

/// Whether another push of the account was refused with 45009 a moment ago.
pub async fn is_held(pushing: &Pushing<'_>, now: Timestamp) -> Result<Option<End>, StageError> {
    let held = usage(pushing, QuotaDay::of(now)).await?.and_then(|usage| usage.held_until);
    Ok(held.filter(|until| *until > now).map(|until| End::QuotaSpent {
        why: format!("no push of account `{}` sends before {}", pushing.plan.account, local(pushing.cx, until)),
        said_by: SaidBy::Ledger,
    }))
}

async fn usage(pushing: &Pushing<'_>, day: QuotaDay) -> Result<Option<Usage>, StageError> {
    let usage = pushing.cx.hands.ledger.usage(Some(&pushing.plan.account), Some(day)).await?;
    Ok(usage.into_iter().find(|usage| usage.endpoint == SENDS.as_str()))
}
