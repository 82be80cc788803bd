//! A compactor: runs the plans for the slots of one level.
//!
//! Hears: `Run` from the scheduler, `Finished` from its jobs. Asks: the manifest keeper to install. Tells: the scheduler how it went.
//! Loses on restart: nothing; a job of the one before runs to its end, and its lease gives the slots back.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::busy::WorkLease;
use super::health::Trouble;
use super::scheduler;
use super::shared::{Change, Shared};
use crate::error::{Error, Result};
use crate::jobs::compact::{CompactJob, Compacted, Target, compact_ops};
use crate::observe::{CompactionKind, VizEvent};
use crate::policy::placement::{BlockWeight, byte_median};
use crate::policy::{Done, Outcome, Plan, PlanAction, trivial_move};
use crate::types::{Level, SlotId};
use crate::version::{EditOp, RunId, Version};
use crate::view::Tree;

#[derive(Debug)]
pub(crate) enum Msg {
    /// Run a plan; the lease ends with it.
    Run(Box<Plan>, WorkLease),
    /// A plan came to its end; why, if it failed and is worth another attempt.
    Finished(Box<Outcome>, Option<Error>, WorkLease),
}

#[derive(Debug)]
pub(crate) struct Compactor;

impl Actor for Compactor {
    type Msg = Msg;
    type State = (Arc<Shared>, Level);
    type Arguments = (Arc<Shared>, Level);

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        (shared, level): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        if let Some(route) = shared.routes.compactors.get(level.index()) {
            route.set(myself);
        }
        Ok((shared, level))
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        (shared, level): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        shared.chaos.strike(super::Component::Compactor(*level))?;
        match message {
            Msg::Run(plan, lease) => {
                debug_assert_eq!(plan.level, *level, "a plan goes to the compactor of its level");
                start(shared, myself, *plan, lease);
                Ok(())
            }
            Msg::Finished(outcome, cause, lease) => {
                shared.routes.scheduler.ring(scheduler::Msg::Done(outcome, cause, lease));
                Ok(())
            }
        }
    }
}

/// Runs the plan in the background.
fn start(shared: &Arc<Shared>, myself: ActorRef<Msg>, plan: Plan, lease: WorkLease) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let start = shared.now();
        let (result, cause) = match run(&shared, &plan).await {
            Ok(done) => {
                shared.health.works(Trouble::Compaction);
                (done, None)
            }
            Err(Error::Closed) => (Done::Failed, None), // cancelled: the engine goes down
            Err(error) if shared.quarantine.note(&error) => (Done::Failed, None), // left alone from now on
            Err(error) => {
                tracing::warn!(%error, action = plan.action.name(), "a plan failed");
                shared.health.failing(Trouble::Compaction, &error, shared.now());
                (Done::Failed, Some(error))
            }
        };
        let now = shared.now();
        let outcome = Outcome { plan, result: timed(result, now.saturating_sub(start)), now };
        // Without a compactor the lease ends here, and the scheduler is told by that.
        drop(myself.cast(Msg::Finished(Box::new(outcome), cause, lease)));
    });
}

fn timed(result: Done, took: Duration) -> Done {
    match result {
        Done::Installed { bytes_in, bytes_out, .. } => {
            Done::Installed { bytes_in, bytes_out, spent: took }
        }
        other => other,
    }
}

async fn run(shared: &Arc<Shared>, plan: &Plan) -> Result<Done> {
    let slot = plan.slot.clone();
    match &plan.action {
        PlanAction::Admit { run } => admit(shared, *run).await,
        PlanAction::Merge { runs } | PlanAction::Cleanup { runs } => {
            compact(shared, slot, runs.clone(), Target::Here).await
        }
        PlanAction::Promote { runs } => promote(shared, slot, runs.clone()).await,
        PlanAction::Split { at } => split(shared, slot, at.clone()).await,
        PlanAction::Join { guard } => {
            let op = EditOp::RemoveGuard { level: slot.level, key: guard.clone() };
            metadata(shared, Box::new(|_| Some(vec![op]))).await
        }
        PlanAction::SetK { k } => {
            let op = EditOp::SetK { level: slot.level, slot: slot.start, k: *k };
            metadata(shared, Box::new(|_| Some(vec![op]))).await
        }
    }
}

/// Installs an edit that moves no byte.
async fn metadata(shared: &Arc<Shared>, change: Change) -> Result<Done> {
    let installed = shared.install(change, None).await?;
    Ok(if installed {
        Done::Installed { bytes_in: 0, bytes_out: 0, spent: Duration::ZERO }
    } else {
        Done::Nothing
    })
}

async fn admit(shared: &Arc<Shared>, run: RunId) -> Result<Done> {
    let done = metadata(shared, Box::new(move |version| version.admission(run))).await?;
    if done == Done::Nothing {
        return Ok(done);
    }
    let slots = shared.views.load().version().level(Level(1)).map_or(0, |level| level.slots.len());
    shared.store.emit(VizEvent::Admission { node: shared.config.node_id, slots });
    Ok(done)
}

async fn promote(shared: &Arc<Shared>, slot: SlotId, runs: Vec<RunId>) -> Result<Done> {
    let version = Arc::clone(shared.views.load().version());
    if trivial_move(&version, &slot, &runs, &mut || shared.store.new_run_id()).is_none() {
        return compact(shared, slot, runs, Target::Below).await;
    }
    let store = Arc::clone(&shared.store);
    let change =
        move |version: &Version| trivial_move(version, &slot, &runs, &mut || store.new_run_id());
    metadata(shared, Box::new(change)).await
}

async fn compact(
    shared: &Arc<Shared>,
    slot: SlotId,
    runs: Vec<RunId>,
    target: Target,
) -> Result<Done> {
    let start = shared.now();
    emit(shared, &slot, CompactionKind::Begun);
    let tree = Arc::clone(&shared.views.load().tree);
    let job = job(shared, &tree, (&slot, &runs, target));
    let cancel = shared.cancel.clone();
    let result = shared.env().on_disk(move || job.run(&cancel)).await;
    let Compacted { outputs, bytes_in } =
        result.inspect_err(|_| emit(shared, &slot, CompactionKind::Dropped))?;
    let (bytes_out, throttled) = (outputs.bytes(), outputs.throttled);
    let tables: Vec<_> = outputs.tables.iter().map(|table| table.file).collect();
    let run = shared.store.new_run_id();
    let place = slot.clone();
    let change = Box::new(move |version: &Version| {
        compact_ops(version, (&place, &runs, target), &outputs, run)
    });
    let installed = shared.install_tables(tables, change, None).await;
    if !matches!(installed, Ok(true)) {
        emit(shared, &slot, CompactionKind::Dropped);
    }
    if !installed? {
        return Ok(Done::Nothing);
    }
    let took = shared.now().saturating_sub(start);
    shared.metrics.compaction_ms.observe(took.as_secs_f64() * 1e3);
    shared.metrics.compaction_bytes_in.inc(bytes_in);
    shared.metrics.compaction_bytes_out.inc(bytes_out);
    shared.totals.compacted(bytes_in, bytes_out);
    shared.totals.throttled(throttled);
    emit(shared, &slot, CompactionKind::Done { bytes_in, bytes_out });
    Ok(Done::Installed { bytes_in, bytes_out, spent: took })
}

fn job(
    shared: &Arc<Shared>,
    tree: &Arc<Tree>,
    (slot, runs, target): (&SlotId, &[RunId], Target),
) -> CompactJob {
    let codecs = &shared.config.compression;
    let mut job = CompactJob {
        store: Arc::clone(&shared.store),
        tree: Arc::clone(tree),
        slot: slot.clone(),
        runs: runs.to_vec(),
        target,
        snapshots: shared.live_snapshots(),
        compression: codecs.levels,
        pace: shared.pace.clone(),
    };
    if tree.version.deepest().is_none_or(|deepest| job.output_level() >= deepest) {
        job.compression = codecs.last;
    }
    job
}

/// Cuts a slot where half of its bytes lie on either side, or at the given key.
async fn split(shared: &Arc<Shared>, slot: SlotId, at: Option<bytes::Bytes>) -> Result<Done> {
    let key = match at {
        Some(key) => Some(key),
        None => {
            let tree = Arc::clone(&shared.views.load().tree);
            let slot = slot.clone();
            shared.env().on_disk(move || median(&tree, &slot)).await?
        }
    };
    let Some(key) = key else { return Ok(Done::Nothing) };
    let level = slot.level;
    let change = move |version: &Version| {
        let (_, found) = version.slot_of(level, &key)?;
        let new = found.start < key;
        new.then(|| vec![EditOp::AddGuard { level, key }])
    };
    metadata(shared, Box::new(change)).await
}

/// The key that halves the bytes of a slot, from the leaf indexes of its tables. Blocks.
fn median(tree: &Tree, id: &SlotId) -> Result<Option<bytes::Bytes>> {
    let Some((range, slot)) = tree.version.slot(id) else { return Ok(None) };
    let mut blocks = Vec::new();
    for slice in slot.runs.iter().flat_map(|run| &run.slices) {
        let Some(table) = tree.tables().get(&slice.table) else { continue };
        let ends = table.block_ends(&slice.range)?;
        blocks.extend(ends.into_iter().map(|(start, bytes)| BlockWeight { start, bytes }));
    }
    Ok(byte_median(blocks, &range))
}

fn emit(shared: &Shared, slot: &SlotId, kind: CompactionKind) {
    let (node, level) = (shared.config.node_id, slot.level);
    shared.store.emit(VizEvent::Compaction { node, level, slot: slot.start.to_vec(), kind });
}
