//! Makes a damaged database open again, with all that can be read of it.
//!
//! 1. The version: of the manifest in charge, or of the newest one if that is whole, or of an older one that no table file outdates.
//!    Without any, it is rebuilt: all readable entries of all tables and of the log are merged into one run.
//! 2. Each damaged table is replaced by one of its readable entries; a missing one is taken out.
//! 3. Of a damaged log, what comes before the damage is moved into tables.
//! 4. The new manifest takes charge; only then what it does not name is moved to `repaired-<n>`. Nothing is deleted.
//!
//! What the disk cannot read is damage like any other, see [`unreadable`](crate::jobs::unreadable), and named in the report.
//!
//! Invariant: until the new manifest is in charge nothing that was there is touched, so a repair that is cut off can be repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::config::{ATLLConfig, RecoveryMode, ResourceConfig};
use crate::cursor::{Cursor, EntryRef, Stop};
use crate::env::{Env, Fs};
use crate::error::{Error, IoContext, Result};
use crate::jobs::Cancel;
use crate::jobs::output::{OutputPlan, write_tables};
use crate::jobs::recover::{
    LogReplay, Purpose, RecoveryReport, look_at_log, missed_record, take_lock,
};
use crate::jobs::retain::Retain;
use crate::jobs::salvage::{Lost, Salvage};
use crate::jobs::unreadable::{ForgivingFs, Unreadable};
use crate::jobs::verify::{check_table, exists, no_database};
use crate::memtable::{Memtable, MemtableCursor};
use crate::storage::layout::{FileKind, Found, Layout};
use crate::storage::manifest::{ManifestLog, named_by_current, read_current, read_manifest};
use crate::storage::store::Store;
use crate::storage::table::read_table_meta;
use crate::types::{Direction, FileId, KeyRange, Level, NUMBERS_END, SeqNo};
use crate::version::{EditOp, Run, RunId, TableMeta, TableSlice, Version, VersionEdit};
use crate::view::{Tree, View};

/// What a repair found and did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// What is wrong with the manifest, or with `CURRENT`, if something is.
    pub manifest: Option<String>,
    /// Whether no manifest could be used, so that the version was rebuilt from the table files. Data that had been deleted or
    /// overwritten may be back then, where a table file had outlived its compaction.
    pub rebuilt: bool,
    /// Tables that are whole.
    pub tables_sound: usize,
    /// Tables that are damaged or missing.
    pub salvaged: Vec<Salvaged>,
    /// Damage of the log; everything logged behind it is dropped.
    pub log: Option<String>,
    /// What the disk could not read of any of them. It is lost as if it were damaged, but its files are kept like all others.
    pub unreadable: Vec<Unreadable>,
    /// Operations of a log in need of repair that were moved into tables.
    pub log_operations: u64,
    /// Where files went that are of no use any more, if there are any.
    pub moved_to: Option<PathBuf>,
    /// Those files, where they were.
    pub moved: Vec<PathBuf>,
}

/// What is left of a damaged table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Salvaged {
    /// The damaged or missing file.
    pub path: PathBuf,
    /// Entries that could be read, deletions and older versions included.
    pub entries: u64,
    /// What could not.
    pub lost: Vec<Lost>,
}

impl RepairReport {
    /// Whether there was nothing to repair.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let damaged = self.manifest.is_some() || !self.salvaged.is_empty() || self.log.is_some();
        !damaged && self.unreadable.is_empty()
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sound() {
            return write!(f, "{} tables, nothing to repair", self.tables_sound);
        }
        if let Some(damage) = &self.manifest {
            writeln!(f, "manifest: {damage}")?;
        }
        if self.rebuilt {
            writeln!(f, "  rebuilt from the table files: deleted data may have come back")?;
        }
        for Salvaged { path, entries, lost } in &self.salvaged {
            writeln!(f, "{}: {entries} entries left, {} pieces lost", path.display(), lost.len())?;
            for Lost { offset, bytes, keys } in lost {
                let end = keys.end.as_ref();
                let end = end.map_or("the end".to_owned(), |end| end.escape_ascii().to_string());
                let start = keys.start.escape_ascii();
                writeln!(f, "  {bytes} bytes at {offset}, keys from \"{start}\" to \"{end}\"")?;
            }
        }
        if let Some(damage) = &self.log {
            writeln!(f, "log: {damage}; {} operations in front of it", self.log_operations)?;
        }
        self.unreadable.iter().try_for_each(|piece| writeln!(f, "{piece}"))?;
        if let Some(dir) = &self.moved_to {
            writeln!(f, "{} files moved to {}:", self.moved.len(), dir.display())?;
            self.moved.iter().try_for_each(|path| writeln!(f, "  {}", path.display()))?;
        }
        write!(f, "{} tables are sound", self.tables_sound)
    }
}

/// Repairs the database in [`ATLLConfig::data_dir`] that no engine has open: it opens afterwards, with all that could be read.
///
/// Nothing is deleted: files of no further use are moved to a new directory `repaired-<n>` within. If the power is cut, repair it
/// again. A database that is sound stays as it is.
///
/// What the disk cannot read (`EIO`) is tried again once, page by page, and then lost like what is damaged; the report names it. If
/// that may pass, look with [`diagnose`] as often as it takes before a repair: it says the same and changes nothing.
///
/// Cost: reads everything; writes what is damaged anew, or, without a manifest, everything. Holds the log in memory.
///
/// # Errors
/// [`Error::Locked`]; [`Error::Io`] if there is no database, or a directory cannot be read, or something cannot be written;
/// [`Error::Unsupported`] if a newer version wrote it.
pub async fn repair(config: &ATLLConfig, env: &Env) -> Result<RepairReport> {
    on_disk(config, env, Mode::Repair).await
}

/// What [`repair`] would do. Changes no byte; a file `LOCK` comes to be if there is none.
///
/// # Errors
/// As for [`repair`].
pub async fn diagnose(config: &ATLLConfig, env: &Env) -> Result<RepairReport> {
    on_disk(config, env, Mode::Look).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Repair,
    Look,
}

async fn on_disk(config: &ATLLConfig, env: &Env, mode: Mode) -> Result<RepairReport> {
    config.validate()?;
    let world = env.clone();
    let resources = ResourceConfig { block_cache_mib: 0, ..config.resources.clone() };
    let config = ATLLConfig { recovery: RecoveryMode::SalvagePrefix, resources, ..config.clone() };
    env.on_disk(move || run(&world, &config, mode)).await
}

/// A repair on its way.
struct Work<'a> {
    /// The world with the files below.
    env: Env,
    /// Everything that was there before is read through it.
    fs: Arc<ForgivingFs>,
    config: &'a ATLLConfig,
    layout: Layout,
    store: Arc<Store>,
    mode: Mode,
    report: RepairReport,
}

/// What is left of the log.
#[derive(Default)]
struct LogLeft {
    /// Oldest first.
    memtables: Vec<Arc<Memtable>>,
    last_seq: SeqNo,
}

fn run(env: &Env, config: &ATLLConfig, mode: Mode) -> Result<RepairReport> {
    let layout = Layout::new(&config.data_dir);
    exists(env, &layout)?;
    let _lock = take_lock(env, &layout)?;
    let fs = Arc::new(ForgivingFs::new(&env.fs));
    let mut report = RepairReport::default();
    let forgiving = Env { fs: Arc::<ForgivingFs>::clone(&fs), ..env.clone() };
    let (known, damage) = match read_current(&*fs, &layout, config.max_levels) {
        Ok(Some((id, version, manifest))) => {
            // What ends where it cannot be read, or is torn, may have gone on.
            let unread = fs.unread_of(&layout.manifest(id)).map(|unread| unread.to_string());
            let missed = missed_record(&forgiving, config, (&version, &manifest))?;
            match unread.or(missed.map(|error| error.to_string())) {
                None => (Some(version), None),
                damage => (None, damage),
            }
        }
        Ok(None) => return Err(no_database(&layout)),
        Err(error @ Error::Corrupt { .. }) => (None, Some(error.to_string())),
        Err(error) => return Err(error),
    };
    let known = match &damage {
        None => known,
        Some(_) => other_manifest((&forgiving, &fs), config, &layout)?,
    };
    report.manifest = damage;
    let unused = layout.unused_id(&*fs)?;
    let next_file = known.as_ref().map_or(unused, |version| version.next_file.max(unused));
    let store = Arc::new(Store::new(env.clone(), config, next_file));
    let mut work = Work { env: forgiving, fs, config, layout, store, mode, report };
    let repaired = match &known {
        Some(version) => work.mend(version)?,
        None => work.rebuild()?,
    };
    work.report.unreadable = work.fs.unreadable();
    if let Some(version) = repaired.filter(|_| mode == Mode::Repair) {
        work.install(version)?;
    }
    Ok(work.report)
}

/// The version of the newest manifest file, or of an older one if no table is newer than it knows.
fn other_manifest(
    (env, fs): (&Env, &ForgivingFs),
    config: &ATLLConfig,
    layout: &Layout,
) -> Result<Option<Version>> {
    let finished = |kind| {
        let found = layout.list(fs, kind)?;
        let ids = found.into_iter().filter(|file: &Found| !file.temporary);
        Ok::<Vec<FileId>, Error>(ids.filter_map(|file| file.id).collect())
    };
    let newest_table = finished(FileKind::Table)?.into_iter().max();
    let mut manifests = finished(FileKind::Manifest)?;
    manifests.sort_unstable();
    let newest = manifests.iter().copied().max().max(named_by_current(fs, layout)?);
    for id in manifests.into_iter().rev() {
        let path = layout.manifest(id);
        let (version, manifest) = match read_manifest(fs, &path, id) {
            Ok((version, manifest)) => (version.resized(config.max_levels), manifest),
            Err(Error::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        let is_whole = fs.unread_of(&path).is_none()
            && missed_record(env, config, (&version, &manifest))?.is_none();
        if is_whole {
            let outdated = newest_table.is_some_and(|table| table >= version.next_file);
            return Ok((newest == Some(id) || !outdated).then_some(version));
        }
    }
    Ok(None)
}

impl Work<'_> {
    /// Replaces what is damaged of a version. `None` if nothing is.
    fn mend(&mut self, version: &Version) -> Result<Option<Version>> {
        let mut replaced = BTreeMap::new();
        for (id, meta) in &version.tables {
            if self.is_sound(meta)? {
                self.report.tables_sound += 1;
            } else {
                let left = self.salvage(*id, Some(meta))?;
                replaced.insert(*id, left);
            }
        }
        let log = self.log_left(version)?;
        if self.report.is_sound() {
            return Ok(None);
        }
        if self.mode == Mode::Look {
            return Ok(None);
        }
        let mut next = version.with_replaced(&replaced);
        if let Some(log) = log {
            for memtable in &log.memtables {
                let cursor = MemtableCursor::new(Arc::clone(memtable), Direction::Forward);
                next = self.push(&next, Level::L0, cursor)?;
            }
            next.last_seq = next.last_seq.max(log.last_seq);
            next.log_floor = self.store.next_file();
        }
        Ok(Some(next))
    }

    /// Whether a table is whole, and could be read.
    fn is_sound(&self, meta: &Arc<TableMeta>) -> Result<bool> {
        let checked = check_table(&self.env, &self.layout, meta)?;
        let read = self.fs.unread_of(&self.layout.table(meta.file)).is_none();
        Ok(read && checked.damaged.is_empty())
    }

    /// Makes a version of every entry in every table file and in the log.
    fn rebuild(&mut self) -> Result<Option<Version>> {
        self.report.rebuilt = true;
        let mut tables = Vec::new();
        for file in self.layout.list(&*self.env.fs, FileKind::Table)? {
            let Some(id) = file.id.filter(|_| !file.temporary) else { continue };
            let meta = match read_table_meta(&*self.env.fs, &file.path) {
                Ok(meta) => Some(Arc::new(meta))
                    .filter(|meta| meta.file == id && meta.max_seq.0 < NUMBERS_END),
                Err(Error::Corrupt { .. }) => None,
                Err(error) => return Err(error),
            };
            let sound = match &meta {
                Some(meta) => self.is_sound(meta)?,
                None => false,
            };
            if sound {
                self.report.tables_sound += 1;
                tables.extend(meta);
            } else {
                tables.extend(self.salvage(id, meta.as_ref())?);
            }
        }
        let mut anything = Version::empty(self.config.max_levels);
        let segments = self.layout.list(&*self.env.fs, FileKind::Wal)?;
        anything.log_floor = segments.iter().filter_map(|file| file.id).min().unwrap_or_default();
        anything.last_seq = SeqNo::MAX;
        let log = self.replay(&anything)?.0;
        if self.report.log.is_none() {
            self.report.log = self.unread_log();
        }
        if self.mode == Mode::Look {
            return Ok(None);
        }
        let in_tables = tables.iter().map(|table| table.max_seq).max().unwrap_or_default();
        let mut empty = Version::empty(self.config.max_levels);
        empty.last_seq = in_tables.max(log.last_seq);
        let cursor = self.everything(tables, log.memtables);
        let mut next = self.push(&empty, Level(1), cursor)?;
        next.log_floor = self.store.next_file();
        Ok(Some(next))
    }

    /// All entries of tables and memtables, merged.
    fn everything(
        &self,
        mut tables: Vec<Arc<TableMeta>>,
        memtables: Vec<Arc<Memtable>>,
    ) -> impl Cursor + use<> {
        tables.retain(|table| !table.sections.is_empty());
        tables.sort_by_key(|table| first_key(table));
        // As few runs as there are tables above each other: each costs the memory of a cursor.
        let mut runs: Vec<Vec<Arc<TableMeta>>> = Vec::new();
        for table in &tables {
            let free = runs
                .iter_mut()
                .find(|run| run.last().is_some_and(|last| last_key(last) < first_key(table)));
            match free {
                Some(run) => run.push(Arc::clone(table)),
                None => runs.push(vec![Arc::clone(table)]),
            }
        }
        let slice = |table: &Arc<TableMeta>| TableSlice {
            table: table.file,
            range: KeyRange::from(first_key(table)..=last_key(table)),
        };
        let runs = runs.iter().map(|run| Run {
            id: self.store.new_run_id(),
            slices: run.iter().map(slice).collect(),
        });
        let mut version = Version::empty(1);
        let runs: Vec<Run> = runs.collect();
        if let Some(slot) = version.levels.first_mut().and_then(|level| level.slots.first_mut()) {
            Arc::make_mut(slot).runs = runs;
        }
        version.tables = tables.into_iter().map(|table| (table.file, table)).collect();
        let tree = Arc::new(Tree::new(Arc::new(version), None, &self.store));
        let active = Arc::new(Memtable::new(FileId(0), 0));
        let view = View { active, sealed: memtables, tree };
        Patient(view.cursor(&KeyRange::all(), Direction::Forward, None))
    }

    /// Writes what a cursor shows, and puts it into a level as its newest run.
    fn push(&self, version: &Version, level: Level, mut cursor: impl Cursor) -> Result<Version> {
        let below = version.level(level.max(Level(1)));
        let plan = OutputPlan {
            level,
            compression: self.config.compression.last,
            guards: below.into_iter().flat_map(|level| level.guards().cloned()).collect(),
            pace: None,
            tombstones_since_s: 0,
        };
        let mut retain = Retain::new(Vec::new(), self.env.clock.wall_ms(), None);
        let outputs =
            write_tables(&self.store, &mut cursor, &mut retain, plan, &Cancel::default())?;
        let mut ops: Vec<_> = outputs.tables.iter().cloned().map(EditOp::AddTable).collect();
        let highest = outputs.tables.iter().map(|table| table.max_seq).max().unwrap_or_default();
        if !ops.is_empty() {
            let id: RunId = self.store.new_run_id();
            let run = Run { id, slices: outputs.slices(&KeyRange::all()) };
            ops.push(EditOp::PushRun { level, slot: bytes::Bytes::new(), run });
        }
        let edit = VersionEdit {
            ops,
            next_file: self.store.next_file(),
            last_seq: highest,
            log_floor: FileId(0),
        };
        version.apply(&edit).map_err(|misfit| {
            tracing::error!(?misfit, "what was salvaged does not fit");
            Error::Interrupted { component: "repair" }
        })
    }

    /// Writes what can be read of a table into a new one; `None` if that is nothing.
    fn salvage(
        &mut self,
        id: FileId,
        meta: Option<&Arc<TableMeta>>,
    ) -> Result<Option<Arc<TableMeta>>> {
        let path = self.layout.table(id);
        let mut writer = match self.mode {
            Mode::Repair => {
                let level = meta.map_or(Level::L0, |meta| meta.level);
                Some(self.store.create_table(level, self.config.compression.last)?)
            }
            Mode::Look => None,
        };
        let sections = meta.map(|meta| &meta.sections[..]);
        let (entries, lost) = match Salvage::open(&*self.env.fs, &path, id, writer.as_mut()) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let keys = meta.map_or(KeyRange::all(), |meta| {
                    KeyRange::from(first_key(meta)..=last_key(meta))
                });
                let bytes = meta.map_or(0, |meta| meta.file_bytes);
                (0, vec![Lost { offset: 0, bytes, keys }])
            }
            Err(error) => return Err(error),
            Ok(mut salvage) => {
                salvage.run(sections)?;
                (salvage.entries, std::mem::take(&mut salvage.lost))
            }
        };
        self.report.salvaged.push(Salvaged { path, entries, lost });
        match writer.filter(|_| entries > 0) {
            Some(writer) => Ok(Some(Arc::new(writer.finish()?))),
            None => Ok(None),
        }
    }

    /// What is left of a log that is damaged; `None` if it is not.
    fn log_left(&mut self, version: &Version) -> Result<Option<LogLeft>> {
        let world = (&self.env, &self.layout);
        match look_at_log(world, self.config, (version, &mut RecoveryReport::default())) {
            // A log may end in bytes that are no frame; what could not be read may have been some.
            Ok(()) => match self.unread_log() {
                None => return Ok(None),
                unread => self.report.log = unread,
            },
            Err(error @ Error::Corrupt { .. }) => self.report.log = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        self.replay(version).map(|(left, _)| Some(left))
    }

    /// The first piece of the log that could not be read.
    fn unread_log(&self) -> Option<String> {
        let unread = self.fs.unread_of(&self.layout.folder(FileKind::Wal));
        unread.map(|unread| unread.to_string())
    }

    /// Replays what holds of the log, up to the first damage.
    fn replay(&mut self, version: &Version) -> Result<(LogLeft, RecoveryReport)> {
        let mut ceiling = FileId(u64::MAX);
        loop {
            let mut report = RecoveryReport::default();
            let look = (version, Purpose::Look);
            let mut replay = LogReplay::new(&self.env, &self.layout, self.config, look);
            replay.ceiling = ceiling;
            match replay.replay(&mut report) {
                Ok(_) => {
                    let last = replay.expected.0.saturating_sub(1);
                    let none = replay.expected == SeqNo::MAX;
                    let last_seq = if none { SeqNo(0) } else { SeqNo(last) };
                    self.report.log_operations = report.operations;
                    if let Some(damage) = &report.salvaged {
                        self.report.log.get_or_insert_with(|| damage.clone());
                    }
                    return Ok((LogLeft { memtables: replay.memtables, last_seq }, report));
                }
                Err(Error::Corrupt { path, offset, expected }) => {
                    let name = path.file_name().and_then(|name| name.to_str());
                    let damaged = name.and_then(|name| FileKind::Wal.parse(name));
                    let damage = Error::Corrupt { path, offset, expected };
                    self.report.log.get_or_insert_with(|| damage.to_string());
                    ceiling = damaged.filter(|id| *id < ceiling).ok_or(damage)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts a version in charge, and moves away what it does not name.
    fn install(&mut self, mut version: Version) -> Result<()> {
        let fs: &dyn Fs = &*Arc::clone(&self.env.fs);
        let manifest = self.store.new_id();
        version.next_file = self.store.next_file();
        version.check().map_err(|violation| {
            tracing::error!(%violation, "the repaired version is not consistent");
            Error::Interrupted { component: "repair" }
        })?;
        let dir = self.unused_dir();
        fs.create_dir(&dir).at("create directory", &dir)?;
        fs.sync_dir(self.layout.dir()).at("sync directory", self.layout.dir())?;
        let current = self.layout.current();
        if self.report.manifest.is_some() && fs.open(&current).is_ok() {
            let copy = dir.join("CURRENT");
            fs.hard_link(&current, &copy).at("link", &copy)?;
            fs.sync_dir(&dir).at("sync directory", &dir)?;
            self.report.moved.push(current);
        }
        self.layout.create(fs)?;
        drop(ManifestLog::create(fs, &self.layout, manifest, &version)?);
        for kind in FileKind::ALL {
            for file in self.layout.list(fs, kind)? {
                let named = |id: FileId| match kind {
                    FileKind::Manifest => id == manifest,
                    FileKind::Wal | FileKind::Doubt => id >= version.log_floor,
                    FileKind::Table => version.tables.contains_key(&id),
                };
                if !file.temporary && file.id.is_some_and(|id| !named(id)) {
                    self.move_away(&file.path, &dir)?;
                }
            }
            let folder = self.layout.folder(kind);
            fs.sync_dir(&folder).at("sync directory", &folder)?;
        }
        fs.sync_dir(&dir).at("sync directory", &dir)?;
        self.report.moved_to = Some(dir);
        Ok(())
    }

    fn move_away(&mut self, path: &Path, dir: &Path) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        self.env.fs.rename(path, &dir.join(name)).at("rename", path)?;
        self.report.moved.push(path.to_owned());
        Ok(())
    }

    /// The first `repaired-<n>` that does not exist.
    fn unused_dir(&self) -> PathBuf {
        let mut n = 1_u64;
        loop {
            let dir = self.layout.dir().join(format!("repaired-{n}"));
            if self.env.fs.list(&dir).is_err() {
                return dir;
            }
            n += 1;
        }
    }
}

fn first_key(table: &TableMeta) -> bytes::Bytes {
    table.sections.first().map(|section| section.min_key.clone()).unwrap_or_default()
}

fn last_key(table: &TableMeta) -> bytes::Bytes {
    table.sections.last().map(|section| section.max_key.clone()).unwrap_or_default()
}

/// A cursor that waits for the disk where the one inside would be stopped.
struct Patient<C>(C);

impl<C: Cursor> Patient<C> {
    fn insist<T>(&mut self, mut step: impl FnMut(&mut C) -> Result<T, Stop>) -> Result<T, Stop> {
        loop {
            match step(&mut self.0) {
                Err(Stop::Blocked(read)) => read()?,
                done => return done,
            }
        }
    }
}

impl<C: Cursor> Cursor for Patient<C> {
    fn rewind(&mut self) -> Result<(), Stop> {
        self.insist(C::rewind)
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), Stop> {
        self.insist(|cursor| cursor.seek(key))
    }

    fn advance(&mut self) -> Result<bool, Stop> {
        self.insist(C::advance)
    }

    fn entry(&self) -> Option<EntryRef<'_>> {
        self.0.entry()
    }

    fn value(&self) -> bytes::Bytes {
        self.0.value()
    }
}
