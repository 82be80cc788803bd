//! What the lock-free parts of a memtable are made of: atomics, cells that are written once, and a root that is swapped.
//!
//! They are those of std and of arc-swap. Under `cfg(nori_loom)` the tests of this crate get models of them instead, which promise
//! just as much and no more, so that loom can try every order of steps and every value that a weak memory may show.

#[cfg(not(all(test, nori_loom)))]
pub(super) use real::{AtomicU32, AtomicU64, AtomicUsize, OnceLock, Swapped};

#[cfg(all(test, nori_loom))]
pub(super) use model::{AtomicU32, AtomicU64, AtomicUsize, OnceLock, Swapped};

/// Whether this is a model. It is made of small parts, so that few inserts bring about every change of shape.
pub(super) const MODEL: bool = cfg!(all(test, nori_loom));

#[cfg(not(all(test, nori_loom)))]
mod real {
    pub(in crate::memtable) use std::sync::OnceLock;
    pub(in crate::memtable) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

    pub(in crate::memtable) use arc_swap::ArcSwap as Swapped;
}

/// Loom watches its own atomics only, not what lies behind them. So everything that one thread makes and another reads carries a
/// [`Birth`], and whoever reads it without having been told of it is found out.
#[cfg(all(test, nori_loom))]
mod model {
    use std::sync::{Arc, Mutex, PoisonError};

    use ::loom::sync::atomic::{AtomicBool, Ordering};
    pub(in crate::memtable) use ::loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

    /// Beside a value: an atomic that comes into being with it. Loom complains of a load that does not happen after that.
    #[derive(Debug)]
    struct Birth(AtomicBool);

    impl Birth {
        fn now() -> Self {
            Self(AtomicBool::new(true))
        }

        fn was_before(&self) {
            assert!(self.0.load(Ordering::Relaxed));
        }
    }

    /// What std promises of its `OnceLock`: what was set is seen by whoever sees that it is set.
    #[derive(Debug)]
    pub(in crate::memtable) struct OnceLock<T> {
        ready: AtomicBool,
        value: std::sync::OnceLock<(T, Birth)>,
    }

    impl<T> OnceLock<T> {
        pub(in crate::memtable) fn new() -> Self {
            Self { ready: AtomicBool::new(false), value: std::sync::OnceLock::new() }
        }

        pub(in crate::memtable) fn get(&self) -> Option<&T> {
            if !self.ready.load(Ordering::Acquire) {
                return None;
            }
            let (value, birth) = self.value.get()?;
            birth.was_before();
            Some(value)
        }

        /// REQUIRES: nobody else sets it meanwhile.
        pub(in crate::memtable) fn set(&self, value: T) -> Result<(), T> {
            self.value.set((value, Birth::now())).map_err(|(value, _)| value)?;
            self.ready.store(true, Ordering::Release);
            Ok(())
        }

        /// REQUIRES: as for `set`.
        pub(in crate::memtable) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            if self.get().is_none() {
                assert!(self.set(init()).is_ok(), "one writer");
            }
            self.get().expect("it was set")
        }
    }

    /// What arc-swap promises of its `ArcSwap`: a load acquires what the store that it reads has released. Loads may be old.
    #[derive(Debug)]
    pub(in crate::memtable) struct Swapped<T> {
        /// Every value so far. The lock is not one of loom, so it orders nothing; it is never held across a step.
        values: Mutex<Vec<Arc<(Arc<T>, Birth)>>>,
        at: AtomicUsize,
    }

    impl<T> Swapped<T> {
        pub(in crate::memtable) fn new(value: Arc<T>) -> Self {
            let first = Arc::new((value, Birth::now()));
            Self { values: Mutex::new(vec![first]), at: AtomicUsize::new(0) }
        }

        /// REQUIRES: nobody else stores meanwhile.
        pub(in crate::memtable) fn store(&self, value: Arc<T>) {
            let next = Arc::new((value, Birth::now()));
            let at = {
                let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
                values.push(next);
                values.len() - 1
            };
            self.at.store(at, Ordering::Release);
        }

        pub(in crate::memtable) fn load_full(&self) -> Arc<T> {
            let at = self.at.load(Ordering::Acquire);
            let found = {
                let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(&values[at])
            };
            found.1.was_before();
            Arc::clone(&found.0)
        }

        pub(in crate::memtable) fn load(&self) -> Arc<T> {
            self.load_full()
        }
    }
}
