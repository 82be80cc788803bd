//! Who holds the commit core, and for how long.
//!
//! A [`Lease`] is the core itself, taken out of its place: it may cross an await or a thread, and whatever happens to its holder,
//! it goes back when the lease is dropped.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::core::Core;
use super::queue::{Queue, Request};
use super::room::{Room, Taken};
use super::waiting::Waiting;
use crate::batch::WriteBatch;
use crate::env::Clock;
use crate::error::{Error, Result};
use crate::memtable::{Memtable, Spare};
use crate::tally::Tally;
use crate::types::{SeqNo, u64_of};

/// How a write is to be committed.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// Whether it is on disk before it is answered.
    pub(crate) sync: bool,
    pub(crate) clock: &'a dyn Clock,
    /// When waiting for room is given up, on the monotonic clock.
    pub(crate) until: Option<Duration>,
}

/// What the commit path shares with everyone: it outlives the actors.
pub(crate) struct Commits {
    core: Mutex<Option<Box<Core>>>,
    returned: Notify,
    /// Tasks that wait for the core: callers stand back while there are any.
    wanted: AtomicUsize,
    queue: Queue,
    room: Room,
    queued: Tally,
    /// Whether the WAL writer was rung and has not yet found the queue empty.
    armed: AtomicBool,
    /// Whether the last group of the WAL writer had more than one member.
    in_company: AtomicBool,
    /// Rings the WAL writer.
    doorbell: Box<dyn Fn() + Send + Sync>,
    /// Tells the memtable owner that a memtable was sealed, or that one is due and no segment is at hand.
    seal_bell: Box<dyn Fn() + Send + Sync>,
    /// Whether the memtable owner was told and has not yet looked.
    seal_rung: AtomicBool,
    /// The WAL writer was rung and has not heard it yet.
    rung: AtomicBool,
    /// Whether the log takes nothing, as of the last time the core was given back.
    faulty: AtomicBool,
    /// Whether there is no WAL writer any more, and none will come.
    abandoned: AtomicBool,
    /// Why writes are refused, if they are.
    refusal: ArcSwapOption<Error>,
    spare: Arc<Spare>,
    visible: Arc<AtomicU64>,
    durable: Arc<AtomicU64>,
    sealed: Arc<AtomicBool>,
}

impl Commits {
    /// `room`: bytes that queued writes and memtables may take together.
    pub(crate) fn new(
        (core, room): (Core, u64),
        doorbell: impl Fn() + Send + Sync + 'static,
        seal_bell: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            returned: Notify::new(),
            wanted: AtomicUsize::new(0),
            queue: Queue::default(),
            room: Room::new(room),
            queued: Tally::default(),
            armed: AtomicBool::new(false),
            in_company: AtomicBool::new(false),
            doorbell: Box::new(doorbell),
            seal_bell: Box::new(seal_bell),
            seal_rung: AtomicBool::new(false),
            rung: AtomicBool::new(false),
            faulty: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            refusal: ArcSwapOption::empty(),
            spare: core.spare(),
            visible: core.visible(),
            durable: core.durable(),
            sealed: core.sealed(),
            core: Mutex::new(Some(Box::new(core))),
        })
    }

    /// SeqNo up to which writes are visible. Load a View first: it pins what this number needs.
    pub(crate) fn visible(&self) -> SeqNo {
        SeqNo(self.visible.load(Ordering::Acquire))
    }

    /// SeqNo up to which writes are known to be on disk in the log.
    pub(crate) fn durable(&self) -> SeqNo {
        SeqNo(self.durable.load(Ordering::Acquire))
    }

    /// Commits `batch`. Returns the SeqNo of its last operation.
    ///
    /// Dropping the future does not undo a write: it is applied whole or, if it was still waiting for room, not at all.
    pub(crate) async fn write(
        self: &Arc<Self>,
        batch: WriteBatch,
        terms: Terms<'_>,
    ) -> Result<SeqNo> {
        // A tight loop of writes that are all ready at once would starve the actors of a current_thread runtime.
        tokio::task::coop::consume_budget().await;
        if let Some(refusal) = &*self.refusal.load() {
            return Err(Error::clone(refusal));
        }
        if batch.is_empty() {
            return Ok(self.visible());
        }
        let room = match self.room.try_take(&batch)? {
            Some(room) => room,
            None => self.wait_for_room(&batch, terms).await?,
        };
        // Writers that came together last time share the next sync too. Callers of another executor have no thread to offer.
        let alone = !terms.sync
            || (!self.in_company.load(Ordering::Relaxed) && Handle::try_current().is_ok());
        if alone
            && !self.armed.load(Ordering::Acquire)
            && let Some(lease) = self.try_lease()
        {
            // Looked at again with the core in hand: after a refusal, whoever held the core once knows that no write follows.
            return match self.refusal() {
                Some(refusal) => Err(refusal),
                None if terms.sync => lease.commit_alone_on_disk(batch, room).await,
                None => lease.commit_alone(batch, room),
            };
        }
        self.enqueue(batch, terms.sync, room).await
    }

    async fn wait_for_room(&self, batch: &WriteBatch, terms: Terms<'_>) -> Result<Taken> {
        let room = self.room.take(batch, terms.clock, terms.until, || self.refusal());
        // If nothing is being flushed, room comes only by sealing what there is.
        let ring = async {
            if !self.seal_rung.swap(true, Ordering::AcqRel) {
                (self.seal_bell)();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            room = room => room,
            () = ring => Err(Error::Closed),
        }
    }

    async fn enqueue(&self, batch: WriteBatch, sync: bool, room: Taken) -> Result<SeqNo> {
        let (reply, answer) = oneshot::channel();
        let queued = Some(self.queued.share(u64_of(batch.bytes())));
        let (reply, room) = (Some(reply), Some(room));
        self.queue.push(Request { batch, sync, inserted: 0, reply, room, _queued: queued });
        self.ring();
        if let Some(refusal) = &*self.refusal.load() {
            // Refused between the first look and the push: nobody would come for it.
            self.queue.refuse(refusal);
        }
        answer.await.unwrap_or(Err(Error::Interrupted { component: "wal writer" }))
    }

    /// A memtable that recovery filled takes room like one that was written.
    pub(crate) fn occupy_room(&self, memtable: &Memtable) {
        self.room.occupy(memtable);
    }

    /// `memtable` is in tables: its room is for other writes now.
    pub(crate) fn free_room(&self, memtable: &Memtable) {
        self.room.free(memtable);
    }

    /// Whether writes wait for room.
    pub(crate) fn is_crowded(&self) -> bool {
        self.room.is_crowded()
    }

    /// Bytes of the writes that were admitted and are not answered yet.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued.bytes()
    }

    /// Memory for the memtables to come.
    pub(crate) fn spare(&self) -> &Spare {
        &self.spare
    }

    /// Bytes of the writes that wait for room.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.room.waiting_bytes().bytes()
    }

    /// Rings the WAL writer, once until it disarms.
    fn ring(&self) {
        if !self.armed.swap(true, Ordering::AcqRel) {
            self.ring_again();
        }
    }

    /// Rings the WAL writer, unless it was rung and has not heard it yet: its mailbox never holds two bells.
    pub(crate) fn ring_again(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            (self.doorbell)();
        }
    }

    /// The WAL writer looks now: what is pushed from here on rings it again.
    pub(crate) fn heard(&self) {
        // A swap, to see what the one who rang has pushed.
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// The queue was found empty: the next push rings again. Returns `false` if one slipped in meanwhile.
    pub(crate) fn disarm(&self) -> bool {
        self.armed.store(false, Ordering::Release);
        self.queue.is_empty() || self.armed.swap(true, Ordering::AcqRel)
    }

    /// The memtable owner looks now: what happens from here on rings it again.
    pub(crate) fn seal_heard(&self) {
        self.seal_rung.store(false, Ordering::Release);
    }

    /// Lets callers come straight to the core again.
    pub(crate) fn disarm_early(&self) {
        self.armed.store(false, Ordering::Release);
    }

    /// Whether the log takes nothing until it is repaired.
    pub(crate) fn is_faulty(&self) -> bool {
        self.faulty.load(Ordering::Acquire)
    }

    /// Answers all that waits, and every write to come, with `error`.
    pub(crate) fn refuse(&self, error: Error) {
        let error = Arc::new(error);
        self.refusal.store(Some(Arc::clone(&error)));
        self.queue.refuse(&error);
        self.room.refuse();
    }

    /// Nobody will come for a group any more: refuses every write, also those that are left in the core. `error`: why, if writes were
    /// not refused before.
    pub(crate) fn abandon(&self, error: Error) {
        if self.refusal().is_none() {
            self.refuse(error);
        }
        self.abandoned.store(true, Ordering::Release);
        self.fail_abandoned(&mut self.locked());
    }

    /// Answers the group that is left in the core, if nobody else will.
    fn fail_abandoned(&self, core: &mut Option<Box<Core>>) {
        let refusal = self.abandoned.load(Ordering::Acquire).then(|| self.refusal()).flatten();
        if let (Some(core), Some(refusal)) = (core, refusal) {
            core.give_up(&refusal);
        }
    }

    /// Takes writes again.
    pub(crate) fn accept(&self) {
        self.refusal.store(None);
    }

    /// Why writes are refused, if they are.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.refusal.load().as_deref().cloned()
    }

    /// The core, if nobody holds or wants it and no group was left in it.
    fn try_lease(self: &Arc<Self>) -> Option<Lease> {
        if self.wanted.load(Ordering::Acquire) > 0 {
            return None;
        }
        let core = self.locked().take()?;
        let lease = Lease { core: Some(core), commits: Arc::clone(self), rings: false };
        (lease.is_idle() && lease.fault().is_none()).then_some(lease)
    }

    /// The core, in whatever state it was left. Waits its turn; callers stand back meanwhile.
    pub(crate) async fn lease(self: &Arc<Self>) -> Lease {
        let _wanted = Waiting::new(&self.wanted);
        loop {
            let returned = self.returned.notified();
            let core = self.locked().take();
            if let Some(core) = core {
                return Lease { core: Some(core), commits: Arc::clone(self), rings: false };
            }
            returned.await;
        }
    }

    /// The lock is held for one move in or out.
    fn locked(&self) -> MutexGuard<'_, Option<Box<Core>>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commits").field("visible", &self.visible).finish_non_exhaustive()
    }
}

/// The commit core in the hands of one holder.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `Some` until the lease is dropped.
    core: Option<Box<Core>>,
    commits: Arc<Commits>,
    /// The WAL writer is rung once the core is back.
    rings: bool,
}

impl Lease {
    /// Takes the next group out of the queue. REQUIRES: the core is idle. Returns how many requests it has: none if writes are
    /// refused, then they all get the refusal.
    pub(crate) fn take_group(&mut self) -> usize {
        let commits = Arc::clone(&self.commits);
        if let Some(refusal) = commits.refusal() {
            commits.queue.refuse(&refusal);
            return 0;
        }
        commits.queue.take_group(self.group());
        let n = self.taken();
        if n > 0 {
            commits.in_company.store(n > 1, Ordering::Relaxed);
        }
        n
    }

    /// Commits a group of one on the spot.
    fn commit_alone(mut self, batch: WriteBatch, room: Taken) -> Result<SeqNo> {
        let room = Some(room);
        let request = Request { batch, sync: false, inserted: 0, reply: None, room, _queued: None };
        self.group().push(request);
        self.taken();
        // The caller's task is not a supervised actor: a panic here must reach neither it nor the other callers.
        let committed = catch_unwind(AssertUnwindSafe(|| self.commit()));
        committed.unwrap_or(Err(Error::Interrupted { component: "commit core" }))
    }

    /// Commits a group of one where waiting for the disk is allowed, and answers from there: a hop there and a hop back. Also if the
    /// caller goes away; and if the job does, the WAL writer commits what it leaves.
    async fn commit_alone_on_disk(mut self, batch: WriteBatch, room: Taken) -> Result<SeqNo> {
        let (reply, answer) = oneshot::channel();
        let queued = Some(self.commits.queued.share(u64_of(batch.bytes())));
        let (reply, room) = (Some(reply), Some(room));
        self.group().push(Request { batch, sync: true, inserted: 0, reply, room, _queued: queued });
        self.taken();
        let env = self.env().clone();
        let done = env.on_disk(move || self.commit()).await;
        done.or(answer.await.unwrap_or(Err(Error::Interrupted { component: "commit core" })))
    }

    /// Brings the group to its end and answers it.
    fn commit(&mut self) -> Result<SeqNo> {
        let mut on_disk = || {
            self.append()?;
            if self.needs_sync() { self.sync() } else { Ok(()) }
        };
        if let Err(error) = on_disk() {
            self.fail(&error);
            self.rings = true; // the log heals also if nobody writes any more
            return Err(error);
        }
        let seq = self.finish();
        self.seal_if_due();
        Ok(seq)
    }
}

impl Deref for Lease {
    type Target = Core;

    fn deref(&self) -> &Core {
        match &self.core {
            Some(core) => core,
            None => unreachable!("the core is there until the lease is dropped"),
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Core {
        match &mut self.core {
            Some(core) => core,
            None => unreachable!("the core is there until the lease is dropped"),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let due = self.is_seal_due() && self.needs_spare();
        self.commits.faulty.store(self.fault().is_some(), Ordering::Release);
        let left = !self.is_idle();
        let mut place = self.commits.locked();
        *place = self.core.take();
        self.commits.fail_abandoned(&mut place);
        drop(place);
        if self.commits.wanted.load(Ordering::Acquire) > 0 {
            self.commits.returned.notify_one();
        }
        if left || self.rings {
            // A panic left a group: the WAL writer brings it to its end. It may be about to go to sleep, so it is not asked.
            self.commits.ring_again();
        }
        let sealed = self.commits.sealed.swap(false, Ordering::AcqRel);
        if (due || sealed) && !self.commits.seal_rung.swap(true, Ordering::AcqRel) {
            (self.commits.seal_bell)();
        }
    }
}
