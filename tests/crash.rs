//! Power cuts, kills, damage and full disks: what was acknowledged is there afterwards, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that cannot go on must stop")]
#![expect(clippy::panic, reason = "a test that found something must stop")]

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nori_lsm::env::Fs;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::{
    ATLLConfig, CompactionMode, Durability, Error, HealthState, LsmEngine, Result, WalConfig,
};
use world::{History, config, in_paused_time, is_corrupt, open, read_all, use_normally};

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    PowerCut { seed: u64 },
    Kill,
}

/// Like `config`, but log segments have room reserved, so that zeros run ahead of synced commits.
fn roomy() -> ATLLConfig {
    let wal = WalConfig { segment_preallocate: true, ..Default::default() };
    ATLLConfig { wal, ..config() }
}

/// The same story every time: writes of all durabilities, flushes, compactions, syncs, reopens, with room reserved and without.
/// Stops when the machine goes off; other failures are lived with.
async fn story(fs: &SimFs, history: &mut History) {
    let mut i = 0;
    for chapter in 0..4 {
        let Some(engine) = open_at_last(fs, chapter % 2 == 0).await else { return };
        history.all_durable(); // recovery makes durable what it shows
        for _ in 0..14 {
            i += 1;
            let durability = match i % 7 {
                3 => Durability::Sync,
                5 => Durability::Batch(Duration::from_millis(10)),
                _ => Durability::Os,
            };
            if history.write(&engine, History::mixed(i), durability).await.is_err() && fs.is_off() {
                return;
            }
            if i % 9 == 0 && engine.sync().await.is_ok() {
                history.all_durable();
            }
            if i % 13 == 0 && engine.flush().await.is_ok() {
                history.all_durable();
            }
        }
        if chapter == 1 {
            drop(engine.compact_range(.., CompactionMode::Full).await);
        }
        if chapter % 2 == 0 && engine.shutdown().await.is_ok() {
            history.all_durable();
        }
        if fs.is_off() {
            return;
        }
    }
}

/// Opens, against single failures.
async fn open_at_last(fs: &SimFs, reserve: bool) -> Option<LsmEngine> {
    for _ in 0..3 {
        match open(fs, if reserve { roomy() } else { config() }).await {
            Ok(engine) => return Some(engine),
            Err(error) if fs.is_off() => {
                assert!(!matches!(error, Error::Corrupt { .. }), "{error}");
                return None;
            }
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
    }
    panic!("an open that failed once works the next time")
}

/// Opens what is left, and checks it against the history; then once more after another power cut, then uses it.
fn check(fs: SimFs, history: &mut History, context: &str) -> SimFs {
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = read_all(&engine).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        history.recovered(&found).unwrap_or_else(|complaint| panic!("{context}: {complaint}"));
    });
    let fs = fs.crash(99);
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = read_all(&engine).await.unwrap();
        assert_eq!(found, history.now(), "{context}: what recovery shows is final");
        use_normally(&engine, history).await;
        engine.shutdown().await.unwrap();
        let engine = open(&fs, config()).await.unwrap();
        assert_eq!(read_all(&engine).await.unwrap(), history.now(), "{context}: after use");
    });
    fs
}

/// Runs the story with trouble at operation `nth`, then ends it. Returns whether the trouble came.
fn run(nth: u64, fail: bool, end: End) -> bool {
    let fs = SimFs::new(nth);
    fs.cold_reads(50);
    if fail {
        fs.fail_at(nth)
    } else {
        fs.crash_at(nth)
    };
    let mut history = History::default();
    in_paused_time(story(&fs, &mut history));
    let fired = fs.mutations() >= nth;
    let after = match end {
        End::PowerCut { seed } => fs.crash(seed),
        End::Kill => {
            history.all_durable();
            fs.kill()
        }
    };
    check(after, &mut history, &format!("operation {nth}, fail {fail}, {end:?}"));
    fired
}

/// Runs the story for n = 1, 2, 3, … until the n-th operation does not come any more. Returns how many there are.
fn every_operation(fail: bool, ends: impl Fn(u64) -> Vec<End>) -> u64 {
    let mut nth = 1;
    while ends(nth).into_iter().map(|end| run(nth, fail, end)).fold(false, |a, b| a | b) {
        nth += 1;
    }
    assert!(nth > 100, "the story is long enough to be worth it: {nth}");
    nth
}

#[test]
fn power_cut_at_every_operation() {
    every_operation(false, |nth| (0..4).map(|i| End::PowerCut { seed: nth * 31 + i }).collect());
}

#[test]
fn kill_at_every_operation() {
    every_operation(false, |_| vec![End::Kill]);
}

#[test]
fn failure_of_every_operation_then_a_power_cut() {
    every_operation(true, |nth| vec![End::PowerCut { seed: nth * 17 }]);
}

#[test]
fn failure_of_every_operation_then_a_kill() {
    every_operation(true, |_| vec![End::Kill]);
}

#[test]
fn power_cut_at_every_operation_of_the_recovery_from_a_power_cut() {
    let fs = SimFs::new(5);
    let mut history = History::default();
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap();
        for i in 0..30 {
            history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            if i == 25 {
                engine.sync().await.unwrap();
                history.all_durable();
            }
        }
    });
    for nth in 1.. {
        let broken = fs.fork().crash(nth);
        broken.crash_at(nth);
        if in_paused_time(async { open(&broken, config()).await.is_ok() && !broken.is_off() }) {
            assert!(nth > 5, "{nth}");
            break;
        }
        for seed in 0..4 {
            let after = broken.fork().crash(seed);
            check(after, &mut history.clone(), &format!("recovery cut at {nth}, seed {seed}"));
        }
    }
}

/// A machine after `writes` writes, its log not flushed, and what it holds.
fn image(writes: usize, durability: Durability) -> (SimFs, History) {
    let fs = SimFs::new(3);
    let mut history = History::default();
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap();
        for i in 0..7 {
            history.write(&engine, History::mixed(i), durability).await.unwrap();
        }
        engine.flush().await.unwrap();
        // From here on tables cannot be written: the log keeps everything in several segments.
        fs.inject(Fault::new(Trouble::NoSpace).on(Operation::Create).at("/sst/"));
        for i in 7..writes {
            history.write(&engine, History::mixed(i), durability).await.unwrap();
        }
    });
    (fs.kill(), history)
}

fn files(fs: &SimFs, folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new("/db").join(folder);
    let names = fs.list(&dir).unwrap().into_iter();
    let read = names.map(|(name, _)| (dir.join(&name), fs.read_all(&dir.join(name)).unwrap()));
    read.collect()
}

/// What an open shows, or that it refused.
fn opened(fs: &SimFs) -> Result<world::State> {
    in_paused_time(async { read_all(&open(fs, config()).await?).await })
}

/// Opens with `bytes` in the place of a file. Returns how many writes are there; `None` if the damage was noticed.
fn prefix_with(fs: &SimFs, history: &History, path: &Path, bytes: &[u8]) -> Option<usize> {
    let fs = fs.fork();
    fs.overwrite(path, bytes).unwrap();
    match opened(&fs) {
        Ok(found) => {
            let count = (0..=history.acked.len()).rev().find(|n| history.state(*n) == found);
            assert!(count.is_some(), "{}: neither a prefix nor an error", path.display());
            count
        }
        Err(Error::Corrupt { path: told, .. }) => {
            assert!(told.starts_with("/db"), "{}", told.display());
            None
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn a_log_cut_at_every_byte_shows_a_prefix_or_is_corrupt() {
    for durability in [Durability::Os, Durability::Sync] {
        let (fs, history) = image(24, durability);
        let segments = files(&fs, "wal");
        assert!(segments.len() >= 3, "{}", segments.len());
        for (path, bytes) in segments {
            for cut in 0..bytes.len() {
                prefix_with(&fs, &history, &path, &bytes[..cut]);
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_a_log_is_never_wrong_data_and_never_loses_durable_writes_in_silence() {
    for durability in [Durability::Os, Durability::Sync] {
        let (fs, history) = image(24, durability);
        for (path, bytes) in files(&fs, "wal") {
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << (at % 8);
                let shown = prefix_with(&fs, &history, &path, &bad);
                // Of the very last write nothing that follows says that it had been on disk.
                let least =
                    if durability == Durability::Sync { history.acked.len() - 1 } else { 0 };
                assert!(
                    shown.is_none_or(|count| count >= least),
                    "{}: byte {at}: {shown:?} of {}",
                    path.display(),
                    history.acked.len()
                );
            }
        }
    }
}

#[test]
fn a_log_segment_that_is_missing_zeroed_or_swapped_is_corrupt() {
    let (fs, history) = image(24, Durability::Sync);
    let segments = files(&fs, "wal");
    let begun: Vec<_> = segments.iter().filter(|(_, bytes)| bytes.len() > 48).collect();
    assert!(begun.len() >= 3);
    for (i, (path, bytes)) in begun.iter().enumerate() {
        let last = i + 1 == begun.len();
        let gone = fs.fork();
        gone.destroy(path).unwrap();
        assert!(last || is_corrupt(&opened(&gone)), "{} is missing", path.display());
        let zeros = prefix_with(&fs, &history, path, &vec![0; bytes.len()]);
        assert!(last || zeros.is_none(), "{} is zeros", path.display());
        let (_, other) = begun[(i + 1) % begun.len()];
        assert_eq!(prefix_with(&fs, &history, path, other), None, "{} is another", path.display());
    }
}

#[test]
fn a_manifest_cut_or_flipped_at_every_byte_is_noticed_or_loses_only_its_tail() {
    let (fs, history) = image(24, Durability::Sync);
    for (path, bytes) in files(&fs, "manifest") {
        for cut in 0..bytes.len() {
            prefix_or_noticed(&fs, &history, &path, &bytes[..cut]);
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            prefix_or_noticed(&fs, &history, &path, &bad);
        }
    }
}

/// Everything is there, since the log still has what the manifest lost, or the damage is noticed.
fn prefix_or_noticed(fs: &SimFs, history: &History, path: &Path, bytes: &[u8]) {
    let shown = prefix_with(fs, history, path, bytes);
    assert!(shown.is_none_or(|count| count == history.acked.len()), "{shown:?}");
}

#[test]
fn without_its_current_a_database_is_corrupt_and_never_a_fresh_one() {
    let (fs, _) = image(10, Durability::Os);
    let current = Path::new("/db/CURRENT");
    let gone = fs.fork();
    gone.destroy(current).unwrap();
    assert!(is_corrupt(&opened(&gone)));
    for bytes in [&b""[..], b"garbage", b"MANIFEST-000001", &[0; 64], b"MANIFEST-999999 00000000\n"]
    {
        let bad = fs.fork();
        bad.overwrite(current, bytes).unwrap();
        assert!(is_corrupt(&opened(&bad)), "{bytes:?}");
    }
    for (manifest, _) in files(&fs, "manifest") {
        let gone = fs.fork();
        gone.destroy(&manifest).unwrap();
        assert!(is_corrupt(&opened(&gone)));
    }
}

/// A machine whose data lies in tables, and what it holds.
fn tables() -> (SimFs, History) {
    let fs = SimFs::new(3);
    let mut history = History::default();
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap();
        for i in 0..20 {
            history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
        }
        engine.shutdown().await.unwrap();
    });
    (fs.kill(), history)
}

#[test]
fn a_table_that_is_missing_or_has_another_size_is_named_at_open() {
    let (fs, _) = tables();
    let tables = files(&fs, "sst");
    assert!(!tables.is_empty());
    for (path, bytes) in tables {
        let gone = fs.fork();
        gone.destroy(&path).unwrap();
        let short = fs.fork();
        short.overwrite(&path, &bytes[..bytes.len() - 1]).unwrap();
        let long = fs.fork();
        long.overwrite(&path, [&bytes[..], &[0]].concat()).unwrap();
        for fs in [gone, short, long] {
            let found = opened(&fs);
            assert!(matches!(&found, Err(Error::Corrupt { path: told, .. }) if *told == path));
        }
    }
}

#[test]
fn a_flipped_byte_in_a_table_is_corrupt_where_it_is_needed_and_never_wrong_or_absent() {
    let (fs, history) = tables();
    let (mut noticed, mut served) = (0, 0);
    for (path, bytes) in files(&fs, "sst") {
        for at in 0..bytes.len() {
            let bad = fs.fork();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            bad.overwrite(&path, flipped).unwrap();
            in_paused_time(async {
                let engine = open(&bad, config()).await.unwrap();
                for n in 0..17 {
                    let key = format!("key{n:02}");
                    match engine.get(key.as_bytes()).await {
                        Ok(value) => {
                            assert_eq!(value.as_ref(), history.now().get(key.as_bytes()), "{at}");
                            served += 1;
                        }
                        Err(Error::Corrupt { path: told, .. }) => {
                            assert_eq!(told, path);
                            noticed += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    }
    assert!(noticed > 100 && served > 100, "{noticed} {served}");
}

/// Tries until it works, for a minute.
async fn at_last<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> T {
    let mut last = None;
    for _ in 0..60 {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{what} does not heal: {last:?}")
}

/// Runs an engine through a fault; it must heal by itself and lose nothing.
fn live_through(fault: Fault, limit_space: Option<u64>, context: &str) {
    let fs = SimFs::new(11);
    let mut history = History::default();
    in_paused_time(async {
        let reserve = limit_space.is_none();
        let engine = open(&fs, if reserve { roomy() } else { config() }).await.unwrap();
        for i in 0..10 {
            history.write(&engine, History::mixed(i), Durability::Sync).await.unwrap();
        }
        fs.inject(fault);
        if let Some(bytes) = limit_space {
            fs.limit_space(bytes);
        }
        for i in 10..40 {
            let durability = if i % 3 == 0 { Durability::Sync } else { Durability::Os };
            let write = history.write(&engine, History::mixed(i), durability);
            drop(tokio::time::timeout(Duration::from_secs(5), write).await);
            if i % 8 == 0 {
                drop(tokio::time::timeout(Duration::from_secs(5), engine.sync()).await);
            }
            if i % 16 == 0 {
                drop(tokio::time::timeout(Duration::from_secs(5), engine.flush()).await);
            }
        }
        if let Ok(shown) = read_all(&engine).await {
            assert_eq!(shown, history.now(), "{context}: reads go on");
        }
        fs.heal();
        let (cell, mut i) = (&engine, 40);
        at_last(context, async || {
            i += 1;
            history.write(cell, History::mixed(i), Durability::Os).await
        })
        .await;
        at_last(context, || engine.sync()).await;
        history.all_durable();
        assert_eq!(read_all(&engine).await.unwrap(), history.now(), "{context}: healed");
        at_last(context, || engine.flush()).await;
        use_normally(&engine, &mut history).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(engine.health().state, HealthState::Healthy, "{context}");
        history.all_durable();
    });
    check(fs.crash(1), &mut history, context);
}

#[test]
fn the_engine_lives_through_every_fault_and_heals() {
    for operation in Operation::MUTATING.into_iter().chain([Operation::Open, Operation::List]) {
        for trouble in [Trouble::Io, Trouble::NoSpace, Trouble::TooManyFiles] {
            for part in ["", "/wal", "/sst", "/manifest", "CURRENT"] {
                let fault = Fault::new(trouble).on(operation).at(part);
                live_through(fault.clone(), None, &format!("{fault:?}"));
                live_through(fault.clone().once(), None, &format!("{fault:?} once"));
                live_through(fault.clone().after(3).times(2), None, &format!("{fault:?} later"));
            }
        }
    }
}

#[test]
fn a_full_disk_stops_writes_and_no_more_and_space_brings_them_back() {
    for bytes in (0..12_000).step_by(257) {
        let nothing = Fault::new(Trouble::Io).at("no such path");
        live_through(nothing, Some(bytes), &format!("{bytes} bytes left"));
    }
}

#[test]
fn after_a_failed_sync_its_callers_know_and_later_writes_are_safe() {
    for seed in 0..40 {
        let fs = SimFs::new(seed);
        let mut history = History::default();
        in_paused_time(async {
            let engine = open(&fs, config()).await.unwrap();
            for i in 0..3 {
                history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            }
            fs.inject(Fault::new(Trouble::Io).on(Operation::Sync).at("/wal").once());
            let failed = history.write(&engine, History::mixed(3), Durability::Sync).await;
            assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
            assert_eq!(read_all(&engine).await.unwrap(), history.now());
            history.write(&engine, History::mixed(4), Durability::Sync).await.unwrap();
            history.write(&engine, History::mixed(5), Durability::Os).await.unwrap();
        });
        check(fs.crash(seed), &mut history, &format!("seed {seed}"));
    }
}

#[test]
fn a_panic_at_any_call_to_the_log_costs_a_durable_write_nothing() {
    for (operation, nth) in
        Operation::MUTATING.into_iter().flat_map(|o| (0..12).map(move |n| (o, n)))
    {
        let fs = SimFs::new(nth);
        let (fault, mut history) = (Fault::new(Trouble::Panic).on(operation), History::default());
        let context = format!("{operation:?} {nth}");
        in_paused_time(async {
            let engine = open(&fs, roomy()).await.unwrap();
            fs.inject(fault.at("/wal").after(nth).once());
            for i in 0..40 {
                let write = history.write(&engine, History::mixed(i), Durability::Sync).await;
                write.unwrap_or_else(|error| panic!("{context}, write {i}: {error}"));
            }
            use_normally(&engine, &mut history).await;
        });
        check(fs.crash(nth), &mut history, &context);
    }
}
