//! The last 64 bytes of a table: where its top index and properties are, and that it is whole.
//!
//! ```text
//! footer := top_off u64 | props_off u64 | data_end u64 | file_id u64 | top_len u32 | props_len u32 | n_sections u32 | n_blocks u32
//!           | flags u32 | format_version u16 | checksum_kind u8 | filter_kind u8 | crc32c u32 | magic "NSST"
//! ```
//!
//! Format: docs/format.md#footer

use crate::error::Damage;
use crate::format::coding::Reader;
use crate::format::filter::BLOCKED_BLOOM;
use crate::format::{Unreadable, checksum};
use crate::types::{FileId, u64_of};

/// Bytes of a footer.
pub(crate) const FOOTER: usize = 64;

const MAGIC: [u8; 4] = *b"NSST";
const FORMAT_VERSION: u16 = 1;
const CRC32C: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Where the top index begins; the sections end here.
    pub(crate) top_off: u64,
    /// Where the properties begin; the top index ends here.
    pub(crate) props_off: u64,
    pub(crate) file: FileId,
    pub(crate) top_len: u32,
    /// The footer begins behind the properties.
    pub(crate) props_len: u32,
    pub(crate) n_sections: u32,
    /// Data blocks of all sections.
    pub(crate) n_blocks: u32,
    pub(crate) has_filters: bool,
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER);
        for word in [self.top_off, self.props_off, self.top_off, self.file.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.top_len, self.props_len, self.n_sections, self.n_blocks, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.push(CRC32C);
        out.push(if self.has_filters { BLOCKED_BLOOM } else { 0 });
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        out
    }

    /// Decodes the last bytes of a file of `file_bytes` and checks that the parts it names fill that file.
    pub(crate) fn decode(bytes: &[u8], file_bytes: u64) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(bytes);
        let signed = reader.bytes(FOOTER - 8, "table footer")?;
        let crc = reader.u32("table footer")?;
        if reader.array("table footer")? != MAGIC {
            return Err(Damage { offset: 60, expected: "table magic" }.into());
        }
        reader.end("table footer")?;
        if !checksum::holds(crc32c::crc32c(signed), crc) {
            return Err(Damage { offset: 0, expected: "footer that matches its checksum" }.into());
        }
        Self::decode_signed(&mut Reader::new(signed), file_bytes)
    }

    fn decode_signed(reader: &mut Reader<'_>, file_bytes: u64) -> Result<Self, Unreadable> {
        let what = "table footer";
        let (top_off, props_off) = (reader.u64(what)?, reader.u64(what)?);
        let (data_end, file) = (reader.u64(what)?, FileId(reader.u64(what)?));
        let (top_len, props_len) = (reader.u32(what)?, reader.u32(what)?);
        let (n_sections, n_blocks) = (reader.u32(what)?, reader.u32(what)?);
        let (flags, version) = (reader.u32(what)?, reader.u16(what)?);
        let (checksum_kind, filter_kind) = (reader.u8(what)?, reader.u8(what)?);
        if version != FORMAT_VERSION {
            return Err(Unreadable::Unsupported("format version of a table"));
        }
        if flags != 0 || checksum_kind != CRC32C || filter_kind > BLOCKED_BLOOM {
            return Err(Unreadable::Unsupported("flags, checksum kind or filter kind of a table"));
        }
        let end = top_off
            .checked_add(u64::from(top_len))
            .filter(|&end| end == props_off && data_end == top_off)
            .and_then(|end| end.checked_add(u64::from(props_len)))
            .and_then(|end| end.checked_add(u64_of(FOOTER)));
        if end != Some(file_bytes) {
            return Err(Damage { offset: 0, expected: "table parts that fill the file" }.into());
        }
        let has_filters = filter_kind == BLOCKED_BLOOM;
        Ok(Self { top_off, props_off, file, top_len, props_len, n_sections, n_blocks, has_filters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Footer = Footer {
        top_off: 300,
        props_off: 400,
        file: FileId(7),
        top_len: 100,
        props_len: 50,
        n_sections: 1,
        n_blocks: 2,
        has_filters: true,
    };

    #[test]
    fn a_footer_keeps_its_bytes() {
        let bytes = SAMPLE.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "2c0100000000000090010000000000002c010000000000000700000000000000640000003200000001000000\
             0200000000000000010001019f34690f4e535354"
        );
        assert_eq!(Footer::decode(&bytes, 514), Ok(SAMPLE));
    }

    #[test]
    fn a_footer_fits_one_file_only() {
        let bytes = SAMPLE.encode();
        assert!(matches!(Footer::decode(&bytes, 513), Err(Unreadable::Damaged(_))));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Footer::decode(&flipped, 514), Err(Unreadable::Damaged(_))));
        }
        for len in 0..bytes.len() {
            assert!(Footer::decode(&bytes[..len], 514).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_unsupported_not_damaged() {
        let mut bytes = SAMPLE.encode();
        bytes[52] = 2;
        let crc = crc32c::crc32c(&bytes[..56]).to_le_bytes();
        bytes[56..60].copy_from_slice(&crc);
        assert!(matches!(Footer::decode(&bytes, 514), Err(Unreadable::Unsupported(_))));
    }
}
