//! A list that one writer appends to and everyone reads: what is in it never moves, and goes when the list goes.
//!
//! It grows in chunks, four to each doubling of its length, so at most a quarter of it is unused.

use std::sync::atomic::Ordering;

use super::sync::{AtomicU32, MODEL, OnceLock};
use crate::types::usize_of;

/// Items of the first chunks, as a power of two.
const FIRST: u32 = if MODEL { 1 } else { 6 };
/// Chunks to a doubling, as a power of two.
const PARTS: u32 = 2;
/// Chunks that hold all items that a `u32` can number; in a model, all that it needs.
const CHUNKS: usize = if MODEL { 6 } else { ((32 - FIRST - PARTS + 1) as usize) << PARTS };

/// Number of an item.
pub(super) type Id = u32;

type Chunk<T> = Box<[OnceLock<T>]>;

/// See the module.
#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
    len: AtomicU32,
}

/// The chunk of an item, its place there, and how many items the chunk has.
#[inline]
fn place(id: Id) -> (usize, usize, usize) {
    let shifted = u64::from(id) + (1 << (FIRST + PARTS));
    let doubling = shifted.ilog2() - FIRST - PARTS;
    let size = FIRST + doubling;
    let part = (shifted >> size) & ((1 << PARTS) - 1);
    let chunk = (u64::from(doubling) << PARTS) | part;
    (usize_of(chunk), usize_of(shifted & ((1 << size) - 1)), 1 << size)
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        let chunks = std::iter::repeat_with(OnceLock::new).take(CHUNKS).collect();
        Self { chunks, len: AtomicU32::new(0) }
    }
}

impl<T> Arena<T> {
    /// Appends an item. REQUIRES: nobody else appends meanwhile, and there are fewer than 2^32.
    pub(super) fn push(&self, item: T) -> Id {
        let id = self.len.load(Ordering::Relaxed);
        let (chunk, place, size) = place(id);
        if let Some(chunk) = self.chunks.get(chunk) {
            let new = || std::iter::repeat_with(OnceLock::new).take(size).collect();
            let free = chunk.get_or_init(new).get(place).is_some_and(|slot| slot.set(item).is_ok());
            debug_assert!(free, "items are appended in turn, by one writer");
        }
        self.len.store(id + 1, Ordering::Release);
        id
    }

    #[inline]
    pub(super) fn get(&self, id: Id) -> Option<&T> {
        let (chunk, place, _) = place(id);
        self.chunks.get(chunk)?.get()?.get(place)?.get()
    }

    /// Every item, the last first.
    pub(super) fn last_first(&self) -> impl Iterator<Item = &T> {
        (0..self.len.load(Ordering::Acquire)).rev().filter_map(|id| self.get(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own() {
        let mut last = place(0);
        assert_eq!(last, (0, 0, 64));
        for id in 1..200_000 {
            let next = place(id);
            let follows = if last.1 + 1 < last.2 { (last.0, last.1 + 1, last.2) } else { next };
            assert_eq!(next, follows);
            assert!(last.0 == next.0 || (next.0 == last.0 + 1 && next.1 == 0));
            last = next;
        }
        assert!(place(u32::MAX).0 < CHUNKS);
    }

    #[test]
    fn what_was_appended_stays_and_little_room_is_unused() {
        let arena = Arena::default();
        for n in 0..10_000_u32 {
            assert_eq!(arena.push(n * 3), n);
        }
        assert!((0..10_000).all(|id| arena.get(id) == Some(&(id * 3))));
        assert_eq!(arena.get(10_000), None);
        assert_eq!(arena.last_first().copied().max(), arena.last_first().next().copied());
        let room: usize = arena.chunks.iter().filter_map(|chunk| Some(chunk.get()?.len())).sum();
        assert!(room <= 12_500, "{room}");
    }
}
