//! Right checksums for bytes that are anything else: so that what was made by changing a good file gets behind the first look at it.
//!
//! Written after docs/format.md, without the engine. Sealing goes as far as the bytes lead; what nothing leads to stays as it is.

use std::ops::Range;

use super::wal;

/// Puts right checksums into a file of this target.
pub fn seal(target: &str, bytes: &mut [u8]) {
    match target {
        "manifest" => manifest(bytes),
        "sstable" => drop(table(bytes)),
        "wal" => log(bytes),
        _ => {} // a block is framed by its target, and a program has no checksum
    }
}

fn log(bytes: &mut [u8]) {
    let mut at = 0;
    let segments: Vec<(u64, usize)> =
        wal::segments(bytes).iter().map(|(number, segment)| (*number, segment.len())).collect();
    for (number, len) in segments {
        if let Some(segment) = bytes.get_mut(at..at + len) {
            put_crc(segment, 44, (&[], 0..44, &[]));
            frames(segment, 48, 20, number);
        }
        at += len;
    }
}

fn manifest(bytes: &mut [u8]) {
    let number = word(bytes, 8, 8).unwrap_or(0);
    put_crc(bytes, 20, (&[], 0..20, &[]));
    frames(bytes, 24, 32, number);
}

/// `len u32 | crc32c u32 | body[len]`, the checksum over `number` and the body.
fn frames(bytes: &mut [u8], mut at: usize, least: usize, number: u64) {
    while let Some(len) = word(bytes, at, 4).and_then(|len| usize::try_from(len).ok()) {
        let body = at + 8..at.saturating_add(8).saturating_add(len);
        if len < least || body.end > bytes.len() {
            return;
        }
        at = body.end;
        put_crc(bytes, body.start - 4, (&number.to_le_bytes(), body, &[]));
    }
}

/// Seals the footer and every block that the indexes lead to, as long as they are not compressed.
fn table(bytes: &mut [u8]) -> Option<()> {
    let footer = bytes.len().checked_sub(64)?;
    put_crc(bytes, footer + 56, (&[], footer..footer + 56, &[]));
    let number = |at, len| usize::try_from(word(bytes, footer + at, len)?).ok();
    let (top_at, props_at) = (number(0, 8)?, number(8, 8)?);
    let (top_len, props_len) = (number(32, 4)?, number(36, 4)?);
    let file = word(bytes, footer + 24, 8)?;
    let mut at = top_at.checked_add(4)?;
    for _ in 0..word(bytes, top_at, 4)? {
        section(bytes, at, file);
        let (min, behind) = varint(bytes, at + 56)?;
        let (max, behind) = varint(bytes, behind)?;
        at = behind.checked_add(min)?.checked_add(max)?;
    }
    block(bytes, top_at, top_len, file);
    block(bytes, props_at, props_len, file);
    Some(())
}

/// Seals the blocks of the section whose line in the top index is at `line`.
fn section(bytes: &mut [u8], line: usize, file: u64) -> Option<()> {
    let start = usize::try_from(word(bytes, line, 8)?).ok()?;
    let len = |at| usize::try_from(word(bytes, line + at, 4)?).ok();
    let (data_len, leaf_len, filter_len) = (len(8)?, len(12)?, len(16)?);
    let leaf = start.checked_add(data_len)?;
    let filter = leaf.checked_add(leaf_len)?;
    let n = usize::try_from(word(bytes, leaf, 4)?).ok()?;
    let prefix = usize::try_from(word(bytes, leaf + 4, 2)?).ok()?;
    let offsets = leaf.checked_add(8 + prefix)?.checked_add(n.checked_mul(8)?)?;
    for index in 0..n {
        let at = offsets.checked_add(index * 4)?;
        let Some((from, to)) = word(bytes, at, 4).zip(word(bytes, at + 4, 4)) else { break };
        let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) else { break };
        block(bytes, start.checked_add(from)?, to.saturating_sub(from), file);
    }
    block(bytes, leaf, leaf_len, file);
    block(bytes, filter, filter_len, file);
    Some(())
}

/// `payload | raw_len u32 | codec u8 | kind u8 | reserved u16 | crc32c u32`.
fn block(bytes: &mut [u8], at: usize, len: usize, file: u64) {
    if let Some(end) = at.checked_add(len).filter(|_| len >= 12) {
        let place = [file, at as u64].map(u64::to_le_bytes).concat();
        put_crc(bytes, end - 4, (&[], at..end - 4, &place));
    }
}

/// Puts the checksum over `front`, `part` of the bytes, and `back` to `at`.
fn put_crc(bytes: &mut [u8], at: usize, (front, part, back): (&[u8], Range<usize>, &[u8])) {
    let Some(part) = bytes.get(part) else { return };
    let crc = crc32c::crc32c_append(crc32c::crc32c(front), part);
    let crc = crc32c::crc32c_append(crc, back);
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The little-endian number of `len` bytes at `at`.
fn word(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
}

/// The varint at `at`, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.get(at..)?.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, at + index + 1));
        }
    }
    None
}
