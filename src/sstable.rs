//! Sorted string tables as a library of their own: build a table once, read it from many tasks.
//!
//! ```
//! use std::sync::Arc;
//!
//! use nori_lsm::sstable::{Compression, Entry, Result, SSTableBuilder, SSTableConfig, SSTableReader};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! # let dir = tempfile::tempdir().expect("temporary directory");
//! let path = dir.path().join("data.sst");
//! let config = SSTableConfig { path: path.clone(), compression: Compression::None, ..Default::default() };
//! let mut builder = SSTableBuilder::new(config).await?;
//! builder.add(&Entry::put("key1", "value1")).await?;
//! builder.add(&Entry::delete("key3")).await?;
//! assert_eq!(builder.finish().await?.entry_count, 2);
//!
//! let reader = Arc::new(SSTableReader::open(path).await?);
//! assert_eq!(reader.get(b"key1").await?.and_then(|entry| entry.value).as_deref(), Some(&b"value1"[..]));
//! let mut entries = reader.iter_range("key2".into(), "key9".into());
//! while let Some(entry) = entries.try_next().await? {
//!     assert!(entry.is_tombstone());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Work that waits for the disk runs on the blocking threads of the tokio runtime; a lookup whose blocks are in memory
//! never leaves the task it was called from. Every future is `Send`.
//!
//! Format: docs/format.md#tables

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

pub use crate::config::Compression;
use crate::config::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::cursor::{Cursor, Found, Stop};
use crate::env::Env;
pub use crate::error::{Error, Result};
use crate::observe::{BuildMetrics, Histogram, Meter, ReadMetrics};
use crate::storage::{
    Access, Fetch, Helpers, NO_TABLES, Table, TableCache, TableCursor, TableOptions, TableWriter,
    Walk,
};
use crate::types::{Direction, FileId, KeyRange, Level, SeqNo, ValueKind, hash_key, u64_of};
use crate::version::TableMeta;

/// How to build a table, and how to read it.
///
/// ```
/// use nori_lsm::sstable::{Compression, SSTableConfig};
///
/// let config = SSTableConfig { path: "data.sst".into(), compression: Compression::Zstd, ..Default::default() };
/// assert_eq!((config.block_size, config.restart_interval, config.bloom_bits_per_key), (4096, 16, 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SSTableConfig {
    /// File of the table. It appears under this name when it is whole. Default: `data.sst`.
    pub path: PathBuf,
    /// How many entries there will be, about: reserves memory, nothing else. Default: 1000.
    pub estimated_entries: usize,
    /// Size of a data block before compression, in bytes. Default: 4096; from 64 to 1 MiB.
    pub block_size: usize,
    /// Entries between two restart points of a block. Default: 16; from 1 to 1024.
    pub restart_interval: usize,
    /// Codec of the blocks. Default: LZ4, or none in a build without it.
    pub compression: Compression,
    /// Bits of bloom filter for each key; 10 let about one absent key in a hundred pass. Default: 10; 0 (no filter) to 32.
    pub bloom_bits_per_key: usize,
    /// Cache of decompressed blocks of a reader opened with this configuration, in MiB; 0 turns it off. Default: 64.
    pub block_cache_mb: usize,
}

impl Default for SSTableConfig {
    fn default() -> Self {
        Self {
            path: "data.sst".into(),
            estimated_entries: 1000,
            block_size: 4096,
            restart_interval: 16,
            compression: if cfg!(feature = "lz4") { Compression::Lz4 } else { Compression::None },
            bloom_bits_per_key: 10,
            block_cache_mb: 64,
        }
    }
}

impl SSTableConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that makes no sense.
    pub fn validate(&self) -> Result<()> {
        if self.path.file_name().is_none() {
            return Err(Error::config("path", "must name a file"));
        }
        within("block_size", self.block_size, 64, 1 << 20)?;
        within("restart_interval", self.restart_interval, 1, 1024)?;
        within("bloom_bits_per_key", self.bloom_bits_per_key, 0, 32)?;
        within("block_cache_mb", self.block_cache_mb, 0, 1 << 20)?;
        crate::config::validate_codec("compression", self.compression)
    }
}

fn within(field: &'static str, value: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::config(field, format!("{value} is not within {min} to {max}")))
}

/// One version of a key: a value, or a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The key; the empty key is one like any other.
    pub key: Bytes,
    /// Its value; `None` for a tombstone.
    pub value: Option<Bytes>,
    /// Its sequence number: of two versions of a key, the higher one is newer.
    pub seq: SeqNo,
    /// When it expires, in milliseconds since the Unix epoch. Kept for the reader; a table does not read the clock.
    pub expires_at_ms: Option<u64>,
}

impl Entry {
    /// A key and its value.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let (key, value) = (key.into(), Some(value.into()));
        Self { key, value, seq: SeqNo(0), expires_at_ms: None }
    }

    /// A tombstone: the key is deleted.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: None, seq: SeqNo(0), expires_at_ms: None }
    }

    /// The same with a sequence number.
    #[must_use]
    pub fn with_seq(self, seq: SeqNo) -> Self {
        Self { seq, ..self }
    }

    /// The same with a time of expiry, in milliseconds since the Unix epoch. Means nothing for a tombstone.
    #[must_use]
    pub fn with_expiry(self, expires_at_ms: u64) -> Self {
        Self { expires_at_ms: Some(expires_at_ms), ..self }
    }

    /// Whether the entry says that its key is deleted.
    #[must_use]
    pub const fn is_tombstone(&self) -> bool {
        self.value.is_none()
    }

    fn kind(&self) -> ValueKind {
        match (&self.value, self.expires_at_ms) {
            (None, _) => ValueKind::Delete,
            (Some(_), None) => ValueKind::Put,
            (Some(_), Some(at)) => ValueKind::PutUntil(at),
        }
    }

    fn from_parts(key: Bytes, seq: SeqNo, kind: ValueKind, value: Bytes) -> Self {
        let (value, expires_at_ms) = match kind {
            ValueKind::Put => (Some(value), None),
            ValueKind::Delete => (None, None),
            ValueKind::PutUntil(at) => (Some(value), Some(at)),
        };
        Self { key, value, seq, expires_at_ms }
    }

    fn len(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// What a table contains.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SSTableMetadata {
    /// Entries, all versions of keys and tombstones alike.
    pub entry_count: u64,
    /// Tombstones among them.
    pub tombstone_count: u64,
    /// Size of the file in bytes.
    pub file_size: u64,
    /// Keys and values in bytes, before compression.
    pub raw_size: u64,
    /// First key; `None` for a table without entries.
    pub min_key: Option<Bytes>,
    /// Last key; `None` for a table without entries.
    pub max_key: Option<Bytes>,
    /// Lowest sequence number.
    pub min_seq: SeqNo,
    /// Highest sequence number.
    pub max_seq: SeqNo,
    /// Wall clock at creation, in seconds since the Unix epoch.
    pub created_s: u64,
}

impl From<&TableMeta> for SSTableMetadata {
    fn from(meta: &TableMeta) -> Self {
        Self {
            entry_count: meta.entries,
            tombstone_count: meta.tombstones,
            file_size: meta.file_bytes,
            raw_size: meta.raw_bytes,
            min_key: meta.sections.first().map(|section| section.min_key.clone()),
            max_key: meta.sections.last().map(|section| section.max_key.clone()),
            min_seq: meta.min_seq,
            max_seq: meta.max_seq,
            created_s: meta.created_s,
        }
    }
}

/// Builds a table from entries in order.
///
/// The file is written under `<path>.tmp` and gets its name when it is whole and synced. A builder that is dropped
/// before leaves no file behind. Cancel safe: a dropped `add` has added its entry or not, and the builder goes on.
#[derive(Debug)]
pub struct SSTableBuilder {
    env: Env,
    metrics: Arc<BuildMetrics>,
    begun: Duration,
    writer: Arc<Mutex<Writer>>,
    /// Entries that were checked and wait to be written together.
    waiting: Vec<Entry>,
    waiting_bytes: usize,
    last: Option<(Bytes, SeqNo)>,
}

/// The table that is being written; `Err` after the first failure, for good.
type Writer = Result<Option<TableWriter>>;

/// Bytes of entries that are written together.
const BATCH_BYTES: usize = 256 << 10;
/// Entries that are written together.
const BATCH_ENTRIES: usize = 4096;

impl SSTableBuilder {
    /// Begins a table.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Io`].
    pub async fn new(config: SSTableConfig) -> Result<Self> {
        Self::in_env(config, Env::default()).await
    }

    /// Begins a table and reports on the work to `meter`.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Io`].
    pub async fn new_with_meter(config: SSTableConfig, meter: Box<dyn Meter>) -> Result<Self> {
        Self::in_env(config, with_meter(meter)).await
    }

    async fn in_env(config: SSTableConfig, env: Env) -> Result<Self> {
        config.validate()?;
        let begun = env.clock.now();
        let metrics = BuildMetrics::new(env.meter.as_ref());
        let wall_ms = env.clock.wall_ms();
        let options = TableOptions {
            file: file_id(&config, wall_ms),
            level: Level::L0,
            block_size: config.block_size,
            restart_interval: config.restart_interval,
            compression: config.compression,
            bloom_bits_per_key: config.bloom_bits_per_key,
            created_s: wall_ms / 1000,
        };
        let (fs, build_metrics) = (Arc::clone(&env.fs), Arc::clone(&metrics));
        let create = move || {
            let temp = crate::storage::temp_path(&config.path);
            match fs.remove(&temp) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io("remove", &temp, error));
                }
                Ok(()) | Err(_) => {} // what an earlier build left behind
            }
            let mut writer = TableWriter::create(&fs, &config.path, options, &build_metrics)?;
            writer.expect_entries(config.estimated_entries);
            Ok(writer)
        };
        let writer = Arc::new(Mutex::new(Ok(Some(env.on_disk(create).await?))));
        let (waiting, waiting_bytes) = (Vec::new(), 0);
        Ok(Self { env, metrics, begun, writer, waiting, waiting_bytes, last: None })
    }

    /// Appends an entry: keys ascending, versions of a key from the highest sequence number to the lowest.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`] and [`Error::TooLarge`] refuse this entry only; after [`Error::Io`] the table is lost.
    pub async fn add(&mut self, entry: &Entry) -> Result<()> {
        self.check(entry)?;
        if self.waiting_bytes >= BATCH_BYTES || self.waiting.len() >= BATCH_ENTRIES {
            self.write_waiting().await?;
        }
        self.last = Some((entry.key.clone(), entry.seq));
        self.waiting_bytes += entry.len();
        self.waiting.push(entry.clone());
        Ok(())
    }

    /// Ends the table: when this returns, all of it is on disk, under its name.
    ///
    /// # Errors
    /// [`Error::Io`]; then there is no table.
    pub async fn finish(mut self) -> Result<SSTableMetadata> {
        self.write_waiting().await?;
        let writer = Arc::clone(&self.writer);
        let meta = self.env.on_disk(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = Error::Interrupted { component: "table builder" };
            writer.as_mut().map_err(|error| error.clone())?.take().ok_or(lost)?.finish()
        });
        let meta = meta.await?;
        observe_ms(self.metrics.duration_ms.as_ref(), &self.env, self.begun);
        Ok(SSTableMetadata::from(&meta))
    }

    fn check(&self, entry: &Entry) -> Result<()> {
        let limits = [
            ("key", entry.key.len(), MAX_KEY_BYTES),
            ("value", entry.value.as_ref().map_or(0, Bytes::len), MAX_VALUE_BYTES),
        ];
        for (what, len, max) in limits {
            if len > max {
                return Err(Error::TooLarge { what, len: u64_of(len), max: u64_of(max) });
            }
        }
        let in_order = self
            .last
            .as_ref()
            .is_none_or(|(key, seq)| *key < entry.key || (*key == entry.key && *seq > entry.seq));
        if in_order { Ok(()) } else { Err(Error::OutOfOrder) }
    }

    async fn write_waiting(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let writer = Arc::clone(&self.writer);
        // The job holds the lock from start to end, so batches stay in order even if this future is dropped.
        let job = move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let table = writer.as_mut().map_err(|error| error.clone())?;
            let written = table.as_mut().map_or(Ok(()), |table| write_batch(table, &batch));
            written.inspect_err(|error| *writer = Err(error.clone()))
        };
        self.env.on_disk(job).await
    }
}

fn write_batch(table: &mut TableWriter, batch: &[Entry]) -> Result<()> {
    for entry in batch {
        let value = entry.value.as_deref().unwrap_or_default();
        table.add(&entry.key, entry.seq, entry.kind(), value)?;
    }
    Ok(())
}

/// A number that is part of the checksum of every block, so that blocks of two tables are told apart.
fn file_id(config: &SSTableConfig, wall_ms: u64) -> FileId {
    let path = hash_key(config.path.as_os_str().as_encoded_bytes());
    FileId(path ^ wall_ms.rotate_left(32))
}

/// Reads a table. Share it between tasks in an `Arc`.
///
/// ```no_run
/// # async fn example() -> nori_lsm::sstable::Result<()> {
/// use std::sync::Arc;
/// use nori_lsm::sstable::SSTableReader;
///
/// let reader = Arc::new(SSTableReader::open("data.sst".into()).await?);
/// let mut entries = reader.clone().iter();
/// while let Some(entry) = entries.try_next().await? {
///     println!("{:?} = {:?}", entry.key, entry.value);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SSTableReader {
    env: Env,
    table: Arc<Table>,
    metrics: Arc<ReadMetrics>,
    /// Whether somebody listens: two looks at the clock cost as much as a filter check.
    timed: bool,
}

impl SSTableReader {
    /// Opens a table, with a block cache of 64 MiB; [`SSTableReader::open_with_config`] sets another size.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] if footer or indexes are damaged; [`Error::Unsupported`].
    pub async fn open(path: PathBuf) -> Result<Self> {
        Self::open_with_config(SSTableConfig { path, ..SSTableConfig::default() }).await
    }

    /// Opens a table and reports on the reads to `meter`.
    ///
    /// # Errors
    /// As [`SSTableReader::open`].
    pub async fn open_with_meter(path: PathBuf, meter: Box<dyn Meter>) -> Result<Self> {
        let config = SSTableConfig { path, ..SSTableConfig::default() };
        Self::in_env(config, with_meter(meter), true).await
    }

    /// Opens `config.path` with a block cache of `config.block_cache_mb`; what else there is, the file says itself.
    ///
    /// # Errors
    /// As [`SSTableReader::open`]; [`Error::Config`].
    pub async fn open_with_config(config: SSTableConfig) -> Result<Self> {
        Self::in_env(config, Env::default(), false).await
    }

    /// Like [`SSTableReader::open_with_config`], and reports on the reads to `meter`.
    ///
    /// # Errors
    /// As [`SSTableReader::open`]; [`Error::Config`].
    pub async fn open_with_config_and_meter(
        config: SSTableConfig,
        meter: Box<dyn Meter>,
    ) -> Result<Self> {
        Self::in_env(config, with_meter(meter), true).await
    }

    pub(crate) async fn in_env(config: SSTableConfig, env: Env, timed: bool) -> Result<Self> {
        config.validate()?;
        let begun = env.clock.now();
        let metrics = ReadMetrics::new(env.meter.as_ref());
        let helpers = Helpers::new(&env);
        let cache = TableCache::alone(u64_of(config.block_cache_mb) << 20, helpers);
        let (fs, table_metrics) = (Arc::clone(&env.fs), Arc::clone(&metrics));
        let open = move || {
            let table = Table::open(fs, config.path, cache, table_metrics)?;
            table.load_all()?;
            Ok(table)
        };
        let table = env.on_disk(open).await?;
        observe_ms(metrics.open_ms.as_ref(), &env, begun);
        Ok(Self { env, table, metrics, timed })
    }

    /// The newest version of `key`, which may be a tombstone; `None` if the table says nothing about the key.
    ///
    /// Ready at the first poll if the block is in memory. Cancel safe. The value shares the memory of its block.
    ///
    /// # Errors
    /// [`Error::Corrupt`], never a miss, if a block is damaged; [`Error::Io`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.get_at(key, SeqNo::MAX).await
    }

    pub(crate) async fn get_at(&self, key: &[u8], snapshot: SeqNo) -> Result<Option<Entry>> {
        let begun = self.timed.then(|| self.env.clock.now());
        let mut fetch = Fetch::new(Access::Try, true);
        let hash = hash_key(key);
        let found = loop {
            match self.table.get(&NO_TABLES, (key, hash), snapshot, &mut fetch) {
                Ok(found) => break found,
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Blocked(read)) => self.env.on_disk(read).await?,
            }
        };
        if let Some(begun) = begun {
            let outcome = match &found {
                Some(_) => &self.metrics.get_hit_ms,
                None if fetch.was_filtered() => &self.metrics.get_bloom_skip_ms,
                None => &self.metrics.get_miss_ms,
            };
            observe_ms(outcome.as_ref(), &self.env, begun);
        }
        Ok(found.map(|Found { seq, kind, value }| {
            Entry::from_parts(Bytes::copy_from_slice(key), seq, kind, value)
        }))
    }

    /// All entries in order: every version of every key, tombstones included.
    #[must_use]
    pub fn iter(self: Arc<Self>) -> SSTableIterator {
        self.over(KeyRange::all(), Direction::Forward)
    }

    /// The entries whose key is at least `start` and less than `end`.
    #[must_use]
    pub fn iter_range(self: Arc<Self>, start: Bytes, end: Bytes) -> SSTableIterator {
        self.over(KeyRange::new(start, Some(end)), Direction::Forward)
    }

    /// What the table contains.
    #[must_use]
    pub fn metadata(&self) -> SSTableMetadata {
        SSTableMetadata::from(self.table.meta().as_ref())
    }

    /// Bytes of the index and filters that the reader keeps in memory, beside the block cache.
    #[must_use]
    pub fn index_bytes(&self) -> u64 {
        self.table.pinned_bytes()
    }

    /// Reads and checks the whole file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first thing that is not as it was written; [`Error::Io`].
    pub async fn verify(&self) -> Result<()> {
        let table = Arc::clone(&self.table);
        self.env.on_disk(move || table.verify()).await
    }

    pub(crate) fn over(self: Arc<Self>, range: KeyRange, direction: Direction) -> SSTableIterator {
        let table = Arc::clone(&self.table);
        let cursor = TableCursor::new(table, range, Walk::new(direction, Access::Try, true));
        SSTableIterator { reader: self, cursor, next: Step::Rewind }
    }
}

/// Walks the entries of a table in order. Made by [`SSTableReader::iter`] and [`SSTableReader::iter_range`].
#[derive(Debug)]
pub struct SSTableIterator {
    reader: Arc<SSTableReader>,
    cursor: TableCursor,
    next: Step,
}

/// What has to be done before the entry under the cursor is the next one.
#[derive(Debug)]
enum Step {
    Rewind,
    Seek(Bytes),
    Advance,
    Nothing,
}

impl SSTableIterator {
    /// The next entry; `None` behind the last one.
    ///
    /// Cancel safe: a dropped call has taken no entry. Values share the memory of their block.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`]; calling again tries again.
    pub async fn try_next(&mut self) -> Result<Option<Entry>> {
        self.arrive().await?;
        let Some(entry) = self.cursor.entry() else { return Ok(None) };
        let key = Bytes::copy_from_slice(entry.key);
        let entry = Entry::from_parts(key, entry.seq, entry.kind, self.cursor.value());
        self.next = Step::Advance;
        Ok(Some(entry))
    }

    /// Goes to the first entry of the range whose key is `key` or greater, forward or back; `try_next` returns it.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub async fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.next = Step::Seek(Bytes::copy_from_slice(key));
        self.arrive().await
    }

    async fn arrive(&mut self) -> Result<()> {
        loop {
            let moved = match &self.next {
                Step::Nothing => return Ok(()),
                Step::Rewind => self.cursor.rewind(),
                Step::Seek(key) => self.cursor.seek(key),
                Step::Advance => self.cursor.advance().map(drop),
            };
            match moved {
                Ok(()) => self.next = Step::Nothing,
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Blocked(read)) => self.reader.env.on_disk(read).await?,
            }
        }
    }
}

fn with_meter(meter: Box<dyn Meter>) -> Env {
    Env { meter: Arc::from(meter), ..Env::default() }
}

fn observe_ms(histogram: &dyn Histogram, env: &Env, begun: Duration) {
    histogram.observe(env.clock.now().saturating_sub(begun).as_secs_f64() * 1e3);
}
