//! Real processes on real files: killed at any instant, stopped by full disks, and checked from outside.
//!
//! `NORI_KILL_CYCLES=300 cargo test --release --test kill` kills more often.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]
#![expect(clippy::panic, reason = "a test that found something must stop")]
#![expect(clippy::print_stderr, reason = "a long run says how far it went")]

mod full;
mod ledger;
mod worker;

use std::path::Path;
use std::time::Duration;

use ledger::{Marks, check, config};
use nori_lsm::LsmEngine;
use worker::{Said, Worker};

/// Kills after which a directory is left for a new one: what must be there is computed from the beginning each time.
const KILLS_OF_A_DIRECTORY: u64 = 25;

/// When a worker is killed.
#[derive(Clone, Copy, Debug)]
enum Instant {
    /// So long after it was started, most likely before it has opened the database.
    Opening(Duration),
    /// So long after it has begun to write.
    Working(Duration),
    /// So long after it was told to end.
    Ending(Duration),
}

impl Instant {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..6) {
            0 | 1 => Self::Opening(Duration::from_micros(rng.u64(..40_000))),
            2 => Self::Working(Duration::from_micros(rng.u64(..5_000))),
            3 => Self::Ending(Duration::from_micros(rng.u64(..200_000))),
            _ => Self::Working(Duration::from_micros(rng.u64(..400_000))),
        }
    }

    /// Brings the worker to this instant and kills it.
    fn kill(self, mut worker: Worker) -> Said {
        match self {
            Self::Opening(time) => worker.let_be(time),
            Self::Working(time) => {
                worker.wait_until(|said| said.at.is_some());
                worker.let_be(time);
            }
            Self::Ending(time) => {
                worker.wait_until(|said| said.acks > 500);
                worker.tell_to_end();
                worker.let_be(time);
            }
        }
        worker.kill()
    }
}

/// What is known of a database from outside.
#[derive(Debug, Default)]
struct Outside {
    /// Batches up to these are there, whatever happens.
    acked: Marks,
    kills: u64,
    kills_while_opening: u64,
    clean_ends: u64,
    acks: u64,
    /// Batches that were there though nobody had been told.
    unheard: u64,
    segments: u64,
    operations: u64,
    torn: u64,
}

impl Outside {
    /// Takes over what a worker said from its start to its end.
    fn learn(&mut self, said: &Said, context: &str) {
        self.kills += 1;
        self.clean_ends += u64::from(said.ended);
        match &said.at {
            None => self.kills_while_opening += 1,
            Some(marks) => self.found(marks, context),
        }
        for (acked, told) in self.acked.iter_mut().zip(said.acked) {
            *acked = (*acked).max(told);
        }
        self.acks += said.acks;
        self.segments += said.segments;
        self.operations += said.operations;
        self.torn += said.torn;
    }

    /// What was acknowledged is there, and at most one batch more of each writer.
    fn found(&mut self, marks: &Marks, context: &str) {
        for (acked, found) in self.acked.iter_mut().zip(marks) {
            let fine = (*acked..=*acked + 1).contains(found);
            assert!(fine, "{context}: batch {found} is the last, {acked} was acknowledged");
            self.unheard += *found - *acked;
            *acked = *found; // what recovery shows is final
        }
    }

    /// Opens the database in this process, twice, and checks it.
    fn look(&mut self, dir: &Path, context: &str) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        for _ in 0..2 {
            let marks = runtime.block_on(async {
                let engine = LsmEngine::open(config(dir)).await.unwrap();
                let marks = check(&engine).await.unwrap_or_else(|why| panic!("{context}: {why}"));
                engine.shutdown().await.unwrap();
                marks
            });
            self.found(&marks, context);
        }
    }
}

fn cycles() -> u64 {
    std::env::var("NORI_KILL_CYCLES").map_or(40, |cycles| cycles.parse().unwrap())
}

#[test]
fn a_killed_process_loses_nothing_that_it_had_acknowledged() {
    let mut rng = fastrand::Rng::with_seed(std::process::id().into());
    let mut total = Outside::default();
    let mut done = 0;
    while done < cycles() {
        let dir = tempfile::tempdir().unwrap();
        total.acked = Marks::default();
        for _ in 0..KILLS_OF_A_DIRECTORY.min(cycles() - done) {
            let instant = Instant::draw(&mut rng);
            let context = format!("kill {done}, {instant:?}");
            let said = instant.kill(Worker::start(dir.path(), rng.u64(..)));
            total.learn(&said, &context);
            done += 1;
        }
        total.look(dir.path(), &format!("after kill {done}"));
    }
    eprintln!("{total:?}");
    assert!(total.acks > 20 * total.kills && total.operations > 0, "hardly any load: {total:?}");
    assert!(total.kills_while_opening < total.kills, "no worker ever came to work");
}
