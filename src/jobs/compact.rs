//! Runs of one slot become one run: in place, or a level deeper, cut at the guards there.

use std::sync::Arc;

use crate::config::Compression;
use crate::error::{Error, Result};
use crate::jobs::Cancel;
use crate::jobs::output::{OutputPlan, Outputs, write_tables};
use crate::jobs::pace::Pace;
use crate::jobs::retain::Retain;
use crate::merge::Merge;
use crate::storage::store::Store;
use crate::types::{Direction, KeyRange, Level, SeqNo, SlotId};
use crate::version::{BaseCheck, EditOp, Run, RunId, Version};
use crate::view::Tree;

/// Where the merged run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into the place of its inputs.
    Here,
    /// On top of the slots below.
    Below,
}

/// What a compaction works on.
#[derive(Debug)]
pub(crate) struct CompactJob {
    pub(crate) store: Arc<Store>,
    /// Pins the inputs.
    pub(crate) tree: Arc<Tree>,
    pub(crate) slot: SlotId,
    /// Neighbours in the slot, newest first; all of them if the target is below.
    pub(crate) runs: Vec<RunId>,
    pub(crate) target: Target,
    pub(crate) snapshots: Vec<SeqNo>,
    pub(crate) compression: Compression,
    pub(crate) pace: Option<Arc<Pace>>,
}

/// What a compaction wrote.
#[derive(Debug)]
pub(crate) struct Compacted {
    pub(crate) outputs: Outputs,
    pub(crate) bytes_in: u64,
}

impl CompactJob {
    /// Level of the outputs.
    pub(crate) fn output_level(&self) -> Level {
        match self.target {
            Target::Here => self.slot.level,
            Target::Below => self.slot.level.below(),
        }
    }

    /// Merges the runs into new tables. Blocks.
    ///
    /// # Errors
    /// Those of reading and writing; nothing is left behind then.
    pub(crate) fn run(self, cancel: &Cancel) -> Result<Compacted> {
        let version = &self.tree.version;
        let inputs = self.inputs();
        if inputs.len() != self.runs.len() {
            return Err(Error::Interrupted { component: "compaction of runs that are gone" });
        }
        let sums: Vec<_> = inputs.iter().map(|run| version.run_sums(run)).collect();
        let bytes_in = sums.iter().map(|sums| sums.bytes).sum();
        let tombstones = sums.iter().map(|sums| sums.oldest_tombstone_s).filter(|s| *s > 0);
        let level = self.output_level();
        let guards = version.level(level).map(|level| level.guards().cloned());
        let plan = OutputPlan {
            level,
            compression: self.compression,
            guards: guards.into_iter().flatten().collect(),
            pace: self.pace,
            tombstones_since_s: tombstones.min().unwrap_or(0),
        };
        let base = BaseCheck::new(version, &self.slot, &self.runs);
        let now_ms = self.store.env().clock.wall_ms();
        let cursors = inputs.iter().map(|run| self.tree.compaction_cursor(run)).collect();
        let mut merge = Merge::new(cursors, Direction::Forward);
        let mut retain = Retain::new(self.snapshots, now_ms, Some(base));
        let outputs = write_tables(&self.store, &mut merge, &mut retain, plan, cancel)?;
        Ok(Compacted { outputs, bytes_in })
    }

    fn inputs(&self) -> Vec<Run> {
        let slot = self.tree.version.slot(&self.slot).map(|(_, slot)| Arc::clone(slot));
        let runs = slot.iter().flat_map(|slot| &slot.runs);
        runs.filter(|run| self.runs.contains(&run.id)).cloned().collect()
    }
}

/// The edit that puts the outputs of a compaction in the place of its inputs.
///
/// `None` if the inputs are not there any more, as after a recovery of the manifest: the outputs are of no use then.
pub(crate) fn compact_ops(
    version: &Version,
    (slot, runs, target): (&SlotId, &[RunId], Target),
    outputs: &Outputs,
    run: RunId,
) -> Option<Vec<EditOp>> {
    let (range, found) = version.slot(slot)?;
    if !runs.iter().all(|run| found.run(*run).is_some()) {
        return None;
    }
    let mut ops: Vec<_> = outputs.tables.iter().cloned().map(EditOp::AddTable).collect();
    let merged = Run { id: run, slices: outputs.slices(&range) };
    let replace = |with| EditOp::ReplaceRuns {
        level: slot.level,
        slot: slot.start.clone(),
        removed: runs.to_vec(),
        with,
    };
    match target {
        Target::Here => ops.push(replace(Some(merged).filter(|run| !run.slices.is_empty()))),
        Target::Below => {
            ops.push(replace(None));
            ops.extend(pushes_below(version, slot, &range, (&merged, outputs)));
        }
    }
    Some(ops)
}

/// One push for each slot of the level below that gets a piece of `run`.
fn pushes_below(
    version: &Version,
    slot: &SlotId,
    range: &KeyRange,
    (run, outputs): (&Run, &Outputs),
) -> Vec<EditOp> {
    let level = slot.level.below();
    let Some(below) = version.level(level) else { return Vec::new() };
    let pushes = below.overlapping(range).filter_map(|(child_range, child)| {
        let pieces = run.slices.iter().zip(&outputs.tables).filter_map(|(slice, table)| {
            let mut piece = slice.clone();
            piece.range = piece.range.intersection(&child_range);
            table.meets(&piece.range).then_some(piece)
        });
        let slices: Vec<_> = pieces.collect();
        let run = Run { id: run.id, slices };
        let slot = child.start.clone();
        (!run.slices.is_empty()).then_some(EditOp::PushRun { level, slot, run })
    });
    pushes.collect()
}
