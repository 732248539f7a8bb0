//! A file of a device's vendor, as JSON and as YAML.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        bulkhead_fuzz::read_cdi_specification(text);
    }
});
