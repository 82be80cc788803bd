//! The block cache: decompressed, checked data blocks of all tables, bounded by bytes.

use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use crate::format::frame::Place;
use crate::types::{u64_of, usize_of};

/// Bytes that the cache spends on a block beside its payload, about.
const OVERHEAD: u64 = 96;
/// Size of a typical block, to guess how many there will be.
const TYPICAL_BLOCK: u64 = 4096;

/// Blocks in memory, shared by every table of an engine. Scans do not drive out what is read again and again.
///
/// Thread-safe; a hit takes a shared lock of one of many shards.
pub(crate) struct BlockCache {
    blocks: Option<Cache<Place, Bytes, ByBytes, ByPlace>>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Place, Bytes> for ByBytes {
    fn weight(&self, _: &Place, block: &Bytes) -> u64 {
        u64_of(block.len()).saturating_add(OVERHEAD)
    }
}

/// Hashes places. They come from our own files, so there is no attacker to hide the hash from; the same run hashes alike.
#[derive(Clone, Copy, Default)]
struct ByPlace;

/// Mixes each number into the state: multiply, and shift the good upper bits down, twice (as in MurmurHash3's finalizer).
#[derive(Clone, Copy, Default)]
struct Fold(u64);

impl BuildHasher for ByPlace {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold::default()
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 = mixed ^ (mixed >> 32);
    }
}

impl BlockCache {
    /// Cache of at most `capacity` bytes; 0 turns it off.
    pub(crate) fn new(capacity: u64) -> Self {
        let items = usize_of(capacity / TYPICAL_BLOCK).max(1);
        let blocks = (capacity > 0)
            .then(|| Cache::with(items, capacity, ByBytes, ByPlace, DefaultLifecycle::default()));
        Self { blocks }
    }

    #[inline]
    pub(crate) fn get(&self, place: Place) -> Option<Bytes> {
        self.blocks.as_ref()?.get(&place)
    }

    pub(crate) fn insert(&self, place: Place, block: Bytes) {
        if let Some(blocks) = &self.blocks {
            blocks.insert(place, block);
        }
    }

    /// Makes it hold at most `capacity` bytes from now on. A cache that is turned off stays so.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        if let Some(blocks) = &self.blocks {
            blocks.set_capacity(capacity);
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> u64 {
        self.blocks.as_ref().map_or(0, Cache::capacity)
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.as_ref().map_or(0, Cache::weight)
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FileId;

    #[test]
    fn the_cache_stays_within_its_bytes() {
        let cache = BlockCache::new(1 << 20);
        for offset in 0..1000 {
            cache.insert(Place { file: FileId(1), offset }, Bytes::from(vec![0; 4096]));
            assert!(cache.bytes() <= 1 << 20);
        }
        assert!(cache.bytes() > 1 << 19, "and uses them");
    }

    #[test]
    fn a_cache_of_no_bytes_keeps_nothing() {
        let cache = BlockCache::new(0);
        let place = Place { file: FileId(1), offset: 0 };
        cache.insert(place, Bytes::from_static(b"block"));
        assert_eq!(cache.get(place), None);
    }
}
