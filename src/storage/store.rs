//! The files of one open database: where they lie, which number comes next, how tables of it are written and read.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{ATLLConfig, Compression};
use crate::env::Env;
use crate::error::{IoContext, Result};
use crate::observe::{BuildMetrics, Histogram, LATENCY_MS, ReadMetrics, VizEvent, WalKind};
use crate::storage::layout::Layout;
use crate::storage::log_segment::LogSegment;
use crate::storage::prefetch::Helpers;
use crate::storage::table::Table;
use crate::storage::table_cache::TableCache;
use crate::storage::table_writer::{TableOptions, TableWriter};
use crate::types::{FileId, Level, u64_of};
use crate::version::{RunId, TableMeta};

/// Room that a segment gets beyond the size at which its memtable is sealed: the last group may reach over it.
const SEGMENT_SLACK: u64 = 1 << 20;

/// Files of one open database. Thread-safe; shared by everyone.
pub(crate) struct Store {
    env: Env,
    layout: Layout,
    node: u32,
    /// Number that the next file, or run, gets.
    next_file: AtomicU64,
    segment_room: u64,
    block_size: usize,
    restart_interval: usize,
    bloom_bits_per_key: usize,
    cache: Arc<TableCache>,
    wal_sync_ms: Box<dyn Histogram>,
    build_metrics: Arc<BuildMetrics>,
    read_metrics: Arc<ReadMetrics>,
}

impl Store {
    /// `next_file`: above the number of every file that ever was.
    pub(crate) fn new(env: Env, config: &ATLLConfig, next_file: FileId) -> Self {
        let room = u64_of(config.memtable.flush_trigger_bytes) + SEGMENT_SLACK;
        Self {
            layout: Layout::new(&config.data_dir),
            node: config.node_id,
            next_file: AtomicU64::new(next_file.0),
            segment_room: if config.wal.segment_preallocate { room } else { 0 },
            block_size: config.block_size,
            restart_interval: config.restart_interval,
            bloom_bits_per_key: config.filters.bloom_bits_per_key,
            cache: TableCache::new(
                u64_of(config.resources.block_cache_mib) << 20,
                config.resources.open_files,
                Helpers::new(&env),
            ),
            wal_sync_ms: env.meter.histo("wal_sync_ms", LATENCY_MS, &[]),
            build_metrics: BuildMetrics::new(&*env.meter),
            read_metrics: ReadMetrics::new(&*env.meter),
            env,
        }
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn read_metrics(&self) -> &ReadMetrics {
        &self.read_metrics
    }

    /// Opens the file of a table, so that the first read need not. Blocks. A table that cannot be opened says so when it is read.
    pub(crate) fn open_table(&self, table: &Arc<Table>) {
        let start = self.env.clock.now();
        if table.open_now().is_ok() {
            let took = self.env.clock.now().saturating_sub(start);
            self.read_metrics.open_ms.observe(took.as_secs_f64() * 1e3);
        }
    }

    /// A sync of the log that was begun at `begun`, and for which writers waited, is done.
    pub(crate) fn log_synced(&self, begun: Duration) {
        let took = self.env.clock.now().saturating_sub(begun);
        self.wal_sync_ms.observe(took.as_secs_f64() * 1e3);
    }

    /// A table that was begun at `begun` is complete.
    pub(crate) fn table_built(&self, begun: Duration) {
        let took = self.env.clock.now().saturating_sub(begun);
        self.build_metrics.duration_ms.observe(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn cache(&self) -> &Arc<TableCache> {
        &self.cache
    }

    /// A number that nothing has had.
    pub(crate) fn new_id(&self) -> FileId {
        FileId(self.next_file.fetch_add(1, Ordering::AcqRel))
    }

    pub(crate) fn new_run_id(&self) -> RunId {
        RunId(self.new_id().0)
    }

    /// Above every number handed out so far: goes into each edit, so that a restart does not hand one out twice.
    pub(crate) fn next_file(&self) -> FileId {
        FileId(self.next_file.load(Ordering::Acquire))
    }

    /// Prepares a log segment. Blocks.
    pub(crate) fn create_segment(&self) -> Result<LogSegment> {
        let (fs, id, room) = (&self.env.fs, self.new_id(), self.segment_room);
        self.cache.patiently(|| LogSegment::create(fs, &self.layout, id, room))
    }

    /// A segment was begun: tells the outside.
    pub(crate) fn segment_begun(&self, segment: FileId) {
        self.emit(VizEvent::Wal { node: self.node, segment, kind: WalKind::Begun });
    }

    pub(crate) fn emit(&self, event: VizEvent) {
        self.env.meter.emit(event);
    }

    /// The reader of a table. No I/O.
    pub(crate) fn table(&self, meta: &Arc<TableMeta>) -> Arc<Table> {
        Table::new(
            Arc::clone(&self.env.fs),
            self.layout.table(meta.file),
            Arc::clone(meta),
            Arc::clone(&self.cache),
            Arc::clone(&self.read_metrics),
        )
    }

    /// Begins a new table. Blocks, like everything that writes to it.
    pub(crate) fn create_table(
        &self,
        level: Level,
        compression: Compression,
    ) -> Result<TableWriter> {
        let file = self.new_id();
        let options = TableOptions {
            file,
            level,
            block_size: self.block_size,
            restart_interval: self.restart_interval,
            compression,
            bloom_bits_per_key: self.bloom_bits_per_key,
            created_s: self.env.clock.wall_ms() / 1000,
        };
        let path = self.layout.table(file);
        let begin =
            || TableWriter::create(&self.env.fs, &path, options.clone(), &self.build_metrics);
        self.cache.patiently(begin)
    }

    /// Removes a log segment that nothing needs any more. Blocks.
    pub(crate) fn remove_segment(&self, id: FileId) -> Result<()> {
        self.remove(&self.layout.wal(id))?;
        self.remove(&self.layout.doubt(id))
    }

    /// Removes a file that nothing names any more. Blocks.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        match self.env.fs.remove(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.at("remove", path),
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("layout", &self.layout).finish_non_exhaustive()
    }
}
