//! Everything that could be done to a version, one piece of heavy work per slot at most, with what it brings and costs.

use bytes::Bytes;

use super::bandit::Kind;
use super::shape::{self, Measured};
use super::{Lane, Load, Plan, PlanAction, Policy, fanout, readable};
use crate::policy::bandit::Temperature;
use crate::types::{KeyRange, Level, SeqNo, SlotId, u64_of};
use crate::version::{BaseCheck, Run, RunId, Slot, Version};

/// Longest time that a benefit is counted for, in seconds.
const HORIZON_S: f64 = 30.0;
/// Nanoseconds that a reclaimed byte is worth.
const RECLAIMED: f64 = 16.0;
/// Time within which a deleted key should be gone from the disk, in seconds.
const TOMBSTONE_DEADLINE_S: f64 = 86_400.0;
/// Share of the gets of a slot from which one half counts as hot.
const LOPSIDED: f64 = 0.8;
/// Data blocks that a slot must have, at least, to be cut.
const LEAST_BLOCKS: u64 = 4;

/// A slot under consideration.
struct Site<'a> {
    load: &'a Load<'a>,
    id: SlotId,
    range: KeyRange,
    sized: &'a Measured,
    temperature: Temperature,
    k: u8,
}

impl Site<'_> {
    fn names(&self, count: usize) -> Vec<RunId> {
        self.sized.slot.runs.iter().take(count).map(|run| run.id).collect()
    }

    fn all(&self) -> Vec<RunId> {
        self.names(usize::MAX)
    }

    fn bytes(&self) -> u64 {
        self.sized.shape.sums.bytes
    }

    fn is_full(&self) -> bool {
        self.readable() >= fanout::hard_cap(self.k)
    }

    /// Runs in front of the first that cannot be read.
    fn readable(&self) -> usize {
        readable(&self.sized.slot.runs, self.load.damaged)
    }
}

/// A piece of work before it is priced.
struct Draft {
    action: PlanAction,
    kind: Kind,
    lane: Lane,
    bytes: u64,
    /// Runs that go.
    runs: usize,
    /// How far over a limit the slot is, 0 if it is not.
    urgency: f64,
    /// Bytes that are expected to go.
    reclaimed: f64,
}

impl Draft {
    fn new(action: PlanAction, kind: Kind, bytes: u64) -> Self {
        Self { action, kind, lane: Lane::Chosen, bytes, runs: 0, urgency: 0.0, reclaimed: 0.0 }
    }
}

impl Policy {
    /// Everything that could be done, in no order.
    pub(super) fn candidates(&self, load: &Load<'_>) -> Vec<Plan> {
        let mut plans: Vec<Plan> = self.admission(load).into_iter().collect();
        for (level, state) in load.version.numbered().skip(1) {
            for ((range, slot), sized) in state.ranged().zip(self.shapes.level(level)) {
                let id = SlotId { level, start: slot.start.clone() };
                if self.resting.get(&id).is_some_and(|rest| rest.until > load.now) {
                    continue;
                }
                let temperature = self.heat.temperature(&id, &self.config.heat_thresholds);
                let k = self.k_of(level, slot.k);
                let site = Site { load, id, range, sized, temperature, k };
                let drafts =
                    [self.split(&site), self.join(&site), self.set_k(&site), self.heavy(&site)];
                plans.extend(drafts.into_iter().flatten().map(|draft| self.price(&site, draft)));
            }
        }
        plans
    }

    /// The oldest run of L0, if there is room for it in every slot of L1 that it reaches.
    fn admission(&self, load: &Load<'_>) -> Option<Plan> {
        let run = load.version.l0_runs().last()?;
        let slot = SlotId { level: Level::L0, start: Bytes::new() };
        if self.resting.get(&slot).is_some_and(|rest| rest.until > load.now) {
            return None;
        }
        let below = Level::L0.below();
        if !self.has_room(load, below, run) {
            return None;
        }
        Some(Plan {
            action: PlanAction::Admit { run: run.id },
            level: Level::L0,
            slot,
            lane: Lane::Metadata,
            bytes: 0,
            gain: 1.0,
            cost: 0.0,
            index: u64_of(load.version.l0_runs().len()) as f64,
            kind: Kind::Guard,
            temperature: Temperature::Warm,
        })
    }

    /// Whether no slot of `level` that a run reaches is full.
    fn has_room(&self, load: &Load<'_>, level: Level, run: &Run) -> bool {
        load.version.cut_run(run, level).iter().all(|(start, _)| {
            let id = SlotId { level, start: start.clone() };
            load.version.slot(&id).is_some_and(|(_, slot)| !self.slot_is_full(load, level, slot))
        })
    }

    /// Whether a slot takes no run before some are merged. Those that cannot be are not waited for.
    fn slot_is_full(&self, load: &Load<'_>, level: Level, slot: &Slot) -> bool {
        readable(&slot.runs, load.damaged) >= fanout::hard_cap(self.k_of(level, slot.k))
    }

    /// The one piece of work that moves bytes which a slot needs most.
    fn heavy(&self, site: &Site<'_>) -> Option<Draft> {
        if site.sized.slot.runs.is_empty() {
            return None;
        }
        if site.readable() < site.sized.slot.runs.len() {
            return self.merge_above_damage(site);
        }
        self.promotion(site)
            .or_else(|| self.due_merge(site))
            .or_else(|| self.paid_merge(site))
            .or_else(|| self.cleanup(site))
    }

    /// Of a level over its target, a slot over its budget moves down.
    fn promotion(&self, site: &Site<'_>) -> Option<Draft> {
        let level = site.id.level;
        if !self.shapes.is_over(level) {
            return None;
        }
        let budget = self.shapes.budget(&self.config, level, &site.sized.shape);
        let over = site.bytes() as f64 / budget.max(1.0);
        if over < 1.0 {
            return None;
        }
        let mut draft = self.promote(site)?;
        draft.urgency = over / self.fill_below(site).max(0.1);
        Some(draft)
    }

    /// Moves all runs of a slot down, if there is a level below and room in it.
    fn promote(&self, site: &Site<'_>) -> Option<Draft> {
        let below = site.id.level.below();
        if below.index() >= self.config.max_levels {
            return None;
        }
        let children = site.load.version.level(below)?.overlapping(&site.range);
        let full = children.into_iter().any(|(_, slot)| self.slot_is_full(site.load, below, slot));
        if full {
            return None;
        }
        let runs = site.all();
        let mut draft = Draft::new(PlanAction::Promote { runs }, Kind::Promote, site.bytes());
        draft.runs = site.sized.slot.runs.len();
        draft.lane = if site.is_full() { Lane::Mandatory } else { Lane::Chosen };
        Some(draft)
    }

    /// How full the slots below are, as a share of their budgets.
    fn fill_below(&self, site: &Site<'_>) -> f64 {
        let below = site.id.level.below();
        let slots = self.shapes.level(below);
        let start = slots.partition_point(|sized| sized.slot.start < site.range.start);
        let (mut bytes, mut budget) = (0.0, 0.0);
        let inside = slots.iter().skip(start);
        for sized in inside.take_while(|sized| site.range.is_before_end(&sized.slot.start)) {
            bytes += sized.shape.sums.bytes as f64;
            budget += self.shapes.budget(&self.config, below, &sized.shape);
        }
        bytes / f64::max(budget, 1.0)
    }

    /// A slot with more runs than its K merges the newest ones.
    fn due_merge(&self, site: &Site<'_>) -> Option<Draft> {
        let runs = &site.sized.shape.runs;
        let k = usize::from(site.k);
        if runs.len() <= k {
            return None;
        }
        let count = fanout::due_merge(runs, k);
        let mut draft = merge(site, count, Kind::Merge);
        draft.urgency = u64_of(runs.len() - k) as f64 / f64::from(site.k);
        draft.lane = if site.is_full() { Lane::Mandatory } else { Lane::Chosen };
        Some(draft)
    }

    /// A slot of which some run cannot be read stays where it is; what piles up on that run is merged.
    fn merge_above_damage(&self, site: &Site<'_>) -> Option<Draft> {
        let count = site.readable();
        if count <= usize::from(site.k).max(1) {
            return None;
        }
        let mut draft = merge(site, count, Kind::Merge);
        draft.urgency = 1.0;
        draft.lane = if site.is_full() { Lane::Mandatory } else { Lane::Chosen };
        Some(draft)
    }

    /// Reads have paid for a merge that nothing else asks for.
    fn paid_merge(&self, site: &Site<'_>) -> Option<Draft> {
        let debt = self.heat.slots.get(&site.id)?.debt;
        let count = fanout::paid_merge(&self.costs, &site.sized.shape.runs, debt)?;
        let mut draft = merge(site, count, Kind::EagerMerge);
        draft.lane = Lane::Idle;
        Some(draft)
    }

    /// A slot full of what nobody can read any more is rewritten, or, if older data lies below, moved down to meet it.
    fn cleanup(&self, site: &Site<'_>) -> Option<Draft> {
        let shape = &site.sized.shape;
        let sums = shape.sums;
        let collectable = site.load.live.oldest_snapshot >= shape.tombstone_seq;
        let density = sums.tombstones as f64 / sums.entries.max(1) as f64;
        let dense = collectable && density >= self.config.tombstone.density_threshold;
        let late = collectable && self.is_late(site);
        let expired = shape.expiry_due_s <= site.load.wall_s;
        let releasable = self.shapes.releasable(shape);
        let wasteful = releasable >= sums.bytes.max(1) as f64;
        if !(dense || late || expired || wasteful) {
            return None;
        }
        let runs = site.all();
        let action = PlanAction::Cleanup { runs };
        let mut draft = Draft::new(action, Kind::Cleanup, site.bytes());
        draft.runs = site.sized.slot.runs.len() - 1;
        draft.reclaimed = releasable + density.min(1.0) * sums.bytes as f64;
        if !wasteful && !BaseCheck::new(site.load.version, &site.id, &site.all()).is_bottom() {
            let budget = self.shapes.budget(&self.config, site.id.level, shape);
            let worthwhile = late || expired || sums.bytes as f64 >= budget / 4.0;
            draft = self.promote(site).filter(|_| worthwhile)?;
        }
        draft.urgency = if late { 1.0 } else { 0.0 };
        draft.lane = if late { Lane::Mandatory } else { Lane::Idle };
        Some(draft)
    }

    /// Whether the oldest tombstone has outstayed its level's part of the deadline: lower levels get more of it.
    fn is_late(&self, site: &Site<'_>) -> bool {
        let oldest = u64::from(site.sized.shape.sums.oldest_tombstone_s);
        if oldest == 0 || site.sized.shape.tombstone_seq == SeqNo(0) {
            return false;
        }
        let last = site.load.version.deepest().unwrap_or(site.id.level).max(site.id.level);
        let above = i32::from(last.0 - site.id.level.0);
        let share = (self.config.fanout as f64).powi(-above);
        site.load.wall_s.saturating_sub(oldest) as f64 > TOMBSTONE_DEADLINE_S * share
    }

    /// A slot that is too large, or read in one half only, is cut.
    fn split(&self, site: &Site<'_>) -> Option<Draft> {
        let level = site.id.level;
        let shape = &site.sized.shape;
        let least = LEAST_BLOCKS.saturating_mul(u64_of(self.config.block_size));
        let target = self.shapes.slot_target(&self.config, level);
        let slots = u64_of(self.shapes.level(level).len()) as f64;
        let known = self.whole.get(&site.id).is_some_and(|bytes| shape.sums.bytes / 2 < *bytes);
        if slots >= shape::most_slots(&self.config, level)
            || !shape.divisible
            || shape.sums.bytes < least
            || known
        {
            return None;
        }
        let large = shape.sums.bytes as f64 > 2.0 * target;
        if large && site.readable() < site.sized.slot.runs.len() {
            return None; // its middle cannot be looked up
        }
        let at = if large { None } else { Some(self.hot_half(site, target)?) };
        let mut draft = Draft::new(PlanAction::Split { at }, Kind::Guard, 0);
        draft.lane = Lane::Metadata;
        draft.urgency = shape.sums.bytes as f64 / target.max(1.0);
        Some(draft)
    }

    /// The middle of a hot slot of which one half takes nearly all gets.
    fn hot_half(&self, site: &Site<'_>, target: f64) -> Option<Bytes> {
        let known = self.heat.slots.get(&site.id)?;
        let lopsided = known.lower_share > LOPSIDED || known.lower_share < 1.0 - LOPSIDED;
        let worthwhile = site.bytes() as f64 >= target / 4.0;
        let middle = known.middle.as_ref()?;
        let inside = *middle > site.range.start && site.range.contains(middle);
        (site.temperature == Temperature::Hot && lopsided && worthwhile && inside)
            .then(|| middle.clone())
    }

    /// Two neighbours that are small, also in what lies below them, and cold become one.
    fn join(&self, site: &Site<'_>) -> Option<Draft> {
        let level = site.id.level;
        let (version, guard) = (site.load.version, site.range.end.clone()?);
        let next = SlotId { level, start: guard.clone() };
        let (range, _) = version.slot(&next)?;
        let cold = |id: &SlotId| {
            self.heat.temperature(id, &self.config.heat_thresholds) == Temperature::Cold
        };
        let block = u64_of(self.config.block_size) as f64;
        let small = self.shapes.slot_target(&self.config, level).max(block) / 4.0;
        let is_small = |range: &KeyRange| (self.bytes_down(version, level, range) as f64) < small;
        let fits = is_small(&site.range) && is_small(&range) && cold(&site.id) && cold(&next);
        if !fits || version.joined(level, &guard).is_err() {
            return None;
        }
        let mut draft = Draft::new(PlanAction::Join { guard }, Kind::Guard, 0);
        draft.lane = Lane::Metadata;
        Some(draft)
    }

    /// Bytes of `range` in a level and all below it.
    fn bytes_down(&self, version: &Version, level: Level, range: &KeyRange) -> u64 {
        let mut bytes = 0;
        for (deeper, _) in version.numbered().skip(level.index()) {
            let slots = self.shapes.level(deeper);
            let start = slots.partition_point(|sized| sized.slot.start < range.start);
            let inside = slots.iter().skip(start);
            let inside = inside.take_while(|sized| range.is_before_end(&sized.slot.start));
            bytes += inside.map(|sized| sized.shape.sums.bytes).sum::<u64>();
        }
        bytes
    }

    fn set_k(&self, site: &Site<'_>) -> Option<Draft> {
        let k = *self.wanted_k.get(&site.id)?;
        if k == site.k {
            return None;
        }
        let mut draft = Draft::new(PlanAction::SetK { k }, Kind::Guard, 0);
        draft.lane = Lane::Metadata;
        Some(draft)
    }

    /// Puts numbers on a draft: what is due is worth its cost by definition, and more the more overdue it is.
    fn price(&self, site: &Site<'_>, draft: Draft) -> Plan {
        let cost = draft.bytes as f64 * self.costs.write;
        let rent = self.rates_of(&site.id).rent(&self.costs);
        let due = if draft.urgency > 0.0 { cost * (1.0 + draft.urgency) } else { 0.0 };
        let reads = u64_of(draft.runs) as f64 * rent * HORIZON_S;
        let gain = due + reads + draft.reclaimed * RECLAIMED;
        let factor = self.bandit.factor(draft.kind, site.temperature);
        let index = gain * factor / cost.max(1.0);
        let lane = if draft.lane == Lane::Idle && index >= 1.0 { Lane::Chosen } else { draft.lane };
        Plan {
            action: draft.action,
            level: site.id.level,
            slot: site.id.clone(),
            lane,
            bytes: draft.bytes,
            gain,
            cost,
            index: if draft.bytes == 0 { draft.urgency } else { index },
            kind: draft.kind,
            temperature: site.temperature,
        }
    }
}

/// Merges the `count` newest runs of a slot.
fn merge(site: &Site<'_>, count: usize, kind: Kind) -> Draft {
    let bytes = site.sized.shape.runs.iter().take(count).sum();
    let mut draft = Draft::new(PlanAction::Merge { runs: site.names(count) }, kind, bytes);
    draft.runs = count.saturating_sub(1);
    draft
}
