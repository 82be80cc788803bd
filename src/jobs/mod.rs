//! Pieces of work from start to end: recovery, flush, compaction, checkpoint, verification, repair. They block, know no actor, and answer with values.

pub(crate) mod checkpoint;
pub(crate) mod compact;
pub(crate) mod flush;
pub(crate) mod output;
pub(crate) mod pace;
pub(crate) mod recover;
pub(crate) mod repair;
pub(crate) mod retain;
pub(crate) mod salvage;
pub(crate) mod unreadable;
pub(crate) mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Tells running jobs to stop. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks every job that looks at this flag to stop soon.
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Lets jobs run again.
    pub(crate) fn renew(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// # Errors
    /// [`Error::Closed`] once it is cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}
