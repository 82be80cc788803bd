//! The components of a running engine, each an actor under one supervisor.
//!
//! ```text
//! Root ─ WalWriter        commits what queued up while the core was busy; syncs; heals the log
//!      ─ MemtableOwner    seals memtables by size and age, keeps a log segment prepared
//!      ─ Flusher          sealed memtable ▶ tables of L0
//!      ─ ManifestKeeper   the only one that changes the version: append, sync, publish, delete what died
//!      ─ Compactor(level) runs the plans for the slots of its level
//!      ─ Scheduler        heat, K, guards, bandit: version and load ▶ plans
//!      ─ WalGc            deletes log segments below the floor
//!      ─ Scrubber         reads every table once in a while and looks for damage
//! ```
//!
//! Every message is a bell: what is to be done stands in [`Shared`](shared::Shared), in the View or on disk, so a lost mailbox
//! costs time, never work. No handler blocks its runtime: files are touched by jobs on the blocking pool.

mod busy;
#[cfg(feature = "chaos")]
pub(crate) mod chaos;
mod compactor;
pub(crate) mod flusher;
mod health;
pub(crate) mod manifest_keeper;
pub(crate) mod memtable_owner;
#[cfg(test)]
mod publication;
pub(crate) mod root;
mod routes;
pub(crate) mod scheduler;
mod scrubber;
pub(crate) mod shared;
mod timer;
mod wal_gc;
pub(crate) mod wal_writer;

pub use health::{ComponentHealth, Health, HealthState};
pub(crate) use root::Root;
pub use routes::Component;
pub(crate) use routes::Routes;
pub(crate) use shared::{Shared, SharedArgs};
