//! What can go wrong, as facts: one error type whose variants carry data, and what a caller should do about each.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What an operation of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. `Clone`, so that one failure of a commit group can answer each of its callers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused `op` on `path`.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The bytes at `offset` of `path` are not what was written there.
    #[error("{}: damaged at byte {offset}: expected {expected}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where the damaged piece begins.
        offset: u64,
        /// What should have been there.
        expected: &'static str,
    },
    /// The file was written by a newer version, or needs a feature that this build leaves out.
    #[error("{}: unsupported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What this build cannot read.
        what: &'static str,
    },
    /// A key, value or batch is over its limit; nothing was written.
    #[error("{what} has {len} bytes, the limit is {max}")]
    TooLarge {
        /// What is too large: "key", "value" or "batch".
        what: &'static str,
        /// Its size in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// Entries were handed to a table builder out of order.
    #[error("entries must be added in ascending key order, versions of a key newest first")]
    OutOfOrder,
    /// A configuration field has a value that makes no sense.
    #[error("configuration: {field}: {problem}")]
    Config {
        /// Path of the field, such as `memtable.flush_trigger_bytes`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Another engine, in this process or another, has the directory open, or a checkpoint, verification or repair is at work there.
    #[error("{}: locked by another engine", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The write would have waited for background work until after its deadline; nothing was written.
    #[error("stalled by {cause} for {waited:?}; try again in {retry_after:?}")]
    Stalled {
        /// What the write waited for.
        cause: &'static str,
        /// How long it waited; zero if it was plain from the beginning that it would be late.
        waited: Duration,
        /// When another try has a chance.
        retry_after: Duration,
    },
    /// A component failed while it worked on the request: the outcome is unknown.
    #[error("interrupted: {component} failed at work; the outcome is unknown")]
    Interrupted {
        /// The component that failed.
        component: &'static str,
    },
    /// A component is down for good, so the operation cannot be served.
    #[error("{component} is unavailable: {reason}")]
    Unavailable {
        /// The component.
        component: &'static str,
        /// Why it is down.
        reason: String,
    },
    /// The engine was shut down.
    #[error("the engine is closed")]
    Closed,
}

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The same call does no harm, and may succeed later. Until it does, a write that failed with [`Error::Io`] counts as not made,
    /// and only after a crash may it be there nevertheless.
    Retry,
    /// The call may or may not have been done: read before trying again.
    CheckThenRetry,
    /// Open the engine again.
    Reopen,
    /// Data is damaged: restore a copy, or salvage what is left.
    Restore,
    /// The call itself, the configuration or the machine must change first.
    Fix,
}

impl Error {
    /// What the caller should do about this error.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::ReadOnlyFilesystem => Action::Fix,
                _ => Action::Retry,
            },
            Self::Stalled { .. } => Action::Retry,
            Self::Interrupted { .. } => Action::CheckThenRetry,
            Self::Unavailable { .. } | Self::Closed => Action::Reopen,
            Self::Corrupt { .. } => Action::Restore,
            Self::Unsupported { .. }
            | Self::TooLarge { .. }
            | Self::OutOfOrder
            | Self::Config { .. }
            | Self::Locked { .. } => Action::Fix,
        }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, expected: &'static str) -> Self {
        Self::Corrupt { path: path.to_owned(), offset, expected }
    }

    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { op, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn config(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Config { field, problem: problem.into() }
    }
}

/// Adds the operation and the path to what the operating system said.
pub(crate) trait IoContext<T> {
    fn at(self, op: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, op: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(op, path, source))
    }
}

/// Bytes that do not decode: where, and what should have been there. A file turns it into [`Error::Corrupt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Offset into the bytes that were being decoded.
    pub(crate) offset: u64,
    /// What should have been there.
    pub(crate) expected: &'static str,
}

impl Damage {
    /// Names the file, and where in it the decoded bytes begin.
    pub(crate) fn of(self, path: &Path, base: u64) -> Error {
        Error::corrupt(path, base.saturating_add(self.offset), self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_about_it() {
        let full = Error::io("write", Path::new("wal"), io::ErrorKind::StorageFull.into());
        assert_eq!(full.action(), Action::Retry);
        assert_eq!(Error::Closed.action(), Action::Reopen);
        assert_eq!(Error::corrupt(Path::new("x"), 3, "footer").action(), Action::Restore);
    }
}
