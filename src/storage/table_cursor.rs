//! Walks a table, or a key range of it, in either direction.
//!
//! Forward, the key under the cursor is patched from entry to entry; backward, a block's keys are decoded into one arena and walked
//! from its end.
//!
//! Invariant: a step loads and checks all it needs before it changes where the cursor is.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::{Cursor, EntryRef, Stop};
use crate::error::{Damage, Result};
use crate::format::block::{DataBlock, EntryCodec, RawEntry};
use crate::storage::block_source::{BlockSource, Spot};
use crate::storage::table::{Access, Extent, Table};
use crate::types::{Direction, KeyRange, SeqNo, ValueKind, u64_of};
use crate::version::SectionMeta;

/// How a cursor walks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    pub(crate) direction: Direction,
    pub(crate) access: Access,
    pub(crate) fill_cache: bool,
    /// Entries that the walk takes, about, if that is known: as much is read ahead.
    pub(crate) limit: Option<usize>,
}

impl Walk {
    pub(crate) const fn new(direction: Direction, access: Access, fill_cache: bool) -> Self {
        Self { direction, access, fill_cache, limit: None }
    }

    /// The walk of the part that it begins with, or of one that it comes to later: of that one, nobody knows how much is left to take.
    pub(crate) fn begun(self, first: bool) -> Self {
        Self { limit: self.limit.filter(|_| first), ..self }
    }

    /// The walk of a part that has `entries` of `all`: takes as large a part of what is taken.
    pub(crate) fn part(self, entries: u64, all: u64) -> Self {
        let limit = self.limit.map(|limit| {
            let share = u128::from(u64_of(limit)) * u128::from(entries);
            let part = share.div_ceil(u128::from(all.max(1)));
            usize::try_from(part).unwrap_or(limit).min(limit)
        });
        Self { limit, ..self }
    }
}

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
    /// Memory for the next block, so that a step that fails changes nothing.
    spare_block: Backward,
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

impl TableCursor {
    /// Cursor over `range` of a table; reads nothing yet.
    ///
    /// `fill_cache`: whether blocks that are read go into the block cache. With [`Access::Wait`] and `false` the cache
    /// is not even asked: a compaction reads each block once.
    pub(crate) fn new(table: Arc<Table>, range: KeyRange, walk: Walk) -> Self {
        Self {
            source: BlockSource::new(table, walk),
            range,
            direction: walk.direction,
            valid: false,
            spot: Spot::default(),
            payload: Bytes::new(),
            forward: Forward::default(),
            backward: Backward::default(),
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
        let key = self.range.clamped(key);
        let sections = &self.source.table.meta().sections;
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
            let ends_here = self.source.ends_in(spot, &self.range)?;
            let damaged = |damage: Damage| damage.of(self.source.table.path(), extent.offset);
            let block = DataBlock::parse(&payload).map_err(damaged)?;
            let bound = block.lower_bound(key, SeqNo::MAX).map_err(damaged)?;
            if let Some(entry) = bound.entry {
                let forward = &mut self.forward;
                let before = Damage { offset: u64_of(bound.offset), expected: "entries in order" };
                entry.key_into(&mut forward.key, key).ok_or(before).map_err(damaged)?;
                forward.codec = block.entries();
                forward.base = extent.offset;
                forward.ends_here = ends_here;
                forward.take(&entry);
                self.payload = payload;
                self.spot = spot;
                self.settle_forward();
                return Ok(());
            }
            next = self.source.after(spot)?;
        }
        self.exhaust()
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
        let ends_here = self.source.ends_in(spot, &self.range)?;
        let damaged = |damage: Damage| damage.of(self.source.table.path(), extent.offset);
        let codec = DataBlock::parse(&payload).map_err(damaged)?.entries();
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

    /// Moves to the last entry of the range whose key is less than `bound`, if there is one.
    fn seek_backward(&mut self, bound: Option<&[u8]>) -> Result<(), Stop> {
        let end = self.range.end.as_deref();
        let bound = bound.map_or(end, |bound| Some(end.map_or(bound, |end| end.min(bound))));
        let sections = &self.source.table.meta().sections;
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
            let damaged = |damage: Damage| damage.of(self.source.table.path(), extent.offset);
            let limit = limit.map_err(damaged)?;
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
            Direction::Forward => self.seek_forward(&[]),
            Direction::Backward => self.seek_backward(None),
        };
        self.source.end_step(moved)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.source.restart();
        let moved = match self.direction {
            Direction::Forward => self.seek_forward(key),
            Direction::Backward => self.seek_backward(Some(key)),
        };
        self.source.end_step(moved)
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        if self.valid {
            match self.direction {
                Direction::Forward => self.advance_forward()?,
                Direction::Backward => self.advance_backward()?,
            }
        }
        Ok(self.valid)
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
        self.take(entry);
        Ok(())
    }

    /// Takes all of `entry` but its key.
    #[inline]
    fn take(&mut self, entry: &RawEntry<'_>) {
        self.seq = entry.seq;
        self.kind = Some(entry.kind);
        self.value = entry.value.clone();
        self.next = entry.next;
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
