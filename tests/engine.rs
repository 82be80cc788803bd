//! The engine as a user meets it: one test for each promise of the handle.

#[expect(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "only a part of it is needed here; it stops if it cannot set up"
)]
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use nori_lsm::env::sim::SimFs;
use nori_lsm::{
    ATLLConfig, CompactionMode, Component, Compression, CompressionConfig, Durability, Error,
    L0Config, LsmEngine, MemtableConfig, WriteBatch, WriteOptions,
};

fn small(dir: &std::path::Path) -> ATLLConfig {
    ATLLConfig {
        data_dir: dir.to_owned(),
        memtable: MemtableConfig { flush_trigger_bytes: 16 << 10, ..Default::default() },
        ..Default::default()
    }
}

#[tokio::test]
async fn what_is_put_is_there_after_flush_compaction_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for round in 0..5 {
        for i in 0..1000 {
            engine.put(format!("key{i:05}"), format!("value{round}-{i}")).await.unwrap();
        }
    }
    engine.delete(b"key00007").await.unwrap();
    for _ in 0..2 {
        assert_eq!(engine.get(b"key00008").await.unwrap(), Some(Bytes::from("value4-8")));
        assert_eq!(engine.get(b"key00007").await.unwrap(), None);
        let mut scan = engine.scan("key00005".."key00010");
        let mut seen = Vec::new();
        while let Some((key, _)) = scan.next().await.unwrap() {
            seen.push(String::from_utf8(key.to_vec()).unwrap());
        }
        assert_eq!(seen, ["key00005", "key00006", "key00008", "key00009"]);
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
    }

    engine.shutdown().await.unwrap();
    let log = std::fs::read_dir(dir.path().join("wal")).unwrap().count();
    assert_eq!(log, 0, "everything is in tables, so the log is gone");
    assert!(matches!(engine.put("a", "b").await, Err(Error::Closed)));
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();

    assert_eq!(engine.get(b"key00999").await.unwrap(), Some(Bytes::from("value4-999")));
    assert_eq!(engine.get(b"key00007").await.unwrap(), None);
    drop(engine);
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    engine.put("x", "y").await.unwrap();
    let mut batch = WriteBatch::default();
    batch.put("x", "z").delete("key00001");
    engine.write(batch, WriteOptions::default()).await.unwrap();
    drop(engine);
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    assert_eq!(engine.get(b"x").await.unwrap(), Some(Bytes::from("z")));
    assert_eq!(engine.recovery().operations, 3);
}

/// Reads that are ready at once must not keep other tasks of a current_thread runtime waiting.
#[tokio::test]
async fn tight_loops_of_reads_scans_and_writes_let_other_tasks_have_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    engine.put("k", "v").await.unwrap();
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let busy: Vec<_> = (0..3)
        .map(|kind| {
            let (engine, stop) = (engine.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match kind {
                        0 => drop(engine.get(b"k").await.unwrap()),
                        1 => drop(engine.scan(..).next().await.unwrap()),
                        _ => drop(engine.put("k", "w").await.unwrap()),
                    }
                }
            })
        })
        .collect();
    while turns.fetch_add(1, Ordering::Relaxed) < 50 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in busy {
        task.await.unwrap();
    }
}

/// How many turns another task of the runtime has while `work` is done.
async fn turns_beside<T>(work: impl Future<Output = T>) -> u64 {
    let turns = Arc::new(AtomicU64::new(0));
    let beside = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            tokio::task::yield_now().await;
            beside.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::task::yield_now().await;
    let before = turns.load(Ordering::Relaxed);
    work.await;
    let after = turns.load(Ordering::Relaxed);
    other.abort();
    after - before
}

/// Giving way takes as long as ten gets from memory: neither do they give way too often, nor what takes longer too seldom.
#[test]
fn a_task_gives_way_after_as_many_calls_as_fit_a_turn() {
    world::in_paused_time(async {
        let config = ATLLConfig { memtable: MemtableConfig::default(), ..world::config() };
        let engine = world::open(&SimFs::new(1), config).await.unwrap();
        let puts = async {
            for i in 0..1280 {
                engine.put(format!("key{i:05}"), "value").await.unwrap();
            }
        };
        assert_within("puts", turns_beside(puts).await, 9..13);
        let gets = async || {
            for i in 0..12_800 {
                assert!(
                    engine.get(format!("key{:05}", i % 1280).as_bytes()).await.unwrap().is_some()
                );
            }
        };
        assert_within("gets from memory", turns_beside(gets()).await, 24..28);
        let together = futures::future::join_all((0..12_800).map(|_| engine.get(b"key00001")));
        assert_within("gets at the same time", turns_beside(together).await, 90..105);
        let scans = async {
            for _ in 0..16 {
                let mut scan = engine.scan(..);
                while scan.next().await.unwrap().is_some() {}
            }
        };
        assert_within("scans", turns_beside(scans).await, 9..13);
        let streams = async {
            for _ in 0..16 {
                assert_eq!(engine.scan(..).count().await, 1280);
            }
        };
        assert_within("streams", turns_beside(streams).await, 9..13);
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        assert_within("gets from files", turns_beside(gets()).await, 95..105);
        engine.shutdown().await.unwrap();
    });
}

fn assert_within(what: &str, turns: u64, range: std::ops::Range<u64>) {
    assert!(range.contains(&turns), "{what}: {turns} turns of others");
}

/// Where the runs of a slot differ in size, a limited scan reads of each about what it takes of it.
#[test]
fn a_limited_scan_reads_of_each_run_its_share() {
    world::in_paused_time(async {
        let plain = Compression::None;
        let config = ATLLConfig {
            block_size: 4096,
            memtable: MemtableConfig::default(),
            compression: CompressionConfig { flush: plain, levels: plain, last: plain },
            ..world::config()
        };
        let fs = SimFs::new(1);
        let engine = world::open(&fs, config).await.unwrap();
        for step in [1, 10] {
            for i in (0..10_000).step_by(step) {
                engine.put(format!("key{i:05}"), vec![b'v'; 100]).await.unwrap();
            }
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
        }
        let stats = engine.stats();
        let runs: usize = stats.levels.iter().map(|level| level.runs).sum();
        assert!(runs >= 2, "{:?}", stats.levels);
        let scan = async |from: usize| {
            let mut scan = engine.scan(Bytes::from(format!("key{from:05}"))..).limit(200);
            while scan.next().await.unwrap().is_some() {}
        };
        scan(0).await; // indexes
        let before = fs.bytes_read();
        for from in (500..9000).step_by(500) {
            scan(from).await;
        }
        let read = (fs.bytes_read() - before) / 17;
        // 220 entries are 26 KiB, in blocks of 4 KiB that begin and end before and behind them.
        assert!((26_000..44_000).contains(&read), "{read}");
        let mut scan = engine.scan(..).limit(5000);
        scan.next().await.unwrap();
        let before = fs.bytes_read();
        for from in (500..9000).step_by(500) {
            scan.seek(format!("key{from:05}"));
            assert!(scan.next().await.unwrap().is_some());
        }
        let read = (fs.bytes_read() - before) / 17;
        assert!((4_000..14_000).contains(&read), "after a seek the limit says little: {read}");
        engine.shutdown().await.unwrap();
    });
}

/// A walk that waits for the disk between two slices, or two slots, goes on behind the wait.
#[tokio::test]
async fn a_scan_of_cold_tables_shows_every_key_both_ways() {
    const KEYS: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for round in 0..2 {
        for i in (round..KEYS).step_by(2) {
            engine.put(format!("key{i:05}"), format!("value{i}")).await.unwrap();
        }
    }
    engine.flush().await.unwrap();
    engine.wait_idle().await.unwrap();
    engine.shutdown().await.unwrap();
    for backward in [false, true] {
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        let scan = engine.scan(..);
        let mut scan = if backward { scan.rev() } else { scan };
        let mut seen = Vec::new();
        while let Some((key, _)) = scan.next().await.unwrap() {
            seen.push(key);
        }
        if backward {
            seen.reverse();
        }
        let expected: Vec<_> = (0..KEYS).map(|i| Bytes::from(format!("key{i:05}"))).collect();
        assert!(seen == expected, "{} of {KEYS} keys, backward: {backward}", seen.len());
        drop(scan);
        engine.shutdown().await.unwrap();
    }
}

fn with_durability(durability: Durability) -> WriteOptions {
    WriteOptions { durability: Some(durability), ..Default::default() }
}

#[tokio::test]
async fn a_shutdown_goes_on_where_one_that_was_dropped_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    engine.put("k", "v").await.unwrap();
    assert!(engine.shutdown().now_or_never().is_none());
    engine.shutdown().await.unwrap();
    assert_eq!(engine.stats().flushes, 1, "it waited for the end");
    engine.shutdown().await.unwrap();
}

#[test]
fn a_write_that_waits_at_the_gate_is_told_of_the_shutdown() {
    world::in_paused_time(async {
        let fs = SimFs::new(1);
        let config = ATLLConfig { l0: L0Config { max_files: 2 }, ..world::config() };
        let engine = world::open(&fs, config).await.unwrap();
        let is_down = || engine.health().components.get("scheduler").is_some_and(|it| it.down);
        while !is_down() {
            engine.kill(Component::Scheduler);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while engine.pressure().borrow().value < 1.0 {
            engine.put("k", "v").await.unwrap();
            engine.flush().await.unwrap();
        }
        let waiting = engine.put("k", "w");
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        engine.shutdown().await.unwrap();
        assert!(matches!(waiting.await, Err(Error::Closed)));
        assert!(matches!(engine.put("k", "x").await, Err(Error::Closed)));
    });
}

#[test]
fn a_short_batch_interval_is_kept_beside_a_long_one() {
    world::in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = world::open(&fs, world::config()).await.unwrap();
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(10));
        engine.put_with("a", "1", with_durability(Durability::Batch(long))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let written = engine.put_with("b", "2", with_durability(Durability::Batch(short))).await;
        let written = written.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(engine.durable_seq() >= written);
        engine.shutdown().await.unwrap();
    });
}

#[tokio::test]
async fn entries_of_a_chunk_that_was_dropped_come_next() {
    const KEYS: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().to_owned(), ..Default::default() };
    let engine = LsmEngine::open(config).await.unwrap();
    for i in 0..KEYS {
        engine.put(format!("key{i:05}"), "v").await.unwrap();
    }
    tokio::task::yield_now().await;
    let key = |i: usize| Bytes::from(format!("key{i:05}"));
    let mut scan = engine.scan(..).limit(KEYS);
    assert!(scan.next_chunk(KEYS).now_or_never().is_none(), "its turn is over before the end");
    assert_eq!(scan.next().await.unwrap().unwrap().0, key(0));
    let chunk = scan.next_chunk(3).await.unwrap();
    assert_eq!(chunk.iter().map(|it| it.0.clone()).collect::<Vec<_>>(), [key(1), key(2), key(3)]);
    scan.seek(key(4));
    assert_eq!(
        scan.next_chunk(KEYS).await.unwrap().len(),
        KEYS - 4,
        "the limit counts what was shown"
    );
    scan.seek(key(7));
    assert_eq!(scan.next().await.unwrap(), None);
}

/// Nobody is left who could answer: whoever asks is told.
#[test]
fn an_engine_whose_runtime_is_gone_answers_with_errors() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let engine = first.block_on(LsmEngine::open(small(dir.path()))).unwrap();
    first.block_on(engine.put("k", "v")).unwrap();
    drop(first);
    runtime().block_on(async {
        let limit = Duration::from_secs(20);
        let calls = async {
            let put = engine.put_with("k", "w", with_durability(Durability::Sync)).await;
            assert!(matches!(put, Err(Error::Unavailable { .. })), "{put:?}");
            assert!(engine.flush().await.is_err());
            assert!(engine.sync().await.is_err());
            assert!(engine.wait_idle().await.is_err());
            assert_eq!(engine.get(b"k").await.unwrap(), Some(Bytes::from("v")));
            assert!(engine.shutdown().await.is_err());
        };
        tokio::time::timeout(limit, calls).await.unwrap();
        drop(engine);
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        assert_eq!(engine.get(b"k").await.unwrap(), Some(Bytes::from("v")));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_write_that_is_acknowledged_while_the_engine_goes_down_is_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..25_u64 {
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        let writers: Vec<_> = (0..8_u64)
            .map(|writer| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    let durability = writer.is_multiple_of(4).then_some(Durability::Sync);
                    let options = WriteOptions { durability, ..Default::default() };
                    let mut acked = 0_u64;
                    let key = format!("key{round:02}-{writer}");
                    while engine.put_with(key.clone(), acked.to_string(), options).await.is_ok() {
                        acked += 1;
                    }
                    (key, acked)
                })
            })
            .collect();
        for _ in 0..round * 20 {
            tokio::task::yield_now().await;
        }
        engine.shutdown().await.unwrap();
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        for writer in writers {
            let (key, acked) = writer.await.unwrap();
            let found = engine.get(key.as_bytes()).await.unwrap();
            let last = acked.checked_sub(1).map(|last| Bytes::from(last.to_string()));
            assert_eq!(found, last, "{key}");
        }
        engine.shutdown().await.unwrap();
    }
}
