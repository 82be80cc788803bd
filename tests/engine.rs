//! The engine as a user meets it: one test for each promise of the handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use nori_lsm::{
    ATLLConfig, CompactionMode, Error, LsmEngine, MemtableConfig, WriteBatch, WriteOptions,
};

fn small(dir: &std::path::Path) -> ATLLConfig {
    ATLLConfig {
        data_dir: dir.to_owned(),
        memtable: MemtableConfig { flush_trigger_bytes: 16 << 10, ..Default::default() },
        ..Default::default()
    }
}

#[tokio::test]
async fn what_is_put_is_there_after_flush_compaction_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for round in 0..5 {
        for i in 0..1000 {
            engine.put(format!("key{i:05}"), format!("value{round}-{i}")).await.unwrap();
        }
    }
    engine.delete(b"key00007").await.unwrap();
    for _ in 0..2 {
        assert_eq!(engine.get(b"key00008").await.unwrap(), Some(Bytes::from("value4-8")));
        assert_eq!(engine.get(b"key00007").await.unwrap(), None);
        let mut scan = engine.scan("key00005".."key00010");
        let mut seen = Vec::new();
        while let Some((key, _)) = scan.next().await.unwrap() {
            seen.push(String::from_utf8(key.to_vec()).unwrap());
        }
        assert_eq!(seen, ["key00005", "key00006", "key00008", "key00009"]);
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
        engine.compact_range(.., CompactionMode::Full).await.unwrap();
    }

    engine.shutdown().await.unwrap();
    let log = std::fs::read_dir(dir.path().join("wal")).unwrap().count();
    assert_eq!(log, 0, "everything is in tables, so the log is gone");
    assert!(matches!(engine.put("a", "b").await, Err(Error::Closed)));
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();

    assert_eq!(engine.get(b"key00999").await.unwrap(), Some(Bytes::from("value4-999")));
    assert_eq!(engine.get(b"key00007").await.unwrap(), None);
    drop(engine);
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    engine.put("x", "y").await.unwrap();
    let mut batch = WriteBatch::default();
    batch.put("x", "z").delete("key00001");
    engine.write(batch, WriteOptions::default()).await.unwrap();
    drop(engine);
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    assert_eq!(engine.get(b"x").await.unwrap(), Some(Bytes::from("z")));
    assert_eq!(engine.recovery().operations, 3);
}

/// Reads that are ready at once must not keep other tasks of a current_thread runtime waiting.
#[tokio::test]
async fn tight_loops_of_reads_scans_and_writes_let_other_tasks_have_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    engine.put("k", "v").await.unwrap();
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let busy: Vec<_> = (0..3)
        .map(|kind| {
            let (engine, stop) = (engine.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match kind {
                        0 => drop(engine.get(b"k").await.unwrap()),
                        1 => drop(engine.scan(..).next().await.unwrap()),
                        _ => drop(engine.put("k", "w").await.unwrap()),
                    }
                }
            })
        })
        .collect();
    while turns.fetch_add(1, Ordering::Relaxed) < 50 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in busy {
        task.await.unwrap();
    }
}

/// A walk that waits for the disk between two slices, or two slots, goes on behind the wait.
#[tokio::test]
async fn a_scan_of_cold_tables_shows_every_key_both_ways() {
    const KEYS: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let engine = LsmEngine::open(small(dir.path())).await.unwrap();
    for round in 0..2 {
        for i in (round..KEYS).step_by(2) {
            engine.put(format!("key{i:05}"), format!("value{i}")).await.unwrap();
        }
    }
    engine.flush().await.unwrap();
    engine.wait_idle().await.unwrap();
    engine.shutdown().await.unwrap();
    for backward in [false, true] {
        let engine = LsmEngine::open(small(dir.path())).await.unwrap();
        let scan = engine.scan(..);
        let mut scan = if backward { scan.rev() } else { scan };
        let mut seen = Vec::new();
        while let Some((key, _)) = scan.next().await.unwrap() {
            seen.push(key);
        }
        if backward {
            seen.reverse();
        }
        let expected: Vec<_> = (0..KEYS).map(|i| Bytes::from(format!("key{i:05}"))).collect();
        assert!(seen == expected, "{} of {KEYS} keys, backward: {backward}", seen.len());
        drop(scan);
        engine.shutdown().await.unwrap();
    }
}
