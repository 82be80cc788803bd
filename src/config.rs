//! What a user can set. Every field acts; `open` checks them all before it touches the disk.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::u64_of;

/// Largest key, in bytes.
pub const MAX_KEY_BYTES: usize = 64 << 10;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 256 << 20;
/// Largest batch, keys and values together, in bytes.
pub const MAX_BATCH_BYTES: usize = 256 << 20;

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
    /// How many runs a slot may hold before the scheduler has measured anything.
    pub default_k: DefaultK,
    /// How many runs the hottest slots may hold at most. Default: 1.
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
    /// Seed of the scheduler's exploration and of every sampling. Default: random, logged at open.
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
    /// Size in bytes, keys, values and overhead together. Default: 64 MiB; at least 1 KiB.
    pub flush_trigger_bytes: usize,
    /// Age in seconds, also while nothing is written. Default: 30; at least 1.
    pub wal_age_trigger_sec: u64,
}

impl Default for MemtableConfig {
    fn default() -> Self {
        Self { flush_trigger_bytes: 64 << 20, wal_age_trigger_sec: 30 }
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

/// How many runs a slot may hold before the scheduler has measured anything.
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
    /// Operations after which a past read counts half. Default: 100,000.
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
    /// Compactions that run at the same time. Default: half the cores, from 1 to 4.
    pub max_background_compactions: usize,
    /// Megabytes per second that compactions may write. Default: none, no limit.
    pub rate_limit_mb_s: Option<u64>,
    /// Time within which every table is read once to look for damage, a little at a time, and later while compactions are
    /// behind. Default: none, only what is asked for is read.
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
    /// LZ4: fast both ways, two to three times smaller on typical data. Needs the feature `lz4`.
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
    /// Cache of decompressed blocks, in MiB; 0 turns it off. Default: 64.
    pub block_cache_mib: usize,
    /// All memtables together, in MiB; writes are slowed before and wait at this size. Default: 256.
    pub memtables_mib: usize,
}

impl Default for ResourceConfig {
    fn default() -> Self {
        Self { block_cache_mib: 64, memtables_mib: 256 }
    }
}

/// The write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Reserve the room of a segment when it is begun, so that a sync need not grow the file. Default: true.
    pub segment_preallocate: bool,
    /// Seconds between two sweeps for dead segments; one also follows each flush. Default: 60; at least 1.
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
        within(
            "memtable.flush_trigger_bytes",
            self.memtable.flush_trigger_bytes,
            1 << 10,
            4 << 30,
        )?;
        let age = self.memtable.wal_age_trigger_sec;
        check("memtable.wal_age_trigger_sec", age >= 1, "must be at least 1")?;
        within("l0.max_files", self.l0.max_files, 2, 1000)?;
        within("filters.bloom_bits_per_key", self.filters.bloom_bits_per_key, 0, 32)?;
        let interval = match self.durability {
            Durability::Batch(interval) => interval,
            Durability::Os | Durability::Sync => Duration::MAX,
        };
        check("durability", !interval.is_zero(), "a batch interval must be above zero")?;
        self.validate_policy()?;
        within("block_size", self.block_size, 64, 1 << 20)?;
        within("restart_interval", self.restart_interval, 1, 1024)?;
        within("resources.block_cache_mib", self.resources.block_cache_mib, 0, 1 << 20)?;
        self.validate_memory()?;
        let gc = self.wal.gc_interval_sec;
        check("wal.gc_interval_sec", gc >= 1, "must be at least 1")?;
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
        let rate = self.io.rate_limit_mb_s != Some(0);
        check("io.rate_limit_mb_s", rate, "must be above 0, or None")?;
        let scrub = self.io.scrub_interval != Some(Duration::ZERO);
        check("io.scrub_interval", scrub, "must be above 0, or None")
    }

    fn validate_memory(&self) -> Result<()> {
        within("resources.memtables_mib", self.resources.memtables_mib, 1, 1 << 20)?;
        let two = u64_of(self.memtable.flush_trigger_bytes).saturating_mul(2);
        let budget = u64_of(self.resources.memtables_mib) << 20;
        check(
            "resources.memtables_mib",
            budget >= two,
            "must hold two memtables of memtable.flush_trigger_bytes: one is written, one flushed",
        )
    }
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
        assert_eq!(config.memtable.flush_trigger_bytes, 64 << 20);
        assert_eq!(config.memtable.wal_age_trigger_sec, 30);
        assert_eq!((config.l0.max_files, config.filters.bloom_bits_per_key), (12, 10));
        config.validate().expect("defaults make sense");
    }

    #[test]
    fn nonsense_names_its_field() {
        type Spoil = fn(&mut ATLLConfig);
        let cases: [(&str, Spoil); 7] = [
            ("fanout", |c| c.fanout = 1),
            ("data_dir", |c| c.data_dir = PathBuf::new()),
            ("durability", |c| c.durability = Durability::Batch(Duration::ZERO)),
            ("heat_thresholds.cold", |c| c.heat_thresholds.cold = 0.9),
            ("slot_byte_budget_fraction", |c| c.slot_byte_budget_fraction = f64::NAN),
            ("io.scrub_interval", |c| c.io.scrub_interval = Some(Duration::ZERO)),
            ("resources.memtables_mib", |c| c.resources.memtables_mib = 64),
        ];
        for (name, spoil) in cases {
            let mut config = ATLLConfig::default();
            spoil(&mut config);
            match config.validate() {
                Err(Error::Config { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
