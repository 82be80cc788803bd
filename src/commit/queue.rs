//! Writes that wait for the holder of the commit core.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::room::Taken;
use crate::batch::WriteBatch;
use crate::error::{Error, Result};
use crate::tally::Share;
use crate::types::SeqNo;

/// Most bytes and most requests that are committed as one group: bounds the latency of its members.
const GROUP_BYTES: usize = 1 << 20;
const GROUP_REQUESTS: usize = 1024;

/// One write on its way. Dropping it unanswered tells the caller that the outcome is unknown.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) batch: WriteBatch,
    /// Whether the answer waits until the write is on disk.
    pub(crate) sync: bool,
    /// Operations already handed to the memtable.
    pub(crate) inserted: usize,
    /// `None` if the caller holds the core itself and takes the result from there.
    pub(crate) reply: Option<oneshot::Sender<Result<SeqNo>>>,
    /// Room for it, which goes over to the memtable with the write; given back if it fails.
    pub(crate) room: Option<Taken>,
    /// Counts it until it is answered.
    pub(crate) _queued: Option<Share>,
}

impl Request {
    pub(crate) fn answer(self, result: Result<SeqNo>) {
        if let Some(reply) = self.reply {
            // A caller that went away does not need the answer.
            drop(reply.send(result));
        }
    }
}

/// First in, first out.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<VecDeque<Request>>,
}

impl Queue {
    pub(crate) fn push(&self, request: Request) {
        self.locked().push_back(request);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.locked().is_empty()
    }

    /// Moves the next group into `group`: at least one request if there is one.
    pub(crate) fn take_group(&self, group: &mut Vec<Request>) {
        let mut waiting = self.locked();
        let mut bytes = 0;
        while let Some(next) = waiting.front() {
            bytes += next.batch.bytes();
            if !group.is_empty() && (bytes > GROUP_BYTES || group.len() >= GROUP_REQUESTS) {
                return;
            }
            group.extend(waiting.pop_front());
        }
    }

    /// Answers everything that waits with `error`.
    pub(crate) fn refuse(&self, error: &Error) {
        let waiting = std::mem::take(&mut *self.locked());
        for request in waiting {
            request.answer(Err(error.clone()));
        }
    }

    /// The lock is held for a few pushes or pops, none of which can leave the queue half changed.
    fn locked(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
