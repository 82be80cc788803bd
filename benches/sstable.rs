//! Speed of tables: build, lookups that hit and miss, scans, and a skewed mix with and without the block cache.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up must stop")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nori_lsm::sstable::{Compression, Entry, SSTableBuilder, SSTableConfig, SSTableReader};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ENTRIES: u64 = 10_000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn entries() -> Vec<Entry> {
    (0..ENTRIES).map(|i| Entry::put(format!("key_{i:08}"), vec![b'v'; 256])).collect()
}

fn config(path: PathBuf, compression: Compression) -> SSTableConfig {
    SSTableConfig { path, compression, ..Default::default() }
}

async fn build(config: SSTableConfig, entries: &[Entry]) {
    let mut builder = SSTableBuilder::new(config).await.unwrap();
    for entry in entries {
        builder.add(entry).await.unwrap();
    }
    builder.finish().await.unwrap();
}

/// A table of all entries, and a reader with the given cache.
fn reader(runtime: &Runtime, dir: &TempDir, block_cache_mb: usize) -> Arc<SSTableReader> {
    let config =
        SSTableConfig { block_cache_mb, ..config(dir.path().join("t"), Compression::None) };
    runtime.block_on(async {
        build(config.clone(), &entries()).await;
        Arc::new(SSTableReader::open_with_config(config).await.unwrap())
    })
}

fn builds(criterion: &mut Criterion) {
    let (runtime, dir, entries) = (runtime(), TempDir::new().unwrap(), entries());
    let mut group = criterion.benchmark_group("build_10k");
    group.throughput(Throughput::Elements(ENTRIES)).sample_size(20);
    for codec in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let config = config(dir.path().join("built"), codec);
        group.bench_function(format!("{codec:?}").to_lowercase(), |bencher| {
            bencher.to_async(&runtime).iter_batched(
                || config.clone(),
                |config| build(config, &entries),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn lookups(criterion: &mut Criterion) {
    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let reader = reader(&runtime, &dir, 64);
    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    for (name, key) in [("hit", "key_00005000"), ("miss_filter_skip", "key_00005000x")] {
        group.bench_function(name, |bencher| {
            bencher
                .to_async(&runtime)
                .iter(async || reader.get(black_box(key.as_bytes())).await.unwrap());
        });
    }
    group.finish();
}

fn filter_checks(criterion: &mut Criterion) {
    const CHECKS: u64 = 1000;
    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let reader = reader(&runtime, &dir, 64);
    let keys: Vec<String> = (0..CHECKS).map(|i| format!("key_{:08}x", i * 7)).collect();
    let mut group = criterion.benchmark_group("filter_check");
    group.throughput(Throughput::Elements(CHECKS));
    group.bench_function("absent_keys", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            for key in &keys {
                black_box(reader.get(key.as_bytes()).await.unwrap());
            }
        });
    });
    group.finish();
}

fn scans(criterion: &mut Criterion) {
    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let mut group = criterion.benchmark_group("scan_10k");
    group.throughput(Throughput::Elements(ENTRIES));
    for (name, block_cache_mb) in [("cached", 64), ("page_cached", 0)] {
        let reader = reader(&runtime, &dir, block_cache_mb);
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(async || {
                let mut entries = Arc::clone(&reader).iter();
                while let Some(entry) = entries.try_next().await.unwrap() {
                    black_box(entry);
                }
            });
        });
    }
    group.finish();
}

fn hot_keys(criterion: &mut Criterion) {
    const GETS: usize = 1000;
    let (runtime, dir) = (runtime(), TempDir::new().unwrap());
    let hot = |i: u64| if i % 5 < 4 { i * 37 % (ENTRIES / 5) } else { i * 7919 % ENTRIES };
    let keys: Vec<String> = (0..).map(|i| format!("key_{:08}", hot(i))).take(GETS).collect();
    let mut group = criterion.benchmark_group("hot_80_20");
    group.throughput(Throughput::Elements(1000));
    for (name, block_cache_mb) in [("cached", 64), ("uncached", 0)] {
        let reader = reader(&runtime, &dir, block_cache_mb);
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(async || {
                for key in &keys {
                    black_box(reader.get(key.as_bytes()).await.unwrap());
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, builds, lookups, filter_checks, scans, hot_keys);
criterion_main!(benches);
