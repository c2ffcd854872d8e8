//! Letters that wait for their moment: what the platform does later.
//!
//! A bag in the order of the moments the letters are due; `postman` takes them out. Whoever comes past the bag's limit is
//! lost, as it is when the platform gives up.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::world::World;

/// Events that may wait.
const BAG_LIMIT: usize = 4_000_000;

/// Something that is to happen later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letter {
    /// Somebody came or went.
    Follow {
        index: u64,
        comes: bool,
        /// When they did; the event may be told much later.
        at_seconds: i64,
        copies: u8,
    },
    Finish {
        index: u64,
        msgid: u64,
        status: FinishStatus,
        copies: u8,
    },
    /// The review of a held message ends; one that passed is delivered.
    Review {
        index: u64,
        template: usize,
        msgid: u64,
        passes: bool,
    },
    /// An event in the words of whoever ordered it.
    Other(Box<Event>),
    /// The check of the address, as when it is entered in the console.
    Check,
}

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub index: u64,
    /// `None`: when it is told.
    pub created_at_seconds: Option<i64>,
    /// What stands behind the fields that every event has.
    pub inner: String,
    pub copies: u8,
}

/// What a finish event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishStatus {
    Success,
    UserBlock,
    SystemFailed,
    FreqLimit,
    /// One that no documentation names.
    Unheard,
}

impl FinishStatus {
    pub fn spelled(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::UserBlock => "failed:user block",
            // The blank is the platform's.
            Self::SystemFailed => "failed: system failed",
            Self::FreqLimit => "failed:freq limit",
            Self::Unheard => "Failed: Not Heard Of",
        }
    }
}

/// How the posting went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackReport {
    /// Events that wait for their moment.
    pub waiting: u64,
    /// Posts that were answered well.
    pub taken: u64,
    /// Tries that were answered badly, late or not at all.
    pub failed_tries: u64,
    /// Posts given up after three tries, or lost because too many waited.
    pub given_up: u64,
    /// Checks of the address that were answered with their echostr and nothing else.
    pub checks_passed: u64,
    pub checks_failed: u64,
}

/// Letters in the order of the moments they are due.
#[derive(Default)]
pub struct Mailbag {
    letters: Mutex<BinaryHeap<Due>>,
    arrived: Notify,
    sequence: AtomicU64,
    pub(super) sums: Sums,
}

/// What became of them.
#[derive(Default)]
pub(super) struct Sums {
    pub taken: AtomicU64,
    pub failed_tries: AtomicU64,
    pub given_up: AtomicU64,
    pub checks_passed: AtomicU64,
    pub checks_failed: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
struct Due {
    at_micros: i64,
    sequence: u64,
    letter: Letter,
}

impl Ord for Due {
    /// Reversed: a heap gives its greatest, and the earliest is wanted.
    fn cmp(&self, other: &Self) -> Order {
        (other.at_micros, other.sequence).cmp(&(self.at_micros, self.sequence))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Mailbag {
    pub fn put(&self, at_micros: i64, letter: Letter) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut letters = self.letters.lock().expect("no holder of the bag panics");
        if letters.len() >= BAG_LIMIT {
            self.sums.given_up.fetch_add(1, Ordering::Relaxed);
            return;
        }
        letters.push(Due { at_micros, sequence, letter });
        drop(letters);
        self.arrived.notify_one();
    }

    /// Looks again at what is due, after the clock was moved.
    pub fn look_again(&self) {
        self.arrived.notify_waiters();
    }

    pub fn report(&self) -> CallbackReport {
        let waiting = self.letters.lock().expect("no holder of the bag panics").len();
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        CallbackReport {
            waiting: u64::try_from(waiting).expect("a length fits in 64 bits"),
            taken: read(&self.sums.taken),
            failed_tries: read(&self.sums.failed_tries),
            given_up: read(&self.sums.given_up),
            checks_passed: read(&self.sums.checks_passed),
            checks_failed: read(&self.sums.checks_failed),
        }
    }

    /// The next letter, when it is due. Dropping the future takes none out.
    pub(super) async fn next(&self, world: &World) -> Letter {
        loop {
            let arrived = self.arrived.notified();
            let wait = match self.take_due(world.clock.now_micros()) {
                Ok(letter) => return letter,
                Err(wait) => wait,
            };
            match wait {
                None => arrived.await,
                Some(wait) => tokio::select! {
                    () = arrived => {}
                    () = world.clock.wait(wait) => {}
                },
            }
        }
    }

    /// A letter that is due, or how long the earliest has to wait.
    fn take_due(&self, now_micros: i64) -> Result<Letter, Option<Duration>> {
        let mut letters = self.letters.lock().expect("no holder of the bag panics");
        match letters.peek() {
            None => Err(None),
            Some(first) if first.at_micros > now_micros => {
                Err(Some(Duration::from_micros(first.at_micros.abs_diff(now_micros))))
            }
            Some(_) => Ok(letters.pop().expect("a heap that was looked into is not empty").letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bag_gives_the_earliest_first_and_nothing_too_early() {
        let come = |index| Letter::Follow { index, comes: true, at_seconds: 0, copies: 1 };
        let bag = Mailbag::default();
        bag.put(200, come(2));
        bag.put(100, come(1));
        assert_eq!(bag.take_due(50), Err(Some(Duration::from_micros(50))));
        assert_eq!(bag.take_due(300), Ok(come(1)));
        assert_eq!(bag.take_due(300), Ok(come(2)));
        assert_eq!(bag.take_due(300), Err(None));
    }
}
