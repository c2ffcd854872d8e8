//! Whether any id came twice, by its fingerprint: eight bytes a person and no more than a bound.

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

/// The fingerprint of an id. Two ids have one of the same once in thousands of millions of people squared: whoever acts
/// on that looks closer.
fn fingerprint(id: &str) -> u64 {
    let mut print = Quick::default();
    print.write(id.as_bytes());
    print.finish()
}

/// Fingerprints in the order they came, to tell at the end whether any came twice: a table of so many would miss the
/// processor's cache with each of them, a list does not.
#[derive(Debug, Default)]
pub struct Fingerprints {
    prints: Vec<u64>,
    is_full: bool,
}

impl Fingerprints {
    const MOST: usize = 1 << 20;

    pub fn note(&mut self, id: &str) {
        if self.prints.len() == Self::MOST {
            *self = Self { prints: Vec::new(), is_full: true };
        }
        if !self.is_full {
            self.prints.push(fingerprint(id));
        }
    }

    /// Whether every id came once for certain. `false` too when there were more than a million.
    pub fn are_distinct(&mut self) -> bool {
        self.prints.sort_unstable();
        !self.is_full && self.prints.windows(2).all(|pair| pair[0] != pair[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_taken_for_somebody_else_and_past_the_bound_nothing_is_claimed() {
        let mut prints = Fingerprints::default();
        for number in 0..Fingerprints::MOST {
            prints.note(&format!("o6_bmjrPTlm6_2sgVt7hMZOP{number:07}"));
        }
        assert!(prints.are_distinct());
        prints.note("one more");
        assert!(!prints.are_distinct() && prints.prints.is_empty());
        let mut twice = Fingerprints::default();
        ["oA", "oB", "oA"].iter().for_each(|id| twice.note(id));
        assert!(!twice.are_distinct());
    }
}
