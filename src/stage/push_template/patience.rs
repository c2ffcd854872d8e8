//! What a push does once its sending came to a stop: go on at once, wait here, or end the stage, waiting or halted.

use std::time::Duration;

use super::guard::Guard;
use super::quota::Allowance;
use super::stand::{halt, wait, wait_here};
use super::stops::SaidBy;
use super::{End, Push, Pushing, approval, canary, finish, orders, reread, settle_left_in_doubt};
use crate::config::settings::Unconfirmed;
use crate::domain::QuotaDay;
use crate::stage::{StageContext, StageError, StageOutcome};

/// How long a push waits that was answered by nobody.
const SILENCE_WAIT: chrono::TimeDelta = chrono::TimeDelta::minutes(2);
/// How long a 45009 is taken for one of the minute's.
pub const MINUTE: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// So many minutes in a row without a send are taken for a day that is over, whatever WeChat's figure says.
const MOST_DOUBTS: u32 = 3;
/// A pause between two sessions that nobody needs to be told of.
const SHORT: Duration = Duration::from_secs(5);

pub enum Next {
    Again,
    Stop(StageOutcome),
}

/// What one push has already put up with.
#[derive(Default)]
pub struct Patience {
    pub guard: Guard,
    template_reads: u32,
    /// Minutes waited for, and how many were sent to before the first of them.
    doubts: (u32, u64),
    /// How many were sent to when the ledger's own limit was last reached.
    spent_at: Option<u64>,
}

impl Patience {
    pub async fn after(&mut self, pushing: &Pushing<'_>, end: End) -> Result<Next, StageError> {
        let cx = pushing.cx;
        let push = reread(cx, &pushing.push).await?;
        let stop = |outcome| Ok(Next::Stop(outcome));
        match end {
            End::Failed(error) => Err(error),
            End::Interrupted => Err(StageError::Interrupted),
            End::Exhausted => self.exhausted(pushing, &push).await,
            End::Expired => {
                let skipped = cx.hands.ledger.skip_rest(cx.lease, push.key, "expired", cx.hands.clock.now()).await?;
                tracing::warn!(skipped, "the push expired: {skipped} recipients are skipped");
                // Nor is anybody in doubt asked for again: that might be the send that comes late.
                settle_left_in_doubt(cx, &push, |_| true).await?;
                self.exhausted(pushing, &reread(cx, &push).await?).await
            }
            End::QuotaSpent { why, said_by } => self.quota_spent(pushing, &push, (why, said_by)).await,
            End::TemplateGone { errcode } => self.template_gone(pushing, &push, errcode).await,
            End::Halted { errcode, why } => stop(halt(cx, &push, errcode, why).await?),
            End::Unanswered { why } => stop(wait(cx, &push, Some(cx.hands.clock.now() + SILENCE_WAIT), why).await?),
            End::WindowClosed { opens } => {
                let until = pushing.expires_at.map_or(opens, |expires| expires.min(opens));
                stop(wait(cx, &push, Some(until), "outside the push's window".to_owned()).await?)
            }
            End::DailyLimit { until } => {
                let reason = format!("the push's daily_limit of {} is reached", pushing.plan.daily_limit.unwrap_or(0));
                stop(wait(cx, &push, Some(until), reason).await?)
            }
            End::CanarySent => self.canary_sent(pushing, &push).await,
            End::Frozen => stop(wait(cx, &push, None, orders::frozen(&push)).await?),
            End::Unapproved => stop(approval::wait_for(cx, pushing.plan, &push).await?),
            End::Paused => {
                let reason = format!("paused; lianbo push resume {} goes on", cx.run.run_id);
                stop(wait(cx, &push, None, reason).await?)
            }
        }
    }

    /// The canary is judged once everybody of it has come to an end.
    async fn canary_sent(&mut self, pushing: &Pushing<'_>, push: &Push) -> Result<Next, StageError> {
        let unclaimed = push.counts.recipients - push.claimed;
        match pushing.plan.canary {
            Some(rule) if push.counts.pending == unclaimed => canary::judge(pushing, push, rule).await,
            _ => self.retry(pushing, push).await,
        }
    }

    /// Nobody left to claim: either all are done, or some wait for a retry.
    async fn exhausted(&mut self, pushing: &Pushing<'_>, push: &Push) -> Result<Next, StageError> {
        let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
        if push.counts.pending == 0 {
            if self.once_more(pushing, push).await? {
                return Ok(Next::Again);
            }
            cx.hands.ledger.end_push(cx.lease, push.key, "done", clock.now()).await?;
            let push = reread(cx, push).await?;
            return Ok(Next::Stop(finish(cx, &push).await?));
        }
        self.retry(pushing, push).await
    }

    /// Where the pipeline chose so, whoever got no answer is owed the message again once WeChat's window is over: until then
    /// an event may still tell of them. Says whether anybody is left for that.
    async fn once_more(&mut self, pushing: &Pushing<'_>, push: &Push) -> Result<bool, StageError> {
        let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
        let is_chosen = pushing.plan.unconfirmed == Unconfirmed::Resend && push.rest_reason.is_none();
        if !is_chosen || push.counts.unconfirmed == 0 {
            return Ok(false);
        }
        let Some(until) = cx.hands.ledger.next_repeat_at(push.key).await? else { return Ok(false) };
        if until > clock.now() {
            let reason = format!(
                "of {} recipients it is not known whether they have the message: sent once more then",
                push.counts.unconfirmed
            );
            wait_here(pushing, until, &reason).await?;
        }
        Ok(true)
    }

    /// Waits until somebody who was put back may be tried again.
    async fn retry(&mut self, pushing: &Pushing<'_>, push: &Push) -> Result<Next, StageError> {
        let (cx, clock) = (pushing.cx, pushing.cx.hands.clock);
        let retry_at = cx.hands.ledger.next_retry_at(push.key).await?;
        let left = retry_at.map_or(Duration::ZERO, |at| (at - clock.now()).to_std().unwrap_or_default());
        if let Some(until) = retry_at.filter(|_| left > SHORT) {
            let reason = format!("{} recipients were put back and are tried again", push.counts.pending);
            wait_here(pushing, until, &reason).await?;
            return Ok(Next::Again);
        }
        tokio::select! {
            () = clock.sleep(left.max(Duration::from_millis(200))) => Ok(Next::Again),
            () = cx.stop.cancelled() => Err(StageError::Interrupted),
        }
    }

    /// A day's end. Unless the ledger's count was too careful, or WeChat's own figure says that much is left, or does not
    /// say: then the refusal may have meant the minute.
    async fn quota_spent(
        &mut self,
        pushing: &Pushing<'_>,
        push: &Push,
        (why, said_by): (String, SaidBy),
    ) -> Result<Next, StageError> {
        let (cx, now) = (pushing.cx, pushing.cx.hands.clock.now());
        let allowance = Allowance::look(pushing).await?;
        if let Some((until, why)) = allowance.held(now).filter(|_| said_by == SaidBy::Ledger) {
            wait_here(pushing, until, &why).await?;
            return Ok(Next::Again);
        }
        let done = push.counts.recipients - push.counts.pending;
        let has_left = allowance.left() > 0;
        match said_by {
            SaidBy::Ledger if has_left && self.spent_at != Some(done) => {
                self.spent_at = Some(done);
                return Ok(Next::Again);
            }
            SaidBy::WeChat if has_left && self.may_doubt(done) => {
                let reason = match &allowance.untold {
                    None => format!(
                        "{why}, but its own figure leaves {}: it may mean the minute, and is tried again after it",
                        allowance.left()
                    ),
                    Some(error) => format!(
                        "{why}, and its own figure cannot be had now ({error}): it may mean the minute, and is tried again \
                         after it"
                    ),
                };
                wait_here(pushing, cx.hands.clock.now() + MINUTE, &reason).await?;
                return Ok(Next::Again);
            }
            SaidBy::Ledger | SaidBy::WeChat => {}
        }
        let until = QuotaDay::opens_again(now, allowance.may_be_yesterdays(), cx.hands.clock.quota_spread());
        let why = allowance.others_too().map_or(why.clone(), |others| format!("{why}; {others}"));
        Ok(Next::Stop(wait(cx, push, Some(until), why).await?))
    }

    /// Whether a minute may be waited for; a send that was made since the last one begins the count anew.
    fn may_doubt(&mut self, done: u64) -> bool {
        if self.doubts.1 != done {
            self.doubts = (0, done);
        }
        self.doubts.0 += 1;
        self.doubts.0 <= MOST_DOUBTS
    }

    async fn template_gone(&mut self, pushing: &Pushing<'_>, push: &Push, errcode: i64) -> Result<Next, StageError> {
        let cx: &StageContext<'_> = pushing.cx;
        self.template_reads += 1;
        let listed = match cx.wechat(&pushing.plan.account).templates().await {
            Ok(list) => list.iter().any(|template| template.template_id == pushing.plan.template_id),
            Err(_) => false,
        };
        if listed && self.template_reads == 1 {
            tracing::warn!(errcode, "WeChat refused the template, but its list still holds it: one more try");
            return Ok(Next::Again);
        }
        let place = if listed { "though its list still holds it" } else { "and its list does not hold it" };
        let why = format!(
            "WeChat says {errcode}: the template {} is not in account `{}`, {place}; mend template_id",
            pushing.plan.template_id.as_str(),
            pushing.plan.account
        );
        Ok(Next::Stop(halt(cx, push, Some(errcode), why).await?))
    }
}
