//! How fast compactions may write, all of them together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A rate that all who write share.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    /// Until when the rate is used up, on the monotonic clock.
    used_until: Mutex<Duration>,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, used_until: Mutex::default() }
    }

    /// Counts `bytes` that were written. Returns how long their writer has to wait before it goes on: behind those who wrote before.
    /// Who wrote nothing need not wait.
    pub(crate) fn wrote(&self, bytes: u64, now: Duration) -> Duration {
        if bytes == 0 {
            return Duration::ZERO;
        }
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_s.max(1);
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        *used_until = (*used_until).max(now).saturating_add(Duration::from_micros(micros));
        used_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn writers_share_the_rate() {
        let pace = Pace::new(1000);
        assert_eq!(pace.wrote(500, SECOND), SECOND / 2);
        assert_eq!(pace.wrote(500, SECOND), SECOND, "the second waits behind the first");
        assert_eq!(pace.wrote(0, SECOND), Duration::ZERO, "who writes nothing waits for nobody");
        assert_eq!(pace.wrote(1000, 2 * SECOND), SECOND);
    }

    #[test]
    fn a_pause_is_not_saved_up() {
        let pace = Pace::new(1000);
        assert_eq!(pace.wrote(1000, 60 * SECOND), SECOND);
    }
}
