//! Looks ahead while a push goes on: one that its own forecast does not bring to an end before it expires is told, once a run,
//! while there is time to raise its rate.
//!
//! The forecast is that of `plan`: who is pending, the rate, the window, what the days still allow. The rate is the set one
//! until the push has been seen sending for a while, then what was seen.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Conductor;
use crate::clock::Timestamp;
use crate::config::settings::{OnExpiry, Priority, PushTemplate, Stage, StageKind};
use crate::domain::{QuotaDay, StageName};
use crate::ledger::{LedgerError, Push, Run};
use crate::scheduler::alert::{Alert, AlertKind};
use crate::scheduler::allowance::allowances;
use crate::scheduler::plan::days::{Bounds, course};
use crate::stage::push_template::expiry;
use crate::wechat::Endpoint;

const EVERY: Duration = Duration::from_secs(1);
/// What was seen of a push counts as its rate when it has been looked at for so long.
const SEEN_FOR: Duration = Duration::from_secs(10);

/// Looks until its end.
pub struct Lookout {
    task: JoinHandle<()>,
    done: CancellationToken,
}

impl Lookout {
    /// `None` where no push of the run expires.
    pub fn start(conductor: &Conductor, run: &Run) -> Option<Self> {
        let pipeline = conductor.hands.settings.pipelines.get(&run.pipeline)?;
        let expires = |stage: &Stage| matches!(&stage.kind, StageKind::PushTemplate(plan) if plan.expires.is_some());
        if !pipeline.stages.iter().any(expires) {
            return None;
        }
        let done = CancellationToken::new();
        let (ended, conductor, run) = (done.clone(), conductor.clone(), run.clone());
        let task = tokio::spawn(async move {
            let mut seen = BTreeMap::new();
            loop {
                tokio::select! {
                    () = ended.cancelled() => return,
                    () = conductor.hands.clock.sleep(EVERY) => {}
                }
                // The alert that has begun is sent to its end: the loop is left above alone.
                match conductor.tell_what_expires(&run, None, &mut seen).await {
                    Ok(false) => {}
                    Ok(true) => return,
                    Err(error) => tracing::debug!(error = %error, "the forecast of a push cannot be made now"),
                }
            }
        });
        Some(Self { task, done })
    }

    pub async fn end(self) {
        self.done.cancel();
        // A panic in there has been printed; the run itself is not touched by it.
        let _ = self.task.await;
    }
}

/// Who was pending when, the oldest first.
type Seen = BTreeMap<StageName, VecDeque<(Instant, u64)>>;

impl Conductor {
    /// Tells of a push of the run that will expire before everybody is sent to, if that was not told; `from` is when it goes
    /// on where it waits. Says whether it is told.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] when the ledger cannot be read.
    pub(super) async fn tell_what_expires(
        &self,
        run: &Run,
        from: Option<Timestamp>,
        seen: &mut Seen,
    ) -> Result<bool, LedgerError> {
        let Some(pipeline) = self.hands.settings.pipelines.get(&run.pipeline) else { return Ok(false) };
        for stage in &pipeline.stages {
            let StageKind::PushTemplate(plan) = &stage.kind else { continue };
            let Some(expires_at) = expiry(run, plan) else { continue };
            let Some(push) = self.hands.ledger.push(&run.run_id, &stage.name).await? else { continue };
            // One that would not even start because of it fails, and that is told.
            let goes_on = push.first_send_at.is_some() || plan.on_expiry == OnExpiry::Skip;
            if push.ended_at.is_some() || push.counts.pending == 0 || push.messages_path.is_none() || !goes_on {
                continue;
            }
            let rate = self.rate(plan, &push, seen.entry(stage.name.clone()).or_default());
            let unsent = self.would_expire(plan, &push, (rate, from, expires_at)).await?;
            if unsent == 0 {
                continue;
            }
            let key = format!("will_expire:{}", run.run_id);
            let why = why(&push, (unsent, rate), (expires_at, self.hands.settings.timezone));
            let alert = Alert {
                kind: AlertKind::WillExpire,
                pipeline: Some(run.pipeline.clone()),
                run_id: Some(run.run_id.clone()),
                why: why.clone(),
                command: format!("lianbo push show {}/{}", run.run_id, push.stage),
            };
            if let Some(due) = self.alerts.change((&key, "told"), Some(alert)).await? {
                tracing::warn!("the push will expire: {why}");
                self.alerts.deliver(due).await;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends a second: what was seen of it, else what is set.
    fn rate(&self, plan: &PushTemplate, push: &Push, seen: &mut VecDeque<(Instant, u64)>) -> f64 {
        let ceiling = self.hands.account(&plan.account).send_rate.unwrap_or(f64::INFINITY);
        let set = push.rate_override.unwrap_or(plan.rate).min(ceiling);
        let (now, pending) = (self.hands.clock.monotonic(), push.counts.pending);
        if push.state != "sending" || push.first_send_at.is_none() {
            seen.clear();
            return set;
        }
        seen.push_back((now, pending));
        while seen.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SEEN_FOR) {
            seen.pop_front();
        }
        match seen.front() {
            Some((at, before)) if now.saturating_duration_since(*at) >= SEEN_FOR && *before > pending => {
                #[expect(clippy::cast_precision_loss, reason = "recipients of ten seconds")]
                let went = (before - pending) as f64;
                (went / now.saturating_duration_since(*at).as_secs_f64()).min(set)
            }
            _ => set,
        }
    }

    /// How many would not be sent to.
    async fn would_expire(
        &self,
        plan: &PushTemplate,
        push: &Push,
        (rate, from, expires_at): (f64, Option<Timestamp>, Timestamp),
    ) -> Result<u64, LedgerError> {
        let (settings, ledger, now) = (&self.hands.settings, &self.hands.ledger, self.hands.clock.now());
        let (today, uses_reserve) = (QuotaDay::of(now), plan.priority == Priority::Service);
        let every = allowances(settings, Some(ledger), today, &[Endpoint::TemplateSend]).await?;
        let allowance = every.into_iter().find(|own| own.account == plan.account);
        let sent_today = ledger.push_calls(today).await?.get(&push.key).copied().unwrap_or(0);
        let left = |day: QuotaDay| {
            let of_account = allowance.as_ref().and_then(|own| match day == today {
                true => own.left(uses_reserve),
                false => own.whole_day(uses_reserve),
            });
            let own = plan.daily_limit.map(|limit| if day == today { limit.saturating_sub(sent_today) } else { limit });
            // What is under way has its call already.
            let reserved = allowance.as_ref().filter(|_| day == today).map_or(0, |own| own.reserved);
            [of_account.map(|left| left.saturating_add(reserved)), own].into_iter().flatten().min()
        };
        let bounds = Bounds {
            from: from.map_or(now, |from| from.max(now)),
            messages: push.counts.pending,
            rate,
            window: plan.window,
            zone: settings.timezone,
            expires_at: Some(expires_at),
            left: &left,
        };
        Ok(course(&bounds).would_expire)
    }
}

fn why(push: &Push, (unsent, rate): (u64, f64), (expires_at, zone): (Timestamp, Tz)) -> String {
    format!(
        "{} of {} recipients of push `{}` are pending, it expires at {}, and at {rate:.1}/s, within its window and the quota, \
         about {unsent} of them would not be sent to: raise the rate with `lianbo push rate {}/{} RATE`, or `expires`",
        push.counts.pending,
        push.recipients,
        push.stage,
        expires_at.with_timezone(&zone).format("%Y-%m-%d %H:%M"),
        push.run_id,
        push.stage
    )
}
