//! Bytes as a program: operations, faults and ends of processes on a simulated machine, compared with a history of what was written.
//!
//! Each operation is a byte and its arguments. A program ends with its bytes; then the machine is killed and everything checked.

use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::{
    ATLLConfig, CompactionMode, Compression, CompressionConfig, Durability, Error, FilterConfig,
    KeyRange, LsmEngine, MemtableConfig, ResourceConfig, Result, Scan, Snapshot, WalConfig,
};

use super::Verdict;
use super::world::{self, History, Ops, State, in_paused_time};

/// More operations are left out: a check costs as much as there were writes.
const OPERATIONS_MAX: usize = 300;

pub fn run(data: &[u8]) -> Verdict {
    let mut program = Program { bytes: data, operations: 0, writes: 0 };
    let mut history = History::default();
    let mut fs = SimFs::new(1);
    let mut lossy = false;
    while program.goes_on() {
        let config = program.config();
        let end = in_paused_time(life(&fs, config, &mut program, (&mut history, lossy)));
        lossy = matches!(end, End::PowerCut(_));
        fs = match end {
            End::Shutdown | End::Kill => fs.kill(),
            End::PowerCut(seed) => fs.crash(seed),
        };
    }
    in_paused_time(life(&fs, world::config(), &mut program, (&mut history, lossy)));
    if history.acked.is_empty() { Verdict::Refused } else { Verdict::Accepted }
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Shutdown,
    Kill,
    PowerCut(u64),
}

/// Opens the database, checks what is there, and runs the program until the process ends.
async fn life(
    fs: &SimFs,
    config: ATLLConfig,
    program: &mut Program<'_>,
    (history, lossy): (&mut History, bool),
) -> End {
    let engine = world::open(fs, config).await.expect("nothing is wrong with the files");
    let found = world::read_all(&engine).await.expect("nothing is wrong with the files");
    if !lossy {
        history.all_durable();
    }
    history.recovered(&found).expect("what was written is there");
    let mut life =
        Life { fs, engine, history, snapshots: Vec::new(), calm: true, faults: Vec::new() };
    while program.goes_on() {
        let operation = program.byte();
        if let Some(end) = life.run(operation, program).await {
            return life.known_end(end);
        }
    }
    life.known_end(End::Kill)
}

/// A running process.
struct Life<'a> {
    fs: &'a SimFs,
    engine: LsmEngine,
    history: &'a mut History,
    snapshots: Vec<(Snapshot, State)>,
    /// Whether no fault was asked for yet: nothing may fail.
    calm: bool,
    /// What was to fail.
    faults: Vec<Operation>,
}

impl Life<'_> {
    async fn run(&mut self, operation: u8, program: &mut Program<'_>) -> Option<End> {
        match operation % 32 {
            0..=11 => {
                let durability =
                    [Durability::Os, Durability::Os, Durability::Sync, Durability::Batch(SOON)]
                        [usize::from(operation / 32 % 4)];
                let ops = program.batch(operation % 32 < 8);
                let written = self.history.write(&self.engine, ops, durability).await;
                self.excuse(written);
            }
            12 => self.get(program.key()).await,
            13..=15 => self.scan(program).await,
            16 => self.check().await,
            17 => {
                if self.history.failed.is_empty() && self.snapshots.len() < 4 {
                    self.snapshots.push((self.engine.snapshot(), self.history.now()));
                }
            }
            18 => self.look(program).await,
            19 if !self.snapshots.is_empty() => {
                self.snapshots.remove(usize::from(program.byte()) % self.snapshots.len());
            }
            20 | 21 => {
                let flushed = self.engine.flush().await;
                self.now_durable(flushed);
            }
            22 => {
                let synced = self.engine.sync().await.map(drop);
                self.now_durable(synced);
            }
            23 => {
                let compacted = self.engine.compact_range(program.range(), CompactionMode::Full);
                let compacted = compacted.await;
                self.excuse(compacted);
            }
            24 => {
                let idle = self.engine.wait_idle().await;
                self.excuse(idle);
            }
            // All the time that a program can spend is far from what counts as a hang.
            25 => tokio::time::sleep(Duration::from_millis(10) * program.byte().into()).await,
            26 => self.fault(program),
            27 => self.fs.heal(),
            28 => return Some(self.shut_down().await),
            29 => return Some(End::Kill),
            30 => return Some(End::PowerCut(program.byte().into())),
            _ => self.fs.cold_reads(program.byte() % 100),
        }
        None
    }

    /// What a failed sync left in the page cache only may outlive the process, but not the power, if the log segment could not even
    /// be marked: the first of the known limits in docs/reliability.md.
    fn known_end(&self, end: End) -> End {
        let failed = |operation| self.faults.contains(&operation);
        match end {
            End::Kill if failed(Operation::Sync) && failed(Operation::Create) => End::PowerCut(0),
            end => end,
        }
    }

    async fn shut_down(&mut self) -> End {
        self.snapshots.clear();
        let ended = self.engine.shutdown().await;
        let end = if ended.is_ok() { End::Shutdown } else { End::Kill };
        self.now_durable(ended);
        end
    }

    fn now_durable(&mut self, done: Result<()>) {
        if done.is_ok() {
            self.history.all_durable();
        }
        self.excuse(done);
    }

    /// Only a fault that was asked for is an excuse, and damage has none.
    fn excuse<T>(&self, done: Result<T>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(Error::Io { .. } | Error::Interrupted { .. } | Error::Unavailable { .. })
                if !self.calm =>
            {
                None
            }
            Err(Error::Stalled { .. }) => None,
            Err(error) => panic!("calm {}: {error:?}", self.calm),
        }
    }

    fn fault(&mut self, program: &mut Program<'_>) {
        self.calm = false;
        let trouble = [Trouble::Io, Trouble::NoSpace, Trouble::TooManyFiles];
        let trouble = trouble[usize::from(program.byte()) % trouble.len()];
        let operation =
            Operation::MUTATING[usize::from(program.byte()) % Operation::MUTATING.len()];
        self.faults.push(operation);
        let (after, times) = (program.byte() % 16, 1 + program.byte() % 4);
        self.fs.inject(Fault::new(trouble).on(operation).after(after.into()).times(times.into()));
    }

    async fn get(&self, key: Bytes) {
        let Some(found) = self.excuse(self.engine.get(&key).await) else { return };
        let fits = self.states().any(|state| state.get(&key) == found.as_ref());
        assert!(fits, "{key:?} = {found:?}");
    }

    /// What may be there: also with one of the writes that failed since the last one that did not.
    fn states(&self) -> impl Iterator<Item = State> {
        let with = |ops: &Ops| {
            let mut state = self.history.now();
            for (key, value) in ops {
                match value {
                    Some(value) => drop(state.insert(key.clone(), value.clone())),
                    None => drop(state.remove(key)),
                }
            }
            state
        };
        [self.history.now()].into_iter().chain(self.history.failed.iter().map(with))
    }

    async fn check(&self) {
        if let Some(found) = self.excuse(world::read_all(&self.engine).await) {
            assert!(self.states().any(|state| state == found), "{found:?}");
        }
    }

    async fn scan(&self, program: &mut Program<'_>) {
        let walk = program.walk();
        let Some(found) = self.excuse(walk.of(self.engine.scan(walk.range.clone())).await) else {
            return;
        };
        assert!(self.states().any(|state| walk.through(&state) == found), "{walk:?}: {found:?}");
    }

    async fn look(&self, program: &mut Program<'_>) {
        let (which, walk) = (usize::from(program.byte()), program.walk());
        let at = which.checked_rem(self.snapshots.len());
        let Some((snapshot, state)) = at.and_then(|at| self.snapshots.get(at)) else { return };
        if let Some(found) = self.excuse(walk.of(snapshot.scan(walk.range.clone())).await) {
            assert_eq!(found, walk.through(state), "{walk:?} of a snapshot");
        }
    }
}

/// How long writes of [`Durability::Batch`] may stay unsynced.
const SOON: Duration = Duration::from_millis(10);

/// A walk over a range.
#[derive(Debug)]
struct Walk {
    range: KeyRange,
    backward: bool,
    limit: usize,
}

impl Walk {
    async fn of(&self, scan: Scan) -> Result<Vec<(Bytes, Bytes)>> {
        let scan = if self.backward { scan.rev() } else { scan };
        scan.limit(self.limit).next_chunk(usize::MAX).await
    }

    fn through(&self, state: &State) -> Vec<(Bytes, Bytes)> {
        let entries = state.iter().filter(|(key, _)| self.range.contains(key));
        let mut entries: Vec<_> =
            entries.map(|(key, value)| (key.clone(), value.clone())).collect();
        if self.backward {
            entries.reverse();
        }
        entries.truncate(self.limit);
        entries
    }
}

/// What is left of the bytes. Behind their end all is zero.
struct Program<'a> {
    bytes: &'a [u8],
    operations: usize,
    writes: usize,
}

impl Program<'_> {
    fn goes_on(&mut self) -> bool {
        self.operations += 1;
        !self.bytes.is_empty() && self.operations < OPERATIONS_MAX
    }

    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(format!("key{:02}", self.byte() % 17))
    }

    /// `None` deletes the key.
    fn cell(&mut self) -> (Bytes, Option<Bytes>) {
        let (key, size) = (self.key(), usize::from(self.byte()));
        let value = format!("{}-", self.writes).repeat(1 + size % 64);
        (key, (size % 8 != 7).then(|| Bytes::from(value)))
    }

    fn batch(&mut self, single: bool) -> Ops {
        self.writes += 1;
        let count = if single { 1 } else { self.byte() % 8 };
        (0..count).map(|_| self.cell()).collect()
    }

    fn range(&mut self) -> KeyRange {
        let (start, end) = (self.byte(), self.byte());
        let key = |n: u8| Bytes::from(format!("key{:02}", n % 17));
        KeyRange::new(
            if start < 128 { Bytes::new() } else { key(start) },
            (end >= 128).then(|| key(end)),
        )
    }

    fn walk(&mut self) -> Walk {
        let range = self.range();
        let how = self.byte();
        let limit = if how < 128 { usize::MAX } else { usize::from(how % 32) };
        Walk { range, backward: how % 2 == 1, limit }
    }

    /// Sizes that make everything happen within a hundred writes.
    fn config(&mut self) -> ATLLConfig {
        let (sizes, shape, rest) = (self.byte(), self.byte(), self.byte());
        let pick = |byte: u8, shift: u8, count: u8| usize::from(byte >> shift) % usize::from(count);
        let codec = [Compression::None, Compression::Lz4, Compression::Zstd][pick(rest, 0, 3)];
        ATLLConfig {
            fanout: 2 + pick(shape, 0, 4),
            max_levels: 2 + pick(shape, 2, 4),
            l1_slot_count: 1 + pick(shape, 4, 4),
            hot_k: 1 + u8::try_from(pick(shape, 6, 4)).unwrap_or(0),
            memtable: MemtableConfig {
                flush_trigger_bytes: 1 << (10 + pick(sizes, 0, 3)),
                wal_age_trigger_sec: 1,
            },
            block_size: 64 << pick(sizes, 2, 6),
            restart_interval: 1 + pick(sizes, 5, 7),
            filters: FilterConfig { bloom_bits_per_key: [0, 1, 10, 16][pick(rest, 2, 4)] },
            compression: CompressionConfig { flush: codec, levels: codec, last: codec },
            resources: ResourceConfig {
                block_cache_mib: pick(rest, 4, 2),
                open_files: [1, 3, 1024][pick(rest, 5, 3)],
                ..Default::default()
            },
            wal: WalConfig { segment_preallocate: rest >> 7 == 1, ..Default::default() },
            ..world::config()
        }
    }
}
