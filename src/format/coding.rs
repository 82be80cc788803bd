//! Integers and byte strings: LEB128 varints, fixed little-endian words, and a reader that cannot run over the end.
//!
//! Format: docs/format.md#integers

use std::cmp::Ordering;

use crate::error::Damage;
use crate::types::{u64_of, usize_of};

/// Appends `value` as a LEB128 varint of at most 5 bytes.
pub(crate) fn put_vu32(out: &mut Vec<u8>, value: u32) {
    put_vu64(out, u64::from(value));
}

/// Appends `value` as a LEB128 varint of at most 10 bytes.
pub(crate) fn put_vu64(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends the length of `bytes` as a varint, then `bytes`. REQUIRES: fewer than 4 GiB.
pub(crate) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put_vu64(out, u64_of(bytes.len()));
    out.extend_from_slice(bytes);
}

/// A varint of at most 32 bits and the bytes behind it; `None` if it is cut off, too large, or longer than need be.
#[inline]
pub(crate) fn split_vu32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    match bytes.split_first() {
        Some((&first, rest)) if first < 0x80 => Some((u32::from(first), rest)),
        _ => {
            let (value, rest) = split_vu64(bytes)?;
            Some((u32::try_from(value).ok()?, rest))
        }
    }
}

/// A varint of at most 64 bits and the bytes behind it; `None` if it is cut off, too large, or longer than need be.
pub(crate) fn split_vu64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    let mut shift = 0u32;
    let mut rest = bytes;
    loop {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        let part = u64::from(byte & 0x7f);
        let placed = part.checked_shl(shift)?;
        if placed >> shift != part {
            return None;
        }
        value |= placed;
        if byte < 0x80 {
            return (byte != 0 || shift == 0).then_some((value, rest));
        }
        shift += 7;
    }
}

/// How many leading bytes two strings share.
#[inline]
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let (words_a, _) = a.as_chunks::<8>();
    let (words_b, _) = b.as_chunks::<8>();
    let mut at = 0usize;
    for (x, y) in words_a.iter().zip(words_b) {
        let difference = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if difference != 0 {
            return at + usize_of(u64::from(difference.trailing_zeros() / 8));
        }
        at += 8;
    }
    let rest = a.iter().skip(at).zip(b.iter().skip(at));
    at + rest.take_while(|(x, y)| x == y).count()
}

/// Compares two strings; also says how many leading bytes they share.
#[inline]
pub(crate) fn compare(a: &[u8], b: &[u8]) -> (Ordering, usize) {
    let shared = common_prefix(a, b);
    (a.get(shared).cmp(&b.get(shared)), shared)
}

/// The first eight bytes of a string, zero padded, as a number that sorts like them.
#[inline]
pub(crate) fn head_of(bytes: &[u8]) -> u64 {
    if let Some(head) = bytes.first_chunk::<8>() {
        return u64::from_be_bytes(*head);
    }
    bytes.iter().rev().fold(0, |head, &byte| (head >> 8) | (u64::from(byte) << 56))
}

/// Reads values off the front of bytes that may end anywhere; every failure says where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes not yet read.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Damage at the current position.
    pub(crate) const fn damage(&self, expected: &'static str) -> Damage {
        Damage { offset: self.offset, expected }
    }

    pub(crate) fn bytes(&mut self, len: usize, expected: &'static str) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.damage(expected))?;
        self.move_to(rest);
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        expected: &'static str,
    ) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.damage(expected))?;
        self.move_to(rest);
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, expected: &'static str) -> Result<u8, Damage> {
        self.array::<1>(expected).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, expected: &'static str) -> Result<u16, Damage> {
        self.array(expected).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, expected: &'static str) -> Result<u32, Damage> {
        self.array(expected).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, expected: &'static str) -> Result<u64, Damage> {
        self.array(expected).map(u64::from_le_bytes)
    }

    pub(crate) fn vu32(&mut self, expected: &'static str) -> Result<u32, Damage> {
        let (value, rest) = split_vu32(self.rest).ok_or(self.damage(expected))?;
        self.move_to(rest);
        Ok(value)
    }

    /// A byte string behind its length, as [`put_sized`] writes it.
    pub(crate) fn sized(&mut self, expected: &'static str) -> Result<&'a [u8], Damage> {
        let at = *self;
        let len = usize_of(u64::from(self.vu32(expected)?));
        self.bytes(len, expected).inspect_err(|_| *self = at)
    }

    /// Fails unless everything was read.
    pub(crate) fn end(&self, expected: &'static str) -> Result<(), Damage> {
        if self.is_empty() { Ok(()) } else { Err(self.damage(expected)) }
    }

    fn move_to(&mut self, rest: &'a [u8]) {
        self.offset += u64_of(self.rest.len() - rest.len());
        self.rest = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64, behind: Vec<u8>) {
            let mut out = Vec::new();
            put_vu64(&mut out, value);
            prop_assert!(out.len() <= 10);
            out.extend_from_slice(&behind);
            prop_assert_eq!(split_vu64(&out), Some((value, &behind[..])));
            let narrow = u32::try_from(value).ok();
            prop_assert_eq!(split_vu32(&out).map(|(v, _)| v), narrow);
        }

        #[test]
        fn no_bytes_make_a_varint_panic(bytes: Vec<u8>) {
            if let Some((value, rest)) = split_vu64(&bytes) {
                let mut again = Vec::new();
                put_vu64(&mut again, value);
                prop_assert_eq!(&bytes[..bytes.len() - rest.len()], &again[..], "one spelling per number");
            }
        }

        #[test]
        fn heads_sort_like_their_strings(a: Vec<u8>, b: Vec<u8>) {
            if head_of(&a) < head_of(&b) {
                prop_assert!(a < b);
            }
            let (order, shared) = compare(&a, &b);
            prop_assert_eq!(order, a.cmp(&b));
            prop_assert_eq!(&a[..shared], &b[..shared]);
        }

        #[test]
        fn strings_that_part_late_share_all_before(a: Vec<u8>, x: Vec<u8>, y: Vec<u8>) {
            let (left, right) = ([&a[..], &x].concat(), [&a[..], &y].concat());
            let shared = common_prefix(&left, &right);
            prop_assert!(shared >= a.len());
            prop_assert_eq!(compare(&left, &right).0, left.cmp(&right));
        }
    }

    #[test]
    fn a_varint_over_64_bits_is_none() {
        assert_eq!(split_vu64(&[0xff; 10]), None);
        assert_eq!(split_vu64(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), None);
        assert_eq!(split_vu64(&[0x80, 0]), None, "longer than need be");
    }

    #[test]
    fn a_reader_says_where_it_stopped() {
        let mut reader = Reader::new(&[1, 2, 0, 5, 9]);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16("b"), Ok(2));
        assert_eq!(reader.sized("c"), Err(Damage { offset: 4, expected: "c" }));
        assert_eq!(reader.end("d"), Err(Damage { offset: 3, expected: "d" }));
        assert_eq!(reader.bytes(2, "e"), Ok(&[5, 9][..]));
        assert_eq!(reader.end("f"), Ok(()));
    }
}
