//! A copy of a database that costs no space: hard links to the tables of one version, and a manifest that names them.

use std::io;

use crate::error::{Error, IoContext, Result};
use crate::storage::layout::{FileKind, Found, Layout};
use crate::storage::manifest::ManifestLog;
use crate::storage::store::Store;
use crate::types::FileId;
use crate::version::Version;

/// Makes `to` a database that holds `version`. Blocks. CURRENT comes last: before it, `to` is no database.
///
/// REQUIRES: the tables of `version` are pinned.
///
/// # Errors
/// [`Error::Io`], also if `to` holds files already; what was linked so far is left there.
pub(crate) fn write_checkpoint(store: &Store, version: &Version, to: &Layout) -> Result<()> {
    let fs = &*store.env().fs;
    to.create(fs)?;
    let there: Vec<Vec<Found>> =
        FileKind::ALL.into_iter().map(|kind| to.list(fs, kind)).collect::<Result<_>>()?;
    if let Some(file) = there.into_iter().flatten().next() {
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(Error::io("write a checkpoint over", &file.path, exists));
    }
    for id in version.live_tables() {
        let link = to.table(id);
        fs.hard_link(&store.layout().table(id), &link).at("link", &link)?;
    }
    let tables = to.folder(FileKind::Table);
    fs.sync_dir(&tables).at("sync directory", &tables)?;
    let mut version = version.clone();
    let manifest = version.next_file.max(store.next_file());
    version.next_file = FileId(manifest.0 + 1);
    version.log_floor = version.next_file; // it has no log
    ManifestLog::create(fs, to, manifest, &version).map(drop)
}
