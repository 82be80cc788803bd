//! nori-lsm as a store to be measured.

use bytes::Bytes;
use nori_lsm::{ATLLConfig, LsmEngine, WriteBatch, WriteOptions};

use crate::store::{Durability, Options, Result, Span, Store, Style};

/// An engine that is open.
#[derive(Clone, Debug)]
pub struct Nori {
    /// The engine.
    pub engine: LsmEngine,
}

/// The configuration that a comparison wants: 64 MiB of cache, memtables of 64 MiB, LZ4, filters of 10 bits, a flush and a
/// compaction at a time. All of them are defaults on a machine with two cores.
#[must_use]
pub fn config(options: &Options) -> ATLLConfig {
    let mut config = ATLLConfig { data_dir: options.dir.clone(), ..Default::default() };
    config.durability = match options.durability {
        Durability::Os => nori_lsm::Durability::Os,
        Durability::Disk => nori_lsm::Durability::Sync,
    };
    config.resources.block_cache_mib = 64;
    config.resources.memtables_mib = 256;
    config.memtable.flush_trigger_bytes = 64 << 20;
    config.filters.bloom_bits_per_key = 10;
    config.io.max_background_compactions = 1;
    config
}

impl Store for Nori {
    const STYLE: Style = Style::Futures;

    async fn open(options: &Options) -> Result<Self> {
        Ok(Self { engine: LsmEngine::open(config(options)).await? })
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        Ok(see(self.engine.get(key).await?.as_deref()))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.engine.put(key, value).await?;
        Ok(())
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.engine.delete(&key).await?;
        Ok(())
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in puts {
            batch.put(key, value);
        }
        self.engine.write(batch, WriteOptions::default()).await?;
        Ok(())
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let mut scan = match span {
            Span::From(from, count) => {
                self.engine.scan(Bytes::copy_from_slice(from)..).limit(count)
            }
            Span::Forward => self.engine.scan(..),
            Span::Backward => self.engine.scan(..).rev(),
        };
        while let Some((key, value)) = scan.next().await? {
            see(&key, &value);
        }
        Ok(())
    }

    async fn settle(&self) -> Result<()> {
        self.engine.flush().await?;
        Ok(self.engine.wait_idle().await?)
    }

    async fn close(self) -> Result<()> {
        Ok(self.engine.shutdown().await?)
    }
}
