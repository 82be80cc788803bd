//! How hard writes must be held back, as one number, and the rate that follows from it.

use crate::config::ATLLConfig;
use crate::types::u64_of;

/// Pressure from which writes are slowed.
const SLOW: f64 = 0.5;
/// Pressure that the slowing aims at.
const SET_POINT: f64 = 0.7;

/// What fills up while background work is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Bytes of all memtables, active and sealed.
    pub(crate) memtable_bytes: u64,
    /// Runs of L0.
    pub(crate) l0_runs: usize,
    /// Bytes that compaction has yet to move, see `Policy::debt`.
    pub(crate) debt: u64,
}

/// How full the fullest of the queues is: 0 idle, 1 full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pressure {
    pub(crate) value: f64,
    /// The fullest queue, as text for people.
    pub(crate) cause: &'static str,
}

/// What a writer is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Admitted {
    /// Go on.
    Free,
    /// At most so many bytes per second, all writers together.
    Rate(f64),
    /// Not before the next flush or admission.
    Wait,
}

/// Measures the pressure.
pub(crate) fn pressure(config: &ATLLConfig, backlog: Backlog) -> Pressure {
    let share = |have: u64, limit: u64| have as f64 / limit.max(1) as f64;
    let memory = u64_of(config.resources.memtables_mib) << 20;
    let queues = [
        (share(backlog.memtable_bytes, memory), "memtables: flushes are behind"),
        (share(u64_of(backlog.l0_runs), u64_of(config.l0.max_files)), "L0: admissions are behind"),
        (share(backlog.debt, soft_debt(config)), "levels: compactions are behind"),
    ];
    let mut most = Pressure { value: 0.0, cause: "nothing" };
    for (value, cause) in queues {
        if value > most.value {
            most = Pressure { value: value.min(1.0), cause };
        }
    }
    most
}

/// Debt in bytes at which writes would wait: some forty flushes.
fn soft_debt(config: &ATLLConfig) -> u64 {
    u64_of(config.memtable.flush_trigger_bytes).saturating_mul(40).max(1 << 20)
}

/// What writers are told at pressure `x` when memtables drain at `drain` bytes per second.
///
/// Proportional around the set point: from 1.4 of the drain rate at a half down to 0.4 of it short of 1.
/// Source: ours.
pub(crate) fn admitted(x: f64, drain: f64) -> Admitted {
    if x < SLOW {
        Admitted::Free
    } else if x < 1.0 {
        Admitted::Rate(drain * (1.0 + 2.0 * (SET_POINT - x)))
    } else {
        Admitted::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ATLLConfig {
        ATLLConfig { seed: 1, ..ATLLConfig::default() }
    }

    #[test]
    fn the_fullest_queue_decides() {
        let config = config();
        let idle = pressure(&config, Backlog::default());
        assert_eq!(idle, Pressure { value: 0.0, cause: "nothing" });
        let backlog = Backlog { memtable_bytes: 64 << 20, l0_runs: 6, debt: 1 };
        let found = pressure(&config, backlog);
        assert!((found.value - 0.5).abs() < 1e-9 && found.cause.starts_with("L0"), "{found:?}");
        let backlog = Backlog { memtable_bytes: 512 << 20, ..backlog };
        let found = pressure(&config, backlog);
        assert!(found.value >= 1.0 && found.cause.starts_with("memtables"), "{found:?}");
        let backlog = Backlog { debt: (64 << 20) * 30, l0_runs: 0, memtable_bytes: 0 };
        assert!((pressure(&config, backlog).value - 0.75).abs() < 1e-9);
    }

    #[test]
    fn limits_are_those_of_the_configuration() {
        let mut config = config();
        config.l0.max_files = 24;
        config.resources.memtables_mib = 128;
        let l0 = Backlog { l0_runs: 6, ..Backlog::default() };
        assert!((pressure(&config, l0).value - 0.25).abs() < 1e-9);
        let memory = Backlog { memtable_bytes: 64 << 20, ..Backlog::default() };
        assert!((pressure(&config, memory).value - 0.5).abs() < 1e-9);
    }

    #[test]
    fn writes_slow_down_without_a_cliff() {
        assert_eq!(admitted(0.49, 100.0), Admitted::Free);
        let mut last = f64::INFINITY;
        for step in 50..100 {
            let Admitted::Rate(rate) = admitted(f64::from(step) / 100.0, 100.0) else {
                panic!("slowed from a half on")
            };
            assert!(rate < last && rate >= 40.0, "{rate}");
            last = rate;
        }
        assert_eq!(admitted(1.0, 100.0), Admitted::Wait);
    }
}
