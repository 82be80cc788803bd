//! The quarantine: tables that were found damaged, noted by whoever read them, so that background work leaves them alone.
//!
//! A read of what is damaged goes on to fail, and everything else of the table is served. A table leaves the list when it leaves
//! the version, or when all of it reads well again.
//!
//! Invariant: only tables of the published version are listed; each once, with what was found first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::env::Env;
use crate::error::Error;
use crate::observe::VizEvent;
use crate::storage::TableCheck;
use crate::storage::store::Store;
use crate::types::FileId;
use crate::view::Views;

/// A table that does not read as it was written. See [`Health::damaged`](crate::Health::damaged).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedTable {
    /// Number of the table.
    pub table: FileId,
    /// Its file.
    pub path: PathBuf,
    /// Where the piece begins that was found damaged first, in bytes.
    pub offset: u64,
    /// What should have been there.
    pub expected: &'static str,
    /// When it was found, on the engine's monotonic clock.
    pub since: Duration,
}

impl DamagedTable {
    /// The error that a read of the damaged piece gets.
    pub(crate) fn error(&self) -> Error {
        Error::corrupt(&self.path, self.offset, self.expected)
    }
}

type Listener = Box<dyn Fn(Vec<DamagedTable>) + Send + Sync>;

/// Damaged tables of the published version. Thread-safe.
pub(crate) struct Quarantine {
    store: Arc<Store>,
    views: Arc<Views>,
    node: u32,
    tables: Mutex<BTreeMap<FileId, DamagedTable>>,
    /// Told the whole list when it has changed, one change at a time.
    on_change: Listener,
}

impl Quarantine {
    pub(crate) fn new(
        store: Arc<Store>,
        views: Arc<Views>,
        node: u32,
        on_change: impl Fn(Vec<DamagedTable>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (tables, on_change) = (Mutex::default(), Box::new(on_change));
        Arc::new(Self { store, views, node, tables, on_change })
    }

    pub(crate) fn env(&self) -> &Env {
        self.store.env()
    }

    /// Takes note of an error that a read ended with. Returns whether it is the damage of a table that is in use.
    pub(crate) fn note(&self, error: &Error) -> bool {
        let Error::Corrupt { path, offset, expected } = error else { return false };
        let Some(table) = self.store.layout().table_id(path) else { return false };
        let since = self.env().clock.now();
        let (path, offset, expected) = (path.clone(), *offset, *expected);
        let found = DamagedTable { table, path, offset, expected, since };
        let mut fresh = false;
        let live = self.change(|tables| {
            // A version that drops the table is published before its quarantine is lifted: looked at under the same lock.
            let live = self.views.load().version().tables.contains_key(&table);
            if live {
                fresh = !tables.contains_key(&table);
                tables.entry(table).or_insert(found);
            }
            live
        });
        if fresh {
            self.announce(table, error, (offset, expected));
        }
        live
    }

    /// All of a table was read: it is in quarantine from now on if it is damaged, and leaves if it is not.
    pub(crate) fn settle(&self, check: &TableCheck) {
        match check.done().damaged.first() {
            Some(damaged) => drop(self.note(&damaged.error())),
            None => self.change(|tables| drop(tables.remove(&check.meta().file))),
        }
    }

    /// A version was published: forgets tables that it does not name.
    pub(crate) fn refresh(&self) {
        self.change(|tables| {
            let view = self.views.load();
            tables.retain(|table, _| view.version().tables.contains_key(table));
        });
    }

    /// Numbers of the damaged tables.
    pub(crate) fn files(&self) -> BTreeSet<FileId> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// The first of `tables` that is damaged.
    pub(crate) fn first_of(
        &self,
        tables: impl IntoIterator<Item = FileId>,
    ) -> Option<DamagedTable> {
        let damaged = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.into_iter().find_map(|table| damaged.get(&table).cloned())
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<FileId, DamagedTable>) -> T) -> T {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let before = tables.len();
        let done = change(&mut tables);
        if tables.len() != before {
            (self.on_change)(tables.values().cloned().collect());
        }
        done
    }

    fn announce(&self, table: FileId, error: &Error, (offset, expected): (u64, &'static str)) {
        tracing::error!(%error, "a table is damaged; what it holds elsewhere is served");
        self.store.read_metrics().damaged_tables.inc(1);
        self.store.emit(VizEvent::Damage { node: self.node, table, offset, expected });
    }
}

impl std::fmt::Debug for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quarantine").field("tables", &self.tables).finish_non_exhaustive()
    }
}
