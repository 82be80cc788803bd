//! What the targets that open a whole database share: the machine, what must hold of whatever opens, and what repair must do
//! with what does not.

use bytes::Bytes;
use nori_lsm::env::sim::{SimFs, VirtualClock, sim_env};
use nori_lsm::{ATLLConfig, CompactionMode, Error, LsmEngine, RecoveryMode, Result, Scan};

use super::Verdict;
use super::world::{self, in_paused_time};

/// Entries of a scan, up to its end or its error.
type Walk = (Vec<(Bytes, Bytes)>, Result<()>);

/// Opens the database of this machine in both modes, uses what opens, and repairs what does not.
pub fn open_or_repair(fs: &SimFs) -> Verdict {
    let strict = world::config();
    let salvage = ATLLConfig { recovery: RecoveryMode::SalvagePrefix, ..world::config() };
    let salvaged = open_and_use(&fs.fork(), salvage);
    match open_and_use(&fs.fork(), strict) {
        Some(shown) => {
            let salvaged = salvaged.expect("what opens in strict mode opens");
            assert_eq!(shown, salvaged, "nothing is salvaged where nothing is damaged");
            Verdict::Accepted
        }
        None => {
            repair(&fs.fork());
            Verdict::Refused
        }
    }
}

/// What the database shows, after it was written to and opened again; `None` if it does not open.
fn open_and_use(fs: &SimFs, config: ATLLConfig) -> Option<Vec<(Bytes, Bytes)>> {
    let shown = in_paused_time(async {
        let engine = match world::open(fs, config.clone()).await {
            Ok(engine) => engine,
            Err(error) => {
                must_be_unreadable(&error);
                return None;
            }
        };
        let shown = read(&engine).await;
        use_it(&engine).await;
        Some(shown)
    });
    let (entries, whole) = shown?;
    // What recovery shows is final, and what was written since is there.
    in_paused_time(async {
        let engine = world::open(&fs.kill(), config).await.expect("what opened once opens again");
        let (again, still) = read(&engine).await;
        if whole && still {
            let before = entries.iter().filter(|(key, _)| key != KEY);
            assert!(
                before.eq(again.iter().filter(|(key, _)| key != KEY)),
                "other data than before"
            );
            assert_eq!(engine.get(KEY).await.expect("read before"), Some(VALUE.into()));
        }
    });
    Some(entries)
}

const KEY: &[u8] = b"written by the fuzz target";
const VALUE: &[u8] = b"value";

/// Every way to read ends, or is damage; and shows the same, if verification finds none. Returns the entries, and whether it did not.
async fn read(engine: &LsmEngine) -> (Vec<(Bytes, Bytes)>, bool) {
    let whole = match engine.verify().await {
        Ok(report) => report.is_sound(),
        Err(error) => {
            must_be_unreadable(&error);
            false
        }
    };
    let (forward, end) = walk(engine.scan(..)).await;
    let (backward, other_end) = walk(engine.scan(..).rev()).await;
    assert!(forward.is_sorted_by(|a, b| a.0 < b.0), "a scan ascends");
    assert!(backward.is_sorted_by(|a, b| a.0 > b.0), "a scan backward descends");
    for end in [&end, &other_end] {
        if let Err(error) = end {
            must_be_unreadable(error);
            assert!(!whole, "verified, but {error}");
        }
    }
    if whole {
        assert!(forward.iter().eq(backward.iter().rev()), "{forward:?} and {backward:?}");
    }
    for (key, value) in forward.iter().chain(&backward) {
        match engine.get(key).await {
            Ok(found) => assert!(!whole || found.as_ref() == Some(value), "{key:?} = {found:?}"),
            Err(error) => {
                must_be_unreadable(&error);
                assert!(!whole, "verified, but {error}");
            }
        }
    }
    (forward, whole)
}

async fn walk(mut scan: Scan) -> Walk {
    let mut entries = Vec::new();
    loop {
        match scan.next().await {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(())),
            Err(error) => return (entries, Err(error)),
        }
    }
}

/// Writes, flushes, compacts; only damage may be in the way.
async fn use_it(engine: &LsmEngine) {
    engine.put(KEY, VALUE).await.expect("it can be written to");
    let compacted = engine.compact_range(.., CompactionMode::Full).await;
    for done in [engine.flush().await, compacted, engine.wait_idle().await] {
        if let Err(error) = done {
            must_be_unreadable(&error);
        }
    }
    engine.sync().await.expect("nothing is wrong with the disk");
}

/// After a repair it opens in strict mode.
fn repair(fs: &SimFs) {
    in_paused_time(async {
        let env = sim_env(fs, VirtualClock::default());
        let config = world::config();
        let diagnosis = nori_lsm::diagnose(&config, &env).await;
        match nori_lsm::repair(&config, &env).await {
            Ok(report) => {
                let diagnosis = diagnosis.expect("what can be repaired can be looked at");
                assert_eq!(diagnosis.salvaged, report.salvaged);
            }
            Err(error) => {
                must_be_unreadable(&error);
                return;
            }
        }
        let engine = world::open(fs, config).await.expect("what was repaired opens");
        read(&engine).await;
        use_it(&engine).await;
    });
}

/// The error says that a file is damaged, or that a newer version wrote it.
fn must_be_unreadable(error: &Error) {
    let expected = matches!(error, Error::Corrupt { .. } | Error::Unsupported { .. });
    assert!(expected, "neither right nor damaged: {error:?}");
}
