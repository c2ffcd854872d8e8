//! Calls used and left today, account by account: our own count, and what WeChat says when asked.

use std::error::Error;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;

use super::allowance::noted_limit;
use crate::clock::Timestamp;
use crate::config::settings::Account;
use crate::domain::{AccountName, QuotaDay};
use crate::ledger::{QuotaFigure as NotedFigure, Usage};
use crate::stage::{Hands, StageError};
use crate::wechat::{Endpoint, QuotaFigure, WeChatError};

/// The calls whose quota matters, in the order of the data.
const ASKED: [Endpoint; 4] =
    [Endpoint::UserGet, Endpoint::UserInfoBatchget, Endpoint::UserInfo, Endpoint::TemplateSend];

/// A person waits for the answer: who does not give it in this time is not asked again.
const LIMIT: Duration = Duration::from_secs(3);
/// Of everything that is asked of an account; another process may be fetching its token.
const PATIENCE: Duration = Duration::from_secs(8);

/// The quota day of an account.
#[derive(Debug, Serialize)]
pub struct AccountQuotas {
    pub account: String,
    /// The quota day, counted in Shanghai.
    pub day: String,
    pub resets_at: Timestamp,
    pub endpoints: Vec<EndpointQuota>,
}

/// One call's day.
#[derive(Debug, Serialize)]
pub struct EndpointQuota {
    pub endpoint: String,
    /// By our own count, calls in flight included.
    pub used: u64,
    /// Of these, refused or unanswered.
    pub errors: u64,
    /// The lower of our ceiling and WeChat's figure, else its documented default; `None`: none is known.
    pub limit: Option<u64>,
    /// Kept for pushes with `priority = "service"`.
    pub reserve: u64,
    /// For everybody, the reserve included; `None`: no limit is known.
    pub left: Option<u64>,
    pub wechat: Option<WeChatSays>,
    /// Why WeChat's own figure is missing; `None` also where it is not asked.
    pub not_told: Option<String>,
    /// When WeChat refused further calls of the day.
    pub exhausted_at: Option<Timestamp>,
}

/// WeChat's own figure: calls of every system of the account.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct WeChatSays {
    pub limit: u64,
    pub used: u64,
    pub left: u64,
}

/// The day of one account or of all. Asks WeChat once an endpoint, all at the same time, and answers within seconds; a
/// figure it does not tell is no error.
///
/// # Errors
///
/// [`StageError::Ledger`] when the ledger cannot be read.
pub async fn quotas(hands: &Hands, only: Option<&AccountName>) -> Result<Vec<AccountQuotas>, StageError> {
    let accounts = hands.settings.accounts.values().filter(|account| only.is_none_or(|only| *only == account.name));
    let asked = accounts.map(|account| async move { (account, told(hands, account).await) });
    let told = join_all(asked).await;
    // What was reserved for asking and not called goes back before it is counted.
    hands.settle.settle().await?;
    let mut views = Vec::new();
    for (account, told) in told {
        views.push(of_account(hands, account, told).await?);
    }
    Ok(views)
}

/// WeChat's figures in the order of [`ASKED`], or why there are none.
async fn told(hands: &Hands, account: &Account) -> Vec<Result<QuotaFigure, String>> {
    let wechat = hands.wechat(&account.name).at_once(LIMIT);
    let asking = async {
        // Without a token every other answer would be the same silence.
        wechat.have_token().await?;
        Ok::<_, WeChatError>(join_all(ASKED.map(|endpoint| wechat.quota(endpoint))).await)
    };
    let silent = |reason: String| ASKED.map(|_| Err(reason.clone())).to_vec();
    tokio::select! {
        answers = asking => match answers {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(|error| chain(&error))).collect(),
            Err(error) => silent(chain(&error)),
        },
        () = hands.clock.sleep(PATIENCE) => silent(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// `told` in the order of [`ASKED`].
async fn of_account(
    hands: &Hands,
    account: &Account,
    told: Vec<Result<QuotaFigure, String>>,
) -> Result<AccountQuotas, StageError> {
    let now = hands.clock.now();
    let day = QuotaDay::of(now);
    // What was told is kept: a plan asks nobody, and goes by what was told last.
    for (endpoint, figure) in
        ASKED.iter().zip(&told).filter_map(|(endpoint, told)| Some((endpoint, told.as_ref().ok()?)))
    {
        let noted = NotedFigure { limit: figure.daily_limit, used: figure.used, at: now };
        hands.ledger.note_wechat_quota(&account.name, endpoint.as_str(), day, noted).await?;
    }
    let usage = hands.ledger.usage(Some(&account.name), None).await?;
    let own = |endpoint: &str| usage.iter().find(|usage| usage.day == day && usage.endpoint == endpoint);
    let noted = |endpoint: Endpoint| noted_limit(&usage, &account.name, endpoint);
    let mut endpoints: Vec<EndpointQuota> = ASKED
        .iter()
        .zip(told)
        .map(|(endpoint, told)| {
            endpoint_quota(account, (*endpoint, noted(*endpoint)), own(endpoint.as_str()), Some(told))
        })
        .collect();
    let is_asked = |name: &str| ASKED.iter().any(|asked| asked.as_str() == name);
    for other in Endpoint::ALL.into_iter().filter(|endpoint| !is_asked(endpoint.as_str())) {
        let usage = own(other.as_str()).filter(|usage| usage.calls > 0);
        endpoints.extend(usage.map(|usage| endpoint_quota(account, (other, noted(other)), Some(usage), None)));
    }
    let resets_at = day.next().starts_at();
    Ok(AccountQuotas { account: account.name.to_string(), day: day.to_string(), resets_at, endpoints })
}

fn endpoint_quota(
    account: &Account,
    (endpoint, noted): (Endpoint, Option<u64>),
    usage: Option<&Usage>,
    told: Option<Result<QuotaFigure, String>>,
) -> EndpointQuota {
    let name = endpoint.as_str();
    let (wechat, not_told) = match told {
        Some(Ok(figure)) => {
            (Some(WeChatSays { limit: figure.daily_limit, used: figure.used, left: figure.remain }), None)
        }
        Some(Err(reason)) => (None, Some(reason)),
        None => (None, None),
    };
    let used = usage.map_or(0, |usage| usage.calls);
    let known = wechat.map(|says| says.limit).or(noted).or_else(|| endpoint.documented_daily_limit());
    let ceiling = account.quota.ceilings.get(name).copied();
    let limit = lower(ceiling, known);
    let exhausted_at = usage.and_then(|usage| usage.exhausted_at);
    let ours = limit.map(|limit| limit.saturating_sub(used));
    let left = if exhausted_at.is_some() { Some(0) } else { lower(ours, wechat.map(|says| says.left)) };
    EndpointQuota {
        endpoint: name.to_owned(),
        used,
        errors: usage.map_or(0, |usage| usage.errors),
        limit,
        reserve: account.quota.reserve.get(name).copied().unwrap_or(0),
        left,
        wechat,
        not_told,
        exhausted_at,
    }
}

/// The lower of what is known.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_of_two_figures_holds_and_one_alone_stands() {
        assert_eq!(lower(Some(3), Some(2)), Some(2));
        assert_eq!(lower(None, Some(2)), Some(2));
        assert_eq!(lower(Some(3), None), Some(3));
        assert_eq!(lower(None, None), None);
    }
}
