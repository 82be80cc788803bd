//! Speed under load: writes that keep flushes and compactions busy, many tasks at once, and reads of which a few keys get most.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up must stop")]

use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use nori_lsm::{ATLLConfig, LsmEngine, MemtableConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Operations of one iteration.
const OPS: u64 = 20_000;
/// Keys that are drawn from.
const KEYS: u64 = 100_000;

fn key(number: u64) -> Bytes {
    format!("key-{number:010}").into()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn open(runtime: &Runtime, flush_trigger_bytes: usize) -> (TempDir, LsmEngine) {
    let dir = TempDir::new().unwrap();
    let config = ATLLConfig {
        data_dir: dir.path().to_owned(),
        memtable: MemtableConfig { flush_trigger_bytes, ..Default::default() },
        ..Default::default()
    };
    let engine = runtime.block_on(LsmEngine::open(config)).unwrap();
    (dir, engine)
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .throughput(Throughput::Elements(OPS));
    group
}

/// Overwrites with 400 B until all of it is flushed, and compacted as far as that pays.
async fn overwrite(engine: &LsmEngine) {
    let (mut random, value) = (fastrand::Rng::with_seed(7), Bytes::from(vec![b'v'; 400]));
    for _ in 0..OPS {
        engine.put(key(random.u64(..OPS / 2)), value.clone()).await.unwrap();
    }
    engine.flush().await.unwrap();
    engine.wait_idle().await.unwrap();
}

fn sustained_writes(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = group(criterion, "sustained_writes");
    group.bench_function("memtables_of_1mib", |bencher| {
        bencher.iter_batched(
            || open(&runtime, 1 << 20),
            |(dir, engine)| {
                runtime.block_on(overwrite(&engine));
                // The time to end an engine is not that of its writes: criterion drops what is returned later.
                Ended { runtime: &runtime, engine, _dir: dir }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Ends the engine, then removes its directory.
struct Ended<'a> {
    runtime: &'a Runtime,
    engine: LsmEngine,
    _dir: TempDir,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.runtime.block_on(self.engine.shutdown()).unwrap();
    }
}

/// `tasks` tasks that put `OPS` entries of 400 B between them.
async fn put_from(engine: &LsmEngine, tasks: u64) {
    let value = Bytes::from(vec![b'v'; 400]);
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let (engine, value) = (engine.clone(), value.clone());
        running.spawn(async move {
            for number in (task..OPS).step_by(usize::try_from(tasks).unwrap()) {
                engine.put(key(number), value.clone()).await.unwrap();
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

fn concurrent_tasks(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = group(criterion, "concurrent_puts");
    for tasks in [16, 64, 256] {
        let (dir, engine) = open(&runtime, 64 << 20);
        let world = Ended { runtime: &runtime, engine, _dir: dir };
        group.bench_function(format!("{tasks}_tasks"), |bencher| {
            bencher.iter(|| runtime.block_on(put_from(&world.engine, tasks)));
        });
    }
    group.finish();
}

/// Numbers of keys of which the n-th gets about 1/n of the reads.
fn skewed() -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(3);
    let bits = KEYS.ilog2();
    // A number of a random length in bits: each doubling of the rank gets the same share.
    let ranks = (0..OPS).map(|_| {
        let bits = random.u32(1..=bits);
        random.u64(..1 << bits) % KEYS
    });
    // Neighbours in popularity are no neighbours in the order of keys.
    ranks.map(|rank| rank * 7919 % KEYS).collect()
}

fn zipfian_reads(criterion: &mut Criterion) {
    let runtime = runtime();
    let (dir, engine) = open(&runtime, 8 << 20);
    let world = Ended { runtime: &runtime, engine, _dir: dir };
    runtime.block_on(async {
        for number in 0..KEYS {
            world.engine.put(key(number), vec![b'v'; 400]).await.unwrap();
        }
        world.engine.flush().await.unwrap();
        world.engine.wait_idle().await.unwrap();
    });
    let keys: Vec<Bytes> = skewed().into_iter().map(key).collect();
    let mut group = group(criterion, "zipfian_reads");
    group.bench_function("1_task", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                for key in &keys {
                    assert!(world.engine.get(key).await.unwrap().is_some());
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, sustained_writes, concurrent_tasks, zipfian_reads);
criterion_main!(benches);
