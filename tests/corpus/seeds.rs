//! Files as an engine makes them, of every shape that a fuzzer could miss for long: where its corpus begins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nori_lsm::env::Fs;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::sstable::{Compression, Entry, SSTableBuilder, SSTableConfig};
use nori_lsm::{CompactionMode, Durability, LsmEngine, SeqNo, WriteBatch, WriteOptions};

use super::targets::world::{History, config, in_paused_time, open};

/// Target, name, bytes.
type Seed = (&'static str, String, Vec<u8>);

/// Seeds that are the same whenever they are made.
pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = tables();
    let blocks = seeds.iter().filter(|(_, name, _)| name.starts_with("none"));
    let blocks: Vec<Seed> = blocks.flat_map(|(_, name, bytes)| blocks_of(name, bytes)).collect();
    seeds.extend(blocks);
    seeds.extend(logs());
    seeds.extend(programs());
    seeds
}

/// Entries of every kind: versions, tombstones, expiries, shared prefixes, empty and binary keys, values of all sizes.
fn entries(shape: &str) -> Vec<Entry> {
    let numbered = |count: u64, key: fn(u64) -> String| -> Vec<Entry> {
        let entry = |n: u64| {
            let entry = match n % 7 {
                3 => Entry::delete(key(n)),
                5 => Entry::put(key(n), vec![b'x'; 30]).with_expiry(1000 + n),
                _ => {
                    Entry::put(key(n), format!("{n}-").repeat(usize::try_from(1 + n % 5).unwrap()))
                }
            };
            entry.with_seq(SeqNo(1000 - n))
        };
        (0..count).map(entry).collect()
    };
    match shape {
        "one" => vec![Entry::put("key", "value").with_seq(SeqNo(1))],
        "empty-key" => vec![Entry::put("", "").with_seq(SeqNo(u64::MAX)), Entry::delete("a")],
        "same-seq" => (b'a'..=b'z').map(|key| Entry::put(vec![key; 3], vec![key])).collect(),
        "versions" => numbered(60, |n| format!("key{}", n / 20)),
        "tombstones" => {
            (10..40).map(|n| Entry::delete(format!("{n}")).with_seq(SeqNo(n))).collect()
        }
        "binary" => (0..40_u8).map(|n| Entry::put(vec![n * 6, 0, 0xff, n], vec![n; 2])).collect(),
        "long-keys" => numbered(12, |n| format!("{}{n:02}", "common/prefix/".repeat(9))),
        "large-value" => vec![Entry::put("a", vec![b'v'; 1500]), Entry::put("b", "small")],
        _ => numbered(90, |n| format!("key{n:03}")),
    }
}

const SHAPES: [&str; 9] = [
    "one",
    "empty-key",
    "same-seq",
    "versions",
    "tombstones",
    "binary",
    "long-keys",
    "large-value",
    "mixed",
];

fn tables() -> Vec<Seed> {
    let dir = tempfile::tempdir().unwrap();
    let mut seeds = Vec::new();
    let sizes = [(64, 1, 0), (256, 16, 10), (4096, 3, 10)];
    let codecs =
        [("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
    for (name, compression) in codecs {
        for (n, shape) in SHAPES.into_iter().enumerate() {
            if compression != Compression::None && !matches!(shape, "mixed" | "large-value") {
                continue;
            }
            let (block_size, restart_interval, bloom_bits_per_key) = sizes[n % sizes.len()];
            let path = dir.path().join(format!("{name}-{shape}"));
            let config = SSTableConfig {
                path: path.clone(),
                compression,
                block_size,
                restart_interval,
                bloom_bits_per_key,
                ..Default::default()
            };
            in_paused_time(async {
                let mut builder = SSTableBuilder::new(config).await.unwrap();
                for entry in entries(shape) {
                    builder.add(&entry).await.unwrap();
                }
                builder.finish().await.unwrap();
            });
            let bytes = std::fs::read(path).unwrap();
            seeds.push(("sstable", format!("{name}-{shape}"), bytes));
        }
    }
    seeds
}

/// Payloads of the first data blocks of a table: each ends where its trailer says that it is a data block of this length.
fn blocks_of(name: &str, table: &[u8]) -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut at = 0;
    for number in 0..3 {
        let ends = (at..table.len().saturating_sub(8)).find(|&end| {
            let len = u32::try_from(end - at).unwrap();
            table[end..end + 8] == [&len.to_le_bytes()[..], &[0, 0, 0, 0]].concat()
        });
        let Some(end) = ends else { break };
        seeds.push(("block", format!("{name}-{number}"), table[at..end].to_vec()));
        at = end + 12;
    }
    seeds
}

/// Writes `count` batches of the usual mix.
async fn write(engine: &LsmEngine, from: usize, count: usize, durability: Durability) {
    for i in from..from + count {
        let mut batch = WriteBatch::default();
        for (key, value) in History::mixed(i) {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            };
        }
        let ttl = (i % 6 == 5).then(|| std::time::Duration::from_secs(3600));
        let options = WriteOptions { durability: Some(durability), ttl, deadline: None };
        engine.write(batch, options).await.ok();
    }
}

/// The segments of a log, one behind the other.
fn log_of(fs: &SimFs) -> Vec<u8> {
    let files = files_in(fs, "wal");
    files.values().flatten().copied().collect()
}

fn files_in(fs: &SimFs, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = Path::new("/db").join(folder);
    let paths = fs.list(&dir).unwrap().into_iter().map(|(name, _)| dir.join(name));
    paths.map(|path| (path.clone(), fs.read_all(&path).unwrap())).collect()
}

fn logs() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |name: &str, writes: usize, durability, faults: &[Fault]| {
        let fs = SimFs::new(1);
        in_paused_time(async {
            // No table can be written, so the log keeps everything.
            let engine = open(&fs, config()).await.unwrap();
            fs.inject(Fault::new(Trouble::NoSpace).on(Operation::Create).at("/sst/"));
            faults.iter().for_each(|fault| fs.inject(fault.clone()));
            write(&engine, 0, writes, durability).await;
        });
        let mut log = log_of(&fs);
        log.truncate(6000);
        seeds.push(("wal", name.to_owned(), log));
    };
    add("begun", 0, Durability::Os, &[]);
    add("one", 1, Durability::Os, &[]);
    add("some", 8, Durability::Os, &[]);
    add("synced", 8, Durability::Sync, &[]);
    add("segments", 24, Durability::Os, &[]);
    add("segments-synced", 24, Durability::Sync, &[]);
    let sync = Fault::new(Trouble::Io).on(Operation::Sync).at("/wal/").after(4).once();
    add("sync-failed", 9, Durability::Sync, &[sync]);
    let append = Fault::new(Trouble::Io).on(Operation::Append).at("/wal/").after(3).times(2);
    add("append-failed", 9, Durability::Os, &[append]);
    let (_, _, some) = seeds.iter().find(|(_, name, _)| name == "some").unwrap().clone();
    seeds.push(("wal", "torn".into(), some[..some.len() - 7].to_vec()));
    seeds.push(("wal", "zeros-behind".into(), [&some[..], &[0; 300]].concat()));
    seeds
}

/// Manifests at every stage of a database, and `tables` with every table that any of them names. They depend on the time.
pub(crate) fn manifests_and_tables() -> Vec<(String, Vec<u8>)> {
    let fs = SimFs::new(1);
    let (mut tables, mut seeds) = (BTreeMap::new(), Vec::new());
    in_paused_time(async {
        let engine = open(&fs, config()).await.unwrap();
        for stage in 0..10 {
            write(&engine, stage * 7, 5, Durability::Os).await;
            match stage % 4 {
                1 => engine.flush().await.unwrap(),
                3 => engine.compact_range(.., CompactionMode::Full).await.unwrap(),
                _ => engine.wait_idle().await.unwrap(),
            }
            let (_, manifest) = files_in(&fs, "manifest").pop_last().unwrap();
            seeds.push((format!("stage-{stage}"), manifest));
            tables.extend(files_in(&fs, "sst"));
        }
        engine.shutdown().await.unwrap();
        let (_, manifest) = files_in(&fs, "manifest").pop_last().unwrap();
        seeds.push(("shut-down".to_owned(), manifest.clone()));
        seeds.push(("torn".to_owned(), manifest[..manifest.len() - 5].to_vec()));
        tables.extend(files_in(&fs, "sst"));
    });
    let mut all = Vec::new();
    for (path, table) in tables {
        let number: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        all.extend([number, table.len() as u64].map(u64::to_le_bytes).concat());
        all.extend(table);
    }
    seeds.push(("tables".to_owned(), all));
    seeds
}

/// Programs that do everything, in some order.
fn programs() -> Vec<Seed> {
    let mut rng = fastrand::Rng::with_seed(1);
    let program = |n: usize| -> Seed {
        let len = 20 + n * 20;
        ("engine", format!("program-{n:02}"), (0..len).map(|_| rng.u8(..)).collect())
    };
    (0..16).map(program).collect()
}
