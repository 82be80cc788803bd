//! `nori bench`: fills a database, then reads and writes it from several tasks; every value that is read is verified.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nori_lsm::{LsmEngine, Stats};
use serde_json::json;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::args::Bench;
use crate::failure::Failure;
use crate::query;
use crate::table::{self, Phase};
use crate::workload::{Draw, belongs, key, value};

/// Where temporary databases live.
const PLACE: &str = "data/bench";

/// `nori bench`.
pub(crate) async fn bench(args: Bench) -> Result<Outcome, Failure> {
    let dir = Home::choose(&args)?;
    let mut config = query::config(&dir.path);
    config.durability = args.durability.into();
    let engine = LsmEngine::open(config).await?;
    let args = Arc::new(args);
    let measured = measure(&engine, &args).await;
    let stats = engine.stats();
    engine.shutdown().await?;
    let phases = measured?;
    println!(
        "{} entries with values of {} B, then {} % reads by {} tasks\n\n{}\n\n{stats}",
        table::grouped(args.entries),
        args.value_size,
        args.reads,
        args.tasks,
        table::phases(&phases),
    );
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", as_json(&phases, &stats));
        fs::write(path, text).map_err(Failure::io("write", path))?;
    }
    Ok(Outcome::Done)
}

async fn measure(engine: &LsmEngine, args: &Arc<Bench>) -> Result<Vec<Phase>, Failure> {
    let (elapsed, fill) =
        on_tasks(args, |task| fill(engine.clone(), Arc::clone(args), task)).await?;
    let mut phases = vec![phase("fill: put", elapsed, fill.writes)];
    let draw = Arc::new(Draw::new(args.distribution, args.entries));
    let run = |task| mix(engine.clone(), Arc::clone(args), Arc::clone(&draw), task);
    let (elapsed, mixed) = on_tasks(args, run).await?;
    let mut all = mixed.reads.clone();
    all.add(&mixed.writes).map_err(|error| Failure::Wrong(error.to_string()))?;
    phases.push(phase("mixed: all", elapsed, all));
    phases.push(phase("mixed: get", elapsed, mixed.reads));
    phases.push(phase("mixed: put", elapsed, mixed.writes));
    phases.retain(|phase| !phase.nanos.is_empty());
    Ok(phases)
}

fn phase(name: &str, elapsed: Duration, nanos: Histogram<u64>) -> Phase {
    Phase { name: name.to_owned(), elapsed, nanos }
}

/// Time that each operation of a task took.
struct Times {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
}

impl Times {
    fn new() -> Result<Self, Failure> {
        /// Ten minutes; what takes longer counts as that.
        const MAX_NANOS: u64 = 600_000_000_000;
        let new = || Histogram::new_with_max(MAX_NANOS, 3);
        let histogram = || new().map_err(|error| Failure::Wrong(error.to_string()));
        Ok(Self { reads: histogram()?, writes: histogram()? })
    }

    fn add(&mut self, other: &Self) -> Result<(), Failure> {
        let failed = |error: hdrhistogram::AdditionError| Failure::Wrong(error.to_string());
        self.reads.add(&other.reads).map_err(failed)?;
        self.writes.add(&other.writes).map_err(failed)
    }
}

/// Runs a task of each number, and adds up what they measured.
async fn on_tasks<F>(args: &Bench, run: impl Fn(u64) -> F) -> Result<(Duration, Times), Failure>
where
    F: Future<Output = Result<Times, Failure>> + Send + 'static,
{
    let begun = Instant::now();
    let mut tasks: JoinSet<_> = (0..u64::from(args.tasks)).map(run).collect();
    let mut times = Times::new()?;
    while let Some(done) = tasks.join_next().await {
        times.add(&done.map_err(|error| Failure::Wrong(error.to_string()))??)?;
    }
    Ok((begun.elapsed(), times))
}

/// Puts every key of which the number belongs to this task.
async fn fill(engine: LsmEngine, args: Arc<Bench>, task: u64) -> Result<Times, Failure> {
    let mut times = Times::new()?;
    for number in (task..args.entries).step_by(args.tasks.into()) {
        let (key, value) = (key(number), value(number, 0, args.value_size));
        let begun = Instant::now();
        engine.put(key, value).await?;
        times.writes.saturating_record(nanos(begun));
    }
    Ok(times)
}

/// Its share of the mixed operations.
async fn mix(
    engine: LsmEngine,
    args: Arc<Bench>,
    draw: Arc<Draw>,
    task: u64,
) -> Result<Times, Failure> {
    let mut times = Times::new()?;
    let tasks = u64::from(args.tasks);
    let mut random = fastrand::Rng::with_seed(args.seed.wrapping_mul(tasks).wrapping_add(task));
    for version in (task..args.ops).step_by(args.tasks.into()) {
        let number = draw.next(&mut random);
        let key = key(number);
        if random.u8(..100) >= args.reads {
            let value = value(number, version + 1, args.value_size);
            let begun = Instant::now();
            engine.put(key, value).await?;
            times.writes.saturating_record(nanos(begun));
            continue;
        }
        let begun = Instant::now();
        let value = engine.get(&key).await?;
        times.reads.saturating_record(nanos(begun));
        if !value.is_some_and(|value| belongs(&value, number, args.value_size)) {
            return Err(Failure::Wrong(format!("the value of key {number} is not one of its own")));
        }
    }
    Ok(times)
}

fn nanos(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn as_json(phases: &[Phase], stats: &Stats) -> serde_json::Value {
    let micros = |phase: &Phase, share| phase.quantile(share).as_secs_f64() * 1e6;
    let rows = phases.iter().map(|phase| {
        json!({
            "phase": phase.name,
            "operations": phase.nanos.len(),
            "ops_per_second": phase.rate(),
            "p50_us": micros(phase, 0.5),
            "p99_us": micros(phase, 0.99),
            "p99_9_us": micros(phase, 0.999),
            "max_us": micros(phase, 1.0),
        })
    });
    json!({ "phases": rows.collect::<Vec<_>>(), "stats": stats })
}

/// The directory of a benchmark. A temporary one goes when this is dropped, also after an error.
struct Home {
    path: PathBuf,
    temporary: bool,
}

impl Home {
    fn choose(args: &Bench) -> Result<Self, Failure> {
        let Some(path) = args.dir.clone() else {
            let path = Path::new(PLACE).join(format!("run-{}", std::process::id()));
            fs::create_dir_all(&path).map_err(Failure::io("create", &path))?;
            return Ok(Self { path, temporary: !args.keep });
        };
        match fs::read_dir(&path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                let problem = format!("{} is not empty: measure in a new one", path.display());
                return Err(Failure::Usage(problem));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io("read", &path)(error)),
        }
        Ok(Self { path, temporary: false })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("nori: remove {}: {error}; remove it yourself", self.path.display());
        }
        // These go only if nothing else is in them.
        for parent in self.path.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
}
