//! Opens a store, runs a workload on it and closes it.

use std::process::Command;
use std::time::Instant;

use crate::cost::Cost;
use crate::crash;
use crate::drive::{drive, fill};
use crate::entry;
use crate::measured::Measured;
use crate::store::{Options, Result, Store, Wrong};
use crate::times::{Kind, Times};
use crate::workload::{Dataset, Plan, Workload};

/// Makes a store that holds `data`, with nothing left to do.
///
/// # Errors
/// What the store fails with.
pub async fn prepare<S: Store>(options: &Options, data: Dataset) -> Result<()> {
    let store = S::open(options).await?;
    fill(&store, data).await?;
    store.settle().await?;
    store.close().await
}

/// Runs a workload in a directory that holds what it needs. What it costs counts until the store is closed.
///
/// `victim`: how to start a process that calls [`crate::victim`] with the same options and workload.
///
/// # Errors
/// What the store fails with; [`Wrong`] if it lied.
pub async fn run<S: Store>(
    options: &Options,
    workload: &Workload,
    victim: impl FnOnce() -> Result<Command>,
) -> Result<Measured> {
    let (mut measured, begun) = match workload.plan {
        Plan::Mix { .. } | Plan::ReadWhileWriting => {
            let store = S::open(options).await?;
            let begun = Cost::so_far();
            let (elapsed, times) = drive(&store, workload).await?;
            store.close().await?;
            (Measured::new(workload, elapsed, &times), begun)
        }
        Plan::Reopen => {
            let begun = Cost::so_far();
            (reopen::<S>(options, workload).await?, begun)
        }
        Plan::Recover => {
            crash::kill_when_ready(victim()?)?;
            let begun = Cost::so_far();
            (recover::<S>(options, workload).await?, begun)
        }
    };
    measured.cost = Cost::since(begun, &options.dir);
    Ok(measured)
}

/// Opens and closes; the figure is the time to the first get.
async fn reopen<S: Store>(options: &Options, workload: &Workload) -> Result<Measured> {
    let (mut times, mut elapsed) = (Times::default(), std::time::Duration::ZERO);
    for turn in 0..workload.operations {
        let number = workload.data.keys * turn / workload.operations;
        let begun = Instant::now();
        let store = S::open(options).await?;
        first_get(&store, workload, number).await?;
        times.record(Kind::Open, begun.elapsed())?;
        elapsed += begun.elapsed();
        store.close().await?;
    }
    Ok(Measured::new(workload, elapsed, &times))
}

/// Opens what was killed, and looks whether every entry is there.
async fn recover<S: Store>(options: &Options, workload: &Workload) -> Result<Measured> {
    let mut times = Times::default();
    let begun = Instant::now();
    let store = S::open(options).await?;
    let first = first_get(&store, workload, 0).await;
    let elapsed = begun.elapsed();
    times.record(Kind::Open, elapsed)?;
    let lost = crash::lost(&store, workload.data).await?;
    store.close().await?;
    if lost > 0 {
        return Err(Wrong(format!(
            "{lost} of {} acknowledged entries are lost",
            workload.data.keys
        ))
        .into());
    }
    first?;
    Ok(Measured::new(workload, elapsed, &times))
}

async fn first_get<S: Store>(store: &S, workload: &Workload, number: u64) -> Result<()> {
    let size = workload.data.value_bytes;
    let ours =
        |found: Option<&[u8]>| found.is_some_and(|value| entry::belongs(value, number, size));
    let ours = store.get(&entry::key(number), ours).await?;
    if ours { Ok(()) } else { Err(Wrong(format!("key {number} is not there")).into()) }
}
