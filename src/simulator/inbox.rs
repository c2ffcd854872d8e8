//! What people received, a byte for each of a chunk in which anybody received anything, and which sends were seen before.
//!
//! The count of deliveries a person is the proof the whole product is measured by, so it is counted here and nowhere
//! else. The memory of earlier sends is sharded and forgets by generation: a key lives for one to two windows, and
//! its age is judged by the second it was accepted in.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use serde::{Deserialize, Serialize};

/// The sums over all inboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxReport {
    /// People who received anything.
    pub people: u64,
    pub once: u64,
    pub twice_or_more: u64,
    /// Deliveries in all.
    pub messages: u64,
    pub most_to_one: u64,
    /// Accepted, but the finish event said it failed.
    pub undelivered: u64,
    /// Calls that repeated an accepted send and were not delivered again.
    pub repeats_kept_off: u64,
}

/// People of one chunk.
const CHUNK_PEOPLE: usize = 1 << 16;

type Chunk = Box<[AtomicU8]>;

/// Deliveries counted by person. A chunk is made at its first delivery: a crowd that is only looked at costs nothing.
pub struct Inbox {
    received: Vec<OnceLock<Chunk>>,
    messages: AtomicU64,
    undelivered: AtomicU64,
    repeats_kept_off: AtomicU64,
}

impl Inbox {
    /// Room for `people`.
    pub fn new(people: u64) -> Self {
        let people = usize::try_from(people).expect("a world's people can be counted by an index");
        Self {
            received: (0..people.div_ceil(CHUNK_PEOPLE)).map(|_| OnceLock::new()).collect(),
            messages: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
            repeats_kept_off: AtomicU64::new(0),
        }
    }

    /// Puts one message into a person's inbox. A person's count stays at 255 once it is there.
    pub fn deliver(&self, index: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        // An error says that the count is full; the sum above still grows.
        let (chunk, place) = place_of(index);
        let made = self.received[chunk].get_or_init(|| (0..CHUNK_PEOPLE).map(|_| AtomicU8::new(0)).collect());
        let _full = made[place].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
    }

    pub fn miss(&self) {
        self.undelivered.fetch_add(1, Ordering::Relaxed);
    }

    pub fn keep_off(&self) {
        self.repeats_kept_off.fetch_add(1, Ordering::Relaxed);
    }

    pub fn received(&self, index: u64) -> u32 {
        let (chunk, place) = place_of(index);
        self.received[chunk].get().map_or(0, |chunk| u32::from(chunk[place].load(Ordering::Relaxed)))
    }

    /// Empties every inbox, for a second push to be counted by itself.
    pub fn clear(&self) {
        self.counts().for_each(|count| count.store(0, Ordering::Relaxed));
        [&self.messages, &self.undelivered, &self.repeats_kept_off]
            .into_iter()
            .for_each(|sum| sum.store(0, Ordering::Relaxed));
    }

    /// Walks over everybody in a chunk: a few milliseconds for ten million.
    pub fn report(&self) -> InboxReport {
        let mut report = InboxReport {
            people: 0,
            once: 0,
            twice_or_more: 0,
            messages: self.messages.load(Ordering::Relaxed),
            most_to_one: 0,
            undelivered: self.undelivered.load(Ordering::Relaxed),
            repeats_kept_off: self.repeats_kept_off.load(Ordering::Relaxed),
        };
        for count in self.counts() {
            match count.load(Ordering::Relaxed) {
                0 => continue,
                1 => report.once += 1,
                _ => report.twice_or_more += 1,
            }
            report.people += 1;
            report.most_to_one = report.most_to_one.max(u64::from(count.load(Ordering::Relaxed)));
        }
        report
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicU8> {
        self.received.iter().filter_map(OnceLock::get).flatten()
    }
}

/// The chunk of a person, and the place in it.
fn place_of(index: u64) -> (usize, usize) {
    let index = usize::try_from(index).expect("an index is below the world's people");
    (index / CHUNK_PEOPLE, index % CHUNK_PEOPLE)
}

const SHARDS: usize = 64;

/// Which keys were accepted within a window, and when.
pub struct Remembered {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    young: Generation,
    old: Generation,
    turned_at_seconds: u32,
}

type Generation = HashMap<u64, u32, BuildHasherDefault<AlreadyHashed>>;

impl Default for Remembered {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Remembered {
    /// When `key` was first accepted within the last `window_seconds`; `None` remembers it as accepted now.
    pub fn first_seen(&self, key: u64, now_seconds: i64, window_seconds: u32) -> Option<u32> {
        let now = u32::try_from(now_seconds).expect("the clock stands between 1970 and 2106");
        let mut shard = self.shard(key);
        shard.turn(now, window_seconds);
        let seen = shard.young.get(&key).or_else(|| shard.old.get(&key)).copied();
        match seen {
            Some(at) if now.saturating_sub(at) < window_seconds => Some(at),
            _ => {
                shard.young.insert(key, now);
                None
            }
        }
    }
}

impl Remembered {
    /// Whether `key` was accepted within the last `window_seconds`; remembers nothing.
    pub fn knows(&self, key: u64, now_seconds: i64, window_seconds: u32) -> bool {
        let now = u32::try_from(now_seconds).expect("the clock stands between 1970 and 2106");
        let mut shard = self.shard(key);
        shard.turn(now, window_seconds);
        let seen = shard.young.get(&key).or_else(|| shard.old.get(&key));
        seen.is_some_and(|at| now.saturating_sub(*at) < window_seconds)
    }

    fn shard(&self, key: u64) -> std::sync::MutexGuard<'_, Shard> {
        let place = usize::try_from(key >> 58).expect("six bits are an index");
        self.shards[place].lock().expect("no holder of a shard panics")
    }
}

impl Shard {
    fn turn(&mut self, now: u32, window_seconds: u32) {
        if now.saturating_sub(self.turned_at_seconds) >= window_seconds {
            self.old = std::mem::take(&mut self.young);
            self.turned_at_seconds = now;
        }
    }
}

/// Takes a key as its own hash: keys are mixed already.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |state, byte| state.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_tells_once_from_twice() {
        let inbox = Inbox::new(10);
        inbox.deliver(3);
        inbox.deliver(4);
        inbox.deliver(4);
        let report = inbox.report();
        assert_eq!((report.people, report.once, report.twice_or_more), (2, 1, 1));
        assert_eq!((report.messages, report.most_to_one), (3, 2));
        assert_eq!(inbox.received(4), 2);
        inbox.clear();
        assert_eq!(inbox.report().people, 0);
    }

    #[test]
    fn a_crowd_of_fifty_million_costs_only_the_chunks_that_received_something() {
        let inbox = Inbox::new(50_000_000);
        inbox.deliver(49_999_999);
        inbox.deliver(3);
        assert_eq!((inbox.received(49_999_999), inbox.received(25_000_000)), (1, 0));
        assert_eq!((inbox.report().people, inbox.counts().count()), (2, 2 * CHUNK_PEOPLE));
    }

    #[test]
    fn a_full_count_never_turns_over() {
        let inbox = Inbox::new(1);
        (0..300).for_each(|_| inbox.deliver(0));
        assert_eq!((inbox.received(0), inbox.report().messages), (255, 300));
    }

    #[test]
    fn a_key_is_remembered_for_its_window_and_no_longer() {
        let remembered = Remembered::default();
        assert_eq!(remembered.first_seen(9, 10_000, 600), None);
        assert!(remembered.knows(9, 10_599, 600) && !remembered.knows(8, 10_599, 600));
        assert_eq!(remembered.first_seen(9, 10_599, 600), Some(10_000));
        assert_eq!(remembered.first_seen(9, 10_600, 600), None);
        assert_eq!(remembered.first_seen(9, 11_100, 600), Some(10_600));
    }
}
