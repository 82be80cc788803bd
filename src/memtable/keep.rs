//! Memory for what memtables hold: keys and values are copied side by side into chunks.
//!
//! The caller's own buffers would be two allocations an entry, freed by another thread than the one that made them; and they may be
//! slices of something much larger, which nobody counts. Chunks of a memtable that is gone are filled again: left to the allocator,
//! their memory would stay with whichever thread had made them, and the next one to write would get more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, BytesMut};

use super::leaf::Entry;
use crate::batch::WriteOp;
use crate::types::{SeqNo, u64_of};

/// Bytes of a chunk. Whoever keeps one small value keeps its chunk, which is no more than that.
const CHUNK: usize = 32 << 10;
/// Entries from this size on get an allocation of their own, so that little of a chunk is left unused.
const LARGE: usize = CHUNK / 16;

/// The writer's end: copies entries into the chunk that is being filled.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// Empty: what is in front of it was split off.
    room: BytesMut,
    /// Bytes of large entries for which no chunk was given up yet.
    owed: usize,
    spare: Arc<Spare>,
}

impl Keeper {
    /// `spare_bytes`: most memory of memtables that are gone to keep for the next.
    pub(crate) fn new(spare_bytes: usize) -> Self {
        let spare = Spare { most: spare_bytes / CHUNK, chunks: Mutex::default() };
        Self { room: spare.take(), owed: 0, spare: Arc::new(spare) }
    }

    pub(crate) fn spare(&self) -> Arc<Spare> {
        Arc::clone(&self.spare)
    }

    /// A version of a key as an entry, with copies of key and value. `chunks`: gets each chunk that has no more room.
    pub(super) fn keep(&mut self, seq: SeqNo, op: &WriteOp, chunks: &Chunks) -> Entry {
        let (key, value) = (&op.key, &op.value);
        let len = key.len() + value.len();
        let bytes = if len < LARGE {
            if self.room.capacity() < len {
                let chunk = std::mem::replace(&mut self.room, self.spare.take());
                chunks.add(Filled { chunk, spare: Arc::clone(&self.spare) });
            }
            self.room.put_slice(key);
            self.room.put_slice(value);
            self.room.split()
        } else {
            // In place of what it may take, or both would be there.
            self.owed += len;
            if self.owed >= CHUNK {
                self.spare.give_up(self.owed / CHUNK);
                self.owed %= CHUNK;
            }
            let mut own = BytesMut::with_capacity(len);
            own.put_slice(key);
            own.put_slice(value);
            own
        };
        Entry::new(seq, op.kind, bytes.freeze(), key.len())
    }
}

/// The chunks of a memtable. REQUIRES: dropped behind the entries that lie in them.
#[derive(Debug, Default)]
pub(super) struct Chunks(Mutex<Vec<Filled>>);

impl Chunks {
    fn add(&self, filled: Filled) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(filled);
    }
}

/// A chunk without room, and where it goes when nothing in it is needed any more.
#[derive(Debug)]
struct Filled {
    chunk: BytesMut,
    spare: Arc<Spare>,
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.spare.put(std::mem::take(&mut self.chunk));
    }
}

/// Chunks to be filled again.
#[derive(Debug)]
pub(crate) struct Spare {
    most: usize,
    chunks: Mutex<Vec<BytesMut>>,
}

impl Spare {
    /// Memory that it has.
    pub(crate) fn bytes(&self) -> u64 {
        u64_of(self.locked().len() * CHUNK)
    }

    /// Gives everything back.
    pub(crate) fn clear(&self) {
        self.give_up(usize::MAX);
    }

    fn take(&self) -> BytesMut {
        let spare = self.locked().pop();
        spare.unwrap_or_else(|| BytesMut::with_capacity(CHUNK))
    }

    /// Takes a chunk back, unless somebody still has a value in it: then it goes with that.
    fn put(&self, mut chunk: BytesMut) {
        if chunk.try_reclaim(CHUNK) {
            let mut chunks = self.locked();
            if chunks.len() < self.most {
                chunks.push(chunk);
            }
        }
    }

    /// Gives back as many chunks, if it has them.
    fn give_up(&self, count: usize) {
        let mut chunks = self.locked();
        let left = chunks.len().saturating_sub(count);
        let given = chunks.split_off(left);
        drop(chunks);
        drop(given); // without the lock
    }

    fn locked(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memtable;
    use super::*;
    use crate::types::{FileId, ValueKind, hash_key};

    fn op(key: u64, value: usize) -> WriteOp {
        let kind = if value == 0 { ValueKind::Delete } else { ValueKind::PutUntil(key) };
        let value = vec![key.to_le_bytes()[0]; value].into();
        WriteOp { key: key.to_be_bytes().to_vec().into(), kind, value }
    }

    /// A memtable of as many entries.
    fn filled(keeper: &mut Keeper, count: u64, value: usize) -> Memtable {
        let memtable = Memtable::new(FileId(1), CHUNK);
        (1..=count).for_each(|n| memtable.insert(SeqNo(n), &op(n, value), keeper));
        memtable
    }

    fn holds(memtable: &Memtable, count: u64, value: usize) -> bool {
        let expected = (1..=count).map(|n| (SeqNo(n), op(n, value)));
        memtable.ops_after(SeqNo(0)).into_iter().eq(expected)
    }

    fn spares(keeper: &Keeper) -> usize {
        keeper.spare.locked().len()
    }

    #[test]
    fn an_entry_is_what_was_put_whatever_its_size_in_memory_new_or_used() {
        let mut keeper = Keeper::new(100 * CHUNK);
        for value in [0, 1, 100, LARGE - 9, LARGE - 8, LARGE, CHUNK - 8, CHUNK, 5 * CHUNK] {
            for _ in 0..2 {
                let memtable = filled(&mut keeper, 200, value);
                assert!(holds(&memtable, 200, value), "{value}");
            }
        }
        for (key, value) in [(0, 0), (0, 5), (64 << 10, 0), (64 << 10, 7)] {
            let (key, value) = (vec![1; key].into(), vec![2; value].into());
            let put = WriteOp { key, kind: ValueKind::Put, value };
            let memtable = Memtable::new(FileId(1), CHUNK);
            memtable.insert(SeqNo(1), &put, &mut keeper);
            assert_eq!(memtable.ops_after(SeqNo(0)), [(SeqNo(1), put)]);
        }
    }

    #[test]
    fn chunks_of_a_memtable_that_is_gone_are_filled_again_up_to_a_limit() {
        let mut keeper = Keeper::new(3 * CHUNK);
        let count = 8 * (CHUNK / 1008) as u64;
        let memtable = filled(&mut keeper, count, 1000);
        let at = |memtable: &Memtable| -> Vec<_> {
            let ops = memtable.ops_after(SeqNo(0)).into_iter();
            ops.map(|(_, op)| op.key.as_ptr()).collect()
        };
        let places = at(&memtable);
        assert_eq!(spares(&keeper), 0);
        drop(memtable);
        assert_eq!(spares(&keeper), 3);
        assert_eq!(keeper.spare().bytes(), u64_of(3 * CHUNK));
        // Behind what is left of the last chunk.
        let again = filled(&mut keeper, count / 2, 1000);
        assert_eq!(spares(&keeper), 0);
        assert!(at(&again).iter().filter(|place| places.contains(place)).count() >= 3 * 32);
        assert!(holds(&again, count / 2, 1000));
    }

    #[test]
    fn what_is_not_filled_again_is_given_back() {
        let mut keeper = Keeper::new(100 * CHUNK);
        drop(filled(&mut keeper, 1000, 1000));
        let before = spares(&keeper);
        assert!(before >= 30);
        let _large = filled(&mut keeper, 3 * 16, CHUNK / 8);
        assert_eq!(spares(&keeper), before - 6);
        keeper.spare().clear();
        assert_eq!(spares(&keeper), 0);
    }

    #[test]
    fn a_chunk_that_somebody_has_a_value_of_is_left_to_them() {
        let mut keeper = Keeper::new(100 * CHUNK);
        let memtable = filled(&mut keeper, 1000, 1000);
        let key = |n: u64| n.to_be_bytes();
        let value = |n| memtable.get(&key(n), hash_key(&key(n)), SeqNo::MAX).unwrap().value;
        let values = [value(1), value(500)];
        let chunks = memtable.chunks.0.lock().unwrap().len();
        drop(memtable);
        assert_eq!(spares(&keeper), chunks - 2);
        let again = filled(&mut keeper, 2000, 1000);
        assert!(holds(&again, 2000, 1000));
        assert_eq!(values, [op(1, 1000).value, op(500, 1000).value]);
    }
}
