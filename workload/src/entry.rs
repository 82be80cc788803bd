//! Keys and values that tell whose they are.
//!
//! ```text
//! key    "key" · number, 13 digits · 0 to 8 letters that follow from the number       16 to 24 bytes, ordered by number
//! value  number u64 · version u64 · noise that follows from both, half of it · zeros
//! ```

use bytes::{Bytes, BytesMut};

/// Bytes of a value that say whose it is: number of the key, and version. No value is shorter.
pub const HEADER: usize = 16;

/// Letters in front of the digits.
const PREFIX: &[u8; 3] = b"key";
/// Digits of a number.
const DIGITS: usize = 13;
/// An odd number near 2^64 divided by the golden ratio: neighbours end up far apart.
pub(crate) const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key with that number, which is below 10^13.
#[must_use]
pub fn key(number: u64) -> Bytes {
    let letters = number.wrapping_mul(SCATTER).to_be_bytes().map(|byte| b'a' + byte % 26);
    let count = usize::from(letters[0] - b'a') % 9;
    spelled(number, &letters[..count])
}

/// A key that lies behind the key with that number and that no workload ever writes.
#[must_use]
pub fn absent(number: u64) -> Bytes {
    spelled(number, b"~")
}

fn spelled(mut number: u64, letters: &[u8]) -> Bytes {
    let mut text = [0; PREFIX.len() + DIGITS + 8];
    let (prefix, rest) = text.split_at_mut(PREFIX.len());
    let (digits, end) = rest.split_at_mut(DIGITS);
    prefix.copy_from_slice(PREFIX);
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
    end[..letters.len()].copy_from_slice(letters);
    Bytes::copy_from_slice(&text[..PREFIX.len() + DIGITS + letters.len()])
}

/// The number of a key; `None` if it is none of ours.
#[must_use]
pub fn number(key: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(PREFIX)?.get(..DIGITS)?;
    digits.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
    })
}

/// A value that belongs to a key: one half is noise that follows from its header, the other compresses to nothing.
///
/// `size`: bytes, at least [`HEADER`].
#[must_use]
pub fn value(number: u64, version: u64, size: usize) -> Bytes {
    let mut value = BytesMut::zeroed(size);
    let (head, body) = value.split_at_mut(HEADER);
    head[..8].copy_from_slice(&number.to_le_bytes());
    head[8..].copy_from_slice(&version.to_le_bytes());
    let (noisy, _) = body.split_at_mut(noise(size));
    let mut random = random(number, version);
    for chunk in noisy.chunks_mut(8) {
        chunk.copy_from_slice(&random.u64(..).to_le_bytes()[..chunk.len()]);
    }
    value.freeze()
}

/// Whether `value` is one that was written for the key with that number, to the last byte.
#[must_use]
pub fn belongs(value: &[u8], number: u64, size: usize) -> bool {
    let Some(version) = version(value, number, size) else { return false };
    let (noisy, zeros) = value[HEADER..].split_at(noise(size));
    let mut random = random(number, version);
    noisy.chunks(8).all(|chunk| chunk == &random.u64(..).to_le_bytes()[..chunk.len()])
        && zeros.iter().all(|&byte| byte == 0)
}

/// The version of a value that claims to belong to the key with that number; `None` if it does not, or is of another size.
#[must_use]
pub fn version(value: &[u8], number: u64, size: usize) -> Option<u64> {
    let (owner, rest) = value.split_first_chunk::<8>()?;
    let (version, _) = rest.split_first_chunk::<8>()?;
    let ours = u64::from_le_bytes(*owner) == number && value.len() == size;
    ours.then_some(u64::from_le_bytes(*version))
}

fn noise(size: usize) -> usize {
    (size / 2).min(size - HEADER)
}

fn random(number: u64, version: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(number.rotate_left(32) ^ version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_by_their_numbers_and_tell_them() {
        let keys: Vec<_> = (0..2000).map(key).collect();
        assert!(keys.is_sorted() && keys.iter().all(|key| (16..=24).contains(&key.len())));
        assert!(keys.iter().any(|key| key.len() == 16) && keys.iter().any(|key| key.len() == 24));
        for (at, key) in (0..).zip(&keys) {
            assert_eq!(number(key), Some(at));
            assert!(*key < absent(at) && absent(at) < super::key(at + 1));
        }
        assert_eq!(number(b"key12"), None);
        assert_eq!(number(b"keyx000000000000"), None);
    }

    #[test]
    fn a_value_belongs_to_its_key_alone() {
        for size in [16, 17, 40, 400] {
            let value = value(7, 3, size);
            assert!(belongs(&value, 7, size) && !belongs(&value, 8, size));
            assert!(!belongs(&value[1..], 7, size));
            assert_eq!(version(&value, 7, size), Some(3));
        }
        for at in [60, 99] {
            let mut damaged = value(7, 3, 100).to_vec();
            damaged[at] ^= 1;
            assert!(!belongs(&damaged, 7, 100));
        }
    }
}
