//! Every component dies at every message that a busy life has for it: whoever waits is answered, nothing is lost or done twice.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that waits in vain must stop")]

#[expect(dead_code, reason = "other tests of this world need more of it")]
#[path = "world/mod.rs"]
mod world;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nori_lsm::env::sim::{Latency, SimFs, VirtualClock, sim_env};
use nori_lsm::env::{Blocking, Env, Fs};
use nori_lsm::{
    ATLLConfig, Blow, CompactionMode, Component, Compression, CompressionConfig, Durability, Error,
    HealthState, IoConfig, Level, LsmEngine, MemtableConfig, SeqNo, WalConfig, WriteBatch,
    WriteOptions,
};
use world::{State, config, in_paused_time, open, read_all};

const WRITERS: usize = 3;
const WRITES: u64 = 30;
/// Operations of one batch.
const OPS: u64 = 3;
/// Messages at most at which a component is struck by one blow; of more, an even choice.
const STRIKES: u64 = 30;
const VITAL: [Component; 4] =
    [Component::WalWriter, Component::MemtableOwner, Component::Flusher, Component::ManifestKeeper];

fn components() -> Vec<Component> {
    let compactors = (0..4).map(|level| Component::Compactor(Level(level)));
    let others = [Component::Scheduler, Component::WalGc, Component::Scrubber];
    VITAL.into_iter().chain(compactors).chain(others).collect()
}

/// Everything that a component hears by itself comes often.
fn restless() -> ATLLConfig {
    ATLLConfig {
        io: IoConfig { scrub_interval: Some(Duration::from_secs(2)), ..Default::default() },
        compression: CompressionConfig {
            flush: Compression::None,
            levels: Compression::None,
            last: Compression::None,
        },
        memtable: MemtableConfig { flush_trigger_bytes: 1 << 10, wal_age_trigger_sec: 1 },
        wal: WalConfig { gc_interval_sec: 1, segment_preallocate: false },
        ..config()
    }
}

fn slow(fs: &SimFs) -> Env {
    fs.cold_reads(20);
    let blocking = Blocking::Delayed(Latency::new(1, Duration::from_millis(10)));
    Env { blocking, ..sim_env(fs, VirtualClock::default()) }
}

/// What writers were told.
#[derive(Debug, Default)]
struct Ledger {
    /// Of each writer, the last number that was acknowledged and the last that was tried.
    writers: Mutex<[(u64, u64); WRITERS]>,
    /// SeqNo of the last operation of each acknowledged batch.
    seqs: Mutex<Vec<SeqNo>>,
}

impl Ledger {
    fn of(&self, writer: usize) -> (u64, u64) {
        self.writers.lock().unwrap()[writer]
    }

    fn change(&self, writer: usize, change: impl FnOnce(&mut (u64, u64))) {
        change(&mut self.writers.lock().unwrap()[writer]);
    }
}

/// Nobody waits for ever.
async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect(what)
}

/// What a call may be told when one component dies once.
fn interrupted<T>(what: &str, result: nori_lsm::Result<T>) {
    if let Err(error) = result {
        assert!(matches!(error, Error::Interrupted { .. }), "{what}: {error}");
    }
}

/// Writes 1, 2, 3, … to two keys of its own at once, and to one of many.
async fn writer(engine: LsmEngine, ledger: Arc<Ledger>, id: usize) {
    for n in 1..=WRITES {
        ledger.change(id, |(_, tried)| *tried = n);
        let mut batch = WriteBatch::default();
        let value = format!("{n:04}");
        batch.put(format!("w{id}a"), value.clone()).put(format!("w{id}b"), value.clone());
        batch.put(format!("w{id}-{:02}", n * 7 % 25), value.repeat(80));
        let durability = match n % 4 {
            0 => Durability::Sync,
            1 => Durability::Batch(Duration::from_millis(5)),
            _ => Durability::Os,
        };
        let options = WriteOptions { durability: Some(durability), ..Default::default() };
        let written = within("a write", engine.write(batch, options)).await;
        if let Ok(commit) = &written {
            ledger.change(id, |(acked, _)| *acked = n);
            ledger.seqs.lock().unwrap().push(commit.seq);
        }
        interrupted("a write", written);
        tokio::time::sleep(Duration::from_millis(n * 5 % 17)).await;
    }
}

/// Checks that each pair is whole and no older than what was acknowledged before the read, nor newer than what was tried.
async fn check(engine: &LsmEngine, ledger: &Ledger) {
    for id in 0..WRITERS {
        let (acked, _) = ledger.of(id);
        let found = engine.multi_get(&[format!("w{id}a"), format!("w{id}b")]).await.unwrap();
        assert_eq!(found[0], found[1], "half a batch");
        let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse::<u64>().unwrap();
        let shown = found[0].as_deref().map_or(0, number);
        let (_, tried) = ledger.of(id);
        assert!((acked..=tried).contains(&shown), "{shown} of {acked} to {tried}");
    }
}

async fn reader(engine: LsmEngine, ledger: Arc<Ledger>) {
    for _ in 0..60 {
        check(&engine, &ledger).await;
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

async fn operator(engine: LsmEngine) {
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        interrupted("a sync", within("a sync", engine.sync()).await);
        let snapshot = engine.snapshot();
        interrupted("a flush", within("a flush", engine.flush()).await);
        let compacted = engine.compact_range(.., CompactionMode::Full);
        interrupted("a compaction", within("a compaction", compacted).await);
        drop(snapshot);
        if round == 1 {
            within("a check", engine.verify()).await.unwrap();
        }
    }
}

/// A life in which every component is busy. It takes the same course each time, up to the first blow.
async fn life(engine: &LsmEngine, ledger: &Arc<Ledger>) {
    let mut tasks: Vec<_> = (0..WRITERS)
        .map(|id| tokio::spawn(writer(engine.clone(), Arc::clone(ledger), id)))
        .collect();
    tasks.push(tokio::spawn(reader(engine.clone(), Arc::clone(ledger))));
    tasks.push(tokio::spawn(operator(engine.clone())));
    for task in tasks {
        task.await.expect("its laws hold");
    }
    // Timers of every kind come round.
    tokio::time::sleep(Duration::from_millis(2500)).await;
}

/// Whether all is as if nothing had happened.
async fn is_well(engine: &LsmEngine, ledger: &Ledger, fs: &SimFs) -> State {
    check(engine, ledger).await;
    within("a write", engine.put("end", "1")).await.unwrap();
    within("a flush", engine.flush()).await.unwrap();
    within("a compaction", engine.compact_range(.., CompactionMode::Full)).await.unwrap();
    within("a wait", engine.wait_idle()).await.unwrap();
    assert_eq!(engine.health().state, HealthState::Healthy);
    assert!(engine.health().components.values().all(|it| !it.down));
    check(engine, ledger).await;
    let (stats, tables) = (engine.stats(), fs.list(Path::new("/db/sst")).unwrap());
    assert_eq!(tables.len(), stats.tables, "no file is left behind: {tables:?}");
    assert_eq!((stats.snapshots, stats.pinned_tables), (0, 0));
    // Each batch took its own SeqNos, one behind the other; of those that failed, some may have been applied.
    let mut seqs = ledger.seqs.lock().unwrap().clone();
    seqs.sort_unstable();
    for pair in seqs.windows(2) {
        assert!(pair[1].0 >= pair[0].0 + OPS, "two batches shared a SeqNo: {pair:?}");
    }
    let (acked, all) = (u64::try_from(seqs.len()).unwrap(), WRITERS as u64 * WRITES);
    let applied = stats.last_seq.0 - 1; // the one above
    assert!(applied.is_multiple_of(OPS), "{applied} operations: half a batch");
    assert!((acked..=all).contains(&(applied / OPS)), "{applied} operations of {acked} to {all}");
    read_all(engine).await.unwrap()
}

/// Lives once; `blow` falls at the message of `component` that comes behind so many others. Returns what each has heard.
fn lives(blow: Option<(Component, u64, Blow)>) -> BTreeMap<Component, u64> {
    in_paused_time(async move {
        let fs = SimFs::new(1);
        let engine = LsmEngine::open_in(restless(), slow(&fs)).await.unwrap();
        let begun = components().into_iter().map(|it| (it, engine.messages(it)));
        let begun: BTreeMap<_, _> = begun.collect();
        let ledger = Arc::new(Ledger::default());
        if let Some((component, after, blow)) = blow {
            engine.strike_after(component, after, blow);
        }
        life(&engine, &ledger).await;
        let heard = begun.into_iter().map(|(it, begun)| (it, engine.messages(it) - begun));
        let heard = heard.collect();
        if let Some((component, ..)) = blow {
            let health = engine.health();
            assert_eq!(health.components[&component.to_string()].restarts, 1, "{health:?}");
        }
        let state = is_well(&engine, &ledger, &fs).await;
        within("a shutdown", engine.shutdown()).await.unwrap();
        drop(engine);
        let engine = open(&fs, config()).await.unwrap();
        assert_eq!(read_all(&engine).await.unwrap(), state, "a reopen shows the same");
        check(&engine, &ledger).await;
        engine.shutdown().await.unwrap();
        heard
    })
}

/// Strikes `component` with every blow at every message, or at [`STRIKES`] of them.
fn strike(component: Component) {
    let heard = lives(None)[&component];
    assert!(heard > 3, "{component} has something to do: {heard}");
    for blow in [Blow::Panic, Blow::Fail, Blow::Kill] {
        for strike in 0..heard.min(STRIKES) {
            let after = strike * heard / heard.min(STRIKES);
            let lived = std::panic::catch_unwind(|| lives(Some((component, after, blow))));
            assert!(lived.is_ok(), "{component}: {blow:?} behind {after} of {heard} messages");
        }
    }
}

#[test]
fn the_wal_writer_may_die_at_every_message() {
    strike(Component::WalWriter);
}

#[test]
fn the_memtable_owner_may_die_at_every_message() {
    strike(Component::MemtableOwner);
}

#[test]
fn the_flusher_may_die_at_every_message() {
    strike(Component::Flusher);
}

#[test]
fn the_manifest_keeper_may_die_at_every_message() {
    strike(Component::ManifestKeeper);
}

#[test]
fn the_compactors_of_every_level_that_has_work_may_die_at_every_message() {
    let heard = lives(None);
    let busy = |level: &Component| heard[level] > 0;
    let compactors: Vec<_> =
        (0..4).map(|level| Component::Compactor(Level(level))).filter(busy).collect();
    assert!(compactors.len() > 2, "{heard:?}");
    compactors.into_iter().for_each(strike);
}

#[test]
fn the_scheduler_may_die_at_every_message() {
    strike(Component::Scheduler);
}

#[test]
fn the_log_collector_may_die_at_every_message() {
    strike(Component::WalGc);
}

#[test]
fn the_scrubber_may_die_at_every_message() {
    strike(Component::Scrubber);
}

/// Kills `component` until it is given up.
async fn storm(engine: &LsmEngine, component: Component) {
    let is_down =
        || engine.health().components.get(&component.to_string()).is_some_and(|it| it.down);
    for _ in 0..6 {
        assert!(!is_down(), "five deaths are forgiven");
        engine.kill(component);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(is_down(), "the sixth within thirty seconds is not");
}

#[test]
fn a_storm_of_deaths_of_a_vital_component_leaves_an_engine_that_is_read() {
    for component in VITAL {
        in_paused_time(async move {
            let fs = SimFs::new(1);
            let engine = LsmEngine::open_in(config(), slow(&fs)).await.unwrap();
            engine.put("k", "v").await.unwrap();
            let mut told = engine.health_changes();
            storm(&engine, component).await;
            let read_only = told.wait_for(|it| matches!(it.state, HealthState::ReadOnly { .. }));
            let state = within("a change of health", read_only).await.unwrap().state.clone();
            let HealthState::ReadOnly { reason } = state else { unreachable!("waited for it") };
            assert!(reason.contains(component.name()), "{reason}");
            for options in [Durability::Os, Durability::Sync] {
                let options = WriteOptions { durability: Some(options), ..Default::default() };
                let put = within("a put", engine.put_with("k", "w", options)).await;
                assert!(matches!(put, Err(Error::Unavailable { .. })), "{component}: {put:?}");
            }
            assert_eq!(read_all(&engine).await.unwrap()[&b"k"[..]], "v", "reads and scans go on");
            assert!(within("a flush", engine.flush()).await.is_err());
            drop(within("a sync", engine.sync()).await);
            drop(within("a wait", engine.wait_idle()).await);
            drop(within("a compaction", engine.compact_range(.., CompactionMode::Full)).await);
            tokio::time::sleep(Duration::from_secs(120)).await;
            let state = engine.health().state;
            assert!(matches!(state, HealthState::ReadOnly { .. }), "nobody resumed it: {state:?}");
            engine.resume();
            let healthy = told.wait_for(|it| it.state == HealthState::Healthy);
            drop(within("a change of health", healthy).await.unwrap());
            assert!(!engine.health().components[&component.to_string()].down);
            within("a put", engine.put("k", "w")).await.unwrap();
            within("a flush", engine.flush()).await.unwrap();
            within("a wait", engine.wait_idle()).await.unwrap();
            assert_eq!(engine.get(b"k").await.unwrap().unwrap(), "w");
            within("a shutdown", engine.shutdown()).await.unwrap();
        });
    }
}

#[test]
fn a_storm_of_deaths_of_another_component_is_shown_and_over_by_itself_after_a_minute() {
    for component in components().into_iter().filter(|component| !VITAL.contains(component)) {
        in_paused_time(async move {
            let fs = SimFs::new(1);
            let engine = LsmEngine::open_in(config(), slow(&fs)).await.unwrap();
            let mut told = engine.health_changes();
            storm(&engine, component).await;
            let degraded = told.wait_for(|it| matches!(it.state, HealthState::Degraded { .. }));
            let state = within("a change of health", degraded).await.unwrap().state.clone();
            let HealthState::Degraded { cause, .. } = state else { unreachable!("waited for it") };
            assert!(cause.contains(&component.to_string()), "{cause}");
            for i in 0..20 {
                within("a put", engine.put(format!("k{i}"), vec![7; 100])).await.unwrap();
            }
            within("a flush", engine.flush()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(engine.health().components[&component.to_string()].down, "not yet");
            // Nobody waits for what is not going to be done soon; nor is damage waited for that nobody looks for.
            match (component, within("a wait", engine.wait_idle()).await) {
                (Component::Scheduler | Component::WalGc, Err(Error::Unavailable { .. })) => {}
                (Component::Compactor(_), Ok(()) | Err(Error::Unavailable { .. })) => {}
                (Component::Scrubber, Ok(())) => {}
                (_, waited) => unreachable!("{component}: {waited:?}"),
            }
            tokio::time::sleep(Duration::from_secs(15)).await;
            assert_eq!(engine.health().state, HealthState::Healthy, "{component}");
            assert!(!engine.health().components[&component.to_string()].down);
            within("a compaction", engine.compact_range(.., CompactionMode::Full)).await.unwrap();
            within("a wait", engine.wait_idle()).await.unwrap();
            within("a shutdown", engine.shutdown()).await.unwrap();
        });
    }
}
