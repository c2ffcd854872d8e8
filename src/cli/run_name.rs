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
    let (run, stage) = match name.split_once('/') {
        Some((run, stage)) => (run, Some(stage)),
        None => (name, None),
    };
    let run = find_run(hands, run).await?;
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
    let (run, mut pushes) = find_pushes(hands, name).await?;
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
    Ok(ledger.lease_holder(&format!("run:{}", run.pipeline)).await?.is_some())
}
