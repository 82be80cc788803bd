//! What all components share: it outlives each of them, so whoever dies leaves nothing behind but this.

use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use super::busy::BusyBoard;
use super::health::{HealthBoard, HealthState};
use super::manifest_keeper::Desk;
use super::routes::{Route, Routes};
use super::scrubber::Scrub;
use super::{compactor, manifest_keeper, memtable_owner, scheduler, wal_writer};
use crate::commit::{Commits, Gate, Valve};
use crate::config::ATLLConfig;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::jobs::Cancel;
use crate::jobs::pace::Pace;
use crate::ledger::MemoryLedger;
use crate::memtable::Memtable;
use crate::observe::EngineMetrics;
use crate::policy::pressure::{Admitted, Backlog, admitted, pressure};
use crate::quarantine::Quarantine;
use crate::snapshots::Snapshots;
use crate::stats::{Pressure, Totals};
use crate::storage::manifest::ManifestLog;
use crate::storage::store::Store;
use crate::storage::table::Table;
use crate::types::{FileId, Level, SeqNo, u64_of};
use crate::version::{EditOp, Version};
use crate::view::Views;

/// Rate at which memtables are taken to drain before the first flush has been measured, in bytes per second.
const FIRST_DRAIN: u64 = 64 << 20;

/// Failures of a flush that a shutdown sits out.
const PATIENCE: u64 = 3;

/// What all components share.
pub(crate) struct Shared {
    pub(crate) config: ATLLConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) views: Arc<Views>,
    pub(crate) commits: Arc<Commits>,
    pub(crate) gate: Gate,
    pub(crate) snapshots: Snapshots,
    pub(crate) routes: Arc<Routes>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) totals: Totals,
    pub(crate) health: Arc<HealthBoard>,
    /// Tables that compactions leave alone.
    pub(crate) quarantine: Arc<Quarantine>,
    pub(crate) busy: Arc<BusyBoard>,
    pub(crate) desk: Desk,
    /// Tables of edits that failed: the manifest may name them all the same, until the next edit decides.
    unnamed: Mutex<Vec<FileId>>,
    /// Tables that no version names, until their last reader is gone.
    pub(crate) garbage: Mutex<Vec<Garbage>>,
    /// Flushed memtables, until their last reader is gone: to free one takes long, so nobody does it in passing.
    pub(crate) retired: Mutex<Vec<Arc<Memtable>>>,
    /// Whether dead tables are being deleted right now.
    pub(crate) sweeping: AtomicBool,
    /// Floor below which the log collector has looked for dead segments.
    pub(crate) collected: AtomicU64,
    /// Told whenever something changed that somebody may wait for.
    pub(crate) changed: Arc<Notify>,
    pub(crate) cancel: Cancel,
    /// How fast compactions may write, if there is a limit.
    pub(crate) pace: Option<Arc<Pace>>,
    /// Counts published versions.
    pub(crate) generation: AtomicU64,
    /// The generation for which the scheduler found nothing to do.
    pub(crate) settled: AtomicU64,
    /// Bytes that compaction has yet to move, as the scheduler saw it last.
    pub(crate) debt: AtomicU64,
    /// Measured rate at which memtables drain, in bytes per second.
    pub(crate) drain: AtomicU64,
    /// Held by the one flush that runs.
    pub(crate) flushing: AtomicBool,
    /// Flushes that failed, and the last error.
    pub(crate) flush_failures: Mutex<(u64, Option<Error>)>,
    /// When a sync is due for writes with [`Durability::Batch`](crate::Durability::Batch), in microseconds of the monotonic
    /// clock; `u64::MAX`: none is.
    pub(crate) sync_due: AtomicU64,
    /// How far the scrubber has come.
    pub(crate) scrub: Mutex<Scrub>,
    pub(crate) pressure: watch::Sender<Pressure>,
    #[cfg(feature = "chaos")]
    pub(crate) chaos: super::chaos::Strikes,
    /// Kept until the last component and the last job are gone: nobody else may open the directory before.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

/// A table that died.
#[derive(Debug)]
pub(crate) struct Garbage {
    pub(crate) path: PathBuf,
    /// Size of its file; 0 if no version ever named it: nobody can hold it then.
    pub(crate) bytes: u64,
    /// Readers that still hold it.
    pub(crate) table: Weak<Table>,
    /// The disk refused to delete it: every sweep tries again, but nobody waits for that.
    pub(crate) refused: bool,
}

/// Makes the operations of an edit out of the version that it applies to; `None` if there is nothing to change any more.
pub(crate) type Change = Box<dyn FnOnce(&Version) -> Option<Vec<EditOp>> + Send>;

/// What an engine is built from.
pub(crate) struct SharedArgs {
    pub(crate) config: ATLLConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) views: Arc<Views>,
    pub(crate) commits: Arc<Commits>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) manifest: ManifestLog,
    pub(crate) lock: Box<dyn Any + Send + Sync>,
}

impl Shared {
    pub(crate) fn new(args: SharedArgs) -> Arc<Self> {
        let SharedArgs { config, store, views, commits, routes, manifest, lock } = args;
        let changed = Arc::new(Notify::new());
        let (bell, told) = (Arc::clone(&routes), Arc::clone(&changed));
        let on_free = move || {
            bell.scheduler.ring(scheduler::Msg::Wake);
            told.notify_waiters();
        };
        let health = Arc::new(HealthBoard::new());
        let (board, bell) = (Arc::clone(&health), Arc::clone(&routes));
        let on_change = move |damaged| {
            board.damaged(damaged);
            bell.scheduler.ring(scheduler::Msg::Wake);
        };
        let quarantine =
            Quarantine::new(Arc::clone(&store), Arc::clone(&views), config.node_id, on_change);
        let rate = config.io.rate_limit_mb_s.map(|megabytes| megabytes * 1_000_000);
        Arc::new(Self {
            metrics: EngineMetrics::new(&*store.env().meter),
            config,
            store,
            views,
            commits,
            gate: Gate::default(),
            snapshots: Snapshots::default(),
            #[cfg(feature = "chaos")]
            chaos: super::chaos::Strikes::new(Arc::clone(&routes)),
            routes,
            totals: Totals::default(),
            health,
            quarantine,
            busy: BusyBoard::new(on_free),
            desk: Desk::new(manifest),
            unnamed: Mutex::default(),
            garbage: Mutex::default(),
            retired: Mutex::default(),
            sweeping: AtomicBool::new(false),
            collected: AtomicU64::new(0),
            changed,
            cancel: Cancel::default(),
            pace: rate.map(|rate| Arc::new(Pace::new(rate))),
            generation: AtomicU64::new(1),
            settled: AtomicU64::new(0),
            debt: AtomicU64::new(0),
            drain: AtomicU64::new(FIRST_DRAIN),
            flushing: AtomicBool::new(false),
            flush_failures: Mutex::default(),
            sync_due: AtomicU64::new(u64::MAX),
            scrub: Mutex::default(),
            pressure: watch::Sender::new(Pressure { value: 0.0, cause: "nothing" }),
            lock: Mutex::new(Some(lock)),
        })
    }

    pub(crate) fn env(&self) -> &Env {
        self.store.env()
    }

    pub(crate) fn now(&self) -> Duration {
        self.env().clock.now()
    }

    /// The compactor of a level. None while it is down: it would give the work back at once, to be planned again at once. The root
    /// tells when it is up.
    pub(crate) fn compactor(&self, level: Level) -> Option<&Route<compactor::Msg>> {
        self.routes.compactors.get(level.index()).filter(|route| route.is_up())
    }

    /// What compaction reads old versions for, and flushes too.
    pub(crate) fn live_snapshots(&self) -> Vec<SeqNo> {
        self.snapshots.live()
    }

    /// Changes the version. `flushed`: what the change moves out of the memtables.
    ///
    /// Returns whether the change was made: `false` if it was found to be of no use.
    ///
    /// # Errors
    /// Those of the file system: the change was not made. [`Error::Interrupted`]: it may have been.
    pub(crate) async fn install(
        &self,
        change: Change,
        flushed: Option<manifest_keeper::Flushed>,
    ) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        let install = manifest_keeper::Msg::Install { change, flushed, reply };
        let interrupted = Error::Interrupted { component: "manifest keeper" };
        if self.routes.manifest_keeper.send(install).is_err() {
            return Err(interrupted);
        }
        answer.await.unwrap_or(Err(interrupted))
    }

    /// Like [`install`](Self::install), for a change that names `tables`: those that do not get into the version are deleted, at
    /// once or, where the manifest may name them all the same, when the next edit has decided.
    ///
    /// # Errors
    /// As for [`install`](Self::install).
    pub(crate) async fn install_tables(
        &self,
        tables: Vec<FileId>,
        change: Change,
        flushed: Option<manifest_keeper::Flushed>,
    ) -> Result<bool> {
        let installed = self.install(change, flushed).await;
        match &installed {
            Ok(true) => {}
            Ok(false) => self.discard(tables),
            Err(_) => {
                self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).extend(tables);
            }
        }
        installed
    }

    /// Flushes everything that is in memtables now, and waits until it is in tables.
    ///
    /// `insist`: goes on through failures until nothing is left or a component is down; else the first failure ends it.
    ///
    /// # Errors
    /// Why a flush failed, or why the engine is read-only.
    pub(crate) async fn flush(&self, insist: bool) -> Result<()> {
        let view = self.views.load_full();
        let newest = if view.active.is_empty() { view.sealed.first() } else { Some(&view.active) };
        let Some(target) = newest.map(|memtable| memtable.segment()) else { return Ok(()) };
        drop(view);
        let (failures, _) = *self.flush_failures();
        // The wish stands in the core, where whoever is started next finds it.
        self.commits.lease().await.want_seal();
        self.routes.memtable_owner.ring(memtable_owner::Msg::Look);
        if self.commits.is_faulty() {
            self.routes.wal_writer.ring(wal_writer::Msg::Heal);
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.views.load().version().log_floor > target {
                return Ok(());
            }
            if let HealthState::ReadOnly { reason } = self.health.now().state {
                return Err(Error::Unavailable { component: "flush", reason });
            }
            if !self.routes.root.is_up() {
                return Err(self.commits.refusal().unwrap_or(Error::Closed));
            }
            let (now, error) = self.flush_failures().clone();
            match error.filter(|_| now > failures + if insist { PATIENCE } else { 0 }) {
                Some(error) => return Err(error),
                None => changed.await,
            }
        }
    }

    /// Waits until no job runs. REQUIRES: nobody starts one any more.
    pub(crate) async fn jobs_ended(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.busy.len() == 0 && !self.flushing.load(Ordering::Acquire) {
                return;
            }
            changed.await;
        }
    }

    /// Lets others open the directory.
    pub(crate) fn unlock(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Tells everyone who waits for a change.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Measures the pressure anew and sets the gate.
    pub(crate) fn refresh_pressure(&self) {
        let view = self.views.load_full();
        let backlog = Backlog {
            memtable_bytes: u64_of(view.memtable_bytes()),
            l0_runs: view.version().l0_runs().len(),
            debt: self.debt.load(Ordering::Relaxed),
        };
        let found = pressure(&self.config, backlog);
        let drain = self.drain.load(Ordering::Relaxed).max(1 << 20);
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let valve = match admitted(found.value, drain as f64) {
            Admitted::Free => Valve::Open,
            Admitted::Rate(bytes_per_s) => Valve::Slow { bytes_per_s },
            Admitted::Wait => Valve::Shut { cause: found.cause },
        };
        self.gate.set(valve);
        if self.commits.refusal().is_some() {
            // What is refused need not wait for that. Looked at after the gate is set: a refusal that comes later looks itself.
            self.gate.set(Valve::Open);
        }
        let pressure = Pressure { value: found.value, cause: found.cause };
        self.pressure.send_if_modified(|known| {
            let changed = *known != pressure;
            *known = pressure;
            changed
        });
        self.show_gauges(&view);
        self.notify();
    }

    fn show_gauges(&self, view: &crate::view::View) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.memtable_bytes.set(gauge(view.memtable_bytes()));
        self.metrics.sealed_memtables.set(gauge(view.sealed.len()));
        self.metrics.l0_runs.set(gauge(view.version().l0_runs().len()));
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 100")]
        let percent = (self.pressure.borrow().value * 100.0) as i64;
        self.metrics.pressure_percent.set(percent);
    }

    /// Takes a measured flush into the drain rate.
    pub(crate) fn drained(&self, bytes: u64, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = bytes.saturating_mul(1000) / millis;
        let known = self.drain.load(Ordering::Relaxed);
        self.drain.store((known * 7 + rate * 3) / 10, Ordering::Relaxed);
    }

    /// Whether no component has anything left to do.
    pub(crate) fn is_idle(&self) -> bool {
        let view = self.views.load();
        view.sealed.is_empty()
            && self.busy.len() == 0
            && !self.flushing.load(Ordering::Acquire)
            && self.settled.load(Ordering::Acquire) == self.generation.load(Ordering::Acquire)
            && !self.has_free_garbage()
            && !self.sweeping.load(Ordering::Acquire)
            && self.collected.load(Ordering::Acquire) >= view.version().log_floor.0
    }

    /// Where the memory is.
    pub(crate) fn memory(&self) -> MemoryLedger {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let retired = retired.iter().map(|memtable| u64_of(memtable.memory())).sum();
        let view = self.views.load_full();
        let cache = self.store.cache();
        let memtables = u64_of(self.config.resources.memtables_mib) << 20;
        MemoryLedger {
            active_memtable: u64_of(view.active.memory()),
            sealed_memtables: view.sealed.iter().map(|memtable| u64_of(memtable.memory())).sum(),
            retired_memtables: retired,
            spare_memtables: self.commits.spare().bytes(),
            queued_writes: self.commits.queued_bytes(),
            block_cache: cache.blocks().bytes(),
            indexes_and_filters: cache.pinned_bytes(),
            buffers: cache.buffers().bytes(),
            budget: memtables + cache.max_bytes(),
            waiting_writes: self.commits.waiting_bytes() + self.gate.waiting_bytes(),
            ..MemoryLedger::default()
        }
        .summed()
    }

    /// Keeps a flushed memtable until a sweep finds it unread.
    pub(crate) fn retire(&self, memtable: Arc<Memtable>) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(memtable);
    }

    /// Retired memtables that nobody reads any more.
    pub(crate) fn unread_memtables(&self) -> Vec<Arc<Memtable>> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.extract_if(.., |memtable| Arc::strong_count(memtable) == 1).collect()
    }

    /// Whether a sweep would find something: a dead table or a flushed memtable that nobody reads any more.
    pub(crate) fn has_free_garbage(&self) -> bool {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.iter().any(|memtable| Arc::strong_count(memtable) == 1)
            || self.garbage().iter().any(|dead| !dead.refused && dead.table.strong_count() == 0)
    }

    pub(crate) fn garbage(&self) -> MutexGuard<'_, Vec<Garbage>> {
        self.garbage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn flush_failures(&self) -> MutexGuard<'_, (u64, Option<Error>)> {
        self.flush_failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait for a flush that this try came to nothing.
    pub(crate) fn flush_failed(&self, error: Error) {
        let mut failures = self.flush_failures();
        failures.0 += 1;
        failures.1 = Some(error);
        drop(failures);
        self.notify();
    }

    pub(crate) fn unnamed(&self) -> Vec<FileId> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn forget_unnamed(&self, decided: &[FileId]) {
        let mut unnamed = self.unnamed.lock().unwrap_or_else(PoisonError::into_inner);
        unnamed.retain(|table| !decided.contains(table));
    }

    /// Has tables deleted that no version ever named.
    pub(crate) fn discard(&self, tables: Vec<FileId>) {
        if tables.is_empty() {
            return;
        }
        let mut garbage = self.garbage();
        for path in tables.into_iter().map(|id| self.store.layout().table(id)) {
            if !garbage.iter().any(|dead| dead.path == path) {
                garbage.push(Garbage { path, table: Weak::new(), bytes: 0, refused: false });
            }
        }
        drop(garbage);
        self.routes.manifest_keeper.ring(manifest_keeper::Msg::Sweep);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).finish_non_exhaustive()
    }
}
