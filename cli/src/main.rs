//! The `nori` command: loads files into a database, queries it, and measures how fast it is.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command does")]
#![expect(clippy::disallowed_methods, reason = "a command reads the clock and files of its own")]

mod args;
mod bench;
mod failure;
mod load;
mod query;
mod records;
mod table;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Failure;

/// What a command that did not fail has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The key is not there.
    Missing,
    /// Something is not as it was written.
    Damaged,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Missing | Outcome::Damaged) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("nori: {failure}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<Outcome, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Command::Load(args::Load { threads: Some(threads), .. }) = &command {
        builder.worker_threads((*threads).into());
    }
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|source| Failure::Io { what: "start the runtime".into(), source })?;
    runtime.block_on(async {
        match command {
            Command::Load(load) => load::load(load).await,
            Command::Get(get) => query::get(get).await,
            Command::Put(put) => query::put(put).await,
            Command::Delete(delete) => query::delete(delete).await,
            Command::Scan(scan) => query::scan(scan).await,
            Command::Stats(stats) => query::stats(stats).await,
            Command::Verify(verify) => upkeep::verify(verify).await,
            Command::Repair(repair) => upkeep::repair(repair).await,
            Command::Bench(bench) => bench::bench(bench).await,
        }
    })
}
