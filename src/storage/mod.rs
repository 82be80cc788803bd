//! Files of the engine, through [`env::Fs`](crate::env::Fs) only: names, log segments, manifest, tables, what is cached of them.

mod block_cost;
mod block_source;
pub(crate) mod cache;
pub(crate) mod layout;
pub(crate) mod log_segment;
pub(crate) mod manifest;
mod open_table;
mod prefetch;
pub(crate) mod store;
pub(crate) mod table;
pub(crate) mod table_cache;
pub(crate) mod table_check;
pub(crate) mod table_cursor;
pub(crate) mod table_writer;

#[cfg(test)]
mod tests;

pub(crate) use prefetch::Helpers;
pub(crate) use table::{Access, Fetch, Table};
pub(crate) use table_cache::{NO_TABLES, OpenTables, TableCache};
pub use table_check::Damaged;
pub(crate) use table_check::{Checked, TableCheck};
pub(crate) use table_cursor::{TableCursor, Walk};
pub(crate) use table_writer::{TableOptions, TableWriter, temp_path};
