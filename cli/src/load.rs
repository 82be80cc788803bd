//! `nori load`: a file into a database. One thread reads and cuts records, a task writes them batch by batch, in their order.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nori_lsm::{LsmEngine, Stats, WriteBatch, WriteOptions};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::args::Load;
use crate::failure::Failure;
use crate::query;
use crate::records::Records;
use crate::table::{facts, grouped, per_second, real, size};

/// Batches that may be read ahead.
const AHEAD: usize = 4;

/// A batch ends at this size even if it could hold more records.
const BATCH_BYTES: usize = 16 << 20;

/// `nori load`.
pub(crate) async fn load(args: Load) -> Result<Outcome, Failure> {
    let read = Arc::new(AtomicU64::new(0));
    let records = Records::open(&args.file, args.format, args.key.as_deref(), Arc::clone(&read))?;
    let acked = args.acked.as_deref().map(Acked::open).transpose()?;
    let mut config = query::config(&args.dir);
    config.durability = args.durability.into();
    let engine = LsmEngine::open(config).await?;
    let (batches, full) = mpsc::channel(AHEAD);
    let size = args.batch.try_into().unwrap_or(usize::MAX);
    let reading = tokio::task::spawn_blocking(move || cut(records, size, &batches));
    let begun = Instant::now();
    let mut writer = Writer { engine: &engine, read, acked, bar: bar(&args.file), entries: 0 };
    let result = writer.run(full).await;
    writer.bar.finish_and_clear();
    let entries = writer.entries;
    let written = begun.elapsed();
    let flushed = engine.flush().await;
    let stats = engine.stats();
    engine.shutdown().await?;
    result?;
    flushed?;
    reading.await.map_err(|error| Failure::Wrong(error.to_string()))??;
    let report = Report { entries, written, total: begun.elapsed(), stats };
    println!("{}", report.text(&args.dir));
    Ok(Outcome::Done)
}

/// Cuts the file into batches until it ends or nobody wants more.
fn cut(
    mut records: Records,
    size: usize,
    batches: &mpsc::Sender<WriteBatch>,
) -> Result<(), Failure> {
    let mut batch = WriteBatch::default();
    loop {
        let record = records.next();
        let end = !matches!(record, Ok(Some(_)));
        if let Ok(Some((key, value))) = &record {
            batch.put(key.clone(), value.clone());
        }
        let full = batch.len() >= size || batch.bytes() >= BATCH_BYTES;
        if (full || end && !batch.is_empty())
            && batches.blocking_send(std::mem::take(&mut batch)).is_err()
        {
            return Ok(());
        }
        if end {
            return record.map(drop);
        }
    }
}

struct Writer<'a> {
    engine: &'a LsmEngine,
    /// Bytes of the file read so far.
    read: Arc<AtomicU64>,
    acked: Option<Acked>,
    bar: ProgressBar,
    /// Records acknowledged so far.
    entries: u64,
}

impl Writer<'_> {
    async fn run(&mut self, mut batches: mpsc::Receiver<WriteBatch>) -> Result<(), Failure> {
        while let Some(batch) = batches.recv().await {
            let records = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            self.engine.write(batch, WriteOptions::default()).await?;
            self.entries += records;
            if let Some(acked) = &mut self.acked {
                acked.append(self.entries)?;
            }
            self.bar.set_position(self.read.load(Ordering::Relaxed));
        }
        Ok(())
    }
}

/// Where the number of acknowledged records is written, a line each time.
struct Acked {
    file: File,
    name: String,
}

impl Acked {
    fn open(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let name = path.display().to_string();
        Ok(Self { file: file.map_err(Failure::io("open", path))?, name })
    }

    /// One call to the system, so that a line is there or not.
    fn append(&mut self, entries: u64) -> Result<(), Failure> {
        let written = self.file.write_all(format!("{entries}\n").as_bytes());
        written.map_err(|source| Failure::Io { what: format!("write {}", self.name), source })
    }
}

/// On standard error, and only if that is a terminal.
fn bar(file: &Path) -> ProgressBar {
    const KNOWN: &str = "{bar:30} {bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left";
    const UNKNOWN: &str = "{spinner} {bytes}  {binary_bytes_per_sec}";
    let length = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file);
    let (bar, template) = match length {
        Some(file) => (ProgressBar::new(file.len()), KNOWN),
        None => (ProgressBar::new_spinner(), UNKNOWN),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()))
}

struct Report {
    entries: u64,
    /// Until the last record was acknowledged.
    written: Duration,
    /// Until everything was in tables and the engine had ended.
    total: Duration,
    stats: Stats,
}

impl Report {
    fn text(&self, dir: &Path) -> String {
        let Self { entries, written, total, stats } = self;
        let amplification = stats.write_amplification();
        facts(&[
            ("entries", grouped(*entries)),
            ("bytes", format!("{} of keys and values", grouped(stats.user_bytes))),
            (
                "seconds",
                format!(
                    "{:.2} (with the last flush {:.2})",
                    written.as_secs_f64(),
                    total.as_secs_f64()
                ),
            ),
            ("MB/s", format!("{:.1}", real(stats.user_bytes) / 1e6 / written.as_secs_f64())),
            ("entries/s", format!("{:.0}", per_second(*entries, *written))),
            ("flushes", stats.flushes.to_string()),
            ("write amp", amplification.map_or("-".into(), |factor| format!("{factor:.2}"))),
            ("on disk", size(bytes_below(dir))),
        ])
    }
}

/// Bytes of all files in `dir` and below; what cannot be read counts as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
