//! Files that may not grow and disks without room, on a real system: writes fail and reads go on; with room, writes come back.
#![cfg(target_os = "linux")]

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::worker::{Said, Worker};
use crate::{Outside, cycles};

/// Batches that are acknowledged, failures, and looks at everything that show how a worker fares.
const SOME: u64 = 30;

/// Waits until a worker writes again: each writer may have heard of one failure since it could.
fn heals(worker: &Worker) {
    let before = worker.said();
    assert!(worker.wait_until(|said| said.acks > before.acks + 20 * SOME), "{:?}", worker.said());
}

/// Waits until a worker cannot write, and reads all the same.
fn suffers(worker: &Worker) {
    let before = worker.said();
    let failed = |said: &Said| said.failures > before.failures + SOME;
    assert!(worker.wait_until(failed), "it never noticed: {:?}", worker.said());
    let reads = worker.said().reads;
    assert!(worker.wait_until(|said| said.reads > reads + 3), "{:?}", worker.said());
}

/// Takes the room away and gives it back, again and again. Kills the worker at any of the two, or lets it come to its end.
fn starve(dir: &Path, start: impl Fn(u64) -> Worker, mut room: impl FnMut(&Worker, bool)) {
    let mut rng = fastrand::Rng::with_seed(std::process::id().into());
    let mut known = Outside::default();
    let mut failures = 0;
    for cycle in 0..(cycles() / 8).max(1) {
        let context = format!("cycle {cycle}");
        let worker = start(rng.u64(..));
        assert!(worker.wait_until(|said| said.at.is_some()), "{context}: {:?}", worker.said());
        heals(&worker);
        for _ in 0..rng.u8(1..4) {
            room(&worker, false);
            suffers(&worker);
            if rng.u8(..4) == 0 {
                break;
            }
            room(&worker, true);
            heals(&worker);
        }
        let healthy = rng.bool();
        room(&worker, healthy);
        let said = if healthy { worker.end() } else { worker.kill() };
        failures += said.failures;
        known.learn(&said, &context);
    }
    eprintln!("{failures} failures, {known:?}");
    let worker = start(0);
    heals(&worker);
    known.learn(&worker.end(), "the end");
    known.look(dir, "after the last cycle");
}

#[test]
fn a_file_that_may_not_grow_stops_writes_and_no_more_until_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let limit = |worker: &Worker, bytes| {
        let pid = Pid::from_raw(worker.id().try_into().unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    };
    starve(
        dir.path(),
        |seed| Worker::start_under_a_limit(dir.path(), seed),
        |worker, room| limit(worker, (!room).then(|| rng.u64(..64) << 9)),
    );
}

/// A file system in memory, of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    const BYTES: u64 = 24 << 20;

    /// `None` if this process may not mount one.
    fn mount(at: &Path) -> Option<Self> {
        let size = format!("size={}", Self::BYTES);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "nori-test"]).arg(at).stderr(Stdio::null());
        let done = mount.status().ok()?;
        done.success().then(|| Self(at.to_owned()))
    }

    /// Takes all the room that is left, or gives it back.
    #[expect(clippy::disallowed_methods, reason = "what fills the disk is no file of an engine")]
    fn set_room(&self, room: bool) {
        let ballast = self.0.join("ballast");
        if room {
            return std::fs::remove_file(ballast).unwrap();
        }
        let filled = std::fs::write(ballast, vec![1; usize::try_from(Self::BYTES).unwrap()]);
        assert_eq!(filled.unwrap_err().kind(), ErrorKind::StorageFull);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[test]
fn a_disk_without_room_stops_writes_and_no_more_until_there_is_some() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(place.path()) else {
        return eprintln!("skipped: only a process that may mount can fill a disk of its own");
    };
    let dir = place.path().join("db");
    let has_room = Cell::new(true);
    let set_room = |room| {
        if has_room.replace(room) != room {
            disk.set_room(room);
        }
    };
    starve(
        &dir,
        |seed| {
            set_room(true); // an open begins a manifest and a log segment
            Worker::start(&dir, seed)
        },
        |_, room| set_room(room),
    );
}
