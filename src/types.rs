//! Words of one or two machine words that every module shares: sequence numbers, file numbers, levels, key ranges, kinds.

use std::fmt;
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// No counter of writes or files ever gets here: what is on disk from here on is damage. So no sum of numbers runs over.
pub(crate) const NUMBERS_END: u64 = 1 << 62;

/// Position of a write in the one total order of all writes of an engine; the first write has 1.
///
/// Written to the log in this order, so a replay repeats history exactly.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// Above every number that a write can get: "see everything".
    pub const MAX: Self = Self(u64::MAX);

    /// The number `count` writes later.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl fmt::Display for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a file: log segments, tables and manifests draw from one counter, which never goes back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// Depth in the tree: 0 takes flushes, deeper levels are older and larger.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Level(pub u8);

impl Level {
    /// Level 0: whole flushed memtables, newest first.
    pub const L0: Self = Self(0);

    /// The next deeper level.
    #[must_use]
    pub const fn below(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Position in a list of levels.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
    }
}

/// Name of a slot: its level and the guard it opens with (empty for the first slot of a level).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId {
    /// Level of the slot.
    pub level: Level,
    /// First key that belongs to the slot.
    pub start: Bytes,
}

/// Keys from `start` up to, not including, `end`; no `end` means "to the last key".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Bytes,
    /// First key behind the range.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key there is.
    #[must_use]
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// Keys from `start` up to, not including, `end`.
    #[must_use]
    pub const fn new(start: Bytes, end: Option<Bytes>) -> Self {
        Self { start, end }
    }

    /// Every key that begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self::new(Bytes::copy_from_slice(prefix), Some(end.into()));
            }
        }
        Self::new(Bytes::copy_from_slice(prefix), None)
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.is_from_start(key) && self.is_before_end(key)
    }

    /// Whether `key` lies at or behind the start of the range.
    #[must_use]
    #[inline]
    pub fn is_from_start(&self, key: &[u8]) -> bool {
        // No bytes have no address: comparing them can cost as much as a page fault that is caught.
        self.start.is_empty() || key >= &self.start[..]
    }

    /// `key`, or the start of the range if that lies behind it.
    #[inline]
    pub(crate) fn clamped<'k>(&'k self, key: &'k [u8]) -> &'k [u8] {
        if self.is_from_start(key) { key } else { &self.start }
    }

    /// Whether `key` lies before the end of the range.
    #[must_use]
    pub fn is_before_end(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether no key can lie in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether some key can lie in both ranges.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// Whether every key of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.is_empty() || self.intersection(other) == *other
    }

    /// The keys that lie in both ranges.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let start = (&self.start).max(&other.start).clone();
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        Self { start, end }
    }
}

/// How thorough [`LsmEngine::compact_range`](crate::LsmEngine::compact_range) is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompactionMode {
    /// Everything in the range goes to the deepest level that holds data, and is one run there in each of its slots. What was
    /// deleted, expired or overwritten goes, but for what a snapshot reads. A slot that is one run already is written anew only if
    /// something in it was deleted or expires: what it keeps for a snapshot that is gone meanwhile stays.
    #[default]
    Full,
    /// The same, and every slot that holds something of the range is written anew: what was kept for snapshots that are gone goes,
    /// too, and all of it has the configured compression, block size and filters.
    ///
    /// Cost: reads and writes all of those slots once or more.
    Rewrite,
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> Self {
        Self::all()
    }
}

impl<K: AsRef<[u8]>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> Self {
        Self::new(owned(&range.start), Some(owned(&range.end)))
    }
}

impl<K: AsRef<[u8]>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> Self {
        Self::new(owned(&range.start), None)
    }
}

impl<K: AsRef<[u8]>> From<RangeTo<K>> for KeyRange {
    fn from(range: RangeTo<K>) -> Self {
        Self::new(Bytes::new(), Some(owned(&range.end)))
    }
}

impl<K: AsRef<[u8]>> From<RangeInclusive<K>> for KeyRange {
    fn from(range: RangeInclusive<K>) -> Self {
        // The first key behind `end`: `end` and one zero byte.
        let end = [range.end().as_ref(), &[0]].concat();
        Self::new(owned(range.start()), Some(end.into()))
    }
}

fn owned(key: &impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(key.as_ref())
}

/// What an entry says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ValueKind {
    /// The key has this value.
    Put,
    /// The key is gone: a tombstone.
    Delete,
    /// The key has this value until the given wall-clock time, in milliseconds since the Unix epoch.
    PutUntil(u64),
}

impl ValueKind {
    /// Whether an entry of this kind shows a value to a reader at wall-clock `now_ms`.
    #[must_use]
    pub const fn is_live(self, now_ms: u64) -> bool {
        match self {
            Self::Put => true,
            Self::Delete => false,
            Self::PutUntil(expires_ms) => now_ms < expires_ms,
        }
    }
}

/// Which way a cursor moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Keys ascending, versions of a key newest first.
    Forward,
    /// Keys descending, versions of a key oldest first.
    Backward,
}

/// The hash by which every filter of the engine knows a key.
#[inline]
pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Converts a count of bytes or items that is in memory, and so fits, without a cast.
#[must_use]
pub(crate) fn u64_of(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Converts a number that may come from disk; one that this machine cannot address becomes the largest.
#[must_use]
pub(crate) fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        let end = (!end.is_empty()).then(|| Bytes::from(end));
        KeyRange::new(Bytes::from(start), end)
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(KeyRange::prefix(b"ab"), range("ab", "ac"));
        assert_eq!(KeyRange::prefix(b"a\xff").end.as_deref(), Some(&b"b"[..]));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, None);
        assert!(KeyRange::prefix(b"\xff").contains(b"\xff\xff\xff"));
    }

    #[test]
    fn ranges_meet_only_where_a_key_can_be_in_both() {
        assert!(range("a", "c").overlaps(&range("b", "")));
        assert!(!range("a", "b").overlaps(&range("b", "c")));
        assert!(range("", "").covers(&range("b", "c")));
        assert!(!range("a", "c").covers(&range("b", "")));
        assert!(range("x", "y").covers(&range("q", "b")), "an empty range lies anywhere");
    }
}
