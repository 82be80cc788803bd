//! The disk as a repair reads it: what cannot be read passes for damage, and is noted.
//!
//! A read that the disk refuses is tried again page by page. Where it refuses a page too, bytes that are no part of any format stand
//! in for it: whoever reads them finds them damaged and goes on behind them. All else is the file system below.
//!
//! Invariant: what was made up is noted before anyone sees it, so a file without notes was read as it is.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use serde::Serialize;

use crate::env::{Fs, ReadFile, WriteFile};
use crate::types::{u64_of, usize_of};

/// What a page cache reads at once: smaller pieces fail with it.
const PAGE: u64 = 4096;
/// Stands in for what cannot be read. Not zero: zeros are the end of a log.
const MADE_UP: u8 = 0xee;

/// A piece of a file that the disk could not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// Where the piece begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// What the operating system said.
    pub error: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, offset, bytes, error } = self;
        write!(f, "{}: {bytes} bytes at {offset} cannot be read: {error}", path.display())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ForgivingFs {
    below: Arc<dyn Fs>,
    notes: Arc<Notes>,
}

/// For each file, what was made up: where each piece begins, where it ends, and why.
type Pieces = BTreeMap<PathBuf, BTreeMap<u64, (u64, String)>>;

#[derive(Debug, Default)]
struct Notes(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    ever: Pieces,
    /// For each file, the first piece since it was opened last.
    lately: BTreeMap<PathBuf, Unreadable>,
}

impl Notes {
    fn locked(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, path: &Path, offset: u64, bytes: usize, error: &io::Error) {
        let (bytes, error) = (u64_of(bytes), error.to_string());
        let end = offset.saturating_add(bytes);
        let mut noted = self.locked();
        let pieces = noted.ever.entry(path.to_owned()).or_default();
        let piece = pieces.entry(offset).or_insert_with(|| (end, error.clone()));
        piece.0 = piece.0.max(end);
        let first = || Unreadable { path: path.to_owned(), offset, bytes, error };
        noted.lately.entry(path.to_owned()).or_insert_with(first);
    }
}

impl ForgivingFs {
    pub(crate) fn new(below: &Arc<dyn Fs>) -> Self {
        Self { below: Arc::clone(below), notes: Arc::default() }
    }

    /// Every piece that was made up so far, by file and offset; those that touch are one.
    pub(crate) fn unreadable(&self) -> Vec<Unreadable> {
        let mut all: Vec<Unreadable> = Vec::new();
        for (path, pieces) in &self.notes.locked().ever {
            for (offset, (end, error)) in pieces {
                match all.last_mut() {
                    Some(last) if last.path == *path && *offset <= last.offset + last.bytes => {
                        last.bytes = last.bytes.max(end - last.offset);
                    }
                    _ => {
                        let (path, error) = (path.clone(), error.clone());
                        all.push(Unreadable { path, offset: *offset, bytes: end - offset, error });
                    }
                }
            }
        }
        all
    }

    /// A piece of a file, or of a file in a directory, that was made up since that file was last opened. `None`: all that was read
    /// of it since is as it is.
    pub(crate) fn unread_of(&self, path: &Path) -> Option<Unreadable> {
        let noted = self.notes.locked();
        let (_, first) = noted.lately.range(path.to_owned()..).next()?;
        first.path.starts_with(path).then(|| first.clone())
    }
}

/// Whether the disk could not read what should be there, as far as the operating system knows.
fn is_unreadable(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    #[cfg(target_os = "linux")]
    if errno == Some(Errno::UCLEAN) {
        return true; // the file system is damaged there
    }
    matches!(errno, Some(Errno::IO | Errno::BADMSG))
}

#[derive(Debug)]
struct ForgivingFile {
    path: PathBuf,
    /// `Err`: it could not even be opened.
    below: Result<Arc<dyn ReadFile>, io::Error>,
    size: u64,
    notes: Arc<Notes>,
}

impl ForgivingFile {
    fn read_below(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.below {
            Ok(file) => file.read_exact_at(buf, offset),
            Err(_) if offset.saturating_add(u64_of(buf.len())) > self.size => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) => Err(Errno::from_io_error(error).unwrap_or(Errno::IO).into()),
        }
    }
}

impl ReadFile for ForgivingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_below(buf, offset) {
            Err(error) if is_unreadable(&error) => {}
            done => return done,
        }
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let len = usize_of(PAGE - at % PAGE).min(rest.len());
            let (page, behind) = rest.split_at_mut(len);
            match self.read_below(page, at) {
                Err(error) if is_unreadable(&error) => {
                    self.notes.note(&self.path, at, len, &error);
                    page.fill(MADE_UP);
                }
                done => done?,
            }
            (rest, at) = (behind, at + u64_of(len));
        }
        Ok(())
    }

    fn try_read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

impl Fs for ForgivingFs {
    /// One that cannot be opened, or says no size, has the size that its directory says, and not a byte of it can be read.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        self.notes.locked().lately.remove(path);
        let opened = self.below.open(path).and_then(|file| file.size().map(|size| (file, size)));
        let (below, size) = match opened {
            Ok((file, size)) => (Ok(file), size),
            Err(error) if is_unreadable(&error) => {
                let names = self.below.list(path.parent().unwrap_or(path))?;
                let size = names.into_iter().find(|(name, _)| path.ends_with(name));
                // What has no byte is noted too: nobody knows that it is empty.
                self.notes.note(path, 0, 0, &error);
                (Err(error), size.map_or(0, |(_, size)| size))
            }
            Err(error) => return Err(error),
        };
        let notes = Arc::clone(&self.notes);
        Ok(Arc::new(ForgivingFile { path: path.to_owned(), below, size, notes }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>> {
        self.below.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.below.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        self.below.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.sync_dir(dir)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.below.sync_file(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.hard_link(from, to)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.below.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.below.free_space(dir)
    }
}
