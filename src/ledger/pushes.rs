//! Pushes: one row per push stage of a run, with its counts.
//!
//! The counts change only in the transaction that changes the deliveries they count. What is pending is never stored:
//! it is what is left of the recipients.

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::sql::{Columns, int, micros, read_all};
use super::{Lease, Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::crash::{self, CrashPoint};
use crate::domain::{AccountName, Counts, DeliveryState, PipelineName, RunId, StageName, TemplateId};

/// A push as the ledger knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    pub key: i64,
    pub run_id: RunId,
    pub pipeline: PipelineName,
    pub stage: StageName,
    pub account: AccountName,
    pub template_id: TemplateId,
    pub set_hash: String,
    pub set_path: String,
    pub message_hash: Option<String>,
    pub messages_path: Option<String>,
    pub frozen_at: Timestamp,
    /// Those of arm `send`.
    pub recipients: u64,
    /// `pending`, `sending`, `waiting`, `halted`, `paused`, `done` or `cancelled`.
    pub state: String,
    pub reason: Option<String>,
    pub counts: Counts,
    /// Recipients that have a row.
    pub claimed: u64,
    /// Every recipient whose seq is at most this has a row; those above have none.
    pub claimed_to: u64,
    /// When set, all recipients without a row are skipped for this.
    pub rest_reason: Option<String>,
    /// Sends a second, ordered while it goes on.
    pub rate_override: Option<f64>,
    pub is_paused: bool,
    pub is_test: bool,
    pub approved_by: Option<String>,
    pub approved_at: Option<Timestamp>,
    /// What was approved: anything else waits for approval again.
    pub approved_hash: Option<String>,
    /// The stop switch that holds it: its account, or `*`.
    pub frozen: Option<String>,
    pub first_send_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub halted_errcode: Option<i64>,
    /// Since when it waits or is halted; nothing while it sends.
    pub waits_since: Option<Timestamp>,
    /// Until when, where that is known.
    pub waits_until: Option<Timestamp>,
    /// Until when the finish events of its canary are waited for: all of it was sent then.
    pub canary_until: Option<Timestamp>,
    /// `passed` or `failed`, once its canary was judged.
    pub canary_verdict: Option<String>,
    /// Grows with every change of its deliveries' states.
    pub deliveries_version: i64,
    /// The file of this version of its deliveries, relative to the lake.
    pub written_path: Option<String>,
}

/// A push that is to begin.
#[derive(Debug, Clone)]
pub struct NewPush {
    pub run_id: RunId,
    pub pipeline: PipelineName,
    pub stage: StageName,
    pub account: AccountName,
    pub template_id: TemplateId,
    pub set_hash: String,
    pub set_path: String,
    pub frozen_at: Timestamp,
    pub recipients: u64,
    pub is_test: bool,
}

/// What a push becomes.
#[derive(Debug, Clone, Copy, Default)]
pub struct PushChange<'a> {
    pub state: &'a str,
    pub reason: Option<&'a str>,
    /// The code that halted it.
    pub halted_errcode: Option<i64>,
    /// For one that waits: until when, where that is known.
    pub until: Option<Timestamp>,
}

/// How much each public count of a push grows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    pub(super) sent: i64,
    pub(super) failed: i64,
    pub(super) skipped: i64,
    pub(super) held: i64,
    pub(super) unconfirmed: i64,
}

impl Growth {
    /// Counts `by` deliveries that came to `state` (or left it, when negative).
    pub(super) fn count(&mut self, state: DeliveryState, by: i64) {
        match state {
            DeliveryState::Pending | DeliveryState::Sending => {}
            DeliveryState::Sent => self.sent += by,
            DeliveryState::Failed => self.failed += by,
            DeliveryState::Skipped => self.skipped += by,
            DeliveryState::Held => self.held += by,
            DeliveryState::Unconfirmed => self.unconfirmed += by,
        }
    }

    /// Adds to the counts of a push, in the transaction that changed its deliveries.
    pub(super) async fn apply(self, connection: &mut SqliteConnection, push_key: i64) -> Result<(), LedgerError> {
        sqlx::query(
            "update pushes set sent = sent + $1, failed = failed + $2, skipped = skipped + $3, held = held + $4,
                 unconfirmed = unconfirmed + $5, deliveries_version = deliveries_version + 1
             where key = $6",
        )
        .bind(self.sent)
        .bind(self.failed)
        .bind(self.skipped)
        .bind(self.held)
        .bind(self.unconfirmed)
        .bind(push_key)
        .execute(connection)
        .await
        .doing("count deliveries")?;
        Ok(())
    }
}

const SELECT: &str = "select key, run_id, pipeline, stage, account, template_id, set_hash, set_path, message_hash,
    messages_path, frozen_at, recipients, state, reason, sent, failed, skipped, held, unconfirmed, claimed, claimed_to,
    rest_reason, rate_override, is_paused, is_test, approved_by, approved_at, first_send_at, started_at, ended_at,
    halted_errcode, approved_hash, waits_since, waits_until, canary_until, canary_verdict,
    deliveries_version, case when written_version = deliveries_version then written_path end as written_path,
    (select max(freezes.account) from freezes where freezes.account in (pushes.account, '*')) as frozen from pushes";

impl Ledger {
    /// Makes the push of a run's stage, `pending`, or returns the one there is: a stage pushes one set once.
    pub async fn create_push(&self, lease: &Lease, new: NewPush) -> Result<Push, LedgerError> {
        const DOING: &str = "create a push";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query(
            "insert into pushes (run_id, pipeline, stage, account, template_id, set_hash, set_path, frozen_at,
                 recipients, state, is_test)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending', $10)
             on conflict (run_id, stage) do nothing",
        )
        .bind(new.run_id.as_str())
        .bind(new.pipeline.as_str())
        .bind(new.stage.as_str())
        .bind(new.account.as_str())
        .bind(new.template_id.as_str())
        .bind(&new.set_hash)
        .bind(&new.set_path)
        .bind(to_micros(new.frozen_at))
        .bind(int(new.recipients))
        .bind(new.is_test)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        let push = self.push(&new.run_id, &new.stage).await?;
        push.ok_or_else(|| LedgerError::OutOfStep { doing: DOING, why: "it is gone".into() })
    }

    /// The push of a run's stage.
    pub async fn push(&self, run_id: &RunId, stage: &StageName) -> Result<Option<Push>, LedgerError> {
        let tail = "where run_id = $1 and stage = $2";
        Ok(self.select_pushes(tail, &[run_id.as_str(), stage.as_str()]).await?.pop())
    }

    /// The push of a key.
    pub async fn push_by_key(&self, push_key: i64) -> Result<Option<Push>, LedgerError> {
        let row = sqlx::query(AssertSqlSafe(format!("{SELECT} where key = $1")))
            .bind(push_key)
            .fetch_optional(&self.readers)
            .await
            .doing("look up a push")?;
        row.as_ref().map(read_push).transpose()
    }

    /// The pushes of a run, in the order they were made.
    pub async fn pushes_of(&self, run_id: &RunId) -> Result<Vec<Push>, LedgerError> {
        self.select_pushes("where run_id = $1 order by key", &[run_id.as_str()]).await
    }

    /// The latest pushes, latest first.
    pub async fn latest_pushes(&self, limit: u32) -> Result<Vec<Push>, LedgerError> {
        let rows = sqlx::query(AssertSqlSafe(format!("{SELECT} order by key desc limit $1")))
            .bind(limit)
            .fetch_all(&self.readers)
            .await
            .doing("list pushes")?;
        read_all(rows, read_push)
    }

    /// Every push, in the order they were made.
    pub async fn every_push(&self) -> Result<Vec<Push>, LedgerError> {
        self.select_pushes("order by key", &[]).await
    }

    /// Changes a push's state. The first `sending` starts it; with a reason it stands still. A wait that is only told anew
    /// keeps its beginning.
    pub async fn set_push_state(
        &self,
        lease: &Lease,
        push_key: i64,
        change: PushChange<'_>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "change a push's state";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query(
            "update pushes set state = $1, reason = $2, halted_errcode = $3,
                 started_at = case when $1 = 'sending' then coalesce(started_at, $4) else started_at end,
                 waits_since = case when $2 is null then null
                     when state = $1 and waits_since is not null then waits_since else $4 end,
                 waits_until = $6
             where key = $5",
        )
        .bind(change.state)
        .bind(change.reason)
        .bind(change.halted_errcode)
        .bind(to_micros(now))
        .bind(push_key)
        .bind(micros(change.until))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// Names the rendered messages of a push.
    pub async fn set_messages(
        &self,
        lease: &Lease,
        push_key: i64,
        message_hash: &str,
        messages_path: &str,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "name a push's messages";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query("update pushes set message_hash = $1, messages_path = $2 where key = $3")
            .bind(message_hash)
            .bind(messages_path)
            .bind(push_key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// Ends the claiming: who has no row counts as skipped for `reason` from now on, and so does every pending row. What
    /// is in flight keeps its state. Returns how many were skipped by this call.
    pub async fn skip_rest(
        &self,
        lease: &Lease,
        push_key: i64,
        reason: &str,
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        const DOING: &str = "skip the rest of a push";
        let mut tx = self.begin_held(lease, DOING).await?;
        let rows = sqlx::query(
            "update deliveries set state = 'skipped', reason = $1, retry_at = null, updated_at = $2
             where push_key = $3 and state = 'pending'",
        )
        .bind(reason)
        .bind(to_micros(now))
        .bind(push_key)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        let row = sqlx::query(
            "select case when rest_reason is null then recipients - claimed else 0 end as unclaimed
             from pushes where key = $1",
        )
        .bind(push_key)
        .fetch_one(&mut *tx)
        .await
        .doing(DOING)?;
        let skipped = row.count("unclaimed")? + rows.rows_affected();
        sqlx::query("update pushes set skipped = skipped + $1, rest_reason = coalesce(rest_reason, $2) where key = $3")
            .bind(int(skipped))
            .bind(reason)
            .bind(push_key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(skipped)
    }

    /// Ends a push as `done` or `cancelled`.
    pub async fn end_push(&self, lease: &Lease, push_key: i64, state: &str, now: Timestamp) -> Result<(), LedgerError> {
        const DOING: &str = "end a push";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query(
            "update pushes set state = $1, reason = null, waits_since = null, waits_until = null,
                 ended_at = coalesce(ended_at, $2)
             where key = $3",
        )
        .bind(state)
        .bind(to_micros(now))
        .bind(push_key)
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        crash::pass(CrashPoint::BeforePushEnd);
        tx.commit().await.doing(DOING)?;
        crash::pass(CrashPoint::AfterPushEnd);
        Ok(())
    }

    /// Takes an approval back: what was approved is no longer what would be sent.
    pub async fn void_approval(&self, lease: &Lease, push_key: i64) -> Result<(), LedgerError> {
        const DOING: &str = "take back the approval of a push";
        let mut tx = self.begin_held(lease, DOING).await?;
        sqlx::query("update pushes set approved_by = null, approved_at = null, approved_hash = null where key = $1")
            .bind(push_key)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        tx.commit().await.doing(DOING)
    }

    /// `tail` is one of the constants above; what comes from outside is bound.
    async fn select_pushes(&self, tail: &'static str, values: &[&str]) -> Result<Vec<Push>, LedgerError> {
        let mut query = sqlx::query(AssertSqlSafe(format!("{SELECT} {tail}")));
        for value in values {
            query = query.bind(*value);
        }
        read_all(query.fetch_all(&self.readers).await.doing("look up pushes")?, read_push)
    }
}

fn read_push(row: &SqliteRow) -> Result<Push, LedgerError> {
    Ok(Push {
        key: row.read("key")?,
        run_id: RunId::new(row.text("run_id")?),
        pipeline: PipelineName::new(row.text("pipeline")?),
        stage: StageName::new(row.text("stage")?),
        account: AccountName::new(row.text("account")?),
        template_id: TemplateId::new(row.text("template_id")?),
        set_hash: row.text("set_hash")?,
        set_path: row.text("set_path")?,
        message_hash: row.optional_text("message_hash")?,
        messages_path: row.optional_text("messages_path")?,
        frozen_at: row.time("frozen_at")?,
        recipients: row.count("recipients")?,
        state: row.text("state")?,
        reason: row.optional_text("reason")?,
        counts: read_counts(row)?,
        claimed: row.count("claimed")?,
        claimed_to: row.count("claimed_to")?,
        rest_reason: row.optional_text("rest_reason")?,
        rate_override: row.read("rate_override")?,
        is_paused: row.read("is_paused")?,
        is_test: row.read("is_test")?,
        approved_by: row.optional_text("approved_by")?,
        approved_at: row.optional_time("approved_at")?,
        approved_hash: row.optional_text("approved_hash")?,
        frozen: row.optional_text("frozen")?,
        first_send_at: row.optional_time("first_send_at")?,
        started_at: row.optional_time("started_at")?,
        ended_at: row.optional_time("ended_at")?,
        halted_errcode: row.read("halted_errcode")?,
        waits_since: row.optional_time("waits_since")?,
        waits_until: row.optional_time("waits_until")?,
        canary_until: row.optional_time("canary_until")?,
        canary_verdict: row.optional_text("canary_verdict")?,
        deliveries_version: row.read("deliveries_version")?,
        written_path: row.optional_text("written_path")?,
    })
}

fn read_counts(row: &SqliteRow) -> Result<Counts, LedgerError> {
    let mut counts = Counts {
        recipients: row.count("recipients")?,
        sent: row.count("sent")?,
        failed: row.count("failed")?,
        skipped: row.count("skipped")?,
        held: row.count("held")?,
        unconfirmed: row.count("unconfirmed")?,
        pending: 0,
    };
    let settled = counts.sent + counts.failed + counts.skipped + counts.held + counts.unconfirmed;
    counts.pending = counts.recipients.saturating_sub(settled);
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn a_stage_has_one_push_however_often_it_is_made() {
        let house = House::new().await;
        let push = house.push("r1", 10).await;
        assert_eq!(house.push_again("r1", 99).await, push);
        assert_eq!(house.ledger.latest_pushes(5).await.unwrap(), std::slice::from_ref(&push));
        assert_eq!(push.counts, Counts { recipients: 10, pending: 10, ..Counts::default() });
    }
}
