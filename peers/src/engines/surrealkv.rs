//! surrealkv.
//!
//! Source: its README (commits are awaited, point reads and iteration are synchronous, `close` at the end) and the documentation of
//! `Options` (10 bits, Snappy as the only codec, `with_wal_preallocation` for durable commits). A transaction that met another
//! one's write is begun anew, as its documentation of conflicts wants. Values do not count for the size of its memtable.

use std::sync::Arc;

use bytes::Bytes;
use nori_workload::{Options, Result, Span, Store, Style, wait_until_idle};
use surrealkv::{
    CompactRangeOptions, CompressionType, Durability, Error, LSMIterator, Mode, Transaction, Tree,
    TreeBuilder,
};

use super::{CACHE_BYTES, MEMTABLE_BYTES};

/// A tree that is open.
#[derive(Clone)]
pub(super) struct Surreal {
    tree: Arc<Tree>,
    durability: Durability,
}

impl Surreal {
    /// A transaction of what `write` writes.
    async fn commit(
        &self,
        write: impl Fn(&mut Transaction) -> surrealkv::Result<()> + Send,
    ) -> Result<()> {
        loop {
            let mut transaction = self.tree.begin_with_mode(Mode::WriteOnly)?;
            transaction.set_durability(self.durability);
            write(&mut transaction)?;
            match transaction.commit().await {
                Ok(()) => return Ok(()),
                Err(Error::TransactionWriteConflict | Error::TransactionRetry) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&self) -> Result<()> {
        let options = CompactRangeOptions {
            flush_memtable: true,
            target_level: Some(0),
            ..Default::default()
        };
        Ok(self.tree.compact_range(None, None, &options)?)
    }
}

impl Store for Surreal {
    const STYLE: Style = Style::Tasks;

    async fn open(options: &Options) -> Result<Self> {
        let settings = surrealkv::Options::new()
            .with_path(options.dir.clone())
            .with_block_cache_capacity(u64::try_from(CACHE_BYTES)?)
            .with_max_memtable_size(MEMTABLE_BYTES)
            .with_compression_per_level(vec![CompressionType::SnappyCompression])
            .with_wal_preallocation(true);
        let tree =
            TreeBuilder::with_options(settings).with_block_size(4 << 10).build_async().await?;
        let durability = match options.durability {
            nori_workload::Durability::Os => Durability::Eventual,
            nori_workload::Durability::Disk => Durability::Immediate,
        };
        Ok(Self { tree: Arc::new(tree), durability })
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        Ok(see(transaction.get(key)?.as_deref()))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.commit(|transaction| transaction.set(&*key, &*value)).await
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.commit(|transaction| transaction.delete(&*key)).await
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        self.commit(|transaction| {
            puts.iter().try_for_each(|(key, value)| transaction.set(&**key, &**value))
        })
        .await
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        match span {
            Span::From(from, count) => {
                let mut cursor = transaction.scan(from..)?;
                cursor.seek_first()?;
                walk(&mut cursor, count, LSMIterator::next, &mut see)
            }
            Span::Forward => {
                let mut cursor = transaction.scan(..)?;
                cursor.seek_first()?;
                walk(&mut cursor, usize::MAX, LSMIterator::next, &mut see)
            }
            Span::Backward => {
                let mut cursor = transaction.scan(..)?;
                cursor.seek_last()?;
                walk(&mut cursor, usize::MAX, LSMIterator::prev, &mut see)
            }
        }
    }

    async fn settle(&self) -> Result<()> {
        self.flush()?;
        wait_until_idle();
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(self.tree.close().await?)
    }
}

fn walk<I: LSMIterator>(
    cursor: &mut I,
    count: usize,
    step: impl Fn(&mut I) -> surrealkv::Result<bool>,
    see: &mut impl FnMut(&[u8], &[u8]),
) -> Result<()> {
    for at in 0..count {
        if !cursor.valid() {
            break;
        }
        see(cursor.key().user_key(), &cursor.value()?);
        if at + 1 < count {
            step(cursor)?;
        }
    }
    Ok(())
}
