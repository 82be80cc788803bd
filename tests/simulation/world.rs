//! What all tasks of a simulation share: the machine, the oracle, the trace.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nori_lsm::env::Clock;
use nori_lsm::env::sim::{SimFs, VirtualClock};
use nori_lsm::{Error, LsmEngine};

use crate::oracle::{Oracle, Span, Verdict};

/// Lines of the trace that are shown when something is wrong.
const TAIL: usize = 60;

/// One life of a process in the simulation. Clones are the same.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) engine: LsmEngine,
    pub(crate) fs: SimFs,
    pub(crate) clock: VirtualClock,
    /// Nothing is broken on purpose: no call may fail.
    pub(crate) calm: bool,
    pub(crate) writers: usize,
    pub(crate) record: Arc<Record>,
    /// Whether the clients are to stop.
    pub(crate) stop: Arc<AtomicBool>,
}

/// What outlives every process.
pub(crate) struct Record {
    oracle: Mutex<Oracle>,
    trace: Mutex<Trace>,
    complaint: Mutex<Option<String>>,
    pub(crate) operations: AtomicU64,
}

#[derive(Default)]
struct Trace {
    hash: DefaultHasher,
    tail: VecDeque<String>,
}

impl Record {
    pub(crate) fn new(writers: usize) -> Arc<Self> {
        Arc::new(Self {
            oracle: Mutex::new(Oracle::new(writers + 1)),
            trace: Mutex::default(),
            complaint: Mutex::default(),
            operations: AtomicU64::new(0),
        })
    }

    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    pub(crate) fn trace(&self, line: String) {
        let mut trace = self.trace.lock().unwrap();
        line.hash(&mut trace.hash);
        if trace.tail.len() == TAIL {
            trace.tail.pop_front();
        }
        trace.tail.push_back(line);
    }

    /// Differs if anything that was traced differs.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.lock().unwrap().hash.finish()
    }

    /// Notes what is wrong; the first counts.
    pub(crate) fn complain(&self, complaint: String) {
        self.complaint.lock().unwrap().get_or_insert(complaint);
    }

    pub(crate) fn complaint(&self) -> Option<String> {
        let complaint = self.complaint.lock().unwrap().clone()?;
        let tail: Vec<String> = self.trace.lock().unwrap().tail.iter().cloned().collect();
        Some(format!("{complaint}\n  after:\n  {}", tail.join("\n  ")))
    }
}

impl World {
    /// Runs `judge` on the oracle and keeps its complaint.
    pub(crate) fn judge(&self, judge: impl FnOnce(&mut Oracle) -> Verdict) {
        let verdict = judge(&mut self.record.oracle());
        if let Err(complaint) = verdict {
            self.complain(complaint);
        }
    }

    pub(crate) fn complain(&self, complaint: String) {
        self.record.complain(complaint);
        self.stop();
    }

    pub(crate) fn trace(&self, line: String) {
        self.record.operations.fetch_add(1, Ordering::Relaxed);
        self.record.trace(format!("{:>9.3?} {line}", self.clock.now().as_secs_f64()));
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether clients have nothing left to do: all is said, or the machine is off.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.fs.is_off()
    }

    /// Complains about an error that nothing explains.
    pub(crate) fn excuse(&self, what: &str, error: &Error) {
        let excused = match error {
            Error::Closed => self.is_over(),
            Error::Stalled { .. } => what == "write",
            Error::Io { .. } | Error::Interrupted { .. } | Error::Unavailable { .. } => {
                !self.calm || self.fs.is_off()
            }
            _ => false,
        };
        if !excused {
            self.complain(format!("{what}: {error}"));
        }
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    /// The time from `begin_ms` until now.
    pub(crate) fn since(&self, begin_ms: u64) -> Span {
        Span { begin_ms, end_ms: self.wall_ms() }
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// Waits for `work`; complains if that takes longer than anything may.
    pub(crate) async fn within<T>(&self, what: &str, work: impl Future<Output = T>) -> Option<T> {
        let done = tokio::time::timeout(Duration::from_secs(3600), work).await;
        if done.is_err() && !self.fs.is_off() {
            self.complain(format!(
                "{what} hangs; health {:?}, {:?}",
                self.engine.health(),
                self.engine.stats()
            ));
        }
        done.ok()
    }
}
