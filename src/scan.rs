//! An ordered walk over keys, as of one point in time: the async shell around [`View::cursor`](crate::view::View::cursor).
//!
//! Entries that are in memory are ready at the first poll; a block that is not is read on the blocking pool.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;

use crate::cursor::Stop;
use crate::error::Result;
use crate::merge::{Merge, Seen, Visible};
use crate::quarantine::Quarantine;
use crate::snapshots;
use crate::types::{Direction, KeyRange, SeqNo};
use crate::view::{Source, View};

/// Entries that cost as much of a task's turn as one get from a file.
const TURN: u32 = 16;

/// Keys and values in order, as of the moment the scan was made. Flushes and compactions do not disturb it.
///
/// Set it up with [`rev`](Self::rev), [`prefix`](Self::prefix) and [`limit`](Self::limit), then call
/// [`next`](Self::next), [`next_chunk`](Self::next_chunk), or use it as a [`Stream`]. It holds the files that it reads:
/// drop it when you are done.
pub struct Scan {
    quarantine: Arc<Quarantine>,
    view: Arc<View>,
    snapshot: SeqNo,
    /// Keeps the snapshot alive, if the scan is of one.
    _pin: Option<Arc<snapshots::Pin>>,
    range: KeyRange,
    direction: Direction,
    left: usize,
    /// The walk came to its end; a seek begins another.
    ended: bool,
    /// Entries of a chunk that is not complete yet.
    chunk: VecDeque<(Bytes, Bytes)>,
    /// `None` until the first step.
    walk: Option<Visible<Merge<Source>>>,
    /// Where the walk has to go before its next step.
    target: Option<Target>,
    reading: Option<Pin<Box<dyn Future<Output = Result<()>> + Send>>>,
    turn: u32,
}

#[derive(Clone, Debug)]
enum Target {
    Start,
    Key(Bytes),
}

impl Scan {
    pub(crate) fn new(
        quarantine: Arc<Quarantine>,
        view: Arc<View>,
        snapshot: SeqNo,
        pin: Option<Arc<snapshots::Pin>>,
        range: KeyRange,
    ) -> Self {
        Self {
            quarantine,
            view,
            snapshot,
            _pin: pin,
            range,
            direction: Direction::Forward,
            left: usize::MAX,
            ended: false,
            chunk: VecDeque::new(),
            walk: None,
            target: Some(Target::Start),
            reading: None,
            turn: 0,
        }
    }

    /// Walks from the last key to the first. Call it before the first step.
    #[must_use]
    pub fn rev(mut self) -> Self {
        self.direction = Direction::Backward;
        self.restart();
        self
    }

    /// Shows at most `entries` more entries.
    #[must_use]
    pub fn limit(mut self, entries: usize) -> Self {
        self.left = entries;
        self
    }

    /// Shows only keys that begin with `prefix`. Call it before the first step.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.range = self.range.intersection(&KeyRange::prefix(prefix.as_ref()));
        self.restart();
        self
    }

    /// Goes to `key`: the next entry is the first at or after it, or, backwards, the last one before it.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        // What an interrupted chunk took was not shown.
        self.left = self.left.saturating_add(self.chunk.len());
        self.chunk.clear();
        self.target = Some(Target::Key(Bytes::copy_from_slice(key.as_ref())));
        self.reading = None;
        self.ended = false;
    }

    fn restart(&mut self) {
        self.walk = None;
        self.reading = None;
        self.target = Some(Target::Start);
    }

    /// The next key and value; `None` behind the last. Dropping the future loses nothing: call it again. Values share memory as those
    /// of [`LsmEngine::get`](crate::LsmEngine::get) do.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) and [`Error::Io`](crate::Error::Io), from the file that is being read.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        match self.chunk.pop_front() {
            Some(entry) => Ok(Some(entry)),
            None => self.fresh().await,
        }
    }

    /// Up to `count` entries at once; fewer only at the end. Cheaper per entry than [`next`](Self::next).
    ///
    /// # Errors
    /// As for [`next`](Self::next); the entries read so far are kept for the next call.
    pub async fn next_chunk(&mut self, count: usize) -> Result<Vec<(Bytes, Bytes)>> {
        while self.chunk.len() < count {
            match self.fresh().await? {
                Some(entry) => self.chunk.push_back(entry),
                None => break,
            }
        }
        let count = count.min(self.chunk.len());
        Ok(self.chunk.drain(..count).collect())
    }

    /// The next entry behind those of the chunk.
    async fn fresh(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        std::future::poll_fn(|cx| self.poll_step(cx)).await
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(Bytes, Bytes)>>> {
        // The first step counts too: a loop of short scans must let other tasks have their turn.
        if self.turn.is_multiple_of(TURN) {
            ready!(pin!(tokio::task::coop::consume_budget()).poll(cx));
        }
        self.turn = self.turn.wrapping_add(1);
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(reading.as_mut().poll(cx));
                self.reading = None;
                if let Err(error) = read {
                    self.quarantine.note(&error);
                    return Poll::Ready(Err(error));
                }
            }
            match self.step() {
                Ok(Seen::Entry(key, value)) => return Poll::Ready(Ok(Some((key, value)))),
                Ok(Seen::End) => return Poll::Ready(Ok(None)),
                Ok(Seen::NotYet) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(Stop::Failed(error)) => {
                    self.quarantine.note(&error);
                    return Poll::Ready(Err(error));
                }
                Err(Stop::Blocked(read)) => {
                    let env = self.quarantine.env().clone();
                    self.reading = Some(Box::pin(async move { env.on_disk(read).await }));
                }
            }
        }
    }

    fn step(&mut self) -> Result<Seen, Stop> {
        if self.left == 0 || self.ended || self.range.is_empty() {
            return Ok(Seen::End);
        }
        let walk = self.walk.get_or_insert_with(|| {
            let limit = Some(self.left).filter(|left| *left < usize::MAX);
            let cursor = self.view.cursor(&self.range, self.direction, limit);
            let now_ms = self.quarantine.env().clock.wall_ms();
            Visible::new((cursor, self.direction), self.range.clone(), self.snapshot, now_ms)
        });
        match &self.target {
            None => {}
            Some(target) => {
                place(walk, target, &self.range, self.direction)?;
                self.target = None;
            }
        }
        let seen = walk.next()?;
        match seen {
            Seen::Entry(..) => self.left -= 1,
            Seen::End => self.ended = true,
            Seen::NotYet => {}
        }
        Ok(seen)
    }
}

/// Moves `walk` to its target, within the range.
fn place(
    walk: &mut Visible<Merge<Source>>,
    target: &Target,
    range: &KeyRange,
    direction: Direction,
) -> Result<(), Stop> {
    match (direction, target, &range.end) {
        (Direction::Forward, Target::Start, _) => walk.seek(&range.start),
        (Direction::Forward, Target::Key(key), _) => walk.seek(range.clamped(key)),
        (Direction::Backward, Target::Start, None) => walk.rewind(),
        (Direction::Backward, Target::Start, Some(end)) => walk.seek(end),
        (Direction::Backward, Target::Key(key), None) => walk.seek(key),
        (Direction::Backward, Target::Key(key), Some(end)) => walk.seek(key.min(end)),
    }
}

impl Stream for Scan {
    type Item = Result<(Bytes, Bytes)>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let scan = self.get_mut();
        match scan.chunk.pop_front() {
            Some(entry) => Poll::Ready(Some(Ok(entry))),
            None => scan.poll_step(cx).map(Result::transpose),
        }
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("range", &self.range)
            .field("direction", &self.direction)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// The walk of [`LsmEngine::iter_range`](crate::LsmEngine::iter_range): a forward [`Scan`].
pub type RangeIter = Scan;
