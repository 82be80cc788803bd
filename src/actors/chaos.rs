//! Blows on demand: how a program, or a test, finds out what a dying component does to it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ractor::ActorProcessingErr;

use super::Component;

/// How a component is to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Its handler panics.
    Panic,
    /// Its handler returns an error.
    Fail,
}

/// Blows that wait for the next message of their component.
#[derive(Debug, Default)]
pub(crate) struct Strikes(Mutex<BTreeMap<Component, Blow>>);

impl Strikes {
    pub(crate) fn arm(&self, component: Component, blow: Blow) {
        self.locked().insert(component, blow);
    }

    /// Called at the start of each message.
    ///
    /// # Panics
    /// If the component was armed with [`Blow::Panic`].
    #[expect(clippy::panic, reason = "this is what was asked for")]
    pub(crate) fn strike(&self, component: Component) -> Result<(), ActorProcessingErr> {
        let blow = self.locked().remove(&component);
        match blow {
            None => Ok(()),
            Some(Blow::Fail) => Err("struck on demand".into()),
            Some(Blow::Panic) => panic!("struck on demand"),
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Component, Blow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
