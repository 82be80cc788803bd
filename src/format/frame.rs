//! The frame around every block of a table: a trailer that says what the block is and proves that it is whole and in its place.
//!
//! ```text
//! block   := payload | trailer(12)
//! trailer := raw_len u32 | codec u8 | kind u8 | reserved u16 | crc32c u32
//! ```
//!
//! Format: docs/format.md#block-frame

use crate::config::{Compression, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::error::Damage;
use crate::format::{Unreadable, checksum, compress};
use crate::types::{FileId, usize_of};

/// Bytes of a trailer.
pub(crate) const TRAILER: usize = 12;

/// Largest payload: one entry of the largest value and key, with room for its lengths and the block's tail.
pub(crate) const MAX_PAYLOAD: usize = MAX_VALUE_BYTES + MAX_KEY_BYTES + 1024;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Data,
    Leaf,
    Filter,
    Top,
    Props,
}

impl BlockKind {
    fn of(code: u8) -> Option<Self> {
        let all = [Self::Data, Self::Leaf, Self::Filter, Self::Top, Self::Props];
        all.into_iter().find(|kind| kind.code() == code)
    }

    const fn code(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Leaf => 1,
            Self::Filter => 2,
            Self::Top => 3,
            Self::Props => 4,
        }
    }
}

/// Where a block lies; part of its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) file: FileId,
    pub(crate) offset: u64,
}

/// A frame that passed its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) packed: &'a [u8],
    pub(crate) codec: Compression,
    pub(crate) raw_len: usize,
}

impl Frame<'_> {
    /// The decompressed payload. REQUIRES: `codec` is not `None` (then `packed` is it already).
    pub(crate) fn unpack(&self) -> Result<Vec<u8>, Unreadable> {
        compress::decompress(self.codec, self.packed, self.raw_len)
    }
}

/// The trailer of a payload. REQUIRES: `raw_len` is at most [`MAX_PAYLOAD`].
pub(crate) fn trailer(
    packed: &[u8],
    raw_len: usize,
    codec: Compression,
    kind: BlockKind,
    place: Place,
) -> [u8; TRAILER] {
    let raw_len = u32::try_from(raw_len).unwrap_or(u32::MAX); // refused when read
    let [a, b, c, d] = raw_len.to_le_bytes();
    let head = [a, b, c, d, compress::code_of(codec), kind.code(), 0, 0];
    let crc = placed(crc32c::crc32c_append(crc32c::crc32c(packed), &head), place);
    let mut out = [0; TRAILER];
    let (front, back) = out.split_at_mut(8);
    front.copy_from_slice(&head);
    back.copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks a block as it was read and takes its trailer off. Does not decompress.
pub(crate) fn open(bytes: &[u8], kind: BlockKind, place: Place) -> Result<Frame<'_>, Unreadable> {
    let damaged = |expected| Unreadable::Damaged(Damage { offset: 0, expected });
    let cut = damaged("a block with a trailer");
    let (signed, crc) = bytes.split_last_chunk::<4>().ok_or(cut)?;
    let (packed, &[a, b, c, d, codec, kind_code, e, f]) =
        signed.split_last_chunk::<8>().ok_or(cut)?;
    if !checksum::holds(placed(crc32c::crc32c(signed), place), u32::from_le_bytes(*crc)) {
        return Err(damaged("a block that matches its checksum"));
    }
    if kind_code != kind.code() {
        return Err(damaged("a block of the right kind"));
    }
    if [e, f] != [0, 0] {
        return Err(Unreadable::Unsupported("reserved bits of a block trailer"));
    }
    let codec = compress::codec_of(codec).ok_or(Unreadable::Unsupported("codec of a block"))?;
    let raw_len = usize_of(u64::from(u32::from_le_bytes([a, b, c, d])));
    let fits = raw_len <= MAX_PAYLOAD && (codec != Compression::None || raw_len == packed.len());
    if !fits {
        return Err(damaged("a block of possible size"));
    }
    Ok(Frame { packed, codec, raw_len })
}

/// The block that begins at the front of `bytes`, of whatever kind and length: its kind and its length with the trailer.
///
/// For files whose index is lost. Cost: one look at each byte, one checksum at each that could be the start of a trailer.
pub(crate) fn find(bytes: &[u8], place: Place) -> Option<(BlockKind, usize)> {
    let ends = trailers(bytes);
    let mut whole = ends.filter_map(|(kind, end)| Some((kind, end, bytes.get(..end)?)));
    whole
        .find(|(kind, _, block)| open(block, *kind, place).is_ok())
        .map(|(kind, end, _)| (kind, end))
}

/// Where a trailer could end, by its look, and what its block would be.
pub(crate) fn trailers(bytes: &[u8]) -> impl Iterator<Item = (BlockKind, usize)> + '_ {
    bytes.windows(TRAILER).enumerate().filter_map(|(at, trailer)| {
        let (head, _) = trailer.split_first_chunk::<8>()?;
        let &[a, b, c, d, codec, kind, 0, 0] = head else { return None };
        let codec = compress::codec_of(codec)?;
        let raw_len = usize_of(u64::from(u32::from_le_bytes([a, b, c, d])));
        let fits =
            raw_len > 0 && raw_len <= MAX_PAYLOAD && (codec != Compression::None || raw_len <= at);
        Some((BlockKind::of(kind)?, at + TRAILER)).filter(|_| fits)
    })
}

/// The checksum of a block whose bytes have the checksum `crc`.
fn placed(crc: u32, place: Place) -> u32 {
    let crc = crc32c::crc32c_append(crc, &place.file.0.to_le_bytes());
    crc32c::crc32c_append(crc, &place.offset.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { file: FileId(7), offset: 4096 };

    fn framed(payload: &[u8]) -> Vec<u8> {
        let trailer = trailer(payload, payload.len(), Compression::None, BlockKind::Data, PLACE);
        [payload, &trailer].concat()
    }

    #[test]
    fn a_frame_keeps_its_bytes() {
        let hex: String = framed(b"nori").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "6e6f72690400000000000000a86baa8e");
    }

    #[test]
    fn a_block_passes_only_whole_and_in_its_place() {
        let bytes = framed(b"payload");
        let frame = open(&bytes, BlockKind::Data, PLACE).expect("whole");
        assert_eq!(frame.packed, b"payload");
        let moved = [
            (BlockKind::Leaf, PLACE),
            (BlockKind::Data, Place { offset: 0, ..PLACE }),
            (BlockKind::Data, Place { file: FileId(8), ..PLACE }),
        ];
        for (kind, place) in moved {
            assert!(matches!(open(&bytes, kind, place), Err(Unreadable::Damaged(_))));
        }
        for len in 0..bytes.len() {
            assert!(matches!(
                open(&bytes[..len], BlockKind::Data, PLACE),
                Err(Unreadable::Damaged(_))
            ));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let opened = open(&flipped, BlockKind::Data, PLACE);
            assert!(matches!(opened, Err(Unreadable::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_block_larger_than_the_largest_entry_is_damage() {
        let trailer = trailer(b"x", MAX_PAYLOAD + 1, Compression::Lz4, BlockKind::Data, PLACE);
        let bytes = [&b"x"[..], &trailer].concat();
        assert!(matches!(open(&bytes, BlockKind::Data, PLACE), Err(Unreadable::Damaged(_))));
    }
}
