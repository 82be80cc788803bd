//! The commit core: the open log segment, the active memtable and the group that is being committed.
//!
//! Steps of a group: `Taken` ▶ append ▶ `Written` ▶ sync, if a member asked for it ▶ `Synced` ▶ insert, publish, answer ▶ `Idle`.
//! The phase is stored before each side effect, so a core that was left by a panic says where to go on.
//!
//! Healing: after a failed append or sync nothing more goes into that segment. The group is answered with the error, the next
//! segment's header cuts it off, and what the bad file holds but may not keep is written again at the front of the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::queue::Request;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::wal::{FrameEncoder, Previous};
use crate::memtable::{Keeper, Memtable, Spare};
use crate::storage::log_segment::LogSegment;
use crate::storage::store::Store;
use crate::types::{FileId, SeqNo, u64_of};
use crate::view::Views;

/// Where the group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no group.
    Idle,
    /// Nothing of it was written.
    Taken,
    /// It may be in the file, or part of it.
    Writing,
    /// It is in the operating system.
    Written,
    /// It is as durable as its members asked for.
    Durable,
}

/// What a core is made of. See [`Core`].
#[derive(Debug)]
pub(crate) struct CoreArgs {
    pub(crate) store: Arc<Store>,
    pub(crate) views: Arc<Views>,
    /// Begun, and its header durable.
    pub(crate) segment: LogSegment,
    pub(crate) next_seq: SeqNo,
    /// Size in bytes at which a memtable is sealed.
    pub(crate) seal_bytes: usize,
}

/// See the module. Exactly one exists per engine; it is held through a [`Lease`](super::Lease).
#[derive(Debug)]
pub(crate) struct Core {
    store: Arc<Store>,
    views: Arc<Views>,
    segment: Arc<LogSegment>,
    /// The memtable of `segment`.
    memtable: Arc<Memtable>,
    /// Offset in `segment` behind the last group that counts.
    good_end: u64,
    /// Older segments with bytes that may not be on disk; synced before anything newer is called durable.
    unsynced: Vec<Arc<LogSegment>>,
    /// The next segment, prepared ahead so that sealing costs no wait.
    spare: Option<LogSegment>,
    next_seq: SeqNo,
    seal_bytes: usize,
    encoder: FrameEncoder,
    keeper: Keeper,
    phase: Phase,
    group: Vec<Request>,
    /// Why `segment` takes no more, until a new one is begun.
    fault: Option<Error>,
    /// Somebody wants the memtable sealed whatever its size.
    seal_wanted: bool,
    /// Why the last segment could not be begun.
    seal_error: Option<Error>,
    /// Segments that came to nothing: nobody needs their files.
    orphans: Vec<FileId>,
    visible: Arc<AtomicU64>,
    durable: Arc<AtomicU64>,
    /// Set when a memtable was sealed; whoever gives the core back tells the memtable owner.
    sealed: Arc<AtomicBool>,
}

impl Core {
    pub(crate) fn new(args: CoreArgs) -> Self {
        let memtable = Arc::clone(&args.views.load().active);
        let last = args.next_seq.0.saturating_sub(1);
        Self {
            store: args.store,
            views: args.views,
            good_end: args.segment.len(),
            segment: Arc::new(args.segment),
            memtable,
            unsynced: Vec::new(),
            spare: None,
            next_seq: args.next_seq,
            seal_bytes: args.seal_bytes,
            encoder: FrameEncoder::default(),
            keeper: Keeper::new(args.seal_bytes),
            phase: Phase::Idle,
            group: Vec::new(),
            fault: None,
            seal_wanted: false,
            seal_error: None,
            orphans: Vec::new(),
            visible: Arc::new(AtomicU64::new(last)),
            durable: Arc::new(AtomicU64::new(last)),
            sealed: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(super) fn env(&self) -> &Env {
        self.store.env()
    }

    /// SeqNo up to which writes are visible to readers.
    pub(super) fn visible(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.visible)
    }

    /// SeqNo up to which writes are known to be on disk.
    pub(super) fn durable(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.durable)
    }

    /// Memory for the writes to come.
    pub(super) fn spare(&self) -> Arc<Spare> {
        self.keeper.spare()
    }

    pub(super) fn sealed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.sealed)
    }

    /// The requests of the next group go here. REQUIRES: the core is idle.
    pub(super) fn group(&mut self) -> &mut Vec<Request> {
        debug_assert_eq!(self.phase, Phase::Idle, "a group is finished before the next is taken");
        &mut self.group
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The requests just put into the group are the core's from now on. Returns how many there are.
    pub(super) fn taken(&mut self) -> usize {
        if !self.group.is_empty() {
            self.phase = Phase::Taken;
        }
        self.group.len()
    }

    /// Why the log takes nothing, if so.
    pub(crate) fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// A panic left the group half written: nothing says how much of it is in the file.
    pub(crate) fn distrust_half_written(&mut self) {
        if self.phase == Phase::Writing {
            self.fault = Some(Error::Interrupted { component: "wal writer" });
            self.phase = Phase::Taken;
        }
    }

    /// Whether members of the group wait for a sync.
    pub(crate) fn needs_sync(&self) -> bool {
        self.phase == Phase::Written && self.group.iter().any(|request| request.sync)
    }

    /// Writes the group as one frame. Does not wait for the disk, only for the operating system.
    pub(crate) fn append(&mut self) -> Result<()> {
        if self.phase != Phase::Taken {
            return Ok(());
        }
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        self.encoder.begin();
        for op in self.group.iter().flat_map(|request| request.batch.ops()) {
            self.encoder.push(op);
        }
        self.phase = Phase::Writing;
        let durable = self.segment.durable();
        self.segment.append_frame(&mut self.encoder, durable, self.next_seq)?;
        self.phase = Phase::Written;
        Ok(())
    }

    /// Makes everything written so far durable. Blocks.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let begun = self.env().clock.now();
        let written = self.next_seq.plus(self.ops()).0.saturating_sub(1);
        for segment in &self.unsynced {
            segment.sync()?;
        }
        self.unsynced.clear();
        self.segment.sync_commit()?; // who holds the core appends, so nobody does now
        self.durable.fetch_max(written, Ordering::AcqRel);
        if self.phase == Phase::Written {
            self.phase = Phase::Durable;
        }
        self.store.log_synced(begun);
        Ok(())
    }

    /// Number of operations of a group that is in the log but not yet counted in `next_seq`.
    fn ops(&self) -> u64 {
        match self.phase {
            Phase::Idle | Phase::Taken => 0,
            Phase::Writing | Phase::Written | Phase::Durable => {
                u64_of(self.group.iter().map(|request| request.batch.len()).sum())
            }
        }
    }

    /// Inserts the group, makes it visible and answers its members. Returns the SeqNo of the last operation.
    pub(crate) fn finish(&mut self) -> SeqNo {
        debug_assert!(matches!(self.phase, Phase::Written | Phase::Durable), "the log comes first");
        self.good_end = self.segment.len();
        let mut last = SeqNo(self.next_seq.0.saturating_sub(1));
        for request in &mut self.group {
            last = last.plus(u64_of(request.inserted));
            // Taken out, so that a large batch is not there twice.
            while let Some(op) = request.batch.take_op(request.inserted) {
                request.inserted += 1;
                last = last.plus(1);
                self.memtable.insert(last, &op, &mut self.keeper);
            }
        }
        self.visible.store(last.0, Ordering::Release);
        let mut seq = SeqNo(self.next_seq.0.saturating_sub(1));
        self.next_seq = last.plus(1);
        self.phase = Phase::Idle;
        for mut request in self.group.drain(..) {
            seq = seq.plus(u64_of(request.inserted));
            if let Some(room) = request.room.take() {
                room.keep_for(&self.memtable);
            }
            request.answer(Ok(seq));
        }
        last
    }

    /// Answers the group with `error`. If anything of it may be in the file, the segment is given up.
    pub(crate) fn fail(&mut self, error: &Error) {
        if self.phase != Phase::Taken {
            self.fault.get_or_insert_with(|| error.clone());
        }
        self.phase = Phase::Idle;
        for request in self.group.drain(..) {
            request.answer(Err(error.clone()));
        }
    }

    /// Nobody will come for the group: answers it with `error`, or, if anything of it may be in the file, that nobody knows.
    pub(crate) fn give_up(&mut self, error: &Error) {
        match self.phase {
            Phase::Idle => {}
            Phase::Taken => self.fail(error),
            Phase::Writing | Phase::Written | Phase::Durable => {
                self.fail(&Error::Interrupted { component: "commit core" });
            }
        }
    }

    /// A sync outside of a group failed: the file is not trusted any more.
    pub(crate) fn give_up_segment(&mut self, error: &Error) {
        self.fault.get_or_insert_with(|| error.clone());
    }

    /// Asks for the memtable to be sealed as soon as a segment is at hand.
    pub(crate) fn want_seal(&mut self) {
        self.seal_wanted = !self.memtable.is_empty();
    }

    /// Whether the memtable is due to be sealed.
    pub(crate) fn is_seal_due(&self) -> bool {
        self.seal_wanted || self.memtable.bytes() >= self.seal_bytes
    }

    pub(crate) fn needs_spare(&self) -> bool {
        self.spare.is_none()
    }

    /// Takes a prepared segment; gives it back if its number is not the next in the order of the log.
    pub(crate) fn install_spare(&mut self, spare: LogSegment) -> Option<LogSegment> {
        if self.spare.is_some() || spare.id() <= self.segment.id() {
            return Some(spare);
        }
        self.spare = Some(spare);
        None
    }

    /// Seals the memtable if it is due and a segment is at hand. A few microseconds; does not wait for the disk.
    pub(crate) fn seal_if_due(&mut self) {
        if self.phase != Phase::Idle || self.fault.is_some() || !self.is_seal_due() {
            return;
        }
        let Some(spare) = self.spare.take() else { return };
        match spare.write_header(self.previous()) {
            Ok(()) => {
                let old = self.begin(spare);
                if !old.is_synced() {
                    self.unsynced.push(old);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "could not begin a log segment");
                self.orphans.push(spare.id());
                self.seal_error = Some(error);
            }
        }
    }

    /// Why a memtable that was due could not be sealed, if it could not since the last call.
    pub(crate) fn take_seal_error(&mut self) -> Option<Error> {
        self.seal_error.take()
    }

    /// Segments whose files are to be removed.
    pub(crate) fn take_orphans(&mut self) -> Vec<FileId> {
        std::mem::take(&mut self.orphans)
    }

    /// Gives up a faulty segment for a new one. Blocks until everything that was acknowledged is durable there.
    ///
    /// Every acknowledged write that is not known to be on disk is logged again, one frame for each memtable: replay skips what it
    /// has seen before, so both copies may survive.
    pub(crate) fn repair(&mut self) -> Result<()> {
        if self.fault.is_none() {
            return Ok(());
        }
        if self.group.iter().any(|request| request.inserted > 0) {
            // It was left half inserted, and the file that has all of it is not trusted any more.
            return Err(Error::Interrupted { component: "commit core" });
        }
        if self.phase != Phase::Idle {
            // The next segment begins without it, and it is as durable as that.
            self.durable.fetch_min(self.next_seq.0.saturating_sub(1), Ordering::AcqRel);
            self.phase = Phase::Taken;
        }
        let next = match self.spare.take() {
            Some(spare) => spare,
            None => self.store.create_segment()?,
        };
        if let Err(error) = self.log_again(&next) {
            self.orphans.push(next.id());
            return Err(error);
        }
        self.fault = None;
        // Whatever became of their files, what they held is on disk now.
        self.unsynced.clear();
        self.durable.fetch_max(self.next_seq.0.saturating_sub(1), Ordering::AcqRel);
        self.begin(next);
        Ok(())
    }

    /// Begins `next` with every acknowledged write that may not be on disk, and makes it durable.
    fn log_again(&mut self, next: &LogSegment) -> Result<()> {
        next.write_header(self.previous())?;
        let doubtful = self.unsynced.first().unwrap_or(&self.segment).id();
        let durable = SeqNo(self.durable.load(Ordering::Acquire));
        let view = self.views.load_full();
        let sealed = view.sealed.iter().rev().filter(|memtable| memtable.segment() >= doubtful);
        for memtable in sealed.chain([&self.memtable]) {
            let mut ops = memtable.ops_after(durable);
            ops.retain(|(seq, _)| *seq < self.next_seq); // others are of a group that is not done
            next.append_again(&mut self.encoder, &ops)?;
        }
        next.sync()
    }

    /// What the next segment says about this one.
    fn previous(&self) -> Previous {
        Previous {
            segment: self.segment.id(),
            end: self.good_end,
            durable: self.segment.durable().min(self.good_end),
        }
    }

    /// Makes `next` the open segment, with a memtable of its own. Returns the one before.
    fn begin(&mut self, next: LogSegment) -> Arc<LogSegment> {
        let fresh = Arc::new(Memtable::new(next.id(), self.seal_bytes));
        // In the published View before its first write becomes visible.
        self.views.update(|view| view.with_active(Arc::clone(&fresh)));
        self.memtable = fresh;
        self.good_end = next.len();
        self.seal_wanted = false;
        self.sealed.store(true, Ordering::Release);
        self.store.segment_begun(next.id());
        std::mem::replace(&mut self.segment, Arc::new(next))
    }

    /// Segments with bytes that may not be on disk, oldest first, and the SeqNo they reach up to.
    pub(crate) fn to_sync(&self) -> (Vec<Arc<LogSegment>>, SeqNo) {
        let mut segments = self.unsynced.clone();
        if !self.segment.is_synced() {
            segments.push(Arc::clone(&self.segment));
        }
        (segments, SeqNo(self.next_seq.0.saturating_sub(1)))
    }

    /// The segments of an earlier [`Core::to_sync`] are on disk.
    pub(crate) fn synced(&mut self, up_to: SeqNo) {
        self.unsynced.retain(|segment| !segment.is_synced());
        self.durable.fetch_max(up_to.0, Ordering::AcqRel);
    }

    /// Forgets segments whose writes are all in tables. `floor`: the first segment that is still needed.
    pub(crate) fn forget_below(&mut self, floor: FileId) {
        self.unsynced.retain(|segment| segment.id() >= floor);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::oneshot;

    use super::*;
    use crate::batch::WriteBatch;
    use crate::config::ATLLConfig;
    use crate::env::sim::{SimFs, VirtualClock, sim_env};
    use crate::storage::log_segment::SegmentReader;
    use crate::version::Version;
    use crate::view::{Tree, View};

    fn core(fs: &SimFs) -> Core {
        let config = ATLLConfig { data_dir: PathBuf::from("/db"), ..ATLLConfig::default() };
        let env = sim_env(fs, VirtualClock::default());
        let store = Arc::new(Store::new(env, &config, FileId(1)));
        store.layout().create(fs).unwrap();
        let segment = store.create_segment().unwrap();
        segment.write_header(Previous::default()).unwrap();
        segment.sync().unwrap();
        let tree = Tree::new(Arc::new(Version::empty(config.max_levels)), None, &store);
        let active = Arc::new(Memtable::new(segment.id(), 1 << 20));
        let views = Views::new(View { active, sealed: Vec::new(), tree: Arc::new(tree) });
        let (views, seal_bytes) = (Arc::new(views), 1 << 20);
        Core::new(CoreArgs { store, views, segment, next_seq: SeqNo(1), seal_bytes })
    }

    /// Takes a durable write of one operation, and gets it into the file.
    fn appended(core: &mut Core, key: &str) -> oneshot::Receiver<Result<SeqNo>> {
        let (reply, answer) = oneshot::channel();
        let mut batch = WriteBatch::default();
        batch.put(key.to_owned(), "value");
        let (reply, room) = (Some(reply), None);
        core.group().push(Request { batch, sync: true, inserted: 0, reply, room, _queued: None });
        core.taken();
        core.append().unwrap();
        answer
    }

    /// Keys and SeqNos in the open segment.
    fn logged(core: &Core, fs: &SimFs) -> Vec<(SeqNo, String)> {
        let path = core.store.layout().wal(core.segment.id());
        let mut logged = Vec::new();
        let mut reader = SegmentReader::open(fs, path, core.segment.id()).unwrap();
        let each = |frame: crate::format::wal::Frame| {
            let mut seq = frame.base_seq;
            for op in frame.ops {
                logged.push((seq, String::from_utf8(op.key.to_vec()).unwrap()));
                seq = seq.plus(1);
            }
            true
        };
        reader.scan(u64::MAX, each).unwrap();
        logged
    }

    #[test]
    fn a_group_left_behind_in_a_segment_that_is_given_up_is_in_the_next() {
        for synced in [false, true] {
            let fs = SimFs::new(1);
            let mut core = core(&fs);
            let mut first = appended(&mut core, "a");
            if synced {
                core.sync().unwrap();
            }
            // Whoever had it panics here, and then a sync in the background fails.
            core.give_up_segment(&Error::Closed);
            core.repair().unwrap();
            assert!(core.durable().load(Ordering::Acquire) < 1, "it is nowhere now");
            core.append().unwrap();
            assert!(core.needs_sync());
            core.sync().unwrap();
            assert_eq!(core.finish(), SeqNo(1));
            assert_eq!(first.try_recv().unwrap().unwrap(), SeqNo(1));
            let _second = appended(&mut core, "b");
            core.sync().unwrap();
            assert_eq!(core.finish(), SeqNo(2));
            let expected = [(SeqNo(1), "a".to_owned()), (SeqNo(2), "b".to_owned())];
            assert_eq!(logged(&core, &fs), expected);
        }
    }

    #[test]
    fn a_group_left_half_inserted_is_inserted_to_its_end_and_counted_once() {
        let mut core = core(&SimFs::new(1));
        let mut answer = appended(&mut core, "a");
        core.group[0].batch.put("b", "value").delete("c");
        let op = core.group[0].batch.take_op(0).unwrap();
        core.group[0].inserted = 1;
        core.memtable.insert(SeqNo(1), &op, &mut core.keeper);
        assert_eq!(core.finish(), SeqNo(3));
        assert_eq!(answer.try_recv().unwrap().unwrap(), SeqNo(3));
        let ops = core.memtable.ops_after(SeqNo(0));
        let seen: Vec<_> = ops.iter().map(|(seq, op)| (seq.0, &op.key[..])).collect();
        assert_eq!(seen, [(1, &b"a"[..]), (2, b"b"), (3, b"c")]);
        assert_eq!(core.next_seq, SeqNo(4));
    }

    #[test]
    fn who_gives_a_group_up_says_whether_anything_of_it_may_be_there() {
        let refusal = Error::Unavailable { component: "root", reason: "a test".to_owned() };
        for in_file in [false, true] {
            let mut core = core(&SimFs::new(1));
            let mut answer = appended(&mut core, "a");
            if !in_file {
                core.phase = Phase::Taken;
            }
            core.give_up(&refusal);
            let error = answer.try_recv().unwrap().unwrap_err();
            assert_eq!(matches!(error, Error::Interrupted { .. }), in_file, "{error}");
            assert!(core.is_idle());
        }
    }
}
