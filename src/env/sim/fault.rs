//! What goes wrong on a simulated disk, and when.

use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::io::Errno;

/// A call of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create a file.
    Create,
    /// Open a file for reading.
    Open,
    /// Read from a file.
    Read,
    /// Append to a file.
    Append,
    /// Reserve room.
    Preallocate,
    /// Make a file durable.
    Sync,
    /// Make the names of a directory durable.
    SyncDir,
    /// Rename a file.
    Rename,
    /// Remove a file.
    Remove,
    /// List a directory.
    List,
    /// Create a directory.
    CreateDir,
    /// Give a file another name.
    HardLink,
    /// Lock a file.
    Lock,
    /// Write zeros behind the end of a file.
    Zero,
}

impl Operation {
    /// Every operation that changes the disk.
    pub const MUTATING: [Self; 10] = [
        Self::Create,
        Self::Append,
        Self::Preallocate,
        Self::Sync,
        Self::SyncDir,
        Self::Rename,
        Self::Remove,
        Self::CreateDir,
        Self::HardLink,
        Self::Zero,
    ];

    pub(super) fn mutates(self) -> bool {
        Self::MUTATING.contains(&self)
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The device does not work: `EIO`.
    Io,
    /// The device is full: `ENOSPC`.
    NoSpace,
    /// The process has no file descriptor left: `EMFILE`.
    TooManyFiles,
    /// Whoever makes the call panics.
    Panic,
}

impl Trouble {
    #[expect(clippy::panic, reason = "a test asked for it")]
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Io => Errno::IO.into(),
            Self::NoSpace => Errno::NOSPC.into(),
            Self::TooManyFiles => Errno::MFILE.into(),
            Self::Panic => panic!("as the test wants it"),
        }
    }
}

/// A rule by which calls fail, until it is lifted.
#[derive(Clone, Debug)]
pub struct Fault {
    trouble: Trouble,
    operation: Option<Operation>,
    path_part: String,
    /// Bytes of a file; only reads that touch them fail.
    over: Option<Range<u64>>,
    /// Calls that it lets pass first.
    after: u64,
    /// Calls that it spoils; `None`: all of them.
    left: Option<u64>,
}

impl Fault {
    /// Every call fails.
    #[must_use]
    pub fn new(trouble: Trouble) -> Self {
        Self {
            trouble,
            operation: None,
            path_part: String::new(),
            over: None,
            after: 0,
            left: None,
        }
    }

    /// Only calls of this kind.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only calls for paths that contain `part`.
    #[must_use]
    pub fn at(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path_part);
        self
    }

    /// Only reads that touch these bytes of a file.
    #[must_use]
    pub fn over(mut self, bytes: Range<u64>) -> Self {
        self.over = Some(bytes);
        self
    }

    /// Lets so many matching calls pass first.
    #[must_use]
    pub fn after(mut self, calls: u64) -> Self {
        self.after = calls;
        self
    }

    /// Only one call.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Only so many calls.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.left = Some(calls);
        self
    }

    /// Whether this call fails, and how.
    pub(super) fn strike(
        &mut self,
        operation: Operation,
        path: &Path,
        read: Option<&Range<u64>>,
    ) -> Option<Trouble> {
        let touches = |bad: &Range<u64>| {
            read.is_some_and(|read| read.start < bad.end && bad.start < read.end)
        };
        let meant = self.operation.is_none_or(|meant| meant == operation)
            && path.to_string_lossy().contains(&self.path_part)
            && self.over.as_ref().is_none_or(touches)
            && self.left != Some(0);
        if !meant {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        Some(self.trouble)
    }
}
