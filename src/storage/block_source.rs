//! Where the blocks of a cursor come from: the cache, a window that was read ahead, the file.
//!
//! Blocks that follow each other are read ahead: 256 KiB at once for a compaction; for a scan, one block, then 16 KiB, then twice as
//! much each time up to 256 KiB: one that comes so far gets help with unpacking. A limit tells what a scan will take, about: so much is
//! read at once, up to 64 KiB, and what follows is never far more than is left. Behind 128 KiB a scan leaves the cache to those who
//! read again.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::cursor::Stop;
use crate::error::{Error, Result};
use crate::format::index::LeafIndex;
use crate::storage::open_table::OpenTable;
use crate::storage::prefetch::{BUFFERED_MAX, Next, Stretch, Window, Work};
use crate::storage::table::{Access, Extent, Table};
use crate::storage::table_cursor::Walk;
use crate::tally::Share;
use crate::types::{Direction, KeyRange, u64_of, usize_of};

const READ_AHEAD_MIN: usize = 16 << 10;
const READ_AHEAD_MAX: usize = 256 << 10;
/// Most bytes that a limit lets a scan begin with: whoever set it may stop before.
const FIRST_MAX: usize = 64 << 10;
/// What is read next if a limit needs more than it seemed to.
const MORE: usize = 8 << 10;
/// A scan that has read so much is a long one: it puts nothing of what it reads next into the cache.
const LONG: usize = 128 << 10;
/// Fewer blocks are not worth a helper.
const STRETCH_MIN: usize = 8;
/// More blocks than any step comes by.
const PENDING_MAX: usize = 8;

/// A data block of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) section: usize,
    pub(super) block: usize,
}

/// Where the blocks of a cursor come from.
#[derive(Debug)]
pub(super) struct BlockSource {
    pub(super) table: Arc<Table>,
    access: Access,
    fill_cache: bool,
    direction: Direction,
    /// Bytes that the walk takes in all, about, if it has a limit.
    limit: Option<usize>,
    /// Those of them that were not read yet.
    left: Option<usize>,
    /// Bytes of the next read, if as many blocks follow.
    ahead: usize,
    /// Bytes that were read since the start or a seek.
    came: usize,
    /// The window had to be waited for.
    waited: bool,
    /// Nothing was loaded since the start or a seek.
    fresh: bool,
    window: Option<Window>,
    /// The window, if somebody helps to unpack it.
    stretch: Option<Stretch>,
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
    pub(super) fn new(table: Arc<Table>, walk: Walk) -> Self {
        let Walk { direction, access, fill_cache, limit } = walk;
        let limit = limit.map(|entries| table.typical_bytes(entries));
        let mut source = Self {
            buffered: table.cache().buffers().share(0),
            table,
            access,
            fill_cache,
            direction,
            limit,
            left: None,
            ahead: 0,
            came: 0,
            waited: false,
            fresh: true,
            window: None,
            stretch: None,
            awaited: Arc::default(),
            open: Arc::default(),
            pending: Vec::new(),
        };
        source.restart();
        source
    }

    /// A compaction neither asks nor fills the cache.
    fn is_past_cache(&self) -> bool {
        self.access == Access::Wait && !self.fill_cache
    }

    /// Nothing is known of what is read next but the limit: reads ahead as a new cursor does.
    pub(super) fn restart(&mut self) {
        // Whoever seeks again and again hardly takes all that the limit lets it.
        let most = if self.window.is_none() { FIRST_MAX } else { READ_AHEAD_MIN };
        let at_first = self.limit.map_or(0, |limit| limit.min(most));
        self.ahead = if self.is_past_cache() { READ_AHEAD_MAX } else { at_first };
        self.left = self.limit;
        self.came = 0;
        self.fresh = true;
    }

    /// Forgets what only a step that stopped half-way needs, once it is through.
    pub(super) fn end_step(&mut self, moved: Result<(), Stop>) -> Result<(), Stop> {
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
    pub(super) fn leaf<T>(
        &self,
        section: usize,
        ask: impl FnOnce(&LeafIndex) -> T,
    ) -> Result<T, Stop> {
        Ok(ask(self.table.leaf(self.opened()?, section, self.access)?))
    }

    /// The block behind `spot`, if there is one.
    pub(super) fn after(&self, spot: Spot) -> Result<Option<Spot>, Stop> {
        let n_blocks = self.leaf(spot.section, |leaf| leaf.n_blocks())?;
        if spot.block + 1 < n_blocks {
            return Ok(Some(Spot { block: spot.block + 1, ..spot }));
        }
        let section = spot.section + 1;
        Ok((section < self.table.meta().sections.len()).then_some(Spot { section, block: 0 }))
    }

    /// The block in front of `spot`, if there is one.
    pub(super) fn before(&self, spot: Spot) -> Result<Option<Spot>, Stop> {
        if let Some(block) = spot.block.checked_sub(1) {
            return Ok(Some(Spot { block, ..spot }));
        }
        let Some(section) = spot.section.checked_sub(1) else { return Ok(None) };
        let block = self.leaf(section, |leaf| leaf.n_blocks().saturating_sub(1))?;
        Ok(Some(Spot { section, block }))
    }

    /// Whether some key of the block may be at or behind the end of the range.
    pub(super) fn ends_in(&self, spot: Spot, range: &KeyRange) -> Result<bool, Stop> {
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
    pub(super) fn begins_before_end(&self, spot: Spot, range: &KeyRange) -> Result<bool, Stop> {
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
        let most = u64_of(self.ahead + 2 * READ_AHEAD_MIN);
        let crowded = is_scan && !table.cache().may_read_ahead(most);
        // A scan begins in the middle of its first block, on average: one that takes a quarter of a block may need two. A read more
        // costs as much as some blocks more in one read.
        if self.ahead <= extent.len / 4 || crowded {
            return Ok(extent);
        }
        let ahead = u64_of(self.ahead + extent.len.min(READ_AHEAD_MIN));
        let is_small = |block: &Extent| block.len <= READ_AHEAD_MIN;
        self.leaf(spot.section, |leaf| match self.direction {
            Direction::Forward => {
                let end = range.end.as_ref().filter(|end| self.reaches(spot.section, end));
                let end = end.map_or(usize::MAX, |end| leaf.find_before(end));
                let last = end.clamp(spot.block, leaf.n_blocks().saturating_sub(1));
                let room = extent.offset.saturating_add(ahead);
                let near =
                    |last: &Extent| last.end() <= room || last.offset < room && is_small(last);
                let last = (spot.block..=last)
                    .map_while(|block| table.extent(spot.section, leaf, block).filter(near))
                    .last();
                let end = last.unwrap_or(extent).end();
                Extent { len: usize_of(end.saturating_sub(extent.offset)), ..extent }
            }
            Direction::Backward => {
                let end = extent.end();
                let room = end.saturating_sub(ahead);
                let near =
                    |first: &Extent| first.offset >= room || first.end() > room && is_small(first);
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
    pub(super) fn load(
        &mut self,
        spot: Spot,
        range: &KeyRange,
    ) -> Result<Option<(Extent, Bytes)>, Stop> {
        let Some(extent) = self.locate(spot)? else { return Ok(None) };
        if let Some((_, block)) = self.pending.iter().find(|(other, _)| *other == extent) {
            return Ok(Some((extent, block.clone())));
        }
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The block that a scan begins with is measured; the others it gets for less.
        let measured = self.fresh && !self.is_past_cache() && awaited.is_none();
        let begun = measured.then(|| self.table.cache().block_cost().begin()).flatten();
        // One that a step waited for which was given up may be another.
        if let Some(window) = awaited.filter(|window| window.slice(extent).is_some()) {
            self.enter(window, spot, range)?;
            self.waited = true;
        }
        let block = match self.in_memory(spot, extent, range)? {
            Some(block) => block,
            None => self.read(spot, extent, range, begun)?,
        };
        self.table.cache().block_cost().end(begun);
        self.fresh = false;
        if self.access == Access::Try {
            if self.pending.len() >= PENDING_MAX {
                self.pending.clear(); // the caller gave up on steps half-way
            }
            self.pending.push((extent, block.clone()));
        }
        Ok(Some((extent, block)))
    }

    fn in_memory(
        &mut self,
        spot: Spot,
        extent: Extent,
        range: &KeyRange,
    ) -> Result<Option<Bytes>, Stop> {
        if let Some(block) = self.in_window(extent) {
            return Ok(Some(block?));
        }
        match self.stretch.as_ref().map_or(Next::Nothing, |stretch| stretch.next(extent)) {
            Next::Here(window) => {
                self.enter(window, spot, range)?;
                return Ok(self.in_window(extent).transpose()?);
            }
            Next::Coming(wait) => return Err(Stop::Blocked(wait)), // who may wait gets no help
            Next::Nothing => self.stretch = None,
        }
        Ok(if self.is_past_cache() { None } else { self.table.cached(extent) })
    }

    /// Reads the block, and what is read ahead with it.
    fn read(
        &mut self,
        spot: Spot,
        extent: Extent,
        range: &KeyRange,
        begun: Option<Duration>,
    ) -> Result<Bytes, Stop> {
        let wanted = self.wanted(spot, extent, range)?;
        let open = Arc::clone(self.opened()?);
        let raw = match self.access {
            Access::Wait => Some(self.table.read(&open, wanted)?),
            Access::Try => self.table.try_read(&open, wanted),
        };
        let Some(raw) = raw else {
            let (table, awaited) = (Arc::clone(&self.table), Arc::clone(&self.awaited));
            return Err(Stop::Blocked(Box::new(move || {
                let begun = table.cache().block_cost().resume(begun);
                let window = Window::read(&table, &open, wanted)?;
                table.cache().block_cost().end(begun);
                *awaited.lock().unwrap_or_else(PoisonError::into_inner) = Some(window);
                Ok(())
            })));
        };
        self.enter(Window { start: wanted.offset, bytes: raw.into() }, spot, range)?;
        let outside = || Error::corrupt(self.table.path(), extent.offset, "a block in its window");
        Ok(self.in_window(extent).ok_or_else(outside)??)
    }

    /// Goes on with another window, which begins with the block at `spot`.
    fn enter(&mut self, window: Window, spot: Spot, range: &KeyRange) -> Result<(), Stop> {
        self.buffered.set(u64_of(window.bytes.len()));
        let left = self.left.take().map(|left| left.saturating_sub(window.bytes.len()));
        let twice = (self.ahead * 2).clamp(READ_AHEAD_MIN, READ_AHEAD_MAX);
        self.ahead = left.map_or(twice, |left| twice.min(left.max(MORE)));
        self.left = left.filter(|left| *left > 0);
        self.came = self.came.saturating_add(window.bytes.len());
        self.waited = false;
        self.window = Some(window);
        self.stretch = None;
        if self.access == Access::Try && self.ahead >= READ_AHEAD_MAX {
            self.stretch = self.helped(spot, range)?;
        }
        Ok(())
    }

    /// Gets help with the window, if it is worth that, there is some, and enough memory is left for those who read without.
    fn helped(&self, spot: Spot, range: &KeyRange) -> Result<Option<Stretch>, Stop> {
        let cache = self.table.cache();
        let Some(window) = self.window.as_ref().filter(|_| cache.may_read_ahead(2 * BUFFERED_MAX))
        else {
            return Ok(None);
        };
        let step = |steps: usize| match self.direction {
            Direction::Forward => spot.block.checked_add(steps),
            Direction::Backward => spot.block.checked_sub(steps),
        };
        let (blocks, behind) = self.leaf(spot.section, |leaf| {
            let extent = |block| Some((block, self.table.extent(spot.section, leaf, block)?));
            let mut walk = (0..).map_while(step).map_while(extent);
            let mut blocks = Vec::new();
            let behind = walk.find(|(_, extent)| {
                let is_here = window.slice(*extent).is_some();
                blocks.extend(is_here.then_some(*extent));
                !is_here
            });
            (blocks, behind)
        })?;
        if blocks.len() < STRETCH_MIN {
            return Ok(None);
        }
        let mut next = None;
        if let Some((block, extent)) = behind {
            let wanted = self.wanted(Spot { block, ..spot }, extent, range)?;
            next = Some(wanted).filter(|wanted| wanted.len > extent.len);
        }
        let (table, open) = (Arc::clone(&self.table), Arc::clone(self.opened()?));
        let work = Work { table, open, window: window.clone(), blocks, next };
        Ok(Stretch::begin(cache.helpers(), work))
    }

    /// The block from the window, if it is there. Goes to the cache, too, unless the scan is a long one.
    fn in_window(&self, extent: Extent) -> Option<Result<Bytes>> {
        if let Some(block) = self.stretch.as_ref().and_then(|stretch| stretch.take(extent)) {
            return Some(Ok(block));
        }
        let window = self.window.as_ref()?;
        let block = window.unpack(&self.table, extent, self.fill_cache)?;
        let before = self.came.saturating_sub(window.bytes.len());
        Some(block.inspect(|block| {
            if !self.fill_cache || before >= LONG {
                return;
            }
            // Short scans are what comes again, and a wait for the disk is worth more than what the cache costs.
            if self.fresh || self.waited {
                self.table.keep(extent, block, true);
            } else {
                self.table.offer(extent, block);
            }
        }))
    }
}
