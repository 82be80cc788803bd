//! How the engine is: what failed, since when, and what it does about it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::Component;
use crate::error::Error;
use crate::quarantine::DamagedTable;

/// How an engine is. See [`LsmEngine::health`](crate::LsmEngine::health).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Health {
    /// The worst of what is below.
    pub state: HealthState,
    /// Tables that do not read as they were written. What else they hold is served, and compactions leave them alone.
    pub damaged: Vec<DamagedTable>,
    /// Components that were restarted, or are down, since the engine was opened.
    pub components: BTreeMap<String, ComponentHealth>,
}

/// Whether an engine does all that it should.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub enum HealthState {
    /// Everything works.
    #[default]
    Healthy,
    /// Something fails and is tried again, and the engine goes on by itself once the cause is gone; or a table is damaged, or a
    /// component without which writes go on was given up, and is tried again in a minute.
    Degraded {
        /// What has been failing the longest.
        cause: String,
        /// When, on the engine's monotonic clock.
        since: Duration,
    },
    /// Writes are refused, reads go on; [`LsmEngine::resume`](crate::LsmEngine::resume) or a reopen brings it back.
    ReadOnly {
        /// Why.
        reason: String,
    },
}

/// What happened to one component.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ComponentHealth {
    /// How often it died, and was or will be started again.
    pub restarts: u32,
    /// Why it died last.
    pub last_error: String,
    /// Whether it was given up.
    pub down: bool,
}

/// Collects what fails; everyone can look.
#[derive(Debug)]
pub(crate) struct HealthBoard {
    health: watch::Sender<Health>,
    causes: Mutex<Causes>,
}

/// What keeps failing, one at a time each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    Log,
    NextSegment,
    Flush,
    Manifest,
    Compaction,
}

/// Everything that speaks against being healthy.
#[derive(Debug, Default)]
struct Causes {
    /// Why writes are refused, if they are: the first reason.
    refusal: Option<String>,
    /// The table that was found damaged first.
    damage: Option<(String, Duration)>,
    /// Of each trouble that is not over, its first cause and when that was.
    troubles: BTreeMap<Trouble, (String, Duration)>,
    /// Components that were given up and without which writes go on, until they are started again.
    down: BTreeMap<Component, (String, Duration)>,
}

impl Causes {
    /// Refused writes are worst; of all else, what has been going on the longest.
    fn state(&self) -> HealthState {
        if let Some(reason) = &self.refusal {
            return HealthState::ReadOnly { reason: reason.clone() };
        }
        match self
            .troubles
            .values()
            .chain(self.down.values())
            .chain(&self.damage)
            .min_by_key(|(_, since)| *since)
        {
            Some((cause, since)) => HealthState::Degraded { cause: cause.clone(), since: *since },
            None => HealthState::Healthy,
        }
    }
}

impl HealthBoard {
    pub(crate) fn new() -> Self {
        Self { health: watch::Sender::new(Health::default()), causes: Mutex::default() }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(crate) fn now(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Something failed and will be tried again.
    pub(crate) fn failing(&self, trouble: Trouble, error: &Error, now: Duration) {
        self.change(|causes| {
            let cause = || (format!("{trouble:?}: {error}"), now);
            causes.troubles.entry(trouble).or_insert_with(cause);
        });
    }

    /// It works again.
    pub(crate) fn works(&self, trouble: Trouble) {
        self.change(|causes| drop(causes.troubles.remove(&trouble)));
    }

    /// These tables are damaged, and no others.
    pub(crate) fn damaged(&self, tables: Vec<DamagedTable>) {
        let first = tables.iter().min_by_key(|table| table.since);
        let damage = first.map(|table| (table.error().to_string(), table.since));
        let mut causes = self.causes();
        causes.damage = damage;
        let state = causes.state();
        self.health.send_modify(|health| {
            health.damaged = tables;
            health.state = state;
        });
    }

    /// Changes the causes, and tells if the state is another one now.
    fn change(&self, change: impl FnOnce(&mut Causes)) {
        let mut causes = self.causes();
        change(&mut causes);
        let state = causes.state();
        self.health.send_if_modified(|health| {
            let changed = health.state != state;
            health.state = state;
            changed
        });
    }

    fn causes(&self) -> MutexGuard<'_, Causes> {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A component that was given up and has not been started again, and why. What the scrubber does, nobody waits for.
    pub(crate) fn down(&self) -> Option<Error> {
        let causes = self.causes();
        let awaited = |component: &Component| *component != Component::Scrubber;
        let down = causes.down.iter().find(|(component, _)| awaited(component));
        down.map(|(component, (reason, _))| Error::Unavailable {
            component: component.name(),
            reason: reason.clone(),
        })
    }

    pub(crate) fn restarted(&self, component: Component, reason: &str) -> u32 {
        let mut restarts = 0;
        self.health.send_modify(|health| {
            let entry = health.components.entry(component.to_string()).or_default();
            entry.restarts += 1;
            entry.last_error = reason.to_owned();
            restarts = entry.restarts;
        });
        restarts
    }

    pub(crate) fn gave_up(&self, component: Component, reason: &str, now: Duration) {
        self.health.send_modify(|health| {
            let entry = health.components.entry(component.to_string()).or_default();
            entry.down = true;
            entry.last_error = reason.to_owned();
        });
        let reason = format!("the {component} is down: {reason}");
        self.change(|causes| {
            if component.is_vital() {
                causes.refusal.get_or_insert(reason);
            } else {
                causes.down.entry(component).or_insert((reason, now));
            }
        });
    }

    /// A component was started again. Writes that are refused for it stay refused until the engine is resumed.
    pub(crate) fn revived(&self, component: Component) {
        self.change(|causes| drop(causes.down.remove(&component)));
        self.health.send_if_modified(|health| {
            let entry = health.components.get_mut(&component.to_string());
            entry.is_some_and(|entry| std::mem::take(&mut entry.down))
        });
    }

    /// Everything is tried anew: what still fails will say so again.
    pub(crate) fn resumed(&self) {
        self.change(|causes| {
            causes.refusal = None;
            causes.troubles.clear();
            causes.down.clear();
        });
        self.health.send_modify(|health| {
            for component in health.components.values_mut() {
                component.down = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_over_when_that_very_thing_works_again() {
        let board = HealthBoard::new();
        board.failing(Trouble::Flush, &Error::Closed, Duration::ZERO);
        board.works(Trouble::Log);
        assert!(matches!(board.now().state, HealthState::Degraded { .. }));
        board.works(Trouble::Flush);
        assert_eq!(board.now().state, HealthState::Healthy);
    }

    #[test]
    fn no_trouble_hides_another_and_the_oldest_is_shown() {
        let board = HealthBoard::new();
        let cause = || match board.now().state {
            HealthState::Degraded { cause, since } => format!("{cause} since {}", since.as_secs()),
            other => format!("{other:?}"),
        };
        let locked = Error::Locked { path: "db".into() };
        board.failing(Trouble::Flush, &Error::Closed, Duration::from_secs(1));
        board.failing(Trouble::Log, &Error::OutOfOrder, Duration::from_secs(2));
        board.failing(Trouble::Flush, &locked, Duration::from_secs(3));
        assert_eq!(cause(), "Flush: the engine is closed since 1", "the first cause stays");
        board.works(Trouble::Flush);
        assert_eq!(cause(), format!("Log: {} since 2", Error::OutOfOrder));
        board.failing(Trouble::Flush, &locked, Duration::from_secs(4));
        board.works(Trouble::Log);
        assert_eq!(cause(), format!("Flush: {locked} since 4"));
        board.works(Trouble::Flush);
        assert_eq!(cause(), "Healthy");
    }

    #[test]
    fn refused_writes_outweigh_every_trouble_and_name_the_first_reason() {
        let board = HealthBoard::new();
        board.failing(Trouble::Log, &Error::Closed, Duration::ZERO);
        board.gave_up(Component::WalWriter, "tired", Duration::ZERO);
        board.gave_up(Component::Flusher, "tired too", Duration::ZERO);
        board.works(Trouble::Log);
        board.failing(Trouble::Flush, &Error::Closed, Duration::ZERO);
        let reason = "the wal writer is down: tired".to_owned();
        assert_eq!(board.now().state, HealthState::ReadOnly { reason });
    }

    #[test]
    fn damage_is_shown_until_the_last_table_is_gone_and_no_resume_hides_it() {
        let board = HealthBoard::new();
        let table = |n: u64| DamagedTable {
            table: crate::FileId(n),
            path: format!("{n}.sst").into(),
            offset: 3,
            expected: "a block",
            since: Duration::from_secs(n),
        };
        board.failing(Trouble::Flush, &Error::Closed, Duration::from_secs(2));
        board.damaged(vec![table(1), table(3)]);
        let shown = |board: &HealthBoard| format!("{:?}", board.now().state);
        assert!(shown(&board).contains("1.sst: damaged at byte 3"), "{}", shown(&board));
        board.damaged(vec![table(3)]);
        assert!(shown(&board).contains("Flush"), "older than the other table: {}", shown(&board));
        board.resumed();
        assert!(shown(&board).contains("3.sst"), "{}", shown(&board));
        assert_eq!(board.now().damaged, [table(3)]);
        board.damaged(Vec::new());
        assert_eq!(board.now(), Health::default());
    }

    #[test]
    fn watchers_are_told_of_changes_only() {
        let board = HealthBoard::new();
        let mut told = board.watch();
        board.failing(Trouble::Log, &Error::Closed, Duration::ZERO);
        assert!(told.has_changed().unwrap());
        told.mark_unchanged();
        board.failing(Trouble::Log, &Error::Closed, Duration::from_secs(1));
        board.works(Trouble::Flush);
        assert!(!told.has_changed().unwrap());
    }

    #[test]
    fn a_vital_component_that_is_down_makes_the_engine_read_only_until_it_is_resumed() {
        let board = HealthBoard::new();
        board.gave_up(Component::WalGc, "tired", Duration::ZERO);
        assert!(matches!(board.now().state, HealthState::Degraded { .. }));
        board.revived(Component::WalGc);
        assert_eq!(board.now().state, HealthState::Healthy);
        assert!(!board.now().components["wal gc"].down);
        board.gave_up(Component::Flusher, "tired", Duration::ZERO);
        board.revived(Component::Flusher);
        assert!(matches!(board.now().state, HealthState::ReadOnly { .. }));
        board.resumed();
        assert_eq!(board.now().state, HealthState::Healthy);
    }
}
