//! Every workload runs, on a store that is nothing but a map, and lies are found out.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up must stop")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use nori_workload::{
    Dataset, Durability, Options, Plan, Result, Span, Store, Style, catalog, drive, fill, run,
};

const TASKS: u8 = 0;
const FUTURES: u8 = 1;
const THREADS: u8 = 2;

/// `STYLE`: what clients are. `LIES`: whether values are given to the wrong key.
#[derive(Clone, Default)]
struct Map<const STYLE: u8, const LIES: bool>(Arc<RwLock<BTreeMap<Bytes, Bytes>>>);

impl<const STYLE: u8, const LIES: bool> Store for Map<STYLE, LIES> {
    const STYLE: Style = match STYLE {
        TASKS => Style::Tasks,
        FUTURES => Style::Futures,
        _ => Style::Threads,
    };

    async fn open(_: &Options) -> Result<Self> {
        Ok(Self::default())
    }

    async fn get<R: Send>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>) -> R + Send,
    ) -> Result<R> {
        let map = self.0.read().unwrap();
        let other = map.values().next().filter(|_| LIES);
        Ok(see(other.or_else(|| map.get(key)).map(AsRef::as_ref)))
    }

    async fn put(&self, key: Bytes, value: Bytes) -> Result<()> {
        self.0.write().unwrap().insert(key, value);
        Ok(())
    }

    async fn delete(&self, key: Bytes) -> Result<()> {
        self.0.write().unwrap().remove(&key);
        Ok(())
    }

    async fn batch(&self, puts: Vec<(Bytes, Bytes)>) -> Result<()> {
        self.0.write().unwrap().extend(puts);
        Ok(())
    }

    async fn scan(&self, span: Span<'_>, mut see: impl FnMut(&[u8], &[u8]) + Send) -> Result<()> {
        let map = self.0.read().unwrap();
        match span {
            Span::From(from, count) => {
                map.range(Bytes::copy_from_slice(from)..)
                    .take(count)
                    .for_each(|(key, value)| see(key, value));
            }
            Span::Forward => map.iter().skip(LIES.into()).for_each(|(key, value)| see(key, value)),
            Span::Backward => map.iter().rev().for_each(|(key, value)| see(key, value)),
        }
        Ok(())
    }

    async fn settle(&self) -> Result<()> {
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(work)
}

async fn every_workload<S: Store>() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { dir: dir.path().to_owned(), durability: Durability::Os };
    for workload in catalog::all(0.001) {
        if matches!(workload.plan, Plan::Reopen | Plan::Recover) {
            continue;
        }
        let store = S::open(&options).await.unwrap();
        if workload.filled {
            fill(&store, workload.data).await.unwrap();
        }
        let (_, times) = drive(&store, &workload).await.unwrap();
        assert!(times.operations() >= workload.operations, "{}", workload.name);
    }
}

#[test]
fn every_workload_runs_on_tasks() {
    on_a_runtime(every_workload::<Map<TASKS, false>>());
}

#[test]
fn every_workload_runs_on_futures() {
    on_a_runtime(every_workload::<Map<FUTURES, false>>());
}

#[test]
fn every_workload_runs_on_threads() {
    on_a_runtime(every_workload::<Map<THREADS, false>>());
}

#[test]
fn lies_are_found_out() {
    on_a_runtime(async {
        for name in ["readrandom", "readmissing", "ycsb-f", "fullscan"] {
            let workload = catalog::find(name, 0.001).unwrap();
            let store = Map::<TASKS, true>::default();
            fill(&store, workload.data).await.unwrap();
            assert!(drive(&store, &workload).await.is_err(), "{name}");
        }
    });
}

#[test]
fn a_run_says_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { dir: dir.path().to_owned(), durability: Durability::Os };
    let mut workload = catalog::find("fillrandom", 0.01).unwrap();
    workload.data = Dataset { keys: 10_000, value_bytes: 100 };
    let nobody = || -> Result<Command> { unreachable!("nobody is to be killed") };
    let measured = on_a_runtime(run::<Map<TASKS, false>>(&options, &workload, nobody)).unwrap();
    assert_eq!((measured.operations, measured.entries), (10_000, 10_000));
    assert!(measured.figure > 0.0 && measured.cost.peak_rss_bytes > 0);
    assert_eq!(measured.kinds.len(), 1);
}
