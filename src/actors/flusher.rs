//! The flusher: one sealed memtable after the other, oldest first, becomes tables of L0.
//!
//! Hears: `Work` from the memtable owner, `Done` from its job. Asks: the manifest keeper to install.
//! Owns nothing: what is to be flushed stands in the View. Loses on restart: nothing; a job of the one before runs to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::health::Trouble;
use super::manifest_keeper::{self, Flushed};
use super::memtable_owner;
use super::shared::Shared;
use super::timer::{Timer, send_after};
use crate::error::{Error, Result};
use crate::jobs::flush::{FlushJob, flush_ops};
use crate::memtable::Memtable;
use crate::observe::VizEvent;
use crate::types::u64_of;

/// Wait before a flush that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) enum Msg {
    /// There is a sealed memtable, perhaps.
    Work,
    /// A flush came to its end.
    Done(Result<()>),
}

#[derive(Debug)]
pub(crate) struct State {
    shared: Arc<Shared>,
    retry: Option<Timer>,
}

#[derive(Debug)]
pub(crate) struct Flusher;

impl Actor for Flusher {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        shared: Arc<Shared>,
    ) -> Result<State, ActorProcessingErr> {
        shared.routes.flusher.set(myself.clone());
        myself.cast(Msg::Work)?;
        Ok(State { shared, retry: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        #[cfg(feature = "chaos")]
        state.shared.chaos.strike(super::Component::Flusher)?;
        let shared = &state.shared;
        match message {
            Msg::Work => start(shared),
            Msg::Done(Ok(())) => {
                shared.health.works(Trouble::Flush);
                shared.routes.memtable_owner.ring(memtable_owner::Msg::Look);
            }
            // Cancelled, so the engine goes down. If flushes are allowed again by now, whoever asked for one while this still ran
            // was turned away: nobody else would begin it.
            Msg::Done(Err(Error::Closed)) if shared.cancel.check().is_ok() => start(shared),
            Msg::Done(Err(Error::Closed)) => {}
            Msg::Done(Err(error)) => {
                shared.health.failing(Trouble::Flush, &error, shared.now());
                shared.flush_failed(error.clone());
                state.retry = Some(send_after(shared.env(), RETRY_AFTER, &myself, Msg::Work));
                if let Error::Interrupted { component } = error {
                    return Err(format!("{component} failed").into());
                }
            }
        }
        Ok(())
    }
}

/// Held by the one flush that runs, also by one whose flusher has died.
struct Flushing(Arc<Shared>);

impl Flushing {
    fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let taken = shared.flushing.swap(true, Ordering::AcqRel);
        (!taken).then(|| Self(Arc::clone(shared)))
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        self.0.flushing.store(false, Ordering::Release);
        self.0.notify();
    }
}

/// Flushes the oldest sealed memtable in the background, unless a flush runs already.
fn start(shared: &Arc<Shared>) {
    let Some(oldest) = shared.views.load().sealed.last().cloned() else { return };
    let Some(flushing) = Flushing::begin(shared) else { return };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let done = flush(&shared, oldest).await;
        drop(flushing);
        shared.routes.flusher.ring(Msg::Done(done));
    });
}

async fn flush(shared: &Arc<Shared>, memtable: Arc<Memtable>) -> Result<()> {
    let start = shared.now();
    let job = FlushJob {
        store: Arc::clone(&shared.store),
        memtable: Arc::clone(&memtable),
        version: Arc::clone(shared.views.load().version()),
        snapshots: shared.live_snapshots(),
        compression: shared.config.compression.flush,
    };
    let cancel = shared.cancel.clone();
    let outputs = shared.env().on_disk(move || job.run(&cancel)).await?;
    let bytes = outputs.bytes();
    let tables: Vec<_> = outputs.tables.iter().map(|table| table.file).collect();
    let run = shared.store.new_run_id();
    let segment = memtable.segment();
    let change = Box::new(move |version: &crate::version::Version| {
        // A flush that was taken for lost may have come first.
        (version.log_floor <= segment).then(|| flush_ops(&outputs, run))
    });
    let last_seq = memtable.last_seq();
    shared.install_tables(tables.clone(), change, Some(Flushed { segment, last_seq })).await?;
    let flushed = u64_of(memtable.bytes());
    shared.retire(memtable);
    shared.routes.manifest_keeper.ring(manifest_keeper::Msg::Sweep);
    let took = shared.now().saturating_sub(start);
    shared.drained(flushed, took);
    shared.metrics.flush_ms.observe(took.as_secs_f64() * 1e3);
    shared.metrics.flush_bytes.inc(bytes);
    shared.totals.flushed(bytes);
    let node = shared.config.node_id;
    shared.store.emit(VizEvent::Flush { node, tables, bytes, last_seq });
    Ok(())
}
