//! A push as it is shown: its funnel from the SELECT's rows to each fate, the codes WeChat gave, its speed, and when it
//! will be done. The same value for people and for `--json`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::canary_view::CanaryView;
use crate::clock::Timestamp;
use crate::config::settings::{PushTemplate, StageKind};
use crate::domain::{Counts, RunStatus};
use crate::ledger::{DeliveredCounts, Ledger, LedgerError, Push, Run, StageRecord};
use crate::stage::Hands;
use crate::stage::push_template::approval_hash;
use crate::wechat::lookup_code;

/// Buckets of the rate over time, at most about so many.
const MOST_BUCKETS: i64 = 48;
/// The rate now is that of so many seconds.
const NOW_SECONDS: i64 = 10;

/// A push with what became of its recipients.
#[derive(Debug, Clone, Serialize)]
pub struct PushView {
    pub run_id: String,
    pub pipeline: String,
    pub stage: String,
    pub account: String,
    pub template_id: String,
    pub is_test: bool,
    /// `pending`, `sending`, `waiting`, `paused`, `halted`, `done` or `cancelled`.
    pub state: String,
    pub reason: Option<String>,
    pub run_status: RunStatus,
    /// Until when it waits, where that is known.
    pub waiting_until: Option<Timestamp>,
    /// Since when it waits, is halted, or is held up while it sends.
    pub waits_since: Option<Timestamp>,
    /// Whether some process works on its run now.
    pub is_carried_out: bool,
    pub set_hash: String,
    pub message_hash: Option<String>,
    /// What `push approve` approves: set, template, texts, rate and window. `None`: not frozen yet, or its stage is gone.
    pub approval_hash: Option<String>,
    /// The stop switch that holds it: its account, or `*`.
    pub frozen: Option<String>,
    pub approved_by: Option<String>,
    pub approved_at: Option<Timestamp>,
    pub frozen_at: Timestamp,
    pub first_send_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// Rows that the SELECT gave.
    pub given: Option<u64>,
    /// Of these, people not in the set, by reason.
    pub left_out: BTreeMap<String, u64>,
    /// In the set and kept back.
    pub holdout: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Of those sent, what WeChat said became of them.
    pub delivered: DeliveredCounts,
    /// The push whose failures it sends to again, as `RUN/STAGE`.
    pub resend_of: Option<String>,
    /// The runs that send to its own failures again.
    pub resends: Vec<String>,
    /// The same with how each stands.
    pub resent_by: Vec<ResendView>,
    pub errcodes: Vec<CodeView>,
    /// Its canary, where it has one.
    pub canary: Option<CanaryView>,
    pub rate: RateView,
    /// At the rate of now; at the set rate while nothing is sent. `None` when nobody is pending.
    pub seconds_left: Option<f64>,
    pub halted_errcode: Option<i64>,
}

/// A run that sends to the failures of a push again.
#[derive(Debug, Clone, Serialize)]
pub struct ResendView {
    pub run_id: String,
    pub status: RunStatus,
}

/// How many recipients ended, or were put back, with a reason or a code.
#[derive(Debug, Clone, Serialize)]
pub struct CodeView {
    pub state: &'static str,
    pub reason: Option<String>,
    pub errcode: Option<i64>,
    pub people: u64,
    pub meaning: Option<&'static str>,
    pub advice: Option<&'static str>,
}

/// How fast it sends, in messages a second.
#[derive(Debug, Clone, Serialize)]
pub struct RateView {
    /// As the pipeline says, or as ordered for this push.
    pub set: Option<f64>,
    pub is_ordered: bool,
    /// Over the last ten seconds; `None` while nothing is sent.
    pub now: Option<f64>,
    pub bucket_seconds: u32,
    /// Messages per bucket, from the first send on, empty buckets included.
    pub sent: Vec<u64>,
}

impl PushView {
    /// A push as it stands now.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub async fn of(hands: &Hands, run: &Run, push: Push, now: Timestamp) -> Result<Self, LedgerError> {
        let ledger = &hands.ledger;
        let plan = plan(hands, &push);
        let set = match plan {
            Some(plan) => ledger.stages(&run.run_id).await?.into_iter().find(|stage| stage.stage == plan.recipients),
            None => None,
        };
        let is_carried_out = ledger.lease_holder(&super::conductor::lease_name(&run.pipeline)).await?.is_some();
        let rate = rate(ledger, &push, plan, (is_carried_out, now)).await?;
        let speed = rate.now.or(rate.set).filter(|speed| *speed > 0.0);
        #[expect(clippy::cast_precision_loss, reason = "a forecast")]
        let seconds_left = speed.filter(|_| push.counts.pending > 0).map(|speed| push.counts.pending as f64 / speed);
        let codes = ledger.errcode_counts(push.key).await?.into_iter();
        let resends = ledger.resends_of(&push).await?;
        let mut resent_by = Vec::with_capacity(resends.len());
        for run_id in &resends {
            let run = ledger.run(run_id).await?;
            resent_by.extend(run.map(|run| ResendView { run_id: run_id.to_string(), status: run.status }));
        }
        let resend_of = ledger.resend_of(&push).await?;
        let canary = CanaryView::of(ledger, plan, &push).await?;
        Ok(Self {
            run_id: run.run_id.to_string(),
            pipeline: run.pipeline.to_string(),
            stage: push.stage.to_string(),
            account: push.account.to_string(),
            template_id: push.template_id.as_str().to_owned(),
            is_test: push.is_test,
            state: if push.is_paused && push.ended_at.is_none() { "paused".to_owned() } else { push.state.clone() },
            reason: push.reason.clone(),
            run_status: run.status,
            waiting_until: push.waits_until.or(run.waiting_until).filter(|_| push.ended_at.is_none()),
            waits_since: push.waits_since,
            is_carried_out,
            approval_hash: plan.and_then(|plan| approval_hash(plan, &push)),
            set_hash: push.set_hash,
            message_hash: push.message_hash,
            frozen: push.frozen.filter(|_| push.ended_at.is_none()),
            approved_by: push.approved_by,
            approved_at: push.approved_at,
            frozen_at: push.frozen_at,
            first_send_at: push.first_send_at,
            ended_at: push.ended_at,
            given: set.as_ref().and_then(|set| set.detail.get("given")).and_then(Value::as_u64),
            left_out: set.as_ref().map(left_out).unwrap_or_default(),
            holdout: set.as_ref().and_then(|set| set.detail.get("holdout")).and_then(Value::as_u64).unwrap_or(0),
            counts: push.counts,
            delivered: ledger.delivered_counts(push.key).await?,
            resend_of,
            resends: resends.iter().map(ToString::to_string).collect(),
            resent_by,
            errcodes: codes
                .map(|code| CodeView {
                    state: if code.state.is_settled() { code.state.as_str() } else { "pending" },
                    reason: code.reason,
                    errcode: code.errcode,
                    people: code.n,
                    meaning: code.errcode.and_then(lookup_code).map(|code| code.meaning),
                    advice: code.errcode.and_then(lookup_code).map(|code| code.advice),
                })
                .collect(),
            canary,
            rate,
            seconds_left,
            halted_errcode: push.halted_errcode,
        })
    }
}

/// The push's stage in the pipeline as it is configured now; nothing when it was renamed or taken out.
pub fn plan<'a>(hands: &'a Hands, push: &Push) -> Option<&'a PushTemplate> {
    let pipeline = hands.settings.pipelines.get(&push.pipeline)?;
    pipeline.stages.iter().find(|stage| stage.name == push.stage).and_then(|stage| match &stage.kind {
        StageKind::PushTemplate(plan) => Some(plan.as_ref()),
        _ => None,
    })
}

fn left_out(set: &StageRecord) -> BTreeMap<String, u64> {
    let reasons = set.detail.get("left_out").and_then(Value::as_object).into_iter().flatten();
    reasons.map(|(reason, people)| (reason.clone(), people.as_u64().unwrap_or(0))).collect()
}

async fn rate(
    ledger: &Ledger,
    push: &Push,
    plan: Option<&PushTemplate>,
    (is_carried_out, now): (bool, Timestamp),
) -> Result<RateView, LedgerError> {
    let seconds = ledger.sent_rate(push.key, 1).await?;
    let bucket_seconds = bucket_seconds(&seconds);
    let is_sending = is_carried_out && push.state == "sending";
    let recent = match push.first_send_at {
        Some(first) if is_sending => Some(recent(ledger, push.key, (first, now)).await?),
        _ => None,
    };
    Ok(RateView {
        set: push.rate_override.or(plan.map(|plan| plan.rate)),
        is_ordered: push.rate_override.is_some(),
        now: recent,
        bucket_seconds,
        sent: filled(&seconds, bucket_seconds),
    })
}

/// Messages a second over the last ten seconds, or since the first send where that is less.
async fn recent(ledger: &Ledger, push_key: i64, (first, now): (Timestamp, Timestamp)) -> Result<f64, LedgerError> {
    let from = (now - chrono::TimeDelta::seconds(NOW_SECONDS)).max(first);
    let sent = ledger.sent_since(push_key, from).await?;
    #[expect(clippy::cast_precision_loss, reason = "messages and milliseconds of ten seconds")]
    Ok(sent as f64 * 1000.0 / (now - from).num_milliseconds().max(1000) as f64)
}

/// Seconds of a bucket, so that all of them fit into a line.
fn bucket_seconds(found: &[(Timestamp, u64)]) -> u32 {
    let (Some((first, _)), Some((last, _))) = (found.first(), found.last()) else { return 1 };
    u32::try_from(((*last - *first).num_seconds() / MOST_BUCKETS).max(0) + 1).unwrap_or(u32::MAX)
}

/// The buckets from the first to the last, with zeroes between.
fn filled(found: &[(Timestamp, u64)], bucket_seconds: u32) -> Vec<u64> {
    let (Some((first, _)), Some((last, _))) = (found.first(), found.last()) else { return Vec::new() };
    let place = |at: Timestamp| usize::try_from((at - *first).num_seconds() / i64::from(bucket_seconds)).unwrap_or(0);
    let mut sent = vec![0; place(*last) + 1];
    for (at, n) in found {
        sent[place(*at)] += n;
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_micros;

    #[test]
    fn seconds_without_a_send_stay_empty_between_others() {
        let at = |seconds: i64| from_micros(1_795_400_000_000_000 + seconds * 1_000_000);
        assert_eq!(filled(&[(at(0), 5), (at(4), 2), (at(10), 7)], 2), [5, 0, 2, 0, 0, 7]);
        assert_eq!(filled(&[], 1), Vec::<u64>::new());
    }
}
