//! Whatever is asked of an engine, what it holds stays bounded, and its figures say so.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]

mod world;

use std::time::Duration;

use nori_lsm::env::sim::{Fault, Operation, SimFs, Trouble};
use nori_lsm::{ATLLConfig, Error, LsmEngine, ResourceConfig};
use world::{in_paused_time, open};

fn key(n: usize) -> String {
    format!("key{n:05}")
}

/// Many small tables: nothing is merged, so that reads meet all of them.
fn many_tables(open_files: usize) -> ATLLConfig {
    let resources = ResourceConfig { open_files, block_cache_mib: 0, ..Default::default() };
    ATLLConfig { fanout: 2, max_levels: 7, l1_slot_count: 64, resources, ..world::config() }
}

/// Fills `tables` tables of 20 keys each, one behind the other.
async fn fill(engine: &LsmEngine, tables: usize) {
    for table in 0..tables {
        for n in 0..20 {
            let n = table * 20 + n;
            engine.put(key(n), format!("value{n}").repeat(8)).await.unwrap();
        }
        engine.flush().await.unwrap();
        engine.wait_idle().await.unwrap();
    }
}

async fn check(engine: &LsmEngine, n: usize) {
    let value = engine.get(key(n).as_bytes()).await.unwrap();
    assert_eq!(value.unwrap(), format!("value{n}").repeat(8), "{n}");
}

#[test]
fn no_more_tables_are_open_than_there_may_be_and_every_key_is_read() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        fs.cold_reads(30);
        let engine = open(&fs, many_tables(4)).await.unwrap();
        fill(&engine, 30).await;
        assert!(engine.stats().tables >= 12, "{}", engine.stats());
        fs.most_open_readers();
        for n in 0..600 {
            check(&engine, n * 211 % 600).await;
        }
        assert_eq!(engine.scan(..).next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert_eq!(engine.scan(..).rev().next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert!(fs.most_open_readers() <= 4, "read handles");
        assert!(engine.stats().open_tables <= 4);
        let held = engine.scan(..);
        engine.compact_range(.., nori_lsm::CompactionMode::Full).await.unwrap();
        drop(held);
        assert_eq!(engine.scan(..).next_chunk(usize::MAX).await.unwrap().len(), 600);
        assert!(fs.most_open_readers() <= 4, "a compaction opens no more than there may be");
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn tables_stay_open_as_long_as_there_is_room() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(1000)).await.unwrap();
        fill(&engine, 12).await;
        for n in 0..240 {
            check(&engine, n).await;
        }
        assert_eq!(engine.stats().open_tables, engine.stats().tables);
        assert_eq!(fs.open_readers(), engine.stats().tables);
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_process_out_of_files_closes_tables_and_reads_on() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(3)).await.unwrap();
        fill(&engine, 10).await;
        assert!(engine.stats().tables >= 6, "{}", engine.stats());
        let of_tables = || Fault::new(Trouble::TooManyFiles).on(Operation::Open).at(".sst");
        for _ in 0..20 {
            fs.inject(of_tables().once());
            for n in (0..200).step_by(20) {
                check(&engine, n).await;
            }
        }
        fs.inject(of_tables());
        let mut failed = 0;
        for n in (0..200).step_by(20) {
            match engine.get(key(n).as_bytes()).await {
                Err(Error::Io { op: "open", source, .. }) => {
                    assert_eq!(source.raw_os_error(), Some(24));
                    failed += 1;
                }
                found => assert!(found.unwrap().is_some()),
            }
        }
        assert!(failed >= 3, "{failed}");
        assert_eq!(fs.open_readers(), 0, "everything was closed before giving up");
        fs.heal();
        for n in 0..200 {
            check(&engine, n).await;
        }
        engine.shutdown().await.unwrap();
    });
}

#[test]
fn a_process_out_of_files_goes_on_writing_once_tables_are_closed() {
    in_paused_time(async {
        let fs = SimFs::new(1);
        let engine = open(&fs, many_tables(100)).await.unwrap();
        fill(&engine, 4).await;
        let open_before = fs.open_readers();
        for kind in [".sst", ".wal"] {
            let fault = Fault::new(Trouble::TooManyFiles).on(Operation::Create).at(kind);
            fs.inject(fault.once());
        }
        let before = engine.stats();
        engine.put("more", "value").await.unwrap();
        engine.flush().await.unwrap();
        assert_eq!(engine.stats().flushes, before.flushes + 1);
        assert!(fs.open_readers() < open_before + 2, "tables were closed for it");
        engine.shutdown().await.unwrap();
    });
}
