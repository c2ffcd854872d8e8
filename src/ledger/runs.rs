//! Runs: one row per run of a pipeline, from its start to its end.

use chrono::NaiveDate;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::{Columns, micros, read_all};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{PipelineName, RunId, RunStatus};

/// A run as the ledger knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub run_id: RunId,
    pub pipeline: PipelineName,
    pub status: RunStatus,
    pub reason: Option<String>,
    pub waiting_until: Option<Timestamp>,
    /// `hand`, `schedule`, or `only`: one stage alone, which nobody continues.
    pub trigger: String,
    pub scheduled_for: Option<Timestamp>,
    /// The date in the workspace's zone that SQL sees as `$today`.
    pub today: NaiveDate,
    pub run_at: Timestamp,
    /// A JSON object.
    pub params: String,
    pub is_test: bool,
    /// 1, and one more each time the run goes on after it failed.
    pub attempt: u32,
    pub started_at: Timestamp,
    /// When it stopped for good or failed; nothing while it runs, waits or is halted.
    pub ended_at: Option<Timestamp>,
    /// Whether its tables were published.
    pub published: bool,
    pub cancel_requested: bool,
}

/// A run that is to begin.
#[derive(Debug, Clone)]
pub struct NewRun {
    pub run_id: RunId,
    pub pipeline: PipelineName,
    pub trigger: String,
    pub scheduled_for: Option<Timestamp>,
    pub today: NaiveDate,
    pub run_at: Timestamp,
    pub params: String,
    pub is_test: bool,
    pub started_at: Timestamp,
}

/// What a run becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct RunChange {
    pub status: RunStatus,
    pub reason: Option<String>,
    pub waiting_until: Option<Timestamp>,
}

const SELECT: &str =
    "select run_id, pipeline, status, reason, waiting_until, trigger_kind, scheduled_for, today, run_at,
    params, is_test, attempt, started_at, ended_at, published, cancel_requested from runs";

impl Ledger {
    /// Writes down a run that begins, as `running`.
    pub async fn begin_run(&self, lease: &Lease, new: NewRun) -> Result<Run, LedgerError> {
        const DOING: &str = "begin a run";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query(
            "insert into runs (run_id, pipeline, status, trigger_kind, scheduled_for, today, run_at, params, is_test,
                 attempt, started_at, fence)
             values ($1, $2, 'running', $3, $4, $5, $6, $7, $8, 1, $9, $10)",
        )
        .bind(new.run_id.as_str())
        .bind(new.pipeline.as_str())
        .bind(&new.trigger)
        .bind(micros(new.scheduled_for))
        .bind(new.today.to_string())
        .bind(to_micros(new.run_at))
        .bind(&new.params)
        .bind(new.is_test)
        .bind(to_micros(new.started_at))
        .bind(lease.fence)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        self.run(&new.run_id).await?.ok_or_else(|| LedgerError::OutOfStep { doing: DOING, why: "it is gone".into() })
    }

    /// The run of an id.
    pub async fn run(&self, run_id: &RunId) -> Result<Option<Run>, LedgerError> {
        Ok(self.select_runs("where run_id = $1", &[run_id.as_str()]).await?.pop())
    }

    /// The latest run of a pipeline, if it is one that `run` would continue: running, waiting, halted or failed.
    pub async fn unfinished_run(&self, pipeline: &PipelineName) -> Result<Option<Run>, LedgerError> {
        let tail = "where pipeline = $1 order by id desc limit 1";
        let latest = self.select_runs(tail, &[pipeline.as_str()]).await?.pop();
        Ok(latest.filter(|run| !run.status.is_finished()))
    }

    /// What a person means by RUN: the latest run of a pipeline of that name, else every run whose id begins so, latest
    /// first. An id in full is one run.
    pub async fn find_runs(&self, prefix_or_pipeline: &str) -> Result<Vec<Run>, LedgerError> {
        let tail = "where pipeline = $1 order by id desc limit 1";
        let of_pipeline = self.select_runs(tail, &[prefix_or_pipeline]).await?;
        if !of_pipeline.is_empty() {
            return Ok(of_pipeline);
        }
        let exact = self.select_runs("where run_id = $1", &[prefix_or_pipeline]).await?;
        if !exact.is_empty() {
            return Ok(exact);
        }
        let tail = "where substr(run_id, 1, length($1)) = $1 order by id desc limit 100";
        self.select_runs(tail, &[prefix_or_pipeline]).await
    }

    /// The latest run of a pipeline that is not made of another one's failures.
    pub async fn latest_own_run(&self, pipeline: &str) -> Result<Option<Run>, LedgerError> {
        let tail = "where pipeline = $1 and trigger_kind <> 'resend' order by id desc limit 1";
        Ok(self.select_runs(tail, &[pipeline]).await?.pop())
    }

    /// The latest runs, latest first.
    pub async fn latest_runs(&self, limit: u32, pipeline: Option<&PipelineName>) -> Result<Vec<Run>, LedgerError> {
        let rows =
            sqlx::query(AssertSqlSafe(format!("{SELECT} where $1 is null or pipeline = $1 order by id desc limit $2")))
                .bind(pipeline.map(PipelineName::as_str))
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .doing("list runs")?;
        read_all(rows, read_run)
    }

    /// Every run of one of these states, oldest first.
    pub async fn runs_with_status(&self, statuses: &[RunStatus]) -> Result<Vec<Run>, LedgerError> {
        let mut runs = Vec::new();
        for status in statuses {
            runs.extend(self.select_runs("where status = $1", &[status.as_str()]).await?);
        }
        runs.sort_by(|a, b| (a.started_at, &a.run_id).cmp(&(b.started_at, &b.run_id)));
        Ok(runs)
    }

    /// Changes a run's state. A run that goes on after it failed begins its next attempt; a change to anything but
    /// `running`, `waiting` or `halted` ends it.
    pub async fn set_run_status(
        &self,
        lease: &Lease,
        run_id: &RunId,
        change: RunChange,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "change a run's state";
        let goes_on = matches!(change.status, RunStatus::Running | RunStatus::Waiting | RunStatus::Halted);
        let mut tx = self.begin_held(lease, DOING).await?;
        let done = sqlx::query(
            "update runs set attempt = attempt + (case when status = 'failed' and $1 = 'running' then 1 else 0 end),
                 status = $1, reason = $2, waiting_until = $3, ended_at = $4, fence = $5
             where run_id = $6",
        )
        .bind(change.status.as_str())
        .bind(&change.reason)
        .bind(micros(change.waiting_until))
        .bind((!goes_on).then(|| to_micros(now)))
        .bind(lease.fence)
        .bind(run_id.as_str())
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 0 {
            return Err(LedgerError::OutOfStep { doing: DOING, why: format!("there is no run {run_id}") });
        }
        tx.commit().await.doing(DOING)
    }

    /// Lifts the halt of a run and of its pushes, for `who`: it waits, `resumed`, and the next `run` goes on. Leaves a
    /// line in the audit. False when the run was not halted.
    pub async fn lift_halt(&self, run_id: &RunId, who: &str, now: Timestamp) -> Result<bool, LedgerError> {
        const DOING: &str = "lift the halt of a run";
        let mut tx = self.begin(DOING).await?;
        let run = sqlx::query(
            "update runs set status = 'waiting', reason = 'resumed', waiting_until = null
             where run_id = $1 and status = 'halted'",
        )
        .bind(run_id.as_str())
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        let pushes = sqlx::query(
            "update pushes set state = 'waiting', reason = 'resumed', halted_errcode = null, waits_since = $2
             where run_id = $1 and state = 'halted'",
        )
        .bind(run_id.as_str())
        .bind(to_micros(now))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        let lifted = run.rows_affected() + pushes.rows_affected() > 0;
        if lifted {
            let entry = super::AuditEntry {
                at: now,
                who: who.to_owned(),
                command: "push resume".to_owned(),
                run_id: Some(run_id.clone()),
                detail: "halt lifted".to_owned(),
            };
            super::audit::insert(&mut tx, &entry).await?;
        }
        tx.commit().await.doing(DOING)?;
        Ok(lifted)
    }

    /// Asks whoever works on a run to cancel it; the worker reads [`Run::cancel_requested`]. False when it is over.
    pub async fn request_cancel(&self, run_id: &RunId) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "update runs set cancel_requested = true
             where run_id = $1 and status not in ('succeeded', 'partial', 'cancelled')",
        )
        .bind(run_id.as_str())
        .execute(&self.writer)
        .await
        .doing("ask for a run's cancelling")?;
        Ok(done.rows_affected() == 1)
    }

    /// The latest run of a pipeline that succeeded; test runs do not count.
    pub async fn last_success(&self, pipeline: &PipelineName) -> Result<Option<Run>, LedgerError> {
        let tail = "where pipeline = $1 and status = 'succeeded' and not is_test order by id desc limit 1";
        Ok(self.select_runs(tail, &[pipeline.as_str()]).await?.pop())
    }

    /// The latest successful run of a pipeline that was scheduled for, or by hand started at, `since` or later.
    pub async fn last_success_since(
        &self,
        pipeline: &PipelineName,
        since: Timestamp,
    ) -> Result<Option<Run>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{SELECT} where pipeline = $1 and status = 'succeeded' and not is_test
                 and coalesce(scheduled_for, started_at) >= $2 order by id desc limit 1"
        )))
        .bind(pipeline.as_str())
        .bind(to_micros(since))
        .fetch_all(&self.readers)
        .await
        .doing("look up a pipeline's last success")?;
        Ok(read_all(rows, read_run)?.pop())
    }

    /// The run that a scheduled time of a pipeline made.
    pub async fn run_scheduled_for(
        &self,
        pipeline: &PipelineName,
        scheduled_for: Timestamp,
    ) -> Result<Option<Run>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{SELECT} where pipeline = $1 and scheduled_for = $2 order by id limit 1"
        )))
        .bind(pipeline.as_str())
        .bind(to_micros(scheduled_for))
        .fetch_all(&self.readers)
        .await
        .doing("look up the run of a scheduled time")?;
        Ok(read_all(rows, read_run)?.pop())
    }

    /// How many runs of each pipeline are in each state.
    pub async fn count_runs(&self) -> Result<Vec<(PipelineName, RunStatus, u64)>, LedgerError> {
        let rows = sqlx::query("select pipeline, status, count(*) as runs from runs group by pipeline, status")
            .fetch_all(&self.readers)
            .await
            .doing("count runs")?;
        read_all(rows, |row| {
            let pipeline = PipelineName::new(row.text("pipeline")?);
            Ok((pipeline, row.word("status", RunStatus::parse)?, row.count("runs")?))
        })
    }

    /// `tail` is one of the constants above; what comes from outside is bound.
    async fn select_runs(&self, tail: &'static str, values: &[&str]) -> Result<Vec<Run>, LedgerError> {
        let mut query = sqlx::query(AssertSqlSafe(format!("{SELECT} {tail}")));
        for value in values {
            query = query.bind(*value);
        }
        read_all(query.fetch_all(&self.readers).await.doing("look up runs")?, read_run)
    }
}

fn read_run(row: &SqliteRow) -> Result<Run, LedgerError> {
    Ok(Run {
        run_id: RunId::new(row.text("run_id")?),
        pipeline: PipelineName::new(row.text("pipeline")?),
        status: row.word("status", RunStatus::parse)?,
        reason: row.optional_text("reason")?,
        waiting_until: row.optional_time("waiting_until")?,
        trigger: row.text("trigger_kind")?,
        scheduled_for: row.optional_time("scheduled_for")?,
        today: row.date("today")?,
        run_at: row.time("run_at")?,
        params: row.text("params")?,
        is_test: row.read("is_test")?,
        attempt: row.read("attempt")?,
        started_at: row.time("started_at")?,
        ended_at: row.optional_time("ended_at")?,
        published: row.read("published")?,
        cancel_requested: row.read("cancel_requested")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn change(status: RunStatus) -> RunChange {
        RunChange { status, reason: None, waiting_until: None }
    }

    #[tokio::test]
    async fn reopening_keeps_everything() {
        let house = House::new().await;
        let run = house.run("nightly-1").await;
        house.ledger.close().await;
        let reopened = Ledger::open(&house.path).await.unwrap();
        assert_eq!(reopened.run(&run.run_id).await.unwrap(), Some(run.clone()));
        assert_eq!(reopened.unfinished_run(&run.pipeline).await.unwrap(), Some(run));
    }

    #[tokio::test]
    async fn a_finished_run_is_not_continued_and_a_failed_one_is_with_its_next_attempt() {
        let house = House::new().await;
        let run = house.run("nightly-1").await;
        let ledger = &house.ledger;
        ledger.set_run_status(&house.lease, &run.run_id, change(RunStatus::Failed), at(60)).await.unwrap();
        assert_eq!(ledger.unfinished_run(&run.pipeline).await.unwrap().unwrap().ended_at, Some(at(60)));
        ledger.set_run_status(&house.lease, &run.run_id, change(RunStatus::Running), at(61)).await.unwrap();
        assert_eq!(ledger.run(&run.run_id).await.unwrap().unwrap().attempt, 2);
        ledger.set_run_status(&house.lease, &run.run_id, change(RunStatus::Succeeded), at(62)).await.unwrap();
        assert_eq!(ledger.unfinished_run(&run.pipeline).await.unwrap(), None);
        assert!(ledger.last_success_since(&run.pipeline, at(0)).await.unwrap().is_some());
        assert!(ledger.last_success_since(&run.pipeline, at(1)).await.unwrap().is_none());
        assert!(!ledger.request_cancel(&run.run_id).await.unwrap());
    }

    #[tokio::test]
    async fn the_run_of_a_scheduled_time_is_found_by_it() {
        let house = House::new().await;
        let by_hand = house.run("nightly-1").await;
        let new = NewRun {
            run_id: RunId::new("nightly-2"),
            pipeline: by_hand.pipeline.clone(),
            trigger: "schedule".into(),
            scheduled_for: Some(at(30)),
            today: by_hand.today,
            run_at: at(31),
            params: "{}".into(),
            is_test: false,
            started_at: at(31),
        };
        house.ledger.begin_run(&house.lease, new).await.unwrap();
        let found = house.ledger.run_scheduled_for(&by_hand.pipeline, at(30)).await.unwrap();
        assert_eq!(found.map(|run| run.run_id), Some(RunId::new("nightly-2")));
        assert_eq!(house.ledger.run_scheduled_for(&by_hand.pipeline, at(31)).await.unwrap(), None);
        assert_eq!(house.ledger.count_runs().await.unwrap(), [(by_hand.pipeline, RunStatus::Running, 2)]);
    }

    #[tokio::test]
    async fn a_run_is_found_by_pipeline_by_id_and_by_the_beginning_of_its_id() {
        let house = House::new().await;
        let first = house.run("20261123-a").await.run_id;
        let second = house.run("20261123-b").await.run_id;
        let found = async |text: &str| {
            house.ledger.find_runs(text).await.unwrap().into_iter().map(|run| run.run_id).collect::<Vec<_>>()
        };
        assert_eq!(found("nightly").await, std::slice::from_ref(&second));
        assert_eq!(found("20261123").await, [second, first.clone()]);
        assert_eq!(found("20261123-a").await, [first]);
        assert!(found("%").await.is_empty());
    }

    #[tokio::test]
    async fn a_lifted_halt_waits_for_the_next_run_and_is_in_the_audit() {
        let house = House::new().await;
        let run = house.run("nightly-1").await;
        assert!(!house.ledger.lift_halt(&run.run_id, "ada", at(1)).await.unwrap());
        house.ledger.set_run_status(&house.lease, &run.run_id, change(RunStatus::Halted), at(2)).await.unwrap();
        assert!(house.ledger.lift_halt(&run.run_id, "ada", at(3)).await.unwrap());
        let lifted = house.ledger.run(&run.run_id).await.unwrap().unwrap();
        assert_eq!((lifted.status, lifted.reason.as_deref()), (RunStatus::Waiting, Some("resumed")));
        assert_eq!(house.ledger.audit(10).await.unwrap()[0].who, "ada");
    }

    #[tokio::test]
    async fn a_lost_lease_cannot_change_a_run() {
        let house = House::new().await;
        let run = house.run("nightly-1").await;
        house.lose_lease().await;
        let error =
            house.ledger.set_run_status(&house.lease, &run.run_id, change(RunStatus::Failed), at(1)).await.unwrap_err();
        assert!(matches!(error, LedgerError::LeaseLost { .. }), "{error}");
        assert_eq!(house.ledger.run(&run.run_id).await.unwrap().unwrap().status, RunStatus::Running);
    }
}
