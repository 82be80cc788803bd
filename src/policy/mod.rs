//! What to do next: a deterministic library. The same version, load and seed give the same plans.
//!
//! ```text
//! Version, Load ─▶ shape (sizes) ─┐
//! counters ─▶ heat (rates) ───────┼─▶ candidates ─▶ bandit (weights) ─▶ Vec<Plan>
//! Outcome ─▶ costs, bandit ───────┘   fanout: how many runs    placement: where guards go
//! ```
//!
//! Every merge, promotion or cleanup makes the version simpler by a measure that cannot grow without new data, so on a
//! version that nobody writes to the plans run out.

pub(crate) mod bandit;
mod candidates;
pub(crate) mod fanout;
mod full;
mod heat;
pub(crate) mod placement;
pub(crate) mod pressure;
pub(crate) mod restart;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use fanout::BlockReads;
pub(crate) use full::{FullCompaction, Wanted};
#[cfg(test)]
pub(crate) use heat::SAMPLING;
pub(crate) use heat::{Sampler, SlotCounters, counters_for};

use crate::config::ATLLConfig;
use crate::types::{FileId, KeyRange, Level, SeqNo, SlotId};
use crate::version::{EditOp, Run, RunId, Version};
use bandit::{Bandit, Kind, Temperature};
use fanout::{Bounds, Costs, Rates, SlotModel};
use heat::{Heat, Tick};
use shape::Shapes;

/// Gets and seeks per second from which a hot slot is held to [`ATLLConfig::hot_k`].
const BUSY_READS: f64 = 100.0;
/// Share of the work that may go to the second best plan, to learn from it.
const EXPLORE: f64 = 0.05;
/// Pressure from which nothing but what must be done is done.
const CALM: f64 = 0.5;
/// Longest wait before work that failed is tried again.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// How urgent a plan is; earlier ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Moves no bytes.
    Metadata,
    /// Something waits for it: a slot is full, or a deadline has passed.
    Mandatory,
    /// Somebody asked for it: it is no choice of the policy.
    Asked,
    /// Worth more than it costs.
    Chosen,
    /// Worth it while nothing else is to be done.
    Idle,
}

/// A piece of work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) action: PlanAction,
    /// Level whose compactor runs it.
    pub(crate) level: Level,
    pub(crate) slot: SlotId,
    pub(crate) lane: Lane,
    /// Bytes that it reads.
    pub(crate) bytes: u64,
    /// Predicted benefit, in nanoseconds.
    pub(crate) gain: f64,
    /// Predicted cost, in nanoseconds.
    pub(crate) cost: f64,
    /// Benefit per cost, weighed by what was learned.
    pub(crate) index: f64,
    kind: Kind,
    temperature: Temperature,
}

impl Plan {
    /// Tables that have to be read for it.
    pub(crate) fn reads<'v>(
        &'v self,
        version: &'v Version,
    ) -> impl Iterator<Item = FileId> + use<'v> {
        let runs = version.slot(&self.slot).map_or(&[][..], |(_, slot)| &slot.runs[..]);
        let is_read = |run: &&Run| match &self.action {
            PlanAction::Merge { runs }
            | PlanAction::Promote { runs }
            | PlanAction::Cleanup { runs } => runs.contains(&run.id),
            PlanAction::Split { at } => at.is_none(),
            PlanAction::Admit { .. } | PlanAction::Join { .. } | PlanAction::SetK { .. } => false,
        };
        runs.iter().filter(is_read).flat_map(|run| &run.slices).map(|slice| slice.table)
    }
}

/// Runs of a slot, from the newest on, in front of the first that cannot be read: what may be merged.
pub(crate) fn readable(runs: &[Run], damaged: &BTreeSet<FileId>) -> usize {
    let fine = |run: &&Run| !run.slices.iter().any(|slice| damaged.contains(&slice.table));
    if damaged.is_empty() { runs.len() } else { runs.iter().take_while(fine).count() }
}

/// What a plan does to its slot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PlanAction {
    /// Cuts the oldest run of L0 at the guards of L1 and pushes the pieces there: [`Version::admission`].
    Admit { run: RunId },
    /// Merges neighbouring runs into one, in their place.
    Merge { runs: Vec<RunId> },
    /// Merges all runs, cuts the result at the guards below, and pushes each piece as the newest run of its slot there.
    /// Ask [`trivial_move`] first: it may need no byte.
    Promote { runs: Vec<RunId> },
    /// Rewrites all runs into one, to let go of what is deleted, expired or pinned in dead tables.
    Cleanup { runs: Vec<RunId> },
    /// Cuts the slot at `at`, or, if that is `None`, at the [`placement::byte_median`] of its blocks.
    Split { at: Option<Bytes> },
    /// Removes the guard, which joins the slot with the one before it. `Plan::slot` is the one before.
    Join { guard: Bytes },
    /// Sets how many runs the slot is meant to hold.
    SetK { k: u8 },
}

impl PlanAction {
    /// Whether it moves bytes, and so counts as a background compaction.
    pub(crate) fn is_heavy(&self) -> bool {
        match self {
            Self::Merge { .. } | Self::Promote { .. } | Self::Cleanup { .. } => true,
            Self::Admit { .. } | Self::Split { .. } | Self::Join { .. } | Self::SetK { .. } => {
                false
            }
        }
    }

    /// Name for events.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Admit { .. } => "admit",
            Self::Merge { .. } => "merge",
            Self::Promote { .. } => "promote",
            Self::Cleanup { .. } => "cleanup",
            Self::Split { .. } => "split",
            Self::Join { .. } => "join",
            Self::SetK { .. } => "set_k",
        }
    }
}

/// What a running plan keeps others away from. Made once, when the plan starts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Busy {
    /// Levels from, levels to (inclusive), and the keys there.
    levels: (Level, Level),
    range: KeyRange,
    admits: bool,
    moves_guards: bool,
    counts: Counts,
}

/// Which number of compactions at a time a plan counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// None: it moves no byte.
    Not,
    /// Those that the policy chose.
    Chosen,
    /// Those that were asked for.
    Asked,
}

impl Busy {
    /// What `plan` keeps others away from while it runs on `version` or a later one.
    pub(crate) fn of(plan: &Plan, version: &Version) -> Self {
        let level = plan.slot.level;
        let mut range = version.slot(&plan.slot).map(|(range, _)| range).unwrap_or_default();
        let mut deepest = level;
        let (mut admits, mut moves_guards) = (false, false);
        match &plan.action {
            PlanAction::Admit { .. } => {
                admits = true;
                // Pushing a newest run disturbs nobody: an admission touches no slot for itself.
                range.end = Some(range.start.clone());
            }
            PlanAction::Promote { .. } => deepest = level.below(),
            PlanAction::Split { .. } | PlanAction::Join { .. } => {
                moves_guards = true;
                deepest = Level(u8::MAX);
            }
            PlanAction::Merge { .. } | PlanAction::Cleanup { .. } | PlanAction::SetK { .. } => {}
        }
        if let PlanAction::Join { guard } = &plan.action {
            let other = SlotId { level, start: guard.clone() };
            range.end = version.slot(&other).and_then(|(range, _)| range.end);
        }
        let counts = match plan.lane {
            _ if !plan.action.is_heavy() => Counts::Not,
            Lane::Asked => Counts::Asked,
            Lane::Metadata | Lane::Mandatory | Lane::Chosen | Lane::Idle => Counts::Chosen,
        };
        Self { levels: (level, deepest), range, admits, moves_guards, counts }
    }

    /// Whether it cannot run at the same time as one of `others`.
    pub(crate) fn conflicts_with_any(&self, others: &[Self]) -> bool {
        others.iter().any(|other| other.conflicts(self))
    }

    /// Whether it is a compaction that somebody asked for.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.counts == Counts::Asked
    }

    /// Whether both cannot run at the same time.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let guards = self.admits && other.moves_guards || self.moves_guards && other.admits;
        let levels = self.levels.0 <= other.levels.1 && other.levels.0 <= self.levels.1;
        (self.admits && other.admits) || guards || (levels && self.range.overlaps(&other.range))
    }
}

/// What piles up in memory, and what still reads old versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BacklogLoad {
    pub(crate) sealed_memtables: usize,
    /// Bytes of all memtables, active and sealed.
    pub(crate) memtable_bytes: u64,
    /// Oldest SeqNo that a snapshot reads at; [`SeqNo::MAX`] if there is none.
    pub(crate) oldest_snapshot: SeqNo,
}

impl Default for BacklogLoad {
    fn default() -> Self {
        Self { sealed_memtables: 0, memtable_bytes: 0, oldest_snapshot: SeqNo::MAX }
    }
}

/// What the policy looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) version: &'a Version,
    pub(crate) counters: &'a BTreeMap<SlotId, Arc<SlotCounters>>,
    pub(crate) live: BacklogLoad,
    /// What blocks cost those who needed them, so far.
    pub(crate) blocks: BlockReads,
    /// Tables that cannot be read: what needs them is left alone.
    pub(crate) damaged: &'a BTreeSet<FileId>,
    /// Time since some fixed moment.
    pub(crate) now: Duration,
    /// Seconds since the Unix epoch.
    pub(crate) wall_s: u64,
}

/// How a plan went.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) plan: Plan,
    pub(crate) result: Done,
    /// When it ended.
    pub(crate) now: Duration,
}

/// Result of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Its edit was installed.
    Installed { bytes_in: u64, bytes_out: u64, spent: Duration },
    /// There was nothing to do, such as a slot that has no key to be cut at.
    Nothing,
    /// It failed; it will be planned again after a while.
    Failed,
}

/// Why a slot is left alone for a while.
#[derive(Clone, Debug, PartialEq)]
struct Rest {
    failures: u32,
    until: Duration,
}

/// The policy and what it has learned.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    config: ATLLConfig,
    shapes: Shapes,
    heat: Heat,
    costs: Costs,
    /// What was measured at the last look.
    blocks: BlockReads,
    bandit: Bandit,
    /// K that slots should have and do not have yet.
    wanted_k: BTreeMap<SlotId, u8>,
    /// Slots whose work failed.
    resting: BTreeMap<SlotId, Rest>,
    /// Bytes of slots when they turned out to have no key to be cut at.
    whole: BTreeMap<SlotId, u64>,
    chance: fastrand::Rng,
    planned_bytes: f64,
    explored_bytes: f64,
}

impl Policy {
    /// A policy that has learned nothing yet.
    pub(crate) fn new(config: &ATLLConfig) -> Self {
        Self {
            config: config.clone(),
            shapes: Shapes::default(),
            heat: Heat::default(),
            costs: Costs::new(config),
            blocks: BlockReads::default(),
            bandit: Bandit::default(),
            wanted_k: BTreeMap::new(),
            resting: BTreeMap::new(),
            whole: BTreeMap::new(),
            chance: fastrand::Rng::with_seed(config.seed),
            planned_bytes: 0.0,
            explored_bytes: 0.0,
        }
    }

    /// Takes in what was read and written since the last call, and reconsiders the K of every slot.
    ///
    /// To be called about once a second; the work itself never waits for it.
    pub(crate) fn observe(&mut self, load: &Load<'_>) {
        self.shapes.refresh(load.version, &self.config);
        let bytes = self.shapes.slot_bytes();
        let Load { version, counters, now, .. } = *load;
        self.costs.blocks_read(load.blocks.since(self.blocks));
        self.blocks = load.blocks;
        let tick = Tick { version, counters, bytes: &bytes, now };
        self.heat.tick(tick, &self.costs, &self.config.heat_thresholds);
        self.wanted_k.retain(|id, _| bytes.contains_key(id));
        self.whole.retain(|id, _| bytes.contains_key(id));
        self.resting.retain(|id, _| bytes.contains_key(id) || id.level == Level::L0);
        for (id, bytes) in &bytes {
            self.reconsider(load.version, id, *bytes);
        }
    }

    /// Work that may start now: conflicts neither with `busy` nor with each other, best first, at most `free` plans.
    ///
    /// Plans that move bytes are at most [`max_background_compactions`](crate::IoConfig::max_background_compactions)
    /// together with those of its choice that are busy; let `free` be larger, so that metadata never waits for them.
    pub(crate) fn plan(&mut self, load: &Load<'_>, busy: &[Busy], free: usize) -> Vec<Plan> {
        self.shapes.refresh(load.version, &self.config);
        let mut plans = self.candidates(load);
        if self.pressure_now(load) >= CALM {
            plans.retain(|plan| plan.lane < Lane::Idle);
        }
        plans.sort_by(|a, b| order(a).cmp(&order(b)).then(b.index.total_cmp(&a.index)));
        self.explore(load, &mut plans);
        let limit = self.config.io.max_background_compactions;
        let mut heavy = busy.iter().filter(|busy| busy.counts == Counts::Chosen).count();
        let mut taken: Vec<Busy> = busy.to_vec();
        let mut picked = Vec::new();
        for plan in plans {
            if picked.len() >= free {
                break;
            }
            let touches = Busy::of(&plan, load.version);
            let is_heavy = plan.action.is_heavy();
            if touches.moves_guards && taken.iter().any(|other| other.moves_guards) {
                continue; // one at a time: the next may find its level cut finely enough
            }
            if touches.conflicts_with_any(&taken) {
                // What is urgent and blocked keeps its place free, or smaller work would keep it out for ever.
                if touches.moves_guards || plan.lane == Lane::Mandatory {
                    taken.push(Busy { moves_guards: false, ..touches });
                }
            } else if !is_heavy || heavy < limit {
                heavy += usize::from(is_heavy);
                taken.push(touches);
                self.planned_bytes += plan.bytes as f64;
                picked.push(plan);
            }
        }
        picked
    }

    /// Learns from a plan that ended.
    pub(crate) fn reward(&mut self, done: &Outcome) {
        let id = &done.plan.slot;
        match done.result {
            Done::Failed => {
                let rest = self.resting.entry(id.clone());
                let rest = rest.or_insert(Rest { failures: 0, until: done.now });
                let wait = Duration::from_millis(200) * 2_u32.pow(rest.failures.min(12));
                rest.until = done.now.saturating_add(wait.min(LONGEST_BACKOFF));
                rest.failures = rest.failures.saturating_add(1);
            }
            Done::Nothing => {
                let shape = self.shapes.slot_bytes().get(id).copied().unwrap_or(0);
                self.whole.insert(id.clone(), shape);
            }
            Done::Installed { bytes_in, bytes_out, spent } => {
                self.resting.remove(id);
                self.installed(&done.plan, bytes_in, bytes_out, spent);
            }
        }
    }

    /// Read cost of a slot as a share of that of the hottest, 0..=1.
    pub(crate) fn heat_of(&self, slot: &SlotId) -> f32 {
        self.heat.heat(slot)
    }

    /// Edits that record the heat of slots where it moved by more than a tenth; worth writing now and then.
    pub(crate) fn heat_edits(&self, version: &Version) -> Vec<EditOp> {
        let moved = |(id, heat): (&SlotId, &heat::SlotHeat)| {
            let (_, slot) = version.slot(id)?;
            let heat = heat.heat;
            ((slot.heat - heat).abs() > 0.1).then(|| EditOp::SetHeat {
                level: id.level,
                slot: id.start.clone(),
                heat,
            })
        };
        self.heat.slots.iter().filter_map(moved).collect()
    }

    /// How many runs a slot is meant to hold: what was chosen for it, else the default of its level.
    pub(crate) fn k_of(&self, level: Level, k: u8) -> u8 {
        if k == 0 { fanout::default_k(&self.config, level) } else { k.min(fanout::MAX_K) }
    }

    /// Bytes by which slots are over their budgets: what compaction has yet to move. What it cannot read does not count.
    pub(crate) fn debt(&mut self, version: &Version, damaged: &BTreeSet<FileId>) -> u64 {
        self.shapes.refresh(version, &self.config);
        let mut debt = 0;
        for (level, _) in version.numbered().skip(1) {
            if level.index() + 1 >= version.levels.len() {
                break;
            }
            let target = self.shapes.target(level);
            debt += self.shapes.excess(level, target, damaged);
        }
        debt
    }

    fn pressure_now(&mut self, load: &Load<'_>) -> f64 {
        let debt = self.debt(load.version, load.damaged);
        let l0_runs = load.version.l0_runs().len();
        let memtable_bytes = load.live.memtable_bytes;
        let backlog = pressure::Backlog { memtable_bytes, l0_runs, debt };
        pressure::pressure(&self.config, backlog).value
    }

    /// Now and then lets the second best of the chosen work go first, while there is no pressure.
    fn explore(&mut self, load: &Load<'_>, plans: &mut [Plan]) {
        let Some(first) = plans.iter().position(|plan| plan.lane == Lane::Chosen) else { return };
        let Some([best, second]) = plans.get_mut(first..first + 2) else { return };
        let calm = load.live.sealed_memtables < 2;
        let within = self.explored_bytes <= EXPLORE * self.planned_bytes;
        if calm && within && second.lane == Lane::Chosen && self.chance.f64() < EXPLORE {
            self.explored_bytes += second.bytes as f64;
            std::mem::swap(best, second);
        }
    }

    fn installed(&mut self, plan: &Plan, bytes_in: u64, bytes_out: u64, spent: Duration) {
        if let Some(slot) = self.heat.slots.get_mut(&plan.slot) {
            match plan.action {
                PlanAction::SetK { .. } => slot.dwell = 0,
                PlanAction::Merge { .. }
                | PlanAction::Promote { .. }
                | PlanAction::Cleanup { .. } => {
                    slot.debt = 0.0;
                }
                PlanAction::Admit { .. } | PlanAction::Split { .. } | PlanAction::Join { .. } => {}
            }
        }
        let moved = bytes_in.saturating_add(bytes_out) as f64;
        if !plan.action.is_heavy() || moved < 1.0 {
            return;
        }
        self.costs.measured(spent.as_secs_f64() * 1e9, moved);
        // The benefit is the runs that are gone, which went as planned; the price is what may surprise.
        let price = moved * self.costs.write / 2.0;
        let realised = plan.cost / price.max(1.0);
        self.bandit.learn(plan.kind, plan.temperature, 1.0, realised);
    }

    /// Chooses the K of a slot anew.
    fn reconsider(&mut self, version: &Version, id: &SlotId, bytes: u64) {
        let Some((_, slot)) = version.slot(id) else { return };
        let Some(known) = self.heat.slots.get(id) else { return };
        let now = self.k_of(id.level, slot.k);
        let rates = known.rates;
        let reads = rates.gets + rates.seeks;
        let temperature = self.heat.temperature(id, &self.config.heat_thresholds);
        let is_last = version.deepest().is_none_or(|deepest| deepest <= id.level);
        let default = fanout::default_k(&self.config, id.level);
        let mut bounds =
            Bounds { least: 1, most: if is_last { default.max(2) } else { fanout::MAX_K } };
        match temperature {
            Temperature::Hot if reads >= BUSY_READS => bounds.most = self.config.hot_k,
            Temperature::Cold => bounds.least = default.min(bounds.most),
            Temperature::Hot | Temperature::Warm => {}
        }
        let model = SlotModel { rates, bytes: bytes as f64, fragments: self.fragments(id.level) };
        let wanted = fanout::choose(&self.costs, &model, now, bounds);
        if wanted == now || (known.dwell < fanout::DWELL && slot.k != 0) {
            self.wanted_k.remove(id);
            return;
        }
        // Going up costs nothing. Going down makes a merge due: it waits until reads have paid for that.
        let over = slot.runs.len() > usize::from(wanted);
        let sizes = self.shapes.level(id.level);
        let found = sizes.binary_search_by(|sized| sized.slot.start.cmp(&id.start)).ok();
        let runs = found.and_then(|at| sizes.get(at)).map(|sized| &sized.shape.runs[..]);
        let paid = fanout::paid_merge(&self.costs, runs.unwrap_or_default(), known.debt).is_some();
        if wanted > now || !over || paid {
            self.wanted_k.insert(id.clone(), wanted);
        }
    }

    /// Fragments that a slot of a level takes in between two promotions.
    fn fragments(&self, level: Level) -> f64 {
        if level == Level(1) {
            let flush = self.config.memtable.flush_trigger_bytes.max(1);
            (self.shapes.target(level) / flush as f64).max(1.0)
        } else {
            self.config.fanout as f64
        }
    }

    /// Rates of a slot, as far as known.
    fn rates_of(&self, id: &SlotId) -> Rates {
        self.heat.slots.get(id).map(|slot| slot.rates).unwrap_or_default()
    }
}

/// What goes first, before the index decides: lanes; in the first lane guards, then K, then admissions.
fn order(plan: &Plan) -> (Lane, u8) {
    let rank = match plan.action {
        PlanAction::Split { .. } => 0,
        PlanAction::Join { .. } => 1,
        PlanAction::SetK { .. } => 2,
        PlanAction::Admit { .. } => 3,
        PlanAction::Merge { .. } | PlanAction::Promote { .. } | PlanAction::Cleanup { .. } => 4,
    };
    (plan.lane, rank)
}

/// The edit operations of a promotion that needs no byte moved, if there are any.
///
/// That is so for a single run if nothing lies below, or if none of its slices is cut by a guard below. Several runs are
/// merged in any case: handed down as they are, they would have to be merged there. `fresh`: gives a new run name.
pub(crate) fn trivial_move(
    version: &Version,
    slot: &SlotId,
    runs: &[RunId],
    fresh: &mut dyn FnMut() -> RunId,
) -> Option<Vec<EditOp>> {
    let (range, state) = version.slot(slot)?;
    let below = slot.level.below();
    let level = version.level(below)?;
    let [only] = runs else { return None };
    let run = state.run(*only)?;
    let empty = level.overlapping(&range).all(|(_, child)| child.runs.is_empty());
    let mut slices = run.slices.iter();
    let whole = slices.all(|slice| {
        let child = version.slot_of(below, &slice.range.start);
        child.is_some_and(|(child, _)| child.covers(&slice.range))
    });
    if !empty && !whole {
        return None;
    }
    let (level, removed) = (slot.level, runs.to_vec());
    let mut ops =
        vec![EditOp::ReplaceRuns { level, slot: slot.start.clone(), removed, with: None }];
    let id = fresh();
    for (start, piece) in version.cut_run(run, below) {
        let run = Run { id, slices: piece.slices };
        ops.push(EditOp::PushRun { level: below, slot: start, run });
    }
    Some(ops)
}
