//! A file that is late: `wait_until` gives it time until an hour of the day.
//!
//! Late is a file that is not there, or older than `max_age`. One that appears while we wait is taken once it stands still,
//! since whoever copies it may not be done.

use std::path::PathBuf;
use std::time::Duration;

use chrono::TimeDelta;

use super::{files_of, objects};
use crate::calendar;
use crate::clock::Timestamp;
use crate::config::settings::LoadUsers;
use crate::domain::BucketAddress;
use crate::exports::Object;
use crate::stage::{StageContext, StageError};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// The same at a bucket, whose service counts who asks.
const LOOK_AT_BUCKET: Duration = Duration::from_secs(10);
/// An hour of the day that is further off than this has passed: a run by hand at ten does not wait for three at night.
const FURTHEST: TimeDelta = TimeDelta::hours(12);

/// What is there: a file, or an object of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub name: PathBuf,
    /// When it was last modified.
    changed: Timestamp,
    bytes: u64,
    pub object: Option<Object>,
}

/// The files of a stage and when the newest was last modified, waiting for them as long as the stage says.
///
/// # Errors
///
/// [`StageError::Rule`] for files that are missing or too old, [`StageError::Export`] for a bucket that cannot be listed,
/// [`StageError::Interrupted`] when told to stop.
pub async fn awaited(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<(Vec<Look>, Timestamp), StageError> {
    let deadline = deadline(cx, plan);
    // None until something was late.
    let mut last_look: Option<Vec<Look>> = None;
    loop {
        let is_over = deadline.is_none_or(|deadline| deadline <= cx.hands.clock.now());
        match (look(cx, plan).await?, last_look.take()) {
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
        cx.pause(if plan.bucket.is_some() { LOOK_AT_BUCKET } else { LOOK }).await?;
    }
}

fn taken(found: Vec<Look>) -> (Vec<Look>, Timestamp) {
    let newest = found.iter().map(|look| look.changed).max().unwrap_or_default();
    (found, newest)
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
async fn look(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<Result<Vec<Look>, String>, StageError> {
    let found = match &plan.bucket {
        None => here(cx, plan),
        Some(address) => Ok(looks(address, objects::listed(cx, address).await?)),
    };
    Ok(found.and_then(|found| in_time(cx, plan, found)))
}

fn here(cx: &StageContext<'_>, plan: &LoadUsers) -> Result<Vec<Look>, String> {
    let mut found = Vec::new();
    for name in files_of(&cx.hands.settings.root, &plan.files) {
        let meta = std::fs::metadata(&name).and_then(|meta| Ok((meta.modified()?, meta.len())));
        let (changed, bytes) = meta.map_err(|error| format!("cannot read {}: {error}", name.display()))?;
        found.push(Look { name, changed: changed.into(), bytes, object: None });
    }
    Ok(found)
}

/// In the order in which files of these names would come.
fn looks(address: &BucketAddress, objects: Vec<Object>) -> Vec<Look> {
    let mut found: Vec<Look> = objects
        .into_iter()
        .map(|object| Look {
            name: PathBuf::from(address.object(&object.key)),
            changed: object.changed,
            bytes: object.bytes,
            object: Some(object),
        })
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn in_time(cx: &StageContext<'_>, plan: &LoadUsers, found: Vec<Look>) -> Result<Vec<Look>, String> {
    let Some(newest) = found.iter().map(|look| look.changed).max() else {
        let below = match plan.bucket {
            None => format!(" (below {})", cx.hands.settings.root.display()),
            Some(_) => String::new(),
        };
        return Err(format!("no file matches `{}`{below}; put the export there, or mend source.files", plan.files));
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
