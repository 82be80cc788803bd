//! Walks a table, or a key range of it, in either direction.
//!
//! Forward, the key under the cursor is patched from entry to entry; backward, a block's keys are decoded into one arena and walked
//! from its end. Blocks that follow each other are read ahead: 256 KiB at once for a compaction; for a scan, one block, then
//! 16 KiB, then twice as much each time up to 256 KiB. A scan that comes so far leaves the cache to those who read again.
//!
//! Invariant: a step loads and checks all it needs before it changes where the cursor is.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use crate::cursor::{Cursor, EntryRef, Stop};
use crate::error::{Damage, Result};
use crate::format::block::{Bound, DataBlock, EntryCodec, RawEntry};
use crate::format::frame::{BlockKind, TRAILER};
use crate::format::index::LeafIndex;
use crate::storage::open_table::OpenTable;
use crate::storage::table::{Access, Extent, Table};
use crate::tally::Share;
use crate::types::{Direction, KeyRange, SeqNo, ValueKind, u64_of, usize_of};
use crate::version::SectionMeta;

const READ_AHEAD_MIN: usize = 16 << 10;
const READ_AHEAD_MAX: usize = 256 << 10;
/// A scan that reads so much at once is a long one: it puts no more blocks into the cache.
const LONG: usize = 128 << 10;
/// More blocks than any step comes by.
const PENDING_MAX: usize = 8;

/// Cursor over the entries of a table whose keys are in a range.
#[derive(Debug)]
pub(crate) struct TableCursor {
    source: BlockSource,
    range: KeyRange,
    direction: Direction,
    /// Whether there is an entry under the cursor.
    valid: bool,
    spot: Spot,
    /// Payload of the block under the cursor.
    payload: Bytes,
    forward: Forward,
    backward: Backward,
    /// Memory for the next key or block, so that a step that fails changes nothing.
    spare_key: Vec<u8>,
    spare_block: Backward,
}

/// A data block of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spot {
    section: usize,
    block: usize,
}

/// The entry under a forward cursor.
#[derive(Debug, Default)]
struct Forward {
    codec: EntryCodec,
    /// Where the block begins in the file.
    base: u64,
    /// Where the next entry begins in the block.
    next: usize,
    /// Whether the range may end within the block.
    ends_here: bool,
    key: Vec<u8>,
    seq: SeqNo,
    kind: Option<ValueKind>,
    value: Range<usize>,
}

/// The entries of the block under a backward cursor.
#[derive(Debug, Default)]
struct Backward {
    keys: Vec<u8>,
    entries: Vec<Decoded>,
    /// Entry under the cursor.
    at: usize,
}

#[derive(Clone, Debug)]
struct Decoded {
    key: Range<usize>,
    seq: SeqNo,
    kind: ValueKind,
    value: Range<usize>,
}

/// A block that was searched for where the cursor should go.
struct Landing {
    spot: Spot,
    payload: Bytes,
    restart: usize,
    offset: usize,
}

impl TableCursor {
    /// Cursor over `range` of a table; reads nothing yet.
    ///
    /// `fill_cache`: whether blocks that are read go into the block cache. With [`Access::Wait`] and `false` the cache
    /// is not even asked: a compaction reads each block once.
    pub(crate) fn new(
        table: Arc<Table>,
        range: KeyRange,
        direction: Direction,
        access: Access,
        fill_cache: bool,
    ) -> Self {
        Self {
            source: BlockSource::new(table, direction, access, fill_cache),
            range,
            direction,
            valid: false,
            spot: Spot::default(),
            payload: Bytes::new(),
            forward: Forward::default(),
            backward: Backward::default(),
            spare_key: Vec::new(),
            spare_block: Backward::default(),
        }
    }

    fn exhaust(&mut self) -> Result<(), Stop> {
        self.valid = false;
        Ok(())
    }

    // Forward.

    /// Moves to the first entry of the range whose key is `key` or greater.
    fn seek_forward(&mut self, key: &[u8]) -> Result<(), Stop> {
        let table = Arc::clone(&self.source.table);
        let sections = &table.meta().sections;
        if !self.range.is_before_end(key) {
            return self.exhaust();
        }
        let section = sections.partition_point(|section| section.max_key[..] < *key);
        let in_range = sections.get(section).is_some_and(|s| self.range.is_before_end(&s.min_key));
        if !in_range {
            return self.exhaust();
        }
        let block = self.source.leaf(section, |leaf| leaf.find(key))?;
        let mut next = Some(Spot { section, block });
        while let Some(spot) = next {
            let Some((extent, payload)) = self.source.load(spot, &self.range)? else { break };
            let damaged = |damage: Damage| damage.of(table.path(), extent.offset);
            let bound = DataBlock::parse(&payload)
                .and_then(|block| block.lower_bound(key, SeqNo::MAX))
                .map_err(damaged)?;
            let Bound { restart, offset, entry, .. } = bound;
            if entry.is_some() {
                let payload = payload.clone();
                return self.land_forward(extent, Landing { spot, payload, restart, offset });
            }
            next = self.source.after(spot)?;
        }
        self.exhaust()
    }

    /// Takes a position in a block: rebuilds the key from its restart on.
    fn land_forward(&mut self, extent: Extent, landing: Landing) -> Result<(), Stop> {
        let table = Arc::clone(&self.source.table);
        let damaged = |damage: Damage| damage.of(table.path(), extent.offset);
        let codec = DataBlock::parse(&landing.payload).map_err(damaged)?.entries();
        let ends_here = self.source.ends_in(landing.spot, &self.range)?;
        let mut forward = Forward {
            codec,
            base: extent.offset,
            next: landing.restart,
            ends_here,
            key: std::mem::take(&mut self.spare_key),
            ..Forward::default()
        };
        forward.key.clear();
        loop {
            let at = forward.next;
            forward.step(&landing.payload).map_err(damaged)?;
            if at >= landing.offset {
                break;
            }
        }
        self.spare_key = std::mem::replace(&mut self.forward, forward).key;
        self.payload = landing.payload;
        self.spot = landing.spot;
        self.settle_forward();
        Ok(())
    }

    /// Checks the entry that was moved to against the end of the range.
    #[inline]
    fn settle_forward(&mut self) {
        self.valid = !self.forward.ends_here || self.range.is_before_end(&self.forward.key);
    }

    #[inline]
    fn advance_forward(&mut self) -> Result<(), Stop> {
        if self.forward.next >= self.forward.codec.end() {
            let moved = self.enter_next_block();
            return self.source.end_step(moved);
        }
        let base = self.forward.base;
        let stepped = self.forward.step(&self.payload);
        stepped.map_err(|damage| damage.of(self.source.table.path(), base))?;
        self.settle_forward();
        Ok(())
    }

    fn enter_next_block(&mut self) -> Result<(), Stop> {
        let Some(spot) = self.source.after(self.spot)? else { return self.exhaust() };
        if self.forward.ends_here && !self.source.begins_before_end(spot, &self.range)? {
            return self.exhaust();
        }
        let Some((extent, payload)) = self.source.load(spot, &self.range)? else {
            return self.exhaust();
        };
        let table = Arc::clone(&self.source.table);
        let damaged = |damage: Damage| damage.of(table.path(), extent.offset);
        let codec = DataBlock::parse(&payload).map_err(damaged)?.entries();
        let ends_here = self.source.ends_in(spot, &self.range)?;
        let entry = codec.decode(&payload, 0).map_err(damaged)?;
        self.forward.apply(&entry).map_err(damaged)?;
        self.forward.codec = codec;
        self.forward.base = extent.offset;
        self.forward.ends_here = ends_here;
        self.payload = payload;
        self.spot = spot;
        self.settle_forward();
        Ok(())
    }

    // Backward.

    /// Moves to the last entry of the range whose key is less than `bound`; `None`: to the last entry of the table.
    fn seek_backward(&mut self, bound: Option<&[u8]>) -> Result<(), Stop> {
        let table = Arc::clone(&self.source.table);
        let sections = &table.meta().sections;
        if bound.is_some_and(|bound| bound <= &self.range.start[..]) {
            return self.exhaust();
        }
        let before = |section: &SectionMeta| bound.is_none_or(|bound| section.min_key[..] < *bound);
        let Some(section) = sections.partition_point(before).checked_sub(1) else {
            return self.exhaust();
        };
        if sections.get(section).is_none_or(|section| section.max_key < self.range.start) {
            return self.exhaust();
        }
        let block = self.source.leaf(section, |leaf| match bound {
            Some(bound) => leaf.find_before(bound),
            None => leaf.n_blocks().saturating_sub(1),
        })?;
        let mut next = Some(Spot { section, block });
        while let Some(spot) = next {
            let Some((extent, payload)) = self.source.load(spot, &self.range)? else { break };
            let block = DataBlock::parse(&payload);
            let limit = block.and_then(|block| match bound {
                Some(bound) => block.lower_bound(bound, SeqNo::MAX).map(|bound| bound.offset),
                None => Ok(block.entries().end()),
            });
            let limit = limit.map_err(|damage| damage.of(table.path(), extent.offset))?;
            if limit > 0 {
                return self.land_backward(extent, spot, payload, limit);
            }
            next = self.source.before(spot)?;
        }
        self.exhaust()
    }

    /// Takes the last entry of a block that begins before `limit`.
    fn land_backward(
        &mut self,
        extent: Extent,
        spot: Spot,
        payload: Bytes,
        limit: usize,
    ) -> Result<(), Stop> {
        let decoded = self.spare_block.decode(&payload, limit);
        decoded.map_err(|damage| damage.of(self.source.table.path(), extent.offset))?;
        std::mem::swap(&mut self.backward, &mut self.spare_block);
        self.payload = payload;
        self.spot = spot;
        self.settle_backward();
        Ok(())
    }

    fn settle_backward(&mut self) {
        let key = self.backward.entry().map(|(key, _)| key);
        self.valid = key.is_some_and(|key| self.range.is_from_start(key));
    }

    fn advance_backward(&mut self) -> Result<(), Stop> {
        if let Some(at) = self.backward.at.checked_sub(1) {
            self.backward.at = at;
            self.settle_backward();
            return Ok(());
        }
        let moved = self.enter_block_before();
        self.source.end_step(moved)
    }

    fn enter_block_before(&mut self) -> Result<(), Stop> {
        let Some(spot) = self.source.before(self.spot)? else { return self.exhaust() };
        let Some((extent, payload)) = self.source.load(spot, &self.range)? else {
            return self.exhaust();
        };
        self.land_backward(extent, spot, payload, usize::MAX)
    }
}

impl Cursor for TableCursor {
    fn rewind(&mut self) -> Result<(), Stop> {
        let moved = match self.direction {
            Direction::Forward => {
                let start = self.range.start.clone();
                self.seek_forward(&start)
            }
            Direction::Backward => {
                let end = self.range.end.clone();
                self.seek_backward(end.as_deref())
            }
        };
        self.source.end_step(moved)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        let moved = match self.direction {
            Direction::Forward => {
                let range = self.range.clone();
                self.seek_forward(range.clamped(key))
            }
            Direction::Backward => {
                let end = self.range.end.clone();
                self.seek_backward(Some(end.as_deref().map_or(key, |end| key.min(end))))
            }
        };
        self.source.end_step(moved)
    }

    #[inline]
    fn advance(&mut self) -> Result<(), Stop> {
        if !self.valid {
            return Ok(());
        }
        match self.direction {
            Direction::Forward => self.advance_forward(),
            Direction::Backward => self.advance_backward(),
        }
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        if !self.valid {
            return None;
        }
        match self.direction {
            Direction::Forward => {
                let Forward { key, seq, kind, .. } = &self.forward;
                Some(EntryRef { key, seq: *seq, kind: (*kind)? })
            }
            Direction::Backward => {
                let (key, entry) = self.backward.entry()?;
                Some(EntryRef { key, seq: entry.seq, kind: entry.kind })
            }
        }
    }

    #[inline]
    fn value(&self) -> Bytes {
        let value = match self.direction {
            Direction::Forward => self.forward.value.clone(),
            Direction::Backward => {
                self.backward.entry().map_or(0..0, |(_, entry)| entry.value.clone())
            }
        };
        if value.is_empty() { Bytes::new() } else { self.payload.slice(value) }
    }
}

impl Forward {
    /// Moves to the next entry of the block.
    #[inline]
    fn step(&mut self, payload: &[u8]) -> Result<(), Damage> {
        let entry = self.codec.decode(payload, self.next)?;
        self.apply(&entry)
    }

    /// Moves to `entry`, if it is behind the one before.
    #[inline]
    fn apply(&mut self, entry: &RawEntry<'_>) -> Result<(), Damage> {
        let damaged = Damage { offset: u64_of(self.next), expected: "entries in order" };
        let rest = self.key.get(entry.shared..).ok_or(damaged)?;
        let in_order = self.kind.is_none()
            || match entry.suffix.cmp(rest) {
                Ordering::Greater => true,
                Ordering::Equal => entry.seq < self.seq,
                Ordering::Less => false,
            };
        if !in_order {
            return Err(damaged);
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(entry.suffix);
        self.seq = entry.seq;
        self.kind = Some(entry.kind);
        self.value = entry.value.clone();
        self.next = entry.next;
        Ok(())
    }
}

impl Backward {
    /// Decodes the entries that begin before `limit` and takes the last one.
    fn decode(&mut self, payload: &[u8], limit: usize) -> Result<(), Damage> {
        self.keys.clear();
        self.entries.clear();
        let codec = DataBlock::parse(payload)?.entries();
        let mut walk = Forward { codec, ..Forward::default() };
        while walk.next < limit.min(codec.end()) {
            walk.step(payload)?;
            let start = self.keys.len();
            self.keys.extend_from_slice(&walk.key);
            self.entries.push(Decoded {
                key: start..self.keys.len(),
                seq: walk.seq,
                kind: walk.kind.unwrap_or(ValueKind::Put),
                value: walk.value.clone(),
            });
        }
        self.at = self.entries.len().saturating_sub(1);
        Ok(())
    }

    fn entry(&self) -> Option<(&[u8], &Decoded)> {
        let entry = self.entries.get(self.at)?;
        Some((self.keys.get(entry.key.clone())?, entry))
    }
}

/// Bytes of a file that were read at once.
#[derive(Clone, Debug)]
struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// The bytes of a block, if all of them are here.
    fn slice(&self, extent: Extent) -> Option<Bytes> {
        let start = usize_of(extent.offset.checked_sub(self.start)?);
        let end = start.checked_add(extent.len)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}

/// Where the blocks of a cursor come from.
#[derive(Debug)]
struct BlockSource {
    table: Arc<Table>,
    access: Access,
    fill_cache: bool,
    /// A compaction neither asks nor fills the cache.
    past_cache: bool,
    direction: Direction,
    /// Bytes of the next read, if as many blocks follow.
    ahead: usize,
    window: Option<Window>,
    /// Counts the window.
    buffered: Share,
    /// What a blocked step waited for.
    awaited: Arc<Mutex<Option<Window>>>,
    /// The table, held open until the step is through.
    open: Arc<OnceLock<Arc<OpenTable>>>,
    /// Blocks of a step that stopped half-way, for its next try.
    pending: Vec<(Extent, Bytes)>,
}

impl BlockSource {
    fn new(table: Arc<Table>, direction: Direction, access: Access, fill_cache: bool) -> Self {
        let past_cache = access == Access::Wait && !fill_cache;
        let ahead = if past_cache { READ_AHEAD_MAX } else { 0 };
        Self {
            buffered: table.cache().buffers().share(0),
            table,
            access,
            fill_cache,
            past_cache,
            direction,
            ahead,
            window: None,
            awaited: Arc::default(),
            open: Arc::default(),
            pending: Vec::new(),
        }
    }

    /// Forgets what only a step that stopped half-way needs, once it is through.
    fn end_step(&mut self, moved: Result<(), Stop>) -> Result<(), Stop> {
        if moved.is_ok() {
            self.pending.clear();
        }
        if !matches!(moved, Err(Stop::Blocked(_))) {
            match Arc::get_mut(&mut self.open) {
                Some(open) => drop(open.take()),
                None => self.open = Arc::default(), // a step was given up while its job runs
            }
        }
        moved
    }

    fn opened(&self) -> Result<&Arc<OpenTable>, Stop> {
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let cell = Arc::clone(&self.open);
        let open = self.table.opened(self.access, move |open| drop(cell.set(open)))?;
        Ok(self.open.get_or_init(|| open))
    }

    /// Asks the leaf index of a section.
    fn leaf<T>(&self, section: usize, ask: impl FnOnce(&LeafIndex) -> T) -> Result<T, Stop> {
        Ok(ask(self.table.leaf(self.opened()?, section, self.access)?))
    }

    /// The block behind `spot`, if there is one.
    fn after(&self, spot: Spot) -> Result<Option<Spot>, Stop> {
        let n_blocks = self.leaf(spot.section, |leaf| leaf.n_blocks())?;
        if spot.block + 1 < n_blocks {
            return Ok(Some(Spot { block: spot.block + 1, ..spot }));
        }
        let section = spot.section + 1;
        Ok((section < self.table.meta().sections.len()).then_some(Spot { section, block: 0 }))
    }

    /// The block in front of `spot`, if there is one.
    fn before(&self, spot: Spot) -> Result<Option<Spot>, Stop> {
        if let Some(block) = spot.block.checked_sub(1) {
            return Ok(Some(Spot { block, ..spot }));
        }
        let Some(section) = spot.section.checked_sub(1) else { return Ok(None) };
        let block = self.leaf(section, |leaf| leaf.n_blocks().saturating_sub(1))?;
        Ok(Some(Spot { section, block }))
    }

    /// Whether some key of the block may be at or behind the end of the range.
    fn ends_in(&self, spot: Spot, range: &KeyRange) -> Result<bool, Stop> {
        let Some(end) = range.end.as_ref().filter(|end| self.reaches(spot.section, end)) else {
            return Ok(false);
        };
        let next = self.leaf(spot.section, |leaf| leaf.compare_separator(spot.block + 1, end))?;
        Ok(next != Some(Ordering::Less))
    }

    /// Whether a section has keys at or behind `end`.
    fn reaches(&self, section: usize, end: &[u8]) -> bool {
        let section = self.table.meta().sections.get(section);
        section.is_none_or(|section| section.max_key[..] >= *end)
    }

    /// Whether the block may hold a key before the end of the range.
    fn begins_before_end(&self, spot: Spot, range: &KeyRange) -> Result<bool, Stop> {
        let Some(end) = &range.end else { return Ok(true) };
        let section = self.table.meta().sections.get(spot.section);
        if spot.block == 0 {
            return Ok(section.is_some_and(|section| section.min_key < *end));
        }
        let order = self.leaf(spot.section, |leaf| leaf.compare_separator(spot.block, end))?;
        Ok(order == Some(Ordering::Less))
    }

    /// Where a block is; `None` if the table ends before.
    fn locate(&self, spot: Spot) -> Result<Option<Extent>, Stop> {
        self.leaf(spot.section, |leaf| self.table.extent(spot.section, leaf, spot.block))
    }

    /// The part of the file to read for a block: with those that a scan of `range` comes by next, as many as are read ahead.
    fn wanted(&self, spot: Spot, extent: Extent, range: &KeyRange) -> Result<Extent, Stop> {
        let table = &self.table;
        let is_scan = self.access == Access::Try;
        let crowded = is_scan && !table.cache().may_read_ahead(u64_of(self.ahead));
        if self.ahead <= extent.len || crowded {
            return Ok(extent);
        }
        self.leaf(spot.section, |leaf| match self.direction {
            Direction::Forward => {
                let end = range.end.as_ref().filter(|end| self.reaches(spot.section, end));
                let end = end.map_or(usize::MAX, |end| leaf.find_before(end));
                let last = end.clamp(spot.block, leaf.n_blocks().saturating_sub(1));
                let last = table.extent(spot.section, leaf, last).unwrap_or(extent);
                let end = last.offset.saturating_add(u64_of(last.len));
                let room = end.saturating_sub(extent.offset);
                Extent { len: self.ahead.min(usize_of(room)).max(extent.len), ..extent }
            }
            Direction::Backward => {
                let end = extent.offset.saturating_add(u64_of(extent.len));
                let near = |first: &Extent| end.saturating_sub(first.offset) <= u64_of(self.ahead);
                let first = (leaf.find(&range.start)..spot.block)
                    .rev()
                    .map_while(|block| table.extent(spot.section, leaf, block).filter(near))
                    .last();
                let offset = first.unwrap_or(extent).offset;
                Extent { offset, len: usize_of(end.saturating_sub(offset)) }
            }
        })
    }

    /// A block and where it is; `None` if the table ends before.
    fn load(&mut self, spot: Spot, range: &KeyRange) -> Result<Option<(Extent, Bytes)>, Stop> {
        let Some(extent) = self.locate(spot)? else { return Ok(None) };
        if let Some((_, block)) = self.pending.iter().find(|(other, _)| *other == extent) {
            return Ok(Some((extent, block.clone())));
        }
        let block = match self.in_memory(extent)? {
            Some(block) => block,
            None => self.read(extent, self.wanted(spot, extent, range)?)?,
        };
        if self.access == Access::Try {
            if self.pending.len() >= PENDING_MAX {
                self.pending.clear(); // the caller gave up on steps half-way
            }
            self.pending.push((extent, block.clone()));
        }
        Ok(Some((extent, block)))
    }

    fn in_memory(&mut self, extent: Extent) -> Result<Option<Bytes>> {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner).take();
        if awaited.is_some() {
            self.window = awaited;
            self.count_window();
            self.grow();
        }
        if let Some(raw) = self.window.as_ref().and_then(|window| window.slice(extent)) {
            return self.unpack(&raw, extent).map(Some);
        }
        Ok(if self.past_cache { None } else { self.table.cached(extent) })
    }

    /// Reads the part `wanted` of the file, in which the block is.
    fn read(&mut self, extent: Extent, wanted: Extent) -> Result<Bytes, Stop> {
        let open = Arc::clone(self.opened()?);
        let raw = match self.access {
            Access::Wait => Some(self.table.read(&open, wanted)?),
            Access::Try => self.table.try_read(&open, wanted),
        };
        let Some(raw) = raw else {
            let (table, awaited) = (Arc::clone(&self.table), Arc::clone(&self.awaited));
            return Err(Stop::Blocked(Box::new(move || {
                let window =
                    Window { start: wanted.offset, bytes: table.read(&open, wanted)?.into() };
                *awaited.lock().unwrap_or_else(PoisonError::into_inner) = Some(window);
                Ok(())
            })));
        };
        let window = self.window.insert(Window { start: wanted.offset, bytes: raw.into() });
        let raw = window.slice(extent).unwrap_or_default();
        self.count_window();
        self.grow();
        Ok(self.unpack(&raw, extent)?)
    }

    fn count_window(&mut self) {
        self.buffered.set(self.window.as_ref().map_or(0, |window| u64_of(window.bytes.len())));
    }

    fn grow(&mut self) {
        self.ahead = (self.ahead * 2).clamp(READ_AHEAD_MIN, READ_AHEAD_MAX);
    }

    fn unpack(&self, raw: &Bytes, extent: Extent) -> Result<Bytes> {
        let block = self.table.unpack(raw, BlockKind::Data, extent)?;
        if !self.fill_cache {
            return Ok(block);
        }
        let shares_window = block.len() + TRAILER == raw.len();
        let is_part = self.window.as_ref().is_some_and(|window| window.bytes.len() > raw.len());
        // Who keeps a value, or the cache, would keep the whole window in memory.
        let block = if shares_window && is_part { Bytes::copy_from_slice(&block) } else { block };
        if self.ahead < LONG {
            self.table.keep(extent, &block, true);
        }
        Ok(block)
    }
}
