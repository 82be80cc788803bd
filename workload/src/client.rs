//! One client: draws its operations, does them one after the other, verifies what it reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::draw::{Draw, Progress};
use crate::entry;
use crate::store::{Result, Span, Store, Wrong};
use crate::times::{Kind, Times};
use crate::workload::{Action, Dataset, Length, Plan, Workload};

/// One of the clients of a workload.
pub(crate) struct Client<S> {
    pub(crate) store: S,
    pub(crate) workload: Arc<Workload>,
    pub(crate) draw: Arc<Draw>,
    /// Which of the clients.
    pub(crate) number: u64,
    /// Set when the clients that count are done.
    pub(crate) done: Arc<AtomicBool>,
    pub(crate) random: fastrand::Rng,
    /// New keys that this client made.
    pub(crate) inserted: u64,
    pub(crate) times: Times,
}

impl<S: Store> Client<S> {
    /// Does its share of the operations.
    pub(crate) async fn run(mut self) -> Result<Times> {
        let workload = Arc::clone(&self.workload);
        let (clients, of) = (u64::from(workload.clients), workload.operations);
        match &workload.plan {
            Plan::Mix { actions, .. } => {
                let weights: u32 = actions.iter().map(|(_, weight)| weight).sum();
                for at in (self.number..of).step_by(usize::from(workload.clients)) {
                    let action = match actions.as_slice() {
                        [(only, _)] => *only,
                        _ => drawn(actions, self.random.u32(..weights)),
                    };
                    self.act(action, at).await?;
                }
            }
            Plan::ReadWhileWriting if self.number + 1 < clients => {
                let readers = clients - 1;
                for at in 0..of / readers.max(1) {
                    self.act(Action::Get, at).await?;
                }
                self.done.store(true, Ordering::Relaxed);
            }
            Plan::ReadWhileWriting => {
                let mut at = 0;
                while !self.done.load(Ordering::Relaxed) {
                    self.act(Action::Put, at).await?;
                    at += 1;
                }
            }
            Plan::Reopen | Plan::Recover => {}
        }
        Ok(self.times)
    }

    async fn act(&mut self, action: Action, at: u64) -> Result<()> {
        match action {
            Action::Get => self.get(at).await,
            Action::GetAbsent => self.get_absent(at).await,
            Action::Put => {
                let number = self.draw(at);
                self.put(number, at).await
            }
            Action::Insert => {
                let clients = u64::from(self.workload.clients);
                let number = self.workload.data.keys + self.inserted * clients + self.number;
                self.put(number, at).await?;
                self.inserted += 1;
                Ok(())
            }
            Action::Delete => {
                let key = entry::key(self.draw(at));
                let begun = Instant::now();
                self.store.delete(key).await?;
                self.times.record(Kind::Put, begun.elapsed())
            }
            Action::Batch(count) => self.batch(at, count).await,
            Action::ReadModifyWrite => self.modify(at).await,
            Action::Scan(length) => self.scan(length, at).await,
        }
    }

    /// The number of the next key.
    fn draw(&mut self, at: u64) -> u64 {
        let (data, of) = (self.workload.data, self.workload.operations);
        let place =
            self.draw.next(&mut self.random, Progress { at, of, keys: data.keys + self.inserted });
        let Some(own) = place.checked_sub(data.keys) else { return place };
        data.keys + own * u64::from(self.workload.clients) + self.number
    }

    /// What operation `at` sets a key to; 0 is what was there before.
    fn value(&self, number: u64, at: u64) -> Bytes {
        entry::value(number, at + 1, self.workload.data.value_bytes)
    }

    async fn get(&mut self, at: u64) -> Result<()> {
        let number = self.draw(at);
        let key = entry::key(number);
        let size = self.workload.data.value_bytes;
        let begun = Instant::now();
        let ours =
            |found: Option<&[u8]>| found.is_some_and(|value| entry::belongs(value, number, size));
        let ours = self.store.get(&key, ours).await?;
        self.times.record(Kind::Get, begun.elapsed())?;
        verified(ours, || format!("the value of key {number} is not one of its own"))
    }

    async fn get_absent(&mut self, at: u64) -> Result<()> {
        let number = self.draw(at);
        let key = entry::absent(number);
        let begun = Instant::now();
        let absent = self.store.get(&key, |found| found.is_none()).await?;
        self.times.record(Kind::Get, begun.elapsed())?;
        verified(absent, || format!("a key behind {number} is there, and nobody wrote it"))
    }

    async fn put(&mut self, number: u64, at: u64) -> Result<()> {
        let (key, value) = (entry::key(number), self.value(number, at));
        let begun = Instant::now();
        self.store.put(key, value).await?;
        self.wrote(1);
        self.times.record(Kind::Put, begun.elapsed())
    }

    async fn batch(&mut self, at: u64, count: u64) -> Result<()> {
        let mut puts = Vec::with_capacity(usize::try_from(count)?);
        for place in at * count..(at + 1) * count {
            let number = self.draw(place);
            puts.push((entry::key(number), self.value(number, place)));
        }
        let begun = Instant::now();
        self.store.batch(puts).await?;
        self.wrote(count);
        self.times.record(Kind::Batch, begun.elapsed())
    }

    async fn modify(&mut self, at: u64) -> Result<()> {
        let number = self.draw(at);
        let size = self.workload.data.value_bytes;
        let key = entry::key(number);
        let begun = Instant::now();
        let version = self.store.get(&key, |found| entry::version(found?, number, size)).await?;
        let Some(version) = version else {
            return Err(Wrong(format!("the value of key {number} is not one of its own")).into());
        };
        let value = entry::value(number, version + 1, size);
        self.store.put(key, value).await?;
        self.wrote(1);
        self.times.record(Kind::ReadModifyWrite, begun.elapsed())
    }

    fn wrote(&mut self, entries: u64) {
        self.times.entries += entries;
        self.times.written += entries;
    }

    async fn scan(&mut self, length: Length, at: u64) -> Result<()> {
        let begin = match length {
            Length::All | Length::AllBackward => 0,
            Length::Entries(_) | Length::UpTo(_) => self.draw(at),
        };
        let from = entry::key(begin);
        let span = match length {
            Length::Entries(count) => Span::From(&from, count),
            Length::UpTo(most) => Span::From(&from, self.random.usize(1..=most)),
            Length::All => Span::Forward,
            Length::AllBackward => Span::Backward,
        };
        let mut walk = Walk::new(self.workload.data, span, begin);
        let begun = Instant::now();
        self.store.scan(span, |key, value| walk.step(key, value)).await?;
        self.times.record(Kind::Scan, begun.elapsed())?;
        self.times.entries += walk.seen;
        verified(walk.sound(), || format!("a scan from key {begin} saw {} entries", walk.seen))
    }
}

fn drawn(actions: &[(Action, u32)], mut draw: u32) -> Action {
    for (action, weight) in actions {
        match draw.checked_sub(*weight) {
            Some(rest) => draw = rest,
            None => return *action,
        }
    }
    Action::Get
}

fn verified(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Wrong(otherwise()).into()) }
}

/// What a scan saw, and whether it was right: every key, in order, each with a value of its own.
struct Walk {
    data: Dataset,
    /// The number that comes next. No workload that scans deletes, so none is left out.
    next: Option<u64>,
    backward: bool,
    seen: u64,
    /// Entries that must be there at least.
    least: u64,
    sound: bool,
}

impl Walk {
    fn new(data: Dataset, span: Span<'_>, begin: u64) -> Self {
        let there = data.keys.saturating_sub(begin);
        let (next, backward, least) = match span {
            Span::From(_, count) => {
                (Some(begin), false, there.min(u64::try_from(count).unwrap_or(u64::MAX)))
            }
            Span::Forward => (Some(begin), false, there),
            Span::Backward => (None, true, there),
        };
        Self { data, next, backward, seen: 0, least, sound: true }
    }

    fn step(&mut self, key: &[u8], value: &[u8]) {
        let number = entry::number(key).unwrap_or(u64::MAX);
        self.seen += 1;
        self.sound &= self.next.is_none_or(|next| next == number)
            && entry::version(value, number, self.data.value_bytes).is_some();
        self.next =
            if self.backward { number.checked_sub(1) } else { Some(number.saturating_add(1)) };
    }

    fn sound(&self) -> bool {
        self.sound && self.seen >= self.least
    }
}
