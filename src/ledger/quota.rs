//! The day's quota: calls of an account to an endpoint on a quota day, reserved before they are made, so that no number
//! of processes together goes beyond a limit.

use chrono::NaiveDate;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::{Columns, int, read_all};
use super::{Ledger, LedgerError, QuotaCharge};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, QuotaDay};

/// What an account has used of an endpoint on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub account: AccountName,
    pub endpoint: String,
    pub day: QuotaDay,
    /// Made or reserved by us.
    pub calls: u64,
    pub errors: u64,
    /// WeChat's own figures, and when it gave them.
    pub wechat_limit: Option<u64>,
    pub wechat_used: Option<u64>,
    pub wechat_at: Option<Timestamp>,
    /// When WeChat said that nothing is left; nothing is granted while this stands.
    pub exhausted_at: Option<Timestamp>,
    /// Calls of ours that the day has room for by WeChat's latest word.
    pub room: Option<u64>,
    /// WeChat refused a call: no push is granted any before this.
    pub held_until: Option<Timestamp>,
}

/// What WeChat says of an endpoint's quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaFigure {
    pub limit: u64,
    pub used: u64,
    pub at: Timestamp,
}

impl Ledger {
    /// Reserves up to `n` calls. Returns how many are granted: never so many that the day's calls pass the charge's
    /// limit, and none while the endpoint is marked exhausted.
    pub async fn reserve_calls(&self, charge: &QuotaCharge<'_>, n: u64) -> Result<u64, LedgerError> {
        const DOING: &str = "reserve calls of the day's quota";
        let mut tx = self.begin_note(DOING).await?;
        let left = left(&mut tx, charge, Timestamp::MAX_UTC).await?;
        let granted = left.map_or(n, |left| left.min(n));
        if granted > 0 {
            add_calls(&mut tx, charge, granted).await?;
            tx.commit().await.doing(DOING)?;
        }
        Ok(granted)
    }

    /// Gives back reserved calls that were not made.
    pub async fn give_back_calls(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        n: u64,
    ) -> Result<(), LedgerError> {
        let mut connection = self.notes.acquire().await.doing("give back calls of the day's quota")?;
        let charge = QuotaCharge { account, endpoint, day, limit: None, keep: 0 };
        subtract_calls(&mut connection, &charge, n).await
    }

    /// Counts calls that failed; they were counted as calls already.
    pub async fn add_errors(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        n: u64,
    ) -> Result<(), LedgerError> {
        let mut connection = self.notes.acquire().await.doing("count failed calls")?;
        add_errors(&mut connection, &QuotaCharge { account, endpoint, day, limit: None, keep: 0 }, n).await
    }

    /// Usage of one account or all, on one day or all, latest day first.
    pub async fn usage(&self, account: Option<&AccountName>, day: Option<QuotaDay>) -> Result<Vec<Usage>, LedgerError> {
        let rows = sqlx::query(
            "select account, endpoint, day, calls, errors, wechat_limit, wechat_used, wechat_at, exhausted_at,
                 room, held_until
             from api_usage where ($1 is null or account = $1) and ($2 is null or day = $2)
             order by day desc, account, endpoint",
        )
        .bind(account.map(AccountName::as_str))
        .bind(day.map(|day| day.to_string()))
        .fetch_all(&self.readers)
        .await
        .doing("look up the day's quota")?;
        read_all(rows, read_usage)
    }

    /// Remembers WeChat's own figure.
    pub async fn note_wechat_quota(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        figure: QuotaFigure,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into api_usage (account, endpoint, day, wechat_limit, wechat_used, wechat_at)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (account, endpoint, day) do update set wechat_limit = excluded.wechat_limit,
                 wechat_used = excluded.wechat_used, wechat_at = excluded.wechat_at",
        )
        .bind(account.as_str())
        .bind(endpoint)
        .bind(day.to_string())
        .bind(int(figure.limit))
        .bind(int(figure.used))
        .bind(to_micros(figure.at))
        .execute(&self.writer)
        .await
        .doing("remember a quota of WeChat")?;
        Ok(())
    }

    /// Remembers how many calls of ours the day has room for by WeChat's latest word: whoever claims from now on keeps to it.
    pub async fn set_quota_room(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        room: u64,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into api_usage (account, endpoint, day, room) values ($1, $2, $3, $4)
             on conflict (account, endpoint, day) do update set room = excluded.room",
        )
        .bind(account.as_str())
        .bind(endpoint)
        .bind(day.to_string())
        .bind(int(room))
        .execute(&self.writer)
        .await
        .doing("remember what a quota of WeChat leaves")?;
        Ok(())
    }

    /// WeChat refused a call: no push is granted any before `until`.
    pub async fn hold_calls(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        until: Timestamp,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into api_usage (account, endpoint, day, held_until) values ($1, $2, $3, $4)
             on conflict (account, endpoint, day) do update set held_until = excluded.held_until",
        )
        .bind(account.as_str())
        .bind(endpoint)
        .bind(day.to_string())
        .bind(to_micros(until))
        .execute(&self.writer)
        .await
        .doing("hold the sends of an account")?;
        Ok(())
    }

    /// Remembers that WeChat refuses further calls of the day.
    pub async fn mark_exhausted(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into api_usage (account, endpoint, day, exhausted_at) values ($1, $2, $3, $4)
             on conflict (account, endpoint, day) do update set exhausted_at = excluded.exhausted_at",
        )
        .bind(account.as_str())
        .bind(endpoint)
        .bind(day.to_string())
        .bind(to_micros(now))
        .execute(&self.writer)
        .await
        .doing("remember an exhausted quota")?;
        Ok(())
    }

    /// Takes [`Ledger::mark_exhausted`] back, when WeChat has quota again.
    pub async fn clear_exhausted(
        &self,
        account: &AccountName,
        endpoint: &str,
        day: QuotaDay,
    ) -> Result<(), LedgerError> {
        sqlx::query("update api_usage set exhausted_at = null where account = $1 and endpoint = $2 and day = $3")
            .bind(account.as_str())
            .bind(endpoint)
            .bind(day.to_string())
            .execute(&self.writer)
            .await
            .doing("forget an exhausted quota")?;
        Ok(())
    }
}

/// Calls left to a charge, inside a writing transaction; `None` for no limit.
pub(super) async fn left(
    connection: &mut SqliteConnection,
    charge: &QuotaCharge<'_>,
    now: Timestamp,
) -> Result<Option<u64>, LedgerError> {
    let row = sqlx::query(
        "select calls, exhausted_at, room, held_until from api_usage
         where account = $1 and endpoint = $2 and day = $3",
    )
    .bind(charge.account.as_str())
    .bind(charge.endpoint)
    .bind(charge.day.to_string())
    .fetch_optional(connection)
    .await
    .doing("look up the day's quota")?;
    let Some(row) = row else { return Ok(charge.limit.map(|limit| limit.saturating_sub(charge.keep))) };
    let is_held = row.optional_time("held_until")?.is_some_and(|until| until > now);
    if is_held || row.optional_time("exhausted_at")?.is_some() {
        return Ok(Some(0));
    }
    let calls = row.count("calls")?;
    let limit = [charge.limit, row.optional_count("room")?].into_iter().flatten().min();
    Ok(limit.map(|limit| limit.saturating_sub(charge.keep).saturating_sub(calls)))
}

/// Calls that service pushes of the account still need, in the eyes of a campaign; 0 for one that is such a push itself. One
/// that a person holds up needs none.
pub(super) async fn needed_before(connection: &mut SqliteConnection, push_key: i64) -> Result<u64, LedgerError> {
    let row = sqlx::query(
        "select coalesce(sum(recipients - sent - failed - skipped - held - unconfirmed), 0) as needed from pushes
         where account = (select account from pushes where key = $1 and priority = 'campaign') and key <> $1
             and priority = 'service' and ended_at is null and not is_paused and rest_reason is null
             and (state = 'sending' or (state = 'waiting' and waits_until is not null))",
    )
    .bind(push_key)
    .fetch_one(connection)
    .await
    .doing("look up what service pushes need")?;
    row.count("needed")
}

pub(super) async fn add_calls(
    connection: &mut SqliteConnection,
    charge: &QuotaCharge<'_>,
    n: u64,
) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into api_usage (account, endpoint, day, calls) values ($1, $2, $3, $4)
         on conflict (account, endpoint, day) do update set calls = api_usage.calls + excluded.calls",
    )
    .bind(charge.account.as_str())
    .bind(charge.endpoint)
    .bind(charge.day.to_string())
    .bind(int(n))
    .execute(connection)
    .await
    .doing("reserve calls of the day's quota")?;
    Ok(())
}

/// Never below zero: giving back more than was reserved is a slip that must not stop a push.
pub(super) async fn subtract_calls(
    connection: &mut SqliteConnection,
    charge: &QuotaCharge<'_>,
    n: u64,
) -> Result<(), LedgerError> {
    sqlx::query(
        "update api_usage set calls = case when calls > $1 then calls - $1 else 0 end
         where account = $2 and endpoint = $3 and day = $4",
    )
    .bind(int(n))
    .bind(charge.account.as_str())
    .bind(charge.endpoint)
    .bind(charge.day.to_string())
    .execute(connection)
    .await
    .doing("give back calls of the day's quota")?;
    Ok(())
}

pub(super) async fn add_errors(
    connection: &mut SqliteConnection,
    charge: &QuotaCharge<'_>,
    n: u64,
) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into api_usage (account, endpoint, day, errors) values ($1, $2, $3, $4)
         on conflict (account, endpoint, day) do update set errors = api_usage.errors + excluded.errors",
    )
    .bind(charge.account.as_str())
    .bind(charge.endpoint)
    .bind(charge.day.to_string())
    .bind(int(n))
    .execute(connection)
    .await
    .doing("count failed calls")?;
    Ok(())
}

fn read_usage(row: &SqliteRow) -> Result<Usage, LedgerError> {
    let day: NaiveDate = row.date("day")?;
    Ok(Usage {
        account: AccountName::new(row.text("account")?),
        endpoint: row.text("endpoint")?,
        day: QuotaDay::from_date(day),
        calls: row.count("calls")?,
        errors: row.count("errors")?,
        wechat_limit: row.optional_count("wechat_limit")?,
        wechat_used: row.optional_count("wechat_used")?,
        wechat_at: row.optional_time("wechat_at")?,
        exhausted_at: row.optional_time("exhausted_at")?,
        room: row.optional_count("room")?,
        held_until: row.optional_time("held_until")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn eight_who_reserve_at_once_never_get_more_than_the_limit() {
        let house = House::new().await;
        let main = AccountName::new("main");
        let charge =
            QuotaCharge { account: &main, endpoint: "user/get", day: QuotaDay::of(at(0)), limit: Some(1000), keep: 0 };
        let mut ledgers = Vec::new();
        for _ in 0..8 {
            ledgers.push(Ledger::open(&house.path).await.unwrap());
        }
        let reservers = ledgers.iter().enumerate().map(async |(i, ledger)| {
            let mut granted = 0;
            for round in 0..25 {
                granted += ledger.reserve_calls(&charge, 1 + (i as u64 * 7 + round) % 13).await.unwrap();
            }
            granted
        });
        let granted: u64 = futures::future::join_all(reservers).await.into_iter().sum();
        assert_eq!(granted, 1000);
        let usage = house.ledger.usage(Some(&main), Some(charge.day)).await.unwrap();
        assert_eq!(usage[0].calls, 1000);
    }

    #[tokio::test]
    async fn what_is_given_back_can_be_had_again_and_the_next_day_is_new() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let day = QuotaDay::of(at(0));
        let charge = QuotaCharge { account: &main, endpoint: "user/get", day, limit: Some(10), keep: 0 };
        assert_eq!(ledger.reserve_calls(&charge, 15).await.unwrap(), 10);
        assert_eq!(ledger.reserve_calls(&charge, 1).await.unwrap(), 0);
        ledger.give_back_calls(&main, "user/get", day, 4).await.unwrap();
        assert_eq!(ledger.reserve_calls(&charge, 15).await.unwrap(), 4);
        assert_eq!(ledger.reserve_calls(&QuotaCharge { day: day.next(), ..charge }, 3).await.unwrap(), 3);
        assert_eq!(ledger.reserve_calls(&QuotaCharge { limit: None, ..charge }, 3).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn whoever_claims_keeps_to_wechats_word_to_the_reserve_and_to_a_hold() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let day = QuotaDay::of(at(0));
        let charge = QuotaCharge { account: &main, endpoint: "send", day, limit: Some(100), keep: 5 };
        let left = async |charge: &QuotaCharge<'_>, now| {
            let mut tx = ledger.begin("look").await.unwrap();
            left(&mut tx, charge, at(now)).await.unwrap()
        };
        assert_eq!(left(&charge, 0).await, Some(95));
        ledger.set_quota_room(&main, "send", day, 20).await.unwrap();
        assert_eq!(ledger.reserve_calls(&charge, 50).await.unwrap(), 15);
        assert_eq!(left(&QuotaCharge { keep: 0, ..charge }, 0).await, Some(5), "the reserve is for others");
        assert_eq!(left(&QuotaCharge { limit: None, keep: 0, ..charge }, 0).await, Some(5));
        ledger.hold_calls(&main, "send", day, at(60)).await.unwrap();
        assert_eq!(left(&QuotaCharge { keep: 0, ..charge }, 59).await, Some(0));
        assert_eq!(left(&QuotaCharge { keep: 0, ..charge }, 60).await, Some(5));
        let usage = &ledger.usage(None, None).await.unwrap()[0];
        assert_eq!((usage.calls, usage.room, usage.held_until), (15, Some(20), Some(at(60))));
    }

    #[tokio::test]
    async fn an_exhausted_endpoint_grants_nothing_until_it_is_cleared() {
        let house = House::new().await;
        let (ledger, main) = (&house.ledger, AccountName::new("main"));
        let charge =
            QuotaCharge { account: &main, endpoint: "user/get", day: QuotaDay::of(at(0)), limit: None, keep: 0 };
        ledger.mark_exhausted(&main, "user/get", charge.day, at(1)).await.unwrap();
        assert_eq!(ledger.reserve_calls(&charge, 5).await.unwrap(), 0);
        ledger.clear_exhausted(&main, "user/get", charge.day).await.unwrap();
        assert_eq!(ledger.reserve_calls(&charge, 5).await.unwrap(), 5);
        let figure = QuotaFigure { limit: 500, used: 6, at: at(2) };
        ledger.note_wechat_quota(&main, "user/get", charge.day, figure).await.unwrap();
        ledger.add_errors(&main, "user/get", charge.day, 2).await.unwrap();
        let usage = &ledger.usage(None, None).await.unwrap()[0];
        assert_eq!((usage.calls, usage.errors, usage.wechat_limit), (5, 2, Some(500)));
    }
}
