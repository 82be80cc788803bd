//! Rounds of runs, each in a process of its own, engines taking turns.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nori_workload::{Measured, Result, Workload, Wrong, catalog, place};

use crate::args::Job;
use crate::engines::Engine;
use crate::row::Row;

/// The file of rows in the place of results.
pub(crate) const ROWS: &str = "rows.jsonl";

/// What is measured, and where.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    pub(crate) engines: Vec<Engine>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) rounds: u32,
    pub(crate) scale: f64,
    pub(crate) out: PathBuf,
}

/// Workloads by name; none given are all.
pub(crate) fn chosen(names: &[String], scale: f64) -> Result<Vec<Workload>> {
    let all = catalog::all(scale);
    if names.is_empty() {
        return Ok(all);
    }
    let find = |name: &String| {
        all.iter().find(|workload| workload.name == *name).cloned().ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|workload| workload.name.as_str()).collect();
            Wrong(format!("no workload {name:?}; there are {}", known.join(", "))).into()
        })
    };
    names.iter().map(find).collect()
}

impl Bench {
    /// Runs all rounds. Every row is appended to `rows.jsonl` at once; a run that fails is told and left out.
    pub(crate) fn run(&self) -> Result<Vec<Row>> {
        fs::create_dir_all(&self.out)?;
        let path = self.out.join(ROWS);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut rows = Vec::new();
        for round in 0..self.rounds {
            let work = self.out.join("work");
            remove(&work)?;
            let mut broken = BTreeSet::new();
            for (index, workload) in self.workloads.iter().enumerate() {
                let mut engines = self.engines.clone();
                engines.rotate_left((index + usize::try_from(round)?) % self.engines.len().max(1));
                for engine in engines {
                    let Some(measured) = self.attempt(engine, workload, &work, &mut broken) else {
                        continue;
                    };
                    let row = Row { engine: engine.name(), round, scale: self.scale, measured };
                    writeln!(file, "{}", serde_json::to_string(&row)?)?;
                    rows.push(row);
                }
            }
            remove(&work)?;
        }
        Ok(rows)
    }

    fn attempt(
        &self,
        engine: Engine,
        workload: &Workload,
        work: &Path,
        broken: &mut BTreeSet<PathBuf>,
    ) -> Option<Measured> {
        let name = engine.name();
        match self.measure(engine, workload, work, broken) {
            Ok(measured) => {
                let figure = crate::table::short(measured.figure);
                eprintln!("{:<18} {name:<18} {figure:>9}", workload.name);
                Some(measured)
            }
            Err(fault) => {
                eprintln!("{:<18} {name:<18} failed: {fault}", workload.name);
                None
            }
        }
    }

    /// A workload that only reads uses the data as it was prepared, any other a directory that is removed afterwards.
    fn measure(
        &self,
        engine: Engine,
        workload: &Workload,
        work: &Path,
        broken: &mut BTreeSet<PathBuf>,
    ) -> Result<Measured> {
        let home = work.join(engine.name());
        let (prepared, own) = (home.join(workload.data.name()), home.join("run"));
        let dir = if workload.only_reads() { prepared.clone() } else { own.clone() };
        let job = Job { engine, workload: workload.name.clone(), scale: self.scale, dir };
        if workload.filled && !prepared.exists() && !broken.contains(&prepared) {
            fs::create_dir_all(&home)?;
            let filling = Job { dir: prepared.clone(), ..job.clone() };
            if let Err(fault) = succeeded(filling.command("prepare")?) {
                broken.insert(prepared.clone());
                remove(&prepared)?;
                return Err(fault);
            }
        }
        if broken.contains(&prepared) {
            return Err(Wrong("its data could not be prepared".to_owned()).into());
        }
        remove(&own)?;
        if workload.filled && job.dir == own {
            place::copy(&prepared, &own)?;
        } else {
            fs::create_dir_all(&job.dir)?;
        }
        // What others wrote is not to be written while the clock runs.
        succeeded(Command::new("sync"))?;
        let said = succeeded(job.command("run")?);
        remove(&own)?;
        Ok(serde_json::from_str(&said?)?)
    }
}

/// What a command printed.
fn succeeded(mut command: Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("it said nothing");
    Err(Wrong(format!("{}: {last}", output.status)).into())
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}
