//! Writes that are not in a table yet: every version of every key, in order, in a [`Tree`] that readers walk without a lock.
//!
//! One memtable holds exactly the frames of one log segment, so that the log is collected by comparing two numbers.
//!
//! Invariant: inserts come in SeqNo order from the one holder of the commit core; readers need no lock and see an entry only
//! once its SeqNo is published.

mod arena;
mod filter;
mod keep;
mod leaf;
#[cfg(all(test, nori_loom))]
mod loom;
mod sync;
mod tree;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::batch::WriteOp;
use crate::cursor::{Cursor, EntryRef, Found, Stop};
use crate::types::{Direction, FileId, SeqNo, hash_key};
use filter::KeyFilter;
use keep::Chunks;
pub(crate) use keep::{Keeper, Spare};
use leaf::{Entry, Probe};
use sync::{AtomicU64, AtomicUsize};
use tree::{Tree, Walk};

/// What an entry costs beside the bytes of its key and value: handles, its share of the tree, and what is left over in chunks,
/// measured. An entry of a KiB or two may cost 6 % of its size besides.
pub(crate) const ENTRY_OVERHEAD: usize = 136;

/// Versions of keys in memory. Thread-safe; one writer, any number of readers.
pub(crate) struct Memtable {
    /// Number of the log segment that holds the same writes.
    segment: FileId,
    tree: Tree,
    /// Behind the tree, so that its entries are gone when they are given back.
    chunks: Chunks,
    filter: KeyFilter,
    bytes: AtomicUsize,
    /// Permits of the room that its writes have taken, until it is flushed.
    room: AtomicUsize,
    /// 0 while it is empty.
    first_seq: AtomicU64,
    last_seq: AtomicU64,
}

impl Memtable {
    /// `expected_bytes`: size at which it is sealed.
    pub(crate) fn new(segment: FileId, expected_bytes: usize) -> Self {
        let filter = KeyFilter::new(expected_bytes / ENTRY_OVERHEAD);
        Self {
            segment,
            tree: Tree::default(),
            chunks: Chunks::default(),
            filter,
            bytes: AtomicUsize::new(0),
            room: AtomicUsize::new(0),
            first_seq: AtomicU64::new(0),
            last_seq: AtomicU64::new(0),
        }
    }

    pub(crate) fn segment(&self) -> FileId {
        self.segment
    }

    /// Memory that the entries take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Memory that it takes as a whole, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes() + self.filter.memory()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.last_seq() == SeqNo(0)
    }

    /// Keeps permits for as long as its writes are nowhere else.
    pub(crate) fn keep_room(&self, permits: usize) {
        self.room.fetch_add(permits, Ordering::AcqRel);
    }

    /// The permits that it kept; none when called again.
    pub(crate) fn give_room(&self) -> usize {
        self.room.swap(0, Ordering::AcqRel)
    }

    /// SeqNo of the last insert; 0 while the memtable is empty.
    pub(crate) fn last_seq(&self) -> SeqNo {
        SeqNo(self.last_seq.load(Ordering::Acquire))
    }

    /// Adds a version, which `keeper` keeps. REQUIRES: `seq` is above that of every insert before.
    pub(crate) fn insert(&self, seq: SeqNo, op: &WriteOp, keeper: &mut Keeper) {
        let bytes = op.key.len() + op.value.len() + ENTRY_OVERHEAD;
        debug_assert!(seq > self.last_seq(), "inserts come in SeqNo order");
        self.filter.insert(hash_key(&op.key));
        self.tree.insert(keeper.keep(seq, op, &self.chunks));
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.first_seq.load(Ordering::Relaxed) == 0 {
            self.first_seq.store(seq.0, Ordering::Release);
        }
        self.last_seq.store(seq.0, Ordering::Release);
    }

    /// Every write after `seq`, in SeqNo order.
    pub(crate) fn ops_after(&self, seq: SeqNo) -> Vec<(SeqNo, WriteOp)> {
        let newer = self.tree.last_first().take_while(|entry| entry.seq > seq);
        let mut ops: Vec<_> = newer.map(|entry| (entry.seq, entry.op())).collect();
        ops.reverse();
        ops
    }

    /// The newest version of `key` up to `snapshot`. `hash`: [`hash_key`] of `key`.
    pub(crate) fn get(&self, key: &[u8], hash: u64, snapshot: SeqNo) -> Option<Found> {
        let first = self.first_seq.load(Ordering::Acquire);
        if first == 0 || first > snapshot.0 || !self.filter.may_contain(hash) {
            return None;
        }
        self.tree.first_from(Probe { key, seq: snapshot }, |entry| {
            let found = || Found { seq: entry.seq, kind: entry.kind, value: entry.value() };
            (entry.key() == key).then(found)
        })
    }
}

impl fmt::Debug for Memtable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memtable")
            .field("segment", &self.segment)
            .field("bytes", &self.bytes())
            .field("last_seq", &self.last_seq())
            .finish_non_exhaustive()
    }
}

/// Walks a memtable that may still grow. Never blocks.
pub(crate) struct MemtableCursor {
    memtable: Arc<Memtable>,
    walk: Walk,
}

impl MemtableCursor {
    pub(crate) fn new(memtable: Arc<Memtable>, direction: Direction) -> Self {
        Self { memtable, walk: Walk::new(direction) }
    }
}

impl Cursor for MemtableCursor {
    fn rewind(&mut self) -> Result<(), Stop> {
        self.walk.rewind(&self.memtable.tree);
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        // SeqNo::MAX comes before every version of the key, in both directions.
        self.walk.seek(&self.memtable.tree, Probe { key, seq: SeqNo::MAX });
        Ok(())
    }

    fn lacks(&self, _key: &[u8], hash: u64) -> bool {
        !self.memtable.filter.may_contain(hash)
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        self.walk.advance(&self.memtable.tree);
        Ok(self.entry().is_some())
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        let entry = self.walk.entry(&self.memtable.tree)?;
        Some(EntryRef { key: entry.key(), seq: entry.seq, kind: entry.kind })
    }

    #[inline]
    fn value(&self) -> Bytes {
        self.walk.entry(&self.memtable.tree).map(Entry::value).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ValueKind;

    fn put(key: &str, value: &str) -> WriteOp {
        WriteOp {
            key: Bytes::copy_from_slice(key.as_bytes()),
            kind: ValueKind::Put,
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    fn filled() -> Arc<Memtable> {
        let (memtable, mut keeper) = (Memtable::new(FileId(1), 16 << 10), Keeper::new(0));
        for seq in 1..=1000 {
            let op = put(&format!("key{:03}", seq * 7 % 100), &seq.to_string());
            memtable.insert(SeqNo(seq), &op, &mut keeper);
        }
        Arc::new(memtable)
    }

    #[test]
    fn a_get_finds_the_newest_version_up_to_the_snapshot() {
        let memtable = filled();
        let seq = |snapshot| {
            memtable.get(b"key007", hash_key(b"key007"), SeqNo(snapshot)).map(|found| found.seq.0)
        };
        assert_eq!(seq(u64::MAX), Some(901));
        assert_eq!((seq(901), seq(900)), (Some(901), Some(801)));
        assert_eq!((seq(1), seq(0)), (Some(1), None));
        assert_eq!(memtable.get(b"key", hash_key(b"key"), SeqNo::MAX), None);
    }

    #[test]
    fn ops_after_a_seq_come_back_in_the_order_of_the_log() {
        let ops = filled().ops_after(SeqNo(990));
        let seqs: Vec<u64> = ops.iter().map(|(seq, _)| seq.0).collect();
        assert_eq!(seqs, (991..=1000).collect::<Vec<_>>());
        assert_eq!(ops[9].1, put("key000", "1000"));
    }

    #[test]
    fn backward_is_the_exact_reverse_of_forward() {
        let all = |direction| {
            let mut cursor = MemtableCursor::new(filled(), direction);
            let mut seen = Vec::new();
            cursor.rewind().unwrap();
            while let Some(entry) = cursor.entry() {
                seen.push((entry.key.to_vec(), entry.seq));
                cursor.advance().unwrap();
            }
            seen
        };
        let mut forward = all(Direction::Forward);
        assert_eq!(forward.len(), 1000);
        assert!(
            forward.windows(2).all(|w| w[0].0 < w[1].0 || (w[0].0 == w[1].0 && w[0].1 > w[1].1))
        );
        forward.reverse();
        assert_eq!(all(Direction::Backward), forward);
    }

    #[test]
    fn a_seek_takes_every_version_of_the_key_to_the_forward_side() {
        let mut forward = MemtableCursor::new(filled(), Direction::Forward);
        forward.seek(b"key050").unwrap();
        let first = forward.entry().unwrap();
        assert_eq!((first.key, first.seq), (&b"key050"[..], SeqNo(950)));
        let mut backward = MemtableCursor::new(filled(), Direction::Backward);
        backward.seek(b"key050").unwrap();
        let last = backward.entry().unwrap();
        assert_eq!((last.key, last.seq), (&b"key049"[..], SeqNo(7)));
    }
}
