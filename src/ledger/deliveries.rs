//! Looking at the deliveries of a push. How they change: `claims`, `repeats` and `outcomes`.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::sql::{Columns, int, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::domain::{AccountName, Counts, DeliveryState, OpenId, UnionId};

/// A delivery as the ledger knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryRow {
    pub seq: u64,
    pub state: DeliveryState,
    /// 0 for one that was skipped without a try.
    pub attempt: u32,
    /// How often it was sent once more while nobody knew whether an earlier message had arrived.
    pub repeats: u32,
    pub reason: Option<String>,
    pub errcode: Option<i64>,
    pub msgid: Option<i64>,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
    pub first_try_at: Option<Timestamp>,
    pub sent_at: Option<Timestamp>,
    pub retry_at: Option<Timestamp>,
    /// `success`, `blocked` or `failed`, when WeChat has said.
    pub delivered: Option<String>,
    pub delivered_at: Option<Timestamp>,
    pub updated_at: Timestamp,
}

/// How many deliveries ended for a reason and a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrcodeCount {
    pub state: DeliveryState,
    pub reason: Option<String>,
    pub errcode: Option<i64>,
    pub n: u64,
}

const SELECT: &str = "select seq, state, attempt, repeats, reason, errcode, msgid, openid, unionid, first_try_at,
    sent_at, retry_at, delivered, delivered_at, updated_at from deliveries";

// The sign before `push_key` keeps SQLite from walking all rows of the push: it takes the small index of the state.
const IN_FLIGHT: &str = "where state = 'sending' and +push_key = $1 order by seq";
const OWED: &str = "where state = 'pending' and +push_key = $1 and (retry_at is null or retry_at <= $2)
    order by seq limit $3";

impl Ledger {
    /// Deliveries whose intent is written and whose outcome is not: after a crash, what may or may not have been sent.
    pub async fn left_in_flight(&self, push_key: i64) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.select_deliveries(IN_FLIGHT, &[push_key]).await
    }

    /// How many sends of each account are under way: their calls are reserved, and made or not.
    pub async fn sends_in_flight(&self) -> Result<BTreeMap<AccountName, u64>, LedgerError> {
        let rows = sqlx::query(
            "select p.account as account, sum(d.n) as n
             from (select push_key, count(*) as n from deliveries where state = 'sending' group by push_key) as d
             join pushes as p on p.key = d.push_key group by p.account",
        )
        .fetch_all(&self.readers)
        .await
        .doing("count what is under way")?;
        Ok(read_all(rows, |row| Ok((AccountName::new(row.text("account")?), row.count("n")?)))?.into_iter().collect())
    }

    /// Deliveries that were put back and may be tried again by now, by seq.
    pub async fn owed(&self, push_key: i64, now: Timestamp, limit: u32) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.select_deliveries(OWED, &[push_key, to_micros(now), i64::from(limit)]).await
    }

    /// The earliest time that a delivery which was put back waits for.
    pub async fn next_retry_at(&self, push_key: i64) -> Result<Option<Timestamp>, LedgerError> {
        let row =
            sqlx::query("select min(retry_at) as retry_at from deliveries where push_key = $1 and state = 'pending'")
                .bind(push_key)
                .fetch_one(&self.readers)
                .await
                .doing("look up the next retry of a push")?;
        row.optional_time("retry_at")
    }

    /// The public counts, counted from the rows: what the push's own counts must equal.
    pub async fn state_counts(&self, push_key: i64) -> Result<Counts, LedgerError> {
        let row = sqlx::query(
            "select recipients, case when rest_reason is null then 0 else recipients - claimed end as rest,
                 sum(case when d.state = 'sent' then 1 else 0 end) as sent,
                 sum(case when d.state = 'failed' then 1 else 0 end) as failed,
                 sum(case when d.state = 'skipped' then 1 else 0 end) as skipped,
                 sum(case when d.state = 'held' then 1 else 0 end) as held,
                 sum(case when d.state = 'unconfirmed' then 1 else 0 end) as unconfirmed,
                 sum(case when d.state in ('pending', 'sending') then 1 else 0 end) as open,
                 case when rest_reason is null then recipients - claimed else 0 end as unclaimed
             from pushes left join deliveries as d on d.push_key = pushes.key where pushes.key = $1
             group by recipients, rest_reason, claimed",
        )
        .bind(push_key)
        .fetch_one(&self.readers)
        .await
        .doing("count the deliveries of a push")?;
        Ok(Counts {
            recipients: row.count("recipients")?,
            sent: row.count("sent")?,
            failed: row.count("failed")?,
            skipped: row.count("skipped")? + row.count("rest")?,
            held: row.count("held")?,
            unconfirmed: row.count("unconfirmed")?,
            pending: row.count("open")? + row.count("unclaimed")?,
        })
    }

    /// Deliveries that failed, were skipped, are held or unconfirmed, by seq from after `after_seq`.
    pub async fn failures(&self, push_key: i64, after_seq: u64, limit: u32) -> Result<Vec<DeliveryRow>, LedgerError> {
        let tail = "where push_key = $1 and seq > $2 and state in ('failed', 'skipped', 'held', 'unconfirmed')
            order by seq limit $3";
        self.select_deliveries(tail, &[push_key, int(after_seq), i64::from(limit)]).await
    }

    /// All deliveries of a push that have a row, by seq from after `after_seq`.
    pub async fn deliveries(&self, push_key: i64, after_seq: u64, limit: u32) -> Result<Vec<DeliveryRow>, LedgerError> {
        let tail = "where push_key = $1 and seq > $2 order by seq limit $3";
        self.select_deliveries(tail, &[push_key, int(after_seq), i64::from(limit)]).await
    }

    /// How many deliveries have a reason or a code, most first.
    pub async fn errcode_counts(&self, push_key: i64) -> Result<Vec<ErrcodeCount>, LedgerError> {
        let rows = sqlx::query(
            "select state, reason, errcode, count(*) as n from deliveries
             where push_key = $1 and (reason is not null or errcode is not null)
             group by state, reason, errcode order by n desc, reason, errcode",
        )
        .bind(push_key)
        .fetch_all(&self.readers)
        .await
        .doing("count the codes of a push")?;
        read_all(rows, |row| {
            Ok(ErrcodeCount {
                state: row.word("state", DeliveryState::parse)?,
                reason: row.optional_text("reason")?,
                errcode: row.read("errcode")?,
                n: row.count("n")?,
            })
        })
    }

    /// Messages sent per bucket of so many seconds, in order; buckets without any are left out.
    pub async fn sent_rate(&self, push_key: i64, bucket_seconds: u32) -> Result<Vec<(Timestamp, u64)>, LedgerError> {
        let rows = sqlx::query(
            "select sent_at - sent_at % $1 as bucket, count(*) as n from deliveries
             where push_key = $2 and sent_at is not null group by 1 order by 1",
        )
        .bind(i64::from(bucket_seconds.max(1)) * 1_000_000)
        .bind(push_key)
        .fetch_all(&self.readers)
        .await
        .doing("count the sends of a push")?;
        read_all(rows, |row| Ok((from_micros(row.read("bucket")?), row.count("n")?)))
    }

    /// Whether every delivery of a push that has ended is at an end as well: only events change them from now on.
    pub async fn is_over(&self, push_key: i64) -> Result<bool, LedgerError> {
        sqlx::query_scalar(
            "select ended_at is not null and not exists
                 (select 1 from deliveries where push_key = $1 and state in ('pending', 'sending'))
             from pushes where key = $1",
        )
        .bind(push_key)
        .fetch_one(&self.readers)
        .await
        .doing("look whether a push is over")
    }

    /// Keeps the file that a push's deliveries were written out to, if they are still of that `version`; says so.
    pub async fn keep_written(&self, push_key: i64, version: i64, path: &str) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "update pushes set written_path = $1, written_version = $2 where key = $3 and deliveries_version = $2",
        )
        .bind(path)
        .bind(version)
        .bind(push_key)
        .execute(&self.notes)
        .await
        .doing("keep the file of a push's deliveries")?;
        Ok(done.rows_affected() == 1)
    }

    /// `tail` is a constant of ours; what comes from outside is bound.
    pub(super) async fn select_deliveries(
        &self,
        tail: &'static str,
        values: &[i64],
    ) -> Result<Vec<DeliveryRow>, LedgerError> {
        let mut query = sqlx::query(AssertSqlSafe(format!("{SELECT} {tail}")));
        for value in values {
            query = query.bind(*value);
        }
        read_all(query.fetch_all(&self.readers).await.doing("look up deliveries")?, read_delivery)
    }
}

/// Makes deliveries be found by openid, when the first event comes that names no message. Takes a second for a million
/// rows, once; before that no push pays for it.
pub(super) async fn index_openids(connection: &mut SqliteConnection) -> Result<(), LedgerError> {
    index(connection, "create index if not exists deliveries_by_openid on deliveries (openid)").await
}

/// The same by message id, when the first event comes that names one.
pub(super) async fn index_msgids(connection: &mut SqliteConnection) -> Result<(), LedgerError> {
    let sql = "create index if not exists deliveries_by_msgid on deliveries (msgid) where msgid is not null";
    index(connection, sql).await
}

async fn index(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), LedgerError> {
    sqlx::query(sql).execute(connection).await.doing("make deliveries be found by what events name")?;
    Ok(())
}

fn read_delivery(row: &SqliteRow) -> Result<DeliveryRow, LedgerError> {
    Ok(DeliveryRow {
        seq: row.count("seq")?,
        state: row.word("state", DeliveryState::parse)?,
        attempt: row.read("attempt")?,
        repeats: row.read("repeats")?,
        reason: row.optional_text("reason")?,
        errcode: row.read("errcode")?,
        msgid: row.read("msgid")?,
        openid: OpenId::new(row.text("openid")?),
        unionid: row.optional_text("unionid")?.map(UnionId::new),
        first_try_at: row.optional_time("first_try_at")?,
        sent_at: row.optional_time("sent_at")?,
        retry_at: row.optional_time("retry_at")?,
        delivered: row.optional_text("delivered")?,
        delivered_at: row.optional_time("delivered_at")?,
        updated_at: row.time("updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::pushes::Growth;
    use super::super::testing::*;
    use super::super::{Outcome, Recorded};
    use super::*;

    #[tokio::test]
    async fn what_was_put_back_is_owed_when_its_time_has_come() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let people = people(1..=3);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let later = Outcome { retry_at: Some(at(90)), ..outcome(2, 1, DeliveryState::Pending) };
        let in_flight = async || house.ledger.sends_in_flight().await.unwrap().into_values().collect::<Vec<u64>>();
        assert_eq!(in_flight().await, [3]);
        let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Pending), later]).await;
        assert_eq!(in_flight().await, [1]);
        let owed = async |now| {
            let rows = house.ledger.owed(push.key, at(now), 10).await.unwrap();
            rows.iter().map(|row| row.seq).collect::<Vec<_>>()
        };
        assert_eq!(owed(30).await, [1]);
        assert_eq!(owed(90).await, [1, 2]);
        assert_eq!(house.ledger.next_retry_at(push.key).await.unwrap(), Some(at(90)));
    }

    #[tokio::test]
    async fn what_is_open_is_found_without_walking_the_whole_push() {
        let house = House::new().await;
        for (tail, index) in [(IN_FLIGHT, "deliveries_in_flight"), (OWED, "deliveries_put_back")] {
            let plan = sqlx::query(AssertSqlSafe(format!("explain query plan {SELECT} {tail}")))
                .fetch_all(&house.ledger.readers)
                .await
                .unwrap();
            assert!(plan[0].text("detail").unwrap().contains(index), "{tail}");
        }
    }

    #[tokio::test]
    async fn a_file_of_deliveries_holds_until_one_of_them_changes() {
        let house = House::new().await;
        let push = house.push("r1", 2).await;
        let people = people(1..=2);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let held = Outcome { msgid: Some(7), ..outcome(2, 1, DeliveryState::Held) };
        let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Sent), held]).await;
        assert!(!house.ledger.is_over(push.key).await.unwrap());
        house.ledger.end_push(&house.lease, push.key, "done", at(5)).await.unwrap();
        assert!(house.ledger.is_over(push.key).await.unwrap());
        let before = house.reload(&push).await;
        let keep = |version, path| house.ledger.keep_written(push.key, version, path);
        assert!(!keep(before.deliveries_version - 1, "work/old.parquet").await.unwrap());
        assert!(keep(before.deliveries_version, "work/a.parquet").await.unwrap());
        assert_eq!(house.reload(&push).await.written_path.as_deref(), Some("work/a.parquet"));
        assert!(house.ledger.files_in_use().await.unwrap().contains("work/a.parquet"));
        let _ = house.record(&push, &[outcome(2, 1, DeliveryState::Failed)]).await;
        let untouched = house.reload(&push).await;
        assert!(untouched.written_path.is_some(), "a held one is settled by events alone");
        let mut connection = house.ledger.writer.acquire().await.unwrap();
        Growth::default().apply(&mut connection, push.key).await.unwrap();
        drop(connection);
        assert_eq!(house.reload(&push).await.written_path, None);
    }

    #[tokio::test]
    async fn ten_thousand_go_through_and_are_counted() {
        let house = House::new().await;
        let push = house.push("r1", 10_000).await;
        for first in (1..=10_000u64).step_by(500) {
            let people = people(first..=first + 499);
            let _ = house.begin(&push, fresh(&intents(&people))).await;
            let ends: Vec<_> = (first..first + 500)
                .map(|seq| Outcome {
                    msgid: i64::try_from(seq).ok(),
                    errcode: (seq % 10 == 0).then_some(43004),
                    at: at(i64::try_from(seq / 1000).unwrap()),
                    ..outcome(seq, 1, if seq % 10 == 0 { DeliveryState::Failed } else { DeliveryState::Sent })
                })
                .collect();
            assert_eq!(house.record(&push, &ends).await, Recorded::Yes { changed: 500 });
        }
        let counts = house.reload(&push).await.counts;
        assert_eq!((counts.sent, counts.failed, counts.pending), (9000, 1000, 0));
        let codes = house.ledger.errcode_counts(push.key).await.unwrap();
        assert_eq!((codes.len(), codes[0].errcode, codes[0].n), (1, Some(43004), 1000));
        assert_eq!(house.ledger.failures(push.key, 9_990, 10).await.unwrap()[0].seq, 10_000);
        let rate = house.ledger.sent_rate(push.key, 1).await.unwrap();
        assert_eq!((rate.len(), rate[1]), (10, (at(1), 900)));
        assert_eq!(house.ledger.state_counts(push.key).await.unwrap(), counts);
    }
}
