//! Indexes: the leaf index of a section finds a data block, the top index of a table lists its sections.
//!
//! ```text
//! leaf := n u32 | prefix_len u16 | flags u16 | prefix | head u64 × n | block_off u32 × (n+1) | key_off u32 × (n+1) | separator suffixes
//! top  := n u32 | section × n | n_range_tombstones u32 (0)
//! ```
//!
//! Separator 0 is the first key of the section; separator `i` is the shortest key above the last key of block `i - 1`
//! and not above the first key of block `i`, or that very key if both are versions of it (flag 1).
//!
//! Format: docs/format.md#leaf-index

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use crate::error::Damage;
use crate::format::coding::{Reader, common_prefix, head_of, put_vu64};
use crate::types::{SeqNo, u64_of, usize_of};
use crate::version::SectionMeta;

/// Some key has versions in more than one block.
const KEY_CONTINUES: u16 = 1;

/// The shortest key above `last` and not above `first`; `first` itself if they are equal. REQUIRES: `last <= first`.
pub(crate) fn separator<'a>(last: &[u8], first: &'a [u8]) -> &'a [u8] {
    first.get(..=common_prefix(last, first)).unwrap_or(first)
}

/// Collects the leaf index of a section.
#[derive(Debug, Default)]
pub(crate) struct LeafBuilder {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    block_ends: Vec<u32>,
    key_continues: bool,
}

impl LeafBuilder {
    /// Begins a block. `last`: the key before it; `None` for the first block of the section.
    pub(crate) fn begin_block(&mut self, last: Option<&[u8]>, first: &[u8]) {
        let separator = last.map_or(first, |last| separator(last, first));
        self.key_continues |= last == Some(first);
        self.keys.extend_from_slice(separator);
        self.key_ends.push(self.keys.len());
    }

    /// Ends a block `end` bytes behind the start of the section.
    pub(crate) fn end_block(&mut self, end: u32) {
        self.block_ends.push(end);
    }

    /// About how many bytes the index has so far.
    pub(crate) const fn size(&self) -> usize {
        self.keys.len() + 16 * self.key_ends.len() + 16
    }

    /// Ends the index, and forgets it.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let starts = std::iter::once(0).chain(self.key_ends.iter().copied());
        let key = |(start, &end)| self.keys.get(start..end).unwrap_or_default();
        let separators: Vec<&[u8]> = starts.zip(&self.key_ends).map(key).collect();
        let (first, last) = (separators.first(), separators.last());
        let shared = first.zip(last).map_or(0, |(first, last)| common_prefix(first, last));
        let prefix_len = u16::try_from(shared).unwrap_or(u16::MAX);
        let cut = usize::from(prefix_len);
        let suffixes = || separators.iter().map(|key| key.get(cut..).unwrap_or_default());

        let mut out = Vec::with_capacity(self.size());
        put_u32(&mut out, separators.len());
        out.extend_from_slice(&prefix_len.to_le_bytes());
        let flags = if self.key_continues { KEY_CONTINUES } else { 0 };
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(first.and_then(|first| first.get(..cut)).unwrap_or_default());
        for suffix in suffixes() {
            out.extend_from_slice(&head_of(suffix).to_le_bytes());
        }
        for end in std::iter::once(&0).chain(&self.block_ends) {
            out.extend_from_slice(&end.to_le_bytes());
        }
        let mut end = 0;
        put_u32(&mut out, end);
        for suffix in suffixes() {
            end += suffix.len();
            put_u32(&mut out, end);
        }
        for suffix in suffixes() {
            out.extend_from_slice(suffix);
        }
        *self = Self::default();
        out
    }
}

fn put_u32(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

/// Heads between two that a search looks at first: two cache lines.
const STRIDE: usize = 16;

/// A leaf index, searched in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeafIndex {
    payload: Bytes,
    n: usize,
    /// Every [`STRIDE`]-th head. Those of all sections are few enough to stay in the processor's cache.
    coarse: Box<[u64]>,
    key_continues: bool,
    prefix: Range<usize>,
    heads: Range<usize>,
    block_offs: Range<usize>,
    key_offs: Range<usize>,
}

impl LeafIndex {
    /// Decodes and checks the index of a section with `data_len` bytes of data blocks.
    pub(crate) fn decode(payload: Bytes, data_len: u32) -> Result<Self, Damage> {
        let mut reader = Reader::new(&payload);
        let what = "leaf index";
        let n = usize_of(reader.u32(what)?.into());
        let prefix_len = usize::from(reader.u16(what)?);
        let flags = reader.u16(what)?;
        let (prefix, _) = take(&mut reader, 1, prefix_len)?;
        let (heads, words) = take(&mut reader, n, 8)?;
        let words = words.as_chunks().0.iter().step_by(STRIDE);
        let coarse = words.map(|head| u64::from_le_bytes(*head)).collect();
        let (block_offs, blocks) = take(&mut reader, n + 1, 4)?;
        let (key_offs, keys) = take(&mut reader, n + 1, 4)?;
        let suffix_len = u64_of(reader.rest().len());
        let rises = |bytes: &[u8], end: u64, strictly: bool| {
            let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            let first = words.next();
            let last = words.try_fold(0, |last, next| {
                (next > last || (next == last && !strictly)).then_some(next)
            });
            first == Some(0) && last.is_some_and(|last| u64::from(last) == end)
        };
        let fine = n > 0
            && flags & !KEY_CONTINUES == 0
            && rises(blocks, data_len.into(), true)
            && rises(keys, suffix_len, false);
        if !fine {
            return Err(Damage { offset: 0, expected: what });
        }
        let key_continues = flags & KEY_CONTINUES != 0;
        Ok(Self { payload, n, coarse, key_continues, prefix, heads, block_offs, key_offs })
    }

    /// Number of data blocks of the section; at least 1.
    pub(crate) const fn n_blocks(&self) -> usize {
        self.n
    }

    /// Whether the heads are those of the separators: a search asks them first.
    pub(crate) fn heads_are_right(&self) -> bool {
        let heads = self.slice(&self.heads).as_chunks::<8>().0;
        heads.iter().enumerate().all(|(index, head)| {
            self.suffix(index).is_some_and(|key| head_of(key) == u64::from_le_bytes(*head))
        })
    }

    /// Whether some key has versions in more than one block.
    pub(crate) const fn key_continues(&self) -> bool {
        self.key_continues
    }

    /// Bytes in memory.
    pub(crate) const fn memory(&self) -> usize {
        self.payload.len() + size_of_val(&*self.coarse) + size_of::<Self>()
    }

    /// The first block that can hold the newest versions of `key`, or the first key behind it.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        let behind = self.partition(key, |order| order != Ordering::Greater);
        if self.key_continues {
            return self.partition(key, |order| order == Ordering::Less).saturating_sub(1);
        }
        behind.saturating_sub(1)
    }

    /// The last block that can hold a key less than `key`.
    pub(crate) fn find_before(&self, key: &[u8]) -> usize {
        self.partition(key, |order| order == Ordering::Less).saturating_sub(1)
    }

    /// Where block `index` lies behind the start of the section.
    #[inline]
    pub(crate) fn block(&self, index: usize) -> Option<Range<u32>> {
        let offs = self.words(&self.block_offs);
        let start = u32::from_le_bytes(*offs.get(index)?);
        let end = u32::from_le_bytes(*offs.get(index.checked_add(1)?)?);
        Some(start..end)
    }

    /// How separator `index` compares to `key`; `None` if there is no such block.
    pub(crate) fn compare_separator(&self, index: usize, key: &[u8]) -> Option<Ordering> {
        let prefix = self.slice(&self.prefix);
        let suffix = self.suffix(index)?;
        let (front, rest) = key.split_at_checked(prefix.len()).unwrap_or((key, &[]));
        Some(prefix.cmp(front).then_with(|| suffix.cmp(rest)))
    }

    /// Separator `index` in full; `None` if there is no such block.
    pub(crate) fn separator(&self, index: usize) -> Option<Bytes> {
        Some([self.slice(&self.prefix), self.suffix(index)?].concat().into())
    }

    /// How many separators, from the first on, compare to `key` as `before` wants. REQUIRES: they come first.
    #[inline]
    fn partition(&self, key: &[u8], before: impl Fn(Ordering) -> bool) -> usize {
        let prefix = self.slice(&self.prefix);
        let Some(rest) = key.strip_prefix(prefix) else {
            return if key < prefix { 0 } else { self.n };
        };
        let heads = self.slice(&self.heads).as_chunks::<8>().0;
        let head = head_of(rest);
        // The first that is not less is behind the last coarse one that is, and not behind the next.
        let coarse = self.coarse.partition_point(|other| *other < head);
        let start = coarse.saturating_sub(1) * STRIDE;
        let fine = heads.get(start..self.n.min(coarse * STRIDE)).unwrap_or_default();
        let low = start + fine.partition_point(|other| u64::from_le_bytes(*other) < head);
        if heads.get(low) != Some(&head.to_le_bytes()) {
            return low;
        }
        self.partition_ties(low, head, |suffix| before(suffix.cmp(rest)))
    }

    /// [`partition`](Self::partition) among the separators with this head; `low` is the first of them.
    fn partition_ties(&self, mut low: usize, head: u64, before: impl Fn(&[u8]) -> bool) -> usize {
        let ties = self.slice(&self.heads).as_chunks().0.get(low..).unwrap_or_default();
        let mut high = low + ties.partition_point(|other| u64::from_le_bytes(*other) == head);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.suffix(middle).is_some_and(&before) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn suffix(&self, index: usize) -> Option<&[u8]> {
        let offs = self.words(&self.key_offs);
        let start = usize_of(u32::from_le_bytes(*offs.get(index)?).into());
        let end = usize_of(u32::from_le_bytes(*offs.get(index.checked_add(1)?)?).into());
        self.payload.get(self.key_offs.end..)?.get(start..end)
    }

    fn words(&self, range: &Range<usize>) -> &[[u8; 4]] {
        self.slice(range).as_chunks().0
    }

    fn slice(&self, range: &Range<usize>) -> &[u8] {
        self.payload.get(range.clone()).unwrap_or_default()
    }
}

/// Takes `count` items of `size` bytes; also says where they are.
fn take<'a>(
    reader: &mut Reader<'a>,
    count: usize,
    size: usize,
) -> Result<(Range<usize>, &'a [u8]), Damage> {
    let what = "leaf index";
    let len = count.checked_mul(size).ok_or(reader.damage(what))?;
    let start = usize_of(reader.offset());
    let bytes = reader.bytes(len, what)?;
    Ok((start..start + len, bytes))
}

/// Encodes the top index of a table.
pub(crate) fn encode_top(sections: &[SectionMeta]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, sections.len());
    for section in sections {
        out.extend_from_slice(&section.offset.to_le_bytes());
        for word in [
            section.data_len,
            section.leaf_len,
            section.filter_len,
            section.entries,
            section.tombstones,
            section.dense_blocks,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&section.min_seq.0.to_le_bytes());
        out.extend_from_slice(&section.max_seq.0.to_le_bytes());
        out.extend_from_slice(&section.oldest_tombstone_s.to_le_bytes());
        out.extend_from_slice(&section.min_expiry_s.to_le_bytes());
        put_vu64(&mut out, u64_of(section.min_key.len()));
        put_vu64(&mut out, u64_of(section.max_key.len()));
        out.extend_from_slice(&section.min_key);
        out.extend_from_slice(&section.max_key);
    }
    put_u32(&mut out, 0); // range tombstones
    out
}

/// Decodes a top index; checks that sections are in key order and fill the file up to `data_end`.
pub(crate) fn decode_top(payload: &[u8], data_end: u64) -> Result<Vec<SectionMeta>, Damage> {
    let mut reader = Reader::new(payload);
    let n = reader.u32("top index")?;
    let mut sections: Vec<SectionMeta> = Vec::new();
    let mut offset = 0;
    for _ in 0..n {
        let damaged = reader.damage("section that follows the one before");
        let section = decode_section(&mut reader)?;
        let in_order = sections.last().is_none_or(|last| last.max_key <= section.min_key);
        if section.offset != offset || !in_order || section.min_key > section.max_key {
            return Err(damaged);
        }
        let lens = [section.data_len, section.leaf_len, section.filter_len];
        offset =
            lens.iter().try_fold(offset, |at, &len| at.checked_add(len.into())).ok_or(damaged)?;
        sections.push(section);
    }
    if reader.u32("top index")? != 0 || offset != data_end {
        return Err(reader.damage("sections that fill the file"));
    }
    reader.end("top index")?;
    Ok(sections)
}

fn decode_section(reader: &mut Reader<'_>) -> Result<SectionMeta, Damage> {
    let what = "section";
    let offset = reader.u64(what)?;
    let mut word = || reader.u32(what);
    let (data_len, leaf_len, filter_len) = (word()?, word()?, word()?);
    let (entries, tombstones, dense_blocks) = (word()?, word()?, word()?);
    let (min_seq, max_seq) = (SeqNo(reader.u64(what)?), SeqNo(reader.u64(what)?));
    let (oldest_tombstone_s, min_expiry_s) = (reader.u32(what)?, reader.u32(what)?);
    let (min_len, max_len) = (reader.vu32(what)?, reader.vu32(what)?);
    let min_key = Bytes::copy_from_slice(reader.bytes(usize_of(min_len.into()), what)?);
    let max_key = Bytes::copy_from_slice(reader.bytes(usize_of(max_len.into()), what)?);
    Ok(SectionMeta {
        offset,
        data_len,
        leaf_len,
        filter_len,
        entries,
        tombstones,
        dense_blocks,
        min_seq,
        max_seq,
        oldest_tombstone_s,
        min_expiry_s,
        min_key,
        max_key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Index of blocks with these first and last keys, 10 bytes each.
    fn build(blocks: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut leaf = LeafBuilder::default();
        let mut last: Option<&[u8]> = None;
        for (block, end) in blocks.iter().zip((10..).step_by(10)) {
            leaf.begin_block(last, &block.0);
            leaf.end_block(end);
            last = Some(&block.1);
        }
        leaf.finish()
    }

    fn data_len(blocks: &[(Vec<u8>, Vec<u8>)]) -> u32 {
        u32::try_from(blocks.len() * 10).unwrap()
    }

    #[test]
    fn a_leaf_keeps_its_bytes() {
        let blocks = [("key01", "key05"), ("key0532", "key09"), ("key2", "key3")];
        let blocks = blocks.map(|(first, last)| (first.into(), last.into()));
        let payload = build(&blocks);
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "03000000030000006b6579000000000000313000000000003335300000000000000032000000000a00000014\
             0000001e00000000000000020000000500000006000000303130353332"
        );
        let leaf = LeafIndex::decode(payload.into(), 30).unwrap();
        let separators = (0..3).map(|i| leaf.separator(i).unwrap());
        assert_eq!(separators.collect::<Vec<_>>(), ["key01", "key053", "key2"]);
        assert_eq!(leaf.block(1), Some(10..20));
        assert!(leaf.heads_are_right());
        let mut other = build(&blocks);
        other[11] ^= 1;
        assert!(!LeafIndex::decode(other.into(), 30).unwrap().heads_are_right());
    }

    proptest! {
        #[test]
        fn a_leaf_finds_the_block_of_every_key(
            mut keys in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(0u8..3, 0..6),
                    "shared-prefix/[0-9]{0,14}".prop_map(String::into_bytes),
                ], 2..60),
            other in proptest::collection::vec(0u8..3, 0..6),
        ) {
            keys.sort();
            let blocks: Vec<_> = keys.chunks_exact(2).map(|two| (two[0].clone(), two[1].clone())).collect();
            let leaf = LeafIndex::decode(build(&blocks).into(), data_len(&blocks)).unwrap();
            for key in keys.iter().chain([&other]) {
                let found = leaf.find(key);
                let first_not_before = blocks.iter().position(|block| block.1 >= *key);
                let holder = first_not_before.unwrap_or(blocks.len());
                prop_assert!(found == holder || found + 1 == holder, "{found} for {holder}");
                let holds = blocks.iter().any(|block| block.0 <= *key && *key <= block.1);
                let distinct = keys.windows(2).all(|two| two[0] < two[1]);
                if holds && distinct {
                    prop_assert_eq!(found, holder, "without a detour");
                }
                let last_before = blocks.iter().rposition(|block| block.0 < *key);
                let before = leaf.find_before(key);
                prop_assert!(last_before.is_none_or(|last| before == last || before == last + 1));
                for (i, block) in blocks.iter().enumerate() {
                    let separator = leaf.separator(i).unwrap();
                    prop_assert_eq!(leaf.compare_separator(i, key), Some(separator[..].cmp(key)));
                    prop_assert!(separator[..] <= block.0[..]);
                }
            }
        }

        #[test]
        fn no_bytes_make_a_leaf_panic(
            keys in proptest::collection::btree_set(any::<Vec<u8>>(), 1..20), at: u32, byte: u8,
        ) {
            let blocks: Vec<_> = keys.iter().map(|key| (key.clone(), key.clone())).collect();
            let mut payload = build(&blocks);
            let at = usize_of(at.into()) % payload.len();
            payload[at] = byte;
            for bytes in [&payload[..], &payload[..at]] {
                if let Ok(leaf) = LeafIndex::decode(Bytes::copy_from_slice(bytes), data_len(&blocks)) {
                    let found = leaf.find(b"key");
                    prop_assert!(leaf.block(found).is_some() && leaf.separator(found).is_some());
                }
            }
        }
    }

    fn section(offset: u64, keys: [&'static str; 2]) -> SectionMeta {
        SectionMeta {
            offset,
            data_len: 100,
            leaf_len: 20,
            filter_len: 30,
            entries: 5,
            tombstones: 1,
            dense_blocks: 0,
            min_seq: SeqNo(1),
            max_seq: SeqNo(9),
            oldest_tombstone_s: 7,
            min_expiry_s: u32::MAX,
            min_key: Bytes::from(keys[0]),
            max_key: Bytes::from(keys[1]),
        }
    }

    #[test]
    fn a_top_index_comes_back_and_damage_is_seen() {
        let sections = vec![section(0, ["", "b"]), section(150, ["b", "c"])];
        let bytes = encode_top(&sections);
        assert_eq!(decode_top(&bytes, 300), Ok(sections.clone()));
        assert!(decode_top(&bytes, 301).is_err());
        for len in 0..bytes.len() {
            assert!(decode_top(&bytes[..len], 300).is_err());
        }
        let swapped = vec![section(0, ["b", "c"]), section(150, ["a", "b"])];
        assert!(decode_top(&encode_top(&swapped), 300).is_err());
    }
}
