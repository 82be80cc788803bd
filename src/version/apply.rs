//! From one version to the next: applies an edit whole or not at all, without touching the version it starts from.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{EditOp, LevelState, Run, RunId, Slot, TableMeta, TableSlice, Version, VersionEdit};
use crate::types::{FileId, KeyRange, Level, SeqNo};

/// Why an edit does not fit a version. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    #[error("there is no {0}")]
    NoLevel(Level),
    #[error("{0} has no slot that begins at {1:?}")]
    NoSlot(Level, Bytes),
    #[error("{0} has no neighbouring runs {2:?} in the slot that begins at {1:?}")]
    NoRuns(Level, Bytes, Vec<RunId>),
    #[error("{0} has a run {2:?} already in the slot that begins at {1:?}")]
    RunTwice(Level, Bytes, RunId),
    #[error("run {2:?} does not fit the slot of {0} that begins at {1:?}")]
    Misfit(Level, Bytes, RunId),
    #[error("table {0} is there already")]
    TableTwice(FileId),
    #[error("a slice names table {0}, which does not exist")]
    NoTable(FileId),
    #[error("no slice names the new table {0}")]
    Unnamed(FileId),
    #[error("{0} cannot be cut at {1:?}")]
    BadGuard(Level, Bytes),
    #[error("{0} must stay cut at {1:?}: the level above is")]
    GuardAbove(Level, Bytes),
    #[error("{0} must stay cut at {1:?}: what it parts was merged at different times")]
    Interleaved(Level, Bytes),
}

impl Version {
    /// The version after `edit`; slots that it does not touch are shared with this one.
    ///
    /// # Errors
    /// The first operation that does not fit.
    pub(crate) fn apply(&self, edit: &VersionEdit) -> Result<Self, EditError> {
        let mut next = self.clone();
        let mut added = Vec::new();
        for op in &edit.ops {
            if let EditOp::AddTable(table) = op {
                added.push(table.file);
            }
            next.apply_op(op)?;
        }
        next.next_file = next.next_file.max(edit.next_file);
        next.last_seq = next.last_seq.max(edit.last_seq);
        next.log_floor = next.log_floor.max(edit.log_floor);
        if edit.ops.iter().any(moves_slices) {
            next.sweep(&added)?;
        }
        Ok(next)
    }

    fn apply_op(&mut self, op: &EditOp) -> Result<(), EditError> {
        match op {
            EditOp::AddTable(table) => self.add_table(table),
            EditOp::PushRun { level, slot, run } => {
                self.replace(*level, slot, &[], Some(run)).map(drop)
            }
            EditOp::ReplaceRuns { level, slot, removed, with } => {
                self.replace(*level, slot, removed, with.as_ref())
            }
            EditOp::AddGuard { level, key } => self.add_guard(*level, key),
            EditOp::RemoveGuard { level, key } => self.remove_guard(*level, key),
            EditOp::SetK { level, slot, k } => self.slot_mut(*level, slot).map(|slot| slot.k = *k),
            EditOp::SetHeat { level, slot, heat } => {
                self.slot_mut(*level, slot).map(|slot| slot.heat = *heat)
            }
        }
    }

    fn add_table(&mut self, table: &Arc<TableMeta>) -> Result<(), EditError> {
        match self.tables.insert(table.file, Arc::clone(table)) {
            Some(_) => Err(EditError::TableTwice(table.file)),
            None => Ok(()),
        }
    }

    fn level_mut(&mut self, level: Level) -> Result<&mut LevelState, EditError> {
        self.levels.get_mut(level.index()).ok_or(EditError::NoLevel(level))
    }

    fn slot_mut(&mut self, level: Level, start: &Bytes) -> Result<&mut Slot, EditError> {
        let missing = || EditError::NoSlot(level, start.clone());
        let state = self.level_mut(level)?;
        let index = state.index_at(start).ok_or_else(missing)?;
        state.slots.get_mut(index).map(Arc::make_mut).ok_or_else(missing)
    }

    /// Puts `with` in the place of the neighbouring runs `removed`, or in front of all if there are none.
    fn replace(
        &mut self,
        level: Level,
        start: &Bytes,
        removed: &[RunId],
        with: Option<&Run>,
    ) -> Result<(), EditError> {
        if let Some(run) = with {
            self.fits(level, start, run)?;
        }
        let slot = self.slot_mut(level, start)?;
        let missing = || EditError::NoRuns(level, start.clone(), removed.to_vec());
        let at = match removed.first() {
            Some(first) => slot.runs.iter().position(|run| run.id == *first).ok_or_else(missing)?,
            None => 0,
        };
        let end = at + removed.len();
        let named = slot.runs.get(at..end).ok_or_else(missing)?;
        if !named.iter().map(|run| &run.id).eq(removed) {
            return Err(missing());
        }
        slot.runs.splice(at..end, with.cloned());
        let twice = with.filter(|new| slot.runs.iter().filter(|run| run.id == new.id).count() > 1);
        twice.map_or(Ok(()), |run| Err(EditError::RunTwice(level, start.clone(), run.id)))
    }

    /// Whether the slices of a run are in order, of known tables, and inside the slot.
    fn fits(&self, level: Level, start: &Bytes, run: &Run) -> Result<(), EditError> {
        let state = self.level(level).ok_or(EditError::NoLevel(level))?;
        let index = state.index_at(start).ok_or_else(|| EditError::NoSlot(level, start.clone()))?;
        let range = state.range_at(index);
        if let Some(slice) = run.slices.iter().find(|slice| !self.tables.contains_key(&slice.table))
        {
            return Err(EditError::NoTable(slice.table));
        }
        let inside = |slice: &TableSlice| !slice.range.is_empty() && range.covers(&slice.range);
        let ordered = run.slices.is_sorted_by(|a, b| !a.range.is_before_end(&b.range.start));
        if run.slices.is_empty() || !ordered || !run.slices.iter().all(inside) {
            return Err(EditError::Misfit(level, start.clone(), run.id));
        }
        Ok(())
    }

    /// Cuts the slots of `level` and of every deeper level that hold `key` inside.
    fn add_guard(&mut self, level: Level, key: &Bytes) -> Result<(), EditError> {
        let state = self.level(level).ok_or(EditError::NoLevel(level))?;
        if level == Level::L0 || state.index_at(key).is_some() {
            return Err(EditError::BadGuard(level, key.clone()));
        }
        for index in level.index()..self.levels.len() {
            let Some(state) = self.levels.get(index) else { break };
            let at = state.index_of(key);
            let range = state.range_at(at);
            let Some(slot) = state.slots.get(at).filter(|slot| slot.start != *key) else {
                continue;
            };
            let left = self.part_of(slot, KeyRange::new(range.start, Some(key.clone())));
            let right = self.part_of(slot, KeyRange::new(key.clone(), range.end));
            if let Some(state) = self.levels.get_mut(index) {
                state.slots.splice(at..=at, [Arc::new(left), Arc::new(right)]);
            }
        }
        Ok(())
    }

    /// What a slot holds in `range`; runs without a slice there are left out.
    fn part_of(&self, slot: &Slot, range: KeyRange) -> Slot {
        let cut = |run: &Run| Run {
            id: run.id,
            slices: run.slices.iter().filter_map(|slice| self.clip(slice, &range)).collect(),
        };
        let runs = slot.runs.iter().map(cut).filter(|run| !run.slices.is_empty()).collect();
        Slot { start: range.start, runs, k: slot.k, heat: slot.heat }
    }

    /// Joins the slot of `level` that begins at `key` with the one before it.
    fn remove_guard(&mut self, level: Level, key: &Bytes) -> Result<(), EditError> {
        let joined = self.joined(level, key)?;
        let state = self.level_mut(level)?;
        let missing = || EditError::NoSlot(level, key.clone());
        let right = state.index_at(key).ok_or_else(missing)?;
        let left = right.checked_sub(1).ok_or_else(missing)?;
        state.slots.splice(left..=right, [Arc::new(joined)]);
        Ok(())
    }

    /// The slot that joining at `key` would give: runs zipped newest first, pairs of slices of one table put together again.
    ///
    /// Refused if its runs, or it and the deeper levels below it, would overlap in SeqNo: the next merge would write
    /// sections of which nobody could tell any more, by their SeqNos, which is the newer.
    pub(crate) fn joined(&self, level: Level, key: &Bytes) -> Result<Slot, EditError> {
        let state = self.level(level).ok_or(EditError::NoLevel(level))?;
        let missing = || EditError::NoSlot(level, key.clone());
        let at = state.index_at(key).ok_or_else(missing)?;
        let left = at.checked_sub(1).and_then(|before| state.slots.get(before));
        let (Some(left), Some(right)) = (left, state.slots.get(at)) else { return Err(missing()) };
        let above = self.levels.get(level.index().wrapping_sub(1));
        if above.is_none_or(|above| above.index_at(key).is_some()) {
            return Err(EditError::GuardAbove(level, key.clone()));
        }
        let runs = zip_runs(&left.runs, &right.runs);
        let range = KeyRange::new(left.start.clone(), state.range_at(at).end);
        if !self.is_layered(level, &range, &runs) {
            return Err(EditError::Interleaved(level, key.clone()));
        }
        let k = left.k.max(right.k);
        Ok(Slot { start: left.start.clone(), runs, k, heat: left.heat.max(right.heat) })
    }

    /// Whether `runs`, and below them everything in `range` of deeper levels, are older and older.
    fn is_layered(&self, level: Level, range: &KeyRange, runs: &[Run]) -> bool {
        let deeper = self.levels.iter().skip(level.index() + 1);
        let below = deeper.flat_map(|state| state.overlapping(range));
        let slices = below.flat_map(|(_, slot)| &slot.runs).flat_map(|run| &run.slices);
        let mut above = None;
        for run in runs {
            let Some((min, max)) = self.seqs(run.slices.iter()) else { continue };
            if above.is_some_and(|above| max >= above) {
                return false;
            }
            above = Some(min);
        }
        let deepest = self.seqs(slices).map(|(_, max)| max);
        above.zip(deepest).is_none_or(|(above, deepest)| deepest < above)
    }

    /// Lowest and highest SeqNo of the sections that slices show.
    fn seqs<'a>(&self, slices: impl Iterator<Item = &'a TableSlice>) -> Option<(SeqNo, SeqNo)> {
        let mut found: Option<(SeqNo, SeqNo)> = None;
        for slice in slices {
            let Some(table) = self.tables.get(&slice.table) else { continue };
            for section in table.sections_in(&slice.range) {
                let (min, max) = found.unwrap_or((SeqNo::MAX, SeqNo(0)));
                found = Some((min.min(section.min_seq), max.max(section.max_seq)));
            }
        }
        found
    }

    /// Lets go of the tables that no slice names; new ones must be named.
    fn sweep(&mut self, added: &[FileId]) -> Result<(), EditError> {
        let slices = self.levels.iter().flat_map(LevelState::slices);
        let named: BTreeSet<FileId> = slices.map(|slice| slice.table).collect();
        if let Some(unnamed) = added.iter().find(|file| !named.contains(file)) {
            return Err(EditError::Unnamed(*unnamed));
        }
        self.tables.retain(|file, _| named.contains(file));
        Ok(())
    }
}

/// Whether an operation can change which tables are named.
fn moves_slices(op: &EditOp) -> bool {
    match op {
        EditOp::AddTable(_) | EditOp::ReplaceRuns { .. } | EditOp::AddGuard { .. } => true,
        EditOp::PushRun { .. }
        | EditOp::RemoveGuard { .. }
        | EditOp::SetK { .. }
        | EditOp::SetHeat { .. } => false,
    }
}

/// Joins the runs of neighbouring slots pairwise from the newest on.
///
/// The names are those of the side with more runs: halves of a cut slot share names, one side never repeats one.
fn zip_runs(left: &[Run], right: &[Run]) -> Vec<Run> {
    let names = if left.len() < right.len() { right } else { left };
    let zip = |(at, named): (usize, &Run)| {
        let mut slices = left.get(at).map(|run| run.slices.clone()).unwrap_or_default();
        for slice in right.get(at).into_iter().flat_map(|run| &run.slices) {
            match slices.last_mut() {
                Some(last)
                    if last.table == slice.table
                        && last.range.end.as_ref() == Some(&slice.range.start) =>
                {
                    last.range.end.clone_from(&slice.range.end);
                }
                Some(_) | None => slices.push(slice.clone()),
            }
        }
        Run { id: named.id, slices }
    };
    names.iter().enumerate().map(zip).collect()
}
