//! Cold records as bytes: the only place that knows the serializer behind them.
//!
//! Fixed-width integers, little endian, nothing left over. Format: docs/format.md#manifest

use bincode::Options;

use crate::error::Damage;
use crate::version::VersionEdit;

/// Largest encoded edit. A snapshot of a million tables of one section each fits.
pub(crate) const MAX_EDIT_BYTES: u32 = 256 << 20;

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(u64::from(MAX_EDIT_BYTES))
        .reject_trailing_bytes()
}

/// Encodes an edit.
///
/// # Errors
/// The edit is larger than [`MAX_EDIT_BYTES`].
pub(crate) fn encode_edit(edit: &VersionEdit) -> Result<Vec<u8>, Damage> {
    let large = |_| Damage { offset: 0, expected: "an edit within the size limit" };
    options().serialize(edit).map_err(large)
}

/// Decodes an edit from all of `bytes`.
///
/// # Errors
/// The bytes are not those of an edit.
pub(crate) fn decode_edit(bytes: &[u8]) -> Result<VersionEdit, Damage> {
    options().deserialize(bytes).map_err(|_reason| Damage { offset: 0, expected: "a version edit" })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{FileId, Level, SeqNo};
    use crate::version::EditOp;

    fn edit() -> VersionEdit {
        VersionEdit {
            ops: vec![
                EditOp::AddGuard { level: Level(1), key: Bytes::from_static(b"m") },
                EditOp::SetK { level: Level(1), slot: Bytes::new(), k: 3 },
            ],
            next_file: FileId(9),
            last_seq: SeqNo(7),
            log_floor: FileId(2),
        }
    }

    #[test]
    fn the_bytes_of_an_edit_are_fixed() {
        let mut golden = vec![2, 0, 0, 0, 0, 0, 0, 0]; // two operations
        golden.extend([3, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, b'm']); // variant, level, length, key
        golden.extend([5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        golden.extend([9, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode_edit(&edit()).unwrap(), golden);
        assert_eq!(decode_edit(&golden).unwrap(), edit());
    }

    #[test]
    fn bytes_too_few_or_too_many_are_no_edit() {
        let bytes = encode_edit(&edit()).unwrap();
        for cut in 0..bytes.len() {
            assert!(decode_edit(&bytes[..cut]).is_err(), "{cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode_edit(&longer).is_err());
    }

    #[test]
    fn a_length_from_disk_allocates_nothing_by_itself() {
        let mut bytes = encode_edit(&edit()).unwrap();
        for at in 0..8 {
            bytes[at] = 0xff;
            assert!(decode_edit(&bytes).is_err());
        }
    }
}
