//! Every invariant of a version, in one function.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{LevelState, Run, Slot, Version};
use crate::types::{FileId, KeyRange, Level, SeqNo};

/// More levels than any configuration allows.
const MAX_LEVELS: usize = 16;

/// An invariant that a version breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("{0} levels, 1 to {MAX_LEVELS} are allowed")]
    Levels(usize),
    #[error("slots of {0} do not cover the key space in order")]
    Cover(Level),
    #[error("L0 is cut into {0} slots")]
    L0Slots(usize),
    #[error("{0} is not cut at {1:?}, the level above is")]
    Nesting(Level, Bytes),
    #[error("{0} has an empty or misnamed run in the slot that begins at {1:?}")]
    Run(Level, Bytes),
    #[error("{0} has slices out of order or outside of the slot that begins at {1:?}")]
    Slices(Level, Bytes),
    #[error("a slice shows nothing of table {0}, or the table does not exist")]
    Hollow(FileId),
    #[error("no slice names table {0}")]
    Unnamed(FileId),
    #[error("two slices show the same keys of table {0}")]
    Twice(FileId),
    #[error("table {0} lies above older table {1}, but is not newer")]
    Order(FileId, FileId),
    #[error("file or run {0} is not below the next file number")]
    NextFile(u64),
    #[error("table {0} holds writes later than the last one")]
    LastSeq(FileId),
}

impl Version {
    /// Checks every invariant.
    ///
    /// Cost: sorts all sections; for tests, debug builds and `open`.
    ///
    /// # Errors
    /// The first that does not hold.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        if !(1..=MAX_LEVELS).contains(&self.levels.len()) {
            return Err(Violation::Levels(self.levels.len()));
        }
        let l0 = self.levels.first().map_or(0, |level| level.slots.len());
        if l0 != 1 {
            return Err(Violation::L0Slots(l0));
        }
        self.check_guards()?;
        for (level, state) in self.numbered() {
            for (range, slot) in state.ranged() {
                self.check_slot(level, &range, slot)?;
            }
        }
        self.check_tables()?;
        self.check_order()
    }

    fn check_guards(&self) -> Result<(), Violation> {
        let mut above: Option<&LevelState> = None;
        for (level, state) in self.numbered() {
            let first = state.slots.first().is_some_and(|slot| slot.start.is_empty());
            if !first || !state.slots.is_sorted_by(|a, b| a.start < b.start) {
                return Err(Violation::Cover(level));
            }
            let missing = |key: &&Bytes| state.index_at(key).is_none();
            if let Some(key) = above.into_iter().flat_map(LevelState::guards).find(missing) {
                return Err(Violation::Nesting(level, key.clone()));
            }
            above = Some(state);
        }
        Ok(())
    }

    fn check_slot(&self, level: Level, range: &KeyRange, slot: &Slot) -> Result<(), Violation> {
        for (at, run) in slot.runs.iter().enumerate() {
            let twice = slot.runs.iter().skip(at + 1).any(|other| other.id == run.id);
            if run.slices.is_empty() || twice {
                return Err(Violation::Run(level, slot.start.clone()));
            }
            if run.id.0 >= self.next_file.0 {
                return Err(Violation::NextFile(run.id.0));
            }
            let inside = |run: &Run| run.slices.iter().all(|slice| range.covers(&slice.range));
            let hollow = run.slices.iter().any(|slice| slice.range.is_empty());
            let ordered = run.slices.is_sorted_by(|a, b| !a.range.is_before_end(&b.range.start));
            if hollow || !ordered || !inside(run) {
                return Err(Violation::Slices(level, slot.start.clone()));
            }
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), Violation> {
        let mut shown: BTreeMap<FileId, Vec<&KeyRange>> = BTreeMap::new();
        for slice in self.levels.iter().flat_map(LevelState::slices) {
            let table = self.tables.get(&slice.table);
            if !table.is_some_and(|table| table.meets(&slice.range)) {
                return Err(Violation::Hollow(slice.table));
            }
            shown.entry(slice.table).or_default().push(&slice.range);
        }
        for (file, table) in &self.tables {
            let ranges = shown.get_mut(file).ok_or(Violation::Unnamed(*file))?;
            ranges.sort();
            if !ranges.is_sorted_by(|a, b| !a.is_before_end(&b.start)) {
                return Err(Violation::Twice(*file));
            }
            if *file >= self.next_file {
                return Err(Violation::NextFile(file.0));
            }
            if table.max_seq > self.last_seq {
                return Err(Violation::LastSeq(*file));
            }
        }
        if self.log_floor > self.next_file {
            return Err(Violation::NextFile(self.log_floor.0));
        }
        Ok(())
    }

    /// For every key: what lies above is newer. Compares those sections only that can share a key.
    fn check_order(&self) -> Result<(), Violation> {
        let mut spans = self.spans();
        spans.sort_by(|a, b| a.low.cmp(&b.low));
        let mut open: Vec<&Span> = Vec::new();
        for span in &spans {
            open.retain(|other| other.reaches(&span.low));
            for other in &open {
                let (upper, lower) =
                    if span.depth < other.depth { (span, *other) } else { (*other, span) };
                if upper.depth != lower.depth && upper.min_seq <= lower.max_seq {
                    return Err(Violation::Order(upper.table, lower.table));
                }
            }
            open.push(span);
        }
        Ok(())
    }

    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for (level, state) in self.numbered() {
            for slot in &state.slots {
                for (at, run) in slot.runs.iter().enumerate() {
                    self.spans_of(run, (level, at), &mut spans);
                }
            }
        }
        spans
    }

    fn spans_of(&self, run: &Run, depth: (Level, usize), spans: &mut Vec<Span>) {
        for slice in &run.slices {
            let Some(table) = self.tables.get(&slice.table) else { continue };
            spans.extend(table.sections_in(&slice.range).map(|section| Span {
                table: slice.table,
                depth,
                low: section.min_key.clone().max(slice.range.start.clone()),
                high: section.max_key.clone(),
                end: slice.range.end.clone(),
                min_seq: section.min_seq,
                max_seq: section.max_seq,
            }));
        }
    }
}

/// The part of a section that a slice shows.
struct Span {
    table: FileId,
    /// Level, and position of the run in its slot: smaller must be newer.
    depth: (Level, usize),
    low: Bytes,
    high: Bytes,
    end: Option<Bytes>,
    min_seq: SeqNo,
    max_seq: SeqNo,
}

impl Span {
    fn reaches(&self, key: &Bytes) -> bool {
        self.high >= *key && self.end.as_ref().is_none_or(|end| key < end)
    }
}
