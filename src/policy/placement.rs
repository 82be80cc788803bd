//! Where guards go: slots are cut at the byte median of their data, so that both halves weigh the same.

use bytes::Bytes;

use crate::types::KeyRange;
use crate::version::{Slot, Version};

/// Where a data block, or a section, begins, and what it weighs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockWeight {
    /// Its first key, or a separator before it.
    pub(crate) start: Bytes,
    pub(crate) bytes: u64,
}

/// The block start that comes closest to halving the bytes of `blocks` inside `range`.
///
/// `blocks`: of all tables of a slot, in any order. Blocks before the range count towards its start.
/// Returns a key strictly inside the range, with bytes on both sides; `None` if there is no such key.
pub(crate) fn byte_median(mut blocks: Vec<BlockWeight>, range: &KeyRange) -> Option<Bytes> {
    blocks.retain(|block| range.is_before_end(&block.start));
    for block in &mut blocks {
        block.start = block.start.clone().max(range.start.clone());
    }
    blocks.sort_by(|a, b| a.start.cmp(&b.start));
    let total: u64 = blocks.iter().map(|block| block.bytes).sum();
    let first = blocks.first()?.start.clone();
    let mut before = 0_u64;
    let mut best: Option<(u64, Bytes)> = None;
    for block in blocks {
        let off = before.abs_diff(total - before);
        let inside = block.start > range.start && block.start > first && before > 0;
        if inside && best.as_ref().is_none_or(|(least, _)| off < *least) {
            best = Some((off, block.start));
        }
        before += block.bytes;
    }
    best.map(|(_, key)| key)
}

/// A key near the byte median of a slot, from what the version knows without reading a table.
pub(crate) fn rough_median(version: &Version, slot: &Slot, range: &KeyRange) -> Option<Bytes> {
    let mut blocks = Vec::new();
    for slice in slot.runs.iter().flat_map(|run| &run.slices) {
        let Some(table) = version.tables.get(&slice.table) else { continue };
        for section in table.sections_in(&slice.range) {
            // The last key of a section starts a piece of no weight: a slot of one section can be halved too.
            let half = section.bytes() / 2;
            blocks.push(BlockWeight { start: section.min_key.clone(), bytes: half });
            blocks.push(BlockWeight {
                start: between(&section.min_key, &section.max_key),
                bytes: section.bytes() - half,
            });
        }
    }
    byte_median(blocks, range)
}

/// A key about half way between two, above the first unless they are equal.
fn between(low: &Bytes, high: &Bytes) -> Bytes {
    let common = low.iter().zip(high.iter()).take_while(|(a, b)| a == b).count();
    let byte = |key: &Bytes, at: usize| key.get(at).copied().map_or(0, u32::from);
    let two = |key: &Bytes| byte(key, common) << 8 | byte(key, common + 1);
    let middle = two(low).midpoint(two(high)).to_be_bytes();
    let mut key: Vec<u8> = high.iter().take(common).copied().collect();
    key.extend(middle.iter().skip(2));
    let key = Bytes::from(key);
    if key > *low && key <= *high { key } else { high.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: &'static str, bytes: u64) -> BlockWeight {
        BlockWeight { start: Bytes::from(start), bytes }
    }

    #[test]
    fn a_slot_is_cut_where_its_bytes_are_halved() {
        let blocks = vec![block("a", 10), block("c", 10), block("e", 10), block("g", 10)];
        assert_eq!(byte_median(blocks, &KeyRange::all()).as_deref(), Some(&b"e"[..]));
        let skewed = vec![block("a", 100), block("c", 10), block("e", 10)];
        assert_eq!(byte_median(skewed, &KeyRange::all()).as_deref(), Some(&b"c"[..]));
        let runs = vec![block("m", 4), block("a", 4), block("p", 4), block("b", 4)];
        assert_eq!(byte_median(runs, &KeyRange::all()).as_deref(), Some(&b"m"[..]));
    }

    #[test]
    fn a_guard_lies_strictly_inside_and_parts_something() {
        let range = KeyRange::new(Bytes::from("c"), Some(Bytes::from("g")));
        let blocks = vec![block("a", 10), block("c", 10), block("e", 1), block("h", 50)];
        assert_eq!(byte_median(blocks, &range).as_deref(), Some(&b"e"[..]));
        assert_eq!(byte_median(vec![block("a", 10), block("b", 10)], &range), None);
        assert_eq!(byte_median(vec![block("d", 10), block("d", 10)], &KeyRange::all()), None);
        assert_eq!(byte_median(Vec::new(), &KeyRange::all()), None);
    }

    #[test]
    fn half_way_is_above_the_first_and_not_above_the_last() {
        for (low, high) in [("a", "b"), ("a", "a\0"), ("key1", "key9"), ("", "x"), ("same", "same")]
        {
            let key = between(&Bytes::from(low), &Bytes::from(high));
            assert!(&key[..] > low.as_bytes() || low == high, "{low} {high} {key:?}");
            assert!(&key[..] <= high.as_bytes(), "{low} {high} {key:?}");
        }
    }
}
