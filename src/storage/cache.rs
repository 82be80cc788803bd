//! The block cache: decompressed, checked data blocks of all tables, bounded by bytes.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use crate::format::frame::Place;
use crate::types::{u64_of, usize_of};

/// Bytes that the cache spends on a block beside its payload, about.
const OVERHEAD: u64 = 96;
/// Size of a typical block, to guess how many there will be.
const TYPICAL_BLOCK: u64 = 4096;
/// Blocks of scans for each that goes into a full cache.
const SCANNED: u64 = 4;
/// Blocks of scans between two looks at how full it is.
const LOOK: u64 = 64;

/// Blocks in memory, shared by every table of an engine. Scans do not drive out what is read again and again: see [`offer`](Self::offer).
///
/// Thread-safe; a hit takes a shared lock of one of many shards.
pub(crate) struct BlockCache {
    blocks: Option<Cache<Place, Bytes, ByBytes, ByPlace>>,
    /// Whether it was full, or nearly so, at the last look.
    full: AtomicBool,
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
        Self { blocks, full: AtomicBool::new(false) }
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

    /// Puts a block in that a scan has read ahead: if the cache has room, else one of four. A scan hardly gains by what it finds again
    /// as much as it takes to put each block in and another one out, and those that are scanned again and again get in all the same.
    pub(crate) fn offer(&self, place: Place, block: &Bytes) {
        thread_local! {
            static OFFERED: Cell<u64> = const { Cell::new(0) };
        }
        let Some(blocks) = &self.blocks else { return };
        let offered = OFFERED.replace(OFFERED.get().wrapping_add(1));
        if offered.is_multiple_of(LOOK) {
            self.full.store(blocks.weight() >= blocks.capacity() / 8 * 7, Ordering::Relaxed);
        }
        // By chance, or a number of blocks could be scanned over and over of which the same ones are always left out.
        if !self.full.load(Ordering::Relaxed) || ByPlace.hash_one(offered).is_multiple_of(SCANNED) {
            blocks.insert(place, block.clone());
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
        cache.offer(place, &Bytes::from_static(b"block"));
        assert_eq!(cache.get(place), None);
    }

    #[test]
    fn scans_fill_a_cache_that_has_room_and_a_quarter_of_what_they_read_goes_into_a_full_one() {
        let cache = BlockCache::new(1 << 20);
        let block = Bytes::from(vec![0; 4096]);
        let offer = |offset| {
            let place = Place { file: FileId(1), offset };
            cache.offer(place, &block);
            cache.get(place).is_some()
        };
        assert!((0..150).all(offer), "there is room");
        assert!((150..1000).filter(|offset| offer(*offset)).count() > 200);
        let entered = (1000..9000).filter(|offset| offer(*offset)).count();
        assert!((1600..2400).contains(&entered), "{entered}");
        // Eight blocks that are scanned over and over: all of them get in.
        let mut entered = [false; 8];
        for _ in 0..100 {
            for (offset, entered) in (9000..).zip(&mut entered) {
                *entered |= offer(offset);
            }
        }
        assert_eq!(entered, [true; 8]);
    }
}
