//! A thread beside a long scan: it unpacks the blocks of a window from the back while the scan takes them from the front, until they
//! meet.
//!
//! Before that, it reads the window that comes next. Nobody waits for it but for a read that has begun: what else it has not done yet,
//! the scan does itself, and what it fails to do is left for the scan to find. So it changes how fast a scan is, and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use crate::env::{Clock, Env};
use crate::error::Result;
use crate::format::frame::{BlockKind, TRAILER};
use crate::storage::open_table::OpenTable;
use crate::storage::table::{Extent, Table};
use crate::tally::Share;
use crate::types::{u64_of, usize_of};

/// Scans that may be helped at a time, for each thread to spare: those of a slot take turns.
const PER_THREAD: usize = 4;
/// Most bytes that a helper has unpacked and the scan has not taken: one that comes so far goes.
const UNPACKED_MAX: u64 = 1 << 20;
/// Most bytes that a helper holds: those, the next window, and this one if the scan has gone on.
pub(super) const BUFFERED_MAX: u64 = UNPACKED_MAX + (640 << 10);

/// Threads that help scans: of an engine, or of a table that stands alone.
pub(crate) struct Helpers {
    env: Env,
    free: AtomicUsize,
}

/// The right to have one.
struct Permit(Arc<Helpers>);

impl Helpers {
    pub(crate) fn new(env: &Env) -> Arc<Self> {
        let free = AtomicUsize::new(env.spare_threads().saturating_mul(PER_THREAD));
        Arc::new(Self { env: env.clone(), free })
    }

    /// For tables whose scans get no help.
    #[cfg(test)]
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self { env: Env::default(), free: AtomicUsize::new(0) })
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.env.clock)
    }

    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let one_less = |free: usize| free.checked_sub(1);
        let taken = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
        taken.ok().map(|_| Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helpers").field("free", &self.free).finish_non_exhaustive()
    }
}

/// Bytes of a file that were read at once.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) bytes: Bytes,
}

impl Window {
    /// Reads a part of a table's file. Blocks.
    pub(super) fn read(table: &Table, open: &OpenTable, wanted: Extent) -> Result<Self> {
        Ok(Self { start: wanted.offset, bytes: table.read(open, wanted)?.into() })
    }

    /// The bytes of a block, if all of them are here.
    pub(super) fn slice(&self, extent: Extent) -> Option<Bytes> {
        let start = usize_of(extent.offset.checked_sub(self.start)?);
        let end = start.checked_add(extent.len)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }

    /// Checks and unpacks a block; `None` if it is not here.
    ///
    /// `apart`: it does not share the memory of the window, which whoever keeps a value would keep as a whole.
    pub(super) fn unpack(
        &self,
        table: &Table,
        extent: Extent,
        apart: bool,
    ) -> Option<Result<Bytes>> {
        let raw = self.slice(extent)?;
        let is_part = raw.len() < self.bytes.len();
        let unpacked = table.unpack(&raw, BlockKind::Data, extent);
        Some(unpacked.map(|block| {
            let shares = block.len() + TRAILER == raw.len();
            if apart && is_part && shares { Bytes::copy_from_slice(&block) } else { block }
        }))
    }
}

/// What is to be done about a window.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) table: Arc<Table>,
    pub(super) open: Arc<OpenTable>,
    pub(super) window: Window,
    /// Its blocks, in the order of the walk.
    pub(super) blocks: Vec<Extent>,
    /// The window behind it, if there is one in the same section.
    pub(super) next: Option<Extent>,
}

/// A window on which a scan and its helper work. Dropping it sends the helper away.
#[derive(Debug)]
pub(super) struct Stretch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    work: Work,
    progress: Mutex<Progress>,
    /// Rung when the next window was read, or cannot be.
    read: Condvar,
}

/// How far both are.
#[derive(Debug)]
struct Progress {
    /// Blocks that the scan took, or does itself.
    taken: usize,
    /// The last blocks, the foremost of them at the end.
    ready: Vec<Bytes>,
    bytes: u64,
    next: Option<Window>,
    /// The next window is being read.
    reading: bool,
    /// A helper has come, or will come.
    helped: bool,
    /// Counts `next` and `ready`; all that a helper may use, while there is one.
    buffered: Share,
}

/// What is there of the next window.
pub(super) enum Next {
    Here(Window),
    /// It is being read. Run this, which blocks, and ask again.
    Coming(Box<dyn FnOnce() -> Result<()> + Send>),
    Nothing,
}

/// A helper on its way or at work. Holds nothing of a scan that has ended before it came.
struct Helper {
    shared: Weak<Shared>,
    _permit: Permit,
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            let mut progress = shared.progress();
            progress.helped = false;
            progress.reading = false;
            progress.count();
            shared.read.notify_all();
        }
    }
}

impl Stretch {
    /// Sets a helper on `work`, if one is free.
    pub(super) fn begin(helpers: &Arc<Helpers>, work: Work) -> Option<Self> {
        let permit = helpers.permit()?;
        let stretch = Self::new(work);
        {
            let mut progress = stretch.0.progress();
            progress.helped = true;
            progress.count();
        }
        let helper = Helper { shared: Arc::downgrade(&stretch.0), _permit: permit };
        helpers.env.beside(move || {
            let helper = helper;
            if let Some(shared) = helper.shared.upgrade() {
                shared.help();
            }
        });
        Some(stretch)
    }

    fn new(work: Work) -> Self {
        let progress = Progress {
            taken: 0,
            ready: Vec::new(),
            bytes: 0,
            next: None,
            reading: false,
            helped: false,
            buffered: work.table.cache().buffers().share(0),
        };
        Self(Arc::new(Shared { work, progress: Mutex::new(progress), read: Condvar::new() }))
    }

    /// The block, if the helper has it, and it is the next one in the walk. What is not, ends the help.
    pub(super) fn take(&self, extent: Extent) -> Option<Bytes> {
        let blocks = &self.0.work.blocks;
        let mut progress = self.0.progress();
        let at = progress.taken;
        if blocks.get(at) != Some(&extent) {
            progress.give_up(blocks.len());
            return None;
        }
        progress.taken += 1;
        if progress.ready.len() != blocks.len() - at {
            return None;
        }
        let block = progress.ready.pop()?;
        progress.bytes -= u64_of(block.len());
        progress.count();
        Some(block)
    }

    /// The window behind this one, if it has that block.
    pub(super) fn next(&self, extent: Extent) -> Next {
        let mut progress = self.0.progress();
        if progress.next.as_ref().is_some_and(|window| window.slice(extent).is_some()) {
            let next = progress.next.take();
            progress.count();
            return next.map_or(Next::Nothing, Next::Here);
        }
        if !progress.reading || self.0.work.next.is_none_or(|next| !next.holds(extent)) {
            return Next::Nothing;
        }
        let shared = Arc::downgrade(&self.0);
        Next::Coming(Box::new(move || {
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            let progress = shared.progress();
            let reading = |progress: &mut Progress| progress.reading;
            drop(shared.read.wait_while(progress, reading).unwrap_or_else(PoisonError::into_inner));
            Ok(())
        }))
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        let mut progress = self.0.progress();
        progress.next = None;
        progress.give_up(usize::MAX);
    }
}

impl Progress {
    /// The scan takes no more blocks.
    fn give_up(&mut self, taken: usize) {
        self.taken = taken;
        self.ready.clear();
        self.bytes = 0;
        self.count();
    }

    fn count(&mut self) {
        let next = self.next.as_ref().map_or(0, |window| window.bytes.len());
        let held = self.bytes + u64_of(next);
        self.buffered.set(if self.helped { held.max(BUFFERED_MAX) } else { held });
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the helper does. Blocks.
    fn help(&self) {
        self.read_next();
        while self.unpack_last() {}
    }

    fn read_next(&self) {
        let Some(wanted) = self.work.next else { return };
        {
            let mut progress = self.progress();
            if progress.taken >= self.work.blocks.len() {
                return;
            }
            progress.reading = true;
        }
        // What fails here, the scan will find.
        let window = Window::read(&self.work.table, &self.work.open, wanted).ok();
        let mut progress = self.progress();
        progress.reading = false;
        if progress.taken <= self.work.blocks.len() {
            progress.next = window;
            progress.count();
        }
        self.read.notify_all();
    }

    /// Unpacks the last block that neither has; `false` if the scan needs no more help.
    fn unpack_last(&self) -> bool {
        let Work { table, window, blocks, .. } = &self.work;
        let (taken, ready) = {
            let progress = self.progress();
            (progress.taken, progress.ready.len())
        };
        let Some(at) = (blocks.len() - ready).checked_sub(1) else { return false };
        // The next block is the scan's: it would come for it before it is done here.
        let Some(extent) = blocks.get(at).filter(|_| at > taken) else { return false };
        let Some(Ok(block)) = window.unpack(table, *extent, true) else { return false };
        let mut progress = self.progress();
        let bytes = progress.bytes + u64_of(block.len());
        if at < progress.taken || bytes > UNPACKED_MAX {
            return false;
        }
        progress.ready.push(block);
        progress.bytes = bytes;
        progress.count();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::tests::{
        CODECS, Fixture, Model, Slow, expected, finish, numbered, options, row, rows, table_in,
        write,
    };
    use super::super::{Access, TableCache, TableCursor, TableOptions, Walk};
    use super::*;
    use crate::config::Compression;
    use crate::cursor::{Cursor, Stop};
    use crate::env::{Blocking, Fs, OsFs, ReadFile};
    use crate::types::{Direction, KeyRange};

    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

    fn helpers(blocking: Blocking) -> Arc<Helpers> {
        Helpers::new(&Env { blocking, ..Env::default() })
    }

    fn table(
        fs: Arc<dyn Fs>,
        fixture: &Fixture,
        (cache, helpers): (u64, Arc<Helpers>),
    ) -> Arc<Table> {
        table_in(fs, fixture, TableCache::alone(cache, helpers))
    }

    fn scan(table: &Arc<Table>, direction: Direction) -> TableCursor {
        TableCursor::new(
            Arc::clone(table),
            KeyRange::all(),
            Walk::new(direction, Access::Try, true),
        )
    }

    /// Some megabytes of noise: windows as large as they get.
    fn long() -> Model {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut model = numbered(20_000);
        for (_, value) in model.values_mut() {
            *value = (0..100).map(|_| rng.u8(..)).collect();
        }
        model
    }

    /// Work on all blocks of a table, in one window.
    fn work(table: &Arc<Table>) -> Work {
        let open = table.open_now().unwrap();
        let data = table.meta().sections[0].data_len;
        let all = Extent { offset: 0, len: usize_of(data.into()) };
        let window = Window::read(table, &open, all).unwrap();
        let leaf = table.leaf(&open, 0, Access::Wait).unwrap();
        let blocks = (0..).map_while(|block| table.extent(0, leaf, block)).collect();
        let next = Some(Extent { offset: 0, len: 100_000 });
        Work { table: Arc::clone(table), open: Arc::clone(&open), window, blocks, next }
    }

    #[test]
    fn whoever_is_faster_each_block_is_right_and_unpacked_once() {
        let fixture =
            write(&long(), TableOptions { compression: Compression::Lz4, ..options() }, usize::MAX);
        let table = table(Arc::new(OsFs), &fixture, (0, Helpers::none()));
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let share = rng.f64();
            let stretch = Stretch::new(work(&table));
            let shared = &stretch.0;
            let (mut helped, mut alone) = (0, 0);
            for extent in &shared.work.blocks {
                let truth = shared.work.window.unpack(&table, *extent, true).unwrap().unwrap();
                while rng.f64() < share && shared.unpack_last() {
                    helped += 1;
                }
                match stretch.take(*extent) {
                    Some(block) => assert_eq!(block, truth),
                    None => alone += 1,
                }
                let buffered = table.cache().buffers().bytes();
                assert!(buffered <= UNPACKED_MAX, "{buffered}");
            }
            assert!(!shared.unpack_last(), "nothing is left to do");
            assert_eq!(helped + alone, shared.work.blocks.len(), "seed {seed}");
            assert!(share < 0.1 || helped > 0, "seed {seed}");
            assert!(matches!(stretch.next(shared.work.blocks[0]), Next::Nothing), "nobody read it");
            drop(stretch);
            assert_eq!(table.cache().buffers().bytes(), 0);
        }
    }

    #[test]
    fn a_scan_that_goes_elsewhere_sends_its_helper_away() {
        let fixture = write(&long(), options(), usize::MAX);
        let table = table(Arc::new(OsFs), &fixture, (0, Helpers::none()));
        let stretch = Stretch::new(work(&table));
        let shared = Arc::clone(&stretch.0);
        assert!(shared.unpack_last() && shared.unpack_last());
        assert!(table.cache().buffers().bytes() > 0);
        assert_eq!(stretch.take(shared.work.blocks[5]), None, "the first was the next one");
        assert!(shared.progress().ready.is_empty(), "what was done is no use any more");
        assert_eq!(table.cache().buffers().bytes(), 0);
        assert!(!shared.unpack_last());

        let stretch = Stretch::new(work(&table));
        let shared = Arc::clone(&stretch.0);
        drop(stretch);
        shared.help();
        assert_eq!(table.cache().buffers().bytes(), 0, "nor for one that has ended");
    }

    #[test]
    fn a_scan_waits_for_a_window_that_is_being_read_and_for_no_other() {
        let fixture = write(&long(), options(), usize::MAX);
        let table = table(Arc::new(OsFs), &fixture, (0, Helpers::none()));
        let stretch = Stretch::new(work(&table));
        let (first, last) = (stretch.0.work.blocks[0], *stretch.0.work.blocks.last().unwrap());
        assert!(matches!(stretch.next(first), Next::Nothing));
        stretch.0.progress().reading = true;
        assert!(matches!(stretch.next(last), Next::Nothing), "it is not in there");
        let Next::Coming(wait) = stretch.next(first) else { panic!("it is being read") };
        std::thread::scope(|scope| {
            let waits = scope.spawn(wait);
            stretch.0.read_next();
            waits.join().unwrap().unwrap();
        });
        let Next::Here(window) = stretch.next(first) else { panic!("it was read") };
        assert!(window.slice(first).is_some());

        // A helper that breaks down leaves nobody waiting.
        stretch.0.progress().reading = true;
        let Next::Coming(wait) = stretch.next(first) else { panic!("it is being read") };
        let helpers = Arc::new(Helpers { env: Env::default(), free: AtomicUsize::new(1) });
        let _permit = helpers.permit().unwrap();
        drop(Helper { shared: Arc::downgrade(&stretch.0), _permit });
        wait().unwrap();
        assert!(matches!(stretch.next(first), Next::Nothing));
    }

    #[test]
    fn helpers_that_come_late_hold_no_more_memory_than_there_may_be() {
        let fixture = write(&long(), options(), usize::MAX);
        for scans_end in [false, true] {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.max_blocking_threads(1).build().unwrap();
            let _inside = runtime.enter();
            let (release, held) = std::sync::mpsc::channel::<()>();
            let busy = runtime.spawn_blocking(move || held.recv().is_err());
            let helpers = Arc::new(Helpers { env: Env::default(), free: AtomicUsize::new(60) });
            let cache = TableCache::with(0, Some(0), (100, u64::MAX), Arc::clone(&helpers));
            let table = table_in(Arc::new(OsFs), &fixture, Arc::clone(&cache));
            let mut scans: Vec<_> = (0..40).map(|n| scan(&table, BOTH[n % 2])).collect();
            for scan in &mut scans {
                finish(|| scan.rewind()).unwrap();
                for _ in 0..5000 {
                    assert!(finish(|| scan.advance()).unwrap());
                }
            }
            assert!(helpers.free.load(Ordering::Acquire) <= 58, "nobody asked for help");
            let most = (8 << 20) + 40 * 4500;
            // And a block for each of those for whom that is too much.
            assert!(cache.buffers().bytes() <= most, "{}", cache.buffers().bytes());
            if scans_end {
                scans.clear();
                let held = (cache.buffers().bytes(), Arc::strong_count(&table));
                assert_eq!(held, (0, 1), "those who have not come hold nothing");
            }
            drop(release);
            assert!(runtime.block_on(busy).unwrap());
            // Behind all of them, on the only thread.
            runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
            assert_eq!(helpers.free.load(Ordering::Acquire), 60);
            assert!(cache.buffers().bytes() <= most, "{}", cache.buffers().bytes());
            drop(scans);
            assert_eq!(cache.buffers().bytes(), 0);
        }
    }

    #[test]
    fn a_helped_scan_shows_what_others_do_and_waits_less() {
        for (compression, cut_every) in CODECS.into_iter().zip([usize::MAX, 7000, 11_000]) {
            let model = long();
            let fixture = write(&model, TableOptions { compression, ..options() }, cut_every);
            for direction in BOTH {
                let waits = |helpers| {
                    let table = table(Arc::new(Slow), &fixture, (1 << 20, helpers));
                    let mut cursor = scan(&table, direction);
                    let (mut seen, mut waits) = (Vec::new(), 0);
                    let mut patiently = |step: &mut dyn FnMut() -> Result<(), Stop>| loop {
                        match step() {
                            Ok(()) => break,
                            Err(Stop::Blocked(read)) => read().unwrap(),
                            Err(Stop::Failed(error)) => panic!("{error}"),
                        }
                        waits += 1;
                    };
                    patiently(&mut || cursor.rewind());
                    while let Some(row) = row(&cursor) {
                        seen.push(row);
                        patiently(&mut || cursor.advance().map(drop));
                        let buffered = table.cache().buffers().bytes();
                        assert!(buffered <= BUFFERED_MAX + (1 << 19), "{buffered}");
                    }
                    assert_eq!(seen, expected(&model, &KeyRange::all(), direction));
                    drop(cursor);
                    assert_eq!(table.cache().buffers().bytes(), 0);
                    waits
                };
                let (alone, helped) = (waits(Helpers::none()), waits(helpers(Blocking::Inline)));
                assert!(helped + 3 <= alone, "{compression:?} {direction:?}: {helped} of {alone}");
            }
        }
    }

    /// A file of which only reads that wait fail, as those of helpers do.
    #[derive(Debug)]
    struct Shaky(Arc<dyn ReadFile>);

    impl ReadFile for Shaky {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::Error::other("shaky"))
        }
        fn try_read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.try_read_exact_at(buf, offset)
        }
        fn size(&self) -> io::Result<u64> {
            self.0.size()
        }
    }

    #[test]
    fn what_a_helper_cannot_read_the_scan_reads() {
        let model = long();
        let fixture = write(&model, options(), usize::MAX);
        for direction in BOTH {
            let table = table(Arc::new(OsFs), &fixture, (0, helpers(Blocking::Inline)));
            table.set_file(Arc::new(Shaky(OsFs.open(&fixture.path).unwrap())));
            let all = rows(&mut scan(&table, direction)).unwrap();
            assert_eq!(all, expected(&model, &KeyRange::all(), direction));
        }
    }

    #[test]
    fn damage_is_found_by_the_scan_where_it_is() {
        let fixture = write(&long(), options(), usize::MAX);
        let mut bytes = std::fs::read(&fixture.path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&fixture.path, bytes).unwrap();
        for direction in BOTH {
            let seen = |helpers| {
                let table = table(Arc::new(OsFs), &fixture, (0, helpers));
                let mut cursor = scan(&table, direction);
                finish(|| cursor.rewind()).unwrap();
                let mut seen = Vec::new();
                while let Some(row) = row(&cursor) {
                    seen.push(row);
                    if let Err(error) = finish(|| cursor.advance()) {
                        return (seen, error.to_string());
                    }
                }
                panic!("nobody noticed");
            };
            assert_eq!(seen(Helpers::none()), seen(helpers(Blocking::Inline)));
        }
    }

    #[test]
    fn where_no_thread_is_to_be_had_there_is_no_help_and_nothing_is_used_up() {
        let helpers = Arc::new(Helpers { env: Env::default(), free: AtomicUsize::new(2) });
        let model = long();
        let fixture = write(&model, options(), usize::MAX);
        // Outside of a runtime.
        let table = table(Arc::new(OsFs), &fixture, (0, Arc::clone(&helpers)));
        let all = rows(&mut scan(&table, Direction::Forward)).unwrap();
        assert_eq!(all, expected(&model, &KeyRange::all(), Direction::Forward));
        assert_eq!(helpers.free.load(Ordering::Acquire), 2);
        let permits = [helpers.permit(), helpers.permit()];
        assert!(permits.iter().all(Option::is_some) && helpers.permit().is_none());
        assert!(Stretch::begin(&helpers, work(&table)).is_none(), "all of them are busy");
        drop(permits);
        assert_eq!(helpers.free.load(Ordering::Acquire), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn threads_and_scans_get_along() {
        let model = long();
        let options = TableOptions { compression: Compression::Lz4, ..options() };
        let fixture = write(&model, options, 9000);
        let helpers = Arc::new(Helpers { env: Env::default(), free: AtomicUsize::new(3) });
        let table = table(Arc::new(OsFs), &fixture, (0, Arc::clone(&helpers)));
        let scans = (0..20).map(|n| {
            let table = Arc::clone(&table);
            tokio::spawn(async move { rows(&mut scan(&table, BOTH[n % 2])).unwrap() })
        });
        for (n, scan) in scans.collect::<Vec<_>>().into_iter().enumerate() {
            assert!(scan.await.unwrap() == expected(&model, &KeyRange::all(), BOTH[n % 2]));
        }
    }
}
