//! Which slots are being worked on. A lease travels with the work; wherever the work ends or is lost, it gives the slots back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::policy::Busy;

/// Work in progress, by number.
pub(crate) struct BusyBoard {
    work: Mutex<Board>,
    /// Called when work ends.
    on_free: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Board {
    next: u64,
    work: BTreeMap<u64, Busy>,
}

/// The right to work on what a plan touches.
pub(crate) struct WorkLease {
    id: u64,
    board: Arc<BusyBoard>,
}

impl BusyBoard {
    pub(crate) fn new(on_free: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { work: Mutex::default(), on_free: Box::new(on_free) })
    }

    /// Enters work. REQUIRES: it conflicts with nothing that is entered; only the scheduler enters work.
    pub(crate) fn enter(self: &Arc<Self>, busy: Busy) -> WorkLease {
        let mut board = self.locked();
        let id = board.next;
        board.next += 1;
        board.work.insert(id, busy);
        WorkLease { id, board: Arc::clone(self) }
    }

    /// All work in progress, by number.
    pub(crate) fn list(&self) -> BTreeMap<u64, Busy> {
        self.locked().work.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.locked().work.len()
    }

    fn locked(&self) -> MutexGuard<'_, Board> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for BusyBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusyBoard").field("work", &self.len()).finish_non_exhaustive()
    }
}

impl Drop for WorkLease {
    fn drop(&mut self) {
        self.board.locked().work.remove(&self.id);
        (self.board.on_free)();
    }
}

impl std::fmt::Debug for WorkLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkLease({})", self.id)
    }
}
