//! Whether ids repeat, by their fingerprints: eight bytes an id in place of its text.

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

/// The fingerprints of a piece of a list that is read piece by piece, to tell who stands on it and on the piece before.
#[derive(Debug, Default)]
pub struct Neighbours {
    before: QuickSet<u64>,
    here: QuickSet<u64>,
}

impl Neighbours {
    /// Whether all of `ids`, the next piece, come once and none of them stood in the piece before: for certain if so.
    pub fn are_new<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> bool {
        std::mem::swap(&mut self.before, &mut self.here);
        self.here.clear();
        let mut are_new = true;
        for print in ids.into_iter().map(fingerprint) {
            are_new &= self.here.insert(print) && !self.before.contains(&print);
        }
        are_new
    }
}

/// The fingerprint of an id. Two ids have one of the same once in thousands of millions of people squared: whoever acts
/// on that looks closer. Files keep them (`.digest`): another way of taking them is another kind of file.
pub fn fingerprint(id: &str) -> u64 {
    let mut print = Quick::default();
    print.write(id.as_bytes());
    print.finish()
}

/// Whether all of a few ids differ: for certain if so.
pub fn surely_differ<'a>(ids: impl IntoIterator<Item = &'a str>) -> bool {
    let mut prints: Vec<u64> = ids.into_iter().map(fingerprint).collect();
    prints.sort_unstable();
    prints.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_that_differ_are_known_to() {
        assert!(surely_differ(["oA", "oB", "oC"]) && surely_differ([]));
        assert!(!surely_differ(["oA", "oB", "oA"]));
    }

    #[test]
    fn who_stands_on_two_pieces_in_a_row_or_twice_on_one_is_noticed() {
        let mut pieces = Neighbours::default();
        assert!(pieces.are_new(["oA", "oB"]));
        assert!(!pieces.are_new(["oB", "oC"]));
        assert!(pieces.are_new(["oD", "oA"]));
        assert!(!pieces.are_new(["oE", "oE"]));
    }
}
