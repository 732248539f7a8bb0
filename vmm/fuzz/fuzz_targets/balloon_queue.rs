//! A balloon whose driver offers whatever the input says in all its queues.
#![no_main]

use bulkhead_vmm::devices::balloon::{BalloonDevice, Held, Role};
use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::memory::shared_ram;
use bulkhead_vmm_fuzz::driver::{BUFFERS, Ring};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some(features) = input.u64() else { return };
    let roles = Role::of_queues(features);
    let (ram, _file) = shared_ram();
    let device = BalloonDevice::new().unwrap();
    let mut held = Held::default();
    let mut rings: Vec<Ring> = (0..roles.len() as u64).map(|at| Ring::new(0x1_0000 + at * 0x8000, 64)).collect();
    let mut queues: Vec<_> = rings.iter().map(Ring::queue).collect();
    for _ in 0..200 {
        let Some([what]) = input.take() else { return };
        let at = usize::from(what >> 4) % roles.len();
        let went_on = match what & 7 {
            0 => input.u64().map(|value| device.write_config(usize::from(what >> 3), &value.to_le_bytes()[..4])),
            1 => input.u64().zip(input.u32()).map(|(pages, at)| {
                let at = BUFFERS + u64::from(at & 0x1f_ffff);
                ram.write_slice(&pages.to_le_bytes(), GuestAddress(at)).unwrap();
            }),
            _ => input.describe(&ram, &mut rings[at]),
        };
        if went_on.is_none()
            || device.process(&ram, &mut queues[at], at, roles[at], &mut held).is_err()
            || device.ask_for_stats(&ram, &mut queues[at], at, &mut held).is_err()
        {
            return;
        }
    }
});
