//! What simulated histories found, each as short as it gets: one law a test, broken once.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that waits in vain must stop")]

#[path = "world/mod.rs"]
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nori_lsm::env::sim::{Fault, Latency, Operation, SimFs, Trouble, VirtualClock, sim_env};
use nori_lsm::env::{Blocking, Env, Fs};
use nori_lsm::observe::{Counter, Gauge, Histogram, Labels, Meter, NoopMeter, VizEvent};
use nori_lsm::{
    ATLLConfig, Action, Component, Durability, Error, HealthState, Level, LsmEngine,
    MemtableConfig, Result, WalConfig, WriteOptions,
};
use tokio::task::JoinHandle;
use world::{History, config, in_paused_time, is_corrupt, open, read_all, use_normally};

/// Counts plans.
#[derive(Default)]
struct Plans(AtomicU64);

impl Meter for Plans {
    fn counter(&self, name: &'static str, labels: Labels) -> Box<dyn Counter> {
        NoopMeter.counter(name, labels)
    }

    fn gauge(&self, name: &'static str, labels: Labels) -> Box<dyn Gauge> {
        NoopMeter.gauge(name, labels)
    }

    fn histo(
        &self,
        name: &'static str,
        buckets: &'static [f64],
        labels: Labels,
    ) -> Box<dyn Histogram> {
        NoopMeter.histo(name, buckets, labels)
    }

    fn emit(&self, event: VizEvent) {
        if matches!(event, VizEvent::Bandit { .. }) {
            let plans = self.0.fetch_add(1, Ordering::Relaxed);
            assert!(plans < 100_000, "a scheduler that spins dies here");
        }
    }
}

#[test]
fn work_for_a_component_that_is_down_waits_until_it_is_up() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let plans = Arc::new(Plans::default());
        let env = Env { meter: Arc::clone(&plans) as _, ..sim_env(&fs, VirtualClock::default()) };
        let engine = LsmEngine::open_in(config(), env).await.unwrap();
        let mut history = History::default();
        for round in 0..20 {
            engine.kill(Component::Compactor(Level(round % 2)));
            history.write(&engine, History::mixed(round.into()), Durability::Os).await.unwrap();
            engine.flush().await.unwrap();
        }
        engine.wait_idle().await.unwrap();
        assert_eq!(read_all(&engine).await.unwrap(), history.now());
        let plans = plans.0.load(Ordering::Relaxed);
        assert!((1..1000).contains(&plans), "{plans} plans for 20 flushes");
    });
}

/// A disk that takes up to a tenth of a second.
fn slow(fs: &SimFs, seed: u64) -> Env {
    let blocking = Blocking::Delayed(Latency::new(seed, Duration::from_millis(100)));
    Env { blocking, ..sim_env(fs, VirtualClock::default()) }
}

/// An engine in the middle of a flush on a slow disk, whose manifest keeper was killed at one moment of it.
async fn keeper_killed(fs: &SimFs, moment: u64) -> (LsmEngine, History, JoinHandle<Result<()>>) {
    let engine = LsmEngine::open_in(config(), slow(fs, moment)).await.unwrap();
    let mut history = History::default();
    for i in 0..30 {
        history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
    }
    let flushing = tokio::spawn({
        let engine = engine.clone();
        async move { engine.flush().await }
    });
    tokio::time::sleep(Duration::from_millis(moment * 5)).await;
    engine.kill(Component::ManifestKeeper);
    (engine, history, flushing)
}

#[test]
fn an_edit_whose_keeper_died_before_it_was_published_is_made_once_or_not_at_all() {
    for millis in 0..60 {
        in_paused_time(async move {
            let fs = SimFs::new(millis);
            let (engine, history, flushing) = keeper_killed(&fs, millis).await;
            // It may have been told of the death.
            drop(flushing.await.unwrap());
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
            let tables = engine.stats().tables;
            let fs = fs.kill();
            let engine = open(&fs, config()).await.expect("the manifest makes sense");
            assert_eq!(engine.stats().tables, tables, "killed after {millis} steps");
            assert_eq!(read_all(&engine).await.unwrap(), history.now());
        });
    }
}

#[test]
fn whoever_opens_a_directory_is_not_disturbed_by_jobs_of_the_engine_before() {
    for millis in 0..60 {
        in_paused_time(async move {
            let fs = SimFs::new(millis);
            let (engine, mut history, flushing) = keeper_killed(&fs, millis).await;
            tokio::task::yield_now().await;
            flushing.abort();
            drop(flushing.await);
            drop(engine);
            let engine = open(&fs, config()).await.unwrap();
            history.write(&engine, History::mixed(4), Durability::Os).await.unwrap();
            engine.flush().await.unwrap();
            // A job that is left over would begin another manifest now.
            fs.inject(Fault::new(Trouble::Io).on(Operation::Append).at("MANIFEST").once());
            tokio::time::sleep(Duration::from_secs(1)).await;
            fs.heal();
            let engine = open(&fs.kill(), config()).await.expect("nothing else was written");
            assert_eq!(read_all(&engine).await.unwrap(), history.now(), "after {millis} steps");
        });
    }
}

#[test]
fn tables_of_edits_that_failed_do_not_stay() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, config()).await.unwrap();
        let mut history = History::default();
        history.write(&engine, History::mixed(1), Durability::Os).await.unwrap();
        for _ in 0..5 {
            fs.inject(Fault::new(Trouble::NoSpace).on(Operation::Append).at("MANIFEST"));
            engine.flush().await.unwrap_err();
            fs.heal();
        }
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let files = fs.list(Path::new("/db/sst")).unwrap();
        assert_eq!(files.len(), engine.stats().tables, "{files:?}");
        assert_eq!(read_all(&engine).await.unwrap(), history.now());
    });
}

#[test]
fn data_below_the_levels_that_are_asked_for_is_still_compacted() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let mut history = History::default();
        let engine = open(&fs, ATLLConfig { max_levels: 5, ..config() }).await.unwrap();
        for i in 0..400 {
            let (key, value) = (format!("many{:04}", i * 37 % 400), format!("{i}-").repeat(20));
            history
                .write(&engine, vec![(key.into(), Some(value.into()))], Durability::Os)
                .await
                .unwrap();
        }
        engine.wait_idle().await.unwrap();
        let deepest = engine.stats().levels.iter().rposition(|level| level.bytes > 0).unwrap();
        assert!(deepest > 2, "{:?}", engine.stats().levels);
        engine.shutdown().await.unwrap();
        let engine = open(&fs, ATLLConfig { max_levels: 2, ..config() }).await.unwrap();
        use_normally(&engine, &mut history).await;
    });
}

/// Segments with room reserved: what is lost of them reads as zeros.
fn preallocating() -> ATLLConfig {
    let wal = WalConfig { segment_preallocate: true, ..Default::default() };
    let memtable = MemtableConfig { flush_trigger_bytes: 4 << 10, ..Default::default() };
    ATLLConfig { wal, memtable, ..config() }
}

#[test]
fn a_segment_that_never_got_to_the_disk_breaks_no_later_one() {
    for seed in 0..300 {
        in_paused_time(async move {
            let fs = SimFs::new(seed);
            let engine = open(&fs, preallocating()).await.unwrap();
            let mut history = History::default();
            for i in 0..10 {
                history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            }
            // The next segment is begun, and takes not a single write.
            engine.flush().await.unwrap();
            fs.inject(Fault::new(Trouble::Io).on(Operation::Append).at("wal").once());
            history.write(&engine, History::mixed(1), Durability::Os).await.unwrap_err();
            for i in 0..10 {
                history.write(&engine, History::mixed(i), Durability::Sync).await.unwrap();
            }
            let fs = fs.crash(seed);
            let opened = open(&fs, preallocating()).await;
            assert!(!is_corrupt(&opened), "seed {seed}: {opened:?}");
            let engine = opened.unwrap();
            let found = read_all(&engine).await.unwrap();
            history.recovered(&found).unwrap();
        });
    }
}

#[test]
fn a_repair_of_the_log_that_came_to_nothing_takes_nothing_away() {
    for room in 0..80 {
        in_paused_time(async move {
            let fs = SimFs::new(room);
            let engine = open(&fs, config()).await.unwrap();
            let mut history = History::default();
            for i in 0..6 {
                history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            }
            fs.limit_space(room * 8);
            fs.inject(Fault::new(Trouble::Io).on(Operation::Sync).at("wal").once());
            for i in 0..4 {
                drop(history.write(&engine, History::mixed(i), Durability::Sync).await);
            }
            history.all_durable(); // the process dies, not the machine
            let fs = fs.kill();
            let engine = open(&fs, config()).await.unwrap();
            let found = read_all(&engine).await.unwrap();
            history.recovered(&found).unwrap();
        });
    }
}

#[test]
fn what_a_process_shows_after_a_failed_sync_of_the_one_before_survives_a_power_cut() {
    for writes in 1..60 {
        in_paused_time(async move {
            let fs = SimFs::new(1);
            let memtable = MemtableConfig { flush_trigger_bytes: 2 << 10, ..Default::default() };
            let config = ATLLConfig { memtable, ..config() };
            let engine = open(&fs, config.clone()).await.unwrap();
            let mut history = History::default();
            // Nothing is flushed: what is sealed is in the log alone.
            fs.inject(Fault::new(Trouble::Io).on(Operation::Create).at("sst"));
            for i in 0..writes {
                history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            }
            // The log cannot be repaired either before the process dies.
            fs.inject(Fault::new(Trouble::Io).on(Operation::Sync).at("wal"));
            engine.sync().await.unwrap_err();
            history.all_durable(); // the process dies, not the machine
            let fs = fs.kill();
            fs.heal();
            let engine = open(&fs, config.clone()).await.unwrap();
            assert_eq!(read_all(&engine).await.unwrap(), history.now());
            for end in 0..20 {
                let fs = fs.fork().crash(end);
                let engine = open(&fs, config.clone()).await.unwrap();
                assert_eq!(read_all(&engine).await.unwrap(), history.now(), "{writes} {end}");
            }
        });
    }
}

#[test]
fn a_checkpoint_in_new_directories_survives_a_power_cut() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, config()).await.unwrap();
        let mut history = History::default();
        history.write(&engine, History::mixed(4), Durability::Os).await.unwrap();
        engine.checkpoint("/copies/of/today").await.unwrap();
        for seed in 0..50 {
            let fs = fs.fork().crash(seed);
            let there = ATLLConfig { data_dir: "/copies/of/today".into(), ..config() };
            let copy = open(&fs, there).await.unwrap();
            assert!(!copy.recovery().created, "seed {seed}: the copy is gone");
            assert_eq!(read_all(&copy).await.unwrap(), history.now());
        }
    });
}

#[test]
fn a_checkpoint_that_fails_leaves_nothing_in_the_way_of_the_next() {
    let mut failed = 0;
    for calls in 0..200 {
        let done = in_paused_time(async {
            let fs = SimFs::new(1);
            let engine = open(&fs, config()).await.unwrap();
            let mut history = History::default();
            history.write(&engine, History::mixed(4), Durability::Os).await.unwrap();
            engine.flush().await.unwrap();
            fs.inject(Fault::new(Trouble::NoSpace).at("/copy").after(calls).once());
            let first = engine.checkpoint("/copy").await;
            if let Err(error) = &first {
                assert_eq!(error.action(), Action::Retry);
                assert_eq!(fs.list(Path::new("/copy/sst")).unwrap_or_default(), []);
                engine.checkpoint("/copy").await.unwrap();
            }
            fs.heal();
            let there = ATLLConfig { data_dir: "/copy".into(), ..config() };
            let copy = open(&fs, there).await.unwrap();
            assert_eq!(read_all(&copy).await.unwrap(), history.now());
            first.is_ok()
        });
        if done {
            break;
        }
        failed += 1;
    }
    assert!((5..200).contains(&failed), "{failed} calls failed");
}

#[test]
fn a_checkpoint_touches_nothing_of_others() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, config()).await.unwrap();
        History::default().write(&engine, History::mixed(4), Durability::Os).await.unwrap();
        engine.flush().await.unwrap();
        let there = ATLLConfig { data_dir: "/other".into(), ..config() };
        let other = open(&fs, there).await.unwrap();
        for dir in ["/db", "/other"] {
            let locked = engine.checkpoint(dir).await;
            assert!(matches!(locked, Err(Error::Locked { .. })), "{dir}: {locked:?}");
        }
        let (one, two) = tokio::join!(engine.checkpoint("/twice"), engine.checkpoint("/twice"));
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        // Of another kind of database: links into it fail.
        fs.create_dir(Path::new("/stranger")).unwrap();
        fs.overwrite(Path::new("/stranger/CURRENT"), b"MANIFEST-000001").unwrap();
        fs.inject(Fault::new(Trouble::Io).on(Operation::HardLink));
        let error = engine.checkpoint("/stranger").await.unwrap_err();
        assert_eq!(error.action(), Action::Fix, "{error}");
        assert_eq!(fs.read_all(Path::new("/stranger/CURRENT")).unwrap(), b"MANIFEST-000001");
        other.shutdown().await.unwrap();
    });
}

#[test]
fn a_sync_of_an_engine_that_is_read_only_says_so() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, config()).await.unwrap();
        let mut health = engine.health_changes();
        while !matches!(health.borrow_and_update().state, HealthState::ReadOnly { .. }) {
            engine.kill(Component::WalWriter);
            // One that is just being started again is not there to be killed.
            let soon = Duration::from_secs(1);
            drop(tokio::time::timeout(soon, health.changed()).await);
        }
        let unavailable = |result| matches!(result, Err(Error::Unavailable { .. }));
        assert!(unavailable(engine.sync().await));
        let options = WriteOptions { durability: Some(Durability::Sync), ..Default::default() };
        assert!(unavailable(engine.put_with("k", "v", options).await));
        engine.resume();
        health.wait_for(|health| health.state == HealthState::Healthy).await.unwrap();
        engine.sync().await.unwrap();
    });
}
