//! Data blocks: sorted entries with shared prefixes, searched without rebuilding a key.
//!
//! ```text
//! payload  := entry+ | offset (u16 | u32) × R | head u64 × R | tail
//! entry    := shared_ext vu32 | unshared vu32 | value_len vu32 | [tag u8] | [seq_delta vu64] | key suffix | value
//! tail(16) := n_entries u16 | n_restarts u16 | prefix_len u16 | flags u16 | base_seq u64        (20 with u32 counts)
//! ```
//!
//! 1. The key is compared with the prefix that all keys of the block share, once.
//! 2. The restart heads, eight key bytes behind that prefix, are searched as integers; full keys only where heads are equal.
//! 3. From the restart on, a suffix is compared only where `shared` equals the length matched so far: with more shared, the
//!    entry sorts like the one before it; with less, it is behind the key.
//! 4. So what the entry that is found shares with the one before, it shares with the key too: its own is put together from there.
//!
//! Invariant: keys ascend; versions of a key descend by number; `shared` is the whole prefix shared with the entry before,
//! except at restarts, where it is 0.
//! Format: docs/format.md#data-block

use std::cmp::Ordering;
use std::ops::Range;

use crate::error::Damage;
use crate::format::coding::{
    common_prefix, compare, head_of, put_vu32, put_vu64, split_vu32, split_vu64,
};
use crate::types::{SeqNo, ValueKind, u64_of, usize_of};

const SAME_SEQ: u16 = 1;
const LARGE: u16 = 2;
const HAS_TOMBSTONES: u16 = 4;
const HEADS_INCREASE: u16 = 8;
const KNOWN_FLAGS: u16 = SAME_SEQ | LARGE | HAS_TOMBSTONES | HEADS_INCREASE;

const TAG_TOMBSTONE: u8 = 1;
const TAG_UNTIL: u8 = 2;

/// Where the entries of a block end and how their sequence numbers are written: all it takes to decode one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryCodec {
    end: usize,
    base_seq: u64,
    same_seq: bool,
}

/// One entry as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawEntry<'a> {
    /// Bytes of the key that the entry before has too.
    pub(crate) shared: usize,
    pub(crate) suffix: &'a [u8],
    pub(crate) seq: SeqNo,
    pub(crate) kind: ValueKind,
    /// Where the value is in the payload.
    pub(crate) value: Range<usize>,
    /// Where the next entry begins.
    pub(crate) next: usize,
}

impl RawEntry<'_> {
    /// Writes its key to `key`. `sought`: what the search was for that ended here. `None` if it is before that, which is damage.
    pub(crate) fn key_into(&self, key: &mut Vec<u8>, sought: &[u8]) -> Option<()> {
        let (shared, rest) = sought.split_at_checked(self.shared)?;
        (self.suffix >= rest).then(|| {
            key.clear();
            key.extend_from_slice(shared);
            key.extend_from_slice(self.suffix);
        })
    }
}

impl EntryCodec {
    /// Where the entries end: the offset behind the last one.
    pub(crate) const fn end(self) -> usize {
        self.end
    }

    /// Decodes the entry at `offset` of a payload.
    #[inline]
    pub(crate) fn decode(self, payload: &[u8], offset: usize) -> Result<RawEntry<'_>, Damage> {
        let damaged = damage(offset, "table entry");
        let entries = payload.get(..self.end).ok_or(damaged)?;
        let bytes = entries.get(offset..).ok_or(damaged)?;
        let (lengths, bytes) = split_lengths(bytes).ok_or(damaged)?;
        let (tag, bytes) = if lengths.shared_ext & 1 == 0 {
            (0, bytes)
        } else {
            bytes.split_first().map(|(&tag, rest)| (tag, rest)).ok_or(damaged)?
        };
        let (seq_delta, bytes) =
            if self.same_seq { (0, bytes) } else { split_vu64(bytes).ok_or(damaged)? };
        let (suffix, bytes) = bytes.split_at_checked(lengths.unshared).ok_or(damaged)?;
        let rest = bytes.len().checked_sub(lengths.value).ok_or(damaged)?;
        let value = self.end - bytes.len()..self.end - rest;
        let (kind, value) = match tag {
            0 if lengths.shared_ext & 1 == 0 => (ValueKind::Put, value),
            TAG_TOMBSTONE if lengths.value == 0 => (ValueKind::Delete, value),
            TAG_UNTIL => {
                let until = bytes.first_chunk::<8>().filter(|_| lengths.value >= 8);
                let until = u64::from_le_bytes(*until.ok_or(damaged)?);
                (ValueKind::PutUntil(until), value.start + 8..value.end)
            }
            _ => return Err(damaged),
        };
        let seq = SeqNo(self.base_seq.checked_add(seq_delta).ok_or(damaged)?);
        let shared = usize_of(u64::from(lengths.shared_ext >> 1));
        Ok(RawEntry { shared, suffix, seq, kind, value, next: self.end - rest })
    }
}

struct Lengths {
    shared_ext: u32,
    unshared: usize,
    value: usize,
}

#[inline]
fn split_lengths(bytes: &[u8]) -> Option<(Lengths, &[u8])> {
    if let Some((&[shared_ext, unshared, low, high], _)) = bytes.split_first_chunk::<4>()
        && (shared_ext | unshared) < 0x80
        && (low < 0x80 || (1..0x80).contains(&high))
    {
        let (value, taken) = if low < 0x80 {
            (usize::from(low), 3)
        } else {
            (usize::from(low & 0x7f) | usize::from(high) << 7, 4)
        };
        let lengths = Lengths { shared_ext: shared_ext.into(), unshared: unshared.into(), value };
        return Some((lengths, bytes.get(taken..)?));
    }
    let (shared_ext, bytes) = split_vu32(bytes)?;
    let (unshared, bytes) = split_vu32(bytes)?;
    let (value, bytes) = split_vu32(bytes)?;
    let (unshared, value) = (usize_of(unshared.into()), usize_of(value.into()));
    Some((Lengths { shared_ext, unshared, value }, bytes))
}

/// A data block, ready to be searched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataBlock<'a> {
    payload: &'a [u8],
    entries: EntryCodec,
    offsets: Offsets<'a>,
    heads: &'a [[u8; 8]],
    prefix: &'a [u8],
    n_entries: usize,
    heads_increase: bool,
}

#[derive(Clone, Copy, Debug)]
enum Offsets<'a> {
    Small(&'a [[u8; 2]]),
    Large(&'a [[u8; 4]]),
}

/// Where a search in a block ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound<'a> {
    /// Offset of the entry; that of the end of the entries if there is none.
    pub(crate) offset: usize,
    /// First entry at or behind the searched position; `None`: every entry of the block is before it.
    pub(crate) entry: Option<RawEntry<'a>>,
    /// Whether its key is the searched one.
    pub(crate) exact: bool,
}

impl<'a> DataBlock<'a> {
    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, Damage> {
        let damaged = damage(payload.len(), "data block tail");
        let (rest, base_seq) = payload.split_last_chunk::<8>().ok_or(damaged)?;
        let (rest, flags) = rest.split_last_chunk::<2>().ok_or(damaged)?;
        let (rest, prefix_len) = rest.split_last_chunk::<2>().ok_or(damaged)?;
        let flags = u16::from_le_bytes(*flags);
        let large = flags & LARGE != 0;
        let (rest, n_restarts) = split_count(rest, large).ok_or(damaged)?;
        let (rest, n_entries) = split_count(rest, large).ok_or(damaged)?;
        if n_restarts == 0 || n_entries < n_restarts || flags & !KNOWN_FLAGS != 0 {
            return Err(damaged);
        }
        let (rest, heads) = split_back(rest, n_restarts, 8).ok_or(damaged)?;
        let (rest, offsets) =
            split_back(rest, n_restarts, if large { 4 } else { 2 }).ok_or(damaged)?;
        let offsets = if large {
            Offsets::Large(offsets.as_chunks().0)
        } else {
            Offsets::Small(offsets.as_chunks().0)
        };
        let entries = EntryCodec {
            end: rest.len(),
            base_seq: u64::from_le_bytes(*base_seq),
            same_seq: flags & SAME_SEQ != 0,
        };
        let first = entries.decode(payload, 0)?;
        if first.shared > 0 {
            return Err(damage(0, "a whole key"));
        }
        let prefix = first.suffix.get(..usize::from(u16::from_le_bytes(*prefix_len)));
        Ok(Self {
            payload,
            entries,
            offsets,
            heads: heads.as_chunks().0,
            prefix: prefix.ok_or(damaged)?,
            n_entries,
            heads_increase: flags & HEADS_INCREASE != 0,
        })
    }

    pub(crate) const fn entries(&self) -> EntryCodec {
        self.entries
    }

    pub(crate) const fn n_entries(&self) -> usize {
        self.n_entries
    }

    /// The first entry whose key is greater than `key`, or is `key` with a number of at most `seq`.
    #[inline]
    pub(crate) fn lower_bound(&self, key: &[u8], seq: SeqNo) -> Result<Bound<'a>, Damage> {
        let before = match key.strip_prefix(self.prefix) {
            Some(rest) => self.restarts_before(head_of(rest), key, seq)?,
            None if key < self.prefix => 0,
            None => return Ok(self.behind_all()),
        };
        let Some(restart) = before.checked_sub(1) else {
            let entry = self.entries.decode(self.payload, 0)?;
            let exact = entry.suffix == key;
            return Ok(Bound { offset: 0, entry: Some(entry), exact });
        };
        self.scan(self.restart(restart)?, key, seq)
    }

    /// Walks from a restart that is before the position to the first entry that is not.
    #[inline]
    fn scan(&self, restart: usize, key: &[u8], seq: SeqNo) -> Result<Bound<'a>, Damage> {
        let mut offset = restart;
        let (mut matched, mut key_len) = (0, 0);
        while offset < self.entries.end {
            let entry = self.entries.decode(self.payload, offset)?;
            if entry.shared > key_len {
                return Err(damage(offset, "a key that shares what there is"));
            }
            key_len = entry.shared + entry.suffix.len();
            let order = if entry.shared > matched {
                Ordering::Less
            } else if entry.shared < matched && entry.shared > 0 {
                Ordering::Greater
            } else {
                let rest = key.get(entry.shared..).unwrap_or_default();
                let (order, more) = compare(entry.suffix, rest);
                matched = entry.shared + more;
                order
            };
            let exact = order == Ordering::Equal;
            if order == Ordering::Greater || (exact && entry.seq <= seq) {
                return Ok(Bound { offset, entry: Some(entry), exact });
            }
            offset = entry.next;
        }
        Ok(self.behind_all())
    }

    /// How many restarts are before the position.
    #[inline]
    fn restarts_before(&self, head: u64, key: &[u8], seq: SeqNo) -> Result<usize, Damage> {
        let mut low = self.heads.partition_point(|other| u64::from_le_bytes(*other) < head);
        let equal = self.heads.get(low..).unwrap_or_default();
        if equal.first().is_none_or(|other| u64::from_le_bytes(*other) != head) {
            return Ok(low);
        }
        let equal = if self.heads_increase {
            1
        } else {
            equal.partition_point(|other| u64::from_le_bytes(*other) == head)
        };
        let mut high = low + equal;
        while low < high {
            let middle = usize::midpoint(low, high);
            let entry = self.entries.decode(self.payload, self.restart(middle)?)?;
            let order = entry.suffix.cmp(key).then(seq.cmp(&entry.seq));
            if order == Ordering::Less {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    const fn behind_all(&self) -> Bound<'a> {
        Bound { offset: self.entries.end, entry: None, exact: false }
    }

    fn restart(&self, index: usize) -> Result<usize, Damage> {
        let offset = match self.offsets {
            Offsets::Small(all) => all.get(index).map(|at| usize::from(u16::from_le_bytes(*at))),
            Offsets::Large(all) => {
                all.get(index).map(|at| usize_of(u64::from(u32::from_le_bytes(*at))))
            }
        };
        let within = offset.filter(|&offset| offset < self.entries.end);
        within.ok_or(damage(self.entries.end, "restart offset"))
    }

    /// Whether an entry that begins at `offset` is a restart.
    pub(crate) fn is_restart(&self, offset: usize) -> bool {
        match self.offsets {
            Offsets::Small(all) => {
                all.binary_search_by_key(&offset, |at| usize::from(u16::from_le_bytes(*at))).is_ok()
            }
            Offsets::Large(all) => all
                .binary_search_by_key(&offset, |at| usize_of(u64::from(u32::from_le_bytes(*at))))
                .is_ok(),
        }
    }

    pub(crate) const fn n_restarts(&self) -> usize {
        self.heads.len()
    }

    /// Whether `key` begins like all keys of the block should.
    pub(crate) fn has_prefix(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix)
    }

    /// Whether the heads rise strictly, if a search relies on that.
    pub(crate) fn heads_are_as_it_says(&self) -> bool {
        let heads = self.heads.iter().map(|head| u64::from_le_bytes(*head));
        !self.heads_increase || heads.is_sorted_by(|a, b| a < b)
    }

    /// Head of restart `index`, and the part of its key that it stands for.
    pub(crate) fn head_is_right(&self, index: usize, key: &[u8]) -> bool {
        let head = key.strip_prefix(self.prefix).map(head_of);
        head.is_some() && self.heads.get(index).map(|head| u64::from_le_bytes(*head)) == head
    }
}

const fn damage_at(offset: u64, expected: &'static str) -> Damage {
    Damage { offset, expected }
}

fn damage(offset: usize, expected: &'static str) -> Damage {
    damage_at(u64_of(offset), expected)
}

fn split_count(bytes: &[u8], large: bool) -> Option<(&[u8], usize)> {
    if large {
        let (rest, count) = bytes.split_last_chunk::<4>()?;
        return Some((rest, usize_of(u32::from_le_bytes(*count).into())));
    }
    let (rest, count) = bytes.split_last_chunk::<2>()?;
    Some((rest, u16::from_le_bytes(*count).into()))
}

fn split_back(bytes: &[u8], count: usize, size: usize) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(bytes.len().checked_sub(count.checked_mul(size)?)?)
}

/// Encodes one block after the other, reusing its memory.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    restart_interval: usize,
    /// Entries without their sequence numbers.
    entries: Vec<u8>,
    /// For each entry, where its sequence number goes, and the number.
    seqs: Vec<(usize, u64)>,
    restarts: Vec<Restart>,
    last_key: Vec<u8>,
    tombstones: usize,
    /// The finished payload, where it is not `entries` itself.
    mixed: Vec<u8>,
}

#[derive(Debug)]
struct Restart {
    entry: usize,
    offset: usize,
    key: Range<usize>,
}

impl BlockBuilder {
    /// Bytes of its buffers.
    pub(crate) fn memory(&self) -> usize {
        let seqs = self.seqs.capacity().saturating_mul(size_of::<(usize, u64)>());
        self.entries.capacity() + self.mixed.capacity() + seqs
    }

    /// `restart_interval`: entries between two restarts, at least 1.
    pub(crate) fn new(restart_interval: usize, block_size: usize) -> Self {
        Self {
            restart_interval: restart_interval.max(1),
            entries: Vec::with_capacity(block_size + block_size / 4),
            seqs: Vec::new(),
            restarts: Vec::new(),
            last_key: Vec::new(),
            tombstones: 0,
            mixed: Vec::new(),
        }
    }

    /// Appends an entry. REQUIRES: it is behind the one before, and within the limits of keys and values.
    pub(crate) fn add(&mut self, key: &[u8], seq: SeqNo, kind: ValueKind, value: &[u8]) {
        let is_restart = self.seqs.len().is_multiple_of(self.restart_interval);
        let shared = if is_restart { 0 } else { common_prefix(&self.last_key, key) };
        let suffix = key.get(shared..).unwrap_or_default();
        let offset = self.entries.len();
        let extended = kind != ValueKind::Put;
        put_vu64(&mut self.entries, u64_of(shared) << 1 | u64::from(extended));
        put_vu64(&mut self.entries, u64_of(suffix.len()));
        match kind {
            ValueKind::Put => put_vu64(&mut self.entries, u64_of(value.len())),
            ValueKind::Delete => {
                put_vu32(&mut self.entries, 0);
                self.entries.push(TAG_TOMBSTONE);
                self.tombstones += 1;
            }
            ValueKind::PutUntil(_) => {
                put_vu64(&mut self.entries, u64_of(value.len()) + 8);
                self.entries.push(TAG_UNTIL);
            }
        }
        let at = self.entries.len();
        if is_restart {
            let entry = self.seqs.len();
            self.restarts.push(Restart { entry, offset, key: at..at + suffix.len() });
        }
        self.seqs.push((at, seq.0));
        self.entries.extend_from_slice(suffix);
        match kind {
            ValueKind::Put => self.entries.extend_from_slice(value),
            ValueKind::Delete => {}
            ValueKind::PutUntil(until_ms) => {
                self.entries.extend_from_slice(&until_ms.to_le_bytes());
                self.entries.extend_from_slice(value);
            }
        }
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(suffix);
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    pub(crate) const fn n_entries(&self) -> usize {
        self.seqs.len()
    }

    pub(crate) const fn tombstones(&self) -> usize {
        self.tombstones
    }

    /// Key of the last entry, of whichever block; empty if there was none.
    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// About how many bytes the payload has so far.
    pub(crate) const fn size(&self) -> usize {
        self.entries.len() + 2 * self.seqs.len() + 10 * self.restarts.len() + 16
    }

    /// Ends the block and returns its payload. REQUIRES: it is not empty. Call `clear` before the next one.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let prefix_len = self.prefix_len();
        let heads: Vec<u64> = self.restarts.iter().map(|r| self.head(r, prefix_len)).collect();
        let base_seq = self.seqs.iter().map(|&(_, seq)| seq).min().unwrap_or(0);
        let same_seq = self.seqs.iter().all(|&(_, seq)| seq == base_seq);
        if !same_seq {
            self.write_seqs(base_seq);
        }
        let payload = if same_seq { &mut self.entries } else { &mut self.mixed };
        let counts = (u16::try_from(self.seqs.len()), u16::try_from(self.restarts.len()));
        let (large, n_entries, n_restarts) = match (u16::try_from(payload.len()), counts) {
            (Ok(_), (Ok(n_entries), Ok(n_restarts))) => (false, n_entries, n_restarts),
            _ => (true, 0, 0),
        };
        for restart in &self.restarts {
            put_number(payload, restart.offset, large);
        }
        for head in &heads {
            payload.extend_from_slice(&head.to_le_bytes());
        }
        if large {
            put_number(payload, self.seqs.len(), true);
            put_number(payload, self.restarts.len(), true);
        } else {
            payload.extend_from_slice(&n_entries.to_le_bytes());
            payload.extend_from_slice(&n_restarts.to_le_bytes());
        }
        let flags = [
            (same_seq, SAME_SEQ),
            (large, LARGE),
            (self.tombstones > 0, HAS_TOMBSTONES),
            (heads.is_sorted_by(|a, b| a < b), HEADS_INCREASE),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        payload.extend_from_slice(&prefix_len.to_le_bytes());
        payload.extend_from_slice(&flags.to_le_bytes());
        payload.extend_from_slice(&base_seq.to_le_bytes());
        payload
    }

    /// Forgets the block but its last key; keeps the memory, unless a large value made it much.
    pub(crate) fn clear(&mut self) {
        const KEPT: usize = 4 << 20;
        self.entries.clear();
        self.entries.shrink_to(KEPT);
        self.mixed.clear();
        self.mixed.shrink_to(KEPT);
        self.seqs.clear();
        self.restarts.clear();
        self.tombstones = 0;
    }

    fn prefix_len(&self) -> u16 {
        let first = self.restarts.first().and_then(|first| self.entries.get(first.key.clone()));
        let shared = first.map_or(0, |first| common_prefix(first, &self.last_key));
        u16::try_from(shared).unwrap_or(u16::MAX)
    }

    fn head(&self, restart: &Restart, prefix_len: u16) -> u64 {
        let key = self.entries.get(restart.key.clone()).unwrap_or_default();
        head_of(key.get(usize::from(prefix_len)..).unwrap_or_default())
    }

    /// Copies the entries with the sequence numbers in their places, and moves the restarts along.
    fn write_seqs(&mut self, base_seq: u64) {
        let mut restarts = self.restarts.iter_mut().peekable();
        let mut copied = 0;
        for (index, &(at, seq)) in self.seqs.iter().enumerate() {
            if let Some(restart) = restarts.next_if(|restart| restart.entry == index) {
                restart.offset += self.mixed.len() - copied;
            }
            self.mixed.extend_from_slice(self.entries.get(copied..at).unwrap_or_default());
            put_vu64(&mut self.mixed, seq - base_seq);
            copied = at;
        }
        self.mixed.extend_from_slice(self.entries.get(copied..).unwrap_or_default());
    }
}

fn put_number(out: &mut Vec<u8>, value: usize, large: bool) {
    let value = u32::try_from(value).unwrap_or(u32::MAX);
    let [a, b, ..] = value.to_le_bytes();
    if large {
        out.extend_from_slice(&value.to_le_bytes());
    } else {
        out.extend_from_slice(&[a, b]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Entry = (Vec<u8>, SeqNo, ValueKind, Vec<u8>);

    fn build(entries: &[Entry], restart_interval: usize) -> Vec<u8> {
        let mut builder = BlockBuilder::new(restart_interval, 4096);
        for (key, seq, kind, value) in entries {
            builder.add(key, *seq, *kind, value);
        }
        builder.finish().to_vec()
    }

    /// Decodes a whole block, rebuilding keys.
    fn read(payload: &[u8]) -> Vec<Entry> {
        let codec = DataBlock::parse(payload).unwrap().entries();
        let (mut key, mut offset, mut all) = (Vec::new(), 0, Vec::new());
        while offset < codec.end() {
            let entry = codec.decode(payload, offset).unwrap();
            key.truncate(entry.shared);
            key.extend_from_slice(entry.suffix);
            let value = payload[entry.value].to_vec();
            all.push((key.clone(), entry.seq, entry.kind, value));
            offset = entry.next;
        }
        all
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(prop_oneof![Just(0u8), Just(255), Just(7)], 0..4),
            proptest::collection::vec(any::<u8>(), 0..12),
            "(common/prefix/of/many/)(a|b)[0-9]{0,12}".prop_map(String::into_bytes),
        ]
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let kind = prop_oneof![
            Just(ValueKind::Put),
            Just(ValueKind::Delete),
            any::<u64>().prop_map(ValueKind::PutUntil)
        ];
        let value = prop_oneof![
            9 => proptest::collection::vec(any::<u8>(), 0..40),
            1 => (0usize..100_000).prop_map(|len| vec![9; len])
        ];
        let seqs = prop_oneof![Just(1u64), Just(10_000_000_000)];
        (seqs, proptest::collection::vec((key(), 0u64..6, kind, value), 1..80)).prop_map(
            |(spread, drawn)| {
                let mut seen = BTreeSet::new();
                let mut all: Vec<Entry> = drawn
                    .into_iter()
                    .map(|(key, seq, kind, value)| {
                        let value = if kind == ValueKind::Delete { Vec::new() } else { value };
                        (key, SeqNo(seq * spread), kind, value)
                    })
                    .filter(|entry| seen.insert((entry.0.clone(), entry.1)))
                    .collect();
                all.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
                all
            },
        )
    }

    #[test]
    fn a_block_keeps_its_bytes() {
        let entries = [
            (b"ab1".to_vec(), SeqNo(9), ValueKind::Put, b"x".to_vec()),
            (b"ab1".to_vec(), SeqNo(7), ValueKind::Delete, Vec::new()),
            (b"ab22".to_vec(), SeqNo(8), ValueKind::PutUntil(1000), b"y".to_vec()),
        ];
        let payload = build(&entries, 2);
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "00030102616231780700000100010409020161623232e8030000000000007900000d00000000000000003100\
             000000000032320300020002000c000700000000000000"
        );
        assert_eq!(read(&payload), entries);
    }

    #[test]
    fn one_number_for_all_is_written_once() {
        let entry = |key: &str| (key.into(), SeqNo(5), ValueKind::Put, vec![1]);
        let payload = build(&[entry("a"), entry("b")], 16);
        assert_eq!(payload.len(), 2 * (3 + 1 + 1) + 2 + 8 + 16);
    }

    #[test]
    fn keys_that_cannot_follow_each_other_are_damage_to_whoever_seeks_among_them() {
        let entry = |key: &[u8]| (key.to_vec(), SeqNo(1), ValueKind::Put, b"v".to_vec());
        let payload = build(&[entry(b"b"), entry(b"bd"), entry(b"bf")], 16);
        // Each entry: shared << 1, unshared, length of the value, suffix, value.
        assert_eq!(payload[..15], [0, 1, 1, b'b', b'v', 2, 1, 1, b'd', b'v', 2, 1, 1, b'f', b'v']);
        let changed = |at: usize, byte: u8| {
            let mut payload = payload.clone();
            payload[at] = byte;
            payload
        };
        let found = |payload: &[u8]| {
            let bound =
                DataBlock::parse(payload).and_then(|block| block.lower_bound(b"bda", SeqNo::MAX));
            let mut key = b"before".to_vec();
            let written =
                bound.map(|bound| bound.entry.and_then(|entry| entry.key_into(&mut key, b"bda")));
            (written, key)
        };
        assert_eq!(found(&payload), (Ok(Some(())), b"bf".to_vec()));
        assert_eq!(found(&changed(13, b'a')), (Ok(None), b"before".to_vec()), "ba behind bd");
        assert!(found(&changed(0, 2)).0.is_err(), "shares with nothing");
        assert!(found(&changed(5, 4)).0.is_err(), "shares more than there is");
    }

    proptest! {
        #[test]
        fn entries_come_back(entries in entries(), interval in 1usize..64) {
            let payload = build(&entries, interval);
            prop_assert_eq!(DataBlock::parse(&payload).unwrap().n_entries(), entries.len());
            prop_assert_eq!(read(&payload), entries);
        }

        #[test]
        fn a_search_ends_at_the_first_entry_not_before_the_position(
            entries in entries(), interval in 1usize..64, other in key(), seq in 0u64..6,
        ) {
            let payload = build(&entries, interval);
            let block = DataBlock::parse(&payload).unwrap();
            let keys = entries.iter().map(|entry| &entry.0).chain([&other]);
            for (key, seq) in keys.flat_map(|key| [(key, seq), (key, u64::MAX), (key, 0)]) {
                let at_or_behind = |entry: &&Entry| {
                    entry.0 > *key || (entry.0 == *key && entry.1.0 <= seq)
                };
                let expected = entries.iter().find(at_or_behind);
                let bound = block.lower_bound(key, SeqNo(seq)).unwrap();
                let found = bound.entry.as_ref().map(|entry| (entry.seq, entry.kind));
                prop_assert_eq!(found, expected.map(|entry| (entry.1, entry.2)));
                prop_assert_eq!(bound.exact, expected.is_some_and(|entry| entry.0 == *key));
                if let (Some(entry), Some(expected)) = (bound.entry, expected) {
                    let mut found = vec![7];
                    prop_assert!(entry.key_into(&mut found, key).is_some());
                    prop_assert_eq!(&found, &expected.0);
                }
            }
        }

        #[test]
        fn no_bytes_make_a_block_panic(entries in entries(), interval in 1usize..20, at: u32, byte: u8) {
            let mut payload = build(&entries, interval);
            let at = usize_of(at.into()) % payload.len();
            payload[at] = byte;
            walk(&payload);
            walk(&payload[..at]);
        }

        #[test]
        fn no_noise_makes_a_block_panic(payload: Vec<u8>) {
            walk(&payload);
        }
    }

    /// Reads and searches whatever there is.
    fn walk(payload: &[u8]) {
        let Ok(block) = DataBlock::parse(payload) else { return };
        for key in [&b""[..], b"common/prefix/of/many/a5", b"\xff\xff"] {
            if let Ok(bound) = block.lower_bound(key, SeqNo(3)) {
                assert!(bound.offset <= payload.len());
                let _no_panic = bound.entry.map(|entry| entry.key_into(&mut Vec::new(), key));
            }
        }
        let mut offset = 0;
        while let Ok(entry) = block.entries().decode(payload, offset) {
            assert!(entry.next > offset && entry.value.end <= payload.len());
            offset = entry.next;
        }
    }
}
