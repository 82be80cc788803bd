//! A table that is being read: point lookups, and the blocks that cursors walk over.
//!
//! 1. Sections are found by their key bounds, which are in memory; the filter of the section is asked before anything else.
//! 2. The leaf index of the section, kept in memory once read, names the data block.
//! 3. The block comes from the cache, from the page cache, or from the disk: then only where waiting is allowed.
//!
//! Invariant: a block is used only after its checksum held; what does not hold is an error, never a miss.
//! Format: docs/format.md#tables

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use crate::config::Compression;
use crate::cursor::{Found, Stop};
use crate::env::{Fs, ReadFile};
use crate::error::{Damage, Error, IoContext, Result};
use crate::format::block::{DataBlock, RawEntry};
use crate::format::filter::Filter;
use crate::format::footer::{FOOTER, Footer};
use crate::format::frame::{self, BlockKind, Place};
use crate::format::index::{self, LeafIndex};
use crate::format::props::Props;
use crate::observe::ReadMetrics;
use crate::storage::cache::BlockCache;
use crate::storage::table_check::TableCheck;
use crate::types::{KeyRange, SeqNo, u64_of, usize_of};
use crate::version::{SectionMeta, TableMeta};

/// What to do about a block that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it if that needs no waiting, else return [`Stop::Blocked`].
    Try,
    /// Read it right here.
    Wait,
}

type Loaded = Arc<Mutex<Vec<(Place, Bytes)>>>;

/// State of one lookup across its retries: how it may read, and what was read for it.
#[derive(Debug)]
pub(crate) struct Fetch {
    access: Access,
    fill_cache: bool,
    /// Blocks that were waited for, so that a retry finds them whatever the cache does.
    loaded: Option<Loaded>,
    filtered: bool,
}

impl Fetch {
    pub(crate) const fn new(access: Access, fill_cache: bool) -> Self {
        Self { access, fill_cache, loaded: None, filtered: true }
    }

    /// Whether every filter that the last lookup asked said no.
    pub(crate) const fn was_filtered(&self) -> bool {
        self.filtered
    }

    fn loaded(&self, place: Place) -> Option<Bytes> {
        let loaded = self.loaded.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().find(|(other, _)| *other == place).map(|(_, block)| block.clone())
    }
}

/// A table file and what is in memory of it. Immutable and thread-safe; nothing is read before the first access.
#[derive(Debug)]
pub(crate) struct Table {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    meta: Arc<TableMeta>,
    cache: Arc<BlockCache>,
    metrics: Arc<ReadMetrics>,
    file: OnceLock<Arc<dyn ReadFile>>,
    sections: Box<[Section]>,
    pinned: AtomicU64,
}

/// What is in memory of a section, once it was needed.
#[derive(Debug, Default)]
struct Section {
    leaf: OnceLock<LeafIndex>,
    filter: OnceLock<Filter>,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Leaf,
    Filter,
}

/// Where a block lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Table {
    /// Table of an engine, whose manifest knows its content. Reads nothing.
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        meta: Arc<TableMeta>,
        cache: Arc<BlockCache>,
        metrics: Arc<ReadMetrics>,
    ) -> Arc<Self> {
        let sections = meta.sections.iter().map(|_| Section::default()).collect();
        let (file, pinned) = (OnceLock::new(), AtomicU64::new(0));
        Arc::new(Self { fs, path, meta, cache, metrics, file, sections, pinned })
    }

    /// Table that stands alone: its footer and indexes say what it contains. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn open(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        cache: Arc<BlockCache>,
        metrics: Arc<ReadMetrics>,
    ) -> Result<Arc<Self>> {
        let file = fs.open(&path).at("open", &path)?;
        let (meta, _) = read_meta(file.as_ref(), &path)?;
        let table = Self::new(fs, path, Arc::new(meta), cache, metrics);
        table.file.get_or_init(|| file);
        Ok(table)
    }

    pub(crate) const fn meta(&self) -> &Arc<TableMeta> {
        &self.meta
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, if it is not open yet. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it has another size than it was written with; [`Error::Io`].
    pub(crate) fn open_file(&self) -> Result<()> {
        self.file().map(drop)
    }

    #[cfg(test)]
    pub(super) fn set_file(&self, file: Arc<dyn ReadFile>) {
        self.file.get_or_init(|| file);
    }

    /// Bytes of the indexes and filters in memory.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// The newest version of `key` with a number of at most `snapshot`.
    ///
    /// `hash`: [`hash_key`] of `key`. `fetch`: one for each lookup; the same again after a [`Stop::Blocked`].
    pub(crate) fn get(
        self: &Arc<Self>,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        fetch: &mut Fetch,
    ) -> Result<Option<Found>, Stop> {
        fetch.filtered = true;
        let sections = &self.meta.sections;
        let mut index = sections.partition_point(|section| section.max_key[..] < *key);
        while let Some(section) = sections.get(index).filter(|section| section.min_key[..] <= *key)
        {
            // Versions of one key may go on in the next section.
            if section.min_seq <= snapshot && self.passes(index, hash, fetch)? {
                fetch.filtered = false;
                if let Some(found) = self.get_in(index, key, snapshot, fetch)? {
                    return Ok(Some(found));
                }
            }
            index += 1;
        }
        Ok(None)
    }

    /// Loads every index and filter, so that no lookup has to. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn load_all(&self) -> Result<()> {
        for (index, section) in self.meta.sections.iter().enumerate() {
            self.leaf_now(index)?;
            if section.filter_len > 0 {
                self.pin_now(index, Part::Filter)?;
            }
        }
        Ok(())
    }

    /// First keys and sizes of all data blocks that can hold keys of `range`, in key order. Blocks.
    ///
    /// A first key is a separator: at most the first key of its block, above the last key of the block before; never
    /// below the start of the range.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn block_ends(&self, range: &KeyRange) -> Result<Vec<(Bytes, u64)>> {
        let mut blocks = Vec::new();
        if range.is_empty() {
            return Ok(blocks);
        }
        for (index, section) in self.meta.sections.iter().enumerate() {
            if section.max_key < range.start || !range.is_before_end(&section.min_key) {
                continue;
            }
            let leaf = self.leaf_now(index)?;
            for block in leaf.find(&range.start)..leaf.n_blocks() {
                let (Some(key), Some(at)) = (leaf.separator(block), leaf.block(block)) else {
                    break;
                };
                if !range.is_before_end(&key) {
                    break;
                }
                let key = key.max(range.start.clone());
                blocks.push((key, u64::from(at.end.saturating_sub(at.start))));
            }
        }
        Ok(blocks)
    }

    /// Reads and checks every byte: checksums, order, counts, bounds, separators, filters. Blocks.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is not as it was written; [`Error::Unsupported`], [`Error::Io`].
    pub(crate) fn verify(&self) -> Result<()> {
        let mut check = TableCheck::new(&self.fs, &self.path, &self.meta);
        while check.step()? {}
        check.done().damaged.first().map_or(Ok(()), |damaged| Err(damaged.error()))
    }

    fn passes(self: &Arc<Self>, index: usize, hash: u64, fetch: &Fetch) -> Result<bool, Stop> {
        let Some(filter) = self.filter(index, fetch.access)? else { return Ok(true) };
        let passes = filter.may_contain(hash);
        if fetch.loaded.is_none() {
            // A retry asks again, but that is the same check.
            if passes { &self.metrics.bloom_pass } else { &self.metrics.bloom_skip }.inc(1);
        }
        Ok(passes)
    }

    fn get_in(
        self: &Arc<Self>,
        index: usize,
        key: &[u8],
        snapshot: SeqNo,
        fetch: &mut Fetch,
    ) -> Result<Option<Found>, Stop> {
        let leaf = self.leaf(index, fetch.access)?;
        let mut block = leaf.find(key);
        loop {
            let Some(extent) = self.extent(index, leaf, block) else { return Ok(None) };
            let payload = self.block(extent, fetch)?;
            let damaged = |damage: Damage| damage.of(&self.path, extent.offset);
            let bound = DataBlock::parse(&payload)
                .and_then(|block| block.lower_bound(key, snapshot))
                .map_err(damaged)?;
            if let Some(entry) = bound.entry {
                return Ok(bound.exact.then(|| found(&payload, entry)));
            }
            block += 1;
            if leaf.compare_separator(block, key).is_none_or(std::cmp::Ordering::is_gt) {
                return Ok(None);
            }
        }
    }

    /// A data block, from wherever it is nearest.
    fn block(self: &Arc<Self>, extent: Extent, fetch: &mut Fetch) -> Result<Bytes, Stop> {
        let place = self.place(extent);
        if let Some(block) = fetch.loaded(place) {
            return Ok(block);
        }
        if let Some(block) = self.cached(extent) {
            return Ok(block);
        }
        let raw = match fetch.access {
            Access::Wait => Some(self.read(extent)?),
            Access::Try => self.try_read(extent),
        };
        if let Some(raw) = raw {
            let block = self.unpack(&raw.into(), BlockKind::Data, extent)?;
            self.keep(extent, &block, fetch.fill_cache);
            return Ok(block);
        }
        let (table, fill_cache) = (Arc::clone(self), fetch.fill_cache);
        let loaded = Arc::clone(fetch.loaded.get_or_insert_default());
        Err(Stop::Blocked(Box::new(move || {
            let raw = table.read(extent)?.into();
            let block = table.unpack(&raw, BlockKind::Data, extent)?;
            table.keep(extent, &block, fill_cache);
            loaded.lock().unwrap_or_else(PoisonError::into_inner).push((place, block));
            Ok(())
        })))
    }

    /// The leaf index of a section.
    pub(super) fn leaf(self: &Arc<Self>, index: usize, access: Access) -> Result<&LeafIndex, Stop> {
        let leaf = self.section(index)?.1.leaf.get();
        if let Some(leaf) = leaf {
            return Ok(leaf);
        }
        self.pin(index, Part::Leaf, access)?;
        Ok(self.leaf_now(index)?)
    }

    fn leaf_now(&self, index: usize) -> Result<&LeafIndex> {
        let leaf = &self.section(index)?.1.leaf;
        if leaf.get().is_none() {
            self.pin_now(index, Part::Leaf)?;
        }
        leaf.get().ok_or_else(|| Error::corrupt(&self.path, 0, "leaf index"))
    }

    fn filter(self: &Arc<Self>, index: usize, access: Access) -> Result<Option<&Filter>, Stop> {
        let (meta, section) = self.section(index)?;
        if section.filter.get().is_none() && meta.filter_len > 0 {
            self.pin(index, Part::Filter, access)?;
        }
        Ok(section.filter.get())
    }

    /// Makes sure that a part of a section is in memory.
    fn pin(self: &Arc<Self>, index: usize, part: Part, access: Access) -> Result<(), Stop> {
        if access == Access::Wait {
            return Ok(self.pin_now(index, part)?);
        }
        if let Some(raw) = self.try_read(self.part(index, part)?) {
            return Ok(self.decode_part(index, part, raw)?);
        }
        let table = Arc::clone(self);
        Err(Stop::Blocked(Box::new(move || table.pin_now(index, part))))
    }

    fn pin_now(&self, index: usize, part: Part) -> Result<()> {
        let raw = self.read(self.part(index, part)?)?;
        self.decode_part(index, part, raw)
    }

    fn decode_part(&self, index: usize, part: Part, raw: Vec<u8>) -> Result<()> {
        let extent = self.part(index, part)?;
        let (meta, section) = self.section(index)?;
        let damaged = |damage: Damage| damage.of(&self.path, extent.offset);
        let memory = match part {
            Part::Leaf => {
                let payload = self.unpack(&raw.into(), BlockKind::Leaf, extent)?;
                let leaf = LeafIndex::decode(payload, meta.data_len).map_err(damaged)?;
                let memory = leaf.memory();
                section.leaf.set(leaf).map_or(0, |()| memory)
            }
            Part::Filter => {
                let payload = self.unpack(&raw.into(), BlockKind::Filter, extent)?;
                let filter = Filter::decode(&payload).map_err(damaged)?;
                let memory = filter.memory();
                section.filter.set(filter).map_or(0, |()| memory)
            }
        };
        self.pinned.fetch_add(u64_of(memory), Ordering::Relaxed);
        Ok(())
    }

    fn part(&self, index: usize, part: Part) -> Result<Extent> {
        let (meta, _) = self.section(index)?;
        let leaf = meta.offset.saturating_add(meta.data_len.into());
        let (offset, len) = match part {
            Part::Leaf => (leaf, meta.leaf_len),
            Part::Filter => (leaf.saturating_add(meta.leaf_len.into()), meta.filter_len),
        };
        Ok(Extent { offset, len: usize_of(len.into()) })
    }

    fn section(&self, index: usize) -> Result<(&SectionMeta, &Section)> {
        let section = self.meta.sections.get(index).zip(self.sections.get(index));
        section.ok_or_else(|| Error::corrupt(&self.path, 0, "another section"))
    }

    /// Where a data block of a section lies; `None` behind the last one.
    #[inline]
    pub(super) fn extent(&self, index: usize, leaf: &LeafIndex, block: usize) -> Option<Extent> {
        let base = self.meta.sections.get(index)?.offset;
        let at = leaf.block(block)?;
        let offset = base.saturating_add(at.start.into());
        Some(Extent { offset, len: usize_of(at.end.saturating_sub(at.start).into()) })
    }

    fn place(&self, extent: Extent) -> Place {
        Place { file: self.meta.file, offset: extent.offset }
    }

    /// The block in the cache.
    #[inline]
    pub(super) fn cached(&self, extent: Extent) -> Option<Bytes> {
        let block = self.cache.get(self.place(extent));
        if block.is_some() { &self.metrics.cache_hits } else { &self.metrics.cache_misses }.inc(1);
        block
    }

    /// Puts a block into the cache, if it should be there.
    pub(super) fn keep(&self, extent: Extent, block: &Bytes, fill_cache: bool) {
        if fill_cache {
            self.cache.insert(self.place(extent), block.clone());
        }
    }

    fn file(&self) -> Result<&Arc<dyn ReadFile>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.fs.open(&self.path).at("open", &self.path)?;
        if file.size().at("size", &self.path)? != self.meta.file_bytes {
            let expected = "a table file of the size that was written";
            return Err(Error::corrupt(&self.path, self.meta.file_bytes, expected));
        }
        Ok(self.file.get_or_init(|| file))
    }

    /// Reads part of the file. Blocks.
    pub(super) fn read(&self, extent: Extent) -> Result<Vec<u8>> {
        let file = self.file()?;
        self.metrics.block_reads.inc(1);
        read_exact(file.as_ref(), &self.path, extent, self.meta.file_bytes)
    }

    /// Reads part of the file if that needs no waiting.
    pub(super) fn try_read(&self, extent: Extent) -> Option<Vec<u8>> {
        let file = self.file.get()?;
        check_extent(&self.path, extent, self.meta.file_bytes).ok()?;
        let mut raw = vec![0; extent.len];
        // Whatever is wrong, the read that waits tells it.
        file.try_read_exact_at(&mut raw, extent.offset).ok()?;
        self.metrics.block_reads.inc(1);
        Some(raw)
    }

    /// Checks a block and decompresses it; shares the memory of `raw` if it is not compressed.
    pub(super) fn unpack(&self, raw: &Bytes, kind: BlockKind, extent: Extent) -> Result<Bytes> {
        unpack(raw, kind, self.place(extent), &self.path)
    }
}

fn found(payload: &Bytes, entry: RawEntry<'_>) -> Found {
    Found { seq: entry.seq, kind: entry.kind, value: payload.slice(entry.value) }
}

/// What a table says of itself. Blocks.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Io`].
pub(crate) fn read_table_meta(fs: &dyn Fs, path: &Path) -> Result<TableMeta> {
    let file = fs.open(path).at("open", path)?;
    Ok(read_meta(file.as_ref(), path)?.0)
}

/// Decodes footer, top index and properties. Returns also the number of data blocks.
pub(super) fn read_meta(file: &dyn ReadFile, path: &Path) -> Result<(TableMeta, u32)> {
    let size = file.size().at("size", path)?;
    let footer_off = size.checked_sub(u64_of(FOOTER));
    let footer_off = footer_off.ok_or_else(|| Error::corrupt(path, 0, "a table with a footer"))?;
    let part = |offset, len| read_exact(file, path, Extent { offset, len }, size);
    let footer = Footer::decode(&part(footer_off, FOOTER)?, size)
        .map_err(|unreadable| unreadable.of(path, footer_off))?;
    let block = |kind, offset, len: u32| {
        let raw = part(offset, usize_of(len.into()))?.into();
        unpack(&raw, kind, Place { file: footer.file, offset }, path)
    };
    let top = block(BlockKind::Top, footer.top_off, footer.top_len)?;
    let sections = index::decode_top(&top, footer.top_off)
        .map_err(|damage| damage.of(path, footer.top_off))?;
    let props = block(BlockKind::Props, footer.props_off, footer.props_len)?;
    let props = Props::decode(&props).map_err(|damage| damage.of(path, footer.props_off))?;
    let sum = |of: fn(&SectionMeta) -> u32| sections.iter().map(|s| u64::from(of(s))).sum::<u64>();
    let agree = sections.len() == usize_of(footer.n_sections.into())
        && props.file == footer.file
        && props.entries == sum(|section| section.entries)
        && props.tombstones == sum(|section| section.tombstones);
    if !agree {
        return Err(Error::corrupt(path, footer_off, "footer, index and properties that agree"));
    }
    let meta = TableMeta {
        file: footer.file,
        level: props.level,
        file_bytes: size,
        entries: props.entries,
        tombstones: props.tombstones,
        raw_bytes: props.raw_key_bytes.saturating_add(props.raw_value_bytes),
        min_seq: sections.iter().map(|section| section.min_seq).min().unwrap_or_default(),
        max_seq: sections.iter().map(|section| section.max_seq).max().unwrap_or_default(),
        created_s: props.created_s,
        sections,
    };
    Ok((meta, footer.n_blocks))
}

pub(crate) fn read_exact(
    file: &dyn ReadFile,
    path: &Path,
    extent: Extent,
    size: u64,
) -> Result<Vec<u8>> {
    check_extent(path, extent, size)?;
    let mut raw = vec![0; extent.len];
    match file.read_exact_at(&mut raw, extent.offset) {
        Ok(()) => Ok(raw),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Error::corrupt(path, extent.offset, "a table file of the size that was written"))
        }
        Err(error) => Err(Error::io("read", path, error)),
    }
}

fn check_extent(path: &Path, extent: Extent, size: u64) -> Result<()> {
    let end = extent.offset.checked_add(u64_of(extent.len));
    if end.is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(Error::corrupt(path, extent.offset, "a block within the file"))
}

pub(crate) fn unpack(raw: &Bytes, kind: BlockKind, place: Place, path: &Path) -> Result<Bytes> {
    let frame = frame::open(raw, kind, place).map_err(|why| why.of(path, place.offset))?;
    if frame.codec == Compression::None {
        return Ok(raw.slice(..frame.raw_len));
    }
    let unpacked = frame.unpack().map_err(|why| why.of(path, place.offset))?;
    Ok(unpacked.into())
}
