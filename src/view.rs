//! What readers read: the memtables and the tables of one instant, immutable, published by one atomic swap.
//!
//! A read loads the View first and the visible SeqNo second. The View pins memtables and tables, so nothing that the SeqNo needs
//! can go away in between; writes that landed in a newer memtable meanwhile are missed as a whole.
//!
//! Invariant: newest first, for each key: active memtable, sealed ones, runs of L0, then one slot a level, its runs in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::concat::{Concat, Parts};
use crate::cursor::{Cursor, EntryRef, Found, Stop};
use crate::fences::Fences;
use crate::memtable::{Memtable, MemtableCursor};
use crate::merge::Merge;
use crate::observe::{Histogram, ReadMetrics};
use crate::policy::{Sampler, SlotCounters, counters_for};
use crate::storage::store::Store;
use crate::storage::{Access, Fetch, OpenTables, Table, TableCache, TableCursor, Walk};
use crate::types::{Direction, FileId, KeyRange, Level, SeqNo, SlotId, hash_key};
use crate::version::{LevelState, Run, Slot, Version};

/// Memtables and tables of one instant.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) sealed: Vec<Arc<Memtable>>,
    pub(crate) tree: Arc<Tree>,
}

impl View {
    pub(crate) fn version(&self) -> &Arc<Version> {
        &self.tree.version
    }

    /// Seals the active memtable, unless it is empty, and puts `fresh` in its place.
    pub(crate) fn with_active(&self, fresh: Arc<Memtable>) -> Self {
        let mut sealed = self.sealed.clone();
        if !self.active.is_empty() {
            sealed.insert(0, Arc::clone(&self.active));
        }
        Self { active: fresh, sealed, tree: Arc::clone(&self.tree) }
    }

    /// Puts `tree` in place; memtables whose segment is below its log floor are in its tables.
    pub(crate) fn with_tree(&self, tree: Arc<Tree>) -> Self {
        let floor = tree.version.log_floor;
        let unflushed = self.sealed.iter().filter(|memtable| memtable.segment() >= floor);
        Self { active: Arc::clone(&self.active), sealed: unflushed.cloned().collect(), tree }
    }

    /// Bytes of all memtables.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.active.bytes() + self.sealed.iter().map(|memtable| memtable.bytes()).sum::<usize>()
    }
}

/// The published View.
#[derive(Debug)]
pub(crate) struct Views {
    current: ArcSwap<View>,
}

impl Views {
    pub(crate) fn new(view: View) -> Self {
        Self { current: ArcSwap::from_pointee(view) }
    }

    /// The current View, for a look. Do not hold it across an await.
    pub(crate) fn load(&self) -> Guard<Arc<View>> {
        self.current.load()
    }

    /// The current View, to keep.
    pub(crate) fn load_full(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Publishes what `change` makes of the current View; called again if another change came first.
    pub(crate) fn update(&self, change: impl Fn(&View) -> View) {
        self.current.rcu(|view| change(view));
    }
}

/// A [`Version`] with its tables open and its slots resolved for reading.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) version: Arc<Version>,
    /// Entries of all levels.
    entries: u64,
    l0: Arc<[RunView]>,
    /// L1 and deeper, down to the last level that holds data.
    levels: Vec<Arc<LevelView>>,
    tables: BTreeMap<FileId, Arc<Table>>,
    counters: BTreeMap<SlotId, Arc<SlotCounters>>,
    cache: Arc<TableCache>,
}

/// Slots of a level, in key order; together they cover every key.
#[derive(Debug)]
struct LevelView {
    /// Where each slot begins.
    starts: Arc<Fences>,
    slots: Box<[SlotView]>,
    entries: u64,
}

#[derive(Clone, Debug)]
struct SlotView {
    /// Newest first.
    runs: Arc<[RunView]>,
    counters: Arc<SlotCounters>,
}

/// Slices of a run in key order, each with its table.
#[derive(Debug)]
struct RunView {
    /// Where the first slice begins and ends, where the second begins and ends, and so on: an odd number of them up to a key means
    /// that the key is in a slice.
    bounds: Fences,
    slices: Box<[(KeyRange, Arc<Table>)]>,
    /// Entries of all slices, about.
    entries: u64,
}

fn entries(runs: &[RunView]) -> u64 {
    runs.iter().map(|run| run.entries).sum()
}

impl Tree {
    /// Resolves `version`. Tables and counters that `before` has are shared with it, and slots that are still the same. No I/O.
    pub(crate) fn new(version: Arc<Version>, before: Option<&Self>, store: &Store) -> Self {
        let known = before.map(|tree| &tree.tables);
        let tables: BTreeMap<_, _> = version
            .tables
            .iter()
            .map(|(id, meta)| {
                let open = known.and_then(|tables| tables.get(id)).cloned();
                (*id, open.unwrap_or_else(|| store.table(meta)))
            })
            .collect();
        let none = BTreeMap::new();
        let counters = counters_for(&version, before.map_or(&none, |tree| &tree.counters));
        let resolving = Resolving { tables: &tables, counters: &counters, before };
        let deeper = version.numbered().skip(1);
        let mut levels: Vec<_> =
            deeper.map(|(level, state)| resolving.level(level, state)).collect();
        let used =
            levels.iter().rposition(|level| level.slots.iter().any(|slot| !slot.runs.is_empty()));
        levels.truncate(used.map_or(0, |last| last + 1));
        let l0 = version.levels.first().and_then(|state| state.slots.first());
        let l0 = l0.map_or_else(Arc::default, |slot| resolving.runs(Level::L0, slot));
        let cache = Arc::clone(store.cache());
        let entries = entries(&l0) + levels.iter().map(|level| level.entries).sum::<u64>();
        Self { version, entries, l0, levels, tables, counters, cache }
    }

    fn runs_at(&self, level: Level, slot: usize) -> Option<Arc<[RunView]>> {
        let Some(deeper) = level.index().checked_sub(1) else {
            return Some(Arc::clone(&self.l0));
        };
        Some(Arc::clone(&self.levels.get(deeper)?.slots.get(slot)?.runs))
    }

    pub(crate) fn tables(&self) -> &BTreeMap<FileId, Arc<Table>> {
        &self.tables
    }

    /// Read counters by slot, for the scheduler.
    pub(crate) fn counters(&self) -> &BTreeMap<SlotId, Arc<SlotCounters>> {
        &self.counters
    }

    /// A cursor over one run of `version`, for compaction: waits for the disk and leaves the cache alone.
    pub(crate) fn compaction_cursor(&self, run: &Run) -> impl Cursor + use<> {
        let run = [RunView::new(run, &self.tables)];
        let walk = Walk::new(Direction::Forward, Access::Wait, false);
        Slices::cursor(&Arc::from(run), 0, &KeyRange::all(), walk)
    }
}

/// What a version is resolved with.
struct Resolving<'a> {
    tables: &'a BTreeMap<FileId, Arc<Table>>,
    counters: &'a BTreeMap<SlotId, Arc<SlotCounters>>,
    before: Option<&'a Tree>,
}

impl Resolving<'_> {
    fn level(&self, level: Level, state: &LevelState) -> Arc<LevelView> {
        let slots = state.slots.iter().map(|slot| {
            let id = SlotId { level, start: slot.start.clone() };
            let counters = self.counters.get(&id).cloned().unwrap_or_default();
            SlotView { runs: self.runs(level, slot), counters }
        });
        let starts = || state.slots.iter().map(|slot| &slot.start);
        let known = self.before.and_then(|tree| {
            let were = &tree.version.levels.get(level.index())?.slots;
            let view = tree.levels.get(level.index().checked_sub(1)?)?;
            starts().eq(were.iter().map(|slot| &slot.start)).then(|| Arc::clone(&view.starts))
        });
        let starts = known.unwrap_or_else(|| Arc::new(starts().cloned().collect()));
        let slots: Box<[SlotView]> = slots.collect();
        let entries = slots.iter().map(|slot| entries(&slot.runs)).sum();
        Arc::new(LevelView { starts, slots, entries })
    }

    fn runs(&self, level: Level, slot: &Arc<Slot>) -> Arc<[RunView]> {
        let known = self.before.and_then(|tree| {
            let were = tree.version.levels.get(level.index())?;
            let at = were.index_at(&slot.start)?;
            let was = were.slots.get(at)?;
            let same = Arc::ptr_eq(was, slot) || was.runs == slot.runs;
            same.then(|| tree.runs_at(level, at)).flatten()
        });
        known
            .unwrap_or_else(|| slot.runs.iter().map(|run| RunView::new(run, self.tables)).collect())
    }
}

impl LevelView {
    /// Number of the slot that holds `key`.
    #[inline]
    fn slot_of(&self, key: &[u8]) -> usize {
        self.starts.up_to(key).saturating_sub(1)
    }
}

impl RunView {
    fn new(run: &Run, tables: &BTreeMap<FileId, Arc<Table>>) -> Self {
        let slices = run.slices.iter();
        let open = slices
            .filter_map(|slice| Some((slice.range.clone(), Arc::clone(tables.get(&slice.table)?))));
        let slices: Box<[(KeyRange, Arc<Table>)]> = open.collect();
        let ends = |range: &KeyRange| std::iter::once(range.start.clone()).chain(range.end.clone());
        let bounds = slices.iter().flat_map(|(range, _)| ends(range)).collect();
        let entries = slices.iter().map(|(range, table)| table.meta().sums_in(range).entries).sum();
        Self { bounds, slices, entries }
    }

    /// The table that holds `key` if this run does.
    #[inline]
    fn table_of(&self, key: &[u8]) -> Option<&Arc<Table>> {
        let bounds = self.bounds.up_to(key);
        let inside = bounds % 2 == 1;
        let (_, table) = self.slices.get(bounds / 2).filter(|_| inside)?;
        Some(table)
    }

    /// Numbers of the slices that overlap `range`.
    fn within(&self, range: &KeyRange) -> Range<usize> {
        let start = self.bounds.up_to(&range.start) / 2;
        let end =
            range.end.as_ref().map_or(self.slices.len(), |end| self.bounds.before(end).div_ceil(2));
        start..end.max(start)
    }
}

/// A run, walked slice by slice.
type RunCursor = Concat<Slices>;

/// Slices of a run that overlap a range.
pub(crate) struct Slices {
    /// The run is one of these.
    runs: Arc<[RunView]>,
    at: usize,
    within: Range<usize>,
    range: KeyRange,
    walk: Walk,
}

impl Slices {
    /// Walks `range` of the run at place `at`. REQUIRES: there is one.
    fn cursor(runs: &Arc<[RunView]>, at: usize, range: &KeyRange, walk: Walk) -> RunCursor {
        let (runs, range) = (Arc::clone(runs), range.clone());
        let within = runs[at].within(&range);
        Concat::new(Self { runs, at, within, range, walk }, walk.direction)
    }

    fn run(&self) -> &RunView {
        &self.runs[self.at]
    }
}

impl Parts for Slices {
    type Cursor = TableCursor;

    fn len(&self) -> usize {
        self.within.len()
    }

    fn part_of(&self, key: &[u8]) -> usize {
        let begun = self.run().bounds.up_to(key).div_ceil(2);
        let part = begun.saturating_sub(1).saturating_sub(self.within.start);
        part.min(self.within.len().saturating_sub(1))
    }

    fn lacks(&self, key: &[u8], hash: u64) -> bool {
        self.run().table_of(key).is_none_or(|table| table.lacks(key, hash))
    }

    fn open(&self, part: usize, first: bool) -> TableCursor {
        let (slice, table) = &self.run().slices[self.within.start + part];
        TableCursor::new(Arc::clone(table), slice.intersection(&self.range), self.walk.begun(first))
    }
}

/// Slots of a level that overlap a range.
pub(crate) struct Slots {
    level: Arc<LevelView>,
    within: Range<usize>,
    range: KeyRange,
    walk: Walk,
    /// Whether this scan is one of those that are counted.
    sampled: bool,
}

impl Parts for Slots {
    type Cursor = SlotCursor;

    fn len(&self) -> usize {
        self.within.len()
    }

    fn part_of(&self, key: &[u8]) -> usize {
        let slot = self.level.slot_of(key);
        slot.clamp(self.within.start, self.within.end.saturating_sub(1).max(self.within.start))
            - self.within.start
    }

    fn lacks(&self, key: &[u8], hash: u64) -> bool {
        let slot = self.level.slots.get(self.level.slot_of(key));
        let mut tables =
            slot.iter().flat_map(|slot| slot.runs.iter()).filter_map(|run| run.table_of(key));
        tables.all(|table| table.lacks(key, hash))
    }

    fn open(&self, part: usize, first: bool) -> SlotCursor {
        let slot = &self.level.slots[self.within.start + part];
        let all = entries(&slot.runs);
        let walk = self.walk.begun(first);
        let run = |(at, run): (usize, &RunView)| {
            Slices::cursor(&slot.runs, at, &self.range, walk.part(run.entries, all))
        };
        let runs = slot.runs.iter().enumerate().map(run).collect();
        SlotCursor {
            merge: Merge::new(runs, self.walk.direction),
            items: 0,
            counters: self.sampled.then(|| Arc::clone(&slot.counters)),
        }
    }
}

/// All runs of a slot, merged; counts what a sampled scan takes from it.
pub(crate) struct SlotCursor {
    merge: Merge<RunCursor>,
    items: u64,
    counters: Option<Arc<SlotCounters>>,
}

impl Cursor for SlotCursor {
    fn rewind(&mut self) -> Result<(), Stop> {
        self.merge.rewind()
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.merge.seek(key)
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        let more = self.merge.advance()?;
        self.items += 1;
        Ok(more)
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        self.merge.entry()
    }

    #[inline]
    fn value(&self) -> bytes::Bytes {
        self.merge.value()
    }
}

impl Drop for SlotCursor {
    fn drop(&mut self) {
        if let Some(counters) = &self.counters {
            counters.record_seek();
            counters.record_scanned(self.items);
        }
    }
}

/// One of the sources that a scan merges.
pub(crate) enum Source {
    /// A memtable.
    Memtable(MemtableCursor),
    /// A run of L0.
    Run(Box<Concat<Slices>>),
    /// All slots of a deeper level.
    Level(Box<Concat<Slots>>),
}

/// Hands each call to whichever source it is.
macro_rules! each {
    ($self:ident, $source:ident => $call:expr) => {
        match $self {
            Self::Memtable($source) => $call,
            Self::Run($source) => $call,
            Self::Level($source) => $call,
        }
    };
}

impl Cursor for Source {
    fn rewind(&mut self) -> Result<(), Stop> {
        each!(self, source => source.rewind())
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        each!(self, source => source.seek(key))
    }

    fn lacks(&self, key: &[u8], hash: u64) -> bool {
        each!(self, source => source.lacks(key, hash))
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        each!(self, source => source.advance())
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        each!(self, source => source.entry())
    }

    #[inline]
    fn value(&self) -> bytes::Bytes {
        each!(self, source => source.value())
    }
}

impl View {
    /// Everything in the View, merged; entries outside of `range` may come too, at its ends.
    ///
    /// `limit`: entries that are wanted, if that is known.
    pub(crate) fn cursor(
        &self,
        range: &KeyRange,
        direction: Direction,
        limit: Option<usize>,
    ) -> Merge<Source> {
        let walk = Walk { limit, ..Walk::new(direction, Access::Try, true) };
        let sampled = is_sampled();
        let memtables = std::iter::once(&self.active).chain(&self.sealed);
        let mut sources: Vec<Source> = memtables
            .filter(|memtable| !memtable.is_empty())
            .map(|memtable| Source::Memtable(MemtableCursor::new(Arc::clone(memtable), direction)))
            .collect();
        let part = |entries| walk.part(entries, self.tree.entries);
        let l0 = self.tree.l0.iter().enumerate();
        let l0 = l0.map(|(at, run)| Slices::cursor(&self.tree.l0, at, range, part(run.entries)));
        sources.extend(l0.map(|run| Source::Run(Box::new(run))));
        for level in &self.tree.levels {
            let start = level.slot_of(&range.start);
            let end = range.end.as_ref().map_or(level.slots.len(), |end| level.starts.before(end));
            let slots = Slots {
                level: Arc::clone(level),
                within: start..end.max(start),
                range: range.clone(),
                walk: part(level.entries),
                sampled,
            };
            sources.push(Source::Level(Box::new(Concat::new(slots, direction))));
        }
        Merge::new(sources, direction)
    }
}

/// A point read on its way: goes on where it was stopped.
#[derive(Debug)]
pub(crate) struct Lookup<'k> {
    key: &'k [u8],
    snapshot: SeqNo,
    fetch: Fetch,
    hash: u64,
    /// Runs that were asked and do not have the key.
    done: usize,
    /// Whether this read is one of those that are counted.
    sampled: bool,
    /// Whether a table was asked at all.
    asked: bool,
}

impl<'k> Lookup<'k> {
    /// Whether this read is one of those that are measured.
    pub(crate) fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The histogram for the time that this read took; `None` if it never came to a table.
    pub(crate) fn histogram<'m>(
        &self,
        metrics: &'m ReadMetrics,
        found: bool,
    ) -> Option<&'m dyn Histogram> {
        let of_outcome = match (found, self.fetch.was_filtered()) {
            (true, _) => &metrics.get_hit_ms,
            (false, true) => &metrics.get_bloom_skip_ms,
            (false, false) => &metrics.get_miss_ms,
        };
        self.asked.then_some(&**of_outcome)
    }

    pub(crate) fn new(key: &'k [u8], snapshot: SeqNo) -> Self {
        Self {
            key,
            snapshot,
            fetch: Fetch::new(Access::Try, true),
            hash: hash_key(key),
            done: 0,
            sampled: is_sampled(),
            asked: false,
        }
    }

    /// The newest version up to the snapshot. REQUIRES: the same View each time.
    pub(crate) fn run(&mut self, view: &View) -> Result<Option<Found>, Stop> {
        if self.done == 0 {
            let memtables = std::iter::once(&view.active).chain(&view.sealed);
            for memtable in memtables {
                if let Some(found) = memtable.get(self.key, self.hash, self.snapshot) {
                    return Ok(Some(found));
                }
            }
        }
        self.ask_tables(&view.tree)
    }

    fn ask_tables(&mut self, tree: &Tree) -> Result<Option<Found>, Stop> {
        let mut passed = 0;
        let open = tree.cache.open_tables();
        if let Some(found) = self.ask_runs(&tree.l0, &open, &mut passed)? {
            return Ok(Some(found));
        }
        for level in &tree.levels {
            let Some(slot) = level.slots.get(level.slot_of(self.key)) else { continue };
            let before = self.done;
            let found = self.ask_runs(&slot.runs, &open, &mut passed)?;
            if self.sampled && self.done > before {
                slot.counters.record_get(self.key, self.done - before);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Asks `runs`, newest first, but for those that were asked before. `passed`: how many were gone over on this try.
    fn ask_runs(
        &mut self,
        runs: &[RunView],
        open: &OpenTables,
        passed: &mut usize,
    ) -> Result<Option<Found>, Stop> {
        for run in runs {
            *passed += 1;
            if *passed <= self.done {
                continue;
            }
            let mut found = None;
            if let Some(table) = run.table_of(self.key) {
                self.asked = true;
                let wanted = (self.key, self.hash);
                found = table.get(open, wanted, self.snapshot, &mut self.fetch)?;
            }
            self.done = *passed;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Whether this read is one of those that are counted: every so many of a thread.
fn is_sampled() -> bool {
    thread_local! {
        static READS: Sampler = const { Sampler::new() };
    }
    READS.with(Sampler::takes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::env::OsFs;
    use crate::observe::NoopMeter;
    use crate::storage::Helpers;
    use crate::version::TableMeta;

    /// A table that nobody reads.
    fn table() -> Arc<Table> {
        let meta = TableMeta {
            file: FileId(1),
            level: Level(1),
            file_bytes: 0,
            entries: 0,
            tombstones: 0,
            raw_bytes: 0,
            min_seq: SeqNo(0),
            max_seq: SeqNo(0),
            created_s: 0,
            sections: Vec::new(),
        };
        let cache = TableCache::alone(0, Helpers::none());
        let metrics = ReadMetrics::new(&NoopMeter);
        Table::new(Arc::new(OsFs), PathBuf::new(), Arc::new(meta), cache, metrics)
    }

    /// Bounds of ranges, the first of which may be empty, the last of which may be none.
    fn bounds() -> impl Strategy<Value = Vec<Bytes>> {
        let key = prop_oneof![1 => Just(vec![]), 9 => proptest::collection::vec(0..3u8, 1..3)];
        let keys = proptest::collection::btree_set(key, 0..12);
        keys.prop_map(|keys| keys.into_iter().map(Bytes::from).collect())
    }

    /// Ranges that do not overlap, in order: those that are picked of what is between two bounds.
    fn slices(bounds: &[Bytes], picked: u16) -> Vec<KeyRange> {
        let ends = bounds.iter().skip(1).cloned().map(Some).chain([None]);
        let all = bounds.iter().cloned().zip(ends).map(|(start, end)| KeyRange { start, end });
        all.enumerate().filter(|(i, _)| picked >> i & 1 == 1).map(|(_, range)| range).collect()
    }

    proptest! {
        #[test]
        fn of_a_run_a_walk_sees_what_overlaps_its_range(
            bounds in bounds(), picked: u16, ends in bounds(), key in proptest::collection::vec(0..3u8, 0..3),
        ) {
            let ranges = slices(&bounds, picked);
            let table = table();
            let ends_of = |range: &KeyRange| std::iter::once(range.start.clone()).chain(range.end.clone());
            let run = RunView {
                bounds: ranges.iter().flat_map(ends_of).collect(),
                slices: ranges.iter().map(|range| (range.clone(), Arc::clone(&table))).collect(),
                entries: 0,
            };
            let range = KeyRange {
                start: ends.first().cloned().unwrap_or_default(),
                end: ends.iter().skip(1).last().cloned(),
            };
            let seen: Vec<usize> = run.within(&range).collect();
            let overlapping = (0..ranges.len()).filter(|&i| ranges[i].overlaps(&range));
            prop_assert_eq!(&seen, &overlapping.collect::<Vec<_>>());

            let holder = ranges.iter().position(|range| range.contains(&key));
            prop_assert_eq!(run.table_of(&key).is_some(), holder.is_some());
            let within = run.within(&range);
            let walk = Walk::new(Direction::Forward, Access::Wait, false);
            let parts = Slices { runs: Arc::from([run]), at: 0, within, range: range.clone(), walk };
            let begun = seen.iter().take_while(|&&i| *ranges[i].start <= *key).count();
            if range.contains(&key) || range.end.as_deref() == Some(&key[..]) {
                prop_assert_eq!(parts.part_of(&key), begun.saturating_sub(1));
            }
            prop_assert!(parts.len() == 0 || parts.part_of(&key) < parts.len());
        }
    }
}
