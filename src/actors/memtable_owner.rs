//! The memtable owner: seals memtables by size and by age, and keeps the next log segment prepared.
//!
//! Hears: `Look` when a memtable was sealed, is due, or somebody wants it sealed; `Tick` from its timer.
//! Rings: the flusher. Owns nothing: memtables live in the View. Loses on restart: since when the active memtable is not empty.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::flusher;
use super::health::Trouble;
use super::shared::Shared;
use super::timer::{Timer, send_after};
use crate::error::Result;
use crate::storage::log_segment::LogSegment;
use crate::types::FileId;

/// Wait before the next try to prepare a segment on a disk that refuses.
const RETRY_AFTER: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) enum Msg {
    /// A memtable was sealed, or is due to be.
    Look,
    /// Look at its age.
    Tick,
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    /// Memtable that was not empty at the last tick, and since when that is known.
    aging: Option<(FileId, Duration)>,
    timer: Timer,
    retry: Option<Timer>,
}

#[derive(Debug)]
pub(crate) struct MemtableOwner;

impl Actor for MemtableOwner {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.memtable_owner.set(myself.clone());
        myself.cast(Msg::Look)?;
        let timer = send_after(shared.env(), tick(&shared), &myself, Msg::Tick);
        Ok(State { shared, aging: None, timer, retry: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::MemtableOwner)?;
        match message {
            Msg::Look => {}
            Msg::Tick => {
                state.timer =
                    send_after(state.shared.env(), tick(&state.shared), &myself, Msg::Tick);
                let is_old = is_too_old(state);
                if is_old || state.shared.views.load().active.is_empty() {
                    state.shared.commits.spare().clear(); // who writes so little needs none
                }
                if !is_old {
                    return Ok(());
                }
                state.shared.commits.lease().await.want_seal();
            }
        }
        look(state, &myself).await;
        Ok(())
    }
}

/// Time between two looks at the age.
fn tick(shared: &Shared) -> Duration {
    Duration::from_secs(shared.config.memtable.wal_age_trigger_sec) / 8
}

/// Whether the active memtable has held something for as long as it may.
fn is_too_old(state: &mut State) -> bool {
    let view = state.shared.views.load();
    let now = state.shared.now();
    if view.active.is_empty() {
        state.aging = None;
        return false;
    }
    let segment = view.active.segment();
    let since = match state.aging {
        Some((aging, since)) if aging == segment => since,
        _ => now,
    };
    state.aging = Some((segment, since));
    let limit = Duration::from_secs(state.shared.config.memtable.wal_age_trigger_sec);
    // A tick early rather than a tick late.
    now.saturating_sub(since) + tick(&state.shared) >= limit
}

/// Prepares a segment if there is none, seals what is due, and rings the flusher if anything is sealed.
async fn look(state: &mut State, myself: &ActorRef<Msg>) {
    let shared = Arc::clone(&state.shared);
    state.retry = None;
    if shared.commits.is_crowded() && shared.views.load().sealed.is_empty() {
        // Nothing is on its way into tables, so nothing else would make room.
        shared.commits.lease().await.want_seal();
    }
    match prepare(&shared).await {
        Ok(()) => {
            shared.health.works(Trouble::NextSegment);
            // From here on bells ring again; what they were silent about shows in the core and below.
            shared.commits.seal_heard();
            drop(shared.commits.lease().await);
        }
        // Bells stay silent until the next try, or they would ring for what cannot be helped.
        Err(error) => {
            shared.health.failing(Trouble::NextSegment, &error, shared.now());
            if shared.commits.lease().await.is_seal_due() {
                shared.flush_failed(error);
            }
            state.retry = Some(send_after(shared.env(), RETRY_AFTER, myself, Msg::Look));
        }
    }
    if !shared.views.load().sealed.is_empty() {
        shared.routes.flusher.ring(flusher::Msg::Work);
    }
    shared.refresh_pressure();
}

/// Leaves the commit core with a prepared segment, and sealed if that was due.
async fn prepare(shared: &Arc<Shared>) -> Result<()> {
    loop {
        let mut lease = shared.commits.lease().await;
        lease.seal_if_due();
        let orphans = lease.take_orphans();
        let (failed, ready) = (lease.take_seal_error(), !lease.needs_spare());
        drop(lease);
        remove(shared, orphans).await;
        if let Some(error) = failed {
            return Err(error);
        }
        if ready {
            return Ok(());
        }
        let store = Arc::clone(&shared.store);
        let spare = shared.env().on_disk(move || store.create_segment()).await?;
        let unwanted = shared.commits.lease().await.install_spare(spare);
        remove(shared, unwanted.iter().map(LogSegment::id).collect()).await;
    }
}

/// Removes segments that came to nothing. One that stays behind does no harm: the next open removes it.
async fn remove(shared: &Arc<Shared>, segments: Vec<FileId>) {
    if segments.is_empty() {
        return;
    }
    let store = Arc::clone(&shared.store);
    let removal = move || {
        let paths = segments.into_iter().map(|id| store.layout().wal(id));
        Ok(paths.filter(|path| store.remove(path).is_err()).count())
    };
    if shared.env().on_disk(removal).await.unwrap_or(1) > 0 {
        tracing::debug!("left an empty log segment behind");
    }
}
