//! The manifest keeper: the only one that changes the version. Append, sync, publish, then let go of what died.
//!
//! Hears: `Install` from flusher, compactors and scheduler; `Sweep` from whoever wants dead files gone.
//! Rings: memtable owner, log collector, scheduler. Loses on restart: nothing; an edit whose record may or may not be on disk
//! is decided by the new manifest that the next edit begins.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::health::Trouble;
use super::shared::{Change, Garbage, Shared};
use super::{memtable_owner, scheduler, wal_gc};
use crate::error::{Error, Result};
use crate::observe::VizEvent;
use crate::storage::Table;
use crate::storage::manifest::ManifestLog;
use crate::types::{FileId, SeqNo};
use crate::version::{EditOp, Version, VersionEdit};
use crate::view::Tree;

pub(crate) enum Msg {
    /// Change the version.
    Install { change: Change, flushed: Option<Flushed>, reply: oneshot::Sender<Result<bool>> },
    /// Delete dead tables that nobody reads any more.
    Sweep,
}

impl std::fmt::Debug for Msg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Install { .. } => "Install",
            Self::Sweep => "Sweep",
        })
    }
}

/// A memtable that an edit moves into tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flushed {
    /// Its log segment.
    pub(crate) segment: FileId,
    /// Its last write.
    pub(crate) last_seq: SeqNo,
}

/// The manifest, and which edits it holds. Held locked while it is written, so one job after the other touches it.
///
/// A keeper may die while its job writes: the record gets to the disk, but nobody publishes it. So whoever begins an edit takes
/// a ticket. A job with an old ticket is of a keeper that is gone, and does nothing; and if the last record was not published,
/// the next edit begins a new manifest, whose snapshot leaves it out.
#[derive(Debug)]
pub(crate) struct Desk {
    /// `None` if what it holds is unknown.
    log: Mutex<(Option<ManifestLog>, Ticket)>,
    /// The ticket of the last edit that was begun.
    begun: AtomicU64,
    /// That of the last edit that was published.
    published: AtomicU64,
}

type Ticket = u64;

impl Desk {
    /// `log`: holds what is published.
    pub(crate) fn new(log: ManifestLog) -> Self {
        Self {
            log: Mutex::new((Some(log), 0)),
            begun: AtomicU64::new(0),
            published: AtomicU64::new(0),
        }
    }

    /// Whoever wrote before is out of it from now on.
    fn begin(&self) -> Ticket {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Waits until nobody writes, and lets nobody begin who did not take a ticket after this. Blocks.
    pub(crate) fn close(&self) {
        self.begin();
        drop(self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The record of `ticket` was written and published.
    fn published(&self, ticket: Ticket) {
        self.published.store(ticket, Ordering::Release);
    }

    /// Lets `write` change the manifest, or begin another; it gets `None` if what the manifest holds is unknown. Blocks.
    ///
    /// # Errors
    /// Those of `write`: what the manifest holds is unknown then. [`Error::Interrupted`] if another edit was begun.
    fn write(
        &self,
        ticket: Ticket,
        write: impl FnOnce(Option<ManifestLog>) -> Result<ManifestLog>,
    ) -> Result<()> {
        let mut desk = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if self.begun.load(Ordering::Acquire) != ticket {
            return Err(Error::Interrupted { component: "manifest keeper" });
        }
        let (log, holds) = (desk.0.take(), desk.1);
        let known = holds == self.published.load(Ordering::Acquire);
        // Not put back until it is known what is in it.
        *desk = (Some(write(log.filter(|_| known))?), ticket);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct ManifestKeeper;

impl Actor for ManifestKeeper {
    type Msg = Msg;
    type State = Arc<Shared>;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<Arc<Shared>, ActorProcessingErr> {
        shared.routes.manifest_keeper.set(myself.clone());
        myself.cast(Msg::Sweep)?;
        Ok(shared)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Msg>,
        message: Msg,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        shared.chaos.strike(super::Component::ManifestKeeper)?;
        match message {
            Msg::Install { change, flushed, reply } => {
                let installed = install(shared, change, flushed).await;
                match &installed {
                    Ok(_) => shared.health.works(Trouble::Manifest),
                    Err(error) => shared.health.failing(Trouble::Manifest, error, shared.now()),
                }
                // Whoever asked may be gone; the change is made all the same.
                drop(reply.send(installed));
            }
            Msg::Sweep => {}
        }
        sweep(shared).await;
        shared.notify();
        Ok(())
    }
}

async fn install(shared: &Arc<Shared>, change: Change, flushed: Option<Flushed>) -> Result<bool> {
    let view = shared.views.load_full();
    let version = Arc::clone(view.version());
    let Some(ops) = change(&version) else { return Ok(false) };
    let edit = VersionEdit {
        ops,
        next_file: shared.store.next_file(),
        last_seq: flushed.map_or(SeqNo(0), |flushed| flushed.last_seq),
        log_floor: flushed.map_or(FileId(0), |flushed| floor_after(&view, flushed.segment)),
    };
    let next = version.apply(&edit).map_err(|misfit| {
        tracing::error!(?misfit, "an edit does not fit the version");
        Error::Interrupted { component: "manifest keeper" }
    })?;
    debug_assert_eq!(next.check(), Ok(()), "every edit keeps the invariants");
    let events = edit.ops.clone();
    let unnamed = shared.unnamed();
    let ticket = shared.desk.begin();
    write(shared, ticket, Arc::clone(&version), edit).await?;
    let added = publish(shared, Arc::new(next));
    shared.desk.published(ticket);
    // The manifest says for certain now that it does not name them. Those that the version named before were not unnamed: an
    // edit whose keeper dies behind the publication fails for who asked for it, but is made.
    shared.forget_unnamed(&unnamed);
    shared.discard(unnamed.into_iter().filter(|id| !version.tables.contains_key(id)).collect());
    let store = Arc::clone(&shared.store);
    let opening = move || {
        added.iter().for_each(|table| store.open_table(table));
        Ok(())
    };
    if let Err(error) = shared.env().on_disk(opening).await {
        tracing::debug!(%error, "new tables are opened by their first readers");
    }
    emit_guards(shared, &events);
    Ok(true)
}

/// The first log segment that is needed once the memtable of `segment` is in tables.
fn floor_after(view: &crate::view::View, segment: FileId) -> FileId {
    let newer = view.sealed.iter().map(|memtable| memtable.segment()).filter(|id| *id > segment);
    newer.min().unwrap_or_else(|| view.active.segment())
}

/// Makes the edit durable: in the open manifest, or in a new one if that fails or has grown too large.
async fn write(
    shared: &Arc<Shared>,
    ticket: Ticket,
    version: Arc<Version>,
    edit: VersionEdit,
) -> Result<()> {
    let job = Arc::clone(shared);
    let written = move || {
        job.desk.write(ticket, |log| {
            let mut log = match log {
                Some(log) if !log.wants_roll() => log,
                Some(_) | None => begin(&job, &version)?,
            };
            if let Err(error) = log.append(&edit) {
                tracing::warn!(%error, "the manifest took no edit; beginning a new one");
                log = begin(&job, &version)?;
                log.append(&edit)?;
            }
            Ok(log)
        })
    };
    shared.env().on_disk(written).await
}

/// Begins a manifest that holds one record: `version` as it is. Blocks.
pub(crate) fn record(shared: &Shared, version: &Version) -> Result<()> {
    let ticket = shared.desk.begin();
    shared.desk.write(ticket, |_| begin(shared, version))?;
    shared.desk.published(ticket);
    Ok(())
}

/// Begins a new manifest with `version`, which decides about every edit that came after it.
fn begin(shared: &Shared, version: &Version) -> Result<ManifestLog> {
    let fs = &*shared.env().fs;
    let id = shared.store.new_id();
    let log = ManifestLog::create(fs, shared.store.layout(), id, version)?;
    for old in shared.store.layout().list(fs, crate::storage::layout::FileKind::Manifest)? {
        if old.id.is_some_and(|old| old < id) && shared.store.remove(&old.path).is_err() {
            tracing::debug!(path = %old.path.display(), "left an old manifest behind");
        }
    }
    Ok(log)
}

/// Publishes a version, and tells everyone. Returns the tables that are new in it.
pub(super) fn publish(shared: &Arc<Shared>, version: Arc<Version>) -> Vec<Arc<Table>> {
    let view = shared.views.load_full();
    let before = Arc::clone(&view.tree);
    let tree = Arc::new(Tree::new(version, Some(&before), &shared.store));
    shared.views.update(|view| view.with_tree(Arc::clone(&tree)));
    shared.quarantine.refresh();
    let flushed = view.sealed.iter().filter(|m| m.segment() < tree.version.log_floor);
    flushed.for_each(|memtable| shared.commits.free_room(memtable));
    drop(view);
    let mut garbage = shared.garbage();
    let dead = before.tables().iter().filter(|(id, _)| !tree.tables().contains_key(id));
    garbage.extend(dead.map(|(id, table)| Garbage {
        path: shared.store.layout().table(*id),
        bytes: table.meta().file_bytes,
        table: Arc::downgrade(table),
        refused: false,
    }));
    drop(garbage);
    let new = tree.tables().iter().filter(|(id, _)| !before.tables().contains_key(id));
    let added = new.map(|(_, table)| Arc::clone(table)).collect();
    drop(before);
    shared.generation.fetch_add(1, Ordering::AcqRel);
    shared.refresh_pressure();
    shared.routes.memtable_owner.ring(memtable_owner::Msg::Look);
    shared.routes.wal_gc.ring(wal_gc::Msg::Work);
    shared.routes.scheduler.ring(scheduler::Msg::Wake);
    added
}

fn emit_guards(shared: &Shared, ops: &[EditOp]) {
    let node = shared.config.node_id;
    for op in ops {
        let (level, key, added) = match op {
            EditOp::AddGuard { level, key } => (*level, key.to_vec(), true),
            EditOp::RemoveGuard { level, key } => (*level, key.to_vec(), false),
            _ => continue,
        };
        shared.store.emit(VizEvent::Guard { node, level, key, added });
    }
}

/// Deletes dead tables that nobody reads any more; the others wait for the next sweep.
pub(super) async fn sweep(shared: &Arc<Shared>) {
    shared.sweeping.store(true, Ordering::Release);
    let free = take_free(shared);
    remove(shared, free).await;
    shared.sweeping.store(false, Ordering::Release);
}

async fn remove(shared: &Arc<Shared>, free: Vec<Garbage>) {
    let unread = shared.unread_memtables();
    if free.is_empty() && unread.is_empty() {
        return;
    }
    let store = Arc::clone(&shared.store);
    let removal = move || {
        drop(unread);
        let left = free.into_iter().filter(|dead| store.remove(&dead.path).is_err());
        Ok(left.map(|dead| Garbage { refused: true, ..dead }).collect::<Vec<_>>())
    };
    match shared.env().on_disk(removal).await {
        Ok(failed) => shared.garbage().extend(failed),
        Err(error) => tracing::debug!(%error, "dead tables stay until the next open"),
    }
}

fn take_free(shared: &Shared) -> Vec<Garbage> {
    let mut garbage = shared.garbage();
    let all = std::mem::take(&mut *garbage);
    let (pinned, free) = all.into_iter().partition(|dead| dead.table.strong_count() > 0);
    *garbage = pinned;
    free
}
