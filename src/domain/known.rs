//! Whether an id was met before, by its fingerprint: eight bytes a person and no more than a bound.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// A table for few values of a process of its own, quicker than the standard one, which guards against senders who
/// choose what collides.
pub type QuickSet<T> = HashSet<T, BuildHasherDefault<Quick>>;

/// Folded multiplication over eight bytes at a time.
#[derive(Default)]
pub struct Quick(u64);

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
const OTHER: u64 = 0xD6E8_FEB8_6659_FD93;

impl Quick {
    fn mix(&mut self, word: u64) {
        let product = u128::from((self.0 ^ word).wrapping_add(OTHER)) * u128::from(ODD);
        let bytes = product.to_le_bytes();
        let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        self.0 = half(0) ^ half(8).rotate_left(29);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.mix(u64::from_le_bytes(last) ^ OTHER.rotate_left(u32::try_from(rest.len()).unwrap_or(0)));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 ^= u64::from(byte);
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Ids that were met. Two ids of one fingerprint (once in thousands of millions of people squared) are told as one met
/// again: whoever acts on `true` looks closer. Past its bound it forgets everything and says so.
#[derive(Debug, Default)]
pub struct Known {
    prints: QuickSet<u64>,
    is_full: bool,
}

impl Known {
    /// Just below where a table of 2^20 places would double.
    const MOST: usize = 900_000;

    /// Whether `id` was met before; then it is met. Always `false` when it is [full](Self::is_full).
    pub fn meets_again(&mut self, id: &str) -> bool {
        if self.is_full {
            return false;
        }
        let mut print = Quick::default();
        print.write(id.as_bytes());
        let is_new = self.prints.insert(print.finish());
        if self.prints.len() > Self::MOST {
            *self = Self { is_full: true, ..Self::default() };
        }
        !is_new
    }

    /// Whether there were too many: nothing is known any more.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_taken_for_somebody_else_and_past_the_bound_nothing_is_claimed() {
        let mut known = Known::default();
        for number in 0..Known::MOST {
            assert!(!known.meets_again(&format!("o6_bmjrPTlm6_2sgVt7hMZOP{number:06}")));
        }
        assert!(known.meets_again("o6_bmjrPTlm6_2sgVt7hMZOP000007"));
        assert!(!known.is_full());
        assert!(!known.meets_again("one more"));
        assert!(known.is_full() && !known.meets_again("one more"));
    }
}
