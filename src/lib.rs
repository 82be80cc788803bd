//! nori-lsm
#![expect(dead_code, reason = "scaffold")]

mod types;

mod error;
pub mod observe;

mod config;
mod cursor;
pub mod env;
mod format;
pub mod sstable;
mod storage;
mod version;

pub use config::*;
pub use error::{Action, Error, Result};
pub use types::{Direction, FileId, KeyRange, Level, SeqNo, SlotId, ValueKind};
