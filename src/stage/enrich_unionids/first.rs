//! Who is asked first where a budget or the day's quota does not reach for all: people of an audience, then whoever was never
//! asked, the newest followers before the others, then those whose profile is stale, the oldest first.
//!
//! Only then is it worth an order; and not on a first night, when everybody came by the same walk.

use chrono::TimeDelta;

use super::{BATCH, SPOT_CHECK_EVERY};
use crate::domain::{AccountName, QuotaDay};
use crate::engine::{Params, Session, TableSource, text};
use crate::stage::{StageContext, StageError};
use crate::wechat::Endpoint;

/// Sets made before are nobody's audience any more.
const AUDIENCE_FOR: TimeDelta = TimeDelta::days(30);

/// Calls that may not be enough.
pub(super) struct Scarce {
    pub calls: u64,
    pub audience: TableSource,
}

impl Scarce {
    /// The SELECT of those who need asking, in the order that they are to be asked in where not all of the `total` can be.
    pub fn ordered(&self, session: &Session, needed: &str, total: u64) -> Result<String, StageError> {
        let batches = total.div_ceil(u64::try_from(BATCH).unwrap_or(u64::MAX));
        if batches + batches / SPOT_CHECK_EVERY < self.calls {
            return Ok(needed.to_owned());
        }
        session.add_table(&self.audience)?;
        Ok(format!("select ranked.openid {}{ORDER}", ranked(needed)))
    }
}

/// How many of those who need asking there are by how much they matter: in an audience, never asked, stale.
pub(super) fn counted(
    session: &Session,
    (needed, params): (&str, &Params),
    audience: &TableSource,
) -> Result<[u64; 3], StageError> {
    session.add_table(audience)?;
    let ranked = ranked(needed);
    let count = |place: u8| session.count(&format!("select count(*) {ranked} where ranked.place = {place}"), params);
    Ok([count(0)?, count(1)?, count(2)?])
}

/// The calls that the day has left by what is known of its quota.
///
/// # Errors
///
/// [`StageError::Ledger`].
pub(super) async fn calls_left_today(cx: &StageContext<'_>, account: &AccountName) -> Result<u64, StageError> {
    let endpoint = Endpoint::UserInfoBatchget;
    let today = QuotaDay::of(cx.hands.clock.now());
    let usage = cx.hands.ledger.usage(Some(account), Some(today)).await?;
    let usage = usage.iter().find(|usage| usage.endpoint == endpoint.as_str());
    if usage.is_some_and(|usage| usage.exhausted_at.is_some()) {
        return Ok(0);
    }
    let known = usage.and_then(|usage| usage.wechat_limit).or_else(|| endpoint.documented_daily_limit());
    let ceiling = cx.hands.account(account).quota.ceilings.get(endpoint.as_str()).copied();
    let limit = [known, ceiling].into_iter().flatten().min();
    let used = usage.map_or(0, |usage| usage.calls.max(usage.wechat_used.unwrap_or(0)));
    Ok(limit.map_or(u64::MAX, |limit| limit.saturating_sub(used)))
}

/// Whom the recipient sets of the last weeks hold of an account, as the table `audience`.
pub(super) fn audience(cx: &StageContext<'_>, account: &AccountName) -> TableSource {
    let from = cx.run.run_at - AUDIENCE_FOR;
    let sets = cx.visible.slices("recipients").filter(|set| set.made_at >= from);
    let parts: Vec<_> = sets.flat_map(|set| &set.parts).map(|part| cx.hands.lake.absolute(part)).collect();
    let columns = ["account", "openid", "arm"].map(|name| (name.to_owned(), "varchar".to_owned())).to_vec();
    let all = TableSource { name: "audience".to_owned(), columns, parts, sql: None, are_alike: false };
    let sql =
        format!("select openid from ({}) where account = {} and arm = 'send'", all.select(), text(account.as_str()));
    TableSource { sql: Some(sql), ..all }
}

fn ranked(needed: &str) -> String {
    RANKED.replace("{needed}", needed)
}

/// Those who need asking, with their place.
const RANKED: &str = "
from (
    select needed.openid, followers.first_seen_at, known.fetched_at,
           case when audience.openid is not null then 0 when known.fetched_at is null then 1 else 2 end as place
    from ({needed}) as needed
    join followers on followers.openid = needed.openid
    left join profiles_before as known on known.openid = needed.openid
    left join (select openid from audience group by openid) as audience on audience.openid = needed.openid
) as ranked";

const ORDER: &str = "
order by ranked.place, case when ranked.place = 1 then ranked.first_seen_at end desc nulls last,
         ranked.fetched_at nulls first, ranked.openid";
