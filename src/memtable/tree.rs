//! An ordered map with one writer and any number of readers, who neither wait nor try again: a B+ tree whose inner nodes are values.
//!
//! Entries lie in an arena, in the order of their arrival; leaves hold their numbers, and change in place. When a leaf is split,
//! the inner nodes above it are copied, and the new root is published: a reader who has a root has every entry that was inserted
//! before it was published, for as long as it likes.
//!
//! Invariants: leaves hold at least one entry, but for the very first; an inner node has one bound less than children; what is
//! before bound `i` is in the children up to `i`.

use std::cmp::Ordering as Compared;
use std::sync::Arc;

use super::arena::{Arena, Id};
use super::leaf::{Bounds, Entry, Leaf, Order, Probe, at_end, head_in, head_of};
use super::sync::{MODEL, Swapped};
use crate::types::Direction;

/// Most children of an inner node.
const FANOUT: usize = if MODEL { 2 } else { 32 };

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    entries: Arena<Entry>,
    /// Those that were split stay here too, for whoever reads them.
    leaves: Arena<Leaf>,
    root: Swapped<Inner>,
}

/// Which child holds which positions, all the way down. Never changes; the leaves below may grow.
#[derive(Debug)]
struct Inner {
    /// Bytes that the keys of all bounds have in common.
    skip: usize,
    /// Whether every key that comes here has them too. Else it is asked.
    fenced: bool,
    /// [`head_of`] the key of each bound.
    heads: Box<[u64]>,
    /// Where each child but the first begins: at the position of that entry.
    bounds: Box<[Id]>,
    children: Children,
}

#[derive(Debug)]
enum Children {
    Leaves(Box<[Id]>),
    Inner(Box<[Arc<Inner>]>),
}

impl From<Vec<Id>> for Children {
    fn from(leaves: Vec<Id>) -> Self {
        Self::Leaves(leaves.into())
    }
}

impl From<Vec<Arc<Inner>>> for Children {
    fn from(inner: Vec<Arc<Inner>>) -> Self {
        Self::Inner(inner.into())
    }
}

/// What takes the place of an inner node: one, or two of which the second begins at the bound.
enum Grown {
    One(Arc<Inner>),
    Two(Arc<Inner>, Id, Arc<Inner>),
}

impl Default for Tree {
    fn default() -> Self {
        let (entries, leaves) = (Arena::default(), Arena::default());
        let first = leaves.push(Leaf::empty(Bounds::default(), &entries));
        let children = Children::Leaves([first].into());
        let root = Inner::new((Vec::new(), children), Bounds::default(), &entries);
        Self { root: Swapped::new(root), entries, leaves }
    }
}

impl Tree {
    /// Adds an entry. REQUIRES: nobody else inserts meanwhile, and there is none at its position.
    pub(super) fn insert(&self, entry: Entry) {
        let id = self.entries.push(entry);
        let root = self.root.load();
        let grown = match self.insert_below(&root, id, Bounds::default()) {
            None => return,
            Some(Grown::One(root)) => root,
            Some(Grown::Two(left, bound, right)) => {
                let children = Children::Inner([left, right].into());
                Inner::new((vec![bound], children), Bounds::default(), &self.entries)
            }
        };
        self.root.store(grown);
    }

    /// The first entry at or behind `probe`, as `look` sees it.
    pub(super) fn first_from<T>(
        &self,
        probe: Probe<'_>,
        look: impl FnOnce(&Entry) -> Option<T>,
    ) -> Option<T> {
        let id = self.first_below(&self.root.load(), probe)?;
        look(self.entries.get(id)?)
    }

    /// Every entry, the last one inserted first.
    pub(super) fn last_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.last_first()
    }

    /// Inserts an entry below `node`. Returns what takes the place of that; `None`: it stays.
    fn insert_below(&self, node: &Inner, id: Id, around: Bounds) -> Option<Grown> {
        let at = self.entries.get(id)?.at();
        let child = node.child_of(at, &self.entries);
        let low = child.checked_sub(1).and_then(|before| node.bounds.get(before)).copied();
        let high = node.bounds.get(child).copied();
        let within = Bounds { low: low.or(around.low), high: high.or(around.high) };
        match &node.children {
            Children::Leaves(leaves) => {
                let leaf = self.leaves.get(*leaves.get(child)?)?;
                let place = leaf.insert(id, at, &self.entries).err()?;
                let (two, bound) = leaf.split((id, place), within, &self.entries);
                let split = (child, two.map(|leaf| self.leaves.push(leaf)), bound);
                Some(node.with_two(split, leaves, (around, &self.entries)))
            }
            Children::Inner(inner) => match self.insert_below(inner.get(child)?, id, within)? {
                Grown::One(one) => {
                    let mut children = inner.clone();
                    *children.get_mut(child)? = one;
                    Some(Grown::One(node.with_children(Children::Inner(children))))
                }
                Grown::Two(left, bound, right) => Some(node.with_two(
                    (child, [left, right], bound),
                    inner,
                    (around, &self.entries),
                )),
            },
        }
    }

    fn first_below(&self, node: &Inner, probe: Probe<'_>) -> Option<Id> {
        let child = node.child_of(probe, &self.entries);
        // It may be behind all that the child holds.
        match &node.children {
            Children::Leaves(leaves) => {
                let leaf = self.leaves.get(*leaves.get(child)?)?;
                let order = leaf.order();
                let found = leaf.id(order, leaf.rank(order, probe, &self.entries));
                found.or_else(|| self.first_of(*leaves.get(child + 1)?))
            }
            Children::Inner(inner) => self
                .first_below(inner.get(child)?, probe)
                .or_else(|| self.first_under(inner.get(child + 1)?)),
        }
    }

    fn first_under(&self, node: &Inner) -> Option<Id> {
        match &node.children {
            Children::Leaves(leaves) => self.first_of(*leaves.first()?),
            Children::Inner(inner) => self.first_under(inner.first()?),
        }
    }

    fn first_of(&self, leaf: Id) -> Option<Id> {
        let leaf = self.leaves.get(leaf)?;
        leaf.id(leaf.order(), 0)
    }
}

impl Inner {
    fn new(
        (bounds, children): (Vec<Id>, Children),
        around: Bounds,
        entries: &Arena<Entry>,
    ) -> Arc<Self> {
        let fence = around.common_prefix(entries);
        let own = || Bounds { low: bounds.first().copied(), high: bounds.last().copied() };
        let skip = fence.or_else(|| own().common_prefix(entries)).unwrap_or(0);
        let heads = bounds.iter().map(|bound| head_in(entries, *bound, skip)).collect();
        Arc::new(Self { skip, fenced: fence.is_some(), heads, bounds: bounds.into(), children })
    }

    fn with_children(&self, children: Children) -> Arc<Self> {
        let (heads, bounds) = (self.heads.clone(), self.bounds.clone());
        Arc::new(Self { heads, bounds, children, ..*self })
    }

    /// Number of the child that holds a position.
    #[inline]
    fn child_of(&self, probe: Probe<'_>, entries: &Arena<Entry>) -> usize {
        let bound = |at: usize| entries.get(*self.bounds.get(at)?).map(Entry::at);
        if !self.fenced {
            let Some(first) = bound(0) else { return 0 };
            let prefix = first.key.get(..self.skip).unwrap_or_default();
            let front = probe.key.get(..self.skip).unwrap_or(probe.key);
            match front.cmp(prefix) {
                Compared::Less => return 0,
                Compared::Greater => return self.bounds.len(),
                Compared::Equal => {}
            }
        }
        let head = head_of(probe.key, self.skip);
        let mut child = self.heads.partition_point(|other| *other < head);
        while self.heads.get(child) == Some(&head)
            && bound(child).is_some_and(|bound| probe.compare(bound).is_ge())
        {
            child += 1;
        }
        child
    }

    /// With two children, the second from `bound` on, in place of the one at `at`.
    fn with_two<T: Clone>(
        &self,
        (at, two, bound): (usize, [T; 2], Id),
        children: &[T],
        (around, entries): (Bounds, &Arena<Entry>),
    ) -> Grown
    where
        Children: From<Vec<T>>,
    {
        let (before, behind) = children.split_at(at);
        let [left, right] = two;
        let mut all = Vec::with_capacity(children.len() + 1);
        all.extend_from_slice(before);
        all.extend([left, right]);
        all.extend_from_slice(behind.get(1..).unwrap_or_default());
        let mut bounds = with_one(&self.bounds, at, bound);
        if all.len() <= FANOUT {
            let children = all.into();
            if !self.fenced && (at == 0 || at == self.bounds.len()) {
                return Grown::One(Self::new((bounds, children), around, entries));
            }
            // What the keys have in common stays the same: no other key is looked at.
            let heads = with_one(&self.heads, at, head_in(entries, bound, self.skip)).into();
            return Grown::One(Arc::new(Self { heads, bounds: bounds.into(), children, ..*self }));
        }
        // Keys that arrive in order fill their nodes.
        let last = behind.len() == 1;
        let left = if last { all.len() - 1 - at_end(FANOUT, around) } else { all.len() / 2 };
        let (right, right_bounds) = (all.split_off(left), bounds.split_off(left));
        let middle = bounds.pop();
        let (lower, upper) = (Bounds { high: middle, ..around }, Bounds { low: middle, ..around });
        let right = Self::new((right_bounds, right.into()), upper, entries);
        match middle {
            Some(middle) => {
                let left = Self::new((bounds, all.into()), lower, entries);
                Grown::Two(left, middle, right)
            }
            None => Grown::One(right),
        }
    }

    fn len(&self) -> usize {
        self.bounds.len() + 1
    }
}

/// A copy of `list` with one more item, at `at`.
fn with_one<T: Copy>(list: &[T], at: usize, item: T) -> Vec<T> {
    let (before, behind) = list.split_at(at);
    let mut all = Vec::with_capacity(list.len() + 1);
    all.extend_from_slice(before);
    all.push(item);
    all.extend_from_slice(behind);
    all
}

/// Walks a tree that may grow meanwhile: what was inserted after the last placement may be shown or not. It is given the same tree
/// each time.
#[derive(Debug)]
pub(super) struct Walk {
    direction: Direction,
    /// The way down from the root: each node, and the number of its child on the way.
    path: Vec<(Arc<Inner>, usize)>,
    leaf: Option<(Id, Order)>,
    /// Place in the order of the leaf.
    place: usize,
}

impl Walk {
    pub(super) const fn new(direction: Direction) -> Self {
        Self { direction, path: Vec::new(), leaf: None, place: 0 }
    }

    pub(super) fn rewind(&mut self, tree: &Tree) {
        self.path.clear();
        self.descend(tree.root.load_full(), tree);
    }

    /// Forward: goes to the first entry at or behind `probe`. Backward: to the last one before it.
    pub(super) fn seek(&mut self, tree: &Tree, probe: Probe<'_>) {
        self.path.clear();
        self.leaf = None;
        let mut node = tree.root.load_full();
        loop {
            let at = node.child_of(probe, &tree.entries);
            let next = match &node.children {
                Children::Leaves(leaves) => Err(leaves.get(at).copied()),
                Children::Inner(inner) => Ok(inner.get(at).cloned()),
            };
            self.path.push((node, at));
            match next {
                Ok(Some(next)) => node = next,
                Ok(None) => return,
                Err(id) => {
                    let Some((id, leaf)) = id.and_then(|id| Some((id, tree.leaves.get(id)?)))
                    else {
                        return;
                    };
                    let order = leaf.order();
                    self.place = leaf.rank(order, probe, &tree.entries);
                    self.leaf = Some((id, order));
                    break;
                }
            }
        }
        match self.direction {
            Direction::Forward => self.leave_end(tree),
            Direction::Backward => self.advance(tree),
        }
    }

    /// Goes to the next entry.
    pub(super) fn advance(&mut self, tree: &Tree) {
        match (self.direction, self.place) {
            (Direction::Forward, _) => {
                self.place += 1;
                self.leave_end(tree);
            }
            (Direction::Backward, 0) => self.next_leaf(tree),
            (Direction::Backward, _) => self.place -= 1,
        }
    }

    fn leave_end(&mut self, tree: &Tree) {
        if self.leaf.is_some_and(|(_, order)| self.place >= order.len()) {
            self.next_leaf(tree);
        }
    }

    #[inline]
    pub(super) fn entry<'t>(&self, tree: &'t Tree) -> Option<&'t Entry> {
        let (leaf, order) = self.leaf?;
        tree.entries.get(tree.leaves.get(leaf)?.id(order, self.place)?)
    }

    /// Goes to the front, in the direction of the walk, of the next leaf.
    fn next_leaf(&mut self, tree: &Tree) {
        self.leaf = None;
        while let Some((node, at)) = self.path.pop() {
            let next = match self.direction {
                Direction::Forward => Some(at + 1).filter(|at| *at < node.len()),
                Direction::Backward => at.checked_sub(1),
            };
            if let Some(next) = next {
                return self.step_down(node, next, tree);
            }
        }
    }

    fn descend(&mut self, node: Arc<Inner>, tree: &Tree) {
        let at = match self.direction {
            Direction::Forward => 0,
            Direction::Backward => node.len() - 1,
        };
        self.step_down(node, at, tree);
    }

    /// Goes from `node` to its child `at`, and on to a leaf and an entry, always to the first in the direction of the walk.
    fn step_down(&mut self, node: Arc<Inner>, at: usize, tree: &Tree) {
        let child = match &node.children {
            Children::Inner(inner) => inner.get(at).cloned(),
            Children::Leaves(leaves) => {
                let leaf = leaves.get(at).and_then(|id| Some((*id, tree.leaves.get(*id)?.order())));
                self.leaf = leaf;
                self.place = match self.direction {
                    Direction::Forward => 0,
                    Direction::Backward => leaf.map_or(0, |(_, order)| order.len().max(1) - 1),
                };
                None
            }
        };
        self.path.push((node, at));
        if let Some(child) = child {
            self.descend(child, tree);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use crossbeam_skiplist::SkipMap;

    use super::super::leaf::SLOTS;
    use super::*;
    use crate::types::{SeqNo, ValueKind, usize_of};

    impl Inner {
        /// How many inner nodes and leaves there are from here on.
        fn count(&self) -> (usize, usize) {
            match &self.children {
                Children::Leaves(leaves) => (1, leaves.len()),
                Children::Inner(inner) => inner.iter().fold((1, 0), |(nodes, leaves), below| {
                    let (more_nodes, more_leaves) = below.count();
                    (nodes + more_nodes, leaves + more_leaves)
                }),
            }
        }
    }

    type Oracle = SkipMap<(Vec<u8>, Reverse<u64>), ()>;

    fn entry(key: &[u8], seq: u64) -> Entry {
        Entry::new(SeqNo(seq), ValueKind::Put, Bytes::copy_from_slice(key), key.len())
    }

    /// Keys of several shapes, as they arrive.
    fn arrivals(shape: usize, count: u64) -> Vec<Vec<u8>> {
        let mut rng = fastrand::Rng::with_seed(u64::try_from(shape).unwrap() + count);
        let key = |n: u64| match shape {
            0 => format!("user:{n:012}"),
            1 => format!("user:{:012}", count - n),
            2 => format!("user:{:012}", rng.u64(..count)),
            3 => format!("hot{}", rng.u64(..3)),
            4 => "x".repeat(rng.usize(..12)),
            _ => format!("{}/{n}", rng.u64(..5)),
        };
        (0..count).map(key).map(String::into_bytes).collect()
    }

    fn shown(walk: &Walk, tree: &Tree) -> Option<(Vec<u8>, Reverse<u64>)> {
        walk.entry(tree).map(|entry| (entry.key().to_vec(), Reverse(entry.seq.0)))
    }

    fn all(tree: &Tree, direction: Direction) -> Vec<(Vec<u8>, Reverse<u64>)> {
        let mut walk = Walk::new(direction);
        walk.rewind(tree);
        let mut seen = Vec::new();
        while let Some(entry) = shown(&walk, tree) {
            seen.push(entry);
            walk.advance(tree);
        }
        seen
    }

    #[test]
    fn it_is_a_sorted_map_whatever_the_order_of_arrival() {
        for shape in 0..6 {
            let (tree, oracle) = (Tree::default(), Oracle::new());
            for (seq, key) in (1..).zip(arrivals(shape, 5000)) {
                tree.insert(entry(&key, seq));
                oracle.insert((key, Reverse(seq)), ());
            }
            let mut expected: Vec<_> = oracle.iter().map(|entry| entry.key().clone()).collect();
            assert_eq!(all(&tree, Direction::Forward), expected, "shape {shape}");
            expected.reverse();
            assert_eq!(all(&tree, Direction::Backward), expected, "shape {shape}");
        }
    }

    #[test]
    fn leaves_are_filled_whatever_the_order_of_arrival() {
        type Key = fn(u32) -> u32;
        const COUNT: u32 = 20_000;
        let orders: [(&str, Key); 11] = [
            ("ascending", |n| n),
            ("descending", |n| COUNT - n),
            ("anyhow", |n| n.wrapping_mul(2_654_435_761)),
            ("of one key", |_| 0),
            // The first fifteen fill a leaf.
            ("of a key behind a full leaf", |n| n.min(15)),
            ("descending behind a full leaf", |n| if n < 15 { n } else { 2 * COUNT - n }),
            ("descending behind a full node", |n| if n < 480 { n } else { 2 * COUNT - n }),
            ("descending at the end of a full node", |n| if n < 470 { n } else { 2 * COUNT - n }),
            ("in runs before one another", |n| match n.checked_sub(15) {
                None => n,
                Some(n) => 2 * COUNT - n / 9 * 9 - 9 + n % 9,
            }),
            ("ascending before others", |n| if n < 100 { COUNT * 2 + n } else { n }),
            ("to and fro", |n| if n % 2 == 0 { n } else { 2 * COUNT - n }),
        ];
        for (name, order) in orders {
            let tree = Tree::default();
            for n in 0..COUNT {
                tree.insert(entry(&order(n).to_be_bytes(), u64::from(n) + 1));
            }
            let (nodes, leaves) = tree.root.load().count();
            assert!(leaves * SLOTS <= usize_of(COUNT.into()) * 2, "{name}: {leaves} leaves");
            assert!(nodes * FANOUT <= leaves * 3, "{name}: {nodes} nodes over {leaves} leaves");
        }
    }

    #[test]
    fn a_search_finds_what_a_sorted_map_finds_at_every_size() {
        for shape in 0..6 {
            let (tree, oracle) = (Tree::default(), Oracle::new());
            let arrivals = arrivals(shape, 1200);
            let mut rng = fastrand::Rng::with_seed(7);
            for (seq, key) in (1..).zip(&arrivals) {
                tree.insert(entry(key, seq));
                oracle.insert((key.clone(), Reverse(seq)), ());
                let mut sought = arrivals[rng.usize(..arrivals.len())].clone();
                match rng.u8(..4) {
                    0 => sought.truncate(rng.usize(..=sought.len())),
                    1 => sought.push(rng.u8(..)),
                    _ => {}
                }
                let at = (sought.clone(), Reverse(rng.u64(..seq + 2)));
                let probe = Probe { key: &sought, seq: SeqNo(at.1.0) };
                let behind = oracle.range(at.clone()..).next().map(|entry| entry.key().clone());
                let before = oracle.range(..at).next_back().map(|entry| entry.key().clone());
                let place = |entry: &Entry| Some((entry.key().to_vec(), Reverse(entry.seq.0)));
                let found = tree.first_from(probe, place);
                assert_eq!(found, behind, "shape {shape}, {sought:?}");
                for (direction, expected) in
                    [(Direction::Forward, behind), (Direction::Backward, before)]
                {
                    let mut walk = Walk::new(direction);
                    walk.seek(&tree, probe);
                    assert_eq!(
                        shown(&walk, &tree),
                        expected,
                        "shape {shape}, {sought:?}, {direction:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn readers_see_all_that_was_published_while_it_grows() {
        const COUNT: u64 = 20_000;
        for shape in [0, 2, 3] {
            let (tree, published) = (Tree::default(), AtomicU64::new(0));
            std::thread::scope(|threads| {
                for direction in [Direction::Forward, Direction::Backward] {
                    let (tree, published) = (&tree, &published);
                    threads.spawn(move || {
                        let mut last = 0;
                        while last < COUNT {
                            last = published.load(Ordering::Acquire);
                            let mut seen = all(tree, direction);
                            if direction == Direction::Backward {
                                seen.reverse();
                            }
                            assert!(seen.windows(2).all(|two| two[0] < two[1]));
                            let old = seen.iter().filter(|(_, seq)| seq.0 <= last).count();
                            assert_eq!(u64::try_from(old).unwrap(), last);
                        }
                    });
                }
                for (seq, key) in (1..).zip(arrivals(shape, COUNT)) {
                    tree.insert(entry(&key, seq));
                    published.store(seq, Ordering::Release);
                }
            });
        }
    }
}
