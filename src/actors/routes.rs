//! Where each component can be reached: a restarted actor has a new address, so senders look it up for each message.

use std::fmt;

use arc_swap::ArcSwapOption;
use ractor::{ActorRef, Message};
use serde::Serialize;

use super::{
    compactor, flusher, manifest_keeper, memtable_owner, root, scheduler, scrubber, wal_gc,
    wal_writer,
};
use crate::types::Level;

/// A supervised part of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub enum Component {
    /// Commits queued writes, syncs the log.
    WalWriter,
    /// Seals memtables.
    MemtableOwner,
    /// Turns sealed memtables into tables.
    Flusher,
    /// Changes the version.
    ManifestKeeper,
    /// Runs compactions of one level.
    Compactor(Level),
    /// Decides what to compact.
    Scheduler,
    /// Deletes dead log segments.
    WalGc,
    /// Looks for damaged tables.
    Scrubber,
}

impl Component {
    /// Name for metrics, events and errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WalWriter => "wal writer",
            Self::MemtableOwner => "memtable owner",
            Self::Flusher => "flusher",
            Self::ManifestKeeper => "manifest keeper",
            Self::Compactor(_) => "compactor",
            Self::Scheduler => "scheduler",
            Self::WalGc => "wal gc",
            Self::Scrubber => "scrubber",
        }
    }

    /// Whether writes cannot go on for long without it.
    pub(crate) const fn is_vital(self) -> bool {
        match self {
            Self::WalWriter | Self::MemtableOwner | Self::Flusher | Self::ManifestKeeper => true,
            Self::Compactor(_) | Self::Scheduler | Self::WalGc | Self::Scrubber => false,
        }
    }

    /// Every component of an engine with `levels` levels, in the order in which they are started.
    pub(crate) fn all(levels: usize) -> Vec<Self> {
        let compactors =
            (0..levels).map(|level| Self::Compactor(Level(u8::try_from(level).unwrap_or(u8::MAX))));
        let first = [Self::ManifestKeeper, Self::WalWriter, Self::MemtableOwner, Self::Flusher];
        first
            .into_iter()
            .chain(compactors)
            .chain([Self::Scheduler, Self::WalGc, Self::Scrubber])
            .collect()
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compactor(level) => write!(f, "compactor of {level}"),
            other => f.write_str(other.name()),
        }
    }
}

/// Address of one component; empty while it is down.
pub(crate) struct Route<M>(ArcSwapOption<ActorRef<M>>);

impl<M: Message> Route<M> {
    pub(crate) fn set(&self, actor: ActorRef<M>) {
        self.0.store(Some(std::sync::Arc::new(actor)));
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.load().is_some()
    }

    pub(crate) fn clear(&self) {
        self.0.store(None);
    }

    /// Hands over a message; gives it back if nobody is there. Looks twice: the address may have just changed.
    ///
    /// An address where nobody is any more is forgotten at once: the root, which is told of the death, may be waiting for something
    /// else, and who looks for somebody to work would find the dead one again and again.
    pub(crate) fn send(&self, mut message: M) -> Result<(), M> {
        for _ in 0..2 {
            let address = self.0.load();
            let Some(actor) = &*address else { break };
            message = match actor.cast(message) {
                Ok(()) => return Ok(()),
                Err(ractor::MessagingErr::SendErr(back)) => back,
                // Neither happens for a message of the actor's own type; the message is gone then.
                Err(
                    ractor::MessagingErr::ChannelClosed | ractor::MessagingErr::InvalidActorType,
                ) => {
                    return Ok(());
                }
            };
            self.0.compare_and_swap(&address, None);
        }
        Err(message)
    }

    /// Rings a component. One that is down looks for work by itself when it starts.
    pub(crate) fn ring(&self, message: M) {
        drop(self.send(message));
    }
}

impl<M> Default for Route<M> {
    fn default() -> Self {
        Self(ArcSwapOption::empty())
    }
}

impl<M> fmt::Debug for Route<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.load().is_some() { "up" } else { "down" })
    }
}

/// Addresses of all components.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) root: Route<root::Msg>,
    pub(crate) wal_writer: Route<wal_writer::Msg>,
    pub(crate) memtable_owner: Route<memtable_owner::Msg>,
    pub(crate) flusher: Route<flusher::Msg>,
    pub(crate) manifest_keeper: Route<manifest_keeper::Msg>,
    /// By level.
    pub(crate) compactors: Vec<Route<compactor::Msg>>,
    pub(crate) scheduler: Route<scheduler::Msg>,
    pub(crate) wal_gc: Route<wal_gc::Msg>,
    pub(crate) scrubber: Route<scrubber::Msg>,
}

impl Routes {
    pub(crate) fn new(levels: usize) -> Self {
        let compactors = std::iter::repeat_with(Route::default).take(levels).collect();
        Self { compactors, ..Self::default() }
    }

    /// Forgets the address of a component that died.
    pub(crate) fn clear(&self, component: Component) {
        match component {
            Component::WalWriter => self.wal_writer.clear(),
            Component::MemtableOwner => self.memtable_owner.clear(),
            Component::Flusher => self.flusher.clear(),
            Component::ManifestKeeper => self.manifest_keeper.clear(),
            Component::Compactor(level) => {
                if let Some(route) = self.compactors.get(level.index()) {
                    route.clear();
                }
            }
            Component::Scheduler => self.scheduler.clear(),
            Component::WalGc => self.wal_gc.clear(),
            Component::Scrubber => self.scrubber.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};

    use super::*;

    struct Deaf;

    impl Actor for Deaf {
        type Msg = u8;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<u8>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_dead_address_is_forgotten_and_no_other() {
        let (dead, end) = Actor::spawn(None, Deaf, ()).await.unwrap();
        let (alive, _) = Actor::spawn(None, Deaf, ()).await.unwrap();
        let route = Route::default();
        route.set(dead.clone());
        assert_eq!((route.send(1), route.is_up()), (Ok(()), true));

        dead.stop(None);
        end.await.unwrap();
        assert_eq!(
            (route.send(2), route.is_up()),
            (Err(2), false),
            "whoever looks for work for it finds nobody"
        );
        route.set(alive.clone());
        assert_eq!((route.send(3), route.is_up()), (Ok(()), true));
        alive.stop(None);
    }
}
