//! Whether a database is as it was written: all of it is read and checked, and not a byte is changed.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::config::ATLLConfig;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::jobs::recover::{RecoveryReport, look_at_log, missed_record, take_lock};
use crate::storage::layout::{FileKind, Layout};
use crate::storage::manifest::read_current;
use crate::storage::table::read_table_meta;
use crate::storage::table_check::Damaged;
use crate::storage::{Checked, TableCheck};
use crate::version::TableMeta;

/// What a check of a database found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Tables that were looked at.
    pub tables: u64,
    /// Data blocks that hold.
    pub blocks: u64,
    /// Entries of those blocks, deletions and older versions included.
    pub entries: u64,
    /// Bytes that were read of tables.
    pub bytes: u64,
    /// Operations in the log that are not in tables yet; counted by the function [`verify`](crate::verify) only.
    pub log_operations: u64,
    /// Everything that is not as it was written, in no order.
    pub damaged: Vec<Damaged>,
}

impl VerifyReport {
    /// Whether everything is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty()
    }

    pub(crate) fn add(&mut self, checked: &Checked) {
        self.tables += 1;
        self.blocks += checked.blocks;
        self.entries += checked.entries;
        self.bytes += checked.bytes;
        self.damaged.extend_from_slice(&checked.damaged);
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tables, blocks, entries, bytes, log_operations, damaged } = self;
        write!(f, "{tables} tables, {blocks} blocks, {entries} entries, {bytes} bytes")?;
        write!(f, ", {log_operations} operations in the log: ")?;
        if damaged.is_empty() {
            return write!(f, "sound");
        }
        write!(f, "{} damaged", damaged.len())?;
        damaged.iter().try_for_each(|damaged| write!(f, "\n  {damaged}"))
    }
}

/// Checks the database in [`ATLLConfig::data_dir`] that no engine has open: manifest, log and every table. Changes no byte of it;
/// a file `LOCK` comes to be if there is none.
///
/// Cost: reads everything once, and holds the log in memory.
///
/// # Errors
/// [`Error::Locked`]; [`Error::Io`], also if there is no database; [`Error::Unsupported`]. Damage is no error: it stands in the report.
pub async fn verify(config: &ATLLConfig, env: &Env) -> Result<VerifyReport> {
    config.validate()?;
    let (world, config) = (env.clone(), config.clone());
    env.on_disk(move || look(&world, &config)).await
}

fn look(env: &Env, config: &ATLLConfig) -> Result<VerifyReport> {
    let layout = Layout::new(&config.data_dir);
    exists(env, &layout)?;
    let _lock = take_lock(env, &layout)?;
    let mut report = VerifyReport::default();
    let version = match read_current(&*env.fs, &layout, config.max_levels) {
        Ok(Some((_, version, manifest))) => {
            match missed_record(env, config, (&version, &manifest))? {
                None => Some(version),
                Some(error) => {
                    report.damaged.push(Damaged::of(error)?);
                    None
                }
            }
        }
        Ok(None) => return Err(no_database(&layout)),
        Err(error) => {
            report.damaged.push(Damaged::of(error)?);
            None
        }
    };
    match version {
        Some(version) => {
            for meta in version.tables.values() {
                report.add(&check_table(env, &layout, meta)?);
            }
            let mut replayed = RecoveryReport::default();
            let looked = look_at_log((env, &layout), config, (&version, &mut replayed));
            report.log_operations = replayed.operations;
            if let Err(error) = looked {
                report.damaged.push(Damaged::of(error)?);
            }
        }
        None => look_at_files(env, &layout, &mut report)?,
    }
    Ok(report)
}

/// An error unless the directory is there: a lock would create what it locks.
pub(crate) fn exists(env: &Env, layout: &Layout) -> Result<()> {
    match env.fs.list(layout.dir()) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::io("list", layout.dir(), error)),
    }
}

pub(crate) fn no_database(layout: &Layout) -> Error {
    Error::io("open a database in", layout.dir(), std::io::ErrorKind::NotFound.into())
}

/// Reads all of a table.
pub(crate) fn check_table(env: &Env, layout: &Layout, meta: &Arc<TableMeta>) -> Result<Checked> {
    let mut check = TableCheck::new(&env.fs, &layout.table(meta.file), meta);
    while check.step()? {}
    Ok(check.done().clone())
}

/// Without a manifest each table is checked by what it says of itself.
fn look_at_files(env: &Env, layout: &Layout, report: &mut VerifyReport) -> Result<()> {
    for file in layout.list(&*env.fs, FileKind::Table)? {
        if file.temporary || file.id.is_none() {
            continue;
        }
        match read_table_meta(&*env.fs, &file.path) {
            Ok(meta) => report.add(&check_table(env, layout, &Arc::new(meta))?),
            Err(error) => report.damaged.push(Damaged::of(error)?),
        }
    }
    Ok(())
}
