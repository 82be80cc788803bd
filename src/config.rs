//! What a user can set. Every field acts; `open` checks them all before it touches the disk.

use std::path::PathBuf;
use std::time::Duration;

use crate::env::memory_limit;
use crate::error::{Error, Result};
use crate::types::{u64_of, usize_of};

/// Largest key, in bytes.
pub const MAX_KEY_BYTES: usize = 64 << 10;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 << 20;
/// Largest batch, keys and values together, in bytes: that of the largest put.
pub const MAX_BATCH_BYTES: usize = MAX_KEY_BYTES + MAX_VALUE_BYTES;

/// Longest time between two rounds of upkeep, in seconds: a year.
const LONGEST_SEC: u64 = 366 * 24 * 3600;

/// Configuration of an engine. Take `ATLLConfig::default()` and set what matters to you.
///
/// ```
/// use nori_lsm::{ATLLConfig, Durability};
///
/// let config = ATLLConfig { data_dir: "data/orders".into(), durability: Durability::Sync, ..Default::default() };
/// config.validate().expect("these make sense");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ATLLConfig {
    /// Directory of the database; created if need be. Default: `data`.
    pub data_dir: PathBuf,
    /// Number that events carry, to tell engines apart. Default: 0.
    pub node_id: u32,
    /// How many times larger each level is than the one above. Default: 10; from 2 to 100.
    pub fanout: usize,
    /// Number of levels, L0 included. Default: 7; from 2 to 16.
    pub max_levels: usize,
    /// How many slots L1 may be cut into; each deeper level may have `fanout` times as many. Default: 32.
    pub l1_slot_count: usize,
    /// When a memtable is sealed and flushed.
    pub memtable: MemtableConfig,
    /// How much may pile up in L0.
    pub l0: L0Config,
    /// Bloom filters of the tables.
    pub filters: FilterConfig,
    /// What a write has survived when it is acknowledged, unless the write says otherwise. Default: [`Durability::Os`].
    pub durability: Durability,
    /// How many runs a slot is meant to hold (K) before the scheduler has measured anything. More may pile up, up to four more and
    /// eight in all, before a slot counts as full.
    pub default_k: DefaultK,
    /// Largest K of the hottest slots, while they are read a hundred times a second or more. Default: 1.
    pub hot_k: u8,
    /// Share of a level's size that is given to its slots by their share of the data; the rest is spread evenly.
    /// Default: 0.9; from 0 to 1.
    pub slot_byte_budget_fraction: f64,
    /// What counts as hot and cold, and how fast heat is forgotten.
    pub heat_thresholds: HeatThresholds,
    /// When deleted data is collected.
    pub tombstone: TombstoneConfig,
    /// Background work.
    pub io: IoConfig,
    /// Compression by place in the tree.
    pub compression: CompressionConfig,
    /// Size of a data block before compression, in bytes. Default: 4096; from 64 to 1 MiB.
    pub block_size: usize,
    /// Entries between two restart points of a block. Default: 16; from 1 to 1024.
    pub restart_interval: usize,
    /// Memory that the engine may use.
    pub resources: ResourceConfig,
    /// The write-ahead log.
    pub wal: WalConfig,
    /// What to do with a log that is damaged before bytes known to be durable. Default: [`RecoveryMode::Strict`].
    pub recovery: RecoveryMode,
    /// Seed of the scheduler's exploration. Default: random, logged at open.
    pub seed: u64,
}

impl Default for ATLLConfig {
    fn default() -> Self {
        Self {
            data_dir: "data".into(),
            node_id: 0,
            fanout: 10,
            max_levels: 7,
            l1_slot_count: 32,
            memtable: MemtableConfig::default(),
            l0: L0Config::default(),
            filters: FilterConfig::default(),
            durability: Durability::Os,
            default_k: DefaultK::default(),
            hot_k: 1,
            slot_byte_budget_fraction: 0.9,
            heat_thresholds: HeatThresholds::default(),
            tombstone: TombstoneConfig::default(),
            io: IoConfig::default(),
            compression: CompressionConfig::default(),
            block_size: 4096,
            restart_interval: 16,
            resources: ResourceConfig::default(),
            wal: WalConfig::default(),
            recovery: RecoveryMode::Strict,
            seed: fastrand::u64(..),
        }
    }
}

/// When a memtable is sealed and flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemtableConfig {
    /// Size in bytes, keys, values and overhead together. Default: 64 MiB, or a quarter of [`ResourceConfig::memtables_mib`], if
    /// that is less; at least 1 KiB.
    pub flush_trigger_bytes: usize,
    /// Age in seconds, also while nothing is written. Default: 30; from 1 to a year.
    pub wal_age_trigger_sec: u64,
}

impl Default for MemtableConfig {
    fn default() -> Self {
        let all = usize_of(memtable_bytes(memory_limit()));
        Self { flush_trigger_bytes: all / 4, wal_age_trigger_sec: 30 }
    }
}

/// How much may pile up in L0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L0Config {
    /// Runs in L0 at which writes wait; they are slowed from half of it on. Default: 12; at least 2.
    pub max_files: usize,
}

impl Default for L0Config {
    fn default() -> Self {
        Self { max_files: 12 }
    }
}

/// Bloom filters of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    /// Bits per key: 10 give about 1 % of false positives; 0 leaves filters out. Default: 10; up to 32.
    pub bloom_bits_per_key: usize,
}

impl Default for FilterConfig {
    fn default() -> Self {
        Self { bloom_bits_per_key: 10 }
    }
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the operating system: survives the death of the process, not of the machine.
    Os,
    /// Like `Os`, and on disk at most this much later.
    Batch(Duration),
    /// On disk. Writers that wait at the same time share one sync.
    Sync,
}

/// How many runs a slot is meant to hold before the scheduler has measured anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultK {
    /// Slots of L1. Default: 3; from 1 to 4.
    pub l1: u8,
    /// Slots of L2. Default: 3; from 1 to 4.
    pub l2: u8,
    /// Slots of deeper levels. Default: 2; from 1 to 4.
    pub l3_plus: u8,
}

impl Default for DefaultK {
    fn default() -> Self {
        Self { l1: 3, l2: 3, l3_plus: 2 }
    }
}

/// What counts as hot and cold, and how fast heat is forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatThresholds {
    /// Share of the hottest slot's read cost from which a slot is hot. Default: 0.8.
    pub hot: f64,
    /// Share of the hottest slot's read cost up to which a slot is cold. Default: 0.2.
    pub cold: f64,
    /// Operations after which a past read counts half, if they take between one and some fourteen seconds: it never counts half
    /// sooner or later than that. Default: 100,000.
    pub half_life_ops: u64,
}

impl Default for HeatThresholds {
    fn default() -> Self {
        Self { hot: 0.8, cold: 0.2, half_life_ops: 100_000 }
    }
}

/// When deleted data is collected.
#[derive(Clone, Debug, PartialEq)]
pub struct TombstoneConfig {
    /// Share of tombstones in a slot from which it is cleaned up. Default: 0.15; above 0, up to 1.
    pub density_threshold: f64,
    /// Time to live of every put that does not have one of its own, in seconds. Default: none, data lives for ever.
    pub ttl_default_sec: Option<u64>,
}

impl Default for TombstoneConfig {
    fn default() -> Self {
        Self { density_threshold: 0.15, ttl_default_sec: None }
    }
}

/// Background work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoConfig {
    /// Compactions of the scheduler's choice that run at the same time; what [`compact_range`](crate::LsmEngine::compact_range) asks
    /// for runs beside them, as many at a time. Default: half the cores, from 1 to 4.
    pub max_background_compactions: usize,
    /// Megabytes per second that compactions may write, all of them together. Default: none, no limit.
    pub rate_limit_mb_s: Option<u64>,
    /// Time within which every table is read once to look for damage, a little at a time, and later while flushes or compactions
    /// are behind. Default: none, only what is asked for is read.
    pub scrub_interval: Option<Duration>,
}

impl Default for IoConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_background_compactions: (cores / 2).clamp(1, 4),
            rate_limit_mb_s: None,
            scrub_interval: None,
        }
    }
}

/// Codec of the blocks of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are: fastest writes, largest files.
    None,
    /// LZ4: fast both ways, two to three times smaller on typical data. Writing it needs the feature `lz4`.
    #[default]
    Lz4,
    /// Zstandard: smaller, slower. Needs the feature `zstd`.
    Zstd,
}

/// Compression by place in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionConfig {
    /// Tables written by a flush. Default: LZ4.
    pub flush: Compression,
    /// Tables written by a compaction above the last level that holds data. Default: LZ4.
    pub levels: Compression,
    /// Tables written into the last level that holds data. Default: LZ4.
    pub last: Compression,
}

impl Default for CompressionConfig {
    fn default() -> Self {
        let best = if cfg!(feature = "lz4") { Compression::Lz4 } else { Compression::None };
        Self { flush: best, levels: best, last: best }
    }
}

/// Memory that the engine may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// Decompressed blocks, and the indexes and filters of open tables, in MiB. Indexes and filters take up to seven eighths of
    /// it, and up to 8 MiB however little it is; 0 caches no block. Default: 64, or an
    /// eighth of the memory that the machine has or its control group grants, if that is less.
    pub block_cache_mib: usize,
    /// All memtables and the writes that are queued for them, in MiB; writes are slowed before and wait at this size. Default: 256,
    /// or a quarter of the memory that the machine has or its control group grants, if that is less; but two memtables of
    /// [`MemtableConfig::flush_trigger_bytes`] in any case. What is set must hold two of what is set there.
    pub memtables_mib: usize,
    /// Table files that are open at the same time; the least recently read are closed beyond it. Default: 1024; at least 1.
    pub open_files: usize,
}

impl Default for ResourceConfig {
    fn default() -> Self {
        let limit = memory_limit();
        Self {
            block_cache_mib: usize_of(block_cache_bytes(limit) >> 20),
            memtables_mib: usize_of(memtable_bytes(limit) >> 20),
            open_files: 1024,
        }
    }
}

/// Default for all memtables of a process that may use `limit` bytes: a quarter of it, whole MiB, from 1 to 256 MiB.
fn memtable_bytes(limit: u64) -> u64 {
    ((limit / 4) >> 20).clamp(1, 256) << 20
}

/// Default for the cache of a process that may use `limit` bytes: an eighth of it, whole MiB, up to 64 MiB.
fn block_cache_bytes(limit: u64) -> u64 {
    ((limit / 8) >> 20).min(64) << 20
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Reserve the room of a segment when it is begun, and write zeros ahead of commits that are synced, so that a sync need not
    /// grow the file or note that a block is in use. Of little use where files are never overwritten in place. Default: true.
    pub segment_preallocate: bool,
    /// Seconds between two sweeps for dead segments; one also follows each flush. Default: 60; from 1 to a year.
    pub gc_interval_sec: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self { segment_preallocate: true, gc_interval_sec: 60 }
    }
}

/// What to do with a log that is damaged before bytes known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Refuse to open: [`Error::Corrupt`] with file and offset.
    Strict,
    /// Keep what was written before the damage, drop the rest, and say so in the recovery report.
    SalvagePrefix,
}

impl ATLLConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that makes no sense, and why.
    pub fn validate(&self) -> Result<()> {
        check("data_dir", !self.data_dir.as_os_str().is_empty(), "must not be empty")?;
        within("fanout", self.fanout, 2, 100)?;
        within("max_levels", self.max_levels, 2, 16)?;
        within("l1_slot_count", self.l1_slot_count, 1, 4096)?;
        // All of a memtable has to fit one frame of the log, should it be logged again.
        let trigger = self.memtable.flush_trigger_bytes;
        within("memtable.flush_trigger_bytes", trigger, 1 << 10, 2 << 30)?;
        let age = self.memtable.wal_age_trigger_sec;
        let sane = (1..=LONGEST_SEC).contains(&age);
        check("memtable.wal_age_trigger_sec", sane, "must be from 1 second to a year")?;
        within("l0.max_files", self.l0.max_files, 2, 1000)?;
        within("filters.bloom_bits_per_key", self.filters.bloom_bits_per_key, 0, 32)?;
        let interval = match self.durability {
            Durability::Batch(interval) => interval,
            Durability::Os | Durability::Sync => Duration::from_secs(1),
        };
        let sane = !interval.is_zero() && interval <= Duration::from_secs(LONGEST_SEC);
        check("durability", sane, "a batch interval must be above zero, up to a year")?;
        self.validate_policy()?;
        within("block_size", self.block_size, 64, 1 << 20)?;
        within("restart_interval", self.restart_interval, 1, 1024)?;
        within("resources.block_cache_mib", self.resources.block_cache_mib, 0, 1 << 20)?;
        within("resources.open_files", self.resources.open_files, 1, 1 << 20)?;
        self.validate_memory()?;
        let gc = self.wal.gc_interval_sec;
        let sane = (1..=LONGEST_SEC).contains(&gc);
        check("wal.gc_interval_sec", sane, "must be from 1 second to a year")?;
        validate_codec("compression.flush", self.compression.flush)?;
        validate_codec("compression.levels", self.compression.levels)?;
        validate_codec("compression.last", self.compression.last)
    }

    fn validate_policy(&self) -> Result<()> {
        within("default_k.l1", self.default_k.l1.into(), 1, 4)?;
        within("default_k.l2", self.default_k.l2.into(), 1, 4)?;
        within("default_k.l3_plus", self.default_k.l3_plus.into(), 1, 4)?;
        within("hot_k", self.hot_k.into(), 1, 4)?;
        share("slot_byte_budget_fraction", self.slot_byte_budget_fraction)?;
        share("heat_thresholds.hot", self.heat_thresholds.hot)?;
        share("heat_thresholds.cold", self.heat_thresholds.cold)?;
        let ordered = self.heat_thresholds.cold < self.heat_thresholds.hot;
        check("heat_thresholds.cold", ordered, "must be below heat_thresholds.hot")?;
        let half_life = self.heat_thresholds.half_life_ops;
        check("heat_thresholds.half_life_ops", half_life >= 1, "must be at least 1")?;
        share("tombstone.density_threshold", self.tombstone.density_threshold)?;
        let density = self.tombstone.density_threshold > 0.0;
        check("tombstone.density_threshold", density, "must be above 0")?;
        let ttl = self.tombstone.ttl_default_sec != Some(0);
        check("tombstone.ttl_default_sec", ttl, "must be above 0, or None")?;
        within("io.max_background_compactions", self.io.max_background_compactions, 1, 64)?;
        let rate = self.io.rate_limit_mb_s.is_none_or(|rate| (1..=1 << 20).contains(&rate));
        check("io.rate_limit_mb_s", rate, "must be from 1 to 1048576, or None")?;
        let scrub = self.io.scrub_interval != Some(Duration::ZERO);
        check("io.scrub_interval", scrub, "must be above 0, or None")
    }

    fn validate_memory(&self) -> Result<()> {
        within("resources.memtables_mib", self.resources.memtables_mib, 1, 1 << 20)?;
        let settled = self.clone().settled();
        let two = two_memtables(settled.memtable.flush_trigger_bytes);
        check(
            "resources.memtables_mib",
            settled.resources.memtables_mib >= two,
            &format!(
                "must be at least {two}, two memtables of memtable.flush_trigger_bytes, one written and one flushed; \
                 or set that lower"
            ),
        )
    }

    /// The configuration with defaults that fit what is set: of the memory of memtables and their size, the one that was left at
    /// its default gives way.
    pub(crate) fn settled(mut self) -> Self {
        let (memory, size) = (ResourceConfig::default(), MemtableConfig::default());
        let set = (self.resources.memtables_mib, self.memtable.flush_trigger_bytes);
        if set.0 == memory.memtables_mib {
            self.resources.memtables_mib = set.0.max(two_memtables(set.1));
        } else if set.1 == size.flush_trigger_bytes {
            let quarter = u64_of(set.0).saturating_mul(1 << 20) / 4;
            self.memtable.flush_trigger_bytes = set.1.min(usize_of(quarter));
        }
        self
    }
}

/// MiB that two memtables of `bytes` take.
fn two_memtables(bytes: usize) -> usize {
    bytes.saturating_mul(2).div_ceil(1 << 20)
}

fn check(field: &'static str, fine: bool, problem: &str) -> Result<()> {
    if fine { Ok(()) } else { Err(Error::config(field, problem)) }
}

fn within(field: &'static str, value: usize, min: usize, max: usize) -> Result<()> {
    check(field, (min..=max).contains(&value), &format!("{value} is not within {min} to {max}"))
}

fn share(field: &'static str, value: f64) -> Result<()> {
    check(field, (0.0..=1.0).contains(&value), &format!("{value} is not within 0 to 1"))
}

pub(crate) fn validate_codec(field: &'static str, codec: Compression) -> Result<()> {
    match codec {
        Compression::Lz4 => check(field, cfg!(feature = "lz4"), "this build lacks the feature lz4"),
        Compression::Zstd => {
            check(field, cfg!(feature = "zstd"), "this build lacks the feature zstd")
        }
        Compression::None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_readme() {
        let config = ATLLConfig::default();
        assert_eq!((config.fanout, config.max_levels, config.l1_slot_count), (10, 7, 32));
        let quarter = config.resources.memtables_mib << 18;
        assert_eq!(config.memtable.flush_trigger_bytes, quarter.min(64 << 20));
        assert_eq!(config.memtable.wal_age_trigger_sec, 30);
        assert_eq!((config.l0.max_files, config.filters.bloom_bits_per_key), (12, 10));
        config.validate().expect("defaults make sense");
    }

    #[test]
    fn defaults_take_a_share_of_a_small_memory_limit_and_make_sense_at_each() {
        for mib in (64..4096).chain([1 << 20, u64::MAX >> 20]) {
            let limit = mib << 20;
            let (memtables, cache) = (memtable_bytes(limit), block_cache_bytes(limit));
            assert!(memtables <= limit / 4 && cache <= limit / 8, "at {mib} MiB");
            let mut config = ATLLConfig::default();
            config.memtable.flush_trigger_bytes = usize_of(memtables / 4);
            config.resources.memtables_mib = usize_of(memtables >> 20);
            config.resources.block_cache_mib = usize_of(cache >> 20);
            config.validate().expect("defaults make sense");
        }
        assert_eq!((memtable_bytes(64 << 20), block_cache_bytes(64 << 20)), (16 << 20, 8 << 20));
        assert_eq!((memtable_bytes(1 << 30), block_cache_bytes(1 << 30)), (256 << 20, 64 << 20));
        assert_eq!((memtable_bytes(0), block_cache_bytes(0)), (1 << 20, 0));
        let config = ATLLConfig::default();
        let limit = memory_limit();
        assert_eq!(u64_of(config.resources.memtables_mib) << 20, memtable_bytes(limit));
        assert_eq!(u64_of(config.resources.block_cache_mib) << 20, block_cache_bytes(limit));
    }

    #[test]
    fn a_default_gives_way_to_what_is_set() {
        let config = ATLLConfig::default();
        assert_eq!(config.clone().settled(), config, "defaults fit each other");
        let all = config.resources.memtables_mib;
        let mut large = config.clone();
        large.memtable.flush_trigger_bytes = (all << 20) + 1;
        large.validate().expect("the memory was not set");
        assert_eq!(large.settled().resources.memtables_mib, 2 * all + 1);
        let mut little = config;
        little.resources.memtables_mib = 1;
        little.validate().expect("the size was not set");
        assert_eq!(little.clone().settled().memtable.flush_trigger_bytes, 1 << 18);
        little.memtable.flush_trigger_bytes = 1 << 20;
        let problem = little.validate().expect_err("both are set").to_string();
        assert!(problem.contains("memtable.flush_trigger_bytes"), "{problem}");
        assert!(problem.contains("memtables_mib") && problem.contains("at least 2"), "{problem}");
    }

    type Spoil = fn(&mut ATLLConfig);

    /// Each bad kind of value of each field.
    const NONSENSE: &[(&str, Spoil)] = &[
        ("data_dir", |c| c.data_dir = PathBuf::new()),
        ("fanout", |c| c.fanout = 0),
        ("fanout", |c| c.fanout = 1),
        ("fanout", |c| c.fanout = usize::MAX),
        ("max_levels", |c| c.max_levels = 0),
        ("max_levels", |c| c.max_levels = 1),
        ("max_levels", |c| c.max_levels = usize::MAX),
        ("l1_slot_count", |c| c.l1_slot_count = 0),
        ("l1_slot_count", |c| c.l1_slot_count = usize::MAX),
        ("memtable.flush_trigger_bytes", |c| c.memtable.flush_trigger_bytes = 0),
        ("memtable.flush_trigger_bytes", |c| c.memtable.flush_trigger_bytes = usize::MAX),
        ("memtable.wal_age_trigger_sec", |c| c.memtable.wal_age_trigger_sec = 0),
        ("memtable.wal_age_trigger_sec", |c| c.memtable.wal_age_trigger_sec = u64::MAX),
        ("l0.max_files", |c| c.l0.max_files = 0),
        ("l0.max_files", |c| c.l0.max_files = usize::MAX),
        ("filters.bloom_bits_per_key", |c| c.filters.bloom_bits_per_key = usize::MAX),
        ("durability", |c| c.durability = Durability::Batch(Duration::ZERO)),
        ("durability", |c| c.durability = Durability::Batch(Duration::MAX)),
        ("default_k.l1", |c| c.default_k.l1 = 0),
        ("default_k.l1", |c| c.default_k.l1 = u8::MAX),
        ("default_k.l2", |c| c.default_k.l2 = 0),
        ("default_k.l2", |c| c.default_k.l2 = u8::MAX),
        ("default_k.l3_plus", |c| c.default_k.l3_plus = 0),
        ("default_k.l3_plus", |c| c.default_k.l3_plus = u8::MAX),
        ("hot_k", |c| c.hot_k = 0),
        ("hot_k", |c| c.hot_k = u8::MAX),
        ("slot_byte_budget_fraction", |c| c.slot_byte_budget_fraction = f64::NAN),
        ("slot_byte_budget_fraction", |c| c.slot_byte_budget_fraction = -0.1),
        ("slot_byte_budget_fraction", |c| c.slot_byte_budget_fraction = f64::INFINITY),
        ("heat_thresholds.hot", |c| c.heat_thresholds.hot = f64::NAN),
        ("heat_thresholds.hot", |c| c.heat_thresholds.hot = 1.1),
        ("heat_thresholds.cold", |c| c.heat_thresholds.cold = f64::NAN),
        ("heat_thresholds.cold", |c| c.heat_thresholds.cold = -1.0),
        ("heat_thresholds.cold", |c| c.heat_thresholds.cold = 0.9),
        ("heat_thresholds.half_life_ops", |c| c.heat_thresholds.half_life_ops = 0),
        ("tombstone.density_threshold", |c| c.tombstone.density_threshold = 0.0),
        ("tombstone.density_threshold", |c| c.tombstone.density_threshold = f64::NAN),
        ("tombstone.density_threshold", |c| c.tombstone.density_threshold = 1.5),
        ("tombstone.ttl_default_sec", |c| c.tombstone.ttl_default_sec = Some(0)),
        ("io.max_background_compactions", |c| c.io.max_background_compactions = 0),
        ("io.max_background_compactions", |c| c.io.max_background_compactions = usize::MAX),
        ("io.rate_limit_mb_s", |c| c.io.rate_limit_mb_s = Some(0)),
        ("io.rate_limit_mb_s", |c| c.io.rate_limit_mb_s = Some(u64::MAX)),
        ("io.scrub_interval", |c| c.io.scrub_interval = Some(Duration::ZERO)),
        ("block_size", |c| c.block_size = 0),
        ("block_size", |c| c.block_size = usize::MAX),
        ("restart_interval", |c| c.restart_interval = 0),
        ("restart_interval", |c| c.restart_interval = usize::MAX),
        ("resources.block_cache_mib", |c| c.resources.block_cache_mib = usize::MAX),
        ("resources.memtables_mib", |c| c.resources.memtables_mib = 0),
        ("resources.memtables_mib", |c| c.resources.memtables_mib = usize::MAX),
        ("resources.memtables_mib", |c| {
            c.memtable.flush_trigger_bytes = 100 << 20;
            c.resources.memtables_mib = 199;
        }),
        ("resources.open_files", |c| c.resources.open_files = 0),
        ("resources.open_files", |c| c.resources.open_files = usize::MAX),
        ("wal.gc_interval_sec", |c| c.wal.gc_interval_sec = 0),
        ("wal.gc_interval_sec", |c| c.wal.gc_interval_sec = u64::MAX),
    ];

    #[test]
    fn nonsense_names_its_field() {
        for (name, spoil) in NONSENSE {
            let mut config = ATLLConfig::default();
            spoil(&mut config);
            match config.validate() {
                Err(Error::Config { field, .. }) => assert_eq!(field, *name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
