//! What is done to a store and how it is measured, whatever the store: the same keys, values, draws and clocks for every engine.
//!
//! ```text
//! catalog ─▶ Workload ─▶ run ─▶ open ─▶ drive: a Client per client ─▶ Times ─▶ Measured
//!                                          └─▶ Store: what an engine has to offer
//! ```
//!
//! A [`Workload`] is a value, [`catalog`] is the table of those that have a name. Every value that is read is verified.
#![expect(clippy::disallowed_methods, reason = "measuring reads the clock and files of its own")]

pub mod catalog;
mod client;
mod cost;
mod crash;
mod draw;
mod drive;
pub mod entry;
mod measured;
#[cfg(feature = "nori")]
mod nori;
pub mod place;
mod run;
mod store;
mod times;
mod workload;

pub use cost::{Cost, wait_until_idle};
pub use crash::victim;
pub use draw::{Distribution, Draw};
pub use drive::{drive, fill};
pub use measured::{Measured, Quantiles};
#[cfg(feature = "nori")]
pub use nori::{Nori, config};
pub use run::{prepare, run};
pub use store::{Durability, Fault, Options, Result, Span, Store, Style, Wrong};
pub use times::{Kind, Times};
pub use workload::{Action, Dataset, Length, Plan, Unit, Workload};

/// A number as a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "measured with a few digits")]
#[must_use]
pub fn real(number: u64) -> f64 {
    number as f64
}
