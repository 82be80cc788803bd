//! Metrics and events without a vendor: a meter that counts into a map, and prints it.
#![expect(clippy::print_stdout, reason = "this example shows what a meter collects")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use nori_lsm::observe::{Counter, Gauge, Histogram, Labels, Meter, VizEvent};
use nori_lsm::{ATLLConfig, LsmEngine, MemtableConfig};

type Map = Arc<Mutex<BTreeMap<String, f64>>>;

/// Counters and gauges as they are, histograms as how often and how much.
#[derive(Default)]
struct MapMeter {
    values: Map,
    events: Mutex<BTreeMap<&'static str, u64>>,
}

/// One name in the map.
struct Entry {
    name: String,
    values: Map,
}

impl MapMeter {
    fn entry(&self, name: &'static str, labels: Labels) -> Box<Entry> {
        let labels: String =
            labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        Box::new(Entry { name: format!("{name}{labels}"), values: Arc::clone(&self.values) })
    }

    fn value(&self, name: &str) -> f64 {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.iter().filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value).sum()
    }
}

impl Entry {
    fn change(&self, name: String, change: impl FnOnce(f64) -> f64) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(name).or_default();
        *value = change(*value);
    }
}

impl Counter for Entry {
    fn inc(&self, by: u64) {
        let by = u32::try_from(by).unwrap_or(u32::MAX);
        self.change(self.name.clone(), |value| value + f64::from(by));
    }
}

impl Gauge for Entry {
    fn set(&self, value: i64) {
        let value = i32::try_from(value).unwrap_or(i32::MAX);
        self.change(self.name.clone(), |_| f64::from(value));
    }
}

impl Histogram for Entry {
    fn observe(&self, value: f64) {
        self.change(format!("{} count", self.name), |count| count + 1.0);
        self.change(format!("{} sum", self.name), |sum| sum + value);
    }
}

impl Meter for MapMeter {
    fn counter(&self, name: &'static str, labels: Labels) -> Box<dyn Counter> {
        self.entry(name, labels)
    }

    fn gauge(&self, name: &'static str, labels: Labels) -> Box<dyn Gauge> {
        self.entry(name, labels)
    }

    fn histo(
        &self,
        name: &'static str,
        _buckets: &'static [f64],
        labels: Labels,
    ) -> Box<dyn Histogram> {
        self.entry(name, labels)
    }

    fn emit(&self, event: VizEvent) {
        let name = match event {
            VizEvent::Wal { .. } => "wal",
            VizEvent::Flush { .. } => "flush",
            VizEvent::Compaction { .. } => "compaction",
            _ => "other",
        };
        *self.events.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = ATLLConfig {
        data_dir: dir.path().to_owned(),
        memtable: MemtableConfig { flush_trigger_bytes: 64 << 10, ..Default::default() },
        ..Default::default()
    };
    let meter = Arc::new(MapMeter::default());
    let engine = LsmEngine::open_with_meter(config, Arc::clone(&meter)).await?;
    for number in 0..5000 {
        engine.put(format!("key{number:06}"), "some value of the example").await?;
        if number == 2500 {
            engine.flush().await?; // what has piled up may become one table: at least two come of this
        }
    }
    for number in 0..1000 {
        assert!(engine.get(format!("key{number:06}").as_bytes()).await?.is_some());
    }
    engine.wait_idle().await?;
    engine.shutdown().await?;

    for (name, value) in meter.values.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{name:<48} {value:.3}");
    }
    let events = meter.events.lock().unwrap_or_else(PoisonError::into_inner);
    println!("events: {events:?}");
    assert!(meter.value("sstable_entries_written") >= 5000.0);
    assert!(events.get("flush").is_some_and(|flushes| *flushes > 1));
    Ok(())
}
