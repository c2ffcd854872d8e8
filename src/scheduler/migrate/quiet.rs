//! That nothing of the account goes on while its tables are changed: every pipeline that could make or use them is held, and
//! what such a pipeline left unfinished is of the openids of before. A push whose people wait is for a person to end; a run
//! that owes nobody anything is cancelled, and that only when every answer is there: what stops before has cost nobody a run.

use std::time::Duration;

use super::report::{Report, Stop};
use super::{Held, Holding, Moving, RunError};
use crate::config::settings::{Pipeline, StageKind};
use crate::domain::AccountName;
use crate::scheduler::conductor::lease_name;
use crate::stage::StageError;

/// How often somebody who waits looks whether the pipelines are free.
const LOOK: Duration = Duration::from_millis(500);

/// Holds the account's pipelines now, when nobody is owed a message. Changes nothing.
pub(super) async fn now(moving: &Moving<'_>) -> Result<Result<Held, Stop>, RunError> {
    match hold(moving).await? {
        Holding::All(held) => settle(moving, held, None).await,
        Holding::Taken(lease) => {
            let pipeline = lease.strip_prefix("run:").unwrap_or(&lease);
            let reason = format!(
                "pipeline `{pipeline}` runs now, and works with the openids of before: wait for its end, or stop it, and give the \
                 command again"
            );
            Ok(Err(Stop::After { reason, commands: vec![format!("lianbo runs {pipeline}")] }))
        }
    }
}

/// Holds them when whoever runs has come to an end: the answers are all there. What is unfinished is cancelled.
pub(super) async fn wait(moving: &Moving<'_>, report: &mut Report) -> Result<Result<Held, Stop>, RunError> {
    let mut was_told = false;
    loop {
        match hold(moving).await? {
            Holding::All(held) => return settle(moving, held, Some(report)).await,
            Holding::Taken(lease) if !was_told => {
                was_told = true;
                tracing::info!(lease, "every answer is here: waiting for the end of `{lease}`");
            }
            Holding::Taken(_) => {}
        }
        tokio::select! {
            () = moving.hands().clock.sleep(LOOK) => {}
            () = moving.stop().cancelled() => return Err(StageError::Interrupted.into()),
        }
    }
}

async fn hold(moving: &Moving<'_>) -> Result<Holding, RunError> {
    let pipelines = moving.hands().settings.pipelines.values();
    let names = pipelines.filter(|pipeline| concerns(pipeline, &moving.request.account));
    let leases = names.map(|pipeline| lease_name(&pipeline.name)).collect();
    Ok(moving.conductor.hold(leases, moving.stop().clone()).await?)
}

/// Whether a pipeline makes tables with the account's openids, or sends to them.
fn concerns(pipeline: &Pipeline, account: &AccountName) -> bool {
    pipeline.stages.iter().any(|stage| match &stage.kind {
        StageKind::ExtractFollowers(plan) => plan.accounts.contains(account),
        StageKind::EnrichUnionids(plan) => plan.accounts.contains(account),
        StageKind::MaterializeRecipients(plan) => plan.account == *account,
        StageKind::PushTemplate(plan) => plan.account == *account,
        StageKind::LoadUsers(_) => false,
        StageKind::JoinIdentities(_) | StageKind::MeasureCoverage(_) | StageKind::Sql(_) | StageKind::Publish(_) => {
            true
        }
    })
}

/// Cancels the unfinished runs where there is a report to name them in.
async fn settle(
    moving: &Moving<'_>,
    held: Held,
    cancelled: Option<&mut Report>,
) -> Result<Result<Held, Stop>, RunError> {
    match settle_held(moving, &held, cancelled).await {
        Ok(None) => Ok(Ok(held)),
        Ok(Some(stop)) => {
            held.release().await?;
            Ok(Err(stop))
        }
        Err(error) => {
            held.release().await?;
            Err(error)
        }
    }
}

async fn settle_held(
    moving: &Moving<'_>,
    held: &Held,
    mut cancelled: Option<&mut Report>,
) -> Result<Option<Stop>, RunError> {
    let (ledger, account) = (&moving.hands().ledger, &moving.request.account);
    let open: Vec<_> = ledger.every_push().await?.into_iter().filter(|push| push.ended_at.is_none()).collect();
    if let Some(push) = open.iter().find(|push| push.account == *account) {
        return Ok(Some(unsent(push)));
    }
    for pipeline in moving.hands().settings.pipelines.values().filter(|pipeline| concerns(pipeline, account)) {
        let Some(run) = ledger.unfinished_run(&pipeline.name).await? else { continue };
        if let Some(push) = open.iter().find(|push| push.run_id == run.run_id) {
            return Ok(Some(unsent(push)));
        }
        if let Some(report) = cancelled.as_deref_mut() {
            moving.conductor.cancel_held(held, &run, &moving.request.who).await?;
            report.cancelled_runs.push(run.run_id);
        }
    }
    Ok(None)
}

fn unsent(push: &crate::ledger::Push) -> Stop {
    let reason = format!(
        "push {}/{} of pipeline `{}` is not over, and {} people of its set are owed a message under the openids of before: they cannot \
         be reached under these any more. Cancel it, and send to a new set after the move",
        push.run_id, push.stage, push.pipeline, push.counts.pending
    );
    Stop::After { reason, commands: vec![format!("lianbo push cancel {}", push.run_id)] }
}
