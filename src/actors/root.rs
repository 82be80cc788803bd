//! The root: starts the components, starts them again when they die, and stops them in order. It touches the disk only at the end, to
//! record the last version.
//!
//! Hears: the death of every child; `Shutdown`, `Abandon`, `Resume`, `Kill` from the handle; `Restart` from its own timers.
//! Owns: the children, and the ledger of their deaths.
//!
//! Invariant: a component is started only after the one before it is gone for good, state and all.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;

use super::compactor::Compactor;
use super::flusher::Flusher;
use super::manifest_keeper::{self, ManifestKeeper};
use super::memtable_owner::MemtableOwner;
use super::routes::Component;
use super::scheduler::{self, Scheduler};
use super::scrubber::Scrubber;
use super::shared::Shared;
use super::timer::{Timer, send_after};
use super::wal_gc::WalGc;
use super::wal_writer::{self, WalWriter};
use crate::error::{Error, Result};
use crate::observe::VizEvent;
use crate::policy::restart::{Verdict, verdict};
use crate::storage::layout::FileKind;
use crate::version::Version;

/// Wait before a component that is not vital is tried again after it was given up.
const SECOND_CHANCE: Duration = Duration::from_secs(60);
/// Deaths that a step of a shutdown survives.
const LAST_CHANCES: usize = 6;
/// Deaths that are remembered, of one component and of all.
const MEMORY: usize = 64;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Start a component that died.
    Restart(Component),
    /// Start what was given up, and take writes again.
    Resume,
    /// Flush, sync, and stop everything in order.
    Shutdown(oneshot::Sender<Result<()>>),
    /// Stop everything: the last handle is gone.
    Abandon,
    /// Kill a component.
    #[cfg(feature = "chaos")]
    Kill(Component),
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    children: BTreeMap<Component, Child>,
    /// When each component died, ascending.
    deaths: BTreeMap<Component, Vec<Duration>>,
    pending: BTreeMap<Component, Timer>,
    stopping: bool,
}

impl Drop for State {
    /// The root is gone, in order or with its runtime: nobody is left to answer.
    fn drop(&mut self) {
        let reason = "its runtime is gone".to_owned();
        self.shared.commits.abandon(Error::Unavailable { component: "root", reason });
        self.shared.routes.root.clear();
        self.shared.refresh_pressure();
    }
}

#[derive(Debug)]
struct Child {
    cell: ActorCell,
    handle: JoinHandle<()>,
}

#[derive(Debug)]
pub(crate) struct Root;

impl Actor for Root {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.root.set(myself.clone());
        let mut children = BTreeMap::new();
        for component in Component::all(shared.config.max_levels) {
            children.insert(component, spawn(component, &shared, &myself).await?);
        }
        Ok(State {
            shared,
            children,
            deaths: BTreeMap::new(),
            pending: BTreeMap::new(),
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Restart(component) => restart(state, &myself, component).await,
            Msg::Resume => resume(state, &myself).await,
            Msg::Shutdown(reply) => {
                let result = shutdown(state, &myself).await;
                drop(reply.send(result));
                myself.stop(None);
            }
            Msg::Abandon => {
                state.shared.cancel.cancel();
                stop_children(state).await;
                let_go(&state.shared).await;
                myself.stop(None);
            }
            #[cfg(feature = "chaos")]
            Msg::Kill(component) => {
                if let Some(child) = state.children.get(&component) {
                    child.cell.kill();
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, reason) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                (cell, reason.unwrap_or_else(|| "stopped".to_owned()))
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        let id = cell.get_id();
        let dead = state.children.iter().find(|(_, child)| child.cell.get_id() == id);
        if let Some(component) = dead.map(|(component, _)| *component)
            && !state.stopping
        {
            bury(state, &myself, component, &reason).await;
        }
        Ok(())
    }
}

/// A component died: wait until it is gone, then decide whether and when it is started again.
async fn bury(state: &mut State, myself: &ActorRef<Msg>, component: Component, reason: &str) {
    state.shared.routes.clear(component);
    if let Some(child) = state.children.remove(&component) {
        // Its death is known before its state is dropped; an error is the panic that we were told of.
        drop(child.handle.await);
    }
    judge(state, myself, component, reason);
}

fn judge(state: &mut State, myself: &ActorRef<Msg>, component: Component, reason: &str) {
    let now = state.shared.now();
    let own = state.deaths.entry(component).or_default();
    own.push(now);
    let excess = own.len().saturating_sub(MEMORY);
    own.drain(..excess);
    let mut all: Vec<Duration> = state.deaths.values().flatten().copied().collect();
    all.sort_unstable();
    let own = state.deaths.get(&component).map(Vec::as_slice).unwrap_or_default();
    tracing::warn!(%component, reason, "a component died");
    let delay = match verdict(own, &all, now) {
        Verdict::Restart { after } => after,
        Verdict::GiveUp => {
            give_up(state, component, reason);
            if component.is_vital() {
                return;
            }
            SECOND_CHANCE
        }
    };
    let env = state.shared.env().clone();
    state.pending.insert(component, send_after(&env, delay, myself, Msg::Restart(component)));
    let restarts = state.shared.health.restarted(component, reason);
    state.shared.metrics.restarts.inc(1);
    state.shared.store.emit(VizEvent::Restart {
        node: state.shared.config.node_id,
        component: component.name(),
        reason: reason.to_owned(),
        restarts,
    });
}

fn give_up(state: &State, component: Component, reason: &str) {
    tracing::error!(%component, reason, "a component dies too often; giving it up");
    state.shared.health.gave_up(component, reason, state.shared.now());
    if component.is_vital() {
        let refusal = Error::Unavailable { component: component.name(), reason: reason.to_owned() };
        state.shared.commits.refuse(refusal.clone());
        if component == Component::WalWriter {
            answer_the_last(&state.shared, refusal);
        }
    }
    state.shared.refresh_pressure(); // whoever waits at the gate is told
}

/// Gives the group that a dead WAL writer left in the core its answer: nobody else will come for it.
fn answer_the_last(shared: &Arc<Shared>, refusal: Error) {
    let commits = Arc::clone(&shared.commits);
    tokio::spawn(async move {
        let mut lease = commits.lease().await;
        lease.give_up(&refusal);
    });
}

async fn restart(state: &mut State, myself: &ActorRef<Msg>, component: Component) {
    state.pending.remove(&component);
    if state.stopping || state.children.contains_key(&component) {
        return;
    }
    match spawn(component, &state.shared, myself).await {
        Ok(child) => {
            state.children.insert(component, child);
            state.shared.health.revived(component);
            if matches!(component, Component::Compactor(_)) {
                // Plans that were lost with the one before have given their slots back: they are planned anew.
                state.shared.routes.scheduler.ring(scheduler::Msg::Wake);
            }
        }
        Err(error) => judge(state, myself, component, &error.to_string()),
    }
}

async fn resume(state: &mut State, myself: &ActorRef<Msg>) {
    state.deaths.clear();
    for component in Component::all(state.shared.config.max_levels) {
        restart(state, myself, component).await;
    }
    state.shared.health.resumed();
    state.shared.commits.accept();
    state.shared.refresh_pressure();
}

/// Starts a component. It makes its address known itself, before it hears anything: a bell that rang between its first look and
/// that would be lost.
async fn spawn(
    component: Component,
    shared: &Arc<Shared>,
    root: &ActorRef<Msg>,
) -> Result<Child, SpawnErr> {
    let supervisor = root.get_cell();
    let args = Arc::clone(shared);
    // Names are static to the process: two engines could not have the same ones, so nobody has one.
    macro_rules! spawn {
        ($actor:expr, $args:expr) => {{
            let (actor, handle) = Actor::spawn_linked(None, $actor, $args, supervisor).await?;
            Ok(Child { cell: actor.get_cell(), handle })
        }};
    }
    match component {
        Component::WalWriter => spawn!(WalWriter, args),
        Component::MemtableOwner => spawn!(MemtableOwner, args),
        Component::Flusher => spawn!(Flusher, args),
        Component::ManifestKeeper => spawn!(ManifestKeeper, args),
        Component::Compactor(level) => spawn!(Compactor, (args, level)),
        Component::Scheduler => spawn!(Scheduler, args),
        Component::WalGc => spawn!(WalGc, args),
        Component::Scrubber => spawn!(Scrubber, args),
    }
}

type Step = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Refuse writes, stop compactions, sync the log, flush, stop the components, record the last version.
///
/// Every step is tried even if one before it failed; the first failure is reported.
async fn shutdown(state: &mut State, myself: &ActorRef<Msg>) -> Result<()> {
    state.stopping = true;
    state.pending.clear();
    let shared = Arc::clone(&state.shared);
    shared.commits.refuse(Error::Closed);
    shared.refresh_pressure(); // whoever waits at the gate is told
    shared.cancel.cancel();
    stop_one(state, Component::Scheduler).await;
    for level in 0..shared.config.max_levels {
        let level = crate::types::Level(u8::try_from(level).unwrap_or(u8::MAX));
        stop_one(state, Component::Compactor(level)).await;
    }
    shared.jobs_ended().await;
    // Whoever was given up gets a last chance: what is in memory is worth it.
    shared.health.resumed();
    let steps: [fn(Arc<Shared>) -> Step; 2] =
        [|shared| Box::pin(sync_log(shared)), |shared| Box::pin(flush_all(shared))];
    let mut result = Ok(());
    for step in steps {
        let done = against_deaths(state, myself, step).await;
        if result.is_ok() {
            result = done;
        }
    }
    stop_children(state).await;
    // Nobody is left who could change the version, or die: this is done once and to its end.
    let recorded = record_version(Arc::clone(&shared)).await;
    let_go(&shared).await;
    result.and(recorded)
}

/// Brings `step` to its end; components that die meanwhile, or are dead already, are started again, within reason.
async fn against_deaths(
    state: &mut State,
    myself: &ActorRef<Msg>,
    step: fn(Arc<Shared>) -> Step,
) -> Result<()> {
    let shared = Arc::clone(&state.shared);
    let mut last = Error::Interrupted { component: "shutdown" };
    for _ in 0..LAST_CHANCES {
        let all = Component::all(shared.config.max_levels).into_iter();
        for component in all.filter(|component| component.is_vital()) {
            if !state.children.contains_key(&component)
                && let Ok(child) = spawn(component, &shared, myself).await
            {
                state.children.insert(component, child);
            }
        }
        tokio::select! {
            biased;
            () = death(state) => continue,
            done = step(Arc::clone(&shared)) => match done {
                Err(error @ Error::Interrupted { .. }) => last = error,
                done => return done,
            },
        }
        // Whoever interrupted the step is about to be gone.
        let wait = shared.env().clock.sleep(Duration::from_millis(10));
        tokio::select! {
            biased;
            () = death(state) => {}
            () = wait => {}
        }
    }
    Err(last)
}

/// Waits until a component is gone, and forgets it.
async fn death(state: &mut State) {
    let children = &mut state.children;
    let component = std::future::poll_fn(|cx| {
        for (component, child) in &mut *children {
            if Pin::new(&mut child.handle).poll(cx).is_ready() {
                return Poll::Ready(*component);
            }
        }
        Poll::Pending
    });
    let component = component.await;
    state.children.remove(&component);
    state.shared.routes.clear(component);
}

async fn sync_log(shared: Arc<Shared>) -> Result<()> {
    let (reply, answer) = oneshot::channel();
    shared.routes.wal_writer.ring(wal_writer::Msg::Sync(Some(reply)));
    answer.await.unwrap_or(Err(Error::Interrupted { component: "wal writer" })).map(drop)
}

/// Flushes what is only in memory. The memtables that cannot be flushed stay in the log.
async fn flush_all(shared: Arc<Shared>) -> Result<()> {
    shared.cancel.renew();
    shared.flush(true).await
}

/// Begins a manifest that holds one record: the version as it is.
async fn record_version(shared: Arc<Shared>) -> Result<()> {
    let job = Arc::clone(&shared);
    let record = move || {
        let view = job.views.load_full();
        let mut latest = Version::clone(view.version());
        latest.next_file = job.store.next_file();
        let flushed = view.active.is_empty() && view.sealed.is_empty();
        if flushed {
            // Nothing in the log is needed any more: the next open has none to look at.
            latest.log_floor = latest.next_file;
        }
        manifest_keeper::record(&job, &latest)?;
        let wal = if flushed {
            job.store.layout().list(&*job.env().fs, FileKind::Wal)?
        } else {
            Vec::new()
        };
        let mut ours =
            wal.into_iter().filter_map(|file| file.id).filter(|id| *id < latest.log_floor);
        ours.try_for_each(|id| job.store.remove_segment(id))
    };
    shared.env().on_disk(record).await
}

async fn stop_one(state: &mut State, component: Component) {
    state.shared.routes.clear(component);
    if let Some(child) = state.children.remove(&component) {
        // What is queued is done first; one that is dead already has nothing to do.
        drop(child.cell.drain());
        drop(child.handle.await);
    }
}

async fn stop_children(state: &mut State) {
    state.stopping = true;
    state.pending.clear();
    let order = state.children.keys().copied().collect::<Vec<_>>();
    for component in order {
        stop_one(state, component).await;
    }
    state.shared.routes.root.clear();
    state.shared.jobs_ended().await;
    // A durable write whose caller went away is a job, too.
    drop(state.shared.commits.lease().await);
}

/// Lets others open the directory.
async fn let_go(shared: &Arc<Shared>) {
    let job = Arc::clone(shared);
    let unlock = move || {
        // A manifest keeper that died may have left a job behind: it must not write any more when others may.
        job.desk.close();
        job.unlock();
        Ok(())
    };
    if shared.env().on_disk(unlock).await.is_err() {
        shared.unlock(); // the runtime ends, and its jobs with it
    }
    shared.commits.spare().clear();
    shared.notify();
}
