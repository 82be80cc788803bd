//! What the writers of a worker write, as a function of writer and number, so that every process can tell what must be there.

use std::collections::BTreeMap;

use bytes::Bytes;
use nori_lsm::{ATLLConfig, CompressionConfig, L0Config, LsmEngine, MemtableConfig, WalConfig};

/// Writers of a worker. Each has keys of its own, and a mark that each of its batches sets to its number.
pub(crate) const WRITERS: usize = 6;

/// Keys of each writer.
const KEYS: usize = 160;

/// Number of the last batch of each writer.
pub(crate) type Marks = [u64; WRITERS];

pub(crate) type State = BTreeMap<Bytes, Bytes>;

/// Small enough that flushes and compactions never end, and the log has several segments.
pub(crate) fn config(dir: &std::path::Path) -> ATLLConfig {
    ATLLConfig {
        data_dir: dir.to_owned(),
        fanout: 3,
        max_levels: 4,
        l1_slot_count: 4,
        memtable: MemtableConfig { flush_trigger_bytes: 64 << 10, ..Default::default() },
        l0: L0Config { max_files: 8 },
        block_size: 1024,
        compression: CompressionConfig::default(),
        wal: WalConfig { segment_preallocate: true, ..Default::default() },
        seed: 7,
        ..Default::default()
    }
}

fn key(writer: usize, number: usize) -> Bytes {
    format!("{writer}/key{number:04}").into()
}

fn mark(writer: usize) -> Bytes {
    format!("{writer}/mark").into()
}

/// What batch `number` of a writer sets and deletes. The mark is its last operation, so half a batch shows.
pub(crate) fn batch(writer: usize, number: u64) -> Vec<(Bytes, Option<Bytes>)> {
    let mut rng = fastrand::Rng::with_seed(number * 64 + writer as u64);
    let mut ops: Vec<_> = (0..rng.usize(1..6))
        .map(|_| {
            let len = if rng.u8(..40) == 0 { rng.usize(..24_000) } else { rng.usize(..300) };
            let value = (rng.u8(..5) > 0).then(|| value(writer, number, len));
            (key(writer, rng.usize(..KEYS)), value)
        })
        .collect();
    ops.push((mark(writer), Some(number.to_string().into())));
    ops
}

/// Says whose it is, then bytes that follow from that.
fn value(writer: usize, number: u64, len: usize) -> Bytes {
    let mut value = format!("{writer}:{number}:").into_bytes();
    let mut noise = fastrand::Rng::with_seed(number);
    while value.len() < len {
        value.extend_from_slice(&noise.u32(..).to_le_bytes());
        value.extend_from_slice(b"----");
    }
    value.into()
}

/// What is there after the batches of each writer up to its mark.
fn state(marks: &Marks) -> State {
    let mut state = State::new();
    for (writer, last) in marks.iter().enumerate() {
        for (key, value) in (1..=*last).flat_map(|number| batch(writer, number)) {
            match value {
                Some(value) => drop(state.insert(key, value)),
                None => drop(state.remove(&key)),
            }
        }
    }
    state
}

/// Reads an engine in every way there is. Its marks, if all of it is what they say; else a complaint.
pub(crate) async fn check(engine: &LsmEngine) -> Result<Marks, String> {
    let read = |error: nori_lsm::Error| error.to_string();
    let snapshot = engine.snapshot();
    let mut marks = Marks::default();
    for (writer, last) in marks.iter_mut().enumerate() {
        let Some(found) = engine.get(&mark(writer)).await.map_err(read)? else { continue };
        let digits = String::from_utf8_lossy(&found);
        *last = digits
            .parse()
            .ok()
            .ok_or_else(|| format!("a mark that was never written: {digits}"))?;
    }
    let expected = state(&marks);
    let mut forward = engine.scan(..);
    for (key, value) in &expected {
        let found = forward.next().await.map_err(read)?;
        if found.as_ref() != Some(&(key.clone(), value.clone())) {
            return Err(format!("marks {marks:?}: {key:?} is missing or wrong: {}", brief(&found)));
        }
    }
    if let Some(more) = forward.next().await.map_err(read)? {
        return Err(format!("marks {marks:?}: never written: {:?}", more.0));
    }
    let mut backward = snapshot.scan(..).rev();
    for (key, value) in expected.iter().rev() {
        let found = backward.next().await.map_err(read)?;
        if found.as_ref() != Some(&(key.clone(), value.clone())) {
            return Err(format!("marks {marks:?}: backward from {key:?}: {}", brief(&found)));
        }
    }
    if let Some(more) = backward.next().await.map_err(read)? {
        return Err(format!("marks {marks:?}: backward, never written: {:?}", more.0));
    }
    for key in (0..WRITERS).flat_map(|writer| (0..KEYS).map(move |number| key(writer, number))) {
        let (found, pinned) = (engine.get(&key).await, snapshot.get(&key).await);
        let (found, pinned) = (found.map_err(read)?, pinned.map_err(read)?);
        if found.as_ref() != expected.get(&key) || pinned != found {
            return Err(format!("marks {marks:?}: {key:?} by a get is missing or wrong"));
        }
    }
    Ok(marks)
}

/// The key, and the front of the value.
fn brief(entry: &Option<(Bytes, Bytes)>) -> String {
    let Some((key, value)) = entry else { return "nothing".into() };
    format!("{key:?} = {:?}", value.slice(..value.len().min(24)))
}
