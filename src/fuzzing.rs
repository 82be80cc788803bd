//! Entrances for the fuzz targets in `fuzz/` and for the tests over their corpus; not part of the public interface.

use std::path::PathBuf;
use std::sync::Arc;

use crate::env::Env;
use crate::error::Result;
use crate::sstable::{Entry, SSTableConfig, SSTableIterator, SSTableReader};
use crate::types::{Direction, KeyRange, SeqNo};

/// From now on every checksum on disk is taken for right, in the whole process.
#[cfg(fuzzing)]
pub fn believe_checksums() {
    crate::format::checksum::believe_all();
}

/// Opens the table in the file `path` of `env`; keeps no block in memory.
///
/// # Errors
/// As [`SSTableReader::open`].
pub async fn open_table(path: PathBuf, env: Env) -> Result<Arc<SSTableReader>> {
    let config = SSTableConfig { path, block_cache_mb: 0, ..SSTableConfig::default() };
    Ok(Arc::new(SSTableReader::in_env(config, env, false).await?))
}

/// The newest version of `key` with a number of at most `snapshot`.
///
/// # Errors
/// As [`SSTableReader::get`].
pub async fn get_at(table: &SSTableReader, key: &[u8], snapshot: SeqNo) -> Result<Option<Entry>> {
    table.get_at(key, snapshot).await
}

/// The entries of `range`, in this order.
pub fn walk(table: Arc<SSTableReader>, range: KeyRange, direction: Direction) -> SSTableIterator {
    table.over(range, direction)
}
