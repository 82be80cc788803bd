//! Laws of tables: what was written is what is read, whatever the shape, the access and the damage.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::{Compression, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::cursor::{Cursor, Found, Stop};
use crate::env::{Fs, OsFs, ReadFile, WriteFile};
use crate::error::{Error, Result};
use crate::observe::{BuildMetrics, NoopMeter, ReadMetrics};
use crate::types::{
    Direction, FileId, KeyRange, Level, SeqNo, ValueKind, hash_key, u64_of, usize_of,
};
use crate::version::TableMeta;

/// All versions, in the order of a table: key ascending, number descending.
pub(super) type Model = BTreeMap<(Bytes, std::cmp::Reverse<u64>), (ValueKind, Bytes)>;
pub(super) type Row = (Bytes, SeqNo, ValueKind, Bytes);

pub(super) fn options() -> TableOptions {
    TableOptions {
        file: FileId(7),
        level: Level(1),
        block_size: 4096,
        restart_interval: 16,
        compression: Compression::None,
        bloom_bits_per_key: 10,
        created_s: 1_700_000_000,
    }
}

pub(super) struct Fixture {
    _dir: TempDir,
    pub(super) path: PathBuf,
    pub(super) meta: TableMeta,
}

/// Writes a table; `cut_every`: entries after which a section ends.
pub(super) fn write(model: &Model, options: TableOptions, cut_every: usize) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("000007.sst");
    let fs: Arc<dyn Fs> = Arc::new(OsFs);
    let metrics = BuildMetrics::new(&NoopMeter);
    let mut writer = TableWriter::create(&fs, &path, options, &metrics).unwrap();
    for (i, ((key, seq), (kind, value))) in model.iter().enumerate() {
        if i > 0 && i.is_multiple_of(cut_every) {
            writer.cut().unwrap();
        }
        writer.add(key, SeqNo(seq.0), *kind, value).unwrap();
    }
    let meta = writer.finish().unwrap();
    assert_eq!(meta.file_bytes, std::fs::metadata(&path).unwrap().len());
    Fixture { _dir: dir, path, meta }
}

pub(super) fn table_in(fs: Arc<dyn Fs>, fixture: &Fixture, cache: Arc<TableCache>) -> Arc<Table> {
    let meta = Arc::new(fixture.meta.clone());
    Table::new(fs, fixture.path.clone(), meta, cache, ReadMetrics::new(&NoopMeter))
}

fn table_on(fs: Arc<dyn Fs>, fixture: &Fixture, cache_bytes: u64) -> Arc<Table> {
    table_in(fs, fixture, TableCache::alone(cache_bytes, Helpers::none()))
}

fn open(path: &Path) -> Result<Arc<Table>> {
    let (cache, metrics) =
        (TableCache::alone(1 << 20, Helpers::none()), ReadMetrics::new(&NoopMeter));
    Table::open(Arc::new(OsFs), path.to_owned(), cache, metrics)
}

/// Drives a step to its end, waiting where it has to.
pub(super) fn finish<T>(mut step: impl FnMut() -> Result<T, Stop>) -> Result<T> {
    for _ in 0..1000 {
        match step() {
            Ok(done) => return Ok(done),
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Blocked(read)) => read()?,
        }
    }
    panic!("a step that never ends");
}

fn get(table: &Arc<Table>, key: &[u8], snapshot: u64, access: Access) -> Result<Option<Found>> {
    let mut fetch = Fetch::new(access, true);
    let wanted = (key, hash_key(key));
    finish(|| table.get(&NO_TABLES, wanted, SeqNo(snapshot), &mut fetch))
}

pub(super) fn row(cursor: &TableCursor) -> Option<Row> {
    let entry = cursor.entry()?;
    Some((Bytes::copy_from_slice(entry.key), entry.seq, entry.kind, cursor.value()))
}

pub(super) fn rows(cursor: &mut TableCursor) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    finish(|| cursor.rewind())?;
    while let Some(row) = row(cursor) {
        all.push(row);
        finish(|| cursor.advance())?;
    }
    Ok(all)
}

pub(super) fn expected(model: &Model, range: &KeyRange, direction: Direction) -> Vec<Row> {
    let in_range = model.iter().filter(|((key, _), _)| range.contains(key));
    let mut all: Vec<Row> = in_range
        .map(|((key, seq), (kind, value))| (key.clone(), SeqNo(seq.0), *kind, value.clone()))
        .collect();
    if direction == Direction::Backward {
        all.reverse();
    }
    all
}

fn newest(model: &Model, key: &Bytes, snapshot: u64) -> Option<Found> {
    use std::cmp::Reverse;
    let versions = (
        Bound::Included((key.clone(), Reverse(snapshot))),
        Bound::Included((key.clone(), Reverse(0))),
    );
    let ((_, seq), (kind, value)) = model.range(versions).next()?;
    Some(Found { seq: SeqNo(seq.0), kind: *kind, value: value.clone() })
}

/// A file system on which nothing can be read without waiting.
#[derive(Debug)]
pub(super) struct Slow;

#[derive(Debug)]
struct SlowFile(Arc<dyn ReadFile>);

impl Fs for Slow {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        Ok(Arc::new(SlowFile(OsFs.open(path)?)))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>> {
        OsFs.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFs.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsFs.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        OsFs.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        OsFs.create_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsFs.sync_dir(dir)
    }
    fn sync_file(&self, path: &Path) -> io::Result<()> {
        OsFs.sync_file(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFs.hard_link(from, to)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::any::Any + Send + Sync>> {
        OsFs.lock(path)
    }
    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        OsFs.free_space(dir)
    }
}

impl ReadFile for SlowFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn try_read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        1 => Just(Vec::new()),
        4 => proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), Just(b'a')], 0..5),
        4 => "common/long/prefix/of/every/key/[ab]{0,3}[0-9]{0,10}".prop_map(String::into_bytes),
        2 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
    .prop_map(Bytes::from)
}

fn model() -> impl Strategy<Value = Model> {
    let kind = prop_oneof![
        6 => Just(ValueKind::Put),
        2 => Just(ValueKind::Delete),
        2 => any::<u64>().prop_map(ValueKind::PutUntil)
    ];
    let value = prop_oneof![
        20 => proptest::collection::vec(any::<u8>(), 0..60),
        2 => (0usize..9000).prop_map(|len| vec![3; len]),
    ];
    let row = (key(), 0u64..12, kind, value);
    proptest::collection::vec(row, 1..200).prop_map(|rows| {
        let entry = |(key, seq, kind, value): (Bytes, u64, ValueKind, Vec<u8>)| {
            let value = if kind == ValueKind::Delete { Bytes::new() } else { value.into() };
            ((key, std::cmp::Reverse(seq)), (kind, value))
        };
        rows.into_iter().map(entry).collect()
    })
}

fn shape() -> impl Strategy<Value = (TableOptions, usize)> {
    let codec =
        prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)];
    (64usize..4096, 1usize..64, codec, 0usize..16, 1usize..120).prop_map(
        |(block_size, restart_interval, compression, bloom_bits_per_key, cut_every)| {
            let shape = TableOptions {
                block_size,
                restart_interval,
                compression,
                bloom_bits_per_key,
                ..options()
            };
            (shape, cut_every)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_get_at_any_snapshot_is_the_newest_version_by_then(
        model in model(), (options, cut_every) in shape(), others in proptest::collection::vec(key(), 5),
    ) {
        let fixture = write(&model, options, cut_every);
        let fast = open(&fixture.path).unwrap();
        prop_assert_eq!(&**fast.meta(), &fixture.meta);
        fast.verify().unwrap();
        let slow = table_on(Arc::new(Slow), &fixture, 0);
        let keys: std::collections::BTreeSet<_> = model.keys().map(|(key, _)| key).chain(&others).collect();
        for key in keys {
            for snapshot in [0, 1, 3, 6, 11, u64::MAX] {
                let expected = newest(&model, key, snapshot);
                prop_assert_eq!(&get(&fast, key, snapshot, Access::Wait).unwrap(), &expected);
                prop_assert_eq!(&get(&slow, key, snapshot, Access::Try).unwrap(), &expected);
            }
        }
    }

    #[test]
    fn cursors_show_every_entry_of_their_range_in_order(
        model in model(), (options, cut_every) in shape(), bounds in (key(), proptest::option::of(key())),
        fill_cache: bool,
    ) {
        let fixture = write(&model, options, cut_every);
        let ranges = [KeyRange::all(), KeyRange::new(bounds.0, bounds.1)];
        for range in ranges {
            for direction in [Direction::Forward, Direction::Backward] {
                let expected = expected(&model, &range, direction);
                let waits = open(&fixture.path).unwrap();
                let mut cursor = TableCursor::new(waits, range.clone(), Walk::new(direction, Access::Wait, fill_cache));
                prop_assert_eq!(&rows(&mut cursor).unwrap(), &expected);
                for cache_bytes in [0, 1 << 20] {
                    let slow = table_on(Arc::new(Slow), &fixture, cache_bytes);
                    let mut cursor = TableCursor::new(slow, range.clone(), Walk::new(direction, Access::Try, fill_cache));
                    prop_assert_eq!(&rows(&mut cursor).unwrap(), &expected);
                }
            }
        }
    }

    #[test]
    fn a_seek_goes_where_a_walk_would(
        model in model(), (options, cut_every) in shape(),
        bounds in (key(), proptest::option::of(key())),
        seeks in proptest::collection::vec((key(), 0usize..6), 1..20),
    ) {
        let fixture = write(&model, options, cut_every);
        let slow = table_on(Arc::new(Slow), &fixture, 0);
        let quick = open(&fixture.path).unwrap();
        let range = KeyRange::new(bounds.0, bounds.1);
        for direction in [Direction::Forward, Direction::Backward] {
            let all = expected(&model, &range, direction);
            let mut cursors = [
                TableCursor::new(Arc::clone(&slow), range.clone(), Walk::new(direction, Access::Try, false)),
                TableCursor::new(Arc::clone(&quick), range.clone(), Walk::new(direction, Access::Wait, true)),
            ];
            for (key, steps) in &seeks {
                let from = all.iter().position(|row| match direction {
                    Direction::Forward => row.0 >= *key,
                    Direction::Backward => row.0 < *key,
                });
                let expected = all.iter().skip(from.unwrap_or(all.len()));
                for cursor in &mut cursors {
                    finish(|| cursor.seek(key)).unwrap();
                    for expected in expected.clone().take(*steps) {
                        prop_assert_eq!(&row(cursor), &Some(expected.clone()));
                        finish(|| cursor.advance()).unwrap();
                    }
                    prop_assert_eq!(row(cursor), expected.clone().nth(*steps).cloned());
                }
            }
        }
    }

    #[test]
    fn the_blocks_of_a_range_hold_its_keys(model in model(), (options, cut_every) in shape(), start in key()) {
        let fixture = write(&model, options, cut_every);
        let table = open(&fixture.path).unwrap();
        let all = table.block_ends(&KeyRange::all()).unwrap();
        let data: u64 = fixture.meta.sections.iter().map(|section| u64::from(section.data_len)).sum();
        prop_assert_eq!(all.iter().map(|(_, bytes)| bytes).sum::<u64>(), data);
        prop_assert!(all.is_sorted_by(|a, b| a.0 <= b.0));
        prop_assert_eq!(all.first().map(|(key, _)| key), model.keys().next().map(|(key, _)| key));
        let end = model.keys().last().map(|(key, _)| key.clone());
        let range = KeyRange::new(start, end);
        let part = table.block_ends(&range).unwrap();
        prop_assert!(part.iter().all(|(key, _)| range.contains(key)));
        let holds = model.keys().any(|(key, _)| range.contains(key));
        prop_assert!(!holds || !part.is_empty());
    }
}

pub(super) fn numbered(n: usize) -> Model {
    let row = |i| {
        let key = Bytes::from(format!("key_{i:08}"));
        ((key, std::cmp::Reverse(u64_of(i) + 1)), (ValueKind::Put, Bytes::from(vec![b'v'; 40])))
    };
    (0..n).map(row).collect()
}

fn small() -> Model {
    use std::cmp::Reverse;
    let row = |key: &'static str, seq, kind, value: &'static str| {
        ((Bytes::from(key), Reverse(seq)), (kind, Bytes::from(value)))
    };
    [
        row("", 3, ValueKind::Put, "empty key"),
        row("apple", 9, ValueKind::PutUntil(1_800_000_000_000), "red red red red red red red red"),
        row("apple", 4, ValueKind::Delete, ""),
        row("apricot", 5, ValueKind::Put, "orange orange orange orange orange"),
        row("banana", 6, ValueKind::Put, "yellow yellow yellow yellow yellow"),
        row("cherry", 7, ValueKind::Delete, ""),
    ]
    .into()
}

pub(super) const CODECS: [Compression; 3] =
    [Compression::None, Compression::Lz4, Compression::Zstd];

/// Everything a reader may ask of a table: the rows, both ways, and each key by itself.
fn read_all(table: &Arc<Table>, model: &Model) -> Result<Vec<Row>> {
    let cursor = |direction| {
        TableCursor::new(
            Arc::clone(table),
            KeyRange::all(),
            Walk::new(direction, Access::Wait, false),
        )
    };
    let forward = rows(&mut cursor(Direction::Forward))?;
    let mut backward = rows(&mut cursor(Direction::Backward))?;
    backward.reverse();
    assert_eq!(forward, backward);
    for (key, _) in model.keys() {
        assert_eq!(get(table, key, u64::MAX, Access::Wait)?, newest(model, key, u64::MAX));
    }
    Ok(forward)
}

/// A damaged file answers with the truth or with `Corrupt`; `verify` never lets it pass.
fn expect_truth_or_corrupt(fixture: &Fixture, model: &Model, what: &str) {
    let truth = expected(model, &KeyRange::all(), Direction::Forward);
    let by_manifest = table_on(Arc::new(OsFs), fixture, 0);
    for table in [Ok(by_manifest), open(&fixture.path)] {
        match table.and_then(|table| Ok((read_all(&table, model)?, table))) {
            Ok((rows, table)) => {
                assert_eq!(rows, truth, "{what}");
                let verdict = table.verify();
                assert!(matches!(verdict, Err(Error::Corrupt { .. })), "{what}: {verdict:?}");
            }
            Err(Error::Corrupt { .. }) => {}
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn no_flipped_bit_and_no_truncation_gives_a_wrong_answer() {
    let model = small();
    for compression in CODECS {
        let fixture = write(&model, TableOptions { compression, block_size: 64, ..options() }, 2);
        assert_eq!(fixture.meta.sections.len(), 3);
        let bytes = std::fs::read(&fixture.path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&fixture.path, &flipped).unwrap();
            expect_truth_or_corrupt(&fixture, &model, &format!("{compression:?}, bit {bit}"));
        }
        for len in 0..bytes.len() {
            std::fs::write(&fixture.path, &bytes[..len]).unwrap();
            expect_truth_or_corrupt(&fixture, &model, &format!("{compression:?}, {len} bytes"));
        }
    }
}

#[test]
fn a_table_keeps_its_bytes() {
    let fixture = write(&small(), TableOptions { block_size: 64, ..options() }, 4);
    let bytes = std::fs::read(&fixture.path).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden: String =
        include_str!("../../tests/golden/small.sst.hex").split_whitespace().collect();
    assert_eq!(hex, golden);
}

#[test]
fn a_table_read_in_place_of_another_is_damage() {
    let model = numbered(100);
    let fixture = write(&model, options(), 1000);
    let mut other = write(&model, TableOptions { file: FileId(8), ..options() }, 1000);
    other.path.clone_from(&fixture.path);
    let table = table_on(Arc::new(OsFs), &other, 0);
    let answer = get(&table, b"key_00000001", u64::MAX, Access::Wait);
    assert!(matches!(answer, Err(Error::Corrupt { .. })));
}

#[test]
fn entries_out_of_order_or_over_the_limits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, fs): (_, Arc<dyn Fs>) = (dir.path().join("t"), Arc::new(OsFs));
    let metrics = BuildMetrics::new(&NoopMeter);
    let mut writer = TableWriter::create(&fs, &path, options(), &metrics).unwrap();
    let mut add =
        |key: &[u8], seq, value: &[u8]| writer.add(key, SeqNo(seq), ValueKind::Put, value);
    add(b"", 5, b"").unwrap();
    add(b"b", 5, b"").unwrap();
    for (key, seq) in [(b"a", 9), (b"b", 5), (b"b", 6)] {
        assert!(matches!(add(key, seq, b""), Err(Error::OutOfOrder)));
    }
    let key = vec![b'c'; MAX_KEY_BYTES + 1];
    assert!(matches!(add(&key, 1, b""), Err(Error::TooLarge { what: "key", .. })));
    let value = vec![0; MAX_VALUE_BYTES + 1];
    assert!(matches!(add(b"c", 1, &value), Err(Error::TooLarge { what: "value", .. })));
    add(b"b", 4, b"").unwrap();
    add(&key[1..], 1, b"").unwrap();
    assert_eq!(writer.finish().unwrap().entries, 4);
}

#[test]
fn a_table_that_is_given_up_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (path, fs): (_, Arc<dyn Fs>) = (dir.path().join("t"), Arc::new(OsFs));
    let metrics = BuildMetrics::new(&NoopMeter);
    let mut writer = TableWriter::create(&fs, &path, options(), &metrics).unwrap();
    writer.add(b"k", SeqNo(1), ValueKind::Put, b"v").unwrap();
    assert_eq!(fs.list(dir.path()).unwrap().len(), 1);
    writer.abandon();
    assert_eq!(fs.list(dir.path()).unwrap(), []);
}

#[test]
fn the_largest_value_is_an_entry_like_any_other() {
    let value = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    let key = Bytes::from(vec![b'k'; MAX_KEY_BYTES]);
    let mut model = numbered(3);
    model.insert((key.clone(), std::cmp::Reverse(1)), (ValueKind::PutUntil(9), value.clone()));
    model.insert((Bytes::from("z"), std::cmp::Reverse(1)), (ValueKind::Put, Bytes::from("last")));
    let fixture = write(&model, options(), 1000);
    let table = table_on(Arc::new(OsFs), &fixture, 0);
    let found = get(&table, &key, u64::MAX, Access::Wait).unwrap().unwrap();
    assert!(found.value == value && found.kind == ValueKind::PutUntil(9));
    let last = get(&table, b"z", u64::MAX, Access::Wait).unwrap().unwrap();
    assert_eq!(&last.value[..], b"last");
}

#[test]
fn a_section_ends_at_four_mebibytes_or_where_it_is_cut() {
    let row = |i: u64| {
        let key = Bytes::from(format!("{i:04}"));
        ((key, std::cmp::Reverse(1)), (ValueKind::Put, Bytes::from(vec![0; 100_000])))
    };
    let model: Model = (0..100).map(row).collect();
    let fixture = write(&model, TableOptions { block_size: 4096, ..options() }, 1000);
    assert_eq!(fixture.meta.sections.len(), 3);
    assert!(fixture.meta.sections.iter().all(|section| section.data_len <= 4 << 20));
    let table = table_on(Arc::new(OsFs), &fixture, 0);
    table.verify().unwrap();
    assert_eq!(table.pinned_bytes(), 0, "a check leaves nothing in memory");
    table.load_all().unwrap();
    assert!(table.pinned_bytes() > 0);
}

#[test]
fn versions_of_one_key_may_fill_many_blocks_and_sections() {
    let key = Bytes::from("hot");
    let row =
        |seq| ((key.clone(), std::cmp::Reverse(seq)), (ValueKind::Put, Bytes::from(vec![1; 100])));
    let mut model: Model = (1..=500).map(row).collect();
    model.insert((Bytes::from("hos"), std::cmp::Reverse(3)), (ValueKind::Put, Bytes::new()));
    model.insert((Bytes::from("hou"), std::cmp::Reverse(3)), (ValueKind::Put, Bytes::new()));
    let fixture = write(&model, TableOptions { block_size: 256, ..options() }, 100);
    assert!(fixture.meta.sections.len() > 4);
    let table = table_on(Arc::new(Slow), &fixture, 0);
    table.verify().unwrap();
    for snapshot in 0..=501 {
        let found = get(&table, &key, snapshot, Access::Try).unwrap();
        assert_eq!(found, newest(&model, &key, snapshot), "at {snapshot}");
    }
}

#[test]
fn a_table_of_an_engine_is_not_touched_before_it_is_read() {
    let mut fixture = write(&numbered(10), options(), 1000);
    fixture.path.set_file_name("missing");
    let table = table_on(Arc::new(OsFs), &fixture, 0);
    assert_eq!((table.meta().entries, table.pinned_bytes()), (10, 0));
    assert_eq!(get(&table, b"before all", u64::MAX, Access::Try).unwrap(), None);
    assert!(matches!(get(&table, b"key_00000001", 9, Access::Wait), Err(Error::Io { .. })));
}

#[test]
fn tombstones_keep_their_age_and_dense_blocks_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (path, fs): (_, Arc<dyn Fs>) = (dir.path().join("t"), Arc::new(OsFs));
    let metrics = BuildMetrics::new(&NoopMeter);
    let mut writer = TableWriter::create(&fs, &path, options(), &metrics).unwrap();
    writer.add(b"a", SeqNo(1), ValueKind::Delete, b"").unwrap();
    writer.tombstones_since(1000);
    writer.add(b"b", SeqNo(1), ValueKind::Delete, b"").unwrap();
    writer.add(b"c", SeqNo(1), ValueKind::PutUntil(5_000), b"").unwrap();
    writer.cut().unwrap();
    writer.cut().unwrap();
    writer.add(b"d", SeqNo(1), ValueKind::Put, b"").unwrap();
    let meta = writer.finish().unwrap();
    let facts = |i: usize| {
        let section = &meta.sections[i];
        (section.tombstones, section.dense_blocks, section.oldest_tombstone_s, section.min_expiry_s)
    };
    assert_eq!(meta.sections.len(), 2);
    assert_eq!((facts(0), facts(1)), ((2, 1, 1000, 5), (0, 0, 0, u32::MAX)));
}

/// Counts reads and their bytes.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    bytes: AtomicU64,
}

/// A file whose reads are counted, and wait.
#[derive(Debug)]
struct Counting(Arc<dyn ReadFile>, Arc<Counts>);

impl ReadFile for Counting {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.reads.fetch_add(1, Ordering::Relaxed);
        self.1.bytes.fetch_add(u64_of(buf.len()), Ordering::Relaxed);
        self.0.read_exact_at(buf, offset)
    }
    fn try_read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

/// Counts the reads of a table from now on.
fn counting(table: &Arc<Table>, fixture: &Fixture) -> Arc<Counts> {
    let counts = Arc::<Counts>::default();
    let file = Counting(OsFs.open(&fixture.path).unwrap(), Arc::clone(&counts));
    table.set_file(Arc::new(file));
    counts
}

/// A table whose indexes and filters were read, with a block cache of so many bytes, and what has been read of it.
fn counted(fixture: &Fixture, cache: u64) -> (Arc<Table>, Arc<Counts>) {
    let table = table_on(Arc::new(OsFs), fixture, cache);
    let counts = counting(&table, fixture);
    table.load_all().unwrap();
    (table, counts)
}

/// 300 entries, one in the middle with a large value.
fn with_large_value(bytes: usize) -> Model {
    let mut model = numbered(300);
    let (_, middle) = model.values_mut().nth(150).unwrap();
    *middle = Bytes::from(vec![b'x'; bytes]);
    model
}

#[test]
fn a_scan_reads_ahead_in_large_pieces() {
    let fixture = write(&numbered(40_000), options(), usize::MAX);
    for (access, most) in [(Access::Wait, 20), (Access::Try, 25)] {
        let table = table_on(Arc::new(OsFs), &fixture, 0);
        let counts = counting(&table, &fixture);
        let cursor = |range| {
            TableCursor::new(
                Arc::clone(&table),
                range,
                Walk::new(Direction::Forward, access, false),
            )
        };
        assert_eq!(rows(&mut cursor(KeyRange::all())).unwrap().len(), 40_000);
        let reads = counts.reads.load(Ordering::Relaxed);
        assert!(reads <= most, "{access:?}: {reads} reads for {} bytes", fixture.meta.file_bytes);
        counts.bytes.store(0, Ordering::Relaxed);
        let ten = KeyRange::new("key_00000100".into(), Some("key_00000110".into()));
        assert_eq!(rows(&mut cursor(ten)).unwrap().len(), 10);
        let bytes = counts.bytes.load(Ordering::Relaxed);
        assert!(bytes <= 2 * 4500, "a short range reads its blocks only: {bytes}");
    }
}

#[test]
fn a_scan_reads_at_once_what_its_limit_may_need() {
    let fixture = write(&numbered(40_000), options(), usize::MAX);
    let (table, counts) = counted(&fixture, 0);
    for direction in [Direction::Forward, Direction::Backward] {
        // Reads and bytes of scans from many places.
        let cost = |entries: usize, limit| {
            counts.reads.store(0, Ordering::Relaxed);
            counts.bytes.store(0, Ordering::Relaxed);
            for start in 0..20 {
                let walk = Walk { limit, ..Walk::new(direction, Access::Try, false) };
                let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
                let key = format!("key_{:08}", 5000 + start * 1500);
                finish(|| cursor.seek(key.as_bytes())).unwrap();
                for _ in 1..entries {
                    assert!(finish(|| cursor.advance()).unwrap());
                }
            }
            (counts.reads.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed))
        };
        let (one, limited, unlimited) = (cost(1, Some(1)), cost(150, Some(150)), cost(150, None));
        assert!(one.0 <= 21 && one.1 <= 25 * 4500, "one entry is in one block: {one:?}");
        assert!(unlimited.0 >= 38, "{direction:?}: {unlimited:?}");
        assert!(limited.0 <= 21, "{direction:?}: {limited:?}");
        assert!(limited.1 < unlimited.1, "{direction:?}: {limited:?}, {unlimited:?}");
        let (few, wide) = (cost(150, Some(140)), cost(600, Some(600)));
        assert!(few.1 < unlimited.1, "a limit that is a little too low: {few:?}, {unlimited:?}");
        assert!(wide.0 <= 30, "{direction:?}: {wide:?}");
        let (long, none) = (cost(2000, Some(2000)), cost(2000, None));
        assert!(long.0 < none.0 && long.1 < none.1, "{direction:?}: {long:?}, {none:?}");
    }
}

#[test]
fn a_scan_with_a_large_limit_that_ends_early_finds_its_blocks_again() {
    let fixture = write(&numbered(40_000), options(), usize::MAX);
    for limit in [None, Some(100), Some(10_000), Some(usize::MAX)] {
        let (table, counts) = counted(&fixture, 1 << 20);
        let read = || {
            counts.bytes.store(0, Ordering::Relaxed);
            let walk = Walk { limit, ..Walk::new(Direction::Forward, Access::Try, true) };
            let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
            finish(|| cursor.seek(b"key_00005000")).unwrap();
            for _ in 1..50 {
                assert!(finish(|| cursor.advance()).unwrap());
            }
            counts.bytes.load(Ordering::Relaxed)
        };
        assert!(read() > 0);
        assert_eq!(read(), 0, "{limit:?}");
    }
}

#[test]
fn a_scan_that_begins_with_a_large_value_finds_it_again() {
    let model = with_large_value(300 << 10);
    let fixture = write(&model, options(), usize::MAX);
    let (table, counts) = counted(&fixture, 8 << 20);
    let read = || {
        counts.bytes.store(0, Ordering::Relaxed);
        let walk = Walk::new(Direction::Forward, Access::Try, true);
        let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
        finish(|| cursor.seek(b"key_00000150")).unwrap();
        counts.bytes.load(Ordering::Relaxed)
    };
    assert!(read() > 300_000);
    assert_eq!(read(), 0);
}

#[test]
fn a_scan_that_seeks_again_and_again_reads_less_than_its_limit_each_time() {
    let fixture = write(&numbered(40_000), options(), usize::MAX);
    let (table, counts) = counted(&fixture, 0);
    let walk = Walk { limit: Some(10_000), ..Walk::new(Direction::Forward, Access::Try, false) };
    let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
    let mut read = |key: usize| {
        counts.bytes.store(0, Ordering::Relaxed);
        finish(|| cursor.seek(format!("key_{key:08}").as_bytes())).unwrap();
        counts.bytes.load(Ordering::Relaxed)
    };
    assert!(read(0) > 60_000, "what the limit tells of a scan that begins");
    for key in (5000..40_000).step_by(5000) {
        assert!((1..30_000).contains(&read(key)), "{}", read(key));
    }
}

#[test]
fn a_scan_of_small_values_does_not_read_a_large_one_ahead() {
    let model = with_large_value(1 << 20);
    let fixture = write(&model, options(), usize::MAX);
    let (table, counts) = counted(&fixture, 0);
    for direction in [Direction::Forward, Direction::Backward] {
        for limit in [None, Some(140)] {
            counts.bytes.store(0, Ordering::Relaxed);
            let walk = Walk { limit, ..Walk::new(direction, Access::Try, false) };
            let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
            finish(|| cursor.rewind()).unwrap();
            for _ in 1..140 {
                assert!(finish(|| cursor.advance()).unwrap());
            }
            let bytes = counts.bytes.load(Ordering::Relaxed);
            assert!(bytes < 50_000, "{direction:?}, {limit:?}: {bytes}");
        }
    }
    assert_eq!(read_all(&table, &model).unwrap().len(), 300);
}

#[test]
fn a_compaction_measures_nothing_for_readers() {
    let fixture = write(&numbered(200), options(), usize::MAX);
    let table = table_on(Arc::new(OsFs), &fixture, 0);
    let read = |fill_cache| {
        for _ in 0..100 {
            let walk = Walk::new(Direction::Forward, Access::Wait, fill_cache);
            let mut cursor = TableCursor::new(Arc::clone(&table), KeyRange::all(), walk);
            assert_eq!(rows(&mut cursor).unwrap().len(), 200);
        }
        table.cache().block_cost().so_far().count
    };
    assert_eq!(read(false), 0);
    assert!((2..=4).contains(&read(true)), "one scan in 32");
}

#[test]
fn a_seek_reads_no_more_than_a_new_scan_does() {
    let fixture = write(&numbered(40_000), options(), usize::MAX);
    let table = table_on(Arc::new(OsFs), &fixture, 0);
    let counts = counting(&table, &fixture);
    for direction in [Direction::Forward, Direction::Backward] {
        let all = KeyRange::all();
        let mut cursor =
            TableCursor::new(Arc::clone(&table), all, Walk::new(direction, Access::Try, false));
        assert_eq!(rows(&mut cursor).unwrap().len(), 40_000);
        for n in [30_000, 10_000, 20_000] {
            counts.bytes.store(0, Ordering::Relaxed);
            finish(|| cursor.seek(format!("key_{n:08}").as_bytes())).unwrap();
            let bytes = counts.bytes.load(Ordering::Relaxed);
            assert!(bytes <= 4500, "{direction:?}: {bytes}");
        }
    }
}

#[test]
fn a_million_entries_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, fs): (_, Arc<dyn Fs>) = (dir.path().join("t"), Arc::new(OsFs));
    let metrics = BuildMetrics::new(&NoopMeter);
    let mut writer = TableWriter::create(&fs, &path, options(), &metrics).unwrap();
    for i in 0..1_000_000u64 {
        writer
            .add(format!("{:010}", i * 2).as_bytes(), SeqNo(i), ValueKind::Put, b"0123456789")
            .unwrap();
    }
    let estimate = writer.bytes_written();
    let meta = writer.finish().unwrap();
    assert!(estimate.abs_diff(meta.file_bytes) < meta.file_bytes / 20, "{estimate}");
    let table = open(&path).unwrap();
    let mut cursor = TableCursor::new(
        Arc::clone(&table),
        KeyRange::all(),
        Walk::new(Direction::Forward, Access::Wait, false),
    );
    cursor.rewind().unwrap();
    let mut seen = 0u64;
    while let Some(entry) = cursor.entry() {
        assert_eq!(entry.seq, SeqNo(seen));
        seen += 1;
        cursor.advance().unwrap();
    }
    assert_eq!(seen, 1_000_000);
    for i in (0..2_000_000u64).step_by(997) {
        let found = get(&table, format!("{i:010}").as_bytes(), u64::MAX, Access::Try).unwrap();
        assert_eq!(found.map(|found| found.seq), (i % 2 == 0).then_some(SeqNo(i / 2)));
    }
    assert!(usize_of(table.pinned_bytes()) < 4_000_000);
}

/// A table of `fixture` with another number, in a cache that it shares with others.
fn shared_table(fixture: &Fixture, number: u64, cache: &Arc<TableCache>) -> Arc<Table> {
    let path = fixture.path.with_file_name(format!("{number}"));
    std::fs::copy(&fixture.path, &path).unwrap();
    let meta = Arc::new(fixture.meta.clone());
    Table::new(Arc::new(OsFs), path, meta, Arc::clone(cache), ReadMetrics::new(&NoopMeter))
}

#[test]
fn indexes_and_filters_stay_within_their_bytes_and_go_with_their_tables() {
    let fixture = write(&numbered(2000), options(), 1000);
    let alone = table_on(Arc::new(OsFs), &fixture, 0);
    alone.load_all().unwrap();
    let one = alone.pinned_bytes();
    assert!(one > 2000, "{one}");
    let budget = one * 8;
    let cache = TableCache::with(budget, Some(budget), (100, one * 3), Helpers::none());
    let tables: Vec<_> = (0..10).map(|n| shared_table(&fixture, n, &cache)).collect();
    for round in 0..3 {
        for table in &tables {
            let found = get(table, b"key_00000007", u64::MAX, Access::Wait).unwrap();
            assert!(found.is_some());
            table.load_all().unwrap();
            assert!(cache.pinned_bytes() <= one * 3, "round {round}");
        }
    }
    assert!(cache.pinned_bytes() >= one * 2, "what there is room for stays");
    let sum: u64 = tables.iter().map(|table| table.pinned_bytes()).sum();
    assert_eq!(sum, cache.pinned_bytes(), "what is counted is what is held");
    assert!(cache.blocks().capacity() <= budget - one * 2, "blocks get the rest");
    let held = tables.last().unwrap().open_now().unwrap();
    drop(tables);
    assert_eq!(cache.open_files(), 1, "a reader holds one still");
    drop(held);
    assert_eq!((cache.open_files(), cache.pinned_bytes()), (0, 0));
}

#[test]
fn indexes_and_filters_that_are_read_stay_when_those_of_other_sections_go() {
    let fixture = write(&numbered(4000), options(), 100);
    let alone = table_on(Arc::new(OsFs), &fixture, 0);
    alone.load_all().unwrap();
    let max = alone.pinned_bytes() / 4;
    let cache = TableCache::with(0, Some(0), (100, max), Helpers::none());
    let table = shared_table(&fixture, 0, &cache);
    let counts = counting(&table, &fixture);
    let read = |n: u64| {
        let before = counts.reads.load(Ordering::Relaxed);
        let key = format!("key_{n:08}");
        assert!(get(&table, key.as_bytes(), u64::MAX, Access::Wait).unwrap().is_some());
        assert!(cache.pinned_bytes() <= max, "{n}");
        counts.reads.load(Ordering::Relaxed) - before
    };
    // Reads of indexes and filters: of one section now and then, and of all the others in between.
    let (mut hot, mut cold) = (0, 0);
    for _ in 0..3 {
        for other in (150..4000).step_by(100) {
            cold += read(other) - 1;
            hot += read(7) - 1;
        }
    }
    assert!(cold > 2 * 2 * 39, "{cold}");
    assert!(hot <= 2 * 2, "what is read again and again stays: {hot}");
    assert_eq!(cache.open_files(), 1, "the table stays open");
}

#[test]
fn what_only_a_reader_holds_still_drives_out_nothing_more() {
    let fixture = write(&numbered(4000), options(), 100);
    let alone = table_on(Arc::new(OsFs), &fixture, 0);
    alone.load_all().unwrap();
    let max = alone.pinned_bytes() / 2;
    let cache = TableCache::with(0, Some(0), (100, max), Helpers::none());
    let table = shared_table(&fixture, 0, &cache);
    let read = |n: u64| {
        let key = format!("key_{n:08}");
        assert!(get(&table, key.as_bytes(), u64::MAX, Access::Wait).unwrap().is_some());
    };
    // One who looks at the tables of before, as a lookup does until it ends.
    let mut held = Vec::new();
    for n in (50..4000).step_by(100) {
        held.push(cache.open_tables());
        read(n);
        let kept = table.pinned_bytes();
        assert!(kept <= max && (n < 2000 || kept > max / 8 * 7), "{n}: {kept} of {max}");
    }
    drop(held);
    assert_eq!(table.pinned_bytes(), cache.pinned_bytes());
}

#[test]
fn a_reader_keeps_a_table_usable_that_is_closed_meanwhile() {
    let fixture = write(&numbered(500), options(), 1000);
    let cache = TableCache::with(0, Some(0), (1, 1), Helpers::none());
    let slow: Vec<Arc<Table>> =
        (0..3).map(|_| table_in(Arc::new(Slow), &fixture, Arc::clone(&cache))).collect();
    let mut fetches: Vec<_> = (0..3).map(|_| Fetch::new(Access::Try, true)).collect();
    let mut found = [false; 3];
    // Each step of one closes the tables of the others.
    for _ in 0..20 {
        for ((table, fetch), found) in slow.iter().zip(&mut fetches).zip(&mut found) {
            let wanted = (&b"key_00000007"[..], hash_key(b"key_00000007"));
            match table.get(&NO_TABLES, wanted, SeqNo::MAX, fetch) {
                Ok(entry) => *found = entry.is_some(),
                Err(Stop::Blocked(read)) => read().unwrap(),
                Err(Stop::Failed(error)) => panic!("{error}"),
            }
        }
    }
    assert_eq!(found, [true; 3], "a lookup keeps what it waited for");
}
