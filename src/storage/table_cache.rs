//! The table cache: how many tables are open, and how much memory their indexes and filters share with the cached blocks.
//!
//! 1. A table opens its file when it is first read, and keeps the indexes and filters that it needed.
//! 2. One more open table than there may be: a hand goes round the open tables and closes the first that was not read since it
//!    last came by.
//! 3. One more index or filter than there may be: a hand goes round them too, and drops those of sections that were not read. Their
//!    tables stay open. It makes room for many at a time, as it changes the list of open tables.
//! 4. What indexes and filters take of the budget, blocks do not get: the block cache grows and shrinks with it.
//!
//! A get takes one look at which tables are open, for all the tables that it asks: each of them then costs a load. Opening and
//! closing pay for that: they copy the list.
//!
//! Invariant: whoever reads a table holds it open until that read is done, whatever is closed meanwhile.
//! Source: the clock algorithm, Corbató 1969.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::{ArcSwap, Guard};
use rustix::io::Errno;

use super::block_cost::BlockCost;
use super::cache::BlockCache;
use super::open_table::OpenTable;
use super::prefetch::Helpers;
use super::table::Table;
use crate::error::{Error, Result};
use crate::tally::Tally;

/// Bytes of indexes and filters that may stay in memory however small the budget is.
const PINNED_MIN: u64 = 8 << 20;
/// A sweep for memory frees at least this share of what indexes and filters may take.
const SWEEP: u64 = 32;
/// Bytes of buffers beside which scans read ahead, however small the budget is.
const BUFFERS_MIN: u64 = 8 << 20;
/// The block cache is resized in steps of this share of the budget.
const STEP: u64 = 64;

/// Open tables and cached blocks of one engine, within one budget. Thread-safe.
#[derive(Debug)]
pub(crate) struct TableCache {
    blocks: BlockCache,
    /// Bytes of blocks, indexes and filters together; `None`: blocks alone are bounded.
    budget: Option<u64>,
    open_max: usize,
    pinned_max: u64,
    /// Open files, those included that only a reader still holds.
    open: AtomicUsize,
    /// Bytes of indexes and filters, those included that only a reader still holds.
    pinned: AtomicU64,
    /// Of those, the bytes that only a reader still holds.
    forgotten: AtomicU64,
    buffers: Tally,
    helpers: Arc<Helpers>,
    block_cost: BlockCost,
    /// Changed under the lock of `clock`.
    opened: ArcSwap<OpenTables>,
    clock: Mutex<Clock>,
}

/// The tables that are open at one instant. They stay open as long as somebody has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenTables {
    /// By the seat that each table was given.
    seats: Vec<Option<Arc<OpenTable>>>,
}

/// Seat of a table that has none.
pub(super) const NO_SEAT: usize = usize::MAX;

/// For tables that are never closed.
pub(crate) static NO_TABLES: OpenTables = OpenTables { seats: Vec::new() };

impl OpenTables {
    /// What sits on a seat. It may be another table by now.
    #[inline]
    pub(super) fn seat(&self, seat: usize) -> Option<&Arc<OpenTable>> {
        self.seats.get(seat)?.as_ref()
    }

    fn put(&mut self, seat: usize, open: Arc<OpenTable>) {
        if seat == self.seats.len() {
            self.seats.push(None);
        }
        if let Some(free) = self.seats.get_mut(seat) {
            *free = Some(open);
        }
    }
}

#[derive(Debug, Default)]
struct Clock {
    /// Open tables, in the order in which the hand comes by.
    ring: VecDeque<Weak<Table>>,
    /// Which section of the first of them the hand for memory is at.
    section: usize,
    /// Seats that nobody has.
    free: Vec<usize>,
    /// Pinned bytes for which the block cache made room.
    lent: u64,
}

/// An open file; counted until it is dropped.
#[derive(Debug)]
pub(super) struct OpenPlace {
    cache: Arc<TableCache>,
}

impl TableCache {
    /// For an engine: at most `open_max` tables are open; their indexes and filters, and blocks, take at most `budget` bytes. Up to
    /// seven eighths of that go to indexes and filters, at least [`PINNED_MIN`] in any case.
    pub(crate) fn new(budget: u64, open_max: usize, helpers: Arc<Helpers>) -> Arc<Self> {
        let pinned_max = (budget / 8 * 7).max(PINNED_MIN);
        Self::with(budget, Some(budget), (open_max, pinned_max), helpers)
    }

    /// For a table that stands alone: nothing is ever closed, and all of `block_bytes` are for blocks.
    pub(crate) fn alone(block_bytes: u64, helpers: Arc<Helpers>) -> Arc<Self> {
        Self::with(block_bytes, None, (usize::MAX, u64::MAX), helpers)
    }

    pub(super) fn with(
        block_bytes: u64,
        budget: Option<u64>,
        (open_max, pinned_max): (usize, u64),
        helpers: Arc<Helpers>,
    ) -> Arc<Self> {
        Arc::new(Self {
            blocks: BlockCache::new(block_bytes),
            budget,
            open_max,
            pinned_max,
            open: AtomicUsize::new(0),
            pinned: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            buffers: Tally::default(),
            block_cost: BlockCost::new(helpers.clock()),
            helpers,
            opened: ArcSwap::default(),
            clock: Mutex::default(),
        })
    }

    pub(crate) const fn blocks(&self) -> &BlockCache {
        &self.blocks
    }

    /// The tables that are open now. Do not hold it across an await.
    #[inline]
    pub(crate) fn open_tables(&self) -> Guard<Arc<OpenTables>> {
        self.opened.load()
    }

    /// Open files of tables.
    pub(crate) fn open_files(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Bytes of the indexes and filters in memory.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Acquire)
    }

    /// Bytes of read-ahead and output buffers.
    pub(crate) const fn buffers(&self) -> &Tally {
        &self.buffers
    }

    /// Threads that help scans.
    pub(super) const fn helpers(&self) -> &Arc<Helpers> {
        &self.helpers
    }

    /// What a block costs those who need it.
    pub(crate) const fn block_cost(&self) -> &BlockCost {
        &self.block_cost
    }

    /// Whether there is room for `bytes` more that a scan would read ahead: all buffers together may take half of what blocks,
    /// indexes and filters do. Many scans at once, held for ever or not, then read a block at a time.
    pub(super) fn may_read_ahead(&self, bytes: u64) -> bool {
        let all = self.buffers.bytes().saturating_add(bytes);
        self.budget.is_none_or(|budget| all <= (budget / 2).max(BUFFERS_MIN))
    }

    /// So many bytes of indexes and filters more are in memory.
    pub(super) fn pinned(&self, bytes: u64) {
        self.pinned.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many of them are only held by readers from now on: no sweep frees them.
    pub(super) fn forgotten(&self, bytes: u64) {
        self.forgotten.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many bytes are gone, of which so many were forgotten.
    pub(super) fn unpinned(&self, bytes: u64, forgotten: u64) {
        self.pinned.fetch_sub(bytes, Ordering::AcqRel);
        self.forgotten.fetch_sub(forgotten, Ordering::AcqRel);
    }

    /// Bytes that a sweep can free.
    fn kept_bytes(&self) -> u64 {
        self.pinned_bytes().saturating_sub(self.forgotten.load(Ordering::Acquire))
    }

    /// Whether an index or filter of so many bytes drives out no other.
    pub(super) fn may_pin(&self, bytes: u64) -> bool {
        self.kept_bytes().saturating_add(bytes) <= self.pinned_max
    }

    /// Most bytes that blocks, indexes and filters take together.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.budget.unwrap_or(0).max(self.pinned_max)
    }

    /// Runs `open`, which takes a file descriptor. If the process has none left, closes tables and tries again.
    ///
    /// # Errors
    /// Those of `open`; that there is no descriptor only once no table is open any more.
    pub(crate) fn patiently<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match open() {
                Err(Error::Io { source, .. })
                    if is_out_of_files(&source) && self.close_a_quarter() => {}
                result => return result,
            }
        }
    }

    /// Counts one more open file, and closes others first if that is too many. `opening`: is not closed for it.
    pub(super) fn enter(self: &Arc<Self>, opening: &Table) -> OpenPlace {
        let open = self.open.fetch_add(1, Ordering::AcqRel) + 1;
        for _ in self.open_max..open {
            if self.open_files() <= self.open_max || !self.close_one(Some(opening)) {
                break;
            }
        }
        OpenPlace { cache: Arc::clone(self) }
    }

    /// `table` is open: the hand will come by.
    pub(super) fn entered(&self, table: &Arc<Table>, open: Arc<OpenTable>) {
        let mut clock = self.clock();
        let mut tables = OpenTables::clone(&self.opened.load());
        let seat = clock.free.pop().unwrap_or(tables.seats.len());
        tables.put(seat, open);
        table.sit(seat);
        self.opened.store(Arc::new(tables));
        clock.ring.push_back(Arc::downgrade(table));
    }

    /// A table is gone: whoever sat on its seat does not sit there any more.
    pub(super) fn leave(&self, seat: usize) {
        let mut clock = self.clock();
        clock.ring.retain(|table| table.strong_count() > 0);
        self.stand_up(&mut clock, seat);
    }

    fn stand_up(&self, clock: &mut Clock, seat: usize) {
        if seat == NO_SEAT {
            return;
        }
        let mut tables = OpenTables::clone(&self.opened.load());
        if tables.seats.get_mut(seat).and_then(Option::take).is_some() {
            clock.free.push(seat);
            self.opened.store(Arc::new(tables));
        }
    }

    /// Drops indexes and filters if they take too much, and gives blocks the rest.
    pub(super) fn settle(&self) {
        if self.kept_bytes() > self.pinned_max {
            self.sweep();
        }
        self.lend();
    }

    /// Drops indexes and filters that were not read since the hand last came by, until there is room for some more.
    fn sweep(&self) {
        // Dropped behind the lock: the last holder of a table takes the lock when it goes.
        let mut passed = Vec::new();
        let mut clock = self.clock();
        let before = self.kept_bytes();
        if before <= self.pinned_max {
            return;
        }
        let wanted = before - (self.pinned_max - self.pinned_max / SWEEP);
        let mut tables = OpenTables::clone(&self.opened.load());
        let (mut freed, n_tables) = (0, clock.ring.len());
        // Once round takes the marks away; whoever was read again meanwhile goes all the same. The table that it
        // begins within comes twice.
        for step in 0..=2 * n_tables + 1 {
            if freed >= wanted {
                break;
            }
            let Some(next) = clock.ring.pop_front() else { break };
            let from = std::mem::take(&mut clock.section);
            // One that is just being dropped leaves by itself.
            let Some(table) = next.upgrade() else { continue };
            let forgotten = table.forget(from, wanted - freed, step <= n_tables);
            let looked_at = forgotten.as_ref().map_or(0, |forgotten| forgotten.next);
            if let Some(forgotten) = forgotten {
                freed += forgotten.freed;
                if let Some(rest) = forgotten.rest {
                    tables.put(table.seat(), rest);
                }
            }
            if freed >= wanted && looked_at < table.meta().sections.len() {
                clock.section = looked_at;
                clock.ring.push_front(next);
            } else {
                clock.ring.push_back(next);
            }
            passed.push(table);
        }
        if freed > 0 {
            self.opened.store(Arc::new(tables));
        }
        drop(clock);
    }

    /// Makes the block cache as large as the pinned bytes leave room for.
    fn lend(&self) {
        let Some(budget) = self.budget else { return };
        let mut clock = self.clock();
        let pinned = self.pinned_bytes();
        if clock.lent.abs_diff(pinned) > budget / STEP {
            clock.lent = pinned;
            self.blocks.set_capacity(budget.saturating_sub(pinned).max(budget / 8));
        }
    }

    fn close_a_quarter(&self) -> bool {
        let wanted = self.clock().ring.len() / 4 + 1;
        (0..wanted).filter(|_| self.close_one(None)).count() > 0
    }

    /// Closes the first table that was not read since the hand last came by, but for `spared`. `false`: there is none.
    fn close_one(&self, spared: Option<&Table>) -> bool {
        // Dropped behind the lock: the last holder of a table takes the lock when it goes.
        let mut passed = Vec::new();
        let mut clock = self.clock();
        let tables = clock.ring.len();
        // Once round takes the marks away; whoever was read again meanwhile goes all the same.
        for step in 0..2 * tables {
            let Some(next) = clock.ring.pop_front() else { return false };
            // One that is just being dropped leaves by itself.
            let Some(table) = next.upgrade() else { continue };
            let is_spared = spared.is_some_and(|spared| std::ptr::eq(spared, &*table));
            if is_spared || (table.take_mark() && step < tables) {
                clock.ring.push_back(next);
                passed.push(table);
                continue;
            }
            self.stand_up(&mut clock, table.take_seat());
            drop(clock);
            table.close();
            return true;
        }
        false
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenPlace {
    pub(super) const fn cache(&self) -> &Arc<TableCache> {
        &self.cache
    }
}

impl Drop for OpenPlace {
    fn drop(&mut self) {
        self.cache.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether the process, or the machine, has no file descriptor left.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
