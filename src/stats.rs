//! What an engine has done and holds, for people and programs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::types::{Level, SeqNo};

/// How far background work is behind: 0 not at all, from 0.5 on writes are slowed, at 1 they wait.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pressure {
    /// Between 0 and 1.
    pub value: f64,
    /// What is the furthest behind.
    pub cause: &'static str,
}

/// Sums since the engine was opened.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    user_bytes: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    flush_bytes: AtomicU64,
    compactions: AtomicU64,
    compaction_bytes_in: AtomicU64,
    compaction_bytes_out: AtomicU64,
    segments_deleted: AtomicU64,
    stall_us: AtomicU64,
    throttle_us: AtomicU64,
}

impl Totals {
    pub(crate) fn written(&self, bytes: u64, ops: u64) {
        self.user_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.writes.fetch_add(ops, Ordering::Relaxed);
    }

    pub(crate) fn flushed(&self, bytes: u64) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flush_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn compacted(&self, bytes_in: u64, bytes_out: u64) {
        self.compactions.fetch_add(1, Ordering::Relaxed);
        self.compaction_bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.compaction_bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    pub(crate) fn segments_deleted(&self, count: u64) {
        self.segments_deleted.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn throttled(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.throttle_us.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn stalled(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.stall_us.fetch_add(micros, Ordering::Relaxed);
    }

    /// Copies the sums into a report.
    pub(crate) fn fill(&self, stats: &mut Stats) {
        let load = |total: &AtomicU64| total.load(Ordering::Relaxed);
        stats.user_bytes = load(&self.user_bytes);
        stats.writes = load(&self.writes);
        stats.flushes = load(&self.flushes);
        stats.flush_bytes = load(&self.flush_bytes);
        stats.compactions = load(&self.compactions);
        stats.compaction_bytes_in = load(&self.compaction_bytes_in);
        stats.compaction_bytes_out = load(&self.compaction_bytes_out);
        stats.log_segments_deleted = load(&self.segments_deleted);
        stats.stalled = Duration::from_micros(load(&self.stall_us));
        stats.throttled = Duration::from_micros(load(&self.throttle_us));
    }
}

/// What an engine has done since it was opened, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Operations written.
    pub writes: u64,
    /// Bytes of the keys and values written.
    pub user_bytes: u64,
    /// Memtables flushed.
    pub flushes: u64,
    /// Bytes of the tables that flushes wrote.
    pub flush_bytes: u64,
    /// Compactions that rewrote data.
    pub compactions: u64,
    /// Bytes that compactions read.
    pub compaction_bytes_in: u64,
    /// Bytes that compactions wrote.
    pub compaction_bytes_out: u64,
    /// Log segments deleted.
    pub log_segments_deleted: u64,
    /// Time that writes which were taken had been slowed down or stopped for [`Pressure`], all together.
    pub stalled: Duration,
    /// Time that compactions were held up by [`IoConfig::rate_limit_mb_s`](crate::IoConfig::rate_limit_mb_s).
    pub throttled: Duration,
    /// Bytes of all memtables.
    pub memtable_bytes: u64,
    /// Memtables that wait to be flushed.
    pub sealed_memtables: usize,
    /// Bytes of cached blocks.
    pub cache_bytes: u64,
    /// Bytes of loaded table indexes and filters.
    pub index_bytes: u64,
    /// Tables whose file is open.
    pub open_tables: usize,
    /// Levels, from L0 down.
    pub levels: Vec<LevelStats>,
    /// Tables.
    pub tables: usize,
    /// Bytes of all tables on disk.
    pub table_bytes: u64,
    /// Tables that no version names and that open scans still hold.
    pub pinned_tables: usize,
    /// Bytes of those tables: they stay on disk until the scans are dropped.
    pub pinned_bytes: u64,
    /// Live snapshots.
    pub snapshots: usize,
    /// Age of the oldest live snapshot.
    pub oldest_snapshot: Option<Duration>,
    /// The last visible write.
    pub last_seq: SeqNo,
    /// The last write known to be on disk.
    pub durable_seq: SeqNo,
}

/// What a level holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LevelStats {
    /// Which level.
    pub level: Level,
    /// Slots it is cut into.
    pub slots: usize,
    /// Sorted runs of all its slots.
    pub runs: usize,
    /// Bytes of its slices.
    pub bytes: u64,
}

impl Stats {
    /// Bytes of tables written per byte of keys and values written; `None` before the first write.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than 52 bits")]
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.flush_bytes + self.compaction_bytes_out;
        (self.user_bytes > 0).then(|| written as f64 / self.user_bytes as f64)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20);
        writeln!(f, "writes       {} ({})", self.writes, mib(self.user_bytes))?;
        writeln!(f, "flushed      {} ({})", self.flushes, mib(self.flush_bytes))?;
        writeln!(
            f,
            "compacted    {} ({} in, {} out)",
            self.compactions,
            mib(self.compaction_bytes_in),
            mib(self.compaction_bytes_out)
        )?;
        if let Some(amplification) = self.write_amplification() {
            writeln!(f, "write amp    {amplification:.2}")?;
        }
        writeln!(f, "stalled      {:?}", self.stalled)?;
        writeln!(
            f,
            "memory       {} memtables ({} sealed), {} cache, {} indexes and filters",
            mib(self.memtable_bytes),
            self.sealed_memtables,
            mib(self.cache_bytes),
            mib(self.index_bytes)
        )?;
        writeln!(f, "tables       {} ({})", self.tables, mib(self.table_bytes))?;
        for level in self.levels.iter().filter(|level| level.runs > 0) {
            let LevelStats { level, slots, runs, bytes } = level;
            writeln!(f, "  {level}         {slots} slots, {runs} runs, {}", mib(*bytes))?;
        }
        if self.pinned_tables > 0 {
            writeln!(
                f,
                "pinned       {} tables ({}) by scans",
                self.pinned_tables,
                mib(self.pinned_bytes)
            )?;
        }
        if let Some(age) = self.oldest_snapshot {
            writeln!(f, "snapshots    {}, the oldest snapshot is {age:?} old", self.snapshots)?;
        }
        write!(f, "last write   {} (on disk: {})", self.last_seq, self.durable_seq)
    }
}
