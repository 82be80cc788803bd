//! The scheduler: heat, K, guards and the bandit turn a version and a load into plans, the moment the version offers work.
//!
//! Hears: `Wake` when a version was published or work ended, `Done` from compactors, `Tick` from its timer, `Compact` from the
//! handle. Sends: plans to compactors. Loses on restart: what the policy has learned beyond what the manifest records, and
//! compactions on demand, whose callers are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::busy::WorkLease;
use super::routes::Route;
use super::shared::Shared;
use super::timer::{Timer, send_after};
use super::{compactor, manifest_keeper};
use crate::error::{Error, Result};
use crate::observe::VizEvent;
use crate::policy::{BacklogLoad, Busy, FullCompaction, Lane, Load, Outcome, Plan, Policy, Wanted};
use crate::types::{CompactionMode, KeyRange, SeqNo, SlotId, u64_of};
use crate::version::{EditOp, Version};

/// Time between two observations of the load.
const TICK: Duration = Duration::from_secs(1);
/// Plans started at most per look: metadata plans are cheap, heavy ones have a limit of their own.
const PLANS: usize = 64;
/// Ticks between two records of the heat of slots in the manifest.
const RECORD_HEAT: u32 = 60;
/// Failures of a slot's compaction on demand, one after the other, before its caller is told.
const PATIENCE: u32 = 3;

#[derive(Debug)]
pub(crate) enum Msg {
    /// There may be work.
    Wake,
    /// A plan came to its end; why, if it failed and is worth another attempt.
    Done(Box<Outcome>, Option<Error>, WorkLease),
    /// Look at the load.
    Tick,
    /// Bring a key range down into the last level.
    Compact(KeyRange, CompactionMode, oneshot::Sender<Result<()>>),
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    policy: Policy,
    timer: Timer,
    demands: Vec<Demand>,
    ticks: u32,
    /// Heat of each slot when it was told last.
    told_heat: BTreeMap<SlotId, f32>,
}

/// A compaction on demand.
#[derive(Debug)]
struct Demand {
    range: KeyRange,
    mode: CompactionMode,
    /// Work that was in progress when it was asked for. It may keep what a snapshot read that was gone by then: its tables must not be
    /// taken for those of the demand, which begins when it has ended.
    before: BTreeSet<u64>,
    /// `None`: not begun.
    work: Option<FullCompaction>,
    /// Slots that are being compacted for it.
    running: BTreeSet<SlotId>,
    /// How often that failed in a row, and why at first.
    failures: BTreeMap<SlotId, (u32, Error)>,
    reply: oneshot::Sender<Result<()>>,
}

impl Demand {
    /// Why it is not tried again.
    fn given_up(&self) -> Option<Error> {
        let mut failures = self.failures.values();
        failures.find(|(times, _)| *times >= PATIENCE).map(|(_, cause)| cause.clone())
    }
}

#[derive(Debug)]
pub(crate) struct Scheduler;

impl Actor for Scheduler {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.scheduler.set(myself.clone());
        myself.cast(Msg::Wake)?;
        let timer = send_after(shared.env(), TICK, &myself, Msg::Tick);
        let policy = Policy::new(&shared.config);
        let demands = Vec::new();
        Ok(State { shared, policy, timer, demands, ticks: 0, told_heat: BTreeMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::Scheduler)?;
        match message {
            Msg::Wake => {}
            Msg::Done(outcome, cause, lease) => {
                learn(state, &outcome, cause.as_ref());
                drop(lease); // rings: the slots are free again
            }
            Msg::Tick => {
                state.timer = send_after(state.shared.env(), TICK, &myself, Msg::Tick);
                observe(state);
                if state.shared.has_free_garbage() {
                    // What a reader let go of a while after it died.
                    state.shared.routes.manifest_keeper.ring(manifest_keeper::Msg::Sweep);
                }
            }
            Msg::Compact(range, mode, reply) => {
                state.demands.push(Demand {
                    range,
                    mode,
                    before: state.shared.busy.list().into_keys().collect(),
                    work: None,
                    running: BTreeSet::new(),
                    failures: BTreeMap::new(),
                    reply,
                });
            }
        }
        plan(state);
        Ok(())
    }
}

/// Takes in the load; tells which slots became hot or cold, and now and then records how hot they are.
fn observe(state: &mut State) {
    let shared = Arc::clone(&state.shared);
    with_load(&shared, |load| state.policy.observe(load));
    state.ticks += 1;
    let view = shared.views.load_full();
    let heat: BTreeMap<_, _> = view
        .tree
        .counters()
        .keys()
        .map(|slot| (slot.clone(), state.policy.heat_of(slot)))
        .collect();
    let crossed = heat.iter().filter(|(slot, heat)| {
        let before = state.told_heat.get(slot).copied().unwrap_or(0.0);
        label(&shared, before) != label(&shared, **heat)
    });
    for (slot, heat) in crossed {
        let (node, level, slot) = (shared.config.node_id, slot.level, slot.start.to_vec());
        shared.store.emit(VizEvent::Heat { node, level, slot, heat: *heat });
    }
    state.told_heat = heat;
    if state.ticks.is_multiple_of(RECORD_HEAT) {
        record_heat(&shared, state.policy.heat_edits(view.version()));
    }
}

/// Hot, cold or neither.
fn label(shared: &Shared, heat: f32) -> i8 {
    let thresholds = &shared.config.heat_thresholds;
    let heat = f64::from(heat);
    i8::from(heat >= thresholds.hot) - i8::from(heat <= thresholds.cold)
}

/// Writes heat into the manifest, so that a reopened engine need not learn it again.
fn record_heat(shared: &Arc<Shared>, ops: Vec<EditOp>) {
    if ops.is_empty() {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let known = move |version: &Version| {
            let there = |op: &EditOp| match op {
                EditOp::SetHeat { level, slot, .. } => {
                    version.slot(&SlotId { level: *level, start: slot.clone() }).is_some()
                }
                _ => false,
            };
            let ops: Vec<_> = ops.into_iter().filter(there).collect();
            (!ops.is_empty()).then_some(ops)
        };
        if let Err(error) = shared.install(Box::new(known), None).await {
            tracing::debug!(%error, "heat was not recorded");
        }
    });
}

fn learn(state: &mut State, outcome: &Outcome, cause: Option<&Error>) {
    state.policy.reward(outcome);
    let slot = &outcome.plan.slot;
    for demand in &mut state.demands {
        if outcome.plan.lane != Lane::Asked || !demand.running.remove(slot) {
            continue;
        }
        match cause {
            Some(cause) => {
                demand.failures.entry(slot.clone()).or_insert((0, cause.clone())).0 += 1;
            }
            None => drop(demand.failures.remove(slot)),
        }
    }
}

/// Shows the load of this moment to `look`.
fn with_load<T>(shared: &Shared, look: impl FnOnce(&Load<'_>) -> T) -> T {
    let damaged = shared.quarantine.files();
    let view = shared.views.load_full();
    let env = shared.env();
    look(&Load {
        version: view.version(),
        counters: view.tree.counters(),
        live: BacklogLoad {
            sealed_memtables: view.sealed.len(),
            memtable_bytes: u64_of(view.memtable_bytes()),
            oldest_snapshot: shared.live_snapshots().first().copied().unwrap_or(SeqNo::MAX),
        },
        blocks: shared.store.cache().block_cost().so_far(),
        damaged: &damaged,
        now: env.clock.now(),
        wall_s: env.clock.wall_ms() / 1000,
    })
}

/// Starts everything that is worth starting now.
fn plan(state: &mut State) {
    let shared = Arc::clone(&state.shared);
    if shared.cancel.check().is_err() {
        return; // the engine goes down: whatever is started now fails at once
    }
    let generation = shared.generation.load(Ordering::Acquire);
    let busy = shared.busy.list(); // before the version: what has left it is in there
    for demand in &mut state.demands {
        demand.before.retain(|id| busy.contains_key(id));
    }
    let plans = with_load(&shared, |load| {
        let debt = state.policy.debt(load.version, load.damaged);
        shared.debt.store(debt, Ordering::Relaxed);
        let mut taken = busy.values().cloned().collect();
        let mut plans = demanded(&mut state.demands, load, &mut taken, &shared);
        plans.extend(state.policy.plan(load, &taken, PLANS));
        plans.into_iter().map(|plan| (Busy::of(&plan, load.version), plan)).collect::<Vec<_>>()
    });
    shared.refresh_pressure();
    if plans.is_empty() && busy.is_empty() && state.demands.is_empty() {
        shared.settled.store(generation, Ordering::Release);
        shared.notify();
    }
    for (touches, plan) in plans {
        if let Some(route) = shared.compactor(plan.level) {
            start(&shared, route, plan, touches);
        }
    }
}

/// Plans of compactions on demand, as many at a time as the policy may choose; those that have none left are answered. What the plans
/// touch is added to `taken`.
///
/// What needs no damaged table is done first; a demand that is left with nothing else gets the damage for an answer.
fn demanded(
    demands: &mut Vec<Demand>,
    load: &Load<'_>,
    taken: &mut Vec<Busy>,
    shared: &Shared,
) -> Vec<Plan> {
    demands.retain(|demand| !demand.reply.is_closed());
    let limit = shared.config.io.max_background_compactions;
    let mut plans = Vec::new();
    let (mut waiting, mut served) = (Vec::new(), Vec::new());
    for mut demand in std::mem::take(demands) {
        if !demand.before.is_empty() {
            waiting.push(demand);
            continue;
        }
        let begin = || FullCompaction::begin(load.version, demand.range.clone(), demand.mode);
        let work = demand.work.get_or_insert_with(begin);
        let is_stuck = |plan: &Plan| plan.reads(load.version).any(|t| load.damaged.contains(&t));
        let Wanted { sound, stuck } = work.wanted(load.version, is_stuck);
        // What only stands in the way may yet be helped by what runs.
        let is_final =
            taken.is_empty() || stuck.iter().all(|plan| work.concerns(plan, load.version));
        let read = stuck.iter().flat_map(|plan| plan.reads(load.version));
        let answer = match shared.quarantine.first_of(read) {
            _ if stuck.is_empty() && sound.is_empty() => Some(Ok(())),
            Some(damage) if sound.is_empty() && is_final => Some(Err(damage.error())),
            _ => demand.given_up().map(Err),
        };
        if let Some(answer) = answer {
            drop(demand.reply.send(answer));
            continue;
        }
        let before = plans.len();
        for plan in sound {
            let running = taken.iter().filter(|busy| busy.is_asked_for()).count();
            let touches = Busy::of(&plan, load.version);
            let has_place = !plan.action.is_heavy() || running < limit;
            if has_place
                && shared.compactor(plan.level).is_some()
                && !touches.conflicts_with_any(taken)
            {
                demand.running.insert(plan.slot.clone());
                taken.push(touches);
                plans.push(plan);
            }
        }
        // They take turns.
        let queue = if plans.len() > before { &mut served } else { &mut waiting };
        queue.push(demand);
    }
    demands.append(&mut waiting);
    demands.append(&mut served);
    plans
}

fn start(shared: &Shared, route: &Route<compactor::Msg>, plan: Plan, touches: Busy) {
    shared.store.emit(VizEvent::Bandit {
        node: shared.config.node_id,
        level: plan.slot.level,
        slot: plan.slot.start.to_vec(),
        action: plan.action.name(),
        index: plan.index,
    });
    let lease = shared.busy.enter(touches);
    route.ring(compactor::Msg::Run(Box::new(plan), lease));
}
