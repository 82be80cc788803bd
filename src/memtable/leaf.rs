//! A leaf of a memtable's tree: the numbers of a few entries in the order of their arrival, and one word that says how they sort.
//!
//! An insert fills the next free slot, which no reader looks at, and then publishes the new order with one store. A leaf that is
//! full never changes again: two others take its place, and whoever still reads it has all that it ever held.
//!
//! Source: the permutation word of Masstree (Mao, Kohler, Morris 2012); the slots here are written once, so that no reader retries.

use std::cmp::Ordering as Compared;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::arena::{Arena, Id};
use super::sync::{AtomicU32, AtomicU64, MODEL};
use crate::batch::WriteOp;
use crate::format::coding;
use crate::types::{SeqNo, ValueKind};

/// Entries of a leaf: what the four bits of a place in [`Order`] can number, and the count beside them.
pub(super) const SLOTS: usize = if MODEL { 3 } else { 15 };

/// One version of a key.
#[derive(Debug)]
pub(super) struct Entry {
    /// The key, and the value behind it.
    bytes: Bytes,
    key_len: usize,
    pub(super) kind: ValueKind,
    pub(super) seq: SeqNo,
}

impl Entry {
    /// `bytes`: the key, of `key_len` bytes, and the value behind it.
    pub(super) fn new(seq: SeqNo, kind: ValueKind, bytes: Bytes, key_len: usize) -> Self {
        Self { bytes, key_len, kind, seq }
    }

    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        self.bytes.get(..self.key_len).unwrap_or_default()
    }

    /// A slice of what the entry shares with others.
    pub(super) fn value(&self) -> Bytes {
        self.bytes.slice(self.key_len..)
    }

    /// What was to be done, as slices of the same.
    pub(super) fn op(&self) -> WriteOp {
        let key = self.bytes.slice(..self.key_len);
        WriteOp { key, kind: self.kind, value: self.value() }
    }

    /// Where it stands.
    pub(super) fn at(&self) -> Probe<'_> {
        Probe { key: self.key(), seq: self.seq }
    }
}

/// Where a version stands, or would: keys ascending, of each key the newest version first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'k> {
    pub(super) key: &'k [u8],
    pub(super) seq: SeqNo,
}

impl Probe<'_> {
    pub(super) fn compare(self, other: Probe<'_>) -> Compared {
        self.key.cmp(other.key).then_with(|| other.seq.cmp(&self.seq))
    }
}

/// The [head](coding::head_of) of `key` behind the first `skip` bytes: sorted like the keys wherever two differ, among keys that
/// have those first bytes in common.
#[inline]
pub(super) fn head_of(key: &[u8], skip: usize) -> u64 {
    coding::head_of(key.get(skip..).unwrap_or_default())
}

/// [`head_of`] the key of an entry.
pub(super) fn head_in(entries: &Arena<Entry>, id: Id, skip: usize) -> u64 {
    entries.get(id).map_or(0, |entry| head_of(entry.key(), skip))
}

/// How the slots of a leaf sort: their count in the lowest four bits, then the slot of each place in turn, four bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order(u64);

impl Order {
    /// That of the first `count` slots, as they are.
    const fn sorted(count: usize) -> Self {
        const ALL: u64 = 0xfedc_ba98_7654_3210;
        let slots = if count == 0 { 0 } else { ALL & (u64::MAX >> (64 - 4 * count)) };
        Self((slots << 4) | count as u64)
    }

    pub(super) const fn len(self) -> usize {
        (self.0 & 15) as usize
    }

    /// The slot at a place. REQUIRES: `place` is below [`SLOTS`].
    const fn slot(self, place: usize) -> usize {
        ((self.0 >> (4 * place + 4)) & 15) as usize
    }

    /// The next free slot, put at a place. REQUIRES: there is one.
    const fn with_next_at(self, place: usize) -> Self {
        let (count, slots) = (self.0 & 15, self.0 >> 4);
        let before = slots & ((1 << (4 * place)) - 1);
        let behind = slots >> (4 * place);
        // Nothing is behind the last place: shifting by all 64 bits would be an error.
        let behind = if place + 1 < SLOTS { behind << (4 * place + 4) } else { 0 };
        Self(((before | count << (4 * place) | behind) << 4) | (count + 1))
    }
}

/// See the module. One writer, any number of readers.
#[derive(Debug)]
pub(super) struct Leaf {
    /// Bytes that all keys that may come here have in common.
    skip: usize,
    order: AtomicU64,
    /// [`head_of`] the key of each slot.
    heads: [AtomicU64; SLOTS],
    ids: [AtomicU32; SLOTS],
}

/// The positions between which those of a leaf are; `None`: there is no such bound.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    pub(super) low: Option<Id>,
    pub(super) high: Option<Id>,
}

impl Bounds {
    /// How many bytes all keys within have in common at their fronts; `None` if a bound is missing.
    pub(super) fn common_prefix(self, entries: &Arena<Entry>) -> Option<usize> {
        let key = |id: Option<Id>| Some(entries.get(id?)?.key());
        let (low, high) = (key(self.low)?, key(self.high)?);
        Some(coding::common_prefix(low, high))
    }
}

/// How many of the `most` items of a full node a new one behind them takes with it. None at the end of everything: keys that ascend
/// come behind it. Elsewhere some: keys may also descend from there, as versions of one key do, and would all come to a node as full.
pub(super) fn at_end(most: usize, bounds: Bounds) -> usize {
    if bounds.high.is_some() { most.div_ceil(5) } else { 0 }
}

/// An entry by its number, with [`head_of`] its key.
type Item = (Id, u64);

impl Leaf {
    /// A leaf for entries within bounds, without any.
    pub(super) fn empty(bounds: Bounds, entries: &Arena<Entry>) -> Self {
        Self::with(bounds.common_prefix(entries).unwrap_or(0), &[])
    }

    fn with(skip: usize, items: &[Item]) -> Self {
        let order = AtomicU64::new(Order::sorted(items.len().min(SLOTS)).0);
        let item = |slot| items.get(slot).copied().unwrap_or_default();
        let heads = std::array::from_fn(|slot| AtomicU64::new(item(slot).1));
        let ids = std::array::from_fn(|slot| AtomicU32::new(item(slot).0));
        Self { skip, order, heads, ids }
    }

    /// A leaf for some of the entries of this one. Heads that still tell them apart are kept: that looks at no key.
    fn of_some(&self, items: &mut [Item], bounds: Bounds, entries: &Arena<Entry>) -> Self {
        /// Leading bits in which heads may be equal before others are worth a look at every key.
        const EQUAL: u32 = 32;
        let ends = items.first().zip(items.last());
        if ends.is_some_and(|(first, last)| (first.1 ^ last.1).leading_zeros() < EQUAL) {
            return Self::with(self.skip, items);
        }
        let skip = bounds.common_prefix(entries).unwrap_or(0);
        for (id, head) in &mut *items {
            *head = head_in(entries, *id, skip);
        }
        Self::with(skip, items)
    }

    /// Takes in an entry that belongs here. `Err`: the place where it would be, but the leaf is full. REQUIRES: nobody else inserts
    /// meanwhile.
    pub(super) fn insert(
        &self,
        id: Id,
        at: Probe<'_>,
        entries: &Arena<Entry>,
    ) -> Result<(), usize> {
        let order = self.order();
        let place = self.rank(order, at, entries);
        let next = order.len();
        let (Some(head), Some(slot)) = (self.heads.get(next), self.ids.get(next)) else {
            return Err(place);
        };
        head.store(head_of(at.key, self.skip), Ordering::Relaxed);
        slot.store(id, Ordering::Relaxed);
        self.order.store(order.with_next_at(place).0, Ordering::Release);
        Ok(())
    }

    /// Two leaves for what is in this full one, and for an entry that would be at `place`; and the entry with which the second
    /// begins. They are halves; but an entry before all others gets a leaf of its own, and one behind them takes [`at_end`] with it:
    /// keys that arrive in order fill theirs.
    pub(super) fn split(
        &self,
        (id, place): (Id, usize),
        bounds: Bounds,
        entries: &Arena<Entry>,
    ) -> ([Self; 2], Id) {
        let order = self.order();
        let mut items = [(id, head_in(entries, id, self.skip)); SLOTS + 1];
        for (at, item) in (0..=SLOTS).filter(|at| *at != place).zip(0..SLOTS) {
            if let (Some(to), Some(id)) = (items.get_mut(at), self.id(order, item)) {
                *to = (id, self.head(order, item));
            }
        }
        let cut = match place {
            0 => 1,
            SLOTS => SLOTS - at_end(SLOTS, bounds),
            _ => SLOTS.div_ceil(2),
        };
        let (left, right) = items.split_at_mut(cut);
        let bound = right.first().map_or(id, |first| first.0);
        let left = self.of_some(left, Bounds { high: Some(bound), ..bounds }, entries);
        let right = self.of_some(right, Bounds { low: Some(bound), ..bounds }, entries);
        ([left, right], bound)
    }

    /// How the entries sort now. What it names stays there.
    #[inline]
    pub(super) fn order(&self) -> Order {
        Order(self.order.load(Ordering::Acquire))
    }

    /// The entry at a place of an order of this leaf.
    #[inline]
    pub(super) fn id(&self, order: Order, place: usize) -> Option<Id> {
        if place >= order.len() {
            return None;
        }
        self.ids.get(order.slot(place)).map(|id| id.load(Ordering::Relaxed))
    }

    #[inline]
    fn head(&self, order: Order, place: usize) -> u64 {
        self.heads.get(order.slot(place)).map_or(0, |head| head.load(Ordering::Relaxed))
    }

    /// How many entries stand before `probe`.
    #[inline]
    pub(super) fn rank(&self, order: Order, probe: Probe<'_>, entries: &Arena<Entry>) -> usize {
        let head = head_of(probe.key, self.skip);
        let is_before = |place| match self.head(order, place).cmp(&head) {
            Compared::Less => true,
            Compared::Greater => false,
            Compared::Equal => {
                let entry = self.id(order, place).and_then(|id| entries.get(id));
                entry.is_some_and(|entry| probe.compare(entry.at()) == Compared::Greater)
            }
        };
        let (mut low, mut high) = (0, order.len());
        // Keys that arrive in order come behind the last.
        if high > 0 && is_before(high - 1) {
            return high;
        }
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_that_of_a_list() {
        let sorted =
            std::iter::successors(Some(Order(0)), |order| Some(order.with_next_at(order.len())));
        assert!(sorted.take(SLOTS + 1).enumerate().all(|(len, order)| order == Order::sorted(len)));
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut order, mut list) = (Order(0), Vec::new());
            for slot in 0..SLOTS {
                let place = rng.usize(..=list.len());
                list.insert(place, slot);
                order = order.with_next_at(place);
                assert_eq!(order.len(), list.len());
                let slots: Vec<usize> = (0..list.len()).map(|place| order.slot(place)).collect();
                assert_eq!(slots, list, "seed {seed}");
            }
        }
    }

    #[test]
    fn heads_sort_like_keys_that_begin_alike() {
        let mut keys: Vec<&[u8]> =
            vec![b"xy", b"xy\0", b"xya", b"xya\0", b"xyabcdefgh", b"xyabcdefghi", b"xy\xff"];
        keys.sort_unstable();
        assert!(keys.windows(2).all(|w| head_of(w[0], 2) <= head_of(w[1], 2)));
        assert_eq!(head_of(b"xy", 5), 0, "shorter than what is skipped");
    }
}
