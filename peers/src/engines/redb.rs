//! redb.
//!
//! Source: its documentation of `Builder` and `Durability`. There is nothing between a commit that stays in the process and one on
//! disk, so what is acknowledged without a sync does not survive `kill -9`; `close` makes it durable.

use std::sync::Arc;

use bytes::Bytes;
use nori_workload::{Options, Result, Span, Store, Style};
use redb::{Builder, Database, Durability, ReadableDatabase, Table, TableDefinition};

use super::CACHE_BYTES;

const DATA: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");

/// A database that is open, with its only table.
#[derive(Clone)]
pub(super) struct Redb {
    db: Arc<Database>,
    durability: Durability,
}

impl Redb {
    /// A transaction of what `write` writes.
    fn commit(
        &self,
        durability: Durability,
        write: impl FnOnce(&mut Table<'_, &[u8], &[u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(durability)?;
        write(&mut transaction.open_table(DATA)?)?;
        Ok(transaction.commit()?)
    }
}

impl Store for Redb {
    const STYLE: Style = Style::Threads;

    async fn open(options: &Options) -> Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        let db = builder.create(options.dir.join("data.redb"))?;
        let durability = match options.durability {
            nori_workload::Durability::Os => Durability::None,
            nori_workload::Durability::Disk => Durability::Immediate,
        };
        let store = Self { db: Arc::new(db), durability };
        store.commit(Durability::Immediate, |_table| Ok(()))?;
        Ok(store)
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        let table = self.db.begin_read()?.open_table(DATA)?;
        Ok(see(table.get(key)?.as_ref().map(|value| value.value())))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.commit(self.durability, |table| {
            table.insert(&*key, &*value)?;
            Ok(())
        })
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.commit(self.durability, |table| {
            table.remove(&*key)?;
            Ok(())
        })
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        self.commit(self.durability, |table| {
            for (key, value) in puts {
                table.insert(&*key, &*value)?;
            }
            Ok(())
        })
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let table = self.db.begin_read()?.open_table(DATA)?;
        let (from, count) = match span {
            Span::From(from, count) => (from, count),
            Span::Forward | Span::Backward => (&[][..], usize::MAX),
        };
        let mut entries = table.range(from..)?;
        for _ in 0..count {
            let entry = match span {
                Span::Backward => entries.next_back(),
                Span::From(..) | Span::Forward => entries.next(),
            };
            let Some(entry) = entry else { break };
            let (key, value) = entry?;
            see(key.value(), value.value());
        }
        Ok(())
    }

    async fn settle(&self) -> Result<()> {
        self.commit(Durability::Immediate, |_table| Ok(()))
    }

    async fn close(self) -> Result<()> {
        self.settle().await
    }
}
