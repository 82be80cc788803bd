//! What the command line can say.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::engines::Engine;

/// Measure nori-lsm and its peers side by side.
#[derive(Debug, Parser)]
#[command(name = "nori-peers", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) compare: Compare,
}

/// What to do instead of a comparison.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure memory, disk and latency against the size of the data.
    Cost(Growth),
    /// Report once more on what a comparison, or several into the same place, have measured so far.
    Report {
        /// Where the rows are.
        #[arg(long, default_value = "data/peers", value_name = "DIR")]
        out: PathBuf,
    },
    /// Fill the database of a workload.
    #[command(hide = true)]
    Prepare(Job),
    /// Run a workload and print what was measured.
    #[command(hide = true)]
    Run(Job),
    /// Fill a database and wait to be killed.
    #[command(hide = true)]
    Victim(Job),
}

/// Arguments of a comparison.
#[derive(Clone, Debug, Args)]
pub(crate) struct Compare {
    /// Engines, ours first [default: all that were built in].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    pub(crate) engines: Vec<Engine>,
    /// Workloads [default: all].
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub(crate) workloads: Vec<String>,
    /// Rounds; the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// 1 is a million keys; keys and operations grow with it.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) scale: f64,
    /// Where rows, report and charts go; the databases live there while it runs.
    #[arg(long, default_value = "data/peers", value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Arguments of `cost`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Growth {
    /// Engines.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "ours",
        value_name = "NAME,..."
    )]
    pub(crate) engines: Vec<Engine>,
    /// Workloads.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "fillrandom,overwrite,readrandom,scan100,reopen",
        value_name = "NAME,..."
    )]
    pub(crate) workloads: Vec<String>,
    /// Sizes, as scales.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16", value_name = "SCALE,...")]
    pub(crate) sizes: Vec<f64>,
    /// Rounds; the medians count.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Where rows, report and charts go; the databases live there while it runs.
    #[arg(long, default_value = "data/peers-cost", value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// What a child process does.
#[derive(Clone, Debug, Args)]
pub(crate) struct Job {
    /// The engine.
    #[arg(long, value_enum)]
    pub(crate) engine: Engine,
    /// The workload.
    #[arg(long)]
    pub(crate) workload: String,
    /// Its scale.
    #[arg(long)]
    pub(crate) scale: f64,
    /// Directory of the database.
    #[arg(long)]
    pub(crate) dir: PathBuf,
}

impl Job {
    /// How to start a child that does this.
    pub(crate) fn command(&self, what: &str) -> std::io::Result<std::process::Command> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args([what, "--engine", &self.engine.name(), "--workload", &self.workload]);
        command.args(["--scale", &self.scale.to_string(), "--dir"]).arg(&self.dir);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
