//! Files of the engine, through [`env::Fs`](crate::env::Fs) only: names, log segments, manifest, tables, block cache.

pub(crate) mod layout;
pub(crate) mod log_segment;
pub(crate) mod manifest;
