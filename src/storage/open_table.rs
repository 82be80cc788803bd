//! What is there of a table while it is open: its file, and the leaf indexes and filters that were needed so far.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::table_cache::OpenPlace;
use crate::env::ReadFile;
use crate::error::{Error, Result};
use crate::format::filter::Filter;
use crate::format::index::LeafIndex;
use crate::types::{FileId, u64_of};

/// A table's file and what is in memory of it. Whoever reads holds it: the table may be closed meanwhile.
#[derive(Debug)]
pub(crate) struct OpenTable {
    id: FileId,
    file: Arc<dyn ReadFile>,
    sections: Box<[Section]>,
    /// Whether it was read since the hand of the table cache last came by.
    mark: AtomicBool,
    /// Dropped behind the file: what is counted as closed is closed.
    place: OpenPlace,
}

/// What is in memory of a section, once it was needed.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) leaf: OnceLock<LeafIndex>,
    pub(super) filter: OnceLock<Filter>,
}

impl OpenTable {
    pub(super) fn new(
        (id, file): (FileId, Arc<dyn ReadFile>),
        n_sections: usize,
        place: OpenPlace,
    ) -> Self {
        let sections = std::iter::repeat_with(Section::default).take(n_sections).collect();
        Self { id, file, sections, mark: AtomicBool::new(true), place }
    }

    /// Which table it is.
    #[inline]
    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn file(&self) -> &dyn ReadFile {
        &*self.file
    }

    #[inline]
    pub(super) fn section(&self, index: usize, path: &Path) -> Result<&Section> {
        self.sections.get(index).ok_or_else(|| Error::corrupt(path, 0, "another section"))
    }

    /// Bytes of the indexes and filters in memory.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.place.pinned()
    }

    /// Counts an index or filter that is in memory from now on.
    pub(super) fn pinned(&self, bytes: usize) {
        self.place.pin(u64_of(bytes));
    }

    /// It is being read. Written only if it was not marked: readers of one table share the line.
    #[inline]
    pub(super) fn mark(&self) {
        if !self.mark.load(Ordering::Relaxed) {
            self.mark.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn take_mark(&self) -> bool {
        self.mark.swap(false, Ordering::Relaxed)
    }
}
