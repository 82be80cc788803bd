//! How much each slot is read and written: counters that the read path bumps, and their decaying averages.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::fanout::{Costs, Rates};
use super::placement;
use crate::config::HeatThresholds;
use crate::policy::bandit::Temperature;
use crate::types::{SlotId, u64_of};
use crate::version::Version;

/// The read path counts one operation in so many.
pub(crate) const SAMPLING: u64 = 32;

/// Tells which reads are counted: every [`SAMPLING`]th. One for each kind of read, in each thread.
pub(crate) struct Sampler(Cell<u64>);

impl Sampler {
    pub(crate) const fn new() -> Self {
        Self(Cell::new(0))
    }

    /// Whether the read that begins now is counted.
    #[inline]
    pub(crate) fn takes(&self) -> bool {
        let count = self.0.get().wrapping_add(1);
        self.0.set(count);
        count.is_multiple_of(SAMPLING)
    }
}

/// Read counters of one slot, shared by every view that has it. Each bump is one relaxed addition.
#[derive(Debug, Default)]
pub(crate) struct SlotCounters {
    gets: AtomicU64,
    probes: AtomicU64,
    seeks: AtomicU64,
    scanned: AtomicU64,
    lower_gets: AtomicU64,
    /// About the byte median of the slot: gets below it are counted apart, to notice a slot of which one half is hot.
    middle: Option<Bytes>,
}

impl SlotCounters {
    /// Counters of a slot whose data is halved by `middle`.
    pub(crate) fn new(middle: Option<Bytes>) -> Self {
        Self { middle, ..Self::default() }
    }

    /// Counts a sampled get that looked into `probed` runs of the slot.
    pub(crate) fn record_get(&self, key: &[u8], probed: usize) {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.probes.fetch_add(u64_of(probed), Ordering::Relaxed);
        if self.middle.as_ref().is_some_and(|middle| key < &middle[..]) {
            self.lower_gets.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a sampled seek.
    pub(crate) fn record_seek(&self) {
        self.seeks.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the items that a sampled scan took from the slot.
    pub(crate) fn record_scanned(&self, items: u64) {
        self.scanned.fetch_add(items, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            gets: load(&self.gets),
            seeks: load(&self.seeks),
            scanned: load(&self.scanned),
            lower_gets: load(&self.lower_gets),
        }
    }
}

/// Counters for every slot of a version: those of `old` where the slot was there before, new ones where not.
pub(crate) fn counters_for(
    version: &Version,
    old: &BTreeMap<SlotId, Arc<SlotCounters>>,
) -> BTreeMap<SlotId, Arc<SlotCounters>> {
    let mut counters = BTreeMap::new();
    for (level, state) in version.numbered() {
        for (range, slot) in state.ranged() {
            let id = SlotId { level, start: slot.start.clone() };
            let known = old.get(&id);
            // A slot that had no middle may have one now; until it does, its counters go on.
            let is_open = known.is_none_or(|known| known.middle.is_none());
            let middle =
                if is_open { placement::rough_median(version, slot, &range) } else { None };
            let kept = known.filter(|_| middle.is_none());
            let kept = kept.map_or_else(|| Arc::new(SlotCounters::new(middle.clone())), Arc::clone);
            counters.insert(id, kept);
        }
    }
    counters
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    gets: u64,
    seeks: u64,
    scanned: u64,
    lower_gets: u64,
}

/// What is remembered of a slot from tick to tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SlotHeat {
    seen: Counts,
    pub(crate) rates: Rates,
    /// Share of the gets that go to the lower half.
    pub(crate) lower_share: f64,
    /// Where the halves meet; `None` if the slot cannot be halved.
    pub(crate) middle: Option<Bytes>,
    /// Rent that reads have paid per extra run since the last merge, in nanoseconds.
    pub(crate) debt: f64,
    /// There was more than one run at the last tick.
    had_extra: bool,
    bytes: u64,
    /// Ticks since K was changed.
    pub(crate) dwell: u32,
    /// Read cost as a share of that of the hottest slot.
    pub(crate) heat: f32,
}

/// The averages of all slots.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heat {
    pub(crate) slots: BTreeMap<SlotId, SlotHeat>,
    last_tick: Option<Duration>,
}

/// What a tick looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick<'a> {
    pub(crate) version: &'a Version,
    pub(crate) counters: &'a BTreeMap<SlotId, Arc<SlotCounters>>,
    pub(crate) bytes: &'a BTreeMap<SlotId, u64>,
    pub(crate) now: Duration,
}

impl Heat {
    /// Takes in the counters. The first tick, and one that follows at once, only look.
    pub(crate) fn tick(&mut self, tick: Tick<'_>, costs: &Costs, thresholds: &HeatThresholds) {
        let elapsed = self.last_tick.map_or(Duration::ZERO, |last| tick.now.saturating_sub(last));
        self.last_tick = Some(tick.now);
        let mut slots = BTreeMap::new();
        let mut ops = 0;
        let mut deltas = Vec::new();
        for (id, bytes) in tick.bytes {
            let mut slot = self.inherited(id, tick.version);
            let counters = tick.counters.get(id);
            let seen = counters.map(|counters| counters.read()).unwrap_or_default();
            slot.middle = counters.and_then(|counters| counters.middle.clone());
            let delta = seen.since(slot.seen);
            ops += delta.gets + delta.seeks;
            slot.seen = seen;
            let grown = bytes.saturating_sub(slot.bytes);
            slot.bytes = *bytes;
            let has_extra = tick.version.slot(id).is_some_and(|(_, slot)| slot.runs.len() > 1);
            deltas.push((delta, grown, has_extra));
            slots.insert(id.clone(), slot);
        }
        let alpha = forgetting(ops * SAMPLING, thresholds.half_life_ops);
        if !elapsed.is_zero() {
            for (slot, (delta, grown, has_extra)) in slots.values_mut().zip(deltas) {
                slot.mix(delta, grown, alpha, elapsed.as_secs_f64());
                // Nobody knows when in this tick a second run came.
                slot.debt += if has_extra && slot.had_extra { delta.rent(costs) } else { 0.0 };
                slot.had_extra = has_extra;
                slot.dwell = slot.dwell.saturating_add(1);
            }
            rank(&mut slots, costs);
        }
        self.slots = slots;
    }

    /// What is known of a slot: of itself, of the one that it was cut from, or what the version recorded.
    fn inherited(&self, id: &SlotId, version: &Version) -> SlotHeat {
        if let Some(known) = self.slots.get(id) {
            return known.clone();
        }
        let before = self.slots.range(..id.clone()).next_back();
        match before.filter(|(before, _)| before.level == id.level) {
            Some((_, parent)) => {
                SlotHeat { seen: Counts::default(), lower_share: 0.5, debt: 0.0, ..parent.clone() }
            }
            None => {
                let heat = version.slot(id).map_or(0.0, |(_, slot)| slot.heat);
                SlotHeat { heat, lower_share: 0.5, ..SlotHeat::default() }
            }
        }
    }

    /// Heat of a slot, 0..=1.
    pub(crate) fn heat(&self, id: &SlotId) -> f32 {
        self.slots.get(id).map_or(0.0, |slot| slot.heat)
    }

    /// How a slot counts.
    pub(crate) fn temperature(&self, id: &SlotId, thresholds: &HeatThresholds) -> Temperature {
        let heat = f64::from(self.heat(id));
        if heat >= thresholds.hot && heat > 0.0 {
            Temperature::Hot
        } else if heat <= thresholds.cold {
            Temperature::Cold
        } else {
            Temperature::Warm
        }
    }
}

impl Counts {
    /// What an extra run cost these reads, in nanoseconds.
    fn rent(self, costs: &Costs) -> f64 {
        let all = |count: u64| (count * SAMPLING) as f64;
        costs.rent(all(self.gets), all(self.seeks), all(self.scanned))
    }

    /// What was counted since `before`; everything, if the counters were made anew.
    fn since(self, before: Self) -> Self {
        if self.gets < before.gets || self.seeks < before.seeks {
            return self;
        }
        Self {
            gets: self.gets - before.gets,
            seeks: self.seeks - before.seeks,
            scanned: self.scanned.saturating_sub(before.scanned),
            lower_gets: self.lower_gets.saturating_sub(before.lower_gets),
        }
    }
}

impl SlotHeat {
    fn mix(&mut self, delta: Counts, grown: u64, alpha: f64, seconds: f64) {
        let mix = |have: &mut f64, new: f64| *have += alpha * (new - *have);
        let per_second = |count: u64| (count * SAMPLING) as f64 / seconds;
        mix(&mut self.rates.gets, per_second(delta.gets));
        mix(&mut self.rates.seeks, per_second(delta.seeks));
        mix(&mut self.rates.written, grown as f64 / seconds);
        if delta.seeks > 0 {
            let items = delta.scanned as f64 / delta.seeks as f64;
            mix(&mut self.rates.items_per_seek, items);
        }
        if delta.gets > 0 {
            mix(&mut self.lower_share, delta.lower_gets as f64 / delta.gets as f64);
        }
    }
}

/// Weight of a tick in which `ops` operations were done.
fn forgetting(ops: u64, half_life: u64) -> f64 {
    let halvings = ops as f64 / half_life.max(1) as f64;
    (1.0 - f64::exp2(-halvings)).clamp(0.05, 0.5)
}

/// Sets the heat of every slot relative to the hottest.
fn rank(slots: &mut BTreeMap<SlotId, SlotHeat>, costs: &Costs) {
    let most = slots.values().map(|slot| slot.rates.rent(costs)).fold(0.0, f64::max);
    if most < 1.0 {
        return; // nobody reads: what was hot stays so until somebody does
    }
    for slot in slots.values_mut() {
        let share = (slot.rates.rent(costs) / most).clamp(0.0, 1.0);
        // Thousandths are exact enough, and need no cast that loses bits.
        let steps = (0..=1000_u16).find(|step| f64::from(*step) >= share * 1000.0).unwrap_or(1000);
        slot.heat = f32::from(steps) / 1000.0;
    }
}
