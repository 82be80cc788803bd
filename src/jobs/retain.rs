//! Which versions of a key are still needed: the one rule by which flushes and compactions drop data.
//!
//! Live snapshots cut the SeqNos into strata; of each key, readers can tell at most one version a stratum: the newest.
//! A tombstone, or a value that has expired, goes too once nothing older of its key is left anywhere.

use crate::cursor::EntryRef;
use crate::types::{SeqNo, ValueKind};
use crate::version::BaseCheck;

/// What becomes of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays, as this kind: a value that has expired stays as a tombstone.
    Keep(ValueKind),
    /// No reader can tell that it is gone.
    Drop,
}

/// Judges versions in the order of a forward cursor.
#[derive(Debug)]
pub(crate) struct Retain {
    /// Live snapshots, ascending.
    snapshots: Vec<SeqNo>,
    now_ms: u64,
    /// Knows what lies below; `None`: something older may always be there.
    base: Option<BaseCheck>,
    key: Vec<u8>,
    /// Stratum of the last version of `key`; `None` before the first.
    stratum: Option<usize>,
}

impl Retain {
    /// `snapshots`: every live snapshot, in any order, read before the inputs were chosen or later.
    pub(crate) fn new(mut snapshots: Vec<SeqNo>, now_ms: u64, base: Option<BaseCheck>) -> Self {
        snapshots.sort_unstable();
        snapshots.dedup();
        Self { snapshots, now_ms, base, key: Vec::new(), stratum: None }
    }

    pub(crate) fn judge(&mut self, entry: EntryRef<'_>) -> Fate {
        let stratum = self.snapshots.partition_point(|snapshot| *snapshot < entry.seq);
        if self.stratum.is_some() && self.key == entry.key {
            if self.stratum == Some(stratum) {
                return Fate::Drop;
            }
        } else {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
        }
        self.stratum = Some(stratum);
        if entry.kind.is_live(self.now_ms) {
            return Fate::Keep(entry.kind);
        }
        let bottom =
            stratum == 0 && self.base.as_mut().is_some_and(|base| !base.may_hold_older(entry.key));
        if bottom { Fate::Drop } else { Fate::Keep(ValueKind::Delete) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Level, SlotId};
    use crate::version::Version;

    fn bottom() -> Option<BaseCheck> {
        let slot = SlotId { level: Level(1), start: bytes::Bytes::new() };
        Some(BaseCheck::new(&Version::empty(3), &slot, &[]))
    }

    /// What is kept of versions of one key, newest first.
    fn kept(snapshots: &[u64], base: Option<BaseCheck>, versions: &[(u64, ValueKind)]) -> Vec<u64> {
        let snapshots = snapshots.iter().map(|seq| SeqNo(*seq)).collect();
        let mut retain = Retain::new(snapshots, 100, base);
        let judged = versions.iter().filter(|(seq, kind)| {
            let entry = EntryRef { key: b"k", seq: SeqNo(*seq), kind: *kind };
            retain.judge(entry) != Fate::Drop
        });
        judged.map(|(seq, _)| *seq).collect()
    }

    const P: ValueKind = ValueKind::Put;
    const D: ValueKind = ValueKind::Delete;

    #[test]
    fn without_snapshots_only_the_newest_version_stays() {
        assert_eq!(kept(&[], None, &[(9, P), (5, P), (1, D)]), [9]);
    }

    #[test]
    fn each_snapshot_keeps_the_version_that_it_sees() {
        assert_eq!(kept(&[5, 7], None, &[(9, P), (7, P), (6, P), (4, P), (1, P)]), [9, 7, 4]);
        assert_eq!(kept(&[3], None, &[(2, P), (1, P)]), [2]);
    }

    #[test]
    fn a_tombstone_goes_only_at_the_bottom_and_below_every_snapshot() {
        assert!(kept(&[], bottom(), &[(9, D), (5, P)]).is_empty());
        assert_eq!(kept(&[], None, &[(9, D), (5, P)]), [9]);
        assert_eq!(kept(&[5], bottom(), &[(9, D), (5, P)]), [9, 5], "the snapshot still sees 5");
        assert_eq!(kept(&[5], bottom(), &[(9, P), (4, D), (3, P)]), [9]);
    }

    #[test]
    fn an_expired_value_is_a_tombstone() {
        let expired = ValueKind::PutUntil(100);
        let mut retain = Retain::new(Vec::new(), 100, None);
        let entry = EntryRef { key: b"k", seq: SeqNo(3), kind: expired };
        assert_eq!(retain.judge(entry), Fate::Keep(D));
        assert!(kept(&[], bottom(), &[(9, expired), (5, P)]).is_empty(), "and so is what it hides");
        assert_eq!(kept(&[], bottom(), &[(9, ValueKind::PutUntil(101))]), [9]);
    }

    #[test]
    fn the_empty_key_is_a_key() {
        let mut retain = Retain::new(Vec::new(), 0, None);
        let entry = |seq| EntryRef { key: b"", seq: SeqNo(seq), kind: P };
        assert_eq!(retain.judge(entry(2)), Fate::Keep(P));
        assert_eq!(retain.judge(entry(1)), Fate::Drop);
    }
}
