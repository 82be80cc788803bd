//! The fuzz targets over their corpus: every file as it is, and changed in ways that follow from seeds.
//!
//! Half of the changed files get right checksums, so that more than the first look at them is tested. `NORI_FUZZ_ROUNDS=1000`
//! changes each file that often; with `NORI_WRITE_CORPUS` set, what an engine makes is written into the corpus anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that cannot go on must stop")]
#![expect(clippy::panic, reason = "a test that found something must stop")]
#![expect(clippy::print_stderr, reason = "what was run is part of the result")]

mod seeds;
#[path = "../../fuzz/src/lib.rs"]
#[expect(dead_code, unreachable_pub, reason = "the fuzzer uses the rest of it")]
#[expect(clippy::cast_possible_truncation, reason = "a fuzz target meets small files")]
mod targets;

use std::cell::Cell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use targets::{Verdict, seal};

/// Changes of each file, unless `NORI_FUZZ_ROUNDS` says otherwise.
const ROUNDS: u64 = 8;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// Files of a folder, by name; none if it is not there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// One of the things that happen to bytes. `other`: where pieces come from.
fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.usize(..=bytes.len());
    let len = rng.usize(..=(bytes.len() - at).min(64));
    match rng.u8(..8) {
        0..=2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        3 => bytes.truncate(at),
        4 => bytes[at..at + len].fill(*rng.choice(&[0, 0xff]).unwrap()),
        5 => drop(bytes.splice(at..at, (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>())),
        6 => drop(bytes.drain(at..at + len)),
        _ => {
            let from = rng.usize(..=other.len());
            let piece = &other[from..from + rng.usize(..=(other.len() - from).min(256))];
            let end = (at + piece.len()).min(bytes.len());
            drop(bytes.splice(at..end, piece.iter().copied()));
        }
    }
}

/// What was run, and how often the engine took it.
#[derive(Debug, Default)]
struct Count {
    files: usize,
    files_accepted: usize,
    changed: usize,
    changed_accepted: usize,
}

thread_local! {
    /// Panics of this thread, which all components run on: the engine catches theirs.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Runs one input; says which it was if the engine breaks a promise over it, or any component panics.
fn judge(run: fn(&[u8]) -> Verdict, bytes: &[u8], what: impl Fn() -> String) -> Verdict {
    let before = PANICS.get();
    let verdict = catch_unwind(AssertUnwindSafe(|| run(bytes)));
    match verdict {
        Ok(verdict) if PANICS.get() == before => verdict,
        Ok(_) | Err(_) => {
            let kept = std::env::temp_dir().join(format!(
                "nori-corpus-{}-{:?}",
                std::process::id(),
                std::thread::current().id()
            ));
            fs::write(&kept, bytes).unwrap();
            panic!("{}: failed; its bytes are in {}", what(), kept.display());
        }
    }
}

/// Runs the files of a target, then each of them changed.
fn run_all(target: &str, run: fn(&[u8]) -> Verdict) -> Count {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.set(PANICS.get() + 1);
        report(panic);
    }));
    let asked = std::env::var("NORI_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = asked.unwrap_or(ROUNDS);
    let corpus = [folder("corpus", target), folder("regressions", target)];
    let inputs: Vec<(PathBuf, Vec<u8>)> = corpus
        .iter()
        .flat_map(|folder| files(folder))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let mut count = Count::default();
    for (index, (path, bytes)) in inputs.iter().enumerate() {
        let mut sealed = bytes.clone();
        seal::seal(target, &mut sealed);
        let verdict = judge(run, bytes, || path.display().to_string());
        count.files += 1;
        count.files_accepted += usize::from(verdict == Verdict::Accepted);
        if sealed != *bytes {
            judge(run, &sealed, || format!("{}, sealed", path.display()));
        }
        for round in 0..rounds {
            let mut rng = Rng::with_seed(round << 32 | index as u64);
            let mut changed = sealed.clone();
            let other = &inputs[rng.usize(..inputs.len())].1;
            for _ in 0..rng.usize(1..4) {
                change(&mut changed, other, &mut rng);
            }
            if round % 2 == 0 {
                seal::seal(target, &mut changed);
            }
            let verdict = judge(run, &changed, || format!("{}, round {round}", path.display()));
            count.changed += 1;
            count.changed_accepted += usize::from(verdict == Verdict::Accepted);
        }
    }
    eprintln!("{target}: {count:?}");
    assert!(count.files >= 10, "the corpus of {target} is gone");
    assert!(count.files_accepted >= 3, "nothing of the corpus gets past the front door");
    assert!(count.changed_accepted >= 1 || rounds == 0, "no changed file does either");
    count
}

#[test]
fn any_bytes_are_a_log_or_damage() {
    run_all("wal", targets::wal::run);
}

#[test]
fn any_bytes_are_a_manifest_or_damage() {
    run_all("manifest", targets::manifest::run);
}

#[test]
fn any_bytes_are_a_table_or_damage() {
    run_all("sstable", targets::sstable::run);
}

#[test]
fn any_bytes_are_the_block_that_the_format_says_or_damage() {
    run_all("block", targets::block::run);
}

#[test]
fn any_program_sees_what_it_wrote() {
    run_all("engine", targets::engine::run);
}

/// A good file has right checksums: a sealer that changes one got the format wrong.
#[test]
fn sealing_changes_no_file_that_an_engine_wrote() {
    for (target, name, bytes) in seeds::all() {
        let mut sealed = bytes.clone();
        seal::seal(target, &mut sealed);
        assert!(sealed == bytes, "{target}/{name}");
    }
    if std::env::var_os("NORI_WRITE_CORPUS").is_some() {
        write_what_an_engine_makes();
    }
}

fn write_what_an_engine_makes() {
    for (target, name, bytes) in seeds::all() {
        let folder = folder("corpus", target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
    for (name, bytes) in seeds::manifests_and_tables() {
        let path = match name.as_str() {
            "tables" => folder("world", "tables"),
            name => folder("corpus", "manifest").join(name),
        };
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
