//! How many calls a push made on a quota day: a part of its account's, counted with them and corrected with them, so that a
//! limit of its own is as exact as the account's.

use std::collections::BTreeMap;

use sqlx::SqliteConnection;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};
use crate::domain::QuotaDay;

impl Ledger {
    /// Calls that each push made, or reserved, on a day, by its key.
    pub async fn push_calls(&self, day: QuotaDay) -> Result<BTreeMap<i64, u64>, LedgerError> {
        let rows = sqlx::query("select push_key, calls from push_calls where day = $1")
            .bind(day.to_string())
            .fetch_all(&self.readers)
            .await
            .doing("look up what pushes sent on a day")?;
        Ok(read_all(rows, |row| Ok((row.read("push_key")?, row.count("calls")?)))?.into_iter().collect())
    }
}

/// Calls of a push on a day, inside a transaction.
pub(super) async fn of(tx: &mut SqliteConnection, push_key: i64, day: QuotaDay) -> Result<u64, LedgerError> {
    let row = sqlx::query("select calls from push_calls where push_key = $1 and day = $2")
        .bind(push_key)
        .bind(day.to_string())
        .fetch_optional(tx)
        .await
        .doing("look up what a push sent on a day")?;
    row.map_or(Ok(0), |row| row.count("calls"))
}

/// Counts so many more calls of a push, or fewer; never below zero, as with its account's.
pub(super) async fn change(
    tx: &mut SqliteConnection,
    push_key: i64,
    (day, n): (QuotaDay, i64),
) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into push_calls (push_key, day, calls) values ($1, $2, max($3, 0))
         on conflict (push_key, day) do update set calls = max(push_calls.calls + $3, 0)",
    )
    .bind(push_key)
    .bind(day.to_string())
    .bind(n)
    .execute(tx)
    .await
    .doing("count what a push sent on a day")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Begin, Begun, GiveBack, OutcomeBatch, QuotaCharge};
    use super::*;
    use crate::domain::{AccountName, DeliveryState};

    #[tokio::test]
    async fn a_limit_of_its_own_is_held_to_the_call_through_a_kill_and_across_days() {
        let house = House::new().await;
        let (push, other) = (house.push("r1", 30).await, house.push("r2", 30).await);
        let people = people(1..=60);
        let all = intents(&people);
        let main = AccountName::new("main");
        let day = QuotaDay::of(at(0));
        let charge = QuotaCharge { account: &main, endpoint: "send", day, limit: None, keep: 0 };
        let claim =
            |range: std::ops::Range<usize>| Begin { quota: Some(charge), daily_limit: Some(12), ..fresh(&all[range]) };
        let own = async || house.ledger.push_calls(day).await.unwrap().get(&push.key).copied().unwrap_or(0);
        let tally = async |id| house.ledger.begin_tally(&house.lease, push.key, ("send", id)).await.unwrap().unwrap();

        let first = tally("first").await;
        assert!(matches!(house.begin(&push, claim(0..10)).await, Begun::Yes { .. }));
        assert_eq!(house.begin(&push, claim(10..13)).await, Begun::DailyShort { left: 2 });
        assert!(matches!(house.begin(&other, claim(30..40)).await, Begun::Yes { .. }), "each has its own");
        // Killed after four of them, one of these twice.
        house.ledger.charge_calls(push.key, &charge, 1).await.unwrap();
        assert_eq!(own().await, 11);
        (0..5).for_each(|_| first.one());
        drop(first);
        let second = tally("second").await;
        assert_eq!(own().await, 5, "what was called");
        let again = Begin { again: &[1, 2, 3, 4, 5, 6, 7, 8], claimed_to: 10, now: at(2), ..claim(0..0) };
        assert_eq!(house.begin(&push, again).await, Begun::DailyShort { left: 7 }, "repeats count as well");
        assert!(matches!(house.begin(&push, Begin { again: &[1, 2, 3], ..again }).await, Begun::Yes { .. }));
        (0..2).for_each(|_| second.one());
        let put_back = [outcome(3, 2, DeliveryState::Pending)];
        let give_back = Some(GiveBack { account: &main, endpoint: "send", day, n: 1 });
        let batch = OutcomeBatch { give_back, ..only(&put_back) };
        let _ = house.ledger.record_outcomes(&house.lease, push.key, batch).await.unwrap();
        house.ledger.end_tally(&house.lease, push.key, ("send", "second", 2)).await.unwrap();
        assert_eq!(own().await, 7);
        let tomorrow = Some(QuotaCharge { day: day.next(), ..charge });
        let claim = Begin { quota: tomorrow, claimed_to: 22, ..claim(10..22) };
        assert!(matches!(house.begin(&push, claim).await, Begun::Yes { .. }), "a new day");
        assert_eq!(
            house.ledger.usage(None, Some(day)).await.unwrap()[0].calls,
            17,
            "its account's, the other's with it"
        );
    }
}
