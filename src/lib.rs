//! The crate: its page is the README, its modules stand in reading order.
#![doc = include_str!("../README.md")]

mod tally;
mod turn;
mod types;

mod error;
pub mod observe;

mod batch;
mod config;
mod cursor;
pub mod env;
mod snapshots;
mod version;

mod format;
mod memtable;

mod concat;
mod fences;
mod merge;
mod policy;

mod storage;

mod view;

mod quarantine;

mod commit;
mod jobs;
mod ledger;
mod scan;
mod stats;

mod actors;

mod engine;
pub mod sstable;

#[cfg(any(fuzzing, feature = "sim"))]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "chaos")]
pub use actors::chaos::Blow;
pub use actors::{Component, ComponentHealth, Health, HealthState};
pub use batch::{Commit, WriteBatch, WriteOptions};
pub use config::*;
pub use engine::{LsmEngine, Snapshot};
pub use error::{Action, Error, Result};
pub use jobs::recover::RecoveryReport;
pub use jobs::repair::{RepairReport, Salvaged, diagnose, repair};
pub use jobs::salvage::Lost;
pub use jobs::unreadable::Unreadable;
pub use jobs::verify::{VerifyReport, verify};
pub use ledger::MemoryLedger;
pub use quarantine::DamagedTable;
pub use scan::{RangeIter, Scan};
pub use stats::{LevelStats, Pressure, Stats};
pub use storage::Damaged;
pub use types::{CompactionMode, Direction, FileId, KeyRange, Level, SeqNo, SlotId, ValueKind};
