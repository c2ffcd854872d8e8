//! What is left of the day's quota by the ledger's own count: nobody is asked.
//!
//! The limit is the lower of our ceiling and WeChat's figure as last noted, on whatever day, else its documented default.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::config::settings::{Account, Settings};
use crate::domain::{AccountName, QuotaDay};
use crate::ledger::{Ledger, LedgerError, Usage};
use crate::wechat::Endpoint;

/// The calls a run lives on; the others are few.
pub const WATCHED: [Endpoint; 3] = [Endpoint::TemplateSend, Endpoint::UserGet, Endpoint::UserInfoBatchget];

/// An endpoint of an account on a quota day.
#[derive(Debug, Clone, Serialize)]
pub struct Allowance {
    pub account: AccountName,
    pub endpoint: &'static str,
    /// Calls made or reserved, by our own count.
    pub used: u64,
    /// Of these, reserved for messages that are under way.
    pub reserved: u64,
    /// Calls a day; `None`: none is known.
    pub limit: Option<u64>,
    /// Calls left today, the reserve included: the lower of what is left by our count and by WeChat's figure.
    pub left_today: Option<u64>,
    /// Of these, kept for pushes with `priority = "service"`.
    pub reserve: u64,
    /// WeChat refused further calls today.
    pub is_exhausted: bool,
    /// WeChat's own figure of the day, as it was told last.
    pub wechat: Option<Told>,
}

/// What WeChat said at a time: calls of every system of the account until then, off by up to one percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Told {
    pub used: u64,
    pub at: Timestamp,
}

impl Allowance {
    /// Calls left today to a push that may or may not use the reserve.
    pub fn left(&self, may_use_reserve: bool) -> Option<u64> {
        self.left_today.map(|left| if may_use_reserve { left } else { left.saturating_sub(self.reserve) })
    }

    /// Calls of a day that has not begun.
    pub fn whole_day(&self, may_use_reserve: bool) -> Option<u64> {
        self.limit.map(|limit| if may_use_reserve { limit } else { limit.saturating_sub(self.reserve) })
    }
}

/// Every account's allowance of `endpoints` on `day`; without a ledger nothing was called yet.
///
/// # Errors
///
/// [`LedgerError`] when the ledger cannot be read.
pub async fn allowances(
    settings: &Settings,
    ledger: Option<&Ledger>,
    day: QuotaDay,
    endpoints: &[Endpoint],
) -> Result<Vec<Allowance>, LedgerError> {
    let (usage, in_flight) = match ledger {
        Some(ledger) => (ledger.usage(None, None).await?, ledger.sends_in_flight().await?),
        None => (Vec::new(), BTreeMap::new()),
    };
    let of_day = usage.iter().filter(|usage| usage.day == day);
    let by_call: BTreeMap<(&AccountName, &str), &Usage> =
        of_day.map(|usage| ((&usage.account, usage.endpoint.as_str()), usage)).collect();
    let accounts = settings.accounts.values();
    Ok(accounts
        .flat_map(|account| {
            let (by_call, usage, in_flight) = (&by_call, &usage, &in_flight);
            endpoints.iter().map(move |endpoint| {
                let figure = noted_limit(usage, &account.name, *endpoint);
                let own = by_call.get(&(&account.name, endpoint.as_str())).copied();
                let reserved = in_flight.get(&account.name).filter(|_| *endpoint == Endpoint::TemplateSend);
                Allowance { reserved: reserved.copied().unwrap_or(0), ..allowance(account, *endpoint, own, figure) }
            })
        })
        .collect())
}

/// WeChat's own limit of a call as it was last told; `usage` has the latest day first.
pub fn noted_limit(usage: &[Usage], account: &AccountName, endpoint: Endpoint) -> Option<u64> {
    let own = usage.iter().filter(|usage| usage.account == *account && usage.endpoint == endpoint.as_str());
    own.filter_map(|usage| usage.wechat_limit).next()
}

fn allowance(account: &Account, endpoint: Endpoint, usage: Option<&Usage>, figure: Option<u64>) -> Allowance {
    let name = endpoint.as_str();
    let figure = figure.or_else(|| endpoint.documented_daily_limit());
    let limit = [account.quota.ceilings.get(name).copied(), figure].into_iter().flatten().min();
    let used = usage.map_or(0, |usage| usage.calls);
    let wechat = usage.and_then(|usage| Some(Told { used: usage.wechat_used?, at: usage.wechat_at? }));
    let is_exhausted = usage.is_some_and(|usage| usage.exhausted_at.is_some());
    // Others may send for the account as well: their calls are in WeChat's figure alone.
    let left = limit.map(|limit| limit.saturating_sub(used.max(wechat.map_or(0, |told| told.used))));
    Allowance {
        account: account.name.clone(),
        endpoint: name,
        used,
        reserved: 0,
        limit,
        left_today: if is_exhausted { Some(0) } else { left },
        reserve: account.quota.reserve.get(name).copied().unwrap_or(0),
        is_exhausted,
        wechat,
    }
}
