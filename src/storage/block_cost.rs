//! What one more block costs a reader, wherever it comes from: measured in one of many reads, for the policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::env::Clock;
use crate::policy::{BlockReads, Sampler};

/// A disk that is stuck for once must not count for long.
const MOST: Duration = Duration::from_millis(10);

/// Time from the need of a block to its payload, and how often that was measured. Where to look for it in a table is not part of it,
/// nor is the wait for a thread that may read it, nor, for a scan that had to wait, the unpacking. Of a scan it is the first read, with
/// what is read ahead then. Thread-safe.
pub(crate) struct BlockCost {
    clock: Arc<dyn Clock>,
    nanos: AtomicU64,
    count: AtomicU64,
}

impl BlockCost {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, nanos: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    /// Now, if this is one of the reads that are measured: every so many of a thread.
    #[inline]
    pub(super) fn begin(&self) -> Option<Duration> {
        thread_local! {
            static READS: Sampler = const { Sampler::new() };
        }
        READS.with(Sampler::takes).then(|| self.clock.now())
    }

    /// A read that was measured is done.
    #[inline]
    pub(super) fn end(&self, begun: Option<Duration>) {
        if let Some(begun) = begun {
            self.took(self.clock.now().saturating_sub(begun));
        }
    }

    /// Now, for the rest of a read that is measured, behind its wait.
    pub(super) fn resume(&self, begun: Option<Duration>) -> Option<Duration> {
        begun.map(|_| self.clock.now())
    }

    fn took(&self, time: Duration) {
        let nanos = u64::try_from(time.min(MOST).as_nanos()).unwrap_or(0);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What was measured so far.
    pub(crate) fn so_far(&self) -> BlockReads {
        let load = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        BlockReads { nanos: load(&self.nanos), count: load(&self.count) }
    }
}

impl std::fmt::Debug for BlockCost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCost").field("so_far", &self.so_far()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;
    use crate::policy::SAMPLING;

    #[test]
    fn what_is_measured_is_summed_up_but_for_accidents() {
        let cost = BlockCost::new(Arc::new(SystemClock::default()));
        cost.end(None);
        assert_eq!(cost.so_far(), BlockReads::default());
        for nanos in [0, 300, 500] {
            cost.took(Duration::from_nanos(nanos));
        }
        assert_eq!(cost.so_far(), BlockReads { nanos: 800, count: 3 });
        cost.took(Duration::MAX);
        assert_eq!(cost.so_far(), BlockReads { nanos: 10_000_800, count: 4 });
        cost.end(Some(Duration::ZERO));
        assert_eq!(cost.so_far().count, 5);
    }

    #[test]
    fn one_read_in_many_is_measured() {
        let cost = BlockCost::new(Arc::new(SystemClock::default()));
        let measured = (0..SAMPLING * 10).filter(|_| cost.begin().is_some()).count();
        assert_eq!(measured, 10);
    }
}
