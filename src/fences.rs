//! Sorted keys that every read searches: where slots, slices and sections begin and end.
//!
//! 1. What all of them have in common is compared once.
//! 2. The eight bytes behind it, as numbers side by side, are searched without looking at a key.
//! 3. Only keys whose eight bytes are those that are sought are compared in full.
//!
//! Keys that are empty come first, and would leave the others nothing in common: they are just counted.

use bytes::Bytes;

use crate::format::coding::{common_prefix, head_of};

/// Sorted keys; some may be equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fences {
    /// How many of them are empty.
    empty: usize,
    /// What the others have in common.
    prefix: Bytes,
    /// [`head_of`] what is behind the prefix in each of them.
    heads: Box<[u64]>,
    keys: Box<[Bytes]>,
}

impl FromIterator<Bytes> for Fences {
    /// REQUIRES: `keys` are sorted; else searches give any number up to how many they are.
    fn from_iter<I: IntoIterator<Item = Bytes>>(keys: I) -> Self {
        let mut keys = keys.into_iter().peekable();
        let mut empty = 0;
        while keys.next_if(Bytes::is_empty).is_some() {
            empty += 1;
        }
        let keys: Box<[Bytes]> = keys.collect();
        let ends = keys.first().zip(keys.last());
        let prefix = ends.map(|(first, last)| first.slice(..common_prefix(first, last)));
        let prefix = prefix.unwrap_or_default();
        let rest = |key: &Bytes| head_of(key.get(prefix.len()..).unwrap_or_default());
        Self { empty, heads: keys.iter().map(rest).collect(), prefix, keys }
    }
}

impl Fences {
    /// How many are less than `key`.
    #[inline]
    pub(crate) fn before(&self, key: &[u8]) -> usize {
        if key.is_empty() {
            return 0;
        }
        self.count(key, |fence| fence < key)
    }

    /// How many are at most `key`.
    #[inline]
    pub(crate) fn up_to(&self, key: &[u8]) -> usize {
        self.count(key, |fence| fence <= key)
    }

    /// How many are empty, or less than `key`, or `counts` among those that may be equal to it.
    #[inline]
    fn count(&self, key: &[u8], counts: impl Fn(&[u8]) -> bool) -> usize {
        let Some(rest) = key.strip_prefix(&self.prefix[..]) else {
            let all_before = *key > self.prefix[..];
            return self.empty + if all_before { self.keys.len() } else { 0 };
        };
        let head = head_of(rest);
        let less = self.heads.partition_point(|other| *other < head);
        if self.heads.get(less) != Some(&head) {
            return self.empty + less;
        }
        self.empty + less + self.tied(less, head, counts)
    }

    /// How many of the keys from `first` on have that head and are counted.
    #[cold]
    fn tied(&self, first: usize, head: u64, counts: impl Fn(&[u8]) -> bool) -> usize {
        let heads = self.heads.get(first..).unwrap_or_default();
        let ties = heads.partition_point(|other| *other == head);
        let keys = self.keys.get(first..first + ties).unwrap_or_default();
        keys.partition_point(|key| counts(key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few bytes and lengths, so that keys are empty, equal, prefixes of each other, and tie in their heads.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let byte = || prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xfe), Just(0xff)];
        prop_oneof![
            1 => Just(Vec::new()),
            4 => proptest::collection::vec(byte(), 0..4),
            4 => proptest::collection::vec(byte(), 0..12),
            2 => proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff)], 7..10),
            2 => any::<Vec<u8>>(),
        ]
    }

    proptest! {
        #[test]
        fn it_counts_what_a_search_among_the_keys_counts(
            shared in prop_oneof![Just(Vec::new()), key(), Just(b"user:0000000".to_vec())],
            tails in proptest::collection::vec(key(), 0..40),
            others in proptest::collection::vec(key(), 0..20),
            with_empty in 0..3usize,
        ) {
            let behind = |tail: &Vec<u8>| [&shared[..], tail].concat();
            let mut keys: Vec<Vec<u8>> = tails.iter().map(behind).collect();
            keys.extend(std::iter::repeat_n(Vec::new(), with_empty));
            keys.sort();
            let fences: Fences = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
            let mut sought: Vec<Vec<u8>> = others.iter().map(behind).chain(others.clone()).collect();
            for key in &keys {
                sought.push(key.clone());
                sought.push([&key[..], &[0]].concat());
                sought.push([&key[..], &[0xff]].concat());
                sought.extend(key.split_last().map(|(_, front)| front.to_vec()));
            }
            for key in sought {
                prop_assert_eq!(fences.before(&key), keys.partition_point(|other| *other < key));
                prop_assert_eq!(fences.up_to(&key), keys.partition_point(|other| *other <= key));
            }
        }
    }

    #[test]
    fn what_is_not_sorted_is_searched_all_the_same() {
        let fences: Fences = ["b", "", "a", "c", "b"].into_iter().map(Bytes::from).collect();
        for key in ["", "a", "b", "bb", "c", "d"] {
            assert!(fences.before(key.as_bytes()) <= 5 && fences.up_to(key.as_bytes()) <= 5);
        }
    }
}
