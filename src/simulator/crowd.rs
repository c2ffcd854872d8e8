//! Who follows the account at this moment: the first `followers` indices, less those who left, plus those who came.
//!
//! Only the exceptions are held, so ten million steady followers cost nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use super::people::mix;

/// Tables of indices: nobody chooses what collides, and each place of the list is looked up.
type Mixed = BuildHasherDefault<MixedIndex>;

#[derive(Debug, Default)]
struct MixedIndex(u64);

impl Hasher for MixedIndex {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, index: u64) {
        self.0 = mix(self.0 ^ index);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The exceptions to "everybody below `base` follows".
#[derive(Debug)]
pub struct Crowd {
    base: u64,
    total: u64,
    next_new: u64,
    next_to_leave: u64,
    left: HashSet<u64, Mixed>,
    /// Those who left, in a steady order; some may have come back since.
    leavers: Vec<u64>,
    came: HashMap<u64, i64, Mixed>,
    blacklist: BTreeSet<u64>,
}

/// How a person stands to the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Follows; `since` in seconds is there when they came after the world began.
    Follows { since: Option<i64> },
    /// Followed once.
    Left,
    /// Never followed: the account does not know this openid.
    Stranger,
}

impl Crowd {
    pub fn new(followers: u64) -> Self {
        Self {
            base: followers,
            total: followers,
            next_new: followers,
            next_to_leave: 0,
            left: HashSet::default(),
            leavers: Vec::new(),
            came: HashMap::default(),
            blacklist: BTreeSet::new(),
        }
    }

    /// How many follow now.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn standing(&self, index: u64) -> Standing {
        let known = index < self.base || (!self.came.is_empty() && self.came.contains_key(&index));
        if !known {
            Standing::Stranger
        } else if !self.left.is_empty() && self.left.contains(&index) {
            Standing::Left
        } else {
            Standing::Follows { since: self.came.get(&index).copied() }
        }
    }

    pub fn follows(&self, index: u64) -> bool {
        matches!(self.standing(index), Standing::Follows { .. })
    }

    /// Lets a person follow at `now_seconds`; false when they already did.
    pub fn follow(&mut self, index: u64, now_seconds: i64) -> bool {
        if self.follows(index) {
            return false;
        }
        self.left.remove(&index);
        self.came.insert(index, now_seconds);
        self.total += 1;
        true
    }

    /// Lets a person unfollow; false when they did not follow.
    pub fn unfollow(&mut self, index: u64) -> bool {
        let leaves = self.follows(index) && self.left.insert(index);
        if leaves {
            self.total -= 1;
            self.leavers.push(index);
        }
        leaves
    }

    /// One of those below the next newcomer, by a draw: nearly all of them follow.
    pub fn known_at(&self, draw: u64) -> u64 {
        draw % self.next_new.max(1)
    }

    /// Somebody who left and did not come back, by a draw.
    pub fn returner(&mut self, draw: u64) -> Option<u64> {
        while !self.leavers.is_empty() {
            let place = draw % wide(self.leavers.len());
            let index = self.leavers.swap_remove(usize::try_from(place).expect("a place in a vector is an index"));
            if self.standing(index) == Standing::Left {
                return Some(index);
            }
        }
        None
    }

    /// Somebody who never followed, if the world has room for one.
    pub fn newcomer(&mut self, capacity: u64) -> Option<u64> {
        while self.next_new < capacity {
            let index = self.next_new;
            self.next_new += 1;
            if self.standing(index) == Standing::Stranger {
                return Some(index);
            }
        }
        None
    }

    /// The next of those who may grow tired of the account, if anybody of the first crowd still follows.
    pub fn leaver(&mut self) -> Option<u64> {
        while self.next_to_leave < self.base {
            let index = self.next_to_leave;
            self.next_to_leave += 1;
            if self.follows(index) {
                return Some(index);
            }
        }
        None
    }

    /// Keeps a person out, or no longer.
    pub fn blacklist(&mut self, index: u64, keep_out: bool) {
        if keep_out {
            self.blacklist.insert(index);
        } else {
            self.blacklist.remove(&index);
        }
    }

    pub fn is_blacklisted(&self, index: u64) -> bool {
        !self.blacklist.is_empty() && self.blacklist.contains(&index)
    }

    /// Those whom the account keeps out, in a steady order.
    pub fn blacklisted(&self) -> impl Iterator<Item = u64> + '_ {
        self.blacklist.iter().copied()
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).expect("a count fits in 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_follows_comings_and_goings() {
        let mut crowd = Crowd::new(10);
        assert!(crowd.unfollow(3));
        assert!(!crowd.unfollow(3));
        assert_eq!(crowd.standing(3), Standing::Left);
        assert_eq!(crowd.newcomer(100), Some(10));
        assert!(crowd.follow(10, 5));
        assert_eq!(crowd.total(), 10);
        assert!(crowd.follow(3, 6));
        assert_eq!(crowd.total(), 11);
        assert_eq!(crowd.standing(3), Standing::Follows { since: Some(6) });
        assert!(crowd.unfollow(10));
        assert_eq!(crowd.total(), 10);
        assert_eq!(crowd.standing(11), Standing::Stranger);
    }
}
