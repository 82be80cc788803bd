//! Components die under load: whoever waits gets an answer, nothing acknowledged is lost, and the engine goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that waits in vain must stop")]

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nori_lsm::env::sim::{ManualClock, SimFs, sim_env};
use nori_lsm::env::{Blocking, Env, Fs, ReadFile, WriteFile};
use nori_lsm::{
    ATLLConfig, Blow, Component, Durability, Error, HealthState, Level, LsmEngine, MemtableConfig,
    WriteBatch, WriteOptions,
};
use tokio::sync::oneshot;

const WRITERS: u64 = 16;
const READERS: u64 = 4;
const LEVELS: usize = 4;

fn config(dir: &Path) -> ATLLConfig {
    ATLLConfig {
        data_dir: dir.to_owned(),
        max_levels: LEVELS,
        fanout: 2,
        l1_slot_count: 2,
        memtable: MemtableConfig { flush_trigger_bytes: 16 << 10, ..Default::default() },
        seed: 1,
        ..Default::default()
    }
}

fn components() -> Vec<Component> {
    let first = [
        Component::WalWriter,
        Component::MemtableOwner,
        Component::Flusher,
        Component::ManifestKeeper,
        Component::Scheduler,
        Component::WalGc,
    ];
    first.into_iter().chain((0..2).map(|level| Component::Compactor(Level(level)))).collect()
}

/// What the writers know: for each, the last number acknowledged. A writer writes 1, 2, 3, … to its own keys.
#[derive(Default)]
struct Ledger {
    acked: Vec<AtomicU64>,
    /// Writes whose outcome is unknown.
    unknown: AtomicU64,
    stop: AtomicBool,
}

/// Writes pairs of keys, `a` and `b`, that must always show the same number.
async fn writer(engine: LsmEngine, ledger: Arc<Ledger>, id: u64) {
    let acked = &ledger.acked[usize::try_from(id).unwrap()];
    let mut n = acked.load(Ordering::Acquire);
    while !ledger.stop.load(Ordering::Acquire) {
        n += 1;
        let mut batch = WriteBatch::default();
        let value = format!("{n:08}");
        batch.put(format!("w{id}a"), value.clone()).put(format!("w{id}b"), value.clone());
        batch.put(format!("w{id}-{:04}", n % 500), value.repeat(8));
        let durability = if n.is_multiple_of(5) { Durability::Sync } else { Durability::Os };
        let options = WriteOptions { durability: Some(durability), ..Default::default() };
        match within(engine.write(batch, options)).await {
            Ok(_) => acked.store(n, Ordering::Release),
            Err(error) => {
                assert!(
                    matches!(error, Error::Interrupted { .. } | Error::Unavailable { .. }),
                    "{error}"
                );
                ledger.unknown.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
        if n.is_multiple_of(64) {
            tokio::task::yield_now().await;
        }
    }
}

/// Nobody waits for ever.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("an answer")
}

/// Reads what writers have been told is there, never less, and never half a batch.
async fn reader(engine: LsmEngine, ledger: Arc<Ledger>, mut id: u64) {
    while !ledger.stop.load(Ordering::Acquire) {
        id = (id + 1) % WRITERS;
        let least = ledger.acked[usize::try_from(id).unwrap()].load(Ordering::Acquire);
        let keys = [format!("w{id}a"), format!("w{id}b")];
        let found = within(engine.multi_get(&keys)).await.unwrap();
        assert_eq!(found[0], found[1], "half a batch");
        assert!(number(found[0].as_deref()) >= least, "{found:?} of {least}");
        tokio::task::yield_now().await;
    }
}

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| std::str::from_utf8(value).unwrap().parse().unwrap())
}

/// Runs `trouble` while everybody works; then checks, reopens and checks again.
async fn under_load<F: Future<Output = ()>>(trouble: impl FnOnce(LsmEngine, Arc<Ledger>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(config(dir.path())).await.unwrap();
    let ledger = Arc::new(Ledger {
        acked: (0..WRITERS).map(|_| AtomicU64::new(0)).collect(),
        ..Default::default()
    });
    let writers =
        (0..WRITERS).map(|id| tokio::spawn(writer(engine.clone(), Arc::clone(&ledger), id)));
    let mut tasks: Vec<_> = writers.collect();
    let readers =
        (0..READERS).map(|id| tokio::spawn(reader(engine.clone(), Arc::clone(&ledger), id)));
    tasks.extend(readers);
    trouble(engine.clone(), Arc::clone(&ledger)).await;
    ledger.stop.store(true, Ordering::Release);
    for task in tasks {
        task.await.unwrap();
    }
    check(&engine, &ledger).await;
    within(engine.flush()).await.unwrap();
    within(engine.wait_idle()).await.unwrap();
    check(&engine, &ledger).await;
    within(engine.shutdown()).await.unwrap();
    drop(engine);
    let engine = LsmEngine::open(config(dir.path())).await.unwrap();
    check(&engine, &ledger).await;
    within(engine.shutdown()).await.unwrap();
}

async fn check(engine: &LsmEngine, ledger: &Ledger) {
    for (id, acked) in ledger.acked.iter().enumerate() {
        let acked = acked.load(Ordering::Acquire);
        let keys = [format!("w{id}a"), format!("w{id}b")];
        let found = engine.multi_get(&keys).await.unwrap();
        assert_eq!(found[0], found[1], "half a batch");
        assert!(number(found[0].as_deref()) >= acked, "writer {id}: {found:?} of {acked}");
    }
}

/// Waits until the writers have got on by `count` writes.
async fn progress(ledger: &Ledger, count: u64) {
    let total = || ledger.acked.iter().map(|acked| acked.load(Ordering::Acquire)).sum::<u64>();
    let start = total();
    let got_on = async {
        while total() < start + count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), got_on).await.expect("writers get on");
}

/// Waits until a component has been started again.
async fn restarted(engine: &LsmEngine, component: Component) {
    let mut health = engine.health_changes();
    let name = component.to_string();
    let started = health.wait_for(|health| health.components.contains_key(&name));
    tokio::time::timeout(Duration::from_secs(60), started).await.expect("it dies").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_component_may_be_killed() {
    for component in components() {
        under_load(|engine, ledger| async move {
            progress(&ledger, 600).await;
            engine.kill(component);
            restarted(&engine, component).await;
            progress(&ledger, 600).await;
            let _busy = engine.compact_range(.., Default::default()).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_component_may_panic_or_fail_at_any_message() {
    for component in components() {
        for blow in [Blow::Panic, Blow::Fail] {
            under_load(|engine, ledger| async move {
                progress(&ledger, 300).await;
                engine.strike(component, blow);
                // Gives every component something to hear.
                drop(within(engine.flush()).await);
                drop(within(engine.compact_range(.., Default::default())).await);
                drop(within(engine.sync()).await);
                if component != Component::WalGc && component != Component::Compactor(Level(1)) {
                    restarted(&engine, component).await;
                }
                progress(&ledger, 300).await;
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_deaths_makes_it_read_only_and_resume_brings_it_back() {
    for component in [Component::WalWriter, Component::Flusher, Component::ManifestKeeper] {
        let dir = tempfile::tempdir().unwrap();
        let engine = LsmEngine::open(config(dir.path())).await.unwrap();
        engine.put("k", "v").await.unwrap();
        let mut health = engine.health_changes();
        let down = async {
            for _ in 0..200 {
                engine.kill(component);
                tokio::time::sleep(Duration::from_millis(50)).await;
                if matches!(engine.health().state, HealthState::ReadOnly { .. }) {
                    return;
                }
            }
        };
        down.await;
        health.borrow_and_update();
        let refused = within(engine.put("k", "w")).await;
        assert!(matches!(refused, Err(Error::Unavailable { .. })), "{component}: {refused:?}");
        assert_eq!(engine.get(b"k").await.unwrap().unwrap(), "v", "reads go on");
        assert!(engine.health().components[&component.to_string()].down);
        drop(within(engine.flush()).await);
        drop(within(engine.sync()).await);
        drop(within(engine.wait_idle()).await);
        engine.resume();
        let healthy = health.wait_for(|health| health.state == HealthState::Healthy);
        drop(tokio::time::timeout(Duration::from_secs(30), healthy).await.expect("healthy"));
        let mut tries = 0;
        while engine.put("k", "w").await.is_err() {
            tries += 1;
            assert!(tries < 1000, "it takes writes again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A flush that was begun while the component was down may end with that.
        let mut tries = 0;
        while within(engine.flush()).await.is_err() {
            tries += 1;
            assert!(tries < 100, "it flushes again");
        }
        assert_eq!(engine.get(b"k").await.unwrap().unwrap(), "w");
        within(engine.shutdown()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_engine_that_is_down_can_be_shut_down() {
    for component in [Component::WalWriter, Component::MemtableOwner, Component::Flusher] {
        let dir = tempfile::tempdir().unwrap();
        let engine = LsmEngine::open(config(dir.path())).await.unwrap();
        engine.put("k", "v").await.unwrap();
        while !matches!(engine.health().state, HealthState::ReadOnly { .. }) {
            engine.kill(component);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(within(engine.shutdown()).await);
        drop(engine);
        let engine = LsmEngine::open(config(dir.path())).await.unwrap();
        assert_eq!(engine.get(b"k").await.unwrap().unwrap(), "v", "{component}");
        within(engine.shutdown()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_goes_through_deaths() {
    for component in components() {
        let dir = tempfile::tempdir().unwrap();
        let engine = LsmEngine::open(config(dir.path())).await.unwrap();
        for i in 0..200 {
            engine.put(format!("k{i}"), vec![7; 100]).await.unwrap();
        }
        engine.strike(component, Blow::Panic);
        within(engine.shutdown()).await.unwrap();
        drop(engine);
        let engine = LsmEngine::open(config(dir.path())).await.unwrap();
        for i in 0..200 {
            assert!(engine.contains(format!("k{i}").as_bytes()).await.unwrap(), "{component} {i}");
        }
        within(engine.shutdown()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_engines_in_one_process_do_not_know_each_other() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engines = [
        LsmEngine::open(config(one.path())).await.unwrap(),
        LsmEngine::open(config(two.path())).await.unwrap(),
    ];
    let mut expected: BTreeMap<String, String> = BTreeMap::new();
    for i in 0..500 {
        for (n, engine) in engines.iter().enumerate() {
            engine.put(format!("k{i}"), format!("{n}")).await.unwrap();
        }
        expected.insert(format!("k{i}"), "0".to_owned());
    }
    engines[1].kill(Component::WalWriter);
    within(engines[1].shutdown()).await.unwrap();
    for (key, value) in expected {
        assert_eq!(engines[0].get(key.as_bytes()).await.unwrap().unwrap(), value);
    }
    assert!(engines[0].health().components.is_empty());
    within(engines[0].shutdown()).await.unwrap();
}

/// A disk on which the next manifest is not named by `CURRENT` before the test says so.
#[derive(Clone, Debug)]
struct SlowCurrent {
    disk: SimFs,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    shut: bool,
    /// Told when the first comes to the gate.
    arrival: Option<oneshot::Sender<()>>,
    /// Manifests that were begun and that `CURRENT` names, since the gate was shut.
    begun: usize,
    named: usize,
}

impl Gate {
    fn shut(&self) -> oneshot::Receiver<()> {
        let (arrival, arrived) = oneshot::channel();
        *self.state.lock().unwrap() =
            GateState { shut: true, arrival: Some(arrival), begun: 0, named: 0 };
        arrived
    }

    fn open(&self) {
        self.state.lock().unwrap().shut = false;
        self.changed.notify_all();
    }

    /// The first waits for the gate, and then for every other that has begun: it comes last.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if let Some(arrival) = state.arrival.take() {
            arrival.send(()).unwrap();
            let held = |state: &mut GateState| state.shut || state.named + 1 < state.begun;
            drop(self.changed.wait_while(state, held).unwrap());
        }
    }

    fn passed(&self) {
        self.state.lock().unwrap().named += 1;
        self.changed.notify_all();
    }
}

impl Fs for SlowCurrent {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn WriteFile>> {
        self.disk.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        self.disk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.ends_with("CURRENT") {
            self.gate.pass();
            let named = self.disk.rename(from, to);
            self.gate.passed();
            return named;
        }
        if to.to_string_lossy().contains("MANIFEST-") {
            self.gate.state.lock().unwrap().begun += 1;
        }
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_file(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.hard_link(from, to)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.disk.lock(path)
    }

    fn free_space(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_space(dir)
    }
}

/// A shutdown records the version in a manifest of its own. If it did so twice at a time, because a component died meanwhile, the
/// slower one would name a manifest that the other has removed.
#[tokio::test]
async fn a_death_while_a_shutdown_records_the_version_does_no_harm() {
    let (disk, clock) = (SimFs::new(1), ManualClock::default());
    let fs = SlowCurrent { disk: disk.clone(), gate: Arc::default() };
    let gate = Arc::clone(&fs.gate);
    let env = Env { fs: Arc::new(fs), blocking: Blocking::Pool, ..sim_env(&disk, clock.clone()) };
    let engine = LsmEngine::open_in(config(Path::new("/db")), env.clone()).await.unwrap();
    engine.put("k", "v").await.unwrap();
    engine.flush().await.unwrap();
    let arrived = gate.shut();
    let ending = tokio::spawn({
        let engine = engine.clone();
        async move { within(engine.shutdown()).await }
    });
    within(arrived).await.unwrap();
    engine.strike(Component::WalGc, Blow::Panic);
    clock.advance(Duration::from_secs(3600));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    gate.open();
    ending.await.unwrap().unwrap();
    drop(engine);
    let engine = LsmEngine::open_in(config(Path::new("/db")), env).await.unwrap();
    assert_eq!(engine.get(b"k").await.unwrap().unwrap(), "v");
    within(engine.shutdown()).await.unwrap();
}
