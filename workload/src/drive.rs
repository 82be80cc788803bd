//! Runs the clients of a workload, each in the way that its store wants.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::draw::{Distribution, Draw};
use crate::entry;
use crate::store::{Result, Store, Style, Wrong};
use crate::times::Times;
use crate::workload::{Dataset, Plan, Workload};

/// Runs a workload on a store that is open, with the data that it needs.
///
/// Blocks the calling thread if the store is one for threads.
///
/// # Errors
/// What the store fails with; [`Wrong`] if it lied.
pub async fn drive<S: Store>(store: &S, workload: &Workload) -> Result<(Duration, Times)> {
    let distribution = match &workload.plan {
        Plan::Mix { distribution, .. } => *distribution,
        Plan::ReadWhileWriting | Plan::Reopen | Plan::Recover => Distribution::Uniform,
    };
    let draw = Arc::new(Draw::new(distribution, workload.data.keys));
    let (shared, done) = (Arc::new(workload.clone()), Arc::new(AtomicBool::new(false)));
    let client = |number: u16| Client {
        store: store.clone(),
        workload: Arc::clone(&shared),
        draw: Arc::clone(&draw),
        number: number.into(),
        done: Arc::clone(&done),
        random: fastrand::Rng::with_seed(
            workload.seed.wrapping_mul(workload.clients.into()).wrapping_add(number.into()),
        ),
        inserted: 0,
        times: Times::default(),
    };
    let clients = (0..workload.clients).map(client);
    let begun = Instant::now();
    let times = match S::STYLE {
        Style::Futures => here_if_alone(clients).await?,
        Style::Tasks => on_tasks(clients).await?,
        Style::Threads => on_threads(clients)?,
    };
    Ok((begun.elapsed(), times))
}

async fn here_if_alone<S: Store>(
    mut clients: impl ExactSizeIterator<Item = Client<S>>,
) -> Result<Times> {
    match clients.next() {
        Some(alone) if clients.len() == 0 => alone.run().await,
        first => on_tasks(first.into_iter().chain(clients)).await,
    }
}

async fn on_tasks<S: Store>(clients: impl Iterator<Item = Client<S>>) -> Result<Times> {
    let mut tasks: JoinSet<_> = clients.map(Client::run).collect();
    let mut times = Times::default();
    while let Some(done) = tasks.join_next().await {
        times.add(done??)?;
    }
    Ok(times)
}

fn on_threads<S: Store>(clients: impl Iterator<Item = Client<S>>) -> Result<Times> {
    let threads: Vec<_> =
        clients.map(|client| thread::spawn(move || block_on(client.run()))).collect();
    let mut times = Times::default();
    for thread in threads {
        let done = thread.join().map_err(|_panic| Wrong("a client panicked".to_owned()))?;
        times.add(done?)?;
    }
    Ok(times)
}

/// Puts every key of a dataset, shuffled, a hundred at once.
///
/// # Errors
/// What the store fails with.
pub async fn fill<S: Store>(store: &S, data: Dataset) -> Result<()> {
    const BATCH: u64 = 100;
    let (draw, mut random) =
        (Draw::new(Distribution::Shuffled, data.keys), fastrand::Rng::with_seed(0));
    for begin in (0..data.keys).step_by(100) {
        let places = begin..(begin + BATCH).min(data.keys);
        let numbers = places.map(|at| draw.nth(&mut random, at));
        let puts =
            numbers.map(|number| (entry::key(number), entry::value(number, 0, data.value_bytes)));
        store.batch(puts.collect()).await?;
    }
    Ok(())
}
