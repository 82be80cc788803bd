//! Memory for what memtables hold: keys and values are copied side by side into chunks, each of which goes with the last of them.
//!
//! The caller's own buffers would be two allocations an entry, freed by another thread than the one that made them; and they may be
//! slices of something much larger, which nobody counts.

use bytes::{BufMut, BytesMut};

use super::leaf::Entry;
use crate::batch::WriteOp;
use crate::types::SeqNo;

/// Bytes of a chunk. Whoever keeps one small value keeps its chunk, which is no more than that.
const CHUNK: usize = 32 << 10;
/// Entries from this size on get an allocation of their own, so that little of a chunk is left unused.
const LARGE: usize = CHUNK / 8;

/// The chunk that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    chunk: BytesMut,
}

impl Keeper {
    /// A version of a key as an entry, with copies of key and value.
    pub(super) fn keep(&mut self, seq: SeqNo, op: &WriteOp) -> Entry {
        let len = op.key.len() + op.value.len();
        let mut own = BytesMut::new();
        let room = if len >= LARGE { &mut own } else { &mut self.chunk };
        if room.capacity() < len {
            *room = BytesMut::with_capacity(len.max(if len >= LARGE { 0 } else { CHUNK }));
        }
        room.put_slice(&op.key);
        room.put_slice(&op.value);
        Entry::new(seq, op.kind, room.split().freeze(), op.key.len())
    }
}
