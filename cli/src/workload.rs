//! What a benchmark does: which keys, and values that tell whose they are.

use bytes::{Bytes, BytesMut};

use crate::args::Distribution;

/// Bytes of a value that say whose it is: number of the key, and version.
const HEADER: usize = 16;

/// The key with that number.
pub(crate) fn key(number: u64) -> Bytes {
    format!("key{number:013}").into()
}

/// A value that belongs to a key: one half is noise that follows from its header, the other compresses to nothing.
pub(crate) fn value(number: u64, version: u64, size: usize) -> Bytes {
    let mut value = BytesMut::zeroed(size);
    fill(&mut value, number, version);
    value.freeze()
}

/// Whether `value` is one that was written for the key with that number.
pub(crate) fn belongs(value: &[u8], number: u64, size: usize) -> bool {
    let Some((_, rest)) = value.split_first_chunk::<8>() else { return false };
    let Some((version, _)) = rest.split_first_chunk::<8>() else { return false };
    value.len() == size && {
        let mut expected = vec![0; size];
        fill(&mut expected, number, u64::from_le_bytes(*version));
        value == expected
    }
}

fn fill(value: &mut [u8], number: u64, version: u64) {
    let half = value.len() / 2;
    let (head, body) = value.split_at_mut(HEADER);
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..].copy_from_slice(&version.to_le_bytes());
    let noise = half.min(body.len());
    fastrand::Rng::with_seed(number.rotate_left(32) ^ version).fill(&mut body[..noise]);
}

/// Draws numbers of keys.
#[derive(Clone, Debug)]
pub(crate) enum Draw {
    Uniform { entries: u64 },
    Zipfian(Zipfian),
}

impl Draw {
    pub(crate) fn new(distribution: Distribution, entries: u64) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform { entries },
            Distribution::Zipfian => Self::Zipfian(Zipfian::new(entries)),
        }
    }

    pub(crate) fn next(&self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Uniform { entries } => random.u64(..entries),
            Self::Zipfian(zipfian) => zipfian.scattered(random),
        }
    }
}

/// Numbers of which the n-th most popular comes up 1/n^0.99 as often as the first; the popular ones lie anywhere.
///
/// Source: Gray et al. 1994, "Quickly generating billion-record synthetic databases"; the constant is that of YCSB.
#[derive(Clone, Debug)]
pub(crate) struct Zipfian {
    entries: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    const THETA: f64 = 0.99;

    fn new(entries: u64) -> Self {
        let n = crate::table::real(entries);
        let sum = |count: u64| -> f64 {
            (1..=count).map(|rank| crate::table::real(rank).powf(-Self::THETA)).sum()
        };
        let zeta = sum(entries);
        let eta = (1.0 - (2.0 / n).powf(1.0 - Self::THETA)) / (1.0 - sum(2) / zeta);
        Self { entries, zeta, alpha: 1.0 / (1.0 - Self::THETA), eta }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the number of entries"
    )]
    fn rank(&self, random: &mut fastrand::Rng) -> u64 {
        let draw = random.f64();
        let place = draw * self.zeta;
        if place < 1.0 {
            return 0;
        }
        if place < 1.0 + 0.5_f64.powf(Self::THETA) {
            return 1;
        }
        let share = (self.eta * draw - self.eta + 1.0).powf(self.alpha);
        ((crate::table::real(self.entries) * share) as u64).min(self.entries - 1)
    }

    fn scattered(&self, random: &mut fastrand::Rng) -> u64 {
        /// An odd number near 2^64 divided by the golden ratio: neighbours end up far apart.
        const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
        self.rank(random).wrapping_mul(SCATTER) % self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_belongs_to_its_key_alone() {
        for size in [16, 17, 40, 400] {
            let value = value(7, 3, size);
            assert!(belongs(&value, 7, size) && !belongs(&value, 8, size));
            assert!(!belongs(&value[1..], 7, size));
        }
        let mut damaged = value(7, 3, 100).to_vec();
        damaged[60] ^= 1;
        assert!(!belongs(&damaged, 7, 100));
    }

    #[test]
    fn zipfian_draws_stay_within_and_favour_a_few() {
        let (draw, mut random) =
            (Draw::new(Distribution::Zipfian, 1000), fastrand::Rng::with_seed(1));
        let mut counts = vec![0_u32; 1000];
        for _ in 0..100_000 {
            counts[usize::try_from(draw.next(&mut random)).unwrap()] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert!(counts[0] > 10_000, "the first gets about 13 %: {}", counts[0]);
        assert!(counts[..200].iter().sum::<u32>() > 70_000);
        let one = Draw::new(Distribution::Zipfian, 1);
        assert!((0..100).all(|_| one.next(&mut random) == 0));
    }
}
