//! Writers, readers, scanners and snapshots against each other, every answer checked.
//!
//! `cargo run --release --example soak -- SECONDS KEYS`: 2 seconds on 20,000 keys by default, so that it can run anywhere;
//! 300 seconds on 2,000,000 keys make a gigabyte.
#![expect(clippy::print_stdout, reason = "it reports to whoever runs it")]
#![expect(clippy::disallowed_methods, reason = "a program outside of the engine reads the clock")]

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nori_lsm::{ATLLConfig, LsmEngine};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const WRITERS: usize = 16;
const READERS: usize = 16;
const SCANNERS: usize = 4;
const VALUE_BYTES: usize = 480;

/// What is known of each key: the version that a writer began to write, and the last that was acknowledged.
struct World {
    engine: LsmEngine,
    begun: Vec<AtomicU32>,
    acked: Vec<AtomicU32>,
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    scanned: AtomicU64,
    /// How long the runtime was late for somebody else's timers: at the median, for one in a thousand, at worst.
    late: Mutex<[Duration; 3]>,
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("key{number:012}"))
}

/// A value that says whose it is: key number, version, and bytes that follow from both.
fn value(number: usize, version: u32) -> Bytes {
    let mut value = format!("{number:012}{version:010}").into_bytes();
    let mut noise = fastrand::Rng::with_seed(number as u64 ^ (u64::from(version) << 32));
    while value.len() < VALUE_BYTES {
        value.extend_from_slice(&noise.u32(..).to_le_bytes());
        value.extend_from_slice(&[0; 4]);
    }
    value.into()
}

/// The version of a value, after checking that every byte of it belongs to its key.
fn version_of(number: usize, found: &Bytes) -> Fallible<u32> {
    let digits = found.get(12..22).ok_or("a value is too short")?;
    let version: u32 = std::str::from_utf8(digits)?.parse()?;
    if *found != value(number, version) {
        return Err(format!("key {number} has the value of something else").into());
    }
    Ok(version)
}

impl World {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Checks what a read showed against what was acknowledged before it and begun before its end.
    fn check(&self, number: usize, least: u32, found: Option<&Bytes>) -> Fallible {
        let version = found.map_or(Ok(0), |found| version_of(number, found))?;
        let most = self.begun[number].load(Ordering::SeqCst);
        if version < least || version > most {
            return Err(
                format!("key {number}: read version {version}, not {least}..={most}").into()
            );
        }
        Ok(())
    }

    /// Writes its own share of the keys, a batch now and then.
    async fn write(&self, writer: usize) -> Fallible {
        let mut rng = fastrand::Rng::with_seed(writer as u64);
        let share = self.begun.len() / WRITERS;
        while self.running() {
            let number = rng.usize(..share) * WRITERS + writer;
            let version = self.begun[number].fetch_add(1, Ordering::SeqCst) + 1;
            self.engine.put(key(number), value(number, version)).await?;
            self.acked[number].store(version, Ordering::SeqCst);
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads at random; now and then twice through a snapshot, which must say the same.
    async fn read(&self, reader: usize) -> Fallible {
        let mut rng = fastrand::Rng::with_seed(1000 + reader as u64);
        while self.running() {
            let number = rng.usize(..self.begun.len());
            let least = self.acked[number].load(Ordering::SeqCst);
            let found = self.engine.get(&key(number)).await?;
            if let Err(wrong) = self.check(number, least, found.as_ref()) {
                let again = self.engine.get(&key(number)).await?.is_some();
                return Err(format!("get: {wrong}; there on a second look: {again}").into());
            }
            self.reads.fetch_add(1, Ordering::Relaxed);
            if rng.u8(..) == 0 {
                let snapshot = self.engine.snapshot();
                let first = snapshot.get(&key(number)).await?;
                tokio::time::sleep(Duration::from_millis(rng.u64(..50))).await;
                if snapshot.get(&key(number)).await? != first {
                    return Err(format!("key {number} changed under a snapshot").into());
                }
            }
        }
        Ok(())
    }

    /// Scans both ways: ascending or descending, nothing twice, nothing missing that was there.
    async fn scan(&self, scanner: usize) -> Fallible {
        let mut rng = fastrand::Rng::with_seed(2000 + scanner as u64);
        while self.running() {
            let from = rng.usize(..self.begun.len());
            let to = (from + rng.usize(1..2000)).min(self.begun.len());
            let least: Vec<_> =
                self.acked[from..to].iter().map(|acked| acked.load(Ordering::SeqCst)).collect();
            let mut numbers: Vec<usize> = (from..to).collect();
            let mut scan = self.engine.scan(key(from)..key(to));
            if scanner % 2 == 1 {
                scan = scan.rev();
                numbers.reverse();
            }
            let mut next = scan.next().await?;
            for number in numbers {
                let here = next.as_ref().is_some_and(|(found, _)| *found == key(number));
                let found = if here { next.take() } else { None };
                let value = found.as_ref().map(|(_, value)| value);
                if let Err(wrong) = self.check(number, least[number - from], value) {
                    let there = self.engine.get(&key(number)).await?.is_some();
                    return Err(
                        format!("scan {from}..{to}: {wrong}; a get finds it: {there}").into()
                    );
                }
                if here {
                    self.scanned.fetch_add(1, Ordering::Relaxed);
                    next = scan.next().await?;
                }
            }
            if next.is_some() {
                return Err("a scan showed a key out of order".into());
            }
        }
        Ok(())
    }
}

/// A task that has nothing to do with the engine but the runtime: how late are its timers?
async fn heart(world: &World) -> Fallible {
    const BEAT: Duration = Duration::from_millis(2);
    let mut late = Vec::new();
    while world.running() {
        let start = Instant::now();
        tokio::time::sleep(BEAT).await;
        late.push(start.elapsed().saturating_sub(BEAT));
    }
    late.sort_unstable();
    let at = |share: usize| late.get(late.len() * share / 1000).or(late.last()).copied();
    *world.late.lock().unwrap_or_else(PoisonError::into_inner) =
        [at(500), at(999), at(1000)].map(Option::unwrap_or_default);
    Ok(())
}

fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10
}

fn files_in(dir: &Path) -> Fallible<usize> {
    Ok(std::fs::read_dir(dir)?.count())
}

async fn report(world: &World, start: Instant) {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "{:5.0?}  {} writes, {} reads, {} scanned, peak {} MiB, pressure {:.2}, write amp {:.2}",
        start.elapsed(),
        load(&world.writes),
        load(&world.reads),
        load(&world.scanned),
        peak_rss_mib(),
        world.engine.pressure().borrow().value,
        world.engine.stats().write_amplification().unwrap_or(0.0),
    );
}

async fn run(world: &Arc<World>, time: Duration) -> Fallible {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..WRITERS.max(READERS).max(SCANNERS) {
        let (a, b, c) = (Arc::clone(world), Arc::clone(world), Arc::clone(world));
        if id < WRITERS {
            tasks.spawn(async move { a.write(id).await });
        }
        if id < READERS {
            tasks.spawn(async move { b.read(id).await });
        }
        if id < SCANNERS {
            tasks.spawn(async move { c.scan(id).await });
        }
    }
    let beating = Arc::clone(world);
    tasks.spawn(async move { heart(&beating).await });
    let mut tick = tokio::time::interval(Duration::from_secs(10).min(time));
    tick.tick().await;
    loop {
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => ended??, // before its time: an error
            _ = tick.tick() => report(world, start).await,
        }
        if start.elapsed() >= time {
            break;
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let keys: usize = args.next().map_or(Ok(20_000), |arg| arg.parse())?;
    let dir = tempfile::tempdir()?;
    let config = ATLLConfig { data_dir: dir.path().join("db"), ..Default::default() };
    let engine = LsmEngine::open(config.clone()).await?;
    let counters = || std::iter::repeat_with(AtomicU32::default).take(keys).collect();
    let world = Arc::new(World {
        engine,
        begun: counters(),
        acked: counters(),
        stop: AtomicBool::new(false),
        reads: AtomicU64::default(),
        writes: AtomicU64::default(),
        scanned: AtomicU64::default(),
        late: Mutex::default(),
    });
    run(&world, Duration::from_secs(seconds)).await?;
    world.engine.flush().await?;
    world.engine.wait_idle().await?;
    let tables = files_in(&config.data_dir.join("sst"))?;
    assert_eq!(tables, world.engine.stats().tables, "no table is left behind");
    let segments = files_in(&config.data_dir.join("wal"))?;
    assert!(segments <= 2, "the open segment and the next: {segments}");
    println!("{}", world.engine.stats());
    let [median, rare, worst] = *world.late.lock().unwrap_or_else(PoisonError::into_inner);
    println!(
        "timers were late by {median:.0?}, one in a thousand by {rare:.0?}, at worst by {worst:.0?}"
    );
    world.engine.shutdown().await?;

    let engine = LsmEngine::open(config).await?;
    println!("{}", engine.recovery());
    for (number, acked) in world.acked.iter().enumerate() {
        let found = engine.get(&key(number)).await?;
        let version = found.map_or(Ok(0), |found| version_of(number, &found))?;
        assert_eq!(version, acked.load(Ordering::SeqCst), "key {number} after a reopen");
    }
    engine.shutdown().await?;
    println!("every answer was right; peak memory {} MiB", peak_rss_mib());
    Ok(())
}
