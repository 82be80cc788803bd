//! Engines side by side: the same keys, values, durability and memory for each, every run in a process of its own.
//!
//! ```text
//! compare, cost ─▶ rounds ─▶ child: prepare | run | victim ─▶ Engine ─▶ Store
//!       └─▶ report: rows.jsonl, report.md, *.svg
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command does")]

mod args;
mod bench;
mod chart;
mod child;
mod engines;
mod growth;
mod report;
mod row;
mod table;

use std::process::ExitCode;

use clap::Parser;
use nori_workload::Result;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("nori-peers: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        None => report::compare(&cli.compare),
        Some(Command::Cost(growth)) => growth::measure(&growth),
        Some(Command::Report { out }) => report::again(&out),
        Some(Command::Prepare(job)) => child::prepare(&job),
        Some(Command::Run(job)) => child::run(&job),
        Some(Command::Victim(job)) => child::victim(&job),
    }
}
