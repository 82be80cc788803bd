//! Backpressure on writers: nothing while background work keeps up, a smooth delay when it falls behind, a wait at the limit.
//!
//! Waiting is a timer or a notification: no caller's thread sleeps or spins, and a deadline turns it into an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::env::Clock;
use crate::error::{Error, Result};
use crate::tally::Tally;
use crate::types::u64_of;

/// Delays below this are saved up: a timer cannot wait less.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// How far the gate is open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Valve {
    /// No delay.
    Open,
    /// All writers together get this many bytes per second.
    Slow {
        /// Admitted rate.
        bytes_per_s: f64,
    },
    /// Nobody passes.
    Shut {
        /// What has to happen first.
        cause: &'static str,
    },
}

/// The place that every write passes before it is queued.
#[derive(Debug)]
pub(crate) struct Gate {
    /// The common case, without a lock.
    open: AtomicBool,
    state: Mutex<State>,
    /// The valve was set to something that lets writes pass, sooner or later.
    opened: Notify,
    /// Bytes of the writes that are held up.
    waiting: Tally,
    /// The valve was opened: whoever is being paced may go at once.
    cleared: Notify,
}

#[derive(Debug)]
struct State {
    valve: Valve,
    /// When the bytes admitted so far are paid for, on the monotonic clock.
    paid_until: Duration,
}

/// How long a write was held up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stall(pub(crate) Duration);

impl Default for Gate {
    fn default() -> Self {
        let state = State { valve: Valve::Open, paid_until: Duration::ZERO };
        Self {
            open: AtomicBool::new(true),
            state: Mutex::new(state),
            opened: Notify::new(),
            waiting: Tally::default(),
            cleared: Notify::new(),
        }
    }
}

impl Gate {
    pub(crate) fn set(&self, valve: Valve) {
        let mut state = self.state();
        if state.valve == valve {
            return;
        }
        state.valve = valve;
        self.open.store(valve == Valve::Open, Ordering::Release);
        if valve == Valve::Open {
            state.paid_until = Duration::ZERO;
            self.cleared.notify_waiters();
        }
        drop(state);
        if !matches!(valve, Valve::Shut { .. }) {
            self.opened.notify_waiters();
        }
    }

    /// Lets a write of `bytes` pass, at once or after a while.
    ///
    /// # Errors
    /// [`Error::Stalled`] if that would take longer than `deadline`; the write has not happened then.
    pub(crate) async fn pass(
        &self,
        clock: &dyn Clock,
        bytes: usize,
        deadline: Option<Duration>,
    ) -> Result<Stall> {
        if self.open.load(Ordering::Acquire) {
            return Ok(Stall::default());
        }
        let start = clock.now();
        let _waiting = self.waiting.share(u64_of(bytes));
        let mut paid = false;
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable(); // a change between the look at the valve and the wait is not missed
            let cleared = self.cleared.notified();
            tokio::pin!(cleared);
            cleared.as_mut().enable();
            let waited = clock.now().saturating_sub(start);
            let left = deadline.map(|deadline| deadline.saturating_sub(waited));
            // What was paid for waits only while the gate is shut.
            match self.admit(clock.now(), if paid { 0 } else { bytes }, left) {
                Admission::After(wait) if paid || wait.is_zero() => return Ok(Stall(waited)),
                Admission::After(wait) => {
                    paid = true;
                    tokio::select! {
                        biased;
                        () = cleared => {}
                        () = clock.sleep(wait) => {}
                    }
                }
                Admission::Late { cause, retry_after } => {
                    return Err(Error::Stalled { cause, waited, retry_after });
                }
                Admission::Wait => match left {
                    None => opened.await,
                    Some(left) => tokio::select! {
                        biased;
                        () = opened => {}
                        () = clock.sleep(left) => {}
                    },
                },
            }
        }
    }

    /// Bytes of the writes that are held up.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting.bytes()
    }

    fn admit(&self, now: Duration, bytes: usize, left: Option<Duration>) -> Admission {
        let mut state = self.state();
        match state.valve {
            Valve::Open => Admission::After(Duration::ZERO),
            Valve::Shut { cause } if left == Some(Duration::ZERO) => {
                Admission::Late { cause, retry_after: Duration::from_millis(100) }
            }
            Valve::Shut { .. } => Admission::Wait,
            Valve::Slow { .. } if bytes == 0 => Admission::After(Duration::ZERO),
            Valve::Slow { bytes_per_s } => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let cost = Duration::from_secs_f64(f64::from(bytes) / bytes_per_s.max(1024.0));
                let paid_until = state.paid_until.max(now) + cost;
                let wait = paid_until - now;
                if left.is_some_and(|left| wait > left) {
                    return Admission::Late { cause: "write pacing", retry_after: wait };
                }
                state.paid_until = paid_until;
                Admission::After(if wait < SHORTEST_WAIT { Duration::ZERO } else { wait })
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Admission {
    After(Duration),
    Late { cause: &'static str, retry_after: Duration },
    Wait,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_gate_spaces_bytes_evenly_and_refuses_what_would_be_late() {
        let gate = Gate::default();
        gate.set(Valve::Slow { bytes_per_s: 1_000_000.0 });
        let at = Duration::from_secs(5);
        let waits: Vec<u128> = (0..4)
            .map(|_| match gate.admit(at, 1000, None) {
                Admission::After(wait) => wait.as_millis(),
                Admission::Late { .. } | Admission::Wait => panic!("nothing is late"),
            })
            .collect();
        assert_eq!(waits, [1, 2, 3, 4]);
        let left = Some(Duration::from_millis(2));
        assert!(matches!(gate.admit(at, 1000, left), Admission::Late { .. }));
    }

    #[test]
    fn a_shut_gate_lets_nobody_pass_until_it_is_set_again() {
        let gate = Gate::default();
        gate.set(Valve::Shut { cause: "flush" });
        assert!(matches!(gate.admit(Duration::ZERO, 1, None), Admission::Wait));
        assert!(matches!(
            gate.admit(Duration::ZERO, 1, Some(Duration::ZERO)),
            Admission::Late { cause: "flush", .. }
        ));
        gate.set(Valve::Open);
        assert!(matches!(gate.admit(Duration::ZERO, 1, None), Admission::After(Duration::ZERO)));
    }

    /// A clock on which no sleep ends.
    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Duration {
            Duration::from_secs(1)
        }

        fn wall_ms(&self) -> u64 {
            0
        }

        fn sleep(&self, _: Duration) -> crate::env::Sleep {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn a_paced_write_goes_at_once_when_the_gate_is_opened() {
        let gate = Gate::default();
        gate.set(Valve::Slow { bytes_per_s: 1024.0 });
        let opening = async {
            tokio::task::yield_now().await;
            gate.set(Valve::Slow { bytes_per_s: 2048.0 });
            tokio::task::yield_now().await;
            gate.set(Valve::Open);
        };
        let (passed, ()) = tokio::join!(gate.pass(&Stopped, 1 << 20, None), opening);
        assert!(passed.is_ok());
        gate.set(Valve::Slow { bytes_per_s: 1e9 });
        assert!(matches!(gate.admit(Duration::ZERO, 1, None), Admission::After(Duration::ZERO)));
    }
}
