//! The workloads that have a name.

use crate::draw::Distribution;
use crate::real;
use crate::store::Durability;
use crate::workload::{Action, Dataset, Length, Plan, Unit, Workload};

/// Keys at scale 1.
const KEYS: u64 = 1_000_000;
/// Bytes of a value, unless the name says otherwise.
const VALUE: usize = 400;
/// Entries that make 48 MiB of log.
const LOGGED: u64 = 115_000;

/// All of them.
///
/// `scale`: 1 is a million keys; keys and operations grow with it.
#[must_use]
pub fn all(scale: f64) -> Vec<Workload> {
    let mut all = writes();
    all.extend(reads());
    all.extend(mixes());
    all.extend(ycsb());
    all.extend(durable());
    all.extend(opens());
    for (suffix, keys, value) in
        [("100b", 2 * KEYS, 100), ("1k", KEYS / 2, 1 << 10), ("16k", KEYS / 25, 16 << 10)]
    {
        all.extend(sized(suffix, Dataset { keys, value_bytes: value }));
    }
    for workload in &mut all {
        workload.data.keys = scaled(workload.data.keys, scale, 1000);
        let least = if workload.unit == Unit::Operations { 200 } else { 1 };
        let fixed = matches!(workload.plan, Plan::Reopen | Plan::Recover) || whole(workload);
        if !fixed {
            workload.operations = scaled(workload.operations, scale, least);
        }
    }
    all
}

/// The one with that name.
#[must_use]
pub fn find(name: &str, scale: f64) -> Option<Workload> {
    all(scale).into_iter().find(|workload| workload.name == name)
}

/// Whether each operation goes over all data.
fn whole(workload: &Workload) -> bool {
    let Plan::Mix { actions, .. } = &workload.plan else { return false };
    actions.iter().any(|(action, _)| {
        matches!(action, Action::Scan(Length::All) | Action::Scan(Length::AllBackward))
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count far below 2^53"
)]
fn scaled(count: u64, scale: f64, least: u64) -> u64 {
    ((real(count) * scale).round() as u64).max(least)
}

/// One action on keys that are there, one client, log to the operating system.
fn plain(name: &str, about: &str, action: Action, distribution: Distribution) -> Workload {
    Workload {
        name: name.to_owned(),
        about: about.to_owned(),
        data: Dataset { keys: KEYS, value_bytes: VALUE },
        filled: true,
        plan: Plan::Mix { actions: vec![(action, 1)], distribution },
        operations: KEYS / 2,
        clients: 1,
        durability: Durability::Os,
        unit: Unit::Operations,
        seed: 1,
    }
}

impl Workload {
    fn empty(self) -> Self {
        Self { filled: false, operations: self.data.keys, ..self }
    }

    fn operations(self, operations: u64) -> Self {
        Self { operations, ..self }
    }

    fn at(self, clients: u16) -> Self {
        let name = if clients > 1 { format!("{}@{clients}", self.name) } else { self.name };
        Self { name, clients, ..self }
    }

    fn entries(self) -> Self {
        Self { unit: Unit::Entries, ..self }
    }
}

fn writes() -> Vec<Workload> {
    let fill = |distribution| match distribution {
        Distribution::Sequence => {
            plain("fillseq", "each key once, in order", Action::Put, distribution).empty()
        }
        _ => plain("fillrandom", "each key once, shuffled", Action::Put, distribution).empty(),
    };
    let random = fill(Distribution::Shuffled);
    let batch = Action::Batch(100);
    vec![
        fill(Distribution::Sequence),
        random.clone(),
        random.clone().at(4),
        random.at(64),
        plain(
            "fillbatch",
            "each key once, shuffled, a hundred at once",
            batch,
            Distribution::Shuffled,
        )
        .empty()
        .operations(KEYS / 100)
        .entries(),
        plain("overwrite", "sets keys that are there", Action::Put, Distribution::Uniform)
            .operations(KEYS),
        plain(
            "deleterandom",
            "deletes every key, shuffled",
            Action::Delete,
            Distribution::Shuffled,
        )
        .operations(KEYS),
    ]
}

fn reads() -> Vec<Workload> {
    let random =
        plain("readrandom", "gets keys that are there", Action::Get, Distribution::Uniform);
    let scan = |name, about, length, operations| {
        plain(name, about, Action::Scan(length), Distribution::Uniform).operations(operations)
    };
    vec![
        random.clone(),
        random.at(4),
        plain(
            "readmissing",
            "gets keys that are not there",
            Action::GetAbsent,
            Distribution::Uniform,
        ),
        plain("readhot", "gets, 80 % of them of 20 % of the keys", Action::Get, Distribution::Hot),
        scan("seekrandom", "first entry from a key on", Length::Entries(1), KEYS / 10),
        scan("scan100", "a hundred entries from a key on", Length::Entries(100), KEYS / 50),
        scan("fullscan", "all entries, in order", Length::All, 2).entries(),
        scan("fullscan-reverse", "all entries, from the last", Length::AllBackward, 2).entries(),
    ]
}

fn mix(name: &str, about: &str, actions: &[(Action, u32)], distribution: Distribution) -> Workload {
    let plan = Plan::Mix { actions: actions.to_vec(), distribution };
    Workload { plan, ..plain(name, about, Action::Get, distribution) }
}

fn mixes() -> Vec<Workload> {
    let (get, put) = (Action::Get, Action::Put);
    let beside =
        plain("readwhilewriting", "one client gets, another puts", get, Distribution::Uniform);
    vec![
        Workload { plan: Plan::ReadWhileWriting, ..beside.at(2) },
        mix("mixed", "80 % get, 20 % put", &[(get, 80), (put, 20)], Distribution::Zipfian),
        mix(
            "shift",
            "half get, half put, the hot keys wander",
            &[(get, 1), (put, 1)],
            Distribution::Moving,
        )
        .operations(KEYS),
    ]
}

/// Source: Cooper et al. 2010, "Benchmarking cloud serving systems with YCSB", the core workloads.
fn ycsb() -> Vec<Workload> {
    use Distribution::{Latest, Zipfian};
    let (get, put, insert) = (Action::Get, Action::Put, Action::Insert);
    let scan = Action::Scan(Length::UpTo(100));
    let rmw = Action::ReadModifyWrite;
    let a = mix("ycsb-a", "half get, half put", &[(get, 50), (put, 50)], Zipfian);
    vec![
        a.clone(),
        a.at(4),
        mix("ycsb-b", "95 % get, 5 % put", &[(get, 95), (put, 5)], Zipfian),
        mix("ycsb-c", "gets", &[(get, 1)], Zipfian),
        mix("ycsb-d", "95 % get of the newest, 5 % insert", &[(get, 95), (insert, 5)], Latest),
        mix("ycsb-e", "95 % scan of up to 100, 5 % insert", &[(scan, 95), (insert, 5)], Zipfian)
            .operations(KEYS / 25),
        mix("ycsb-f", "half get, half get and put", &[(get, 50), (rmw, 50)], Zipfian),
    ]
}

fn durable() -> Vec<Workload> {
    let one = Workload {
        durability: Durability::Disk,
        ..plain("durable", "puts, each on disk", Action::Put, Distribution::Shuffled).empty()
    };
    let at = |clients: u16, operations| Workload {
        name: format!("durable@{clients}"),
        ..one.clone().at(clients).operations(operations)
    };
    vec![at(1, KEYS / 50), at(16, KEYS / 20), at(64, KEYS / 10)]
}

fn opens() -> Vec<Workload> {
    let open = |name, about, plan| Workload {
        plan,
        unit: Unit::Seconds,
        ..plain(name, about, Action::Get, Distribution::Uniform)
    };
    let recover = open("recover", "opens after kill -9 with 48 MiB in the log", Plan::Recover);
    vec![
        open("reopen", "opens what was closed cleanly, first get", Plan::Reopen).operations(5),
        Workload { data: Dataset { keys: LOGGED, ..recover.data }, ..recover }.empty(),
    ]
}

/// The rows of one size of values.
fn sized(suffix: &str, data: Dataset) -> Vec<Workload> {
    let named = |name: &str| format!("{name}-{suffix}");
    let random = Distribution::Uniform;
    let of = |workload: Workload| Workload { name: named(&workload.name), data, ..workload };
    vec![
        of(plain("fillrandom", "each key once, shuffled", Action::Put, Distribution::Shuffled))
            .empty(),
        of(plain("readrandom", "gets keys that are there", Action::Get, random))
            .operations(data.keys.min(KEYS) / 2),
        of(plain("overwrite", "sets keys that are there", Action::Put, random))
            .operations(data.keys),
        of(plain("fullscan", "all entries, in order", Action::Scan(Length::All), random))
            .operations(2)
            .entries(),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let all = all(1.0);
        let names: BTreeSet<_> = all.iter().map(|workload| workload.name.clone()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(find("durable@1", 1.0).map(|workload| workload.clients), Some(1));
        assert_eq!(find("ycsb-a@4", 0.5).map(|workload| workload.operations), Some(KEYS / 4));
        assert_eq!(find("nothing", 1.0), None);
    }

    #[test]
    fn a_small_scale_still_does_something() {
        assert!(all(0.0).iter().all(|workload| workload.operations > 0 && workload.data.keys > 0));
    }
}
