//! Questions about one version: where a key belongs, what a slice weighs, how a run is cut at guards, how to rebuild it all from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::{
    EditOp, LevelState, Run, RunId, SectionMeta, Slot, TableMeta, TableSlice, Version, VersionEdit,
};
use crate::types::{FileId, KeyRange, Level, SeqNo, SlotId};

/// What a slice, a run or a slot holds; exact for whole sections, by key interpolation for cut ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SliceSums {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    /// Data blocks in which tombstones prevail.
    pub(crate) dense_blocks: u64,
    /// When the oldest tombstone was written, in seconds since the Unix epoch; 0 if there is none.
    pub(crate) oldest_tombstone_s: u32,
    /// When the first entry expires, in seconds since the Unix epoch; `u32::MAX` if none does.
    pub(crate) min_expiry_s: u32,
}

impl Default for SliceSums {
    fn default() -> Self {
        Self {
            bytes: 0,
            entries: 0,
            tombstones: 0,
            dense_blocks: 0,
            oldest_tombstone_s: 0,
            min_expiry_s: u32::MAX,
        }
    }
}

impl SliceSums {
    /// Adds what `other` holds.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.entries += other.entries;
        self.tombstones += other.tombstones;
        self.dense_blocks += other.dense_blocks;
        self.min_expiry_s = self.min_expiry_s.min(other.min_expiry_s);
        self.oldest_tombstone_s = match (self.oldest_tombstone_s, other.oldest_tombstone_s) {
            (0, age) | (age, 0) => age,
            (a, b) => a.min(b),
        };
    }
}

impl SectionMeta {
    /// Bytes of the section on disk.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.data_len) + u64::from(self.leaf_len) + u64::from(self.filter_len)
    }

    /// Whether a key of the section can lie in `range`.
    pub(crate) fn meets(&self, range: &KeyRange) -> bool {
        self.max_key >= range.start && range.is_before_end(&self.min_key)
    }

    /// Whether every key of the section lies in `range`.
    pub(crate) fn is_inside(&self, range: &KeyRange) -> bool {
        range.contains(&self.min_key) && range.contains(&self.max_key)
    }

    /// Share of the section that lies in `range`, in 1/1024, as if keys were spread evenly; at least 1 if they meet.
    fn share_in(&self, range: &KeyRange) -> u64 {
        if self.is_inside(range) {
            return 1024;
        }
        if !self.meets(range) {
            return 0;
        }
        let from = if range.start <= self.min_key { 0 } else { self.position(&range.start) };
        let to = match &range.end {
            Some(end) if *end <= self.max_key => self.position(end),
            Some(_) | None => 1024,
        };
        to.saturating_sub(from).clamp(1, 1024)
    }

    /// Where `key` falls between the first and the last key, 0..=1024.
    fn position(&self, key: &[u8]) -> u64 {
        let common =
            self.min_key.iter().zip(self.max_key.iter()).take_while(|(a, b)| a == b).count();
        let (low, high) = (head(&self.min_key, common), head(&self.max_key, common));
        let at = head(key, common).clamp(low, high) - low;
        let span = u128::from(high - low).max(1);
        u64::try_from(u128::from(at) * 1024 / span).unwrap_or(1024)
    }
}

/// Eight bytes of `key` from `skip` on as a number, padded with zeros.
fn head(key: &[u8], skip: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(key.iter().skip(skip)) {
        *to = *from;
    }
    u64::from_be_bytes(bytes)
}

impl TableMeta {
    /// Sections that can hold keys of `range`, in key order.
    pub(crate) fn sections_in<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = &'a SectionMeta> {
        let first = self.sections.partition_point(|section| section.max_key < range.start);
        let rest = self.sections.get(first..).unwrap_or_default();
        rest.iter().take_while(|section| range.is_before_end(&section.min_key))
    }

    /// Whether the table can hold a key of `range`.
    pub(crate) fn meets(&self, range: &KeyRange) -> bool {
        self.sections_in(range).next().is_some()
    }

    /// What the table holds in `range`.
    pub(crate) fn sums_in(&self, range: &KeyRange) -> SliceSums {
        let mut sums = SliceSums::default();
        for section in self.sections_in(range) {
            let share = section.share_in(range);
            let part = |whole: u64| whole.saturating_mul(share).div_ceil(1024);
            sums.add(SliceSums {
                bytes: part(section.bytes()),
                entries: part(section.entries.into()),
                tombstones: part(section.tombstones.into()),
                dense_blocks: part(section.dense_blocks.into()),
                oldest_tombstone_s: section.oldest_tombstone_s,
                min_expiry_s: section.min_expiry_s,
            });
        }
        sums
    }
}

impl LevelState {
    /// Position of the slot that holds `key`.
    pub(crate) fn index_of(&self, key: &[u8]) -> usize {
        self.slots.partition_point(|slot| &slot.start[..] <= key).saturating_sub(1)
    }

    /// Position of the slot that begins at `start`.
    pub(crate) fn index_at(&self, start: &[u8]) -> Option<usize> {
        self.slots.binary_search_by(|slot| slot.start[..].cmp(start)).ok()
    }

    /// Keys of the slot at `index`.
    pub(crate) fn range_at(&self, index: usize) -> KeyRange {
        let key = |at: usize| self.slots.get(at).map(|slot| slot.start.clone());
        KeyRange::new(key(index).unwrap_or_default(), key(index.saturating_add(1)))
    }

    /// Slots with their ranges, in key order.
    pub(crate) fn ranged(&self) -> impl Iterator<Item = (KeyRange, &Arc<Slot>)> {
        self.slots.iter().enumerate().map(|(index, slot)| (self.range_at(index), slot))
    }

    /// Slots that share a key with `range`, in key order.
    pub(crate) fn overlapping<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (KeyRange, &'a Arc<Slot>)> {
        self.ranged()
            .skip(self.index_of(&range.start))
            .take_while(|(slot, _)| range.is_before_end(&slot.start))
    }

    /// Keys at which the level is cut, in order.
    pub(crate) fn guards(&self) -> impl Iterator<Item = &Bytes> {
        self.slots.iter().skip(1).map(|slot| &slot.start)
    }

    /// Whether no slot holds data.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.runs.is_empty())
    }

    /// Slices of all runs of all slots.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &TableSlice> {
        self.slots.iter().flat_map(|slot| &slot.runs).flat_map(|run| &run.slices)
    }
}

impl Slot {
    /// A slot without data, for which the policy has not chosen a `k` yet: 0 stands for the configured default.
    pub(crate) fn empty(start: Bytes) -> Self {
        Self { start, runs: Vec::new(), k: 0, heat: 0.0 }
    }

    /// The run of that name.
    pub(crate) fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.iter().find(|run| run.id == id)
    }
}

impl Version {
    /// A version without data; `max_levels` counts L0.
    pub(crate) fn empty(max_levels: usize) -> Self {
        let level = LevelState { slots: vec![Arc::new(Slot::empty(Bytes::new()))] };
        Self {
            levels: vec![level; max_levels],
            tables: BTreeMap::new(),
            next_file: FileId(1),
            last_seq: SeqNo(0),
            log_floor: FileId(0),
        }
    }

    /// The same data in `max_levels` levels, or as many as hold data if those are more: no level with data is ever hidden.
    pub(crate) fn resized(&self, max_levels: usize) -> Self {
        let used = self.levels.iter().rposition(|level| !level.is_empty()).map_or(0, |at| at + 1);
        let mut next = self.clone();
        next.levels.truncate(max_levels.max(used));
        while next.levels.len() < max_levels {
            // Guards are nested, so a new level begins with those of the level above.
            let last = next.levels.last();
            let starts = last.into_iter().flat_map(|level| &level.slots);
            let slots = starts.map(|slot| Arc::new(Slot::empty(slot.start.clone()))).collect();
            next.levels.push(LevelState { slots });
        }
        next
    }

    /// The edit that builds this version from an empty one.
    pub(crate) fn snapshot_edit(&self) -> VersionEdit {
        let mut ops: Vec<EditOp> = self.tables.values().cloned().map(EditOp::AddTable).collect();
        // Guards are nested and reach down by themselves: each is added once, at the highest level that has it.
        let mut above = BTreeSet::new();
        for (level, state) in self.numbered() {
            for key in state.guards() {
                if above.insert(key.clone()) {
                    ops.push(EditOp::AddGuard { level, key: key.clone() });
                }
            }
        }
        for (level, state) in self.numbered() {
            for slot in &state.slots {
                let name = || slot.start.clone();
                for run in slot.runs.iter().rev() {
                    ops.push(EditOp::PushRun { level, slot: name(), run: run.clone() });
                }
                if slot.k != 0 {
                    ops.push(EditOp::SetK { level, slot: name(), k: slot.k });
                }
                if slot.heat != 0.0 {
                    ops.push(EditOp::SetHeat { level, slot: name(), heat: slot.heat });
                }
            }
        }
        let Self { next_file, last_seq, log_floor, .. } = *self;
        VersionEdit { ops, next_file, last_seq, log_floor }
    }

    /// Levels with their numbers, L0 first.
    pub(crate) fn numbered(&self) -> impl DoubleEndedIterator<Item = (Level, &LevelState)> {
        self.levels.iter().enumerate().map(|(index, state)| (level_of(index), state))
    }

    /// The level of that number.
    pub(crate) fn level(&self, level: Level) -> Option<&LevelState> {
        self.levels.get(level.index())
    }

    /// The slot of that name, and its keys.
    pub(crate) fn slot(&self, id: &SlotId) -> Option<(KeyRange, &Arc<Slot>)> {
        let level = self.level(id.level)?;
        let index = level.index_at(&id.start)?;
        Some((level.range_at(index), level.slots.get(index)?))
    }

    /// The slot of a level that holds `key`, and its keys. Every key has one.
    pub(crate) fn slot_of(&self, level: Level, key: &[u8]) -> Option<(KeyRange, &Arc<Slot>)> {
        let level = self.level(level)?;
        let index = level.index_of(key);
        Some((level.range_at(index), level.slots.get(index)?))
    }

    /// Runs of L0, newest first.
    pub(crate) fn l0_runs(&self) -> &[Run] {
        let slot = self.levels.first().and_then(|level| level.slots.first());
        slot.map_or(&[], |slot| &slot.runs[..])
    }

    /// The deepest level that holds data.
    pub(crate) fn deepest(&self) -> Option<Level> {
        self.numbered().rev().find(|(_, state)| !state.is_empty()).map(|(level, _)| level)
    }

    /// Numbers of the tables that must stay on disk.
    pub(crate) fn live_tables(&self) -> impl Iterator<Item = FileId> {
        self.tables.keys().copied()
    }

    /// What a slice holds.
    pub(crate) fn slice_sums(&self, slice: &TableSlice) -> SliceSums {
        let table = self.tables.get(&slice.table);
        table.map(|table| table.sums_in(&slice.range)).unwrap_or_default()
    }

    /// Bytes of a slice on disk: exact for whole sections, a share for cut ones.
    pub(crate) fn slice_bytes(&self, slice: &TableSlice) -> u64 {
        self.slice_sums(slice).bytes
    }

    /// What a run holds.
    pub(crate) fn run_sums(&self, run: &Run) -> SliceSums {
        let mut sums = SliceSums::default();
        for slice in &run.slices {
            sums.add(self.slice_sums(slice));
        }
        sums
    }

    /// What a slot holds.
    pub(crate) fn slot_sums(&self, slot: &Slot) -> SliceSums {
        let mut sums = SliceSums::default();
        for run in &slot.runs {
            sums.add(self.run_sums(run));
        }
        sums
    }

    /// Bytes of a level on disk.
    pub(crate) fn level_bytes(&self, level: Level) -> u64 {
        let slices = self.level(level).into_iter().flat_map(LevelState::slices);
        slices.map(|slice| self.slice_bytes(slice)).sum()
    }

    /// Cuts a run at the guards of `level`: for each slot that gets data, its start and its piece of the run.
    ///
    /// The pieces keep the name of the run. No byte moves; a piece in which a table has no section is left out.
    pub(crate) fn cut_run(&self, run: &Run, level: Level) -> Vec<(Bytes, Run)> {
        let Some(state) = self.level(level) else { return Vec::new() };
        let mut pieces: Vec<(Bytes, Run)> = Vec::new();
        for slice in &run.slices {
            for (range, slot) in state.overlapping(&slice.range) {
                let Some(piece) = self.clip(slice, &range) else { continue };
                match pieces.last_mut() {
                    Some((start, run)) if *start == slot.start => run.slices.push(piece),
                    Some(_) | None => {
                        pieces.push((slot.start.clone(), Run { id: run.id, slices: vec![piece] }));
                    }
                }
            }
        }
        pieces
    }

    /// The edit operations that move a run of L0 into L1, by metadata alone.
    pub(crate) fn admission(&self, run: RunId) -> Option<Vec<EditOp>> {
        let level = Level::L0.below();
        let found = self.l0_runs().iter().find(|have| have.id == run)?;
        let slot = Bytes::new();
        let mut ops =
            vec![EditOp::ReplaceRuns { level: Level::L0, slot, removed: vec![run], with: None }];
        for (slot, run) in self.cut_run(found, level) {
            ops.push(EditOp::PushRun { level, slot, run });
        }
        Some(ops)
    }

    /// The part of a slice in `range`; `None` if the table has no section there.
    pub(super) fn clip(&self, slice: &TableSlice, range: &KeyRange) -> Option<TableSlice> {
        let part = slice.range.intersection(range);
        let meets = self.tables.get(&slice.table).is_some_and(|table| table.meets(&part));
        (!part.is_empty() && meets).then_some(TableSlice { table: slice.table, range: part })
    }
}

/// Number of the level at a position.
pub(crate) fn level_of(index: usize) -> Level {
    Level(u8::try_from(index).unwrap_or(u8::MAX))
}
