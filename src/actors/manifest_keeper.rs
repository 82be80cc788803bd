//! The manifest keeper: the only one that changes the version. Append, sync, publish, then let go of what died.
//!
//! Hears: `Install` from flusher, compactors and scheduler; `Sweep` from whoever wants dead files gone.
//! Rings: memtable owner, log collector, scheduler. Loses on restart: nothing; an edit whose record may or may not be on disk
//! is decided by the new manifest that the next edit begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    // Back in its place only with what it holds published: a keeper that dies before leaves none, and the next begins a new one.
    let log = write(shared, version, edit).await?;
    *shared.manifest() = Some(log);
    let added = publish(shared, Arc::new(next));
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
    version: Arc<Version>,
    edit: VersionEdit,
) -> Result<ManifestLog> {
    let job = Arc::clone(shared);
    let written = move || {
        let shared = job;
        // One at a time, also if the keeper that began this dies meanwhile.
        let _writing = shared.writing_manifest();
        let log = shared.manifest().take();
        let mut log = match log {
            Some(log) if !log.wants_roll() => log,
            Some(_) | None => begin(&shared, &version)?,
        };
        if let Err(error) = log.append(&edit) {
            tracing::warn!(%error, "the manifest took no edit; beginning a new one");
            log = begin(&shared, &version)?;
            log.append(&edit)?;
        }
        Ok(log)
    };
    shared.env().on_disk(written).await
}

/// Begins a new manifest with `version`, which decides about every edit that came after it.
pub(crate) fn begin(shared: &Shared, version: &Version) -> Result<ManifestLog> {
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
fn publish(shared: &Arc<Shared>, version: Arc<Version>) -> Vec<Arc<Table>> {
    let view = shared.views.load_full();
    let before = Arc::clone(&view.tree);
    let tree = Arc::new(Tree::new(version, Some(&before), &shared.store));
    shared.views.update(|view| view.with_tree(Arc::clone(&tree)));
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
async fn sweep(shared: &Arc<Shared>) {
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
