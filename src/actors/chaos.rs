//! Blows on demand: how a program, or a test, finds out what a dying component does to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorProcessingErr;

use super::root;
use super::{Component, Routes};

/// How a component is to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Its handler panics.
    Panic,
    /// Its handler returns an error.
    Fail,
    /// It is killed while its handler works, at whatever it waits for then.
    Kill,
}

/// Blows that wait for a message of their component.
#[derive(Debug)]
pub(crate) struct Strikes {
    marks: Mutex<BTreeMap<Component, Mark>>,
    routes: Arc<Routes>,
}

/// What is known of one component.
#[derive(Debug, Default)]
struct Mark {
    /// Messages that it has taken up.
    messages: u64,
    /// The blow that awaits it, and the number of the message at which it falls.
    armed: Option<(u64, Blow)>,
}

impl Strikes {
    pub(crate) fn new(routes: Arc<Routes>) -> Self {
        Self { marks: Mutex::default(), routes }
    }

    /// Arms a blow for the message behind the next `after` ones.
    pub(crate) fn arm(&self, component: Component, after: u64, blow: Blow) {
        let mut marks = self.locked();
        let mark = marks.entry(component).or_default();
        mark.armed = Some((mark.messages.saturating_add(after), blow));
    }

    /// Messages that a component has taken up, those included at which it died.
    pub(crate) fn messages(&self, component: Component) -> u64 {
        self.locked().get(&component).map_or(0, |mark| mark.messages)
    }

    /// Called at the start of each message.
    ///
    /// # Panics
    /// If the component was armed with [`Blow::Panic`].
    #[expect(clippy::panic, reason = "this is what was asked for")]
    pub(crate) fn strike(&self, component: Component) -> Result<(), ActorProcessingErr> {
        match self.due(component) {
            None => Ok(()),
            Some(Blow::Fail) => Err("struck on demand".into()),
            Some(Blow::Panic) => panic!("struck on demand"),
            Some(Blow::Kill) => {
                self.routes.root.ring(root::Msg::Kill(component));
                Ok(())
            }
        }
    }

    /// Counts a message. Returns the blow that falls at it.
    fn due(&self, component: Component) -> Option<Blow> {
        let mut marks = self.locked();
        let mark = marks.entry(component).or_default();
        let number = mark.messages;
        mark.messages += 1;
        mark.armed.take_if(|(at, _)| *at <= number).map(|(_, blow)| blow)
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Component, Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
