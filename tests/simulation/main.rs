//! The whole engine in a simulated world: one seed is one history of clients, faults, deaths, power cuts and reopens, and an
//! oracle checks everything that was seen.
//!
//! `NORI_SIM_SEEDS=5000` runs more of them, `NORI_SIM_SEED=17` runs one again.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::print_stderr, reason = "what was run is part of the result")]

mod clients;
mod nemesis;
mod oracle;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use nori_lsm::env::sim::{Latency, SimFs, VirtualClock, sim_env};
use nori_lsm::env::{Blocking, Clock, Env};
use nori_lsm::{
    ATLLConfig, Compression, CompressionConfig, DefaultK, Durability, Error, FilterConfig,
    HealthState, IoConfig, L0Config, LsmEngine, MemtableConfig, ResourceConfig, WalConfig,
};

use nemesis::{Weather, nemesis};
use oracle::State;
use world::{Record, World};

/// Seeds of a run that nobody asked to be longer.
const SEEDS: u64 = 250;
/// Longest time that the engine may take to work again once nothing is broken any more.
const HEALED_WITHIN: Duration = Duration::from_secs(600);

/// How the life of a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Shutdown,
    /// The last handle is dropped.
    Drop,
    Kill,
    PowerCut,
    /// The power is cut at one of the next so many changes to the disk.
    CutAt(u64),
}

impl End {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..10) {
            0 | 1 => Self::Shutdown,
            2 => Self::Drop,
            3 | 4 => Self::Kill,
            5 => Self::PowerCut,
            _ => Self::CutAt(rng.u64(1..400)),
        }
    }
}

/// Sizes that make everything happen within a hundred writes.
fn config(rng: &mut Rng) -> ATLLConfig {
    let codec = |rng: &mut Rng| *rng.choice(&[Compression::None, Compression::Lz4]).unwrap();
    ATLLConfig {
        data_dir: PathBuf::from("/db"),
        fanout: rng.usize(2..11),
        max_levels: rng.usize(2..6),
        l1_slot_count: rng.usize(1..9),
        memtable: MemtableConfig {
            flush_trigger_bytes: 1 << rng.usize(10..17),
            wal_age_trigger_sec: rng.u64(1..30),
        },
        l0: L0Config { max_files: rng.usize(2..13) },
        filters: FilterConfig { bloom_bits_per_key: *rng.choice(&[0, 1, 10, 16]).unwrap() },
        durability: Durability::Os,
        default_k: DefaultK { l1: rng.u8(1..5), l2: rng.u8(1..5), l3_plus: rng.u8(1..5) },
        io: IoConfig {
            max_background_compactions: rng.usize(1..4),
            rate_limit_mb_s: None,
            scrub_interval: rng.bool().then(|| Duration::from_millis(rng.u64(50..5000))),
        },
        compression: CompressionConfig { flush: codec(rng), levels: codec(rng), last: codec(rng) },
        block_size: 64 << rng.u32(..7),
        restart_interval: rng.usize(1..20),
        resources: ResourceConfig {
            block_cache_mib: rng.usize(..2),
            memtables_mib: 1,
            open_files: if rng.bool() { rng.usize(1..10) } else { 1024 },
        },
        wal: WalConfig { segment_preallocate: rng.bool(), gc_interval_sec: rng.u64(1..60) },
        seed: rng.u64(..),
        ..Default::default()
    }
}

fn env(fs: &SimFs, clock: &VirtualClock, rng: &mut Rng) -> Env {
    let slowest = Duration::from_millis(*rng.choice(&[0, 3, 30]).unwrap());
    let blocking = Blocking::Delayed(Latency::new(rng.u64(..), slowest));
    Env { blocking, ..sim_env(fs, clock.clone()) }
}

/// One history. Returns the record of it.
fn history(seed: u64) -> Arc<Record> {
    let mut rng = Rng::with_seed(seed);
    let writers = rng.usize(1..5);
    let record = Record::new(writers);
    let mut fs = SimFs::new(seed);
    let mut lossy = false;
    let mut elapsed = Duration::ZERO;
    for epoch in 0..rng.usize(2..6) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let before = Before { epoch, writers, elapsed, lossy };
        let life = live(&record, &fs, before, &mut rng);
        let (end, lived) = runtime.block_on(life);
        // What still runs dies with its runtime, at whatever await it has come to.
        drop(runtime);
        if record.complaint().is_some() {
            break;
        }
        elapsed += lived;
        record.trace(format!("--- {end:?}"));
        lossy = fs.is_off() || end == End::PowerCut;
        fs = if lossy { fs.crash(rng.u64(..)) } else { fs.kill() };
    }
    record
}

/// What a process comes into.
#[derive(Clone, Copy, Debug)]
struct Before {
    epoch: usize,
    writers: usize,
    /// Time that went by before.
    elapsed: Duration,
    /// Whether the power was cut.
    lossy: bool,
}

/// One process: opens the database, checks it, uses it, and comes to its end. Returns how, and how long it lived.
async fn live(record: &Arc<Record>, fs: &SimFs, before: Before, rng: &mut Rng) -> (End, Duration) {
    let Before { epoch, writers, elapsed, lossy } = before;
    let clock = VirtualClock::default();
    clock.jump_wall(i64::try_from(elapsed.as_millis()).unwrap());
    let (weather, end) = (Weather::draw(rng), End::draw(rng));
    let cold = if rng.bool() { rng.u8(..60) } else { 0 };
    fs.cold_reads(cold);
    if rng.u8(..4) == 0 {
        // Something may already go wrong while it is opened.
        let nth = fs.mutations() + rng.u64(1..30);
        if rng.bool() { fs.crash_at(nth) } else { fs.fail_at(nth) }
    } else if let End::CutAt(changes) = end {
        fs.crash_at(fs.mutations() + changes);
    }
    record.trace(format!("epoch {epoch}: {weather:?}, {end:?}, cold {cold}"));
    let engine = match open(record, fs, &clock, rng).await {
        Some(engine) => engine,
        None => return (end, clock.now()),
    };
    fs.heal(); // what was to go wrong in the open but did not
    let calm = weather == Weather::Calm;
    let world = World {
        engine,
        fs: fs.clone(),
        clock: clock.clone(),
        calm,
        writers,
        record: Arc::clone(record),
        stop: Arc::default(),
    };
    if !check_all(&world, Some(lossy)).await {
        return (end, clock.now());
    }
    work(&world, weather, rng).await;
    // A process may also be killed, and the power cut, while everything is broken.
    let mends = matches!(end, End::Shutdown | End::Drop) || rng.bool();
    if mends && !world.fs.is_off() && record.complaint().is_none() {
        recover_and_end(&world, end).await;
    }
    let lived = clock.now();
    if calm && !world.fs.is_off() && end == End::PowerCut {
        record.oracle().time_has_come(lived);
    }
    if end == End::Drop {
        drop(world);
        clock.sleep(Duration::from_secs(5)).await;
    }
    (end, lived)
}

/// Opens the database; an open that fails because something was broken is tried again.
async fn open(
    record: &Arc<Record>,
    fs: &SimFs,
    clock: &VirtualClock,
    rng: &mut Rng,
) -> Option<LsmEngine> {
    let mut config = config(rng);
    let env = env(fs, clock, rng);
    for attempt in 0..2 {
        config.seed = rng.u64(..);
        let opened = LsmEngine::open_in(config.clone(), env.clone()).await;
        record.trace(format!("open: {:?}", opened.as_ref().map(LsmEngine::recovery)));
        match opened {
            Ok(engine) => return Some(engine),
            Err(_) if fs.is_off() => return None,
            Err(Error::Io { .. }) if attempt == 0 => fs.heal(),
            Err(error) => {
                record.complain(format!("open: {error}"));
                return None;
            }
        }
    }
    None
}

/// Everything that the engine shows, by a scan each way and by gets, is checked. `recovery`: whether the power was cut before.
async fn check_all(world: &World, recovery: Option<bool>) -> bool {
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let found = async {
        let mut state = State::new();
        let mut scan = world.engine.scan(..);
        while let Some((key, value)) = scan.next().await? {
            state.insert(key, value);
        }
        let span = world.since(begin_ms);
        world.judge(|oracle| match recovery {
            Some(lossy) => oracle.recovered(&state, lossy, span),
            None => oracle.saw_all(&known, None, &state, span).map(drop),
        });
        let mut scan = world.engine.scan(..).rev();
        let mut backward = State::new();
        while let Some((key, value)) = scan.next().await? {
            backward.insert(key, value);
        }
        let keys = world.record.oracle().keys();
        for key in keys {
            let value = world.engine.get(&key).await?;
            if !key.starts_with(b"t")
                && (value.as_ref() != state.get(&key) || value.as_ref() != backward.get(&key))
            {
                world.complain(format!(
                    "{key:?}: a scan, one backward, and a get differ: {:?}, {:?}, {value:?}",
                    state.get(&key),
                    backward.get(&key)
                ));
            }
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = found.await
        && !world.fs.is_off()
    {
        let opened_into_trouble = matches!(error, Error::Io { .. });
        if !opened_into_trouble {
            world.complain(format!("check: {error}"));
        }
        return false;
    }
    !world.fs.is_off()
}

/// Clients work, and things go wrong, until the writers have done their part.
async fn work(world: &World, weather: Weather, rng: &mut Rng) {
    let mut writing: Vec<_> = (0..world.writers)
        .map(|id| tokio::spawn(clients::writer(world.clone(), id, rng.usize(5..80), rng.fork())))
        .collect();
    writing.push(tokio::spawn(clients::expiring_writer(
        world.clone(),
        rng.usize(..40),
        rng.fork(),
    )));
    let mut others: Vec<_> = (0..rng.usize(1..4))
        .map(|_| tokio::spawn(clients::reader(world.clone(), rng.fork())))
        .collect();
    others.push(tokio::spawn(clients::keeper(world.clone(), rng.fork())));
    others.push(tokio::spawn(nemesis(world.clone(), weather, rng.fork())));
    let cut = async {
        while !world.fs.is_off() {
            world.sleep(Duration::from_millis(5)).await;
        }
    };
    let all = async {
        join(world, writing).await;
        world.stop();
        join(world, others).await;
    };
    // When the power is cut nobody comes to an end.
    tokio::select! {
        biased;
        () = cut => {}
        () = all => {}
    }
}

async fn join(world: &World, tasks: Vec<tokio::task::JoinHandle<()>>) {
    for task in tasks {
        if let Err(panic) = task.await {
            world.complain(format!("{panic:?}"));
        }
    }
}

/// Nothing is broken any more: the engine works again by itself. Then it comes to its end.
async fn recover_and_end(world: &World, end: End) {
    world.fs.heal();
    let healed = tokio::time::timeout(HEALED_WITHIN, heal(world)).await;
    if world.fs.is_off() {
        return;
    }
    if healed.is_err() {
        world.complain(format!(
            "not healed: {:?}, {:?}",
            world.engine.health(),
            world.engine.stats()
        ));
        return;
    }
    if !check_all(world, None).await {
        return;
    }
    match end {
        End::Shutdown => {
            let last = world.record.oracle().last_acked();
            let done = world.within("shutdown", world.engine.shutdown()).await;
            match done {
                Some(Ok(())) => world.record.oracle().durable_up_to(last),
                Some(Err(_)) | None if world.fs.is_off() => {}
                done => world.complain(format!("shutdown: {done:?}")),
            }
        }
        End::Drop | End::Kill | End::PowerCut | End::CutAt(_) => {}
    }
}

/// Tries until writes are taken, nothing is left to do, and the engine says that it is well.
async fn heal(world: &World) {
    let mut health = world.engine.health_changes();
    let soon = Duration::from_millis(100);
    loop {
        let error = match world.engine.sync().await {
            Err(error) => error,
            Ok(_) => match world.engine.flush().await {
                Err(error) => error,
                Ok(()) => match world.engine.wait_idle().await {
                    Err(error) => error,
                    Ok(()) => break,
                },
            },
        };
        world.trace(format!("not healed: {error}"));
        if world.calm && !world.fs.is_off() {
            world.complain(format!("after a calm life: {error}"));
        }
        if matches!(error, Error::Unavailable { .. }) {
            world.engine.resume();
        }
        world.sleep(soon).await;
    }
    while health.borrow_and_update().state != HealthState::Healthy {
        if matches!(world.engine.health().state, HealthState::ReadOnly { .. }) {
            world.engine.resume();
        }
        if health.changed().await.is_err() {
            return;
        }
    }
    world.trace(format!("healed: {:?}", world.engine.stats()));
}

/// Runs a seed in a thread of its own: what a thread counts begins anew.
fn run(seed: u64) -> Result<Arc<Record>, String> {
    let thread = std::thread::Builder::new().name(format!("seed {seed}"));
    let ended = thread.spawn(move || history(seed)).unwrap().join();
    let record = ended.map_err(|panic| format!("seed {seed} panicked: {panic:?}"))?;
    match record.complaint() {
        Some(complaint) => Err(format!("seed {seed}: {complaint}")),
        None => Ok(record),
    }
}

fn asked<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs all seeds, two at a time. Returns the complaints.
fn run_all(seeds: std::ops::Range<u64>) -> Vec<String> {
    let next = AtomicU64::new(seeds.start);
    let operations = AtomicU64::new(0);
    let worker = || {
        let mut complaints = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return complaints;
            }
            match run(seed) {
                Ok(record) => {
                    let done = record.operations.load(Ordering::Relaxed);
                    operations.fetch_add(done, Ordering::Relaxed);
                }
                Err(complaint) => {
                    eprintln!(
                        "{complaint}\n  again: NORI_SIM_SEED={seed} cargo test --test simulation\n"
                    );
                    complaints.push(complaint);
                }
            }
        }
    };
    let complaints = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    eprintln!("{} seeds, {} operations", seeds.end - seeds.start, operations.into_inner());
    complaints
}

/// Deaths that were asked for need not be reported on every run.
fn keep_quiet_about_blows() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<&str>();
        let asked_for = text.is_some_and(|text| text.contains("on demand"));
        if !asked_for {
            report(panic);
        }
    }));
}

#[test]
fn no_history_breaks_a_promise() {
    keep_quiet_about_blows();
    let seeds = match asked("NORI_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = asked("NORI_SIM_FIRST").unwrap_or(0);
            first..first + asked("NORI_SIM_SEEDS").unwrap_or(SEEDS)
        }
    };
    let complaints = run_all(seeds);
    assert!(complaints.is_empty(), "{} seeds failed, see above", complaints.len());
}

#[test]
fn a_seed_is_the_same_history_every_time() {
    keep_quiet_about_blows();
    for seed in 0..20 {
        let hashes: Vec<u64> = (0..3).map(|_| history_hash(seed)).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "seed {seed}: {hashes:?}");
    }
}

fn history_hash(seed: u64) -> u64 {
    run(seed).map_or(0, |record| record.trace_hash())
}
