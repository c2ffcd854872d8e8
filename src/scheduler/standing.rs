//! Where a pipeline's unfinished run stands, and what that means to the scheduler: whether a scheduled time may begin a
//! new one, and whether the run may go on by itself.
//!
//! [`Standing::of`] reads the ledger; the decisions are pure.

use chrono::TimeDelta;
use serde_json::Value;

use super::next_step::go_on;
use crate::clock::Timestamp;
use crate::config::settings::{OnFailure, Pipeline, Retry};
use crate::domain::{RunStatus, StageStatus};
use crate::ledger::{Ledger, LedgerError, Run, StageRecord};

/// The key of a failed stage's detail that says whether the failure may pass by itself.
pub const TRANSIENT: &str = "transient";
/// How the reasons of runs that wait for a person begin.
const WAITS_FOR_APPROVAL: &str = "waits for approval";
const PAUSED: &str = "paused";
const FROZEN: &str = "frozen";
const NOT_CONFIRMED: &str = "not confirmed";

/// An unfinished run, with what decides how it goes on.
#[derive(Debug, Clone)]
pub struct Standing {
    pub run: Run,
    /// Whether a living process carries it.
    pub is_carried: bool,
    pub is_paused: bool,
    /// Whether the stop switch of an account holds it.
    pub is_frozen: bool,
    pub is_approved: bool,
    /// Recipients of pushes that have begun who are still owed a message.
    pub owed: u64,
    /// Whether what failed may pass by itself.
    pub may_pass: bool,
}

impl Standing {
    /// The unfinished run of a pipeline; `None` when the next run begins anew.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub async fn of(ledger: &Ledger, pipeline: &Pipeline) -> Result<Option<Self>, LedgerError> {
        let Some(run) = ledger.unfinished_run(&pipeline.name).await? else { return Ok(None) };
        let is_carried = ledger.lease_holder(&super::conductor::lease_name(&pipeline.name)).await?.is_some();
        let pushes = ledger.pushes_of(&run.run_id).await?;
        let open = || pushes.iter().filter(|push| push.ended_at.is_none());
        let may_pass = run.status == RunStatus::Failed && may_pass(pipeline, &ledger.stages(&run.run_id).await?);
        Ok(Some(Self {
            is_carried,
            is_paused: open().any(|push| push.is_paused),
            is_frozen: open().any(|push| push.frozen.is_some()),
            is_approved: open().any(|push| push.approved_by.is_some()),
            owed: open().filter(|push| push.first_send_at.is_some()).map(|push| push.counts.pending).sum(),
            may_pass,
            run,
        }))
    }

    /// Why a scheduled time makes no new run; `None` when it does.
    pub fn stands_in_the_way(&self) -> Option<String> {
        let (run_id, pipeline) = (&self.run.run_id, &self.run.pipeline);
        let because = || self.run.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        match self.run.status {
            _ if self.is_carried => Some(format!("run {run_id} is still going on")),
            RunStatus::Running if self.run.trigger == super::conductor::ONLY => None,
            RunStatus::Running => Some(format!("run {run_id} lost its process and is being continued")),
            RunStatus::Waiting => Some(format!("run {run_id} waits{}", because())),
            RunStatus::Halted => Some(format!("run {run_id} is halted{}", because())),
            RunStatus::Failed if self.owed > 0 => Some(format!(
                "run {run_id} failed while {} recipients were still owed a message; finish it with `{}`, \
                 or cancel it with --fresh",
                self.owed,
                go_on(pipeline)
            )),
            RunStatus::Failed | RunStatus::Partial | RunStatus::Succeeded | RunStatus::Cancelled => None,
        }
    }

    /// What a person types who wants the next scheduled time to run.
    pub fn way_on(&self) -> String {
        match self.run.status {
            RunStatus::Halted => format!("lianbo push resume {}", self.run.run_id),
            RunStatus::Failed => go_on(&self.run.pipeline),
            _ => format!("lianbo runs {}", self.run.run_id),
        }
    }

    /// Whether the run goes on at `now` without anybody's doing.
    pub fn goes_on(&self, retry: Option<Retry>, now: Timestamp) -> bool {
        if self.is_carried {
            return false;
        }
        match self.run.status {
            RunStatus::Running => self.run.trigger != super::conductor::ONLY,
            RunStatus::Waiting => self.has_waited(now),
            RunStatus::Failed => retry.is_some_and(|retry| self.is_retried(retry, now)),
            RunStatus::Halted | RunStatus::Partial | RunStatus::Succeeded | RunStatus::Cancelled => false,
        }
    }

    fn has_waited(&self, now: Timestamp) -> bool {
        let reason = self.run.reason.as_deref().unwrap_or_default();
        match self.run.waiting_until {
            Some(until) => until <= now,
            None if reason.starts_with(WAITS_FOR_APPROVAL) => self.is_approved,
            None if reason.starts_with(FROZEN) => !self.is_frozen,
            None if reason.starts_with(PAUSED) => !self.is_paused,
            None => !reason.starts_with(NOT_CONFIRMED),
        }
    }

    /// Only what the scheduler began: a person who began a run sees it fail.
    fn is_retried(&self, retry: Retry, now: Timestamp) -> bool {
        let wait = TimeDelta::from_std(retry.wait).unwrap_or(TimeDelta::MAX);
        let is_time = self.run.ended_at.is_some_and(|ended| now - ended >= wait);
        self.may_pass && is_time && self.run.scheduled_for.is_some() && self.run.attempt <= retry.times
    }
}

/// Whether a failed run may go well when it simply goes on: every stage that made it fail may.
fn may_pass(pipeline: &Pipeline, records: &[StageRecord]) -> bool {
    let stops = |record: &&StageRecord| {
        let stage = pipeline.stages.iter().find(|stage| stage.name == record.stage);
        record.status == StageStatus::Failed && stage.is_some_and(|stage| stage.on_failure == OnFailure::Stop)
    };
    let mut failed = records.iter().filter(stops).peekable();
    failed.peek().is_some() && failed.all(|record| record.detail[TRANSIENT] == Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_micros;
    use crate::domain::{PipelineName, RunId};
    use std::time::Duration;

    fn at(seconds: i64) -> Timestamp {
        from_micros((1_795_400_000 + seconds) * 1_000_000)
    }

    /// A run that nobody carries.
    fn standing(status: RunStatus, reason: Option<&str>) -> Standing {
        let run = Run {
            run_id: RunId::new("20261124-ab12"),
            pipeline: PipelineName::new("nightly"),
            status,
            reason: reason.map(str::to_owned),
            waiting_until: None,
            trigger: "schedule".to_owned(),
            scheduled_for: Some(at(0)),
            today: at(0).date_naive(),
            run_at: at(0),
            params: "{}".to_owned(),
            is_test: false,
            attempt: 1,
            started_at: at(0),
            ended_at: Some(at(100)),
            published: false,
            cancel_requested: false,
        };
        Standing {
            run,
            is_carried: false,
            is_paused: false,
            is_frozen: false,
            is_approved: false,
            owed: 0,
            may_pass: false,
        }
    }

    const RETRY: Option<Retry> = Some(Retry { times: 2, wait: Duration::from_secs(60) });

    #[test]
    fn a_run_that_runs_waits_or_is_halted_stands_in_the_way_and_says_why() {
        let carried = Standing { is_carried: true, ..standing(RunStatus::Running, None) };
        assert!(carried.stands_in_the_way().unwrap().contains("20261124-ab12 is still going on"));
        let waits = standing(RunStatus::Waiting, Some("outside the push's window"));
        assert!(waits.stands_in_the_way().unwrap().ends_with("waits: outside the push's window"));
        let halted = standing(RunStatus::Halted, None);
        assert!(halted.stands_in_the_way().unwrap().ends_with("is halted"));
        assert_eq!(halted.way_on(), "lianbo push resume 20261124-ab12");
        assert!(standing(RunStatus::Running, None).stands_in_the_way().is_some());
    }

    #[test]
    fn a_failed_run_gives_way_unless_people_are_owed_a_message() {
        let failed = standing(RunStatus::Failed, None);
        assert_eq!(failed.stands_in_the_way(), None);
        let owing = Standing { owed: 7, ..failed };
        assert!(owing.stands_in_the_way().unwrap().contains("7 recipients"));
    }

    #[test]
    fn a_killed_run_of_one_stage_neither_goes_on_nor_stands_in_the_way() {
        let mut only = standing(RunStatus::Running, None);
        only.run.trigger = crate::scheduler::conductor::ONLY.to_owned();
        assert_eq!(only.stands_in_the_way(), None);
        assert!(!only.goes_on(RETRY, at(1_000)));
    }

    #[test]
    fn a_run_whose_process_is_gone_goes_on_and_one_that_is_carried_is_left_alone() {
        let lost = standing(RunStatus::Running, None);
        assert!(lost.goes_on(None, at(0)));
        assert!(!Standing { is_carried: true, ..lost }.goes_on(None, at(0)));
    }

    #[test]
    fn a_waiting_run_goes_on_when_its_time_comes() {
        let mut waits = standing(RunStatus::Waiting, Some("outside the push's window"));
        waits.run.waiting_until = Some(at(50));
        assert!(!waits.goes_on(None, at(49)));
        assert!(waits.goes_on(None, at(50)));
    }

    #[test]
    fn interrupted_and_lifted_runs_go_on_at_once() {
        for reason in ["interrupted", "resumed"] {
            assert!(standing(RunStatus::Waiting, Some(reason)).goes_on(None, at(0)), "{reason}");
        }
    }

    #[test]
    fn what_waits_for_a_person_goes_on_only_after_the_person() {
        let approval = standing(RunStatus::Waiting, Some("waits for approval: lianbo push approve X --hash Y"));
        assert!(!approval.goes_on(None, at(9_999)));
        assert!(Standing { is_approved: true, ..approval }.goes_on(None, at(0)));
        let lifted = standing(RunStatus::Waiting, Some("paused; lianbo push resume X goes on"));
        assert!(lifted.goes_on(None, at(0)));
        assert!(!Standing { is_paused: true, ..lifted }.goes_on(None, at(9_999)));
        let thawed = standing(RunStatus::Waiting, Some("frozen: account `main` is; lianbo thaw main lifts it"));
        assert!(thawed.goes_on(None, at(0)));
        assert!(!Standing { is_frozen: true, ..thawed }.goes_on(None, at(9_999)));
        assert!(!standing(RunStatus::Waiting, Some("not confirmed; lianbo run x goes on")).goes_on(None, at(9_999)));
        assert!(!standing(RunStatus::Halted, None).goes_on(RETRY, at(9_999)));
    }

    #[test]
    fn what_may_pass_by_itself_is_tried_again_after_the_wait_and_so_often() {
        let failed = Standing { may_pass: true, ..standing(RunStatus::Failed, Some("stage `followers`: no answer")) };
        assert!(!failed.goes_on(RETRY, at(159)));
        assert!(failed.goes_on(RETRY, at(160)));
        assert!(!failed.goes_on(None, at(160)), "without `retry` nothing is tried again");
        let mut last = failed.clone();
        last.run.attempt = 2;
        assert!(last.goes_on(RETRY, at(160)));
        last.run.attempt = 3;
        assert!(!last.goes_on(RETRY, at(160)));
        let mut by_hand = failed.clone();
        by_hand.run.scheduled_for = None;
        assert!(!by_hand.goes_on(RETRY, at(160)));
        assert!(!Standing { may_pass: false, ..failed }.goes_on(RETRY, at(160)));
    }
}
