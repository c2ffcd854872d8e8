//! What the account may still send today: our own ceilings and WeChat's figure, the lower of them.

use super::Pushing;
use crate::clock::Timestamp;
use crate::config::settings::Priority;
use crate::domain::QuotaDay;
use crate::ledger::QuotaFigure;
use crate::stage::StageError;
use crate::wechat::{Endpoint, WeChatError};

/// The day's limit as we may use it, in our own count of calls.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    pub day: QuotaDay,
    /// Our own count may reach this.
    pub limit: u64,
    used: u64,
}

impl Allowance {
    /// Asks WeChat (one call) and the ledger. When WeChat does not say, its documented default stands in.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the ledger fails, or WeChat refuses for a reason that condemns the account.
    pub async fn look(pushing: &Pushing<'_>) -> Result<Self, StageError> {
        let (cx, account) = (pushing.cx, &pushing.plan.account);
        let endpoint = Endpoint::TemplateSend;
        let now: Timestamp = cx.hands.clock.now();
        let day = QuotaDay::of(now);
        let used = used_today(pushing, day).await?;
        let figure = match cx.wechat(account).quota(endpoint).await {
            Ok(figure) => {
                let noted = QuotaFigure { limit: figure.daily_limit, used: figure.used, at: now };
                cx.hands.ledger.note_wechat_quota(account, endpoint.as_str(), day, noted).await?;
                Some(used + figure.remain)
            }
            Err(error @ (WeChatError::TokenRejected { .. } | WeChatError::NoForcedRenewal { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(account = %account, "WeChat does not tell its quota ({error}): the configured or documented limit holds");
                None
            }
        };
        let quota = &cx.hands.account(account).quota;
        let ceiling = quota.ceilings.get(endpoint.as_str()).copied();
        let documented = endpoint.documented_daily_limit().unwrap_or(u64::MAX);
        let whole = match (ceiling, figure) {
            (Some(ceiling), Some(figure)) => ceiling.min(figure),
            (Some(ceiling), None) => ceiling,
            (None, Some(figure)) => figure,
            (None, None) => documented,
        };
        let reserve = match pushing.plan.priority {
            Priority::Service => 0,
            Priority::Campaign => quota.reserve.get(endpoint.as_str()).copied().unwrap_or(0),
        };
        Ok(Self { day, limit: whole.saturating_sub(reserve), used })
    }

    /// Calls left when it was looked at.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

async fn used_today(pushing: &Pushing<'_>, day: QuotaDay) -> Result<u64, StageError> {
    let usage = pushing.cx.hands.ledger.usage(Some(&pushing.plan.account), Some(day)).await?;
    Ok(usage.iter().find(|usage| usage.endpoint == Endpoint::TemplateSend.as_str()).map_or(0, |usage| usage.calls))
}
