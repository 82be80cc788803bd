//! nori-lsm
#![expect(dead_code, unused_imports, reason = "scaffold")]

mod types;

mod error;
pub mod observe;

mod batch;
mod config;
mod cursor;
pub mod env;
mod version;

mod format;
mod memtable;

mod concat;
mod merge;
mod policy;

mod storage;

pub use batch::{Commit, WriteBatch, WriteOptions};
pub use config::*;
pub use error::{Action, Error, Result};
pub use types::{Direction, FileId, KeyRange, Level, SeqNo, SlotId, ValueKind};
