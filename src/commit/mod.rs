//! The commit path: how a write gets its SeqNo, its place in the log and in the memtable, and its answer.
//!
//! The [`Core`] is one struct that is run by whoever holds it: a calling task when nobody else wants it, else the WAL writer,
//! which takes everything that queued up meanwhile as one group. Both run the same steps.
//!
//! ```text
//! write ─ core free? ─ yes ──────▶ lease: append ▶ insert ▶ publish ▶ return                         0 hops
//!             │         └ Sync ──▶ lease, to a thread that may wait: append ▶ sync ▶ insert ▶ publish, answer   2 hops
//!             └ no, or in company ▶ queue, ring once ▶ WAL writer: lease, append all, one sync, insert, publish, answer each
//! ```
//!
//! Invariants: log order = SeqNo order = insert order; a reader sees no write that is not in the log; a request lives in the
//! queue or in the core, never only in a task, so whoever dies leaves it to the next; its reply is consumed when it is answered.

mod core;
mod gate;
mod lease;
mod queue;
mod room;
mod waiting;

pub(crate) use self::core::{Core, CoreArgs};
pub(crate) use gate::{Gate, Valve};
pub(crate) use lease::{Commits, Lease, Terms};
