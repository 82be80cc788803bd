//! What is there of a table while it is open: its file, and the leaf indexes and filters that were needed so far.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::table_cache::{OpenPlace, TableCache};
use crate::env::ReadFile;
use crate::error::{Error, Result};
use crate::format::filter::Filter;
use crate::format::index::LeafIndex;
use crate::types::{FileId, u64_of};

/// A table's file and what is in memory of it. Whoever reads holds it: the table may be closed meanwhile.
#[derive(Debug)]
pub(crate) struct OpenTable {
    id: FileId,
    file: Arc<OpenFile>,
    sections: Box<[Arc<Section>]>,
    /// Whether it was read since the hand of the table cache last came by.
    mark: AtomicBool,
}

/// A file that is counted as open until it is closed.
#[derive(Debug)]
struct OpenFile {
    file: Arc<dyn ReadFile>,
    /// Dropped behind the file: what is counted as closed is closed.
    _place: OpenPlace,
}

/// What is in memory of a section, once it was needed; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) leaf: OnceLock<LeafIndex>,
    pub(super) filter: OnceLock<Filter>,
    bytes: AtomicU64,
    /// Bytes that were counted as forgotten: only a reader holds them still.
    forgotten: AtomicU64,
    /// Whether it was read since the table cache last looked for memory.
    mark: AtomicBool,
    cache: Arc<TableCache>,
}

/// A table of whose indexes and filters some are gone.
pub(super) struct Forgotten {
    /// `None`: none are.
    pub(super) rest: Option<Arc<OpenTable>>,
    pub(super) freed: u64,
    /// The first section that was not looked at.
    pub(super) next: usize,
}

impl OpenTable {
    pub(super) fn new(
        (id, file): (FileId, Arc<dyn ReadFile>),
        n_sections: usize,
        place: OpenPlace,
    ) -> Self {
        let section = || Arc::new(Section::new(Arc::clone(place.cache())));
        let sections = std::iter::repeat_with(section).take(n_sections).collect();
        let file = Arc::new(OpenFile { file, _place: place });
        Self { id, file, sections, mark: AtomicBool::new(true) }
    }

    /// Which table it is.
    #[inline]
    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn file(&self) -> &dyn ReadFile {
        &*self.file.file
    }

    /// What is in memory of a section, which is being read.
    #[inline]
    pub(super) fn section(&self, index: usize, path: &Path) -> Result<&Section> {
        let Some(section) = self.sections.get(index) else {
            return Err(Error::corrupt(path, 0, "another section"));
        };
        set(&section.mark);
        Ok(section)
    }

    /// Bytes of the indexes and filters in memory.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.sections.iter().map(|section| section.bytes()).sum()
    }

    /// The same without some indexes and filters, see [`Forgotten`]. From section `from` on, until `wanted` bytes are gone: those of
    /// sections that were not read since the last time, or of all if not even those that were are `spared`.
    pub(super) fn forgetful(&self, from: usize, wanted: u64, spared: bool) -> Forgotten {
        let (mut sections, mut freed, mut next) = (self.sections.clone(), 0, from);
        for section in sections.iter_mut().skip(from) {
            if freed >= wanted {
                break;
            }
            next += 1;
            let was_read = section.mark.swap(false, Ordering::Relaxed);
            let bytes = section.bytes();
            if bytes > 0 && !(was_read && spared) {
                freed += bytes;
                section.forgotten.store(bytes, Ordering::Relaxed);
                section.cache.forgotten(bytes);
                *section = Arc::new(Section::new(Arc::clone(&section.cache)));
            }
        }
        let mark = AtomicBool::new(self.mark.load(Ordering::Relaxed));
        let rest = Self { id: self.id, file: Arc::clone(&self.file), sections, mark };
        Forgotten { rest: (freed > 0).then(|| Arc::new(rest)), freed, next }
    }

    /// It is being read. Written only if it was not marked: readers of one table share the line.
    #[inline]
    pub(super) fn mark(&self) {
        set(&self.mark);
    }

    pub(super) fn take_mark(&self) -> bool {
        self.mark.swap(false, Ordering::Relaxed)
    }
}

impl Section {
    const fn new(cache: Arc<TableCache>) -> Self {
        Self {
            leaf: OnceLock::new(),
            filter: OnceLock::new(),
            bytes: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            mark: AtomicBool::new(true),
            cache,
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts an index or filter that is in memory from now on.
    pub(super) fn pinned(&self, bytes: usize) {
        self.bytes.fetch_add(u64_of(bytes), Ordering::Relaxed);
        self.cache.pinned(u64_of(bytes));
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        self.cache.unpinned(*self.bytes.get_mut(), *self.forgotten.get_mut());
    }
}

#[inline]
fn set(mark: &AtomicBool) {
    if !mark.load(Ordering::Relaxed) {
        mark.store(true, Ordering::Relaxed);
    }
}
