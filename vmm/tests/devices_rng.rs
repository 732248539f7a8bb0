//! virtio-rng against a driver of ours.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use bulkhead_vmm::devices::rng::{MAX_REQUEST, Progress, Rng, RngDevice};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use driver::transport::Machine;
use driver::{BUFFERS, Buffer, HOLE, INDIRECT, NEXT, Ring, SEAM, readable, writable};
use vm_memory::{Bytes, GuestAddress};

const QUEUE: u64 = 0x1_0000;

fn get(ram: &bulkhead_vmm::devices::GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn requests_are_filled_up_to_a_bound() {
    let (ram, mut ring, mut device) = (driver::ram(), Ring::new(QUEUE, 64), RngDevice::default());
    let mut queue = ring.queue();
    ring.submit(&ram, &[writable(BUFFERS, 64), writable(SEAM - 500, 1000)]);
    ring.submit(&ram, &[writable(BUFFERS + 0x1_0000, 1 << 20)]);
    for written in [1064, MAX_REQUEST as u32] {
        assert_eq!(device.process_next(&ram, &mut queue).unwrap(), Progress::Done { notify: true });
        assert_eq!(ring.used(&ram).unwrap().1, written);
    }
    assert_eq!(device.process_next(&ram, &mut queue).unwrap(), Progress::Idle);
    let first = get(&ram, BUFFERS, 64);
    assert!(first.iter().any(|byte| *byte != first[0]));
    let across = get(&ram, SEAM - 500, 1000);
    assert!(across.chunks(50).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
    assert_eq!(get(&ram, BUFFERS + 0x1_0000 + MAX_REQUEST as u64, 64), [0; 64]);
}

#[test]
fn bad_chains_come_back_empty() {
    let (ram, mut ring, mut device) = (driver::ram(), Ring::new(QUEUE, 64), RngDevice::default());
    let mut queue = ring.queue();
    let table = BUFFERS + 0x10_0000;
    Ring::descriptor(&ram, table, 0, Buffer { address: table, len: 32, flags: INDIRECT }, 0);
    let chains = [
        vec![readable(BUFFERS, 64)],
        vec![readable(BUFFERS, 8), writable(BUFFERS, 64)],
        vec![writable(BUFFERS, 64), readable(BUFFERS, 8)],
        vec![writable(HOLE - 4, 64)],
        vec![writable(u64::MAX - 4, 64)],
        vec![writable(BUFFERS, 0)],
        vec![Buffer { address: table, len: 32, flags: INDIRECT }],
        vec![Buffer { address: table, len: 31, flags: INDIRECT }],
    ];
    for chain in &chains {
        ring.submit(&ram, chain);
        device.process_next(&ram, &mut queue).unwrap();
        assert_eq!(ring.used(&ram).unwrap().1, 0, "{chain:?}");
    }
    ring.describe(&ram, 60, Buffer { address: BUFFERS, len: 8, flags: NEXT | 2 }, 60);
    ring.offer(&ram, 60);
    device.process_next(&ram, &mut queue).unwrap();
    assert_eq!(ring.used(&ram).unwrap(), (60, 0));
    assert_eq!(get(&ram, BUFFERS, 64), [0; 64]);
    ring.set_available(&ram, 900);
    assert!(device.process_next(&ram, &mut queue).is_err());
}

#[test]
fn a_thread_answers_until_the_reset() {
    let mut machine = Machine::new(Rng::default(), driver::ram(), 1, 64);
    // Notified before anything is active.
    machine.kick(0);
    assert!(machine.rings[0].used(&machine.ram).is_none());
    machine.activate(machine.device.features()).unwrap();
    for _ in 0..100 {
        machine.rings[0].submit(&machine.ram, &[writable(BUFFERS, 32)]);
        machine.kick(0);
        assert_eq!(machine.wait_used(0).1, 32);
    }
    machine.rings[0].set_available(&machine.ram, 7777);
    machine.kick(0);
    machine.raised.wait_needs_reset();
    machine.kick(0);
    machine.device.reset();
    machine.device.reset();
    let mut machine = Machine::new(machine.device, driver::ram(), 1, 16);
    machine.activate(0).unwrap();
    machine.rings[0].submit(&machine.ram, &[writable(BUFFERS, 8)]);
    machine.kick(0);
    assert_eq!(machine.wait_used(0).1, 8);
    machine.device.reset();
    machine.rings[0].submit(&machine.ram, &[writable(BUFFERS, 8)]);
    machine.kick(0);
    assert!(machine.rings[0].used(&machine.ram).is_none());
}
