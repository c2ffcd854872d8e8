//! The one sender of a push: paces, keeps `concurrency` sends in flight, and hands each settled recipient on.
//!
//! Sends run as tasks of a set that ends with this object; their answers are judged here, one after another, so that
//! guards and pace see them in order. The first send goes out alone: a dead template then costs one call.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::guard::Guard;
use super::judge::{Verdict, judge};
use super::record::Settled;
use super::silence::Silence;
use super::{End, Item, Pushing};
use crate::domain::DeliveryState;
use crate::ledger::Outcome;
use crate::pace::{SharedPace, Turn};
use crate::wechat::{SendOutcome, WeChat};

/// How long sends in flight may still settle after a stop.
const SETTLE_LIMIT: Duration = Duration::from_secs(8);
/// Turns this near are taken at once: timers are no finer.
const AT_ONCE: Duration = Duration::from_micros(500);

pub struct Sender<'a> {
    pushing: &'a Pushing<'a>,
    guard: &'a mut Guard,
    wechat: WeChat,
    pace: SharedPace,
    ready: VecDeque<Item>,
    later: BinaryHeap<Reverse<Later>>,
    in_flight: JoinSet<(Item, SendOutcome)>,
    turn: Option<Instant>,
    ask_at: Option<Instant>,
    constant_fields: Vec<String>,
    any_answer: bool,
    silence: Silence,
    done_before: u64,
    done: u64,
}

/// A message that goes out again at a time.
struct Later {
    at: Instant,
    item: Item,
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.item.seq) == (other.at, other.item.seq)
    }
}
impl Eq for Later {}
impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.item.seq).cmp(&(other.at, other.item.seq))
    }
}

impl<'a> Sender<'a> {
    pub fn new(pushing: &'a Pushing<'a>, guard: &'a mut Guard) -> Self {
        let (cx, plan) = (pushing.cx, pushing.plan);
        let rate = super::orders::allowed_rate(pushing, pushing.push.rate_override);
        let counts = pushing.push.counts;
        Self {
            pushing,
            guard,
            wechat: cx.wechat(&plan.account),
            pace: SharedPace::new(rate, cx.hands.clock.monotonic()),
            ready: VecDeque::new(),
            later: BinaryHeap::new(),
            in_flight: JoinSet::new(),
            turn: None,
            ask_at: None,
            constant_fields: plan
                .data
                .iter()
                .filter(|field| !field.text.contains("{{"))
                .map(|field| field.name.clone())
                .collect(),
            any_answer: false,
            silence: Silence::default(),
            done_before: counts.recipients - counts.pending,
            done: 0,
        }
    }

    /// The pace of this sender, for whoever changes its rate.
    pub fn pace(&self) -> SharedPace {
        self.pace.clone()
    }

    /// Sends what is claimed until the claims end or there is a reason to stop, then settles what is in flight.
    pub async fn run(mut self, mut claimed: mpsc::Receiver<Vec<Item>>, settled: mpsc::UnboundedSender<Settled>) {
        let mut is_open = true;
        while !self.pushing.halt.is_cancelled() {
            let now = self.pushing.cx.hands.clock.monotonic();
            self.start_what_may(now);
            if !is_open && self.ready.is_empty() && self.later.is_empty() && self.in_flight.is_empty() {
                return;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = self.pushing.halt.cancelled() => {}
                Some(done) = self.in_flight.join_next(), if !self.in_flight.is_empty() => {
                    self.settle(done, &settled);
                    while let Some(done) = self.in_flight.try_join_next() {
                        self.settle(done, &settled);
                    }
                }
                batch = claimed.recv(), if is_open && self.ready.is_empty() => match batch {
                    Some(batch) => self.ready.extend(batch),
                    None => is_open = false,
                },
                () = self.pushing.cx.hands.clock.sleep(wake.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))),
                    if wake.is_some() => {}
            }
        }
        self.come_to_rest(&mut claimed, &settled).await;
    }

    fn start_what_may(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|Reverse(later)| later.at <= now) {
            let Some(Reverse(later)) = self.later.pop() else { break };
            self.ready.push_front(later.item);
        }
        let width = if self.any_answer { self.pushing.plan.concurrency.max(1) } else { 1 };
        if self.ask_at.is_some_and(|at| at > now) {
            return;
        }
        self.ask_at = None;
        while self.in_flight.len() < width && !self.ready.is_empty() {
            let at = match self.turn.take() {
                Some(at) => at,
                None => match self.pace.next(now) {
                    Turn::SendAt(at) => at,
                    Turn::AskAgainAt(at) => {
                        self.ask_at = Some(at);
                        return;
                    }
                },
            };
            if at > now + AT_ONCE {
                self.turn = Some(at);
                return;
            }
            let Some(mut item) = self.ready.pop_front() else { return };
            item.tries += 1;
            let wechat = self.wechat.clone();
            self.in_flight.spawn(async move {
                let answer = wechat.send(item.body.clone()).await;
                (item, answer)
            });
        }
    }

    /// The next instant at which something may start; `None`: an answer or a claim comes first.
    fn next_wake(&self) -> Option<Instant> {
        let retry = self.later.peek().map(|Reverse(later)| later.at);
        let turn = if self.ready.is_empty() { None } else { self.turn.or(self.ask_at) };
        [retry, turn].into_iter().flatten().min()
    }

    fn settle(
        &mut self,
        done: Result<(Item, SendOutcome), tokio::task::JoinError>,
        settled: &mpsc::UnboundedSender<Settled>,
    ) {
        let (mut item, answer) = match done {
            Ok(done) => done,
            Err(error) => return self.pushing.stop(End::Failed(error.into())),
        };
        let cx = self.pushing.cx;
        let (verdict, pace) = judge(&item, &answer, cx.hands.clock.now(), &self.constant_fields);
        let monotonic = cx.hands.clock.monotonic();
        self.pace.report(pace, monotonic);
        self.any_answer |= !matches!(answer, SendOutcome::NoAnswer { .. });
        if let Some(why) = self.silence.heard(&answer, monotonic) {
            self.pushing.stop(End::Unanswered { why });
        }
        let errcode = match &answer {
            SendOutcome::Refused { errcode, .. } => Some(*errcode),
            SendOutcome::Accepted { .. } | SendOutcome::NoAnswer { .. } => None,
        };
        item.last_errcode = errcode.or(item.last_errcode);
        match verdict {
            Verdict::Settled(outcome) => {
                self.done += 1;
                self.watch(&outcome);
                cx.tell("sends", self.done_before + self.done, Some(self.pushing.push.recipients));
                send(settled, Settled::new(item, outcome));
            }
            Verdict::Again { after, in_doubt } => {
                item.in_doubt = in_doubt;
                self.later.push(Reverse(Later { at: monotonic + after, item }));
            }
            Verdict::PutBack(outcome) => send(settled, Settled::new(item, outcome)),
            Verdict::Stop(end) => {
                tracing::warn!(errcode, "the push stops: {end:?}");
                self.pushing.stop(end);
                put_back(settled, item, cx.hands.clock.now(), false);
            }
        }
    }

    fn watch(&mut self, outcome: &Outcome) {
        let rule = self.pushing.plan.halt_when;
        let why = match outcome.state {
            DeliveryState::Failed => self.guard.failed(outcome.errcode.unwrap_or_default(), rule),
            DeliveryState::Held => self.guard.held(rule),
            _ => {
                self.guard.ended_well();
                None
            }
        };
        if let Some(why) = why {
            self.pushing.stop(End::Halted { errcode: outcome.errcode, why });
        }
    }

    /// No more sends: what is in flight settles within a limit; what was claimed and not sent is put back; what is in
    /// doubt stays in flight in the ledger, so that it is repeated with its id or ends as unconfirmed.
    async fn come_to_rest(
        &mut self,
        claimed: &mut mpsc::Receiver<Vec<Item>>,
        settled: &mpsc::UnboundedSender<Settled>,
    ) {
        let clock = self.pushing.cx.hands.clock;
        claimed.close();
        let deadline = clock.monotonic() + SETTLE_LIMIT;
        while !self.in_flight.is_empty() {
            let left = deadline.saturating_duration_since(clock.monotonic());
            tokio::select! {
                Some(done) = self.in_flight.join_next() => self.settle(done, settled),
                () = clock.sleep(left) => break,
            }
        }
        while let Some(batch) = claimed.recv().await {
            self.ready.extend(batch);
        }
        let now = clock.now();
        let later = std::mem::take(&mut self.later).into_iter().map(|Reverse(later)| later.item);
        for item in self.ready.drain(..).chain(later).filter(|item| !item.in_doubt) {
            let never_sent = item.tries == 0;
            put_back(settled, item, now, never_sent);
        }
    }
}

fn put_back(settled: &mpsc::UnboundedSender<Settled>, item: Item, now: crate::clock::Timestamp, never_sent: bool) {
    let outcome = Outcome {
        seq: item.seq,
        attempt: item.attempt,
        state: DeliveryState::Pending,
        reason: None,
        errcode: item.last_errcode,
        msgid: None,
        at: now,
        retry_at: None,
    };
    let mut one = Settled::new(item, outcome);
    one.never_sent = never_sent;
    send(settled, one);
}

/// The recorder ends only after this sender, unless the ledger failed: then the push stops anyway, and the row stays in
/// flight.
fn send(settled: &mpsc::UnboundedSender<Settled>, one: Settled) {
    let _ = settled.send(one);
}
