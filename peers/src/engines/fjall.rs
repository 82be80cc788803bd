//! fjall.
//!
//! Source: its documentation of `Database::builder` and `KeyspaceCreateOptions`, of which the defaults are what is compared: blocks
//! of 4 KiB, LZ4 below the two upper levels, filters of 10 bits below L0. `Keyspace::insert` hands the journal to the operating
//! system; `Database::persist` is how the README makes it durable.

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use nori_workload::{Durability, Options, Result, Span, Store, Style, wait_until_idle};

use super::{CACHE_BYTES, MEMTABLE_BYTES};

/// A database that is open, with its only keyspace.
#[derive(Clone)]
pub(super) struct Fjall {
    db: Database,
    keyspace: Keyspace,
    durability: Durability,
}

impl Fjall {
    fn persist(&self) -> Result<()> {
        match self.durability {
            Durability::Os => Ok(()),
            Durability::Disk => Ok(self.db.persist(PersistMode::SyncData)?),
        }
    }
}

impl Store for Fjall {
    const STYLE: Style = Style::Threads;

    async fn open(options: &Options) -> Result<Self> {
        let cache = u64::try_from(CACHE_BYTES)?;
        let db = Database::builder(&options.dir).cache_size(cache).worker_threads(2).open()?;
        let memtable = u64::try_from(MEMTABLE_BYTES)?;
        let keyspace =
            db.keyspace("data", || KeyspaceCreateOptions::default().max_memtable_size(memtable))?;
        Ok(Self { db, keyspace, durability: options.durability })
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        Ok(see(self.keyspace.get(key)?.as_deref()))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.keyspace.insert(&*key, &*value)?;
        self.persist()
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.keyspace.remove(&*key)?;
        self.persist()
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        let mut batch = self.db.batch();
        for (key, value) in puts {
            batch.insert(&self.keyspace, &*key, &*value);
        }
        batch.commit()?;
        self.persist()
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let mut show = |guard: fjall::Guard| -> Result<()> {
            let (key, value) = guard.into_inner()?;
            see(&key, &value);
            Ok(())
        };
        match span {
            Span::From(from, count) => self.keyspace.range(from..).take(count).try_for_each(show),
            Span::Forward => self.keyspace.iter().try_for_each(&mut show),
            Span::Backward => self.keyspace.iter().rev().try_for_each(&mut show),
        }
    }

    async fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait()?;
        wait_until_idle();
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait()?;
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}
