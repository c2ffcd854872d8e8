//! The ledger as tables: rows for SQL, column by column, in chunks, in the names and types that users see.
//!
//! Deliveries are only those that have a row here; whoever shows the table adds the recipients that were not claimed
//! yet.

use chrono::NaiveDate;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Column as _, Decode, Row, Sqlite, Type};

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};
use crate::domain::{ColumnType, Rows, Values};

/// A table that the ledger feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LiveTable {
    Pushes,
    Deliveries,
    Suppressions,
    ApiCalls,
    Audit,
    Runs,
    RunStages,
    CheckResults,
    Fires,
    Callbacks,
}

/// Where the next chunk begins. The default is the beginning, except for deliveries, which are read push by push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LiveCursor {
    first: i64,
    second: i64,
}

impl LiveCursor {
    /// The beginning of a push's deliveries.
    pub fn of_push(push_key: i64) -> Self {
        Self { first: push_key, second: 0 }
    }
}

type Column = (&'static str, ColumnType);

use ColumnType::{Boolean, Date, Float, Integer, Text, Timestamp};

const PUSHES: &[Column] = &[
    ("run_id", Text),
    ("pipeline", Text),
    ("stage", Text),
    ("account", Text),
    ("template_id", Text),
    ("set_hash", Text),
    ("state", Text),
    ("reason", Text),
    ("recipients", Integer),
    ("sent", Integer),
    ("failed", Integer),
    ("skipped", Integer),
    ("held", Integer),
    ("unconfirmed", Integer),
    ("pending", Integer),
    ("approved_by", Text),
    ("approved_at", Timestamp),
    ("is_test", Boolean),
    ("frozen_at", Timestamp),
    ("started_at", Timestamp),
    ("ended_at", Timestamp),
];

const DELIVERIES: &[Column] = &[
    ("run_id", Text),
    ("pipeline", Text),
    ("stage", Text),
    ("account", Text),
    ("seq", Integer),
    ("openid", Text),
    ("unionid", Text),
    ("template_id", Text),
    ("state", Text),
    ("reason", Text),
    ("errcode", Integer),
    ("msgid", Integer),
    ("attempts", Integer),
    ("sent_at", Timestamp),
    ("delivered", Text),
    ("delivered_at", Timestamp),
    ("is_test", Boolean),
];

const SUPPRESSIONS: &[Column] = &[
    ("unionid", Text),
    ("openid", Text),
    ("account", Text),
    ("template_id", Text),
    ("reason", Text),
    ("since", Timestamp),
    ("until", Timestamp),
];

const API_CALLS: &[Column] = &[
    ("date", Date),
    ("account", Text),
    ("endpoint", Text),
    ("calls", Integer),
    ("errors", Integer),
    ("quota", Integer),
];

const AUDIT: &[Column] = &[("at", Timestamp), ("who", Text), ("command", Text), ("run_id", Text), ("detail", Text)];

const RUNS: &[Column] = &[
    ("run_id", Text),
    ("pipeline", Text),
    ("status", Text),
    ("waiting_until", Timestamp),
    ("reason", Text),
    ("started_at", Timestamp),
    ("seconds", Float),
    ("ended_at", Timestamp),
    ("trigger", Text),
    ("scheduled_for", Timestamp),
    ("today", Date),
    ("params", Text),
    ("is_test", Boolean),
    ("attempt", Integer),
];

const RUN_STAGES: &[Column] = &[
    ("run_id", Text),
    ("pipeline", Text),
    ("stage", Text),
    ("name", Text),
    ("kind", Text),
    ("status", Text),
    ("rows_in", Integer),
    ("rows_out", Integer),
    ("seconds", Float),
    ("api_calls", Text),
    ("detail", Text),
    ("table_name", Text),
    ("started_at", Timestamp),
    ("error", Text),
];

const CHECK_RESULTS: &[Column] = &[
    ("checked_at", Timestamp),
    ("run_id", Text),
    ("pipeline", Text),
    ("stage", Text),
    ("table_name", Text),
    ("check_name", Text),
    ("outcome", Text),
    ("found", Text),
];

const FIRES: &[Column] = &[
    ("pipeline", Text),
    ("scheduled_for", Timestamp),
    ("claimed_at", Timestamp),
    ("outcome", Text),
    ("run_id", Text),
    ("reason", Text),
];

const CALLBACKS: &[Column] = &[
    ("account", Text),
    ("openid", Text),
    ("event", Text),
    ("event_key", Text),
    ("msgid", Integer),
    ("status", Text),
    ("created_at", Timestamp),
    ("received_at", Timestamp),
    ("applied_at", Timestamp),
    ("outcome", Text),
];

impl LiveTable {
    pub const ALL: [Self; 10] = [
        Self::Pushes,
        Self::Deliveries,
        Self::Suppressions,
        Self::ApiCalls,
        Self::Audit,
        Self::Runs,
        Self::RunStages,
        Self::CheckResults,
        Self::Fires,
        Self::Callbacks,
    ];

    /// The table's name outside.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pushes => "pushes",
            Self::Deliveries => "deliveries",
            Self::Suppressions => "suppressions",
            Self::ApiCalls => "api_calls",
            Self::Audit => "audit",
            Self::Runs => "runs",
            Self::RunStages => "run_stages",
            Self::CheckResults => "check_results",
            Self::Fires => "fires",
            Self::Callbacks => "callbacks",
        }
    }

    /// Its columns, in order.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Self::Pushes => PUSHES,
            Self::Deliveries => DELIVERIES,
            Self::Suppressions => SUPPRESSIONS,
            Self::ApiCalls => API_CALLS,
            Self::Audit => AUDIT,
            Self::Runs => RUNS,
            Self::RunStages => RUN_STAGES,
            Self::CheckResults => CHECK_RESULTS,
            Self::Fires => FIRES,
            Self::Callbacks => CALLBACKS,
        }
    }

    /// What stands behind `select`, with `cursor_1` and `cursor_2` beside the columns; $1 and $2 are the cursor, $3 the
    /// number of rows.
    fn source(self) -> &'static str {
        match self {
            Self::Pushes => {
                "*, key as cursor_1, 0 as cursor_2,
                     recipients - sent - failed - skipped - held - unconfirmed as pending
                 from pushes where key > $1 order by key limit $3"
            }
            Self::Deliveries => {
                "p.run_id, p.pipeline, p.stage, p.account, p.template_id, d.seq, d.openid, d.unionid,
                     case when d.state = 'sending' then 'pending' else d.state end as state, d.reason, d.errcode,
                     d.msgid, d.attempt as attempts, d.sent_at, d.delivered, d.delivered_at, p.is_test,
                     d.push_key as cursor_1, d.seq as cursor_2
                 from deliveries as d join pushes as p on p.key = d.push_key
                 where d.push_key = $1 and d.seq > $2 order by d.seq limit $3"
            }
            Self::Suppressions => {
                "*, id as cursor_1, 0 as cursor_2 from suppressions where id > $1 order by id limit $3"
            }
            Self::ApiCalls => {
                "day as date, account, endpoint, calls, errors, wechat_limit as quota, id as cursor_1, 0 as cursor_2
                 from api_usage where id > $1 order by id limit $3"
            }
            Self::Audit => "*, id as cursor_1, 0 as cursor_2 from audit where id > $1 order by id limit $3",
            Self::Runs => {
                "*, trigger_kind as \"trigger\", (ended_at - started_at) / 1000000.0 as seconds, id as cursor_1,
                     0 as cursor_2
                 from runs where id > $1 order by id limit $3"
            }
            Self::RunStages => {
                "*, stage as name, (select pipeline from runs where runs.run_id = run_stages.run_id) as pipeline,
                     id as cursor_1, 0 as cursor_2
                 from run_stages where id > $1 order by id limit $3"
            }
            Self::CheckResults => {
                "*, (select pipeline from runs where runs.run_id = check_results.run_id) as pipeline,
                     id as cursor_1, 0 as cursor_2
                 from check_results where id > $1 order by id limit $3"
            }
            Self::Fires => "*, id as cursor_1, 0 as cursor_2 from fires where id > $1 order by id limit $3",
            Self::Callbacks => "*, id as cursor_1, 0 as cursor_2 from callbacks where id > $1 order by id limit $3",
        }
    }
}

impl Ledger {
    /// The next rows of a table, at most `limit`, and where to go on; `None` at the end. A chunk is of one moment, a
    /// whole table need not be.
    pub async fn read_live(
        &self,
        table: LiveTable,
        cursor: LiveCursor,
        limit: u32,
    ) -> Result<(Rows, Option<LiveCursor>), LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!("select {}", table.source())))
            .bind(cursor.first)
            .bind(cursor.second)
            .bind(limit.max(1))
            .fetch_all(&self.readers)
            .await
            .doing("read a table of the ledger")?;
        let is_full = u64::try_from(rows.len()).is_ok_and(|rows| rows >= u64::from(limit.max(1)));
        let next = match rows.last() {
            Some(row) if is_full => Some(LiveCursor { first: row.read("cursor_1")?, second: row.read("cursor_2")? }),
            _ => None,
        };
        let columns: Result<Vec<_>, LedgerError> = table
            .columns()
            .iter()
            .map(|(name, column_type)| Ok(((*name).to_owned(), read_column(&rows, name, *column_type)?)))
            .collect();
        Ok((Rows { columns: columns? }, next))
    }
}

/// By the column's place: looking its name up for each value costs as much as reading it.
fn read_column(rows: &[SqliteRow], name: &'static str, column_type: ColumnType) -> Result<Values, LedgerError> {
    let Some(first) = rows.first() else { return Ok(Values::empty(column_type)) };
    let at = first.try_column(name).map_err(|source| LedgerError::Column { column: name, source })?.ordinal();
    Ok(match column_type {
        Text => Values::Text(read_place(rows, (name, at))?),
        Integer => Values::Integer(read_place(rows, (name, at))?),
        Float => Values::Float(read_place(rows, (name, at))?),
        Boolean => Values::Boolean(read_place(rows, (name, at))?),
        Timestamp => Values::Timestamp(read_place(rows, (name, at))?),
        Date => Values::Date(read_all(rows, |row| days(row, name))?),
    })
}

fn read_place<T>(rows: &[SqliteRow], (column, at): (&'static str, usize)) -> Result<Vec<T>, LedgerError>
where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
{
    rows.iter().map(|row| row.try_get(at).map_err(|source| LedgerError::Column { column, source })).collect()
}

/// Days since 1970 of a date that is stored as text.
fn days(row: &SqliteRow, name: &'static str) -> Result<Option<i32>, LedgerError> {
    let is_null = row.read::<Option<String>>(name)?.is_none();
    if is_null {
        return Ok(None);
    }
    let days = row.date(name)?.signed_duration_since(NaiveDate::default()).num_days();
    Ok(i32::try_from(days).ok())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{
        AuditEntry, Begin, CheckOutcome, CheckResult, FireOutcome, NewCallback, NewSuppression, QuotaCharge,
        StageRecord,
    };
    use super::*;
    use crate::domain::{
        AccountName, DeliveryState, PipelineName, QuotaDay, RunId, StageName, StageStatus, TableName, UnionId,
    };

    /// A ledger with something in every table.
    async fn full_house() -> House {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        let main = AccountName::new("main");
        let quota =
            Some(QuotaCharge { account: &main, endpoint: "send", day: QuotaDay::of(at(0)), limit: None, keep: 0 });
        let people = people(1..=5);
        let _ = house.begin(&push, Begin { quota, ..fresh(&intents(&people)) }).await;
        let _ = house.record(&push, &[outcome(1, 1, DeliveryState::Sent)]).await;
        let stage = StageRecord {
            run_id: push.run_id.clone(),
            stage: StageName::new("push"),
            kind: "push_template".into(),
            table: Some(TableName::new("t")),
            status: StageStatus::Running,
            rows_in: 1,
            rows_out: 1,
            started_at: at(0),
            seconds: 2.0,
            api_calls: Default::default(),
            detail: serde_json::json!({}),
            error: None,
        };
        house.ledger.record_stage(&house.lease, &stage).await.unwrap();
        let of = (&stage.run_id, &stage.stage, stage.table.as_ref());
        let result = CheckResult { check: "not_null openid".into(), outcome: CheckOutcome::Passed, found: None };
        house.ledger.record_checks(&house.lease, of, &[result], at(0)).await.unwrap();
        let nightly = PipelineName::new("nightly");
        house.ledger.claim_fire(&nightly, at(0), at(0)).await.unwrap();
        house.ledger.settle_fire(&nightly, at(0), &FireOutcome::Run(push.run_id)).await.unwrap();
        let entry = AuditEntry {
            at: at(0),
            who: "ada".into(),
            command: "freeze".into(),
            run_id: Some(RunId::new("r1")),
            detail: "main".into(),
        };
        house.ledger.record_audit(&entry).await.unwrap();
        let suppression = NewSuppression {
            unionid: Some(UnionId::new("union-a")),
            openid: None,
            account: None,
            template_id: None,
            reason: "asked".into(),
            since: at(0),
            until: None,
        };
        house.ledger.add_suppressions(&[suppression]).await.unwrap();
        let event = NewCallback {
            account: main,
            openid: people[0].1.clone(),
            created_at: at(1),
            event: "subscribe".into(),
            event_key: String::new(),
            msgid: 0,
            status: None,
        };
        house.ledger.keep_callbacks(&[event], at(1)).await.unwrap();
        house
    }

    #[tokio::test]
    async fn every_table_reads_with_its_columns_full_and_empty() {
        let (full, empty) = (full_house().await, House::new().await);
        let push = full.ledger.every_push().await.unwrap().remove(0);
        for table in LiveTable::ALL {
            let begin = match table {
                LiveTable::Deliveries => LiveCursor::of_push(push.key),
                _ => LiveCursor::default(),
            };
            for (house, has_rows) in [(&full, true), (&empty, false)] {
                let (rows, next) = house.ledger.read_live(table, begin, 1000).await.unwrap();
                assert_eq!(!rows.is_empty(), has_rows, "{}", table.name());
                assert_eq!(next, None);
                let shape: Vec<_> = rows.columns.iter().map(|(name, v)| (name.as_str(), v.column_type())).collect();
                assert_eq!(shape, table.columns());
            }
        }
    }

    #[test]
    fn every_declared_column_is_read() {
        for table in LiveTable::ALL {
            let Some(spec) = crate::domain::tables::table_spec(table.name()) else { continue };
            for column in spec.columns.iter().filter(|column| column.name != "client_msg_id") {
                let is_read = table.columns().iter().any(|(name, _)| *name == column.name);
                assert!(is_read, "{}.{}", spec.name, column.name);
            }
        }
    }

    #[tokio::test]
    async fn chunks_of_deliveries_hold_everyone_once_and_in_flight_reads_as_pending() {
        let house = full_house().await;
        let push = house.ledger.every_push().await.unwrap().remove(0);
        let (mut cursor, mut seqs, mut states) = (Some(LiveCursor::of_push(push.key)), Vec::new(), Vec::new());
        while let Some(from) = cursor {
            let (rows, next) = house.ledger.read_live(LiveTable::Deliveries, from, 2).await.unwrap();
            for (name, values) in rows.columns {
                match (name.as_str(), values) {
                    ("seq", Values::Integer(values)) => seqs.extend(values.into_iter().flatten()),
                    ("state", Values::Text(values)) => states.extend(values.into_iter().flatten()),
                    _ => {}
                }
            }
            cursor = next;
        }
        assert_eq!(seqs, [1, 2, 3, 4, 5]);
        assert_eq!(states, ["sent", "pending", "pending", "pending", "pending"]);
    }

    #[tokio::test]
    async fn a_quota_day_reads_as_its_date() {
        let house = full_house().await;
        let (rows, _) = house.ledger.read_live(LiveTable::ApiCalls, LiveCursor::default(), 10).await.unwrap();
        let day = QuotaDay::of(at(0)).date();
        let expected = i32::try_from((day - NaiveDate::from_ymd_opt(1970, 1, 1).unwrap()).num_days()).unwrap();
        assert_eq!(rows.columns[0], ("date".to_owned(), Values::Date(vec![Some(expected)])));
    }
}
