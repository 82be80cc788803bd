//! A tree without files for tests: tables are lists in memory, and edits are made the way jobs make them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::EditError;
use super::{
    BaseCheck, EditOp, Run, RunId, SectionMeta, TableMeta, TableSlice, Version, VersionEdit,
};
use crate::types::{FileId, KeyRange, Level, SeqNo, SlotId, u64_of};

/// Bytes that an entry weighs on the imagined disk.
pub(crate) const ENTRY_BYTES: u64 = 100;
/// Entries of a full section.
const SECTION_ENTRIES: usize = 64;

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: u32,
    pub(crate) seq: u64,
    pub(crate) deleted: bool,
}

/// A version, the entries of its tables, and what a reader must find.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) version: Version,
    tables: BTreeMap<FileId, Vec<Item>>,
    pub(crate) truth: BTreeMap<u32, Item>,
    next: u64,
    seq: u64,
    /// Entries written by flushes, and by everything else.
    pub(crate) flushed: u64,
    pub(crate) rewritten: u64,
}

/// The bytes of a key, in the order of the numbers.
pub(crate) fn key(number: u32) -> Bytes {
    Bytes::from(format!("k{number:07}"))
}

impl Tree {
    pub(crate) fn new(max_levels: usize) -> Self {
        Self {
            version: Version::empty(max_levels),
            tables: BTreeMap::new(),
            truth: BTreeMap::new(),
            next: 1,
            seq: 0,
            flushed: 0,
            rewritten: 0,
        }
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Applies an edit and checks everything that must hold after it.
    pub(crate) fn install(&mut self, ops: Vec<EditOp>) -> Result<(), EditError> {
        let edit = VersionEdit {
            ops,
            next_file: FileId(self.next),
            last_seq: SeqNo(self.seq),
            log_floor: FileId(0),
        };
        self.version = self.version.apply(&edit)?;
        self.tables.retain(|file, _| self.version.tables.contains_key(file));
        if let Err(violation) = self.version.check() {
            panic!("{violation} after {edit:?}");
        }
        Ok(())
    }

    /// Writes keys (`true` deletes) and flushes them as the newest run of L0.
    pub(crate) fn flush(&mut self, writes: &[(u32, bool)]) {
        let mut newest = BTreeMap::new();
        for (key, deleted) in writes {
            self.seq += 1;
            newest.insert(*key, Item { key: *key, seq: self.seq, deleted: *deleted });
        }
        self.truth.extend(&newest);
        let items: Vec<Item> = newest.into_values().collect();
        self.flushed += u64_of(items.len());
        let Some((table, run)) = self.build(items, Level(1)) else { return };
        let push = EditOp::PushRun { level: Level::L0, slot: Bytes::new(), run };
        self.install(vec![table, push]).unwrap();
    }

    /// A table of `items`, with sections cut at the guards of `level`, and a run that shows all of it.
    fn build(&mut self, items: Vec<Item>, level: Level) -> Option<(EditOp, Run)> {
        let file = FileId(self.fresh());
        let mut sections: Vec<Vec<Item>> = Vec::new();
        for item in &items {
            let slot = |item: &Item| self.version.slot_of(level, &key(item.key)).unwrap().0;
            match sections.last_mut() {
                Some(last) if last.len() < SECTION_ENTRIES && slot(&last[0]) == slot(item) => {
                    last.push(*item);
                }
                _ => sections.push(vec![*item]),
            }
        }
        let sections: Vec<SectionMeta> = sections.iter().map(|items| section(items)).collect();
        let (first, last) = (items.first()?, items.last()?);
        let end = [&key(last.key)[..], &[0]].concat();
        let range = KeyRange::new(key(first.key), Some(end.into()));
        let bytes: u64 = sections.iter().map(SectionMeta::bytes).sum();
        let meta = TableMeta {
            file,
            level,
            file_bytes: bytes,
            entries: u64_of(items.len()),
            tombstones: sections.iter().map(|section| u64::from(section.tombstones)).sum(),
            raw_bytes: bytes,
            min_seq: sections.iter().map(|section| section.min_seq).min()?,
            max_seq: sections.iter().map(|section| section.max_seq).max()?,
            created_s: 0,
            sections,
        };
        self.tables.insert(file, items);
        let run = Run { id: RunId(self.fresh()), slices: vec![TableSlice { table: file, range }] };
        Some((EditOp::AddTable(Arc::new(meta)), run))
    }

    fn items<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Item> + 'a {
        run.slices.iter().flat_map(|slice| {
            let items = self.tables[&slice.table].iter();
            items.filter(|item| slice.range.contains(&key(item.key))).copied()
        })
    }

    /// Merges runs of a slot: newest entry of each key; tombstones that have nothing below go.
    fn merged(&self, slot: &SlotId, runs: &[RunId]) -> Vec<Item> {
        let (_, state) = self.version.slot(slot).unwrap();
        let mut newest: BTreeMap<u32, Item> = BTreeMap::new();
        for id in runs {
            for item in self.items(state.run(*id).unwrap()) {
                newest.entry(item.key).or_insert(item);
            }
        }
        let mut base = BaseCheck::new(&self.version, slot, runs);
        newest.retain(|_, item| !item.deleted || base.may_hold_older(&key(item.key)));
        newest.into_values().collect()
    }

    /// Merges neighbouring runs in their place.
    pub(crate) fn merge(&mut self, slot: &SlotId, runs: &[RunId]) {
        let items = self.merged(slot, runs);
        self.rewritten += u64_of(items.len());
        let (level, start, removed) = (slot.level, slot.start.clone(), runs.to_vec());
        let (mut ops, mut with) = (Vec::new(), None);
        if let Some((table, run)) = self.build(items, level) {
            ops.push(table);
            with = Some(run);
        }
        ops.push(EditOp::ReplaceRuns { level, slot: start, removed, with });
        self.install(ops).unwrap();
    }

    /// Merges runs of a slot and hands the result down.
    pub(crate) fn promote(&mut self, slot: &SlotId, runs: &[RunId]) {
        let items = self.merged(slot, runs);
        self.rewritten += u64_of(items.len());
        let (level, start, removed) = (slot.level, slot.start.clone(), runs.to_vec());
        let mut ops = Vec::new();
        let mut pushes = Vec::new();
        if let Some((table, run)) = self.build(items, level.below()) {
            let EditOp::AddTable(meta) = &table else { unreachable!() };
            let mut seen = self.version.clone();
            seen.tables.insert(meta.file, Arc::clone(meta));
            for (slot, run) in seen.cut_run(&run, level.below()) {
                pushes.push(EditOp::PushRun { level: level.below(), slot, run });
            }
            ops.push(table);
        }
        ops.push(EditOp::ReplaceRuns { level, slot: start, removed, with: None });
        ops.extend(pushes);
        self.install(ops).unwrap();
    }

    /// The newest entry of a key, found the way a reader looks for it.
    pub(crate) fn read(&self, number: u32) -> Option<Item> {
        let name = key(number);
        for (level, _) in self.version.numbered() {
            let (_, slot) = self.version.slot_of(level, &name).unwrap();
            for run in &slot.runs {
                let slice = run.slices.iter().find(|slice| slice.range.contains(&name));
                let Some(items) = slice.map(|slice| &self.tables[&slice.table]) else { continue };
                if let Ok(at) = items.binary_search_by_key(&number, |item| item.key) {
                    return Some(items[at]);
                }
            }
        }
        None
    }

    /// Every key reads as it was last written; a deleted one may be gone altogether.
    pub(crate) fn check_reads(&self) {
        for (number, truth) in &self.truth {
            match self.read(*number) {
                None => assert!(truth.deleted, "lost {truth:?}"),
                Some(found) => assert_eq!(found, *truth),
            }
        }
    }

    /// First keys of the imagined data blocks of a slot, eight entries each.
    pub(crate) fn block_starts(&self, slot: &SlotId) -> Vec<Bytes> {
        let (_, state) = self.version.slot(slot).unwrap();
        let blocks = state.runs.iter().flat_map(|run| {
            self.items(run).step_by(8).map(|item| key(item.key)).collect::<Vec<_>>()
        });
        blocks.collect()
    }
}

fn section(items: &[Item]) -> SectionMeta {
    let count = |items: usize| u32::try_from(items).unwrap();
    let tombstones = count(items.iter().filter(|item| item.deleted).count());
    SectionMeta {
        offset: 0,
        data_len: count(items.len()) * u32::try_from(ENTRY_BYTES).unwrap(),
        leaf_len: 0,
        filter_len: 0,
        entries: count(items.len()),
        tombstones,
        dense_blocks: 0,
        min_seq: SeqNo(items.iter().map(|item| item.seq).min().unwrap()),
        max_seq: SeqNo(items.iter().map(|item| item.seq).max().unwrap()),
        oldest_tombstone_s: u32::from(tombstones > 0),
        min_expiry_s: u32::MAX,
        min_key: key(items[0].key),
        max_key: key(items[items.len() - 1].key),
    }
}
