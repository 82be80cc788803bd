//! The manifest: a header, then one framed record per atomic edit; the first is a whole snapshot.
//!
//! ```text
//! file   := header(24) record*
//! header := magic "NORIMAN1" | manifest id u64 | format u32 | crc32c u32 (of the 20 bytes before)
//! record := len u32 | crc32c u32 (of manifest id ‖ body) | body[len]
//! ```
//!
//! Format: docs/format.md#manifest

use super::{checksum, codec};
use crate::error::Damage;
use crate::types::{FileId, u64_of};
use crate::version::VersionEdit;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 24;
/// The format that this build writes, and the only one that it reads.
pub(crate) const FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"NORIMAN1";
/// Bytes of an encoded edit without operations: shorter bodies, zeros among them, are no records.
const MIN_BODY: u32 = 32;

/// What the header of a manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: FileId,
    pub(crate) format: u32,
}

/// Encodes the header of manifest `id`.
pub(crate) fn encode_header(id: FileId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let fields = MAGIC.into_iter().chain(id.0.to_le_bytes()).chain(FORMAT.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    let crc = bytes.first_chunk::<20>().map_or(0, |covered| crc32c::crc32c(covered));
    bytes.iter_mut().skip(20).zip(crc.to_le_bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// Decodes the header at the start of a manifest.
///
/// # Errors
/// It is cut short or damaged. A format that this build does not know is not damage.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<Header, Damage> {
    let expected = "a manifest header";
    let decode = || {
        let (covered, rest) = bytes.split_first_chunk::<20>()?;
        let (crc, _) = rest.split_first_chunk::<4>()?;
        let (magic, fields) = covered.split_first_chunk::<8>()?;
        let (id, format) = fields.split_first_chunk::<8>()?;
        let crc = u32::from_le_bytes(*crc);
        let fine = *magic == MAGIC && checksum::holds(crc32c::crc32c(covered), crc);
        let format = u32::from_le_bytes(*format.first_chunk()?);
        fine.then_some(Header { id: FileId(u64::from_le_bytes(*id)), format })
    };
    decode().ok_or(Damage { offset: 0, expected })
}

/// Encodes the record of an edit for manifest `id`.
///
/// # Errors
/// The edit is larger than a record may be.
pub(crate) fn encode_record(id: FileId, edit: &VersionEdit) -> Result<Vec<u8>, Damage> {
    let body = codec::encode_edit(edit)?;
    let large = |_| Damage { offset: 0, expected: "an edit within the size limit" };
    let len = u32::try_from(body.len()).map_err(large)?;
    let mut bytes = Vec::with_capacity(body.len() + 8);
    bytes.extend(len.to_le_bytes());
    bytes.extend(crc_of(id, &body).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn crc_of(id: FileId, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.0.to_le_bytes()), body)
}

/// The edits of a manifest, in order; stops at the torn tail, or with the damage.
///
/// A record that does not hold is the torn tail of a crash if no record behind it holds; else bytes that had been
/// synced were damaged later. The first record was synced before the file got its name: it is never a torn tail.
#[derive(Clone, Debug)]
pub(crate) struct Edits<'a> {
    id: FileId,
    /// Everything behind the header.
    bytes: &'a [u8],
    /// Bytes of the records that were read.
    at: usize,
    edits: u64,
    done: bool,
}

impl<'a> Edits<'a> {
    /// Reads the records of manifest `id` from the bytes of the whole file.
    pub(crate) fn new(id: FileId, file: &'a [u8]) -> Self {
        let bytes = file.get(HEADER_BYTES..).unwrap_or_default();
        Self { id, bytes, at: 0, edits: 0, done: false }
    }

    /// Bytes behind the last record that holds. Meaningful after the last item.
    pub(crate) fn torn_bytes(&self) -> u64 {
        u64_of(self.bytes.len().saturating_sub(self.at))
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn damage(&self) -> Damage {
        Damage { offset: u64_of(HEADER_BYTES + self.at), expected: "a manifest record" }
    }

    /// Whether a record that holds begins anywhere behind the start of `rest`.
    fn goes_on(&self, rest: &[u8]) -> bool {
        (1..rest.len()).any(|skip| rest.get(skip..).and_then(|b| record(self.id, b)).is_some())
    }
}

impl Iterator for Edits<'_> {
    type Item = Result<VersionEdit, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest();
        if self.done || (rest.is_empty() && self.edits > 0) {
            return None;
        }
        if let Some((edit, len)) = record(self.id, rest) {
            self.at += len;
            self.edits += 1;
            return Some(Ok(edit));
        }
        self.done = true;
        (self.edits == 0 || self.goes_on(rest)).then(|| Err(self.damage()))
    }
}

/// The record at the start of `bytes` and its length, if it holds.
fn record(id: FileId, bytes: &[u8]) -> Option<(VersionEdit, usize)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len);
    if !(MIN_BODY..=codec::MAX_EDIT_BYTES).contains(&len) {
        return None;
    }
    let len = usize::try_from(len).ok()?;
    let body = rest.get(..len)?;
    if !checksum::holds(crc_of(id, body), u32::from_le_bytes(*crc)) {
        return None;
    }
    Some((codec::decode_edit(body).ok()?, len + 8))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Level, SeqNo};
    use crate::version::EditOp;

    const ID: FileId = FileId(7);

    fn edits() -> Vec<VersionEdit> {
        let guard = |key: &'static str| EditOp::AddGuard { level: Level(1), key: Bytes::from(key) };
        let edit = |n: u64, ops| VersionEdit {
            ops,
            next_file: FileId(n),
            last_seq: SeqNo(n * 10),
            log_floor: FileId(1),
        };
        vec![edit(8, vec![]), edit(9, vec![guard("m")]), edit(10, vec![guard("d"), guard("t")])]
    }

    fn file() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = encode_header(ID).to_vec();
        let mut ends = Vec::new();
        for edit in edits() {
            bytes.extend(encode_record(ID, &edit).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn read(bytes: &[u8]) -> Result<Vec<VersionEdit>, Damage> {
        let header = decode_header(bytes)?;
        assert_eq!(header, Header { id: ID, format: FORMAT });
        Edits::new(header.id, bytes).collect()
    }

    #[test]
    fn the_bytes_of_header_and_record_are_fixed() {
        let header = encode_header(ID);
        assert_eq!(header[..20], *b"NORIMAN1\x07\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(header[20..], [0xba, 0xaf, 0xc5, 0x3e]);
        let record = encode_record(ID, &edits()[0]).unwrap();
        assert_eq!(record[..4], [32, 0, 0, 0]);
        assert_eq!(record[4..8], [0xcf, 0x7f, 0x66, 0x84]);
        let mut body = vec![0; 32];
        (body[8], body[16], body[24]) = (8, 80, 1);
        assert_eq!(record[8..], body);
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, _) = file();
        assert_eq!(read(&bytes).unwrap(), edits());
    }

    #[test]
    fn a_file_cut_anywhere_is_a_prefix_of_its_edits() {
        let (bytes, ends) = file();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            match read(&bytes[..cut]) {
                Ok(found) => assert_eq!(found, edits()[..whole], "cut at {cut}"),
                Err(_) => assert_eq!(whole, 0, "only a lost snapshot is damage: cut at {cut}"),
            }
            let zeros = [&bytes[..cut], &[0; 100]].concat();
            if whole > 0 {
                let found = read(&zeros).unwrap();
                let same = edits().starts_with(&found) && found.len() >= whole;
                assert!(same, "cut at {cut}, then zeros, which may be those that were cut off");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_or_a_lost_tail_and_never_another_edit() {
        let (bytes, ends) = file();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                match read(&bytes) {
                    Ok(found) => {
                        assert_eq!(found, edits()[..2], "bit {bit} of byte {at}");
                        assert!(at >= ends[1], "byte {at} lies before a record that holds");
                    }
                    Err(damage) => {
                        assert!(at < ends[1], "byte {at} lies in the last record");
                        assert!(damage.offset <= u64_of(at));
                    }
                }
            }
        }
    }

    #[test]
    fn a_record_of_another_manifest_does_not_pass() {
        let (mut bytes, ends) = file();
        bytes.truncate(ends[0]);
        bytes.extend(encode_record(FileId(6), &edits()[1]).unwrap());
        let mut found = Edits::new(ID, &bytes);
        assert_eq!(found.by_ref().count(), 1);
        assert_eq!(found.torn_bytes(), u64_of(bytes.len() - ends[0]));
    }
}
