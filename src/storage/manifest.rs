//! The manifest file: the log of version edits, and `CURRENT`, which names the one that counts.
//!
//! A new file is written under a temporary name, synced and renamed, and only then named by `CURRENT` in the same way;
//! a crash at any point leaves the old one or the new one in charge. A file found at open is never appended to.
//!
//! Format: docs/format.md#manifest

use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::{FileKind, Found, Layout};
use crate::env::{Fs, WriteFile};
use crate::error::{Error, IoContext, Result};
use crate::format::manifest::{self as format, Edits};
use crate::types::{FileId, NUMBERS_END, u64_of, usize_of};
use crate::version::{Version, VersionEdit};

/// Size up to which a log is never rolled.
const MIN_ROLL_BYTES: u64 = 1 << 20;
/// Levels that every stored edit fits into; an edit does not say how many there were.
const MOST_LEVELS: usize = 16;

/// The manifest that is being written.
#[derive(Debug)]
pub(crate) struct ManifestLog {
    id: FileId,
    path: PathBuf,
    file: Arc<dyn WriteFile>,
    snapshot_bytes: u64,
}

/// What was found when a manifest was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestReport {
    pub(crate) path: PathBuf,
    /// Edits that were read, the snapshot included.
    pub(crate) edits: u64,
    /// Offset behind the last whole record.
    pub(crate) end: u64,
    /// Bytes behind that: what a crash left of one that was never acknowledged.
    pub(crate) torn_bytes: u64,
}

impl ManifestLog {
    /// Writes a new manifest that begins with a snapshot of `version`, and puts it in charge.
    ///
    /// `id`: a number that no file has had; the snapshot's next file number is raised above it.
    ///
    /// # Errors
    /// Those of the file system. If the last step failed, which manifest is in charge is known only to the next open;
    /// both say the same.
    pub(crate) fn create(
        fs: &dyn Fs,
        layout: &Layout,
        id: FileId,
        version: &Version,
    ) -> Result<Self> {
        let path = layout.manifest(id);
        let mut snapshot = version.snapshot_edit();
        snapshot.next_file = snapshot.next_file.max(FileId(id.0.saturating_add(1)));
        let record = format::encode_record(id, &snapshot).map_err(|damage| damage.of(&path, 0))?;
        let parts = [&format::encode_header(id)[..], &record];
        let file = write_whole(fs, &path, &parts)?;
        write_whole(fs, &layout.current(), &[current_line(id).as_bytes()])?;
        Ok(Self { id, path, snapshot_bytes: file.len(), file })
    }

    /// Number of the file.
    pub(crate) const fn id(&self) -> FileId {
        self.id
    }

    /// Makes an edit durable.
    ///
    /// # Errors
    /// Those of the file system, and for ever after: whether the edit is on disk is then unknown; go on with a new
    /// manifest, whose snapshot decides it.
    pub(crate) fn append(&mut self, edit: &VersionEdit) -> Result<()> {
        let record =
            format::encode_record(self.id, edit).map_err(|damage| damage.of(&self.path, 0))?;
        self.file.append(&[IoSlice::new(&record)]).at("append to", &self.path)?;
        self.file.sync().at("sync", &self.path)
    }

    /// Whether the log has outgrown its snapshot so far that a new file is cheaper to replay.
    pub(crate) fn wants_roll(&self) -> bool {
        self.file.len() > MIN_ROLL_BYTES.max(self.snapshot_bytes.saturating_mul(4))
    }
}

/// Reads the manifest that `CURRENT` names: its number, and the version that its edits build.
///
/// `max_levels`: the version gets so many levels, or more if data lies deeper.
/// `None` if there is no database yet: no `CURRENT`, no log, no table, and no manifest that names one. What a crash
/// inside the very first open leaves behind counts as none.
///
/// # Errors
/// [`Error::Corrupt`] if anything but the tail of the log is damaged, or if there are files that no `CURRENT` explains.
pub(crate) fn read_current(
    fs: &dyn Fs,
    layout: &Layout,
    max_levels: usize,
) -> Result<Option<(FileId, Version, ManifestReport)>> {
    let path = layout.current();
    let Some(bytes) = read_whole(fs, &path)? else {
        return if holds_data(fs, layout)? {
            Err(Error::corrupt(&path, 0, "the name of a manifest"))
        } else {
            Ok(None)
        };
    };
    let id = parse_current(&bytes)
        .ok_or_else(|| Error::corrupt(&path, 0, "the name and checksum of a manifest"))?;
    let manifest = layout.manifest(id);
    let (version, report) = read_manifest(fs, &manifest, id)?;
    Ok(Some((id, version.resized(max_levels), report)))
}

/// Number of the manifest that `CURRENT` names, whether or not it is there; `None` if `CURRENT` cannot be read.
///
/// # Errors
/// Those of the file system.
pub(crate) fn named_by_current(fs: &dyn Fs, layout: &Layout) -> Result<Option<FileId>> {
    Ok(read_whole(fs, &layout.current())?.and_then(|bytes| parse_current(&bytes)))
}

/// Reads a manifest, whether or not it is in charge.
///
/// # Errors
/// As for [`read_current`].
pub(crate) fn read_manifest(
    fs: &dyn Fs,
    path: &Path,
    id: FileId,
) -> Result<(Version, ManifestReport)> {
    let corrupt = |expected| Error::corrupt(path, 0, expected);
    let bytes = read_whole(fs, path)?.ok_or_else(|| corrupt("the manifest that CURRENT names"))?;
    let header = format::decode_header(&bytes).map_err(|damage| damage.of(path, 0))?;
    if header.format != format::FORMAT {
        return Err(Error::Unsupported { path: path.to_owned(), what: "manifest format" });
    }
    if header.id != id {
        return Err(corrupt("a header with the number of the file"));
    }
    let mut version = Version::empty(MOST_LEVELS);
    let mut edits = Edits::new(id, &bytes);
    let mut count = 0;
    for edit in edits.by_ref() {
        let edit = edit.map_err(|damage| damage.of(path, 0))?;
        let misfit = |_| corrupt("edits that follow from each other");
        version = version.apply(&edit).map_err(misfit)?;
        count += 1;
    }
    if version.next_file.0.max(version.last_seq.0) >= NUMBERS_END {
        return Err(corrupt("numbers that can be counted on from"));
    }
    version.check().map_err(|violation| {
        tracing::error!(%violation, manifest = %path.display(), "the version makes no sense");
        corrupt("edits that build a consistent version")
    })?;
    let torn_bytes = edits.torn_bytes();
    let end = u64_of(bytes.len()).saturating_sub(torn_bytes);
    Ok((version, ManifestReport { path: path.to_owned(), edits: count, end, torn_bytes }))
}

/// Whether a directory without `CURRENT` holds anything that somebody could miss.
fn holds_data(fs: &dyn Fs, layout: &Layout) -> Result<bool> {
    let finished = |kind| {
        let found = layout.list(fs, kind)?;
        Ok(found.into_iter().filter(|file| !file.temporary).collect::<Vec<Found>>())
    };
    if !finished(FileKind::Wal)?.is_empty() || !finished(FileKind::Table)?.is_empty() {
        return Ok(true);
    }
    for file in finished(FileKind::Manifest)? {
        let Some(id) = file.id else { return Ok(true) };
        match read_manifest(fs, &file.path, id) {
            Ok((version, _)) if version.tables.is_empty() => {}
            Ok(_) | Err(_) => return Ok(true),
        }
    }
    Ok(false)
}

/// Content of `CURRENT`: the name of the manifest and the CRC32C of the name.
fn current_line(id: FileId) -> String {
    let name = FileKind::Manifest.name(id);
    let crc = crc32c::crc32c(name.as_bytes());
    format!("{name} {crc:08x}\n")
}

fn parse_current(bytes: &[u8]) -> Option<FileId> {
    let line = std::str::from_utf8(bytes).ok()?;
    let (name, _) = line.split_once(' ')?;
    let id = FileKind::Manifest.parse(name)?;
    (current_line(id) == line).then_some(id)
}

/// Writes a file under a temporary name, syncs it, and gives it its name for good.
fn write_whole(fs: &dyn Fs, path: &Path, parts: &[&[u8]]) -> Result<Arc<dyn WriteFile>> {
    let temporary = Layout::temporary(path);
    match fs.remove(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("remove", &temporary, error));
        }
        Ok(()) | Err(_) => {}
    }
    let file = fs.create(&temporary).at("create", &temporary)?;
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    file.append(&slices).at("write", &temporary)?;
    file.sync().at("sync", &temporary)?;
    fs.rename(&temporary, path).at("rename to", path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs.sync_dir(folder).at("sync directory", folder)?;
    Ok(file)
}

/// The bytes of a small file; `None` if there is none.
fn read_whole(fs: &dyn Fs, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match fs.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.at("open", path)?,
    };
    let len = usize_of(file.size().at("read size of", path)?);
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).at("read", path)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsFs;
    use crate::types::SeqNo;

    struct Place {
        _dir: tempfile::TempDir,
        layout: Layout,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create(&OsFs).unwrap();
        Place { _dir: dir, layout }
    }

    fn seen(n: u64) -> VersionEdit {
        VersionEdit { last_seq: SeqNo(n), ..VersionEdit::default() }
    }

    fn overwrite(path: &Path, bytes: &[u8]) {
        match OsFs.remove(path) {
            Ok(()) | Err(_) => {}
        }
        OsFs.create(path).unwrap().append(&[IoSlice::new(bytes)]).unwrap();
    }

    #[test]
    fn the_line_of_current_is_fixed() {
        assert_eq!(current_line(FileId(7)), "MANIFEST-000007 5872ce62\n");
        for bad in ["", "MANIFEST-000007", "MANIFEST-000007 00000000\n", "MANIFEST-000007 5872ce62"]
        {
            assert_eq!(parse_current(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_manifest_gives_back_what_was_appended() {
        let place = place();
        let mut version = Version::empty(7);
        let mut log = ManifestLog::create(&OsFs, &place.layout, FileId(1), &version).unwrap();
        for n in 1..50 {
            log.append(&seen(n)).unwrap();
            version = version.apply(&seen(n)).unwrap();
        }
        version.next_file = FileId(2);
        let (id, read, report) = read_current(&OsFs, &place.layout, 7).unwrap().unwrap();
        assert_eq!((id, &read), (FileId(1), &version));
        assert_eq!((report.edits, report.torn_bytes), (50, 0));
        let log = ManifestLog::create(&OsFs, &place.layout, FileId(2), &version).unwrap();
        assert!(!log.wants_roll());
        version.next_file = FileId(3);
        let (id, read, _) = read_current(&OsFs, &place.layout, 7).unwrap().unwrap();
        assert_eq!((id, read), (FileId(2), version));
    }

    #[test]
    fn a_torn_tail_is_dropped_and_reported() {
        let place = place();
        let mut log =
            ManifestLog::create(&OsFs, &place.layout, FileId(1), &Version::empty(3)).unwrap();
        log.append(&seen(5)).unwrap();
        log.file.append(&[IoSlice::new(&[40, 0, 0, 0, 1, 2])]).unwrap();
        let (_, version, report) = read_current(&OsFs, &place.layout, 3).unwrap().unwrap();
        assert_eq!((version.last_seq, report.torn_bytes), (SeqNo(5), 6));
    }

    #[test]
    fn files_that_no_current_explains_are_never_a_fresh_database() {
        for kind in [FileKind::Wal, FileKind::Table, FileKind::Manifest] {
            let place = place();
            assert!(read_current(&OsFs, &place.layout, 7).unwrap().is_none());
            overwrite(&Layout::temporary(&place.layout.file(kind, FileId(3))), b"unfinished");
            assert!(read_current(&OsFs, &place.layout, 7).unwrap().is_none());
            overwrite(&place.layout.file(kind, FileId(3)), b"finished");
            let found = read_current(&OsFs, &place.layout, 7);
            assert!(matches!(found, Err(Error::Corrupt { .. })), "{kind:?}: {found:?}");
        }
    }

    #[test]
    fn a_crash_inside_the_first_open_leaves_no_database() {
        let place = place();
        ManifestLog::create(&OsFs, &place.layout, FileId(1), &Version::empty(7)).unwrap();
        OsFs.remove(&place.layout.current()).unwrap();
        assert!(read_current(&OsFs, &place.layout, 7).unwrap().is_none());
    }

    #[test]
    fn a_damaged_current_is_corrupt() {
        let place = place();
        ManifestLog::create(&OsFs, &place.layout, FileId(1), &Version::empty(7)).unwrap();
        let line = current_line(FileId(1)).into_bytes();
        for at in 0..line.len() {
            let mut bytes = line.clone();
            bytes[at] ^= 1;
            overwrite(&place.layout.current(), &bytes);
            let found = read_current(&OsFs, &place.layout, 7);
            assert!(matches!(found, Err(Error::Corrupt { .. })), "byte {at}");
        }
    }

    #[test]
    fn a_newer_format_is_unsupported() {
        let place = place();
        ManifestLog::create(&OsFs, &place.layout, FileId(1), &Version::empty(7)).unwrap();
        let mut header = format::encode_header(FileId(1));
        header[16] = 2;
        let crc = crc32c::crc32c(&header[..20]).to_le_bytes();
        header[20..].copy_from_slice(&crc);
        overwrite(&place.layout.manifest(FileId(1)), &header);
        let found = read_current(&OsFs, &place.layout, 7);
        assert!(matches!(found, Err(Error::Unsupported { .. })), "{found:?}");
    }

    #[test]
    fn a_log_that_outgrew_its_snapshot_wants_a_new_file() {
        let place = place();
        let version = Version::empty(7);
        let mut log = ManifestLog::create(&OsFs, &place.layout, FileId(1), &version).unwrap();
        log.append(&seen(1)).unwrap();
        assert!(!log.wants_roll());
        let filler = vec![0; usize_of(MIN_ROLL_BYTES)];
        log.file.append(&[IoSlice::new(&filler)]).unwrap();
        assert!(log.wants_roll());
    }
}
