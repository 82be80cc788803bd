//! How many wait for something, counted so that nobody who loses patience is counted for ever.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts a task that waits, also if it is dropped while it does.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
