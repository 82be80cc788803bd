//! Compaction on demand: brings a key range down into one run per slot of the deepest level.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::bandit::{Kind, Temperature};
use super::{Lane, Plan, PlanAction, fanout};
use crate::types::{FileId, KeyRange, Level, SeqNo, SlotId};
use crate::version::{LevelState, Run, RunId, Slot, Version};

/// A compaction of a key range, from the moment it was asked for. Writes that come later are none of its business.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FullCompaction {
    range: KeyRange,
    /// Where everything goes at least: the deepest level that held data.
    target: Level,
    /// Tables from this number on are its own work.
    since: FileId,
    /// Writes up to this one are brought down.
    upto: SeqNo,
}

impl FullCompaction {
    /// Begins to compact what `version` holds in `range`. Flush memtables before.
    pub(crate) fn begin(version: &Version, range: KeyRange) -> Self {
        let deepest = version.deepest().unwrap_or_default().max(Level(1));
        Self { range, target: deepest, since: version.next_file, upto: version.last_seq }
    }

    /// The next plans, of the uppermost level that still holds something of it; what is full below goes first. Run those that do not
    /// conflict, and ask again. It is done when there are none.
    pub(crate) fn wanted(&self, version: &Version) -> Vec<Plan> {
        let target = self.target_in(version);
        if let Some(oldest) = version.l0_runs().last() {
            let due = version.l0_runs().iter().any(|run| self.is_due(version, run));
            let full = self.full_slots(version, Level(1), &KeyRange::all());
            if due && full.is_empty() {
                let slot = SlotId { level: Level::L0, start: Bytes::new() };
                return vec![plan(slot, PlanAction::Admit { run: oldest.id }, 0)];
            }
            if due && target == Level(1) {
                return full;
            }
            if due {
                // L1 has no room: the slots that lack it go down, whether or not they are in the range.
                return self.down(version, Level(1), &full);
            }
        }
        for index in 1..target.0 {
            let level = Level(index);
            let Some(state) = version.level(level) else { break };
            let due = state
                .overlapping(&self.range)
                .filter(|(_, slot)| slot.runs.iter().any(|run| self.is_due(version, run)));
            let plans: Vec<Plan> =
                due.map(|(_, slot)| all_runs(version, level, slot, Kind::Promote)).collect();
            if !plans.is_empty() {
                return self.down(version, level, &plans);
            }
        }
        self.settle(version, target)
    }

    /// Whether what a plan is for lies in the range, and does not only stand in the way of something that does.
    pub(crate) fn concerns(&self, plan: &Plan, version: &Version) -> bool {
        version.slot(&plan.slot).is_some_and(|(range, _)| range.overlaps(&self.range))
    }

    /// Where everything goes: what the policy took further down meanwhile is followed by the rest.
    fn target_in(&self, version: &Version) -> Level {
        let holds_some = |(level, state): &(Level, &LevelState)| {
            let mut slots = state.overlapping(&self.range);
            *level > self.target
                && slots.any(|(_, slot)| slot.runs.iter().any(|run| self.is_due(version, run)))
        };
        let below = version.numbered().filter(holds_some).last();
        below.map_or(self.target, |(level, _)| level)
    }

    /// Promotions of `slots`, or, where a slot below is full, its merge.
    fn down(&self, version: &Version, level: Level, slots: &[Plan]) -> Vec<Plan> {
        let mut plans = Vec::new();
        let mut seen = BTreeSet::new();
        for wanted in slots {
            let Some((range, slot)) = version.slot(&wanted.slot) else { continue };
            let full = self.full_slots(version, level.below(), &range);
            if full.is_empty() {
                plans.push(all_runs(version, level, slot, Kind::Promote));
            }
            plans.extend(full.into_iter().filter(|plan| seen.insert(plan.slot.clone())));
        }
        plans
    }

    /// Merges of the slots of a level that can take no run more.
    fn full_slots(&self, version: &Version, level: Level, range: &KeyRange) -> Vec<Plan> {
        let Some(state) = version.level(level) else { return Vec::new() };
        let full =
            state.overlapping(range).filter(|(_, slot)| slot.runs.len() >= fanout::MAX_RUNS - 1);
        full.map(|(_, slot)| all_runs(version, level, slot, Kind::Merge)).collect()
    }

    /// At the target: one run per slot, written by this compaction or free of anything that could go. Runs that came later may lie on it.
    fn settle(&self, version: &Version, target: Level) -> Vec<Plan> {
        let Some(state) = version.level(target) else { return Vec::new() };
        let unsettled = state.overlapping(&self.range).filter(|(_, slot)| {
            let mut due = slot.runs.iter().filter(|run| self.is_due(version, run));
            match (due.next(), due.next()) {
                (Some(run), None) => self.is_stale(version, run),
                (Some(_), Some(_)) => true,
                (None, _) => false,
            }
        });
        unsettled.map(|(_, slot)| all_runs(version, target, slot, Kind::Cleanup)).collect()
    }

    /// Whether a run holds writes from before the compaction was asked for, in its range.
    fn is_due(&self, version: &Version, run: &Run) -> bool {
        run.slices.iter().any(|slice| {
            let shown = slice.range.intersection(&self.range);
            let table = version.tables.get(&slice.table);
            let mut sections = table.into_iter().flat_map(|table| &table.sections);
            !shown.is_empty()
                && sections.any(|section| section.meets(&shown) && section.min_seq <= self.upto)
        })
    }

    /// Whether a run has tombstones or entries that expire, in tables from before.
    fn is_stale(&self, version: &Version, run: &Run) -> bool {
        run.slices.iter().any(|slice| {
            let sums = version.slice_sums(slice);
            slice.table < self.since && (sums.tombstones > 0 || sums.min_expiry_s != u32::MAX)
        })
    }
}

fn all_runs(version: &Version, level: Level, slot: &Slot, kind: Kind) -> Plan {
    let runs: Vec<RunId> = slot.runs.iter().map(|run| run.id).collect();
    let action = match kind {
        Kind::Promote => PlanAction::Promote { runs },
        Kind::Merge => PlanAction::Merge { runs },
        Kind::Cleanup | Kind::EagerMerge | Kind::Guard => PlanAction::Cleanup { runs },
    };
    let id = SlotId { level, start: slot.start.clone() };
    plan(id, action, version.slot_sums(slot).bytes)
}

fn plan(slot: SlotId, action: PlanAction, bytes: u64) -> Plan {
    Plan {
        action,
        level: slot.level,
        slot,
        lane: Lane::Asked,
        bytes,
        gain: 1.0,
        cost: 1.0,
        index: 1.0,
        kind: Kind::Guard,
        temperature: Temperature::Warm,
    }
}
