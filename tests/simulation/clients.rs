//! Those who use the engine in a simulation: writers, readers, and somebody who asks for everything else.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures::poll;
use nori_lsm::env::Clock;
use nori_lsm::env::sim::sim_env;
use nori_lsm::{
    ATLLConfig, Commit, CompactionMode, Durability, Error, KeyRange, LsmEngine, Result, Scan,
    Snapshot, WriteBatch, WriteOptions,
};

use crate::oracle::{Effect, Key, Known, State, mark};
use crate::world::World;

/// Keys of each writer, and keys that all share.
const OWN: usize = 10;
const SHARED: usize = 4;
/// After the interval of a [`Durability::Batch`], the disk may take so long.
const SLOW_DISK: Duration = Duration::from_secs(2);

fn own(writer: usize, n: usize) -> Key {
    format!("k{n:02}/w{writer}").into()
}

fn shared(n: usize) -> Key {
    format!("s{n:02}").into()
}

fn expiring(n: usize) -> Key {
    format!("t{n:02}").into()
}

fn any_key(world: &World, rng: &mut Rng) -> Key {
    match rng.u8(..10) {
        0..6 => own(rng.usize(..world.writers), rng.usize(..OWN)),
        6 => shared(rng.usize(..SHARED)),
        7 => expiring(rng.usize(..OWN)),
        8 => mark(rng.usize(..world.writers)),
        _ => Bytes::from(format!("nobody{}", rng.u8(..))),
    }
}

/// A value that no other write has.
fn value(writer: usize, n: usize, rng: &mut Rng) -> Bytes {
    let len = match rng.u8(..20) {
        0 => rng.usize(..3000),
        1..6 => rng.usize(..300),
        _ => rng.usize(..30),
    };
    let mut value = format!("w{writer}#{n}.{}:", rng.u16(..));
    value.extend(std::iter::repeat_with(|| rng.char('a'..='e')).take(len));
    value.into()
}

/// Writes `budget` batches, one after the other.
pub(crate) async fn writer(world: World, id: usize, budget: usize, mut rng: Rng) {
    for _ in 0..budget {
        if world.is_over() {
            return;
        }
        pause(&world, &mut rng).await;
        let n = world.record.oracle().next(id);
        let mut effects = Vec::new();
        for _ in 0..if rng.u8(..3) == 0 { rng.usize(..8) } else { 1 } {
            let key = if rng.u8(..8) == 0 {
                shared(rng.usize(..SHARED))
            } else {
                own(id, rng.usize(..OWN))
            };
            let value = (rng.u8(..5) > 0).then(|| value(id, n, &mut rng));
            effects.push(Effect { key, value });
        }
        effects.push(Effect { key: mark(id), value: Some(n.to_string().into()) });
        write(&world, id, effects, None, &mut rng).await;
    }
}

/// Writes `budget` values that expire, one after the other.
pub(crate) async fn expiring_writer(world: World, budget: usize, mut rng: Rng) {
    let id = world.writers;
    for _ in 0..budget {
        if world.is_over() {
            return;
        }
        pause(&world, &mut rng).await;
        let n = world.record.oracle().next(id);
        let value = (rng.u8(..8) > 0).then(|| value(id, n, &mut rng));
        let effects = vec![Effect { key: expiring(rng.usize(..OWN)), value }];
        let ttl = (rng.u8(..6) > 0).then(|| Duration::from_millis(rng.u64(1..3000)));
        write(&world, id, effects, ttl, &mut rng).await;
    }
}

async fn pause(world: &World, rng: &mut Rng) {
    match rng.u8(..10) {
        0..5 => {}
        5..8 => tokio::task::yield_now().await,
        _ => world.sleep(Duration::from_millis(rng.u64(..60))).await,
    }
}

async fn write(
    world: &World,
    id: usize,
    effects: Vec<Effect>,
    ttl: Option<Duration>,
    rng: &mut Rng,
) {
    let durability = match rng.u8(..20) {
        0..12 => Durability::Os,
        12..15 => Durability::Batch(Duration::from_millis(rng.u64(1..500))),
        _ => Durability::Sync,
    };
    let deadline = (rng.u8(..10) == 0).then(|| Duration::from_millis(rng.u64(..200)));
    let mut batch = WriteBatch::default();
    for Effect { key, value } in &effects {
        match value {
            Some(value) => batch.put(key.clone(), value.clone()),
            None => batch.delete(key.clone()),
        };
    }
    let until_ms = ttl.map(|ttl| world.wall_ms() + u64::try_from(ttl.as_millis()).unwrap());
    world.record.oracle().issue(id, effects, until_ms);
    let options = WriteOptions { durability: Some(durability), ttl, deadline };
    let result = if rng.u8(..12) == 0 {
        impatient(world.engine.write(batch, options), rng).await
    } else {
        world.within("write", world.engine.write(batch, options)).await
    };
    let n = world.record.oracle().next(id) - 1;
    world.trace(format!("w{id} #{n} {durability:?} {result:?}"));
    match result {
        None => {}
        Some(Ok(Commit { seq })) => world.judge(|oracle| {
            let due = match durability {
                Durability::Batch(interval) if world.calm => {
                    Some(world.clock.now() + interval + SLOW_DISK)
                }
                _ => None,
            };
            if durability == Durability::Sync {
                oracle.durable_up_to(seq);
            }
            oracle.acked(id, seq, due)
        }),
        Some(Err(error)) => {
            world.excuse("write", &error);
            if matches!(error, Error::Stalled { .. } | Error::TooLarge { .. }) {
                world.judge(|oracle| oracle.refused(id));
            }
        }
    }
}

/// Drops `work` after a few polls.
async fn impatient<T>(work: impl Future<Output = T>, rng: &mut Rng) -> Option<T> {
    let mut work = Box::pin(work);
    for _ in 0..rng.u8(..6) {
        if let std::task::Poll::Ready(done) = poll!(&mut work) {
            return Some(done);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// A snapshot, what was known when it was taken, and what it showed.
struct Held {
    snapshot: Snapshot,
    known: Known,
    shown: Option<State>,
}

/// Reads, in every way there is, until it is over.
pub(crate) async fn reader(world: World, mut rng: Rng) {
    let mut held: Vec<Held> = Vec::new();
    while !world.is_over() {
        world.sleep(Duration::from_micros(rng.u64(..20_000))).await;
        let done = match rng.u8(..12) {
            0..4 => get(&world, &mut rng).await,
            4 => multi_get(&world, &mut rng).await,
            5 | 6 => scan_all(&world, &mut rng).await,
            7 => scan_some(&world, &mut rng).await,
            8 if held.len() < 3 => {
                let known = world.record.oracle().begin();
                held.push(Held { snapshot: world.engine.snapshot(), known, shown: None });
                Ok(())
            }
            9 if !held.is_empty() => {
                drop(held.swap_remove(rng.usize(..held.len())));
                Ok(())
            }
            _ if !held.is_empty() => {
                let index = rng.usize(..held.len());
                look_back(&world, &mut held[index], &mut rng).await
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            world.trace(format!("a read failed: {error}"));
            world.excuse("read", &error);
        }
    }
}

async fn get(world: &World, rng: &mut Rng) -> Result<()> {
    let key = any_key(world, rng);
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let value = world.engine.get(&key).await?;
    let span = world.since(begin_ms);
    world.trace(format!("get {key:?}: {}", shown(value.as_ref())));
    world.judge(|oracle| oracle.saw(&known, &key, value.as_ref(), span));
    Ok(())
}

fn shown(value: Option<&Bytes>) -> String {
    value.map_or_else(
        || "none".to_owned(),
        |value| String::from_utf8_lossy(value.get(..16).unwrap_or(value)).into_owned(),
    )
}

/// Some keys, and all marks, at one point in time.
async fn multi_get(world: &World, rng: &mut Rng) -> Result<()> {
    let mut keys: Vec<Key> = (0..world.writers).map(mark).collect();
    keys.extend((0..rng.usize(..6)).map(|_| any_key(world, rng)));
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let values = world.engine.multi_get(&keys).await?;
    let span = world.since(begin_ms);
    let found = || keys.iter().cloned().zip(values.iter().cloned());
    let state: State = found().filter_map(|(key, value)| Some((key, value?))).collect();
    world.trace(format!("multi_get: {} of {}", state.len(), keys.len()));
    world.judge(|oracle| {
        oracle.saw_marks(&known, None, &state)?;
        found().try_for_each(|(key, value)| oracle.saw(&known, &key, value.as_ref(), span))
    });
    Ok(())
}

/// Walks through everything, both ways, in steps or in chunks, while others go on.
async fn walk(scan: Scan, rng: &mut Rng) -> Result<State> {
    let backward = rng.bool();
    let mut scan = if backward { scan.rev() } else { scan };
    let mut entries: Vec<(Bytes, Bytes)> = Vec::new();
    let chunk = if rng.bool() { Some(rng.usize(1..20)) } else { None };
    loop {
        let before = entries.len();
        match chunk {
            Some(count) => entries.extend(scan.next_chunk(count).await?),
            None => entries.extend(scan.next().await?),
        }
        if entries.len() == before {
            break;
        }
        if rng.u8(..8) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let ordered = entries.is_sorted_by(|a, b| if backward { a.0 > b.0 } else { a.0 < b.0 });
    assert!(ordered, "a scan shows each key once, in order: {entries:?}");
    Ok(entries.into_iter().collect())
}

async fn scan_all(world: &World, rng: &mut Rng) -> Result<()> {
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let scan = world.engine.scan(..);
    let state = walk(scan, rng).await?;
    let span = world.since(begin_ms);
    world.trace(format!("scan: {} entries", state.len()));
    world.judge(|oracle| oracle.saw_all(&known, None, &state, span).map(drop));
    Ok(())
}

/// A few entries of a range, from a key on.
async fn scan_some(world: &World, rng: &mut Rng) -> Result<()> {
    let (a, b) = (any_key(world, rng), any_key(world, rng));
    let range = KeyRange::new(a.clone().min(b.clone()), Some(a.max(b)));
    let seek = any_key(world, rng);
    let limit = rng.usize(1..6);
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let mut scan = world.engine.scan(range.clone()).limit(limit);
    scan.seek(&seek);
    let entries = scan.next_chunk(limit).await?;
    let span = world.since(begin_ms);
    world.trace(format!("scan {range:?} from {seek:?}: {} entries", entries.len()));
    let state: State = entries.iter().cloned().collect();
    let last =
        (entries.len() == limit).then(|| entries.last().map(|(key, _)| key.clone())).flatten();
    let passed = |key: &Key| {
        range.contains(key) && *key >= seek && last.as_ref().is_none_or(|last| key <= last)
    };
    if let Some(strange) = state.keys().find(|key| !passed(key)) {
        world.complain(format!("a scan of {range:?} from {seek:?} shows {strange:?}"));
    }
    world.judge(|oracle| {
        let keys: Vec<Key> = oracle.keys().into_iter().filter(|key| passed(key)).collect();
        keys.iter().try_for_each(|key| oracle.saw(&known, key, state.get(key), span))
    });
    Ok(())
}

/// A snapshot shows the same for ever.
async fn look_back(world: &World, held: &mut Held, rng: &mut Rng) -> Result<()> {
    let begin_ms = world.wall_ms();
    let seq = held.snapshot.seq();
    let lasting = |key: &Key| !key.starts_with(b"t");
    match &held.shown {
        None => {
            let state = walk(held.snapshot.scan(..), rng).await?;
            let span = world.since(begin_ms);
            world.trace(format!("snapshot {seq}: {} entries", state.len()));
            world.judge(|oracle| oracle.saw_all(&held.known, Some(seq), &state, span).map(drop));
            held.shown = Some(state.into_iter().filter(|(key, _)| lasting(key)).collect());
        }
        Some(before) if rng.bool() => {
            let state = walk(held.snapshot.scan(..), rng).await?;
            let state: State = state.into_iter().filter(|(key, _)| lasting(key)).collect();
            if state != *before {
                world.complain(format!("snapshot {seq} showed {before:?}, and then {state:?}"));
            }
        }
        Some(before) => {
            let key = any_key(world, rng);
            let value = held.snapshot.get(&key).await?;
            if lasting(&key) && value.as_ref() != before.get(&key) {
                world.complain(format!("snapshot {seq} shows {key:?} as {value:?}"));
            }
        }
    }
    Ok(())
}

/// Asks for flushes, compactions, syncs and whatever else there is, until it is over.
pub(crate) async fn keeper(world: World, mut rng: Rng) {
    while !world.is_over() {
        world.sleep(Duration::from_millis(rng.u64(1..150))).await;
        let (what, done) = match rng.u8(..10) {
            0 | 1 => ("flush", flush(&world).await),
            2 => ("compact", compact(&world, &mut rng).await),
            3 | 4 => ("sync", sync(&world).await),
            5 => {
                let claimed = world.engine.durable_seq();
                world.record.oracle().durable_up_to(claimed);
                ("durable_seq", Some(Ok(())))
            }
            6 => ("verify", verify(&world).await),
            7 => ("checkpoint", checkpoint(&world, &mut rng).await),
            8 => {
                let stats = world.engine.stats();
                world.trace(format!("{} tables, {} flushes", stats.tables, stats.flushes));
                ("stats", Some(Ok(())))
            }
            _ => {
                let patience = Duration::from_secs(1);
                let idle = tokio::time::timeout(patience, world.engine.wait_idle()).await;
                ("wait_idle", idle.ok())
            }
        };
        if let Some(done) = done {
            world.trace(format!("{what} {done:?}"));
            if let Err(error) = done {
                world.excuse(what, &error);
            }
        }
    }
}

async fn flush(world: &World) -> Option<Result<()>> {
    let last = world.record.oracle().last_acked();
    let done = world.within("flush", world.engine.flush()).await;
    if let Some(Ok(())) = done {
        world.record.oracle().durable_up_to(last);
    }
    done
}

async fn sync(world: &World) -> Option<Result<()>> {
    let last = world.record.oracle().last_acked();
    let done = world.within("sync", world.engine.sync()).await?;
    if let Ok(seq) = done {
        if seq < last {
            world.complain(format!("sync says {seq}, but {last} was acknowledged before"));
        }
        world.record.oracle().durable_up_to(seq);
    }
    Some(done.map(drop))
}

/// Every table is sound.
async fn verify(world: &World) -> Option<Result<()>> {
    let report = world.within("verify", world.engine.verify()).await?;
    if let Ok(report) = &report
        && !report.damaged.is_empty()
    {
        world.complain(format!("{report:?}"));
    }
    Some(report.map(drop))
}

/// A checkpoint is a database that shows one point in time, from the call or a little later.
async fn checkpoint(world: &World, rng: &mut Rng) -> Option<Result<()>> {
    let (known, begin_ms) = (world.record.oracle().begin(), world.wall_ms());
    let dir = format!("/checkpoints/{}", rng.u64(..));
    if let Err(error) = world.within("checkpoint", world.engine.checkpoint(&dir)).await? {
        return Some(Err(error));
    }
    let elsewhere = if rng.bool() { world.fs.fork() } else { world.fs.fork().crash(rng.u64(..)) };
    let config = ATLLConfig { data_dir: dir.into(), ..Default::default() };
    let opened = async {
        let engine = LsmEngine::open_in(config, sim_env(&elsewhere, world.clock.clone())).await?;
        let state = walk(engine.scan(..), rng).await?;
        engine.shutdown().await?;
        Ok::<_, Error>(state)
    };
    match opened.await {
        Ok(state) => {
            let span = world.since(begin_ms);
            world.judge(|oracle| oracle.saw_all(&known, None, &state, span).map(drop));
        }
        Err(error) => world.complain(format!("a checkpoint: {error}")),
    }
    Some(Ok(()))
}

async fn compact(world: &World, rng: &mut Rng) -> Option<Result<()>> {
    let range = if rng.bool() {
        KeyRange::from(..)
    } else {
        let (a, b) = (any_key(world, rng), any_key(world, rng));
        KeyRange::new(a.clone().min(b.clone()), Some(a.max(b)))
    };
    world.within("compact", world.engine.compact_range(range, CompactionMode::Full)).await
}
