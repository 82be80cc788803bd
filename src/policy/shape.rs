//! The sizes of a version, kept from one version to the next where a slot did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ATLLConfig;
use crate::policy::readable;
use crate::types::{FileId, Level, SeqNo, SlotId, u64_of};
use crate::version::{SliceSums, Slot, Version};

/// Bytes of L1 up to which nothing deeper is needed, in flushes.
const BASE_FLUSHES: u64 = 4;
/// How far L1 may outgrow that before a level is added.
const BASE_STRETCH: f64 = 2.0;
/// Share of a table's bytes below which what still shows of it is worth rewriting.
const MOSTLY_DEAD: u64 = 4;
/// Least age in seconds at which a table is rewritten for what expired in it.
const EXPIRY_PATIENCE_S: u64 = 600;

/// Sizes of one slot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SlotShape {
    pub(crate) sums: SliceSums,
    /// Bytes of each run, newest first.
    pub(crate) runs: Vec<u64>,
    /// Highest SeqNo of the sections that hold tombstones.
    pub(crate) tombstone_seq: SeqNo,
    /// From when on a rewrite for expired entries pays, in seconds since the Unix epoch.
    pub(crate) expiry_due_s: u64,
    /// Whether two keys differ.
    pub(crate) divisible: bool,
    /// Tables of which only a part shows in this slot, with the bytes of that part.
    pins: Vec<(FileId, u64)>,
}

impl SlotShape {
    fn of(version: &Version, slot: &Slot, ttl_s: u64) -> Self {
        let mut shape = Self { expiry_due_s: u64::MAX, ..Self::default() };
        let (mut low, mut high) = (None, None);
        for run in &slot.runs {
            let before = shape.sums.bytes;
            for slice in &run.slices {
                let sums = version.slice_sums(slice);
                shape.sums.add(sums);
                let Some(table) = version.tables.get(&slice.table) else { continue };
                let total: u64 = table.sections.iter().map(|section| section.bytes()).sum();
                if sums.bytes < total {
                    shape.pins.push((slice.table, sums.bytes));
                }
                for section in table.sections_in(&slice.range) {
                    if section.tombstones > 0 {
                        shape.tombstone_seq = shape.tombstone_seq.max(section.max_seq);
                    }
                    if section.min_expiry_s != u32::MAX {
                        let due = u64::from(section.min_expiry_s)
                            .max(table.created_s.saturating_add(ttl_s));
                        shape.expiry_due_s = shape.expiry_due_s.min(due);
                    }
                    low = Some(low.map_or(&section.min_key, |key| section.min_key.min_ref(key)));
                    high = Some(high.map_or(&section.max_key, |key| section.max_key.max_ref(key)));
                }
            }
            shape.runs.push(shape.sums.bytes - before);
        }
        shape.divisible = low < high;
        shape
    }
}

/// The smaller and the larger of two references.
trait Extremes {
    fn min_ref<'a>(&'a self, other: &'a Self) -> &'a Self;
    fn max_ref<'a>(&'a self, other: &'a Self) -> &'a Self;
}

impl<T: Ord> Extremes for T {
    fn min_ref<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self < other { self } else { other }
    }

    fn max_ref<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self > other { self } else { other }
    }
}

/// A slot with its sizes.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) slot: Arc<Slot>,
    pub(crate) shape: Arc<SlotShape>,
}

/// Sizes of a whole version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shapes {
    pub(crate) levels: Vec<Vec<Measured>>,
    /// Bytes of each level.
    pub(crate) bytes: Vec<u64>,
    /// Bytes that each level aims at.
    pub(crate) targets: Vec<f64>,
    /// For tables of which less than a quarter shows: the bytes that show, and those that do not.
    dead: BTreeMap<FileId, (u64, u64)>,
}

impl Shapes {
    /// Measures `version`; slots that are the same as last time are not measured again.
    pub(crate) fn refresh(&mut self, version: &Version, config: &ATLLConfig) {
        let ttl = config.tombstone.ttl_default_sec.unwrap_or(EXPIRY_PATIENCE_S);
        let old = std::mem::take(&mut self.levels);
        let mut old = old.into_iter();
        for level in &version.levels {
            let known = old.next().unwrap_or_default();
            let mut known = known.iter().peekable();
            let mut slots = Vec::with_capacity(level.slots.len());
            for slot in &level.slots {
                while known.next_if(|have| have.slot.start < slot.start).is_some() {}
                let same = known.peek().filter(|have| Arc::ptr_eq(&have.slot, slot));
                let shape = same.map_or_else(
                    || Arc::new(SlotShape::of(version, slot, ttl)),
                    |have| Arc::clone(&have.shape),
                );
                slots.push(Measured { slot: Arc::clone(slot), shape });
            }
            self.levels.push(slots);
        }
        let bytes = |slots: &Vec<Measured>| slots.iter().map(|slot| slot.shape.sums.bytes).sum();
        self.bytes = self.levels.iter().map(bytes).collect();
        self.targets = level_targets(config, &self.bytes);
        self.dead = self.mostly_dead(version);
    }

    fn mostly_dead(&self, version: &Version) -> BTreeMap<FileId, (u64, u64)> {
        let mut shown: BTreeMap<FileId, u64> = BTreeMap::new();
        for (file, bytes) in self.levels.iter().flatten().flat_map(|slot| &slot.shape.pins) {
            *shown.entry(*file).or_default() += bytes;
        }
        let judge = |(file, shown): (FileId, u64)| {
            let sections = &version.tables.get(&file)?.sections;
            let total: u64 = sections.iter().map(|section| section.bytes()).sum();
            (shown.saturating_mul(MOSTLY_DEAD) < total).then(|| (file, (shown, total - shown)))
        };
        shown.into_iter().filter_map(judge).collect()
    }

    /// Bytes that go once the slot no longer shows the tables that are mostly dead.
    pub(crate) fn releasable(&self, shape: &SlotShape) -> f64 {
        let share = |(file, part): &(FileId, u64)| {
            let (shown, dead) = self.dead.get(file)?;
            Some(*dead as f64 * *part as f64 / (*shown).max(1) as f64)
        };
        shape.pins.iter().filter_map(share).sum()
    }

    /// Slots of a level.
    pub(crate) fn level(&self, level: Level) -> &[Measured] {
        self.levels.get(level.index()).map_or(&[], |slots| &slots[..])
    }

    /// Bytes that a level aims at.
    pub(crate) fn target(&self, level: Level) -> f64 {
        self.targets.get(level.index()).copied().unwrap_or(f64::MAX)
    }

    /// Whether a level holds more than it aims at.
    pub(crate) fn is_over(&self, level: Level) -> bool {
        let bytes = self.bytes.get(level.index()).copied().unwrap_or(0);
        bytes as f64 > self.target(level)
    }

    /// Bytes from which a slot is promoted: its part of the level's target, by its share of the data and evenly.
    pub(crate) fn budget(&self, config: &ATLLConfig, level: Level, slot: &SlotShape) -> f64 {
        let total = self.bytes.get(level.index()).copied().unwrap_or(0).max(1) as f64;
        let even = 1.0 / self.level(level).len().max(1) as f64;
        let by_share = config.slot_byte_budget_fraction;
        let share = slot.sums.bytes as f64 / total;
        self.target(level) * (by_share * share + (1.0 - by_share) * even)
    }

    /// Bytes that a slot of a level has when the level is cut as finely as it may be.
    pub(crate) fn slot_target(&self, config: &ATLLConfig, level: Level) -> f64 {
        self.target(level) / most_slots(config, level).max(1.0)
    }

    /// Bytes of whole slots that must go, largest first, for a level to be back at its target; 0 if it is.
    ///
    /// Slots with a table of `damaged` cannot move: they neither go nor count.
    pub(crate) fn excess(&self, level: Level, target: f64, damaged: &BTreeSet<FileId>) -> u64 {
        let slots = self.level(level).iter();
        let mobile =
            slots.filter(|sized| readable(&sized.slot.runs, damaged) == sized.slot.runs.len());
        let mut sizes: Vec<u64> = mobile.map(|sized| sized.shape.sums.bytes).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let bytes = sizes.iter().sum();
        let mut left: u64 = bytes;
        for size in sizes {
            if left as f64 <= target {
                break;
            }
            left -= size.min(left);
        }
        bytes - left
    }

    /// Bytes of every slot below L0, by name.
    pub(crate) fn slot_bytes(&self) -> BTreeMap<SlotId, u64> {
        let mut bytes = BTreeMap::new();
        for (index, slots) in self.levels.iter().enumerate().skip(1) {
            let level = Level(u8::try_from(index).unwrap_or(u8::MAX));
            for sized in slots {
                let id = SlotId { level, start: sized.slot.start.clone() };
                bytes.insert(id, sized.shape.sums.bytes);
            }
        }
        bytes
    }
}

/// Most slots that a level may be cut into.
pub(crate) fn most_slots(config: &ATLLConfig, level: Level) -> f64 {
    let deeper = i32::from(level.0.saturating_sub(1));
    u64_of(config.l1_slot_count) as f64 * (u64_of(config.fanout) as f64).powi(deeper)
}

/// Bytes that each level aims at, from the bytes that it has.
///
/// From the bottom up, so that upper levels stay a fixed fraction of the data; but L1 is never smaller than four
/// flushes, nor, while a level can be added below, larger than twice that.
fn level_targets(config: &ATLLConfig, bytes: &[u64]) -> Vec<f64> {
    let fanout = u64_of(config.fanout) as f64;
    let base = u64_of(config.memtable.flush_trigger_bytes).saturating_mul(BASE_FLUSHES) as f64;
    let last = bytes.iter().rposition(|bytes| *bytes > 0).unwrap_or(1).max(1);
    let steps = |level: usize| i32::try_from(level.saturating_sub(1)).unwrap_or(i32::MAX);
    let size = bytes.get(last).copied().unwrap_or(0) as f64;
    let mut first = size / fanout.powi(steps(last));
    if last + 1 < config.max_levels {
        first = first.min(base * BASE_STRETCH);
    }
    let first = first.max(base);
    (0..bytes.len()).map(|level| first * fanout.powi(steps(level))).collect()
}
