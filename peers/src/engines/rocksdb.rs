//! RocksDB, leveled or universal.
//!
//! Source: the wiki's pages "Setup Options and Basic Tuning" (dynamic levels, `kMinOverlappingRatio`, `bytes_per_sync`), "RocksDB Bloom
//! Filter" (10 bits, not block based) and "Known Issues" (stop background work before the database is dropped). Indexes and filters
//! stay out of the cache, which is the default: its 64 shards of 1 MiB would hold hardly one of them, and reads took four times as long.

use std::sync::Arc;

use bytes::Bytes;
use nori_workload::{Durability, Options, Result, Span, Store, Style};
use rocksdb::{
    BlockBasedOptions, Cache, CompactionPri, DB, DBCompactionStyle, DBCompressionType, Direction,
    IteratorMode, ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};

use super::{CACHE_BYTES, MEMTABLE_BYTES};

/// A database that is open.
#[derive(Clone)]
pub(super) struct Rocks<const UNIVERSAL: bool> {
    db: Arc<DB>,
    durability: Durability,
}

impl<const UNIVERSAL: bool> Rocks<UNIVERSAL> {
    fn options() -> rocksdb::Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        table.set_block_size(4 << 10);
        table.set_bloom_filter(10.0, false);
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(MEMTABLE_BYTES);
        options.set_max_write_buffer_number(4);
        options.set_max_background_jobs(2);
        options.set_bytes_per_sync(1 << 20);
        options.set_compression_type(DBCompressionType::Lz4);
        if UNIVERSAL {
            options.set_compaction_style(DBCompactionStyle::Universal);
        } else {
            options.set_level_compaction_dynamic_level_bytes(true);
            options.set_compaction_pri(CompactionPri::MinOverlappingRatio);
        }
        options
    }

    fn writing(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.durability == Durability::Disk);
        options
    }
}

impl<const UNIVERSAL: bool> Store for Rocks<UNIVERSAL> {
    const STYLE: Style = Style::Threads;

    async fn open(options: &Options) -> Result<Self> {
        let db = DB::open(&Self::options(), &options.dir)?;
        Ok(Self { db: Arc::new(db), durability: options.durability })
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        Ok(see(self.db.get_pinned(key)?.as_deref()))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        Ok(self.db.put_opt(key, value, &self.writing())?)
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        Ok(self.db.delete_opt(key, &self.writing())?)
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in puts {
            batch.put(key, value);
        }
        Ok(self.db.write_opt(batch, &self.writing())?)
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let mut reading = ReadOptions::default();
        let (mode, count) = match span {
            Span::From(from, count) => (IteratorMode::From(from, Direction::Forward), count),
            Span::Forward => (IteratorMode::Start, usize::MAX),
            Span::Backward => (IteratorMode::End, usize::MAX),
        };
        if count == usize::MAX {
            reading.fill_cache(false);
        }
        let backward = matches!(mode, IteratorMode::End);
        let mut cursor = self.db.raw_iterator_opt(reading);
        match mode {
            IteratorMode::From(from, _) => cursor.seek(from),
            IteratorMode::Start => cursor.seek_to_first(),
            IteratorMode::End => cursor.seek_to_last(),
        }
        for at in 0..count {
            let Some((key, value)) = cursor.item() else { break };
            see(key, value);
            if at + 1 == count {
                break;
            }
            if backward { cursor.prev() } else { cursor.next() }
        }
        Ok(cursor.status()?)
    }

    async fn settle(&self) -> Result<()> {
        self.db.flush()?;
        Ok(self.db.wait_for_compact(&WaitForCompactOptions::default())?)
    }

    async fn close(self) -> Result<()> {
        self.db.flush()?;
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}
