//! Why a command failed, in one line: what happened, and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;

use nori_lsm::{Action, Error};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine said no.
    Engine(Error),
    /// A file or stream of the command itself.
    Io { what: String, source: io::Error },
    /// The call makes no sense as it is.
    Usage(String),
    /// The input is not what it should be.
    Input { place: String, problem: String },
    /// The engine answered wrongly.
    Wrong(String),
}

impl Failure {
    /// Names the operation and the file.
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = format!("{op} {}", path.display());
        move |source| Self::Io { what, source }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(error) => write!(f, "{error}; {}", advice(error)),
            Self::Io { what, source } => {
                write!(f, "{what}: {source}; check the path and its rights")
            }
            Self::Usage(problem) => write!(f, "{problem}; see `nori --help`"),
            Self::Input { place, problem } => write!(f, "{place}: {problem}; correct the input"),
            Self::Wrong(what) => write!(f, "wrong answer: {what}; this is a bug, please report it"),
        }
    }
}

fn advice(error: &Error) -> &'static str {
    match error.action() {
        Action::Retry => "try again",
        Action::CheckThenRetry => "it may have been done: look before you try again",
        Action::Reopen => "start the command again",
        Action::Restore => "restore the database from a copy, or see `nori repair --dry-run`",
        Action::Fix => "change what it names, then try again",
    }
}
