//! Bytes to values and back: pure functions, total on every input. No I/O, no panics, and no allocation that a length from disk dictates.
#![deny(clippy::indexing_slicing)]

pub(crate) mod codec;
pub(crate) mod coding;
pub(crate) mod manifest;
pub(crate) mod wal;
