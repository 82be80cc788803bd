//! Writes a table, entry by entry, under a temporary name until it is whole.
//!
//! 1. Entries fill a data block; a full block is compressed, framed and appended to a buffer, which goes out 256 KiB at a time.
//! 2. A section ends where the caller cuts it, or when it has 4 MiB: its leaf index and its filter, sized by the keys it has, follow.
//! 3. The top index, properties and footer follow; the file is synced, renamed, and its directory synced.
//!
//! Format: docs/format.md#tables

use std::cmp::Ordering;
use std::ffi::OsString;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::config::{Compression, MAX_KEY_BYTES, MAX_VALUE_BYTES, validate_codec};
use crate::env::{Fs, WriteFile};
use crate::error::{Error, IoContext, Result};
use crate::format::block::BlockBuilder;
use crate::format::compress::Compressor;
use crate::format::filter::Filter;
use crate::format::footer::Footer;
use crate::format::frame::{self, BlockKind, Place};
use crate::format::index::{self, LeafBuilder};
use crate::format::props::Props;
use crate::observe::BuildMetrics;
use crate::types::{FileId, Level, SeqNo, ValueKind, hash_key, u64_of};
use crate::version::{SectionMeta, TableMeta};

/// Bytes that are gathered before a write.
const WRITE_BYTES: usize = 256 << 10;
/// Raw bytes of a section.
const SECTION_BYTES: u64 = 4 << 20;
/// Raw bytes at which a section ends even between two versions of one key.
const SECTION_LIMIT: u64 = 64 << 20;
/// Tombstones that make a data block dense, however many other entries it has.
const DENSE_TOMBSTONES: usize = 100;

/// How to write a table.
#[derive(Clone, Debug)]
pub(crate) struct TableOptions {
    pub(crate) file: FileId,
    /// Level it is written for.
    pub(crate) level: Level,
    /// Raw bytes at which a data block ends.
    pub(crate) block_size: usize,
    pub(crate) restart_interval: usize,
    pub(crate) compression: Compression,
    /// 0: no filter.
    pub(crate) bloom_bits_per_key: usize,
    /// Wall clock, in seconds since the Unix epoch.
    pub(crate) created_s: u64,
}

/// A table that is being written. May block on each call.
///
/// Dropped before `finish`, it removes its file.
#[derive(Debug)]
pub(crate) struct TableWriter {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    options: TableOptions,
    metrics: Arc<BuildMetrics>,
    sink: Sink,
    block: BlockBuilder,
    leaf: LeafBuilder,
    compressor: Compressor,
    /// One hash for each key of the section.
    hashes: Vec<u64>,
    /// The section so far; its keys are set when it ends.
    section: SectionMeta,
    section_raw: u64,
    sections: Vec<SectionMeta>,
    last_seq: SeqNo,
    tombstones_since_s: u32,
    totals: Totals,
    finished: bool,
}

#[derive(Debug, Default)]
struct Totals {
    entries: u64,
    tombstones: u64,
    key_bytes: u64,
    value_bytes: u64,
    blocks: u32,
    /// Payloads of data blocks, before and after compression.
    raw: u64,
    packed: u64,
}

impl TableWriter {
    /// Begins a table: creates `<path>.tmp`, which must not exist.
    ///
    /// # Errors
    /// [`Error::Config`] for a codec that this build lacks; [`Error::Io`].
    pub(crate) fn create(
        fs: &Arc<dyn Fs>,
        path: &Path,
        options: TableOptions,
        metrics: &Arc<BuildMetrics>,
    ) -> Result<Self> {
        validate_codec("compression", options.compression)?;
        let temp = temp_path(path);
        let file = fs.create(&temp).at("create", &temp)?;
        Ok(Self {
            fs: Arc::clone(fs),
            path: path.to_owned(),
            metrics: Arc::clone(metrics),
            sink: Sink { file, path: temp, id: options.file, buffer: Vec::new(), offset: 0 },
            block: BlockBuilder::new(options.restart_interval, options.block_size),
            leaf: LeafBuilder::default(),
            compressor: Compressor::new(options.compression),
            hashes: Vec::new(),
            section: empty_section(0),
            section_raw: 0,
            sections: Vec::new(),
            last_seq: SeqNo::MAX,
            tombstones_since_s: u32::try_from(options.created_s).unwrap_or(u32::MAX),
            totals: Totals::default(),
            finished: false,
            options,
        })
    }

    /// Reserves memory for as many keys in a section.
    pub(crate) fn expect_entries(&mut self, entries: usize) {
        const MOST: usize = 1 << 16;
        self.hashes.reserve(entries.min(MOST));
    }

    /// Says when the oldest of the tombstones that are added from now on was written, in seconds since the Unix epoch.
    ///
    /// Without it they count as written now. A compaction passes on what its inputs say.
    pub(crate) fn tombstones_since(&mut self, seconds: u32) {
        self.tombstones_since_s = seconds;
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`] unless keys ascend and versions of a key descend; [`Error::TooLarge`]; [`Error::Io`].
    pub(crate) fn add(
        &mut self,
        key: &[u8],
        seq: SeqNo,
        kind: ValueKind,
        value: &[u8],
    ) -> Result<()> {
        check_len("key", key.len(), MAX_KEY_BYTES)?;
        check_len("value", value.len(), MAX_VALUE_BYTES)?;
        let same_key = self.totals.entries > 0
            && match key.cmp(self.block.last_key()) {
                Ordering::Less => return Err(Error::OutOfOrder),
                Ordering::Equal if seq >= self.last_seq => return Err(Error::OutOfOrder),
                Ordering::Equal => true,
                Ordering::Greater => false,
            };
        let raw = u64_of(key.len() + value.len());
        let limit = if same_key { SECTION_LIMIT } else { SECTION_BYTES };
        if self.section_raw.saturating_add(raw) > limit {
            self.cut()?;
        }
        if !self.block.is_empty() && self.block.size() + value.len() > self.options.block_size {
            self.end_block()?;
        }
        self.begin(key);
        if self.options.bloom_bits_per_key > 0 && (!same_key || self.section.entries == 0) {
            self.hashes.push(hash_key(key));
        }
        self.block.add(key, seq, kind, value);
        self.last_seq = seq;
        self.section_raw = self.section_raw.saturating_add(raw).saturating_add(8);
        self.totals.entries += 1;
        self.totals.key_bytes += u64_of(key.len());
        self.totals.value_bytes += u64_of(value.len());
        self.count(seq, kind);
        Ok(())
    }

    /// Ends the section, so that a slice can begin at the next key. Does nothing if the section has no entry.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn cut(&mut self) -> Result<()> {
        if self.section.entries == 0 {
            return Ok(());
        }
        self.end_block()?;
        let leaf = self.leaf.finish();
        self.section.leaf_len = self.write(&leaf, BlockKind::Leaf)?;
        if self.options.bloom_bits_per_key > 0 {
            let bits = u8::try_from(self.options.bloom_bits_per_key).unwrap_or(u8::MAX);
            let filter = Filter::build(&self.hashes, bits).encode();
            self.section.filter_len =
                self.sink.put(&filter, &filter, Compression::None, BlockKind::Filter)?;
        }
        self.hashes.clear();
        self.section.max_key = Bytes::copy_from_slice(self.block.last_key());
        let next = empty_section(self.sink.offset);
        self.sections.push(std::mem::replace(&mut self.section, next));
        self.section_raw = 0;
        Ok(())
    }

    /// About how many bytes the file has if it is finished now.
    pub(crate) fn bytes_written(&self) -> u64 {
        let filter = self.hashes.len().saturating_mul(self.options.bloom_bits_per_key) / 8;
        let memory =
            self.leaf.size() + filter + if self.block.is_empty() { 0 } else { self.block.size() };
        self.sink.offset.saturating_add(u64_of(memory))
    }

    /// Bytes of its buffers.
    pub(crate) fn memory(&self) -> usize {
        let hashes = self.hashes.capacity().saturating_mul(size_of::<u64>());
        let blocks = self.block.memory() + self.compressor.memory();
        self.sink.buffer.capacity() + blocks + self.leaf.size() + hashes
    }

    /// Ends the table: all of it is on disk, under its name, when this returns.
    ///
    /// # Errors
    /// [`Error::Io`]; the temporary file is removed.
    pub(crate) fn finish(mut self) -> Result<TableMeta> {
        self.cut()?;
        let top_off = self.sink.offset;
        let top = index::encode_top(&self.sections);
        let top_len = self.write(&top, BlockKind::Top)?;
        let props_off = self.sink.offset;
        let props = self.props().encode();
        let props_len = self.write(&props, BlockKind::Props)?;
        let footer = Footer {
            top_off,
            props_off,
            file: self.options.file,
            top_len,
            props_len,
            n_sections: u32::try_from(self.sections.len()).unwrap_or(u32::MAX),
            n_blocks: self.totals.blocks,
            has_filters: self.options.bloom_bits_per_key > 0,
        };
        self.sink.bytes(&footer.encode());
        self.sink.flush()?;
        self.sink.file.sync().at("sync", &self.sink.path)?;
        self.fs.rename(&self.sink.path, &self.path).at("rename", &self.sink.path)?;
        self.finished = true;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        self.fs.sync_dir(parent).at("sync", parent)?;
        self.report();
        Ok(self.meta())
    }

    /// Gives the table up and removes what was written, as far as possible.
    pub(crate) fn abandon(self) {
        drop(self);
    }

    /// Begins a block and a section where there is none.
    fn begin(&mut self, key: &[u8]) {
        if !self.block.is_empty() {
            return;
        }
        let first = self.section.entries == 0;
        if first {
            self.section.min_key = Bytes::copy_from_slice(key);
        }
        self.leaf.begin_block((!first).then(|| self.block.last_key()), key);
    }

    fn count(&mut self, seq: SeqNo, kind: ValueKind) {
        let section = &mut self.section;
        section.entries += 1;
        section.min_seq = section.min_seq.min(seq);
        section.max_seq = section.max_seq.max(seq);
        match kind {
            ValueKind::Put => {}
            ValueKind::Delete => {
                section.tombstones += 1;
                self.totals.tombstones += 1;
                let since = self.tombstones_since_s;
                let oldest = section.oldest_tombstone_s;
                section.oldest_tombstone_s = if oldest == 0 { since } else { oldest.min(since) };
            }
            ValueKind::PutUntil(until_ms) => {
                let until_s = u32::try_from(until_ms / 1000).unwrap_or(u32::MAX);
                section.min_expiry_s = section.min_expiry_s.min(until_s);
            }
        }
    }

    fn end_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let (entries, tombstones) = (self.block.n_entries(), self.block.tombstones());
        let raw = self.block.finish();
        let (codec, packed) = self.compressor.compress(raw);
        self.totals.raw += u64_of(raw.len());
        self.totals.packed += u64_of(packed.len());
        let len = self.sink.put(packed, raw, codec, BlockKind::Data)?;
        self.block.clear();
        self.section.data_len = self.section.data_len.saturating_add(len);
        self.leaf.end_block(self.section.data_len);
        self.totals.blocks = self.totals.blocks.saturating_add(1);
        let dense = tombstones * 2 >= entries || tombstones >= DENSE_TOMBSTONES;
        self.section.dense_blocks += u32::from(dense);
        Ok(())
    }

    fn write(&mut self, raw: &[u8], kind: BlockKind) -> Result<u32> {
        let (codec, packed) = self.compressor.compress(raw);
        self.sink.put(packed, raw, codec, kind)
    }

    fn props(&self) -> Props {
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Props {
            creator: concat!(env!("CARGO_PKG_NAME"), " format 1").into(),
            file: self.options.file,
            level: self.options.level,
            raw_key_bytes: self.totals.key_bytes,
            raw_value_bytes: self.totals.value_bytes,
            entries: self.totals.entries,
            tombstones: self.totals.tombstones,
            created_s: self.options.created_s,
            codec: self.options.compression,
            block_size: narrow(self.options.block_size),
            restart_interval: narrow(self.options.restart_interval),
            bloom_bits_per_key: narrow(self.options.bloom_bits_per_key),
        }
    }

    fn report(&self) {
        self.metrics.entries.inc(self.totals.entries);
        self.metrics.blocks.inc(u64::from(self.totals.blocks));
        self.metrics.bytes.inc(self.sink.offset);
        if self.options.compression != Compression::None && self.totals.packed > 0 {
            self.metrics.compression_ratio.observe(ratio(self.totals.raw, self.totals.packed));
        }
    }

    fn meta(&mut self) -> TableMeta {
        let sections = std::mem::take(&mut self.sections);
        TableMeta {
            file: self.options.file,
            level: self.options.level,
            file_bytes: self.sink.offset,
            entries: self.totals.entries,
            tombstones: self.totals.tombstones,
            raw_bytes: self.totals.key_bytes + self.totals.value_bytes,
            min_seq: sections.iter().map(|section| section.min_seq).min().unwrap_or_default(),
            max_seq: sections.iter().map(|section| section.max_seq).max().unwrap_or_default(),
            created_s: self.options.created_s,
            sections,
        }
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        if !self.finished && self.fs.remove(&self.sink.path).is_err() {
            tracing::debug!(path = %self.sink.path.display(), "temporary table stays behind");
        }
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

/// Name under which a table is written.
pub(crate) fn temp_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".tmp");
    name.into()
}

/// Gathers blocks into large appends.
#[derive(Debug)]
struct Sink {
    file: Arc<dyn WriteFile>,
    path: PathBuf,
    id: FileId,
    buffer: Vec<u8>,
    /// Size of the file, with what is in the buffer.
    offset: u64,
}

impl Sink {
    /// Appends a block; returns its size with the trailer.
    fn put(
        &mut self,
        packed: &[u8],
        raw: &[u8],
        codec: Compression,
        kind: BlockKind,
    ) -> Result<u32> {
        let place = Place { file: self.id, offset: self.offset };
        let trailer = frame::trailer(packed, raw.len(), codec, kind, place);
        if packed.len() >= WRITE_BYTES {
            self.flush()?;
            let parts = [IoSlice::new(packed), IoSlice::new(&trailer)];
            self.file.append(&parts).at("write", &self.path)?;
            self.offset += u64_of(packed.len() + trailer.len());
        } else {
            self.bytes(packed);
            self.bytes(&trailer);
        }
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        let len = self.offset - place.offset;
        u32::try_from(len).map_err(|_too_long| Error::TooLarge {
            what: "block",
            len,
            max: u32::MAX.into(),
        })
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(WRITE_BYTES + WRITE_BYTES / 8);
        }
        self.buffer.extend_from_slice(bytes);
        self.offset += u64_of(bytes.len());
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.file.append(&[IoSlice::new(&self.buffer)]).at("write", &self.path)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

const fn empty_section(offset: u64) -> SectionMeta {
    SectionMeta {
        offset,
        data_len: 0,
        leaf_len: 0,
        filter_len: 0,
        entries: 0,
        tombstones: 0,
        dense_blocks: 0,
        min_seq: SeqNo::MAX,
        max_seq: SeqNo(0),
        oldest_tombstone_s: 0,
        min_expiry_s: u32::MAX,
        min_key: Bytes::new(),
        max_key: Bytes::new(),
    }
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<()> {
    if len <= max {
        return Ok(());
    }
    Err(Error::TooLarge { what, len: u64_of(len), max: u64_of(max) })
}

/// `a / b` for counts whose last digits do not matter.
fn ratio(a: u64, b: u64) -> f64 {
    let scaled = a.saturating_mul(1000).checked_div(b).unwrap_or(0);
    f64::from(u32::try_from(scaled).unwrap_or(u32::MAX)) / 1000.0
}
