//! `nori bench`: fills a database, then reads and writes it from several tasks; every value that is read is verified. Or runs the
//! workloads that have a name.

mod home;
mod named;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use nori_lsm::{LsmEngine, Stats};
use nori_workload::{Action, Dataset, Durability, Fault, Nori, Plan, Unit, Workload, Wrong, drive};
use serde_json::json;

use self::home::Home;
use crate::Outcome;
use crate::args::Bench;
use crate::failure::Failure;
use crate::query;
use crate::table::{self, Phase};

/// `nori bench`.
pub(crate) async fn bench(args: Bench) -> Result<Outcome, Failure> {
    if let Some(dir) = args.victim {
        return named::victim(dir, &args.workload, args.scale).await;
    }
    if !args.workload.is_empty() {
        return named::bench(args).await;
    }
    let dir = Home::choose(args.dir.as_deref(), args.keep)?;
    let mut config = query::config(&dir.path);
    config.durability = args.durability.into();
    let engine = LsmEngine::open(config).await?;
    let measured = measure(&Nori { engine: engine.clone() }, &args).await;
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
        write_json(path, &as_json(&phases, &stats))?;
    }
    Ok(Outcome::Done)
}

async fn measure(store: &Nori, args: &Bench) -> Result<Vec<Phase>, Failure> {
    let (elapsed, times) = drive(store, &fill(args)).await?;
    let mut phases = vec![phase("fill: put", elapsed, times.all()?)];
    let (elapsed, times) = drive(store, &mix(args)).await?;
    phases.push(phase("mixed: all", elapsed, times.all()?));
    for (kind, nanos) in times.kinds() {
        phases.push(phase(&format!("mixed: {}", kind.name()), elapsed, nanos.clone()));
    }
    phases.retain(|phase| !phase.nanos.is_empty());
    Ok(phases)
}

/// Puts every key.
fn fill(args: &Bench) -> Workload {
    let actions = vec![(Action::Put, 1)];
    Workload {
        name: "fill".to_owned(),
        about: "puts every key".to_owned(),
        data: Dataset { keys: args.entries, value_bytes: args.value_size },
        filled: false,
        plan: Plan::Mix { actions, distribution: nori_workload::Distribution::Sequence },
        operations: args.entries,
        clients: args.tasks,
        durability: Durability::Os,
        unit: Unit::Operations,
        seed: args.seed,
    }
}

/// Gets and puts.
fn mix(args: &Bench) -> Workload {
    let reads = u32::from(args.reads);
    let mut actions = vec![(Action::Get, reads), (Action::Put, 100 - reads)];
    actions.retain(|(_, weight)| *weight > 0);
    Workload {
        name: "mixed".to_owned(),
        about: "gets and puts".to_owned(),
        filled: true,
        plan: Plan::Mix { actions, distribution: args.distribution.into() },
        operations: args.ops,
        ..fill(args)
    }
}

fn phase(name: &str, elapsed: Duration, nanos: Histogram<u64>) -> Phase {
    Phase { name: name.to_owned(), elapsed, nanos }
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

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), Failure> {
    fs::write(path, format!("{value:#}\n")).map_err(Failure::io("write", path))
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let fault = match fault.downcast::<nori_lsm::Error>() {
            Ok(error) => return Self::Engine(*error),
            Err(fault) => fault,
        };
        let fault = match fault.downcast::<io::Error>() {
            Ok(source) => return Self::Io { what: "measure".to_owned(), source: *source },
            Err(fault) => fault,
        };
        match fault.downcast::<Wrong>() {
            Ok(wrong) => Self::Wrong(wrong.0),
            Err(fault) => Self::Wrong(fault.to_string()),
        }
    }
}
