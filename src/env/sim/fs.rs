//! The simulated file system: the calls of [`Fs`] on a [`Disk`] in memory, with faults and power cuts on demand.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use rustix::io::Errno;

use super::disk::{Disk, Ino};
use super::fault::{Fault, Operation, Trouble};
use crate::env::{Fs, ReadFile, WriteFile, broken, check_zero};
use crate::types::{u64_of, usize_of};

/// A machine with a disk. Clones are the same machine.
///
/// It ends with [`crash`](Self::crash) or [`kill`](Self::kill), which hand its disk to a new one; the old one refuses everything
/// from then on, so a program that still runs on it can do no harm.
#[derive(Clone)]
pub struct SimFs {
    machine: Arc<Mutex<Machine>>,
}

struct Machine {
    on: bool,
    disk: Disk,
    rng: Rng,
    locks: BTreeSet<PathBuf>,
    faults: Vec<Fault>,
    /// Mutating operations so far.
    mutations: u64,
    fail_at: Option<u64>,
    crash_at: Option<u64>,
    capacity: u64,
    /// Of 100 tries to read without waiting, so many would have to wait.
    cold_percent: u8,
    /// Files that are open for reading.
    readers: usize,
    most_readers: usize,
    bytes_read: u64,
}

impl SimFs {
    /// A machine with an empty disk. `seed`: decides how reads and failures go.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(Disk::default(), seed)
    }

    fn with(disk: Disk, seed: u64) -> Self {
        let machine = Machine {
            on: true,
            disk,
            rng: Rng::with_seed(seed),
            locks: BTreeSet::new(),
            faults: Vec::new(),
            mutations: 0,
            fail_at: None,
            crash_at: None,
            capacity: u64::MAX,
            cold_percent: 0,
            readers: 0,
            most_readers: 0,
            bytes_read: 0,
        };
        Self { machine: Arc::new(Mutex::new(machine)) }
    }

    /// Cuts the power: what was not synced is kept or lost as `seed` decides. Returns the machine after the next start.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut machine = self.locked();
        machine.on = false;
        let disk = machine.disk.crash(&mut Rng::with_seed(seed));
        Self::with(disk, seed)
    }

    /// Kills the process: everything it wrote stays, synced or not. Returns the machine for the next process.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut machine = self.locked();
        machine.on = false;
        Self::with(machine.disk.clone(), machine.rng.u64(..))
    }

    /// A copy of the machine as it is now, without its locks and faults; this one goes on.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut machine = self.locked();
        Self::with(machine.disk.clone(), machine.rng.u64(..))
    }

    /// Mutating operations so far: what [`crash_at`](Self::crash_at) counts.
    #[must_use]
    pub fn mutations(&self) -> u64 {
        self.locked().mutations
    }

    /// The machine goes off instead of doing mutating operation number `nth`, counted from 1.
    pub fn crash_at(&self, nth: u64) {
        self.locked().crash_at = Some(nth);
    }

    /// Mutating operation number `nth`, counted from 1, fails with `EIO`.
    pub fn fail_at(&self, nth: u64) {
        self.locked().fail_at = Some(nth);
    }

    /// Files that are open for reading now.
    #[must_use]
    pub fn open_readers(&self) -> usize {
        self.locked().readers
    }

    /// Most files that were open for reading at the same time since the last call.
    #[must_use]
    pub fn most_open_readers(&self) -> usize {
        let mut machine = self.locked();
        let now = machine.readers;
        std::mem::replace(&mut machine.most_readers, now)
    }

    /// Bytes of files that were read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.locked().bytes_read
    }

    /// Whether the machine is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        !self.locked().on
    }

    /// Makes calls fail by this rule too.
    pub fn inject(&self, fault: Fault) {
        self.locked().faults.push(fault);
    }

    /// Lifts every rule and the limit of space.
    pub fn heal(&self) {
        let mut machine = self.locked();
        machine.faults.clear();
        machine.fail_at = None;
        machine.capacity = u64::MAX;
    }

    /// Lets the disk take so many bytes more.
    pub fn limit_space(&self, bytes: u64) {
        let mut machine = self.locked();
        machine.capacity = machine.disk.used().saturating_add(bytes);
    }

    /// Of 100 reads that may not wait, so many answer `WouldBlock`.
    pub fn cold_reads(&self, percent: u8) {
        self.locked().cold_percent = percent;
    }

    /// Content of a file.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn read_all(&self, path: &Path) -> io::Result<Vec<u8>> {
        let machine = self.locked();
        let ino = machine.disk.find(path)?;
        let mut bytes = vec![0; usize_of(machine.disk.len(ino))];
        machine.disk.read(ino, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Puts `bytes` in the place of a file, durably, behind everyone's back: to damage it.
    ///
    /// # Errors
    /// `NotFound` if its directory does not exist.
    pub fn overwrite(&self, path: &Path, bytes: impl Into<Vec<u8>>) -> io::Result<()> {
        self.locked().disk.overwrite(path, bytes.into())
    }

    /// Removes a file, durably, behind everyone's back.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn destroy(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.locked();
        machine.disk.remove(path)?;
        machine.disk.sync_dir(path.parent().unwrap_or(path))
    }

    fn locked(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, if the call does not fail.
    fn enter(&self, operation: Operation, path: &Path) -> io::Result<MutexGuard<'_, Machine>> {
        let mut machine = self.locked();
        machine.admit(operation, path, None)?;
        Ok(machine)
    }
}

impl Machine {
    fn admit(
        &mut self,
        operation: Operation,
        path: &Path,
        read: Option<Range<u64>>,
    ) -> io::Result<()> {
        if self.on && operation.mutates() {
            self.mutations += 1;
            if self.crash_at.is_some_and(|nth| self.mutations >= nth) {
                self.on = false;
            } else if self.fail_at == Some(self.mutations) {
                return Err(Trouble::Io.error());
            }
        }
        if !self.on {
            return Err(io::Error::other("the machine is off"));
        }
        // Each rule counts each call, also one that another rule spoils.
        let struck =
            self.faults.iter_mut().map(|fault| fault.strike(operation, path, read.as_ref()));
        struck.fold(None, Option::or).map_or(Ok(()), |trouble| Err(trouble.error()))
    }

    /// Bytes that can still be written.
    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.disk.used())
    }

    /// An append, or zeros behind the end.
    fn write(
        &mut self,
        operation: Operation,
        (ino, path): (Ino, &Path),
        at: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        if let Err(error) = self.admit(operation, path, None) {
            // A write that fails may have been done in part.
            if self.on {
                let part = self.rng.usize(0..=bytes.len());
                self.disk.write(ino, at, bytes.get(..part).unwrap_or_default());
            }
            return Err(error);
        }
        let room = if self.capacity == u64::MAX { u64::MAX } else { self.room() };
        let growth = self.disk.growth(ino, at + u64_of(bytes.len()));
        if growth > room {
            let fits = bytes.len() - usize_of(growth - room).min(bytes.len());
            self.disk.write(ino, at, bytes.get(..fits).unwrap_or_default());
            return Err(Errno::NOSPC.into());
        }
        self.disk.write(ino, at, bytes);
        Ok(())
    }

    fn sync(&mut self, (ino, path): (Ino, &Path)) -> io::Result<()> {
        let admitted = self.admit(Operation::Sync, path, None);
        if admitted.is_ok() {
            self.disk.sync(ino);
        } else if self.on {
            self.disk.fail_sync(ino, &mut self.rng);
        }
        admitted
    }
}

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.locked();
        f.debug_struct("SimFs")
            .field("on", &machine.on)
            .field("mutations", &machine.mutations)
            .field("faults", &machine.faults)
            .finish_non_exhaustive()
    }
}

impl Fs for SimFs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>> {
        let ino = self.enter(Operation::Create, path)?.disk.create(path)?;
        Ok(Arc::new(SimWriteFile {
            fs: self.clone(),
            ino,
            path: path.to_owned(),
            len: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let mut machine = self.enter(Operation::Open, path)?;
        let ino = machine.disk.find(path)?;
        machine.readers += 1;
        machine.most_readers = machine.most_readers.max(machine.readers);
        drop(machine);
        Ok(Arc::new(SimReadFile { fs: self.clone(), ino, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter(Operation::Rename, to)?.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.enter(Operation::Remove, path)?.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        self.enter(Operation::List, dir)?.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.enter(Operation::CreateDir, dir)?.disk.make_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.enter(Operation::SyncDir, dir)?.disk.sync_dir(dir)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.locked();
        let ino = machine.disk.find(path)?;
        machine.sync((ino, path))
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter(Operation::HardLink, to)?.disk.link(from, to)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut machine = self.enter(Operation::Lock, path)?;
        if machine.disk.find(path).is_err() {
            machine.disk.create(path)?;
        }
        if !machine.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock { fs: self.clone(), path: path.to_owned() }))
    }

    fn free_space(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.locked().room())
    }
}

/// A held lock.
struct Lock {
    fs: SimFs,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.fs.locked().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimWriteFile {
    fs: SimFs,
    ino: Ino,
    path: PathBuf,
    len: AtomicU64,
    /// Set by the first failure, for good.
    broken: AtomicBool,
}

impl SimWriteFile {
    fn guard(&self, act: impl FnOnce(&mut Machine) -> io::Result<()>) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(broken());
        }
        act(&mut self.fs.locked()).inspect_err(|_| self.broken.store(true, Ordering::Release))
    }
}

impl WriteFile for SimWriteFile {
    fn append(&self, parts: &[io::IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let at = self.len();
        let file = (self.ino, &*self.path);
        self.guard(|machine| machine.write(Operation::Append, file, at, &bytes))?;
        self.len.store(at + u64_of(bytes.len()), Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.guard(|machine| machine.sync((self.ino, &self.path)))
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let mut machine = self.fs.enter(Operation::Preallocate, &self.path)?;
        if machine.capacity != u64::MAX && machine.disk.growth(self.ino, bytes) > machine.room() {
            return Err(Errno::NOSPC.into());
        }
        machine.disk.reserve(self.ino, bytes);
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        check_zero(&range, self.len())?;
        if self.broken.load(Ordering::Acquire) {
            return Err(broken());
        }
        let zeros = vec![0; usize_of(range.end.saturating_sub(range.start))];
        let file = (self.ino, &*self.path);
        self.fs.locked().write(Operation::Zero, file, range.start, &zeros)
    }
}

#[derive(Debug)]
struct SimReadFile {
    fs: SimFs,
    ino: Ino,
    path: PathBuf,
}

impl Drop for SimReadFile {
    fn drop(&mut self) {
        self.fs.locked().readers -= 1;
    }
}

impl ReadFile for SimReadFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut machine = self.fs.locked();
        let bytes = offset..offset.saturating_add(u64_of(buf.len()));
        machine.admit(Operation::Read, &self.path, Some(bytes))?;
        machine.disk.read(self.ino, offset, buf)?;
        machine.bytes_read += u64_of(buf.len());
        Ok(())
    }

    fn try_read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut machine = self.fs.locked();
        let percent = machine.cold_percent;
        if machine.rng.u8(..100) < percent {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        drop(machine);
        self.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.fs.locked().disk.len(self.ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(fs: &SimFs, path: &str, bytes: &[u8]) -> Arc<dyn WriteFile> {
        let file = fs.create(Path::new(path)).unwrap();
        file.append(&[io::IoSlice::new(bytes)]).unwrap();
        file
    }

    fn found(fs: &SimFs, path: &str) -> Option<Vec<u8>> {
        fs.read_all(Path::new(path)).ok()
    }

    #[test]
    fn synced_bytes_under_a_synced_name_stay_and_the_rest_is_at_risk() {
        let fs = SimFs::new(1);
        let durable = file(&fs, "/a", &[1; 6000]);
        durable.sync().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        durable.append(&[io::IoSlice::new(&[2; 6000])]).unwrap();
        file(&fs, "/b", b"b").sync().unwrap();
        let (mut lost, mut kept, mut torn, mut nameless) = (0, 0, 0, 0);
        for seed in 0..200 {
            let after = fs.fork().crash(seed);
            let a = found(&after, "/a").unwrap();
            assert!(a.len() >= 6000 && a[..6000].iter().all(|byte| *byte == 1), "seed {seed}");
            match a.iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                6000 => kept += 1,
                _ => torn += 1,
            }
            nameless += usize::from(found(&after, "/b").is_none());
        }
        assert!(lost > 5 && kept > 5 && torn > 50, "{lost} {kept} {torn}");
        assert!((50..150).contains(&nameless), "{nameless}");
        assert_eq!(found(&fs.kill(), "/a").unwrap().len(), 12000, "a process takes nothing along");
        assert!(fs.create(Path::new("/c")).is_err(), "the old machine is off");
    }

    #[test]
    fn a_rename_shows_the_old_file_or_the_new_one() {
        let fs = SimFs::new(1);
        file(&fs, "/new", b"new").sync().unwrap();
        file(&fs, "/cur", b"old").sync().unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        fs.rename(Path::new("/new"), Path::new("/cur")).unwrap();
        let seen: BTreeSet<_> =
            (0..50).map(|seed| found(&fs.fork().crash(seed), "/cur").unwrap()).collect();
        assert_eq!(seen, BTreeSet::from([b"new".to_vec(), b"old".to_vec()]));
    }

    #[test]
    fn a_failed_sync_loses_what_was_dirty_and_is_never_made_good() {
        let fs = SimFs::new(3);
        let a = file(&fs, "/a", &[7; 40960]);
        fs.sync_dir(Path::new("/")).unwrap();
        fs.inject(Fault::new(Trouble::Io).on(Operation::Sync).once());
        assert!(a.sync().is_err() && a.sync().is_err() && a.append(&[]).is_err());
        fs.sync_file(Path::new("/a")).unwrap();
        assert_eq!(found(&fs, "/a").unwrap(), [7; 40960], "memory still has it");
        assert_ne!(found(&fs.crash(1), "/a").unwrap(), [7; 40960], "the disk does not");
    }

    #[test]
    fn space_faults_locks_and_counted_operations_do_as_they_are_told() {
        let fs = SimFs::new(1);
        let a = file(&fs, "/a", b"abc");
        fs.limit_space(2);
        assert_eq!(
            a.append(&[io::IoSlice::new(b"defg")]).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(found(&fs, "/a").unwrap(), b"abcde", "a short write");
        fs.heal();
        let lock = fs.lock(Path::new("/L")).unwrap();
        assert_eq!(fs.lock(Path::new("/L")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        fs.lock(Path::new("/L")).unwrap();
        fs.inject(Fault::new(Trouble::NoSpace).on(Operation::Create).at("x").after(1).once());
        let creates: Vec<_> =
            ["/x1", "/y", "/x2", "/x3"].map(|path| fs.create(Path::new(path)).is_ok()).to_vec();
        assert_eq!(creates, [true, true, false, true]);
        fs.crash_at(fs.mutations() + 2);
        fs.remove(Path::new("/y")).unwrap();
        assert!(!fs.is_off() && fs.remove(Path::new("/x1")).is_err() && fs.is_off());
    }
}
