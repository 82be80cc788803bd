//! A comparison and its report.

use std::fs;
use std::process::Command;

use nori_workload::{Result, Workload};

use crate::args::Compare;
use crate::bench::{Bench, chosen};
use crate::engines::Engine;
use crate::row::{Medians, Metric, Row};
use crate::{chart, table};

/// Measures and reports.
pub(crate) fn compare(args: &Compare) -> Result<()> {
    let engines = if args.engines.is_empty() { Engine::all() } else { args.engines.clone() };
    let bench = Bench {
        engines,
        workloads: chosen(&args.workloads, args.scale)?,
        rounds: args.rounds,
        scale: args.scale,
        out: args.out.clone(),
    };
    let rows = bench.run()?;
    let text = report(&bench, &rows);
    fs::write(args.out.join("report.md"), &text)?;
    let medians = Medians::new(&rows);
    chart::figures(&args.out.join("figures.svg"), &medians, &bench)?;
    chart::costs(&args.out.join("cpu.svg"), &medians, &bench, Metric::Cpu)?;
    println!("{text}");
    Ok(())
}

fn report(bench: &Bench, rows: &[Row]) -> String {
    let medians = Medians::new(rows);
    let engines = &bench.engines;
    let workloads: Vec<_> = bench.workloads.iter().map(|workload| workload.name.as_str()).collect();
    let mut text = format!("# Engines side by side\n\n{}\n", conditions(bench));
    text.push_str("## Figures\n\nOperations per second, entries per second for batches and full scans, seconds for openings; the best other LSM tree in bold.\n\n");
    text.push_str(&table::figures(&medians, engines, &workloads));
    for (title, metric) in [
        ("99.9th percentile of the slowest kind of operation, microseconds", Metric::P999),
        ("Longest operation, milliseconds", Metric::Max),
        ("Processor time per operation, background included, microseconds", Metric::Cpu),
        ("Bytes written per byte of keys and values put", Metric::WriteAmplification),
        ("Files in the end, MiB", Metric::Disk),
        ("Largest resident memory, MiB", Metric::Memory),
    ] {
        text.push_str(&format!("\n## {title}\n\n"));
        text.push_str(&table::metric(&medians, engines, &workloads, metric));
    }
    text.push_str("\n## What the workloads are\n\n");
    for Workload { name, about, data, clients, operations, .. } in &bench.workloads {
        let (keys, value) = (data.keys, data.value_bytes);
        text.push_str(&format!("* `{name}`: {about}; {keys} keys, values of {value} B, {operations} operations, {clients} at a time\n"));
    }
    text
}

/// What a reader must know to believe a figure.
fn conditions(bench: &Bench) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let versions: Vec<_> = bench
        .engines
        .iter()
        .map(|engine| format!("{} {}", engine.name(), version(engine.package())))
        .collect();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    format!(
        "Commit {}, scale {}, medians of {} rounds, {cores} cores, load averages at the end {}.\n\nVersions: {}.\n",
        commit().unwrap_or_else(|| "unknown".to_owned()),
        bench.scale,
        bench.rounds,
        load.join(" "),
        versions.join(", "),
    )
}

/// The version of a package in the lock file of the workspace.
fn version(package: &str) -> &'static str {
    let name = format!("name = \"{package}\"");
    let mut lines = include_str!("../../Cargo.lock").lines();
    let found = lines.by_ref().find(|line| *line == name).and_then(|_| lines.next());
    found.and_then(|line| line.strip_prefix("version = ")).map_or("", |text| text.trim_matches('"'))
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
