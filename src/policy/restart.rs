//! Whether a component that died is started again, and how soon.

use std::time::Duration;

/// Deaths of one role that are forgiven within [`ROLE_WINDOW`].
const ROLE_DEATHS: usize = 5;
const ROLE_WINDOW: Duration = Duration::from_secs(30);
/// Deaths of all roles together that are forgiven within [`ENGINE_WINDOW`].
const ENGINE_DEATHS: usize = 20;
const ENGINE_WINDOW: Duration = Duration::from_secs(60);
/// Time without a death after which a role counts as healthy again.
const HEALTHY: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// What to do about a component that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again after this long.
    Restart { after: Duration },
    /// It dies too often: leave it down, and say so.
    GiveUp,
}

/// Judges the newest death of a role.
///
/// `role`, `engine`: when that role, and any role, died, in ascending order, this death included.
pub(crate) fn verdict(role: &[Duration], engine: &[Duration], now: Duration) -> Verdict {
    let within = |deaths: &[Duration], window: Duration| {
        deaths.iter().filter(|at| now.saturating_sub(**at) < window).count()
    };
    if within(role, ROLE_WINDOW) > ROLE_DEATHS || within(engine, ENGINE_WINDOW) > ENGINE_DEATHS {
        return Verdict::GiveUp;
    }
    let healthy = |pair: &[Duration]| {
        pair.first().zip(pair.last()).is_some_and(|(a, b)| b.saturating_sub(*a) >= HEALTHY)
    };
    let streak = role.windows(2).rev().take_while(|pair| !healthy(pair)).count();
    let doublings = u32::try_from(streak).unwrap_or(u32::MAX).min(16);
    Verdict::Restart { after: (FIRST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: &[u64]) -> Vec<Duration> {
        millis.iter().copied().map(Duration::from_millis).collect()
    }

    fn judge(deaths: &[u64]) -> Verdict {
        let deaths = at(deaths);
        verdict(&deaths, &deaths, *deaths.last().unwrap())
    }

    fn after(millis: u64) -> Verdict {
        Verdict::Restart { after: Duration::from_millis(millis) }
    }

    #[test]
    fn each_death_in_a_row_doubles_the_wait() {
        assert_eq!(judge(&[0]), after(10));
        assert_eq!(judge(&[0, 100]), after(20));
        assert_eq!(judge(&[0, 100, 200, 300, 400]), after(160));
        let slow: Vec<u64> = (0..12).map(|n| n * 31_000).collect();
        assert_eq!(judge(&slow), after(5000), "and no longer than five seconds");
    }

    #[test]
    fn a_healthy_minute_resets_the_wait() {
        assert_eq!(judge(&[0, 100, 200, 60_200]), after(10));
        assert_eq!(judge(&[0, 100, 200, 60_199]), after(80));
    }

    #[test]
    fn the_sixth_death_in_thirty_seconds_is_the_last() {
        assert_eq!(judge(&[0, 1, 2, 3, 4, 29_999]), Verdict::GiveUp);
        assert_ne!(judge(&[0, 1, 2, 3, 4, 30_000]), Verdict::GiveUp);
    }

    #[test]
    fn an_engine_whose_roles_die_in_turn_gives_up_too() {
        let engine: Vec<Duration> = (0..21).map(Duration::from_secs).collect();
        let now = *engine.last().unwrap();
        assert_eq!(verdict(&[now], &engine, now), Verdict::GiveUp);
        assert_eq!(verdict(&[now], &engine[1..], now), after(10));
    }
}
