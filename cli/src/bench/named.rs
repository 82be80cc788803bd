//! The workloads that have a name: each on a database of its own, prepared before the clock starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nori_workload::{Fault, Measured, Nori, Options, Workload, catalog, place, prepare, run};
use serde_json::json;

use super::home::Home;
use super::write_json;
use crate::Outcome;
use crate::args::Bench;
use crate::failure::Failure;
use crate::table;

/// Runs them one after the other.
pub(super) async fn bench(args: Bench) -> Result<Outcome, Failure> {
    let workloads = chosen(&args.workload, args.scale)?;
    let home = Home::choose(args.dir.as_deref(), args.keep)?;
    let mut rows = Vec::with_capacity(workloads.len());
    for workload in workloads {
        let row = measure(&home.path, &workload, args.scale).await?;
        eprintln!("{}: {}", workload.name, table::figure(&row));
        rows.push(row);
    }
    println!("{}", table::measured(&rows));
    if let Some(path) = &args.json {
        write_json(path, &json!({ "scale": args.scale, "workloads": rows }))?;
    }
    Ok(Outcome::Done)
}

/// What `recover` kills: fills a database and waits for the end.
pub(super) async fn victim(dir: PathBuf, names: &[String], scale: f64) -> Result<Outcome, Failure> {
    for workload in chosen(names, scale)? {
        let options = Options { dir: dir.clone(), durability: workload.durability };
        nori_workload::victim::<Nori>(&options, &workload, io::stdout()).await?;
    }
    Ok(Outcome::Done)
}

/// Workloads by name; `all` are all.
fn chosen(names: &[String], scale: f64) -> Result<Vec<Workload>, Failure> {
    let all = catalog::all(scale);
    if names.iter().any(|name| name == "all") {
        return Ok(all);
    }
    let find = |name: &String| {
        all.iter().find(|workload| workload.name == *name).cloned().ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|workload| workload.name.as_str()).collect();
            Failure::Usage(format!("no workload {name:?}; there are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// A workload that only reads uses the data as it is prepared, any other a directory that is removed afterwards.
async fn measure(home: &Path, workload: &Workload, scale: f64) -> Result<Measured, Failure> {
    let prepared = home.join(workload.data.name());
    let durability = nori_workload::Durability::Os;
    if workload.filled && !prepared.exists() {
        let options = Options { dir: prepared.clone(), durability };
        prepare::<Nori>(&options, workload.data).await?;
    }
    let own = home.join("run");
    let dir = if workload.only_reads() { prepared.clone() } else { own.clone() };
    if workload.filled && dir == own {
        place::copy(&prepared, &own).map_err(Failure::io("copy", &prepared))?;
    }
    let options = Options { dir: dir.clone(), durability: workload.durability };
    let measured = run::<Nori>(&options, workload, || command(&dir, workload, scale)).await;
    if dir == own && own.exists() {
        fs::remove_dir_all(&own).map_err(Failure::io("remove", &own))?;
    }
    Ok(measured?)
}

/// This program as a victim.
fn command(dir: &Path, workload: &Workload, scale: f64) -> Result<Command, Fault> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "--workload", &workload.name, "--scale", &scale.to_string()]);
    command.arg("--victim").arg(dir);
    Ok(command)
}
