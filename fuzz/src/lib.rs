//! The bodies of the fuzz targets: each takes any bytes, and panics if the engine breaks a promise over them.
//!
//! The fuzzer calls them through `fuzz_targets/`, `tests/corpus` with the files of `corpus/` and `regressions/`.

pub mod block;
pub mod engine;
pub mod machine;
pub mod manifest;
pub mod seal;
pub mod sstable;
pub mod wal;
#[path = "../../tests/world/mod.rs"]
#[expect(dead_code, reason = "tests of this world use the rest of it")]
pub mod world;

/// Whether the engine took the bytes for what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused,
}

/// Lets the fuzzer get behind the checksums: those of the files it makes are never right.
pub fn believe_checksums() {
    #[cfg(fuzzing)]
    nori_lsm::fuzzing::believe_checksums();
}
