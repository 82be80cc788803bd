//! Speed of single operations: one caller that blocks on each, as an embedding program would measure it.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up must stop")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use nori_lsm::{ATLLConfig, CompactionMode, LsmEngine};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Keys that reads find.
const PRELOADED: u64 = 1000;
/// Keys that deletes go round.
const DELETED: u64 = 10_000;

fn key(number: u64) -> Bytes {
    format!("key-{number:010}").into()
}

/// An engine in a directory of its own; it ends before the directory goes.
struct World {
    runtime: Runtime,
    engine: LsmEngine,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
        let engine = runtime.block_on(LsmEngine::open(config)).unwrap();
        Self { runtime, engine, _dir: dir }
    }

    /// With `count` keys that hold 1 KiB each.
    fn with(count: u64) -> Self {
        let world = Self::new();
        for number in 0..count {
            world.put(number, &Bytes::from(vec![b'v'; 1024]));
        }
        world
    }

    fn put(&self, number: u64, value: &Bytes) {
        self.runtime.block_on(self.engine.put(key(number), value.clone())).unwrap();
    }

    fn get(&self, key: &[u8]) {
        let value = self.runtime.block_on(self.engine.get(key)).unwrap();
        assert!(black_box(value).is_some());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.block_on(self.engine.shutdown()).unwrap();
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group
}

/// New keys, one after the other, with values of that many bytes; flushes and compactions happen as they come.
fn put(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bytes: usize) {
    let (world, value) = (World::new(), Bytes::from(vec![b'v'; bytes]));
    let mut number = 0;
    group.throughput(Throughput::Bytes(u64::try_from(bytes).unwrap()));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            world.put(number, &value);
            number += 1;
        });
    });
}

fn puts(criterion: &mut Criterion) {
    let mut group = group(criterion, "put");
    put(&mut group, "1kb", 1 << 10);
    put(&mut group, "4kb", 4 << 10);
    group.finish();
}

fn puts_by_size(criterion: &mut Criterion) {
    let mut group = group(criterion, "put_by_size");
    for bytes in [128, 512, 1 << 10, 4 << 10, 16 << 10] {
        put(&mut group, &bytes.to_string(), bytes);
    }
    group.finish();
}

/// Round robin over all keys, wherever `place` has put them.
fn get(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, place: impl FnOnce(&World)) {
    let world = World::with(PRELOADED);
    place(&world);
    let keys: Vec<Bytes> = (0..PRELOADED).map(key).collect();
    let mut keys = keys.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.iter(|| world.get(keys.next().unwrap()));
    });
}

fn gets(criterion: &mut Criterion) {
    let mut group = group(criterion, "get");
    group.throughput(Throughput::Elements(1));
    get(&mut group, "memtable_1kb", |_| {});
    get(&mut group, "l0_1kb", |world| world.runtime.block_on(world.engine.flush()).unwrap());
    get(&mut group, "l1_1kb", |world| {
        let compacted = world.engine.compact_range(.., CompactionMode::Full);
        world.runtime.block_on(compacted).unwrap();
    });
    group.finish();
}

fn deletes(criterion: &mut Criterion) {
    let mut group = group(criterion, "delete");
    group.throughput(Throughput::Elements(1));
    let world = World::with(DELETED);
    let keys: Vec<Bytes> = (0..DELETED).map(key).collect();
    let mut keys = keys.iter().cycle();
    group.bench_function("10k_keys", |bencher| {
        bencher.iter(|| {
            world.runtime.block_on(world.engine.delete(keys.next().unwrap())).unwrap();
        });
    });
    group.finish();
}

/// Every fifth operation puts 1 KiB, the others get.
fn mixed(criterion: &mut Criterion) {
    let mut group = group(criterion, "mixed");
    group.throughput(Throughput::Elements(1));
    let (world, value) = (World::with(PRELOADED), Bytes::from(vec![b'w'; 1024]));
    let mut operation = 0_u64;
    group.bench_function("80_20", |bencher| {
        bencher.iter(|| {
            let number = operation % PRELOADED;
            if operation.is_multiple_of(5) {
                world.put(number, &value);
            } else {
                world.get(&key(number));
            }
            operation += 1;
        });
    });
    group.finish();
}

criterion_group!(benches, puts, puts_by_size, gets, deletes, mixed);
criterion_main!(benches);
