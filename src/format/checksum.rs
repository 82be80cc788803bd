//! Whether a stored checksum is right: the one place that says so.
//!
//! A fuzzer cannot guess checksums. In a build with `cfg(fuzzing)` it may ask to have all of them believed, and so gets to what
//! lies behind them; in every other build there is nothing to ask.

#[cfg(fuzzing)]
static BELIEVED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// From now on every checksum is right, in the whole process.
#[cfg(fuzzing)]
pub(crate) fn believe_all() {
    BELIEVED.store(true, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(not(fuzzing))]
const fn believed() -> bool {
    false
}

#[cfg(fuzzing)]
fn believed() -> bool {
    BELIEVED.load(std::sync::atomic::Ordering::Relaxed)
}

/// Whether bytes whose checksum is `computed` are those that `stored` was written for.
#[inline]
pub(crate) fn holds(computed: u32, stored: u32) -> bool {
    computed == stored || believed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_of_a_checksum_may_differ() {
        let crc = crc32c::crc32c(b"nori");
        assert!(holds(crc, crc));
        assert!((0..32).all(|bit| !holds(crc, crc ^ (1 << bit))));
    }
}
