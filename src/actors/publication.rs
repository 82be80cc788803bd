//! What readers are promised about publication, checked in every order in which writer, flusher and reader can take their steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::FutureExt;

use crate::batch::WriteBatch;
use crate::commit::{Commits, Core, CoreArgs, Terms};
use crate::config::{ATLLConfig, Compression};
use crate::cursor::Stop;
use crate::env::Env;
use crate::env::sim::{SimFs, VirtualClock, sim_env};
use crate::jobs::Cancel;
use crate::jobs::flush::{FlushJob, flush_ops};
use crate::jobs::output::Outputs;
use crate::jobs::recover::{Recovered, recover};
use crate::memtable::Memtable;
use crate::storage::store::Store;
use crate::types::SeqNo;
use crate::version::VersionEdit;
use crate::view::{Lookup, Tree, View, Views};

/// Steps of the writer, of the flusher and of the reader.
const STEPS: [usize; 3] = [3, 3, 3];

/// What a reader loads first.
#[derive(Clone, Copy)]
enum Order {
    ViewFirst,
    SeqFirst,
}

/// The real parts, without the actors that move them.
struct World {
    env: Env,
    store: Arc<Store>,
    views: Arc<Views>,
    commits: Arc<Commits>,
    /// Writes that were acknowledged.
    acked: u64,
    flushing: Option<(Arc<Memtable>, Outputs)>,
    reader: Reader,
}

#[derive(Default)]
struct Reader {
    least: u64,
    view: Option<Arc<View>>,
    seq: Option<SeqNo>,
}

impl World {
    fn new() -> Self {
        let env = sim_env(&SimFs::new(1), VirtualClock::default());
        let config = ATLLConfig { seed: 1, ..Default::default() };
        let Recovered { store, version, segment, report, .. } = recover(&env, &config).unwrap();
        let tree = Arc::new(Tree::new(Arc::new(version), None, &store));
        let active = Arc::new(Memtable::new(segment.id(), 1 << 20));
        let views = Arc::new(Views::new(View { active, sealed: Vec::new(), tree }));
        let core = Core::new(CoreArgs {
            store: Arc::clone(&store),
            views: Arc::clone(&views),
            segment,
            next_seq: report.last_seq.plus(1),
            seal_bytes: 1 << 20,
        });
        let commits = Commits::new((core, 64 << 20), || {}, || {});
        let reader = Reader::default();
        let mut world = Self { env, store, views, commits, acked: 0, flushing: None, reader };
        world.write();
        world
    }

    /// Sets the one key to the number of the write.
    fn write(&mut self) {
        let mut batch = WriteBatch::default();
        batch.put("k", (self.acked + 1).to_string());
        let terms = Terms { sync: false, clock: &*self.env.clock, until: None };
        self.commits.write(batch, terms).now_or_never().unwrap().unwrap();
        self.acked += 1;
    }

    fn flush(&mut self, step: usize) {
        match step {
            0 => {
                let mut lease = self.commits.lease().now_or_never().unwrap();
                lease.want_seal();
                assert!(lease.install_spare(self.store.create_segment().unwrap()).is_none());
                lease.seal_if_due();
            }
            1 => {
                let view = self.views.load_full();
                let memtable = Arc::clone(view.sealed.last().unwrap());
                let job = FlushJob {
                    store: Arc::clone(&self.store),
                    memtable: Arc::clone(&memtable),
                    version: Arc::clone(view.version()),
                    snapshots: Vec::new(),
                    compression: Compression::None,
                };
                self.flushing = Some((memtable, job.run(&Cancel::default()).unwrap()));
            }
            _ => self.publish(),
        }
    }

    /// One View gets the tables and loses the memtable.
    fn publish(&mut self) {
        let (memtable, outputs) = self.flushing.take().unwrap();
        let view = self.views.load_full();
        let edit = VersionEdit {
            ops: flush_ops(&outputs, self.store.new_run_id()),
            next_file: self.store.next_file(),
            last_seq: memtable.last_seq(),
            log_floor: view.active.segment(),
        };
        let next = Arc::new(view.version().apply(&edit).unwrap());
        let tree = Arc::new(Tree::new(next, Some(&view.tree), &self.store));
        self.views.update(|view| view.with_tree(Arc::clone(&tree)));
        assert!(self.views.load().sealed.is_empty(), "what is in tables is in no memtable");
    }

    fn read(&mut self, order: Order, step: usize) {
        match (step, order) {
            (0, Order::ViewFirst) | (1, Order::SeqFirst) => {
                self.reader.view = Some(self.views.load_full());
            }
            (0 | 1, _) => self.reader.seq = Some(self.commits.visible()),
            _ => {
                let Reader { least, view, seq } = &self.reader;
                let seen = look(view.as_ref().unwrap(), seq.unwrap());
                assert!(seen >= *least, "write {seen} was read, {least} was acknowledged before");
                assert!(seen <= self.acked);
            }
        }
        if step == 0 {
            self.reader.least = self.acked;
        }
    }

    fn step(&mut self, who: usize, step: usize, order: Order) {
        match who {
            0 => self.write(),
            1 => self.flush(step),
            _ => self.read(order, step),
        }
    }
}

/// The number that a reader of this View finds; 0 if it finds none.
fn look(view: &View, seq: SeqNo) -> u64 {
    let mut lookup = Lookup::new(b"k", seq);
    loop {
        match lookup.run(view) {
            Ok(found) => {
                let Some(found) = found else { return 0 };
                return std::str::from_utf8(&found.value).unwrap().parse().unwrap();
            }
            Err(Stop::Blocked(read)) => read().unwrap(),
            Err(Stop::Failed(error)) => panic!("{error}"),
        }
    }
}

/// Every order of steps in which each of the three takes its own one behind the other.
fn schedules(left: [usize; 3]) -> Vec<Vec<usize>> {
    if left == [0; 3] {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for who in (0..3).filter(|who| left[*who] > 0) {
        let mut rest = left;
        rest[who] -= 1;
        all.extend(schedules(rest).into_iter().map(|mut later| {
            later.insert(0, who);
            later
        }));
    }
    all
}

fn in_every_order(order: Order) {
    let schedules = schedules(STEPS);
    assert_eq!(schedules.len(), 1680);
    for schedule in schedules {
        let held = catch_unwind(AssertUnwindSafe(|| {
            let (mut world, mut done) = (World::new(), [0; 3]);
            for who in &schedule {
                world.step(*who, done[*who], order);
                done[*who] += 1;
            }
        }));
        assert!(held.is_ok(), "a promise was broken in the order {schedule:?}");
    }
}

#[test]
fn a_reader_that_loads_the_view_and_then_the_seq_misses_no_acknowledged_write() {
    in_every_order(Order::ViewFirst);
}

/// Between the two loads a flush may drop the version that the older SeqNo needs.
#[test]
#[should_panic(expected = "a promise was broken")]
fn the_other_way_round_it_would_miss_one() {
    in_every_order(Order::SeqFirst);
}
