//! A filter in front of a memtable: most keys that are not in it are turned away by one cache line instead of a search.
//!
//! Source: blocked Bloom filter, Putze, Sanders, Singler 2007; here with atomic words, because readers do not wait for the writer.

use std::sync::atomic::Ordering;

use super::sync::AtomicU64;

/// Bits of a line; a line is one cache line.
const LINE_BITS: usize = 512;
/// Bits that a key sets in its line: nine bits of the hash each.
const PROBES: u32 = 6;
/// Bits per key that the filter is made for.
const BITS_PER_KEY: usize = 10;

/// One writer, any number of readers; never forgets a key.
#[derive(Debug)]
pub(super) struct KeyFilter {
    lines: Box<[Line]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE_BITS / 64]);

impl KeyFilter {
    /// A filter for about `keys` keys: with more of them it only passes more that are not there.
    pub(super) fn new(keys: usize) -> Self {
        let lines = (keys * BITS_PER_KEY).div_ceil(LINE_BITS).max(1);
        Self { lines: std::iter::repeat_with(Line::default).take(lines).collect() }
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Takes in a key. Readers that must see it learn of it by a later store with release ordering.
    pub(super) fn insert(&self, hash: u64) {
        let line = self.line(hash);
        for (word, mask) in bits(hash) {
            // There is one writer: nothing is lost between the load and the store.
            let bits = line.0[word].load(Ordering::Relaxed);
            line.0[word].store(bits | mask, Ordering::Relaxed);
        }
    }

    /// `false`: the key is not there.
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let line = self.line(hash);
        bits(hash).all(|(word, mask)| line.0[word].load(Ordering::Relaxed) & mask != 0)
    }

    /// The line of a key, from the upper half of its hash, without a division.
    fn line(&self, hash: u64) -> &Line {
        let upper = u128::from(hash >> 32);
        let index = (upper * self.lines.len() as u128) >> 32;
        &self.lines[usize::try_from(index).unwrap_or(0)]
    }
}

/// Word and mask of each bit of a key, from a mix of its whole hash.
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    (0..PROBES).map(move |probe| {
        let bit = (mixed >> (9 * probe)) & 511;
        (usize::try_from(bit >> 6).unwrap_or(0), 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::hash_key;

    #[test]
    fn no_key_is_forgotten_and_few_others_pass() {
        let filter = KeyFilter::new(50_000);
        let hash = |number: u32| hash_key(&number.to_be_bytes());
        (0..50_000).for_each(|number| filter.insert(hash(number)));
        assert!((0..50_000).all(|number| filter.may_contain(hash(number))));
        let passed = (100_000..200_000).filter(|number| filter.may_contain(hash(*number))).count();
        assert!(passed < 1_500, "{passed} of 100,000");
    }

    #[test]
    fn the_smallest_filter_works() {
        let filter = KeyFilter::new(0);
        assert!(!filter.may_contain(7));
        filter.insert(7);
        assert!(filter.may_contain(7));
    }
}
