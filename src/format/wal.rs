//! Bytes of a log segment: a header, then one frame for each commit group.
//!
//! ```text
//! segment := header(48) frame* zeros?
//! header  := magic(8) | segment_id u64 | prev_id u64 | prev_end u64 | prev_durable u64 | format u32 | crc32c u32
//! frame   := len u32 | crc32c u32 | body[len]           crc over segment_id ‖ body
//! body    := durable u64 | base_seq u64 | count u32 | op*
//! op      := kind u8 | klen vu32 | key | (0 put: vlen vu32 value | 1 delete | 2 put until: expires_ms u64, vlen vu32, value)
//! ```
//!
//! Format: docs/format.md#write-ahead-log

use std::io::IoSlice;

use bytes::Bytes;

use crate::batch::WriteOp;
use crate::error::Damage;
use crate::format::coding::{Reader, put_vu32};
use crate::format::{Unreadable, checksum};
use crate::types::{FileId, NUMBERS_END, SeqNo, ValueKind, usize_of};

const MAGIC: &[u8; 8] = b"NORIWAL1";
const FORMAT: u32 = 1;
/// Bytes of a segment header.
pub(crate) const HEADER_LEN: usize = 48;
/// Bytes in front of a frame's body.
pub(crate) const FRAME_HEADER_LEN: usize = 8;
/// Bytes of a body in front of its operations.
const BODY_HEADER_LEN: usize = 20;
/// Values from this size on are written from the caller's buffer, without a copy.
const LARGE_VALUE: usize = 16 << 10;
/// Largest buffer that is kept for the next frame: what a group of small batches may take, rounded up by the way it grows.
const LARGEST_BUFFER: usize = 4 << 20;

/// What the first bytes of a segment say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) segment: FileId,
    pub(crate) previous: Previous,
}

/// What a segment says about the one that it follows.
///
/// It names that one: a segment that was begun but given up before its first write lies between two others in the order of
/// numbers, but not in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Previous {
    /// The segment before; 0 in the first of a database.
    pub(crate) segment: FileId,
    /// Nothing of it counts from this offset on: a group whose write or sync failed is cut off for good.
    pub(crate) end: u64,
    /// Bytes of it that were known to be on disk when this one was begun.
    pub(crate) durable: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.segment.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous.segment.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous.end.to_le_bytes());
        bytes.extend_from_slice(&self.previous.durable.to_le_bytes());
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&bytes);
        header
    }

    /// Decodes the header of segment `segment`.
    pub(crate) fn decode(bytes: &[u8], segment: FileId) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(bytes);
        let covered = bytes.get(..HEADER_LEN - 4).unwrap_or_default();
        let damaged = |offset, expected| Err(Damage { offset, expected }.into());
        if reader.bytes(8, "log magic")? != MAGIC {
            return damaged(0, "log magic");
        }
        let header = Self {
            segment: FileId(reader.u64("segment number")?),
            previous: Previous {
                segment: FileId(reader.u64("number of the segment before")?),
                end: reader.u64("end of the segment before")?,
                durable: reader.u64("durable bytes of the segment before")?,
            },
        };
        let format = reader.u32("log format")?;
        if !checksum::holds(crc32c::crc32c(covered), reader.u32("log header checksum")?) {
            return damaged(44, "log header checksum");
        }
        if format != FORMAT {
            return Err(Unreadable::Unsupported("format version of a log segment"));
        }
        if header.segment != segment {
            return damaged(8, "number of this segment");
        }
        if header.previous.segment >= segment {
            return damaged(16, "number of an earlier segment");
        }
        Ok(header)
    }
}

/// Encodes one commit group after the other; keeps its buffer, unless it is large.
#[derive(Debug, Default)]
pub(crate) struct FrameEncoder {
    /// The frame, without the large values.
    buf: Vec<u8>,
    /// Large values, with the place in `buf` that each is written at.
    large: Vec<(usize, Bytes)>,
    count: u32,
}

impl FrameEncoder {
    /// Begins a frame.
    pub(crate) fn begin(&mut self) {
        self.buf.clear();
        self.buf.resize(FRAME_HEADER_LEN + BODY_HEADER_LEN, 0);
        self.large.clear();
        self.count = 0;
    }

    /// Adds an operation. Its key and value are within the limits of the engine, and so is the whole frame.
    pub(crate) fn push(&mut self, op: &WriteOp) {
        self.count += 1;
        match op.kind {
            ValueKind::Put => self.push_key(0, &op.key),
            ValueKind::Delete => return self.push_key(1, &op.key),
            ValueKind::PutUntil(expires_ms) => {
                self.push_key(2, &op.key);
                self.buf.extend_from_slice(&expires_ms.to_le_bytes());
            }
        }
        put_vu32(&mut self.buf, u32_of(op.value.len()));
        if op.value.len() < LARGE_VALUE {
            self.buf.extend_from_slice(&op.value);
        } else {
            self.large.push((self.buf.len(), op.value.clone()));
        }
    }

    fn push_key(&mut self, kind: u8, key: &[u8]) {
        self.buf.push(kind);
        put_vu32(&mut self.buf, u32_of(key.len()));
        self.buf.extend_from_slice(key);
    }

    /// The frame is in the log, or never will be: nothing of it is kept, nor room for another as large.
    pub(crate) fn end(&mut self) {
        self.large.clear();
        if self.buf.capacity() > LARGEST_BUFFER {
            self.buf = Vec::new();
        }
    }

    /// Completes the frame for its place in the log, and returns the bytes to write, in order.
    pub(crate) fn finish(
        &mut self,
        segment: FileId,
        durable: u64,
        base_seq: SeqNo,
    ) -> Vec<IoSlice<'_>> {
        let count = self.count;
        overwrite(&mut self.buf, FRAME_HEADER_LEN, &durable.to_le_bytes());
        overwrite(&mut self.buf, FRAME_HEADER_LEN + 8, &base_seq.0.to_le_bytes());
        overwrite(&mut self.buf, FRAME_HEADER_LEN + 16, &count.to_le_bytes());
        let large: usize = self.large.iter().map(|(_, value)| value.len()).sum();
        let len = u32_of(self.buf.len() - FRAME_HEADER_LEN + large);
        let mut crc = crc32c::crc32c(&segment.0.to_le_bytes());
        for part in parts(&self.buf, &self.large, FRAME_HEADER_LEN) {
            crc = crc32c::crc32c_append(crc, part);
        }
        overwrite(&mut self.buf, 0, &len.to_le_bytes());
        overwrite(&mut self.buf, 4, &crc.to_le_bytes());
        parts(&self.buf, &self.large, 0).map(IoSlice::new).collect()
    }
}

/// `buf` from `start` on, with the large values where they belong.
fn parts<'a>(
    buf: &'a [u8],
    large: &'a [(usize, Bytes)],
    start: usize,
) -> impl Iterator<Item = &'a [u8]> {
    let mut from = start;
    let spliced = large.iter().flat_map(move |(at, value)| {
        let before = buf.get(from..*at).unwrap_or_default();
        from = *at;
        [before, &value[..]]
    });
    let last = large.last().map_or(start, |(at, _)| *at);
    spliced.chain(buf.get(last..)).filter(|part| !part.is_empty())
}

fn overwrite(buf: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = buf.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Lengths are checked against the limits of the engine, all far below 4 GiB, before they come here.
fn u32_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// What the eight bytes in front of a body say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl FrameHeader {
    /// `None` where the log ends: cut short, zeros, or a body too short to be one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let header = Self { len: reader.u32("").ok()?, crc: reader.u32("").ok()? };
        (usize_of(header.len.into()) >= BODY_HEADER_LEN).then_some(header)
    }

    pub(crate) fn body_len(self) -> usize {
        usize_of(self.len.into())
    }

    /// Whether `body` is what was written behind this header in `segment`.
    pub(crate) fn holds(self, segment: FileId, body: &[u8]) -> bool {
        let crc = crc32c::crc32c(&segment.0.to_le_bytes());
        body.len() == self.body_len() && checksum::holds(crc32c::crc32c_append(crc, body), self.crc)
    }
}

/// One commit group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Bytes of the segment known to be on disk when the frame was written.
    pub(crate) durable: u64,
    /// SeqNo of the first operation; the others follow without a gap.
    pub(crate) base_seq: SeqNo,
    pub(crate) ops: Vec<WriteOp>,
}

/// First fields of a body, to judge a possible frame without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BodyHeader {
    pub(crate) durable: u64,
    pub(crate) base_seq: SeqNo,
    pub(crate) count: u32,
}

impl BodyHeader {
    /// Decodes the front of a body; `None` if it is cut short.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        Some(Self {
            durable: reader.u64("").ok()?,
            base_seq: SeqNo(reader.u64("").ok()?),
            count: reader.u32("").ok()?,
        })
    }
}

impl Frame {
    /// Decodes a body whose checksum holds; keys and values are slices of it.
    pub(crate) fn decode(body: &Bytes) -> Result<Self, Damage> {
        let mut reader = Reader::new(body);
        let durable = reader.u64("durable bytes")?;
        let base_seq = SeqNo(reader.u64("sequence number")?);
        let count = reader.u32("number of operations")?;
        if base_seq.0 >= NUMBERS_END {
            return Err(Damage { offset: 8, expected: "a possible sequence number" });
        }
        // An operation takes two bytes at least: a count beyond that is a lie.
        let mut ops = Vec::with_capacity(usize_of(count.into()).min(body.len() / 2));
        for _ in 0..count {
            ops.push(decode_op(&mut reader, body)?);
        }
        reader.end("end of the frame")?;
        Ok(Self { durable, base_seq, ops })
    }
}

fn decode_op(reader: &mut Reader<'_>, body: &Bytes) -> Result<WriteOp, Damage> {
    let at = reader.offset();
    let kind = reader.u8("operation")?;
    let key = decode_bytes(reader, body, "key")?;
    let kind = match kind {
        0 => ValueKind::Put,
        1 => return Ok(WriteOp { key, kind: ValueKind::Delete, value: Bytes::new() }),
        2 => ValueKind::PutUntil(reader.u64("expiry")?),
        _ => return Err(Damage { offset: at, expected: "kind of an operation" }),
    };
    Ok(WriteOp { key, kind, value: decode_bytes(reader, body, "value")? })
}

fn decode_bytes(
    reader: &mut Reader<'_>,
    body: &Bytes,
    expected: &'static str,
) -> Result<Bytes, Damage> {
    let len = reader.vu32(expected)?;
    let bytes = reader.bytes(usize_of(len.into()), expected)?;
    Ok(if bytes.is_empty() { Bytes::new() } else { body.slice_ref(bytes) })
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::*;

    fn ops() -> Vec<WriteOp> {
        let op = |key: &'static str, kind, value: Bytes| WriteOp { key: key.into(), kind, value };
        vec![
            op("a", ValueKind::Put, "1".into()),
            op("", ValueKind::Delete, Bytes::new()),
            op("big", ValueKind::Put, vec![7; LARGE_VALUE].into()),
            op("t", ValueKind::PutUntil(99), "x".into()),
        ]
    }

    fn encoded(ops: &[WriteOp]) -> Vec<u8> {
        let mut encoder = FrameEncoder::default();
        encoder.begin();
        ops.iter().for_each(|op| encoder.push(op));
        encoder.finish(FileId(12), 40, SeqNo(7)).concat()
    }

    trait Concat {
        fn concat(self) -> Vec<u8>;
    }

    impl Concat for Vec<IoSlice<'_>> {
        fn concat(self) -> Vec<u8> {
            self.iter().flat_map(|part| part.to_vec()).collect()
        }
    }

    fn decode(bytes: &[u8]) -> Option<Frame> {
        let header = FrameHeader::decode(bytes)?;
        let body = bytes.get(FRAME_HEADER_LEN..)?.get(..header.body_len())?;
        header.holds(FileId(12), body).then_some(())?;
        Frame::decode(&Bytes::copy_from_slice(body)).ok()
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let frame = decode(&encoded(&ops())).unwrap();
        assert_eq!(frame, Frame { durable: 40, base_seq: SeqNo(7), ops: ops() });
    }

    #[test]
    fn nothing_large_is_kept_for_the_next_frame() {
        let mut encoder = FrameEncoder::default();
        for (value, count) in [(100, 10), (LARGE_VALUE - 1, 500), (LARGE_VALUE, 3)] {
            let value = Bytes::from(vec![7; value]);
            encoder.begin();
            for _ in 0..count {
                encoder.push(&WriteOp {
                    key: "k".into(),
                    kind: ValueKind::Put,
                    value: value.clone(),
                });
            }
            encoder.finish(FileId(12), 40, SeqNo(7));
            encoder.end();
            assert!(value.is_unique());
            assert!(encoder.buf.capacity() <= LARGEST_BUFFER);
        }
    }

    #[test]
    fn golden_header_and_frame() {
        let header = SegmentHeader {
            segment: FileId(12),
            previous: Previous { segment: FileId(9), end: 4096, durable: 512 },
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&header.encode()),
            "4e4f524957414c310c0000000000000009000000000000000010000000000000000200000000000001000000f7337eb1"
        );
        let frame = encoded(&[ops()[0].clone(), ops()[1].clone(), ops()[3].clone()]);
        assert_eq!(
            hex(&frame),
            "28000000e336998d28000000000000000700000000000000030000000001610131010002017463000000000000000178"
        );
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let small = [ops()[0].clone(), ops()[1].clone(), ops()[3].clone()];
        let whole = encoded(&small);
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), None, "cut at {cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), None, "bit {bit}");
        }
        let header = SegmentHeader { segment: FileId(12), previous: Previous::default() };
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = SegmentHeader::decode(&bytes, FileId(12));
            assert!(matches!(found, Err(Unreadable::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn garbage_with_a_good_checksum_is_damage_not_a_panic() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let mut body: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            if rng.bool() && body.len() > 20 {
                body[16..20].copy_from_slice(&rng.u32(..4).to_le_bytes());
            }
            let body = Bytes::from(body);
            if let Ok(frame) = Frame::decode(&body) {
                assert!(frame.ops.len() * 2 <= body.len());
            }
        }
    }

    #[test]
    fn numbers_that_no_counter_gets_to_are_damage() {
        for number in [12, 13, u64::MAX] {
            let previous = Previous { segment: FileId(number), ..Previous::default() };
            let header = SegmentHeader { segment: FileId(12), previous };
            let found = SegmentHeader::decode(&header.encode(), FileId(12));
            let Err(Unreadable::Damaged(damage)) = found else { unreachable!("{found:?}") };
            assert_eq!(damage.offset, 16, "a segment follows an earlier one");
        }
        let mut body = [0; BODY_HEADER_LEN];
        assert!(Frame::decode(&Bytes::copy_from_slice(&body)).is_ok());
        body[8..16].fill(0xff);
        assert_eq!(Frame::decode(&Bytes::copy_from_slice(&body)).unwrap_err().offset, 8);
    }

    #[test]
    fn a_frame_of_another_segment_does_not_pass() {
        let bytes = encoded(&ops());
        let header = FrameHeader::decode(&bytes).unwrap();
        assert!(!header.holds(FileId(13), &bytes[FRAME_HEADER_LEN..]));
    }
}
