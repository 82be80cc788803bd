//! A table that is being read: point lookups, and the blocks that cursors walk over.
//!
//! 1. Sections are found by their key bounds, which are in memory; the filter of the section is asked before anything else.
//! 2. The leaf index of the section, kept in memory while the table is open, names the data block.
//! 3. The block comes from the cache, from the page cache, or from the disk: then only where waiting is allowed.
//!
//! Invariant: a block is used only after its checksum held; what does not hold is an error, never a miss.
//! Format: docs/format.md#tables

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use crate::config::Compression;
use crate::cursor::{Found, Stop};
use crate::env::{Fs, ReadFile};
use crate::error::{Damage, Error, IoContext, Result};
use crate::fences::Fences;
use crate::format::block::{DataBlock, RawEntry};
use crate::format::filter::Filter;
use crate::format::footer::{FOOTER, Footer};
use crate::format::frame::{self, BlockKind, Place};
use crate::format::index::{self, LeafIndex};
use crate::format::props::Props;
use crate::observe::ReadMetrics;
use crate::storage::open_table::{Forgotten, OpenTable};
use crate::storage::table_cache::{NO_SEAT, OpenPlace, OpenTables, TableCache};
use crate::storage::table_check::TableCheck;
use crate::turn;
use crate::types::{FileId, KeyRange, SeqNo, u64_of, usize_of};
use crate::version::{SectionMeta, TableMeta};

/// What to do about a block that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it if that needs no waiting, else return [`Stop::Blocked`].
    Try,
    /// Read it right here.
    Wait,
}

/// What was waited for, so that a retry finds it whatever the caches do.
#[derive(Debug, Default)]
struct Loaded {
    table: Option<(FileId, Arc<OpenTable>)>,
    blocks: Vec<(Place, Bytes)>,
}

/// State of one lookup across its retries: how it may read, and what was read for it.
#[derive(Debug)]
pub(crate) struct Fetch {
    access: Access,
    fill_cache: bool,
    /// `None` until something was waited for.
    loaded: Option<Arc<Mutex<Loaded>>>,
    /// The section whose filter let a lookup pass that was then stopped: a retry asks again, but that is the same check.
    counted: Option<(FileId, usize)>,
    filtered: bool,
}

impl Fetch {
    pub(crate) const fn new(access: Access, fill_cache: bool) -> Self {
        Self { access, fill_cache, loaded: None, counted: None, filtered: true }
    }

    /// Whether every filter that the last lookup asked said no.
    pub(crate) const fn was_filtered(&self) -> bool {
        self.filtered
    }

    fn block(&self, place: Place) -> Option<Bytes> {
        let loaded = locked(self.loaded.as_ref()?);
        loaded.blocks.iter().find(|(other, _)| *other == place).map(|(_, block)| block.clone())
    }

    /// The table, if it was waited for.
    fn table(&self, file: FileId) -> Option<Arc<OpenTable>> {
        let loaded = locked(self.loaded.as_ref()?);
        loaded.table.as_ref().filter(|(other, _)| *other == file).map(|(_, open)| Arc::clone(open))
    }

    /// Whether the filter of that section was not asked before by this lookup.
    #[inline]
    fn counts(&self, file: FileId, section: usize) -> bool {
        self.loaded.is_none() || self.counted != Some((file, section))
    }
}

fn locked(loaded: &Mutex<Loaded>) -> MutexGuard<'_, Loaded> {
    loaded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A table file, open or not. Thread-safe; nothing is read before the first access.
#[derive(Debug)]
pub(crate) struct Table {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    meta: Arc<TableMeta>,
    /// The first and the last key of each section: an odd number of them before a key means that the key is in a section.
    bounds: Fences,
    /// Every section has something that is not newer.
    all_from: SeqNo,
    /// Whether versions of some key go on in the next section.
    key_continues: bool,
    cache: Arc<TableCache>,
    metrics: Arc<ReadMetrics>,
    /// `None` before it is first read, and again once the table cache has closed it.
    open: ArcSwapOption<OpenTable>,
    /// Held by the one who opens it.
    opening: Mutex<()>,
    /// Where it sits among the open tables of the cache.
    seat: AtomicUsize,
    /// A table that stands alone is never closed.
    kept: OnceLock<Arc<OpenTable>>,
}

impl Drop for Table {
    fn drop(&mut self) {
        let seat = self.take_seat();
        if seat != NO_SEAT {
            self.cache.leave(seat);
        }
    }
}

/// What a point lookup looks for.
#[derive(Clone, Copy, Debug)]
struct Wanted<'k> {
    key: &'k [u8],
    hash: u64,
    snapshot: SeqNo,
    /// The first section that may hold the key.
    first: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Leaf,
    Filter,
}

/// Where a block lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Extent {
    /// Where it ends in the file.
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(u64_of(self.len))
    }

    /// Whether all of `other` is in it.
    pub(super) fn holds(self, other: Self) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }
}

impl Table {
    /// Table of an engine, whose manifest knows its content. Reads nothing.
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        meta: Arc<TableMeta>,
        cache: Arc<TableCache>,
        metrics: Arc<ReadMetrics>,
    ) -> Arc<Self> {
        let sections = &meta.sections;
        let ends = |section: &SectionMeta| [section.min_key.clone(), section.max_key.clone()];
        let bounds = sections.iter().flat_map(ends).collect();
        let all_from = sections.iter().map(|section| section.min_seq).max().unwrap_or_default();
        let next = sections.iter().skip(1);
        let key_continues =
            sections.iter().zip(next).any(|(section, next)| section.max_key == next.min_key);
        Arc::new(Self {
            fs,
            path,
            meta,
            bounds,
            all_from,
            key_continues,
            cache,
            metrics,
            open: ArcSwapOption::empty(),
            opening: Mutex::default(),
            seat: AtomicUsize::new(NO_SEAT),
            kept: OnceLock::new(),
        })
    }

    /// Table that stands alone: its footer and indexes say what it contains. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn open(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        cache: Arc<TableCache>,
        metrics: Arc<ReadMetrics>,
    ) -> Result<Arc<Self>> {
        let file = fs.open(&path).at("open", &path)?;
        let (meta, _) = read_meta(file.as_ref(), &path)?;
        let table = Self::new(fs, path, Arc::new(meta), cache, metrics);
        let open = table.install(file);
        table.kept.get_or_init(|| open);
        Ok(table)
    }

    pub(crate) const fn meta(&self) -> &Arc<TableMeta> {
        &self.meta
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The table, opened if it is not open yet. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it has another size than it was written with; [`Error::Io`].
    pub(crate) fn open_now(self: &Arc<Self>) -> Result<Arc<OpenTable>> {
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        // Makes room before the file is opened: there are never more open files than there may be.
        let place = self.cache.enter(self);
        let file = self.cache.patiently(|| self.fs.open(&self.path).at("open", &self.path))?;
        if file.size().at("size", &self.path)? != self.meta.file_bytes {
            let expected = "a table file of the size that was written";
            return Err(Error::corrupt(&self.path, self.meta.file_bytes, expected));
        }
        Ok(self.keep_open(file, place))
    }

    fn keep_open(self: &Arc<Self>, file: Arc<dyn ReadFile>, place: OpenPlace) -> Arc<OpenTable> {
        let named = (self.meta.file, file);
        let open = Arc::new(OpenTable::new(named, self.meta.sections.len(), place));
        self.open.store(Some(Arc::clone(&open)));
        self.cache.entered(self, Arc::clone(&open));
        open
    }

    fn install(self: &Arc<Self>, file: Arc<dyn ReadFile>) -> Arc<OpenTable> {
        let place = self.cache.enter(self);
        self.keep_open(file, place)
    }

    /// The table, if that needs no waiting or if waiting is allowed. `waited`: gets it if it must be waited for.
    pub(super) fn opened(
        self: &Arc<Self>,
        access: Access,
        waited: impl FnOnce(Arc<OpenTable>) + Send + 'static,
    ) -> Result<Arc<OpenTable>, Stop> {
        if let Some(open) = self.open.load_full() {
            open.mark();
            return Ok(open);
        }
        if access == Access::Wait {
            return Ok(self.open_now()?);
        }
        let table = Arc::clone(self);
        Err(Stop::Blocked(Box::new(move || {
            waited(table.open_now()?);
            Ok(())
        })))
    }

    /// Lets go of the file and of what is in memory. Readers keep what they hold.
    pub(super) fn close(&self) {
        self.open.store(None);
    }

    /// Lets go of some indexes and filters, see [`OpenTable::forgetful`]. Readers keep what they hold. REQUIRES: nobody else opens or
    /// closes it.
    pub(super) fn forget(&self, from: usize, wanted: u64, spared: bool) -> Option<Forgotten> {
        let forgotten = self.open.load().as_ref()?.forgetful(from, wanted, spared);
        if let Some(rest) = &forgotten.rest {
            self.open.store(Some(Arc::clone(rest)));
        }
        Some(forgotten)
    }

    /// Whether it was read since the last call; `false` if it is not open.
    pub(super) fn take_mark(&self) -> bool {
        self.open.load().as_ref().is_some_and(|open| open.take_mark())
    }

    #[cfg(test)]
    pub(super) fn set_file(self: &Arc<Self>, file: Arc<dyn ReadFile>) {
        self.install(file);
    }

    pub(super) fn sit(&self, seat: usize) {
        self.seat.store(seat, Ordering::Release);
    }

    #[inline]
    pub(super) fn seat(&self) -> usize {
        self.seat.load(Ordering::Acquire)
    }

    pub(super) fn take_seat(&self) -> usize {
        self.seat.swap(NO_SEAT, Ordering::AcqRel)
    }

    /// The open table, without waiting or counting anything.
    #[inline]
    fn open_in<'o>(&'o self, open: &'o OpenTables) -> Option<&'o Arc<OpenTable>> {
        match open.seat(self.seat()) {
            Some(open) if open.id() == self.meta.file => Some(open),
            Some(_) | None => self.kept.get(),
        }
    }

    pub(super) const fn cache(&self) -> &Arc<TableCache> {
        &self.cache
    }

    /// Bytes of the indexes and filters in memory.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.open.load().as_ref().map_or(0, |open| open.pinned_bytes())
    }

    /// The newest version of `key` with a number of at most `snapshot`.
    ///
    /// `open`: the tables that are open, as of now or a moment ago. `hash`: [`hash_key`] of `key`. `fetch`: one for each lookup;
    /// the same again after a [`Stop::Blocked`].
    pub(crate) fn get(
        self: &Arc<Self>,
        open: &OpenTables,
        (key, hash): (&[u8], u64),
        snapshot: SeqNo,
        fetch: &mut Fetch,
    ) -> Result<Option<Found>, Stop> {
        fetch.filtered = true;
        let Some(first) = self.section_of(key) else { return Ok(None) };
        let wanted = Wanted { key, hash, snapshot, first };
        let opened;
        let open = match self.open_in(open) {
            Some(open) if fetch.loaded.is_none() => {
                open.mark();
                open
            }
            Some(_) | None => {
                opened = self.open_for(open, fetch)?;
                &opened
            }
        };
        self.get_open(open, wanted, fetch)
    }

    /// The open table of a lookup that was stopped before, or of one that finds it closed.
    #[cold]
    fn open_for(
        self: &Arc<Self>,
        open: &OpenTables,
        fetch: &mut Fetch,
    ) -> Result<Arc<OpenTable>, Stop> {
        if let Some(open) = fetch.table(self.meta.file) {
            return Ok(open);
        }
        if let Some(open) = self.open_in(open) {
            open.mark();
            return Ok(Arc::clone(open));
        }
        if fetch.access == Access::Wait {
            return Ok(self.open_now()?);
        }
        let (file, loaded) = (self.meta.file, Arc::clone(fetch.loaded.get_or_insert_default()));
        self.opened(Access::Try, move |open| locked(&loaded).table = Some((file, open)))
    }

    #[inline]
    fn get_open(
        self: &Arc<Self>,
        open: &Arc<OpenTable>,
        Wanted { key, hash, snapshot, first }: Wanted<'_>,
        fetch: &mut Fetch,
    ) -> Result<Option<Found>, Stop> {
        let mut index = first;
        loop {
            let visible = self.all_from <= snapshot || self.section(index)?.min_seq <= snapshot;
            if visible && self.passes(open, index, hash, fetch)? {
                fetch.filtered = false;
                match self.get_in((open, index), key, snapshot, fetch) {
                    Ok(None) => {}
                    stop @ Err(_) => {
                        fetch.counted = Some((self.meta.file, index));
                        return stop;
                    }
                    found @ Ok(Some(_)) => return found,
                }
            }
            index += 1;
            if !self.key_continues || !self.begins_with(index, key) {
                return Ok(None);
            }
        }
    }

    /// Whether nothing here has `key`, as bounds and filter tell; `hash`: [`hash_key`] of it. `false` where nobody knows without
    /// waiting, or without closing another table to make room: this only saves work.
    pub(crate) fn lacks(self: &Arc<Self>, key: &[u8], hash: u64) -> bool {
        let Some(index) = self.section_of(key) else { return true };
        if self.key_continues && self.begins_with(index + 1, key) {
            return false;
        }
        let tables = self.cache.open_tables();
        let Some(open) = self.open_in(&tables) else { return false };
        open.mark();
        self.filter_at_hand(open, index).is_some_and(|filter| !filter.may_contain(hash))
    }

    fn filter_at_hand<'o>(
        self: &Arc<Self>,
        open: &'o Arc<OpenTable>,
        index: usize,
    ) -> Option<&'o Filter> {
        let section = open.section(index, &self.path).ok()?;
        if let found @ Some(_) = section.filter.get() {
            return found;
        }
        let bytes = self.section(index).ok()?.filter_len;
        if bytes == 0 || !self.cache.may_pin(bytes.into()) {
            return None;
        }
        // Damage is told by the lookups that need the filter.
        self.pin(open, index, (Part::Filter, Access::Try)).ok()?;
        section.filter.get()
    }

    /// The first section that may hold `key`.
    #[inline]
    fn section_of(&self, key: &[u8]) -> Option<usize> {
        let bounds = self.bounds.before(key);
        let index = bounds / 2;
        (!bounds.is_multiple_of(2) || self.begins_with(index, key)).then_some(index)
    }

    /// Whether `key` is the first one of a section.
    #[cold]
    fn begins_with(&self, index: usize, key: &[u8]) -> bool {
        self.meta.sections.get(index).is_some_and(|section| section.min_key == key)
    }

    /// Loads every index and filter, so that no lookup has to. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn load_all(self: &Arc<Self>) -> Result<()> {
        let open = self.open_now()?;
        for (index, section) in self.meta.sections.iter().enumerate() {
            self.leaf_now(&open, index)?;
            if section.filter_len > 0 {
                self.pin_now(&open, index, Part::Filter)?;
            }
        }
        Ok(())
    }

    /// First keys and sizes of all data blocks that can hold keys of `range`, in key order. Blocks.
    ///
    /// A first key is a separator: at most the first key of its block, above the last key of the block before; never
    /// below the start of the range.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn block_ends(self: &Arc<Self>, range: &KeyRange) -> Result<Vec<(Bytes, u64)>> {
        let mut blocks = Vec::new();
        if range.is_empty() {
            return Ok(blocks);
        }
        for (index, section) in self.meta.sections.iter().enumerate() {
            if section.max_key < range.start || !range.is_before_end(&section.min_key) {
                continue;
            }
            let open = self.open_now()?;
            let leaf = self.leaf_now(&open, index)?;
            for block in leaf.find(&range.start)..leaf.n_blocks() {
                let (Some(key), Some(at)) = (leaf.separator(block), leaf.block(block)) else {
                    break;
                };
                if !range.is_before_end(&key) {
                    break;
                }
                let key = key.max(range.start.clone());
                blocks.push((key, u64::from(at.end.saturating_sub(at.start))));
            }
        }
        Ok(blocks)
    }

    /// Reads and checks every byte: checksums, order, counts, bounds, separators, filters. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is not as it was written; [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn verify(&self) -> Result<()> {
        let mut check = TableCheck::new(&self.fs, &self.path, &self.meta);
        while check.step()? {}
        check.done().damaged.first().map_or(Ok(()), |damaged| Err(damaged.error()))
    }

    #[inline]
    fn passes(
        self: &Arc<Self>,
        open: &Arc<OpenTable>,
        index: usize,
        hash: u64,
        fetch: &mut Fetch,
    ) -> Result<bool, Stop> {
        let Some(filter) = self.filter(open, index, fetch)? else { return Ok(true) };
        let passes = filter.may_contain(hash);
        if fetch.counts(self.meta.file, index) {
            if passes { &self.metrics.bloom_pass } else { &self.metrics.bloom_skip }.inc(1);
        }
        Ok(passes)
    }

    fn get_in(
        self: &Arc<Self>,
        (open, index): (&Arc<OpenTable>, usize),
        key: &[u8],
        snapshot: SeqNo,
        fetch: &mut Fetch,
    ) -> Result<Option<Found>, Stop> {
        let section = open.section(index, &self.path)?;
        let leaf = match section.leaf.get() {
            Some(leaf) => leaf,
            None => {
                self.pin_for((open, index, Part::Leaf), fetch)?;
                self.leaf_now(open, index)?
            }
        };
        let mut block = leaf.find(key);
        loop {
            let Some(extent) = self.extent(index, leaf, block) else { return Ok(None) };
            let payload = self.block(open, extent, fetch)?;
            let damaged = |damage: Damage| damage.of(&self.path, extent.offset);
            let bound = DataBlock::parse(&payload)
                .and_then(|block| block.lower_bound(key, snapshot))
                .map_err(damaged)?;
            if let Some(entry) = bound.entry {
                return Ok(bound.exact.then(|| found(&payload, entry)));
            }
            block += 1;
            if leaf.compare_separator(block, key).is_none_or(std::cmp::Ordering::is_gt) {
                return Ok(None);
            }
        }
    }

    /// A data block, from wherever it is nearest.
    fn block(
        self: &Arc<Self>,
        open: &Arc<OpenTable>,
        extent: Extent,
        fetch: &mut Fetch,
    ) -> Result<Bytes, Stop> {
        let place = self.place(extent);
        if let Some(block) = fetch.block(place) {
            return Ok(block);
        }
        let cost = self.cache.block_cost();
        let begun = cost.begin();
        if let Some(block) = self.cached(extent) {
            cost.end(begun);
            return Ok(block);
        }
        let raw = match fetch.access {
            Access::Wait => Some(self.read(open, extent)?),
            Access::Try => {
                turn::reads_file();
                self.try_read(open, extent)
            }
        };
        if let Some(raw) = raw {
            let block = self.unpack(&raw.into(), BlockKind::Data, extent)?;
            self.keep(extent, &block, fetch.fill_cache);
            cost.end(begun);
            return Ok(block);
        }
        let (table, open, fill_cache) = (Arc::clone(self), Arc::clone(open), fetch.fill_cache);
        let loaded = Arc::clone(fetch.loaded.get_or_insert_default());
        Err(Stop::Blocked(Box::new(move || {
            let begun = table.cache.block_cost().resume(begun);
            let raw = table.read(&open, extent)?.into();
            let block = table.unpack(&raw, BlockKind::Data, extent)?;
            table.keep(extent, &block, fill_cache);
            table.cache.block_cost().end(begun);
            let mut loaded = locked(&loaded);
            loaded.blocks.push((place, block));
            loaded.table = Some((place.file, open));
            Ok(())
        })))
    }

    /// The leaf index of a section.
    pub(super) fn leaf<'o>(
        self: &Arc<Self>,
        open: &'o Arc<OpenTable>,
        index: usize,
        access: Access,
    ) -> Result<&'o LeafIndex, Stop> {
        if let Some(leaf) = open.section(index, &self.path)?.leaf.get() {
            return Ok(leaf);
        }
        self.pin(open, index, (Part::Leaf, access))?;
        Ok(self.leaf_now(open, index)?)
    }

    fn leaf_now<'o>(self: &Arc<Self>, open: &'o OpenTable, index: usize) -> Result<&'o LeafIndex> {
        let leaf = &open.section(index, &self.path)?.leaf;
        if leaf.get().is_none() {
            self.pin_now(open, index, Part::Leaf)?;
        }
        leaf.get().ok_or_else(|| Error::corrupt(&self.path, 0, "leaf index"))
    }

    #[inline]
    fn filter<'o>(
        self: &Arc<Self>,
        open: &'o Arc<OpenTable>,
        index: usize,
        fetch: &mut Fetch,
    ) -> Result<Option<&'o Filter>, Stop> {
        let section = open.section(index, &self.path)?;
        if section.filter.get().is_none() && self.section(index)?.filter_len > 0 {
            self.pin_for((open, index, Part::Filter), fetch)?;
        }
        Ok(section.filter.get())
    }

    /// Makes sure that a part of a section is in memory, and that a retry finds it there though the table is closed meanwhile.
    #[cold]
    fn pin_for(
        self: &Arc<Self>,
        (open, index, part): (&Arc<OpenTable>, usize, Part),
        fetch: &mut Fetch,
    ) -> Result<(), Stop> {
        turn::reads_file();
        self.pin(open, index, (part, fetch.access)).inspect_err(|stop| {
            if matches!(stop, Stop::Blocked(_)) {
                let loaded = fetch.loaded.get_or_insert_default();
                locked(loaded).table = Some((self.meta.file, Arc::clone(open)));
            }
        })
    }

    /// Makes sure that a part of a section is in memory.
    fn pin(
        self: &Arc<Self>,
        open: &Arc<OpenTable>,
        index: usize,
        (part, access): (Part, Access),
    ) -> Result<(), Stop> {
        if access == Access::Wait {
            return Ok(self.pin_now(open, index, part)?);
        }
        if let Some(raw) = self.try_read(open, self.part(index, part)?) {
            return Ok(self.decode_part(open, (index, part), raw)?);
        }
        let (table, open) = (Arc::clone(self), Arc::clone(open));
        Err(Stop::Blocked(Box::new(move || table.pin_now(&open, index, part))))
    }

    fn pin_now(self: &Arc<Self>, open: &OpenTable, index: usize, part: Part) -> Result<()> {
        let raw = self.read(open, self.part(index, part)?)?;
        self.decode_part(open, (index, part), raw)
    }

    fn decode_part(
        &self,
        open: &OpenTable,
        (index, part): (usize, Part),
        raw: Vec<u8>,
    ) -> Result<()> {
        let extent = self.part(index, part)?;
        let (meta, section) = (self.section(index)?, open.section(index, &self.path)?);
        let damaged = |damage: Damage| damage.of(&self.path, extent.offset);
        let memory = match part {
            Part::Leaf => {
                let payload = self.unpack(&raw.into(), BlockKind::Leaf, extent)?;
                let leaf = LeafIndex::decode(payload, meta.data_len).map_err(damaged)?;
                let memory = leaf.memory();
                section.leaf.set(leaf).map_or(0, |()| memory)
            }
            Part::Filter => {
                let payload = self.unpack(&raw.into(), BlockKind::Filter, extent)?;
                let filter = Filter::decode(&payload).map_err(damaged)?;
                let memory = filter.memory();
                section.filter.set(filter).map_or(0, |()| memory)
            }
        };
        section.pinned(memory);
        self.cache.settle();
        Ok(())
    }

    fn part(&self, index: usize, part: Part) -> Result<Extent> {
        let meta = self.section(index)?;
        let leaf = meta.offset.saturating_add(meta.data_len.into());
        let (offset, len) = match part {
            Part::Leaf => (leaf, meta.leaf_len),
            Part::Filter => (leaf.saturating_add(meta.leaf_len.into()), meta.filter_len),
        };
        Ok(Extent { offset, len: usize_of(len.into()) })
    }

    fn section(&self, index: usize) -> Result<&SectionMeta> {
        let section = self.meta.sections.get(index);
        section.ok_or_else(|| Error::corrupt(&self.path, 0, "another section"))
    }

    /// Where a data block of a section lies; `None` behind the last one.
    #[inline]
    pub(super) fn extent(&self, index: usize, leaf: &LeafIndex, block: usize) -> Option<Extent> {
        let base = self.meta.sections.get(index)?.offset;
        let at = leaf.block(block)?;
        let offset = base.saturating_add(at.start.into());
        Some(Extent { offset, len: usize_of(at.end.saturating_sub(at.start).into()) })
    }

    fn place(&self, extent: Extent) -> Place {
        Place { file: self.meta.file, offset: extent.offset }
    }

    /// The block in the cache.
    #[inline]
    pub(super) fn cached(&self, extent: Extent) -> Option<Bytes> {
        let block = self.cache.blocks().get(self.place(extent));
        if block.is_some() { &self.metrics.cache_hits } else { &self.metrics.cache_misses }.inc(1);
        block
    }

    /// Puts a block into the cache, if it should be there.
    pub(super) fn keep(&self, extent: Extent, block: &Bytes, fill_cache: bool) {
        if fill_cache {
            self.cache.blocks().insert(self.place(extent), block.clone());
        }
    }

    /// Puts a block of a scan into the cache, unless that costs more than it gains.
    pub(super) fn offer(&self, extent: Extent, block: &Bytes) {
        self.cache.blocks().offer(self.place(extent), block);
    }

    /// Bytes of the file that so many entries take, about.
    pub(super) fn typical_bytes(&self, entries: usize) -> usize {
        let each = self.meta.file_bytes / self.meta.entries.max(1);
        entries.saturating_mul(usize_of(each))
    }

    /// Reads part of the file. Blocks.
    pub(super) fn read(&self, open: &OpenTable, extent: Extent) -> Result<Vec<u8>> {
        self.metrics.block_reads.inc(1);
        read_exact(open.file(), &self.path, extent, self.meta.file_bytes)
    }

    /// Reads part of the file if that needs no waiting.
    pub(super) fn try_read(&self, open: &OpenTable, extent: Extent) -> Option<Vec<u8>> {
        check_extent(&self.path, extent, self.meta.file_bytes).ok()?;
        let mut raw = vec![0; extent.len];
        // Whatever is wrong, the read that waits tells it.
        open.file().try_read_exact_at(&mut raw, extent.offset).ok()?;
        self.metrics.block_reads.inc(1);
        Some(raw)
    }

    /// Checks a block and decompresses it; shares the memory of `raw` if it is not compressed.
    pub(super) fn unpack(&self, raw: &Bytes, kind: BlockKind, extent: Extent) -> Result<Bytes> {
        unpack(raw, kind, self.place(extent), &self.path)
    }
}

fn found(payload: &Bytes, entry: RawEntry<'_>) -> Found {
    Found { seq: entry.seq, kind: entry.kind, value: payload.slice(entry.value) }
}

/// What a table says of itself. Blocks.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
pub(crate) fn read_table_meta(fs: &dyn Fs, path: &Path) -> Result<TableMeta> {
    let file = fs.open(path).at("open", path)?;
    Ok(read_meta(file.as_ref(), path)?.0)
}

/// Decodes footer, top index and properties. Returns also the number of data blocks.
pub(super) fn read_meta(file: &dyn ReadFile, path: &Path) -> Result<(TableMeta, u32)> {
    let size = file.size().at("size", path)?;
    let footer_off = size.checked_sub(u64_of(FOOTER));
    let footer_off = footer_off.ok_or_else(|| Error::corrupt(path, 0, "a table with a footer"))?;
    let part = |offset, len| read_exact(file, path, Extent { offset, len }, size);
    let footer = Footer::decode(&part(footer_off, FOOTER)?, size)
        .map_err(|unreadable| unreadable.of(path, footer_off))?;
    let block = |kind, offset, len: u32| {
        let raw = part(offset, usize_of(len.into()))?.into();
        unpack(&raw, kind, Place { file: footer.file, offset }, path)
    };
    let top = block(BlockKind::Top, footer.top_off, footer.top_len)?;
    let sections = index::decode_top(&top, footer.top_off)
        .map_err(|damage| damage.of(path, footer.top_off))?;
    let props = block(BlockKind::Props, footer.props_off, footer.props_len)?;
    let props = Props::decode(&props).map_err(|damage| damage.of(path, footer.props_off))?;
    let sum = |of: fn(&SectionMeta) -> u32| sections.iter().map(|s| u64::from(of(s))).sum::<u64>();
    let agree = sections.len() == usize_of(footer.n_sections.into())
        && props.file == footer.file
        && props.entries == sum(|section| section.entries)
        && props.tombstones == sum(|section| section.tombstones);
    if !agree {
        return Err(Error::corrupt(path, footer_off, "footer, index and properties that agree"));
    }
    let meta = TableMeta {
        file: footer.file,
        level: props.level,
        file_bytes: size,
        entries: props.entries,
        tombstones: props.tombstones,
        raw_bytes: props.raw_key_bytes.saturating_add(props.raw_value_bytes),
        min_seq: sections.iter().map(|section| section.min_seq).min().unwrap_or_default(),
        max_seq: sections.iter().map(|section| section.max_seq).max().unwrap_or_default(),
        created_s: props.created_s,
        sections,
    };
    Ok((meta, footer.n_blocks))
}

pub(crate) fn read_exact(
    file: &dyn ReadFile,
    path: &Path,
    extent: Extent,
    size: u64,
) -> Result<Vec<u8>> {
    check_extent(path, extent, size)?;
    let mut raw = vec![0; extent.len];
    match file.read_exact_at(&mut raw, extent.offset) {
        Ok(()) => Ok(raw),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Error::corrupt(path, extent.offset, "a table file of the size that was written"))
        }
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn check_extent(path: &Path, extent: Extent, size: u64) -> Result<()> {
    let end = extent.offset.checked_add(u64_of(extent.len));
    if end.is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::corrupt(path, extent.offset, "a block within the file"))
}

pub(crate) fn unpack(raw: &Bytes, kind: BlockKind, place: Place, path: &Path) -> Result<Bytes> {
    let frame = frame::open(raw, kind, place).map_err(|why| why.of(path, place.offset))?;
    if frame.codec == Compression::None {
        return Ok(raw.slice(..frame.raw_len));
    }
    let unpacked = frame.unpack().map_err(|why| why.of(path, place.offset))?;
    Ok(unpacked.into())
}
