//! How many runs a slot should hold: a cost model over measured coefficients, and when a merge has paid for itself.
//!
//! Writes cost less with more runs, reads cost more. The model weighs both for every K; hysteresis and dwell keep it calm;
//! going down waits until reads have paid rent for the extra runs (ski rental).

use crate::config::ATLLConfig;
use crate::types::Level;

/// Most runs that the model considers: more buys almost nothing.
pub(crate) const MAX_K: u8 = 4;
/// Runs that a slot may have beyond its K before nothing more is put in.
const SLACK: usize = 4;
/// Most runs that a slot may ever have.
pub(crate) const MAX_RUNS: usize = 8;

/// Average writes per byte until promotion, for `T` fragments and K = 1..=4. Source: optimal schedules by dynamic programming.
const WRITES: [(f64, [f64; 4]); 5] = [
    (4.0, [2.5, 1.5, 1.25, 1.0]),
    (8.0, [4.5, 2.12, 1.62, 1.5]),
    (10.0, [5.5, 2.4, 1.8, 1.6]),
    (16.0, [8.5, 3.12, 2.25, 1.88]),
    (32.0, [16.5, 4.59, 3.03, 2.44]),
];
/// Average number of runs that a read meets, for K = 1..=4.
const RUNS: [f64; 4] = [1.0, 1.6, 2.2, 2.7];
/// Nanoseconds of a probe of a run whose filter says no.
const PROBE: f64 = 55.0;
/// Nanoseconds to find the place in a run, beside the block there.
const SEEK: f64 = 500.0;
/// Nanoseconds of a step of a scan for each extra run that it merges.
const ITEM: f64 = 30.0;
/// Measured reads of blocks that weigh as much as what is known already.
const FEW_READS: f64 = 256.0;
/// Space that a byte of duplicates costs, in nanoseconds per second.
const SPACE: f64 = 1e-3;
/// Share of its cost that a slot must save before its K is changed.
const HYSTERESIS: f64 = 0.10;
/// Ticks between two changes of K.
pub(crate) const DWELL: u32 = 3;
/// Cost in nanoseconds per second below which a slot is not worth a thought.
const LEAST_COST: f64 = 1e4;
/// Rent, as a share of the price of a merge, at which the merge is bought.
const BETA: f64 = 0.5;

/// What reads and writes cost, in nanoseconds: starts with guesses, goes on with measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Costs {
    /// Per byte rewritten.
    pub(crate) write: f64,
    /// Per block that a reader needs, wherever it is.
    pub(crate) block: f64,
    /// Share of the keys that are not in a run which its filter lets pass.
    pub(crate) passed: f64,
}

impl Costs {
    /// Guesses for `bits` of filter per key.
    pub(crate) fn new(config: &ATLLConfig) -> Self {
        let bits = i32::try_from(config.filters.bloom_bits_per_key).unwrap_or(0);
        // A bloom filter passes 0.6185^bits of the keys that it does not hold.
        Self { write: 8.0, block: 1000.0, passed: 0.6185_f64.powi(bits) }
    }

    /// Takes in what was measured since the last look: half of it counts at most, less if it is little.
    pub(crate) fn blocks_read(&mut self, reads: BlockReads) {
        if reads.nanos == 0 {
            return; // the clock stands still
        }
        let count = reads.count as f64;
        let mean = reads.nanos as f64 / count.max(1.0);
        self.block += (count / (count + FEW_READS)).min(0.5) * (mean - self.block);
    }

    /// Per extra run that a get probes, false positives included.
    pub(crate) fn probe(&self) -> f64 {
        PROBE + self.passed * self.block
    }

    /// What an extra run costs so many gets, seeks and items scanned.
    pub(crate) fn rent(&self, gets: f64, seeks: f64, items: f64) -> f64 {
        gets * self.probe() + seeks * (SEEK + self.block) + items * ITEM
    }

    /// Takes in a finished job that took `nanos` for `bytes` in and out.
    pub(crate) fn measured(&mut self, nanos: f64, bytes: f64) {
        if bytes >= 1.0 && nanos > 0.0 {
            let sample = (nanos / bytes).clamp(0.1, 1000.0);
            self.write += 0.1 * (sample - self.write);
        }
    }
}

/// Reads of blocks that were measured: how long they took together, and how many they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockReads {
    pub(crate) nanos: u64,
    pub(crate) count: u64,
}

impl BlockReads {
    /// What came in since `before`; everything, if that is of another time.
    pub(crate) fn since(self, before: Self) -> Self {
        if self.nanos < before.nanos || self.count < before.count {
            return self;
        }
        Self { nanos: self.nanos - before.nanos, count: self.count - before.count }
    }
}

/// Traffic of a slot, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) gets: f64,
    pub(crate) seeks: f64,
    /// Items that an average seek goes on to scan.
    pub(crate) items_per_seek: f64,
    /// Bytes that arrive from above.
    pub(crate) written: f64,
}

impl Rates {
    /// Cost of one extra run, in nanoseconds per second.
    pub(crate) fn rent(&self, costs: &Costs) -> f64 {
        costs.rent(self.gets, self.seeks, self.seeks * self.items_per_seek)
    }
}

/// What the model knows of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SlotModel {
    pub(crate) rates: Rates,
    pub(crate) bytes: f64,
    /// Fragments that arrive between two promotions.
    pub(crate) fragments: f64,
}

/// Most runs that the model may choose, and least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) least: u8,
    pub(crate) most: u8,
}

/// Modelled cost of holding up to `k` runs, in nanoseconds per second.
pub(crate) fn cost(costs: &Costs, slot: &SlotModel, k: u8) -> f64 {
    let at = usize::from(k.clamp(1, MAX_K)) - 1;
    let writes = slot.rates.written * costs.write * writes_per_byte(slot.fragments, at);
    let reads = slot.rates.rent(costs) * (RUNS.get(at).copied().unwrap_or(1.0) - 1.0);
    // One byte in ten is taken for a duplicate of one in a newer run.
    let space = SPACE * slot.bytes * 0.1 * f64::from(k.saturating_sub(1));
    writes + reads + space
}

/// Linear between the rows of the table.
fn writes_per_byte(fragments: f64, at: usize) -> f64 {
    let value = |row: &(f64, [f64; 4])| row.1.get(at).copied().unwrap_or(1.0);
    let mut below = &WRITES[0];
    for row in &WRITES {
        if fragments <= row.0 {
            let span = (row.0 - below.0).max(f64::MIN_POSITIVE);
            let share = ((fragments - below.0) / span).clamp(0.0, 1.0);
            return value(below) + share * (value(row) - value(below));
        }
        below = row;
    }
    value(below)
}

/// The K that a slot should have, given the one it has: the same unless another saves enough.
pub(crate) fn choose(costs: &Costs, slot: &SlotModel, now: u8, bounds: Bounds) -> u8 {
    let most = bounds.most.max(1);
    let least = bounds.least.clamp(1, most);
    let bounded = now.clamp(least, most);
    let mut best = bounded;
    for k in least..=most {
        if cost(costs, slot, k) < cost(costs, slot, best) {
            best = k;
        }
    }
    let (have, could) = (cost(costs, slot, bounded), cost(costs, slot, best));
    if have >= LEAST_COST && have - could >= HYSTERESIS * have { best } else { bounded }
}

/// Number of newest runs whose merge reads have paid for, if any: the one with the largest surplus.
///
/// `runs`: bytes of each, newest first. `debt`: rent paid per extra run since the last merge, in nanoseconds.
pub(crate) fn paid_merge(costs: &Costs, runs: &[u64], debt: f64) -> Option<usize> {
    let mut best = None;
    let (mut bytes, mut extra) = (0.0, 0.0);
    for (at, run) in runs.iter().enumerate() {
        bytes += *run as f64;
        let surplus = extra * debt - BETA * bytes * costs.write;
        extra += 1.0;
        if at > 0 && surplus >= 0.0 && best.is_none_or(|(most, _)| surplus > most) {
            best = Some((surplus, at + 1));
        }
    }
    best.map(|(_, count)| count)
}

/// Number of newest runs to merge so that at most `k` are left: as few as must be, and then every older one that is
/// not larger than what is merged already.
pub(crate) fn due_merge(runs: &[u64], k: usize) -> usize {
    let mut count = (runs.len() + 1).saturating_sub(k.max(1)).max(2).min(runs.len());
    let mut bytes: u64 = runs.iter().take(count).sum();
    while let Some(older) = runs.get(count).filter(|older| **older <= bytes) {
        bytes += older;
        count += 1;
    }
    count
}

/// K of a slot for which none was chosen.
pub(crate) fn default_k(config: &ATLLConfig, level: Level) -> u8 {
    match level.0 {
        0 | 1 => config.default_k.l1,
        2 => config.default_k.l2,
        _ => config.default_k.l3_plus,
    }
}

/// Most runs that a slot may hold before nothing more is put in.
pub(crate) fn hard_cap(k: u8) -> usize {
    (usize::from(k) + SLACK).min(MAX_RUNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        Costs { write: 8.0, block: 1000.0, passed: 0.0 }
    }

    fn slot(gets: f64, written: f64) -> SlotModel {
        let rates = Rates { gets, written, ..Rates::default() };
        SlotModel { rates, bytes: 1e6, fragments: 10.0 }
    }

    const ANY: Bounds = Bounds { least: 1, most: 4 };

    #[test]
    fn reads_lower_k_and_writes_raise_it() {
        assert_eq!(choose(&costs(), &slot(1e6, 1e3), 3, ANY), 1);
        assert_eq!(choose(&costs(), &slot(10.0, 1e6), 1, ANY), 4);
    }

    #[test]
    fn one_run_beats_two_from_87_gets_per_put_on() {
        let per_put = 116.0;
        let two = Bounds { least: 1, most: 2 };
        let cost_of = |gets: f64, k| {
            cost(&costs(), &SlotModel { bytes: 0.0, ..slot(gets * 1000.0, per_put * 1000.0) }, k)
        };
        assert!(cost_of(80.0, 1) > cost_of(80.0, 2));
        assert!(cost_of(95.0, 1) < cost_of(95.0, 2));
        assert_eq!(choose(&costs(), &slot(2e5, per_put * 1e3), 2, two), 1);
    }

    #[test]
    fn a_small_gain_changes_nothing() {
        let near = slot(9e4, 116.0 * 1e3);
        for k in [1, 2] {
            assert_eq!(choose(&costs(), &near, k, Bounds { least: 1, most: 2 }), k);
        }
        assert_eq!(choose(&costs(), &slot(1.0, 1.0), 3, ANY), 3, "nothing happens here");
    }

    #[test]
    fn bounds_hold_whatever_the_model_says() {
        assert_eq!(choose(&costs(), &slot(10.0, 1e6), 3, Bounds { least: 1, most: 2 }), 2);
        assert_eq!(choose(&costs(), &slot(1e6, 1e3), 3, Bounds { least: 3, most: 4 }), 3);
    }

    #[test]
    fn a_merge_is_bought_when_half_its_price_is_paid_as_rent() {
        let runs = [100, 1000, 100_000];
        assert_eq!(paid_merge(&costs(), &runs, 0.0), None);
        assert_eq!(paid_merge(&costs(), &runs, 0.5 * 1100.0 * 8.0), Some(2));
        assert_eq!(paid_merge(&costs(), &runs, 0.5 * 101_100.0 * 8.0), Some(3));
        assert_eq!(paid_merge(&costs(), &[5], 1e12), None, "one run cannot be merged");
    }

    #[test]
    fn a_due_merge_takes_what_it_must_and_what_is_small() {
        assert_eq!(due_merge(&[10, 10, 10, 1000], 3), 3, "absorbs the third, not the large one");
        assert_eq!(due_merge(&[10, 100, 1000, 5000], 3), 2);
        assert_eq!(due_merge(&[10, 1000], 1), 2);
        assert_eq!(due_merge(&[1, 2, 3, 4, 5], 2), 5);
        assert_eq!(due_merge(&[1, 200, 300, 400, 9000], 2), 4);
    }

    #[test]
    fn measured_writes_move_the_model() {
        let mut costs = costs();
        for _ in 0..100 {
            costs.measured(40.0 * 1e6, 1e6);
        }
        assert!((costs.write - 40.0).abs() < 1.0, "{costs:?}");
        costs.measured(0.0, 0.0);
        assert!((costs.write - 40.0).abs() < 1.0);
    }

    #[test]
    fn weaker_filters_make_runs_dearer() {
        let mut config = ATLLConfig { seed: 1, ..ATLLConfig::default() };
        let strong = Costs::new(&config).probe();
        config.filters.bloom_bits_per_key = 0;
        assert!(Costs::new(&config).probe() > 10.0 * strong);
    }
}
