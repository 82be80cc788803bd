//! The memory that writes may take: what is queued and what is in memtables shares one number of bytes.
//!
//! ```text
//! write ─ take room ─▶ queue ─▶ memtable, which keeps the room ─▶ flushed, published: the room is free again
//! ```
//!
//! Who finds no room waits in line, outside of the queue, with its deadline: nothing of its write has happened yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::waiting::Waiting;
use crate::batch::WriteBatch;
use crate::env::Clock;
use crate::error::{Error, Result};
use crate::memtable::{ENTRY_OVERHEAD, Memtable};
use crate::tally::Tally;
use crate::types::u64_of;

/// Bytes per permit: fine enough for small writes, and the largest batch has fewer of them than fit a `u32`.
const UNIT: usize = 64;
/// What writes are told that met their deadline.
const CAUSE: &str = "memtables: flushes are behind";
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Room {
    free: Arc<Semaphore>,
    units: usize,
    /// Writes that wait for room.
    waiting: AtomicUsize,
    /// Bytes of the writes that wait.
    waiting_bytes: Tally,
    /// Told when writes are refused: nobody waits for room then.
    refused: Notify,
}

/// Room that a write has taken.
#[derive(Debug)]
pub(crate) struct Taken(OwnedSemaphorePermit);

impl Taken {
    /// The write is in `memtable`, which gives the room back once it is flushed.
    pub(super) fn keep_for(self, memtable: &Memtable) {
        memtable.keep_room(self.0.num_permits());
        self.0.forget();
    }
}

impl Room {
    /// Room for so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX) / UNIT;
        let units = units.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(units)),
            units,
            waiting: AtomicUsize::new(0),
            waiting_bytes: Tally::default(),
            refused: Notify::new(),
        }
    }

    /// Permits that a write takes: a batch that is larger than all of the room takes all of it.
    fn units_of(&self, batch: &WriteBatch) -> u32 {
        let bytes = batch.bytes().saturating_add(batch.len().saturating_mul(ENTRY_OVERHEAD));
        u32::try_from((bytes / UNIT + 1).min(self.units)).unwrap_or(u32::MAX)
    }

    /// Room for `batch`, if there is some and nobody waits in front.
    pub(super) fn try_take(&self, batch: &WriteBatch) -> Result<Option<Taken>> {
        match Arc::clone(&self.free).try_acquire_many_owned(self.units_of(batch)) {
            Ok(permit) => Ok(Some(Taken(permit))),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(Error::Closed),
        }
    }

    /// Room for `batch`, in the order of the calls.
    ///
    /// `until`: on the monotonic clock. `refusal`: why writes are refused, if they are.
    ///
    /// # Errors
    /// [`Error::Stalled`] at the deadline, or the refusal; the write has not happened then.
    pub(super) async fn take(
        &self,
        batch: &WriteBatch,
        clock: &dyn Clock,
        until: Option<Duration>,
        refusal: impl Fn() -> Option<Error> + Send,
    ) -> Result<Taken> {
        let begun = clock.now();
        let _waiting = Waiting::new(&self.waiting);
        let _bytes = self.waiting_bytes.share(u64_of(batch.bytes()));
        let refused = self.refused.notified();
        tokio::pin!(refused);
        refused.as_mut().enable();
        if let Some(refusal) = refusal() {
            return Err(refusal);
        }
        let deadline = async {
            match until {
                Some(until) => clock.sleep(until.saturating_sub(clock.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = refused => Err(refusal().unwrap_or(Error::Closed)),
            permit = Arc::clone(&self.free).acquire_many_owned(self.units_of(batch)) => {
                permit.map(Taken).map_err(|_closed| Error::Closed)
            }
            () = deadline => {
                let waited = clock.now().saturating_sub(begun);
                Err(Error::Stalled { cause: CAUSE, waited, retry_after: RETRY_AFTER })
            }
        }
    }

    /// Counts a memtable that recovery filled.
    pub(super) fn occupy(&self, memtable: &Memtable) {
        let wanted = (memtable.bytes() / UNIT).min(self.free.available_permits());
        let taken = Arc::clone(&self.free)
            .try_acquire_many_owned(u32::try_from(wanted).unwrap_or(u32::MAX));
        if let Ok(permit) = taken {
            Taken(permit).keep_for(memtable);
        }
    }

    /// `memtable` is in tables: others may have its room.
    pub(super) fn free(&self, memtable: &Memtable) {
        self.free.add_permits(memtable.give_room());
    }

    /// Sends everybody away who waits.
    pub(super) fn refuse(&self) {
        self.refused.notify_waiters();
    }

    /// Whether somebody waits for room.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Bytes of the writes that wait.
    pub(super) const fn waiting_bytes(&self) -> &Tally {
        &self.waiting_bytes
    }
}
