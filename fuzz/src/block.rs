//! Bytes as the payload of a data block, read by the engine and by a plain decoder written after docs/format.md.
//!
//! The block becomes a table: the only one of its only section, under right checksums. If the decoder takes it, verification does,
//! and every way to read shows its entries; if not, verification refuses it, and no way to read panics.

use std::sync::Arc;

use bytes::Bytes;
use nori_lsm::sstable::{Entry, SSTableReader};
use nori_lsm::{Direction, SeqNo, fuzzing};

use super::Verdict;
use super::sstable::{self, NEWEST};

pub fn run(data: &[u8]) -> Verdict {
    let expected = decode(data);
    let bytes = table(data, expected.as_deref());
    sstable::now(async {
        let table = sstable::open(&bytes).await.expect("only the block may be damaged");
        let sound = sstable::verdict(table.verify().await);
        match expected {
            Some(entries) => {
                assert_eq!(sound, Verdict::Accepted, "{entries:?}");
                compare(&table, &entries).await;
            }
            None => {
                assert_eq!(sound, Verdict::Refused, "verified, but it breaks the format");
                read(&table).await;
            }
        }
        sound
    })
}

/// Every way to read a good block shows its entries.
async fn compare(table: &Arc<SSTableReader>, entries: &[Entry]) {
    let (forward, end) = sstable::walk(table, Direction::Forward).await;
    end.expect("a good block");
    assert_eq!(forward, entries);
    let (mut backward, end) = sstable::walk(table, Direction::Backward).await;
    end.expect("a good block");
    backward.reverse();
    assert_eq!(backward, entries);
    let entries_near = |count: usize| entries.iter().step_by(entries.len().div_ceil(count));
    for entry in entries_near(40) {
        let longer = Bytes::from([&entry.key[..], &[0]].concat());
        let shorter = entry.key.slice(..entry.key.len().saturating_sub(1));
        for key in [entry.key.clone(), longer, shorter] {
            for seq in [NEWEST, entry.seq, SeqNo(entry.seq.0.saturating_sub(1)), SeqNo(0)] {
                let newest = entries.iter().find(|other| other.key == key && other.seq <= seq);
                let found = fuzzing::get_at(table, &key, seq).await.expect("a good block");
                assert_eq!(found.as_ref(), newest, "{key:?} at {seq}");
            }
            let after = sstable::walk_from(table, &key, Direction::Forward).await;
            let from = entries.partition_point(|other| other.key < key);
            assert_eq!(after.expect("a good block"), entries[from..], "from {key:?}");
            let before = sstable::walk_from(table, &key, Direction::Backward).await;
            let to = entries.partition_point(|other| other.key < key);
            let before: Vec<_> = before.expect("a good block").into_iter().rev().collect();
            assert_eq!(before, entries[..to], "back from {key:?}");
        }
    }
}

/// Every way to read a bad block ends.
async fn read(table: &Arc<SSTableReader>) {
    for direction in [Direction::Forward, Direction::Backward] {
        let (entries, end) = sstable::walk(table, direction).await;
        sstable::verdict(end);
        for entry in entries.iter().take(40) {
            for seq in [NEWEST, entry.seq] {
                sstable::verdict(fuzzing::get_at(table, &entry.key, seq).await.map(drop));
            }
            let from = sstable::walk_from(table, &entry.key, direction).await;
            sstable::verdict(from.map(drop));
        }
    }
    for key in [&b""[..], b"key", &[0xff; 9]] {
        sstable::verdict(fuzzing::get_at(table, key, NEWEST).await.map(drop));
    }
}

/// The entries of a payload, if it keeps every rule of the format that a reader relies on.
pub fn decode(payload: &[u8]) -> Option<Vec<Entry>> {
    let mut back = Back(payload);
    let base = back.number(8)?;
    let (flags, prefix_len) = (back.number(2)?, usize::try_from(back.number(2)?).ok()?);
    let (same_seq, wide, rising) = (flags & 1 > 0, flags & 2 > 0, flags & 8 > 0);
    let n_restarts = back.number(if wide { 4 } else { 2 })?;
    let n_entries = back.number(if wide { 4 } else { 2 })?;
    if flags > 15 || n_restarts == 0 {
        return None;
    }
    let heads: Vec<u64> = back.numbers(n_restarts, 8)?;
    let offsets = back.numbers(n_restarts, if wide { 4 } else { 2 })?;
    let mut front = Front { bytes: back.0, at: 0 };
    let mut entries: Vec<Entry> = Vec::new();
    let mut restarts = Vec::new();
    while front.at < front.bytes.len() {
        let at = front.at as u64;
        let before = entries.last();
        let (shared, entry) =
            front.entry(before.map_or(&[], |entry| &entry.key), base, same_seq)?;
        let common = before.map_or(0, |before| common(&before.key, &entry.key));
        let is_restart = offsets.contains(&at);
        let in_order = before.is_none_or(|before| {
            (&before.key, std::cmp::Reverse(before.seq))
                < (&entry.key, std::cmp::Reverse(entry.seq))
        });
        if !in_order || shared != (if is_restart { 0 } else { common }) {
            return None;
        }
        if is_restart {
            restarts.push((at, entry.key.clone()));
        }
        entries.push(entry);
    }
    let prefix = entries.first()?.key.get(..prefix_len)?;
    let right = entries.len() as u64 == n_entries
        && restarts.first().is_some_and(|(at, _)| *at == 0)
        && restarts.iter().map(|(at, _)| at).eq(&offsets)
        && entries.iter().all(|entry| entry.key.starts_with(prefix))
        && restarts.iter().map(|(_, key)| head(&key[prefix_len..])).eq(heads.iter().copied())
        && (!rising || heads.is_sorted_by(|a, b| a < b));
    right.then_some(entries)
}

/// Takes numbers off the end.
struct Back<'a>(&'a [u8]);

impl Back<'_> {
    fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.numbers(1, len)?[0])
    }

    fn numbers(&mut self, count: u64, len: usize) -> Option<Vec<u64>> {
        let all = usize::try_from(count).ok()?.checked_mul(len)?;
        let (rest, numbers) = self.0.split_at_checked(self.0.len().checked_sub(all)?)?;
        self.0 = rest;
        Some(numbers.chunks(len).map(little_endian).collect())
    }
}

/// Takes entries off the front.
struct Front<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Front<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let bytes = self.bytes.get(self.at..)?.get(..usize::try_from(len).ok()?)?;
        self.at += bytes.len();
        Some(bytes)
    }

    /// The shortest spelling of a number of so many bits.
    fn varint(&mut self, bits: u32) -> Option<u64> {
        let mut value = 0_u128;
        for index in 0.. {
            let byte = self.take(1)?[0];
            value |= u128::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                let shortest = byte > 0 || index == 0;
                return u64::try_from(value).ok().filter(|_| shortest && value >> bits == 0);
            }
            if index == 9 {
                break;
            }
        }
        None
    }

    /// The next entry, and how much of its key was shared.
    fn entry(&mut self, before: &[u8], base: u64, same_seq: bool) -> Option<(usize, Entry)> {
        let shared_ext = self.varint(32)?;
        let (unshared, mut value_len) = (self.varint(32)?, self.varint(32)?);
        let tag = if shared_ext & 1 == 1 { self.take(1)?[0] } else { 0 };
        let delta = if same_seq { 0 } else { self.varint(64)? };
        let shared = usize::try_from(shared_ext >> 1).ok()?;
        let key: Bytes = [before.get(..shared)?, self.take(unshared)?].concat().into();
        let until = if tag == 2 { Some(little_endian(self.take(8)?)) } else { None };
        if tag == 2 {
            value_len = value_len.checked_sub(8)?;
        }
        let value = Bytes::copy_from_slice(self.take(value_len)?);
        let entry = match (shared_ext & 1, tag, until) {
            (0, ..) => Entry::put(key, value),
            (_, 1, _) if value_len == 0 => Entry::delete(key),
            (_, 2, Some(until)) => Entry::put(key, value).with_expiry(until),
            _ => return None,
        };
        Some((shared, entry.with_seq(SeqNo(base.checked_add(delta)?))))
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Eight bytes of a key, highest first, short keys padded with zeros.
fn head(key: &[u8]) -> u64 {
    (0..8).fold(0, |head, at| head << 8 | u64::from(key.get(at).copied().unwrap_or(0)))
}

const FILE: u64 = 7;
const DATA: u8 = 0;
const LEAF: u8 = 1;
const TOP: u8 = 3;
const PROPS: u8 = 4;

/// A table of one block, without filters. A block without known entries gets bounds that let every key in.
fn table(payload: &[u8], entries: Option<&[Entry]>) -> Vec<u8> {
    let entries = entries.unwrap_or_default();
    let first = entries.first().map_or(Bytes::new(), |entry| entry.key.clone());
    let last = entries.last().map_or(Bytes::from_static(&[0xff; 64]), |entry| entry.key.clone());
    let n = entries.len() as u32;
    let tombstones = entries.iter().filter(|entry| entry.is_tombstone()).count() as u32;
    let mut file = Vec::new();
    block(&mut file, payload, DATA);
    let data_len = file.len() as u32;

    // One separator, no prefix: the head of the first key, where the block is, and the key.
    let words = [0, data_len, 0, first.len() as u32];
    let mut leaf = [&1_u32.to_le_bytes()[..], &[0; 4], &head(&first).to_le_bytes()].concat();
    leaf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    leaf.extend_from_slice(&first);
    block(&mut file, &leaf, LEAF);
    let (top_at, leaf_len) = (file.len(), file.len() as u32 - data_len);

    let seqs = entries.iter().map(|entry| entry.seq.0);
    let (oldest, newest) = (seqs.clone().min().unwrap_or(0), seqs.max().unwrap_or(u64::MAX));
    let mut top = [&1_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat();
    let words = [data_len, leaf_len, 0, n, tombstones, 0];
    top.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    top.extend([oldest, newest].iter().flat_map(|seq| seq.to_le_bytes()));
    top.extend([tombstones.min(1), u32::MAX].iter().flat_map(|second| second.to_le_bytes()));
    varint(&mut top, first.len());
    varint(&mut top, last.len());
    top.extend([&first[..], &last, &[0; 4]].concat());
    block(&mut file, &top, TOP);
    let props_at = file.len();

    let mut props = Vec::new();
    for (tag, number) in [(2, FILE), (6, n.into()), (7, tombstones.into())] {
        props.extend([tag, 8]);
        props.extend(number.to_le_bytes());
    }
    block(&mut file, &props, PROPS);

    let props_len = file.len() - props_at;
    let mut footer = Vec::new();
    footer.extend(
        [top_at as u64, props_at as u64, top_at as u64, FILE].map(u64::to_le_bytes).concat(),
    );
    let words = [(props_at - top_at) as u32, props_len as u32, 1, 1, 0];
    footer.extend(words.map(u32::to_le_bytes).concat());
    footer.extend([1, 0, 1, 0]); // version 1, CRC32C, no filters
    footer.extend(crc32c::crc32c(&footer).to_le_bytes());
    footer.extend(b"NSST");
    file.extend(footer);
    file
}

/// Appends a payload with its trailer.
fn block(file: &mut Vec<u8>, payload: &[u8], kind: u8) {
    let offset = file.len() as u64;
    let signed = [payload, &(payload.len() as u32).to_le_bytes(), &[0, kind, 0, 0]].concat();
    let crc = [FILE, offset]
        .iter()
        .fold(crc32c::crc32c(&signed), |crc, word| crc32c::crc32c_append(crc, &word.to_le_bytes()));
    file.extend(signed);
    file.extend(crc.to_le_bytes());
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
