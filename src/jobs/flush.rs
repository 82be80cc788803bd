//! A sealed memtable becomes tables of L0: one sorted run, its sections cut at the guards of L1.

use std::sync::Arc;

use crate::config::Compression;
use crate::error::Result;
use crate::jobs::Cancel;
use crate::jobs::output::{OutputPlan, Outputs, write_tables};
use crate::jobs::retain::Retain;
use crate::memtable::{Memtable, MemtableCursor};
use crate::storage::store::Store;
use crate::types::{Direction, KeyRange, Level, SeqNo};
use crate::version::{EditOp, Run, RunId, Version};

/// What a flush works on.
#[derive(Debug)]
pub(crate) struct FlushJob {
    pub(crate) store: Arc<Store>,
    /// Sealed: it does not grow any more.
    pub(crate) memtable: Arc<Memtable>,
    pub(crate) version: Arc<Version>,
    pub(crate) snapshots: Vec<SeqNo>,
    pub(crate) compression: Compression,
}

impl FlushJob {
    /// Writes the tables. Blocks. No table at all if nothing of the memtable is needed any more.
    ///
    /// # Errors
    /// Those of the file system; nothing is left behind then.
    pub(crate) fn run(self, cancel: &Cancel) -> Result<Outputs> {
        let guards = self.version.level(Level::L0.below()).map(|level| level.guards().cloned());
        let plan = OutputPlan {
            level: Level::L0,
            compression: self.compression,
            guards: guards.into_iter().flatten().collect(),
            pace: None, // a slow flush would hold up writers
            tombstones_since_s: 0,
        };
        let mut retain = Retain::new(self.snapshots, self.store.env().clock.wall_ms(), None);
        let mut cursor = MemtableCursor::new(self.memtable, Direction::Forward);
        write_tables(&self.store, &mut cursor, &mut retain, plan, cancel)
    }
}

/// The edit that puts flushed tables into L0 as its newest run.
pub(crate) fn flush_ops(outputs: &Outputs, run: RunId) -> Vec<EditOp> {
    if outputs.tables.is_empty() {
        return Vec::new();
    }
    let mut ops: Vec<_> = outputs.tables.iter().cloned().map(EditOp::AddTable).collect();
    let run = Run { id: run, slices: outputs.slices(&KeyRange::all()) };
    ops.push(EditOp::PushRun { level: Level::L0, slot: bytes::Bytes::new(), run });
    ops
}
