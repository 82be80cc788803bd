//! What the engine tells the outside: a vendor-neutral [`Meter`] for numbers, [`VizEvent`] for moments, and the names of metrics.
//!
//! Handles are resolved once, when the engine or table is opened; on the hot path a metric is one virtual call.

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;

use crate::types::{FileId, Level, SeqNo};

/// Label names and values of a metric.
pub type Labels = &'static [(&'static str, &'static str)];

/// A number that only grows.
pub trait Counter: Send + Sync {
    /// Adds `by`.
    fn inc(&self, by: u64);
}

/// A number that goes up and down.
pub trait Gauge: Send + Sync {
    /// Sets the current value.
    fn set(&self, value: i64);
}

/// A distribution of numbers.
pub trait Histogram: Send + Sync {
    /// Records one observation.
    fn observe(&self, value: f64);
}

/// Where metrics and events go: implement it for Prometheus, OTLP or a dashboard of your own.
pub trait Meter: Send + Sync {
    /// Makes, or finds, the counter of that name and those labels.
    fn counter(&self, name: &'static str, labels: Labels) -> Box<dyn Counter>;

    /// Makes, or finds, the gauge of that name and those labels.
    fn gauge(&self, name: &'static str, labels: Labels) -> Box<dyn Gauge>;

    /// Makes, or finds, the histogram of that name and those labels; `buckets` are upper bounds, ascending.
    fn histo(
        &self,
        name: &'static str,
        buckets: &'static [f64],
        labels: Labels,
    ) -> Box<dyn Histogram>;

    /// Takes an event. Called from the component it happened in: return quickly.
    fn emit(&self, evt: VizEvent);
}

/// Something happened in the engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub enum VizEvent {
    /// A log segment was begun, synced or deleted.
    Wal {
        /// [`ATLLConfig::node_id`](crate::ATLLConfig::node_id) of the engine.
        node: u32,
        /// The segment.
        segment: FileId,
        /// What happened to it.
        kind: WalKind,
    },
    /// A memtable became tables of L0.
    Flush {
        /// Node of the engine.
        node: u32,
        /// Tables that were written.
        tables: Vec<FileId>,
        /// Bytes that were written.
        bytes: u64,
        /// Every write up to this one is now in a table.
        last_seq: SeqNo,
    },
    /// A run of L0 was cut at the guards of L1 and admitted there, without rewriting a byte.
    Admission {
        /// Node of the engine.
        node: u32,
        /// Slots of L1, each of which got what the run holds of its range.
        slots: usize,
    },
    /// A compaction was begun, done or given up.
    Compaction {
        /// Node of the engine.
        node: u32,
        /// Level it works on.
        level: Level,
        /// Guard of the slot it works on.
        slot: Vec<u8>,
        /// Its phase.
        kind: CompactionKind,
    },
    /// The scheduler chose what to do next.
    Bandit {
        /// Node of the engine.
        node: u32,
        /// Level of the chosen slot.
        level: Level,
        /// Guard of the chosen slot.
        slot: Vec<u8>,
        /// Chosen action.
        action: &'static str,
        /// Benefit per cost that was predicted, after what the bandit has learned.
        index: f64,
    },
    /// A guard was added or removed.
    Guard {
        /// Node of the engine.
        node: u32,
        /// Level of the guard; an added one cuts the deeper levels too.
        level: Level,
        /// The guard.
        key: Vec<u8>,
        /// `true` if it was added, `false` if it was removed.
        added: bool,
    },
    /// Slots crossed a heat threshold.
    Heat {
        /// Node of the engine.
        node: u32,
        /// Level of the slot.
        level: Level,
        /// Guard of the slot.
        slot: Vec<u8>,
        /// Heat now, 0..=1.
        heat: f32,
    },
    /// A table was found damaged. Told once for each table.
    Damage {
        /// Node of the engine.
        node: u32,
        /// The table.
        table: FileId,
        /// Where the damaged piece begins, in bytes.
        offset: u64,
        /// What should have been there.
        expected: &'static str,
    },
    /// A component died. It is started again, at once or after a while.
    Restart {
        /// Node of the engine.
        node: u32,
        /// The component.
        component: &'static str,
        /// Why it died.
        reason: String,
        /// How often it died since the engine was opened.
        restarts: u32,
    },
}

/// What happened to a log segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum WalKind {
    /// It is the newest segment now.
    Begun,
    /// Its bytes up to `bytes` are on disk.
    Synced {
        /// Bytes known to be on disk.
        bytes: u64,
    },
    /// It was deleted: everything in it is in tables.
    Deleted,
    /// It was replayed when the engine was opened.
    Replayed,
}

/// Phase of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CompactionKind {
    /// It was begun.
    Begun,
    /// Its result was installed.
    Done {
        /// Bytes of its inputs.
        bytes_in: u64,
        /// Bytes of its outputs.
        bytes_out: u64,
    },
    /// It failed or was cancelled; its outputs are removed.
    Dropped,
}

/// A meter that keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoopMeter;

impl Meter for NoopMeter {
    fn counter(&self, _: &'static str, _: Labels) -> Box<dyn Counter> {
        Box::new(Self)
    }

    fn gauge(&self, _: &'static str, _: Labels) -> Box<dyn Gauge> {
        Box::new(Self)
    }

    fn histo(&self, _: &'static str, _: &'static [f64], _: Labels) -> Box<dyn Histogram> {
        Box::new(Self)
    }

    fn emit(&self, _: VizEvent) {}
}

impl Counter for NoopMeter {
    fn inc(&self, _: u64) {}
}

impl Gauge for NoopMeter {
    fn set(&self, _: i64) {}
}

impl Histogram for NoopMeter {
    fn observe(&self, _: f64) {}
}

/// Upper bounds of every latency histogram, in milliseconds.
pub(crate) const LATENCY_MS: &[f64] =
    &[0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 100.0, 500.0, 2000.0, 10_000.0];

/// Upper bounds of the compression ratio histogram.
const RATIOS: &[f64] = &[1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0];

type C = Box<dyn Counter>;
type G = Box<dyn Gauge>;
type H = Box<dyn Histogram>;

/// Metrics of writing tables.
pub(crate) struct BuildMetrics {
    pub(crate) duration_ms: H,
    pub(crate) entries: C,
    pub(crate) blocks: C,
    pub(crate) bytes: C,
    pub(crate) compression_ratio: H,
}

impl BuildMetrics {
    pub(crate) fn new(meter: &dyn Meter) -> Arc<Self> {
        Arc::new(Self {
            duration_ms: meter.histo("sstable_build_duration_ms", LATENCY_MS, &[]),
            entries: meter.counter("sstable_entries_written", &[]),
            blocks: meter.counter("sstable_blocks_flushed", &[]),
            bytes: meter.counter("sstable_bytes_written", &[]),
            compression_ratio: meter.histo("sstable_compression_ratio", RATIOS, &[]),
        })
    }
}

/// Metrics of reading tables.
pub(crate) struct ReadMetrics {
    pub(crate) open_ms: H,
    pub(crate) get_hit_ms: H,
    pub(crate) get_miss_ms: H,
    pub(crate) get_bloom_skip_ms: H,
    pub(crate) bloom_pass: C,
    pub(crate) bloom_skip: C,
    pub(crate) block_reads: C,
    pub(crate) cache_hits: C,
    pub(crate) cache_misses: C,
    pub(crate) damaged_tables: C,
}

impl ReadMetrics {
    pub(crate) fn new(meter: &dyn Meter) -> Arc<Self> {
        let get = |outcome| meter.histo("sstable_get_duration_ms", LATENCY_MS, outcome);
        Arc::new(Self {
            open_ms: meter.histo("sstable_open_duration_ms", LATENCY_MS, &[]),
            get_hit_ms: get(&[("outcome", "hit")]),
            get_miss_ms: get(&[("outcome", "miss")]),
            get_bloom_skip_ms: get(&[("outcome", "bloom_skip")]),
            bloom_pass: meter.counter("sstable_bloom_checks", &[("outcome", "pass")]),
            bloom_skip: meter.counter("sstable_bloom_checks", &[("outcome", "skip")]),
            block_reads: meter.counter("sstable_block_reads", &[]),
            cache_hits: meter.counter("sstable_block_cache_hits", &[]),
            cache_misses: meter.counter("sstable_block_cache_misses", &[]),
            damaged_tables: meter.counter("sstable_damaged_total", &[]),
        })
    }
}

/// Metrics of the engine itself.
pub(crate) struct EngineMetrics {
    pub(crate) wal_gc_latency_ms: H,
    pub(crate) wal_segments_deleted: C,
    pub(crate) wal_segment_count: G,
    pub(crate) flush_ms: H,
    pub(crate) flush_bytes: C,
    pub(crate) compaction_ms: H,
    pub(crate) compaction_bytes_in: C,
    pub(crate) compaction_bytes_out: C,
    pub(crate) memtable_bytes: G,
    pub(crate) sealed_memtables: G,
    pub(crate) l0_runs: G,
    pub(crate) pressure_percent: G,
    pub(crate) write_stall_ms: H,
    pub(crate) restarts: C,
    pub(crate) scrub_bytes: C,
    pub(crate) scrub_damages: C,
}

impl EngineMetrics {
    pub(crate) fn new(meter: &dyn Meter) -> Self {
        Self {
            wal_gc_latency_ms: meter.histo("wal_gc_latency_ms", LATENCY_MS, &[]),
            wal_segments_deleted: meter.counter("wal_segments_deleted_total", &[]),
            wal_segment_count: meter.gauge("wal_segment_count", &[]),
            flush_ms: meter.histo("flush_ms", LATENCY_MS, &[]),
            flush_bytes: meter.counter("flush_bytes_total", &[]),
            compaction_ms: meter.histo("compaction_ms", LATENCY_MS, &[]),
            compaction_bytes_in: meter.counter("compaction_bytes_in_total", &[]),
            compaction_bytes_out: meter.counter("compaction_bytes_out_total", &[]),
            memtable_bytes: meter.gauge("memtable_bytes", &[]),
            sealed_memtables: meter.gauge("sealed_memtables", &[]),
            l0_runs: meter.gauge("l0_runs", &[]),
            pressure_percent: meter.gauge("pressure_percent", &[]),
            write_stall_ms: meter.histo("write_stall_ms", LATENCY_MS, &[]),
            restarts: meter.counter("component_restarts_total", &[]),
            scrub_bytes: meter.counter("scrub_bytes_total", &[]),
            scrub_damages: meter.counter("scrub_damages_total", &[]),
        }
    }
}

/// `Debug` for structs of metric handles, which have nothing to show.
macro_rules! opaque {
    ($($name:ident),*) => {$(
        impl Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
opaque!(BuildMetrics, ReadMetrics, EngineMetrics);
