//! libFuzzer's way into [`nori_fuzz::engine`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    nori_fuzz::engine::run(data);
});
