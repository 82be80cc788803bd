//! Whatever is asked of an engine, what it holds stays bounded, and its figures say so.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot set up must stop")]

#[expect(dead_code, reason = "the histories are for other tests")]
mod world;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::Fs;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::{
    ATLLConfig, CompactionMode, Durability, Error, LsmEngine, ResourceConfig, WriteBatch,
    WriteOptions,
};
use proptest::prelude::*;
use world::{in_paused_time, open};

fn key(n: usize) -> String {
    format!("key{n:05}")
}

/// Many small tables: nothing is merged, so that reads meet all of them.
fn many_tables(open_files: usize) -> ATLLConfig {
    let resources = ResourceConfig { open_files, block_cache_mib: 0, ..Default::default() };
    ATLLConfig { fanout: 2, max_levels: 7, l1_slot_count: 64, resources, ..world::config() }
}

/// Fills `tables` tables of 20 keys each, one behind the other.
async fn fill(engine: &LsmEngine, tables: usize) {
    for table in 0..tables {
        for n in 0..20 {
            let n = table * 20 + n;
            engine.put(key(n), format!("value{n}").repeat(8)).await.unwrap();
        }
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
    }
}

async fn check(engine: &LsmEngine, n: usize) {
    let value = engine.get(key(n).as_bytes()).await.unwrap();
    assert_eq!(value.unwrap(), format!("value{n}").repeat(8), "{n}");
}

#[test]
fn no_more_tables_are_open_than_there_may_be_and_every_key_is_read() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        fs.cold_reads(30);
        let engine = open(&fs, many_tables(4)).await.unwrap();
        fill(&engine, 30).await;
        assert!(engine.stats().tables >= 12, "{}", engine.stats());
        assert!(fs.most_open_readers() <= 4, "flushes and compactions open no more");
        for n in 0..600 {
            check(&engine, n * 211 % 600).await;
        }
        assert_eq!(engine.scan(..).next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert_eq!(engine.scan(..).rev().next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert!(fs.most_open_readers() <= 4, "read handles");
        assert!(engine.stats().open_tables <= 4);
        let held = engine.scan(..);
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        drop(held);
        assert_eq!(engine.scan(..).next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert!(fs.most_open_readers() <= 4, "a compaction opens no more than there may be");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn tables_stay_open_as_long_as_there_is_room() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(1000)).await.unwrap();
        fill(&engine, 12).await;
        for n in 0..240 {
            check(&engine, n).await;
        }
        assert_eq!(engine.stats().open_tables, engine.stats().tables);
        assert_eq!(fs.open_readers(), engine.stats().tables);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_process_out_of_files_closes_tables_and_reads_on() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(3)).await.unwrap();
        fill(&engine, 10).await;
        assert!(engine.stats().tables >= 6, "{}", engine.stats());
        let of_tables = || Fault::new(Trouble::TooManyFiles).on(Operation::Open).at(".sst");
        for _ in 0..20 {
            fs.inject(of_tables().once());
            for n in (0..200).step_by(20) {
                check(&engine, n).await;
            }
        }
        fs.inject(of_tables());
        let mut failed = 0;
        for n in (0..200).step_by(20) {
            match engine.get(key(n).as_bytes()).await {
                Err(Error::Io { op: "open", source, .. }) => {
                    assert_eq!(source.raw_os_error(), Some(24));
                    failed += 1;
                }
                found => assert!(found.unwrap().is_some()),
            }
        }
        assert!(failed >= 3, "{failed}");
        assert_eq!(fs.open_readers(), 0, "everything was closed before giving up");
        fs.heal();
        for n in 0..200 {
            check(&engine, n).await;
        }
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_process_out_of_files_goes_on_writing_once_tables_are_closed() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(100)).await.unwrap();
        fill(&engine, 4).await;
        let open_before = fs.open_readers();
        for kind in [".sst", ".wal"] {
            let fault = Fault::new(Trouble::TooManyFiles).on(Operation::Create).at(kind);
            fs.inject(fault.once());
        }
        let before = engine.stats();
        engine.put("more", "value").await.unwrap();
        engine.flush().await.unwrap();
        assert_eq!(engine.stats().flushes, before.flushes + 1);
        assert!(fs.open_readers() < open_before + 2, "tables were closed for it");
        engine.shutdown().await.unwrap();
    });
}

fn value(bytes: usize) -> Vec<u8> {
    vec![b'v'; bytes]
}

#[test]
fn the_ledger_says_what_is_held_and_forgets_what_is_gone() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = many_tables(100);
        config.memtable.flush_trigger_bytes = 4 << 20;
        config.resources.block_cache_mib = 2;
        config.resources.memtables_mib = 16;
        let engine = open(&fs, config).await.unwrap();
        let empty = engine.memory();
        assert_eq!(empty.budget, (16 << 20) + (8 << 20), "indexes may always take 8 MiB");
        for n in 0..100 {
            engine.put(key(n), value(10_000)).await.unwrap();
        }
        let written = engine.memory();
        let grown = written.active_memtable - empty.active_memtable;
        assert!((1_000_000..1_100_000).contains(&grown), "{grown}");
        let scan = engine.scan(..);
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let flushed = engine.memory();
        assert_eq!(flushed.active_memtable, empty.active_memtable);
        assert_eq!(flushed.retired_memtables, written.active_memtable, "a scan reads it");
        drop(scan);
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        assert_eq!(engine.memory().retired_memtables, 0);
        assert_eq!(engine.memory().buffers, 0);
        let before = engine.memory();
        for n in 0..100 {
            assert_eq!(engine.get(key(n).as_bytes()).await.unwrap().unwrap().len(), 10_000);
        }
        let read = engine.memory();
        assert!(
            read.indexes_and_filters > before.indexes_and_filters || before.indexes_and_filters > 0
        );
        assert!(read.block_cache > 900_000, "{read}");
        let mut scan = engine.scan(..);
        for n in 100..110 {
            engine.put(key(n), value(10)).await.unwrap();
        }
        assert!(scan.next().await.unwrap().is_some());
        drop(scan);
        let ledger = engine.memory();
        assert_eq!((ledger.buffers, ledger.queued_writes, ledger.waiting_writes), (0, 0, 0));
        let parts = ledger.active_memtable + ledger.block_cache + ledger.indexes_and_filters;
        assert_eq!(ledger.total, parts);
        let shown = serde_json::to_value(ledger).unwrap();
        assert_eq!(shown["total"], ledger.total);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn nothing_of_a_callers_buffers_is_kept() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = many_tables(100);
        config.memtable.flush_trigger_bytes = 4 << 20;
        let engine = open(&fs, config).await.unwrap();
        for (bytes, durability) in [10, 1000, 5000, 100_000].into_iter().flat_map(|bytes| {
            [Durability::Os, Durability::Sync].map(|durability| (bytes, durability))
        }) {
            // Slices of something larger.
            let whole = Bytes::from(value(3 * bytes));
            let mut batch = WriteBatch::default();
            batch.put(whole.slice(..bytes.min(50)), whole.slice(bytes..2 * bytes));
            batch.put(whole.slice(2..9), whole.slice(1..bytes)).delete(whole.slice(..8));
            let options = WriteOptions { durability: Some(durability), ..Default::default() };
            engine.write(batch, options).await.unwrap();
            assert!(whole.is_unique(), "{bytes}, {durability:?}");
        }
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn memory_of_memtables_that_are_gone_is_used_again_and_given_back_when_nobody_writes() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = many_tables(100);
        config.memtable.flush_trigger_bytes = 4 << 20;
        config.resources.memtables_mib = 16;
        config.memtable.wal_age_trigger_sec = 200;
        let engine = open(&fs, config).await.unwrap();
        let spare = || engine.memory().spare_memtables;
        for _ in 0..2 {
            assert_eq!(spare(), 0);
            for n in 0..1000 {
                engine.put(key(n), value(1000)).await.unwrap();
            }
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
            assert!(spare() > 900_000, "{}", engine.memory());
            for n in 0..500 {
                engine.put(key(n), value(1000)).await.unwrap();
            }
            assert!(spare() < 600_000, "{}", engine.memory());
            engine.flush().await.unwrap();
            tokio::time::sleep(Duration::from_secs(200)).await; // of the paused clock
        }
        engine.shutdown().await.unwrap();
    });
}

/// Writers of large values, far more than memtables may hold, while no table can be made.
#[test]
fn a_burst_that_cannot_be_flushed_waits_within_the_budget_and_ends_well() {
    const WRITERS: usize = 2000;
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = world::config();
        config.memtable.flush_trigger_bytes = 256 << 10;
        config.resources.memtables_mib = 1;
        let engine = open(&fs, config).await.unwrap();
        fs.inject(Fault::new(Trouble::Io).on(Operation::Create).at(".sst"));
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let engine = engine.clone();
                tokio::spawn(async move { engine.put(key(n), value(16 << 10)).await })
            })
            .collect();
        let mut most = 0;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let memory = engine.memory();
            most = most.max(memory.total);
            assert!(memory.total <= memory.budget + (1 << 20), "{memory}");
            let writes = memory.active_memtable + memory.sealed_memtables + memory.queued_writes;
            assert!(writes <= (1 << 20) + (64 << 10), "{memory}");
        }
        assert!(most > 512 << 10, "the burst came to something: {most}");
        assert!(engine.memory().waiting_writes > 20 << 20, "{}", engine.memory());
        let late = WriteOptions { deadline: Some(Duration::from_millis(50)), ..Default::default() };
        let stalled = engine.put_with("late", value(16 << 10), late).await;
        assert!(matches!(stalled, Err(Error::Stalled { .. })), "{stalled:?}");
        fs.heal();
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        for n in 0..WRITERS {
            assert_eq!(engine.get(key(n).as_bytes()).await.unwrap().unwrap().len(), 16 << 10);
        }
        assert_eq!(engine.get(b"late").await.unwrap(), None, "it was told that nothing happened");
        engine.shutdown().await.unwrap();
        assert_eq!(engine.memory().waiting_writes, 0);
    });
}

#[test]
fn who_waits_for_room_is_told_when_writes_are_refused() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = world::config();
        config.memtable.flush_trigger_bytes = 256 << 10;
        config.resources.memtables_mib = 1;
        let engine = open(&fs, config).await.unwrap();
        fs.inject(Fault::new(Trouble::Io).on(Operation::Create).at(".sst"));
        let writers: Vec<_> = (0..200)
            .map(|n| {
                let engine = engine.clone();
                tokio::spawn(async move { engine.put(key(n), value(16 << 10)).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(engine.memory().waiting_writes > 0);
        drop(engine.shutdown().await); // nothing can be flushed: it says so
        let mut refused = 0;
        for writer in writers {
            refused += usize::from(matches!(writer.await.unwrap(), Err(Error::Closed)));
        }
        assert!(refused > 100, "{refused}");
    });
}

#[test]
fn a_batch_larger_than_what_is_free_gets_its_turn() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = world::config();
        config.memtable.flush_trigger_bytes = 512 << 10;
        config.resources.memtables_mib = 1;
        let engine = open(&fs, config).await.unwrap();
        engine.put("small", value(300 << 10)).await.unwrap();
        for n in 0..3 {
            // Each fits only when nothing else is there; the last does not even then.
            engine.put(key(n), value((900 << 10) + n * (300 << 10))).await.unwrap();
        }
        assert!(engine.memory().active_memtable < 4 << 20);
        engine.flush().await.unwrap();
        assert_eq!(engine.get(key(2).as_bytes()).await.unwrap().unwrap().len(), 1500 << 10);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn what_is_held_for_ever_is_shown_and_holds_up_nobody() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = many_tables(8);
        config.memtable.flush_trigger_bytes = 64 << 10;
        config.resources.memtables_mib = 1;
        let engine = open(&fs, config).await.unwrap();
        fill(&engine, 5).await;
        let snapshot = engine.snapshot();
        let mut scan = engine.scan(..);
        assert!(scan.next().await.unwrap().is_some());
        for round in 0..40 {
            for n in 0..20 {
                engine.put(key(n), vec![round; 4 << 10]).await.unwrap();
            }
            let memory = engine.memory();
            assert!(memory.total <= memory.budget + (2 << 20), "{memory}");
        }
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600 / 8)).await;
        let stats = engine.stats();
        assert_eq!(stats.snapshots, 1);
        assert!(stats.oldest_snapshot.unwrap() >= Duration::from_secs(3600 / 8), "{stats}");
        assert!(stats.pinned_tables > 0 && stats.pinned_bytes > 0, "{stats}");
        assert!(stats.to_string().contains("oldest snapshot"), "{stats}");
        assert!(fs.open_readers() <= 8);
        assert_eq!(snapshot.get(key(7).as_bytes()).await.unwrap().unwrap(), "value7".repeat(8));
        assert_eq!(scan.next_chunk(usize::MAX).await.unwrap().len(), 99, "as of its time");
        drop((snapshot, scan));
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        let stats = engine.stats();
        assert_eq!((stats.pinned_tables, stats.pinned_bytes, stats.snapshots), (0, 0, 0));
        // Dead tables that the disk does not give back are held by nobody.
        fs.inject(Fault::new(Trouble::Io).at("sst").on(Operation::Remove));
        fill(&engine, 5).await;
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        let dead = fs.list(Path::new("/db/sst")).unwrap().len() - engine.stats().tables;
        assert!(dead > 0);
        assert_eq!((engine.stats().pinned_tables, engine.stats().pinned_bytes), (0, 0));
        fs.heal();
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn scans_that_are_held_by_the_hundred_read_ahead_within_a_bound() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = ATLLConfig { l1_slot_count: 1, block_size: 4096, ..many_tables(100) };
        config.memtable.flush_trigger_bytes = 8 << 20;
        let engine = open(&fs, config).await.unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for n in 0..2000 {
            let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 << 10).collect();
            engine.put(key(n), value).await.unwrap();
        }
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let mut scans = Vec::new();
        for _ in 0..300 {
            let mut scan = engine.scan(..);
            // Far enough to read as much ahead as a scan ever does.
            assert_eq!(scan.next_chunk(1500).await.unwrap().len(), 1500);
            scans.push(scan);
            let buffers = engine.memory().buffers;
            assert!(buffers <= (8 << 20) + 300 * (8 << 10), "{buffers}");
        }
        assert!(engine.memory().buffers >= 6 << 20, "there is read-ahead up to the bound");
        for scan in &mut scans {
            assert_eq!(scan.next_chunk(usize::MAX).await.unwrap().len(), 500);
        }
        drop(scans);
        assert_eq!(engine.memory().buffers, 0);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn keys_and_values_at_their_limits_come_back() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut config = world::config();
        config.resources.block_cache_mib = 64;
        let pairs: Vec<(Bytes, Bytes)> = vec![
            (Bytes::new(), Bytes::from_static(b"empty key")),
            (Bytes::from_static(b"empty value"), Bytes::new()),
            (Bytes::from_static(b"large"), Bytes::from(vec![7; 64 << 20])),
            (Bytes::from(vec![b'm'; 64 << 10]), Bytes::from_static(b"longest key")),
            (Bytes::from_static(b"\xff"), Bytes::from_static(b"ff")),
            (Bytes::from(vec![0xff; 64 << 10]), Bytes::from_static(b"last key of all")),
        ];
        let engine = open(&fs, config.clone()).await.unwrap();
        for (key, value) in &pairs {
            engine.put(key.clone(), value.clone()).await.unwrap();
        }
        for (key, what) in [(vec![1; (64 << 10) + 1], "key"), (vec![1], "value")] {
            let value = if what == "value" { vec![0; (256 << 20) + 1] } else { Vec::new() };
            let refused = engine.put(key, value).await;
            assert!(matches!(&refused, Err(Error::TooLarge { what: found, .. }) if *found == what));
        }
        for step in 0..4 {
            match step {
                0 => {}
                1 => engine.flush().await.unwrap(),
                _ => engine.compact_range(.., CompactionMode::Full).await.unwrap(),
            }
            let all = engine.scan(..).next_chunk(usize::MAX).await.unwrap();
            assert!(all == pairs, "step {step}");
            let mut backward = engine.scan(..).rev().next_chunk(usize::MAX).await.unwrap();
            backward.reverse();
            assert!(backward == pairs, "step {step}, backward");
            for (key, value) in &pairs {
                assert!(engine.get(key).await.unwrap().as_ref() == Some(value), "step {step}");
            }
        }
        engine.shutdown().await.unwrap();
        let engine = open(&fs, config).await.unwrap();
        assert!(engine.scan(..).next_chunk(usize::MAX).await.unwrap() == pairs);
        engine.shutdown().await.unwrap();
    });
}

/// Every task writes its key, reads it back, and scans the keys around it, all at the same time.
async fn ten_thousand_tasks(engine: LsmEngine) {
    const TASKS: usize = 10_000;
    let tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move {
                engine.put(key(n), n.to_string()).await.unwrap();
                assert_eq!(engine.get(key(n).as_bytes()).await.unwrap().unwrap(), n.to_string());
                let around = key(n.saturating_sub(3))..key(n + 4);
                let found = engine.scan(around).next_chunk(usize::MAX).await.unwrap();
                for (name, value) in &found {
                    let number: usize = std::str::from_utf8(value).unwrap().parse().unwrap();
                    assert_eq!(*name, key(number));
                }
                assert!(found.iter().any(|(name, _)| *name == key(n)), "its own write");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let pair = |n: usize| (Bytes::from(key(n)), Bytes::from(n.to_string()));
    let expected: Vec<_> = (0..TASKS).map(pair).collect();
    for _ in 0..2 {
        let all = engine.scan(..).next_chunk(usize::MAX).await.unwrap();
        assert!(all == expected, "{} keys", all.len());
        engine.flush().await.unwrap();
    }
    assert!(engine.stats().flushes > 0, "{}", engine.stats());
    engine.shutdown().await.unwrap();
    assert_eq!(engine.memory().queued_writes, 0);
}

/// Small memtables, so that flushes and compactions run beside the tasks.
fn small_memtables() -> ATLLConfig {
    let mut config = world::config();
    config.memtable.flush_trigger_bytes = 32 << 10;
    config.resources.memtables_mib = 1;
    config
}

#[test]
fn ten_thousand_tasks_on_one_thread_get_exact_answers() {
    in_paused_time(async {
        let engine = open(&SimFs::new(1), small_memtables()).await.unwrap();
        ten_thousand_tasks(engine).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_tasks_on_many_threads_get_exact_answers() {
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().to_owned(), ..small_memtables() };
    ten_thousand_tasks(LsmEngine::open(config).await.unwrap()).await;
}

/// A number that is zero, small, around a power of two, or as large as there are.
fn wild() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => 0_u64..4,
        4 => 1_u64..100,
        1 => (0_u32..64).prop_map(|bits| (1_u64 << bits).wrapping_sub(1)),
        1 => (0_u32..64).prop_map(|bits| 1_u64 << bits),
        1 => Just(u64::MAX),
    ]
}

fn wild_share() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => 0.0..1.0,
        1 => Just(0.0),
        1 => Just(1.0),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(1e-300), Just(7.0)],
    ]
}

/// A sane configuration in which some fields are anything.
fn wild_config() -> impl Strategy<Value = ATLLConfig> {
    let fields = proptest::collection::vec((0_usize..24, wild(), wild_share()), 0..6);
    fields.prop_map(|fields| {
        let mut config = world::config();
        for (field, n, share) in fields {
            let (size, small) = (usize::try_from(n).unwrap(), u8::try_from(n % 256).unwrap());
            match field {
                0 => config.fanout = size,
                1 => config.max_levels = size,
                2 => config.l1_slot_count = size,
                3 => config.memtable.flush_trigger_bytes = size,
                4 => config.memtable.wal_age_trigger_sec = n,
                5 => config.l0.max_files = size,
                6 => config.filters.bloom_bits_per_key = size,
                7 => config.durability = Durability::Batch(Duration::from_nanos(n)),
                8 => config.durability = Durability::Batch(Duration::from_secs(n)),
                9 => config.default_k.l1 = small,
                10 => config.default_k.l2 = small,
                11 => config.default_k.l3_plus = small,
                12 => config.hot_k = small,
                13 => config.slot_byte_budget_fraction = share,
                14 => config.heat_thresholds.hot = share,
                15 => config.heat_thresholds.cold = share,
                16 => config.heat_thresholds.half_life_ops = n,
                17 => config.tombstone.density_threshold = share,
                18 => config.io.max_background_compactions = size,
                19 => config.io.rate_limit_mb_s = Some(n),
                20 => config.block_size = size,
                21 => config.restart_interval = size,
                22 => config.resources.open_files = size,
                _ => config.wal.gc_interval_sec = n,
            }
        }
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_configuration_is_refused_by_name_or_works(config in wild_config()) {
        in_paused_time(async {
            let fs = SimFs::new(1);
            let engine = match open(&fs, config.clone()).await {
                Err(Error::Config { field, problem }) => {
                    assert!(!field.is_empty() && !problem.is_empty());
                    assert!(config.validate().is_err());
                    return;
                }
                opened => opened.unwrap(),
            };
            for n in 0..50 {
                engine.put(key(n), value(n * 10)).await.unwrap();
            }
            engine.flush().await.unwrap();
            engine.compact_range(.., CompactionMode::Full).await.unwrap();
            for n in 0..50 {
                assert_eq!(engine.get(key(n).as_bytes()).await.unwrap().unwrap(), value(n * 10));
            }
            engine.shutdown().await.unwrap();
        });
    }
}
