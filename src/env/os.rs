//! The real world: files of the operating system and its clocks. The only file of the crate that writes files or reads a clock.
#![expect(clippy::disallowed_methods, reason = "this is the place that the others go through")]

use std::any::Any;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Clock, Fs, ReadFile, Sleep, WriteFile, broken, check_zero};
use crate::types::{u64_of, usize_of};

/// What is written ahead of a log, a piece at a time: a page, for the system then counts pages as written, not larger folios.
static ZEROS: [u8; 4 << 10] = [0; 4 << 10];

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFs;

impl Fs for OsFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Arc::new(OsWriteFile { file, len: AtomicU64::new(0), broken: AtomicBool::new(false) }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        Ok(Arc::new(OsReadFile { file: File::open(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() {
                names.push((entry.file_name().to_string_lossy().into_owned(), meta.len()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let here = dir.as_os_str().is_empty();
        File::open(if here { Path::new(".") } else { dir })?.sync_all()
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[derive(Debug)]
struct OsWriteFile {
    file: File,
    len: AtomicU64,
    /// Set by the first failure, for good.
    broken: AtomicBool,
}

impl OsWriteFile {
    fn guard<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(broken());
        }
        act().inspect_err(|_| self.broken.store(true, Ordering::Release))
    }
}

impl WriteFile for OsWriteFile {
    fn append(&self, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.guard(|| {
            let mut offset = self.len.load(Ordering::Relaxed);
            if let [part] = parts {
                self.file.write_all_at(part, offset)?;
                offset += u64_of(part.len());
            } else {
                offset = write_all_vectored(&self.file, parts, offset)?;
            }
            self.len.store(offset, Ordering::Release);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.guard(|| self.file.sync_data())
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        check_zero(&range, self.len())?;
        if self.broken.load(Ordering::Acquire) {
            return Err(broken());
        }
        // Not guarded: nothing that was appended is touched. What the system cannot bring to the disk, the next sync reports.
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(u64_of(ZEROS.len()));
            self.file.write_all_at(&ZEROS[..usize_of(step)], at)?;
            at += step;
        }
        Ok(())
    }
}

/// Writes all of `parts` at `offset`; returns the offset behind them.
fn write_all_vectored(file: &File, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<u64> {
    let mut at = offset;
    let mut owned: Vec<io::IoSlice<'_>> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
    let mut rest = &mut owned[..];
    io::IoSlice::advance_slices(&mut rest, 0); // drops empty parts in front
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += u64_of(written);
                io::IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(at)
}

#[derive(Debug)]
struct OsReadFile {
    file: File,
}

impl ReadFile for OsReadFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn try_read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let wanted = buf.len();
        let mut parts = [io::IoSliceMut::new(buf)];
        match rustix::io::preadv2(&self.file, &mut parts, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) if read == wanted => Ok(()),
            // A short read: the rest is not in memory, or the file ends; the blocking read tells which.
            Ok(_) | Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn written(&self) -> io::Result<u64> {
        let mut end = 0;
        loop {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(end)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(end),
                // It does not know.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return self.size(),
                Err(error) => return Err(error.into()),
            };
            end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?.max(start + 1);
        }
    }
}

/// The clocks of the operating system; sleeps are timers of the tokio runtime.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}
