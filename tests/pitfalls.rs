//! What engines of this kind got wrong, one law a test: each fails on an engine that has the fault.
//!
//! Faults that need a broken disk are in `crash.rs`, those of dying components in `supervision.rs`, those of a table file in
//! `sstable.rs`, those of the tree's decisions beside `policy`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot set up must stop")]

#[expect(dead_code, reason = "the other tests on the simulated disk use the rest")]
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::sim::{
    Fault, Latency, ManualClock, Operation, SimFs, Trouble, VirtualClock, sim_env,
};
use nori_lsm::env::{Blocking, Env, Fs, OsFs};
use nori_lsm::observe::{CompactionKind, Counter, Gauge, Histogram, Meter, NoopMeter, VizEvent};
use nori_lsm::{
    ATLLConfig, CompactionMode, Compression, CompressionConfig, Durability, Error, FilterConfig,
    LsmEngine, MemtableConfig, RecoveryMode, ResourceConfig, SeqNo, TombstoneConfig, WalConfig,
    WriteBatch, WriteOptions,
};
use world::{in_paused_time, open};

fn key(number: usize) -> Bytes {
    Bytes::from(format!("key{number:06}"))
}

async fn all(engine: &LsmEngine) -> Vec<(Bytes, Bytes)> {
    engine.scan(..).next_chunk(usize::MAX).await.unwrap()
}

/// A database on a simulated disk with the tiny configuration of the other tests, changed by `change`.
async fn with(fs: &SimFs, change: impl FnOnce(&mut ATLLConfig)) -> LsmEngine {
    let mut config = world::config();
    change(&mut config);
    open(fs, config).await.unwrap()
}

async fn tiny(fs: &SimFs) -> LsmEngine {
    with(fs, |_| ()).await
}

/// Fills `keys` keys, `rounds` times, each with the number of its round.
async fn fill(engine: &LsmEngine, keys: usize, rounds: usize) {
    for round in 1..=rounds {
        for number in 0..keys {
            engine.put(key(number), format!("{round:040}")).await.unwrap();
            tokio::task::yield_now().await; // the components run on this thread too
        }
    }
}

#[test]
fn a_scan_shows_the_newest_version_and_no_deleted_key() {
    in_paused_time(async {
        let engine = tiny(&SimFs::new(1)).await;
        engine.put("a", "1").await.unwrap();
        engine.put("b", "1").await.unwrap();
        engine.flush().await.unwrap();
        engine.put("a", "2").await.unwrap();
        engine.delete(b"b").await.unwrap();
        assert_eq!(all(&engine).await, [(Bytes::from("a"), Bytes::from("2"))]);
        engine.flush().await.unwrap();
        assert_eq!(all(&engine).await, [(Bytes::from("a"), Bytes::from("2"))]);
    });
}

#[test]
fn a_file_number_is_never_used_twice() {
    in_paused_time(async {
        let fs = SimFs::new(2);
        let mut seen = std::collections::BTreeSet::new();
        let mut disk = fs;
        for _ in 0..6 {
            let engine = tiny(&disk).await;
            fill(&engine, 30, 2).await;
            engine.flush().await.unwrap();
            let names = disk.list(Path::new("/db/sst")).unwrap();
            let newest = names.iter().map(|(name, _)| name.clone()).max().unwrap();
            assert!(seen.insert(newest.clone()), "{newest} was there before");
            assert_eq!(seen.iter().max(), Some(&newest), "numbers only grow");
            disk = disk.kill();
        }
    });
}

#[test]
fn merges_keep_the_order_of_runs_and_no_level_is_too_deep_to_be_read() {
    in_paused_time(async {
        for max_levels in [2, 3, 5] {
            let engine = with(&SimFs::new(3), |config| config.max_levels = max_levels).await;
            for round in 1..=12 {
                fill(&engine, 100, 1).await;
                for number in (0..100).step_by(7) {
                    engine.put(key(number), format!("special {round}")).await.unwrap();
                }
                engine.flush().await.unwrap();
                engine.wait_idle().await.unwrap();
                let special = Bytes::from(format!("special {round}"));
                assert_eq!(engine.get(&key(7)).await.unwrap(), Some(special));
                assert_eq!(all(&engine).await.len(), 100);
            }
            let deepest = engine.stats().levels.iter().rposition(|level| level.runs > 0).unwrap();
            assert!(deepest < max_levels);
        }
    });
}

#[test]
fn recovery_goes_on_over_every_segment_also_after_the_first_was_collected() {
    in_paused_time(async {
        let fs = SimFs::new(4);
        let engine = tiny(&fs).await;
        fill(&engine, 40, 3).await;
        engine.wait_idle().await.unwrap();
        assert!(engine.stats().log_segments_deleted > 2);
        let state = all(&engine).await;
        // Flushes fail from here on: several segments are all there is.
        fs.inject(Fault::new(Trouble::Io).at("sst"));
        for number in 40..100 {
            engine.put(key(number), vec![7; 40]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert!(engine.stats().sealed_memtables > 2);
        let disk = fs.kill();
        let engine = tiny(&disk).await;
        assert!(engine.recovery().segments > 2, "{}", engine.recovery());
        assert_eq!(all(&engine).await.len(), state.len() + 60);
    });
}

#[test]
fn a_sealed_memtable_is_read_while_it_waits_for_its_flush() {
    in_paused_time(async {
        let fs = SimFs::new(5);
        let engine = tiny(&fs).await;
        fs.inject(Fault::new(Trouble::Io).at("sst"));
        fill(&engine, 60, 1).await;
        assert!(engine.stats().sealed_memtables > 1);
        for number in 0..60 {
            assert!(engine.get(&key(number)).await.unwrap().is_some());
        }
        assert_eq!(all(&engine).await.len(), 60);
        fs.heal();
        engine.flush().await.unwrap();
        assert_eq!((engine.stats().sealed_memtables, all(&engine).await.len()), (0, 60));
    });
}

#[test]
fn an_edit_after_a_torn_manifest_tail_is_not_lost() {
    in_paused_time(async {
        let fs = SimFs::new(6);
        let engine = tiny(&fs).await;
        fill(&engine, 40, 1).await;
        engine.flush().await.unwrap();
        let disk = fs.kill();
        let (name, _) = disk.list(Path::new("/db/manifest")).unwrap().pop().unwrap();
        let path = Path::new("/db/manifest").join(name);
        let mut bytes = disk.read_all(&path).unwrap();
        bytes.extend_from_slice(&[9, 0, 0, 0, 1, 2]); // the front of a record
        disk.overwrite(&path, bytes).unwrap();
        let engine = tiny(&disk).await;
        assert_eq!(engine.recovery().manifest_torn_bytes, 6);
        engine.put("later", "edit").await.unwrap();
        engine.flush().await.unwrap();
        let engine = tiny(&disk.kill()).await;
        assert_eq!(engine.get(b"later").await.unwrap(), Some(Bytes::from("edit")));
        assert_eq!(all(&engine).await.len(), 41);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_of_a_key_come_back_in_the_order_that_readers_saw() {
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().into(), ..Default::default() };
    for round in 0..10 {
        let engine = LsmEngine::open(config.clone()).await.unwrap();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    let mut last = SeqNo(0);
                    for n in 0..50 {
                        let value = format!("{round} {writer} {n}");
                        last = engine.put("contended", value).await.unwrap();
                    }
                    last
                })
            })
            .collect();
        let mut newest = SeqNo(0);
        for writer in writers {
            newest = newest.max(writer.await.unwrap());
        }
        let before = engine.get(b"contended").await.unwrap();
        assert_eq!(engine.stats().last_seq, newest, "every write has a number of its own");
        drop(engine);
        let engine = LsmEngine::open(config.clone()).await.unwrap();
        assert_eq!(engine.get(b"contended").await.unwrap(), before);
        assert!(engine.put("x", "y").await.unwrap() > newest, "numbers do not go back");
        engine.shutdown().await.unwrap();
    }
}

/// A world with a clock that the test turns.
fn by_hand(fs: &SimFs) -> (ManualClock, Env) {
    let clock = ManualClock::default();
    let env = sim_env(fs, clock.clone());
    (clock, env)
}

#[tokio::test]
async fn an_expiry_survives_replay_flush_and_compaction_and_uncovers_nothing_older() {
    let fs = SimFs::new(8);
    let (clock, env) = by_hand(&fs);
    let mut config = world::config();
    config.memtable.flush_trigger_bytes = 64 << 10;
    let engine = LsmEngine::open_in(config.clone(), env.clone()).await.unwrap();
    engine.put("k", "old").await.unwrap();
    engine.flush().await.unwrap();
    let ttl = WriteOptions { ttl: Some(Duration::from_secs(10)), ..Default::default() };
    engine.put_with("k", "new", ttl).await.unwrap();
    let fs = fs.kill();
    let env = Env { fs: Arc::new(fs.clone()), ..env };
    let engine = LsmEngine::open_in(config, env).await.unwrap();
    let shown = || async { (engine.get(b"k").await.unwrap(), all(&engine).await.len()) };
    let new = Some(Bytes::from("new"));
    assert_eq!(shown().await, (new.clone(), 1), "replayed");
    engine.flush().await.unwrap();
    assert_eq!(shown().await, (new.clone(), 1), "flushed");
    engine.compact_range(.., CompactionMode::Full).await.unwrap();
    assert_eq!(shown().await, (new, 1), "compacted");
    clock.jump_wall(-3_600_000);
    assert_eq!(shown().await.1, 1, "a clock that jumps back expires nothing");
    clock.jump_wall(3_600_000 + 10_000);
    assert_eq!(shown().await, (None, 0), "expired: and what it had replaced stays gone");
    engine.compact_range(.., CompactionMode::Full).await.unwrap();
    assert_eq!(shown().await, (None, 0));
}

#[tokio::test]
async fn the_default_time_to_live_is_that_of_the_configuration() {
    let fs = SimFs::new(9);
    let (clock, env) = by_hand(&fs);
    let tombstone = TombstoneConfig { ttl_default_sec: Some(5), ..Default::default() };
    let config = ATLLConfig { tombstone, ..world::config() };
    let engine = LsmEngine::open_in(config, env).await.unwrap();
    engine.put("k", "v").await.unwrap();
    clock.jump_wall(4_900);
    assert!(engine.contains(b"k").await.unwrap());
    clock.jump_wall(200);
    assert!(!engine.contains(b"k").await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_seen_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let memtable = MemtableConfig { flush_trigger_bytes: 4 << 10, ..Default::default() };
    let config = ATLLConfig { data_dir: dir.path().into(), memtable, ..Default::default() };
    let engine = LsmEngine::open(config).await.unwrap();
    let writer = {
        let engine = engine.clone();
        tokio::spawn(async move {
            for n in 0..600 {
                let mut batch = WriteBatch::default();
                for part in 0..10 {
                    batch.put(key(part), n.to_string());
                }
                engine.write(batch, WriteOptions::default()).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let parts = all(&engine).await;
        assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].1), "{parts:?}");
        assert!(parts.is_empty() || parts.len() == 10);
        let some = engine.multi_get(&[key(0), key(9)]).await.unwrap();
        assert_eq!(some[0], some[1]);
    }
    writer.await.unwrap();
}

#[test]
fn tables_that_died_and_orphans_are_deleted() {
    in_paused_time(async {
        let fs = SimFs::new(10);
        let engine = tiny(&fs).await;
        let mut pinned = engine.scan(..);
        fill(&engine, 50, 6).await;
        pinned = {
            drop(pinned);
            engine.scan(..)
        };
        assert!(pinned.next().await.unwrap().is_some());
        fill(&engine, 50, 6).await;
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        assert_eq!(
            pinned.next_chunk(usize::MAX).await.unwrap().len(),
            49,
            "its files are still there"
        );
        drop(pinned);
        engine.wait_idle().await.unwrap();
        let tables = fs.list(Path::new("/db/sst")).unwrap().len();
        assert_eq!(tables, engine.stats().tables);
        engine.shutdown().await.unwrap();
        fs.overwrite(Path::new("/db/sst/999999.sst"), "orphan").unwrap();
        fs.overwrite(Path::new("/db/sst/999998.sst.tmp"), "orphan").unwrap();
        fs.overwrite(Path::new("/db/sst/notes.txt"), "not ours").unwrap();
        let engine = tiny(&fs).await;
        assert!(engine.recovery().orphans_removed >= 2);
        let names = fs.list(Path::new("/db/sst")).unwrap();
        assert_eq!(names.len(), engine.stats().tables + 1, "{names:?}");
    });
}

#[test]
fn compact_range_rewrites_and_collects_deleted_data() {
    in_paused_time(async {
        let engine = tiny(&SimFs::new(11)).await;
        fill(&engine, 200, 3).await;
        let snapshot = engine.snapshot();
        for number in 0..190 {
            engine.delete(&key(number)).await.unwrap();
        }
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        assert_eq!(snapshot.scan(..).next_chunk(usize::MAX).await.unwrap().len(), 200);
        let held = engine.approximate_size(..);
        drop(snapshot);
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        let left = engine.approximate_size(..);
        assert!(left * 4 < held, "{left} of {held} bytes are left");
        assert!(engine.approximate_size("key000191"..) <= left);
        let stats = engine.stats();
        assert!(stats.compactions > 0 && stats.compaction_bytes_in > 0);
        let runs: usize = stats.levels.iter().map(|level| level.runs).sum();
        let slots = stats.levels.iter().filter(|level| level.runs > 0).map(|level| level.slots);
        assert!(runs <= slots.sum(), "one run a slot: {stats}");
        assert_eq!(all(&engine).await.len(), 10);
    });
}

#[test]
fn a_rewrite_drops_what_was_overwritten_while_a_snapshot_held_it() {
    in_paused_time(async {
        let engine = tiny(&SimFs::new(13)).await;
        fill(&engine, 200, 3).await;
        let snapshot = engine.snapshot();
        fill(&engine, 200, 3).await;
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        drop(snapshot);
        let held = engine.approximate_size(..);
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        assert_eq!(engine.approximate_size(..), held, "nothing tells what could go");
        engine.compact_range(.., CompactionMode::Rewrite).await.unwrap();
        let left = engine.approximate_size(..);
        assert!(left * 3 < held * 2, "{left} of {held} bytes are left");
        let bytes_in = engine.stats().compaction_bytes_in;
        engine.compact_range("key000050".."key000051", CompactionMode::Rewrite).await.unwrap();
        let read = engine.stats().compaction_bytes_in - bytes_in;
        assert!((1..left).contains(&read), "{read} bytes were read for one key of {left} bytes");
        assert_eq!(all(&engine).await.len(), 200);
    });
}

#[test]
fn a_rewrite_drops_what_a_compaction_under_way_keeps_for_a_snapshot_that_is_gone() {
    in_paused_time(async {
        for instant in 0..40 {
            let fs = SimFs::new(14);
            let blocking = Blocking::Delayed(Latency::new(instant, Duration::from_millis(10)));
            let env = Env { blocking, ..sim_env(&fs, VirtualClock::default()) };
            let engine = LsmEngine::open_in(world::config(), env).await.unwrap();
            fill(&engine, 60, 2).await;
            let snapshot = engine.snapshot();
            fill(&engine, 60, 4).await;
            engine.wait_idle().await.unwrap();
            let other = engine.clone();
            let given_up =
                tokio::spawn(async move { other.compact_range(.., CompactionMode::Rewrite).await });
            tokio::time::sleep(Duration::from_millis(instant)).await;
            given_up.abort(); // what it began goes on
            drop(snapshot);
            engine.compact_range(.., CompactionMode::Rewrite).await.unwrap();
            let left = engine.approximate_size(..);
            engine.compact_range(.., CompactionMode::Rewrite).await.unwrap();
            assert_eq!(engine.approximate_size(..), left, "at {instant}");
            engine.shutdown().await.unwrap();
        }
    });
}

#[test]
fn guards_are_learned_from_the_data() {
    in_paused_time(async {
        let engine = with(&SimFs::new(12), |config| config.l1_slot_count = 8).await;
        fill(&engine, 600, 2).await;
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let stats = engine.stats();
        assert!(stats.levels.iter().any(|level| level.slots > 2), "{stats}");
        let one = with(&SimFs::new(12), |config| config.l1_slot_count = 1).await;
        fill(&one, 600, 2).await;
        one.flush().await.unwrap();
        one.wait_idle().await.unwrap();
        assert_eq!(one.stats().levels[1].slots, 1, "and no more than the configuration allows");
    });
}

#[test]
fn large_values_are_replayed_flushed_and_read_back() {
    in_paused_time(async {
        let fs = SimFs::new(13);
        let engine = tiny(&fs).await;
        let sizes = [0, 1, 4096, 200 << 10, 3 << 20];
        for (number, size) in sizes.into_iter().enumerate() {
            engine.put(key(number), vec![3; size]).await.unwrap();
        }
        engine.put("", vec![0xff; 70_000]).await.unwrap();
        let check = async |engine: &LsmEngine| {
            for (number, size) in sizes.into_iter().enumerate() {
                let value = engine.get(&key(number)).await.unwrap().unwrap();
                assert!(value.len() == size && value.iter().all(|byte| *byte == 3));
            }
            assert_eq!(engine.get(b"").await.unwrap().map(|value| value.len()), Some(70_000));
        };
        let fs = fs.kill();
        let engine = tiny(&fs).await;
        check(&engine).await;
        engine.flush().await.unwrap();
        check(&engine).await;
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        check(&engine).await;
    });
}

#[tokio::test]
async fn over_a_limit_nothing_is_written() {
    let engine = tiny(&SimFs::new(14)).await;
    let long = vec![1; (64 << 10) + 1];
    assert!(matches!(
        engine.put(long.clone(), "v").await,
        Err(Error::TooLarge { what: "key", .. })
    ));
    let mut batch = WriteBatch::default();
    batch.put("fine", "v").put(long, "v");
    assert!(engine.write(batch, WriteOptions::default()).await.is_err());
    assert!(all(&engine).await.is_empty());
    assert!(engine.put(vec![1; 64 << 10], "v").await.is_ok());
}

#[tokio::test]
async fn reads_and_flushes_at_the_same_time_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().into(), ..Default::default() };
    let engine = LsmEngine::open(config).await.unwrap();
    for number in 0..100 {
        engine.put(key(number), "v").await.unwrap();
    }
    let walk = async {
        let mut iter = engine.iter_range(b"", b"").await.unwrap();
        let mut seen = 0;
        while iter.next().await.unwrap().is_some() {
            tokio::task::yield_now().await;
            seen += 1;
        }
        seen
    };
    let (seen, flushed) = tokio::join!(walk, engine.flush());
    flushed.unwrap();
    assert_eq!(seen, 100);
}

#[tokio::test]
async fn an_idle_tail_of_batched_writes_is_synced_in_time() {
    let fs = SimFs::new(15);
    let (clock, env) = by_hand(&fs);
    let durability = Durability::Batch(Duration::from_millis(100));
    let config = ATLLConfig { durability, ..world::config() };
    let engine = LsmEngine::open_in(config, env).await.unwrap();
    settle().await; // the WAL writer syncs once when it starts
    let seq = engine.put("k", "v").await.unwrap();
    assert!(engine.durable_seq() < seq);
    settle().await;
    clock.advance(Duration::from_millis(99));
    settle().await;
    assert!(engine.durable_seq() < seq);
    clock.advance(Duration::from_millis(2));
    settle().await;
    assert_eq!(engine.durable_seq(), seq);
}

/// Lets every other task of a current_thread runtime do what it can.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_memtable_is_sealed_when_it_is_old_though_nothing_is_written() {
    let fs = SimFs::new(16);
    let (clock, env) = by_hand(&fs);
    let mut config = world::config();
    config.memtable = MemtableConfig { flush_trigger_bytes: 1 << 20, wal_age_trigger_sec: 8 };
    let engine = LsmEngine::open_in(config, env).await.unwrap();
    engine.put("k", "v").await.unwrap();
    for second in 0..10 {
        let flushed = engine.stats().flushes;
        assert!(flushed == 0 || second >= 6, "not before its time: {second}");
        settle().await;
        clock.advance(Duration::from_secs(1));
        settle().await;
    }
    assert_eq!(engine.stats().flushes, 1);
}

#[tokio::test]
async fn a_dropped_engine_blocks_nobody_and_can_be_opened_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().into(), ..Default::default() };
    for round in 0..5 {
        let engine = LsmEngine::open(config.clone()).await.unwrap();
        assert_eq!(engine.recovery().last_seq, SeqNo(round));
        engine.put("k", "v").await.unwrap();
    }
}

#[tokio::test]
async fn a_second_engine_on_the_directory_is_told_that_it_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let config = ATLLConfig { data_dir: dir.path().into(), ..Default::default() };
    let engine = LsmEngine::open(config.clone()).await.unwrap();
    assert!(matches!(LsmEngine::open(config.clone()).await, Err(Error::Locked { .. })));
    engine.shutdown().await.unwrap();
    LsmEngine::open(config).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_is_a_database_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str| ATLLConfig { data_dir: dir.path().join(name), ..Default::default() };
    let engine = LsmEngine::open(config("db")).await.unwrap();
    fill(&engine, 100, 1).await;
    engine.checkpoint(dir.path().join("copy")).await.unwrap();
    assert!(engine.checkpoint(dir.path().join("copy")).await.is_err(), "never over another one");
    fill(&engine, 200, 2).await;
    let copy = LsmEngine::open(config("copy")).await.unwrap();
    assert_eq!(all(&copy).await.len(), 100);
    copy.put("own", "way").await.unwrap();
    copy.compact_range(.., CompactionMode::Full).await.unwrap();
    assert_eq!((all(&copy).await.len(), all(&engine).await.len()), (101, 200));
}

/// Keeps every event.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<VizEvent>>>);

impl Meter for Events {
    fn counter(&self, _: &'static str, _: nori_lsm::observe::Labels) -> Box<dyn Counter> {
        Box::new(NoopMeter)
    }

    fn gauge(&self, _: &'static str, _: nori_lsm::observe::Labels) -> Box<dyn Gauge> {
        Box::new(NoopMeter)
    }

    fn histo(
        &self,
        _: &'static str,
        _: &'static [f64],
        _: nori_lsm::observe::Labels,
    ) -> Box<dyn Histogram> {
        Box::new(NoopMeter)
    }

    fn emit(&self, evt: VizEvent) {
        self.0.lock().unwrap().push(evt);
    }
}

/// An engine, and what it tells.
async fn watched(seed: u64, config: ATLLConfig) -> (LsmEngine, Events) {
    let events = Events::default();
    let clock = VirtualClock::default();
    let env = Env { meter: Arc::new(events.clone()), ..sim_env(&SimFs::new(seed), clock) };
    (LsmEngine::open_in(config, env).await.unwrap(), events)
}

#[test]
fn events_carry_the_node_that_the_configuration_names() {
    in_paused_time(async {
        let config = ATLLConfig { node_id: 42, ..world::config() };
        let (engine, events) = watched(17, config).await;
        fill(&engine, 100, 3).await;
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let seen = events.0.lock().unwrap();
        assert!(seen.iter().any(|event| matches!(event, VizEvent::Flush { node: 42, .. })));
        assert!(seen.iter().any(|event| matches!(event, VizEvent::Compaction { node: 42, .. })));
        assert!(seen.iter().any(|event| matches!(event, VizEvent::Guard { node: 42, .. })));
    });
}

/// A range of many slots is compacted a few at a time: each takes a thread and buffers.
#[test]
fn what_compact_range_asks_for_is_as_many_compactions_at_a_time_as_the_configuration_says() {
    for limit in [1, 3] {
        in_paused_time(async {
            let mut config = ATLLConfig { l1_slot_count: 64, ..world::config() };
            config.io.max_background_compactions = limit;
            let (engine, events) = watched(31, config).await;
            fill(&engine, 2000, 3).await;
            engine.wait_idle().await.unwrap();
            events.0.lock().unwrap().clear();
            engine.compact_range(.., CompactionMode::Full).await.unwrap();
            let (mut running, mut most, mut all) = (0, 0, 0);
            for event in &*events.0.lock().unwrap() {
                match event {
                    VizEvent::Compaction { kind: CompactionKind::Begun, .. } => running += 1,
                    VizEvent::Compaction { .. } => {
                        running -= 1;
                        all += 1;
                    }
                    _ => {}
                }
                most = running.max(most);
            }
            // The policy may choose as many again.
            assert!(most <= 2 * limit, "{most} at a time");
            assert!(all > 20, "only {all} compactions");
        });
    }
}

/// Who asks for a compaction hears why there was none.
#[test]
fn a_compaction_on_demand_that_fails_says_why() {
    in_paused_time(async {
        let fs = SimFs::new(32);
        let engine = tiny(&fs).await;
        fill(&engine, 200, 3).await;
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        for number in (0..200).step_by(3) {
            engine.delete(&key(number)).await.unwrap();
        }
        engine.flush().await.unwrap();
        fs.inject(Fault::new(Trouble::NoSpace).at("sst").on(Operation::Create));
        let error = engine.compact_range(.., CompactionMode::Full).await.unwrap_err();
        let full = |kind| kind == std::io::ErrorKind::StorageFull;
        assert!(matches!(&error, Error::Io { source, .. } if full(source.kind())), "{error}");
        fs.heal();
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
    });
}

/// Bytes of all tables after the same writes under a configuration.
async fn table_bytes(change: impl FnOnce(&mut ATLLConfig)) -> u64 {
    let engine = with(&SimFs::new(18), |config| {
        config.memtable.flush_trigger_bytes = 256 << 10;
        config.block_size = 4096;
        change(config);
    })
    .await;
    for number in 0..800 {
        let value = format!("{number:03}").repeat(40);
        engine.put(format!("a/long/common/prefix/{number:06}"), value).await.unwrap();
    }
    engine.flush().await.unwrap();
    engine.stats().table_bytes
}

#[test]
fn every_option_of_a_table_shows_in_its_size() {
    in_paused_time(async {
        let plain = table_bytes(|_| ()).await;
        let compression = |flush| CompressionConfig { flush, ..Default::default() };
        let raw = table_bytes(|config| config.compression = compression(Compression::None)).await;
        assert!(raw > 2 * plain, "compression.flush");
        let filters = FilterConfig { bloom_bits_per_key: 0 };
        let bare = table_bytes(|config| config.filters = filters).await;
        assert!(bare + 800 < plain, "filters.bloom_bits_per_key");
        let small = table_bytes(|config| config.block_size = 256).await;
        assert!(small > plain + plain / 4, "block_size");
        let unshared = table_bytes(|config| {
            config.compression = compression(Compression::None);
            config.restart_interval = 1;
        })
        .await;
        assert!(unshared > raw + 10_000, "restart_interval");
    });
}

#[test]
fn the_codec_of_levels_and_of_the_last_level_are_those_of_the_configuration() {
    in_paused_time(async {
        let mut sizes = BTreeMap::new();
        for last in [Compression::None, Compression::Zstd] {
            let engine = with(&SimFs::new(19), |config| config.compression.last = last).await;
            fill(&engine, 300, 2).await;
            engine.compact_range(.., CompactionMode::Full).await.unwrap();
            sizes.insert(format!("{last:?}"), engine.stats().table_bytes);
        }
        assert!(sizes["None"] > sizes["Zstd"] + sizes["Zstd"] / 4, "compression.last: {sizes:?}");
    });
}

#[tokio::test]
async fn the_cache_holds_blocks_only_if_it_has_room() {
    for (mib, cached) in [(0, false), (1, true)] {
        let dir = tempfile::tempdir().unwrap();
        let resources = ResourceConfig { block_cache_mib: mib, ..Default::default() };
        let config = ATLLConfig { data_dir: dir.path().into(), resources, ..Default::default() };
        let engine = LsmEngine::open(config).await.unwrap();
        fill(&engine, 2000, 1).await;
        engine.flush().await.unwrap();
        engine.get(&key(1000)).await.unwrap().unwrap();
        assert_eq!(engine.stats().cache_bytes > 0, cached);
    }
}

#[test]
fn memory_for_memtables_is_a_limit_and_a_deadline_ends_the_wait() {
    in_paused_time(async {
        let fs = SimFs::new(20);
        let engine = with(&fs, |config| {
            config.memtable.flush_trigger_bytes = 128 << 10;
            config.resources.memtables_mib = 1;
            config.l0.max_files = 100;
        })
        .await;
        fs.inject(Fault::new(Trouble::Io).at("sst"));
        let deadline = Some(Duration::from_millis(50));
        let options = WriteOptions { deadline, ..Default::default() };
        let mut written = 0;
        let stalled = loop {
            match engine.put_with(key(written), vec![1; 10_000], options).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 200, "nothing holds it back");
        };
        assert!(matches!(stalled, Error::Stalled { .. }), "{stalled}");
        assert!(engine.stats().memtable_bytes <= 3 << 19, "{}", engine.stats());
        assert!(engine.pressure().borrow().value >= 0.5);
        fs.heal();
        engine.put(key(written), "waits, and is written").await.unwrap();
    });
}

#[tokio::test]
async fn a_segment_is_preallocated_if_the_configuration_says_so() {
    for preallocate in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let wal = WalConfig { segment_preallocate: preallocate, ..Default::default() };
        let config = ATLLConfig { data_dir: dir.path().into(), wal, ..Default::default() };
        let engine = LsmEngine::open(config).await.unwrap();
        engine.put("k", "v").await.unwrap();
        let files = OsFs.list(&dir.path().join("wal")).unwrap();
        assert_eq!(files.iter().any(|(_, bytes)| *bytes > 60 << 20), preallocate);
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_log_is_swept_as_often_as_the_configuration_says() {
    let fs = SimFs::new(21);
    let (clock, env) = by_hand(&fs);
    let mut config = world::config();
    config.wal.gc_interval_sec = 7;
    let engine = LsmEngine::open_in(config, env).await.unwrap();
    engine.put("k", "v").await.unwrap();
    engine.flush().await.unwrap();
    settle().await;
    let stray = Path::new("/db/wal/000001.wal");
    fs.overwrite(stray, "dead").unwrap();
    clock.advance(Duration::from_secs(6));
    settle().await;
    assert!(fs.read_all(stray).is_ok());
    clock.advance(Duration::from_secs(2));
    settle().await;
    assert!(fs.read_all(stray).is_err(), "below the floor: swept");
}

#[tokio::test]
async fn damage_in_the_log_is_stepped_over_only_on_demand_and_reported() {
    let fs = SimFs::new(22);
    let mut config = ATLLConfig { durability: Durability::Sync, ..world::config() };
    config.memtable.flush_trigger_bytes = 1 << 16; // all in one segment
    let engine = open(&fs, config.clone()).await.unwrap();
    for number in 0..6 {
        engine.put(key(number), "v").await.unwrap();
    }
    let fs = fs.kill();
    let wal = fs.list(Path::new("/db/wal")).unwrap();
    let begun = wal
        .iter()
        .map(|(name, _)| Path::new("/db/wal").join(name))
        .find(|path| fs.read_all(path).unwrap().starts_with(b"NORIWAL1"));
    let path = begun.unwrap();
    let mut bytes = fs.read_all(&path).unwrap();
    bytes[130] ^= 1;
    fs.overwrite(&path, bytes).unwrap();
    assert!(matches!(open(&fs, config.clone()).await, Err(Error::Corrupt { .. })));
    let salvage = ATLLConfig { recovery: RecoveryMode::SalvagePrefix, ..config };
    let engine = open(&fs, salvage).await.unwrap();
    assert!(engine.recovery().salvaged.is_some());
    let left = all(&engine).await.len();
    assert!(left < 6 && left == usize::try_from(engine.recovery().operations).unwrap());
}

#[test]
fn a_rate_limit_holds_compactions_up() {
    in_paused_time(async {
        for (limit, held) in [(None, false), (Some(4), true)] {
            let engine = with(&SimFs::new(23), |config| config.io.rate_limit_mb_s = limit).await;
            fill(&engine, 3000, 2).await;
            engine.compact_range(.., CompactionMode::Full).await.unwrap();
            assert_eq!(engine.stats().throttled > Duration::ZERO, held);
        }
    });
}
