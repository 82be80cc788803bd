//! Laws of the policy: work runs out, levels form, and every field of the configuration decides something.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::placement::{BlockWeight, byte_median};
use super::{
    BacklogLoad, Busy, Done, FullCompaction, Lane, Load, Outcome, Plan, PlanAction, Policy,
    SlotCounters, counters_for, trivial_move,
};
use crate::config::{ATLLConfig, DefaultK, IoConfig, MemtableConfig};
use crate::types::{CompactionMode, FileId, KeyRange, Level, SeqNo, SlotId, u64_of};
use crate::version::testing::{ENTRY_BYTES, Tree, key};
use crate::version::{EditOp, RunId, Version};

/// A policy at work on a tree without files.
struct World {
    config: ATLLConfig,
    policy: Policy,
    tree: Tree,
    counters: BTreeMap<SlotId, Arc<SlotCounters>>,
    live: BacklogLoad,
    blocks: super::BlockReads,
    damaged: BTreeSet<FileId>,
    now: Duration,
    wall_s: u64,
}

/// Flushes of 64 entries, blocks of eight.
fn config() -> ATLLConfig {
    ATLLConfig {
        memtable: MemtableConfig { flush_trigger_bytes: 6400, ..MemtableConfig::default() },
        fanout: 4,
        max_levels: 5,
        l1_slot_count: 8,
        block_size: 800,
        seed: 7,
        io: IoConfig { max_background_compactions: 4, rate_limit_mb_s: None, scrub_interval: None },
        ..ATLLConfig::default()
    }
}

impl World {
    fn new(config: ATLLConfig) -> Self {
        config.validate().unwrap();
        Self {
            policy: Policy::new(&config),
            tree: Tree::new(config.max_levels),
            config,
            counters: BTreeMap::new(),
            live: BacklogLoad::default(),
            blocks: super::BlockReads::default(),
            damaged: BTreeSet::new(),
            now: Duration::ZERO,
            wall_s: 0,
        }
    }

    fn load(&self) -> Load<'_> {
        Load {
            version: &self.tree.version,
            counters: &self.counters,
            live: self.live,
            blocks: self.blocks,
            damaged: &self.damaged,
            now: self.now,
            wall_s: self.wall_s,
        }
    }

    fn plans(&mut self, busy: &[Busy], free: usize) -> Vec<Plan> {
        let load = Load {
            version: &self.tree.version,
            counters: &self.counters,
            live: self.live,
            blocks: self.blocks,
            damaged: &self.damaged,
            now: self.now,
            wall_s: self.wall_s,
        };
        self.policy.plan(&load, busy, free)
    }

    /// One second passes.
    fn tick(&mut self) {
        self.now += Duration::from_secs(1);
        self.counters = counters_for(&self.tree.version, &self.counters);
        let mut policy = self.policy.clone();
        policy.observe(&self.load());
        self.policy = policy;
    }

    /// Deletes every third key, by tombstones.
    fn delete_a_third(&mut self) {
        let keys: Vec<u32> = self.tree.truth.keys().copied().step_by(3).collect();
        for some in keys.chunks(64) {
            let deletes: Vec<_> = some.iter().map(|number| (*number, true)).collect();
            self.tree.flush(&deletes);
        }
    }

    /// Flushes `items`, and admits them to L1.
    fn admit(&mut self, items: &[(u32, bool)]) {
        self.tree.flush(items);
        let run = self.tree.version.l0_runs()[0].id;
        self.run(&Plan { action: PlanAction::Admit { run }, ..some_plan(Level::L0) });
    }

    /// Runs what `compaction` wants, one plan after the other, but for those that read `damaged`. What they did.
    fn complete(
        &mut self,
        compaction: &FullCompaction,
        damaged: Option<FileId>,
    ) -> Vec<&'static str> {
        let mut names = Vec::new();
        loop {
            let version = &self.tree.version;
            let is_stuck = |plan: &Plan| plan.reads(version).any(|table| Some(table) == damaged);
            let Some(plan) = compaction.wanted(version, is_stuck).sound.into_iter().next() else {
                return names;
            };
            names.push(plan.action.name());
            assert!(names.len() < 2000, "{}", self.picture());
            self.run(&plan);
        }
    }

    /// Everything is one run per slot of the deepest level, without a tombstone, and reads as it should.
    fn check_compacted(&self) {
        self.tree.check_reads();
        let version = &self.tree.version;
        let deepest = version.deepest().unwrap();
        for (level, state) in version.numbered() {
            let most = usize::from(level == deepest);
            assert!(state.slots.iter().all(|slot| slot.runs.len() <= most), "{}", self.picture());
        }
        assert!(version.tables.values().all(|table| table.tombstones == 0));
    }

    fn run(&mut self, plan: &Plan) {
        let before = (self.tree.rewritten, self.tree.version.clone());
        match &plan.action {
            PlanAction::Admit { run } => {
                let ops = self.tree.version.admission(*run).unwrap();
                self.tree.install(ops).unwrap();
            }
            PlanAction::Merge { runs } | PlanAction::Cleanup { runs } => {
                self.tree.merge(&plan.slot, runs);
            }
            PlanAction::Promote { runs } => self.promote(plan, runs),
            PlanAction::Split { at } => self.split(plan, at.clone()),
            PlanAction::Join { guard } => {
                let op = EditOp::RemoveGuard { level: plan.level, key: guard.clone() };
                self.tree.install(vec![op]).unwrap();
            }
            PlanAction::SetK { k } => {
                let slot = plan.slot.start.clone();
                self.tree.install(vec![EditOp::SetK { level: plan.level, slot, k: *k }]).unwrap();
            }
        }
        let bytes = (self.tree.rewritten - before.0) * ENTRY_BYTES;
        let result = if before.1 == self.tree.version {
            Done::Nothing
        } else {
            Done::Installed { bytes_in: plan.bytes, bytes_out: bytes, spent: Duration::ZERO }
        };
        self.policy.reward(&Outcome { plan: plan.clone(), result, now: self.now });
    }

    fn promote(&mut self, plan: &Plan, runs: &[RunId]) {
        let mut names: Vec<u64> = runs.iter().map(|_| self.tree.fresh()).collect();
        let mut fresh = || RunId(names.pop().unwrap());
        match trivial_move(&self.tree.version, &plan.slot, runs, &mut fresh) {
            Some(ops) => self.tree.install(ops).unwrap(),
            None => self.tree.promote(&plan.slot, runs),
        }
    }

    fn split(&mut self, plan: &Plan, at: Option<Bytes>) {
        let (range, _) = self.tree.version.slot(&plan.slot).unwrap();
        let weigh = |start| BlockWeight { start, bytes: 8 * ENTRY_BYTES };
        let blocks = self.tree.block_starts(&plan.slot).into_iter().map(weigh).collect();
        if let Some(key) = at.or_else(|| byte_median(blocks, &range)) {
            self.tree.install(vec![EditOp::AddGuard { level: plan.level, key }]).unwrap();
        }
    }

    /// Runs plans until there are none; returns how many there were.
    fn settle(&mut self) -> usize {
        let mut count = 0;
        loop {
            let plans = self.plans(&[], 8);
            if plans.is_empty() {
                return count;
            }
            for plan in plans {
                self.run(&plan);
                self.check_bounds();
                count += 1;
            }
            assert!(count < 5000, "work does not run out:\n{}", self.picture());
        }
    }

    fn check_bounds(&self) {
        for (level, state) in self.tree.version.numbered().skip(1) {
            for slot in &state.slots {
                let k = self.policy.k_of(level, slot.k);
                let limit = (usize::from(k) + 4).min(8);
                assert!(slot.runs.len() <= limit, "{level}: {} runs", slot.runs.len());
            }
            let slots = u64_of(self.config.l1_slot_count);
            // A guard of an upper level cuts the deeper ones too, whatever they have themselves.
            let most = |level: u8| slots * u64_of(self.config.fanout).pow(u32::from(level) - 1);
            let all: u64 = (1..=level.0).map(most).sum();
            assert!(u64_of(state.slots.len()) <= all, "{level} has too many slots");
        }
    }

    /// Runs per slot, level by level: `L1 2|0|3`.
    fn picture(&self) -> String {
        let mut text = String::new();
        for (level, state) in self.tree.version.numbered() {
            let runs: Vec<_> = state.slots.iter().map(|slot| slot.runs.len().to_string()).collect();
            writeln!(text, "{level} {}", runs.join("|")).unwrap();
        }
        text
    }

    fn fill(&mut self, flushes: u32, seed: u64) {
        let mut chance = fastrand::Rng::with_seed(seed);
        for _ in 0..flushes {
            let writes: Vec<_> = (0..64).map(|_| (chance.u32(0..1_000_000), false)).collect();
            self.tree.flush(&writes);
            self.settle();
        }
    }

    fn read(&self, number: u32, times: u32) {
        for _ in 0..times {
            for (level, _) in self.tree.version.numbered().skip(1) {
                let (_, slot) = self.tree.version.slot_of(level, &key(number)).unwrap();
                let id = SlotId { level, start: slot.start.clone() };
                if let Some(counters) = self.counters.get(&id) {
                    counters.record_get(&key(number), slot.runs.len());
                }
            }
        }
    }
}

fn l1(start: Bytes) -> SlotId {
    SlotId { level: Level(1), start }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Bounds and invariants are checked after each plan.
    #[test]
    fn work_runs_out_and_loses_no_key(
        seed: u64,
        flushes in 1..40_u32,
        span in 10..20_000_u32,
        deletes in 0..100_u32,
    ) {
        let mut world = World::new(config());
        let mut chance = fastrand::Rng::with_seed(seed);
        for _ in 0..flushes {
            let count = chance.u32(1..200);
            let write = |_| (chance.u32(0..span), chance.u32(0..200) < deletes);
            let writes: Vec<_> = (0..count).map(write).collect();
            world.tree.flush(&writes);
            if seed.is_multiple_of(3) {
                world.tick();
            }
            if !seed.is_multiple_of(2) {
                world.settle();
            }
        }
        world.settle();
        world.tree.check_reads();
        prop_assert!(world.tree.version.l0_runs().is_empty());
        for (level, state) in world.tree.version.numbered().skip(1) {
            for slot in &state.slots {
                prop_assert!(slot.runs.len() <= usize::from(world.policy.k_of(level, slot.k)));
            }
        }
    }

    #[test]
    fn plans_of_one_call_and_busy_ones_never_touch_the_same_slots(seed: u64) {
        let mut world = World::new(ATLLConfig {
            io: IoConfig { max_background_compactions: 8, rate_limit_mb_s: None, scrub_interval: None },
            ..config()
        });
        let mut chance = fastrand::Rng::with_seed(seed);
        for _ in 0..30 {
            let writes: Vec<_> = (0..200).map(|_| (chance.u32(0..100_000), false)).collect();
            world.tree.flush(&writes);
            for _ in 0..chance.u32(1..6) {
                let version = world.tree.version.clone();
                let first = world.plans(&[], 2);
                let busy: Vec<Busy> = first.iter().map(|plan| Busy::of(plan, &version)).collect();
                let second = world.plans(&busy, 8);
                let all: Vec<Busy> =
                    first.iter().chain(&second).map(|plan| Busy::of(plan, &version)).collect();
                for (at, one) in all.iter().enumerate() {
                    prop_assert!(all.iter().skip(at + 1).all(|other| !one.conflicts(other)));
                }
                for plan in first.iter().chain(&second) {
                    world.run(plan);
                }
            }
        }
        world.settle();
        world.tree.check_reads();
    }
}

#[test]
fn levels_form_and_writes_are_amplified_within_bounds() {
    let mut world = World::new(config());
    world.fill(400, 1);
    world.tree.check_reads();
    let deepest = world.tree.version.deepest().unwrap();
    assert!(deepest >= Level(3), "{}", world.picture());
    let amplification = world.tree.rewritten as f64 / world.tree.flushed as f64;
    assert!((0.5..12.0).contains(&amplification), "{amplification}\n{}", world.picture());
    let l1 = world.tree.version.level_bytes(Level(1)) as f64;
    assert!(l1 <= 3.0 * 4.0 * 6400.0, "L1 holds {l1} bytes");
    assert!(world.tree.version.levels[1].slots.len() > 1, "guards were learned");
}

#[test]
fn little_data_stays_in_one_level() {
    let mut world = World::new(config());
    world.fill(4, 1);
    assert_eq!(world.tree.version.deepest(), Some(Level(1)), "{}", world.picture());
}

#[test]
fn data_never_sinks_below_the_last_level() {
    let mut world = World::new(ATLLConfig { max_levels: 2, ..config() });
    world.fill(60, 2);
    assert_eq!(world.tree.version.deepest(), Some(Level(1)));
    world.tree.check_reads();
}

#[test]
fn the_same_inputs_give_the_same_plans() {
    let history = |seed| {
        let mut world = World::new(ATLLConfig { seed, ..config() });
        world.fill(60, 3);
        (world.picture(), world.tree.version)
    };
    assert_eq!(history(5), history(5));
}

#[test]
fn equal_writes_to_one_key_never_split_and_still_end() {
    let mut world = World::new(config());
    for _ in 0..40 {
        world.tree.flush(&[(1, false)]);
        world.settle();
    }
    assert_eq!(world.tree.version.levels[1].slots.len(), 1);
}

#[test]
fn the_oldest_flush_is_admitted_first_and_only_one_at_a_time() {
    let mut world = World::new(config());
    world.tree.flush(&[(1, false)]);
    world.tree.flush(&[(2, false)]);
    let oldest = world.tree.version.l0_runs()[1].id;
    let plans = world.plans(&[], 8);
    assert_eq!(plans.len(), 1);
    assert_eq!(plans[0].action, PlanAction::Admit { run: oldest });
    let busy = Busy::of(&plans[0], &world.tree.version);
    assert_eq!(world.plans(&[busy], 8), []);
}

#[test]
fn nothing_is_pushed_into_a_full_slot() {
    let mut world = World::new(config());
    for number in 0..9 {
        world.tree.flush(&[(number, false)]);
    }
    for _ in 0..7 {
        let run = world.tree.version.l0_runs().last().unwrap().id;
        let ops = world.tree.version.admission(run).unwrap();
        world.tree.install(ops).unwrap();
    }
    let plans = world.plans(&[], 8);
    assert!(plans.iter().all(|plan| !matches!(plan.action, PlanAction::Admit { .. })), "{plans:?}");
    assert_eq!((plans[0].lane, plans[0].action.name()), (Lane::Mandatory, "merge"));
    world.settle();
    assert!(world.tree.version.l0_runs().is_empty());
}

#[test]
fn no_split_while_an_admission_runs_and_none_beside_work_below() {
    let mut world = World::new(config());
    for seed in 0..9 {
        let writes: Vec<_> = (0..64).map(|n| (n * 1000 + seed, false)).collect();
        world.tree.flush(&writes);
    }
    while let Some(run) = world.tree.version.l0_runs().get(1) {
        let id = run.id;
        let oldest = world.tree.version.l0_runs().last().unwrap().id;
        let ops = world.tree.version.admission(oldest).unwrap();
        world.tree.install(ops).unwrap();
        if id == oldest {
            break;
        }
    }
    let admit = Plan { action: PlanAction::Admit { run: RunId(0) }, ..some_plan(Level::L0) };
    let split = |plans: &[Plan]| plans.iter().any(|plan| plan.action.name() == "split");
    let admit = Busy::of(&admit, &world.tree.version);
    let below = Plan { action: PlanAction::Merge { runs: vec![] }, ..some_plan(Level(3)) };
    let below = Busy::of(&below, &world.tree.version);
    assert!(split(&world.plans(&[], 8)));
    assert!(!split(&world.plans(&[admit], 8)));
    assert!(!split(&world.plans(&[below], 8)));
}

/// What is left to do where nothing is damaged.
fn wanted(compaction: &FullCompaction, version: &Version) -> Vec<Plan> {
    compaction.wanted(version, |_| false).sound
}

fn some_plan(level: Level) -> Plan {
    let mut tree = Tree::new(5);
    tree.flush(&[(1, false)]);
    let compaction = FullCompaction::begin(&tree.version, KeyRange::all(), CompactionMode::Full);
    let plan = wanted(&compaction, &tree.version).remove(0);
    Plan { slot: SlotId { level, start: Bytes::new() }, level, ..plan }
}

#[test]
fn work_that_fails_rests_before_it_is_tried_again() {
    let mut world = World::new(config());
    world.tree.flush(&[(1, false)]);
    let plan = world.plans(&[], 1).remove(0);
    for wait in [200, 400, 800] {
        let outcome = Outcome { plan: plan.clone(), result: Done::Failed, now: world.now };
        world.policy.reward(&outcome);
        world.now += Duration::from_millis(wait - 1);
        assert_eq!(world.plans(&[], 8), []);
        world.now += Duration::from_millis(1);
        assert_eq!(world.plans(&[], 8), std::slice::from_ref(&plan));
    }
}

#[test]
fn a_slot_that_has_no_key_to_be_cut_at_is_left_whole_until_it_grows() {
    let mut world = World::new(config());
    for seed in 0..3 {
        let writes: Vec<_> = (0..64).map(|n| (n * 1000 + seed, false)).collect();
        world.tree.flush(&writes);
        let run = world.tree.version.l0_runs()[0].id;
        let ops = world.tree.version.admission(run).unwrap();
        world.tree.install(ops).unwrap();
    }
    let plan = world.plans(&[], 1).remove(0);
    assert_eq!(plan.action, PlanAction::Split { at: None });
    world.policy.reward(&Outcome { plan, result: Done::Nothing, now: world.now });
    let splits = |plans: &[Plan]| plans.iter().any(|plan| plan.action.name() == "split");
    assert!(!splits(&world.plans(&[], 8)));
    for seed in 3..7 {
        let writes: Vec<_> = (0..64).map(|n| (n * 1000 + seed, false)).collect();
        world.tree.flush(&writes);
        let run = world.tree.version.l0_runs()[0].id;
        let ops = world.tree.version.admission(run).unwrap();
        world.tree.install(ops).unwrap();
    }
    assert!(splits(&world.plans(&[], 8)), "it has doubled");
}

#[test]
fn hot_slots_lower_their_k_to_hot_k_and_cold_ones_keep_the_default() {
    for hot_k in [1, 2] {
        let mut world = World::new(ATLLConfig { hot_k, ..config() });
        world.fill(40, 4);
        let hot = 1_000;
        // So few reads that the model sees no reason to act: what is left is the bound for hot slots.
        for _ in 0..60 {
            world.read(hot, 4);
            world.tick();
            world.settle();
        }
        let deepest = world.tree.version.deepest().unwrap();
        let k_at = |number: u32| {
            let (_, slot) = world.tree.version.slot_of(deepest, &key(number)).unwrap();
            world.policy.k_of(deepest, slot.k)
        };
        assert_eq!(k_at(hot), hot_k, "{}", world.picture());
        let cold = world.tree.version.levels[1].slots.last().unwrap();
        assert_eq!(world.policy.k_of(Level(1), cold.k), 3, "{}", world.picture());
        assert!(
            world.policy.heat_of(&SlotId {
                level: deepest,
                start: world.tree.version.slot_of(deepest, &key(hot)).unwrap().1.start.clone()
            }) > 0.9
        );
    }
}

#[test]
fn heat_thresholds_decide_what_is_hot() {
    let chosen = |hot: f64, cold: f64| {
        let mut config = config();
        config.heat_thresholds.hot = hot;
        config.heat_thresholds.cold = cold;
        config.l1_slot_count = 1;
        let mut world = World::new(config);
        world.tree.flush(&[(1, false), (900_000, false)]);
        world.settle();
        world.tree.install(vec![EditOp::AddGuard { level: Level(1), key: key(500) }]).unwrap();
        for _ in 0..10 {
            world.counters = counters_for(&world.tree.version, &world.counters);
            world.read(1, 1000);
            world.read(900_000, 500);
            world.tick();
            for plan in world.plans(&[], 8) {
                if plan.action.name() == "set_k" {
                    world.run(&plan);
                }
            }
        }
        let slot = world.tree.version.slot_of(Level(1), &key(900_000)).unwrap().1.k;
        world.policy.k_of(Level(1), slot)
    };
    assert_eq!(chosen(0.4, 0.2), 1, "half as hot as the hottest is hot enough");
    assert_eq!(chosen(0.8, 0.6), 3, "half as hot as the hottest is still cold");
}

#[test]
fn half_life_decides_how_fast_heat_moves() {
    let heat_after = |half_life_ops: u64| {
        let mut config = config();
        config.heat_thresholds.half_life_ops = half_life_ops;
        let mut world = World::new(config);
        world.tree.flush(&[(1, false), (900_000, false)]);
        world.settle();
        world.tree.install(vec![EditOp::AddGuard { level: Level(1), key: key(500) }]).unwrap();
        for round in 0..14 {
            world.counters = counters_for(&world.tree.version, &world.counters);
            world.read(if round < 10 { 1 } else { 900_000 }, 100);
            world.tick();
        }
        world.policy.heat_of(&l1(Bytes::new()))
    };
    assert!(heat_after(1000) < 0.2, "{}", heat_after(1000));
    assert!(heat_after(1_000_000) > 0.6, "{}", heat_after(1_000_000));
}

#[test]
fn default_k_is_the_number_of_runs_that_pile_up() {
    for k in 1..=4_u8 {
        let default_k = DefaultK { l1: k, l2: k, l3_plus: k };
        let mut world = World::new(ATLLConfig { default_k, l1_slot_count: 1, ..config() });
        for number in 0..u32::from(k) {
            // Older runs are larger: nothing is merged before it must be.
            let writes: Vec<_> = (0..100 >> (2 * number)).map(|n| (n, false)).collect();
            world.tree.flush(&writes);
            world.settle();
        }
        assert_eq!(world.tree.version.levels[1].slots[0].runs.len(), usize::from(k));
        world.tree.flush(&[(0, false)]);
        world.settle();
        assert!(world.tree.version.levels[1].slots[0].runs.len() <= usize::from(k));
    }
    let default_k = DefaultK { l1: 1, l2: 2, l3_plus: 4 };
    let policy = Policy::new(&ATLLConfig { default_k, ..config() });
    assert_eq!([1, 2, 3, 4].map(|level| policy.k_of(Level(level), 0)), [1, 2, 4, 4]);
}

#[test]
fn the_budget_fraction_decides_between_small_and_large_slots() {
    // One slot with most of the data, one with little, in a level over its target: who goes down?
    let promoted = |fraction: f64| {
        let mut world = World::new(ATLLConfig {
            slot_byte_budget_fraction: fraction,
            l1_slot_count: 2,
            ..config()
        });
        let writes: Vec<_> = (0..600).chain(900_000..900_050).map(|n| (n, false)).collect();
        world.tree.flush(&writes);
        let run = world.tree.version.l0_runs()[0].id;
        let ops = world.tree.version.admission(run).unwrap();
        world.tree.install(ops).unwrap();
        world.tree.install(vec![EditOp::AddGuard { level: Level(1), key: key(500_000) }]).unwrap();
        world.plans(&[], 8).iter().filter(|plan| plan.action.name() == "promote").count()
    };
    assert_eq!(promoted(0.0), 1, "the small slot is far below an even share");
    assert_eq!(promoted(1.0), 2, "by share of the data both are over");
}

#[test]
fn tombstones_beyond_the_threshold_are_collected() {
    let tombstones_left = |threshold: f64, snapshot: SeqNo| {
        let mut config = config();
        config.tombstone.density_threshold = threshold;
        config.block_size = 4096; // too large for the slot to be cut
        let mut world = World::new(config);
        world.live.oldest_snapshot = snapshot;
        let puts: Vec<_> = (0..60).map(|n| (n, false)).collect();
        let deletes: Vec<_> = (0..20).map(|n| (n, true)).collect();
        world.tree.flush(&puts);
        world.tree.flush(&deletes);
        world.settle();
        world.tree.version.tables.values().map(|table| table.tombstones).sum::<u64>()
    };
    assert_eq!(tombstones_left(0.2, SeqNo::MAX), 0);
    assert_eq!(tombstones_left(0.5, SeqNo::MAX), 20, "a quarter of the entries");
    assert_eq!(tombstones_left(0.2, SeqNo(70)), 20, "a snapshot still sees what they delete");
}

#[test]
fn tombstones_are_collected_in_time_however_few() {
    let mut world = World::new(config());
    let puts: Vec<_> = (0..60).map(|n| (n, false)).collect();
    world.tree.flush(&puts);
    world.tree.flush(&[(1, true)]);
    world.settle();
    world.wall_s = 86_000;
    assert_eq!(world.settle(), 0);
    world.wall_s = 86_402;
    assert!(world.settle() > 0);
    assert!(world.tree.version.tables.values().all(|table| table.tombstones == 0));
}

#[test]
fn only_so_many_compactions_run_at_once() {
    for limit in [1, 3] {
        let mut config = config();
        config.io.max_background_compactions = limit;
        let mut world = World::new(config);
        for at in 1..8 {
            let op = EditOp::AddGuard { level: Level(1), key: key(at * 10) };
            world.tree.install(vec![op]).unwrap();
        }
        for _ in 0..6 {
            let writes: Vec<_> = (0..80).map(|n| (n, false)).collect();
            world.tree.flush(&writes);
            let run = world.tree.version.l0_runs()[0].id;
            let ops = world.tree.version.admission(run).unwrap();
            world.tree.install(ops).unwrap();
        }
        let heavy = |plans: &[Plan]| plans.iter().filter(|plan| plan.action.is_heavy()).count();
        let plans = world.plans(&[], 100);
        assert_eq!(heavy(&plans), limit);
        let busy: Vec<_> = plans.iter().map(|plan| Busy::of(plan, &world.tree.version)).collect();
        assert_eq!(heavy(&world.plans(&busy, 100)), 0);
        assert!(world.plans(&[], 2).len() <= 2, "never more than are free");
    }
}

#[test]
fn l1_slot_count_bounds_the_guards_that_are_learned() {
    let slots = |l1_slot_count: usize| {
        let mut world = World::new(ATLLConfig { l1_slot_count, ..config() });
        world.fill(60, 6);
        world.tree.version.levels[1].slots.len()
    };
    assert_eq!(slots(1), 1);
    assert!(slots(8) > 2);
}

#[test]
fn a_slot_that_is_read_in_one_half_only_is_cut_there() {
    let mut world = World::new(ATLLConfig { l1_slot_count: 2, ..config() });
    let writes: Vec<_> = (0..100).map(|n| (n, false)).collect();
    world.tree.flush(&writes);
    world.settle();
    assert_eq!(world.tree.version.levels[1].slots.len(), 1);
    for _ in 0..10 {
        world.counters = counters_for(&world.tree.version, &world.counters);
        world.read(90, 1000);
        world.tick();
    }
    let plan = world.plans(&[], 8).remove(0);
    let PlanAction::Split { at: Some(at) } = plan.action else { panic!("{plan:?}") };
    assert!(at > key(30) && at <= key(90), "{at:?}");
}

#[test]
fn guards_that_part_nothing_worth_parting_are_removed() {
    let mut world = World::new(config());
    for at in [10, 20, 30] {
        let op = EditOp::AddGuard { level: Level(1), key: key(at) };
        world.tree.install(vec![op]).unwrap();
    }
    world.tree.flush(&[(1, false), (40, false)]);
    world.settle();
    assert!(world.tree.version.levels.iter().all(|level| level.slots.len() == 1));
}

#[test]
fn reads_pay_for_merges_that_nothing_else_asks_for() {
    let mut world = World::new(config());
    world.tree.flush(&(0..20).map(|n| (n, false)).collect::<Vec<_>>());
    world.settle();
    world.tree.flush(&[(1, false)]);
    world.settle();
    assert_eq!(world.tree.version.levels[1].slots[0].runs.len(), 2);
    for _ in 0..30 {
        world.counters = counters_for(&world.tree.version, &world.counters);
        world.read(1, 3000);
        world.tick();
        world.settle();
    }
    assert_eq!(world.tree.version.levels[1].slots[0].runs.len(), 1);
}

#[test]
fn the_dearer_a_block_is_the_fewer_scans_pay_for_a_merge() {
    let scans = |nanos_a_block: u64| {
        let mut world = World::new(config());
        // Measured well enough to be believed at once.
        for _ in 0..64 {
            world.blocks.nanos += nanos_a_block * 10_000;
            world.blocks.count += 10_000;
            world.tick();
        }
        world.policy.costs.write = 1e4; // or a single scan would pay for so small a merge
        world.tree.flush(&(0..40).map(|n| (n, false)).collect::<Vec<_>>());
        world.settle();
        world.tree.flush(&(0..10).map(|n| (n, false)).collect::<Vec<_>>());
        world.settle();
        world.tick();
        let bytes: u64 = world.policy.shapes.slot_bytes().values().sum();
        assert_eq!(world.tree.version.levels[1].slots[0].runs.len(), 2);
        for scan in 1..10_000 {
            world.counters[&l1(Bytes::new())].record_seek();
            world.counters[&l1(Bytes::new())].record_scanned(10);
            world.tick();
            world.settle();
            if world.tree.version.levels[1].slots[0].runs.len() == 1 {
                // What these scans paid for the second run, in halves of what the merge costs.
                let cost = world.policy.costs;
                let paid = (scan * super::SAMPLING) as f64 * cost.rent(0.0, 1.0, 10.0);
                return (scan, paid / (bytes as f64 * cost.write / 2.0));
            }
        }
        panic!("never merged");
    };
    let (unknown, cached, disk) = (scans(0), scans(300), scans(3000));
    assert!(disk.0 < unknown.0 && unknown.0 < cached.0, "{disk:?} {unknown:?} {cached:?}");
    for (scans, paid) in [disk, unknown, cached] {
        let one = paid / scans as f64;
        assert!((1.0..=1.0 + 2.0 * one).contains(&paid), "{scans} scans paid {paid}");
    }
}

#[test]
fn a_steady_load_changes_no_k() {
    let mut world = World::new(config());
    world.fill(40, 8);
    let mut changes = 0;
    let mut chance = fastrand::Rng::with_seed(9);
    for round in 0..60 {
        world.read(1_000, 200);
        world.read(500_000, 50);
        world.blocks.nanos += 100 * chance.u64(500..1500);
        world.blocks.count += 100;
        world.tick();
        for plan in world.plans(&[], 100) {
            changes += usize::from(round > 20 && plan.action.name() == "set_k");
            world.run(&plan);
        }
        world.settle();
    }
    assert!(changes <= 3, "{changes} changes of K under a steady load");
}

#[test]
fn a_full_compaction_leaves_one_run_per_slot_and_no_tombstone() {
    let mut world = World::new(config());
    world.fill(80, 9);
    world.delete_a_third();
    let compaction =
        FullCompaction::begin(&world.tree.version, KeyRange::all(), CompactionMode::Full);
    let mut rounds = 0;
    loop {
        let mut taken = Vec::new();
        for plan in wanted(&compaction, &world.tree.version) {
            let touches = Busy::of(&plan, &world.tree.version);
            if !touches.conflicts_with_any(&taken) {
                taken.push(touches);
                world.run(&plan);
            }
        }
        if taken.is_empty() {
            break;
        }
        rounds += 1;
        assert!(rounds < 200, "{}", world.picture());
    }
    world.check_compacted();
    let live = world.tree.truth.values().filter(|item| !item.deleted).count();
    let stored: u64 = world.tree.version.tables.values().map(|table| table.entries).sum();
    assert_eq!(stored, u64_of(live));
}

#[test]
fn a_rewrite_leaves_no_table_that_was_written_before_or_for_another_level() {
    let mut world = World::new(config());
    world.admit(&[(1, false)]);
    for level in [Level(1), Level(2)] {
        let slots = &world.tree.version.level(level).unwrap().slots;
        let slot = slots.iter().find(|slot| !slot.runs.is_empty()).unwrap();
        let runs = slot.runs.iter().map(|run| run.id).collect();
        let id = SlotId { level, start: slot.start.clone() };
        let action = PlanAction::Promote { runs };
        world.run(&Plan { action, slot: id, ..some_plan(level) });
    }
    // Where nothing lies below: two runs are merged for the next level, and moved on from there.
    for _ in 0..2 {
        world.admit(&[(1000, false), (1001, false)]);
    }
    let before = world.tree.version.clone();
    let range = KeyRange::new(key(1000), None);
    let compaction = FullCompaction::begin(&before, range.clone(), CompactionMode::Rewrite);
    let names = world.complete(&compaction, None);
    assert!(names.len() < 100, "{}", world.picture());
    let tables = world.tree.version.tables.iter().filter(|(_, table)| table.meets(&range));
    let tables: Vec<_> = tables.map(|(id, table)| (*id >= before.next_file, table.level)).collect();
    assert_eq!(tables, [(true, Level(3))], "{names:?}: {}", world.picture());
    world.tree.check_reads();
}

#[test]
fn a_full_compaction_follows_what_is_taken_further_down_meanwhile() {
    let mut world = World::new(config());
    world.fill(40, 12);
    world.delete_a_third();
    world.settle();
    let version = world.tree.version.clone();
    let compaction = FullCompaction::begin(&version, KeyRange::all(), CompactionMode::Full);
    let deepest = version.deepest().unwrap();
    let level = version.level(deepest).unwrap();
    let whole = KeyRange::all();
    for (range, slot) in level.overlapping(&whole).step_by(2) {
        let runs: Vec<RunId> = slot.runs.iter().map(|run| run.id).collect();
        let id = SlotId { level: deepest, start: range.start.clone() };
        let action = PlanAction::Promote { runs };
        world.run(&Plan { action, slot: id, ..some_plan(deepest) });
    }
    assert!(world.tree.version.deepest().unwrap() > deepest, "{}", world.picture());
    world.complete(&compaction, None);
    world.check_compacted();
}

#[test]
fn a_full_compaction_settles_what_lies_below_damage() {
    let mut world = World::new(config());
    world.fill(40, 12);
    world.delete_a_third();
    world.settle();
    let deepest = world.tree.version.deepest().unwrap();
    let later: Vec<_> =
        world.tree.truth.keys().copied().step_by(9).map(|key| (key, false)).collect();
    world.admit(&later);
    let above = &world.tree.version.level(Level(1)).unwrap().slots;
    let damaged = above.iter().find_map(|slot| slot.runs.first()).unwrap().slices[0].table;
    assert!(deepest > Level(1), "{}", world.picture());
    let compaction =
        FullCompaction::begin(&world.tree.version, KeyRange::all(), CompactionMode::Full);
    let rounds = world.complete(&compaction, Some(damaged)).len();
    let version = &world.tree.version;
    let is_stuck = |plan: &Plan| plan.reads(version).any(|table| table == damaged);
    let stuck = compaction.wanted(version, is_stuck).stuck;
    assert!(!stuck.is_empty() && rounds > 0, "{}", world.picture());
    for slot in &version.level(deepest).unwrap().slots {
        let tombstones: u64 = slot
            .runs
            .iter()
            .flat_map(|run| &run.slices)
            .map(|slice| version.slice_sums(slice).tombstones)
            .sum();
        assert!(slot.runs.len() <= 1 && tombstones == 0, "{}", world.picture());
    }
}

#[test]
fn a_full_compaction_of_a_range_leaves_other_slots_alone() {
    let mut world = World::new(config());
    world.fill(80, 10);
    let before = world.tree.version.clone();
    let range = KeyRange::new(key(0), Some(key(1000)));
    let compaction = FullCompaction::begin(&before, range, CompactionMode::Full);
    world.complete(&compaction, None);
    let last = |version: &Version| version.levels[1].slots.last().cloned();
    assert_eq!(last(&before), last(&world.tree.version));
    let top = world.tree.version.slot_of(Level(1), &key(1)).unwrap().1;
    let tables = top.runs.iter().flat_map(|run| &run.slices);
    let mut tables = tables.map(|slice| &world.tree.version.tables[&slice.table]);
    assert!(tables.all(|table| !table.meets(&KeyRange::new(key(0), Some(key(1000))))));
}

#[test]
fn debt_is_what_lies_over_the_targets() {
    let mut world = World::new(config());
    world.fill(4, 11);
    let version = world.tree.version.clone();
    assert_eq!(world.policy.debt(&version, &BTreeSet::new()), 0);
    for seed in 0..20 {
        let writes: Vec<_> = (0..64).map(|n| (n * 1000 + seed, false)).collect();
        world.tree.flush(&writes);
        let run = world.tree.version.l0_runs()[0].id;
        let ops = world.tree.version.admission(run).unwrap();
        world.tree.install(ops).unwrap();
    }
    let version = world.tree.version.clone();
    assert!(world.policy.debt(&version, &BTreeSet::new()) > 6400);
}

#[test]
fn small_decisions_are_these() {
    let mut world = World::new(config());
    let mut seen = String::new();
    for flush in 0..12_u32 {
        let writes: Vec<_> = (0..64).map(|n| (n * 100 + flush, false)).collect();
        world.tree.flush(&writes);
        loop {
            let plans = world.plans(&[], 1);
            let Some(plan) = plans.first() else { break };
            write!(seen, "{} {}, ", plan.action.name(), plan.level).unwrap();
            world.run(plan);
        }
        seen.truncate(seen.trim_end_matches(", ").len());
        seen.push('\n');
    }
    // A change of the policy is recorded here on purpose.
    assert_eq!(seen, include_str!("decisions.txt"), "decided:\n{seen}");
}

#[test]
fn what_cannot_be_read_is_left_alone_and_holds_nothing_up() {
    let mut world = World::new(config());
    world.fill(12, 5);
    let slot = world.tree.version.slot_of(Level(1), &key(0)).unwrap().1;
    let newest =
        slot.runs.first().or(world.tree.version.slot_of(Level(2), &key(0)).unwrap().1.runs.first());
    let lost = newest.unwrap().slices[0].table;
    world.damaged.insert(lost);
    let mut chance = fastrand::Rng::with_seed(6);
    for _ in 0..60 {
        let writes: Vec<_> = (0..64).map(|_| (chance.u32(0..1_000_000), false)).collect();
        world.tree.flush(&writes);
        for round in 0.. {
            assert!(round < 500, "work does not run out:\n{}", world.picture());
            let plans = world.plans(&[], 8);
            if plans.is_empty() {
                break;
            }
            for plan in plans {
                assert!(plan.reads(&world.tree.version).all(|table| table != lost), "{plan:?}");
                world.run(&plan);
            }
        }
        assert!(world.tree.version.l0_runs().is_empty(), "admissions go on:\n{}", world.picture());
    }
    assert!(world.tree.version.tables.contains_key(&lost));
    for slot in world.tree.version.levels.iter().flat_map(|level| &level.slots) {
        assert!(slot.runs.len() <= 16, "what piles up is merged:\n{}", world.picture());
    }
    let (version, damaged) = (world.tree.version.clone(), world.damaged.clone());
    let debt = world.policy.debt(&version, &damaged);
    assert!(debt <= world.policy.debt(&version, &BTreeSet::new()));
    world.tree.check_reads();
}
