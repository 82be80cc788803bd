//! What the tests on the simulated disk share: a small engine in a small world, and a history that says what must be there.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::sim::{SimFs, VirtualClock, sim_env};
use nori_lsm::{
    ATLLConfig, CompactionMode, Durability, Error, L0Config, LsmEngine, MemtableConfig,
    ResourceConfig, Result, SeqNo, WalConfig, WriteBatch, WriteOptions,
};

/// Runs a test in paused time: timers fire at once when nothing else can run. A hang ends after an hour of that time.
pub(crate) fn in_paused_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let done =
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(900), test).await });
    done.expect("something hangs")
}

/// Tiny everything: a few writes seal a memtable, a few memtables fill a level.
pub(crate) fn config() -> ATLLConfig {
    ATLLConfig {
        data_dir: PathBuf::from("/db"),
        fanout: 2,
        max_levels: 4,
        l1_slot_count: 2,
        memtable: MemtableConfig { flush_trigger_bytes: 1 << 10, ..Default::default() },
        l0: L0Config { max_files: 12 },
        block_size: 128,
        resources: ResourceConfig { block_cache_mib: 0, ..Default::default() },
        wal: WalConfig { segment_preallocate: false, ..Default::default() },
        seed: 7,
        ..Default::default()
    }
}

/// Opens the database of this machine.
pub(crate) async fn open(fs: &SimFs, config: ATLLConfig) -> Result<LsmEngine> {
    LsmEngine::open_in(config, sim_env(fs, VirtualClock::default())).await
}

pub(crate) type State = BTreeMap<Bytes, Bytes>;

/// One batch: each key with its new value, or `None` where it is deleted.
pub(crate) type Ops = Vec<(Bytes, Option<Bytes>)>;

/// Key that every batch of a history sets to its number.
const MARK: &[u8] = b"mark";

/// What was written, in order, and what became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Acknowledged.
    pub(crate) acked: Vec<(SeqNo, Ops)>,
    /// Failed since the last one was acknowledged: at most one of them may be there.
    pub(crate) failed: Vec<Ops>,
    /// So many of the acknowledged survive whatever happens.
    pub(crate) durable: usize,
    written: usize,
}

impl History {
    /// Writes the next batch of the history, whatever becomes of it.
    pub(crate) async fn write(
        &mut self,
        engine: &LsmEngine,
        mut ops: Ops,
        durability: Durability,
    ) -> Result<()> {
        self.written += 1;
        ops.push((Bytes::from_static(MARK), Some(format!("{:06}", self.written).into())));
        let mut batch = WriteBatch::default();
        for (key, value) in &ops {
            match value {
                Some(value) => batch.put(key.clone(), value.clone()),
                None => batch.delete(key.clone()),
            };
        }
        let options = WriteOptions { durability: Some(durability), ..Default::default() };
        if self.written % 4 != 0 {
            tokio::task::yield_now().await; // else the components would not get a turn in a burst of writes
        }
        match engine.write(batch, options).await {
            Ok(commit) => {
                let last = self.acked.last().map_or(SeqNo(0), |(seq, _)| *seq);
                assert!(commit.seq > last, "SeqNos never go back: {commit:?} after {last}");
                self.acked.push((commit.seq, ops));
                self.failed.clear();
                if durability == Durability::Sync {
                    self.all_durable();
                }
                Ok(())
            }
            Err(error) => {
                self.failed.push(ops);
                Err(error)
            }
        }
    }

    /// Batch number `i` of the usual mix: puts, overwrites, deletes, values of all sizes.
    pub(crate) fn mixed(i: usize) -> Ops {
        let key = |n: usize| Bytes::from(format!("key{:02}", n % 17));
        let value = |n: usize| Some(Bytes::from(format!("{n}-").repeat(1 + n * 7 % 23)));
        match i % 5 {
            0 | 1 => vec![(key(i * 3), value(i))],
            2 => vec![(key(i * 3), value(i)), (key(i * 5 + 1), value(i + 1)), (key(i), None)],
            3 => vec![(key(i * 7), None)],
            _ => (0..6).map(|n| (key(i + n * 2), value(i + n))).collect(),
        }
    }

    pub(crate) fn all_durable(&mut self) {
        self.durable = self.acked.len();
    }

    /// What is there after the first `count` acknowledged writes.
    pub(crate) fn state(&self, count: usize) -> State {
        let mut state = State::new();
        for (_, ops) in self.acked.iter().take(count) {
            apply(&mut state, ops);
        }
        state
    }

    /// What must be there if nothing was lost.
    pub(crate) fn now(&self) -> State {
        self.state(self.acked.len())
    }

    /// Checks what a recovery found, and goes on from there. Returns a complaint if history cannot have led to it.
    pub(crate) fn recovered(&mut self, found: &State) -> std::result::Result<(), String> {
        for ops in self.failed.clone() {
            let mut state = self.now();
            apply(&mut state, &ops);
            if state == *found {
                let seq = self.acked.last().map_or(SeqNo(0), |(seq, _)| *seq);
                self.acked.push((seq, ops));
                self.failed.clear();
                self.all_durable();
                return Ok(());
            }
        }
        let count = (0..=self.acked.len()).rev().find(|count| self.state(*count) == *found);
        let Some(count) = count else {
            return Err(format!("no prefix of the history: {found:?}"));
        };
        if count < self.durable {
            return Err(format!("{count} writes are there, {} were durable", self.durable));
        }
        self.acked.truncate(count);
        self.failed.clear();
        self.all_durable();
        Ok(())
    }
}

fn apply(state: &mut State, ops: &Ops) {
    for (key, value) in ops {
        match value {
            Some(value) => drop(state.insert(key.clone(), value.clone())),
            None => drop(state.remove(key)),
        }
    }
}

/// Everything that an engine holds: by a scan forward, and the same by a scan backward and by single reads.
pub(crate) async fn read_all(engine: &LsmEngine) -> Result<State> {
    let mut scan = engine.scan(..);
    let mut state = State::new();
    while let Some((key, value)) = scan.next().await? {
        assert!(state.insert(key, value).is_none(), "a scan shows each key once");
    }
    let mut scan = engine.scan(..).rev();
    for (key, value) in state.iter().rev() {
        assert_eq!(scan.next().await?.as_ref(), Some(&(key.clone(), value.clone())));
        assert_eq!(engine.get(key).await?.as_ref(), Some(value));
    }
    assert_eq!(scan.next().await?, None);
    for n in 0..17 {
        let key = format!("key{n:02}");
        assert_eq!(engine.get(key.as_bytes()).await?.as_ref(), state.get(key.as_bytes()), "{key}");
    }
    Ok(state)
}

/// Writes, flushes and compacts for a while; all of it must work.
pub(crate) async fn use_normally(engine: &LsmEngine, history: &mut History) {
    for i in 0..12 {
        history.write(engine, History::mixed(i * 11), Durability::Os).await.unwrap();
    }
    engine.flush().await.unwrap();
    engine.compact_range(.., CompactionMode::Full).await.unwrap();
    engine.wait_idle().await.unwrap();
    assert_eq!(read_all(engine).await.unwrap(), history.now());
}

/// Whether an open refused damaged files, as it should.
pub(crate) fn is_corrupt<T>(opened: &Result<T>) -> bool {
    matches!(opened, Err(Error::Corrupt { .. }))
}
