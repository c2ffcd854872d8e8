//! What goes on with a run that stopped: the command a person gives, and whether a person is needed at all.

use serde::Serialize;

use super::view::RunView;
use crate::domain::{RunStatus, StageStatus};
use crate::ledger::EVERY_ACCOUNT;
use crate::stage::enrich_unionids::REBOUND;

/// What to do about a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextStep {
    /// Commands in order; the last one goes on with the run.
    pub commands: Vec<String>,
    /// Whether it stays as it is until a person acts; otherwise `serve`, or the next `run`, goes on by itself.
    pub needs_person: bool,
}

/// The beginning of the reason of a push that nobody approved.
const WAITS_FOR_APPROVAL: &str = "waits for approval";
const NOT_CONFIRMED: &str = "not confirmed";

/// What the run's own words do not say.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Some process works on it now.
    pub is_carried_out: bool,
    /// A push of it is paused, whatever it waited for before.
    pub is_paused: bool,
    /// The stop switch that holds a push of it: its account, or `*`.
    pub frozen: Option<&'a str>,
    /// A push of it was approved.
    pub is_approved: bool,
}

/// The command that goes on with an unfinished run of a pipeline. Where somebody else has finished it meanwhile it begins
/// nothing: without `--continue` that would be a whole new campaign.
pub fn go_on(pipeline: impl std::fmt::Display) -> String {
    format!("lianbo run {pipeline} --continue")
}

/// What an operator types who means what a guard found: that the unionids of an account are all others now.
pub(super) fn accept(pipeline: impl std::fmt::Display) -> String {
    format!("lianbo run {pipeline} --accept-drop \"why\"")
}

/// Whether the detail of a stage says that only the operator can say whether an account was bound anew.
pub(super) fn waits_for_acceptance(detail: &serde_json::Value) -> bool {
    detail.get(REBOUND).and_then(serde_json::Value::as_array).is_some_and(|accounts| !accounts.is_empty())
}

/// What goes on with a run; nothing for one that came to its end, was cancelled, or is being carried out.
pub(super) fn next_step(view: &RunView, facts: Facts<'_>) -> Option<NextStep> {
    let again = go_on(&view.pipeline);
    let resume = format!("lianbo push resume {}", view.run_id);
    let step = |commands: Vec<String>, needs_person| Some(NextStep { commands, needs_person });
    let reason = view.reason.as_deref().unwrap_or_default();
    match view.status {
        RunStatus::Succeeded | RunStatus::Cancelled => None,
        RunStatus::Running if facts.is_carried_out => None,
        RunStatus::Running | RunStatus::Waiting if facts.is_paused => step(vec![resume, again], true),
        RunStatus::Waiting if facts.frozen.is_some() => step(vec![thaw(facts.frozen), again], true),
        RunStatus::Running => step(vec![again], false),
        RunStatus::Halted => step(vec![resume, again], true),
        RunStatus::Failed | RunStatus::Partial
            if view.stages.iter().any(|stage| waits_for_acceptance(&stage.detail)) =>
        {
            step(vec![accept(&view.pipeline)], true)
        }
        RunStatus::Failed => step(vec![again], true),
        // It is over: whatever runs is a new one.
        RunStatus::Partial => step(vec![format!("lianbo run {}", view.pipeline)], true),
        RunStatus::Waiting if reason.starts_with(WAITS_FOR_APPROVAL) && !facts.is_approved => {
            step(vec![approve(view), again], true)
        }
        RunStatus::Waiting if reason.starts_with(NOT_CONFIRMED) => step(vec![format!("{again} --yes")], true),
        RunStatus::Waiting => step(vec![again], false),
    }
}

fn thaw(frozen: Option<&str>) -> String {
    match frozen {
        Some(account) if account != EVERY_ACCOUNT => format!("lianbo thaw {account}"),
        _ => "lianbo thaw".to_owned(),
    }
}

fn approve(view: &RunView) -> String {
    let waiting = view.stages.iter().find(|stage| stage.status == StageStatus::Waiting.as_str());
    let hash = waiting.and_then(|stage| stage.detail.get("approval_hash")).and_then(serde_json::Value::as_str);
    format!("lianbo push approve {} --hash {}", view.run_id, hash.unwrap_or("HASH"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::from_micros;
    use crate::scheduler::view::StageView;

    fn view(status: RunStatus, reason: &str) -> RunView {
        RunView {
            run_id: "r1".to_owned(),
            pipeline: "campaign".to_owned(),
            status,
            process_gone: false,
            waiting_until: None,
            reason: Some(reason.to_owned()),
            trigger: "hand".to_owned(),
            scheduled_for: None,
            started_at: from_micros(0),
            ended_at: None,
            seconds: 1.0,
            next: None,
            stages: vec![StageView {
                name: "push".to_owned(),
                kind: "push_template".to_owned(),
                status: "waiting",
                rows_in: 0,
                rows_out: 0,
                seconds: 0.0,
                api_calls: std::collections::BTreeMap::new(),
                detail: json!({ "approval_hash": "abcd" }),
                error: None,
            }],
        }
    }

    const AT_REST: Facts<'_> = Facts { is_carried_out: false, is_paused: false, frozen: None, is_approved: false };

    fn commands(status: RunStatus, reason: &str) -> Vec<String> {
        next_step(&view(status, reason), AT_REST).map(|step| step.commands).unwrap_or_default()
    }

    #[test]
    fn whoever_waits_for_a_person_says_which_command_goes_on() {
        let run = "lianbo run campaign --continue";
        assert_eq!(commands(RunStatus::Halted, "40037"), ["lianbo push resume r1", run]);
        let approval = commands(RunStatus::Waiting, "waits for approval: …");
        assert_eq!(approval, ["lianbo push approve r1 --hash abcd", run]);
        let waits = view(RunStatus::Waiting, "waits for approval: …");
        assert!(!next_step(&waits, Facts { is_approved: true, ..AT_REST }).unwrap().needs_person);
        let paused =
            next_step(&view(RunStatus::Waiting, "until midnight"), Facts { is_paused: true, ..AT_REST }).unwrap();
        assert_eq!(paused.commands, ["lianbo push resume r1", run], "whatever it waited for before");
        let frozen =
            next_step(&view(RunStatus::Waiting, "frozen: …"), Facts { frozen: Some("main"), ..AT_REST }).unwrap();
        assert_eq!(frozen.commands, ["lianbo thaw main", run]);
        assert_eq!(commands(RunStatus::Waiting, "not confirmed; …"), ["lianbo run campaign --continue --yes"]);
    }

    #[test]
    fn an_account_that_was_bound_anew_is_accepted_or_it_stays_as_it_is() {
        let mut failed = view(RunStatus::Failed, "stage `profiles`: …");
        failed.stages[0].detail = json!({ "rebound": ["main"] });
        let step = next_step(&failed, AT_REST).unwrap();
        assert_eq!(
            (step.commands, step.needs_person),
            (vec!["lianbo run campaign --accept-drop \"why\"".to_owned()], true)
        );
        failed.stages[0].detail = json!({ "rebound": [] });
        assert_eq!(next_step(&failed, AT_REST).unwrap().commands, ["lianbo run campaign --continue"]);
    }

    #[test]
    fn a_wait_for_the_clock_needs_nobody() {
        let step = next_step(&view(RunStatus::Waiting, "the day's sends are used up"), AT_REST).unwrap();
        assert!(!step.needs_person);
        assert_eq!(next_step(&view(RunStatus::Succeeded, ""), AT_REST), None);
        assert_eq!(next_step(&view(RunStatus::Running, ""), Facts { is_carried_out: true, ..AT_REST }), None);
        assert!(next_step(&view(RunStatus::Running, ""), AT_REST).is_some(), "its process is gone");
    }
}
