#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tailwater_fuzz::run("connections", data));
