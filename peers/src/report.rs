//! A comparison and its report.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use nori_workload::{Result, catalog};

use crate::args::Compare;
use crate::bench::{Bench, ROWS, chosen};
use crate::engines::Engine;
use crate::row::{Medians, Metric, Row};
use crate::{chart, table};

/// What is shown below the figures.
const SHOWN: [(&str, Metric); 6] = [
    ("99.9th percentile of the slowest kind of operation, microseconds", Metric::P999),
    ("Longest operation, milliseconds", Metric::Max),
    ("Processor time per operation, background included, microseconds", Metric::Cpu),
    ("Bytes written per byte of keys and values put", Metric::WriteAmplification),
    ("Files in the end, MiB", Metric::Disk),
    ("Largest resident memory, MiB", Metric::Memory),
];

/// Measures and reports.
pub(crate) fn compare(args: &Compare) -> Result<()> {
    let bench = Bench {
        engines: if args.engines.is_empty() { Engine::all() } else { args.engines.clone() },
        workloads: chosen(&args.workloads, args.scale)?,
        rounds: args.rounds,
        scale: args.scale,
        out: args.out.clone(),
    };
    write(&args.out, &bench.run()?)
}

/// Reports on all rows that are there.
pub(crate) fn again(out: &Path) -> Result<()> {
    let text = fs::read_to_string(out.join(ROWS))?;
    let rows: std::result::Result<Vec<Row>, _> = text.lines().map(serde_json::from_str).collect();
    write(out, &rows?)
}

fn write(out: &Path, rows: &[Row]) -> Result<()> {
    let medians = Medians::new(rows);
    let text = report(rows, &medians)?;
    fs::write(out.join("report.md"), &text)?;
    chart::figures(&out.join("figures.svg"), &medians)?;
    chart::processor(&out.join("cpu.svg"), &medians)?;
    println!("{text}");
    Ok(())
}

fn report(rows: &[Row], medians: &Medians<'_>) -> Result<String> {
    let mut text = format!("# Engines side by side\n\n{}\n", conditions(rows, medians));
    text.push_str("## Figures\n\nOperations per second, entries per second for batches and full scans, seconds for openings; the best other LSM tree in bold.\n\n");
    text.push_str(&table::figures(medians));
    for (title, metric) in SHOWN {
        write!(text, "\n## {title}\n\n{}", table::metric(medians, metric))?;
    }
    text.push_str("\n## What the workloads are\n\n");
    let scale = rows.first().map_or(1.0, |row| row.scale);
    for workload in catalog::all(scale) {
        if medians.workloads.contains(&workload.name.as_str()) {
            let (keys, value) = (workload.data.keys, workload.data.value_bytes);
            let (name, about, clients) = (workload.name, workload.about, workload.clients);
            let operations = workload.operations;
            writeln!(
                text,
                "* `{name}`: {about}; {keys} keys, values of {value} B, {operations} operations, {clients} at a time"
            )?;
        }
    }
    Ok(text)
}

/// What a reader must know to believe a figure.
fn conditions(rows: &[Row], medians: &Medians<'_>) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let version = |name, package| format!("{name} {}", version(package));
    let versions: Vec<_> =
        medians.engines.iter().map(|known| version(known.name, known.package)).collect();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    let rounds = rows.iter().map(|row| row.round + 1).max().unwrap_or(0);
    format!(
        "Commit {}, scale {}, medians of {rounds} rounds, {cores} cores, load averages at the end {}.\n\nVersions: {}.\n",
        commit().unwrap_or_else(|| "unknown".to_owned()),
        rows.first().map_or(1.0, |row| row.scale),
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
