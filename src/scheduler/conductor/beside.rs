//! Details beside the walk: the one pair of stages of which the second may begin before the first has ended.
//!
//! The walk is sequential and the details are wide, so one after the other costs the sum of both. The second stage is
//! still carried out after the first, as always; it then finds most of its calls made.

use std::sync::Arc;
use std::time::Instant;

use super::Watch;
use super::stages::{Stages, execute};
use crate::clock::Timestamp;
use crate::config::settings::{Stage, StageKind};
use crate::stage::enrich_unionids::{Ahead, ask_ahead};
use crate::stage::news::WalkNews;
use crate::stage::{Hands, StageContext, StageError, StageOutcome};
use crate::wechat::CallCounts;

/// A stage that has begun.
pub(super) struct Begun {
    pub started_at: Timestamp,
    began: Instant,
    pub calls: Arc<CallCounts>,
    pub ahead: Option<Ahead>,
}

/// A walk that was carried out with another stage beside it.
pub(super) struct Walked {
    pub outcome: Result<StageOutcome, StageError>,
    /// Of the walk alone.
    pub seconds: f64,
    pub asked: Begun,
}

/// The stage that asks beside a walk.
pub(super) struct Asking<'a> {
    pub stage: &'a Stage,
    pub begun: Begun,
}

impl Begun {
    /// Begins now, with the calls that were made for it before a stop.
    pub fn now(hands: &Hands, calls: CallCounts) -> Self {
        Self { started_at: hands.clock.now(), began: hands.clock.monotonic(), calls: Arc::new(calls), ahead: None }
    }

    pub fn seconds(&self, hands: &Hands) -> f64 {
        (hands.clock.monotonic() - self.began).as_secs_f64()
    }
}

impl<'a> Stages<'a> {
    /// The stage whose calls may be made while `stage` walks: it reads what the walk makes and waits for nothing else.
    pub(super) fn goes_beside(&self, stage: &Stage) -> Option<&'a Stage> {
        let (StageKind::ExtractFollowers(_), Some(made), None) = (&stage.kind, &stage.table, &self.only) else {
            return None;
        };
        self.pipeline.stages.iter().find(|other| {
            let StageKind::EnrichUnionids(plan) = &other.kind else { return false };
            let waits_for = self.before.get(&other.name).into_iter().flatten();
            plan.from == *made && !self.is_done(other) && waits_for.into_iter().all(|name| *name == stage.name)
        })
    }

    /// Carries out the walk `cx`, begun as `begun`, with `asking` beside it.
    pub(super) async fn with_beside(
        &self,
        cx: &StageContext<'_>,
        begun: &Begun,
        asking: Asking<'_>,
        watch: &Watch<'_>,
    ) -> Walked {
        let StageKind::EnrichUnionids(plan) = &asking.stage.kind else {
            unreachable!("only such a stage goes beside a walk")
        };
        let mut asked = asking.begun;
        let news = WalkNews::default();
        let walking = StageContext { news: Some(&news), calls: cx.calls.clone(), ..*cx };
        let beside = self.context(asking.stage, asked.calls.clone(), watch);
        let walk = async {
            let outcome = execute(&walking).await;
            news.end_all();
            (outcome, begun.seconds(cx.hands))
        };
        let ((outcome, seconds), ahead) = tokio::join!(walk, ask_ahead(&beside, plan, &news));
        asked.ahead = Some(ahead.with_changes(news.into_changes()));
        Walked { outcome, seconds, asked }
    }
}
