//! Scheduled times. A scheduled time of a pipeline is a key: whoever writes it first has it, so that several
//! schedulers make one run of it, and a missed one is known.

use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{PipelineName, RunId};

/// A scheduled time that somebody has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fire {
    pub pipeline: PipelineName,
    pub scheduled_for: Timestamp,
    pub claimed_at: Timestamp,
    /// `run` or `skipped`; nothing while it is not settled.
    pub outcome: Option<String>,
    pub run_id: Option<RunId>,
    /// Why it was skipped; while it is not settled, what it waits for.
    pub reason: Option<String>,
}

/// What became of a scheduled time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FireOutcome {
    /// It made a run.
    Run(RunId),
    /// It made none, and why.
    Skipped(String),
}

impl Ledger {
    /// Takes a scheduled time; false when somebody has it already.
    pub async fn claim_fire(
        &self,
        pipeline: &PipelineName,
        scheduled_for: Timestamp,
        now: Timestamp,
    ) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "insert into fires (pipeline, scheduled_for, claimed_at) values ($1, $2, $3)
             on conflict (pipeline, scheduled_for) do nothing",
        )
        .bind(pipeline.as_str())
        .bind(to_micros(scheduled_for))
        .bind(to_micros(now))
        .execute(&self.writer)
        .await
        .doing("claim a scheduled time")?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes over a scheduled time whose claimer went away before it settled it. `seen` is what was read of it: if
    /// anybody has touched it since, this says false.
    pub async fn reclaim_fire(&self, seen: &Fire, now: Timestamp) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "update fires set claimed_at = $1
             where pipeline = $2 and scheduled_for = $3 and claimed_at = $4 and outcome is null",
        )
        .bind(to_micros(now))
        .bind(seen.pipeline.as_str())
        .bind(to_micros(seen.scheduled_for))
        .bind(to_micros(seen.claimed_at))
        .execute(&self.writer)
        .await
        .doing("take over a scheduled time")?;
        Ok(done.rows_affected() == 1)
    }

    /// Says what became of a scheduled time that was claimed.
    pub async fn settle_fire(
        &self,
        pipeline: &PipelineName,
        scheduled_for: Timestamp,
        outcome: &FireOutcome,
    ) -> Result<(), LedgerError> {
        let (word, run_id, reason) = match outcome {
            FireOutcome::Run(run_id) => ("run", Some(run_id.as_str()), None),
            FireOutcome::Skipped(reason) => ("skipped", None, Some(reason.as_str())),
        };
        sqlx::query(
            "update fires set outcome = $1, run_id = $2, reason = $3 where pipeline = $4 and scheduled_for = $5",
        )
        .bind(word)
        .bind(run_id)
        .bind(reason)
        .bind(pipeline.as_str())
        .bind(to_micros(scheduled_for))
        .execute(&self.writer)
        .await
        .doing("settle a scheduled time")?;
        Ok(())
    }

    /// Says what a scheduled time that is not settled waits for.
    pub async fn note_fire(
        &self,
        pipeline: &PipelineName,
        scheduled_for: Timestamp,
        waits_for: &str,
    ) -> Result<(), LedgerError> {
        sqlx::query("update fires set reason = $1 where pipeline = $2 and scheduled_for = $3 and outcome is null")
            .bind(waits_for)
            .bind(pipeline.as_str())
            .bind(to_micros(scheduled_for))
            .execute(&self.writer)
            .await
            .doing("note what a scheduled time waits for")?;
        Ok(())
    }

    /// The latest scheduled time of a pipeline that was claimed.
    pub async fn last_fire(&self, pipeline: &PipelineName) -> Result<Option<Timestamp>, LedgerError> {
        let row = sqlx::query("select max(scheduled_for) as scheduled_for from fires where pipeline = $1")
            .bind(pipeline.as_str())
            .fetch_one(&self.readers)
            .await
            .doing("look up a pipeline's last scheduled time")?;
        row.optional_time("scheduled_for")
    }

    /// When this schedule of a pipeline was first seen, which is now when it is new or its text has changed: catching
    /// up never reaches before that.
    pub async fn first_seen(
        &self,
        pipeline: &PipelineName,
        schedule: &str,
        now: Timestamp,
    ) -> Result<Timestamp, LedgerError> {
        const DOING: &str = "remember a schedule";
        let mut tx = self.begin(DOING).await?;
        sqlx::query(
            "insert into schedules (pipeline, schedule, first_seen_at) values ($1, $2, $3)
             on conflict (pipeline) do update set schedule = excluded.schedule, first_seen_at = excluded.first_seen_at
             where schedules.schedule <> excluded.schedule",
        )
        .bind(pipeline.as_str())
        .bind(schedule)
        .bind(to_micros(now))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        let row = sqlx::query("select first_seen_at from schedules where pipeline = $1")
            .bind(pipeline.as_str())
            .fetch_one(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        row.time("first_seen_at")
    }

    /// The latest scheduled times of all pipelines, latest first.
    pub async fn recent_fires(&self, limit: u32) -> Result<Vec<Fire>, LedgerError> {
        let rows = sqlx::query(
            "select pipeline, scheduled_for, claimed_at, outcome, run_id, reason
             from fires order by scheduled_for desc, id desc limit $1",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .doing("list scheduled times")?;
        read_all(rows, read_fire)
    }

    /// Scheduled times that were claimed and never settled, oldest first: what a crash may have left.
    pub async fn unsettled_fires(&self) -> Result<Vec<Fire>, LedgerError> {
        let rows = sqlx::query(
            "select pipeline, scheduled_for, claimed_at, outcome, run_id, reason
             from fires where outcome is null order by scheduled_for",
        )
        .fetch_all(&self.readers)
        .await
        .doing("list scheduled times")?;
        read_all(rows, read_fire)
    }
}

fn read_fire(row: &SqliteRow) -> Result<Fire, LedgerError> {
    Ok(Fire {
        pipeline: PipelineName::new(row.text("pipeline")?),
        scheduled_for: row.time("scheduled_for")?,
        claimed_at: row.time("claimed_at")?,
        outcome: row.optional_text("outcome")?,
        run_id: row.optional_text("run_id")?.map(RunId::new),
        reason: row.optional_text("reason")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn a_scheduled_time_is_had_by_one() {
        let house = House::new().await;
        let other = Ledger::open(&house.path).await.unwrap();
        let nightly = PipelineName::new("nightly");
        let (a, b) =
            tokio::join!(house.ledger.claim_fire(&nightly, at(0), at(1)), other.claim_fire(&nightly, at(0), at(1)));
        assert!(a.unwrap() ^ b.unwrap());
        assert_eq!(other.last_fire(&nightly).await.unwrap(), Some(at(0)));
        let left = other.unsettled_fires().await.unwrap();
        assert!(house.ledger.reclaim_fire(&left[0], at(100)).await.unwrap());
        assert!(!other.reclaim_fire(&left[0], at(101)).await.unwrap());
        other.note_fire(&nightly, at(0), "waits for `feeds`").await.unwrap();
        assert_eq!(other.unsettled_fires().await.unwrap()[0].reason.as_deref(), Some("waits for `feeds`"));
        other.settle_fire(&nightly, at(0), &FireOutcome::Skipped("a run is halted".into())).await.unwrap();
        assert!(other.unsettled_fires().await.unwrap().is_empty());
        other.note_fire(&nightly, at(0), "too late").await.unwrap();
        assert_eq!(other.recent_fires(5).await.unwrap()[0].reason.as_deref(), Some("a run is halted"));
    }

    #[tokio::test]
    async fn a_changed_schedule_is_seen_anew() {
        let house = House::new().await;
        let nightly = PipelineName::new("nightly");
        for (schedule, now, seen) in
            [("0 30 2 * * *", 1, 1), ("0 30 2 * * *", 5, 1), ("0 30 3 * * *", 9, 9), ("0 30 3 * * *", 10, 9)]
        {
            assert_eq!(house.ledger.first_seen(&nightly, schedule, at(now)).await.unwrap(), at(seen));
        }
    }
}
