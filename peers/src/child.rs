//! What a process of its own does: fill, run, or wait to be killed.

use std::io;

use nori_workload::{
    Durability, Measured, Options, Result, Store, Workload, Wrong, catalog, prepare as fill,
    run as measure, victim as wait,
};

use crate::args::Job;
use crate::engines::Task;

/// Fills the database that the workload wants to find.
pub(crate) fn prepare(job: &Job) -> Result<()> {
    let workload = workload(job)?;
    on_runtime(job.engine.run(Prepare { options: options(job, Durability::Os), workload }))
}

/// Runs the workload, and prints a line of JSON.
pub(crate) fn run(job: &Job) -> Result<()> {
    let workload = workload(job)?;
    let options = options(job, workload.durability);
    let measured = on_runtime(job.engine.run(Run { options, workload, job }))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Fills the database and waits.
pub(crate) fn victim(job: &Job) -> Result<()> {
    let workload = workload(job)?;
    on_runtime(job.engine.run(Victim { options: options(job, workload.durability), workload }))
}

/// The workload with that name.
pub(crate) fn workload(job: &Job) -> Result<Workload> {
    let found = catalog::find(&job.workload, job.scale);
    found.ok_or_else(|| Wrong(format!("there is no workload {:?}", job.workload)).into())
}

fn options(job: &Job, durability: Durability) -> Options {
    Options { dir: job.dir.clone(), durability }
}

/// Two workers, as many as the background jobs of an engine.
fn on_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build()?.block_on(work)
}

struct Prepare {
    options: Options,
    workload: Workload,
}

impl Task for Prepare {
    type Output = ();

    async fn on<S: Store>(self) -> Result<()> {
        fill::<S>(&self.options, self.workload.data).await
    }
}

struct Run<'a> {
    options: Options,
    workload: Workload,
    job: &'a Job,
}

impl Task for Run<'_> {
    type Output = Measured;

    async fn on<S: Store>(self) -> Result<Measured> {
        measure::<S>(&self.options, &self.workload, || Ok(self.job.command("victim")?)).await
    }
}

struct Victim {
    options: Options,
    workload: Workload,
}

impl Task for Victim {
    type Output = ();

    async fn on<S: Store>(self) -> Result<()> {
        wait::<S>(&self.options, &self.workload, io::stdout()).await
    }
}
