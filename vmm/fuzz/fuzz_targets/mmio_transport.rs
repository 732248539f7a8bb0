//! The registers of virtio-mmio, read and written at any place and width, in front of a device that works.
#![no_main]

use bulkhead_vmm::devices::balloon::{Balloon, BalloonDevice};
use bulkhead_vmm::devices::rng::Rng;
use bulkhead_vmm::mmio::Transport;
use bulkhead_vmm::state::Snapshot;
use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::{Ring, ram};
use libfuzzer_sys::fuzz_target;

/// Registers that lead somewhere, in the order of a driver's start.
const REGISTERS: [u64; 20] = [
    0x70, 0x14, 0x10, 0x24, 0x20, 0x30, 0x34, 0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x44, 0x50, 0x60, 0x64, 0xfc,
    0x100,
];

/// What a driver writes to have its rings where `Ring` has them.
fn start(transport: &mut Transport, queues: u32, features: u64) {
    let mut set = |register: u64, value: u32| transport.write(register, &value.to_le_bytes());
    for status in [0, 1, 3] {
        set(0x70, status);
    }
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32 | 1)] {
        set(0x24, select);
        set(0x20, half);
    }
    set(0x70, 11);
    for queue in 0..queues {
        let base = 0x1_0000 + queue * 0x8000;
        for (register, value) in
            [(0x30, queue), (0x38, 64), (0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x6000), (0x44, 1)]
        {
            set(register, value);
        }
    }
    set(0x70, 15);
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some([which, features]) = input.take() else { return };
    let device: Box<dyn Snapshot> =
        if which & 1 == 0 { Box::new(Rng::default()) } else { Box::new(Balloon::new(BalloonDevice::new().unwrap())) };
    let ram = ram();
    let queues = device.queue_sizes().len() as u32;
    let mut transport = Transport::new(device, ram.clone()).unwrap();
    let mut ring = Ring::new(0x1_0000, 64);
    if which & 2 == 0 {
        start(&mut transport, queues, u64::from(features));
    }
    for _ in 0..100 {
        let Some([what, place, width]) = input.take() else { break };
        let offset = match what & 3 {
            0 => input.u64(),
            1 => input.take().map(|[at]: [u8; 1]| u64::from(at) * 2),
            _ => Some(REGISTERS[usize::from(place) % REGISTERS.len()]),
        };
        let (Some(offset), Some(value)) = (offset, input.u64()) else { break };
        let width = [4, 4, 4, 1, 2, 8, 0, 3][usize::from(width & 7)];
        // Mostly small numbers: sizes, statuses, queues.
        let value = if what & 4 == 0 { value & 0xff } else { value };
        match what >> 3 & 3 {
            0 => transport.read(offset, &mut [0; 8][..width]),
            1 => {
                if input.describe(&ram, &mut ring).is_none() {
                    break;
                }
                transport.queues().iter().for_each(|queue| drop(queue.kick().write(1)));
            }
            _ => transport.write(offset, &value.to_le_bytes()[..width]),
        }
    }
    transport.stop();
});
