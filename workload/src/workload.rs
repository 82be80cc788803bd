//! Workloads as values.

use crate::draw::Distribution;
use crate::store::Durability;

/// What one operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Gets a key that is there.
    Get,
    /// Gets a key that is not there.
    GetAbsent,
    /// Sets a key that was drawn.
    Put,
    /// Sets a key that is new.
    Insert,
    /// Deletes a key that was drawn.
    Delete,
    /// Sets so many keys that were drawn, at once.
    Batch(u64),
    /// Gets a key and sets it.
    ReadModifyWrite,
    /// Reads in order.
    Scan(Length),
}

/// What a scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many entries from a key that was drawn.
    Entries(usize),
    /// Between one and so many entries from a key that was drawn.
    UpTo(usize),
    /// All entries, in order.
    All,
    /// All entries, from the last to the first.
    AllBackward,
}

/// What is there before a workload begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Number of keys.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
}

impl Dataset {
    /// A name for its directory.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}x{}", self.keys, self.value_bytes)
    }

    /// Bytes of keys and values, about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.keys.saturating_mul(self.entry_bytes())
    }

    /// Bytes of a key and its value, about.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        u64::try_from(self.value_bytes).map_or(u64::MAX, |value| value.saturating_add(20))
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Operations, each drawn by its weight.
    Mix {
        /// Actions and their weights.
        actions: Vec<(Action, u32)>,
        /// How their keys are drawn.
        distribution: Distribution,
    },
    /// Gets of all clients but the last, which puts until they are done.
    ReadWhileWriting,
    /// Opens and closes.
    Reopen,
    /// Fills without flushing, is killed, opens again; every entry is verified.
    Recover,
}

/// What its figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations per second.
    Operations,
    /// Entries per second.
    Entries,
    /// Seconds; less is better.
    Seconds,
}

/// What is done to a store, from what is there before to how many clients do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What it is called.
    pub name: String,
    /// What it does, in a few words.
    pub about: String,
    /// Keys that operations are drawn from, and the size of values.
    pub data: Dataset,
    /// Whether the keys are there when it begins.
    pub filled: bool,
    /// What is done.
    pub plan: Plan,
    /// Operations of all clients together.
    pub operations: u64,
    /// Clients that work at the same time.
    pub clients: u16,
    /// What an acknowledged write has survived.
    pub durability: Durability,
    /// What its figure counts.
    pub unit: Unit,
    /// Seed of the draws.
    pub seed: u64,
}

impl Workload {
    /// Whether it leaves the data as it found it.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        match &self.plan {
            Plan::Reopen => true,
            Plan::Mix { actions, .. } => actions.iter().all(|(action, _)| match action {
                Action::Get | Action::GetAbsent | Action::Scan(_) => true,
                Action::Put
                | Action::Insert
                | Action::Delete
                | Action::Batch(_)
                | Action::ReadModifyWrite => false,
            }),
            Plan::ReadWhileWriting | Plan::Recover => false,
        }
    }
}
