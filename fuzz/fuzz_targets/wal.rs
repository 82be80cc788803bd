//! libFuzzer's way into [`nori_fuzz::wal`].
#![no_main]

libfuzzer_sys::fuzz_target!(init: nori_fuzz::believe_checksums(), |data: &[u8]| {
    nori_fuzz::wal::run(data);
});
