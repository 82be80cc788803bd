//! What readers are promised about publication, checked in every order in which those who publish, those who remove what is dead
//! and those who read can take their steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;

use super::manifest_keeper::{publish, sweep};
use super::routes::Routes;
use super::shared::{Shared, SharedArgs};
use crate::batch::WriteBatch;
use crate::commit::{Commits, Core, CoreArgs, Terms};
use crate::config::{ATLLConfig, Compression};
use crate::cursor::Stop;
use crate::env::sim::{SimFs, VirtualClock, sim_env};
use crate::jobs::Cancel;
use crate::jobs::compact::{CompactJob, Target, compact_ops};
use crate::jobs::flush::{FlushJob, flush_ops};
use crate::jobs::output::Outputs;
use crate::jobs::recover::{Recovered, recover};
use crate::memtable::Memtable;
use crate::storage::layout::FileKind;
use crate::types::{FileId, Level, SeqNo, SlotId};
use crate::version::{EditOp, VersionEdit};
use crate::view::{Lookup, Tree, View, Views};

/// Steps of each of three: writer, flusher and reader, or manifest keeper and two readers.
const STEPS: [usize; 3] = [3, 3, 3];

/// What a reader loads first.
#[derive(Clone, Copy)]
enum Order {
    ViewFirst,
    SeqFirst,
}

/// The real parts, without the actors that move them.
struct World {
    shared: Arc<Shared>,
    /// Writes that were acknowledged.
    acked: u64,
    flushing: Option<(Arc<Memtable>, Outputs)>,
    readers: [Reader; 2],
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
        let mut config = ATLLConfig { seed: 1, ..Default::default() };
        // A reader finds the table that it needs closed, and has to open its file.
        config.resources.open_files = 1;
        let recovered = recover(&env, &config).unwrap();
        let Recovered { lock, store, version, manifest, segment, report, .. } = recovered;
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
        let routes = Arc::new(Routes::new(config.max_levels));
        let args = SharedArgs { config, store, views, commits, routes, manifest, lock };
        let shared = Shared::new(args);
        let mut world = Self { shared, acked: 0, flushing: None, readers: Default::default() };
        world.write();
        world
    }

    /// Sets the one key to the number of the write.
    fn write(&mut self) {
        let mut batch = WriteBatch::default();
        batch.put("k", (self.acked + 1).to_string());
        let clock = &*self.shared.env().clock;
        let terms = Terms { sync: false, clock, until: None };
        self.shared.commits.write(batch, terms).now_or_never().unwrap().unwrap();
        self.acked += 1;
    }

    fn flush(&mut self, step: usize) {
        match step {
            0 => {
                let mut lease = self.shared.commits.lease().now_or_never().unwrap();
                lease.want_seal();
                assert!(lease.install_spare(self.shared.store.create_segment().unwrap()).is_none());
                lease.seal_if_due();
            }
            1 => {
                let view = self.shared.views.load_full();
                let memtable = Arc::clone(view.sealed.last().unwrap());
                let job = FlushJob {
                    store: Arc::clone(&self.shared.store),
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
        let floor = self.shared.views.load().active.segment();
        let ops = flush_ops(&outputs, self.shared.store.new_run_id());
        self.install(ops, (memtable.last_seq(), floor));
        assert!(self.shared.views.load().sealed.is_empty(), "what is in tables is in no memtable");
    }

    fn install(&self, ops: Vec<EditOp>, (last_seq, log_floor): (SeqNo, FileId)) {
        let next_file = self.shared.store.next_file();
        let edit = VersionEdit { ops, next_file, last_seq, log_floor };
        let next = self.shared.views.load().version().apply(&edit).unwrap();
        drop(publish(&self.shared, Arc::new(next)));
    }

    /// Makes one run, and so one table, of all that there are.
    fn compact(&self) {
        let tree = Arc::clone(&self.shared.views.load().tree);
        let version = Arc::clone(&tree.version);
        let slot = SlotId { level: Level::L0, start: Bytes::new() };
        let runs: Vec<_> = version.l0_runs().iter().map(|run| run.id).collect();
        let job = CompactJob {
            store: Arc::clone(&self.shared.store),
            tree,
            slot: slot.clone(),
            runs: runs.clone(),
            target: Target::Here,
            snapshots: Vec::new(),
            compression: Compression::None,
            pace: None,
        };
        let outputs = job.run(&Cancel::default()).unwrap().outputs;
        let run = self.shared.store.new_run_id();
        let ops = compact_ops(&version, (&slot, &runs, Target::Here), &outputs, run).unwrap();
        self.install(ops, (version.last_seq, version.log_floor));
    }

    fn sweep(&self) {
        sweep(&self.shared).now_or_never().unwrap();
    }

    fn tables_on_disk(&self) -> usize {
        let store = &self.shared.store;
        store.layout().list(&*store.env().fs, FileKind::Table).unwrap().len()
    }

    fn read(&mut self, order: Order, step: usize) {
        let reader = &mut self.readers[0];
        match (step, order) {
            (0, Order::ViewFirst) | (1, Order::SeqFirst) => {
                reader.view = Some(self.shared.views.load_full());
            }
            (0 | 1, _) => reader.seq = Some(self.shared.commits.visible()),
            _ => {
                let Reader { least, view, seq } = reader;
                let seen = look(view.as_ref().unwrap(), seq.unwrap());
                assert!(seen >= *least, "write {seen} was read, {least} was acknowledged before");
                assert!(seen <= self.acked);
            }
        }
        if step == 0 {
            reader.least = self.acked;
        }
    }

    fn step(&mut self, who: usize, step: usize, order: Order) {
        match who {
            0 => self.write(),
            1 => self.flush(step),
            _ => self.read(order, step),
        }
    }

    /// Two readers of tables that nobody has opened yet, while a compaction replaces them and what is dead is removed.
    fn step_beside_compaction(&mut self, who: usize, step: usize) {
        match (who, step) {
            (0, 0) => self.compact(),
            (0, _) => self.sweep(),
            (_, 0) => self.readers[who - 1].view = Some(self.shared.views.load_full()),
            (_, 1) => {
                let view = self.readers[who - 1].view.as_ref().unwrap();
                assert_eq!(look(view, SeqNo::MAX), self.acked, "a table went under its reader");
            }
            _ => self.readers[who - 1].view = None,
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

/// Takes all steps in every order, each time in a world of its own; `end` looks at it last.
fn in_every_order(
    begin: impl Fn() -> World,
    step: impl Fn(&mut World, usize, usize),
    end: impl Fn(&World),
) {
    let schedules = schedules(STEPS);
    assert_eq!(schedules.len(), 1680);
    for schedule in schedules {
        let held = catch_unwind(AssertUnwindSafe(|| {
            let (mut world, mut done) = (begin(), [0; 3]);
            for who in &schedule {
                step(&mut world, *who, done[*who]);
                done[*who] += 1;
            }
            end(&world);
        }));
        assert!(held.is_ok(), "a promise was broken in the order {schedule:?}");
    }
}

fn while_it_is_flushed(order: Order) {
    in_every_order(World::new, |world, who, step| world.step(who, step, order), |_| {});
}

#[test]
fn a_reader_that_loads_the_view_and_then_the_seq_misses_no_acknowledged_write() {
    while_it_is_flushed(Order::ViewFirst);
}

/// Between the two loads a flush may drop the version that the older SeqNo needs.
#[test]
#[should_panic(expected = "a promise was broken")]
fn the_other_way_round_it_would_miss_one() {
    while_it_is_flushed(Order::SeqFirst);
}

#[test]
fn a_dead_table_stays_for_its_last_reader_and_no_longer() {
    let begin = || {
        let mut world = World::new();
        for _ in 0..2 {
            (0..3).for_each(|step| world.flush(step));
            world.write();
        }
        (0..3).for_each(|step| world.flush(step));
        assert_eq!(world.tables_on_disk(), 3);
        world
    };
    in_every_order(begin, World::step_beside_compaction, |world| {
        world.sweep();
        assert_eq!(world.tables_on_disk(), 1, "and the one that took their place");
    });
}
