//! The desk of the sender: what is to be sent, when, and what became of it. Whoever sends comes here with an answer and
//! leaves with the next message. It neither waits nor sends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::Guard;
use super::judge::{Verdict, judge};
use super::record::{Settled, put_back};
use super::silence::Silence;
use super::{End, Item, Stops};
use crate::clock::Timestamp;
use crate::config::settings::{HaltWhen, PushTemplate};
use crate::domain::{DeliveryState, may_repeat};
use crate::ledger::Outcome;
use crate::pace::{SharedPace, Turn};
use crate::wechat::{CodeClass, SendOutcome};

/// A push that brings nothing to its end for so long stands still.
const STILL: Duration = Duration::from_secs(5);
/// However slow its rate.
const LONGEST_STILL: Duration = Duration::from_secs(600);
/// Below this share of its rate a push is slow.
const SLOW_SHARE: f64 = 0.5;
/// Turns this near are taken at once: timers are no finer.
const AT_ONCE: Duration = Duration::from_micros(500);

pub struct Desk {
    stops: Arc<Stops>,
    pace: SharedPace,
    guard: Guard,
    halt_when: HaltWhen,
    concurrency: usize,
    constant_fields: Vec<String>,
    given_up: Vec<Settled>,
    ready: VecDeque<Item>,
    later: BinaryHeap<Reverse<Later>>,
    in_flight: usize,
    turn: Option<Instant>,
    ask_at: Option<Instant>,
    any_answer: bool,
    silence: Silence,
    expects_more: bool,
    wants_attention: bool,
    /// Messages that went out, tries counted one by one.
    sends: u64,
    /// When something last came to its end.
    moved_at: Option<Instant>,
    /// Answers that something waits for to pass, since the last look.
    troubles: BTreeMap<&'static str, u64>,
}

/// What stands in the way of a push, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    pub what: String,
    /// When something is tried again, where that is all that is waited for.
    pub again: Option<Instant>,
}

/// An answer that slows a push down or makes it wait.
fn trouble(answer: &SendOutcome) -> Option<&'static str> {
    match answer {
        SendOutcome::Accepted { .. } => None,
        SendOutcome::NoAnswer { .. } => Some("nothing"),
        SendOutcome::Refused { class, .. } => match class {
            CodeClass::Retry => Some("-1 (busy)"),
            CodeClass::Slow => Some("45011 (too fast)"),
            CodeClass::SlowRecipient => Some("too often for one person"),
            CodeClass::Token => Some("40001 (the token)"),
            _ => None,
        },
    }
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

impl Desk {
    pub fn new(plan: &PushTemplate, pace: SharedPace, guard: Guard, stops: Arc<Stops>) -> Self {
        let constant_fields =
            plan.data.iter().filter(|field| !field.text.contains("{{")).map(|field| field.name.clone()).collect();
        Self {
            stops,
            pace,
            guard,
            halt_when: plan.halt_when,
            concurrency: plan.concurrency.max(1),
            constant_fields,
            given_up: Vec::new(),
            ready: VecDeque::new(),
            later: BinaryHeap::new(),
            in_flight: 0,
            turn: None,
            ask_at: None,
            any_answer: false,
            silence: Silence::default(),
            expects_more: true,
            wants_attention: false,
            sends: 0,
            moved_at: None,
            troubles: BTreeMap::new(),
        }
    }

    pub fn pace(&self) -> &SharedPace {
        &self.pace
    }

    pub fn take_guard(&mut self) -> Guard {
        std::mem::take(&mut self.guard)
    }

    pub fn add(&mut self, batch: Vec<Item>) {
        self.ready.extend(batch);
    }

    /// Whether more claims may come.
    pub fn expects_more(&mut self, is_open: bool) {
        self.expects_more = is_open;
    }

    /// Nothing is to be sent, and nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.later.is_empty() && self.in_flight == 0
    }

    /// Less lies here than could be in flight at once.
    pub fn has_room(&self) -> bool {
        self.ready.len() < self.concurrency
    }

    /// Whether something happened that the sender should look at: asked for once.
    pub fn take_wants_attention(&mut self) -> bool {
        std::mem::take(&mut self.wants_attention)
    }

    /// Messages that went out so far.
    pub fn sends(&self) -> u64 {
        self.sends
    }

    /// What keeps the push from going on as fast as it may; nothing when nothing does.
    pub fn hindrance(&mut self, now: Instant) -> Option<Hindrance> {
        let moved_at = *self.moved_at.get_or_insert(now);
        let (full, current) = (self.pace.full_rate(), self.pace.current_rate(now));
        let still_for = now.saturating_duration_since(moved_at);
        let is_still =
            still_for >= STILL.max(Duration::from_secs_f64(3.0 / full).min(LONGEST_STILL)) && !self.is_idle();
        let is_slow = current < full * SLOW_SHARE;
        if !is_still && !is_slow {
            self.troubles.clear();
            return None;
        }
        let mut parts = Vec::new();
        if is_still {
            parts.push(format!("nothing has come to its end for {} s", still_for.as_secs()));
            if self.in_flight > 0 {
                parts.push(format!("{} messages wait for WeChat's answer", self.in_flight));
            }
            if !self.later.is_empty() {
                parts.push(format!("{} wait to be tried again", self.later.len()));
            }
        }
        if is_slow {
            parts.push(format!("the pace is down to {current:.1} of {full:.1} sends a second"));
        }
        if !self.troubles.is_empty() {
            let troubles: Vec<String> = self.troubles.iter().map(|(what, n)| format!("{n} × {what}")).collect();
            parts.push(format!("WeChat answered {}", troubles.join(", ")));
        }
        let again = self.later.peek().map(|Reverse(later)| later.at).filter(|_| is_still && self.in_flight == 0);
        Some(Hindrance { what: parts.join("; "), again })
    }

    /// Everything that was not sent, and what waited to be sent again.
    pub fn clear(&mut self) -> impl Iterator<Item = Item> + use<> {
        let later = std::mem::take(&mut self.later).into_iter().map(|Reverse(later)| later.item);
        std::mem::take(&mut self.ready).into_iter().chain(later)
    }

    /// The next instant at which something may start; `None`: an answer or a claim comes first.
    pub fn next_wake(&self) -> Option<Instant> {
        let retry = self.later.peek().map(|Reverse(later)| later.at);
        let turn = if self.ready.is_empty() { None } else { self.turn.or(self.ask_at) };
        [retry, turn].into_iter().flatten().min()
    }

    /// Who waited here for a repeat until it was no longer safe: to be recorded, and asked for after each [`Desk::next`].
    pub fn take_given_up(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.given_up)
    }

    /// A message that may go out now; it counts as in flight until [`Desk::settle`].
    pub fn next(&mut self, (wall, now): (Timestamp, Instant)) -> Option<Item> {
        if self.stops.halt.is_cancelled() {
            return None;
        }
        while self.later.peek().is_some_and(|Reverse(later)| later.at <= now) {
            let Some(Reverse(later)) = self.later.pop() else { break };
            self.ready.push_front(later.item);
        }
        self.give_up_old(wall);
        let width = if self.any_answer { self.concurrency } else { 1 };
        if self.in_flight >= width || self.ready.is_empty() || self.ask_at.is_some_and(|at| at > now) {
            return None;
        }
        self.ask_at = None;
        let at = match self.turn.take().filter(|_| self.pace.is_open(now)) {
            Some(at) => at,
            None => match self.pace.next(now) {
                Turn::SendAt(at) => at,
                Turn::AskAgainAt(at) => {
                    self.ask_at = Some(at);
                    return None;
                }
            },
        };
        if at > now + AT_ONCE {
            self.turn = Some(at);
            return None;
        }
        let mut item = self.ready.pop_front()?;
        item.tries += 1;
        self.sends += 1;
        self.in_flight += 1;
        self.wants_attention |= self.expects_more && self.has_room();
        Some(item)
    }

    /// However long a repeat had to wait for its turn: one that WeChat may not know any more would be a second message.
    fn give_up_old(&mut self, now: Timestamp) {
        let is_old = |item: &mut Item| item.in_doubt && !may_repeat(item.first_try_at, now);
        while let Some(item) = self.ready.pop_front_if(is_old) {
            let outcome = Outcome {
                seq: item.seq,
                attempt: item.attempt,
                state: DeliveryState::Unconfirmed,
                reason: Some("no answer while a repeat was safe".to_owned()),
                errcode: item.last_errcode,
                msgid: None,
                at: now,
                retry_at: item.once_more_at(),
            };
            self.given_up.push(Settled::new(item, outcome));
            self.wants_attention = true;
        }
    }

    /// Judges the answer to a message that was in flight. Gives what is to be recorded, if its fate is known.
    pub fn settle(&mut self, mut item: Item, answer: &SendOutcome, at: (Timestamp, Instant)) -> Option<Settled> {
        let (now, monotonic) = at;
        self.in_flight -= 1;
        let (verdict, pace) = judge(&item, answer, now, &self.constant_fields);
        self.pace.report(pace, monotonic);
        if let Some(trouble) = trouble(answer) {
            *self.troubles.entry(trouble).or_default() += 1;
        }
        if !self.any_answer && !matches!(answer, SendOutcome::NoAnswer { .. }) {
            self.any_answer = true;
            self.wants_attention = true;
        }
        if let Some(why) = self.silence.heard(answer, monotonic) {
            self.stops.stop(End::Unanswered { why });
        }
        let errcode = match answer {
            SendOutcome::Refused { errcode, .. } => Some(*errcode),
            SendOutcome::Accepted { .. } | SendOutcome::NoAnswer { .. } => None,
        };
        item.last_errcode = errcode.or(item.last_errcode);
        match verdict {
            Verdict::Settled(outcome) => {
                self.watch(&outcome);
                self.moved_at = Some(monotonic);
                Some(Settled::new(item, outcome))
            }
            Verdict::Again { after, in_doubt } => {
                item.in_doubt = in_doubt;
                self.later.push(Reverse(Later { at: monotonic + after, item }));
                self.wants_attention = true;
                None
            }
            Verdict::PutBack(outcome) => Some(Settled::new(item, outcome)),
            Verdict::Stop(end) => {
                // Of what is in flight every answer may say the same.
                let why = end.told();
                if self.stops.stop(end) {
                    tracing::warn!(errcode, "the push stops: {why}");
                }
                // Whoever may have it from an earlier try stays in flight in the ledger: repeated in time, or unconfirmed.
                (!item.in_doubt).then(|| put_back(item, now))
            }
        }
    }

    fn watch(&mut self, outcome: &Outcome) {
        let why = match outcome.state {
            DeliveryState::Failed => self.guard.failed(outcome.errcode.unwrap_or_default(), self.halt_when),
            DeliveryState::Held => self.guard.held(self.halt_when),
            _ => {
                self.guard.ended_well();
                None
            }
        };
        if let Some(why) = why {
            self.stops.stop(End::Halted { errcode: outcome.errcode, why });
        }
    }
}

#[cfg(test)]
mod tests;
