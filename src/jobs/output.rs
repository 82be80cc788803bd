//! Where a flush or compaction writes: tables in key order, cut into sections at guards and into files by size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Compression;
use crate::cursor::{Cursor, Stop};
use crate::error::{Error, Result};
use crate::jobs::Cancel;
use crate::jobs::pace::Pace;
use crate::jobs::retain::{Fate, Retain};
use crate::storage::store::Store;
use crate::storage::table_writer::TableWriter;
use crate::tally::Share;
use crate::types::{KeyRange, Level, ValueKind, u64_of};
use crate::version::{TableMeta, TableSlice};

/// Size at which an output file is ended: small enough that a table dies soon after its slices do.
const FILE_BYTES: u64 = 64 << 20;
/// Entries between two looks at the cancel flag and the rate limit.
const STRIDE: usize = 1024;
/// And bytes of keys and values.
const STRIDE_BYTES: usize = 1 << 20;
/// Bytes of a file that are counted at once: whoever writes waits for others by what it writes, not by how often it looks.
const PACED_BYTES: u64 = 256 << 10;
/// Longest pause between two looks at the cancel flag.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How the outputs are to be written.
#[derive(Clone, Debug)]
pub(crate) struct OutputPlan {
    pub(crate) level: Level,
    pub(crate) compression: Compression,
    /// Keys at which a section must end, ascending.
    pub(crate) guards: Vec<Bytes>,
    /// How fast the outputs may be written, if not as fast as can be.
    pub(crate) pace: Option<Arc<Pace>>,
    /// When the oldest tombstone of the inputs was written, in seconds since the Unix epoch; 0: now.
    pub(crate) tombstones_since_s: u32,
}

/// Tables in key order that together are one sorted run.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    pub(crate) tables: Vec<Arc<TableMeta>>,
    /// Time that the rate limit held the writing up.
    pub(crate) throttled: Duration,
}

impl Outputs {
    /// Slices that cover `range`: each table from its first key up to that of the next.
    pub(crate) fn slices(&self, range: &KeyRange) -> Vec<TableSlice> {
        let first_key = |table: &Arc<TableMeta>| {
            table.sections.first().map(|section| section.min_key.clone()).unwrap_or_default()
        };
        let starts = self
            .tables
            .iter()
            .enumerate()
            .map(|(i, table)| if i == 0 { range.start.clone() } else { first_key(table) });
        let ends = self.tables.iter().skip(1).map(|table| Some(first_key(table)));
        let ranges = starts.zip(ends.chain([range.end.clone()]));
        ranges
            .zip(&self.tables)
            .map(|((start, end), table)| TableSlice {
                table: table.file,
                range: KeyRange::new(start, end),
            })
            .collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.file_bytes).sum()
    }
}

/// Writes what `retain` keeps of `cursor`. Blocks; `cursor` waits for the disk by itself.
///
/// # Errors
/// Those of reading and writing, [`Error::Closed`] if cancelled. Nothing is left on disk then.
pub(crate) fn write_tables(
    store: &Store,
    cursor: &mut impl Cursor,
    retain: &mut Retain,
    plan: OutputPlan,
    cancel: &Cancel,
) -> Result<Outputs> {
    let mut run = OutputRun {
        store,
        plan,
        guard: 0,
        writer: None,
        begun: Duration::ZERO,
        done: Vec::new(),
        paced: 0,
        throttled: Duration::ZERO,
        buffers: store.cache().buffers().share(0),
    };
    match run.fill(cursor, retain, cancel) {
        Ok(()) => Ok(Outputs { tables: run.done, throttled: run.throttled }),
        Err(error) => {
            run.abandon();
            Err(error)
        }
    }
}

struct OutputRun<'a> {
    store: &'a Store,
    plan: OutputPlan,
    /// Number of the first guard above the last key.
    guard: usize,
    writer: Option<TableWriter>,
    /// When the open table was begun.
    begun: Duration,
    done: Vec<Arc<TableMeta>>,
    /// Bytes that the rate limit has seen.
    paced: u64,
    throttled: Duration,
    /// Counts the buffers of the open table.
    buffers: Share,
}

impl OutputRun<'_> {
    fn fill(
        &mut self,
        cursor: &mut impl Cursor,
        retain: &mut Retain,
        cancel: &Cancel,
    ) -> Result<()> {
        waiting(cursor.rewind())?;
        let (mut entries, mut bytes) = (0_usize, 0_usize);
        let mut last_key = Vec::new();
        while let Some(entry) = cursor.entry() {
            if entries.is_multiple_of(STRIDE) || bytes >= STRIDE_BYTES {
                cancel.check()?;
                self.pace(PACED_BYTES, cancel)?;
                bytes = 0;
            }
            entries += 1;
            if let Fate::Keep(kind) = retain.judge(entry) {
                if last_key != entry.key {
                    self.pass_guards(entry.key)?;
                    self.roll()?;
                    last_key.clear();
                    last_key.extend_from_slice(entry.key);
                }
                let value = if kind == ValueKind::Delete { Bytes::new() } else { cursor.value() };
                let writer = self.writer()?;
                writer.add(entry.key, entry.seq, kind, &value)?;
                bytes += entry.key.len() + value.len();
                let memory = u64_of(writer.memory());
                self.buffers.set(memory);
            }
            waiting(cursor.advance())?;
        }
        self.finish_table()?;
        self.pace(1, cancel)
    }

    fn writer(&mut self) -> Result<&mut TableWriter> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let OutputPlan { level, compression, tombstones_since_s, .. } = self.plan;
                let mut writer = self.store.create_table(level, compression)?;
                if tombstones_since_s > 0 {
                    writer.tombstones_since(tombstones_since_s);
                }
                self.begun = self.store.env().clock.now();
                Ok(none.insert(writer))
            }
        }
    }

    /// Ends the section if a guard lies between the last key and this one.
    fn pass_guards(&mut self, key: &[u8]) -> Result<()> {
        let from = self.guard;
        let passed = |guard: &&Bytes| guard[..] <= *key;
        self.guard +=
            self.plan.guards.get(from..).unwrap_or_default().iter().take_while(passed).count();
        match &mut self.writer {
            Some(writer) if self.guard > from => writer.cut(),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the file if it is large enough. Only between keys: versions of a key stay together.
    fn roll(&mut self) -> Result<()> {
        let full = self.writer.as_ref().is_some_and(|w| w.bytes_written() >= FILE_BYTES);
        if full { self.finish_table() } else { Ok(()) }
    }

    fn finish_table(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.done.push(Arc::new(writer.finish()?));
            self.buffers.set(0);
            self.store.table_built(self.begun);
        }
        Ok(())
    }

    /// Waits until what was written since the last time fits the rate limit, if it is `least` bytes or more.
    fn pace(&mut self, least: u64, cancel: &Cancel) -> Result<()> {
        let Some(pace) = &self.plan.pace else { return Ok(()) };
        let open = self.writer.as_ref().map_or(0, TableWriter::bytes_written);
        let total = open + self.done.iter().map(|table| table.file_bytes).sum::<u64>();
        let fresh = total.saturating_sub(self.paced);
        if fresh < least {
            return Ok(());
        }
        self.paced = total;
        let env = self.store.env();
        let mut left = pace.wrote(fresh, env.clock.now());
        self.throttled += left;
        while !left.is_zero() {
            cancel.check()?;
            let pause = left.min(LONGEST_PAUSE);
            env.pause(pause);
            left -= pause;
        }
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.abandon();
        }
        for table in &self.done {
            let path = self.store.layout().table(table.file);
            if let Err(error) = self.store.remove(&path) {
                tracing::debug!(%error, "left an orphan table behind");
            }
        }
    }
}

/// A cursor that waits for the disk by itself is never blocked.
pub(crate) fn waiting<T>(step: Result<T, Stop>) -> Result<T> {
    match step {
        Ok(done) => Ok(done),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Blocked(_)) => Err(Error::Interrupted { component: "waiting cursor" }),
    }
}
