//! From files to a consistent state: the manifest, then the log, in the order in which they were written.
//!
//! 1. Take the lock. 2. Replay the manifest that `CURRENT` names. 3. Check that every table it names is there.
//! 4. Follow the log from its newest segment back to the floor; replay it from there on, each segment into a memtable of its own.
//! 5. Sync what was replayed: what recovery shows is final. 6. Begin a new manifest and a new segment, in which is logged again
//!    what a sync of the process before failed to write. 7. Remove orphans.
//!
//! Invariant: nothing found is ever appended to, and nothing is removed before the new state is durable.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::{ATLLConfig, RecoveryMode};
use crate::env::Env;
use crate::error::{Error, IoContext, Result};
use crate::format::wal::{Frame, FrameEncoder, HEADER_LEN, Previous, SegmentHeader};
use crate::memtable::{Keeper, Memtable};
use crate::observe::{VizEvent, WalKind};
use crate::storage::layout::{FileKind, Found, Layout};
use crate::storage::log_segment::{LogSegment, Opening, Scan, SegmentReader, Tail};
use crate::storage::manifest::{ManifestLog, ManifestReport, read_current};
use crate::storage::store::Store;
use crate::types::{FileId, SeqNo, u64_of};
use crate::version::Version;

const TABLE_GONE: &str = "a table that the manifest names";
const SEGMENT_GONE: &str = "a log segment that a later one follows";
/// What is expected where a whole file is missing.
const GONE: [&str; 2] = [TABLE_GONE, SEGMENT_GONE];

/// What opening a database found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecoveryReport {
    /// Whether there was no database before.
    pub created: bool,
    /// Tables that the manifest names.
    pub tables: usize,
    /// Records of the manifest that were replayed.
    pub manifest_edits: u64,
    /// Bytes of a manifest record that was torn, and so never acknowledged.
    pub manifest_torn_bytes: u64,
    /// Log segments that were replayed.
    pub segments: usize,
    /// Commit groups that were replayed.
    pub groups: u64,
    /// Operations that were replayed into memtables.
    pub operations: u64,
    /// Offset and file of a torn log tail that was cut, if there was one.
    pub torn_tail: Option<(PathBuf, u64)>,
    /// Damage that [`RecoveryMode::SalvagePrefix`] was asked to step over: everything logged after it is dropped.
    pub salvaged: Option<String>,
    /// Log segments behind the end of the log whose writes are dropped: none of them was known to be on disk, unless
    /// [`salvaged`](Self::salvaged) says so.
    pub segments_dropped: usize,
    /// Files that nothing named and that were removed.
    pub orphans_removed: usize,
    /// The last write that is there.
    pub last_seq: SeqNo,
    /// How long it all took.
    pub took: Duration,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tables, {} log segments with {} operations, last write {}, {} orphans removed, {:?}",
            self.tables,
            self.segments,
            self.operations,
            self.last_seq,
            self.orphans_removed,
            self.took
        )?;
        if let Some((path, offset)) = &self.torn_tail {
            write!(f, "; torn tail cut at byte {offset} of {}", path.display())?;
        }
        match &self.salvaged {
            Some(damage) => write!(f, "; salvaged what came before: {damage}"),
            None => Ok(()),
        }
    }
}

/// A database brought back, ready to be served.
pub(crate) struct Recovered {
    /// The lock of the directory; held as long as the engine lives.
    pub(crate) lock: Box<dyn Any + Send + Sync>,
    pub(crate) store: Arc<Store>,
    pub(crate) version: Version,
    pub(crate) manifest: ManifestLog,
    /// Not flushed yet, newest first.
    pub(crate) memtables: Vec<Arc<Memtable>>,
    /// Begun and durable.
    pub(crate) segment: LogSegment,
    pub(crate) report: RecoveryReport,
}

/// Opens the directory. Blocks for as long as the log is long.
///
/// # Errors
/// [`Error::Locked`], [`Error::Corrupt`] for damage that is no torn tail, else those of the file system.
pub(crate) fn recover(env: &Env, config: &ATLLConfig) -> Result<Recovered> {
    let start = env.clock.now();
    let layout = Layout::new(&config.data_dir);
    layout.create(&*env.fs)?;
    let lock = take_lock(env, &layout)?;
    let mut report = RecoveryReport::default();
    let found = read_current(&*env.fs, &layout, config.max_levels)?;
    report.created = found.is_none();
    let (mut version, manifest) = match found {
        Some((_, version, manifest)) => {
            report.manifest_edits = manifest.edits;
            report.manifest_torn_bytes = manifest.torn_bytes;
            (version, Some(manifest))
        }
        None => (Version::empty(config.max_levels), None),
    };
    report.tables = version.tables.len();
    let blamed = |error| blame(error, manifest.as_ref());
    check_tables(env, &layout, &version).map_err(blamed)?;
    let mut log = LogReplay::new(env, &layout, config, (&version, Purpose::Open));
    let previous = log.replay(&mut report).map_err(blamed)?;
    report.last_seq = SeqNo(log.expected.0.saturating_sub(1));
    let (memtables, replayed) = (log.memtables, log.replayed);

    let next_file = version.next_file.max(layout.unused_id(&*env.fs)?);
    let store = Arc::new(Store::new(env.clone(), config, next_file));
    // Segments in front of the first that is needed do not count any more; the others are links of the log.
    version.log_floor = memtables.first().map_or(next_file, |memtable| memtable.segment());
    // CURRENT comes before the first segment: a log without a manifest would look like damage.
    let manifest = ManifestLog::create(&*env.fs, &layout, store.new_id(), &version)?;
    let segment = begin_segment(&store, previous, &memtables)?;
    store.segment_begun(segment.id());
    let named = named_files(&version, &manifest, &replayed, segment.id());
    report.orphans_removed = remove_orphans(&store, &named)?;
    report.took = env.clock.now().saturating_sub(start);
    tracing::info!(dir = %config.data_dir.display(), seed = config.seed, %report, "opened");
    let memtables = memtables.into_iter().rev().collect();
    Ok(Recovered { lock, store, version, manifest, memtables, segment, report })
}

/// The segment that new writes go to. Once it is durable, so is everything that was replayed.
fn begin_segment(
    store: &Store,
    previous: Previous,
    memtables: &[Arc<Memtable>],
) -> Result<LogSegment> {
    let segment = store.create_segment()?;
    let doubts = store.layout().list(&*store.env().fs, FileKind::Doubt)?;
    match doubts.into_iter().filter_map(|doubt| doubt.id).min() {
        None => segment.write_header(previous)?,
        Some(first) => {
            segment.write_header(Previous { durable: 0, ..previous })?;
            let mut encoder = FrameEncoder::default();
            for memtable in memtables.iter().filter(|memtable| memtable.segment() >= first) {
                segment.append_again(&mut encoder, &memtable.ops_after(SeqNo(0)))?;
            }
        }
    }
    segment.sync()?;
    Ok(segment)
}

pub(crate) fn take_lock(env: &Env, layout: &Layout) -> Result<Box<dyn Any + Send + Sync>> {
    let path = layout.lock();
    match env.fs.lock(&path) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(Error::Locked { path: layout.dir().to_owned() })
        }
        lock => lock.at("lock", &path),
    }
}

/// Names the file that is damaged where a whole one is missing.
fn blame(error: Error, manifest: Option<&ManifestReport>) -> Error {
    let torn = manifest.and_then(|manifest| torn_record(&error, manifest));
    match torn {
        Some(torn) => {
            tracing::error!(%error, "the manifest is torn where it would say why");
            torn
        }
        None => error,
    }
}

/// The damage of a manifest whose end is torn, if `error` says that a whole file is missing. Files go only once a record of the
/// manifest that does without them is durable: so that record is what is missing, unless a crash tore another one just then. If it
/// ends with a whole record, nothing tells a lost file from a lost record.
fn torn_record(error: &Error, manifest: &ManifestReport) -> Option<Error> {
    let gone = matches!(error, Error::Corrupt { expected, .. } if GONE.contains(expected));
    let expected = "the record by which a missing file went";
    (gone && manifest.torn_bytes > 0)
        .then(|| Error::corrupt(&manifest.path, manifest.end, expected))
}

/// [`torn_record`] of a version, found by looking for all that it names. Reads the log if the manifest is torn at all.
pub(crate) fn missed_record(
    env: &Env,
    config: &ATLLConfig,
    (version, manifest): (&Version, &ManifestReport),
) -> Result<Option<Error>> {
    if manifest.torn_bytes == 0 {
        return Ok(None);
    }
    let layout = Layout::new(&config.data_dir);
    let found = check_tables(env, &layout, version).and_then(|()| {
        look_at_log((env, &layout), config, (version, &mut RecoveryReport::default()))
    });
    match found {
        Ok(()) => Ok(None),
        Err(error @ Error::Corrupt { .. }) => Ok(torn_record(&error, manifest)),
        Err(error) => Err(error),
    }
}

/// Replays the log without a change to it. The first damage is an error, whatever `config` says of it.
pub(crate) fn look_at_log(
    (env, layout): (&Env, &Layout),
    config: &ATLLConfig,
    (version, report): (&Version, &mut RecoveryReport),
) -> Result<()> {
    let strict = ATLLConfig { recovery: RecoveryMode::Strict, ..config.clone() };
    LogReplay::new(env, layout, &strict, (version, Purpose::Look)).replay(report).map(drop)
}

/// Every table that the manifest names is there and has its size. Reads no table.
fn check_tables(env: &Env, layout: &Layout, version: &Version) -> Result<()> {
    let files = layout.list(&*env.fs, FileKind::Table)?;
    let sizes: BTreeMap<_, _> = files
        .into_iter()
        .filter(|file| !file.temporary)
        .map(|file| (file.path, file.bytes))
        .collect();
    for (id, table) in &version.tables {
        let path = layout.table(*id);
        match sizes.get(&path) {
            None => return Err(Error::corrupt(&path, 0, TABLE_GONE)),
            Some(size) if *size != table.file_bytes => {
                let end = *size.min(&table.file_bytes);
                return Err(Error::corrupt(&path, end, "a table of the size in the manifest"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Paths that the new state names.
fn named_files(
    version: &Version,
    manifest: &ManifestLog,
    replayed: &[FileId],
    segment: FileId,
) -> BTreeSet<(FileKind, FileId)> {
    let tables = version.live_tables().map(|id| (FileKind::Table, id));
    let segments = replayed.iter().filter(|id| **id >= version.log_floor);
    let segments = segments.map(|id| (FileKind::Wal, *id));
    let new = [(FileKind::Manifest, manifest.id()), (FileKind::Wal, segment)];
    tables.chain(segments).chain(new).collect()
}

fn remove_orphans(store: &Store, named: &BTreeSet<(FileKind, FileId)>) -> Result<usize> {
    let mut removed = 0;
    for kind in FileKind::ALL {
        let orphans = store.layout().list(&*store.env().fs, kind)?;
        // A name that is not ours is not ours to remove.
        let orphans = orphans.into_iter().filter(|file: &Found| {
            file.id.is_some_and(|id| file.temporary || !named.contains(&(kind, id)))
        });
        for orphan in orphans {
            store.remove(&orphan.path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// One segment of the log, opened.
struct Link {
    header: SegmentHeader,
    reader: SegmentReader,
}

/// What a log is replayed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To go on from there: what was found is final.
    Open,
    /// To know what is in it: no byte is changed.
    Look,
}

pub(crate) struct LogReplay<'a> {
    env: &'a Env,
    layout: &'a Layout,
    config: &'a ATLLConfig,
    purpose: Purpose,
    floor: FileId,
    /// Every segment from the floor on of which there is a file, begun or not.
    present: BTreeSet<FileId>,
    /// Segments from this one on are left out.
    pub(crate) ceiling: FileId,
    /// SeqNo that comes next; [`SeqNo::MAX`]: whatever comes first.
    pub(crate) expected: SeqNo,
    keeper: Keeper,
    /// Oldest first.
    pub(crate) memtables: Vec<Arc<Memtable>>,
    /// Every segment that is a link of the log, oldest first.
    replayed: Vec<FileId>,
}

impl<'a> LogReplay<'a> {
    pub(crate) fn new(
        env: &'a Env,
        layout: &'a Layout,
        config: &'a ATLLConfig,
        (version, purpose): (&Version, Purpose),
    ) -> Self {
        Self {
            purpose,
            env,
            layout,
            config,
            floor: version.log_floor,
            present: BTreeSet::new(),
            ceiling: FileId(u64::MAX),
            expected: version.last_seq.plus(1),
            keeper: Keeper::new(0),
            memtables: Vec::new(),
            replayed: Vec::new(),
        }
    }

    /// Replays the log. Returns what the next segment has to say about its end.
    pub(crate) fn replay(&mut self, report: &mut RecoveryReport) -> Result<Previous> {
        let mut begun = self.open_segments()?;
        let mut chain = Vec::new();
        let mut dropped = Vec::new();
        while let Some((_, link)) = begun.pop_last() {
            let before = link.header.previous;
            chain.push(link);
            if before.segment < self.floor || before.segment == FileId(0) {
                break;
            }
            // Segments between the two were begun and given up: the log does not go through them.
            drop(begun.split_off(&FileId(before.segment.0 + 1)));
            let on_disk = before.durable > 0 && !begun.contains_key(&before.segment);
            // The name of a segment is durable before it is begun, and goes only once a durable record of the manifest has
            // raised the floor above it: if the floor is not above it, that record is lost. Unless there is no manifest to ask.
            let collected = self.expected != SeqNo::MAX
                && begun.is_empty()
                && !self.present.contains(&before.segment);
            if on_disk || collected {
                let path = self.layout.wal(before.segment);
                let missing = Error::corrupt(&path, 0, SEGMENT_GONE);
                self.judge_loss(missing, true, &mut chain, report)?;
                dropped.append(&mut chain);
            }
            // One that was never on disk may be missing: the replay finds out whether it is missed.
        }
        chain.reverse();
        report.segments_dropped = dropped.len();
        self.replay_chain(chain, report)
    }

    /// Opens every segment that was begun and may still matter.
    fn open_segments(&mut self) -> Result<BTreeMap<FileId, Link>> {
        let mut begun = BTreeMap::new();
        for file in self.layout.list(&*self.env.fs, FileKind::Wal)? {
            let Some(id) =
                file.id.filter(|id| *id >= self.floor && *id < self.ceiling && !file.temporary)
            else {
                continue;
            };
            self.present.insert(id);
            let mut reader = SegmentReader::open(&*self.env.fs, file.path, id)?;
            match reader.opening()? {
                Opening::Begun(header) => drop(begun.insert(id, Link { header, reader })),
                Opening::Unused | Opening::Torn => {}
            }
        }
        Ok(begun)
    }

    /// Replays `links`, oldest first. What is missing at the end of one may have been logged again at the front of a later one.
    fn replay_chain(&mut self, chain: Vec<Link>, report: &mut RecoveryReport) -> Result<Previous> {
        let mut links = VecDeque::from(chain);
        let mut previous = Previous::default();
        // Where something is missing that nothing made good so far.
        let mut torn = None;
        while let Some(mut link) = links.pop_front() {
            let groups = report.groups;
            let segment = link.header.segment;
            let after = links.front().map(|next| next.header.previous);
            let after = after.filter(|after| after.segment == segment);
            let limit = after.map_or(u64::MAX, |after| after.end);
            let scan = self.replay_segment(&mut link, limit, report)?;
            let end = scan.end;
            previous = Previous { segment, end, durable: end };
            let known = scan.durable.max(after.map_or(0, |after| after.durable));
            let lost = known > end || scan.tail == Tail::DurableBeyond;
            if scan.tail != Tail::Clean || after.is_some_and(|after| after.end > end) {
                torn = Some((link.reader.path().to_owned(), end));
            } else if report.groups > groups {
                torn = None;
            }
            if !lost && self.skip_to_follower(&mut links)? {
                continue;
            }
            let damage = Error::corrupt(link.reader.path(), end, "a whole commit group");
            self.judge_loss(damage, lost, links.make_contiguous(), report)?;
            report.segments_dropped += links.len();
            break;
        }
        report.torn_tail = torn;
        Ok(previous)
    }

    /// Drops links up to the next one that follows from what was replayed. Those before it are either logged again in it or came
    /// to nothing. `false` if there are links, but none that follows.
    fn skip_to_follower(&mut self, links: &mut VecDeque<Link>) -> Result<bool> {
        for at in 0..links.len() {
            let Some(link) = links.get_mut(at) else { break };
            if self.follows(link)? {
                links.drain(..at);
                return Ok(true);
            }
        }
        Ok(links.is_empty())
    }

    /// Whether the first group of a segment comes right behind what was replayed, or before. So does one that holds none.
    fn follows(&self, link: &mut Link) -> Result<bool> {
        let mut follows = true;
        link.reader.scan(u64::MAX, |frame| {
            follows = frame.base_seq <= self.expected;
            false
        })?;
        Ok(follows)
    }

    /// Part of the log is gone, and `later` with it. An error if any of that was known to be on disk.
    fn judge_loss(
        &self,
        damage: Error,
        mut durable: bool,
        later: &mut [Link],
        report: &mut RecoveryReport,
    ) -> Result<()> {
        for link in later {
            // A sync of a segment comes after that of all before it.
            let scan = link.reader.scan(u64::MAX, |_| true)?;
            durable |= scan.durable > u64_of(HEADER_LEN);
        }
        if !durable {
            return Ok(());
        }
        match self.config.recovery {
            RecoveryMode::Strict => Err(damage),
            RecoveryMode::SalvagePrefix => {
                tracing::error!(%damage, "salvaging what was logged before");
                report.salvaged = Some(damage.to_string());
                Ok(())
            }
        }
    }

    fn replay_segment(
        &mut self,
        link: &mut Link,
        limit: u64,
        report: &mut RecoveryReport,
    ) -> Result<Scan> {
        let segment = link.header.segment;
        let memtable = Memtable::new(segment, self.config.memtable.flush_trigger_bytes);
        let path = link.reader.path().to_owned();
        // It is not written any more, so what is synced while it is read is all of it. Also a segment that holds no write: the next
        // one names it, and takes it for durable.
        let (env, purpose) = (self.env, self.purpose);
        let sync = || env.fs.sync_file(&path).at("sync", &path);
        let mut replay = || {
            link.reader.scan(limit, |frame| {
                if self.expected == SeqNo::MAX {
                    self.expected = frame.base_seq;
                }
                let follows = frame.base_seq <= self.expected;
                if follows {
                    report.groups += 1;
                    report.operations += self.apply(frame, &memtable);
                }
                follows
            })
        };
        let (scan, synced) = match purpose {
            Purpose::Open => env.both(replay, sync),
            Purpose::Look => (replay(), Ok(())),
        };
        let scan = scan?;
        report.segments += 1;
        self.replayed.push(segment);
        if !memtable.is_empty() {
            self.memtables.push(Arc::new(memtable));
        }
        if purpose == Purpose::Look {
            return Ok(scan);
        }
        synced?;
        let node = self.config.node_id;
        self.env.meter.emit(VizEvent::Wal { node, segment, kind: WalKind::Replayed });
        Ok(scan)
    }

    /// Inserts what is new in a group; returns how many operations that are.
    fn apply(&mut self, frame: Frame, memtable: &Memtable) -> u64 {
        let mut seq = frame.base_seq;
        let mut fresh = 0;
        for op in frame.ops {
            if seq >= self.expected {
                memtable.insert(seq, &op, &mut self.keeper);
                self.expected = seq.plus(1);
                fresh += 1;
            }
            seq = seq.plus(1);
        }
        fresh
    }
}
