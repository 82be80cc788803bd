//! Memory for what memtables hold: keys and values are copied side by side into chunks.
//!
//! The caller's own buffers would be two allocations an entry, freed by another thread than the one that made them; and they may be
//! slices of something much larger, which nobody counts. Chunks of a memtable that is gone are filled again: left to the allocator,
//! their memory would stay with whichever thread had made them, and the next one to write would get more.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, BytesMut};

use super::leaf::Entry;
use crate::batch::WriteOp;
use crate::types::SeqNo;

/// Bytes of a chunk. Whoever keeps one small value keeps its chunk, which is no more than that.
const CHUNK: usize = 32 << 10;
/// Entries from this size on get an allocation of their own, so that little of a chunk is left unused.
const LARGE: usize = CHUNK / 8;

/// The writer's end: copies entries into the chunk that is being filled.
#[derive(Debug)]
pub(crate) struct Keeper {
    chunk: BytesMut,
    spare: Arc<Spare>,
}

impl Keeper {
    /// `spare_bytes`: most memory of memtables that are gone to keep for the next.
    pub(crate) fn new(spare_bytes: usize) -> Self {
        let spare = Spare { most: spare_bytes / CHUNK, chunks: Mutex::default() };
        Self { chunk: BytesMut::new(), spare: Arc::new(spare) }
    }

    /// A version of a key as an entry, with copies of key and value. `full`: takes the chunk that has no more room.
    pub(super) fn keep(&mut self, seq: SeqNo, op: &WriteOp, full: &Chunks) -> Entry {
        let len = op.key.len() + op.value.len();
        let mut own = BytesMut::new();
        let room = if len >= LARGE {
            own.reserve(len);
            &mut own
        } else {
            if self.chunk.capacity() < len {
                let filled = std::mem::replace(&mut self.chunk, self.spare.take());
                full.add(Filled { chunk: filled, spare: Arc::clone(&self.spare) });
            }
            &mut self.chunk
        };
        room.put_slice(&op.key);
        room.put_slice(&op.value);
        Entry::new(seq, op.kind, room.split().freeze(), op.key.len())
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
struct Filled {
    chunk: BytesMut,
    spare: Arc<Spare>,
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.spare.put(std::mem::take(&mut self.chunk));
    }
}

impl fmt::Debug for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filled")
    }
}

/// Chunks to be filled again.
#[derive(Debug)]
struct Spare {
    most: usize,
    chunks: Mutex<Vec<BytesMut>>,
}

impl Spare {
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

    fn locked(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::ValueKind;

    fn op(key: u64, value: usize) -> WriteOp {
        let value = vec![key.to_le_bytes()[0]; value].into();
        WriteOp { key: Bytes::copy_from_slice(&key.to_be_bytes()), kind: ValueKind::Put, value }
    }

    /// Keeps as many entries; returns them, and their chunks.
    fn kept(keeper: &mut Keeper, count: u64, value: usize) -> (Vec<Entry>, Chunks) {
        let chunks = Chunks::default();
        let keep = |seq| keeper.keep(SeqNo(seq), &op(seq, value), &chunks);
        ((1..=count).map(keep).collect(), chunks)
    }

    #[test]
    fn an_entry_is_what_was_put_whatever_its_size() {
        let mut keeper = Keeper::new(CHUNK);
        for value in [0, 1, 100, LARGE - 9, LARGE - 8, LARGE, CHUNK - 8, CHUNK, 5 * CHUNK] {
            let (entries, _chunks) = kept(&mut keeper, 50, value);
            for (seq, entry) in (1..).zip(&entries) {
                assert_eq!((entry.seq, entry.op()), (SeqNo(seq), op(seq, value)));
            }
        }
    }

    #[test]
    fn chunks_are_filled_again_up_to_a_limit() {
        let mut keeper = Keeper::new(3 * CHUNK);
        let per_chunk = (CHUNK / 1008) as u64;
        let (entries, chunks) = kept(&mut keeper, 8 * per_chunk, 1000);
        assert_eq!(keeper.spare.locked().len(), 0);
        let addresses: Vec<_> = entries.iter().map(|entry| entry.key().as_ptr()).collect();
        drop((entries, chunks));
        assert_eq!(keeper.spare.locked().len(), 3);
        let (again, _chunks) = kept(&mut keeper, 3 * per_chunk, 1000);
        assert_eq!(keeper.spare.locked().len(), 0);
        assert!(again.iter().all(|entry| addresses.contains(&entry.key().as_ptr())));
    }

    #[test]
    fn a_value_that_somebody_has_stays_as_it_is() {
        let mut keeper = Keeper::new(8 * CHUNK);
        let (entries, chunks) = kept(&mut keeper, 200, 1000);
        let values: Vec<Bytes> = entries.iter().step_by(50).map(Entry::value).collect();
        drop((entries, chunks));
        let (_entries, _chunks) = kept(&mut keeper, 400, 1000);
        for (value, seq) in values.iter().zip((1..).step_by(50)) {
            assert_eq!(value, &op(seq, 1000).value);
        }
    }
}
