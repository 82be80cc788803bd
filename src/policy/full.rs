//! Compaction on demand: brings a key range down into one run per slot of the deepest level.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::bandit::{Kind, Temperature};
use super::{Lane, Plan, PlanAction, fanout};
use crate::types::{CompactionMode, FileId, KeyRange, Level, SeqNo, SlotId};
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
    mode: CompactionMode,
}

/// What a compaction on demand has left to do.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) sound: Vec<Plan>,
    /// Plans that cannot be run.
    pub(crate) stuck: Vec<Plan>,
}

impl FullCompaction {
    /// Begins to compact what `version` holds in `range`. Flush memtables before.
    pub(crate) fn begin(version: &Version, range: KeyRange, mode: CompactionMode) -> Self {
        let target = version.deepest().unwrap_or_default().max(Level(1));
        Self { range, target, since: version.next_file, upto: version.last_seq, mode }
    }

    /// The next plans, of the uppermost level that still holds something of it and where some can be run; what is full below goes
    /// first. Run those that do not conflict, and ask again. It is done when there are none.
    ///
    /// `is_stuck`: whether a plan cannot be run. The levels below are not left for that.
    pub(crate) fn wanted(&self, version: &Version, is_stuck: impl Fn(&Plan) -> bool) -> Wanted {
        let target = self.target_in(version);
        let mut wanted = Wanted::default();
        for level in (0..=target.0).map(Level) {
            let plans = match level {
                Level::L0 => self.admission(version, target),
                level if level < target => self.promotions(version, level),
                _ => self.settle(version, target),
            };
            let (stuck, sound): (Vec<_>, Vec<_>) = plans.into_iter().partition(&is_stuck);
            wanted.stuck.extend(stuck);
            if !sound.is_empty() {
                wanted.sound = sound;
                break;
            }
        }
        wanted
    }

    /// From L0: its oldest run, or where L1 has no room for it.
    fn admission(&self, version: &Version, target: Level) -> Vec<Plan> {
        let runs = version.l0_runs();
        let Some(oldest) = runs.last().filter(|_| runs.iter().any(|run| self.is_due(version, run)))
        else {
            return Vec::new();
        };
        let full = self.full_slots(version, Level(1), &KeyRange::all());
        if full.is_empty() {
            let slot = SlotId { level: Level::L0, start: Bytes::new() };
            return vec![plan(slot, PlanAction::Admit { run: oldest.id }, 0)];
        }
        if target == Level(1) {
            return full;
        }
        // The slots that lack room go down, whether or not they are in the range.
        self.down(version, Level(1), &full)
    }

    /// From a level between L0 and the target.
    fn promotions(&self, version: &Version, level: Level) -> Vec<Plan> {
        let Some(state) = version.level(level) else { return Vec::new() };
        let due = state
            .overlapping(&self.range)
            .filter(|(_, slot)| slot.runs.iter().any(|run| self.is_due(version, run)));
        let plans: Vec<Plan> =
            due.map(|(_, slot)| all_runs(version, level, slot, Kind::Promote)).collect();
        self.down(version, level, &plans)
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
                (Some(run), None) => self.is_stale(version, run, target),
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

    /// Whether a run has to be written anew: tables from before hold what could go as far as they tell, or everything is to be as it
    /// would be written here and now.
    fn is_stale(&self, version: &Version, run: &Run, target: Level) -> bool {
        run.slices.iter().any(|slice| {
            let is_from_before = slice.table < self.since;
            let sums = version.slice_sums(slice);
            let could_go = sums.tombstones > 0 || sums.min_expiry_s != u32::MAX;
            let written_for = version.tables.get(&slice.table).map(|table| table.level);
            match self.mode {
                CompactionMode::Full => is_from_before && could_go,
                CompactionMode::Rewrite => is_from_before || written_for != Some(target),
            }
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
