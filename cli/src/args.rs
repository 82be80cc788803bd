//! What the command line can say: one struct per subcommand.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use nori_lsm::{Durability, MAX_VALUE_BYTES};

use crate::failure::Failure;

/// Load, query and benchmark nori-lsm databases.
#[derive(Debug, Parser)]
#[command(
    name = "nori",
    version,
    after_help = "Exit codes: 0 done, 1 the key is not there or something is damaged, 2 an error."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put every record of a file into a database.
    Load(Load),
    /// Print the value of a key, byte for byte.
    Get(Get),
    /// Set a key to a value.
    Put(Put),
    /// Delete a key; fine if it is not there.
    Delete(Get),
    /// Print keys and values in key order: key, TAB, value, newline.
    Scan(Scan),
    /// Show what a database holds.
    Stats(Stats),
    /// Read all of a database that nobody has open, and list what is damaged; changes nothing.
    Verify(Verify),
    /// Make a damaged database open again, with all that can be read of it; deletes nothing.
    Repair(Repair),
    /// Measure a mix of reads and writes; every value that is read is verified.
    Bench(Bench),
}

/// Arguments of `nori load`.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The file to read; `-` is standard input.
    pub(crate) file: PathBuf,
    /// Directory of the database; created if need be.
    #[arg(long, default_value = "data")]
    pub(crate) dir: PathBuf,
    /// How the file is written; `auto` goes by the extension.
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub(crate) format: Format,
    /// JSON lines: the field that is the key [default: key]. CSV: the column that is the key, by its name in the first line;
    /// the value is then the whole record.
    #[arg(long, value_name = "FIELD")]
    pub(crate) key: Option<String>,
    /// Records per batch; a batch is applied whole or not at all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// What a batch has survived when it is acknowledged.
    #[arg(long, value_enum, default_value_t = Durable::Os)]
    pub(crate) durability: Durable,
    /// Worker threads of the runtime [default: one per core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Append to this file, after each acknowledged batch, how many records are acknowledged so far.
    #[arg(long, value_name = "FILE")]
    pub(crate) acked: Option<PathBuf>,
}

/// Arguments of `nori get` and `nori delete`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Directory of the database.
    pub(crate) dir: PathBuf,
    /// The key.
    pub(crate) key: OsString,
    /// The key is written in hexadecimal.
    #[arg(long)]
    pub(crate) hex: bool,
}

/// Arguments of `nori put`.
#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Directory of the database; created if need be.
    pub(crate) dir: PathBuf,
    /// The key.
    pub(crate) key: OsString,
    /// The value.
    pub(crate) value: OsString,
    /// The key is written in hexadecimal.
    #[arg(long)]
    pub(crate) hex: bool,
}

/// Arguments of `nori scan`.
#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// Directory of the database.
    pub(crate) dir: PathBuf,
    /// First key.
    #[arg(long, value_name = "KEY")]
    pub(crate) from: Option<OsString>,
    /// Key to stop before.
    #[arg(long, value_name = "KEY")]
    pub(crate) to: Option<OsString>,
    /// Only keys that begin with this.
    #[arg(long, value_name = "KEY")]
    pub(crate) prefix: Option<OsString>,
    /// At most this many entries.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// From the last key to the first.
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Leave out TAB and value.
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Keys are hexadecimal, in the arguments and in the output.
    #[arg(long)]
    pub(crate) hex: bool,
}

/// Arguments of `nori stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Directory of the database.
    pub(crate) dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `nori verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Directory of the database.
    #[arg(long, default_value = "data")]
    pub(crate) dir: PathBuf,
}

/// Arguments of `nori repair`.
#[derive(Debug, Args)]
pub(crate) struct Repair {
    /// Directory of the database.
    #[arg(long, default_value = "data")]
    pub(crate) dir: PathBuf,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Arguments of `nori bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Directory of the database, which must be empty; it stays [default: one below data/bench, removed afterwards].
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Entries that are there before the mixed phase.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) entries: u64,
    /// Bytes of a value; half of them compress well.
    #[arg(long, default_value_t = 400, value_parser = value_size, value_name = "B")]
    pub(crate) value_size: usize,
    /// Share of reads among the operations; the rest are writes.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(..=100), value_name = "PERCENT")]
    pub(crate) reads: u8,
    /// Operations of the mixed phase.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub(crate) ops: u64,
    /// Tasks that run operations at the same time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=4096), value_name = "N")]
    pub(crate) tasks: u16,
    /// How the keys of the mixed phase are drawn.
    #[arg(long, value_enum, default_value_t = Distribution::Zipfian)]
    pub(crate) distribution: Distribution,
    /// What a write has survived when it is acknowledged.
    #[arg(long, value_enum, default_value_t = Durable::Os)]
    pub(crate) durability: Durable,
    /// Seed of keys and operations.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Keep the temporary database.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the results to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Run these instead, each on a database that nothing else writes to: fillrandom, readrandom, scan100, ycsb-a, durable@64,
    /// recover, ...; `all` are all of them, and a name that is none lists them.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        conflicts_with_all = ["entries", "value_size", "reads", "ops", "tasks", "distribution", "durability", "seed"],
    )]
    pub(crate) workload: Vec<String>,
    /// With --workload: 1 is a million keys; keys and operations grow with it.
    #[arg(long, default_value_t = 1.0, value_parser = scale, requires = "workload", value_name = "FACTOR")]
    pub(crate) scale: f64,
    /// Fill the database in this directory and wait to be killed.
    #[arg(long, hide = true)]
    pub(crate) victim: Option<PathBuf>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// By extension: .tsv, .csv, .jsonl or .ndjson; anything else is lines.
    Auto,
    /// A key, a TAB and a value per line; further TABs belong to the value. Empty lines are skipped.
    Tsv,
    /// Two columns, key and value; quotes and line breaks in quotes are understood. With --key, any columns below a header.
    Csv,
    /// A JSON object per line; the value is the whole line. Empty lines are skipped.
    Jsonl,
    /// Any text: the key of a line is its number from 1, padded with zeros to ten digits.
    Lines,
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durable {
    /// The death of the process.
    Os,
    /// Like os; a power cut after 10 ms too.
    Batch,
    /// A power cut.
    Sync,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Distribution {
    /// A few keys get most of the operations: the n-th most popular 1/n^0.99 of them.
    Zipfian,
    /// Every key gets as many.
    Uniform,
}

impl From<Durable> for Durability {
    fn from(durable: Durable) -> Self {
        match durable {
            Durable::Os => Self::Os,
            Durable::Batch => Self::Batch(Duration::from_millis(10)),
            Durable::Sync => Self::Sync,
        }
    }
}

impl From<Distribution> for nori_workload::Distribution {
    fn from(distribution: Distribution) -> Self {
        match distribution {
            Distribution::Zipfian => Self::Zipfian,
            Distribution::Uniform => Self::Uniform,
        }
    }
}

/// The bytes of a key as it was given.
pub(crate) fn key_bytes(key: OsString, hex: bool) -> Result<Bytes, Failure> {
    let given = key.into_encoded_bytes();
    if !hex {
        return Ok(given.into());
    }
    let bad = || Failure::Usage("a hexadecimal key is pairs of the digits 0 to f".into());
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = given.as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    bytes.filter(|_| rest.is_empty()).map(Bytes::from).ok_or_else(bad)
}

fn scale(given: &str) -> Result<f64, String> {
    let scale: f64 = given.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    let fits = scale > 0.0 && scale <= 1000.0;
    fits.then_some(scale).ok_or_else(|| "not above 0 and up to 1000".to_owned())
}

fn value_size(given: &str) -> Result<usize, String> {
    const MIN: usize = 16;
    let size = given.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    let fits = (MIN..=MAX_VALUE_BYTES).contains(&size);
    fits.then_some(size).ok_or_else(|| format!("not within {MIN} and {MAX_VALUE_BYTES}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hexadecimal_keys_are_decoded_or_refused() {
        assert_eq!(key_bytes("00fFa1".into(), true).unwrap(), b"\x00\xff\xa1"[..]);
        assert_eq!(key_bytes("00f".into(), false).unwrap(), b"00f"[..]);
        assert!(key_bytes("00f".into(), true).is_err());
        assert!(key_bytes("zz".into(), true).is_err());
    }
}
