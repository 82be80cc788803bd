//! Files, through [`env::Fs`](crate::env::Fs) only: where they lie, how they are written and read.

pub(crate) mod layout;
pub(crate) mod manifest;
