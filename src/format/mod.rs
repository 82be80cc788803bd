//! Bytes and values: every format on disk, without I/O; no input makes it panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub(crate) mod codec;
pub(crate) mod manifest;
