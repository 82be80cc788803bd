//! The table library from outside: what its README promises.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nori_lsm::observe::{Counter, Gauge, Histogram, Labels, Meter, NoopMeter, VizEvent};
use nori_lsm::sstable::{
    Compression, Entry, Error, Result, SSTableBuilder, SSTableConfig, SSTableMetadata,
    SSTableReader,
};
use nori_lsm::{MAX_KEY_BYTES, SeqNo};
use tempfile::TempDir;

const CODECS: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

fn config(dir: &TempDir) -> SSTableConfig {
    SSTableConfig { path: dir.path().join("data.sst"), ..Default::default() }
}

fn numbered(n: usize) -> Vec<Entry> {
    let value = |i: usize| format!("value {i} ").repeat(8);
    (0..n).map(|i| Entry::put(format!("key_{i:08}"), value(i))).collect()
}

async fn build(config: SSTableConfig, entries: &[Entry]) -> SSTableMetadata {
    let mut builder = SSTableBuilder::new(config).await.unwrap();
    for entry in entries {
        builder.add(entry).await.unwrap();
    }
    builder.finish().await.unwrap()
}

async fn read_all(reader: &Arc<SSTableReader>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut iter = Arc::clone(reader).iter();
    while let Some(entry) = iter.try_next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

#[tokio::test]
async fn the_snippets_of_the_readme_hold() {
    let dir = TempDir::new().unwrap();
    let config = SSTableConfig {
        path: dir.path().join("data.sst"),
        estimated_entries: 1000,
        compression: Compression::Lz4,
        block_cache_mb: 64,
        ..Default::default()
    };
    let path = config.path.clone();
    let mut builder = SSTableBuilder::new(config).await.unwrap();
    builder.add(&Entry::put("key1", "value1")).await.unwrap();
    builder.add(&Entry::put("key2", "value2")).await.unwrap();
    builder.add(&Entry::delete("key3")).await.unwrap();
    assert_eq!(builder.finish().await.unwrap().entry_count, 3);

    let reader = Arc::new(SSTableReader::open(path).await.unwrap());
    let found = reader.get(b"key1").await.unwrap().unwrap();
    assert_eq!(found.value.as_deref(), Some(&b"value1"[..]));
    let tombstone = reader.get(b"key3").await.unwrap().unwrap();
    assert!(tombstone.is_tombstone() && tombstone.value.is_none());
    assert_eq!(reader.get(b"key4").await.unwrap(), None);
    assert_eq!(read_all(&reader).await.unwrap().len(), 3);
    let mut range = reader.iter_range("key1".into(), "key3".into());
    let first = range.try_next().await.unwrap().unwrap();
    let second = range.try_next().await.unwrap().unwrap();
    assert_eq!((&first.key[..], &second.key[..]), (&b"key1"[..], &b"key2"[..]));
    assert_eq!(range.try_next().await.unwrap(), None);
    assert_eq!(range.try_next().await.unwrap(), None, "and stays at the end");
}

#[tokio::test]
async fn every_shape_gives_back_what_was_added() {
    for compression in CODECS {
        for (block_size, restart_interval, bloom_bits_per_key, estimated_entries) in
            [(64, 1, 0, 0), (256, 3, 1, 1), (4096, 16, 10, 1_000_000), (1 << 20, 1024, 32, 5)]
        {
            let dir = TempDir::new().unwrap();
            let config = SSTableConfig {
                block_size,
                restart_interval,
                compression,
                bloom_bits_per_key,
                estimated_entries,
                ..config(&dir)
            };
            let entries = numbered(2000);
            build(config.clone(), &entries).await;
            let reader = Arc::new(SSTableReader::open_with_config(config).await.unwrap());
            assert_eq!(read_all(&reader).await.unwrap(), entries);
            for entry in &entries {
                assert_eq!(reader.get(&entry.key).await.unwrap().as_ref(), Some(entry));
            }
            reader.verify().await.unwrap();
        }
    }
}

#[tokio::test]
async fn fields_of_the_configuration_act() {
    let entries = numbered(5000);
    let size = async |change: fn(&mut SSTableConfig)| {
        let dir = TempDir::new().unwrap();
        let mut config = SSTableConfig { compression: Compression::None, ..config(&dir) };
        change(&mut config);
        build(config, &entries).await.file_size
    };
    let plain = size(|_| {}).await;
    assert!(size(|c| c.compression = Compression::Lz4).await < plain / 2);
    assert!(size(|c| c.compression = Compression::Zstd).await < plain / 2);
    assert!(size(|c| c.bloom_bits_per_key = 0).await + 5000 < plain);
    assert!(size(|c| c.restart_interval = 1).await > plain);
    assert!(size(|c| c.block_size = 64).await > plain);
    assert_eq!(size(|c| c.estimated_entries = 0).await, plain, "a guess changes nothing on disk");
}

#[tokio::test]
async fn nonsense_in_the_configuration_is_refused() {
    type Spoil = fn(&mut SSTableConfig);
    let cases: [(&str, Spoil); 5] = [
        ("block_size", |c| c.block_size = 63),
        ("restart_interval", |c| c.restart_interval = 0),
        ("bloom_bits_per_key", |c| c.bloom_bits_per_key = 33),
        ("block_cache_mb", |c| c.block_cache_mb = usize::MAX),
        ("path", |c| c.path = PathBuf::new()),
    ];
    for (name, spoil) in cases {
        let dir = TempDir::new().unwrap();
        let mut config = config(&dir);
        spoil(&mut config);
        match SSTableBuilder::new(config).await {
            Err(Error::Config { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn entries_out_of_order_are_refused_and_the_builder_goes_on() {
    let dir = TempDir::new().unwrap();
    let mut builder = SSTableBuilder::new(config(&dir)).await.unwrap();
    builder.add(&Entry::put("", "the empty key is a key")).await.unwrap();
    builder.add(&Entry::put("b", "new").with_seq(SeqNo(2))).await.unwrap();
    let refused = [
        Entry::put("a", "behind"),
        Entry::put("b", "same number").with_seq(SeqNo(2)),
        Entry::put("b", "newer behind older").with_seq(SeqNo(3)),
    ];
    for entry in refused {
        assert!(matches!(builder.add(&entry).await, Err(Error::OutOfOrder)));
    }
    let long = Entry::put(vec![b'z'; MAX_KEY_BYTES + 1], "");
    assert!(matches!(builder.add(&long).await, Err(Error::TooLarge { what: "key", .. })));
    builder.add(&Entry::put("b", "old").with_seq(SeqNo(1)).with_expiry(77)).await.unwrap();
    assert_eq!(builder.finish().await.unwrap().entry_count, 3);
    let reader = Arc::new(SSTableReader::open(config(&dir).path).await.unwrap());
    assert_eq!(reader.get(b"b").await.unwrap().unwrap().seq, SeqNo(2), "the newest version");
    let all = read_all(&reader).await.unwrap();
    assert_eq!(all[0].key, Bytes::new());
    assert_eq!((all[2].seq, all[2].expires_at_ms), (SeqNo(1), Some(77)));
}

#[tokio::test]
async fn a_table_without_entries_is_a_table() {
    let dir = TempDir::new().unwrap();
    let meta = build(config(&dir), &[]).await;
    assert_eq!((meta.entry_count, meta.min_key), (0, None));
    let reader = Arc::new(SSTableReader::open(config(&dir).path).await.unwrap());
    assert_eq!(reader.get(b"").await.unwrap(), None);
    assert_eq!(read_all(&reader).await.unwrap(), []);
    reader.verify().await.unwrap();
}

#[tokio::test]
async fn a_seek_goes_forward_and_back_within_the_range() {
    let dir = TempDir::new().unwrap();
    build(config(&dir), &numbered(5000)).await;
    let reader = Arc::new(SSTableReader::open(config(&dir).path).await.unwrap());
    let mut iter = reader.iter_range("key_00000100".into(), "key_00004000".into());
    for (target, lands) in [
        ("key_00003000", Some("key_00003000")),
        ("key_00000999x", Some("key_00001000")),
        ("a", Some("key_00000100")),
        ("key_00003999", Some("key_00003999")),
        ("key_00004000", None),
        ("key_00000200", Some("key_00000200")),
    ] {
        iter.seek(target.as_bytes()).await.unwrap();
        let key = iter.try_next().await.unwrap().map(|entry| entry.key);
        assert_eq!(key.as_deref(), lands.map(str::as_bytes), "{target}");
    }
    let next = iter.try_next().await.unwrap().unwrap();
    assert_eq!(&next.key[..], b"key_00000201");
}

#[tokio::test]
async fn a_dropped_builder_leaves_nothing_and_a_stale_one_is_in_nobodys_way() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("data.sst.tmp"), "left by a crash").unwrap();
    let mut builder = SSTableBuilder::new(config(&dir)).await.unwrap();
    builder.add(&Entry::put("k", "v")).await.unwrap();
    assert!(!config(&dir).path.exists(), "no table before it is whole");
    drop(builder);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn damage_is_an_error_with_path_and_offset() {
    let dir = TempDir::new().unwrap();
    let config = SSTableConfig { compression: Compression::None, ..config(&dir) };
    build(config.clone(), &numbered(1000)).await;
    let mut bytes = std::fs::read(&config.path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&config.path, &bytes).unwrap();
    let reader = Arc::new(SSTableReader::open(config.path.clone()).await.unwrap());
    for answer in
        [reader.get(b"key_00000001").await.map(|_| ()), read_all(&reader).await.map(|_| ())]
    {
        match answer {
            Err(Error::Corrupt { path, offset, .. }) => {
                assert_eq!((path, offset), (config.path.clone(), 0))
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(reader.get(b"key_00000900").await.unwrap().is_some(), "other blocks are fine");
    std::fs::write(&config.path, b"not a table").unwrap();
    let opened = SSTableReader::open(config.path).await;
    assert!(matches!(opened, Err(Error::Corrupt { .. })));
    let missing = SSTableReader::open(dir.path().join("none")).await;
    assert!(matches!(missing, Err(Error::Io { op: "open", .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_read_one_table_at_once() {
    let dir = TempDir::new().unwrap();
    let entries = Arc::new(numbered(20_000));
    build(config(&dir), &entries).await;
    let small = SSTableConfig { block_cache_mb: 1, ..config(&dir) };
    let reader = Arc::new(SSTableReader::open_with_config(small).await.unwrap());
    let tasks = (0..8).map(|task| {
        let (reader, entries) = (Arc::clone(&reader), Arc::clone(&entries));
        tokio::spawn(async move {
            for i in (task..entries.len()).step_by(41) {
                assert_eq!(reader.get(&entries[i].key).await.unwrap().as_ref(), Some(&entries[i]));
            }
            assert_eq!(read_all(&reader).await.unwrap().len(), entries.len());
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Keeps every number, by metric name and first label.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, f64>>>);

struct Series(Recorder, String);

impl Recorder {
    fn series(&self, name: &str, labels: Labels) -> Series {
        let label = labels.first().map(|(_, value)| format!("/{value}")).unwrap_or_default();
        Series(self.clone(), format!("{name}{label}"))
    }

    fn take(&self) -> BTreeMap<String, f64> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Series {
    fn record(&self, value: f64) {
        *self.0.0.lock().unwrap().entry(self.1.clone()).or_default() += value;
    }
}

impl Counter for Series {
    fn inc(&self, by: u64) {
        self.record(f64::from(u32::try_from(by).unwrap()));
    }
}

impl Gauge for Series {
    fn set(&self, _: i64) {}
}

impl Histogram for Series {
    fn observe(&self, value: f64) {
        assert!(value > 0.0 && value < 60_000.0, "{}: {value}", self.1);
        self.record(value);
    }
}

impl Meter for Recorder {
    fn counter(&self, name: &'static str, labels: Labels) -> Box<dyn Counter> {
        Box::new(self.series(name, labels))
    }
    fn gauge(&self, name: &'static str, labels: Labels) -> Box<dyn Gauge> {
        Box::new(self.series(name, labels))
    }
    fn histo(&self, name: &'static str, _: &'static [f64], labels: Labels) -> Box<dyn Histogram> {
        Box::new(self.series(name, labels))
    }
    fn emit(&self, _: VizEvent) {}
}

#[tokio::test]
async fn every_metric_reaches_the_meter() {
    let dir = TempDir::new().unwrap();
    let recorder = Recorder::default();
    let mut builder =
        SSTableBuilder::new_with_meter(config(&dir), Box::new(recorder.clone())).await.unwrap();
    for entry in numbered(1000) {
        builder.add(&entry).await.unwrap();
    }
    let meta = builder.finish().await.unwrap();
    let built = recorder.take();
    assert!(built["sstable_build_duration_ms"] > 0.0);
    assert_eq!(built["sstable_entries_written"], 1000.0);
    assert!(built["sstable_blocks_flushed"] > 10.0);
    assert_eq!(built["sstable_bytes_written"], f64::from(u32::try_from(meta.file_size).unwrap()));
    assert!(built["sstable_compression_ratio"] > 2.0);

    let reader = SSTableReader::open_with_meter(config(&dir).path, Box::new(recorder.clone()));
    let reader = reader.await.unwrap();
    assert!(recorder.take()["sstable_open_duration_ms"] > 0.0);
    reader.get(b"key_00000500").await.unwrap().unwrap();
    let cold = recorder.take();
    assert!(cold["sstable_get_duration_ms/hit"] > 0.0);
    assert_eq!(cold["sstable_bloom_checks/pass"], 1.0);
    assert_eq!((cold["sstable_block_reads"], cold["sstable_block_cache_misses"]), (1.0, 1.0));
    reader.get(b"key_00000501").await.unwrap().unwrap();
    let warm = recorder.take();
    assert_eq!(warm["sstable_block_cache_hits"], 1.0);
    assert!(!warm.contains_key("sstable_block_reads"));
    for i in 0..1000 {
        assert_eq!(reader.get(format!("key_00000500{i}").as_bytes()).await.unwrap(), None);
    }
    let absent = recorder.take();
    assert!(absent["sstable_bloom_checks/skip"] > 950.0);
    assert!(absent["sstable_get_duration_ms/bloom_skip"] > 0.0);
    assert!(absent["sstable_get_duration_ms/miss"] > 0.0, "a filter lets some pass");
}

#[tokio::test]
async fn the_block_cache_has_the_size_it_was_given() {
    let dir = TempDir::new().unwrap();
    build(config(&dir), &numbered(1000)).await;
    for (block_cache_mb, hits) in [(0, None), (1, Some(1.0))] {
        let config = SSTableConfig { block_cache_mb, ..config(&dir) };
        let recorder = Recorder::default();
        let meter = Box::new(recorder.clone());
        let reader = SSTableReader::open_with_config_and_meter(config, meter).await.unwrap();
        for _ in 0..2 {
            reader.get(b"key_00000500").await.unwrap().unwrap();
        }
        assert_eq!(recorder.take().get("sstable_block_cache_hits").copied(), hits);
    }
}

#[test]
fn futures_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let config = SSTableConfig::default;
    is_send(&SSTableBuilder::new_with_meter(config(), Box::new(NoopMeter)));
    is_send(&SSTableReader::open_with_config(config()));
    is_send(&async {
        let mut builder = SSTableBuilder::new(config()).await?;
        builder.add(&Entry::put("k", "v")).await?;
        builder.finish().await?;
        let reader = Arc::new(SSTableReader::open("x".into()).await?);
        reader.get(b"k").await?;
        reader.verify().await?;
        let mut iter = reader.iter();
        iter.seek(b"k").await?;
        iter.try_next().await
    });
}
