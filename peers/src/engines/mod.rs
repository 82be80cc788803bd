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

    /// Whether it is a log-structured merge tree of somebody else: those are what a ratio compares with.
    pub(crate) fn is_lsm_peer(self) -> bool {
        let others = ["ours", "redb", "sled"];
        !others.contains(&self.name().as_str())
    }

    /// The package of which the version counts.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Ours => "nori-lsm",
            #[cfg(feature = "rocksdb")]
            Self::RocksdbLeveled | Self::RocksdbUniversal => "librocksdb-sys",
            #[cfg(feature = "fjall")]
            Self::Fjall => "fjall",
            #[cfg(feature = "surrealkv")]
            Self::Surrealkv => "surrealkv",
            #[cfg(feature = "redb")]
            Self::Redb => "redb",
            #[cfg(feature = "sled")]
            Self::Sled => "sled",
        }
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
