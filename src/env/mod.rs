//! The seam to the world: files, clock, meter. Nothing in the crate touches the disk or reads the time but through an [`Env`].
//!
//! [`OsFs`] and [`SystemClock`] are the real thing; the feature `sim` has a disk that forgets and a clock that is turned by hand.

mod memory;
mod os;
#[cfg(feature = "sim")]
pub mod sim;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use memory::memory_limit;
pub use os::{OsFs, SystemClock};

use crate::error::{Error, Result};
use crate::observe::{Meter, NoopMeter};

/// The world an engine lives in. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Env {
    /// Files and directories.
    pub fs: Arc<dyn Fs>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where metrics and events go.
    pub meter: Arc<dyn Meter>,
    /// Where work that waits for the disk runs.
    pub blocking: Blocking,
}

impl Default for Env {
    fn default() -> Self {
        Self {
            fs: Arc::new(OsFs),
            clock: Arc::new(SystemClock::default()),
            meter: Arc::new(NoopMeter),
            blocking: Blocking::Pool,
        }
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("fs", &self.fs).field("blocking", &self.blocking).finish()
    }
}

/// Where work that waits for the disk runs.
#[derive(Clone, Debug)]
pub enum Blocking {
    /// On the runtime's pool of blocking threads.
    Pool,
    /// Right where it is asked for: for simulated disks, which never wait, so that a run is deterministic.
    Inline,
    /// Like `Inline`, but some time of the clock after it was asked for, and answered some time after that: whatever else
    /// happens, happens in between. As deterministic, on a runtime of one thread.
    #[cfg(feature = "sim")]
    Delayed(sim::Latency),
}

impl Env {
    /// Holds a blocking job up for `duration`; a simulated disk never waits.
    #[expect(clippy::disallowed_methods, reason = "called on the pool of blocking threads only")]
    pub(crate) fn pause(&self, duration: Duration) {
        if matches!(self.blocking, Blocking::Pool) && !duration.is_zero() {
            std::thread::sleep(duration);
        }
    }

    /// Runs `here`, and `beside` it, on a thread of its own, what waits for the disk meanwhile. Behind it, if there is no thread to be
    /// had, or if the disk is simulated. REQUIRES: waiting is allowed.
    pub(crate) fn both<H, B: Send>(
        &self,
        here: impl FnOnce() -> H,
        beside: impl Fn() -> B + Sync,
    ) -> (H, B) {
        if !matches!(self.blocking, Blocking::Pool) {
            return (here(), beside());
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, &beside);
            let here = here();
            let beside = match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => beside(),
            };
            (here, beside)
        })
    }

    /// Threads that can work beside the one that asks: the same number on every machine if the disk is simulated.
    pub(crate) fn spare_threads(&self) -> usize {
        match self.blocking {
            Blocking::Pool => std::thread::available_parallelism().map_or(0, |all| all.get() - 1),
            Blocking::Inline => 1,
            #[cfg(feature = "sim")]
            Blocking::Delayed(_) => 1,
        }
    }

    /// Runs `job`, which may wait for the disk, at some time, for nobody who waits for it. Perhaps never, if there is no thread for it.
    pub(crate) fn beside(&self, job: impl FnOnce() + Send + 'static) {
        match &self.blocking {
            Blocking::Pool => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    // It panics if the system has no thread to give.
                    let spawn = move || drop(runtime.spawn_blocking(job));
                    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(spawn)));
                }
            }
            Blocking::Inline => {
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
            }
            #[cfg(feature = "sim")]
            Blocking::Delayed(latency) => {
                let delay = self.clock.sleep(latency.draw());
                drop(tokio::spawn(async move {
                    delay.await;
                    job();
                }));
            }
        }
    }

    /// Runs `job`, which may wait for the disk, where waiting is allowed.
    ///
    /// The job runs to its end even if the returned future is dropped.
    ///
    /// # Errors
    /// Those of the job; [`Error::Interrupted`] if it panicked or the runtime is shutting down.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let interrupted = Error::Interrupted { component: "disk job" };
        match &self.blocking {
            Blocking::Pool => tokio::task::spawn_blocking(job).await.unwrap_or(Err(interrupted)),
            Blocking::Inline => std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
                .unwrap_or(Err(interrupted)),
            #[cfg(feature = "sim")]
            Blocking::Delayed(latency) => {
                let (before, after) = (latency.draw(), latency.draw());
                let clock = Arc::clone(&self.clock);
                let delayed = async move {
                    clock.sleep(before).await;
                    let done = job();
                    clock.sleep(after).await;
                    done
                };
                tokio::spawn(delayed).await.unwrap_or(Err(interrupted))
            }
        }
    }
}

/// Future that a [`Clock`] hands out.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Time: a monotonic clock for timers and measurements, a wall clock for expiry only.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Milliseconds since the Unix epoch; may jump both ways.
    fn wall_ms(&self) -> u64;

    /// Completes once `now()` has advanced by `duration`.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// A file system, as small as an append-only engine needs it. All methods may block.
pub trait Fs: fmt::Debug + Send + Sync + 'static {
    /// Creates a file that must not exist yet (`O_EXCL`), for writing.
    ///
    /// # Errors
    /// As the operating system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>>;

    /// Renames a file over `to`, atomically.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Names and sizes of the files in a directory, sorted by name; no subdirectories.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;

    /// Creates a directory and those above it; fine if it is there.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the bytes of an existing file durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name, on the same file system.
    ///
    /// # Errors
    /// As the operating system says.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes the exclusive lock of a file, which is created if need be; held until the guard is dropped.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else holds it, else as the operating system says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;

    /// Bytes that can still be written below `dir`.
    ///
    /// # Errors
    /// As the operating system says.
    fn free_space(&self, dir: &Path) -> io::Result<u64>;
}

/// A file that is being written, from its start to its end.
///
/// After a failed `append` or `sync` every later call fails too: what the file holds is unknown from then on.
pub trait WriteFile: fmt::Debug + Send + Sync + 'static {
    /// Writes all of `parts` behind what was appended before. One caller at a time.
    ///
    /// # Errors
    /// As the operating system says, and for ever after.
    fn append(&self, parts: &[io::IoSlice<'_>]) -> io::Result<()>;

    /// Makes everything appended before the call durable. May run beside an `append`.
    ///
    /// # Errors
    /// As the operating system says, and for ever after.
    fn sync(&self) -> io::Result<()>;

    /// Bytes appended so far.
    fn len(&self) -> u64;

    /// Whether nothing was appended yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reserves room for `bytes`; what is not written reads as zeros. A hint: a file system may ignore it.
    ///
    /// # Errors
    /// If the disk is full; the file can still be used.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;

    /// Writes zeros to `range`, which begins at or behind the end; the end stays where it is. Not beside an `append`. A hint: what
    /// is appended there later is synced faster, as it changes nothing but bytes.
    ///
    /// # Errors
    /// `InvalidInput` if anything in `range` was appended, `Unsupported` if that is no use here, else as the operating system says.
    /// The file can still be used, and what was appended is as good as before.
    fn zero(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a writer answers after its first failure.
fn broken() -> io::Error {
    io::Error::other("an earlier write or sync of this file failed")
}

/// Refuses to zero what was appended: the first `len` bytes.
fn check_zero(range: &Range<u64>, len: u64) -> io::Result<()> {
    if range.start < len { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

/// A file that is being read.
pub trait ReadFile: fmt::Debug + Send + Sync + 'static {
    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, else as the operating system says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Like `read_exact_at`, but only if that needs no waiting for the disk.
    ///
    /// # Errors
    /// `WouldBlock` if it does.
    fn try_read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Size of the file in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Offset from which on the file was never written, as far as the file system knows, and so holds zeros; else its size.
    ///
    /// # Errors
    /// As the operating system says.
    fn written(&self) -> io::Result<u64> {
        self.size()
    }
}
