//! virtio-balloon against a driver of ours, with guest memory in a memfd as the monitor has it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::GuestRam;
use bulkhead_vmm::devices::balloon::{Balloon, BalloonDevice, BalloonHandle, Held, PAGE, Role, discard};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use driver::memory::{allocated, shared_ram};
use driver::transport::Machine;
use driver::{BUFFERS, Buffer, HOLE, INDIRECT, REGIONS, Ring, SEAM, readable, writable};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

const STATS_VQ: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;

#[test]
fn deflating_on_oom_is_offered_where_it_is_asked_for() {
    const DEFLATE_ON_OOM: u64 = 1 << 2;
    let offered = |asked| BalloonDevice::new().unwrap().with_deflate_on_oom(asked).features() & DEFLATE_ON_OOM;
    assert_eq!((offered(false), offered(true)), (0, DEFLATE_ON_OOM));
}

fn fill(ram: &GuestRam, at: u64, len: usize) {
    ram.write_slice(&vec![0xa5; len], GuestAddress(at)).unwrap();
}

fn bytes(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn machine() -> (Machine<Balloon>, BalloonHandle, std::fs::File) {
    let (ram, file) = shared_ram();
    let balloon = Balloon::new(BalloonDevice::new().unwrap());
    let handle = balloon.handle();
    let mut machine = Machine::new(balloon, ram, 4, 64);
    machine.activate(machine.device.features()).unwrap();
    (machine, handle, file)
}

fn put_pages(ram: &GuestRam, at: u64, pages: &[u32]) -> Buffer {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    ram.write_slice(&bytes, GuestAddress(at)).unwrap();
    readable(at, bytes.len() as u32)
}

#[test]
fn pages_that_the_guest_gives_are_freed_on_the_host() {
    let (mut machine, handle, file) = machine();
    let first = HOLE - 64 * PAGE;
    fill(&machine.ram, first, 64 * PAGE as usize);
    let before = allocated(&file);
    // In no order, twice, across nothing that is there.
    let mut pages: Vec<u32> = (0..32).rev().map(|page| (first / PAGE) as u32 + page).collect();
    pages.extend([pages[0], (HOLE / PAGE) as u32, u32::MAX]);
    let buffer = put_pages(&machine.ram, BUFFERS, &pages);
    machine.rings[0].submit(&machine.ram, &[buffer]);
    machine.kick(0);
    machine.wait_used(0);
    assert_eq!(before - allocated(&file), 32 * PAGE);
    assert_eq!(handle.counters().inflated.load(Ordering::Relaxed), 32 * PAGE);
    assert!(bytes(&machine.ram, first, 32 * PAGE as usize).iter().all(|byte| *byte == 0));
    assert!(bytes(&machine.ram, first + 32 * PAGE, 32 * PAGE as usize).iter().all(|byte| *byte == 0xa5));
    // And taken back.
    machine.rings[1].submit(&machine.ram, &[buffer]);
    machine.kick(1);
    machine.wait_used(1);
    fill(&machine.ram, first, PAGE as usize);
}

#[test]
fn reported_ranges_are_freed_where_their_content_does_not_matter() {
    let (mut machine, handle, file) = machine();
    fill(&machine.ram, SEAM - 16 * PAGE, 32 * PAGE as usize);
    let before = allocated(&file);
    // Across two regions, with half pages at its ends.
    let ranges = [writable(SEAM - 4 * PAGE - 100, 8 * PAGE as u32 + 200), writable(SEAM + 8 * PAGE, PAGE as u32)];
    machine.rings[3].submit(&machine.ram, &ranges);
    machine.kick(3);
    machine.wait_used(3);
    assert_eq!(before - allocated(&file), 9 * PAGE);
    assert_eq!(handle.counters().reported.load(Ordering::Relaxed), 9 * PAGE);
    // A guest that fills free pages would find them changed.
    machine.device.write_config(12, &0xaa_u32.to_le_bytes());
    machine.rings[3].submit(&machine.ram, &[writable(SEAM - 16 * PAGE, PAGE as u32)]);
    machine.kick(3);
    machine.wait_used(3);
    assert_eq!(before - allocated(&file), 9 * PAGE);
}

#[test]
fn the_target_is_seen_by_the_guest() {
    let (mut machine, handle, _) = machine();
    handle.set_target(1000);
    machine.raised.wait_config(0);
    handle.set_target(1000);
    assert_eq!(machine.device.read_config(0, 8), [0xe8, 3, 0, 0, 0, 0, 0, 0]);
    machine.device.write_config(4, &900_u32.to_le_bytes());
    assert_eq!((handle.target(), handle.actual()), (1000, 900));
    // Neither the target, nor half a field, nor what is not there.
    for (offset, bytes) in [(0, &[1, 0, 0, 0][..]), (4, &[1]), (4, &[1; 8]), (5, &[1; 4]), (usize::MAX, &[1; 4])] {
        machine.device.write_config(offset, bytes);
    }
    assert_eq!((handle.target(), handle.actual()), (1000, 900));
    machine.device.reset();
    assert_eq!((handle.target(), handle.actual()), (1000, 0));
    handle.set_target(0);
    assert_eq!(machine.device.read_config(14, 9), [0; 9]);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (mut machine, handle, _) = machine();
    assert_eq!(handle.stats(), None);
    let mut entries = Vec::new();
    for (tag, value) in [(4_u16, 77_u64), (5, u64::MAX), (99, 1), (10, 3)] {
        entries.extend(tag.to_le_bytes());
        entries.extend(value.to_le_bytes());
    }
    entries.extend([6, 0, 1]);
    machine.ram.write_slice(&entries, GuestAddress(BUFFERS)).unwrap();
    machine.rings[2].submit(&machine.ram, &[readable(BUFFERS, entries.len() as u32)]);
    machine.kick(2);
    let end = Instant::now() + Duration::from_secs(10);
    while handle.stats().is_none() {
        assert!(Instant::now() < end, "no statistics");
        std::thread::yield_now();
    }
    let stats = handle.stats().unwrap();
    assert_eq!((stats.free, stats.total, stats.oom_kills, stats.available), (Some(77), Some(u64::MAX), Some(3), None));
    // The buffer stays with the device until then.
    assert!(machine.rings[2].used(&machine.ram).is_none());
    handle.request_stats();
    machine.wait_used(2);
    // Without a buffer there is nothing to ask with.
    handle.request_stats();
    machine.rings[2].submit(&machine.ram, &[readable(BUFFERS, 10)]);
    machine.kick(2);
}

#[test]
fn queues_follow_the_features() {
    use Role::{Deflate, Inflate, Reporting, Stats};
    assert_eq!(Role::of_queues(0), [Inflate, Deflate]);
    assert_eq!(Role::of_queues(REPORTING), [Inflate, Deflate, Reporting]);
    assert_eq!(Role::of_queues(STATS_VQ | REPORTING), [Inflate, Deflate, Stats, Reporting]);
    let (ram, file) = shared_ram();
    let mut machine = Machine::new(Balloon::new(BalloonDevice::new().unwrap()), ram, 3, 64);
    assert!(machine.activate(STATS_VQ | REPORTING).unwrap_err().to_string().contains("queue 3"));
    machine.device.reset();
    machine.activate(REPORTING).unwrap();
    fill(&machine.ram, SEAM, PAGE as usize);
    let before = allocated(&file);
    machine.rings[2].submit(&machine.ram, &[writable(SEAM, PAGE as u32)]);
    machine.kick(2);
    machine.wait_used(2);
    assert!(allocated(&file) < before);
}

#[test]
fn bad_requests_free_nothing() {
    let (ram, file) = shared_ram();
    fill(&ram, BUFFERS, 64 * PAGE as usize);
    let device = BalloonDevice::new().unwrap();
    let table = BUFFERS + 0x10_0000;
    Ring::descriptor(&ram, table, 0, Buffer { address: table, len: 16, flags: INDIRECT }, 0);
    let chains = [
        vec![writable(HOLE - PAGE, 2 * PAGE as u32)],
        vec![writable(u64::MAX - PAGE, PAGE as u32)],
        vec![writable(BUFFERS, PAGE as u32), readable(BUFFERS, 4)],
        vec![writable(BUFFERS + 1, PAGE as u32)],
        vec![writable(BUFFERS, 0)],
        vec![Buffer { address: table, len: 16, flags: INDIRECT }],
    ];
    for role in [Role::Inflate, Role::Deflate, Role::Stats, Role::Reporting] {
        let (mut ring, mut held) = (Ring::new(0x1_0000, 64), Held::default());
        let mut queue = ring.queue();
        let before = allocated(&file);
        for chain in &chains {
            ring.submit(&ram, chain);
            device.process(&ram, &mut queue, 0, role, &mut held).unwrap();
        }
        let used = std::iter::from_fn(|| ring.used(&ram)).count();
        assert_eq!(used, if role == Role::Stats { chains.len() - 1 } else { chains.len() });
        assert_eq!(allocated(&file), before, "{role:?}");
        ring.set_available(&ram, 4000);
        assert!(device.process(&ram, &mut queue, 0, role, &mut held).is_err());
        queue.set_ready(false);
    }
    // All of memory as page numbers: what is looked at is bounded.
    let (mut ring, mut held) = (Ring::new(0x1_0000, 64), Held::default());
    let mut queue = ring.queue();
    let all = [readable(0, REGIONS[0].1 as u32), readable(SEAM, REGIONS[1].1 as u32)];
    ring.submit(&ram, &all);
    device.process(&ram, &mut queue, 0, Role::Inflate, &mut held).unwrap();
    assert!(ring.used(&ram).is_some());
}

#[test]
fn private_memory_is_freed_too() {
    let ram = driver::ram();
    fill(&ram, BUFFERS, 4 * PAGE as usize);
    assert_eq!(discard(&ram, BUFFERS + 1, 3 * PAGE).unwrap(), 2 * PAGE);
    assert_eq!(bytes(&ram, BUFFERS + PAGE, 2 * PAGE as usize), vec![0; 2 * PAGE as usize]);
    assert_eq!(bytes(&ram, BUFFERS + 3 * PAGE, 1), [0xa5]);
    assert!(discard(&ram, HOLE, PAGE).is_err() && discard(&ram, u64::MAX, 1).is_err());
    assert!(discard(&ram, HOLE - PAGE, 2 * PAGE).is_err());
    assert_eq!(discard(&ram, HOLE, 10).unwrap(), 0);
}
