//! Rows: what one child measured.

use std::collections::BTreeMap;

use nori_workload::{Measured, real};
use serde::{Deserialize, Serialize};

use crate::engines::{KNOWN, Known};

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Name of the engine.
    pub(crate) engine: String,
    /// Which round, from 0.
    pub(crate) round: u32,
    /// 1 is a million keys.
    pub(crate) scale: f64,
    /// What came out.
    pub(crate) measured: Measured,
}

/// A figure of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// What the workload is about.
    Figure,
    /// 99.9th percentile of its slowest kind of operation, in microseconds.
    P999,
    /// The longest operation, in milliseconds.
    Max,
    /// Microseconds of processor time per operation.
    Cpu,
    /// Bytes written per byte of keys and values.
    WriteAmplification,
    /// MiB of files in the end.
    Disk,
    /// MiB of memory at the most.
    Memory,
}

impl Metric {
    /// The figure of a row; `None` if it makes no sense for its workload.
    pub(crate) fn of(self, measured: &Measured) -> Option<f64> {
        /// Bytes in a MiB.
        const MIB: f64 = 1_048_576.0;
        let cost = &measured.cost;
        match self {
            Self::Figure => Some(measured.figure),
            Self::P999 => Some(measured.p999_us()),
            Self::Max => {
                let slowest = measured.kinds.iter().map(|kind| kind.max_us).fold(0.0, f64::max);
                Some(slowest / 1e3)
            }
            Self::Cpu => {
                let count = if measured.kinds.iter().any(|kind| kind.kind == "batch") {
                    measured.entries
                } else {
                    measured.operations
                };
                Some(cost.cpu_seconds * 1e6 / real(count.max(1)))
            }
            Self::WriteAmplification => {
                let given = measured.user_bytes;
                (given > 0).then(|| real(cost.written_bytes) / real(given))
            }
            Self::Disk => Some(real(cost.disk_bytes) / MIB),
            Self::Memory => Some(real(cost.peak_rss_bytes) / MIB),
        }
    }

    /// Digits behind the point that suit it; `None`: by its size.
    pub(crate) fn shown(self, value: f64) -> String {
        match self {
            Self::Figure => crate::table::short(value),
            Self::Disk | Self::Memory => format!("{value:.0}"),
            Self::P999 | Self::Max | Self::Cpu | Self::WriteAmplification => {
                if value < 10.0 {
                    format!("{value:.2}")
                } else {
                    format!("{value:.0}")
                }
            }
        }
    }
}

/// Medians over rounds, by workload and engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Medians<'a> {
    rows: BTreeMap<(&'a str, &'a str), Vec<&'a Measured>>,
    /// Workloads in the order in which they came.
    pub(crate) workloads: Vec<&'a str>,
    /// Engines that occur, in the order of the columns.
    pub(crate) engines: Vec<Known>,
}

impl<'a> Medians<'a> {
    pub(crate) fn new(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut medians = Self::default();
        for row in rows {
            let workload = row.measured.workload.as_str();
            if !medians.workloads.contains(&workload) {
                medians.workloads.push(workload);
            }
            let key = (row.measured.workload.as_str(), row.engine.as_str());
            medians.rows.entry(key).or_default().push(&row.measured);
        }
        let occurs = |known: &&Known| medians.rows.keys().any(|(_, engine)| *engine == known.name);
        medians.engines = KNOWN.iter().filter(occurs).copied().collect();
        medians
    }

    pub(crate) fn get(&self, workload: &str, engine: &str, metric: Metric) -> Option<f64> {
        let rows = self.rows.get(&(workload, engine))?;
        median(rows.iter().filter_map(|measured| metric.of(measured)).collect())
    }

    /// Whether less of the figure of a workload is better.
    pub(crate) fn less_is_better(&self, workload: &str) -> bool {
        let mut rows = self.rows.iter().filter(|((name, _), _)| *name == workload);
        rows.next().is_some_and(|(_, rows)| rows.iter().any(|row| row.less_is_better))
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let even = values.len().is_multiple_of(2);
    Some(if even { f64::midpoint(values[middle - 1], upper) } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
