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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::u64_of;
    use crate::version::testing::{Tree, key};

    #[test]
    fn a_replacement_shows_where_it_has_sections_and_nowhere_else() {
        let mut tree = Tree::new(3);
        tree.flush(&(0..200).map(|n| (n, false)).collect::<Vec<_>>());
        tree.flush(&[(5, true)]);
        let version = tree.version.clone();
        let (id, whole) = version.tables.first_key_value().unwrap();
        assert!(whole.sections.len() > 1);
        let mut part = TableMeta::clone(whole);
        part.file = version.next_file;
        part.sections.truncate(1);
        let part = Arc::new(part);

        let replaced = BTreeMap::from([(*id, Some(Arc::clone(&part)))]);
        let mut next = version.with_replaced(&replaced);
        next.next_file = FileId(part.file.0 + 1);
        assert_eq!(next.check(), Ok(()));
        assert!(next.tables.contains_key(&part.file) && !next.tables.contains_key(id));
        assert_eq!(next.l0_runs().len(), 2);
        assert!(!part.meets(&crate::types::KeyRange::from(key(150)..)));

        let gone = version.with_replaced(&BTreeMap::from([(*id, None)]));
        assert_eq!(gone.check(), Ok(()));
        assert_eq!((u64_of(gone.tables.len()), gone.l0_runs().len()), (1, 1));
        assert_eq!(version.with_replaced(&BTreeMap::new()), version);
    }
}
