//! What lies below a merge: whether a key that the merge would drop could uncover an older entry.

use bytes::Bytes;

use super::{RunId, TableSlice, Version};
use crate::types::SlotId;

/// Tells whether something older than the runs of a planned merge may hold a key: runs behind them in their slot, and deeper levels.
///
/// Asked for ascending keys, the answers to all of them cost one pass over the key intervals.
#[derive(Clone, Debug)]
pub(crate) struct BaseCheck {
    /// First and last key of every stretch that older sections may fill, in order, disjoint.
    stretches: Vec<(Bytes, Bytes)>,
    next: usize,
}

impl BaseCheck {
    /// Prepares the answers for a merge of the neighbouring runs `merged` of `slot`.
    ///
    /// Keys must lie in the slot. A slot or a run that the version does not have counts as the newest there is.
    pub(crate) fn new(version: &Version, slot: &SlotId, merged: &[RunId]) -> Self {
        let mut spans = Vec::new();
        let Some((range, state)) = version.slot(slot) else {
            return Self { stretches: spans, next: 0 };
        };
        let behind = state.runs.iter().rposition(|run| merged.contains(&run.id));
        let older = state.runs.iter().skip(behind.map_or(0, |at| at + 1));
        older.flat_map(|run| &run.slices).for_each(|slice| collect(version, slice, &mut spans));
        for (_, deeper) in version.numbered().skip(slot.level.index() + 1) {
            for (_, slot) in deeper.overlapping(&range) {
                let slices = slot.runs.iter().flat_map(|run| &run.slices);
                slices.for_each(|slice| collect(version, slice, &mut spans));
            }
        }
        spans.sort();
        let mut stretches: Vec<(Bytes, Bytes)> = Vec::new();
        for (low, high) in spans {
            match stretches.last_mut() {
                Some((_, last)) if low <= *last => *last = high.max(last.clone()),
                Some(_) | None => stretches.push((low, high)),
            }
        }
        Self { stretches, next: 0 }
    }

    /// Whether something older may hold `key`.
    ///
    /// `key`: not below the key of the call before.
    pub(crate) fn may_hold_older(&mut self, key: &[u8]) -> bool {
        while self.stretches.get(self.next).is_some_and(|(_, high)| &high[..] < key) {
            self.next += 1;
        }
        self.stretches.get(self.next).is_some_and(|(low, _)| &low[..] <= key)
    }

    /// Whether nothing older is left at all: the merge is at the bottom of its range.
    pub(crate) fn is_bottom(&self) -> bool {
        self.stretches.is_empty()
    }
}

/// Adds the key span of each section that the slice shows.
///
/// The end of a slice is taken as inclusive: a key too many is kept, never one too few.
fn collect(version: &Version, slice: &TableSlice, spans: &mut Vec<(Bytes, Bytes)>) {
    let Some(table) = version.tables.get(&slice.table) else { return };
    for section in table.sections_in(&slice.range) {
        let low = section.min_key.clone().max(slice.range.start.clone());
        let high = match &slice.range.end {
            Some(end) => section.max_key.clone().min(end.clone()),
            None => section.max_key.clone(),
        };
        spans.push((low, high));
    }
}
