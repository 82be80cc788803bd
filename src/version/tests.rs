//! Laws of versions: histories keep every invariant and every key, and each invariant is noticed when it breaks.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::apply::EditError;
use super::check::Violation;
use super::testing::{Tree, key};
use super::{BaseCheck, EditOp, Run, RunId, Slot, Version, VersionEdit};
use crate::types::{FileId, KeyRange, Level, SeqNo, SlotId};

#[derive(Clone, Debug)]
enum Step {
    Flush(Vec<(u32, bool)>),
    Admit,
    Merge { level: u8, at: u32, first: usize, count: usize },
    Promote { level: u8, at: u32 },
    AddGuard { level: u8, key: u32 },
    RemoveGuard { level: u8, at: u32 },
    SetK { level: u8, at: u32, k: u8 },
}

const KEYS: u32 = 60;

fn step() -> impl Strategy<Value = Step> {
    let writes = proptest::collection::vec((0..KEYS, proptest::bool::weighted(0.3)), 1..30);
    prop_oneof![
        4 => writes.prop_map(Step::Flush),
        4 => Just(Step::Admit),
        3 => (0..4_u8, 0..KEYS, 0..3_usize, 2..4_usize)
            .prop_map(|(level, at, first, count)| Step::Merge { level, at, first, count }),
        3 => (1..3_u8, 0..KEYS).prop_map(|(level, at)| Step::Promote { level, at }),
        2 => (1..4_u8, 1..KEYS).prop_map(|(level, key)| Step::AddGuard { level, key }),
        2 => (1..4_u8, 0..KEYS).prop_map(|(level, at)| Step::RemoveGuard { level, at }),
        1 => (1..4_u8, 0..KEYS, 1..4_u8).prop_map(|(level, at, k)| Step::SetK { level, at, k }),
    ]
}

fn slot_at(tree: &Tree, level: u8, at: u32) -> (SlotId, Vec<RunId>) {
    let (_, slot) = tree.version.slot_of(Level(level), &key(at)).unwrap();
    let id = SlotId { level: Level(level), start: slot.start.clone() };
    (id, slot.runs.iter().map(|run| run.id).collect())
}

fn take(tree: &mut Tree, step: &Step) {
    match step {
        Step::Flush(writes) => tree.flush(writes),
        Step::Admit => {
            let oldest = tree.version.l0_runs().last().map(|run| run.id);
            if let Some(ops) = oldest.and_then(|run| tree.version.admission(run)) {
                tree.install(ops).unwrap();
            }
        }
        Step::Merge { level, at, first, count } => {
            let (slot, runs) = slot_at(tree, *level, *at);
            if let Some(runs) = runs.get(*first..first + count) {
                tree.merge(&slot, runs);
            }
        }
        Step::Promote { level, at } => {
            let (slot, runs) = slot_at(tree, *level, *at);
            if !runs.is_empty() {
                tree.promote(&slot, &runs);
            }
        }
        Step::AddGuard { level, key: at } => {
            let op = EditOp::AddGuard { level: Level(*level), key: key(*at) };
            let added = tree.install(vec![op]);
            assert!(matches!(added, Ok(()) | Err(EditError::BadGuard(..))), "{added:?}");
        }
        Step::RemoveGuard { level, at } => {
            let (slot, _) = slot_at(tree, *level, *at);
            let op = EditOp::RemoveGuard { level: Level(*level), key: slot.start };
            let known = |error: &EditError| {
                matches!(
                    error,
                    EditError::NoSlot(..) | EditError::GuardAbove(..) | EditError::Interleaved(..)
                )
            };
            let removed = tree.install(vec![op]);
            assert!(removed.as_ref().map_or_else(known, |()| true), "{removed:?}");
        }
        Step::SetK { level, at, k } => {
            let (slot, _) = slot_at(tree, *level, *at);
            let op = EditOp::SetK { level: slot.level, slot: slot.start, k: *k };
            tree.install(vec![op]).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// `check` runs after each edit, inside of the tree.
    #[test]
    fn any_history_keeps_every_key_and_every_invariant(steps in proptest::collection::vec(step(), 1..60)) {
        let mut tree = Tree::new(4);
        for step in &steps {
            take(&mut tree, step);
            tree.check_reads();
        }
        let rebuilt = Version::empty(4).apply(&tree.version.snapshot_edit()).unwrap();
        prop_assert_eq!(&rebuilt, &tree.version);
        let stored = Version::empty(16).apply(&tree.version.snapshot_edit()).unwrap().resized(4);
        prop_assert_eq!(&stored, &tree.version);
    }
}

fn flushed(times: u32) -> Tree {
    let mut tree = Tree::new(4);
    for _ in 0..times {
        let writes: Vec<_> = (0..KEYS).map(|key| (key, false)).collect();
        tree.flush(&writes);
    }
    tree
}

fn admit(tree: &mut Tree) {
    take(tree, &Step::Admit);
}

fn guard(tree: &mut Tree, level: u8, at: u32) {
    tree.install(vec![EditOp::AddGuard { level: Level(level), key: key(at) }]).unwrap();
}

#[test]
fn an_admission_cuts_at_guards_and_moves_no_table() {
    let mut tree = flushed(1);
    let table = tree.version.live_tables().next();
    guard(&mut tree, 1, 20);
    admit(&mut tree);
    let slots = &tree.version.levels[1].slots;
    let ends: Vec<_> = slots.iter().map(|slot| slot.runs[0].slices[0].range.end.clone()).collect();
    assert_eq!(ends[0], Some(key(20)));
    assert_eq!(slots[1].runs[0].slices[0].range.start, key(20));
    assert_eq!(tree.version.live_tables().next(), table);
    assert!(tree.version.l0_runs().is_empty());
}

#[test]
fn a_guard_cuts_deeper_levels_too_and_a_join_heals_the_cut() {
    let mut tree = flushed(1);
    admit(&mut tree);
    let before = tree.version.clone();
    guard(&mut tree, 2, 30);
    assert_eq!(tree.version.levels.iter().map(|l| l.slots.len()).collect::<Vec<_>>(), [1, 1, 2, 2]);
    guard(&mut tree, 1, 30);
    assert_eq!(tree.version.levels[1].slots[0].runs[0].slices.len(), 1);
    for level in [1, 2, 3] {
        tree.install(vec![EditOp::RemoveGuard { level: Level(level), key: key(30) }]).unwrap();
    }
    assert_eq!(tree.version.levels, before.levels);
}

#[test]
fn a_guard_of_the_level_above_stays() {
    let mut tree = flushed(1);
    guard(&mut tree, 1, 30);
    let op = EditOp::RemoveGuard { level: Level(2), key: key(30) };
    assert_eq!(tree.install(vec![op]), Err(EditError::GuardAbove(Level(2), key(30))));
}

#[test]
fn slots_with_different_pasts_are_not_joined() {
    let mut tree = flushed(2);
    guard(&mut tree, 1, 30);
    admit(&mut tree);
    admit(&mut tree);
    let (left, runs) = slot_at(&tree, 1, 0);
    tree.promote(&left, &runs);
    let op = EditOp::RemoveGuard { level: Level(1), key: key(30) };
    assert_eq!(tree.install(vec![op.clone()]), Err(EditError::Interleaved(Level(1), key(30))));
    let (right, runs) = slot_at(&tree, 1, 59);
    tree.promote(&right, &runs);
    tree.install(vec![op]).unwrap();
}

#[test]
fn untouched_slots_are_shared_between_versions() {
    let mut tree = flushed(2);
    guard(&mut tree, 1, 30);
    admit(&mut tree);
    let before = tree.version.clone();
    let (slot, _) = slot_at(&tree, 1, 0);
    tree.install(vec![EditOp::SetK { level: slot.level, slot: slot.start, k: 2 }]).unwrap();
    let same = |level: usize, at: usize| {
        Arc::ptr_eq(&before.levels[level].slots[at], &tree.version.levels[level].slots[at])
    };
    assert!(!same(1, 0) && same(1, 1) && same(0, 0) && same(2, 0));
}

#[test]
fn an_edit_that_does_not_fit_changes_nothing() {
    let tree = flushed(2);
    let [new, old] = [tree.version.l0_runs()[0].id, tree.version.l0_runs()[1].id];
    let (level, slot) = (Level::L0, Bytes::new());
    let replace = |removed: Vec<RunId>| EditOp::ReplaceRuns {
        level,
        slot: slot.clone(),
        removed,
        with: None,
    };
    for ops in [
        vec![replace(vec![old, new])],
        vec![replace(vec![RunId(999)])],
        vec![EditOp::SetK { level: Level(9), slot: slot.clone(), k: 1 }],
        vec![EditOp::SetK { level, slot: key(1), k: 1 }],
        vec![EditOp::AddGuard { level: Level(1), key: Bytes::new() }],
        vec![EditOp::AddGuard { level, key: key(1) }],
        vec![EditOp::PushRun { level, slot: slot.clone(), run: tree.version.l0_runs()[0].clone() }],
        vec![EditOp::PushRun {
            level,
            slot: slot.clone(),
            run: Run { id: RunId(7), slices: vec![] },
        }],
        vec![EditOp::AddTable(Arc::clone(tree.version.tables.values().next().unwrap()))],
    ] {
        let edit = VersionEdit { ops, ..VersionEdit::default() };
        assert!(tree.version.apply(&edit).is_err(), "{edit:?}");
    }
}

#[test]
fn a_table_that_nothing_names_is_dropped_and_a_new_one_must_be_named() {
    let mut tree = flushed(1);
    let meta = Arc::clone(tree.version.tables.values().next().unwrap());
    let run = tree.version.l0_runs()[0].id;
    let removed = vec![run];
    let op = EditOp::ReplaceRuns { level: Level::L0, slot: Bytes::new(), removed, with: None };
    tree.install(vec![op]).unwrap();
    assert!(tree.version.tables.is_empty());
    assert_eq!(
        tree.install(vec![EditOp::AddTable(Arc::clone(&meta))]),
        Err(EditError::Unnamed(meta.file))
    );
}

#[test]
fn a_base_holds_what_is_behind_and_below_and_nothing_else() {
    let mut tree = Tree::new(4);
    tree.flush(&[(10, false), (20, false)]);
    admit(&mut tree);
    let (slot, runs) = slot_at(&tree, 1, 0);
    tree.promote(&slot, &runs);
    tree.flush(&[(30, false)]);
    tree.flush(&[(10, true), (30, true), (40, true)]);
    admit(&mut tree);
    admit(&mut tree);
    let (slot, runs) = slot_at(&tree, 1, 0);
    let held = |merged: &[RunId]| {
        let mut base = BaseCheck::new(&tree.version, &slot, merged);
        [5, 10, 15, 20, 30, 40].map(|number| base.may_hold_older(&key(number)))
    };
    assert_eq!(held(&runs[..1]), [false, true, true, true, true, false]);
    assert_eq!(held(&runs), [false, true, true, true, false, false]);
}

#[test]
fn a_cut_slice_weighs_its_share() {
    let tree = flushed(1);
    let slice = &tree.version.l0_runs()[0].slices[0];
    let whole = tree.version.slice_bytes(slice);
    assert_eq!(whole, 6000);
    let mut part = slice.clone();
    part.range.end = Some(key(15));
    let bytes = tree.version.slice_bytes(&part);
    assert!((1200..2000).contains(&bytes), "{bytes}");
    part.range = KeyRange::new(key(70), None);
    assert_eq!(tree.version.slice_bytes(&part), 0);
}

#[test]
fn no_level_with_data_is_hidden_by_a_smaller_limit() {
    let mut tree = flushed(1);
    guard(&mut tree, 1, 30);
    admit(&mut tree);
    for level in [1, 2] {
        for at in [0, 59] {
            let (slot, runs) = slot_at(&tree, level, at);
            tree.promote(&slot, &runs);
        }
    }
    assert_eq!(tree.version.resized(2).levels.len(), 4);
    let grown = tree.version.resized(6);
    grown.check().unwrap();
    assert_eq!((grown.levels.len(), grown.levels[5].slots.len()), (6, 2));
    assert_eq!(grown.resized(4), tree.version);
}

/// A sound version with a slot of two runs in L1, cut at key 30, and data in L2.
fn sound() -> Version {
    let mut tree = flushed(3);
    guard(&mut tree, 1, 30);
    admit(&mut tree);
    let (slot, runs) = slot_at(&tree, 1, 0);
    tree.promote(&slot, &runs);
    admit(&mut tree);
    tree.version.check().unwrap();
    tree.version
}

fn slot_mut(version: &mut Version, level: usize, at: usize) -> &mut Slot {
    Arc::make_mut(&mut version.levels[level].slots[at])
}

fn broken(spoil: impl FnOnce(&mut Version)) -> Violation {
    let mut version = sound();
    spoil(&mut version);
    version.check().unwrap_err()
}

#[test]
fn check_sees_too_many_levels_and_none() {
    assert_eq!(broken(|v| v.levels.clear()), Violation::Levels(0));
    let more = broken(|v| {
        let last = v.levels[3].clone();
        v.levels.resize(17, last);
    });
    assert_eq!(more, Violation::Levels(17));
}

#[test]
fn check_sees_a_cut_l0() {
    let slot = Arc::new(Slot::empty(key(3)));
    assert_eq!(broken(|v| v.levels[0].slots.push(slot)), Violation::L0Slots(2));
}

#[test]
fn check_sees_slots_that_do_not_cover_the_keys() {
    assert_eq!(broken(|v| slot_mut(v, 1, 0).start = key(1)), Violation::Cover(Level(1)));
    assert_eq!(broken(|v| v.levels[2].slots.clear()), Violation::Cover(Level(2)));
    assert_eq!(broken(|v| v.levels[3].slots.swap(0, 1)), Violation::Cover(Level(3)));
}

#[test]
fn check_sees_guards_that_are_not_nested() {
    let violation = broken(|v| drop(v.levels[3].slots.pop()));
    assert_eq!(violation, Violation::Nesting(Level(3), key(30)));
}

#[test]
fn check_sees_empty_and_misnamed_runs() {
    let empty = broken(|v| slot_mut(v, 1, 1).runs[0].slices.clear());
    assert_eq!(empty, Violation::Run(Level(1), key(30)));
    let twice = broken(|v| {
        let slot = slot_mut(v, 1, 1);
        slot.runs[1].id = slot.runs[0].id;
    });
    assert_eq!(twice, Violation::Run(Level(1), key(30)));
}

#[test]
fn check_sees_slices_out_of_place() {
    let outside = broken(|v| slot_mut(v, 1, 1).runs[0].slices[0].range.start = key(29));
    assert_eq!(outside, Violation::Slices(Level(1), key(30)));
    let empty = broken(|v| slot_mut(v, 1, 1).runs[0].slices[0].range.end = Some(key(30)));
    assert_eq!(empty, Violation::Slices(Level(1), key(30)));
    let unordered = broken(|v| {
        let slices = &mut slot_mut(v, 1, 1).runs[0].slices;
        slices.push(slices[0].clone());
    });
    assert_eq!(unordered, Violation::Slices(Level(1), key(30)));
}

#[test]
fn check_sees_slices_that_show_nothing() {
    let missing = broken(|v| slot_mut(v, 1, 1).runs[0].slices[0].table = FileId(0));
    assert_eq!(missing, Violation::Hollow(FileId(0)));
    let hollow = broken(|v| {
        // Everything behind the last key.
        let slice = &mut slot_mut(v, 1, 1).runs[0].slices[0];
        slice.range = KeyRange::new(key(60), None);
    });
    assert!(matches!(hollow, Violation::Hollow(_)), "{hollow:?}");
}

#[test]
fn check_sees_a_table_that_nothing_names() {
    let violation = broken(|v| {
        let mut meta = (**v.tables.values().next().unwrap()).clone();
        meta.file = FileId(0);
        v.tables.insert(meta.file, Arc::new(meta));
    });
    assert_eq!(violation, Violation::Unnamed(FileId(0)));
}

#[test]
fn check_sees_keys_of_a_table_that_are_shown_twice() {
    let violation = broken(|v| {
        let mut run = v.levels[1].slots[1].runs[0].clone();
        run.id = RunId(0);
        slot_mut(v, 2, 1).runs.push(run);
    });
    assert!(matches!(violation, Violation::Twice(_)), "{violation:?}");
}

#[test]
fn check_sees_runs_in_the_wrong_order() {
    let within = broken(|v| slot_mut(v, 1, 1).runs.swap(0, 1));
    assert!(matches!(within, Violation::Order(..)), "{within:?}");
    let between = broken(|v| {
        let upper = slot_mut(v, 1, 0).runs.remove(0);
        let lower = std::mem::replace(&mut slot_mut(v, 2, 0).runs[0], upper);
        slot_mut(v, 1, 0).runs.push(lower);
    });
    assert!(matches!(between, Violation::Order(..)), "{between:?}");
}

#[test]
fn check_sees_numbers_that_were_never_given() {
    let file = broken(|v| v.next_file = FileId(2));
    assert!(matches!(file, Violation::NextFile(_)), "{file:?}");
    assert!(matches!(broken(|v| v.log_floor = FileId(999)), Violation::NextFile(999)));
    let run = broken(|v| slot_mut(v, 1, 1).runs[0].id = RunId(999));
    assert_eq!(run, Violation::NextFile(999));
    assert!(matches!(broken(|v| v.last_seq = SeqNo(1)), Violation::LastSeq(_)));
}
