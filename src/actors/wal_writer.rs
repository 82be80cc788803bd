//! The WAL writer: commits in groups what queued up while the commit core was in other hands, syncs the log, heals it.
//!
//! Hears: `Wake` from writers that found the core taken · `Sync` from the handle and its own timer.
//! Owns nothing: core and queue live in [`Commits`](crate::commit::Commits). Loses on restart: a timer, which it sets again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::health::Trouble;
use super::shared::Shared;
use super::timer::{Timer, send_after};
use crate::commit::Lease;
use crate::error::Result;
use crate::observe::{VizEvent, WalKind};
use crate::types::SeqNo;

/// Groups committed before other tasks get their turn.
const ROUNDS: usize = 8;
/// Groups committed before other messages get theirs.
const TURN: usize = 64;
/// Wait before a faulty log is tried again while nobody writes.
const HEAL_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) enum Msg {
    /// The queue is not empty.
    Wake,
    /// Make everything written so far durable, and say up to where.
    Sync(Option<oneshot::Sender<Result<SeqNo>>>),
    /// Make everything durable when that is due.
    SyncSoon,
    /// Try a faulty log again.
    Heal,
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    sync_timer: Option<Timer>,
    heal_timer: Option<Timer>,
}

#[derive(Debug)]
pub(crate) struct WalWriter;

impl Actor for WalWriter {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.wal_writer.set(myself.clone());
        // Bells of the one before may be lost: look.
        myself.cast(Msg::Wake)?;
        // So may a sync that was due, or had begun.
        myself.cast(Msg::Sync(None))?;
        Ok(State { shared, sync_timer: None, heal_timer: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::WalWriter)?;
        match message {
            Msg::Wake => drain(&state.shared).await?,
            Msg::Sync(reply) => sync(state, reply).await?,
            Msg::SyncSoon => {
                let (env, due) =
                    (state.shared.env(), state.shared.sync_due.load(Ordering::Acquire));
                let delay = Duration::from_micros(due).saturating_sub(state.shared.now());
                state.sync_timer = Some(send_after(env, delay, &myself, Msg::Sync(None)));
            }
            Msg::Heal => heal(&state.shared).await?,
        }
        if state.shared.commits.is_faulty() {
            state.heal_timer = Some(send_after(state.shared.env(), HEAL_AFTER, &myself, Msg::Heal));
        }
        Ok(())
    }
}

/// Commits groups until the queue is empty, or it is the turn of other messages.
async fn drain(shared: &Arc<Shared>) -> Result<()> {
    shared.commits.heard();
    // Writers that are just being woken get into the first group.
    tokio::task::yield_now().await;
    for round in 1..=TURN {
        let mut lease = shared.commits.lease().await;
        lease.distrust_half_written();
        let taken = if lease.is_idle() { lease.take_group() } else { usize::MAX };
        if taken == 0 {
            if let Some(fault) = lease.fault() {
                shared.health.failing(Trouble::Log, fault, shared.now());
            }
            lease.seal_if_due();
            drop(lease);
            if shared.commits.disarm() {
                return Ok(());
            }
            continue;
        }
        if taken == 1 && !lease.needs_sync() {
            // A lone writer goes straight to the core with its next write.
            shared.commits.disarm_early();
        }
        let synced = commit(shared, lease).await?;
        // Who was just answered may write again: in this group it waits for one sync, in the one after it for two.
        if synced || round % ROUNDS == 0 {
            tokio::task::yield_now().await;
        }
    }
    shared.commits.ring_again();
    Ok(())
}

/// Brings the group of a core to its end, whatever its phase. Returns whether it was synced.
async fn commit(shared: &Arc<Shared>, lease: Lease) -> Result<bool> {
    let mut lease = repair(shared, lease).await?;
    if let Err(error) = lease.append() {
        lease.fail(&error);
        shared.health.failing(Trouble::Log, &error, shared.now());
        return Ok(false);
    }
    let sync = lease.needs_sync();
    if sync {
        let (back, synced) = on_disk(shared, lease, |lease| lease.sync()).await?;
        lease = back;
        if let Err(error) = synced {
            lease.fail(&error);
            shared.health.failing(Trouble::Log, &error, shared.now());
            return Ok(false);
        }
    }
    lease.finish();
    lease.seal_if_due();
    Ok(sync)
}

/// Gives a faulty log segment up for a new one. A core that cannot be repaired keeps its fault, and its writes get it.
async fn repair(shared: &Arc<Shared>, lease: Lease) -> Result<Lease> {
    if lease.fault().is_none() {
        return Ok(lease);
    }
    let (lease, repaired) = on_disk(shared, lease, |lease| lease.repair()).await?;
    match repaired {
        Ok(()) => shared.health.works(Trouble::Log),
        Err(error) => {
            shared.health.failing(Trouble::Log, &error, shared.now());
            shared.flush_failed(error); // nothing is sealed while the log is faulty
        }
    }
    Ok(lease)
}

/// Runs `job` where it may wait. The lease comes back with its result; an error here means that the job panicked.
async fn on_disk(
    shared: &Arc<Shared>,
    mut lease: Lease,
    job: impl FnOnce(&mut Lease) -> Result<()> + Send + 'static,
) -> Result<(Lease, Result<()>)> {
    let run = move || {
        let done = job(&mut lease);
        Ok((lease, done))
    };
    shared.env().on_disk(run).await
}

async fn heal(shared: &Arc<Shared>) -> Result<()> {
    let lease = shared.commits.lease().await;
    let lease = if lease.is_idle() { repair(shared, lease).await? } else { lease };
    drop(lease);
    Ok(())
}

/// Makes the log durable up to where it is now, without holding up writers.
async fn sync(state: &mut State, reply: Option<oneshot::Sender<Result<SeqNo>>>) -> Result<()> {
    let shared = &state.shared;
    state.sync_timer = None;
    shared.sync_due.store(u64::MAX, Ordering::Release);
    drain(shared).await?; // what was queued before the call is part of it
    let lease = repair(shared, shared.commits.lease().await).await?;
    let (segments, up_to) = lease.to_sync();
    let fault = lease.fault().cloned();
    drop(lease);
    let synced = match fault {
        Some(fault) => Err(fault),
        None => {
            let segments = segments.clone();
            shared.env().on_disk(move || segments.iter().try_for_each(|s| s.sync())).await
        }
    };
    let mut lease = shared.commits.lease().await;
    match &synced {
        Ok(()) => lease.synced(up_to),
        Err(error) => {
            lease.give_up_segment(error);
            shared.health.failing(Trouble::Log, error, shared.now());
        }
    }
    drop(lease);
    for segment in segments.iter().filter(|segment| segment.is_synced()) {
        let kind = WalKind::Synced { bytes: segment.durable() };
        let node = shared.config.node_id;
        shared.store.emit(VizEvent::Wal { node, segment: segment.id(), kind });
    }
    if let Some(reply) = reply {
        drop(reply.send(synced.map(|()| up_to)));
    }
    Ok(())
}
