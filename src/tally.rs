//! Sums of bytes that somebody holds right now: whoever holds some has a share, and dropping it takes them off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sum of bytes. Clones are the same sum.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<AtomicU64>);

/// Bytes of one holder, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    tally: Tally,
    bytes: u64,
}

impl Tally {
    /// The sum.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Counts `bytes` from now on.
    pub(crate) fn share(&self, bytes: u64) -> Share {
        let mut share = Share { tally: self.clone(), bytes: 0 };
        share.set(bytes);
        share
    }
}

impl Share {
    /// The holder has so many bytes now.
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.tally.0.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else if bytes < self.bytes {
            self.tally.0.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_the_sum_of_what_is_held() {
        let tally = Tally::default();
        let mut first = tally.share(7);
        let second = tally.share(5);
        first.set(3);
        assert_eq!(tally.bytes(), 8);
        drop(second);
        first.set(30);
        assert_eq!(tally.bytes(), 30);
        drop(first);
        assert_eq!(tally.bytes(), 0);
    }
}
