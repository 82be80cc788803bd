//! What the running machine sees of its files, what of it is on the disk, and what a power cut makes of the difference.
//!
//! At a cut a file keeps its synced bytes. Each block that was not synced is kept, lost, or torn between sectors, in any order;
//! growth that was not synced vanishes, or reads as zeros or garbage. A name that was made, changed or removed since its
//! directory was synced is there or is not; a rename shows the old file or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::types::{u64_of, usize_of};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// Number of a file, whatever its names.
pub(super) type Ino = u64;

/// Content of one file. Bytes between the end of a vector and the length beside it are zeros.
#[derive(Clone, Debug, Default)]
struct Inode {
    /// As the machine sees it.
    seen: Vec<u8>,
    seen_len: u64,
    /// As it is on the disk.
    kept: Vec<u8>,
    kept_len: u64,
    /// Blocks that were written since they were synced.
    dirty: BTreeSet<usize>,
}

/// A change of names that may not be on the disk yet.
#[derive(Clone, Debug)]
enum Change {
    Link { path: PathBuf, ino: Ino },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, ino: Ino },
    MakeDir { path: PathBuf },
}

/// Names of files, and directories.
#[derive(Clone, Debug)]
struct Names {
    files: BTreeMap<PathBuf, Ino>,
    dirs: BTreeSet<PathBuf>,
}

/// The files of a machine.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    inodes: BTreeMap<Ino, Inode>,
    next_ino: Ino,
    seen: Names,
    kept: Names,
    /// In the order in which they were made.
    pending: Vec<Change>,
}

impl Default for Disk {
    fn default() -> Self {
        let dirs = BTreeSet::from([PathBuf::from("/"), PathBuf::new()]);
        let names = Names { files: BTreeMap::new(), dirs };
        Self {
            inodes: BTreeMap::new(),
            next_ino: 0,
            seen: names.clone(),
            kept: names,
            pending: Vec::new(),
        }
    }
}

impl Disk {
    pub(super) fn create(&mut self, path: &Path) -> io::Result<Ino> {
        if self.seen.files.contains_key(path) || self.seen.dirs.contains(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.parent_exists(path)?;
        self.next_ino += 1;
        let ino = self.next_ino;
        self.inodes.insert(ino, Inode::default());
        self.change(Change::Link { path: path.to_owned(), ino });
        Ok(ino)
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        self.seen.files.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ino = self.find(from)?;
        if self.seen.files.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.parent_exists(to)?;
        self.change(Change::Link { path: to.to_owned(), ino });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let ino = self.find(from)?;
        self.parent_exists(to)?;
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), ino });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.change(Change::Unlink { path: path.to_owned() });
        Ok(())
    }

    pub(super) fn make_dir(&mut self, dir: &Path) -> io::Result<()> {
        let mut missing: Vec<_> =
            dir.ancestors().take_while(|dir| !self.seen.dirs.contains(*dir)).collect();
        while let Some(path) = missing.pop() {
            if self.seen.files.contains_key(path) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            self.change(Change::MakeDir { path: path.to_owned() });
        }
        Ok(())
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        self.is_dir(dir)?;
        let within = self.seen.files.iter().filter(|(path, _)| path.parent() == Some(dir));
        let named = within.filter_map(|(path, ino)| {
            Some((path.file_name()?.to_string_lossy().into_owned(), self.len(*ino)))
        });
        Ok(named.collect())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.is_dir(dir)?;
        let pending = std::mem::take(&mut self.pending);
        let (synced, rest): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|change| change.is_in(dir));
        synced.into_iter().for_each(|change| self.kept.apply(change));
        self.pending = rest;
        Ok(())
    }

    pub(super) fn len(&self, ino: Ino) -> u64 {
        self.inodes.get(&ino).map_or(0, |inode| inode.seen_len)
    }

    /// Bytes of all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let named: BTreeSet<Ino> = self.seen.files.values().copied().collect();
        named.into_iter().map(|ino| self.len(ino)).sum()
    }

    /// Bytes by which a file would grow.
    pub(super) fn growth(&self, ino: Ino, end: u64) -> u64 {
        end.saturating_sub(self.len(ino))
    }

    pub(super) fn write(&mut self, ino: Ino, at: u64, bytes: &[u8]) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.write(usize_of(at), bytes);
        }
    }

    pub(super) fn reserve(&mut self, ino: Ino, len: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.seen_len = inode.seen_len.max(len);
        }
    }

    pub(super) fn sync(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.sync(|_| true);
        }
    }

    /// A sync that failed: some blocks got there, the others are lost, and none will be tried again.
    pub(super) fn fail_sync(&mut self, ino: Ino, rng: &mut Rng) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.sync(|_| rng.bool());
        }
    }

    pub(super) fn read(&self, ino: Ino, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(inode) = self.inodes.get(&ino) else { return Err(io::ErrorKind::NotFound.into()) };
        if at.saturating_add(u64_of(buf.len())) > inode.seen_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = inode.seen.get(usize_of(at)..).unwrap_or_default();
        let written = from.len().min(buf.len());
        let (front, rest) = buf.split_at_mut(written);
        front.copy_from_slice(from.get(..written).unwrap_or_default());
        rest.fill(0);
        Ok(())
    }

    /// Puts `bytes` in the place of the file, on the disk too.
    pub(super) fn overwrite(&mut self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        let ino = match self.find(path) {
            Ok(ino) => ino,
            Err(_) => self.create(path)?,
        };
        let len = u64_of(bytes.len());
        let dirty = BTreeSet::new();
        let kept = bytes.clone();
        let inode = Inode { seen: bytes, seen_len: len, kept, kept_len: len, dirty };
        self.inodes.insert(ino, inode);
        self.sync_dir(path.parent().unwrap_or(path))
    }

    /// The disk as it may be found after a power cut.
    pub(super) fn crash(&self, rng: &mut Rng) -> Self {
        let luck = Luck::draw(rng);
        let mut names = self.kept.clone();
        for change in &self.pending {
            if luck.keeps(rng) {
                names.apply(change.clone());
            }
        }
        let dirs = names.dirs.clone();
        let reachable =
            |path: &PathBuf| path.ancestors().skip(1).all(|parent| dirs.contains(parent));
        names.dirs.retain(|dir| reachable(dir));
        names.files.retain(|path, _| reachable(path));
        let named: BTreeSet<Ino> = names.files.values().copied().collect();
        let inodes = self.inodes.iter().filter(|(ino, _)| named.contains(ino));
        let inodes = inodes.map(|(ino, inode)| (*ino, inode.crash(luck, rng))).collect();
        let next_ino = self.next_ino;
        Self { inodes, next_ino, seen: names.clone(), kept: names, pending: Vec::new() }
    }

    fn change(&mut self, change: Change) {
        self.seen.apply(change.clone());
        self.pending.push(change);
    }

    fn is_dir(&self, dir: &Path) -> io::Result<()> {
        if self.seen.dirs.contains(dir) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.is_dir(parent))
    }
}

impl Change {
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } | Self::MakeDir { path } => {
                path.parent() == Some(dir)
            }
            Self::Rename { from, to, .. } => [from, to].iter().any(|p| p.parent() == Some(dir)),
        }
    }
}

impl Names {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Link { path, ino } => drop(self.files.insert(path, ino)),
            Change::Unlink { path } => drop(self.files.remove(&path)),
            Change::Rename { from, to, ino } => {
                self.files.remove(&from);
                self.files.insert(to, ino);
            }
            Change::MakeDir { path } => drop(self.dirs.insert(path)),
        }
    }
}

/// What a power cut does to whatever was not synced.
#[derive(Clone, Copy, Debug)]
enum Luck {
    /// All of it is there.
    Good,
    /// All of it is gone.
    Bad,
    /// Each piece for itself.
    Mixed,
}

impl Luck {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..8) {
            0 => Self::Good,
            1 => Self::Bad,
            _ => Self::Mixed,
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::Good => true,
            Self::Bad => false,
            Self::Mixed => rng.bool(),
        }
    }
}

impl Inode {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        if let Some(place) = self.seen.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
        self.seen_len = self.seen_len.max(u64_of(end));
        if !bytes.is_empty() {
            self.dirty.extend(at / BLOCK..=(end - 1) / BLOCK);
        }
    }

    /// Brings the dirty blocks that `arrives` says to the disk; all are clean then.
    fn sync(&mut self, mut arrives: impl FnMut(usize) -> bool) {
        for block in std::mem::take(&mut self.dirty) {
            if arrives(block) {
                copy(&self.seen, &mut self.kept, block * BLOCK, BLOCK);
            }
        }
        self.kept_len = self.seen_len;
    }

    fn crash(&self, luck: Luck, rng: &mut Rng) -> Self {
        let mut found = self.kept.clone();
        for block in &self.dirty {
            // Whole, torn or lost.
            let (whole, torn) = (luck.keeps(rng), rng.bool());
            for sector in 0..BLOCK / SECTOR {
                let at = block * BLOCK + sector * SECTOR;
                let kept = if torn && matches!(luck, Luck::Mixed) { rng.bool() } else { whole };
                let fresh = u64_of(at) >= self.kept_len;
                if kept {
                    copy(&self.seen, &mut found, at, SECTOR);
                } else if fresh && matches!(luck, Luck::Mixed) && rng.u8(..8) == 0 {
                    let garbage: Vec<u8> =
                        std::iter::repeat_with(|| rng.u8(..)).take(512).collect();
                    let end = self.seen.len().min(at + SECTOR);
                    copy(&[vec![0; at], garbage].concat()[..end.max(at)], &mut found, at, SECTOR);
                }
            }
        }
        let grown = self.seen_len - self.kept_len;
        let len = match luck {
            Luck::Good => self.seen_len,
            Luck::Bad => self.kept_len,
            Luck::Mixed if rng.bool() => self.seen_len,
            Luck::Mixed => self.kept_len + rng.u64(0..=grown),
        };
        found.truncate(usize_of(len));
        let kept = found.clone();
        Self { seen: found, seen_len: len, kept, kept_len: len, dirty: BTreeSet::new() }
    }
}

/// Copies up to `len` bytes at `at`, as far as `from` reaches.
fn copy(from: &[u8], to: &mut Vec<u8>, at: usize, len: usize) {
    let end = from.len().min(at + len);
    let Some(bytes) = from.get(at..end) else { return };
    if to.len() < end {
        to.resize(end, 0);
    }
    if let Some(place) = to.get_mut(at..end) {
        place.copy_from_slice(bytes);
    }
}
