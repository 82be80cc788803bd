//! What more data costs: the same workloads at several sizes.

use std::fs;

use nori_workload::{Result, real};

use crate::args::Growth;
use crate::bench::{Bench, chosen};
use crate::row::{Medians, Metric, Row};
use crate::{chart, table};

/// Bytes in a MiB.
const MIB: f64 = 1_048_576.0;

/// What is drawn, with names for its files.
const SHOWN: [(&str, &str, Metric); 5] = [
    ("memory", "Largest resident memory, MiB", Metric::Memory),
    ("p999", "99.9th percentile, microseconds", Metric::P999),
    ("cpu", "Processor time per operation, microseconds", Metric::Cpu),
    ("disk", "Files in the end, MiB", Metric::Disk),
    ("figure", "Operations per second, seconds for openings", Metric::Figure),
];

/// Measures and reports.
pub(crate) fn measure(args: &Growth) -> Result<()> {
    let mut rows = Vec::new();
    for &scale in &args.sizes {
        let bench = Bench {
            engines: args.engines.clone(),
            workloads: chosen(&args.workloads, scale)?,
            rounds: args.rounds,
            scale,
            out: args.out.clone(),
        };
        rows.extend(bench.run()?);
    }
    let mut text = "# What more data costs\n".to_owned();
    for (file, title, metric) in SHOWN {
        let lines = lines(args, &rows, metric);
        chart::growth(&args.out.join(format!("{file}.svg")), title, &lines)?;
        text.push_str(&format!("\n## {title}\n\n"));
        let mut header = vec!["workload, engine".to_owned()];
        header.extend(args.sizes.iter().map(|scale| format!("scale {scale}")));
        text.push_str(&(table::line(&header) + &table::rule(header.len())));
        for (name, points) in lines {
            let mut cells = vec![name];
            cells.extend(
                points
                    .iter()
                    .map(|(size, value)| format!("{} ({size:.0} MiB)", metric.shown(*value))),
            );
            text.push_str(&table::line(&cells));
        }
    }
    fs::write(args.out.join("cost.md"), &text)?;
    println!("{text}");
    Ok(())
}

/// A line per workload and engine, its points by size of the data.
fn lines(args: &Growth, rows: &[Row], metric: Metric) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines = Vec::new();
    for workload in &args.workloads {
        for engine in &args.engines {
            let point = |&scale: &f64| {
                let of_size =
                    || rows.iter().filter(move |row| (row.scale - scale).abs() < f64::EPSILON);
                let same = of_size().find(|row| row.measured.workload == *workload)?;
                let value = Medians::new(of_size()).get(workload, &engine.name(), metric)?;
                Some((real(same.measured.data_bytes) / MIB, value))
            };
            let points: Vec<_> = args.sizes.iter().filter_map(point).collect();
            if !points.is_empty() {
                lines.push((format!("{workload} {}", engine.name()), points));
            }
        }
    }
    lines
}
