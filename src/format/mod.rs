//! Bytes to values and back: every layout on disk, pure, without I/O.
//!
//! Invariant: no function here panics or allocates by an unchecked length, whatever bytes it is given.
//! Format: docs/format.md
#![deny(clippy::indexing_slicing)]
#![cfg_attr(test, expect(clippy::indexing_slicing, reason = "tests index what they have built"))]

pub(crate) mod block;
pub(crate) mod checksum;
pub(crate) mod codec;
pub(crate) mod coding;
pub(crate) mod compress;
pub(crate) mod filter;
pub(crate) mod footer;
pub(crate) mod frame;
pub(crate) mod index;
mod lz4;
pub(crate) mod manifest;
pub(crate) mod props;
pub(crate) mod wal;

use std::path::Path;

use crate::error::{Damage, Error};

/// Why bytes could not be turned into a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// They are not what was written.
    Damaged(Damage),
    /// They are sound, but this build cannot read them.
    Unsupported(&'static str),
}

impl Unreadable {
    /// Names the file, and where in it the decoded bytes begin.
    pub(crate) fn of(self, path: &Path, base: u64) -> Error {
        match self {
            Self::Damaged(damage) => damage.of(path, base),
            Self::Unsupported(what) => Error::Unsupported { path: path.to_owned(), what },
        }
    }
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}
