//! scaffold

use crate::error::Damage;

pub(crate) fn put_vu32(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
    pub(crate) fn take(&mut self, n: usize, expected: &'static str) -> Result<&'a [u8], Damage> {
        let (head, rest) =
            self.rest.split_at_checked(n).ok_or(Damage { offset: self.offset, expected })?;
        self.rest = rest;
        self.offset += n as u64;
        Ok(head)
    }
    pub(crate) fn u8(&mut self, expected: &'static str) -> Result<u8, Damage> {
        Ok(self.take(1, expected)?.first().copied().unwrap_or(0))
    }
    pub(crate) fn u32(&mut self, expected: &'static str) -> Result<u32, Damage> {
        let b = self.take(4, expected)?;
        Ok(u32::from_le_bytes(b.try_into().unwrap_or_default()))
    }
    pub(crate) fn u64(&mut self, expected: &'static str) -> Result<u64, Damage> {
        let b = self.take(8, expected)?;
        Ok(u64::from_le_bytes(b.try_into().unwrap_or_default()))
    }
    pub(crate) fn vu32(&mut self, expected: &'static str) -> Result<u32, Damage> {
        let mut v = 0u32;
        for shift in (0..32).step_by(7) {
            let b = self.u8(expected)?;
            v |= u32::from(b & 0x7f).checked_shl(shift).unwrap_or(0);
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(Damage { offset: self.offset, expected })
    }
}
