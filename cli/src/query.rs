//! Questions to a database: `get`, `put`, `delete`, `scan` and `stats`.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;

use nori_lsm::{ATLLConfig, KeyRange, LsmEngine};

use crate::Outcome;
use crate::args::{Get, Put, Scan, Stats, key_bytes};
use crate::failure::Failure;
use crate::table;

/// Entries that a scan takes at a time.
const CHUNK: usize = 256;

/// `nori get`: the value as it is; a line break follows only on a terminal.
pub(crate) async fn get(args: Get) -> Result<Outcome, Failure> {
    let key = key_bytes(args.key, args.hex)?;
    let engine = open_existing(&args.dir).await?;
    let value = engine.get(&key).await?;
    engine.shutdown().await?;
    let Some(value) = value else { return Ok(Outcome::Missing) };
    let mut out = io::stdout().lock();
    let end: &[u8] = if out.is_terminal() { b"\n" } else { b"" };
    printed(out.write_all(&value).and_then(|()| out.write_all(end)).and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}

/// `nori put`.
pub(crate) async fn put(args: Put) -> Result<Outcome, Failure> {
    let key = key_bytes(args.key, args.hex)?;
    let engine = LsmEngine::open(config(&args.dir)).await?;
    let put = engine.put(key, args.value.into_encoded_bytes()).await;
    engine.shutdown().await?;
    put?;
    Ok(Outcome::Done)
}

/// `nori delete`.
pub(crate) async fn delete(args: Get) -> Result<Outcome, Failure> {
    let key = key_bytes(args.key, args.hex)?;
    let engine = open_existing(&args.dir).await?;
    let deleted = engine.delete(&key).await;
    engine.shutdown().await?;
    deleted?;
    Ok(Outcome::Done)
}

/// `nori scan`. A reader that has seen enough ends it: that is no error.
pub(crate) async fn scan(args: Scan) -> Result<Outcome, Failure> {
    let bound = |key: Option<_>| key.map(|key| key_bytes(key, args.hex)).transpose();
    let (from, to, prefix) = (bound(args.from)?, bound(args.to)?, bound(args.prefix)?);
    let engine = open_existing(&args.dir).await?;
    let mut scan = engine.scan(KeyRange::new(from.unwrap_or_default(), to));
    if let Some(prefix) = prefix {
        scan = scan.prefix(prefix);
    }
    if args.reverse {
        scan = scan.rev();
    }
    let mut scan = scan.limit(args.limit.unwrap_or(usize::MAX));
    let mut out = BufWriter::with_capacity(256 << 10, io::stdout());
    let shape = Shape { hex: args.hex, values: !args.keys_only };
    let mut open = true;
    while open {
        let entries = scan.next_chunk(CHUNK).await?;
        if entries.is_empty() {
            break;
        }
        let written = entries.iter().try_for_each(|(key, value)| shape.write(&mut out, key, value));
        open = printed(written)?;
    }
    if open {
        printed(out.flush())?;
    } else {
        // What is left in the buffer has nowhere to go.
        drop(out.into_parts());
    }
    drop(scan);
    engine.shutdown().await?;
    Ok(Outcome::Done)
}

/// `nori stats`.
pub(crate) async fn stats(args: Stats) -> Result<Outcome, Failure> {
    let engine = open_existing(&args.dir).await?;
    let (stats, recovery) = (engine.stats(), engine.recovery().clone());
    engine.shutdown().await?;
    let text = if args.json {
        let both = serde_json::json!({ "stats": stats, "recovery": recovery });
        format!("{both:#}")
    } else {
        format!("{recovery}\n\n{stats}\n\n{}", table::levels(&stats))
    };
    printed(writeln!(io::stdout(), "{text}"))?;
    Ok(Outcome::Done)
}

/// The configuration of a command: defaults, in `dir`.
pub(crate) fn config(dir: &Path) -> ATLLConfig {
    ATLLConfig { data_dir: dir.to_owned(), ..ATLLConfig::default() }
}

/// How an entry is printed.
#[derive(Clone, Copy)]
struct Shape {
    hex: bool,
    values: bool,
}

impl Shape {
    fn write(self, out: &mut impl Write, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.hex {
            key.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
        } else {
            out.write_all(key)?;
        }
        if self.values {
            out.write_all(b"\t")?;
            out.write_all(value)?;
        }
        out.write_all(b"\n")
    }
}

/// A question must not make the database that it asks.
async fn open_existing(dir: &Path) -> Result<LsmEngine, Failure> {
    if !dir.join("CURRENT").exists() {
        return Err(Failure::Usage(format!("{}: there is no database", dir.display())));
    }
    Ok(LsmEngine::open(config(dir)).await?)
}

/// Whether the reader of standard output is still there.
pub(crate) fn printed(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(Failure::Io { what: "write to standard output".into(), source }),
    }
}
