//! Many cursors as one, and versions of keys as the one that a reader sees.
//!
//! [`Merge`] keeps its sources in a binary heap by their current entries. [`Visible`] walks a merge and shows, for each key, the
//! newest version up to a snapshot, unless that is a tombstone or has expired.
//!
//! A forward seek to a key that some source holds costs those that lack it, as their filters tell, no look at a block: they are placed
//! when the walk goes on behind that key. So whoever takes one entry mostly reads one block, however many runs there are.
//!
//! Invariant: no two sources hold the same version (key and SeqNo), so the order never depends on the place of a source.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::cursor::{Cursor, EntryRef, Stop};
use crate::types::{Direction, KeyRange, SeqNo, ValueKind, hash_key};

/// Steps that a reader takes in one turn: some 50 us of work.
const TURN: u32 = 512;

/// Cursors in one order.
pub(crate) struct Merge<C> {
    sources: Vec<C>,
    direction: Direction,
    /// Sources that have an entry; a binary heap, the next entry in front.
    heap: Vec<usize>,
    /// Sources that lack the key of the last seek and are not placed yet.
    late: Vec<usize>,
    /// Where they go: to the first key there can be behind that one.
    behind: Vec<u8>,
    /// A rewind (`None`) or seek that was stopped, and how many sources it has done.
    stopped: Option<(Option<Vec<u8>>, usize)>,
}

impl<C: Cursor> Merge<C> {
    /// `sources` all walk in `direction`. They need not be placed yet.
    pub(crate) fn new(sources: Vec<C>, direction: Direction) -> Self {
        let heap = Vec::with_capacity(sources.len());
        Self { heap, sources, direction, late: Vec::new(), behind: Vec::new(), stopped: None }
    }

    /// Places every source, going on where the same placement was stopped before.
    fn place(&mut self, target: Option<&[u8]>) -> Result<(), Stop> {
        let mut done = match self.stopped.take() {
            Some((same, done)) if same.as_deref() == target => done,
            _ => {
                self.late.clear();
                0
            }
        };
        let forward = self.direction == Direction::Forward && self.sources.len() > 1;
        let wanted = target.filter(|_| forward).map(|key| (key, hash_key(key)));
        while let Some(source) = self.sources.get_mut(done) {
            if wanted.is_some_and(|(key, hash)| source.lacks(key, hash)) {
                self.late.push(done);
                done += 1;
                continue;
            }
            let placed = match target {
                None => source.rewind(),
                Some(key) => source.seek(key),
            };
            if let Err(stop) = placed {
                self.stopped = Some((target.map(<[u8]>::to_vec), done));
                return Err(stop);
            }
            done += 1;
        }
        let placed = (0..self.sources.len()).filter(|i| !self.late.contains(i));
        self.heap.clear();
        self.heap.extend(placed.filter(|&i| self.sources[i].entry().is_some()));
        for parent in (0..self.heap.len() / 2).rev() {
            self.sift_down(parent);
        }
        let Some(key) = target.filter(|_| !self.late.is_empty()) else { return Ok(()) };
        self.behind.clear();
        self.behind.reserve(key.len() + 1);
        self.behind.extend_from_slice(key);
        self.behind.push(0);
        if self.entry().is_some_and(|entry| entry.key == key) {
            return Ok(());
        }
        self.place_late().inspect_err(|_| self.stopped = Some((Some(key.to_vec()), done)))
    }

    /// Places the sources that lack the key that was sought behind it. A memtable may have got it since, but in versions that nobody
    /// here sees.
    fn place_late(&mut self) -> Result<(), Stop> {
        while let Some(&last) = self.late.last() {
            let source = &mut self.sources[last];
            source.seek(&self.behind)?;
            self.late.pop();
            if self.sources[last].entry().is_some() {
                self.heap.push(last);
                self.sift_up(self.heap.len() - 1);
            }
        }
        Ok(())
    }

    fn sift_up(&mut self, mut child: usize) {
        while let Some(parent) = child.checked_sub(1).map(|before| before / 2)
            && self.is_before(child, parent)
        {
            self.heap.swap(child, parent);
            child = parent;
        }
    }

    #[inline]
    fn sift_down(&mut self, mut parent: usize) {
        loop {
            let left = 2 * parent + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let child =
                if right < self.heap.len() && self.is_before(right, left) { right } else { left };
            if !self.is_before(child, parent) {
                return;
            }
            self.heap.swap(child, parent);
            parent = child;
        }
    }

    /// Whether the source at heap place `a` comes before the one at `b`.
    #[inline]
    fn is_before(&self, a: usize, b: usize) -> bool {
        let entry = |place: usize| self.sources[self.heap[place]].entry();
        let (Some(a), Some(b)) = (entry(a), entry(b)) else { return false };
        let order = a.key.cmp(b.key).then_with(|| b.seq.cmp(&a.seq));
        match self.direction {
            Direction::Forward => order == Ordering::Less,
            Direction::Backward => order == Ordering::Greater,
        }
    }
}

impl<C: Cursor> Cursor for Merge<C> {
    fn rewind(&mut self) -> Result<(), Stop> {
        self.place(None)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.place(Some(key))
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        if !self.late.is_empty() {
            self.place_late()?;
        }
        let Some(&top) = self.heap.first() else { return Ok(false) };
        if !self.sources[top].advance()? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(!self.heap.is_empty())
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        self.heap.first().and_then(|&top| self.sources[top].entry())
    }

    #[inline]
    fn value(&self) -> Bytes {
        self.heap.first().map(|&top| self.sources[top].value()).unwrap_or_default()
    }
}

/// What a step of a [`Visible`] came to.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The next key and its value.
    Entry(Bytes, Bytes),
    /// There is nothing behind the last.
    End,
    /// Only entries that nobody sees, and many of them: let others have their turn, then call it again.
    NotYet,
}

/// The entry under `cursor`, unless it is behind `range`.
fn entry_in<'c>(
    cursor: &'c impl Cursor,
    range: &KeyRange,
    direction: Direction,
) -> Option<EntryRef<'c>> {
    cursor.entry().filter(|entry| match direction {
        Direction::Forward => range.is_before_end(entry.key),
        Direction::Backward => range.is_from_start(entry.key),
    })
}

/// What a reader sees of a cursor: one entry a key, as of a snapshot and a wall-clock time.
pub(crate) struct Visible<C> {
    cursor: C,
    direction: Direction,
    /// What is behind it, in the direction of the cursor, is not looked at.
    range: KeyRange,
    snapshot: SeqNo,
    now_ms: u64,
    /// The cursor has to go to the next entry before it is looked at: what it is at was shown, or it was stopped on its way.
    advancing: bool,
    /// Key that is decided. Forward: the key shown last, whose older versions are skipped.
    last_key: Option<Vec<u8>>,
    /// Backward: the newest version seen so far of the key that the cursor is in.
    candidate: Option<(Bytes, ValueKind, Bytes)>,
}

impl<C: Cursor> Visible<C> {
    /// `cursor` walks in `direction`; place it within `range` with `rewind` or `seek` first.
    pub(crate) fn new(
        (cursor, direction): (C, Direction),
        range: KeyRange,
        snapshot: SeqNo,
        now_ms: u64,
    ) -> Self {
        let (last_key, candidate) = (None, None);
        Self { cursor, direction, range, snapshot, now_ms, advancing: false, last_key, candidate }
    }

    /// Goes to the start in the direction of the cursor.
    pub(crate) fn rewind(&mut self) -> Result<(), Stop> {
        self.cursor.rewind()?;
        self.forget();
        Ok(())
    }

    /// Forward: goes to the first key at or after `key`. Backward: to the last key before it.
    pub(crate) fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.cursor.seek(key)?;
        self.forget();
        Ok(())
    }

    fn forget(&mut self) {
        self.advancing = false;
        self.last_key = None;
        self.candidate = None;
    }

    /// Goes to the next key and value. A stopped step is continued by calling it again.
    pub(crate) fn next(&mut self) -> Result<Seen, Stop> {
        if self.advancing {
            self.advance()?;
        }
        match self.direction {
            Direction::Forward => self.next_forward(),
            Direction::Backward => self.next_backward(),
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<(), Stop> {
        self.advancing = true;
        self.cursor.advance()?;
        self.advancing = false;
        Ok(())
    }

    fn next_forward(&mut self) -> Result<Seen, Stop> {
        for _ in 0..TURN {
            let Some(entry) = entry_in(&self.cursor, &self.range, self.direction) else {
                return Ok(Seen::End);
            };
            let decided = self.last_key.as_deref() == Some(entry.key);
            if decided || entry.seq > self.snapshot {
                self.advance()?;
                continue;
            }
            let last = self.last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(entry.key);
            if entry.kind.is_live(self.now_ms) {
                self.advancing = true;
                return Ok(Seen::Entry(Bytes::copy_from_slice(entry.key), self.cursor.value()));
            }
        }
        Ok(Seen::NotYet)
    }

    fn next_backward(&mut self) -> Result<Seen, Stop> {
        for _ in 0..TURN {
            let entry = entry_in(&self.cursor, &self.range, self.direction);
            let same_key = match (&self.candidate, entry) {
                (Some((key, ..)), Some(entry)) => key[..] == *entry.key,
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !same_key
                && let Some((key, kind, value)) = self.candidate.take()
                && kind.is_live(self.now_ms)
            {
                return Ok(Seen::Entry(key, value));
            }
            let Some(entry) = entry_in(&self.cursor, &self.range, self.direction) else {
                return Ok(Seen::End);
            };
            if entry.seq <= self.snapshot {
                // Versions of a key come oldest first: each visible one replaces the one before.
                let key = match self.candidate.take() {
                    Some((key, ..)) => key,
                    None => Bytes::copy_from_slice(entry.key),
                };
                self.candidate = Some((key, entry.kind, self.cursor.value()));
            }
            self.advance()?;
        }
        Ok(Seen::NotYet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    type Entries = Vec<(Vec<u8>, SeqNo, ValueKind)>;

    /// Entries in order; every `stall`-th step is stopped once.
    struct ListCursor {
        entries: Entries,
        direction: Direction,
        at: usize,
        steps: usize,
        stall: usize,
        /// The last step was stopped: nobody may look at the entry.
        stopped: bool,
    }

    impl ListCursor {
        fn new(mut entries: Entries, direction: Direction, stall: usize) -> Self {
            entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            if direction == Direction::Backward {
                entries.reverse();
            }
            let at = entries.len();
            Self { entries, direction, at, steps: 0, stall, stopped: false }
        }

        fn step(&mut self) -> Result<(), Stop> {
            self.steps += 1;
            self.stopped = self.steps.is_multiple_of(self.stall);
            if self.stopped { Err(Error::Closed.into()) } else { Ok(()) }
        }
    }

    impl Cursor for ListCursor {
        fn rewind(&mut self) -> Result<(), Stop> {
            self.step()?;
            self.at = 0;
            Ok(())
        }

        fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
            self.step()?;
            let forward = self.direction == Direction::Forward;
            self.at = self
                .entries
                .iter()
                .position(|e| if forward { &e.0[..] >= key } else { &e.0[..] < key })
                .unwrap_or(self.entries.len());
            Ok(())
        }

        fn lacks(&self, key: &[u8], _hash: u64) -> bool {
            // Like a filter: some keys pass that are not there.
            !key.iter().any(|byte| byte % 3 == 0) && self.entries.iter().all(|e| e.0 != key)
        }

        fn advance(&mut self) -> Result<bool, Stop> {
            self.step()?;
            self.at += 1;
            Ok(self.entry().is_some())
        }

        fn entry(&self) -> Option<EntryRef<'_>> {
            let (key, seq, kind) = self.entries.get(self.at).filter(|_| !self.stopped)?;
            Some(EntryRef { key, seq: *seq, kind: *kind })
        }

        fn value(&self) -> Bytes {
            self.entries.get(self.at).map(|e| Bytes::from(e.1.to_string())).unwrap_or_default()
        }
    }

    fn retry<T>(mut step: impl FnMut() -> Result<T, Stop>) -> T {
        loop {
            if let Ok(done) = step() {
                return done;
            }
        }
    }

    fn shown<C: Cursor>(visible: &mut Visible<C>) -> Option<(Bytes, Bytes)> {
        loop {
            match retry(|| visible.next()) {
                Seen::Entry(key, value) => return Some((key, value)),
                Seen::End => return None,
                Seen::NotYet => {}
            }
        }
    }

    fn case(seed: u64) -> (Vec<Entries>, SeqNo, usize) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut sources = vec![Vec::new(); rng.usize(1..6)];
        for seq in 1..rng.u64(2..60) {
            let kind = match rng.u8(..4) {
                0 => ValueKind::Delete,
                1 => ValueKind::PutUntil(rng.u64(..20)),
                _ => ValueKind::Put,
            };
            let source = rng.usize(..sources.len());
            sources[source].push((vec![rng.u8(..12)], SeqNo(seq), kind));
        }
        (sources, SeqNo(rng.u64(..60)), rng.usize(2..9))
    }

    /// What the laws say a reader sees, computed the slow way.
    fn truth(sources: &[Entries], snapshot: SeqNo, now: u64) -> Vec<(Vec<u8>, String)> {
        let mut newest = std::collections::BTreeMap::new();
        for (key, seq, kind) in sources.iter().flatten().filter(|e| e.1 <= snapshot) {
            let best = newest.entry(key.clone()).or_insert((*seq, *kind));
            *best = (*best).max((*seq, *kind));
        }
        let live = newest.into_iter().filter(|(_, (_, kind))| kind.is_live(now));
        live.map(|(key, (seq, _))| (key, seq.to_string())).collect()
    }

    #[test]
    fn a_scan_shows_the_newest_live_version_of_each_key_both_ways_and_through_stops() {
        for seed in 0..500 {
            let (sources, snapshot, stall) = case(seed);
            let expected = truth(&sources, snapshot, 10);
            for direction in [Direction::Forward, Direction::Backward] {
                let cursors =
                    sources.iter().map(|s| ListCursor::new(s.clone(), direction, stall)).collect();
                let merge = Merge::new(cursors, direction);
                let mut visible = Visible::new((merge, direction), KeyRange::all(), snapshot, 10);
                retry(|| visible.rewind());
                let mut seen = Vec::new();
                while let Some((key, value)) = shown(&mut visible) {
                    seen.push((key.to_vec(), String::from_utf8(value.to_vec()).unwrap()));
                }
                if direction == Direction::Backward {
                    seen.reverse();
                }
                assert_eq!(seen, expected, "seed {seed}, {direction:?}");
            }
        }
    }

    #[test]
    fn a_seek_splits_the_keys_between_the_directions() {
        for seed in 0..300 {
            let (sources, snapshot, stall) = case(seed);
            let expected = truth(&sources, snapshot, 10);
            let target = [u8::try_from(seed % 13).unwrap()];
            let run = |direction| {
                let cursors = sources.iter().map(|s| ListCursor::new(s.clone(), direction, stall));
                let merge = Merge::new(cursors.collect(), direction);
                let mut visible = Visible::new((merge, direction), KeyRange::all(), snapshot, 10);
                retry(|| visible.seek(&target));
                let mut seen = Vec::new();
                while let Some((key, _)) = shown(&mut visible) {
                    seen.push(key.to_vec());
                }
                seen
            };
            let keys = expected.iter().map(|(key, _)| key.clone());
            let (below, above): (Vec<_>, Vec<_>) = keys.partition(|key| key[..] < target[..]);
            assert_eq!(run(Direction::Forward), above, "seed {seed}");
            assert_eq!(
                run(Direction::Backward),
                below.into_iter().rev().collect::<Vec<_>>(),
                "seed {seed}"
            );
        }
    }
    #[test]
    fn a_merge_may_be_placed_again_and_again_whatever_stopped_before() {
        for seed in 0..300 {
            let (sources, _, stall) = case(seed);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut all: Vec<(Vec<u8>, SeqNo)> =
                sources.iter().flatten().map(|(key, seq, _)| (key.clone(), *seq)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            let cursors =
                sources.iter().map(|s| ListCursor::new(s.clone(), Direction::Forward, stall));
            let mut merge = Merge::new(cursors.collect(), Direction::Forward);
            let mut at = all.len();
            for _ in 0..60 {
                let key = [rng.u8(..13)];
                match rng.u8(..6) {
                    0 => {
                        retry(|| merge.rewind());
                        at = 0;
                    }
                    1 | 2 => {
                        retry(|| merge.seek(&key));
                        at = all.partition_point(|entry| entry.0[..] < key[..]);
                    }
                    // A step that is given up half-way, if it stops, for another placement.
                    3 => {
                        let _given_up =
                            if rng.bool() { merge.advance().map(drop) } else { merge.seek(&key) };
                        let key = [rng.u8(..13)];
                        retry(|| merge.seek(&key));
                        at = all.partition_point(|entry| entry.0[..] < key[..]);
                    }
                    _ if at < all.len() => {
                        retry(|| merge.advance());
                        at += 1;
                    }
                    _ => {}
                }
                let entry = merge.entry().map(|entry| (entry.key.to_vec(), entry.seq));
                assert_eq!(entry.as_ref(), all.get(at), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_seek_to_a_key_places_those_that_have_it_and_the_others_when_it_goes_on() {
        let entry = |key: u8, seq| (vec![key], SeqNo(seq), ValueKind::Put);
        let lists = [
            vec![entry(1, 1), entry(5, 2)],
            vec![entry(4, 3), entry(8, 4)],
            vec![entry(4, 5), entry(7, 6)],
        ];
        let cursors = lists.map(|list| ListCursor::new(list, Direction::Forward, usize::MAX));
        let mut merge = Merge::new(cursors.into(), Direction::Forward);
        let steps = |merge: &Merge<ListCursor>| -> Vec<usize> {
            merge.sources.iter().map(|source| source.steps).collect()
        };
        retry(|| merge.seek(&[4]));
        assert_eq!(merge.entry().map(|entry| entry.seq), Some(SeqNo(5)));
        assert_eq!(steps(&merge), [0, 1, 1]);

        // What lacked the key has it now, as a memtable may: too new for this walk, and too many to walk over.
        let overwritten = (0..1000).map(|n| entry(4, 1009 - n));
        merge.sources[0].entries =
            [entry(1, 1)].into_iter().chain(overwritten).chain([entry(5, 2)]).collect();
        let rest = std::iter::from_fn(|| {
            retry(|| merge.advance());
            merge.entry().map(|entry| entry.seq.0)
        });
        assert_eq!(rest.collect::<Vec<_>>(), [3, 2, 6, 4]);
        assert_eq!(steps(&merge)[0], 2, "placed once, and gone on once");

        retry(|| merge.seek(&[2]));
        assert_eq!(
            merge.entry().map(|entry| entry.seq),
            Some(SeqNo(1009)),
            "nobody has it: all are placed"
        );
    }

    #[test]
    fn a_step_past_many_hidden_entries_is_many_turns() {
        let count = 10 * TURN;
        let hidden = |number: u32| {
            let (key, seq) = (number.to_be_bytes().to_vec(), SeqNo(u64::from(number) + 1));
            // Tombstones, then what the snapshot is too old for.
            let after = number >= count / 2;
            (key, if after { seq.plus(100_000) } else { seq }, ValueKind::Delete)
        };
        for direction in [Direction::Forward, Direction::Backward] {
            let entries = (0..count).map(hidden).collect();
            let cursor = ListCursor::new(entries, direction, usize::MAX);
            let mut visible =
                Visible::new((cursor, direction), KeyRange::all(), SeqNo(100_000), 10);
            retry(|| visible.rewind());
            let mut turns = 0;
            while matches!(visible.next(), Ok(Seen::NotYet)) {
                turns += 1;
            }
            assert!((10..=20).contains(&turns), "{direction:?}: {turns} turns");
        }
    }
    #[test]
    fn nothing_behind_the_range_is_walked_over() {
        for direction in [Direction::Forward, Direction::Backward] {
            // Nothing is to be seen, in the range or outside: the walk must end all the same.
            let entries = (0..100).map(|key| (vec![key], SeqNo(1), ValueKind::Delete)).collect();
            let cursor = ListCursor::new(entries, direction, usize::MAX);
            let range = KeyRange::from([40].as_slice()..[45].as_slice());
            let mut visible = Visible::new((cursor, direction), range, SeqNo(5), 10);
            retry(|| visible.seek(if direction == Direction::Forward { &[40] } else { &[45] }));
            assert!(matches!(visible.next(), Ok(Seen::End)));
            assert!(visible.cursor.steps <= 7, "{direction:?}: {} steps", visible.cursor.steps);
        }
    }
}
