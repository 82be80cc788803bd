//! Where the memory of an engine is.

use std::fmt;

use serde::Serialize;

/// What an engine holds in memory, in bytes. See [`LsmEngine::memory`](crate::LsmEngine::memory).
///
/// Read while the engine works, its numbers are of slightly different instants: a write may be in none or two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryLedger {
    /// The memtable that is written, its filter included.
    pub active_memtable: u64,
    /// Memtables that wait to be flushed.
    pub sealed_memtables: u64,
    /// Flushed memtables that scans still read, or that have not been swept yet.
    pub retired_memtables: u64,
    /// Memory of memtables that are gone, for those to come: one's at most. It is given back when little is written.
    pub spare_memtables: u64,
    /// Writes that were admitted and are not in a memtable yet.
    pub queued_writes: u64,
    /// Cached blocks.
    pub block_cache: u64,
    /// Indexes and filters of open tables.
    pub indexes_and_filters: u64,
    /// Buffers of flushes, compactions and scans: output that is gathered, and what was read ahead.
    pub buffers: u64,
    /// The sum of all above.
    pub total: u64,
    /// What the configuration grants memtables, queued writes, blocks, indexes and filters together. Retired and spare memtables
    /// and buffers come on top; so does a write that alone is larger than what is granted. Scans read ahead only while all buffers
    /// take less than half of what is granted to blocks, and at least 8 MiB.
    pub budget: u64,
    /// Writes that wait to be admitted. Their callers hold them: they are not part of the total.
    pub waiting_writes: u64,
}

impl MemoryLedger {
    pub(crate) fn summed(self) -> Self {
        let total = self.active_memtable
            + self.sealed_memtables
            + self.retired_memtables
            + self.spare_memtables
            + self.queued_writes
            + self.block_cache
            + self.indexes_and_filters
            + self.buffers;
        Self { total, ..self }
    }
}

impl fmt::Display for MemoryLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20);
        let lines = [
            ("memtable", self.active_memtable),
            ("  sealed", self.sealed_memtables),
            ("  retired", self.retired_memtables),
            ("  spare", self.spare_memtables),
            ("queued writes", self.queued_writes),
            ("block cache", self.block_cache),
            ("indexes, filters", self.indexes_and_filters),
            ("buffers", self.buffers),
        ];
        for (name, bytes) in lines {
            writeln!(f, "{name:<18}{}", mib(bytes))?;
        }
        let (total, budget) = (mib(self.total), mib(self.budget));
        write!(f, "{:<18}{total} of {budget}; {} wait", "total", mib(self.waiting_writes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_without_what_callers_hold() {
        let ledger = MemoryLedger {
            active_memtable: 1 << 20,
            sealed_memtables: 2 << 20,
            retired_memtables: 4 << 20,
            queued_writes: 8 << 20,
            block_cache: 16 << 20,
            indexes_and_filters: 32 << 20,
            buffers: 64 << 20,
            spare_memtables: 128 << 20,
            budget: 200 << 20,
            waiting_writes: 7 << 20,
            ..MemoryLedger::default()
        }
        .summed();
        assert_eq!(ledger.total, 255 << 20);
        assert!(ledger.to_string().ends_with("255.0 MiB of 200.0 MiB; 7.0 MiB wait"), "{ledger}");
    }
}
