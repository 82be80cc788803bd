//! What one more block costs a reader, wherever it comes from: measured in one of many reads, for the policy.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::env::Clock;
use crate::policy::SAMPLING;

/// Each measurement counts as one in so many.
const WEIGHT: u64 = 32;
/// A disk that is stuck for once must not count for long.
const MOST: Duration = Duration::from_millis(1);

/// Average time from the need of a block to its payload. Where to look for it in a table is not part of that, nor is the wait for a
/// thread that may read it. Thread-safe; of two measurements at the same instant one may be lost.
pub(crate) struct BlockCost {
    clock: Arc<dyn Clock>,
    /// Sixteenths of nanoseconds; 0 before the first measurement.
    average: AtomicU64,
}

impl BlockCost {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, average: AtomicU64::new(0) }
    }

    /// Now, if this is one of the reads that are measured: every so many of a thread.
    #[inline]
    pub(super) fn begin(&self) -> Option<Duration> {
        thread_local! {
            static READS: Cell<u64> = const { Cell::new(0) };
        }
        let count = READS.get().wrapping_add(1);
        READS.set(count);
        count.is_multiple_of(SAMPLING).then(|| self.clock.now())
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
        let sample = u64::try_from(time.min(MOST).as_nanos()).unwrap_or(0) * 16;
        if sample == 0 {
            return; // a clock that stands still measures nothing
        }
        let average = self.average.load(Ordering::Relaxed);
        let next = match average {
            0 => sample,
            _ => average - average / WEIGHT + sample / WEIGHT,
        };
        self.average.store(next, Ordering::Relaxed);
    }

    /// Nanoseconds; `None` if nothing was measured yet.
    pub(crate) fn nanos(&self) -> Option<f64> {
        let average = self.average.load(Ordering::Relaxed);
        (average > 0).then_some(average as f64 / 16.0)
    }
}

impl std::fmt::Debug for BlockCost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCost").field("nanos", &self.nanos()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemClock;

    #[test]
    fn the_average_goes_to_where_the_measurements_are() {
        let cost = BlockCost::new(Arc::new(SystemClock::default()));
        assert_eq!(cost.nanos(), None);
        cost.took(Duration::ZERO);
        assert_eq!(cost.nanos(), None, "nothing was measured");
        cost.took(Duration::from_nanos(300));
        assert_eq!(cost.nanos(), Some(300.0));
        for _ in 0..10 {
            cost.took(Duration::from_micros(100));
        }
        assert!(cost.nanos().is_some_and(|nanos| (20_000.0..40_000.0).contains(&nanos)));
        for _ in 0..1000 {
            cost.took(Duration::from_nanos(300));
        }
        assert!(cost.nanos().is_some_and(|nanos| (298.0..310.0).contains(&nanos)), "{cost:?}");
        cost.took(Duration::MAX);
        assert!(cost.nanos().is_some_and(|nanos| (30_000.0..40_000.0).contains(&nanos)));
    }

    #[test]
    fn one_read_in_many_is_measured() {
        let cost = BlockCost::new(Arc::new(SystemClock::default()));
        let measured = (0..SAMPLING * 10).filter(|_| cost.begin().is_some()).count();
        assert_eq!(measured, 10);
    }
}
