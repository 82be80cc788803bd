//! Blocked bloom filter: one 512-bit line, so one cache miss, per check.
//!
//! ```text
//! filter := kind u8 (1) | k u8 | bits_per_key_x10 u16 | n_lines u32 | seed u64 | pad to 64 | line(64) × n_lines
//! ```
//!
//! Invariant: a key that was added always passes.
//! Format: docs/format.md#filter
//! Source: Putze, Sanders, Singler 2007, "Cache-, Hash- and Space-Efficient Bloom Filters".

use std::ops::BitOr;

use crate::error::Damage;
use crate::format::coding::Reader;
use crate::types::{u64_of, usize_of};

/// Kind number of a blocked bloom filter, here and in the footer.
pub(crate) const BLOCKED_BLOOM: u8 = 1;

const HEADER: usize = 64;
const LINE_BITS: u64 = 512;
/// Bit positions that one 64-bit word yields, nine bits each.
const PROBES_PER_WORD: u8 = 7;
const MAX_PROBES: u8 = 30;

/// Eight words in one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
struct Line([u64; 8]);

/// A filter in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    k: u8,
    bits_per_key: u8,
    seed: u64,
    lines: Box<[Line]>,
}

impl Filter {
    /// Filter of all `hashes`, sized by their real number.
    pub(crate) fn build(hashes: &[u64], bits_per_key: u8) -> Self {
        let bits = u64_of(hashes.len()).saturating_mul(u64::from(bits_per_key));
        let lines = usize_of(bits.div_ceil(LINE_BITS).clamp(1, u64::from(u32::MAX)));
        // The best k for a line of 512 bits is a little below bits · ln 2.
        let k = u8::try_from(u16::from(bits_per_key) * 3 / 5).unwrap_or(MAX_PROBES);
        let mut filter = Self {
            k: k.clamp(1, MAX_PROBES),
            bits_per_key,
            seed: 0,
            lines: vec![Line([0; 8]); lines].into(),
        };
        for &hash in hashes {
            filter.add(hash);
        }
        filter
    }

    /// Whether a key with this hash may have been added.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let hash = hash ^ self.seed;
        let Some(Line(words)) = self.lines.get(self.line_of(hash)) else {
            return true;
        };
        // All bits are looked at: which one fails first cannot be guessed, that one fails can, and what comes next need not wait.
        let missing = |(word, mask)| mask & !words.get::<usize>(word).copied().unwrap_or(0);
        Probes::new(hash, self.k).map(missing).fold(0, u64::bitor) == 0
    }

    fn add(&mut self, hash: u64) {
        let hash = hash ^ self.seed;
        let line = self.line_of(hash);
        let Some(Line(words)) = self.lines.get_mut(line) else { return };
        for (word, mask) in Probes::new(hash, self.k) {
            if let Some(word) = words.get_mut(word) {
                *word |= mask;
            }
        }
    }

    /// Spreads the upper half of the hash over the lines.
    #[inline]
    fn line_of(&self, hash: u64) -> usize {
        usize_of(((hash >> 32) * u64_of(self.lines.len())) >> 32)
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.lines.len() * HEADER + size_of::<Self>()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.lines.len() * 64);
        out.extend_from_slice(&[BLOCKED_BLOOM, self.k]);
        out.extend_from_slice(&(u16::from(self.bits_per_key) * 10).to_le_bytes());
        let n_lines = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&n_lines.to_le_bytes());
        out.extend_from_slice(&self.seed.to_le_bytes());
        out.resize(HEADER, 0);
        for word in self.lines.iter().flat_map(|Line(words)| words) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(payload);
        let header = "filter header";
        let kind = reader.u8(header)?;
        let k = reader.u8(header)?;
        let bits_per_key_x10 = reader.u16(header)?;
        let n_lines = reader.u32(header)?;
        let seed = reader.u64(header)?;
        reader.bytes(HEADER - 16, header)?;
        let fine = kind == BLOCKED_BLOOM && (1..=MAX_PROBES).contains(&k) && n_lines > 0;
        let (chunks, behind) = reader.rest().as_chunks::<64>();
        if !fine || !behind.is_empty() || u64_of(chunks.len()) != u64::from(n_lines) {
            return Err(Damage { offset: 0, expected: header });
        }
        let bits_per_key = u8::try_from(bits_per_key_x10 / 10).unwrap_or(u8::MAX);
        let lines = chunks.iter().map(line).collect();
        Ok(Self { k, bits_per_key, seed, lines })
    }
}

fn line(bytes: &[u8; 64]) -> Line {
    let mut words = [0; 8];
    let (chunks, _) = bytes.as_chunks::<8>();
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_le_bytes(*chunk);
    }
    Line(words)
}

/// Word and mask of each of the `k` bits of a hash within its line.
struct Probes {
    word: u64,
    left_in_word: u8,
    left: u8,
}

impl Probes {
    #[inline]
    fn new(hash: u64, k: u8) -> Self {
        Self { word: mix(hash), left_in_word: PROBES_PER_WORD, left: k }
    }
}

impl Iterator for Probes {
    type Item = (usize, u64);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        if self.left_in_word == 0 {
            self.word = mix(self.word);
            self.left_in_word = PROBES_PER_WORD;
        }
        self.left_in_word -= 1;
        // Each probe takes the nine top bits; the multiplication of `mix` stirs those best.
        let bit = self.word >> 55;
        self.word = self.word.rotate_left(9);
        Some((usize_of(bit >> 6), 1 << (bit & 63)))
    }
}

#[inline]
const fn mix(hash: u64) -> u64 {
    let stirred = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    stirred ^ (stirred >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::hash_key;

    fn hashes(tag: &str, n: usize) -> Vec<u64> {
        (0..n).map(|i| hash_key(format!("{tag}{i:08}").as_bytes())).collect()
    }

    fn false_positives(filter: &Filter, absent: &[u64]) -> f64 {
        let hits = absent.iter().filter(|&&hash| filter.may_contain(hash)).count();
        f64::from(u32::try_from(hits).unwrap()) / f64::from(u32::try_from(absent.len()).unwrap())
    }

    #[test]
    fn ten_bits_per_key_let_one_absent_key_in_a_hundred_pass_and_every_present_one() {
        let present = hashes("present-", 1_000_000);
        let filter = Filter::build(&present, 10);
        assert!(present.iter().all(|&hash| filter.may_contain(hash)));
        let rate = false_positives(&filter, &hashes("absent-", 1_000_000));
        assert!(rate <= 0.010, "{rate}");
    }

    #[test]
    fn more_bits_let_fewer_absent_keys_pass() {
        let (present, absent) = (hashes("present-", 50_000), hashes("absent-", 50_000));
        let rates = [1, 4, 8, 12, 16, 32]
            .map(|bits| false_positives(&Filter::build(&present, bits), &absent));
        assert!(rates.is_sorted_by(|a, b| a > b), "{rates:?}");
    }

    #[test]
    fn a_filter_comes_back_from_its_bytes() {
        for n in [0, 1, 51, 52, 1000] {
            let filter = Filter::build(&hashes("k", n), 10);
            let bytes = filter.encode();
            assert_eq!(Filter::decode(&bytes).as_ref(), Ok(&filter));
            for len in 0..bytes.len() {
                assert!(Filter::decode(&bytes[..len]).is_err());
            }
        }
    }

    #[test]
    fn a_filter_of_no_key_passes_none() {
        let filter = Filter::build(&[], 10);
        assert_eq!(false_positives(&filter, &hashes("k", 1000)), 0.0);
    }
}
