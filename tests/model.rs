//! The engine against a model: any sequence of operations, reopens and power cuts, under tiny sizes, shows what a map would.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use nori_lsm::env::Clock;
use nori_lsm::env::sim::{SimFs, VirtualClock, sim_env};
use nori_lsm::{
    ATLLConfig, CompactionMode, Compression, CompressionConfig, DefaultK, Durability, FilterConfig,
    KeyRange, LsmEngine, MemtableConfig, ResourceConfig, Scan, SeqNo, Snapshot, WalConfig,
    WriteBatch, WriteOptions,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Keys of the model: enough to overlap, few enough to meet again.
const KEYS: u8 = 24;

#[derive(Clone, Debug)]
enum Op {
    /// Keys with the sizes of their new values, `None` to delete; time to live in seconds; whether it is synced.
    Write {
        ops: Vec<(u8, Option<u16>)>,
        ttl: Option<u16>,
        sync: bool,
    },
    Get(u8),
    MultiGet(Vec<u8>),
    Scan(Walk),
    Snapshot,
    /// Reads from one of the snapshots.
    Look {
        which: u8,
        walk: Walk,
    },
    Forget {
        which: u8,
    },
    Sync,
    Flush,
    Compact {
        from: u8,
        to: Option<u8>,
    },
    Idle,
    /// Time passes.
    Wait(u16),
    Shutdown,
    Drop,
    PowerCut(u64),
}

#[derive(Clone, Debug)]
struct Walk {
    from: u8,
    to: Option<u8>,
    backward: bool,
    prefix: Option<u8>,
    limit: Option<u8>,
    /// After so many entries it goes to this key.
    seek: Option<(u8, u8)>,
}

fn walk() -> impl Strategy<Value = Walk> {
    (
        0..KEYS,
        proptest::option::of(0..KEYS + 2),
        any::<bool>(),
        proptest::option::weighted(0.2, 0..3_u8),
        proptest::option::weighted(0.2, 0..8_u8),
        proptest::option::weighted(0.3, (0..6_u8, 0..KEYS)),
    )
        .prop_map(|(from, to, backward, prefix, limit, seek)| Walk {
            from,
            to,
            backward,
            prefix,
            limit,
            seek,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![6 => 0..60_u16, 1 => 200..3000_u16];
    let value = proptest::option::weighted(0.8, size);
    let ops = prop_oneof![
        4 => proptest::collection::vec((0..KEYS, value.clone()), 1..2),
        1 => proptest::collection::vec((0..KEYS, value), 0..9),
    ];
    let ttl = proptest::option::weighted(0.15, 1..50_u16);
    prop_oneof![
        40 => (ops, ttl, proptest::bool::weighted(0.1))
            .prop_map(|(ops, ttl, sync)| Op::Write { ops, ttl, sync }),
        8 => (0..KEYS + 2).prop_map(Op::Get),
        2 => proptest::collection::vec(0..KEYS, 0..6).prop_map(Op::MultiGet),
        8 => walk().prop_map(Op::Scan),
        3 => Just(Op::Snapshot),
        5 => (any::<u8>(), walk()).prop_map(|(which, walk)| Op::Look { which, walk }),
        2 => any::<u8>().prop_map(|which| Op::Forget { which }),
        1 => Just(Op::Sync),
        3 => Just(Op::Flush),
        2 => (0..KEYS, proptest::option::of(0..KEYS)).prop_map(|(from, to)| Op::Compact { from, to }),
        2 => Just(Op::Idle),
        3 => (1..40_u16).prop_map(Op::Wait),
        1 => Just(Op::Shutdown),
        1 => Just(Op::Drop),
        2 => any::<u64>().prop_map(Op::PowerCut),
    ]
}

/// Sizes that make everything happen within a hundred writes.
fn config() -> impl Strategy<Value = ATLLConfig> {
    let sizes =
        (1..9_usize, prop_oneof![Just(64_usize), Just(256), Just(4096)], 1..4_usize, 2..5_usize);
    let rest = (2..6_usize, 1..4_u8, 0..2_usize, any::<bool>(), 0..3_u8, any::<u64>());
    (sizes, rest).prop_map(|((kib, block_size, slots, fanout), rest)| {
        let (max_levels, k, block_cache_mib, segment_preallocate, codec, seed) = rest;
        let codec = [Compression::None, Compression::Lz4, Compression::Zstd][usize::from(codec)];
        ATLLConfig {
            data_dir: PathBuf::from("/db"),
            fanout,
            max_levels,
            l1_slot_count: slots,
            memtable: MemtableConfig { flush_trigger_bytes: kib << 10, ..Default::default() },
            default_k: DefaultK { l1: k, l2: k, l3_plus: 1 },
            filters: FilterConfig { bloom_bits_per_key: usize::from(k) * 4 - 4 },
            block_size,
            restart_interval: kib,
            compression: CompressionConfig { flush: codec, levels: codec, last: codec },
            resources: ResourceConfig { block_cache_mib, ..Default::default() },
            wal: WalConfig { segment_preallocate, ..Default::default() },
            seed,
            ..Default::default()
        }
    })
}

/// A value, and when it expires.
type Cell = (Bytes, Option<u64>);
type Map = BTreeMap<Bytes, Cell>;
/// What one batch did.
type Entered = Vec<(Bytes, Option<Cell>)>;

struct World {
    fs: SimFs,
    clock: VirtualClock,
    config: ATLLConfig,
    engine: Option<LsmEngine>,
    /// Every write that may still count, with the SeqNo of its last operation.
    log: Vec<(SeqNo, Entered)>,
    now: Map,
    /// Up to here a power cut takes nothing.
    durable: SeqNo,
    snapshots: Vec<(Snapshot, Map)>,
    writes: u32,
}

fn key(n: u8) -> Bytes {
    format!("{}{n:03}", char::from(b'a' + n % 3)).into()
}

fn apply(map: &mut Map, ops: &[(Bytes, Option<Cell>)]) {
    for (key, cell) in ops {
        match cell {
            Some(cell) => drop(map.insert(key.clone(), cell.clone())),
            None => drop(map.remove(key)),
        }
    }
}

impl World {
    async fn new(config: ATLLConfig) -> Self {
        let (fs, clock) = (SimFs::new(config.seed), VirtualClock::default());
        fs.cold_reads(30);
        let mut world = Self {
            fs,
            clock,
            config,
            engine: None,
            log: Vec::new(),
            now: Map::new(),
            durable: SeqNo(0),
            snapshots: Vec::new(),
            writes: 0,
        };
        world.open().await;
        world
    }

    fn engine(&self) -> &LsmEngine {
        self.engine.as_ref().unwrap()
    }

    fn live(&self, map: &Map, key: &Bytes) -> Option<Bytes> {
        let (value, expires) = map.get(key)?;
        expires.is_none_or(|at| at > self.clock.wall_ms()).then(|| value.clone())
    }

    async fn open(&mut self) {
        let env = sim_env(&self.fs, self.clock.clone());
        let engine = LsmEngine::open_in(self.config.clone(), env).await.unwrap();
        let last = engine.recovery().last_seq;
        assert!(last >= self.durable, "{last} is there, {} was durable", self.durable);
        self.log.retain(|(seq, _)| *seq <= last);
        let whole = self.log.last().is_none_or(|(seq, _)| *seq == last);
        assert!(whole, "a batch is all there or not at all");
        self.now.clear();
        self.log.iter().for_each(|(_, ops)| apply(&mut self.now, ops));
        self.durable = last;
        self.engine = Some(engine);
        self.check_scan(&Walk {
            from: 0,
            to: None,
            backward: false,
            prefix: None,
            limit: None,
            seek: None,
        })
        .await;
    }

    /// Lets go of the engine without a word.
    fn leave(&mut self) {
        self.snapshots.clear();
        self.engine = None;
    }

    async fn run(&mut self, op: Op) {
        match op {
            Op::Write { ops, ttl, sync } => self.write(ops, ttl, sync).await,
            Op::Get(n) => {
                let found = self.engine().get(&key(n)).await.unwrap();
                assert_eq!(found, self.live(&self.now, &key(n)));
            }
            Op::MultiGet(keys) => {
                let keys: Vec<_> = keys.into_iter().map(key).collect();
                let wanted: Vec<_> = keys.iter().map(|key| self.live(&self.now, key)).collect();
                assert_eq!(self.engine().multi_get(&keys).await.unwrap(), wanted);
            }
            Op::Scan(walk) => self.check_scan(&walk).await,
            Op::Snapshot => {
                let snapshot = self.engine().snapshot();
                self.snapshots.push((snapshot, self.now.clone()));
            }
            Op::Look { which, walk } => self.look(which, &walk).await,
            Op::Forget { which } => {
                if !self.snapshots.is_empty() {
                    self.snapshots.remove(usize::from(which) % self.snapshots.len());
                }
            }
            Op::Compact { from, to } => {
                let range = KeyRange::new(key(from), to.map(key));
                let mode =
                    if from % 2 == 0 { CompactionMode::Full } else { CompactionMode::Rewrite };
                self.engine().compact_range(range, mode).await.unwrap();
            }
            Op::Idle => self.engine().wait_idle().await.unwrap(),
            Op::Wait(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
            Op::Sync | Op::Flush | Op::Shutdown | Op::Drop | Op::PowerCut(_) => self.turn(op).await,
        }
    }

    /// What makes writes durable, or tries to lose them.
    async fn turn(&mut self, op: Op) {
        let last = self.log.last().map_or(SeqNo(0), |(seq, _)| *seq);
        match op {
            Op::Sync => {
                assert!(self.engine().sync().await.unwrap() >= last);
                self.durable = last;
            }
            Op::Flush => {
                self.engine().flush().await.unwrap();
                self.durable = last;
            }
            Op::Shutdown => {
                self.engine().shutdown().await.unwrap();
                self.durable = last;
                self.leave();
                self.open().await;
                assert_eq!(self.engine().recovery().operations, 0, "a shutdown leaves no log");
            }
            Op::Drop => {
                self.durable = last;
                self.leave();
                self.open().await;
            }
            Op::PowerCut(seed) => {
                self.fs = self.fs.crash(seed);
                self.fs.cold_reads(30);
                self.leave();
                self.open().await;
            }
            _ => {}
        }
    }

    async fn write(&mut self, ops: Vec<(u8, Option<u16>)>, ttl: Option<u16>, sync: bool) {
        self.writes += 1;
        let mut batch = WriteBatch::default();
        let mut entered = Vec::new();
        let expires = ttl.map(|ttl| self.clock.wall_ms() + u64::from(ttl) * 1000);
        for (n, size) in ops {
            let cell = size.map(|size| {
                let value = format!("{}:", self.writes).repeat(1 + usize::from(size) / 4);
                (Bytes::from(value), expires)
            });
            match &cell {
                Some((value, _)) => batch.put(key(n), value.clone()),
                None => batch.delete(key(n)),
            };
            entered.push((key(n), cell));
        }
        let options = WriteOptions {
            durability: sync.then_some(Durability::Sync),
            ttl: ttl.map(|ttl| Duration::from_secs(ttl.into())),
            deadline: None,
        };
        let seq = self.engine().write(batch, options).await.unwrap().seq;
        if entered.is_empty() {
            return;
        }
        assert!(self.log.last().is_none_or(|(last, _)| *last < seq));
        apply(&mut self.now, &entered);
        self.log.push((seq, entered));
        if sync {
            self.durable = seq;
        }
    }

    async fn check_scan(&self, walk: &Walk) {
        let scan = self.engine().scan(walk.range());
        self.compare(scan, &self.now, walk).await;
    }

    async fn look(&self, which: u8, walk: &Walk) {
        if self.snapshots.is_empty() {
            return;
        }
        let (snapshot, map) = &self.snapshots[usize::from(which) % self.snapshots.len()];
        self.compare(snapshot.scan(walk.range()), map, walk).await;
        let key = key(walk.from);
        assert_eq!(snapshot.get(&key).await.unwrap(), self.live(map, &key));
    }

    async fn compare(&self, mut scan: Scan, map: &Map, walk: &Walk) {
        if walk.backward {
            scan = scan.rev();
        }
        if let Some(prefix) = walk.prefix {
            scan = scan.prefix([b'a' + prefix]);
        }
        if let Some(limit) = walk.limit {
            scan = scan.limit(limit.into());
        }
        let range = walk.range();
        let mut all: Vec<_> = map
            .keys()
            .filter(|key| range.contains(key))
            .filter(|key| walk.prefix.is_none_or(|prefix| key[0] == b'a' + prefix))
            .filter_map(|key| Some((key.clone(), self.live(map, key)?)))
            .collect();
        if walk.backward {
            all.reverse();
        }
        let mut left = walk.limit.map_or(usize::MAX, usize::from);
        if let Some((after, to)) = walk.seek {
            let wanted: Vec<_> = all.iter().take(left.min(after.into())).cloned().collect();
            assert_eq!(scan.next_chunk(after.into()).await.unwrap(), wanted, "{walk:?}");
            left -= wanted.len();
            scan.seek(key(to));
            all.retain(|(at, _)| if walk.backward { *at < key(to) } else { *at >= key(to) });
        }
        all.truncate(left);
        assert_eq!(scan.next_chunk(usize::MAX).await.unwrap(), all, "{walk:?}");
    }
}

impl Walk {
    fn range(&self) -> KeyRange {
        KeyRange::new(key(self.from), self.to.map(key))
    }
}

#[test]
fn any_history_shows_what_a_map_would() {
    let cases = std::env::var("NORI_MODEL_CASES").ok().and_then(|cases| cases.parse().ok());
    let runner =
        Config { cases: cases.unwrap_or(256), failure_persistence: None, ..Default::default() };
    let histories = (config(), proptest::collection::vec(op(), 1..160));
    TestRunner::new(runner)
        .run(&histories, |(config, ops)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let history = async {
                let mut world = World::new(config).await;
                for op in ops {
                    world.run(op).await;
                }
                world.turn(Op::Shutdown).await;
            };
            let hour = Duration::from_secs(7200);
            let done = runtime.block_on(async { tokio::time::timeout(hour, history).await });
            prop_assert!(done.is_ok(), "something hangs");
            Ok(())
        })
        .unwrap();
}
