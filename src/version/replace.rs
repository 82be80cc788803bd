//! A version in which tables were exchanged for what is left of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Run, Slot, TableMeta, TableSlice, Version};
use crate::types::FileId;

impl Version {
    /// Puts each table of `replaced` into the place of the one that is named there; with `None`, takes that one out.
    ///
    /// A replacement holds entries of the original only, cut into the same sections. Slices that it has nothing for go.
    pub(crate) fn with_replaced(
        &self,
        replaced: &BTreeMap<FileId, Option<Arc<TableMeta>>>,
    ) -> Self {
        let slice = |slice: &TableSlice| match replaced.get(&slice.table) {
            None => Some(slice.clone()),
            Some(new) => {
                let table = new.as_ref().filter(|new| new.meets(&slice.range))?.file;
                Some(TableSlice { table, range: slice.range.clone() })
            }
        };
        let run = |run: &Run| {
            let slices: Vec<_> = run.slices.iter().filter_map(slice).collect();
            (!slices.is_empty()).then_some(Run { id: run.id, slices })
        };
        let mut next = self.clone();
        for slot in next.levels.iter_mut().flat_map(|level| &mut level.slots) {
            let runs = slot.runs.iter().filter_map(run).collect();
            *slot = Arc::new(Slot { runs, ..Slot::clone(slot) });
        }
        let fresh = replaced.values().flatten().map(|table| (table.file, Arc::clone(table)));
        next.tables.extend(fresh);
        let slices = next.levels.iter().flat_map(|level| level.slices());
        let named: BTreeSet<FileId> = slices.map(|slice| slice.table).collect();
        next.tables.retain(|file, _| named.contains(file));
        next
    }
}
