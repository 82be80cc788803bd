//! A world for tests: a disk that forgets what was not synced, breaks on demand, and clocks that obey.
//!
//! Everything follows from seeds and from the order of calls, so a failure is seen again by running it again.
//!
//! ```
//! use std::path::Path;
//! use nori_lsm::env::{Fs, sim::SimFs};
//!
//! # fn main() -> std::io::Result<()> {
//! let fs = SimFs::new(1);
//! fs.create(Path::new("/a"))?.append(&[std::io::IoSlice::new(b"lost")])?;
//! let after = (0..9).map(|seed| fs.fork().crash(seed)).find(|fs| fs.open(Path::new("/a")).is_err());
//! assert!(after.is_some(), "its directory was never synced");
//! # Ok(())
//! # }
//! ```

mod clock;
mod disk;
mod fault;
mod fs;
mod latency;

use std::sync::Arc;

pub use clock::{ManualClock, VirtualClock};
pub use fault::{Fault, Operation, Trouble};
pub use fs::SimFs;
pub use latency::Latency;

use super::{Blocking, Clock, Env};
use crate::observe::NoopMeter;

/// An [`Env`] with this disk and this clock, in which disk jobs run where they are asked for.
#[must_use]
pub fn sim_env(fs: &SimFs, clock: impl Clock) -> Env {
    Env {
        fs: Arc::new(fs.clone()),
        clock: Arc::new(clock),
        meter: Arc::new(NoopMeter),
        blocking: Blocking::Inline,
    }
}
