//! What a person means by RUN: an id, its beginning, or a pipeline's name (its latest run); `RUN/STAGE` for one push.

use super::exit::Failure;
use crate::config::nearest;
use crate::domain::PipelineName;
use crate::ledger::{Ledger, Push, Run};
use crate::stage::Hands;

/// Runs shown when a beginning fits several.
const SHOWN: usize = 5;

/// The one run of that name.
///
/// # Errors
///
/// [`Failure::Usage`] when no run or several have it.
pub async fn find_run(hands: &Hands, name: &str) -> Result<Run, Failure> {
    let mut found = hands.ledger.find_runs(name).await?;
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Failure::Usage(unknown(hands, name))),
        many => {
            let ids: Vec<&str> = found.iter().take(SHOWN).map(|run| run.run_id.as_str()).collect();
            let more = if many > SHOWN { ", …" } else { "" };
            Err(Failure::Usage(format!("{many} runs begin with `{name}`: {}{more}", ids.join(", "))))
        }
    }
}

fn unknown(hands: &Hands, name: &str) -> String {
    let mut pipelines = hands.settings.pipelines.keys().map(PipelineName::as_str);
    if pipelines.clone().any(|own| own == name) {
        return format!("pipeline `{name}` has not run yet; begin with `lianbo run {name}`");
    }
    match nearest(name, pipelines.by_ref()) {
        Some(near) => format!("there is no run or pipeline `{name}`; did you mean `{near}`?"),
        None => format!("there is no run or pipeline `{name}`; `lianbo runs` lists the runs"),
    }
}

/// A run and those of its pushes that are meant: all, or the one of `RUN/STAGE`.
///
/// # Errors
///
/// [`Failure::Usage`] as [`find_run`], and when the run has no such push.
pub async fn find_pushes(hands: &Hands, name: &str) -> Result<(Run, Vec<Push>), Failure> {
    let run = find_run(hands, split(name).0).await?;
    pushes_of(hands, run, split(name).1).await
}

/// The same for who asks what became of a push: a pipeline's name is its latest run that is not made of the failures of
/// another one. Orders are for whatever goes on, and take the latest.
///
/// # Errors
///
/// As [`find_pushes`].
pub async fn find_own_pushes(hands: &Hands, name: &str) -> Result<(Run, Vec<Push>), Failure> {
    let (run, stage) = split(name);
    match hands.ledger.latest_own_run(run).await? {
        Some(own) => pushes_of(hands, own, stage).await,
        None => find_pushes(hands, name).await,
    }
}

/// RUN and, where it is named, STAGE.
fn split(name: &str) -> (&str, Option<&str>) {
    name.split_once('/').map_or((name, None), |(run, stage)| (run, Some(stage)))
}

async fn pushes_of(hands: &Hands, run: Run, stage: Option<&str>) -> Result<(Run, Vec<Push>), Failure> {
    let mut pushes = hands.ledger.pushes_of(&run.run_id).await?;
    if let Some(stage) = stage {
        let known: Vec<String> = pushes.iter().map(|push| format!("{}/{}", run.run_id, push.stage)).collect();
        pushes.retain(|push| push.stage.as_str() == stage);
        if pushes.is_empty() && !known.is_empty() {
            let known = known.join(", ");
            return Err(Failure::Usage(format!("run {} has no push `{stage}`; there is {known}", run.run_id)));
        }
    }
    if pushes.is_empty() {
        return Err(Failure::Usage(format!(
            "run {} of `{}` has no push yet: nothing is frozen; `lianbo runs {0}` shows how far it came",
            run.run_id, run.pipeline
        )));
    }
    Ok((run, pushes))
}

/// The one push that is meant.
///
/// # Errors
///
/// As [`find_pushes`], and when the run has several and none is named.
pub async fn find_push(hands: &Hands, name: &str) -> Result<(Run, Push), Failure> {
    only_one(find_pushes(hands, name).await?)
}

/// The same, as [`find_own_pushes`] understands the name.
///
/// # Errors
///
/// As [`find_push`].
pub async fn find_own_push(hands: &Hands, name: &str) -> Result<(Run, Push), Failure> {
    only_one(find_own_pushes(hands, name).await?)
}

fn only_one((run, mut pushes): (Run, Vec<Push>)) -> Result<(Run, Push), Failure> {
    if pushes.len() > 1 {
        let known: Vec<String> = pushes.iter().map(|push| format!("{}/{}", run.run_id, push.stage)).collect();
        return Err(Failure::Usage(format!("run {} has several pushes; name one: {}", run.run_id, known.join(", "))));
    }
    Ok((run, pushes.remove(0)))
}

/// Whether some process carries this run out now; one that only says `running` lost its process.
///
/// # Errors
///
/// [`Failure::Other`] when the ledger cannot be read.
pub async fn is_carried_out(ledger: &Ledger, run: &Run) -> Result<bool, Failure> {
    Ok(ledger.lease_holder(&crate::scheduler::conductor::lease_name(&run.pipeline)).await?.is_some())
}
