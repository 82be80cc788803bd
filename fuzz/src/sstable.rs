//! Bytes as a table file by itself.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nori_lsm::env::Env;
use nori_lsm::env::sim::{ManualClock, SimFs, sim_env};
use nori_lsm::sstable::{Entry, Error, Result, SSTableIterator, SSTableReader};
use nori_lsm::{Direction, KeyRange, SeqNo, fuzzing};

use super::Verdict;

/// Entries that a walk may show of a file: each takes three bytes, and Zstandard makes many of one byte.
const ENTRIES_MAX: usize = 1 << 24;

pub fn run(data: &[u8]) -> Verdict {
    now(async {
        let table = match open(data).await {
            Ok(table) => table,
            Err(error) => return refused(&error),
        };
        let sound = verdict(table.verify().await);
        let (forward, end) = walk(&table, Direction::Forward).await;
        let (mut backward, other_end) = walk(&table, Direction::Backward).await;
        backward.reverse();
        let whole = end.is_ok() && other_end.is_ok();
        for end in [end, other_end] {
            verdict(end);
        }
        if sound == Verdict::Accepted {
            assert!(whole, "verified, but it cannot be walked");
            assert_eq!(forward, backward);
            let entries = u64::try_from(forward.len()).expect("they are in memory");
            assert_eq!(table.metadata().entry_count, entries);
        }
        for entry in forward.iter().chain(&backward) {
            look_for(&table, entry, sound).await;
        }
        for key in [&b""[..], b"key", &[0xff; 20]] {
            verdict(table.get(key).await.map(drop));
        }
        sound
    })
}

/// What is in a verified table is found; in any other it is damage at worst.
async fn look_for(table: &Arc<SSTableReader>, entry: &Entry, sound: Verdict) {
    let found = fuzzing::get_at(table, &entry.key, entry.seq).await;
    let mut seek = fuzzing::walk(Arc::clone(table), KeyRange::all(), Direction::Forward);
    let sought = match seek.seek(&entry.key).await {
        Ok(()) => seek.try_next().await,
        Err(error) => Err(error),
    };
    if sound == Verdict::Accepted {
        assert_eq!(found.as_ref().expect("verified").as_ref(), Some(entry));
        let sought = sought.as_ref().expect("verified").as_ref();
        assert_eq!(sought.map(|entry| &entry.key), Some(&entry.key));
    }
    for read in [found, sought] {
        verdict(read.map(drop));
    }
}

/// Opens `data` as a table.
pub async fn open(data: &[u8]) -> Result<Arc<SSTableReader>> {
    let fs = SimFs::new(1);
    fs.overwrite(Path::new("/table.sst"), data).expect("the directory is there");
    let env: Env = sim_env(&fs, ManualClock::default());
    fuzzing::open_table("/table.sst".into(), env).await
}

/// Entries of a table in this direction, up to the end or to the error.
pub async fn walk(table: &Arc<SSTableReader>, direction: Direction) -> (Vec<Entry>, Result<()>) {
    let mut walk = fuzzing::walk(Arc::clone(table), KeyRange::all(), direction);
    let mut entries = Vec::new();
    loop {
        assert!(entries.len() < ENTRIES_MAX, "a walk without an end");
        match walk.try_next().await {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(())),
            Err(error) => return (entries, Err(error)),
        }
    }
}

/// The entries from `key` on, or those before it, last first.
pub async fn walk_from(
    table: &Arc<SSTableReader>,
    key: &Bytes,
    direction: Direction,
) -> Result<Vec<Entry>> {
    let mut walk: SSTableIterator = fuzzing::walk(Arc::clone(table), KeyRange::all(), direction);
    walk.seek(key).await?;
    let mut entries = Vec::new();
    while let Some(entry) = walk.try_next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

/// Of a version that no table has.
pub const NEWEST: SeqNo = SeqNo(u64::MAX);

/// Damage refuses the bytes; any other error breaks a promise.
pub fn verdict(read: Result<()>) -> Verdict {
    read.map_or_else(|error| refused(&error), |()| Verdict::Accepted)
}

fn refused(error: &Error) -> Verdict {
    let expected = matches!(error, Error::Corrupt { .. } | Error::Unsupported { .. });
    assert!(expected, "neither right nor damaged: {error:?}");
    Verdict::Refused
}

/// Runs what waits for nothing.
pub fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match work.as_mut().poll(&mut context) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("jobs run where they are asked for: nothing waits"),
    }
}
