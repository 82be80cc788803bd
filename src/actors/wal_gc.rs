//! The log collector: deletes segments whose writes are all in tables.
//!
//! Hears: `Work` after each flush, `Tick` from its timer. Deletes only below the floor that the manifest records, so whatever it
//! takes, a crash right after finds everything it needs. Owns and loses nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::shared::Shared;
use super::timer::{Timer, send_after};
use crate::error::Result;
use crate::observe::{VizEvent, WalKind};
use crate::storage::layout::FileKind;
use crate::types::{FileId, u64_of};

#[derive(Debug)]
pub(crate) enum Msg {
    /// The floor may have risen.
    Work,
    /// Time for a look.
    Tick,
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    /// Floor of the last successful collection.
    collected: FileId,
    timer: Timer,
}

#[derive(Debug)]
pub(crate) struct WalGc;

impl Actor for WalGc {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.wal_gc.set(myself.clone());
        myself.cast(Msg::Work)?;
        let timer = send_after(shared.env(), interval(&shared), &myself, Msg::Tick);
        Ok(State { shared, collected: FileId(0), timer })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::WalGc)?;
        if let Msg::Tick = message {
            let delay = interval(&state.shared);
            state.timer = send_after(state.shared.env(), delay, &myself, Msg::Tick);
            let sweep = super::manifest_keeper::Msg::Sweep;
            state.shared.routes.manifest_keeper.ring(sweep);
            state.collected = FileId(0);
        }
        let floor = state.shared.views.load().version().log_floor;
        if floor > state.collected {
            match collect(&state.shared, floor).await {
                Ok(()) => state.collected = floor,
                Err(error) => tracing::warn!(%error, "dead log segments stay until the next look"),
            }
            state.shared.collected.store(floor.0, Ordering::Release);
            state.shared.notify();
        }
        Ok(())
    }
}

fn interval(shared: &Shared) -> Duration {
    Duration::from_secs(shared.config.wal.gc_interval_sec)
}

async fn collect(shared: &Arc<Shared>, floor: FileId) -> Result<()> {
    let start = shared.now();
    shared.commits.lease().await.forget_below(floor);
    let store = Arc::clone(&shared.store);
    let collection = move || {
        let mut deleted = Vec::new();
        let segments = store.layout().list(&*store.env().fs, FileKind::Wal)?;
        let count = segments.len();
        for segment in segments {
            let Some(id) = segment.id.filter(|id| *id < floor) else { continue };
            store.remove_segment(id)?;
            deleted.push(id);
        }
        Ok((count - deleted.len(), deleted))
    };
    let (left, deleted) = shared.env().on_disk(collection).await?;
    let took = shared.now().saturating_sub(start);
    shared.metrics.wal_gc_latency_ms.observe(took.as_secs_f64() * 1e3);
    shared.metrics.wal_segments_deleted.inc(u64_of(deleted.len()));
    shared.metrics.wal_segment_count.set(i64::try_from(left).unwrap_or(i64::MAX));
    shared.totals.segments_deleted(u64_of(deleted.len()));
    let node = shared.config.node_id;
    for segment in deleted {
        shared.store.emit(VizEvent::Wal { node, segment, kind: WalKind::Deleted });
    }
    Ok(())
}
