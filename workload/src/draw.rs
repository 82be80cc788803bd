//! Which key is next: the distributions.

use crate::entry::SCATTER;
use crate::real;

/// How the keys of a workload are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Each key once, in order.
    Sequence,
    /// Each key once, in an order that looks like chance.
    Shuffled,
    /// Every key as often as any other.
    Uniform,
    /// The n-th most popular key 1/n^0.99 as often as the first; the popular ones lie anywhere.
    Zipfian,
    /// Like `Zipfian`, but the newest key is the most popular, the one before it the second.
    Latest,
    /// Four of five operations go to a fifth of the keys, which lie anywhere.
    Hot,
    /// Nine of ten operations go to a window of a twentieth of the keys, which wanders from the first key to the last.
    Moving,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Number of the operation, over all clients.
    pub(crate) at: u64,
    /// Operations of all clients.
    pub(crate) of: u64,
    /// Keys that this client knows to exist.
    pub(crate) keys: u64,
}

/// Draws numbers of keys.
#[derive(Clone, Debug)]
pub struct Draw {
    distribution: Distribution,
    keys: u64,
    zipfian: Zipfian,
    shuffle: Shuffle,
}

impl Draw {
    /// Draws of `keys` keys, at least one. O(keys) for the zipfian ones.
    #[must_use]
    pub fn new(distribution: Distribution, keys: u64) -> Self {
        let zipfian = match distribution {
            Distribution::Zipfian | Distribution::Latest => Zipfian::new(keys),
            _ => Zipfian::new(1),
        };
        Self { distribution, keys, zipfian, shuffle: Shuffle::new(keys) }
    }

    /// The number at a place of a `Sequence` or of a `Shuffled` order.
    pub(crate) fn nth(&self, random: &mut fastrand::Rng, at: u64) -> u64 {
        self.next(random, Progress { at, of: self.keys, keys: self.keys })
    }

    /// The next number; for `Latest` one that counts from the oldest key.
    pub(crate) fn next(&self, random: &mut fastrand::Rng, progress: Progress) -> u64 {
        match self.distribution {
            Distribution::Sequence => progress.at % self.keys,
            Distribution::Shuffled => self.shuffle.at(progress.at % self.keys),
            Distribution::Uniform => random.u64(..self.keys),
            Distribution::Zipfian => self.zipfian.rank(random).wrapping_mul(SCATTER) % self.keys,
            Distribution::Latest => (progress.keys - 1).saturating_sub(self.zipfian.rank(random)),
            Distribution::Hot => {
                let hot = self.keys.div_ceil(5);
                let number = if random.u8(..5) < 4 || hot == self.keys {
                    random.u64(..hot)
                } else {
                    random.u64(hot..self.keys)
                };
                self.shuffle.at(number)
            }
            Distribution::Moving => {
                let window = self.keys.div_ceil(20);
                let way = u128::from(self.keys - window) * u128::from(progress.at);
                let begin = u64::try_from(way / u128::from(progress.of.max(1))).unwrap_or(0);
                if random.u8(..10) < 9 {
                    (begin + random.u64(..window)).min(self.keys - 1)
                } else {
                    random.u64(..self.keys)
                }
            }
        }
    }
}

/// Ranks of which the n-th comes up 1/n^0.99 as often as the first.
///
/// Source: Gray et al. 1994, "Quickly generating billion-record synthetic databases"; the constant is that of YCSB.
#[derive(Clone, Debug)]
struct Zipfian {
    entries: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    const THETA: f64 = 0.99;

    fn new(entries: u64) -> Self {
        let sum =
            |count: u64| -> f64 { (1..=count).map(|rank| real(rank).powf(-Self::THETA)).sum() };
        let zeta = sum(entries);
        let eta = (1.0 - (2.0 / real(entries)).powf(1.0 - Self::THETA)) / (1.0 - sum(2) / zeta);
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
        if place < 1.0 || self.entries == 1 {
            return 0;
        }
        if place < 1.0 + 0.5_f64.powf(Self::THETA) {
            return 1;
        }
        let share = (self.eta * draw - self.eta + 1.0).powf(self.alpha);
        ((real(self.entries) * share) as u64).min(self.entries - 1)
    }
}

/// A permutation of the numbers below `entries` that looks like chance, without a table.
///
/// Source: a Feistel network of four rounds over the next even number of bits, walked until it is back below `entries`.
#[derive(Clone, Debug)]
struct Shuffle {
    entries: u64,
    half: u32,
}

impl Shuffle {
    fn new(entries: u64) -> Self {
        let bits = u64::BITS - entries.saturating_sub(1).leading_zeros();
        Self { entries, half: bits.div_ceil(2).max(1) }
    }

    fn at(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let mut place = number;
        loop {
            let (mut left, mut right) = (place >> self.half, place & mask);
            for round in 1..=4_u64 {
                let mixed = (right + round).wrapping_mul(SCATTER);
                (left, right) = (right, left ^ ((mixed >> 29) ^ (mixed >> 47)) & mask);
            }
            place = left << self.half | right;
            if place < self.entries {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(distribution: Distribution, keys: u64, draws: u64) -> Vec<u32> {
        let (draw, mut random) = (Draw::new(distribution, keys), fastrand::Rng::with_seed(1));
        let mut counts = vec![0; usize::try_from(keys).unwrap()];
        for at in 0..draws {
            let number = draw.next(&mut random, Progress { at, of: draws, keys });
            counts[usize::try_from(number).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn a_shuffle_draws_each_key_once() {
        for keys in [1, 2, 3, 1000, 1024, 1025] {
            assert!(counts(Distribution::Shuffled, keys, keys).iter().all(|&count| count == 1));
            assert!(counts(Distribution::Sequence, keys, keys).iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn zipfian_draws_stay_within_and_favour_a_few() {
        let mut scattered = counts(Distribution::Zipfian, 1000, 100_000);
        scattered.sort_unstable_by(|a, b| b.cmp(a));
        assert!(scattered[0] > 10_000, "the first gets about 13 %: {}", scattered[0]);
        assert!(scattered[..200].iter().sum::<u32>() > 70_000);
        let latest = counts(Distribution::Latest, 1000, 100_000);
        assert!(latest[999] > 10_000 && latest[999] > latest[998]);
        assert_eq!(counts(Distribution::Zipfian, 1, 100), [100]);
    }

    #[test]
    fn four_of_five_draws_go_to_the_hot_fifth() {
        let mut hot = counts(Distribution::Hot, 1000, 100_000);
        hot.sort_unstable_by(|a, b| b.cmp(a));
        let share = hot[..200].iter().sum::<u32>();
        assert!((78_000..82_000).contains(&share), "{share}");
    }

    #[test]
    fn the_moving_window_reaches_every_key() {
        let moving = counts(Distribution::Moving, 1000, 100_000);
        assert!(moving.iter().all(|&count| count > 0));
        assert_eq!(counts(Distribution::Moving, 1, 10), [10]);
    }
}
