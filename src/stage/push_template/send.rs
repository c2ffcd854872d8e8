//! The one sender of a push: paces, keeps `concurrency` sends in flight, and hands each settled recipient on.
//!
//! Sends run as tasks of a set that ends with this object. A task that has its answer judges it under the lock of the
//! [`Desk`] and takes the next message there, so that guards and pace see the answers in order and nobody is woken in
//! between; a task that finds nothing to send ends, and the sender starts another when there is. The first send goes out
//! alone: a dead template then costs one call.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::desk::{Desk, Hindrance};
use super::guard::Guard;
use super::record::{Outbox, put_back};
use super::{End, Item, Pushing};
use crate::clock::Clock;
use crate::crash::{self, CrashPoint};
use crate::pace::SharedPace;
use crate::wechat::WeChat;

/// How long sends in flight may still settle after a stop.
const SETTLE_LIMIT: Duration = Duration::from_secs(8);

pub struct Sender<'a> {
    pushing: &'a Pushing<'a>,
    hands: Hands,
    at_work: JoinSet<()>,
}

/// For whoever looks at a sender from beside.
#[derive(Clone)]
pub struct Watch(Arc<Mutex<Desk>>);

impl Watch {
    /// See [`Desk::sends`].
    pub fn sends(&self) -> u64 {
        self.desk().sends()
    }

    /// See [`Desk::hindrance`].
    pub fn hindrance(&self, now: std::time::Instant) -> Option<Hindrance> {
        self.desk().hindrance(now)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each sending task holds.
#[derive(Clone)]
struct Hands {
    desk: Arc<Mutex<Desk>>,
    outbox: Arc<Outbox>,
    /// Something changed that the sender waits for.
    changed: Arc<Notify>,
    wechat: WeChat,
    clock: Clock,
}

impl Hands {
    /// No call leaves the desk half changed, so a panic elsewhere under the lock does no harm.
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_given_up(&self, desk: &mut Desk) {
        desk.take_given_up().into_iter().for_each(|one| self.outbox.put(one));
    }

    /// Sends this message, and then whatever is to be sent at once.
    async fn send_on(self, mut item: Item) {
        loop {
            if item.tries == 1 {
                self.outbox.first_try();
            }
            crash::pass(CrashPoint::BeforeSend);
            let answer = self.wechat.send(item.body.clone()).await;
            crash::pass(CrashPoint::AfterSend);
            let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
            let mut desk = self.desk();
            if let Some(settled) = desk.settle(item, &answer, (now, monotonic)) {
                self.outbox.put(settled);
                crash::pass(CrashPoint::AfterOutcomeJudged);
            }
            let next = desk.next((now, monotonic));
            self.put_given_up(&mut desk);
            if desk.take_wants_attention() {
                self.changed.notify_one();
            }
            drop(desk);
            match next {
                Some(next) => item = next,
                None => return,
            }
        }
    }
}

impl<'a> Sender<'a> {
    pub fn new(pushing: &'a Pushing<'a>, guard: Guard, outbox: Arc<Outbox>) -> Self {
        let (cx, plan) = (pushing.cx, pushing.plan);
        let rate = super::orders::allowed_rate(pushing, pushing.push.rate_override);
        let pace = SharedPace::new(rate, cx.hands.clock.monotonic());
        let desk = Desk::new(plan, pace, guard, pushing.stops.clone());
        let hands = Hands {
            desk: Arc::new(Mutex::new(desk)),
            outbox,
            changed: Arc::new(Notify::new()),
            wechat: cx.wechat(&plan.account).until(pushing.stops.halt.clone()),
            clock: cx.hands.clock,
        };
        Self { pushing, hands, at_work: JoinSet::new() }
    }

    /// The pace of this sender, for whoever changes its rate.
    pub fn pace(&self) -> SharedPace {
        self.hands.desk().pace().clone()
    }

    /// A look at this sender from beside.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.hands.desk))
    }

    /// Sends what is claimed until the claims end or there is a reason to stop, then settles what is in flight. Gives the
    /// guard back.
    pub async fn run(mut self, mut claimed: mpsc::Receiver<Vec<Item>>) -> Guard {
        let stops = self.pushing.stops.clone();
        let clock = self.hands.clock;
        let mut is_open = true;
        while !stops.halt.is_cancelled() {
            let now = clock.monotonic();
            let (wake, is_idle, has_room) = self.start_what_may(now, is_open);
            if !is_open && is_idle {
                break;
            }
            tokio::select! {
                biased;
                () = stops.halt.cancelled() => {}
                Some(ended) = self.at_work.join_next(), if !self.at_work.is_empty() => {
                    self.look_at(ended);
                    while let Some(ended) = self.at_work.try_join_next() {
                        self.look_at(ended);
                    }
                }
                batch = claimed.recv(), if is_open && has_room => match batch {
                    Some(batch) => self.take(batch),
                    None => is_open = false,
                },
                () = self.hands.changed.notified() => {}
                () = clock.sleep(wake.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))),
                    if wake.is_some() => {}
            }
        }
        if stops.halt.is_cancelled() {
            self.come_to_rest(&mut claimed).await;
        }
        self.hands.desk().take_guard()
    }

    /// Starts a task for each message that may go out now. Gives when the next one may, whether all is done, and whether
    /// more should be fetched.
    fn start_what_may(&mut self, now: std::time::Instant, is_open: bool) -> (Option<std::time::Instant>, bool, bool) {
        let mut desk = self.hands.desk();
        desk.expects_more(is_open);
        while let Some(item) = desk.next((self.hands.clock.now(), now)) {
            self.at_work.spawn(self.hands.clone().send_on(item));
        }
        self.hands.put_given_up(&mut desk);
        (desk.next_wake(), desk.is_idle(), desk.has_room())
    }

    fn take(&self, batch: Vec<Item>) {
        self.hands.desk().add(batch);
    }

    fn look_at(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            self.pushing.stop(End::Failed(error.into()));
        }
    }

    /// No more sends: what is in flight settles within a limit; what was claimed and not sent is put back; what is in
    /// doubt stays in flight in the ledger, so that it is repeated with its id or ends as unconfirmed.
    async fn come_to_rest(&mut self, claimed: &mut mpsc::Receiver<Vec<Item>>) {
        let clock = self.hands.clock;
        let deadline = clock.monotonic() + SETTLE_LIMIT;
        while !self.at_work.is_empty() {
            let left = deadline.saturating_duration_since(clock.monotonic());
            tokio::select! {
                Some(ended) = self.at_work.join_next() => self.look_at(ended),
                () = clock.sleep(left) => break,
            }
        }
        // Until the claimer has ended: a batch whose intents it is writing at this moment is not to be left in doubt.
        while let Some(batch) = claimed.recv().await {
            self.take(batch);
        }
        let now = clock.now();
        for item in self.hands.desk().clear().filter(|item| !item.in_doubt) {
            self.hands.outbox.put(put_back(item, now));
        }
    }
}
