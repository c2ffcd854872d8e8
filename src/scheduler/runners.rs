//! Carries what the scheduler begins: each run in a task of its own, one of a pipeline at a time, a few in all.
//!
//! A run that cannot be carried (the ledger is busy, another process was quicker) is tried again by a later look, not here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conductor::{Conductor, RunRequest, Trigger, Watch};
use super::view::RunView;
use crate::domain::{PipelineName, RunStatus};
use crate::stage::Quiet;
use crate::telemetry::{Metrics, RUN_DURATION_SECONDS, RUNS_TOTAL, STAGES_TOTAL};

/// Runs that are carried at once; further ones wait for a place.
const PLACES: usize = 4;
/// Who orders what the scheduler begins, for `audit`.
pub const WHO: &str = "schedule";

/// The runs this process carries. Cheap to clone.
#[derive(Clone)]
pub struct Runners {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    busy: Arc<Mutex<BTreeSet<PipelineName>>>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Takes a pipeline off the list of busy ones, whatever ends its task.
struct Busy {
    pipeline: PipelineName,
    all: Arc<Mutex<BTreeSet<PipelineName>>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pipeline);
    }
}

impl Runners {
    /// `stop` lets every run settle and wait.
    pub fn new(metrics: Metrics, stop: CancellationToken) -> Self {
        Self {
            tasks: TaskTracker::new(),
            places: Arc::new(Semaphore::new(PLACES)),
            busy: Arc::default(),
            metrics,
            stop,
        }
    }

    /// Whether a run of the pipeline is carried here.
    pub fn is_busy(&self, pipeline: &PipelineName) -> bool {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).contains(pipeline)
    }

    /// Begins to carry a run, unless one of the pipeline is carried already or everything is to stop.
    pub fn start(&self, conductor: Conductor, pipeline: &PipelineName, trigger: Trigger) {
        if self.stop.is_cancelled()
            || !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(pipeline.clone())
        {
            return;
        }
        let busy = Busy { pipeline: pipeline.clone(), all: self.busy.clone() };
        let (runners, pipeline) = (self.clone(), pipeline.clone());
        self.tasks.spawn(async move {
            let _busy = busy;
            let permit = tokio::select! {
                permit = runners.places.acquire() => permit,
                () = runners.stop.cancelled() => return,
            };
            let _permit = permit.expect("the semaphore is never closed");
            runners.carry(&conductor, pipeline, trigger).await;
        });
    }

    /// Waits until every run has settled, `most` at the longest; says whether all did.
    pub async fn settle(&self, most: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(most, self.tasks.wait()).await.is_ok()
    }

    async fn carry(&self, conductor: &Conductor, pipeline: PipelineName, trigger: Trigger) {
        let request = RunRequest {
            pipeline,
            params: BTreeMap::new(),
            only: None,
            date: None,
            fresh: false,
            only_continue: false,
            accept_drop: None,
            is_test: false,
            trigger,
            who: WHO.to_owned(),
        };
        let watch = Watch { progress: &Quiet, confirm: None, stop: &self.stop };
        match conductor.run(&request, &watch).await {
            Ok(view) => {
                self.count(&view);
                if view.status == RunStatus::Succeeded && view.scheduled_for.is_some() {
                    // In a task: the pipeline is not busy any more.
                    let alerts = conductor.alerts.clone();
                    self.tasks.spawn(async move { alerts.heartbeat().await });
                }
            }
            Err(error) => tracing::error!(pipeline = %request.pipeline, error = %error, "a run could not be carried"),
        }
    }

    fn count(&self, view: &RunView) {
        let pipeline = view.pipeline.as_str();
        self.metrics.add(RUNS_TOTAL, &[("pipeline", pipeline), ("status", view.status.as_str())], 1);
        self.metrics.set(RUN_DURATION_SECONDS, &[("pipeline", pipeline)], view.seconds);
        for stage in &view.stages {
            let labels = [("pipeline", pipeline), ("stage", stage.name.as_str()), ("status", stage.status)];
            self.metrics.add(STAGES_TOTAL, &labels, 1);
        }
    }
}
