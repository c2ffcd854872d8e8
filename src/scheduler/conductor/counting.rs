//! The calls of stages that go on, noted while they are made: a run that is stopped, killed and continued counts all of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::stages::Stages;
use crate::domain::StageName;
use crate::wechat::CallCounts;

/// A process that is killed leaves the calls of this long uncounted.
const EVERY: Duration = Duration::from_millis(250);

/// A stage and its calls.
pub(super) type Counted = (StageName, Arc<CallCounts>);

impl Stages<'_> {
    /// Notes them until it is dropped.
    pub(super) async fn note_calls(&self, stages: &[Counted]) -> Infallible {
        let hands = &self.conductor.hands;
        let mut noted: Vec<_> = stages.iter().map(|(_, calls)| calls.snapshot()).collect();
        loop {
            hands.clock.sleep(EVERY).await;
            for ((stage, calls), noted) in stages.iter().zip(&mut noted) {
                let now = calls.snapshot();
                if now == *noted {
                    continue;
                }
                match hands.ledger.note_stage_calls(self.lease, (&self.run.run_id, stage), &now).await {
                    Ok(()) => *noted = now,
                    // The stage itself meets it too, and its end writes them once more.
                    Err(error) => tracing::debug!(error = %error, "calls could not be noted"),
                }
            }
        }
    }

    /// The counts that a stage goes on from.
    pub(super) fn counts_of(&self, stage: &StageName) -> CallCounts {
        CallCounts::going_on_from(self.calls_before.get(stage).unwrap_or(&Default::default()))
    }
}
