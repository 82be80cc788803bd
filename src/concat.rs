//! Cursors one behind the other: the slices of a run, the slots of a level. A part is opened only when the walk reaches it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::cursor::{Cursor, EntryRef, Stop};
use crate::types::Direction;

/// Parts in key order whose keys do not overlap.
pub(crate) trait Parts: Send {
    /// What walks one part.
    type Cursor: Cursor;

    /// Number of parts.
    fn len(&self) -> usize;

    /// The part that holds `key` if any does; else the last one before it, or the first.
    fn part_of(&self, key: &[u8]) -> usize;

    /// Whether no part has this key: see [`Cursor::lacks`].
    fn lacks(&self, key: &[u8], hash: u64) -> bool;

    /// Opens a part, in the direction of the walk. REQUIRES: `part < len()`.
    ///
    /// `first`: the walk begins with it.
    fn open(&self, part: usize, first: bool) -> Self::Cursor;
}

/// Walks all parts as one.
pub(crate) struct Concat<P: Parts> {
    parts: P,
    direction: Direction,
    /// A part was opened.
    begun: bool,
    /// Number of the open part, and what walks it.
    open: Option<(usize, P::Cursor)>,
    /// A step that could not be finished: the open part is not placed yet.
    stopped: Option<Stopped>,
}

struct Stopped {
    step: Step<'static>,
    /// The part is reached by walking on from an earlier one: it is placed at its start.
    walking: bool,
}

#[derive(PartialEq, Eq)]
enum Step<'k> {
    Rewind,
    Seek(Cow<'k, [u8]>),
    Advance,
}

impl Step<'_> {
    fn into_owned(self) -> Step<'static> {
        match self {
            Self::Rewind => Step::Rewind,
            Self::Seek(key) => Step::Seek(Cow::Owned(key.into_owned())),
            Self::Advance => Step::Advance,
        }
    }
}

impl<P: Parts> Concat<P> {
    pub(crate) fn new(parts: P, direction: Direction) -> Self {
        Self { parts, direction, begun: false, open: None, stopped: None }
    }

    /// Places the walk anew at `part`, or goes on with the same step that was stopped.
    fn place(&mut self, part: Option<usize>, step: Step<'_>) -> Result<(), Stop> {
        let same = self.stopped.take().filter(|stopped| stopped.step == step);
        if same.is_none() {
            self.open = part.map(|part| (part, self.parts.open(part, !self.begun)));
            self.begun = true;
        }
        self.settle(step, same.is_some_and(|stopped| stopped.walking))
    }

    /// Places the open part, and walks on over parts that have nothing.
    fn settle(&mut self, step: Step<'_>, mut walking: bool) -> Result<(), Stop> {
        while let Some((_, cursor)) = &mut self.open {
            let placed = match &step {
                Step::Seek(key) if !walking => cursor.seek(key),
                _ => cursor.rewind(),
            };
            if placed.is_err() {
                self.stopped = Some(Stopped { step: step.into_owned(), walking });
                return placed;
            }
            if cursor.entry().is_some() {
                break;
            }
            self.walk_on();
            walking = true;
        }
        Ok(())
    }

    /// Opens the next part.
    fn walk_on(&mut self) {
        let next = self.open.as_ref().and_then(|(part, _)| match self.direction {
            Direction::Forward => Some(part + 1).filter(|next| *next < self.parts.len()),
            Direction::Backward => part.checked_sub(1),
        });
        self.open = next.map(|next| (next, self.parts.open(next, false)));
    }
}

impl<P: Parts> Cursor for Concat<P> {
    fn rewind(&mut self) -> Result<(), Stop> {
        let first = match self.direction {
            Direction::Forward => Some(0).filter(|_| self.parts.len() > 0),
            Direction::Backward => self.parts.len().checked_sub(1),
        };
        self.place(first, Step::Rewind)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        let part = Some(self.parts.part_of(key)).filter(|part| *part < self.parts.len());
        self.place(part, Step::Seek(Cow::Borrowed(key)))
    }

    fn lacks(&self, key: &[u8], hash: u64) -> bool {
        self.parts.lacks(key, hash)
    }

    #[inline]
    fn advance(&mut self) -> Result<bool, Stop> {
        match self.stopped.take() {
            Some(Stopped { step, walking }) => self.settle(step, walking)?,
            None => {
                if let Some((_, cursor)) = &mut self.open
                    && cursor.advance()?
                {
                    return Ok(true);
                }
                self.walk_on();
                self.settle(Step::Advance, true)?;
            }
        }
        Ok(self.open.is_some())
    }

    #[inline]
    fn entry(&self) -> Option<EntryRef<'_>> {
        self.open.as_ref().and_then(|(_, cursor)| cursor.entry())
    }

    #[inline]
    fn value(&self) -> Bytes {
        self.open.as_ref().map(|(_, cursor)| cursor.value()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;
    use crate::types::{SeqNo, ValueKind};

    /// Numbers of one part; every third step of all parts together is stopped once.
    struct Part {
        keys: Vec<[u8; 1]>,
        at: usize,
        direction: Direction,
        steps: Arc<AtomicUsize>,
    }

    impl Part {
        fn step(&self) -> Result<(), Stop> {
            let step = self.steps.fetch_add(1, Ordering::Relaxed);
            if step % 3 == 1 { Err(Error::Closed.into()) } else { Ok(()) }
        }
    }

    impl Cursor for Part {
        fn rewind(&mut self) -> Result<(), Stop> {
            self.step()?;
            self.at = 0;
            Ok(())
        }

        fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
            self.step()?;
            let forward = self.direction == Direction::Forward;
            let found =
                self.keys.iter().position(|k| if forward { &k[..] >= key } else { &k[..] < key });
            self.at = found.unwrap_or(self.keys.len());
            Ok(())
        }

        fn advance(&mut self) -> Result<bool, Stop> {
            self.step()?;
            self.at += 1;
            Ok(self.entry().is_some())
        }

        fn entry(&self) -> Option<EntryRef<'_>> {
            let key = self.keys.get(self.at)?;
            Some(EntryRef { key, seq: SeqNo(1), kind: ValueKind::Put })
        }

        fn value(&self) -> Bytes {
            Bytes::new()
        }
    }

    struct Lists {
        lists: Vec<Vec<u8>>,
        direction: Direction,
        steps: Arc<AtomicUsize>,
    }

    impl Parts for Lists {
        type Cursor = Part;

        fn len(&self) -> usize {
            self.lists.len()
        }

        fn part_of(&self, key: &[u8]) -> usize {
            // Part i holds the keys from 10 i on.
            usize::from(key[0] / 10).min(self.lists.len().saturating_sub(1))
        }

        fn lacks(&self, key: &[u8], _hash: u64) -> bool {
            !self.lists.iter().any(|list| list.contains(&key[0]))
        }

        fn open(&self, part: usize, _first: bool) -> Part {
            let mut keys: Vec<[u8; 1]> = self.lists[part].iter().map(|key| [*key]).collect();
            if self.direction == Direction::Backward {
                keys.reverse();
            }
            Part { at: keys.len(), keys, direction: self.direction, steps: Arc::clone(&self.steps) }
        }
    }

    fn retry<T>(mut step: impl FnMut() -> Result<T, Stop>) {
        while step().is_err() {}
    }

    fn walk(lists: &[Vec<u8>], direction: Direction, target: Option<u8>) -> Vec<u8> {
        let steps = Arc::new(AtomicUsize::new(0));
        let mut walk = Concat::new(Lists { lists: lists.to_vec(), direction, steps }, direction);
        match target {
            None => retry(|| walk.rewind()),
            Some(key) => retry(|| walk.seek(&[key])),
        }
        let mut seen = Vec::new();
        while let Some(entry) = walk.entry() {
            seen.push(entry.key[0]);
            retry(|| walk.advance());
        }
        seen
    }

    #[test]
    fn parts_are_walked_as_one_through_stops_and_empty_parts() {
        let lists = vec![vec![], vec![11, 12], vec![], vec![], vec![41], vec![]];
        assert_eq!(walk(&lists, Direction::Forward, None), [11, 12, 41]);
        assert_eq!(walk(&lists, Direction::Backward, None), [41, 12, 11]);
        for target in 0..60 {
            let all = [11, 12, 41];
            let above: Vec<u8> = all.into_iter().filter(|key| *key >= target).collect();
            let below: Vec<u8> = all.into_iter().rev().filter(|key| *key < target).collect();
            assert_eq!(walk(&lists, Direction::Forward, Some(target)), above, "{target}");
            assert_eq!(walk(&lists, Direction::Backward, Some(target)), below, "{target}");
        }
        assert!(walk(&[], Direction::Forward, None).is_empty());
        assert!(walk(&[], Direction::Backward, Some(3)).is_empty());
    }
}
