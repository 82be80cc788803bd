//! The handle: everything a user calls. It checks, looks up who is responsible, and waits for the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ractor::Actor;
use tokio::sync::{oneshot, watch};

use crate::actors::{
    Health, Root, Routes, Shared, SharedArgs, manifest_keeper, memtable_owner, root, scheduler,
    wal_writer,
};
use crate::batch::{Commit, WriteBatch, WriteOptions};
use crate::commit::{Commits, Core, CoreArgs, Terms};
use crate::config::{ATLLConfig, Durability};
use crate::cursor::{Found, Stop};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::jobs::checkpoint::write_checkpoint;
use crate::jobs::recover::{Recovered, RecoveryReport, recover};
use crate::jobs::verify::VerifyReport;
use crate::ledger::MemoryLedger;
use crate::memtable::Memtable;
use crate::observe::Meter;
use crate::scan::{RangeIter, Scan};
use crate::snapshots::Pin;
use crate::stats::{LevelStats, Pressure, Stats};
use crate::storage::TableCheck;
use crate::storage::layout::Layout;
use crate::turn;
use crate::types::{CompactionMode, KeyRange, SeqNo, u64_of};
use crate::view::{Lookup, Tree, View, Views};

/// An open database. Clones are handles to the same engine; it ends with [`shutdown`](Self::shutdown).
///
/// Every future is `Send` and may be dropped at any await: a write is then applied whole or not at all. It must be opened and
/// used within a tokio runtime, of either flavour.
#[derive(Clone, Debug)]
pub struct LsmEngine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    recovery: RecoveryReport,
    /// Whether the components were told to stop.
    closed: AtomicBool,
    /// `None` once it came to its end.
    ending: tokio::sync::Mutex<Option<Ending>>,
}

/// The end of an engine. It stays in place while it is waited for: whoever waits may be dropped, and another goes on.
#[derive(Debug)]
struct Ending {
    /// Ends when the root does.
    root: ractor::concurrency::JoinHandle<()>,
    /// What a shutdown that was asked for will have come to.
    answer: Option<oneshot::Receiver<Result<()>>>,
    result: Option<Result<()>>,
}

impl LsmEngine {
    /// Opens the database in [`ATLLConfig::data_dir`], or creates it.
    ///
    /// Cost: reads the manifest and the log that was not flushed; no table.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Locked`], [`Error::Corrupt`] for damage that is no torn log tail, [`Error::Unsupported`] for files of a
    /// newer version, [`Error::Io`].
    pub async fn open(config: ATLLConfig) -> Result<Self> {
        Self::open_in(config, Env::default()).await
    }

    /// Like [`open`](Self::open), with metrics and events.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_with_meter<M: Meter + 'static>(
        config: ATLLConfig,
        meter: Arc<M>,
    ) -> Result<Self> {
        Self::open_in(config, Env { meter, ..Env::default() }).await
    }

    /// Like [`open`](Self::open), in a world of your own: another disk, another clock.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn open_in(config: ATLLConfig, env: Env) -> Result<Self> {
        config.validate()?;
        let config = config.settled();
        let recovered = open_files(&env, &config).await?;
        let recovery = recovered.report.clone();
        let shared = build(config, recovered);
        let spawned = Actor::spawn(None, Root, Arc::clone(&shared)).await;
        let (_, root) = spawned
            .map_err(|error| Error::Unavailable { component: "root", reason: error.to_string() })?;
        shared.refresh_pressure();
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                recovery,
                closed: AtomicBool::new(false),
                ending: tokio::sync::Mutex::new(Some(Ending { root, answer: None, result: None })),
            }),
        })
    }

    /// Sets `key` to `value`. What is a [`Bytes`] already is taken as it is; the memtable keeps copies of small ones.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<SeqNo> {
        self.put_with(key, value, WriteOptions::default()).await
    }

    /// Sets `key` to `value`, with a durability, time to live or deadline of its own.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<SeqNo> {
        let mut batch = WriteBatch::default();
        batch.put(key, value);
        Ok(self.write(batch, options).await?.seq)
    }

    /// Deletes `key`; fine if it is not there.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub async fn delete(&self, key: &[u8]) -> Result<SeqNo> {
        let mut batch = WriteBatch::default();
        batch.delete(Bytes::copy_from_slice(key));
        Ok(self.write(batch, WriteOptions::default()).await?.seq)
    }

    /// Applies a batch: all of it becomes visible, and durable, at once.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::Stalled`]: nothing was written. [`Error::Io`]: nothing that counts was written, though a crash
    /// before the log is repaired may bring it back; the same call may succeed later. [`Error::Interrupted`]: the outcome is
    /// unknown. [`Error::Closed`] and [`Error::Unavailable`]: the engine takes no writes.
    pub async fn write(&self, mut batch: WriteBatch, options: WriteOptions) -> Result<Commit> {
        batch.check_limits()?;
        let shared = &self.inner.shared;
        let ttl_default = shared.config.tombstone.ttl_default_sec.map(Duration::from_secs);
        if let Some(ttl) = options.ttl.or(ttl_default) {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            batch.expire_puts_at(shared.env().clock.wall_ms().saturating_add(ttl_ms));
        }
        let (bytes, ops) = (batch.bytes(), batch.len());
        let clock = &*shared.env().clock;
        let until = options.deadline.map(|deadline| clock.now().saturating_add(deadline));
        let stall = shared.gate.pass(clock, bytes, options.deadline).await?;
        if stall.0 > Duration::ZERO {
            shared.totals.stalled(stall.0);
            shared.metrics.write_stall_ms.observe(stall.0.as_secs_f64() * 1e3);
        }
        let durability = options.durability.unwrap_or(shared.config.durability);
        let terms = Terms { sync: durability == Durability::Sync, clock, until };
        let seq = shared.commits.write(batch, terms).await?;
        if let Durability::Batch(interval) = durability {
            let due = shared.now().saturating_add(interval).as_micros();
            let due = u64::try_from(due).unwrap_or(u64::MAX - 1).min(u64::MAX - 1);
            if due < shared.sync_due.fetch_min(due, Ordering::AcqRel) {
                shared.routes.wal_writer.ring(wal_writer::Msg::SyncSoon);
            }
        }
        shared.totals.written(u64_of(bytes), u64_of(ops));
        Ok(Commit { seq })
    }

    /// The value of `key`; `None` if it was never set, was deleted or has expired.
    ///
    /// Ready at the first poll if the blocks that it needs are in memory. The value shares memory with its block, or with others in
    /// the memtable: it keeps alive up to a block, or 32 KiB, which matters to whoever keeps many small ones for long.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: the key may have a value, but its table is damaged. [`Error::Io`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get_at(key, None).await
    }

    /// The values of `keys`, in their order, as of one point in time.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.inner.multi_get_at(keys, None).await
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn contains(&self, key: &[u8]) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
    }

    /// Keys from `start` up to, not including, `end`, in order; an empty `end` means "to the last key".
    ///
    /// # Errors
    /// [`Error::Closed`] after a shutdown. The walk itself reports what it meets.
    #[expect(clippy::unused_async, reason = "the signature that programs are written against")]
    pub async fn iter_range(&self, start: &[u8], end: &[u8]) -> Result<RangeIter> {
        let end = (!end.is_empty()).then(|| Bytes::copy_from_slice(end));
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(self.scan(KeyRange::new(Bytes::copy_from_slice(start), end)))
    }

    /// An ordered walk over a range, as of now: `engine.scan("a".."b")`, `engine.scan(..)`, either way round.
    pub fn scan(&self, range: impl Into<KeyRange>) -> Scan {
        self.inner.scan_at(range.into(), None)
    }

    /// A point in time to read from: later writes do not show. It keeps what it sees on disk; drop it when you are done.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let shared = &self.inner.shared;
        let pin = shared.snapshots.pin(shared.now(), || shared.commits.visible());
        Snapshot { inner: Arc::clone(&self.inner), pin: Arc::new(pin) }
    }

    /// Moves everything that is in memory into tables.
    ///
    /// # Errors
    /// Why the flush failed. It is tried again in the background; nothing is lost.
    pub async fn flush(&self) -> Result<()> {
        self.inner.open()?;
        self.inner.shared.flush(false).await
    }

    /// Compacts a range, and everything below it, whatever the scheduler thinks of it. Begins when the compactions have ended that
    /// are under way.
    ///
    /// # Errors
    /// Why a flush failed, or a compaction several times; [`Error::Corrupt`] if a damaged table is in the way, once all is done that
    /// can be without it; [`Error::Interrupted`] if the scheduler was restarted meanwhile.
    pub async fn compact_range(
        &self,
        range: impl Into<KeyRange>,
        mode: CompactionMode,
    ) -> Result<()> {
        let range = range.into();
        self.flush().await?;
        let (reply, answer) = oneshot::channel();
        self.inner.shared.routes.scheduler.ring(scheduler::Msg::Compact(range, mode, reply));
        answer.await.unwrap_or(Err(Error::Interrupted { component: "scheduler" }))
    }

    /// Bytes on disk of a range, memtables not counted. Sections of tables that a bound cuts, up to 4 MiB of keys and values each,
    /// count by where it falls between their first and last key, as if keys were spread evenly.
    pub fn approximate_size(&self, range: impl Into<KeyRange>) -> u64 {
        let range = range.into();
        let view = self.inner.shared.views.load();
        let version = view.version();
        let slices = version.levels.iter().flat_map(|level| level.slices());
        slices
            .map(|slice| {
                let mut part = slice.clone();
                part.range = slice.range.intersection(&range);
                if part.range.is_empty() { 0 } else { version.slice_bytes(&part) }
            })
            .sum()
    }

    /// Waits until no component has anything left to do: what is sealed is flushed, nothing is worth compacting, dead files are
    /// gone. It neither seals the active memtable nor stops writers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if a component that may have to work is down, be it until the next attempt to start it.
    pub async fn wait_idle(&self) -> Result<()> {
        let shared = &self.inner.shared;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.inner.closed.load(Ordering::Acquire) || shared.is_idle() {
                return Ok(());
            }
            if let Some(refusal) = shared.commits.refusal().or_else(|| shared.health.down()) {
                return Err(refusal);
            }
            if shared.has_free_garbage() {
                shared.routes.manifest_keeper.ring(manifest_keeper::Msg::Sweep);
            }
            changed.await;
        }
    }

    /// Makes everything acknowledged so far durable. Returns the last write that is.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refused; the log is repaired, and the same call may succeed later. [`Error::Unavailable`] if the
    /// log is given up.
    pub async fn sync(&self) -> Result<SeqNo> {
        self.inner.open()?;
        let (reply, answer) = oneshot::channel();
        let shared = &self.inner.shared;
        shared.routes.wal_writer.ring(wal_writer::Msg::Sync(Some(reply)));
        match answer.await {
            Ok(synced) => synced,
            // Nobody is there to sync, or died over it.
            Err(_gone) => Err(shared
                .commits
                .refusal()
                .unwrap_or(Error::Interrupted { component: "wal writer" })),
        }
    }

    /// The last write known to be on disk, in the log or in a table.
    #[must_use]
    pub fn durable_seq(&self) -> SeqNo {
        let shared = &self.inner.shared;
        shared.commits.durable().max(shared.views.load().version().last_seq)
    }

    /// Writes a copy of the database, as of now, into `dir`, which must not exist or be empty. Tables are hard links: it costs
    /// a flush and next to no space, and `dir` must lie on the same file system.
    ///
    /// # Errors
    /// [`Error::Locked`] if an engine or another checkpoint is at work in `dir`. [`Error::Io`]: the files that were written so far are
    /// removed again, as far as the disk allows.
    pub async fn checkpoint(&self, dir: impl Into<std::path::PathBuf>) -> Result<()> {
        self.flush().await?;
        let store = Arc::clone(&self.inner.shared.store);
        // The tree pins its tables: none is deleted before it is linked.
        let tree = Arc::clone(&self.inner.shared.views.load().tree);
        let layout = Layout::new(dir.into());
        let job = move || write_checkpoint(&store, &tree.version, &layout);
        self.inner.shared.env().on_disk(job).await
    }

    /// Reads all of every table of this moment from the disk and checks it: checksums, order, bounds, counts, filters, and that
    /// the manifest says the same. It goes on behind damage, and puts damaged tables into [`Health::damaged`]; those that turn
    /// out to be sound leave it.
    ///
    /// Cost: reads every table once, a few megabytes at a time, past the block cache. May be dropped at any time.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Closed`]. Damage is no error: it stands in the report.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let shared = &self.inner.shared;
        // The tree pins its tables: none is deleted before it is read.
        let tree = Arc::clone(&shared.views.load().tree);
        let mut report = VerifyReport::default();
        for meta in tree.version.tables.values() {
            let path = shared.store.layout().table(meta.file);
            let mut check = TableCheck::new(&shared.env().fs, &path, meta);
            let mut more = true;
            while more {
                self.inner.open()?;
                (check, more) = shared.env().on_disk(move || stepped(check)).await?;
            }
            shared.quarantine.settle(&check);
            report.add(check.done());
        }
        Ok(report)
    }

    /// What the engine has done since it was opened, and what it holds now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Where its memory is.
    #[must_use]
    pub fn memory(&self) -> MemoryLedger {
        self.inner.shared.memory()
    }

    /// What opening the database found and did.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.inner.recovery
    }

    /// How the engine is: what fails, what was restarted.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.shared.health.now()
    }

    /// Like [`health`](Self::health), and every change of it.
    #[must_use]
    pub fn health_changes(&self) -> watch::Receiver<Health> {
        self.inner.shared.health.watch()
    }

    /// How far background work is behind, and every change of it.
    #[must_use]
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.inner.shared.pressure.subscribe()
    }

    /// Starts components that were given up, and takes writes again.
    pub fn resume(&self) {
        self.inner.shared.routes.root.ring(root::Msg::Resume);
    }

    /// Kills a component in the middle of whatever it does; it is started again like one that died by itself.
    #[cfg(feature = "chaos")]
    pub fn kill(&self, component: crate::Component) {
        self.inner.shared.routes.root.ring(root::Msg::Kill(component));
    }

    /// Makes a component die when it takes up its next message.
    #[cfg(feature = "chaos")]
    pub fn strike(&self, component: crate::Component, blow: crate::Blow) {
        self.strike_after(component, 0, blow);
    }

    /// Like [`strike`](Self::strike), but lets so many `messages` pass first.
    #[cfg(feature = "chaos")]
    pub fn strike_after(&self, component: crate::Component, messages: u64, blow: crate::Blow) {
        self.inner.shared.chaos.arm(component, messages, blow);
    }

    /// Messages that a component has taken up since the engine was opened.
    #[cfg(feature = "chaos")]
    #[must_use]
    pub fn messages(&self, component: crate::Component) -> u64 {
        self.inner.shared.chaos.messages(component)
    }

    /// Ends the engine: refuses writes, syncs the log, moves what is in memory into tables, records the version, and stops every
    /// component. Calling it again, or from several handles, waits for the same end.
    ///
    /// # Errors
    /// The first step that failed. The others were tried all the same, and nothing that was acknowledged is lost: it is in the log.
    pub async fn shutdown(&self) -> Result<()> {
        let mut slot = self.inner.ending.lock().await;
        let Some(ending) = &mut *slot else { return Ok(()) };
        let answer = ending.answer.get_or_insert_with(|| {
            self.inner.closed.store(true, Ordering::Release);
            let (reply, answer) = oneshot::channel();
            self.inner.shared.routes.root.ring(root::Msg::Shutdown(reply));
            answer
        });
        if ending.result.is_none() {
            let result = answer.await.unwrap_or(Err(Error::Interrupted { component: "root" }));
            ending.result = Some(result);
        }
        // The root has nothing left to say but that it is gone.
        drop((&mut ending.root).await);
        let result = ending.result.take().unwrap_or(Ok(()));
        *slot = None;
        self.inner.shared.notify();
        result
    }
}

impl Inner {
    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The View first, then the visible SeqNo: the View pins all that the SeqNo needs.
    async fn get_at(&self, key: &[u8], pin: Option<SeqNo>) -> Result<Option<Bytes>> {
        turn::before_get().await;
        self.open()?;
        let shared = &self.shared;
        let (mut lookup, start, view, mut step) = {
            let view = shared.views.load();
            let snapshot = pin.unwrap_or_else(|| shared.commits.visible());
            let mut lookup = Lookup::new(key, snapshot);
            let start = lookup.is_sampled().then(|| shared.now());
            match lookup.run(&view) {
                Ok(found) => return Ok(self.read(found, &lookup, start)),
                Err(stop) => (lookup, start, Arc::clone(&view), stop),
            }
        };
        loop {
            match step {
                Stop::Failed(error) => return Err(self.noted(error)),
                Stop::Blocked(read) => {
                    let read = shared.env().on_disk(read).await;
                    read.map_err(|error| self.noted(error))?;
                }
            }
            match lookup.run(&view) {
                Ok(found) => return Ok(self.read(found, &lookup, start)),
                Err(stop) => step = stop,
            }
        }
    }

    /// The error of a read, after its table is put into quarantine if it is damaged.
    fn noted(&self, error: Error) -> Error {
        self.shared.quarantine.note(&error);
        error
    }

    /// What a reader gets of what was found. `start`: when the read began, if it is measured.
    fn read(
        &self,
        found: Option<Found>,
        lookup: &Lookup<'_>,
        start: Option<Duration>,
    ) -> Option<Bytes> {
        if let Some(start) = start
            && let Some(histogram) =
                lookup.histogram(self.shared.store.read_metrics(), found.is_some())
        {
            histogram.observe((self.shared.now().saturating_sub(start)).as_secs_f64() * 1e3);
        }
        self.live(found)
    }

    fn live(&self, found: Option<Found>) -> Option<Bytes> {
        use crate::types::ValueKind;
        let found = found?;
        let live = match found.kind {
            ValueKind::Put => true,
            ValueKind::Delete => false,
            ValueKind::PutUntil(_) => found.kind.is_live(self.shared.env().clock.wall_ms()),
        };
        live.then_some(found.value)
    }

    async fn multi_get_at<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        pin: Option<SeqNo>,
    ) -> Result<Vec<Option<Bytes>>> {
        let held;
        let seq = match pin {
            Some(seq) => seq,
            None => {
                held =
                    self.shared.snapshots.pin(self.shared.now(), || self.shared.commits.visible());
                held.seq()
            }
        };
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.get_at(key.as_ref(), Some(seq)).await?);
        }
        Ok(values)
    }

    fn scan_at(&self, range: KeyRange, pin: Option<Arc<Pin>>) -> Scan {
        let view = self.shared.views.load_full();
        let snapshot = pin.as_ref().map_or_else(|| self.shared.commits.visible(), |pin| pin.seq());
        Scan::new(Arc::clone(&self.shared.quarantine), view, snapshot, pin, range)
    }

    fn stats(&self) -> Stats {
        let shared = &self.shared;
        let view = shared.views.load_full();
        let version = view.version();
        let mut stats = Stats::default();
        shared.totals.fill(&mut stats);
        stats.memtable_bytes = u64_of(view.memtable_bytes());
        stats.sealed_memtables = view.sealed.len();
        stats.cache_bytes = shared.store.cache().blocks().bytes();
        stats.index_bytes = shared.store.cache().pinned_bytes();
        stats.open_tables = shared.store.cache().open_files();
        stats.levels = version
            .numbered()
            .map(|(level, state)| LevelStats {
                level,
                slots: state.slots.len(),
                runs: state.slots.iter().map(|slot| slot.runs.len()).sum(),
                bytes: version.level_bytes(level),
            })
            .collect();
        stats.tables = version.tables.len();
        stats.table_bytes = version.tables.values().map(|table| table.file_bytes).sum();
        let garbage = shared.garbage();
        let pinned = garbage.iter().filter(|dead| dead.table.strong_count() > 0);
        stats.pinned_tables = pinned.clone().count();
        stats.pinned_bytes = pinned.map(|dead| dead.bytes).sum();
        drop(garbage);
        let (snapshots, oldest) = shared.snapshots.count_and_oldest();
        stats.snapshots = snapshots;
        stats.oldest_snapshot = oldest.map(|since| shared.now().saturating_sub(since));
        stats.last_seq = shared.commits.visible();
        stats.durable_seq = shared.commits.durable().max(version.last_seq);
        stats
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Acquire) {
            tracing::warn!(
                dir = %self.shared.config.data_dir.display(),
                "dropped without shutdown(): what is in memory stays in the log, and is replayed at the next open"
            );
            self.shared.commits.refuse(Error::Closed);
            self.shared.cancel.cancel();
            self.shared.routes.root.ring(root::Msg::Abandon);
        }
    }
}

/// A point in time. See [`LsmEngine::snapshot`].
#[derive(Clone, Debug)]
pub struct Snapshot {
    inner: Arc<Inner>,
    pin: Arc<Pin>,
}

impl Snapshot {
    /// The last write that it sees.
    #[must_use]
    pub fn seq(&self) -> SeqNo {
        self.pin.seq()
    }

    /// The value of `key` at that time.
    ///
    /// # Errors
    /// As for [`LsmEngine::get`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get_at(key, Some(self.pin.seq())).await
    }

    /// The values of `keys`, in their order.
    ///
    /// # Errors
    /// As for [`LsmEngine::get`].
    pub async fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        self.inner.multi_get_at(keys, Some(self.pin.seq())).await
    }

    /// An ordered walk over a range at that time. It keeps the snapshot alive.
    pub fn scan(&self, range: impl Into<KeyRange>) -> Scan {
        self.inner.scan_at(range.into(), Some(Arc::clone(&self.pin)))
    }
}

fn stepped(mut check: TableCheck) -> Result<(TableCheck, bool)> {
    let more = check.step()?;
    Ok((check, more))
}

/// Takes the directory and brings the data back. Waits a moment for an engine that was just dropped to let go of the lock.
async fn open_files(env: &Env, config: &ATLLConfig) -> Result<Recovered> {
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        let (job_env, job_config) = (env.clone(), config.clone());
        match env.on_disk(move || recover(&job_env, &job_config)).await {
            Err(Error::Locked { .. }) => env.clock.sleep(Duration::from_millis(10)).await,
            result => return result,
        }
    }
    Err(Error::Locked { path: config.data_dir.clone() })
}

/// Everything that the components share, from what recovery found.
fn build(mut config: ATLLConfig, recovered: Recovered) -> Arc<Shared> {
    let Recovered { lock, store, version, manifest, memtables, segment, report } = recovered;
    // Data may lie deeper than asked for; each level needs somebody who works on it.
    config.max_levels = version.levels.len();
    let tree = Arc::new(Tree::new(Arc::new(version), None, &store));
    let active = Arc::new(Memtable::new(segment.id(), config.memtable.flush_trigger_bytes));
    let views = Arc::new(Views::new(View { active, sealed: memtables, tree }));
    let core = Core::new(CoreArgs {
        store: Arc::clone(&store),
        views: Arc::clone(&views),
        segment,
        next_seq: report.last_seq.plus(1),
        seal_bytes: config.memtable.flush_trigger_bytes,
    });
    let routes = Arc::new(Routes::new(config.max_levels));
    let (bell, seal_bell) = (Arc::clone(&routes), Arc::clone(&routes));
    let room = u64_of(config.resources.memtables_mib) << 20;
    let commits = Commits::new(
        (core, room),
        move || bell.wal_writer.ring(wal_writer::Msg::Wake),
        move || seal_bell.memtable_owner.ring(memtable_owner::Msg::Look),
    );
    views.load().sealed.iter().for_each(|memtable| commits.occupy_room(memtable));
    Shared::new(SharedArgs { config, store, views, commits, routes, manifest, lock })
}

/// Compile-time proof that every future of the public face can move between threads.
#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_: &T) {}

    #[test]
    fn every_future_is_send() {
        fn check(engine: &LsmEngine) {
            assert_send(&LsmEngine::open(ATLLConfig::default()));
            assert_send(&LsmEngine::open_in(ATLLConfig::default(), Env::default()));
            let meter = Arc::new(crate::observe::NoopMeter);
            assert_send(&LsmEngine::open_with_meter(ATLLConfig::default(), meter));
            assert_send(&engine.put_with("k", "v", WriteOptions::default()));
            assert_send(&engine.contains(b"k"));
            assert_send(&engine.snapshot().multi_get(&["k"]));
            assert_send(&engine.snapshot().scan(..).next());
            assert_send(&engine.scan(..));
            assert_send(&crate::verify(&ATLLConfig::default(), &Env::default()));
            assert_send(&engine.put("k", "v"));
            assert_send(&engine.delete(b"k"));
            assert_send(&engine.write(WriteBatch::default(), WriteOptions::default()));
            assert_send(&engine.get(b"k"));
            assert_send(&engine.multi_get(&["k"]));
            assert_send(&engine.iter_range(b"", b""));
            assert_send(&engine.scan(..).next());
            assert_send(&engine.scan(..).next_chunk(3));
            assert_send(&engine.flush());
            assert_send(&engine.compact_range(.., CompactionMode::Full));
            assert_send(&engine.wait_idle());
            assert_send(&engine.sync());
            assert_send(&engine.verify());
            assert_send(&engine.checkpoint("x"));
            assert_send(&engine.shutdown());
            assert_send(&engine.snapshot().get(b"k"));
        }
        let _: fn(&LsmEngine) = check;
    }

    /// A shutdown cancels flushes, and then wants one itself: it may come while a cancelled one has not ended.
    #[cfg(feature = "sim")]
    #[tokio::test(start_paused = true)]
    async fn who_asks_for_a_flush_while_a_cancelled_one_ends_gets_it() {
        use crate::actors::flusher;
        use crate::env::sim::{SimFs, VirtualClock, sim_env};
        let env = sim_env(&SimFs::new(1), VirtualClock::default());
        let engine = LsmEngine::open_in(ATLLConfig::default(), env).await.unwrap();
        engine.put("key", "value").await.unwrap();
        let shared = Arc::clone(&engine.inner.shared);
        assert!(!shared.flushing.swap(true, Ordering::AcqRel), "nothing else is flushed");
        let flush = tokio::spawn(async move { engine.flush().await });
        while shared.views.load().sealed.is_empty() {
            tokio::task::yield_now().await;
        }
        // All messages are heard before a timer fires.
        tokio::time::sleep(Duration::from_millis(1)).await;
        shared.flushing.store(false, Ordering::Release);
        shared.routes.flusher.ring(flusher::Msg::Done(Err(Error::Closed)));
        let flushed = tokio::time::timeout(Duration::from_secs(60), flush).await;
        assert!(flushed.unwrap().unwrap().is_ok());
    }
}
