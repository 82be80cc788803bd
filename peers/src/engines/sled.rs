//! sled.
//!
//! Source: its documentation of `Config` and `Db::flush`. Writes reach the operating system with the next flush, of which there is one
//! each 200 ms, so what is acknowledged without a flush does not survive `kill -9`. Its only codec is Zstandard, and its only filter
//! and memtable are its cache.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nori_workload::{Durability, Options, Result, Span, Store, Style, wait_until_idle};
use sled::{Config, Db, InlineArray};

use super::CACHE_BYTES;

/// A database that is open.
pub(super) struct Sled {
    /// A handle may go to another thread but not be shared, so each client has its own; nobody ever waits for this lock.
    db: Mutex<Db>,
    durability: Durability,
}

impl Clone for Sled {
    fn clone(&self) -> Self {
        Self { db: Mutex::new(self.db().clone()), durability: self.durability }
    }
}

impl Sled {
    fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn persist(&self) -> Result<()> {
        if self.durability == Durability::Disk {
            self.db().flush()?;
        }
        Ok(())
    }
}

impl Store for Sled {
    const STYLE: Style = Style::Threads;

    async fn open(options: &Options) -> Result<Self> {
        let config = Config::new().path(&options.dir).cache_capacity_bytes(CACHE_BYTES);
        Ok(Self { db: Mutex::new(config.open()?), durability: options.durability })
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        Ok(see(self.db().get(key)?.as_deref()))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.db().insert(&*key, &*value)?;
        self.persist()
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.db().remove(&*key)?;
        self.persist()
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in puts {
            batch.insert(&*key, &*value);
        }
        self.db().apply_batch(batch)?;
        self.persist()
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let mut show = |entry: std::io::Result<(InlineArray, InlineArray)>| -> Result<()> {
            let (key, value) = entry?;
            see(&key, &value);
            Ok(())
        };
        match span {
            Span::From(from, count) => self.db().range(from..).take(count).try_for_each(show),
            Span::Forward => self.db().iter().try_for_each(&mut show),
            Span::Backward => self.db().iter().rev().try_for_each(&mut show),
        }
    }

    async fn settle(&self) -> Result<()> {
        self.db().flush()?;
        wait_until_idle();
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.db().flush()?;
        Ok(())
    }
}
