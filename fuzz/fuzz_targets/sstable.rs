//! libFuzzer's way into [`nori_fuzz::sstable`].
#![no_main]

libfuzzer_sys::fuzz_target!(init: nori_fuzz::believe_checksums(), |data: &[u8]| {
    nori_fuzz::sstable::run(data);
});
