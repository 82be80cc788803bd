//! Messages that come later: timers of the injected clock, which die with the actor that set them.

use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::AbortHandle;

use crate::env::Env;

/// A pending message; dropping it cancels it.
#[derive(Debug)]
pub(crate) struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends `message` to `actor` after `delay`.
pub(crate) fn send_after<M: Message>(
    env: &Env,
    delay: Duration,
    actor: &ActorRef<M>,
    message: M,
) -> Timer {
    let sleep = env.clock.sleep(delay);
    let actor = actor.clone();
    let task = tokio::spawn(async move {
        sleep.await;
        // An actor that is gone by now does not need it.
        drop(actor.cast(message));
    });
    Timer(task.abort_handle())
}
