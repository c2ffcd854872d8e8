//! `push_template`: sends to a frozen set, each recipient once.
//!
//! The way: the set's messages are rendered and checked, all of them, before the first send ([`messages`], [`render`]) →
//! a claimer reads them back ([`frozen`]), reserves quota and writes intents, at most a second's sends ahead ([`claim`]) → one sender paces and sends
//! ([`send`], [`desk`]) → every answer is judged by the code table ([`judge`]) and guarded ([`guard`]) → a recorder
//! commits outcomes in groups ([`record`]). No byte leaves before its intent is durable; whatever the crash, the ledger knows
//! who is done, who is owed, and who is in doubt.
//!
//! What is *not* here: choosing recipients, SQL, the meaning of error codes.

mod approval;
mod canary;
mod claim;
mod desk;
mod frozen;
mod guard;
mod judge;
mod messages;
mod orders;
mod patience;
mod preview;
mod quota;
mod record;
mod render;
mod send;
mod silence;
mod stand;
mod stops;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use self::approval::approval_hash;
use self::guard::Guard;
use self::patience::{Next, Patience};
pub use self::preview::preview;
use self::stand::{set_state, wait};
use self::stops::{End, SaidBy, Stops};
use super::{StageContext, StageError, StageOutcome, StageReport, moved};
use crate::calendar;
use crate::clock::Timestamp;
use crate::config::settings::PushTemplate;
use crate::domain::{Counts, DeliveryState, OpenId, UnionId, may_repeat, once_more_at};
use crate::ledger::{CallTally, LedgerError, NewPush, Outcome, OutcomeBatch, Push, PushChange, Recorded, Room, Run};
use crate::wechat::{Endpoint, SendMark};

/// Bytes of the ledger's log for outcomes that come one by one, a few pages each, until a stop has settled everything.
const ROOM_AT_LEAST: u64 = 8 << 20;
/// Bytes for an outcome among many.
const ROOM_A_SEND: u64 = 512;
const ROOM_AT_MOST: u64 = 64 << 20;

/// One recipient on the way out.
#[derive(Debug)]
pub(super) struct Item {
    pub seq: u64,
    pub attempt: u32,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
    pub body: Vec<u8>,
    pub first_try_at: Timestamp,
    /// Sends tried by this process.
    pub tries: u32,
    /// Whether an earlier try under this id may have been delivered without our knowing.
    pub in_doubt: bool,
    /// How often it was sent once more, after WeChat's window, without our knowing of the message before.
    pub repeats: u32,
    pub last_errcode: Option<i64>,
}

impl Item {
    /// Whether an earlier message may have arrived, of this intent or of one before.
    pub fn may_have_it(&self) -> bool {
        self.in_doubt || self.repeats > 0
    }

    /// What one becomes whose last intent was surely not taken: owed, or in doubt as before it.
    pub fn put_back_to(&self) -> DeliveryState {
        if self.repeats > 0 { DeliveryState::Unconfirmed } else { DeliveryState::Pending }
    }

    /// See [`once_more_at`].
    pub fn once_more_at(&self) -> Option<Timestamp> {
        once_more_at(self.first_try_at, self.repeats)
    }
}

/// What all parts of one push share.
pub(super) struct Pushing<'a> {
    pub cx: &'a StageContext<'a>,
    pub plan: &'a PushTemplate,
    pub push: Push,
    pub expires_at: Option<Timestamp>,
    pub room: &'a Room,
    pub stops: Arc<Stops>,
}

impl Pushing<'_> {
    /// See [`Stops::stop`].
    pub fn stop(&self, end: End) {
        self.stops.stop(end);
    }
}

/// Sends to everybody of the set who is still owed a message.
///
/// # Errors
///
/// [`StageError::Rule`] when messages break their template's rules; [`StageError::Ledger`] when the ledger cannot be
/// written: nothing is sent from then on.
pub async fn run(cx: &StageContext<'_>, plan: &PushTemplate) -> Result<StageOutcome, StageError> {
    let push = begin(cx, plan).await?;
    if push.ended_at.is_some() {
        return finish(cx, &push).await;
    }
    moved::refuse(cx, &plan.account).await?;
    let is_service = plan.priority == crate::config::settings::Priority::Service;
    cx.hands.ledger.set_priority(cx.lease, push.key, is_service).await?;
    let push = messages::prepare(cx, plan, push).await?;
    if let Some(outcome) = may_not_start(cx, plan, &push).await? {
        return Ok(outcome);
    }
    let expires_at = expiry(cx.run, plan);
    let mut attempts = Patience::default();
    // Whoever cannot write down what becomes of a send must not send.
    let room = cx.hands.ledger.set_room_aside(push.key, room_needed(plan)).await?;
    loop {
        settle_left_in_doubt(cx, &push, |at| !may_repeat(at, cx.hands.clock.now())).await?;
        let pushing = Pushing {
            cx,
            plan,
            push: reread(cx, &push).await?,
            expires_at,
            room: &room,
            stops: Stops::new(cx.stop.child_token()),
        };
        set_state(cx, &push, "sending", PushChange::default()).await?;
        let end = session(&pushing, &mut attempts.guard).await;
        match attempts.after(&pushing, end).await? {
            Next::Again => {}
            Next::Stop(outcome) => return Ok(outcome),
        }
    }
}

/// The three parts at work on one push, and one who listens for orders, until there is a reason to stop.
async fn session(pushing: &Pushing<'_>, guard: &mut Guard) -> End {
    // Before the quota is looked at: what a killed process reserved and did not call is there again.
    let tally = match begin_tally(pushing).await {
        Ok(tally) => tally,
        Err(error) => return End::Failed(error),
    };
    let quota = match quota::Allowance::look(pushing).await {
        Ok(quota) => quota,
        Err(error) => return End::Failed(error),
    };
    let in_doubt_most = claim::most_in_doubt(pushing);
    let permits = Arc::new(tokio::sync::Semaphore::new(in_doubt_most));
    let (send_claimed, claimed) = tokio::sync::mpsc::channel(2);
    let outbox = Arc::new(record::Outbox::default());
    let claims = quota::Claims { permits: &permits, most: in_doubt_most, left: quota.left() };
    let claimer = claim::Claimer::new(pushing, quota, permits.clone(), in_doubt_most);
    let recorder = record::Recorder::new(pushing, tally, permits.clone(), outbox.clone());
    let sender = send::Sender::new(pushing, std::mem::take(guard), outbox.clone());
    let (pace, desk, over) = (sender.pace(), sender.watch(), CancellationToken::new());
    if let Err(error) = orders::set_pace(pushing, &pace, pushing.push.rate_override).await {
        return End::Failed(error);
    }
    let out_of_patience = || pushing.stops.out_of_patience(pushing.cx.hands.clock);
    ((), *guard, (), (), ()) = tokio::join!(
        claimer.run(send_claimed),
        async {
            let guard = sender.run(claimed).await;
            outbox.close();
            over.cancel();
            guard
        },
        async {
            tokio::select! {
                () = recorder.run() => {}
                () = out_of_patience() => {
                    let error = LedgerError::kept_busy("record outcomes of sends");
                    pushing.stop(End::Failed(error.into()));
                }
            }
        },
        async {
            tokio::select! {
                () = orders::obey(pushing, (&pace, &desk), &over) => {}
                () = out_of_patience() => {}
            }
        },
        async {
            tokio::select! {
                () = quota::watch(pushing, (&desk, &claims), &over) => {}
                () = out_of_patience() => {}
            }
        },
    );
    pushing.cx.calls.tell_sends(None);
    let end = pushing.stops.reason(pushing.cx.stop.is_cancelled());
    if pushing.stops.ledger_is_kept.is_cancelled() {
        return end;
    }
    // Best at once; else it runs out by itself.
    let given_back = pushing.cx.hands.ledger.release_share(&pushing.plan.account, pushing.push.key).await;
    if let Err(error) = given_back {
        tracing::debug!(error = %error, "the share of the account's rate was not given back");
    }
    end
}

/// Begins to count the calls of a session where they outlive this process; gives the count's name.
async fn begin_tally(pushing: &Pushing<'_>) -> Result<String, StageError> {
    let (cx, id) = (pushing.cx, pushing.cx.hands.clock.random_id(16));
    let endpoint = Endpoint::TemplateSend.as_str();
    let tally = cx.hands.ledger.begin_tally(cx.lease, pushing.push.key, (endpoint, &id)).await?;
    cx.calls.tell_sends(tally.map(|tally| Arc::new(Tally(tally)) as Arc<dyn SendMark>));
    Ok(id)
}

#[derive(Debug)]
struct Tally(CallTally);

impl SendMark for Tally {
    fn one(&self) {
        self.0.one();
    }
}

/// Bytes that recording a whole second's sends takes, with what the end of a push writes besides.
fn room_needed(plan: &PushTemplate) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive")]
    let second = plan.rate.ceil() as u64;
    (ROOM_AT_LEAST + second.saturating_mul(ROOM_A_SEND)).min(ROOM_AT_MOST)
}

async fn begin(cx: &StageContext<'_>, plan: &PushTemplate) -> Result<Push, StageError> {
    let stages = cx.hands.ledger.stages(&cx.run.run_id).await?;
    let set = stages
        .iter()
        .find(|stage| stage.stage == plan.recipients)
        .ok_or_else(|| StageError::Rule(format!("stage `{}` has not made its set in this run", plan.recipients)))?;
    let detail = |key: &str| set.detail.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let new = NewPush {
        run_id: cx.run.run_id.clone(),
        pipeline: cx.run.pipeline.clone(),
        stage: cx.stage.name.clone(),
        account: plan.account.clone(),
        template_id: plan.template_id.clone(),
        set_hash: detail("set_hash"),
        set_path: detail("set_path"),
        frozen_at: cx.hands.clock.now(),
        recipients: set.rows_out,
        is_test: cx.run.is_test,
    };
    Ok(cx.hands.ledger.create_push(cx.lease, new).await?)
}

pub(super) async fn reread(cx: &StageContext<'_>, push: &Push) -> Result<Push, StageError> {
    cx.hands
        .ledger
        .push_by_key(push.key)
        .await?
        .ok_or_else(|| StageError::Rule("the push is no longer in the ledger".to_owned()))
}

/// When a push of this run expires: from the scheduled time; by hand, from the run's start.
pub fn expiry(run: &Run, plan: &PushTemplate) -> Option<Timestamp> {
    let from = run.scheduled_for.unwrap_or(run.started_at);
    plan.expires.and_then(|expires| from.checked_add_signed(chrono::TimeDelta::from_std(expires).ok()?))
}

/// The stop switch, approval, the window, and a set that cannot end before it expires. One that has expired waits for nothing: it ends.
async fn may_not_start(
    cx: &StageContext<'_>,
    plan: &PushTemplate,
    push: &Push,
) -> Result<Option<StageOutcome>, StageError> {
    let expires_at = expiry(cx.run, plan);
    if expires_at.is_some_and(|at| cx.hands.clock.now() >= at) {
        return Ok(None);
    }
    if push.frozen.is_some() {
        return Ok(Some(wait(cx, push, None, orders::frozen(push)).await?));
    }
    if approval::is_missing(plan, push) {
        return Ok(Some(approval::wait_for(cx, plan, push).await?));
    }
    if let Some(window) = plan.window {
        let now = cx.hands.clock.now();
        if !calendar::in_window(window, cx.hands.settings.timezone, now) {
            let opens = calendar::window_opens(window, cx.hands.settings.timezone, now);
            let until = expires_at.map_or(opens, |expires| expires.min(opens));
            return Ok(Some(wait(cx, push, Some(until), "outside the push's window".to_owned()).await?));
        }
    }
    if let (Some(expires_at), crate::config::settings::OnExpiry::Stop, None) =
        (expires_at, plan.on_expiry, push.first_send_at)
    {
        let rate = plan.rate.min(cx.hands.account(&plan.account).send_rate.unwrap_or(f64::INFINITY));
        #[expect(clippy::cast_precision_loss, reason = "seconds of a forecast")]
        let needed = Duration::from_secs_f64(push.recipients as f64 / rate);
        let ends_at = cx.hands.clock.now() + chrono::TimeDelta::from_std(needed).unwrap_or_default();
        if ends_at > expires_at {
            return Err(StageError::Rule(format!(
                "{} recipients need until {} at {}/s, but the push expires at {}: raise rate or expires, or set on_expiry = \"skip\"",
                push.recipients,
                ends_at.format("%Y-%m-%d %H:%M UTC"),
                rate,
                expires_at.format("%Y-%m-%d %H:%M UTC")
            )));
        }
    }
    Ok(None)
}

/// Whoever is in flight with a first try that is `too_old` may have the message or not; the others are claimed again with
/// the same id.
async fn settle_left_in_doubt(
    cx: &StageContext<'_>,
    push: &Push,
    too_old: impl Fn(Timestamp) -> bool,
) -> Result<(), StageError> {
    let now = cx.hands.clock.now();
    let outcomes: Vec<Outcome> = cx
        .hands
        .ledger
        .left_in_flight(push.key)
        .await?
        .into_iter()
        .filter(|row| row.first_try_at.is_none_or(&too_old))
        .map(|row| Outcome {
            seq: row.seq,
            attempt: row.attempt,
            state: DeliveryState::Unconfirmed,
            reason: Some("no answer".to_owned()),
            errcode: row.errcode,
            msgid: None,
            at: now,
            retry_at: row.first_try_at.and_then(|at| once_more_at(at, row.repeats)),
        })
        .collect();
    if outcomes.is_empty() {
        return Ok(());
    }
    let batch = OutcomeBatch { outcomes: &outcomes, suppressions: &[], gone: &[], give_back: None, errors: 0, now };
    match cx.hands.ledger.record_outcomes(cx.lease, push.key, batch).await? {
        Recorded::Yes { .. } => Ok(()),
        Recorded::LeaseLost => Err(StageError::LeaseLost),
    }
}

async fn finish(cx: &StageContext<'_>, push: &Push) -> Result<StageOutcome, StageError> {
    cx.hands.ledger.give_up_room(push.key);
    if let Some(path) = &push.messages_path {
        cx.hands.lake.remove(path)?;
    }
    Ok(StageOutcome::Done(report(push)))
}

fn report(push: &Push) -> StageReport {
    let Counts { recipients, sent, failed, skipped, held, unconfirmed, pending } = push.counts;
    StageReport {
        rows_in: recipients,
        rows_out: sent,
        detail: json!({
            "recipients": recipients, "sent": sent, "failed": failed, "skipped": skipped, "held": held,
            "unconfirmed": unconfirmed, "pending": pending, "set_hash": push.set_hash,
            "message_hash": push.message_hash,
        }),
        ..StageReport::default()
    }
}
