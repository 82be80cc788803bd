//! How the engine is: what failed, since when, and what it does about it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::Component;

/// How an engine is. See [`LsmEngine::health`](crate::LsmEngine::health).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Health {
    /// The worst of what is below.
    pub state: HealthState,
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
    /// Something fails and is tried again: the engine goes on by itself once the cause is gone.
    Degraded {
        /// What failed first.
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
    /// How often it was started again.
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
}

/// What keeps failing, one at a time each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Log,
    NextSegment,
    Flush,
    Manifest,
    Compaction,
}

impl HealthBoard {
    pub(crate) fn new() -> Self {
        Self { health: watch::Sender::new(Health::default()) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(crate) fn now(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Something failed and will be tried again.
    pub(crate) fn failing(&self, trouble: Trouble, error: &crate::Error, now: Duration) {
        self.health.send_if_modified(|health| match health.state {
            HealthState::Healthy => {
                let cause = format!("{trouble:?}: {error}");
                health.state = HealthState::Degraded { cause, since: now };
                true
            }
            HealthState::Degraded { .. } | HealthState::ReadOnly { .. } => false,
        });
    }

    /// It works again.
    pub(crate) fn works(&self, trouble: Trouble) {
        self.health.send_if_modified(|health| match &health.state {
            HealthState::Degraded { cause, .. } if cause.starts_with(&format!("{trouble:?}:")) => {
                health.state = HealthState::Healthy;
                true
            }
            _ => false,
        });
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

    pub(crate) fn gave_up(&self, component: Component, reason: &str) {
        self.health.send_modify(|health| {
            let entry = health.components.entry(component.to_string()).or_default();
            entry.down = true;
            entry.last_error = reason.to_owned();
            if component.is_vital() {
                let reason = format!("the {component} is down: {reason}");
                health.state = HealthState::ReadOnly { reason };
            }
        });
    }

    pub(crate) fn resumed(&self) {
        self.health.send_modify(|health| {
            health.state = HealthState::Healthy;
            for component in health.components.values_mut() {
                component.down = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

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
    fn a_vital_component_that_is_down_makes_the_engine_read_only_until_it_is_resumed() {
        let board = HealthBoard::new();
        board.gave_up(Component::WalGc, "tired");
        assert_eq!(board.now().state, HealthState::Healthy);
        board.gave_up(Component::Flusher, "tired");
        assert!(matches!(board.now().state, HealthState::ReadOnly { .. }));
        board.resumed();
        assert_eq!(board.now().state, HealthState::Healthy);
    }
}
