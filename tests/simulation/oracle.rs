//! What clients know, and what that allows a reader to see.
//!
//! Each writer numbers its writes and sets its mark, a key of its own, to the number with each of them. So whatever shows all
//! keys shows, for each writer, after which of its writes it was taken. The oracle keeps every write with its fate, and
//! complains as soon as something was seen that no order of the writes explains:
//!
//! * a write that was acknowledged, or seen, stays (until a power cut takes what was not durable), and one that was seen to be
//!   absent behind a later one of the same writer never appears;
//! * a batch is seen whole or not at all; what a scan or a snapshot shows is one point in the order of SeqNos;
//! * a read sees what was acknowledged before it began.
//!
//! The last writer sets no mark, so that all that it writes may expire: for its keys only the order of its writes counts.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::SeqNo;

pub(crate) type Key = Bytes;
pub(crate) type State = BTreeMap<Bytes, Bytes>;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody can know: it is under way, failed, or its future was dropped.
    Open,
    /// Seen by a reader, but never acknowledged.
    Seen,
    Acked(SeqNo),
    /// It was not done, and never will be.
    Gone,
}

#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) key: Key,
    /// `None`: a delete.
    pub(crate) value: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// The last effect on a key counts.
    pub(crate) effects: BTreeMap<Key, Option<Bytes>>,
    /// Wall time at which its puts expire.
    pub(crate) until_ms: Option<u64>,
    pub(crate) fate: Fate,
    /// When it is on disk at the latest, if all goes well.
    pub(crate) due: Option<Duration>,
}

/// Number of a writer, and of a write of it, from 1.
pub(crate) type WriteId = (usize, usize);

/// Times at which a read began and ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) begin_ms: u64,
    pub(crate) end_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    /// By writer, in program order.
    writes: Vec<Vec<Write>>,
    /// For each writer the last write known to be there.
    applied: Vec<usize>,
    /// The last SeqNo that must survive whatever happens.
    durable: SeqNo,
}

/// What was known when a read began. See [`Oracle::begin`].
#[derive(Clone, Debug)]
pub(crate) struct Known {
    applied: Vec<usize>,
}

pub(crate) type Verdict<T = ()> = Result<T, String>;

pub(crate) fn mark(writer: usize) -> Key {
    format!("mark/w{writer}").into()
}

impl Oracle {
    pub(crate) fn new(writers: usize) -> Self {
        Self { writes: vec![Vec::new(); writers], applied: vec![0; writers], durable: SeqNo(0) }
    }

    /// Every key that was ever written.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let effects = self.writes.iter().flatten().flat_map(|write| write.effects.keys());
        let keys: std::collections::BTreeSet<_> = effects.cloned().collect();
        keys.into_iter().collect()
    }

    /// Number that the next write of `writer` gets.
    pub(crate) fn next(&self, writer: usize) -> usize {
        self.writes[writer].len() + 1
    }

    /// A write is about to be handed to the engine.
    pub(crate) fn issue(&mut self, writer: usize, effects: Vec<Effect>, until_ms: Option<u64>) {
        let effects = effects.into_iter().map(|effect| (effect.key, effect.value)).collect();
        self.writes[writer].push(Write { effects, until_ms, fate: Fate::Open, due: None });
    }

    /// The last write of `writer` was acknowledged.
    pub(crate) fn acked(&mut self, writer: usize, seq: SeqNo, due: Option<Duration>) -> Verdict {
        let n = self.writes[writer].len();
        let before = self.writes[writer].iter().rev().find_map(|write| match write.fate {
            Fate::Acked(seq) => Some(seq),
            _ => None,
        });
        if before.is_some_and(|before| before >= seq) {
            return Err(format!("SeqNos of writer {writer} go back: {seq} after {before:?}"));
        }
        self.last(writer).fate = Fate::Acked(seq);
        self.last(writer).due = due;
        self.applied[writer] = n;
        Ok(())
    }

    /// The last write of `writer` was refused before anything was done.
    pub(crate) fn refused(&mut self, writer: usize) -> Verdict {
        if self.last(writer).fate != Fate::Open {
            return Err(format!("a refused write of writer {writer} was seen"));
        }
        self.last(writer).fate = Fate::Gone;
        Ok(())
    }

    fn last(&mut self, writer: usize) -> &mut Write {
        self.writes[writer].last_mut().expect("a write was issued")
    }

    /// The last SeqNo that was acknowledged.
    pub(crate) fn last_acked(&self) -> SeqNo {
        self.acks().map(|(_, seq)| seq).max().unwrap_or(SeqNo(0))
    }

    /// Everything up to `seq` survives from now on.
    pub(crate) fn durable_up_to(&mut self, seq: SeqNo) {
        self.durable = self.durable.max(seq);
    }

    /// Everything that was due by `now` is on disk.
    pub(crate) fn time_has_come(&mut self, now: Duration) {
        let due = self.writes.iter().flatten().filter(|w| w.due.is_some_and(|due| due <= now));
        let seqs = due.filter_map(|write| match write.fate {
            Fate::Acked(seq) => Some(seq),
            _ => None,
        });
        let last = seqs.max();
        self.durable = self.durable.max(last.unwrap_or(SeqNo(0)));
    }

    pub(crate) fn begin(&self) -> Known {
        Known { applied: self.applied.clone() }
    }

    /// What a snapshot at `seq` must show: everything acknowledged up to there, nothing acknowledged behind it.
    pub(crate) fn at(&self, seq: SeqNo) -> Known {
        let applied = self.writes.iter().map(|writes| {
            let up_to = |write: &Write| matches!(write.fate, Fate::Acked(own) if own <= seq);
            writes.iter().rposition(up_to).map_or(0, |index| index + 1)
        });
        Known { applied: applied.collect() }
    }

    fn acks(&self) -> impl Iterator<Item = (WriteId, SeqNo)> {
        self.writes.iter().enumerate().flat_map(|(writer, writes)| {
            writes.iter().enumerate().filter_map(move |(index, write)| match write.fate {
                Fate::Acked(seq) => Some(((writer, index + 1), seq)),
                _ => None,
            })
        })
    }

    fn write(&self, (writer, n): WriteId) -> &Write {
        &self.writes[writer][n - 1]
    }

    /// Writes of `key` that may be there, of the numbers up to `marks`.
    fn touching(&self, key: &Key, marks: &[usize]) -> Vec<WriteId> {
        let mut found = Vec::new();
        for (writer, writes) in self.writes.iter().enumerate() {
            let shown = writes.iter().take(marks[writer]).enumerate();
            let touches =
                |write: &Write| write.fate != Fate::Gone && write.effects.contains_key(key);
            found.extend(shown.filter(|(_, w)| touches(w)).map(|(index, _)| (writer, index + 1)));
        }
        found
    }

    /// Whether `a` was certainly done before `b`.
    fn before(&self, a: WriteId, b: WriteId) -> bool {
        if a.0 == b.0 {
            return a.1 < b.1;
        }
        match (self.write(a).fate, self.write(b).fate) {
            (Fate::Acked(a), Fate::Acked(b)) => a < b,
            _ => false,
        }
    }

    fn is_certain(&self, id: WriteId) -> bool {
        matches!(self.write(id).fate, Fate::Acked(_) | Fate::Seen)
    }

    /// Whether `write` explains that a key shows `value`.
    fn explains(&self, id: WriteId, key: &Key, value: Option<&Bytes>, span: Span) -> bool {
        let write = self.write(id);
        let written = write.effects[key].as_ref();
        match (written, write.until_ms) {
            (Some(_), Some(until)) if value.is_none() => until <= span.end_ms,
            (Some(_), Some(until)) => written == value && span.begin_ms < until,
            _ => written == value,
        }
    }

    /// A read of one key, which began when `known` was known, showed `value`.
    pub(crate) fn saw(
        &mut self,
        known: &Known,
        key: &Key,
        value: Option<&Bytes>,
        span: Span,
    ) -> Verdict {
        let all: Vec<usize> = self.writes.iter().map(Vec::len).collect();
        self.explain(known, &all, (key, value), span).map(drop)
    }

    /// The writes that may have been the last on `key`. Notes what that proves.
    fn explain(
        &mut self,
        known: &Known,
        marks: &[usize],
        (key, value): (&Key, Option<&Bytes>),
        span: Span,
    ) -> Verdict<Vec<WriteId>> {
        let touching = self.touching(key, marks);
        let sure: Vec<WriteId> = touching
            .iter()
            .copied()
            .filter(|id| id.1 <= known.applied[id.0] && self.is_certain(*id))
            .collect();
        // Who is certainly followed by one that was certainly there is not the last.
        let may_be_last = |id: &WriteId| !sure.iter().any(|later| self.before(*id, *later));
        let mut explaining: Vec<WriteId> = touching
            .iter()
            .copied()
            .filter(|id| self.explains(*id, key, value, span) && may_be_last(id))
            .collect();
        let never_written = sure.is_empty() && value.is_none();
        if explaining.is_empty() && !never_written {
            let candidates: Vec<_> =
                touching.iter().rev().take(8).map(|id| (*id, self.write(*id).clone())).collect();
            return Err(format!(
                "{key:?} shows {value:?}; known {known:?}, up to {marks:?}, written by {candidates:?}"
            ));
        }
        if let ([id], Some(_)) = (&explaining[..], value) {
            let (writer, n) = *id;
            let write = &mut self.writes[writer][n - 1];
            if write.fate == Fate::Open {
                write.fate = Fate::Seen;
            }
            self.applied[writer] = self.applied[writer].max(n);
        }
        if never_written {
            explaining.clear();
        }
        Ok(explaining)
    }

    /// Checks everything that was shown at one point in time: by a scan of all keys, or a snapshot. `known`: what was known
    /// when it was taken. `sealed`: nothing later may be in it. Returns the mark of each writer.
    pub(crate) fn saw_all(
        &mut self,
        known: &Known,
        sealed: Option<SeqNo>,
        state: &State,
        span: Span,
    ) -> Verdict<Vec<usize>> {
        let marks = self.saw_marks(known, sealed, state)?;
        let mut shown = Known { applied: marks.clone() };
        shown.applied[self.unmarked()] = known.applied[self.unmarked()];
        // Twice: what one key proves, another may contradict.
        for _ in 0..2 {
            for key in self.keys() {
                if key.starts_with(b"mark/") {
                    continue;
                }
                let value = state.get(&key);
                let explaining = self.explain(&shown, &marks, (&key, value), span)?;
                if let ([last], Some(_)) = (&explaining[..], value) {
                    self.not_behind(*last, &key, &marks);
                }
            }
        }
        let keys = self.keys();
        match state.keys().find(|key| keys.binary_search(key).is_err()) {
            Some(key) => Err(format!("{key:?} was never written")),
            None => Ok(marks),
        }
    }

    /// Checks the marks of all writers, shown at one point in time.
    pub(crate) fn saw_marks(
        &mut self,
        known: &Known,
        sealed: Option<SeqNo>,
        state: &State,
    ) -> Verdict<Vec<usize>> {
        let marks = self.marks(state)?;
        for (writer, shown) in marks.iter().enumerate().take(self.unmarked()) {
            if *shown < known.applied[writer] {
                return Err(format!(
                    "writer {writer} is at {shown}, {} was there before",
                    known.applied[writer]
                ));
            }
            self.shown(writer, *shown)?;
        }
        self.is_one_point(&marks, sealed)?;
        Ok(marks)
    }

    /// The writer without a mark.
    pub(crate) fn unmarked(&self) -> usize {
        self.writes.len() - 1
    }

    /// Number of the last write of each writer that `state` shows.
    fn marks(&self, state: &State) -> Verdict<Vec<usize>> {
        let writers = 0..self.writes.len();
        let marks = writers.map(|writer| {
            if writer == self.unmarked() {
                return Ok(self.writes[writer].len());
            }
            let Some(value) = state.get(&mark(writer)) else { return Ok(0) };
            let text = String::from_utf8_lossy(value);
            let n = text.parse().map_err(|error| format!("mark {text}: {error}"))?;
            if (1..=self.writes[writer].len()).contains(&n) {
                Ok(n)
            } else {
                Err(format!("writer {writer} never wrote number {n}"))
            }
        });
        marks.collect()
    }

    /// The mark of a writer proves that the write was done.
    fn shown(&mut self, writer: usize, n: usize) -> Verdict {
        let Some(write) = n.checked_sub(1).map(|index| &mut self.writes[writer][index]) else {
            return Ok(());
        };
        match write.fate {
            Fate::Gone => {
                return Err(format!("write {n} of writer {writer} was gone, and is there again"));
            }
            Fate::Open => write.fate = Fate::Seen,
            Fate::Seen | Fate::Acked(_) => {}
        }
        self.applied[writer] = self.applied[writer].max(n);
        Ok(())
    }

    /// All acknowledged writes up to some SeqNo are shown, and none behind it.
    fn is_one_point(&self, marks: &[usize], sealed: Option<SeqNo>) -> Verdict {
        let (mut newest, mut oldest_absent) = ((0, 0, SeqNo(0)), (0, 0, SeqNo(u64::MAX)));
        for ((writer, n), seq) in self.acks() {
            if writer == self.unmarked() {
                continue;
            }
            if n <= marks[writer] {
                if seq > newest.2 {
                    newest = (writer, n, seq);
                }
            } else if seq < oldest_absent.2 {
                oldest_absent = (writer, n, seq);
            }
        }
        if newest.2 > oldest_absent.2 {
            return Err(format!("no point in time: {newest:?} is there, {oldest_absent:?} is not"));
        }
        match sealed {
            Some(seq) if newest.2 > seq => {
                Err(format!("a snapshot at {seq} shows the later write {newest:?}"))
            }
            _ => Ok(()),
        }
    }

    /// `last` is the last write on `key`: what its writer did there later, up to the mark, was not done.
    fn not_behind(&mut self, last: WriteId, key: &Key, marks: &[usize]) {
        let (writer, n) = last;
        if writer == self.unmarked() {
            return;
        }
        for write in &mut self.writes[writer][n..marks[writer]] {
            if write.fate == Fate::Open && write.effects.contains_key(key) {
                write.fate = Fate::Gone;
            }
        }
    }

    /// A recovery found `state`. `lossy`: the power was cut, so what was not durable may be gone. What is gone is gone for good.
    pub(crate) fn recovered(&mut self, state: &State, lossy: bool, span: Span) -> Verdict {
        let known = if lossy { self.at(self.durable) } else { self.begin() };
        if lossy {
            self.lose(&known, state)?;
        }
        let marks = self.saw_all(&known, None, state, span)?;
        for (writer, shown) in marks.into_iter().enumerate().take(self.unmarked()) {
            self.writes[writer][shown..].iter_mut().for_each(|write| write.fate = Fate::Gone);
            self.applied[writer] = shown;
        }
        let last = self.last_acked();
        self.durable_up_to(last);
        Ok(())
    }

    /// What was acknowledged or seen, but not durable, may have been lost.
    fn lose(&mut self, known: &Known, state: &State) -> Verdict {
        let found = self.marks(state)?;
        for (writer, shown) in found.iter().enumerate() {
            self.applied[writer] = self.applied[writer].min(*shown).max(known.applied[writer]);
        }
        let unmarked = self.unmarked();
        self.applied[unmarked] = known.applied[unmarked];
        for write in &mut self.writes[unmarked][known.applied[unmarked]..] {
            if write.fate != Fate::Gone {
                write.fate = Fate::Open;
            }
        }
        Ok(())
    }
}
