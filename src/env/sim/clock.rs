//! Clocks for tests: one that is turned by hand, and one that follows the runtime's time, which tests can pause.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::env::{Clock, Sleep};

/// Wall time at which both clocks begin, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// A clock that moves only when it is told to. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    state: Arc<Mutex<Hands>>,
}

#[derive(Debug, Default)]
struct Hands {
    now: Duration,
    wall_offset_ms: i64,
    /// Those who sleep, by the time they want to be woken at and the order in which they came.
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    slept: u64,
}

impl ManualClock {
    /// Moves the clock on and wakes everyone whose time has come, earliest first.
    pub fn advance(&self, duration: Duration) {
        let mut hands = self.hands();
        hands.now += duration;
        let after = (hands.now + Duration::from_nanos(1), 0);
        let later = hands.sleepers.split_off(&after);
        let due = std::mem::replace(&mut hands.sleepers, later);
        drop(hands);
        for waker in due.into_values() {
            // Who went away needs no waking.
            waker.send(()).unwrap_or_default();
        }
    }

    /// Makes the wall clock jump, forward or back; timers do not notice.
    pub fn jump_wall(&self, ms: i64) {
        self.hands().wall_offset_ms += ms;
    }

    /// Number of timers that are set and not due.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.hands().sleepers.values().filter(|waker| !waker.is_closed()).count()
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        self.hands().now
    }

    fn wall_ms(&self) -> u64 {
        let hands = self.hands();
        wall_ms(hands.now, hands.wall_offset_ms)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let mut hands = self.hands();
        if duration.is_zero() {
            return Box::pin(std::future::ready(()));
        }
        let (waker, woken) = oneshot::channel();
        hands.slept += 1;
        let key = (hands.now.saturating_add(duration), hands.slept);
        hands.sleepers.insert(key, waker);
        drop(hands);
        Box::pin(async move { drop(woken.await) })
    }
}

/// The clock of the tokio runtime: under paused time it jumps to the next timer whenever nothing else can run.
///
/// Make it inside the runtime. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    start: Instant,
    wall_offset_ms: Arc<AtomicI64>,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self { start: Instant::now(), wall_offset_ms: Arc::default() }
    }
}

impl VirtualClock {
    /// Makes the wall clock jump, forward or back; timers do not notice.
    pub fn jump_wall(&self, ms: i64) {
        self.wall_offset_ms.fetch_add(ms, Ordering::AcqRel);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        wall_ms(self.start.elapsed(), self.wall_offset_ms.load(Ordering::Acquire))
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

fn wall_ms(now: Duration, offset_ms: i64) -> u64 {
    let elapsed = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    BEGIN_MS.saturating_add(elapsed).saturating_add_signed(offset_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_when_the_clock_was_moved_that_far_and_not_before() {
        let clock = ManualClock::default();
        let mut sleep = clock.sleep(Duration::from_secs(2));
        clock.advance(Duration::from_secs(1));
        assert!(futures::poll!(&mut sleep).is_pending());
        assert_eq!(clock.sleepers(), 1);
        clock.advance(Duration::from_secs(1));
        sleep.await;
        assert_eq!((clock.now(), clock.sleepers()), (Duration::from_secs(2), 0));
        let wall = clock.wall_ms();
        clock.jump_wall(-5000);
        assert_eq!((clock.wall_ms(), clock.now()), (wall - 5000, Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn virtual_time_costs_no_time() {
        let clock = VirtualClock::default();
        clock.sleep(Duration::from_secs(3600)).await;
        assert!(clock.now() >= Duration::from_secs(3600));
    }
}
