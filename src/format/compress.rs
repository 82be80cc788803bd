//! Codecs of blocks: none, LZ4 and Zstandard, the latter two behind cargo features. Every build reads LZ4.
//!
//! Format: docs/format.md#block-frame

use crate::config::Compression;
use crate::error::Damage;
use crate::format::{Unreadable, lz4};

/// Zstandard level: the library's default, a good ratio at a usable speed.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;

/// Number of a codec in a block trailer.
pub(crate) const fn code_of(codec: Compression) -> u8 {
    match codec {
        Compression::None => 0,
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}

/// Codec with that number.
pub(crate) const fn codec_of(code: u8) -> Option<Compression> {
    match code {
        0 => Some(Compression::None),
        1 => Some(Compression::Lz4),
        2 => Some(Compression::Zstd),
        _ => None,
    }
}

/// Compresses blocks one after the other, reusing its memory.
pub(crate) struct Compressor {
    codec: Compression,
    buffer: Vec<u8>,
    #[cfg(feature = "lz4")]
    lz4: lz4_flex::block::CompressTable,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    pub(crate) fn new(codec: Compression) -> Self {
        Self {
            codec,
            buffer: Vec::new(),
            #[cfg(feature = "lz4")]
            lz4: lz4_flex::block::CompressTable::default(),
            #[cfg(feature = "zstd")]
            zstd: (codec == Compression::Zstd)
                .then(|| zstd::bulk::Compressor::new(ZSTD_LEVEL).ok())
                .flatten(),
        }
    }

    /// Bytes of the buffer that compressed blocks are made in.
    pub(crate) fn memory(&self) -> usize {
        self.buffer.capacity()
    }

    /// The smaller form of `raw` and its codec; `raw` itself unless that saves a sixteenth.
    pub(crate) fn compress<'a>(&'a mut self, raw: &'a [u8]) -> (Compression, &'a [u8]) {
        let len = match self.codec {
            Compression::None => None,
            Compression::Lz4 => self.lz4(raw),
            Compression::Zstd => self.zstd(raw),
        };
        let enough = raw.len() - raw.len() / 16;
        match len.filter(|&len| len < enough).and_then(|len| self.buffer.get(..len)) {
            Some(smaller) => (self.codec, smaller),
            None => (Compression::None, raw),
        }
    }

    #[cfg(feature = "lz4")]
    fn lz4(&mut self, raw: &[u8]) -> Option<usize> {
        use lz4_flex::block;
        self.make_room(block::get_maximum_output_size(raw.len()));
        block::compress_into_with_table(raw, &mut self.buffer, &mut self.lz4).ok()
    }

    #[cfg(not(feature = "lz4"))]
    fn lz4(&mut self, _: &[u8]) -> Option<usize> {
        None
    }

    #[cfg(feature = "zstd")]
    fn zstd(&mut self, raw: &[u8]) -> Option<usize> {
        self.make_room(raw.len());
        let zstd = self.zstd.as_mut()?;
        zstd.compress_to_buffer(raw, &mut self.buffer[..]).ok() // fails where it would not shrink
    }

    #[cfg(not(feature = "zstd"))]
    fn zstd(&mut self, _: &[u8]) -> Option<usize> {
        None
    }

    #[cfg(any(feature = "lz4", feature = "zstd"))]
    fn make_room(&mut self, len: usize) {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
    }
}

/// Undoes `codec`. REQUIRES: `raw_len` was checked against the largest block.
pub(crate) fn decompress(
    codec: Compression,
    packed: &[u8],
    raw_len: usize,
) -> Result<Vec<u8>, Unreadable> {
    let mut raw = vec![0; raw_len];
    let written = match codec {
        Compression::None => (packed.len() == raw_len).then(|| {
            raw.copy_from_slice(packed);
            raw_len
        }),
        Compression::Lz4 => lz4::decompress(packed, &mut raw),
        Compression::Zstd => unpack_zstd(packed, &mut raw)?,
    };
    if written == Some(raw_len) {
        return Ok(raw);
    }
    Err(Damage { offset: 0, expected: "compressed block" }.into())
}

#[cfg(feature = "zstd")]
fn unpack_zstd(packed: &[u8], raw: &mut [u8]) -> Result<Option<usize>, Unreadable> {
    use std::cell::RefCell;
    use zstd::bulk::Decompressor;
    // A context is some 150 KB to set up, so each thread keeps one.
    thread_local!(static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) });
    Ok(CONTEXT.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = Decompressor::new().ok();
        }
        kept.as_mut()?.decompress_to_buffer(packed, raw).ok()
    }))
}

#[cfg(not(feature = "zstd"))]
fn unpack_zstd(_: &[u8], _: &mut [u8]) -> Result<Option<usize>, Unreadable> {
    Err(Unreadable::Unsupported("Zstandard blocks: this build lacks the feature zstd"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    #[test]
    fn what_does_not_shrink_by_a_sixteenth_is_kept_raw() {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4096).collect();
        for codec in CODECS {
            assert_eq!(Compressor::new(codec).compress(&noise).0, Compression::None);
        }
    }

    #[test]
    fn a_codec_keeps_its_number() {
        assert_eq!(CODECS.map(code_of), [0, 1, 2]);
        assert_eq!(CODECS.map(|codec| codec_of(code_of(codec))), CODECS.map(Some));
        assert_eq!(codec_of(3), None);
    }

    proptest! {
        #[test]
        fn blocks_come_back(word: Vec<u8>, times in 0usize..500, pick in 0usize..3) {
            let raw = word.repeat(times);
            let mut compressor = Compressor::new(CODECS[pick]);
            for _ in 0..2 {
                let (codec, packed) = compressor.compress(&raw);
                prop_assert_eq!(&decompress(codec, packed, raw.len()), &Ok(raw.clone()));
            }
        }

        #[test]
        fn no_bytes_make_a_codec_panic(packed: Vec<u8>, raw_len in 0usize..10_000) {
            for codec in CODECS {
                if let Ok(raw) = decompress(codec, &packed, raw_len) {
                    prop_assert_eq!(raw.len(), raw_len);
                }
            }
        }
    }
}
