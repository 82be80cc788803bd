//! Damage to every kind of file, at every byte: what is read is right, or `Error::Corrupt` with the right file.
//! Never wrong data, never a panic, never more than a bounded memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that cannot go on must stop")]
#![expect(clippy::panic, reason = "a test that found something must stop")]
#![expect(clippy::print_stderr, reason = "a test that counts says how many")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fastrand::Rng;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::env::{Fs, OsFs};
use nori_lsm::sstable::{Compression, Entry, SSTableBuilder, SSTableConfig, SSTableReader};
use nori_lsm::{CompactionMode, Durability, Error, LsmEngine, Result, Scan, SeqNo};
use peak_alloc::PeakAlloc;
use world::{History, State, config, in_paused_time, open};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What two threads at once may need at most, whatever a length on disk says.
const MEMORY_MAX: usize = 48 << 20;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Something that happens to one file.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        at: usize,
        bit: u8,
    },
    /// `byte` in the place of each: zeros, or the largest length there is.
    Fill {
        at: usize,
        len: usize,
        byte: u8,
    },
    Truncate {
        at: usize,
    },
    /// A piece of the file over another.
    Copy {
        from: usize,
        to: usize,
        len: usize,
    },
    Swap {
        a: usize,
        b: usize,
        len: usize,
    },
    Insert {
        at: usize,
        len: usize,
    },
    Append {
        bytes: Vec<u8>,
    },
    /// A file of the same kind in its place.
    Replace {
        by: PathBuf,
    },
    /// Noise in the place of each byte.
    Garbage {
        at: usize,
        len: usize,
    },
}

impl Damage {
    fn apply(&self, path: &Path, files: &Files) -> Vec<u8> {
        let mut bytes = files[path].clone();
        let end = bytes.len();
        match self {
            Self::Flip { at, bit } => bytes[*at] ^= 1 << bit,
            Self::Fill { at, len, byte } => bytes[*at..end.min(at + len)].fill(*byte),
            Self::Truncate { at } => bytes.truncate(*at),
            Self::Copy { from, to, len } => {
                let len = *len.min(&(end - from)).min(&(end - to));
                bytes.copy_within(*from..from + len, *to);
            }
            Self::Swap { a, b, len } => {
                let (a, b) = (*a.min(b), *a.max(b));
                let len = *len.min(&(b - a)).min(&(end - b));
                let (front, back) = bytes.split_at_mut(b);
                front[a..a + len].swap_with_slice(&mut back[..len]);
            }
            Self::Insert { at, len } => {
                drop(bytes.splice(*at..*at, std::iter::repeat_n(0xa5, *len)));
            }
            Self::Append { bytes: more } => bytes.extend_from_slice(more),
            Self::Replace { by } => bytes.clone_from(&files[by]),
            Self::Garbage { at, len } => {
                let mut rng = Rng::with_seed(*at as u64);
                bytes[*at..end.min(at + len)].iter_mut().for_each(|byte| *byte = rng.u8(..));
            }
        }
        bytes
    }
}

/// Every damage to a file of `len` bytes that is tried: all at each byte, or next to it for those that span several.
fn damages(path: &Path, files: &Files) -> Vec<Damage> {
    let end = files[path].len();
    let mut rng = Rng::with_seed(end as u64);
    let mut all = Vec::new();
    for at in 0..end {
        all.push(Damage::Flip { at, bit: rng.u8(..8) });
        all.push(Damage::Fill { at, len: rng.usize(1..9), byte: 0xff });
        match at % 4 {
            0 => all.push(Damage::Truncate { at }),
            1 => all.push(Damage::Fill { at, len: 1 << rng.u8(..10), byte: 0 }),
            2 => all.push(Damage::Garbage { at, len: 1 << rng.u8(..9) }),
            _ => all.push(Damage::Insert { at, len: rng.usize(1..40) }),
        }
        if at % 3 == 0 {
            let (other, len) = (rng.usize(..end), 1 << rng.u8(2..10));
            all.push(Damage::Copy { from: other, to: at, len });
            all.push(Damage::Swap { a: other, b: at, len });
        }
    }
    for len in [1, 7, 8, 12, 64, 600, 5000] {
        all.push(Damage::Append { bytes: vec![0; len] });
        all.push(Damage::Append { bytes: vec![0xff; len] });
        all.push(Damage::Append { bytes: (0..len).map(|_| rng.u8(..)).collect() });
        // The end of the file once more: whole frames that do not belong there.
        all.push(Damage::Append { bytes: files[path][end.saturating_sub(len)..].to_vec() });
    }
    let kind = |path: &Path| path.parent().map(Path::to_owned);
    let others = files.keys().filter(|other| *other != path && kind(other) == kind(path));
    all.extend(others.map(|by| Damage::Replace { by: by.clone() }));
    all
}

/// Does every case, on two threads; returns how many there were.
fn for_each_case<T: Sync>(cases: &[T], run: impl Fn(&T) -> bool + Sync) -> usize {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let before = MEMORY.current_usage();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    done.fetch_add(usize::from(run(case)), Ordering::Relaxed);
                }
            });
        }
    });
    let peak = MEMORY.peak_usage().saturating_sub(before);
    eprintln!("{} cases, memory at most {} KiB", done.load(Ordering::Relaxed), peak >> 10);
    assert!(peak < MEMORY_MAX, "some length was believed: {peak} bytes of memory");
    done.into_inner()
}

/// A killed machine with files of every kind, and what was written on it.
struct World {
    fs: SimFs,
    files: Files,
    history: History,
    /// What was there after so many writes.
    states: Vec<State>,
    keys: Vec<Bytes>,
}

/// Two tables, one newer than the other, three log segments and more, a manifest of several records.
fn world(durability: Durability) -> World {
    let fs = SimFs::new(3);
    let mut history = History::default();
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap();
        let mut written = 0..;
        for i in written.by_ref().take(24) {
            history.write(&engine, History::mixed(i), durability).await.unwrap();
        }
        engine.flush().await.unwrap();
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
        engine.wait_idle().await.unwrap();
        // One table more can be written, by the flush: no compaction puts the two together.
        fs.inject(Fault::new(Trouble::NoSpace).on(Operation::Create).at("/sst/").after(1));
        for i in written.by_ref().take(1) {
            history.write(&engine, History::mixed(i), durability).await.unwrap();
        }
        engine.flush().await.unwrap();
        // From here on the log keeps everything, in several segments.
        for i in written.take(16) {
            history.write(&engine, History::mixed(i), durability).await.unwrap();
        }
        let runs: usize = engine.stats().levels.iter().map(|level| level.runs).sum();
        assert_eq!(runs, 2);
    });
    let fs = fs.kill();
    let mut files = Files::from([read(&fs, "/db/CURRENT".into())]);
    for folder in ["manifest", "wal", "sst"] {
        let dir = Path::new("/db").join(folder);
        let names = fs.list(&dir).unwrap().into_iter();
        files.extend(names.map(|(name, _)| read(&fs, dir.join(name))));
    }
    let count = |kind| files.keys().filter(|path| path.extension() == Some(kind)).count();
    assert!(count("wal".as_ref()) >= 3 && count("sst".as_ref()) >= 2, "{:?}", files.keys());
    let edits = in_paused_time(async {
        open(&fs.fork(), config()).await.unwrap().recovery().manifest_edits
    });
    assert!(edits >= 4, "{edits} records of the manifest");
    let states: Vec<_> = (0..=history.acked.len()).map(|count| history.state(count)).collect();
    let mut keys: Vec<Bytes> = states.iter().flat_map(|state| state.keys().cloned()).collect();
    keys.sort_unstable();
    keys.dedup();
    World { fs, files, history, states, keys }
}

fn read(fs: &SimFs, path: PathBuf) -> (PathBuf, Vec<u8>) {
    let bytes = fs.read_all(&path).unwrap();
    (path, bytes)
}

/// Entries in the order in which they came, and how that ended.
type Walk = (Vec<(Bytes, Bytes)>, Result<()>);

/// What an engine showed: entries of a walk up to its end or its error, and the answer for each key.
struct Shown {
    /// Forward, backward, and forward through a snapshot.
    walks: [Walk; 3],
    gets: Vec<Result<Option<Bytes>>>,
}

impl Shown {
    async fn by(engine: &LsmEngine, keys: &[Bytes]) -> Self {
        let snapshot = engine.snapshot();
        let forward = walk(engine.scan(..)).await;
        let backward = walk(engine.scan(..).rev()).await;
        let pinned = walk(snapshot.scan(..)).await;
        let mut gets = Vec::new();
        for key in keys {
            gets.push(engine.get(key).await);
            gets.push(snapshot.get(key).await);
        }
        Self { walks: [forward, backward, pinned], gets }
    }

    fn errors(&self) -> impl Iterator<Item = &Error> {
        let walks = self.walks.iter().filter_map(|(_, end)| end.as_ref().err());
        walks.chain(self.gets.iter().filter_map(|get| get.as_ref().err()))
    }

    /// Whether a database that holds `state` can show this, where it shows anything.
    fn fits(&self, state: &State, keys: &[Bytes]) -> bool {
        let walks = self.walks.iter().enumerate().all(|(number, (entries, end))| {
            let backward = number == 1;
            let same = |(found, real): (&(Bytes, Bytes), (&Bytes, &Bytes))| {
                (&found.0, &found.1) == (real.0, real.1)
            };
            let right = if backward {
                entries.iter().zip(state.iter().rev()).all(same)
            } else {
                entries.iter().zip(state).all(same)
            };
            right
                && if end.is_ok() {
                    entries.len() == state.len()
                } else {
                    entries.len() <= state.len()
                }
        });
        let gets = self.gets.chunks(2).zip(keys).all(|(answers, key)| {
            answers.iter().flatten().all(|answer| answer.as_ref() == state.get(key))
        });
        walks && gets
    }
}

async fn walk(mut scan: Scan) -> Walk {
    let mut entries = Vec::new();
    loop {
        match scan.next().await {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(())),
            Err(error) => return (entries, Err(error)),
        }
    }
}

impl World {
    /// Damages a file, then opens and reads everything. Whether the damage changed anything in the file.
    fn survives(&self, path: &Path, damage: &Damage) -> bool {
        let bytes = damage.apply(path, &self.files);
        if bytes == self.files[path] {
            return false;
        }
        let context = || format!("{}: {damage:?}", path.display());
        let fs = self.fs.fork();
        fs.overwrite(path, bytes).unwrap();
        in_paused_time(async {
            let engine = match open(&fs, config()).await {
                Ok(engine) => engine,
                Err(error) => return self.blames((path, damage), &error, &context()),
            };
            let shown = Shown::by(&engine, &self.keys).await;
            self.judge((path, damage), &shown, &context());
            // Compactions read everything too, and must not make good data of bad.
            if context().len() % 4 == 0 {
                drop(engine.compact_range(.., CompactionMode::Full).await);
                let shown = Shown::by(&engine, &self.keys).await;
                self.judge((path, damage), &shown, &format!("{}, compacted", context()));
            }
        });
        true
    }

    /// What is shown is what was written last. A log may be a prefix where nothing says that there had been more on disk.
    fn judge(&self, (path, damage): (&Path, &Damage), shown: &Shown, context: &str) {
        shown.errors().for_each(|error| self.blames((path, damage), error, context));
        let all = self.history.acked.len();
        let least = match (kind_of(path), self.history.durable == all) {
            (Kind::Log, true) => all - 1, // of the very last write nothing that follows says that it had been on disk
            (Kind::Log, false) => 0,
            _ => all,
        };
        let fits = self.states[least..].iter().any(|state| shown.fits(state, &self.keys));
        assert!(fits, "{context}: neither an error nor what was written");
    }

    fn cut_between_records(&self, path: &Path, damage: &Damage) -> bool {
        /// Format, number and checksum of the file; docs/format.md.
        const HEADER: usize = 24;
        let Damage::Truncate { at } = damage else { return false };
        let bytes = &self.files[path];
        let next = |end: &usize| {
            let len = bytes.get(*end..)?.first_chunk::<4>()?;
            Some(end + 8 + u32::from_le_bytes(*len) as usize)
        };
        std::iter::successors(Some(HEADER), next).any(|end| end == *at)
    }

    /// The error is damage, and names exactly the file that is damaged.
    fn blames(&self, (path, damage): (&Path, &Damage), error: &Error, context: &str) {
        let Error::Corrupt { path: told, offset, .. } = error else {
            panic!("{context}: {error}");
        };
        let gone = |told: &Path| !self.files.contains_key(told);
        let right = match kind_of(path) {
            Kind::Log => told == path,
            Kind::Table => told == path,
            // What the last record of a manifest said is missed in the log, or among the tables.
            // Cut between two records it looks as if it had always ended there. Then a file is missed that went with a record
            // behind the cut, and nothing tells whether the record was lost or the file.
            Kind::Manifest => {
                told == path || (self.cut_between_records(path, damage) && gone(told))
            }
            Kind::Current => told == path,
        };
        assert!(right, "{context}: {error}");
        let len = self.files.get(told).map_or(0, Vec::len) as u64;
        assert!(*offset <= len + 6000, "{context}: {error}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Current,
    Manifest,
    Log,
    Table,
}

fn kind_of(path: &Path) -> Kind {
    match path.extension().and_then(|kind| kind.to_str()) {
        Some("wal") => Kind::Log,
        Some("sst") => Kind::Table,
        _ if path.ends_with("CURRENT") => Kind::Current,
        _ => Kind::Manifest,
    }
}

fn whatever_happens_to(kinds: &[Kind], durability: Durability) -> usize {
    let world = world(durability);
    let paths = world.files.keys().filter(|path| kinds.contains(&kind_of(path)));
    let cases: Vec<(&PathBuf, Damage)> = paths
        .flat_map(|path| damages(path, &world.files).into_iter().map(move |damage| (path, damage)))
        .collect();
    for_each_case(&cases, |(path, damage)| world.survives(path, damage))
}

#[test]
fn a_damaged_log_shows_a_prefix_or_is_corrupt() {
    assert!(whatever_happens_to(&[Kind::Log], Durability::Os) > 4000);
}

#[test]
fn a_damaged_log_that_was_on_disk_loses_nothing_in_silence() {
    assert!(whatever_happens_to(&[Kind::Log], Durability::Sync) > 4000);
}

#[test]
fn a_damaged_manifest_or_current_loses_nothing_in_silence() {
    for durability in [Durability::Os, Durability::Sync] {
        assert!(whatever_happens_to(&[Kind::Manifest, Kind::Current], durability) > 2000);
    }
}

#[test]
fn a_damaged_table_is_corrupt_where_it_is_needed() {
    assert!(whatever_happens_to(&[Kind::Table], Durability::Os) > 4000);
}

/// A table of two versions a key, tombstones and expiries, in many blocks, and its entries.
async fn table(path: &Path, compression: Compression) -> Vec<Entry> {
    let entries: Vec<Entry> = (0..120u64)
        .map(|n| {
            let key = format!("key{:03}", n / 2);
            let entry = match n % 7 {
                3 => Entry::delete(key),
                5 => Entry::put(key, vec![b'x'; 70]).with_expiry(n),
                _ => Entry::put(key, format!("{n}-").repeat(4)),
            };
            entry.with_seq(SeqNo(1000 - n))
        })
        .collect();
    let path = path.to_owned();
    let config = SSTableConfig { path, compression, block_size: 256, ..Default::default() };
    let mut builder = SSTableBuilder::new(config).await.unwrap();
    for entry in &entries {
        builder.add(entry).await.unwrap();
    }
    builder.finish().await.unwrap();
    entries
}

/// Reads a table in every way there is: entries, or the damage and its file.
async fn read_table(path: &Path, entries: &[Entry]) -> Result<()> {
    let config = SSTableConfig { path: path.to_owned(), block_cache_mb: 0, ..Default::default() };
    let reader = Arc::new(SSTableReader::open_with_config(config).await?);
    let verified = reader.verify().await;
    let mut first = Ok(());
    for entry in entries.iter().step_by(2) {
        match reader.get(&entry.key).await {
            Ok(found) => assert_eq!(found.as_ref(), Some(entry)),
            Err(error) => first = Err(error),
        }
    }
    for absent in ["", "key", "key0005", "kez"] {
        if let Ok(found) = reader.get(absent.as_bytes()).await {
            assert_eq!(found, None);
        }
    }
    let mut all = Arc::clone(&reader).iter();
    let mut left = entries.iter();
    loop {
        match all.try_next().await {
            Ok(None) => break assert_eq!(left.next(), None),
            Ok(found) => assert_eq!(found.as_ref(), left.next()),
            Err(error) => break first = Err(error),
        }
    }
    assert!(verified.is_err() || first.is_ok(), "{first:?} escaped a whole verification");
    verified
}

#[test]
fn a_damaged_table_by_itself_is_corrupt_or_right() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["none.sst", "lz4.sst", "zstd.sst"].map(|name| dir.path().join(name));
    let codecs = [Compression::None, Compression::Lz4, Compression::Zstd];
    let (mut files, mut contents) = (Files::new(), BTreeMap::new());
    for (path, codec) in names.iter().zip(codecs) {
        contents.insert(path, in_paused_time(table(path, codec)));
        files.insert(path.clone(), std::fs::read(path).unwrap());
    }
    let cases: Vec<(&PathBuf, Damage)> = names
        .iter()
        .flat_map(|path| damages(path, &files).into_iter().map(move |damage| (path, damage)))
        .collect();
    let numbers = AtomicUsize::new(0);
    let done = for_each_case(&cases, |(path, damage)| {
        let bytes = damage.apply(path, &files);
        // Another table as a whole is a table.
        if bytes == files[*path] || matches!(damage, Damage::Replace { .. }) {
            return false;
        }
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let bad = dir.path().join(format!("bad{number}.sst"));
        std::fs::write(&bad, bytes).unwrap();
        let read = in_paused_time(read_table(&bad, &contents[path]));
        OsFs.remove(&bad).unwrap();
        let named = matches!(&read, Err(Error::Corrupt { path: told, .. }) if *told == bad);
        assert!(named, "{}: {damage:?}: {read:?}", path.display());
        true
    });
    assert!(done > 4000, "{done}");
}
