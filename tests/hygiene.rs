//! Async hygiene: futures that are dropped at any await, runtimes and handles that go away, tasks that keep others waiting.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::expect_used, reason = "a test that waits in vain must stop")]

#[expect(dead_code, reason = "other tests of this world need more of it")]
#[path = "world/mod.rs"]
mod world;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::poll;
use nori_lsm::env::sim::{Latency, SimFs, VirtualClock, sim_env};
use nori_lsm::env::{Blocking, Env, Fs};
use nori_lsm::{
    ATLLConfig, CompactionMode, Durability, Error, LsmEngine, WriteBatch, WriteOptions,
};
use world::{History, config, in_paused_time, open, read_all, use_normally};

/// Polls that no future of these tests needs: one that does hangs.
const MANY: usize = 500;

/// What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

const SYNC: WriteOptions =
    WriteOptions { durability: Some(Durability::Sync), ttl: None, deadline: None };

/// A disk on which every job takes a while, and every read of a table waits for it.
fn slow(fs: &SimFs, seed: u64) -> Env {
    fs.cold_reads(100);
    let blocking = Blocking::Delayed(Latency::new(seed, Duration::from_millis(20)));
    Env { blocking, ..sim_env(fs, VirtualClock::default()) }
}

/// Polls `work` at most `polls` times, each time it is woken, and drops it then. `None` if it was not done.
async fn polled<T>(work: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A batch that must be there whole or not at all.
fn pair(value: &str) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.put("pair a", value.to_owned()).put("pair b", value.to_owned());
    batch
}

type Work<'a> = Pin<Box<dyn Future<Output = nori_lsm::Result<()>> + Send + 'a>>;

/// Everything of the public face that is waited for, each with a name.
type Call = (&'static str, fn(&LsmEngine) -> Work<'_>);

const CALLS: &[Call] = &[
    ("put", |it| Box::pin(async { it.put("pair c", "new").await.map(drop) })),
    ("delete", |it| Box::pin(async { it.delete(b"pair c").await.map(drop) })),
    ("write", |it| Box::pin(async { it.write(pair("new"), Default::default()).await.map(drop) })),
    ("write and sync", |it| Box::pin(async { it.write(pair("new"), SYNC).await.map(drop) })),
    ("get", |it| Box::pin(async { it.get(b"key01").await.map(drop) })),
    ("contains", |it| Box::pin(async { it.contains(b"key02").await.map(drop) })),
    ("multi_get", |it| {
        Box::pin(async { it.multi_get(&["key03", "key04", "key05"]).await.map(drop) })
    }),
    ("scan", |it| {
        Box::pin(async {
            let mut scan = it.scan(..);
            while scan.next().await?.is_some() {}
            Ok(())
        })
    }),
    ("next_chunk", |it| Box::pin(async { it.scan(..).rev().next_chunk(100).await.map(drop) })),
    ("snapshot", |it| {
        Box::pin(async {
            let snapshot = it.snapshot();
            snapshot.get(b"key06").await?;
            snapshot.multi_get(&["key07", "key08"]).await?;
            snapshot.scan(..).next_chunk(100).await.map(drop)
        })
    }),
    ("flush", |it| Box::pin(it.flush())),
    ("compact_range", |it| Box::pin(it.compact_range(.., CompactionMode::Full))),
    ("sync", |it| Box::pin(async { it.sync().await.map(drop) })),
    ("wait_idle", |it| Box::pin(it.wait_idle())),
    ("verify", |it| Box::pin(async { it.verify().await.map(drop) })),
    ("checkpoint", |it| Box::pin(it.checkpoint("/copy"))),
    ("shutdown", |it| Box::pin(it.shutdown())),
];

/// An engine with tables, sealed memtables and something in the log.
async fn begun(fs: &SimFs, seed: u64) -> (LsmEngine, History) {
    let engine = LsmEngine::open_in(config(), slow(fs, seed)).await.unwrap();
    let mut history = History::default();
    for i in 0..24 {
        history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
    }
    engine.flush().await.unwrap();
    for i in 24..30 {
        history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
    }
    engine.write(pair("old"), WriteOptions::default()).await.unwrap();
    (engine, history)
}

/// Takes part in the use of the commit core, the queue and the log, for a while or until it is told to stop.
async fn neighbour(engine: LsmEngine, stop: Arc<AtomicBool>) {
    for n in 0..60 {
        let options = if n % 3 == 0 { SYNC } else { WriteOptions::default() };
        let written = engine.put_with("neighbour", n.to_string(), options).await;
        if written.is_err() || stop.load(Ordering::Relaxed) {
            return; // the engine goes down, or nobody minds any more
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a pair shows: one value for both.
async fn shown_pair(engine: &LsmEngine) -> Bytes {
    let found = engine.multi_get(&["pair a", "pair b"]).await.unwrap();
    assert_eq!(found[0], found[1], "half a batch");
    found[0].clone().expect("the old pair or the new one")
}

/// After a call was dropped: everything works, nothing is held, and what is shown is what is found again.
async fn is_well(engine: &LsmEngine, fs: &SimFs, history: &mut History) {
    engine.write(pair("newer"), SYNC).await.unwrap();
    assert_eq!(shown_pair(engine).await, "newer", "what was dropped is not applied later");
    for i in 0..8 {
        history.write(engine, History::mixed(i * 7), Durability::Os).await.unwrap();
    }
    engine.flush().await.unwrap();
    engine.compact_range(.., CompactionMode::Full).await.unwrap();
    engine.wait_idle().await.unwrap();
    let stats = engine.stats();
    assert_eq!((stats.snapshots, stats.pinned_tables, stats.sealed_memtables), (0, 0, 0));
    let memory = engine.memory();
    assert_eq!((memory.queued_writes, memory.waiting_writes, memory.sealed_memtables), (0, 0, 0));
    assert_eq!(engine.health().components.len(), 0, "{:?}", engine.health());
    let before = read_all(engine).await.unwrap();
    for (key, value) in history.now() {
        assert_eq!(before.get(&key), Some(&value), "{key:?}");
    }
    engine.shutdown().await.unwrap();
    assert_eq!(engine.stats().memtable_bytes, 0);
    let engine = open(fs, config()).await.expect("the lock was let go");
    assert_eq!(read_all(&engine).await.unwrap(), before);
}

/// Drops `call` at its `polls`th await. Returns whether it was done before.
async fn dropped((name, call): Call, polls: usize) -> bool {
    let fs = SimFs::new(1);
    let (engine, mut history) = begun(&fs, u64::try_from(polls).unwrap()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let beside = tokio::spawn(neighbour(engine.clone(), Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_millis(3)).await;
    let done = polled(call(&engine), polls).await;
    if let Some(done) = &done {
        assert!(done.is_ok(), "{name} at {polls}: {done:?}");
    }
    stop.store(true, Ordering::Relaxed);
    beside.await.unwrap();
    if name == "shutdown" && polls > 0 {
        let refused = engine.put("late", "x").await;
        assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
        engine.shutdown().await.unwrap();
        let engine = open(&fs, config()).await.expect("the lock was let go");
        shown_pair(&engine).await;
    } else {
        shown_pair(&engine).await;
        is_well(&engine, &fs, &mut history).await;
    }
    done.is_some()
}

#[test]
fn every_call_may_be_dropped_at_every_await() {
    for call in CALLS {
        let mut polls = 0;
        while !in_paused_time(dropped(*call, polls)) {
            polls += 1;
            assert!(polls < MANY, "{} does not end", call.0);
        }
        assert!(polls > 0, "{} was dropped at least once", call.0);
    }
}

#[test]
fn an_open_may_be_dropped_at_every_await() {
    let mut polls = 0;
    loop {
        let done = in_paused_time(async {
            let fs = SimFs::new(1);
            let (engine, history) = begun(&fs, 3).await;
            engine.shutdown().await.unwrap();
            drop(engine);
            let again = LsmEngine::open_in(config(), slow(&fs, 5));
            let opened = polled(again, polls).await;
            let done = opened.is_some();
            drop(opened);
            let engine = open(&fs, config()).await.expect("nobody keeps the lock");
            assert_eq!(shown_pair(&engine).await, "old");
            let before = read_all(&engine).await.unwrap();
            for (key, value) in history.now() {
                assert_eq!(before.get(&key), Some(&value), "{key:?}");
            }
            engine.shutdown().await.unwrap();
            done
        });
        if done {
            break;
        }
        polls += 1;
        assert!(polls < MANY, "it does not end");
    }
    assert!(polls > 1, "an open waits for the disk");
}

#[test]
fn a_walk_whose_steps_are_dropped_again_and_again_misses_nothing() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let (engine, history) = begun(&fs, 1).await;
        engine.flush().await.unwrap();
        for polls in 1..4 {
            let tick = || tokio::time::sleep(Duration::from_millis(1)); // else the disk gets no turn
            let (mut scan, mut seen) = (engine.scan("key".."l"), Vec::new());
            loop {
                match polled(scan.next(), polls).await {
                    None => {}
                    Some(Ok(None)) => break,
                    Some(entry) => seen.extend(entry.unwrap()),
                }
                // Whoever drops a step may also ask for a chunk next.
                tick().await;
                if let Some(chunk) = polled(scan.next_chunk(3), polls).await {
                    seen.extend(chunk.unwrap());
                }
                tick().await;
            }
            let mut expected = history.now();
            expected.retain(|key, _| key.starts_with(b"key"));
            assert_eq!(seen, expected.into_iter().collect::<Vec<_>>(), "{polls} polls a step");
        }
    });
}

#[test]
fn many_writers_that_lose_patience_leave_nothing_behind_them() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let (engine, mut history) = begun(&fs, 1).await;
        for round in 0..40 {
            let batch = || {
                let mut batch = pair(&round.to_string());
                batch.put("large", vec![7; 8 << 20]); // eight of them fill the queue
                batch
            };
            let mut waiting: Vec<_> =
                (0..12).map(|_| Box::pin(engine.write(batch(), SYNC))).collect();
            for write in &mut waiting {
                let _pending = poll!(write);
            }
            tokio::time::sleep(Duration::from_millis(round % 7)).await;
            drop(waiting);
        }
        is_well(&engine, &fs, &mut history).await;
    });
}

#[test]
fn a_directory_is_open_once_and_neighbours_on_one_runtime_do_not_disturb_each_other() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let at = |dir: &str| ATLLConfig { data_dir: PathBuf::from(dir), ..config() };
        let one = LsmEngine::open_in(at("/one"), slow(&fs, 1)).await.unwrap();
        let two = LsmEngine::open_in(at("/two"), slow(&fs, 2)).await.unwrap();
        let again = LsmEngine::open_in(at("/one"), slow(&fs, 3)).await;
        assert!(matches!(again, Err(Error::Locked { .. })), "{again:?}");
        let (mut first, mut second) = (History::default(), History::default());
        for i in 0..60 {
            first.write(&one, History::mixed(i), Durability::Os).await.unwrap();
            second.write(&two, History::mixed(i * 3), Durability::Os).await.unwrap();
        }
        let (flushed, down) = tokio::join!(one.flush(), two.shutdown());
        flushed.unwrap();
        down.unwrap();
        use_normally(&one, &mut first).await;
        one.shutdown().await.unwrap();
        let two = LsmEngine::open_in(at("/two"), slow(&fs, 4)).await.unwrap();
        assert_eq!(read_all(&two).await.unwrap(), second.now());
    });
}

/// Keeps the directories of which the engine said that they were dropped without a shutdown.
struct Warnings;

static DROPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What one event says: its message, and the directory it speaks of.
#[derive(Default)]
struct Said {
    message: String,
    dir: String,
}

impl tracing::field::Visit for Said {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "dir" => self.dir = format!("{value:?}"),
            _ => {}
        }
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        if said.message.contains("dropped without shutdown()") {
            DROPPED.lock().unwrap().push(said.dir);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn an_engine_that_is_dropped_says_so_and_lets_go_of_its_directory() {
    // Another test of this binary cannot have set one.
    tracing::subscriber::set_global_default(Warnings).unwrap();
    in_paused_time(async {
        let fs = SimFs::new(1);
        let at = |dir: &str| ATLLConfig { data_dir: PathBuf::from(dir), ..config() };
        let mut history = History::default();
        for round in 0..5 {
            let engine = LsmEngine::open_in(at("/forgotten"), slow(&fs, round)).await;
            let engine = engine.expect("the lock was let go");
            for i in 0..20 {
                history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
            }
            assert_eq!(read_all(&engine).await.unwrap(), history.now());
            let writing = engine.write(pair("x"), SYNC);
            drop(polled(writing, 1).await);
            let other = engine.clone();
            drop(engine);
            assert_eq!(DROPPED.lock().unwrap().iter().filter(|it| *it == "/forgotten").count(), {
                usize::try_from(round).unwrap()
            });
            other.delete(b"pair a").await.unwrap();
            other.delete(b"pair b").await.unwrap();
            drop(other);
        }
        assert_eq!(DROPPED.lock().unwrap().iter().filter(|it| *it == "/forgotten").count(), 5);
        let engine = LsmEngine::open_in(at("/ended"), slow(&fs, 9)).await.unwrap();
        engine.shutdown().await.unwrap();
        drop(engine);
        assert!(!DROPPED.lock().unwrap().iter().any(|it| it == "/ended"), "that one was shut down");
    });
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build().unwrap()
}

/// A simulated disk under a real pool of blocking threads.
fn pooled(fs: &SimFs) -> Env {
    fs.cold_reads(50);
    Env { blocking: Blocking::Pool, ..sim_env(fs, VirtualClock::default()) }
}

#[test]
fn whoever_still_has_a_handle_when_the_runtime_is_gone_gets_an_answer() {
    for threads in [0, 2] {
        let fs = SimFs::new(1);
        let first = runtime(threads);
        let engine = first.block_on(LsmEngine::open_in(config(), pooled(&fs))).unwrap();
        first.block_on(engine.write(pair("old"), SYNC)).unwrap();
        let mut begun: Vec<(&str, Work<'_>)> =
            CALLS.iter().map(|(name, call)| (*name, call(&engine))).collect();
        first.block_on(async {
            for (name, call) in &mut begun {
                if *name != "shutdown" {
                    let _pending = poll!(call);
                }
            }
        });
        drop(begun);
        let mut begun = vec![("sync", Box::pin(engine.write(pair("new"), SYNC)))];
        first.block_on(async {
            if poll!(&mut begun[0].1).is_ready() {
                begun.clear();
            }
        });
        drop(first);
        let (second, limit) = (runtime(0), LIMIT);
        second.block_on(async {
            for (name, call) in begun {
                let late = tokio::time::timeout(limit, call).await;
                drop(late.unwrap_or_else(|_| panic!("{name} hangs")));
            }
        });
        second.block_on(async {
            for (name, call) in CALLS {
                let done = tokio::time::timeout(limit, call(&engine)).await;
                let done = done.unwrap_or_else(|_| panic!("{name} hangs"));
                let is_read = ["get", "contains", "multi_get", "scan", "next_chunk", "snapshot"];
                assert!(done.is_ok() || !is_read.contains(name), "{name}: {done:?}");
                let writes = ["put", "delete", "write", "write and sync", "sync", "compact_range"];
                assert!(done.is_err() || !writes.contains(name), "{name}: {done:?}");
            }
            engine.resume();
            assert_eq!(engine.stats().snapshots, 0);
            drop(engine);
            let engine = open(&fs, config()).await.expect("the lock was let go");
            shown_pair(&engine).await;
            engine.shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_durable_write_whose_job_never_runs_is_left_to_the_engine_and_answered_also_when_that_is_gone()
{
    for gone in [false, true] {
        let fs = SimFs::new(1);
        let (first, other) = (runtime(0), runtime(0));
        let engine = first.block_on(LsmEngine::open_in(config(), pooled(&fs))).unwrap();
        first.block_on(engine.write(pair("old"), SYNC)).unwrap();
        let ended = other.handle().clone();
        drop(other);
        let mut write = Box::pin(engine.write(pair("new"), SYNC));
        let polled = {
            let _runs_nothing = ended.enter();
            futures::executor::block_on(async { poll!(&mut write) })
        };
        assert!(polled.is_pending());
        if gone {
            drop(first);
            let written = runtime(0).block_on(async { tokio::time::timeout(LIMIT, write).await });
            let written = written.expect("it hangs");
            assert!(matches!(written, Err(Error::Unavailable { .. })), "{written:?}");
        } else {
            let written = first.block_on(async { tokio::time::timeout(LIMIT, write).await });
            written.expect("it hangs").unwrap();
            assert_eq!(first.block_on(shown_pair(&engine)), "new");
        }
    }
}

#[test]
fn a_durable_write_is_done_also_for_a_caller_of_another_executor() {
    let fs = SimFs::new(1);
    let first = runtime(1);
    let engine = first.block_on(LsmEngine::open_in(config(), pooled(&fs))).unwrap();
    for _ in 0..3 {
        futures::executor::block_on(engine.write(pair("new"), SYNC)).unwrap();
    }
    assert_eq!(first.block_on(shown_pair(&engine)), "new");
    first.block_on(engine.shutdown()).unwrap();
}

#[test]
fn a_normal_life_goes_well_on_every_kind_of_runtime() {
    for threads in [0, 1, 4] {
        let fs = SimFs::new(1);
        let mut history = History::default();
        runtime(threads).block_on(async {
            for _ in 0..2 {
                let engine = LsmEngine::open_in(config(), pooled(&fs)).await.unwrap();
                for i in 0..200 {
                    history.write(&engine, History::mixed(i), Durability::Os).await.unwrap();
                }
                use_normally(&engine, &mut history).await;
                engine.verify().await.unwrap();
                engine.shutdown().await.unwrap();
            }
        });
    }
}

#[test]
fn a_shutdown_in_the_middle_of_everything_comes_to_one_end_for_all_who_ask() {
    for millis in 0..12 {
        in_paused_time(async move {
            let fs = SimFs::new(1);
            let (engine, _) = begun(&fs, millis).await;
            let writers: Vec<_> = (0..6)
                .map(|writer| {
                    let engine = engine.clone();
                    tokio::spawn(async move {
                        let mut acked = 0_u64;
                        let key = format!("writer {writer}");
                        let options = if writer % 2 == 0 { SYNC } else { WriteOptions::default() };
                        loop {
                            let value = acked.to_string();
                            match engine.put_with(key.clone(), value, options).await {
                                Ok(_) => acked += 1,
                                Err(Error::Closed) => return (key, acked),
                                Err(error) => panic!("{error}"),
                            }
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            let compacting = tokio::spawn({
                let engine = engine.clone();
                async move { engine.compact_range(.., CompactionMode::Full).await }
            });
            tokio::time::sleep(Duration::from_millis(millis * 4)).await;
            let other = engine.clone();
            let (one, two) = tokio::join!(engine.shutdown(), other.shutdown());
            one.unwrap();
            two.unwrap();
            engine.shutdown().await.unwrap();
            drop(compacting.await.unwrap());
            let engine = open(&fs, config()).await.unwrap();
            for writer in writers {
                let (key, acked) = writer.await.unwrap();
                let found = engine.get(key.as_bytes()).await.unwrap();
                let last = acked.checked_sub(1).map(|last| Bytes::from(last.to_string()));
                assert_eq!(found, last, "{key}");
            }
        });
    }
}

#[test]
fn an_idle_engine_has_no_log_but_the_open_segment_and_the_next() {
    for seed in 0..20 {
        in_paused_time(async {
            let fs = SimFs::new(seed);
            let engine = LsmEngine::open_in(config(), slow(&fs, seed)).await.unwrap();
            for n in 0..100 {
                engine.put(format!("key{n:03}"), vec![7; 50]).await.unwrap();
            }
            engine.flush().await.unwrap();
            engine.wait_idle().await.unwrap();
            let segments = fs.list(Path::new("/db/wal")).unwrap();
            assert!(segments.len() <= 2, "seed {seed}: {segments:?}");
            engine.shutdown().await.unwrap();
        });
    }
}

/// Calls that a task may make in one turn, tokio's budget for one poll, in quarters: a get from memory is a quarter of a call.
const TURN: u64 = 128 * 4;

#[test]
fn no_task_waits_for_more_than_one_turn_of_each_other() {
    const USERS: u64 = 6;
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = LsmEngine::open_in(config(), slow(&fs, 1)).await.unwrap();
        let (calls, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        for user in 0..USERS {
            let (engine, calls, stop) = (engine.clone(), Arc::clone(&calls), Arc::clone(&stop));
            tokio::spawn(async move {
                for n in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("user{user} {n:08}");
                    let quarters = match user {
                        0 => engine.get(b"user2 00000007").await.map(|_| 1),
                        1 => engine.scan("user"..).next_chunk(8).await.map(|_| 4),
                        _ => engine.put(key, vec![7; 50]).await.map(|_| 4),
                    };
                    calls.fetch_add(quarters.unwrap(), Ordering::Relaxed);
                }
            });
        }
        let mut most = 0;
        while engine.stats().flushes < 6 {
            let before = calls.load(Ordering::Relaxed);
            tokio::task::yield_now().await;
            most = most.max(calls.load(Ordering::Relaxed) - before);
            // Readers are never idle: time does not pass by itself.
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(most > 0, "they worked");
        assert!(most < USERS * TURN + 4, "{most} quarters of calls between two heartbeats");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_step_of_a_scan_past_what_was_deleted_lets_others_have_their_turn() {
    in_paused_time(async {
        const KEYS: u64 = 20_000;
        let fs = SimFs::new(1);
        let engine = open(&fs, ATLLConfig::default());
        let engine = engine.await.unwrap();
        for key in 0..KEYS {
            engine.delete(&key.to_be_bytes()).await.unwrap();
        }
        engine.put("z", "the only one").await.unwrap();
        for backward in [false, true] {
            let scan = engine.scan(..Bytes::from("z"));
            let mut scan = if backward { scan.rev() } else { scan };
            let (turns, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
            let heart = tokio::spawn({
                let (turns, stop) = (Arc::clone(&turns), Arc::clone(&stop));
                async move {
                    while !stop.load(Ordering::Relaxed) {
                        turns.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                }
            });
            assert_eq!(scan.next().await.unwrap(), None);
            stop.store(true, Ordering::Relaxed);
            heart.await.unwrap();
            let turns = turns.load(Ordering::Relaxed);
            assert!(turns >= KEYS / 1024, "others had {turns} turns, backward: {backward}");
        }
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_writer_that_never_pauses_holds_up_no_sync_of_others() {
    const MANY_WRITES: u64 = 20_000;
    in_paused_time(async {
        let engine = open(&SimFs::new(1), config()).await.unwrap();
        let written = Arc::new(AtomicU64::new(0));
        let writer = tokio::spawn({
            let (engine, written) = (engine.clone(), Arc::clone(&written));
            async move {
                for n in 0..MANY_WRITES {
                    engine.put_with("key", n.to_string(), SYNC).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        while written.load(Ordering::Relaxed) < 10 {
            tokio::task::yield_now().await;
        }
        engine.sync().await.unwrap();
        let written = written.load(Ordering::Relaxed);
        assert!(written < MANY_WRITES / 10, "{written} writes first");
        writer.abort();
        engine.shutdown().await.unwrap();
    });
}
