//! A look at all of a table: every byte is read anew and compared with what the manifest, the index and the filters say of it.
//!
//! 1. The file has its size, and its footer, top index and properties say what the manifest says.
//! 2. Section by section: leaf index and filter hold; each block passes its checksum; entries are in order, within the bounds of
//!    their section and behind their separators; the filter knows every key; restarts, heads and counts agree.
//!
//! What is damaged is listed, and the look goes on behind it. Nothing comes from a cache or goes into one.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::env::{Fs, ReadFile};
use crate::error::{Damage, Error, IoContext, Result};
use crate::format::block::DataBlock;
use crate::format::coding::common_prefix;
use crate::format::filter::Filter;
use crate::format::frame::{BlockKind, Place};
use crate::format::index::LeafIndex;
use crate::storage::table::{Extent, read_exact, read_meta, unpack};
use crate::types::{SeqNo, ValueKind, hash_key, u64_of, usize_of};
use crate::version::{SectionMeta, TableMeta};

/// A piece of a file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// Where the piece begins, in bytes.
    pub offset: u64,
    /// What should have been there.
    pub expected: &'static str,
}

impl Damaged {
    /// The damage that an error tells of; any other error comes back.
    pub(crate) fn of(error: Error) -> Result<Self> {
        match error {
            Error::Corrupt { path, offset, expected } => Ok(Self { path, offset, expected }),
            other => Err(other),
        }
    }

    pub(crate) fn error(&self) -> Error {
        Error::corrupt(&self.path, self.offset, self.expected)
    }
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error().fmt(f)
    }
}

/// What a look at a table has come to so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Data blocks that hold.
    pub(crate) blocks: u64,
    /// Entries of those.
    pub(crate) entries: u64,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    pub(crate) damaged: Vec<Damaged>,
}

/// A look at all of a table, one section a step. It keeps a file of its own open, and does not keep the table alive.
#[derive(Debug)]
pub(crate) struct TableCheck {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    meta: Arc<TableMeta>,
    /// `None` before the first step.
    file: Option<Arc<dyn ReadFile>>,
    /// Section that comes next.
    section: usize,
    /// Data blocks, as the footer says.
    n_blocks: Option<u64>,
    /// The last entry that was read.
    last: Option<(Vec<u8>, SeqNo)>,
    done: Checked,
}

impl TableCheck {
    pub(crate) fn new(fs: &Arc<dyn Fs>, path: &Path, meta: &Arc<TableMeta>) -> Self {
        Self {
            fs: Arc::clone(fs),
            path: path.to_owned(),
            meta: Arc::clone(meta),
            file: None,
            section: 0,
            n_blocks: None,
            last: None,
            done: Checked::default(),
        }
    }

    pub(crate) const fn done(&self) -> &Checked {
        &self.done
    }

    pub(crate) const fn meta(&self) -> &Arc<TableMeta> {
        &self.meta
    }

    /// Looks at the next piece: a few megabytes. Blocks. Returns whether more is to come.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Unsupported`]; damage is no error here.
    pub(crate) fn step(&mut self) -> Result<bool> {
        let Some(file) = self.file.clone() else { return self.begin() };
        if let Some(section) = self.meta.sections.get(self.section).cloned() {
            self.check_section(file.as_ref(), &section)?;
            self.section += 1;
            if self.section < self.meta.sections.len() {
                return Ok(true);
            }
        }
        let sound = self.done.damaged.is_empty();
        if sound && self.n_blocks.is_some_and(|blocks| blocks != self.done.blocks) {
            self.damaged(0, "as many blocks as the footer says");
        }
        Ok(false)
    }

    /// Opens the file and compares what it says of itself with the manifest.
    fn begin(&mut self) -> Result<bool> {
        let file = match self.fs.open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.damaged(0, "a table that the manifest names");
                return Ok(false);
            }
            file => file.at("open", &self.path)?,
        };
        let size = file.size().at("size", &self.path)?;
        if size != self.meta.file_bytes {
            self.damaged(size.min(self.meta.file_bytes), "a table of the size in the manifest");
        } else if let Some((meta, n_blocks)) = self.noted(read_meta(file.as_ref(), &self.path))? {
            self.n_blocks = Some(n_blocks.into());
            let sections: u64 = meta.sections.iter().map(SectionMeta::bytes).sum();
            self.done.bytes += size.saturating_sub(sections);
            if meta != *self.meta {
                self.damaged(size, "the table that the manifest names");
            }
        }
        self.file = Some(file);
        Ok(true)
    }

    fn check_section(&mut self, file: &dyn ReadFile, section: &SectionMeta) -> Result<()> {
        let found = self.done.damaged.len();
        let leaf_at = section.offset.saturating_add(section.data_len.into());
        let filter_at = leaf_at.saturating_add(section.leaf_len.into());
        let leaf = self.block(file, BlockKind::Leaf, leaf_at, section.leaf_len.into())?;
        let leaf = leaf.map(|leaf| {
            LeafIndex::decode(leaf, section.data_len)
                .map_err(|damage| damage.of(&self.path, leaf_at))
        });
        let leaf = leaf.map(|leaf| self.noted(leaf)).transpose()?.flatten();
        let mut filter = None;
        if section.filter_len > 0 {
            let raw = self.block(file, BlockKind::Filter, filter_at, section.filter_len.into())?;
            let decoded = raw
                .map(|raw| Filter::decode(&raw).map_err(|damage| damage.of(&self.path, filter_at)));
            filter = decoded.map(|filter| self.noted(filter)).transpose()?.flatten();
        }
        let Some(leaf) = leaf else { return Ok(()) }; // without it, no block is found
        if !leaf.heads_are_right() {
            self.damaged(leaf_at, "heads of the separators");
        }
        let mut counts = Counts::default();
        for block in 0..leaf.n_blocks() {
            self.check_block(file, (section, &leaf, filter.as_ref()), block, &mut counts)?;
        }
        let sound = self.done.damaged.len() == found;
        if sound && (counts.entries, counts.tombstones) != (section.entries, section.tombstones) {
            self.damaged(section.offset, "as many entries as were written");
        }
        Ok(())
    }

    fn check_block(
        &mut self,
        file: &dyn ReadFile,
        (section, leaf, filter): (&SectionMeta, &LeafIndex, Option<&Filter>),
        block: usize,
        counts: &mut Counts,
    ) -> Result<()> {
        let Some(at) = leaf.block(block) else { return Ok(()) };
        let offset = section.offset.saturating_add(at.start.into());
        let len = u64::from(at.end.saturating_sub(at.start));
        let Some(payload) = self.block(file, BlockKind::Data, offset, len)? else { return Ok(()) };
        let above = self.last.as_ref().map(|(key, _)| key.clone());
        let before = counts.entries;
        let checked = check_entries(&payload, &mut self.last, |key, seq, kind| {
            counts.entries = counts.entries.saturating_add(1);
            counts.tombstones += u32::from(kind == ValueKind::Delete);
            filter.is_none_or(|filter| filter.may_contain(hash_key(key)))
                && section.min_key[..] <= *key
                && *key <= section.max_key[..]
                && (section.min_seq..=section.max_seq).contains(&seq)
                && leaf.compare_separator(block, key).is_some_and(Ordering::is_le)
        });
        let separated = above.is_none_or(|above| {
            leaf.compare_separator(block, &above).is_some_and(|order| match order {
                Ordering::Greater => true,
                // A search looks into the block before only where it is told to; between sections it always does.
                Ordering::Equal => block == 0 || leaf.key_continues(),
                Ordering::Less => false,
            })
        });
        let behind = Damage { offset: 0, expected: "a key behind its separator" };
        let checked = checked.and(if separated { Ok(()) } else { Err(behind) });
        if self.noted(checked.map_err(|damage| damage.of(&self.path, offset)))?.is_some() {
            self.done.blocks += 1;
            self.done.entries += u64::from(counts.entries - before);
        }
        Ok(())
    }

    /// Reads a block; `None` if it is damaged.
    fn block(
        &mut self,
        file: &dyn ReadFile,
        kind: BlockKind,
        offset: u64,
        len: u64,
    ) -> Result<Option<bytes::Bytes>> {
        let extent = Extent { offset, len: usize_of(len) };
        let place = Place { file: self.meta.file, offset };
        self.done.bytes += len;
        let raw = read_exact(file, &self.path, extent, self.meta.file_bytes);
        self.noted(raw.and_then(|raw| unpack(&raw.into(), kind, place, &self.path)))
    }

    /// Lists damage; any other error ends the look.
    fn noted<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.done.damaged.push(Damaged::of(error)?);
                Ok(None)
            }
        }
    }

    fn damaged(&mut self, offset: u64, expected: &'static str) {
        self.done.damaged.push(Damaged { path: self.path.clone(), offset, expected });
    }
}

/// Entries of a section, as they were read.
#[derive(Debug, Default)]
struct Counts {
    entries: u32,
    tombstones: u32,
}

/// Checks the entries of a block against each other and, with `fits`, against the section. `last`: the entry before it.
fn check_entries(
    payload: &[u8],
    last: &mut Option<(Vec<u8>, SeqNo)>,
    mut fits: impl FnMut(&[u8], SeqNo, ValueKind) -> bool,
) -> Result<(), Damage> {
    let block = DataBlock::parse(payload)?;
    if !block.heads_are_as_it_says() {
        return Err(Damage { offset: 0, expected: "heads in the order that the block says" });
    }
    let (mut offset, mut n, mut n_restarts) = (0, 0, 0);
    while offset < block.entries().end() {
        let damaged = |expected| Damage { offset: u64_of(offset), expected };
        let entry = block.entries().decode(payload, offset)?;
        let before = last.as_ref().map_or(&[][..], |(key, _)| key);
        let front = before.get(..entry.shared).ok_or(damaged("a key that shares what there is"))?;
        let key = [front, entry.suffix].concat();
        let in_order = last
            .as_ref()
            .is_none_or(|(old, seq)| old[..] < key[..] || (old[..] == key[..] && *seq > entry.seq));
        if !in_order {
            return Err(damaged("entries in order"));
        }
        if block.is_restart(offset) {
            if entry.shared > 0 || !block.head_is_right(n_restarts, &key) {
                return Err(damaged("a restart with its head"));
            }
            n_restarts += 1;
        } else if offset == 0
            || entry.shared != common_prefix(before, &key)
            || !block.has_prefix(&key)
        {
            return Err(damaged("a key that shares all that it can"));
        }
        if !fits(&key, entry.seq, entry.kind) {
            return Err(damaged("a key that its section, index and filter know"));
        }
        *last = Some((key, entry.seq));
        n += 1;
        offset = entry.next;
    }
    if (n, n_restarts) == (block.n_entries(), block.n_restarts()) {
        return Ok(());
    }
    Err(Damage { offset: 0, expected: "as many entries as the block says" })
}
