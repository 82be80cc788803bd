//! The lock-free parts of the memtable in every order of steps and with every value that a weak memory may show, by loom.
//!
//! ```sh
//! RUSTFLAGS="--cfg nori_loom" cargo test --release -p nori-lsm --lib memtable::loom
//! ```
//!
//! Name them: under that cfg parts are small, and tests of their sizes fail.
//!
//! One thread inserts, others read. Whatever they meet: what was published before a read is in it; what it shows is in order, whole,
//! and what was written; a later read of the same reader shows no less.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::loom::model::Builder;
use ::loom::sync::atomic::{AtomicU64, Ordering};
use ::loom::thread;
use bytes::Bytes;

use super::arena::Arena;
use super::leaf::{Entry, Probe};
use super::tree::{Tree, Walk};
use super::*;
use crate::types::{SeqNo, ValueKind};

#[derive(Clone, Copy, Debug)]
enum Read {
    Get(&'static str),
    Scan(Direction),
    /// To the key, and on from there.
    Seek(Direction, &'static str),
    LastFirst,
}

use Direction::{Backward, Forward};
use Read::{Get, LastFirst, Scan, Seek};

/// The keys of a history: the n-th is inserted with SeqNo n.
type Keys = &'static [&'static str];

fn value(key: &str, seq: u64) -> Bytes {
    format!("{key} {seq}").into()
}

fn insert(tree: &Tree, keys: Keys, seq: u64) {
    let key = keys[usize_of(seq - 1)];
    tree.insert(Keeper::new(0).keep(SeqNo(seq), &op(key, seq), &Chunks::default()));
}

fn op(key: &'static str, seq: u64) -> WriteOp {
    WriteOp { key: key.into(), kind: ValueKind::Put, value: value(key, seq) }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// Its SeqNo. What is inside is what was written.
fn whole(entry: &Entry, keys: Keys) -> u64 {
    let seq = entry.seq.0;
    assert_eq!(entry.op(), op(keys[usize_of(seq - 1)], seq));
    seq
}

fn walked(tree: &Tree, mut walk: Walk, keys: Keys) -> Vec<u64> {
    let mut seqs = Vec::new();
    while let Some(entry) = walk.entry(tree) {
        seqs.push(whole(entry, keys));
        walk.advance(tree);
    }
    seqs
}

/// Reads, and checks what came. `seen`: every write that this reader knows of.
fn read(tree: &Tree, keys: Keys, read: Read, known: u64, seen: &mut BTreeSet<u64>) {
    seen.extend(1..=known);
    let place = |seq: &u64| (keys[usize_of(seq - 1)], std::cmp::Reverse(*seq));
    let (mut found, due): (Vec<u64>, Box<dyn Fn(&u64) -> bool>) = match read {
        Get(key) => {
            let probe = Probe { key: key.as_bytes(), seq: SeqNo::MAX };
            let look = |entry: &Entry| (entry.key() == key.as_bytes()).then(|| whole(entry, keys));
            let found = tree.first_from(probe, look);
            let newest = seen.iter().rev().copied().find(|seq| place(seq).0 == key);
            assert!(found >= newest, "{read:?}: {found:?} and not {newest:?}");
            return seen.extend(found);
        }
        LastFirst => {
            let found: Vec<u64> = tree.last_first().map(|entry| whole(entry, keys)).collect();
            let last = found.first().copied().unwrap_or(0);
            assert!(found.iter().copied().eq((1..=last).rev()), "{read:?}: {found:?}");
            (found, Box::new(|_| true))
        }
        Scan(direction) => {
            let mut walk = Walk::new(direction);
            walk.rewind(tree);
            (walked(tree, walk, keys), Box::new(|_| true))
        }
        Seek(direction, key) => {
            let mut walk = Walk::new(direction);
            walk.seek(tree, Probe { key: key.as_bytes(), seq: SeqNo::MAX });
            let forward = direction == Forward;
            (walked(tree, walk, keys), Box::new(move |seq| (place(seq).0 >= key) == forward))
        }
    };
    assert!(found.iter().all(&due), "{read:?}: {found:?}");
    assert!(
        seen.iter().filter(|seq| due(seq)).all(|seq| found.contains(seq)),
        "{read:?}: {found:?} of {seen:?}"
    );
    seen.extend(&found);
    if let Scan(Backward) | Seek(Backward, _) = read {
        found.reverse();
    }
    if !matches!(read, LastFirst) {
        assert!(found.is_sorted_by(|a, b| place(a) < place(b)), "{read:?}: {found:?}");
    }
}

fn bounded(preemptions: impl Into<Option<usize>>) -> Builder {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions.into();
    builder.max_branches = 20_000;
    builder
}

/// Inserts the first `before` keys, then the others while each of `readers` does its reads, in every order of steps with at most
/// `preemptions` forced switches.
fn model(
    preemptions: impl Into<Option<usize>>,
    keys: Keys,
    before: u64,
    readers: &'static [&'static [Read]],
) {
    bounded(preemptions).check(move || {
        let tree = Arc::new(Tree::default());
        (1..=before).for_each(|seq| insert(&tree, keys, seq));
        let published = Arc::new(AtomicU64::new(before));
        let threads: Vec<_> = readers
            .iter()
            .map(|reads| {
                let (tree, published) = (Arc::clone(&tree), Arc::clone(&published));
                thread::spawn(move || {
                    let mut seen = BTreeSet::new();
                    for next in *reads {
                        let known = published.load(Ordering::Acquire);
                        read(&tree, keys, *next, known, &mut seen);
                    }
                })
            })
            .collect();
        for seq in before + 1..=keys.len() as u64 {
            insert(&tree, keys, seq);
            published.store(seq, Ordering::Release);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Every order of steps there is.
const ALL: Option<usize> = None;

#[test]
fn the_very_first_inserts() {
    model(ALL, &["a"], 0, &[&[Get("a"), Scan(Forward)], &[Scan(Backward)]]);
    model(3, &["b", "a"], 0, &[&[Scan(Forward), LastFirst]]);
}

#[test]
fn inserts_that_a_leaf_has_room_for() {
    for keys in [&["a", "b", "c"], &["c", "b", "a"], &["b", "a", "c"], &["b", "b", "b"]] {
        model(ALL, keys, 1, &[&[Scan(Forward), Get("b")]]);
        model(3, keys, 1, &[&[Get("c"), Scan(Backward), Seek(Forward, "b")]]);
        model(2, keys, 1, &[&[Scan(Forward), Get("a")], &[Seek(Backward, "c"), LastFirst]]);
    }
}

#[test]
fn keys_that_only_their_ends_tell_apart() {
    let keys =
        &["the same front: b", "the same front: d", "the same front: a", "the same front: c"];
    model(3, keys, 2, &[&[Get("the same front: c"), Scan(Forward)]]);
    model(3, keys, 2, &[&[Seek(Backward, "the same front: c"), Scan(Backward)]]);
}

#[test]
fn an_insert_that_splits_a_leaf() {
    // In order, before all others, between them, and of a key that is there.
    for keys in
        [&["a", "b", "c", "d"], &["d", "c", "b", "a"], &["a", "b", "d", "c"], &["b", "b", "b", "b"]]
    {
        model(ALL, keys, 3, &[&[Scan(Forward), Get("a")]]);
        model(3, keys, 2, &[&[Get("b"), Scan(Backward), Seek(Forward, "b")]]);
        model(2, keys, 2, &[&[Scan(Forward), LastFirst], &[Seek(Backward, "c"), Get("d")]]);
    }
}

#[test]
fn inserts_into_leaves_that_were_split() {
    for keys in [&["a", "c", "e", "b", "d", "f"], &["f", "e", "d", "c", "b", "a"]] {
        model(3, keys, 4, &[&[Scan(Forward), Scan(Backward)]]);
        model(2, keys, 3, &[&[Get("d"), Scan(Backward)], &[Seek(Forward, "c")]]);
    }
}

#[test]
fn an_insert_that_splits_the_root() {
    // Two leaves that are full, or nearly, below a node that has as many as it can.
    for keys in [
        &["a", "b", "c", "d", "e", "f", "g"][..],
        &["g", "f", "e", "d", "c", "b", "a"],
        &["a", "c", "e", "g", "b", "d", "f", "h"],
    ] {
        let count = keys.len() as u64;
        model(ALL, keys, count - 1, &[&[Scan(Forward), Get("d")]]);
        model(3, keys, count - 2, &[&[Scan(Backward), Seek(Forward, "d")]]);
        model(2, keys, count - 2, &[&[Get("g"), Scan(Forward)], &[Seek(Backward, "f"), LastFirst]]);
    }
}

#[test]
fn the_filter_and_the_numbers_of_a_memtable() {
    const KEYS: Keys = &["b", "a"];
    let put = |memtable: &Memtable, seq: u64| {
        memtable.insert(SeqNo(seq), &op(KEYS[usize_of(seq - 1)], seq), &mut Keeper::new(0));
    };
    for before in [0, 1] {
        bounded(2).check(move || {
            let memtable = Arc::new(Memtable::new(FileId(1), 0));
            (1..=before).for_each(|seq| put(&memtable, seq));
            let reader = Arc::clone(&memtable);
            let reader = thread::spawn(move || {
                let known = reader.last_seq().0;
                let key = KEYS[usize_of(before)];
                let found = reader.get(key.as_bytes(), hash_key(key.as_bytes()), SeqNo(known));
                let found = found.map(|found| (found.seq.0, found.value));
                assert_eq!(found, (known > before).then(|| (known, value(key, known))));
                let ops = reader.ops_after(SeqNo(0));
                assert!(ops.len() >= usize_of(known), "{known}: {ops:?}");
                assert!(ops.iter().map(|(seq, _)| seq.0).eq(1..=ops.len() as u64));
            });
            put(&memtable, before + 1);
            reader.join().unwrap();
        });
    }
}

/// Readers of a tree learn of an entry by the order of a leaf. An arena holds by itself too, for whoever asks for any number.
#[test]
fn an_arena_whose_readers_were_told_nothing() {
    for before in [0, 1, 2, 8] {
        bounded(ALL).check(move || {
            let arena = Arc::new(Arena::default());
            (0..before).for_each(|n| assert_eq!(arena.push(n), n));
            let reader = Arc::clone(&arena);
            let reader = thread::spawn(move || {
                let newest = (before..before + 2).rev().find(|n| reader.get(*n).is_some());
                let all: Vec<u32> = reader.last_first().copied().collect();
                let len = u32::try_from(all.len()).unwrap();
                assert!(newest.is_none_or(|n| reader.get(n) == Some(&n)));
                assert!(all.iter().copied().eq((0..len).rev()), "{all:?}");
                assert!(len >= before, "{all:?}");
            });
            (before..before + 2).for_each(|n| assert_eq!(arena.push(n), n));
            reader.join().unwrap();
        });
    }
}
