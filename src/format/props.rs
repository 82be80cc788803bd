//! Facts about a table that no read needs, as tags: a reader skips those it does not know.
//!
//! ```text
//! props := (tag vu32 | len vu32 | value)*
//! ```
//!
//! Format: docs/format.md#properties

use crate::config::Compression;
use crate::error::Damage;
use crate::format::coding::{Reader, put_sized, put_vu32};
use crate::format::compress;
use crate::types::{FileId, Level};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Props {
    pub(crate) creator: String,
    pub(crate) file: FileId,
    pub(crate) level: Level,
    pub(crate) raw_key_bytes: u64,
    pub(crate) raw_value_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    /// Wall clock at creation, in seconds since the Unix epoch.
    pub(crate) created_s: u64,
    /// Codec that was asked for; each block says which one it has.
    pub(crate) codec: Compression,
    pub(crate) block_size: u32,
    pub(crate) restart_interval: u32,
    pub(crate) bloom_bits_per_key: u32,
}

impl Props {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |tag: u32, value: &[u8]| {
            put_vu32(&mut out, tag);
            put_sized(&mut out, value);
        };
        put(1, self.creator.as_bytes());
        put(2, &self.file.0.to_le_bytes());
        put(3, &[self.level.0]);
        put(4, &self.raw_key_bytes.to_le_bytes());
        put(5, &self.raw_value_bytes.to_le_bytes());
        put(6, &self.entries.to_le_bytes());
        put(7, &self.tombstones.to_le_bytes());
        put(8, &self.created_s.to_le_bytes());
        put(9, &[compress::code_of(self.codec)]);
        put(10, &self.block_size.to_le_bytes());
        put(11, &self.restart_interval.to_le_bytes());
        put(12, &self.bloom_bits_per_key.to_le_bytes());
        out
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Damage> {
        let mut props = Self {
            creator: String::new(),
            file: FileId(0),
            level: Level::L0,
            raw_key_bytes: 0,
            raw_value_bytes: 0,
            entries: 0,
            tombstones: 0,
            created_s: 0,
            codec: Compression::None,
            block_size: 0,
            restart_interval: 0,
            bloom_bits_per_key: 0,
        };
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let at = reader.damage("table property");
            let tag = reader.vu32(at.expected)?;
            let value = reader.sized(at.expected)?;
            props.set(tag, value).map_err(|_in_value| at)?;
        }
        Ok(props)
    }

    fn set(&mut self, tag: u32, value: &[u8]) -> Result<(), Damage> {
        let mut reader = Reader::new(value);
        let what = "table property";
        match tag {
            1 => {
                let name = std::str::from_utf8(value).ok().ok_or(reader.damage(what))?;
                name.clone_into(&mut self.creator);
                return Ok(());
            }
            2 => self.file = FileId(reader.u64(what)?),
            3 => self.level = Level(reader.u8(what)?),
            4 => self.raw_key_bytes = reader.u64(what)?,
            5 => self.raw_value_bytes = reader.u64(what)?,
            6 => self.entries = reader.u64(what)?,
            7 => self.tombstones = reader.u64(what)?,
            8 => self.created_s = reader.u64(what)?,
            9 => self.codec = compress::codec_of(reader.u8(what)?).ok_or(reader.damage(what))?,
            10 => self.block_size = reader.u32(what)?,
            11 => self.restart_interval = reader.u32(what)?,
            12 => self.bloom_bits_per_key = reader.u32(what)?,
            _ => return Ok(()),
        }
        reader.end(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Props {
        Props {
            creator: "nori-lsm".into(),
            file: FileId(7),
            level: Level(2),
            raw_key_bytes: 10,
            raw_value_bytes: 20,
            entries: 3,
            tombstones: 1,
            created_s: 1_700_000_000,
            codec: Compression::Zstd,
            block_size: 4096,
            restart_interval: 16,
            bloom_bits_per_key: 10,
        }
    }

    #[test]
    fn properties_come_back_and_unknown_ones_are_skipped() {
        let mut bytes = sample().encode();
        put_vu32(&mut bytes, 1000);
        put_sized(&mut bytes, b"from the future");
        assert_eq!(Props::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn a_property_cut_short_is_damage() {
        let bytes = sample().encode();
        assert!(Props::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(Props::decode(&[2, 1, 0]).is_err(), "a file id of one byte");
    }
}
