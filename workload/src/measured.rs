//! What was measured, as a row of numbers.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::real;
use crate::times::Times;
use crate::workload::{Unit, Workload};

/// One run of one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Name of the workload.
    pub workload: String,
    /// Operations that were done.
    pub operations: u64,
    /// Entries that they wrote or read in order.
    pub entries: u64,
    /// How long all of it took.
    pub seconds: f64,
    /// The figure that counts: operations or entries per second, or seconds per opening.
    pub figure: f64,
    /// Whether less of the figure is better.
    pub less_is_better: bool,
    /// Bytes of the data that was there or was written, keys and values, before compression.
    pub data_bytes: u64,
    /// Bytes of the keys and values that were put, about; 0 if nothing was.
    pub user_bytes: u64,
    /// Time per operation, by kind.
    pub kinds: Vec<Quantiles>,
    /// What it took, until the store was closed.
    pub cost: Cost,
}

/// Time per operation of one kind, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Which operation.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// Half of them took at most this.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
    /// 999 of 1000 took at most this.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Quantiles {
    fn new(kind: &str, nanos: &Histogram<u64>) -> Self {
        let micros = |share| real(nanos.value_at_quantile(share)) / 1e3;
        Self {
            kind: kind.to_owned(),
            count: nanos.len(),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
            max_us: micros(1.0),
        }
    }
}

impl Measured {
    pub(crate) fn new(workload: &Workload, elapsed: Duration, times: &Times) -> Self {
        let (operations, seconds) = (times.operations(), elapsed.as_secs_f64());
        let figure = match workload.unit {
            Unit::Operations => real(operations) / seconds.max(1e-9),
            Unit::Entries => real(times.entries) / seconds.max(1e-9),
            Unit::Seconds => seconds / real(operations.max(1)),
        };
        Self {
            workload: workload.name.clone(),
            operations,
            entries: times.entries,
            seconds,
            figure,
            less_is_better: workload.unit == Unit::Seconds,
            data_bytes: workload.data.bytes(),
            user_bytes: times.written * workload.data.entry_bytes(),
            kinds: times.kinds().map(|(kind, nanos)| Quantiles::new(kind.name(), nanos)).collect(),
            cost: Cost::default(),
        }
    }

    /// The slowest of the kinds by its 99.9th percentile, in microseconds.
    #[must_use]
    pub fn p999_us(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.p999_us).fold(0.0, f64::max)
    }
}
