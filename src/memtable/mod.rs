//! Writes that are not in a table yet: every version of every key, in order, in a lock-free skip list.
//!
//! One memtable holds exactly the frames of one log segment, so that the log is collected by comparing two numbers.
//!
//! Invariant: inserts come in SeqNo order from the one holder of the commit core; readers need no lock and see an entry only
//! once its SeqNo is published.

mod filter;

use std::borrow::Borrow;
use std::cmp::{Ordering as Order, Reverse};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;

use crate::batch::WriteOp;
use crate::cursor::{Cursor, EntryRef, Found, Stop};
use crate::types::{Direction, FileId, SeqNo, ValueKind, hash_key};
use filter::KeyFilter;

/// What an entry costs beside the bytes of its key and value: skip-list node, handles and allocator overhead, measured.
pub(crate) const ENTRY_OVERHEAD: usize = 160;

/// Versions of keys in memory. Thread-safe; one writer, any number of readers.
pub(crate) struct Memtable {
    /// Number of the log segment that holds the same writes.
    segment: FileId,
    map: SkipMap<MemKey, MemValue>,
    filter: KeyFilter,
    bytes: AtomicUsize,
    /// Permits of the room that its writes have taken, until it is flushed.
    room: AtomicUsize,
    /// 0 while it is empty.
    first_seq: AtomicU64,
    last_seq: AtomicU64,
}

#[derive(Clone, Debug)]
struct MemValue {
    kind: ValueKind,
    value: Bytes,
}

/// Ordered by key, then newest first. The first eight bytes of the key are inline: most comparisons touch no other memory.
#[derive(Clone, Debug)]
struct MemKey {
    head: u64,
    key: Bytes,
    seq: SeqNo,
}

/// A key to look for, without owning it.
struct Probe<'a> {
    head: u64,
    key: &'a [u8],
    seq: SeqNo,
}

/// What orders a [`MemKey`] and a [`Probe`] alike.
trait Position {
    fn position(&self) -> (u64, &[u8], Reverse<SeqNo>);
}

impl Position for MemKey {
    fn position(&self) -> (u64, &[u8], Reverse<SeqNo>) {
        (self.head, &self.key, Reverse(self.seq))
    }
}

impl Position for Probe<'_> {
    fn position(&self) -> (u64, &[u8], Reverse<SeqNo>) {
        (self.head, self.key, Reverse(self.seq))
    }
}

impl PartialEq for dyn Position + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.position() == other.position()
    }
}

impl Eq for dyn Position + '_ {}

impl PartialOrd for dyn Position + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Position + '_ {
    fn cmp(&self, other: &Self) -> Order {
        self.position().cmp(&other.position())
    }
}

impl<'a> Borrow<dyn Position + 'a> for MemKey {
    fn borrow(&self) -> &(dyn Position + 'a) {
        self
    }
}

impl PartialEq for MemKey {
    fn eq(&self, other: &Self) -> bool {
        self.position() == other.position()
    }
}

impl Eq for MemKey {}

impl PartialOrd for MemKey {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for MemKey {
    fn cmp(&self, other: &Self) -> Order {
        self.position().cmp(&other.position())
    }
}

/// The first eight bytes as a big-endian number, padded with zeros: ordered like the keys wherever two heads differ.
fn head_of(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

impl Memtable {
    /// `expected_bytes`: size at which it is sealed.
    pub(crate) fn new(segment: FileId, expected_bytes: usize) -> Self {
        let filter = KeyFilter::new(expected_bytes / ENTRY_OVERHEAD);
        Self {
            segment,
            map: SkipMap::new(),
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
        self.map.is_empty()
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

    /// Adds a version. REQUIRES: `seq` is above that of every insert before.
    pub(crate) fn insert(&self, seq: SeqNo, op: WriteOp) {
        let bytes = op.key.len() + op.value.len() + ENTRY_OVERHEAD;
        let key = MemKey { head: head_of(&op.key), key: op.key, seq };
        debug_assert!(seq > self.last_seq(), "inserts come in SeqNo order");
        self.filter.insert(hash_key(&key.key));
        self.map.insert(key, MemValue { kind: op.kind, value: op.value });
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.first_seq.load(Ordering::Relaxed) == 0 {
            self.first_seq.store(seq.0, Ordering::Release);
        }
        self.last_seq.store(seq.0, Ordering::Release);
    }

    /// Every write after `seq`, in SeqNo order. Cost: a walk over the whole memtable.
    pub(crate) fn ops_after(&self, seq: SeqNo) -> Vec<(SeqNo, WriteOp)> {
        let newer = self.map.iter().filter(|entry| entry.key().seq > seq);
        let mut ops: Vec<_> = newer
            .map(|entry| {
                let value = entry.value();
                let key = entry.key().key.clone();
                (entry.key().seq, WriteOp { key, kind: value.kind, value: value.value.clone() })
            })
            .collect();
        ops.sort_unstable_by_key(|(seq, _)| *seq);
        ops
    }

    /// The newest version of `key` up to `snapshot`. `hash`: [`hash_key`] of `key`.
    pub(crate) fn get(&self, key: &[u8], hash: u64, snapshot: SeqNo) -> Option<Found> {
        let first = self.first_seq.load(Ordering::Acquire);
        if first == 0 || first > snapshot.0 || !self.filter.may_contain(hash) {
            return None;
        }
        let probe = Probe { head: head_of(key), key, seq: snapshot };
        let entry = self.map.lower_bound(Bound::Included(&probe as &dyn Position))?;
        let found = entry.key();
        (found.key == key).then(|| {
            let value = entry.value();
            Found { seq: found.seq, kind: value.kind, value: value.value.clone() }
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

/// Entries fetched at a time: the search for a place is paid once per chunk. Grows from the first to the second number.
const CHUNK: std::ops::Range<usize> = 4..128;

/// Walks a memtable that may still grow. Never blocks.
pub(crate) struct MemtableCursor {
    memtable: Arc<Memtable>,
    direction: Direction,
    /// Entries ahead; the front one is under the cursor.
    ahead: VecDeque<(MemKey, MemValue)>,
    chunk: usize,
}

impl MemtableCursor {
    pub(crate) fn new(memtable: Arc<Memtable>, direction: Direction) -> Self {
        Self { memtable, direction, ahead: VecDeque::new(), chunk: CHUNK.start }
    }

    /// Fetches the next chunk, from `bound` on in the direction of the cursor.
    fn fetch(&mut self, bound: Bound<&dyn Position>) {
        self.ahead.clear();
        let entry = |entry: crossbeam_skiplist::map::Entry<'_, MemKey, MemValue>| {
            (entry.key().clone(), entry.value().clone())
        };
        let map = &self.memtable.map;
        match self.direction {
            Direction::Forward => {
                let range = map.range::<dyn Position, _>((bound, Bound::Unbounded));
                self.ahead.extend(range.take(self.chunk).map(entry));
            }
            Direction::Backward => {
                let range = map.range::<dyn Position, _>((Bound::Unbounded, bound));
                self.ahead.extend(range.rev().take(self.chunk).map(entry));
            }
        }
        self.chunk = (self.chunk * 2).min(CHUNK.end);
    }
}

impl Cursor for MemtableCursor {
    fn rewind(&mut self) -> Result<(), Stop> {
        self.chunk = CHUNK.start;
        self.fetch(Bound::Unbounded);
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.chunk = CHUNK.start;
        // SeqNo::MAX comes before every version of the key, in both directions.
        let probe = Probe { head: head_of(key), key, seq: SeqNo::MAX };
        self.fetch(Bound::Included(&probe));
        Ok(())
    }

    fn advance(&mut self) -> Result<(), Stop> {
        if let Some((last, _)) = self.ahead.pop_front()
            && self.ahead.is_empty()
        {
            self.fetch(Bound::Excluded(&last));
        }
        Ok(())
    }

    fn entry(&self) -> Option<EntryRef<'_>> {
        let (key, value) = self.ahead.front()?;
        Some(EntryRef { key: &key.key, seq: key.seq, kind: value.kind })
    }

    fn value(&self) -> Bytes {
        self.ahead.front().map(|(_, value)| value.value.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> WriteOp {
        WriteOp {
            key: Bytes::copy_from_slice(key.as_bytes()),
            kind: ValueKind::Put,
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    fn filled() -> Arc<Memtable> {
        let memtable = Memtable::new(FileId(1), 16 << 10);
        for seq in 1..=1000 {
            memtable.insert(SeqNo(seq), put(&format!("key{:03}", seq * 7 % 100), &seq.to_string()));
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

    #[test]
    fn heads_order_like_keys() {
        let mut keys: Vec<&[u8]> =
            vec![b"", b"\0", b"a", b"a\0", b"abcdefgh", b"abcdefghi", b"\xff"];
        keys.sort_unstable();
        assert!(keys.windows(2).all(|w| head_of(w[0]) <= head_of(w[1])));
    }
}
