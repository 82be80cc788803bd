//! Repair: whatever is damaged, the database opens again in strict mode, with all that could be read, and nothing is deleted.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that hangs must stop")]
#![expect(dead_code, reason = "other tests of this world need more of it")]

mod world;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nori_lsm::env::Fs;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble, VirtualClock, sim_env};
use nori_lsm::{ATLLConfig, Durability, MemtableConfig, RepairReport, diagnose, repair, verify};
use world::{State, config, in_paused_time, is_corrupt, open, read_all};

const KEYS: usize = 300;

fn key(n: usize) -> Bytes {
    Bytes::from(format!("key{n:03}"))
}

fn value(n: usize) -> Bytes {
    Bytes::from(format!("{n}: {:016x}{:016x}", n * 7919, n * 104_729))
}

/// What a database of [`filled`] holds: each key has one value, ever, but for those that were deleted.
fn truth() -> State {
    (0..KEYS).filter(|n| !n.is_multiple_of(10)).map(|n| (key(n), value(n))).collect()
}

fn small() -> ATLLConfig {
    ATLLConfig { durability: Durability::Sync, ..config() }
}

/// A machine that lost its power with a tree of several levels and an unflushed log.
async fn filled() -> SimFs {
    let fs = SimFs::new(1);
    let engine = open(&fs, small()).await.unwrap();
    for n in 0..KEYS {
        engine.put(key(n * 7 % KEYS), value(n * 7 % KEYS)).await.unwrap();
        if n.is_multiple_of(40) {
            engine.wait_idle().await.unwrap();
        }
    }
    for n in (0..KEYS).step_by(10) {
        engine.delete(&key(n)).await.unwrap();
    }
    engine.wait_idle().await.unwrap();
    fs.kill()
}

fn files(fs: &SimFs, folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("/db").join(folder);
    let names = fs.list(&folder).unwrap_or_default();
    names.into_iter().map(|(name, _)| folder.join(name)).collect()
}

/// The last of the files in a folder, and its size.
fn last(fs: &SimFs, folder: &str) -> (PathBuf, u64) {
    let path = files(fs, folder).pop().unwrap();
    let len = fs.read_all(&path).unwrap().len() as u64;
    (path, len)
}

fn flip(fs: &SimFs, path: &Path, at: usize) {
    let mut bytes = fs.read_all(path).unwrap();
    bytes[at] ^= 4;
    fs.overwrite(path, bytes).unwrap();
}

/// Repairs, after a look that changes nothing and says the same; then opens in strict mode and reads everything.
async fn repaired(fs: &SimFs) -> (RepairReport, State) {
    let env = sim_env(fs, VirtualClock::default());
    let before = fs.mutations();
    let diagnosis = diagnose(&small(), &env).await.unwrap();
    let report = repair(&small(), &env).await.unwrap();
    assert_eq!(diagnosis.salvaged, report.salvaged);
    assert_eq!(diagnosis.log, report.log);
    assert!(report.is_sound() == (report.moved_to.is_none() && fs.mutations() - before < 8));
    assert!(repair(&small(), &env).await.unwrap().is_sound(), "once is enough: {report}");
    assert!(verify(&small(), &env).await.unwrap().is_sound(), "{report}");
    let engine = open(fs, small()).await.expect("it opens");
    let state = read_all(&engine).await.unwrap();
    engine.put(key(0), value(0)).await.unwrap();
    engine.compact_range(.., Default::default()).await.unwrap();
    engine.wait_idle().await.unwrap();
    engine.shutdown().await.unwrap();
    (report, state)
}

/// What is there and should not be, and what is not and should.
fn differences(found: &State) -> (usize, usize) {
    let truth = truth();
    for (key, value) in found {
        let n: usize = std::str::from_utf8(&key[3..]).unwrap().parse().unwrap();
        assert_eq!(*value, self::value(n), "no value is ever made up");
    }
    let more = found.keys().filter(|key| !truth.contains_key(*key)).count();
    let less = truth.keys().filter(|key| !found.contains_key(*key)).count();
    (more, less)
}

#[test]
fn a_sound_database_stays_as_it_is() {
    in_paused_time(async {
        let (report, state) = repaired(&filled().await).await;
        assert!(report.is_sound() && report.moved.is_empty(), "{report}");
        assert_eq!(state, truth());
    });
}

#[test]
fn without_current_the_manifest_that_is_there_counts() {
    in_paused_time(async {
        for content in [None, Some("garbage"), Some("MANIFEST-000999 00000000\n")] {
            let fs = filled().await;
            match content {
                None => fs.destroy(Path::new("/db/CURRENT")).unwrap(),
                Some(content) => fs.overwrite(Path::new("/db/CURRENT"), content).unwrap(),
            }
            assert!(is_corrupt(&open(&fs, small()).await));
            let (report, state) = repaired(&fs).await;
            assert!(report.manifest.is_some() && !report.rebuilt, "{report}");
            assert_eq!(state, truth());
        }
    });
}

#[test]
fn without_a_manifest_the_tables_and_the_log_tell_everything() {
    in_paused_time(async {
        for garbage in [false, true] {
            let fs = filled().await;
            for manifest in files(&fs, "manifest") {
                match garbage {
                    true => fs.overwrite(&manifest, vec![7; 500]).unwrap(),
                    false => fs.destroy(&manifest).unwrap(),
                }
            }
            let tables = files(&fs, "sst");
            let (report, state) = repaired(&fs).await;
            assert!(report.rebuilt, "{report}");
            assert_eq!(state, truth());
            let dir = report.moved_to.unwrap();
            for table in tables {
                let kept = dir.join(table.file_name().unwrap());
                assert!(fs.read_all(&kept).is_ok(), "{kept:?}: nothing is deleted");
            }
        }
    });
}

#[test]
fn an_old_manifest_that_knows_nothing_of_newer_tables_is_not_believed() {
    in_paused_time(async {
        let fs = SimFs::new(5);
        let engine = open(&fs, small()).await.unwrap();
        for n in 0..100 {
            engine.put(key(n), value(n)).await.unwrap();
        }
        engine.shutdown().await.unwrap();
        let old = files(&fs, "manifest").pop().unwrap();
        let bytes = fs.read_all(&old).unwrap();
        let engine = open(&fs, small()).await.unwrap();
        for n in 100..KEYS {
            engine.put(key(n), value(n)).await.unwrap();
        }
        engine.wait_idle().await.unwrap();
        let fs = fs.kill();
        for manifest in files(&fs, "manifest") {
            fs.destroy(&manifest).unwrap();
        }
        fs.overwrite(&old, bytes).unwrap();
        let (report, state) = repaired(&fs).await;
        assert!(report.rebuilt, "{report}");
        assert_eq!(state, (0..KEYS).map(|n| (key(n), value(n))).collect());
    });
}

#[test]
fn a_flipped_byte_costs_a_block_at_most_and_what_is_lost_is_named() {
    in_paused_time(async {
        let fs = filled().await;
        for path in files(&fs, "sst") {
            let len = fs.read_all(&path).unwrap().len();
            for at in (0..len).step_by(97) {
                let fs = fs.fork();
                flip(&fs, &path, at);
                let (report, state) = repaired(&fs).await;
                assert_eq!(report.salvaged.len(), 1, "byte {at} of {path:?}");
                let lost = &report.salvaged[0].lost;
                assert!(lost.len() <= 1, "{report}");
                let (more, less) = differences(&state);
                assert!(more + less < 20, "{more} more, {less} less: {report}");
                let truth = truth();
                let gone = truth
                    .keys()
                    .chain(state.keys())
                    .filter(|key| truth.get(*key) != state.get(*key));
                for key in gone {
                    assert!(lost.iter().any(|lost| lost.keys.contains(key)), "{key:?}: {report}");
                }
            }
        }
    });
}

#[test]
fn a_table_cut_short_keeps_its_front_and_names_what_is_gone() {
    in_paused_time(async {
        let fs = filled().await;
        for path in files(&fs, "sst") {
            let bytes = fs.read_all(&path).unwrap();
            for len in [0, 1, bytes.len() / 4, bytes.len() / 2, bytes.len() - 1] {
                let fs = fs.fork();
                fs.overwrite(&path, &bytes[..len]).unwrap();
                let (report, state) = repaired(&fs).await;
                let lost = &report.salvaged[0].lost;
                let truth = truth();
                let gone = truth.keys().filter(|key| truth.get(*key) != state.get(*key));
                for key in gone {
                    assert!(lost.iter().any(|lost| lost.keys.contains(key)), "{key:?}: {report}");
                }
            }
        }
    });
}

#[test]
fn a_missing_table_is_taken_out_and_the_rest_is_there() {
    in_paused_time(async {
        let fs = filled().await;
        for path in files(&fs, "sst") {
            let fs = fs.fork();
            fs.destroy(&path).unwrap();
            assert!(is_corrupt(&open(&fs, small()).await));
            let (report, state) = repaired(&fs).await;
            assert_eq!((report.salvaged.len(), report.salvaged[0].entries), (1, 0));
            let (_, less) = differences(&state);
            assert!(less < KEYS, "{report}");
        }
    });
}

#[test]
fn a_damaged_log_keeps_what_was_logged_before() {
    in_paused_time(async {
        let fs = SimFs::new(3);
        let memtable = MemtableConfig { flush_trigger_bytes: 1 << 16, ..Default::default() };
        let engine = open(&fs, ATLLConfig { memtable, ..small() }).await.unwrap();
        for n in 1..8 {
            engine.put(key(n), value(n)).await.unwrap();
        }
        let fs = fs.kill();
        let log = files(&fs, "wal").into_iter().find(|path| fs.read_all(path).unwrap().len() > 300);
        let log = log.unwrap();
        flip(&fs, &log, 200);
        assert!(is_corrupt(&open(&fs, small()).await));
        let (report, state) = repaired(&fs).await;
        assert!(report.log.is_some() && (1..7).contains(&report.log_operations), "{report}");
        assert!(report.moved.contains(&log), "{report}");
        let left = usize::try_from(report.log_operations).unwrap();
        assert_eq!(state, (1..=left).map(|n| (key(n), value(n))).collect());
    });
}

/// Damages a bit of everything.
fn ruin(fs: &SimFs) {
    let tables = files(fs, "sst");
    flip(fs, &tables[0], 3);
    let len = fs.read_all(&tables[1]).unwrap().len();
    flip(fs, &tables[1], len - 3); // its footer
    for manifest in files(fs, "manifest") {
        fs.overwrite(&manifest, vec![7; 500]).unwrap();
    }
    fs.destroy(Path::new("/db/CURRENT")).unwrap();
    let log = files(fs, "wal").into_iter().find(|path| fs.read_all(path).unwrap().len() > 300);
    if let Some(log) = log {
        flip(fs, &log, 250);
    }
}

#[test]
fn all_at_once_leaves_what_can_be_read() {
    in_paused_time(async {
        let fs = filled().await;
        assert!(files(&fs, "sst").len() > 1);
        ruin(&fs);
        let (report, state) = repaired(&fs).await;
        assert!(report.rebuilt && report.salvaged.len() == 2, "{report}");
        let (more, less) = differences(&state);
        assert!(more + less < 60, "{more} more, {less} less: {report}");
    });
}

#[test]
fn a_power_cut_at_any_operation_of_a_repair_loses_nothing_more() {
    in_paused_time(async {
        let sound = filled().await;
        let lost_manifest = |fs: &SimFs| ruin(fs);
        let damaged_table = |fs: &SimFs| flip(fs, &files(fs, "sst")[0], 3);
        let damages: [&dyn Fn(&SimFs); 2] = [&lost_manifest, &damaged_table];
        for damage in damages {
            let damaged = sound.fork();
            damage(&damaged);
            let (_, expected) = repaired(&damaged.fork()).await;
            let keys: BTreeSet<_> = expected.keys().collect();
            let mut cuts = 0;
            for nth in 1.. {
                let fs = damaged.fork();
                fs.crash_at(nth);
                let env = sim_env(&fs, VirtualClock::default());
                let ended = repair(&small(), &env).await;
                if !fs.is_off() {
                    ended.unwrap();
                    break;
                }
                cuts += 1;
                let (_, found) = repaired(&fs.crash(nth)).await;
                assert_eq!(found.keys().collect::<BTreeSet<_>>(), keys, "cut at {nth}");
            }
            assert!(cuts > 10, "{cuts}");
        }
    });
}

/// Pages of a file, as a disk reads them.
const PAGE: u64 = 4096;

/// Tables and a log of several pages each.
async fn paged(durability: Durability) -> (SimFs, ATLLConfig) {
    let fs = SimFs::new(4);
    let memtable = MemtableConfig { flush_trigger_bytes: 1 << 20, ..Default::default() };
    let config = ATLLConfig { memtable, durability, ..config() };
    let engine = open(&fs, config.clone()).await.unwrap();
    for (from, to) in [(0, 200), (100, KEYS)] {
        for n in from..to {
            engine.put(key(n), value(n)).await.unwrap();
        }
        if to < KEYS {
            engine.flush().await.unwrap();
        }
    }
    (fs.kill(), config)
}

fn bad(path: &Path, bytes: std::ops::Range<u64>) -> Fault {
    Fault::new(Trouble::Io).on(Operation::Read).at(path.to_str().unwrap()).over(bytes)
}

/// Repairs what the disk cannot read. Every piece is named, every file is kept as it was, and what was lost is among what is named.
async fn repaired_around(fs: &SimFs, path: &Path) -> (RepairReport, State) {
    let before = fs.read_all(path).unwrap();
    let (report, state) = repaired(fs).await;
    assert!(!report.is_sound() && !report.unreadable.is_empty(), "{report}");
    for piece in &report.unreadable {
        assert_eq!(piece.path, path, "{report}");
        assert!(piece.error.contains("Input/output error"), "{report}");
        let line = format!("{}: {} bytes at {} cannot", path.display(), piece.bytes, piece.offset);
        assert!(report.to_string().contains(&line), "{line}: {report}");
    }
    let dir = report.moved_to.as_ref().unwrap();
    assert!(report.moved.iter().any(|moved| moved == path), "{report}");
    assert_eq!(fs.read_all(&dir.join(path.file_name().unwrap())).unwrap(), before);
    (report, state)
}

fn everything() -> State {
    (0..KEYS).map(|n| (key(n), value(n))).collect()
}

#[test]
fn pages_of_a_table_that_cannot_be_read_are_lost_like_damage_and_named() {
    in_paused_time(async {
        let (sound, _) = paged(Durability::Sync).await;
        let (path, len) = last(&sound, "sst");
        assert!(len > 2 * PAGE, "{len}");
        for first in 0..len.div_ceil(PAGE) {
            for end in [first * PAGE + 1, len] {
                let fs = sound.fork();
                fs.inject(bad(&path, first * PAGE..end));
                let (report, state) = repaired_around(&fs, &path).await;
                let [salvaged] = &report.salvaged[..] else { panic!("{report}") };
                assert_eq!(report.unreadable[0].offset, first * PAGE, "{report}");
                let gone = everything().into_keys().filter(|key| !state.contains_key(key));
                for key in gone {
                    assert!(salvaged.lost.iter().any(|lost| lost.keys.contains(&key)), "{report}");
                }
                assert!(state.len() >= 200, "the log is there: {}", state.len());
                assert!(state.iter().all(|(key, value)| everything().get(key) == Some(value)));
                if first > 0 {
                    assert!(salvaged.entries > 0, "the front of it is left: {report}");
                }
            }
        }
    });
}

#[test]
fn a_table_that_cannot_be_opened_is_lost_as_a_whole_and_kept() {
    in_paused_time(async {
        let (fs, _) = paged(Durability::Sync).await;
        let path = files(&fs, "sst").pop().unwrap();
        let unopened = Fault::new(Trouble::Io).on(Operation::Open);
        fs.inject(unopened.at(path.to_str().unwrap()));
        let (report, state) = repaired_around(&fs, &path).await;
        assert_eq!(report.salvaged[0].entries, 0, "{report}");
        assert_eq!(state, (100..KEYS).map(|n| (key(n), value(n))).collect());
    });
}

#[test]
fn a_log_keeps_what_comes_before_the_page_that_cannot_be_read() {
    in_paused_time(async {
        for durability in [Durability::Sync, Durability::Os] {
            let (sound, _) = paged(durability).await;
            let log = files(&sound, "wal").into_iter();
            let log = log.max_by_key(|path| sound.read_all(path).unwrap().len()).unwrap();
            let len = sound.read_all(&log).unwrap().len() as u64;
            assert!(len > 2 * PAGE, "{len}");
            let mut least = 200;
            for page in 0..len.div_ceil(PAGE) {
                let fs = sound.fork();
                fs.inject(bad(&log, page * PAGE..page * PAGE + 1));
                let (report, state) = repaired_around(&fs, &log).await;
                assert!(report.log.is_some(), "{report}");
                // In the log are 100 to 299; to 199 they are in the table too.
                assert!((least..KEYS).contains(&state.len()), "{page}: {report}");
                assert_eq!(state, (0..state.len()).map(|n| (key(n), value(n))).collect());
                least = state.len();
            }
            assert!(least > 220, "{least}");
        }
    });
}

#[test]
fn a_manifest_or_current_that_cannot_be_read_costs_nothing() {
    in_paused_time(async {
        let (sound, _) = paged(Durability::Sync).await;
        let (manifest, len) = last(&sound, "manifest");
        for end in [1, len - 1, len] {
            let fs = sound.fork();
            fs.inject(bad(&manifest, end - 1..end));
            let (report, state) = repaired_around(&fs, &manifest).await;
            assert!(report.manifest.is_some() && report.rebuilt, "{report}");
            assert_eq!(state, everything());
        }
        let fs = sound.fork();
        fs.inject(Fault::new(Trouble::Io).on(Operation::Read).at("/db/CURRENT").times(9));
        let (report, state) = repaired_around_current(&fs).await;
        assert!(report.manifest.is_some() && !report.rebuilt, "{report}");
        assert_eq!(report.unreadable[0].path, Path::new("/db/CURRENT"));
        assert_eq!(state, everything());
    });
}

/// Its file has a successor of the same name, which can be read.
async fn repaired_around_current(fs: &SimFs) -> (RepairReport, State) {
    let env = sim_env(fs, VirtualClock::default());
    let report = repair(&small(), &env).await.unwrap();
    fs.heal();
    assert!(repair(&small(), &env).await.unwrap().is_sound(), "{report}");
    let engine = open(fs, small()).await.expect("it opens");
    let state = read_all(&engine).await.unwrap();
    engine.shutdown().await.unwrap();
    (report, state)
}

#[test]
fn a_manifest_that_is_read_at_the_third_try_is_not_made_anew() {
    in_paused_time(async {
        let (fs, _) = paged(Durability::Sync).await;
        // The whole of it, then its page.
        let twice = Fault::new(Trouble::Io).on(Operation::Read).at("/manifest/").times(2);
        fs.inject(twice);
        let env = sim_env(&fs, VirtualClock::default());
        let report = repair(&small(), &env).await.unwrap();
        assert!(!report.rebuilt && !report.unreadable.is_empty(), "{report}");
        fs.heal();
        assert_eq!(repaired(&fs).await.1, everything());
    });
}

/// A record that is torn off, though files went on its word, is told by their absence: nothing of what it brought is lost.
#[test]
fn a_manifest_whose_last_record_is_damaged_costs_nothing() {
    in_paused_time(async {
        let fs = SimFs::new(9);
        let engine = open(&fs, small()).await.unwrap();
        let mut damaged = 0;
        for n in 0..KEYS {
            engine.put(key(n), value(n)).await.unwrap();
            if !n.is_multiple_of(10) {
                continue;
            }
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
            engine.put(key(n), value(n)).await.unwrap();
            let fs = fs.fork();
            let (path, len) = last(&fs, "manifest");
            flip(&fs, &path, usize::try_from(len).unwrap() - 3);
            if open(&fs, small()).await.is_ok() {
                continue; // no file is missing
            }
            damaged += 1;
            let env = sim_env(&fs, VirtualClock::default());
            let report = verify(&small(), &env).await.unwrap();
            assert!(report.damaged.iter().any(|damage| damage.path == path), "{report}");
            let (report, state) = repaired(&fs).await;
            assert!(report.manifest.is_some() && report.rebuilt, "{report}");
            let expected: State = (0..=n).map(|n| (key(n), value(n))).collect();
            assert_eq!(state, expected, "after {n}: {report}");
        }
        assert!(damaged > 5, "{damaged}");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_read_that_fails_once_is_tried_again_and_changes_nothing() {
    in_paused_time(async {
        let (sound, _) = paged(Durability::Sync).await;
        for folder in ["/sst/", "/wal/", "/manifest/", "/CURRENT"] {
            for after in 0..4 {
                let fs = sound.fork();
                fs.inject(
                    Fault::new(Trouble::Io).on(Operation::Read).at(folder).after(after).once(),
                );
                let env = sim_env(&fs, VirtualClock::default());
                let report = repair(&small(), &env).await.unwrap();
                assert!(report.is_sound() && report.moved.is_empty(), "{report}");
                fs.heal();
                assert_eq!(repaired(&fs).await.1, everything());
            }
        }
    });
}

#[test]
fn a_look_at_what_cannot_be_read_now_changes_nothing_and_says_what_a_repair_would_lose() {
    in_paused_time(async {
        let (fs, _) = paged(Durability::Sync).await;
        let env = sim_env(&fs, VirtualClock::default());
        let path = files(&fs, "sst").pop().unwrap();
        fs.inject(bad(&path, 0..PAGE));
        let report = diagnose(&small(), &env).await.unwrap();
        assert_eq!(report.unreadable[0].path, path, "{report}");
        fs.heal();
        let (report, state) = repaired(&fs).await;
        assert!(report.is_sound(), "it could be read again: {report}");
        assert_eq!(state, everything());
    });
}
