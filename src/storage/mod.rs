//! Tables as files: written once, read by many, through [`Fs`](crate::env::Fs) only.

pub(crate) mod cache;
pub(crate) mod table;
pub(crate) mod table_cursor;
pub(crate) mod table_writer;

#[cfg(test)]
mod tests;

pub(crate) use crate::format::filter::hash_key;
pub(crate) use cache::BlockCache;
pub(crate) use table::{Access, Fetch, Found, Table};
pub(crate) use table_cursor::TableCursor;
pub(crate) use table_writer::{TableOptions, TableWriter, temp_path};
