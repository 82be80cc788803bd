//! Speed of walks: 10, 100 and 1000 keys from a random one on, and everything; both ways; in memory, in tables, in both.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot set up must stop")]

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nori_lsm::{ATLLConfig, Direction, LsmEngine, Scan};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const KEYS: u64 = 50_000;
const DIRECTIONS: [(&str, Direction); 2] =
    [("forward", Direction::Forward), ("reverse", Direction::Backward)];

fn key(number: u64) -> Bytes {
    format!("key-{number:010}").into()
}

/// Where the keys are.
#[derive(Clone, Copy)]
enum Place {
    Memtable,
    Tables,
    /// Every other key in tables, the rest in the memtable.
    Both,
}

struct World {
    runtime: Runtime,
    engine: LsmEngine,
    _dir: TempDir,
}

impl World {
    fn new(place: Place) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
        let engine = runtime.block_on(async {
            let engine = LsmEngine::open(config).await.unwrap();
            let value = Bytes::from(vec![b'v'; 256]);
            for number in (0..KEYS).step_by(2).chain((1..KEYS).step_by(2)) {
                if number == 1 && matches!(place, Place::Both) {
                    engine.flush().await.unwrap();
                }
                engine.put(key(number), value.clone()).await.unwrap();
            }
            if matches!(place, Place::Tables) {
                engine.flush().await.unwrap();
            }
            engine.wait_idle().await.unwrap();
            engine
        });
        Self { runtime, engine, _dir: dir }
    }

    /// Walks `count` keys from, or down from, a key.
    fn walk(&self, direction: Direction, at: u64, count: u64) {
        let length = usize::try_from(count).unwrap();
        let scan = match direction {
            Direction::Forward => self.engine.scan(key(at)..),
            Direction::Backward => self.engine.scan(..key(at)).rev(),
        };
        assert_eq!(self.runtime.block_on(counted(scan.limit(length))), length);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.block_on(self.engine.shutdown()).unwrap();
    }
}

async fn counted(mut scan: Scan) -> usize {
    let mut count = 0;
    loop {
        let chunk = scan.next_chunk(256).await.unwrap();
        count += chunk.len();
        if chunk.len() < 256 {
            return count;
        }
    }
}

fn scans(criterion: &mut Criterion, name: &str, place: Place) {
    let world = World::new(place);
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let mut random = fastrand::Rng::with_seed(1);
    for (way, direction) in DIRECTIONS {
        for count in [10, 100, 1000] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(format!("{way}/{count}"), |bencher| {
                bencher.iter(|| world.walk(direction, random.u64(count..KEYS - count), count));
            });
        }
        group.throughput(Throughput::Elements(KEYS));
        group.bench_function(format!("{way}/all"), |bencher| {
            let from = if direction == Direction::Forward { 0 } else { KEYS };
            bencher.iter(|| world.walk(direction, from, KEYS));
        });
    }
    group.finish();
}

fn memtable(criterion: &mut Criterion) {
    scans(criterion, "scan_memtable", Place::Memtable);
}

fn tables(criterion: &mut Criterion) {
    scans(criterion, "scan_tables", Place::Tables);
}

fn both(criterion: &mut Criterion) {
    scans(criterion, "scan_both", Place::Both);
}

criterion_group!(benches, memtable, tables, both);
criterion_main!(benches);
