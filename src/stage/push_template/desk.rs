//! The desk of the sender: what is to be sent, when, and what became of it. Whoever sends comes here with an answer and
//! leaves with the next message. It neither waits nor sends.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::Guard;
use super::judge::{Verdict, judge};
use super::record::{Settled, put_back};
use super::silence::Silence;
use super::{End, Item, Stops, too_old_to_repeat};
use crate::clock::Timestamp;
use crate::config::settings::{HaltWhen, PushTemplate};
use crate::domain::{DeliveryState, may_repeat};
use crate::ledger::Outcome;
use crate::pace::{SharedPace, Turn};
use crate::wechat::SendOutcome;

/// Turns this near are taken at once: timers are no finer.
const AT_ONCE: Duration = Duration::from_micros(500);

pub struct Desk {
    stops: Arc<Stops>,
    pace: SharedPace,
    guard: Guard,
    halt_when: HaltWhen,
    concurrency: usize,
    constant_fields: Vec<String>,
    too_old: DeliveryState,
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
            too_old: too_old_to_repeat(plan),
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
        let at = match self.turn.take() {
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
                state: self.too_old,
                reason: Some("no answer while a repeat was safe".to_owned()),
                errcode: item.last_errcode,
                msgid: None,
                at: now,
                retry_at: None,
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
