//! The one shape of everything that can be walked in key order: memtables, tables, runs and merges of them.
//!
//! Cursors are synchronous. A step that would have to wait for the disk returns [`Stop::Blocked`] with the wait as a
//! closure; whoever drives the cursor runs it where blocking is allowed and calls the same step again.
//!
//! Invariant: a step that returns [`Stop`] is continued by calling it again, or given up by a `rewind` or `seek`. Until one of
//! them succeeds, `entry` and `value` say nothing.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::types::{SeqNo, ValueKind};

/// A read that has to wait. Running it makes the step that returned it succeed when it is called again.
pub(crate) type BlockingRead = Box<dyn FnOnce() -> Result<()> + Send + 'static>;

/// Why a step did not finish.
pub(crate) enum Stop {
    /// The next block is not in memory.
    Blocked(BlockingRead),
    /// The step failed.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blocked(_) => f.write_str("Blocked"),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// One version of one key, as a cursor shows it without copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryRef<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seq: SeqNo,
    pub(crate) kind: ValueKind,
}

/// What was found for a key: one version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seq: SeqNo,
    pub(crate) kind: ValueKind,
    /// Shared with the memtable or the cached block; empty for a tombstone.
    pub(crate) value: Bytes,
}

/// Walks versions of keys in one [`Direction`](crate::types::Direction), fixed when the cursor is made.
///
/// Forward: keys ascending, versions of a key newest first. Backward: the exact reverse.
pub(crate) trait Cursor: Send {
    /// Moves to the first entry in the direction of the cursor.
    fn rewind(&mut self) -> Result<(), Stop>;

    /// Forward: moves to the first entry whose key is `key` or greater. Backward: to the last entry whose key is less.
    fn seek(&mut self, key: &[u8]) -> Result<(), Stop>;

    /// Whether nothing has this key, as bounds and filters tell without a look at entries; `hash`: [`hash_key`] of it.
    ///
    /// What is inserted later is newer than what any reader of this cursor sees.
    ///
    /// [`hash_key`]: crate::types::hash_key
    fn lacks(&self, _key: &[u8], _hash: u64) -> bool {
        false
    }

    /// Moves to the next entry, and tells whether there is one. REQUIRES: `entry` is `Some`.
    fn advance(&mut self) -> Result<bool, Stop>;

    /// The entry under the cursor; `None` before the first `rewind` or `seek`, and behind the last entry.
    fn entry(&self) -> Option<EntryRef<'_>>;

    /// The value under the cursor, without a copy; empty for a tombstone. REQUIRES: `entry` is `Some`.
    fn value(&self) -> Bytes;
}
