//! A file that is late: `wait_until` gives it time until an hour of the day.
//!
//! Late is a file that is not there, or older than `max_age`. One that appears while we wait is taken once it stands still,
//! since whoever copies it may not be done.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use chrono::TimeDelta;

use super::files_of;
use crate::calendar;
use crate::clock::Timestamp;
use crate::config::settings::LoadUsers;
use crate::stage::{StageContext, StageError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// An hour of the day that is further off than this has passed: a run by hand at ten does not wait for three at night.
const FURTHEST: TimeDelta = TimeDelta::hours(12);

/// A file, when it was last modified, and its size in bytes.
type Look = (PathBuf, SystemTime, u64);

/// The files of a stage and when the newest was last modified, waiting for them as long as the stage says.
///
/// # Errors
///
/// [`StageError::Rule`] for files that are missing or too old, [`StageError::Interrupted`] when told to stop.
pub async fn awaited(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<(Vec<PathBuf>, Timestamp), StageError> {
    let deadline = deadline(cx, plan);
    // None until something was late.
    let mut last_look: Option<Vec<Look>> = None;
    loop {
        let is_over = deadline.is_none_or(|deadline| deadline <= cx.hands.clock.now());
        match (look(cx, plan), last_look.take()) {
            (Ok(found), None) => return Ok(taken(found)),
            (Ok(found), Some(last)) if last == found || is_over => return Ok(taken(found)),
            (Ok(found), Some(_)) => last_look = Some(found),
            (Err(late), _) if is_over => return Err(StageError::Rule(with_wait(plan, late))),
            (Err(late), last) => {
                if last.is_none() {
                    tracing::info!(stage = %cx.stage.name, "{late}; it is waited for");
                }
                last_look = Some(Vec::new());
            }
        }
        cx.pause(LOOK).await?;
    }
}

fn taken(found: Vec<Look>) -> (Vec<PathBuf>, Timestamp) {
    let newest = found.iter().map(|(_, changed, _)| *changed).max().unwrap_or(SystemTime::UNIX_EPOCH);
    (found.into_iter().map(|(file, _, _)| file).collect(), newest.into())
}

fn with_wait(plan: &LoadUsers, late: String) -> String {
    match plan.wait_until {
        Some(time) => format!("{late} (wait_until = \"{}\" has passed)", time.format("%H:%M")),
        None => late,
    }
}

fn deadline(cx: &StageContext<'_>, plan: &LoadUsers) -> Option<Timestamp> {
    let planned = cx.run.scheduled_for.unwrap_or(cx.run.started_at);
    let at = calendar::next_time_of_day(plan.wait_until?, cx.hands.settings.timezone, planned);
    (at - planned <= FURTHEST).then_some(at)
}

/// The files as they are, by name, or why they cannot be taken.
fn look(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<Vec<Look>, String> {
    let root = &cx.hands.settings.root;
    let mut found = Vec::new();
    for file in files_of(root, &plan.files) {
        let meta = std::fs::metadata(&file).and_then(|meta| Ok((meta.modified()?, meta.len())));
        let (changed, bytes) = meta.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        found.push((file, changed, bytes));
    }
    let Some(newest) = found.iter().map(|(_, changed, _)| Timestamp::from(*changed)).max() else {
        return Err(format!(
            "no file matches `{}` (below {}); put the export there, or mend source.files",
            plan.files,
            root.display()
        ));
    };
    let age = (cx.hands.clock.now() - newest).to_std().unwrap_or_default();
    if plan.max_age.is_some_and(|max_age| age > max_age) {
        return Err(format!(
            "the newest file of `{}` was last modified {newest}, longer ago than max_age allows; ask for a fresh export",
            plan.files
        ));
    }
    Ok(found)
}
