//! libFuzzer's way into [`nori_fuzz::block`].
#![no_main]

libfuzzer_sys::fuzz_target!(init: nori_fuzz::believe_checksums(), |data: &[u8]| {
    nori_fuzz::block::run(data);
});
