//! An entropy device whose driver offers whatever the input says.
#![no_main]

use bulkhead_vmm::devices::rng::{Progress, RngDevice};
use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::{Ring, ram};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (ram, mut ring, mut device) = (ram(), Ring::new(0x1_0000, 64), RngDevice::default());
    let (mut queue, mut input) = (ring.queue(), Input(bytes));
    while input.describe(&ram, &mut ring).is_some() {
        // What the device writes may land on the ring and offer more.
        for _ in 0..256 {
            match device.process_next(&ram, &mut queue) {
                Ok(Progress::Done { .. }) => {}
                Ok(Progress::Idle) => break,
                Err(_) => return,
            }
        }
    }
});
