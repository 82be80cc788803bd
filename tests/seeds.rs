//! The programs and the recovery tests that the product was promised with: each snippet as users copy it, run for real.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::print_stdout, clippy::clone_on_ref_ptr, reason = "the snippets do")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nori_lsm::observe as nori_observe;
use nori_lsm::sstable as nori_sstable;
use nori_lsm::{ATLLConfig, LsmEngine, MemtableConfig};

/// The snippets name files of the current directory, which a process has one of: they take turns.
struct Turn {
    _turn: MutexGuard<'static, ()>,
    _dir: tempfile::TempDir,
}

fn in_a_directory_of_its_own() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    Turn { _turn: turn, _dir: dir }
}

/// Runs a snippet's `main` on a runtime of its own.
fn run(main: impl Future<Output = Result<(), Box<dyn std::error::Error>>>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(main)
        .unwrap();
}

mod usage {
    use bytes::Bytes;
    use nori_lsm::{ATLLConfig, LsmEngine};

    pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
        // Create engine with default configuration
        let config = ATLLConfig::default();
        let engine = LsmEngine::open(config).await?;

        // Write
        let key = Bytes::from("user:123");
        let value = Bytes::from("alice");
        engine.put(key, value).await?;

        // Read
        if let Some(value) = engine.get(b"user:123").await? {
            println!("Value: {:?}", String::from_utf8_lossy(&value));
            assert_eq!(&value[..], b"alice");
        }

        // Delete
        engine.delete(b"user:123").await?;

        // Range scan
        let mut iter = engine.iter_range(b"user:", b"user;").await?;
        while let Some((key, value)) = iter.next().await? {
            println!("{:?} => {:?}", key, value);
        }

        Ok(())
    }
}

#[test]
fn snippet_usage() {
    let _turn = in_a_directory_of_its_own();
    run(usage::main());
}

/// Counts what it is told; its handles share the counts.
#[derive(Clone, Default)]
struct MyMeter {
    names: Arc<Mutex<std::collections::BTreeSet<&'static str>>>,
    observations: Arc<AtomicU64>,
    observed: Arc<Mutex<std::collections::BTreeSet<&'static str>>>,
    name: &'static str,
    events: Arc<Mutex<Vec<String>>>,
}

impl MyMeter {
    fn named(&self, name: &'static str) -> Box<Self> {
        self.names.lock().unwrap().insert(name);
        Box::new(Self { name, ..self.clone() })
    }

    fn saw(&self, kind: &str) -> bool {
        self.events.lock().unwrap().iter().any(|event| event.starts_with(kind))
    }
}

impl nori_observe::Counter for MyMeter {
    fn inc(&self, _: u64) {
        self.observations.fetch_add(1, Ordering::Relaxed);
        self.observed.lock().unwrap().insert(self.name);
    }
}

impl nori_observe::Gauge for MyMeter {
    fn set(&self, _: i64) {
        self.observations.fetch_add(1, Ordering::Relaxed);
        self.observed.lock().unwrap().insert(self.name);
    }
}

impl nori_observe::Histogram for MyMeter {
    fn observe(&self, _: f64) {
        self.observations.fetch_add(1, Ordering::Relaxed);
        self.observed.lock().unwrap().insert(self.name);
    }
}

impl nori_observe::Meter for MyMeter {
    fn counter(
        &self,
        name: &'static str,
        _labels: &'static [(&'static str, &'static str)],
    ) -> Box<dyn nori_observe::Counter> {
        self.named(name)
    }

    fn gauge(
        &self,
        name: &'static str,
        _labels: &'static [(&'static str, &'static str)],
    ) -> Box<dyn nori_observe::Gauge> {
        self.named(name)
    }

    fn histo(
        &self,
        name: &'static str,
        _buckets: &'static [f64],
        _labels: &'static [(&'static str, &'static str)],
    ) -> Box<dyn nori_observe::Histogram> {
        self.named(name)
    }

    fn emit(&self, evt: nori_observe::VizEvent) {
        self.events.lock().unwrap().push(format!("{evt:?}"));
    }
}

#[test]
fn snippet_with_observability() {
    let _turn = in_a_directory_of_its_own();
    let meter = MyMeter::default();
    let seen = meter.clone();
    run(async move {
        let config = ATLLConfig::default();
        let meter = Arc::new(meter);

        // Open engine with observability
        let engine = LsmEngine::open_with_meter(config, meter).await?;

        // Operations will now emit metrics and events
        engine.put(Bytes::from("key"), Bytes::from("value")).await?;

        engine.flush().await?;
        engine.wait_idle().await?;
        for _ in 0..1000 {
            engine.get(b"key").await?;
        }
        engine.shutdown().await?;
        Ok(())
    });
    let observed = seen.observed.lock().unwrap().clone();
    for name in [
        "sstable_build_duration_ms",
        "sstable_entries_written",
        "sstable_blocks_flushed",
        "sstable_bytes_written",
        "sstable_open_duration_ms",
        "sstable_get_duration_ms",
        "sstable_bloom_checks",
        "sstable_block_reads",
        "sstable_block_cache_hits",
        "sstable_block_cache_misses",
        "sstable_compression_ratio",
        "wal_segment_count",
        "wal_gc_latency_ms",
        "wal_segments_deleted_total",
    ] {
        assert!(observed.contains(name), "{name} is never observed");
    }
    let names = seen.names.lock().unwrap().clone();
    for name in ["wal_gc_latency_ms", "wal_segments_deleted_total", "wal_segment_count"] {
        assert!(names.contains(name), "{name}");
    }
    assert!(seen.observations.load(Ordering::Relaxed) > 5);
    for kind in ["Wal", "Flush", "Admission", "Bandit"] {
        assert!(seen.saw(kind), "{kind}");
    }
}

#[test]
fn snippet_graceful_shutdown() {
    let _turn = in_a_directory_of_its_own();
    run(async {
        let config = ATLLConfig::default();
        let engine = LsmEngine::open(config).await?;

        // Perform operations
        engine.put(Bytes::from("key"), Bytes::from("value")).await?;

        // Always shutdown gracefully before exit
        engine.shutdown().await?;

        // It was moved into tables: the next open has no log to replay.
        let engine = LsmEngine::open(ATLLConfig::default()).await?;
        assert_eq!(engine.recovery().operations, 0);
        assert_eq!(engine.get(b"key").await?, Some(Bytes::from("value")));
        Ok(())
    });
}

#[test]
fn snippet_shutdown_on_a_signal() {
    use tokio::signal;

    let _turn = in_a_directory_of_its_own();
    run(async {
        let engine = LsmEngine::open(ATLLConfig::default()).await?;

        // Spawn signal handler
        tokio::spawn(async move {
            signal::ctrl_c().await.expect("Failed to listen for Ctrl+C");
            println!("Received shutdown signal");
        });

        // Application logic...

        // Graceful shutdown on exit
        engine.shutdown().await?;
        Ok(())
    });
}

#[test]
fn snippet_wal_gc_happens_in_the_background() {
    let _turn = in_a_directory_of_its_own();
    run(async {
        let config = ATLLConfig::default();
        // WAL GC happens automatically in the background
        let engine = LsmEngine::open(config).await?;

        // Perform operations - old WAL segments are cleaned up automatically
        engine.put(Bytes::from("key"), Bytes::from("value")).await?;

        // On shutdown, WAL GC loop stops gracefully
        engine.shutdown().await?;
        Ok(())
    });
}

#[test]
fn snippet_building_and_reading_a_table() {
    use nori_sstable::{Compression, Entry, SSTableBuilder, SSTableConfig, SSTableReader};

    let _turn = in_a_directory_of_its_own();
    run(async {
        let config = SSTableConfig {
            path: PathBuf::from("data.sst"),
            estimated_entries: 1000,
            compression: Compression::Lz4, // Enable LZ4 compression
            block_cache_mb: 64,            // 64MB cache (default)
            ..Default::default()
        };

        let mut builder = SSTableBuilder::new(config).await?;

        // Add entries in sorted order
        builder.add(&Entry::put("key1", "value1")).await?;
        builder.add(&Entry::put("key2", "value2")).await?;
        builder.add(&Entry::delete("key3")).await?; // Tombstone

        let metadata = builder.finish().await?;
        println!("Created SSTable with {} entries", metadata.entry_count);
        assert_eq!(metadata.entry_count, 3);

        let reader = Arc::new(SSTableReader::open(PathBuf::from("data.sst")).await?);

        // Point lookup
        if let Some(entry) = reader.get(b"key1").await? {
            println!("Found: {:?}", entry.value);
        }

        // Full table scan
        let mut iter = reader.clone().iter();
        let mut seen = 0;
        while let Some(entry) = iter.try_next().await? {
            println!("{:?} = {:?}", entry.key, entry.value);
            seen += 1;
        }
        assert_eq!(seen, 3);

        // Range scan
        let mut range_iter = reader.iter_range("key1".into(), "key5".into());
        while let Some(entry) = range_iter.try_next().await? {
            println!("In range: {:?}", entry.key);
            seen += 1;
        }
        assert_eq!(seen, 6);
        Ok(())
    });
}

#[test]
fn snippet_a_table_with_a_meter() {
    use nori_observe::NoopMeter;
    use nori_sstable::{Compression, SSTableBuilder, SSTableConfig};

    let _turn = in_a_directory_of_its_own();
    run(async {
        let config = SSTableConfig {
            path: "data.sst".into(),
            estimated_entries: 10_000,
            block_size: 4096,              // 4KB blocks (default)
            restart_interval: 16,          // Prefix compression restart points
            compression: Compression::Lz4, // None, Lz4, or Zstd
            bloom_bits_per_key: 10,        // ~0.9% FP rate (default)
            block_cache_mb: 64,            // 64MB cache (default)
        };
        let meter = Box::new(NoopMeter); // Or your custom meter

        let builder = SSTableBuilder::new_with_meter(config, meter).await?;
        builder.finish().await?;
        Ok(())
    });
}

fn small(dir: &Path) -> ATLLConfig {
    ATLLConfig {
        data_dir: dir.to_owned(),
        memtable: MemtableConfig { flush_trigger_bytes: 8 << 10, ..Default::default() },
        ..Default::default()
    }
}

/// The files of a database as they are this instant: what a killed process leaves behind.
fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_into(dir, copy.path());
    copy
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_into(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[tokio::test]
async fn test_wal_recovery_after_crash() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(ATLLConfig { data_dir: dir.path().into(), ..Default::default() })
        .await
        .unwrap();
    for i in 0..500 {
        engine.put(format!("key{i:04}"), format!("value{i}")).await.unwrap();
    }
    let crashed = copy_of(dir.path());
    let config = ATLLConfig { data_dir: crashed.path().into(), ..Default::default() };
    let recovered = LsmEngine::open(config).await.unwrap();
    assert_eq!(recovered.recovery().operations, 500);
    for i in 0..500 {
        let value = recovered.get(format!("key{i:04}").as_bytes()).await.unwrap();
        assert_eq!(value, Some(Bytes::from(format!("value{i}"))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_wal_concurrent_gc_no_data_loss() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for round in 0..10 {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    for i in round * 40..(round + 1) * 40 {
                        engine.put(format!("key{writer}-{i:04}"), vec![writer; 64]).await.unwrap();
                    }
                })
            })
            .collect();
        // Whatever the disk is like, a segment dies in each round while they write.
        tokio::task::yield_now().await;
        engine.flush().await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        engine.wait_idle().await.unwrap();
    }
    assert!(engine.stats().log_segments_deleted > 3, "the log was collected meanwhile");
    drop(engine); // without a shutdown
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for writer in 0..8 {
        for i in 0..400 {
            let value = engine.get(format!("key{writer}-{i:04}").as_bytes()).await.unwrap();
            assert_eq!(value, Some(Bytes::from(vec![writer; 64])), "{writer} {i}");
        }
    }
}

/// Newest log segment of a database.
fn newest_segment(dir: &Path) -> PathBuf {
    let wal = std::fs::read_dir(dir.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    // The one behind it is prepared and has nothing yet.
    let begun = wal.filter(|path| std::fs::read(path).unwrap().starts_with(b"NORIWAL1"));
    begun.max().unwrap()
}

#[tokio::test]
async fn test_wal_recovery_with_incomplete_writes() {
    let dir = tempfile::tempdir().unwrap();
    let config = |dir: &Path| ATLLConfig { data_dir: dir.into(), ..Default::default() };
    let engine = LsmEngine::open(config(dir.path())).await.unwrap();
    for i in 0..20 {
        engine.put(format!("key{i:02}"), format!("value{i}")).await.unwrap();
    }
    let whole = std::fs::read(newest_segment(dir.path())).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in [used - 1, used - 20, used / 2, 60] {
        let crashed = copy_of(dir.path());
        let segment = newest_segment(crashed.path());
        std::fs::write(&segment, &whole[..cut]).unwrap();
        let engine = LsmEngine::open(config(crashed.path())).await.unwrap();
        let there = usize::try_from(engine.recovery().operations).unwrap();
        assert!(there < 20, "cut at {cut}");
        assert!(engine.recovery().torn_tail.is_some());
        for i in 0..20 {
            let value = engine.get(format!("key{i:02}").as_bytes()).await.unwrap();
            assert_eq!(value.is_some(), i < there, "a prefix of the log is there, cut at {cut}");
        }
        engine.put("after", "recovery").await.unwrap();
    }
}

#[tokio::test]
async fn test_recovery_invariant_holds() {
    for scenario in 0..20 {
        let mut rng = fastrand::Rng::with_seed(scenario);
        let dir = tempfile::tempdir().unwrap();
        let mut model = std::collections::BTreeMap::new();
        let mut engine = LsmEngine::open(small(dir.path())).await.unwrap();
        for _ in 0..rng.usize(50..600) {
            let key = Bytes::from(format!("key{:03}", rng.u32(..200)));
            match rng.u8(..20) {
                0 => engine.flush().await.unwrap(),
                1 => {
                    drop(engine);
                    engine = LsmEngine::open(small(dir.path())).await.unwrap();
                }
                2..6 => {
                    engine.delete(&key).await.unwrap();
                    model.remove(&key);
                }
                _ => {
                    let value = Bytes::from(vec![rng.u8(..); rng.usize(..100)]);
                    engine.put(key.clone(), value.clone()).await.unwrap();
                    model.insert(key, value);
                }
            }
        }
        drop(engine);
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        let mut seen = std::collections::BTreeMap::new();
        let mut scan = engine.iter_range(b"", b"").await.unwrap();
        while let Some((key, value)) = scan.next().await.unwrap() {
            seen.insert(key, value);
        }
        assert_eq!(
            seen, model,
            "the last committed version of every key is there, scenario {scenario}"
        );
    }
}
