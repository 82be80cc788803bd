//! The directory of a database: which file lies where, and which number a name carries.
//!
//! ```text
//! LOCK  CURRENT  manifest/MANIFEST-000007  wal/000012.{wal,doubt}  sst/000345.sst      names that end in .tmp were never finished
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::env::Fs;
use crate::error::{Error, IoContext, Result};
use crate::types::{FileId, NUMBERS_END};

/// Suffix of a file that is still being written.
pub(crate) const TEMP: &str = ".tmp";

/// Kind of a numbered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Manifest,
    Wal,
    /// An empty file: a sync of the log segment of that number failed, and nothing says what of it is on disk.
    Doubt,
    Table,
}

impl FileKind {
    pub(crate) const ALL: [Self; 4] = [Self::Manifest, Self::Wal, Self::Doubt, Self::Table];

    const fn folder(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Wal | Self::Doubt => "wal",
            Self::Table => "sst",
        }
    }

    /// Name of the file of that number, without its folder.
    pub(crate) fn name(self, id: FileId) -> String {
        match self {
            Self::Manifest => format!("MANIFEST-{id}"),
            Self::Wal => format!("{id}.wal"),
            Self::Doubt => format!("{id}.doubt"),
            Self::Table => format!("{id}.sst"),
        }
    }

    /// Number that a name carries; only names as [`name`](Self::name) writes them have one.
    pub(crate) fn parse(self, name: &str) -> Option<FileId> {
        let digits = match self {
            Self::Manifest => name.strip_prefix("MANIFEST-")?,
            Self::Wal => name.strip_suffix(".wal")?,
            Self::Doubt => name.strip_suffix(".doubt")?,
            Self::Table => name.strip_suffix(".sst")?,
        };
        let id = FileId(digits.parse().ok()?);
        (self.name(id) == name).then_some(id)
    }
}

/// A file found in one of the folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: FileKind,
    /// Number of the file, also of a temporary one; `None` if the name is not one of ours.
    pub(crate) id: Option<FileId>,
    /// Whether it was never finished.
    pub(crate) temporary: bool,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Paths of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The database in `dir`.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("LOCK")
    }

    pub(crate) fn current(&self) -> PathBuf {
        self.dir.join("CURRENT")
    }

    pub(crate) fn folder(&self, kind: FileKind) -> PathBuf {
        self.dir.join(kind.folder())
    }

    pub(crate) fn file(&self, kind: FileKind, id: FileId) -> PathBuf {
        self.folder(kind).join(kind.name(id))
    }

    pub(crate) fn manifest(&self, id: FileId) -> PathBuf {
        self.file(FileKind::Manifest, id)
    }

    pub(crate) fn wal(&self, id: FileId) -> PathBuf {
        self.file(FileKind::Wal, id)
    }

    pub(crate) fn doubt(&self, id: FileId) -> PathBuf {
        self.file(FileKind::Doubt, id)
    }

    pub(crate) fn table(&self, id: FileId) -> PathBuf {
        self.file(FileKind::Table, id)
    }

    /// Number of the table that lies at `path`.
    pub(crate) fn table_id(&self, path: &Path) -> Option<FileId> {
        let id = FileKind::Table.parse(path.file_name()?.to_str()?)?;
        (self.table(id) == path).then_some(id)
    }

    /// Where a file is written before it gets its name.
    pub(crate) fn temporary(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(TEMP);
        name.into()
    }

    /// Creates the folders, and makes their names durable.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(&self, fs: &dyn Fs) -> Result<()> {
        for kind in FileKind::ALL {
            let folder = self.folder(kind);
            fs.create_dir(&folder).at("create directory", &folder)?;
        }
        fs.sync_dir(&self.dir).at("sync directory", &self.dir)?;
        // Any of those above may have been created just now.
        for above in self.dir.ancestors().skip(1) {
            match fs.sync_dir(above) {
                // What may not be read was there before.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                synced => synced.at("sync directory", above)?,
            }
        }
        Ok(())
    }

    /// Every file in the folder of a kind, sorted by name; none if the folder does not exist.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn list(&self, fs: &dyn Fs, kind: FileKind) -> Result<Vec<Found>> {
        let folder = self.folder(kind);
        let names = match fs.list(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.at("list", &folder)?,
        };
        let found = |(name, bytes): (String, u64)| {
            let stem = name.strip_suffix(TEMP);
            let id = kind.parse(stem.unwrap_or(&name));
            Found { kind, id, temporary: stem.is_some(), path: folder.join(&name), bytes }
        };
        Ok(names.into_iter().map(found).collect())
    }

    /// A number above that of every file there is, finished or not.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a number could not have been handed out; those of the file system.
    pub(crate) fn unused_id(&self, fs: &dyn Fs) -> Result<FileId> {
        let mut next = FileId(1);
        for kind in FileKind::ALL {
            for found in self.list(fs, kind)? {
                let Some(id) = found.id else { continue };
                if id.0 >= NUMBERS_END {
                    return Err(Error::corrupt(&found.path, 0, "a file with a possible number"));
                }
                next = next.max(FileId(id.0 + 1));
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsFs;

    #[test]
    fn names_are_those_of_the_format() {
        let layout = Layout::new("db");
        assert_eq!(layout.manifest(FileId(7)), Path::new("db/manifest/MANIFEST-000007"));
        assert_eq!(layout.wal(FileId(12)), Path::new("db/wal/000012.wal"));
        assert_eq!(layout.table(FileId(1_234_567)), Path::new("db/sst/1234567.sst"));
        assert_eq!(layout.table_id(Path::new("db/sst/000345.sst")), Some(FileId(345)));
        assert_eq!(layout.table_id(Path::new("other/sst/000345.sst")), None);
        assert_eq!(Layout::temporary(&layout.current()), Path::new("db/CURRENT.tmp"));
    }

    #[test]
    fn only_names_that_we_write_have_a_number() {
        for kind in FileKind::ALL {
            for id in [0, 7, 999_999, 1_000_000, u64::MAX] {
                assert_eq!(kind.parse(&kind.name(FileId(id))), Some(FileId(id)));
            }
        }
        for name in ["7.sst", "+00007.sst", "000007.SST", "0000007.sst", "000007.sst.bak", ".sst"] {
            assert_eq!(FileKind::Table.parse(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_in_use_include_unfinished_files() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("db"));
        assert_eq!(layout.unused_id(&OsFs).unwrap(), FileId(1), "no directory, no numbers");
        layout.create(&OsFs).unwrap();
        OsFs.create(&layout.wal(FileId(3))).unwrap();
        OsFs.create(&Layout::temporary(&layout.table(FileId(8)))).unwrap();
        OsFs.create(&layout.folder(FileKind::Table).join("notes.txt")).unwrap();
        assert_eq!(layout.unused_id(&OsFs).unwrap(), FileId(9));
        let last = layout.wal(FileId(u64::MAX));
        OsFs.create(&last).unwrap();
        let refused = layout.unused_id(&OsFs);
        assert!(matches!(refused, Err(Error::Corrupt { path, .. }) if path == last));
        let tables = layout.list(&OsFs, FileKind::Table).unwrap();
        let seen: Vec<_> = tables.iter().map(|found| (found.id, found.temporary)).collect();
        assert_eq!(seen, [(Some(FileId(8)), true), (None, false)]);
    }
}
