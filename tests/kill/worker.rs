//! The process that is killed: this very binary, started again. It says on its standard output what it was told and what it read.
//!
//! Lines, each by one write: `begun`; `at MARK…` once all was checked; `ack WRITER NUMBER`; `failed WHAT`; `read`; `ended`;
//! `wrong COMPLAINT`. A pipe outlives its writer: what was said before a kill is heard after it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nori_lsm::{
    Action, CompactionMode, Durability, LsmEngine, RecoveryReport, WriteBatch, WriteOptions,
};

use crate::ledger::{Marks, WRITERS, batch, check, config};

const DIR: &str = "NORI_WORKER_DIR";
const SEED: &str = "NORI_WORKER_SEED";
/// How long anything that must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Does nothing unless a test below started this binary as its worker.
#[test]
fn a_worker_runs_until_it_is_killed_or_told_to_end() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Err(complaint) = runtime.block_on(work(PathBuf::from(dir), seed)) {
        say(format_args!("wrong {complaint}"));
        std::process::exit(1);
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    // Whole lines leave at once.
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

async fn work(dir: PathBuf, seed: u64) -> Result<(), String> {
    say(format_args!("begun"));
    let mut settings = config(&dir);
    settings.wal.segment_preallocate = seed.is_multiple_of(2);
    let engine = LsmEngine::open(settings).await.map_err(|error| error.to_string())?;
    let marks = check(&engine).await?;
    let RecoveryReport { segments, operations, torn_tail, .. } = engine.recovery();
    let torn = u8::from(torn_tail.is_some());
    let numbers = marks.map(|mark| mark.to_string()).join(" ");
    say(format_args!("at {numbers} segments {segments} operations {operations} torn {torn}"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for (writer, mark) in marks.into_iter().enumerate() {
        tasks.spawn(write(engine.clone(), writer, mark, Arc::clone(&stop)));
    }
    tasks.spawn(upkeep(engine.clone(), seed, Arc::clone(&stop)));
    tasks.spawn(read(engine.clone(), Arc::clone(&stop)));
    let told = tokio::task::spawn_blocking(|| {
        let mut rest = Vec::new();
        std::io::stdin().read_to_end(&mut rest)
    });
    told.await.unwrap().unwrap();
    stop.store(true, Ordering::Release);
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| error.to_string())??;
    }
    engine.flush().await.map_err(|error| format!("last flush: {error}"))?;
    engine.wait_idle().await.map_err(|error| format!("last work: {error}"))?;
    check(&engine).await?;
    engine.shutdown().await.map_err(|error| format!("shutdown: {error}"))?;
    say(format_args!("ended"));
    Ok(())
}

/// Writes batch after batch, each again until it is acknowledged, and only then the next.
async fn write(
    engine: LsmEngine,
    writer: usize,
    mark: u64,
    stop: Arc<AtomicBool>,
) -> Result<(), String> {
    for number in mark + 1.. {
        let durability = match (writer, number % 16) {
            (0 | 1, _) => Durability::Os,
            (2 | 3, _) => Durability::Batch(Duration::from_millis(3)),
            (4, _) | (_, 0) => Durability::Sync,
            (_, 1..=5) => Durability::Batch(Duration::from_millis(1)),
            _ => Durability::Os,
        };
        let deadline = Some(Duration::from_millis(250));
        let options = WriteOptions { durability: Some(durability), deadline, ..Default::default() };
        loop {
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            let mut whole = WriteBatch::default();
            for (key, value) in batch(writer, number) {
                match value {
                    Some(value) => whole.put(key, value),
                    None => whole.delete(key),
                };
            }
            match engine.write(whole, options).await {
                Ok(_) => break,
                Err(error) if matches!(error.action(), Action::Retry | Action::CheckThenRetry) => {
                    say(format_args!("failed {error}"));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(format!("writer {writer} may not try again: {error}")),
            }
        }
        say(format_args!("ack {writer} {number}"));
        if number % 8 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Flushes, compacts and syncs now and then, whatever comes of it.
async fn upkeep(engine: LsmEngine, seed: u64, stop: Arc<AtomicBool>) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !stop.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(rng.u64(..60))).await;
        let done = match rng.u8(..4) {
            0 => engine.flush().await,
            1 => engine.compact_range(.., CompactionMode::Full).await,
            2 => engine.compact_range("2".."4", CompactionMode::Full).await,
            _ => engine.sync().await.map(drop),
        };
        if let Err(error) = done {
            say(format_args!("failed {error}"));
        }
    }
    Ok(())
}

/// Reads all the while: a scan shows each writer at one point in time, so no key is newer than the mark.
async fn read(engine: LsmEngine, stop: Arc<AtomicBool>) -> Result<(), String> {
    while !stop.load(Ordering::Acquire) {
        let (mut scan, mut newest, mut marks) = (engine.scan(..), Marks::default(), 0);
        while let Some((key, value)) = scan.next().await.map_err(|error| error.to_string())? {
            let text = String::from_utf8_lossy(&value);
            let writer: usize = text_number(&String::from_utf8_lossy(&key), 0)?;
            if key.ends_with(b"mark") {
                let mark: u64 = text_number(&text, 0)?;
                if newest[writer] > mark {
                    return Err(format!("writer {writer}: {} beside mark {mark}", newest[writer]));
                }
                marks += 1;
            } else {
                newest[writer] = newest[writer].max(text_number(&text, 1)?);
            }
        }
        say(format_args!("read {marks}"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Part number `part` of a text of numbers.
fn text_number<T: std::str::FromStr>(text: &str, part: usize) -> Result<T, String> {
    let digits = text.split([':', '/']).nth(part).unwrap_or_default();
    digits.parse().ok().ok_or_else(|| format!("neither key nor value of a writer: {text:.40}"))
}

/// What a worker has said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// What it found when it opened, once it has checked it.
    pub(crate) at: Option<Marks>,
    pub(crate) segments: u64,
    pub(crate) operations: u64,
    pub(crate) torn: u64,
    pub(crate) acked: Marks,
    pub(crate) acks: u64,
    pub(crate) failures: u64,
    pub(crate) failure: Option<String>,
    pub(crate) reads: u64,
    pub(crate) ended: bool,
    pub(crate) wrong: Option<String>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match (verb, &numbers[..]) {
            ("at", [marks @ .., segments, operations, torn]) if marks.len() == WRITERS => {
                self.at = marks.try_into().ok();
                (self.segments, self.operations, self.torn) = (*segments, *operations, *torn);
            }
            ("ack", [writer, number]) => {
                self.acked[usize::try_from(*writer).unwrap()] = *number;
                self.acks += 1;
            }
            ("failed", _) => {
                self.failures += 1;
                self.failure = Some(line.to_owned());
            }
            ("read", _) => self.reads += 1,
            ("ended", _) => self.ended = true,
            ("wrong", _) => self.wrong = Some(line.to_owned()),
            _ => {} // what the test harness says
        }
    }
}

/// A worker, from outside.
pub(crate) struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    said: Arc<Mutex<Said>>,
    heard: Receiver<()>,
    listener: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts one on the database in `dir`. `seed`: decides how it goes about it.
    pub(crate) fn start(dir: &Path, seed: u64) -> Self {
        Self::run(&mut Command::new(std::env::current_exe().unwrap()), dir, seed)
    }

    /// Starts one that does not die of a file that may not grow: the write fails instead.
    #[cfg(target_os = "linux")]
    pub(crate) fn start_under_a_limit(dir: &Path, seed: u64) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#]);
        Self::run(shell.arg(std::env::current_exe().unwrap()), dir, seed)
    }

    /// Its number for the system.
    #[cfg(target_os = "linux")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn run(command: &mut Command, dir: &Path, seed: u64) -> Self {
        let name = "worker::a_worker_runs_until_it_is_killed_or_told_to_end";
        command
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(SEED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (stdout, orders) = (child.stdout.take().unwrap(), child.stdin.take());
        let said = Arc::new(Mutex::new(Said::default()));
        let (tell, heard) = channel();
        let listener = std::thread::spawn({
            let said = Arc::clone(&said);
            move || {
                // The last line may have been cut by the kill; the one before it never is.
                for line in BufReader::new(stdout).split(b'\n') {
                    said.lock().unwrap().hear(&String::from_utf8_lossy(&line.unwrap()));
                    tell.send(()).unwrap_or(()); // nobody need listen
                }
            }
        });
        Self { child, orders, said, heard, listener: Some(listener) }
    }

    pub(crate) fn said(&self) -> Said {
        self.said.lock().unwrap().clone()
    }

    /// Waits until what it has said is `enough`, or it is gone. Returns whether it was enough.
    pub(crate) fn wait_until(&self, enough: impl Fn(&Said) -> bool) -> bool {
        loop {
            if enough(&self.said.lock().unwrap()) {
                return true;
            }
            match self.heard.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return enough(&self.said.lock().unwrap()),
                Err(RecvTimeoutError::Timeout) => panic!("a worker hangs: {:?}", self.said()),
            }
        }
    }

    /// Lets it work for some time.
    #[expect(clippy::disallowed_methods, reason = "the instant of a kill is what is tried out")]
    pub(crate) fn let_be(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Tells it to stop by itself; it may still be killed.
    pub(crate) fn tell_to_end(&mut self) {
        self.orders = None;
    }

    /// Kills it where it stands. Returns all that it said before.
    pub(crate) fn kill(mut self) -> Said {
        self.child.kill().unwrap();
        self.last_words()
    }

    /// Waits until it has ended by itself. Returns all that it said.
    #[cfg(target_os = "linux")]
    pub(crate) fn end(mut self) -> Said {
        self.tell_to_end();
        self.wait_until(|said| said.ended);
        let said = self.last_words();
        assert!(said.ended, "it did not come to its end: {said:?}");
        said
    }

    fn last_words(mut self) -> Said {
        self.child.wait().unwrap();
        self.listener.take().unwrap().join().unwrap();
        let said = self.said();
        assert_eq!(said.wrong, None);
        said
    }
}
