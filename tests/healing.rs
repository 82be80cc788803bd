//! Damage on the disk: it is found, shown and fenced in; everything else goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that hangs must stop")]
#![expect(dead_code, reason = "other tests of this world need more of it")]

mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble, VirtualClock, sim_env};
use nori_lsm::env::{Env, Fs};
use nori_lsm::observe::{Counter, Gauge, Histogram, Labels, Meter, NoopMeter, VizEvent};
use nori_lsm::{
    ATLLConfig, CompactionMode, Error, HealthState, IoConfig, LsmEngine, ResourceConfig,
    VerifyReport,
};
use world::{config, in_paused_time, open};

const KEYS: usize = 200;

fn key(n: usize) -> Bytes {
    Bytes::from(format!("key{n:03}"))
}

fn value(n: usize) -> Bytes {
    Bytes::from(format!("{n}: {:016x}{:016x}", n * 7919, n * 104_729))
}

/// Files of the tables, oldest first.
fn tables(fs: &SimFs) -> Vec<PathBuf> {
    let files = fs.list(Path::new("/db/sst")).unwrap();
    files.into_iter().map(|(name, _)| Path::new("/db/sst").join(name)).collect()
}

/// Flips a bit of a file.
fn flip(fs: &SimFs, path: &Path, at: usize) {
    let mut bytes = fs.read_all(path).unwrap();
    bytes[at] ^= 4;
    fs.overwrite(path, bytes).unwrap();
}

/// A database of one sorted run: key after key, each with its value.
async fn filled(fs: &SimFs, config: ATLLConfig) -> LsmEngine {
    let engine = open(fs, config).await.unwrap();
    for n in 0..KEYS {
        engine.put(key(n), value(n)).await.unwrap();
    }
    engine.compact_range(.., CompactionMode::Full).await.unwrap();
    engine.wait_idle().await.unwrap();
    engine
}

fn is_corrupt<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

/// Keys that cannot be read; all others have the value that `expected` says.
async fn unreadable(engine: &LsmEngine, expected: impl Fn(usize) -> Bytes) -> usize {
    let mut count = 0;
    for n in 0..KEYS {
        match engine.get(&key(n)).await {
            Ok(found) => assert_eq!(found, Some(expected(n)), "key {n}"),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "key {n}: {error}");
                count += 1;
            }
        }
    }
    count
}

#[test]
fn damage_is_shown_and_fenced_in_while_all_else_goes_on() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = filled(&fs, config()).await;
        let mut changes = engine.health_changes();
        changes.mark_unchanged();
        let path = tables(&fs)[0].clone();
        flip(&fs, &path, 3);

        let lost = unreadable(&engine, value).await;
        assert!((1..20).contains(&lost), "one block's worth: {lost}");
        assert!(changes.has_changed().unwrap());
        let health = engine.health();
        assert_eq!(health.damaged.len(), 1);
        assert_eq!((&health.damaged[0].path, health.damaged[0].offset), (&path, 0));
        match &health.state {
            HealthState::Degraded { cause, .. } => {
                assert!(cause.contains(path.to_str().unwrap()), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        let mut scan = engine.scan(..);
        let walked = loop {
            match scan.next().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert!(is_corrupt(&walked), "a scan does not step over it: {walked:?}");

        // Everything is written over, many times: no stall, no retry for ever, no damage hidden.
        let before = engine.stats().compactions;
        for round in 1..30 {
            for n in (lost..KEYS).step_by(2) {
                engine.put(key(n), value(n + round)).await.unwrap();
            }
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
        }
        assert!(engine.stats().compactions > before, "compactions go on");
        assert_eq!(engine.stats().levels[0].runs, 0, "L0 drains");
        let newest = |n: usize| {
            if n >= lost && (n - lost).is_multiple_of(2) { value(n + 29) } else { value(n) }
        };
        assert_eq!(unreadable(&engine, newest).await, lost);
        assert_eq!(engine.health().damaged.len(), 1, "told once");
        assert!(is_corrupt(&engine.compact_range(.., CompactionMode::Full).await));
        assert_eq!(unreadable(&engine, newest).await, lost);

        engine.shutdown().await.unwrap();
        let engine = open(&fs, config()).await.unwrap();
        assert_eq!(engine.health().state, HealthState::Healthy, "nobody has looked yet");
        assert_eq!(unreadable(&engine, newest).await, lost);
        assert_eq!(engine.health().damaged.len(), 1);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_compaction_that_meets_damage_leaves_it_alone_from_then_on() {
    in_paused_time(async {
        let fs = SimFs::new(2);
        let engine = filled(&fs, config()).await;
        let path = tables(&fs)[0].clone();
        flip(&fs, &path, 3);
        for n in 0..KEYS {
            engine.put(key(n), value(n + 1)).await.unwrap();
        }
        let compacted = engine.compact_range(.., CompactionMode::Full).await;
        assert!(is_corrupt(&compacted), "{compacted:?}");
        engine.wait_idle().await.unwrap();
        assert_eq!(engine.health().damaged[0].path, path);
        assert_eq!(unreadable(&engine, |n| value(n + 1)).await, 0, "all of it was written anew");
        engine.shutdown().await.unwrap();
    });
}

/// Damage is no failure that is worth another attempt, and does not keep a compaction on demand from what is sound.
#[test]
fn a_compaction_on_demand_goes_on_behind_any_number_of_damaged_tables() {
    in_paused_time(async {
        let fs = SimFs::new(7);
        let mut config = ATLLConfig { l1_slot_count: 64, ..config() };
        config.io.max_background_compactions = 1;
        let engine = open(&fs, config).await.unwrap();
        let write = async |round: usize| {
            for n in 0..2000 {
                engine.put(format!("key{n:06}"), format!("{round:040}")).await.unwrap();
                tokio::task::yield_now().await; // the components run on this thread too
            }
        };
        for round in 0..3 {
            write(round).await;
        }
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        let there = tables(&fs); // one for each slot
        let (damaged, sound) = there.split_at(there.len() / 2);
        assert!(damaged.len() > 4, "{there:?}");
        for path in damaged {
            flip(&fs, path, 3);
        }
        write(3).await;
        let compacted = engine.compact_range(.., CompactionMode::Full).await;
        assert!(is_corrupt(&compacted), "{compacted:?}");
        assert!(engine.health().damaged.len() > 4, "{:?}", engine.health());
        engine.wait_idle().await.unwrap();
        let left = tables(&fs);
        assert!(sound.iter().all(|path| !left.contains(path)), "{sound:?} of {left:?}");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_table_that_reads_well_again_leaves_the_quarantine() {
    in_paused_time(async {
        let fs = SimFs::new(3);
        let engine = filled(&fs, config()).await;
        let path = tables(&fs)[0].clone();
        flip(&fs, &path, 3);
        assert!(is_corrupt(&engine.get(&key(0)).await));
        assert!(!engine.verify().await.unwrap().is_sound());
        assert_eq!(engine.health().damaged.len(), 1);
        flip(&fs, &path, 3);
        assert!(engine.verify().await.unwrap().is_sound());
        let health = engine.health();
        assert_eq!((health.state, health.damaged), (HealthState::Healthy, Vec::new()));
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        assert_eq!(unreadable(&engine, value).await, 0);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_table_that_left_the_version_leaves_the_quarantine() {
    in_paused_time(async {
        let fs = SimFs::new(4);
        let engine = open(&fs, config()).await.unwrap();
        engine.put(key(0), value(0)).await.unwrap();
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let path = tables(&fs)[0].clone();
        let mut old = engine.scan(..); // pins the table
        engine.put(key(0), value(1)).await.unwrap();
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        assert!(tables(&fs).contains(&path) && tables(&fs).len() > 1, "{:?}", tables(&fs));
        flip(&fs, &path, 3);
        assert!(is_corrupt(&old.next().await));
        assert_eq!(engine.health().damaged, Vec::new(), "no part of the database any more");
        engine.shutdown().await.unwrap();
    });
}

/// Counts what it is told about damage.
#[derive(Default)]
struct Seen {
    tables: Arc<AtomicU64>,
    scrub_bytes: Arc<AtomicU64>,
    scrub_damages: Arc<AtomicU64>,
    events: AtomicU64,
}

struct Count(Arc<AtomicU64>);

impl Counter for Count {
    fn inc(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Meter for Seen {
    fn counter(&self, name: &'static str, labels: Labels) -> Box<dyn Counter> {
        match name {
            "sstable_damaged_total" => Box::new(Count(Arc::clone(&self.tables))),
            "scrub_bytes_total" => Box::new(Count(Arc::clone(&self.scrub_bytes))),
            "scrub_damages_total" => Box::new(Count(Arc::clone(&self.scrub_damages))),
            _ => NoopMeter.counter(name, labels),
        }
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
        if matches!(event, VizEvent::Damage { .. }) {
            self.events.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn damage_is_counted_and_told_once_for_each_table() {
    in_paused_time(async {
        let fs = SimFs::new(5);
        filled(&fs, config()).await.shutdown().await.unwrap();
        let seen = Arc::new(Seen::default());
        let meter = Arc::clone(&seen) as Arc<dyn Meter>;
        let env = Env { meter, ..sim_env(&fs, VirtualClock::default()) };
        let engine = LsmEngine::open_in(config(), env).await.unwrap();
        flip(&fs, &tables(&fs)[0], 3);
        for _ in 0..3 {
            assert!(is_corrupt(&engine.get(&key(0)).await));
        }
        let counts = (seen.tables.load(Ordering::Relaxed), seen.events.load(Ordering::Relaxed));
        assert_eq!(counts, (1, 1));
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn the_scrubber_finds_within_an_interval_what_nobody_reads() {
    let found_after = |interval: Option<Duration>| {
        in_paused_time(async {
            let fs = SimFs::new(8);
            let io = IoConfig { scrub_interval: interval, ..Default::default() };
            filled(&fs, config()).await.shutdown().await.unwrap();
            let seen = Arc::new(Seen::default());
            let meter = Arc::clone(&seen) as Arc<dyn Meter>;
            let env = Env { meter, ..sim_env(&fs, VirtualClock::default()) };
            let engine = LsmEngine::open_in(ATLLConfig { io, ..config() }, env).await.unwrap();
            let mut changes = engine.health_changes();
            tokio::time::sleep(Duration::from_secs(90)).await;
            assert_eq!(engine.health().state, HealthState::Healthy);
            for table in tables(&fs) {
                flip(&fs, &table, 3);
            }
            let all = tables(&fs).len();
            let begun = tokio::time::Instant::now();
            let found = changes.wait_for(|health| health.damaged.len() == all);
            let found = tokio::time::timeout(Duration::from_secs(600), found).await.is_ok();
            let took = begun.elapsed();
            tokio::time::sleep(Duration::from_secs(60)).await;
            let scrubbed = seen.scrub_bytes.load(Ordering::Relaxed);
            let met = seen.scrub_damages.load(Ordering::Relaxed);
            assert_eq!((scrubbed >= engine.stats().table_bytes, met > 0), (found, found));
            engine.shutdown().await.unwrap();
            found.then_some(took)
        })
    };
    let interval = Duration::from_secs(60);
    let took = found_after(Some(interval)).expect("found");
    assert!(took > Duration::ZERO && took <= interval, "{took:?}");
    assert_eq!(found_after(None), None, "without an interval nobody looks");
}

#[test]
fn the_scrubber_keeps_still_while_writes_are_behind_and_comes_round_once_they_are_not() {
    in_paused_time(async {
        let fs = SimFs::new(10);
        filled(&fs, config()).await.shutdown().await.unwrap();
        let interval = Duration::from_secs(60);
        let io = IoConfig { scrub_interval: Some(interval), ..Default::default() };
        let resources = ResourceConfig { memtables_mib: 1, ..config().resources };
        let seen = Arc::new(Seen::default());
        let meter = Arc::clone(&seen) as Arc<dyn Meter>;
        let env = Env { meter, ..sim_env(&fs, VirtualClock::default()) };
        let config = ATLLConfig { io, resources, ..config() };
        let engine = LsmEngine::open_in(config, env).await.unwrap();
        let scrubbed = || seen.scrub_bytes.load(Ordering::Relaxed);
        let pressure = || engine.pressure().borrow().value;
        tokio::time::sleep(interval).await;
        assert!(scrubbed() >= engine.stats().table_bytes && pressure() < 0.5);

        // No table can be written: memtables pile up.
        fs.inject(Fault::new(Trouble::Io).on(Operation::Create).at("/sst/"));
        let mut n = 0;
        while pressure() < 0.5 {
            engine.put(key(n % KEYS), vec![7; 4000]).await.unwrap();
            n += 1;
            assert!(n < 1000, "no pressure: {}", pressure());
        }
        for table in tables(&fs) {
            flip(&fs, &table, 3);
        }
        let before = scrubbed();
        tokio::time::sleep(10 * interval).await;
        assert!(pressure() >= 0.5, "it had to last");
        assert_eq!(scrubbed(), before, "the disk is left to those who wait for it");
        assert!(engine.health().damaged.is_empty());

        fs.heal();
        engine.flush().await.unwrap();
        while pressure() >= 0.5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut changes = engine.health_changes();
        let found = changes.wait_for(|health| !health.damaged.is_empty());
        tokio::time::timeout(interval, found).await.expect("it goes on").unwrap();
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_scrubber_that_dies_again_and_again_comes_round_all_the_same() {
    in_paused_time(async {
        let fs = SimFs::new(9);
        let io = IoConfig { scrub_interval: Some(Duration::from_secs(60)), ..Default::default() };
        let engine = open(&fs, ATLLConfig { io, ..config() }).await.unwrap();
        for n in 0..2000 {
            engine.put(format!("{n:05}"), value(n)).await.unwrap();
            if n.is_multiple_of(20) {
                tokio::task::yield_now().await;
            }
        }
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        let last = tables(&fs).pop().unwrap();
        flip(&fs, &last, 3);
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_secs(20)).await;
            engine.kill(nori_lsm::Component::Scrubber);
        }
        assert_eq!(engine.health().damaged.len(), 1);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_check_reads_everything_and_leaves_the_cache_alone() {
    in_paused_time(async {
        let fs = SimFs::new(6);
        let resources = ResourceConfig { block_cache_mib: 1, ..Default::default() };
        let engine = filled(&fs, ATLLConfig { resources, ..config() }).await;
        let cached = engine.stats().cache_bytes;
        let report = engine.verify().await.unwrap();
        let stats = engine.stats();
        assert!(report.is_sound(), "{report}");
        let tables = usize::try_from(report.tables).unwrap();
        assert_eq!((tables, report.bytes), (stats.tables, stats.table_bytes));
        assert!(report.entries >= u64::try_from(KEYS).unwrap(), "{report}");
        assert!(report.blocks > 10, "{report}");
        assert_eq!(stats.cache_bytes, cached);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_check_finds_every_flipped_byte_and_goes_on_behind_it() {
    in_paused_time(async {
        let fs = SimFs::new(7);
        let engine = filled(&fs, config()).await;
        let path = tables(&fs)[0].clone();
        let len = fs.read_all(&path).unwrap().len();
        let whole = engine.verify().await.unwrap();
        for at in 0..len {
            flip(&fs, &path, at);
            let report = engine.verify().await.unwrap();
            assert!(!report.is_sound(), "byte {at}");
            assert_eq!(engine.health().damaged.len(), 1);
            flip(&fs, &path, at);
        }
        flip(&fs, &path, 3);
        flip(&fs, &path, 1000);
        let report: VerifyReport = engine.verify().await.unwrap();
        assert_eq!(report.damaged.len(), 2, "{report}");
        assert_eq!(report.blocks, whole.blocks - 2);
        assert_eq!(report.bytes, whole.bytes);
        fs.destroy(&path).unwrap();
        let report = engine.verify().await.unwrap();
        assert_eq!(report.damaged[0].expected, "a table that the manifest names");
        engine.shutdown().await.unwrap();
    });
}
