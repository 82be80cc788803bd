//! A copy of a database that costs no space: hard links to the tables of one version, and a manifest that names them.

use std::io;
use std::path::Path;

use crate::env::Fs;
use crate::error::{Error, IoContext, Result};
use crate::jobs::recover::take_lock;
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
/// [`Error::Locked`] if somebody else is at work there; [`Error::Io`], also if `to` holds files already. What was written so far is
/// removed again, but for the folders and `LOCK`, as far as the disk lets us.
pub(crate) fn write_checkpoint(store: &Store, version: &Version, to: &Layout) -> Result<()> {
    let fs = &*store.env().fs;
    to.create(fs)?;
    // Nobody else may write there, or open what is not whole.
    let _lock = take_lock(store.env(), to)?;
    let beside = fs.list(to.dir()).at("list", to.dir())?.into_iter();
    let beside = beside.map(|(name, _)| to.dir().join(name)).filter(|path| *path != to.lock());
    if let Some(path) = parts(fs, to)?.into_iter().map(|part| part.path).chain(beside).next() {
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(Error::io("write a checkpoint over", &path, exists));
    }
    fill(store, version, to).inspect_err(|_| empty(fs, to))
}

fn fill(store: &Store, version: &Version, to: &Layout) -> Result<()> {
    let fs = &*store.env().fs;
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

/// Files in the folders of a database.
fn parts(fs: &dyn Fs, to: &Layout) -> Result<Vec<Found>> {
    let found: Result<Vec<_>> = FileKind::ALL.into_iter().map(|kind| to.list(fs, kind)).collect();
    Ok(found?.into_iter().flatten().collect())
}

/// Removes what a checkpoint that failed has left, so that another one finds the place empty. REQUIRES: it was empty, and is locked.
fn empty(fs: &dyn Fs, to: &Layout) {
    let current = to.current();
    let remove = |path: &Path| match fs.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let removed = remove(&Layout::temporary(&current))
        .and_then(|()| remove(&current))
        // First that, on the disk too: without it the rest is no database.
        .and_then(|()| fs.sync_dir(to.dir()))
        .at("empty", to.dir())
        .and_then(|()| parts(fs, to))
        .and_then(|parts| {
            let mut paths = parts.iter().map(|part| &part.path);
            paths.try_for_each(|path| remove(path).at("remove", path))
        });
    if let Err(error) = removed {
        tracing::warn!(%error, "a part of a failed checkpoint stays");
    }
}
