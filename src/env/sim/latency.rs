//! How long a simulated disk takes: drawn from a seed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;

/// Times that jobs on a simulated disk take. Clones draw from the same seed.
#[derive(Clone, Debug)]
pub struct Latency {
    rng: Arc<Mutex<Rng>>,
    max: Duration,
}

impl Latency {
    /// Times from nothing up to `max`, most of them short: a disk is seldom slow.
    #[must_use]
    pub fn new(seed: u64, max: Duration) -> Self {
        Self { rng: Arc::new(Mutex::new(Rng::with_seed(seed))), max }
    }

    pub(in crate::env) fn draw(&self) -> Duration {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let share = rng.f64();
        self.max.mul_f64(share.powi(4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_times_again() {
        let max = Duration::from_millis(100);
        let draw = |seed| {
            let latency = Latency::new(seed, max);
            (0..50).map(|_| latency.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).into_iter().all(|time| time <= max));
    }
}
