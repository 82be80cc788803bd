//! The engines, and what is set for each so that they can be compared.

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sled")]
mod sled;
#[cfg(feature = "surrealkv")]
mod surrealkv;

use clap::ValueEnum;
use nori_workload::{Nori, Result, Store};

/// Bytes of the cache of blocks, indexes and filters.
#[cfg_attr(
    not(any(
        feature = "rocksdb",
        feature = "fjall",
        feature = "surrealkv",
        feature = "redb",
        feature = "sled"
    )),
    expect(dead_code, reason = "only the peers are told")
)]
const CACHE_BYTES: usize = 64 << 20;
/// Bytes of a memtable.
#[cfg_attr(
    not(any(feature = "rocksdb", feature = "fjall", feature = "surrealkv")),
    expect(dead_code, reason = "only the peers with memtables are told")
)]
const MEMTABLE_BYTES: usize = 64 << 20;

/// An engine that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Engine {
    /// nori-lsm.
    Ours,
    /// RocksDB with leveled compaction.
    #[cfg(feature = "rocksdb")]
    RocksdbLeveled,
    /// RocksDB with universal compaction.
    #[cfg(feature = "rocksdb")]
    RocksdbUniversal,
    /// fjall, leveled.
    #[cfg(feature = "fjall")]
    Fjall,
    /// surrealkv, leveled.
    #[cfg(feature = "surrealkv")]
    Surrealkv,
    /// redb, a copy-on-write B-tree.
    #[cfg(feature = "redb")]
    Redb,
    /// sled.
    #[cfg(feature = "sled")]
    Sled,
}

/// What a report must know of an engine, also of one that is not built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name in rows.
    pub(crate) name: &'static str,
    /// The package of which the version counts.
    pub(crate) package: &'static str,
    /// Whether it is a log-structured merge tree of somebody else: those are what a ratio compares with.
    pub(crate) lsm_peer: bool,
}

/// All engines, in the order of the columns.
pub(crate) const KNOWN: [Known; 7] = [
    Known { name: "ours", package: "nori-lsm", lsm_peer: false },
    Known { name: "rocksdb-leveled", package: "librocksdb-sys", lsm_peer: true },
    Known { name: "rocksdb-universal", package: "librocksdb-sys", lsm_peer: true },
    Known { name: "fjall", package: "fjall", lsm_peer: true },
    Known { name: "surrealkv", package: "surrealkv", lsm_peer: true },
    Known { name: "redb", package: "redb", lsm_peer: false },
    Known { name: "sled", package: "sled", lsm_peer: false },
];

/// What is to be done with a store of whatever type.
pub(crate) trait Task {
    /// What comes out.
    type Output;

    /// Does it.
    async fn on<S: Store>(self) -> Result<Self::Output>;
}

impl Engine {
    /// All that were built in.
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Does something with a store of this engine.
    pub(crate) async fn run<T: Task>(self, task: T) -> Result<T::Output> {
        match self {
            Self::Ours => task.on::<Nori>().await,
            #[cfg(feature = "rocksdb")]
            Self::RocksdbLeveled => task.on::<rocksdb::Rocks<false>>().await,
            #[cfg(feature = "rocksdb")]
            Self::RocksdbUniversal => task.on::<rocksdb::Rocks<true>>().await,
            #[cfg(feature = "fjall")]
            Self::Fjall => task.on::<fjall::Fjall>().await,
            #[cfg(feature = "surrealkv")]
            Self::Surrealkv => task.on::<surrealkv::Surreal>().await,
            #[cfg(feature = "redb")]
            Self::Redb => task.on::<redb::Redb>().await,
            #[cfg(feature = "sled")]
            Self::Sled => task.on::<sled::Sled>().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_has_a_column() {
        let known = |engine: &Engine| KNOWN.iter().any(|known| known.name == engine.name());
        assert!(Engine::all().iter().all(known));
    }
}
