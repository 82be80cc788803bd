//! What is on disk, as plain values: levels of slots of runs of table slices, and the edits that turn one version into the next.
//!
//! ```text
//! Version ─ levels[0]   one slot, no guards: runs are whole flushes, newest first
//!         ─ levels[i]   slots in key order, cut by guards; each holds up to k runs (newest first) of slices
//!         ─ tables      what each table file contains, by file number
//! ```
//!
//! Invariant: every one of them is in [`Version::check`].

mod apply;
mod base;
mod check;
mod replace;
mod shape;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use base::BaseCheck;
pub(crate) use shape::SliceSums;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{FileId, KeyRange, Level, SeqNo};

/// Everything that is on disk and live, at one instant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Version {
    /// `levels[0]` is L0: always one slot. Deeper levels begin with one slot each and are cut by guards.
    pub(crate) levels: Vec<LevelState>,
    /// Every table that a slice names, and no other.
    pub(crate) tables: BTreeMap<FileId, Arc<TableMeta>>,
    /// Above the number of every file that was ever named.
    pub(crate) next_file: FileId,
    /// Every write up to this one is in a table.
    pub(crate) last_seq: SeqNo,
    /// Log segments below this one are dead.
    pub(crate) log_floor: FileId,
}

/// Slots of one level, in key order; together they cover every key once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LevelState {
    pub(crate) slots: Vec<Arc<Slot>>,
}

/// A key range of one level and the sorted runs in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// Guard that opens the slot; empty for the first slot of a level.
    pub(crate) start: Bytes,
    /// Newest first: for each key, everything in a run is newer than anything in the runs behind it.
    pub(crate) runs: Vec<Run>,
    /// How many runs the slot is meant to hold.
    pub(crate) k: u8,
    /// Share of the reads of the hottest slot, 0..=1, as of the last time it was recorded.
    pub(crate) heat: f32,
}

/// Name of a run within its slot, from the file counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RunId(pub(crate) u64);

/// Slices in key order that do not overlap: one sorted sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) slices: Vec<TableSlice>,
}

/// A key range of a table: the unit in which data moves between runs without being rewritten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableSlice {
    pub(crate) table: FileId,
    pub(crate) range: KeyRange,
}

/// What a table file contains: constant after the table is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableMeta {
    pub(crate) file: FileId,
    /// Level it was written for.
    pub(crate) level: Level,
    /// Size of the file in bytes.
    pub(crate) file_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    /// Keys and values before compression.
    pub(crate) raw_bytes: u64,
    pub(crate) min_seq: SeqNo,
    pub(crate) max_seq: SeqNo,
    /// Wall clock at creation, in seconds since the Unix epoch.
    pub(crate) created_s: u64,
    /// In key order, at least one; the content of the table's top index.
    pub(crate) sections: Vec<SectionMeta>,
}

/// A contiguous piece of a table: its data blocks, leaf index and filter. Never crosses a guard of the level it was written for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SectionMeta {
    /// Where the first data block begins.
    pub(crate) offset: u64,
    /// Bytes of all data blocks; the leaf index follows.
    pub(crate) data_len: u32,
    /// Bytes of the leaf index block; the filter follows.
    pub(crate) leaf_len: u32,
    /// Bytes of the filter block; 0 if the table has no filters.
    pub(crate) filter_len: u32,
    pub(crate) entries: u32,
    pub(crate) tombstones: u32,
    /// Data blocks of which half the entries, or 100 of them, are tombstones.
    pub(crate) dense_blocks: u32,
    pub(crate) min_seq: SeqNo,
    pub(crate) max_seq: SeqNo,
    /// When the oldest tombstone was written, in seconds since the Unix epoch; 0 if there is none.
    pub(crate) oldest_tombstone_s: u32,
    /// When the first entry expires, in seconds since the Unix epoch; `u32::MAX` if none does.
    pub(crate) min_expiry_s: u32,
    pub(crate) min_key: Bytes,
    pub(crate) max_key: Bytes,
}

/// Changes that happen together or not at all: one record of the manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VersionEdit {
    /// Applied in order.
    pub(crate) ops: Vec<EditOp>,
    /// New value of [`Version::next_file`]; never lower than before.
    pub(crate) next_file: FileId,
    /// New value of [`Version::last_seq`] if higher than before.
    pub(crate) last_seq: SeqNo,
    /// New value of [`Version::log_floor`] if higher than before.
    pub(crate) log_floor: FileId,
}

/// One change of a [`VersionEdit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum EditOp {
    /// A new table. Some slice of the same edit must name it; tables that no slice names any more go by themselves.
    AddTable(Arc<TableMeta>),
    /// A new newest run of the slot that begins at `slot`.
    PushRun { level: Level, slot: Bytes, run: Run },
    /// Takes neighbouring runs out of a slot and puts `with`, if any, where they were.
    ReplaceRuns { level: Level, slot: Bytes, removed: Vec<RunId>, with: Option<Run> },
    /// Cuts the slots of `level` and of every deeper level at `key`; slices that reach over it are cut, no byte moves.
    AddGuard { level: Level, key: Bytes },
    /// Joins the slot of `level` that begins at `key` with the one before it. `key` must not be a guard of the level above.
    RemoveGuard { level: Level, key: Bytes },
    /// Sets how many runs a slot is meant to hold.
    SetK { level: Level, slot: Bytes, k: u8 },
    /// Records how hot a slot is, so that a reopened engine need not learn it again.
    SetHeat { level: Level, slot: Bytes, heat: f32 },
}
