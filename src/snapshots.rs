//! Which points in time are being read: a live snapshot keeps every version that it can see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::types::SeqNo;

/// Live snapshots, with how many hold each and since when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    live: Arc<Mutex<BTreeMap<SeqNo, Holders>>>,
}

#[derive(Debug)]
struct Holders {
    count: usize,
    since: Duration,
}

/// Keeps one SeqNo readable until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    seq: SeqNo,
    snapshots: Snapshots,
}

impl Snapshots {
    /// Pins the SeqNo that `visible` returns. It is called under the lock under which a compaction reads the live snapshots:
    /// whatever is not seen by the compaction is pinned later, and so sees only what the compaction keeps anyway.
    pub(crate) fn pin(&self, now: Duration, visible: impl FnOnce() -> SeqNo) -> Pin {
        let mut live = self.locked();
        let seq = visible();
        live.entry(seq).or_insert(Holders { count: 0, since: now }).count += 1;
        Pin { seq, snapshots: self.clone() }
    }

    /// Every live snapshot, ascending.
    pub(crate) fn live(&self) -> Vec<SeqNo> {
        self.locked().keys().copied().collect()
    }

    /// Number of live snapshots, and when the oldest was taken.
    pub(crate) fn count_and_oldest(&self) -> (usize, Option<Duration>) {
        let live = self.locked();
        let count = live.values().map(|holders| holders.count).sum();
        (count, live.values().map(|holders| holders.since).min())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<SeqNo, Holders>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
    pub(crate) fn seq(&self) -> SeqNo {
        self.seq
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut live = self.snapshots.locked();
        if let Some(holders) = live.get_mut(&self.seq) {
            holders.count -= 1;
            if holders.count == 0 {
                live.remove(&self.seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seq_stays_pinned_until_its_last_holder_goes() {
        let snapshots = Snapshots::default();
        let first = snapshots.pin(Duration::ZERO, || SeqNo(7));
        let second = snapshots.pin(Duration::from_secs(1), || SeqNo(7));
        let third = snapshots.pin(Duration::from_secs(2), || SeqNo(9));
        assert_eq!(snapshots.live(), [SeqNo(7), SeqNo(9)]);
        drop(first);
        assert_eq!(snapshots.count_and_oldest(), (2, Some(Duration::ZERO)));
        drop((second, third));
        assert!(snapshots.live().is_empty());
    }
}
