//! virtio-net against a driver of ours, over a wire of sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_vmm::devices::net::{Net, NetDevice, Turn, Wait};
use bulkhead_vmm::devices::rate_limiter::{Limit, Limits};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use driver::net::{HEADER, Rig, TX_AREA, config, frame, put, take, wire};
use driver::transport::Machine;
use driver::{BUFFERS, HOLE, INDIRECT, NEXT, Ring, readable, writable};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const MERGED: u64 = 1 << 15;
const ALL: u64 = u64::MAX;
const MQ: u64 = 1 << 22;

fn rig(features: u64) -> (Rig, OwnedFd) {
    let (device, host, _) = wire();
    (Rig::new(device, config(), features), host)
}

fn count(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn frames_reach_the_guest_one_buffer_each() {
    let (mut rig, host) = rig(0);
    rig.give(0..4, 2048);
    for len in [14, 60, 1514, 2036] {
        assert!(put(&host, &frame(len)));
    }
    let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert_eq!(turn, Turn { notify: true, wait: Wait::Driver });
    for (slot, len) in [14, 60, 1514, 2036].into_iter().enumerate() {
        let (mut got, slots) = rig.received(2048).unwrap();
        assert_eq!(slots, [slot as u32]);
        assert_eq!(got[10..12], [1, 0]);
        got[10..12].fill(0);
        assert_eq!(got, frame(len));
    }
    let counters = rig.device.counters();
    assert_eq!((count(&counters.rx_frames), count(&counters.rx_bytes)), (4, 14 + 60 + 1514 + 2036));
}

#[test]
fn large_frames_are_merged_from_buffers() {
    let (mut rig, host) = rig(ALL);
    rig.give(0..64, 1536);
    assert!(put(&host, &frame(65_550)));
    assert!(put(&host, &frame(100)));
    let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert_eq!(turn, Turn { notify: true, wait: Wait::Backend });
    let (mut got, slots) = rig.received(1536).unwrap();
    assert_eq!(slots.len(), (65_550 + HEADER).div_ceil(1536));
    got[10..12].fill(0);
    assert!(got == frame(65_550));
    assert_eq!(rig.received(1536).unwrap().1, [43]);
    assert!(rig.received(1536).is_none());
}

#[test]
fn a_frame_waits_until_the_guest_has_room_for_all_of_it() {
    let (mut rig, host) = rig(ALL);
    rig.give(0..3, 1024);
    assert!(put(&host, &frame(4000)));
    assert!(put(&host, &frame(40)));
    let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert_eq!(turn, Turn { notify: false, wait: Wait::Driver });
    assert!(rig.received(1024).is_none());
    rig.give(3..6, 1024);
    let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert_eq!(turn, Turn { notify: true, wait: Wait::Backend });
    let (mut got, slots) = rig.received(1024).unwrap();
    assert_eq!(slots, [0, 1, 2, 3]);
    got[10..12].fill(0);
    assert!(got == frame(4000));
    assert_eq!(rig.received(1024).unwrap().1, [4]);
}

#[test]
fn what_fits_nowhere_is_dropped() {
    // Without merged buffers, one must do.
    let (mut alone, host) = rig(0);
    alone.give(0..2, 1024);
    assert!(put(&host, &frame(1500)));
    assert!(put(&host, &frame(50)));
    alone.pair.process_rx(&alone.ram, &mut alone.rx_queue).unwrap();
    assert_eq!(alone.received(1024).unwrap().1, [0]);
    assert_eq!(count(&alone.device.counters().rx_dropped), 1);
    // With them, the whole queue.
    let (mut merged, host) = rig(ALL);
    merged.give(0..64, 100);
    assert!(put(&host, &frame(6500)));
    assert!(put(&host, &frame(6300)));
    merged.pair.process_rx(&merged.ram, &mut merged.rx_queue).unwrap();
    assert_eq!(merged.received(100).unwrap().1.len(), 64);
    assert_eq!(count(&merged.device.counters().rx_dropped), 1);
    // 64 KiB and one byte.
    let (mut huge, host) = rig(ALL);
    huge.give(0..64, 4096);
    assert!(put(&host, &frame(65_551)));
    assert!(put(&host, &frame(65_550)));
    huge.pair.process_rx(&huge.ram, &mut huge.rx_queue).unwrap();
    assert_eq!(huge.received(4096).unwrap().0.len(), 65_550 + HEADER);
    assert_eq!(count(&huge.device.counters().rx_dropped), 1);
}

#[test]
fn no_buffer_no_reading() {
    let (mut rig, host) = rig(ALL);
    assert!(put(&host, &frame(60)));
    for _ in 0..3 {
        let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
        assert_eq!(turn, Turn { notify: false, wait: Wait::Driver });
    }
    rig.give(0..1, 2048);
    rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert!(rig.received(2048).is_some());
}

#[test]
fn frames_of_the_guest_reach_the_wire() {
    let (mut rig, host) = rig(ALL);
    for len in [14, 1514, 65_550] {
        rig.queue_frame(&frame(len));
        let turn = rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        assert_eq!(turn.wait, Wait::Driver);
        assert!(take(&host).unwrap() == frame(len));
    }
    let counters = rig.device.counters();
    assert_eq!((count(&counters.tx_frames), count(&counters.tx_bytes)), (3, 14 + 1514 + 65_550));
}

#[test]
fn frames_of_the_wrong_size_are_refused() {
    let (mut rig, host) = rig(ALL);
    let bad = [vec![], vec![0; 5], frame(0), frame(13), frame(65_551)];
    for frame in &bad {
        rig.queue_frame(frame);
        rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        assert!(rig.tx.used(&rig.ram).is_some() && take(&host).is_none());
    }
    // Of 4 GiB, by overlapping descriptors.
    let chain: Vec<_> = (0..64).map(|_| readable(BUFFERS, 4 << 20)).collect();
    rig.tx.submit(&rig.ram, &chain);
    rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
    assert!(rig.tx.used(&rig.ram).is_some() && take(&host).is_none());
    assert_eq!(count(&rig.device.counters().tx_dropped), bad.len() as u64 + 1);
}

#[test]
fn a_full_wire_stops_the_guest_and_loses_nothing() {
    let (mut rig, host) = rig(ALL);
    let mut sent = 0;
    loop {
        rig.queue_frame(&frame(60_000));
        match rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap().wait {
            Wait::Driver => sent += 1,
            other => break assert_eq!(other, Wait::Backend),
        }
        assert!(rig.tx.used(&rig.ram).is_some());
    }
    assert!(rig.tx.used(&rig.ram).is_none());
    assert_eq!(std::iter::from_fn(|| take(&host)).count(), sent);
    rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
    assert!(take(&host).unwrap() == frame(60_000));
}

#[test]
fn bad_chains_are_given_back_and_do_nothing() {
    let (mut rig, host) = rig(ALL);
    let table = BUFFERS + 0x10_0000;
    let chains = [
        vec![readable(HOLE - 4, 60)],
        vec![readable(u64::MAX - 10, 60)],
        vec![readable(BUFFERS, 60), writable(BUFFERS, 60)],
        vec![writable(BUFFERS, 60), readable(BUFFERS, 60)],
        vec![writable(BUFFERS, 60)],
        vec![driver::Buffer { address: table, len: 17, flags: INDIRECT }],
        vec![driver::Buffer { address: table, len: 32, flags: INDIRECT }],
    ];
    // An indirect table in an indirect table.
    Ring::descriptor(&rig.ram, table, 0, driver::Buffer { address: table, len: 32, flags: INDIRECT }, 0);
    for chain in &chains {
        rig.tx.submit(&rig.ram, chain);
        rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        assert!(rig.tx.used(&rig.ram).is_some(), "{chain:?}");
        rig.rx.submit(&rig.ram, chain);
    }
    assert!(take(&host).is_none());
    // A loop, in both queues.
    for ring in [&mut rig.tx, &mut rig.rx] {
        ring.describe(&rig.ram, 62, driver::Buffer { address: BUFFERS, len: 20, flags: NEXT }, 63);
        ring.describe(&rig.ram, 63, driver::Buffer { address: BUFFERS, len: 20, flags: NEXT }, 62);
        ring.offer(&rig.ram, 62);
    }
    rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
    assert_eq!(count(&rig.device.counters().tx_dropped), chains.len() as u64 + 1);
    assert!(put(&host, &frame(60)));
    rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    // The one that could be filled is shorter than the frame.
    assert_eq!(std::iter::from_fn(|| rig.rx.used(&rig.ram)).count(), 4);
    rig.rx.submit(&rig.ram, &[writable(BUFFERS, 60)]);
    rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    assert_eq!(std::iter::from_fn(|| rig.rx.used(&rig.ram)).count(), chains.len() + 2 - 4);
}

#[test]
fn rings_that_make_no_sense_break_the_queue() {
    let (mut rig, host) = rig(ALL);
    assert!(put(&host, &frame(60)));
    rig.rx.set_available(&rig.ram, 65);
    rig.tx.set_available(&rig.ram, 30_000);
    assert!(rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).is_err());
    assert!(rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).is_err());
    // Rings that a driver moved out of memory.
    let (mut rig, _host) = self::rig(ALL);
    rig.rx_queue.try_set_avail_ring_address(GuestAddress(HOLE)).unwrap();
    rig.tx_queue.try_set_used_ring_address(GuestAddress(HOLE)).unwrap();
    assert!(rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).is_err());
    assert!(rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).is_err());
}

#[test]
fn limits_hold_back_both_directions() {
    let limit = |amount| Some(Limit { amount, period: Duration::from_secs(3600) });
    let (device, host, _) = wire();
    let mut config = config();
    config.rx_limits = Limits { bytes: None, operations: limit(2) };
    config.tx_limits = Limits { bytes: limit(1000), operations: None };
    let mut rig = Rig::new(device, config, ALL);
    rig.give(0..8, 2048);
    for _ in 0..4 {
        assert!(put(&host, &frame(60)));
        rig.queue_frame(&frame(600));
    }
    for _ in 0..2 {
        assert!(matches!(rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap().wait, Wait::Time(_)));
        assert!(matches!(rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap().wait, Wait::Time(_)));
    }
    let counters = rig.device.counters();
    assert_eq!((count(&counters.rx_frames), count(&counters.tx_frames)), (2, 2));
    rig.device.set_limits(Limits::default(), Limits::default());
    rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
    assert_eq!((count(&counters.rx_frames), count(&counters.tx_frames)), (4, 4));
}

#[test]
fn the_control_queue_obeys_what_was_negotiated() {
    let (wires, others): (Vec<_>, Vec<_>) = (0..3).map(|_| wire()).map(|(wire, _, shared)| (wire, shared)).unzip();
    let backends = wires.into_iter().map(|wire| Box::new(wire) as _).collect();
    let device = NetDevice::new(backends, config());
    device.set_acked_features(device.features()).unwrap();
    assert_eq!(device.control_queue(device.features()), 6);
    assert_eq!(others[0].offloads.load(Ordering::SeqCst), 0x7f);
    let ram = driver::ram();
    let mut ring = Ring::new(0x1_0000, 64);
    let mut queue = ring.queue();
    let mut command = |bytes: &[u8]| {
        ram.write_slice(bytes, GuestAddress(BUFFERS)).unwrap();
        ram.write_slice(&[7], GuestAddress(BUFFERS + 0x100)).unwrap();
        ring.submit(&ram, &[readable(BUFFERS, bytes.len() as u32), writable(BUFFERS + 0x100, 1)]);
        device.process_control(&ram, &mut queue, 6).unwrap();
        assert!(ring.used(&ram).is_some());
        ram.read_obj::<u8>(GuestAddress(BUFFERS + 0x100)).unwrap()
    };
    assert_eq!(command(&[4, 0, 2, 0]), 0);
    let attached: Vec<_> = others.iter().map(|other| other.attached.load(Ordering::SeqCst)).collect();
    assert_eq!((attached, device.active_pairs()), (vec![1, 1, 0], 2));
    for bad in [&[4, 0, 0, 0][..], &[4, 0, 4, 0], &[4, 0, 0xff, 0xff], &[4, 0, 1], &[4, 1, 1, 0], &[4], &[], &[9, 9]] {
        assert_eq!(command(bad), 1, "{bad:?}");
    }
    assert_eq!(device.active_pairs(), 2);
    assert_eq!(command(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(device.read_config(0, 6), [2, 0, 0, 0, 0, 9]);
    for bad in [&[1, 1, 3, 0, 0, 0, 0, 9][..], &[1, 1, 0, 0, 0, 0, 0, 0], &[1, 1, 2, 0, 0]] {
        assert_eq!(command(bad), 1, "{bad:?}");
    }
    assert_eq!(command(&[&[5, 0][..], &2_u64.to_le_bytes()].concat()), 0);
    assert_eq!(others[2].offloads.load(Ordering::SeqCst), 1);
    assert_eq!(command(&[&[5, 0][..], &1_u64.to_le_bytes()].concat()), 1);
    assert_eq!(command(&[&[5, 0][..], &u64::MAX.to_le_bytes()].concat()), 1);
    device.reset();
    assert_eq!((device.active_pairs(), others[0].offloads.load(Ordering::SeqCst)), (1, 0));
    assert_eq!(device.read_config(0, 12), [0x52, 0x54, 0, 1, 2, 3, 1, 0, 3, 0, 0xaa, 5]);
    assert_eq!(device.read_config(10, 4), [0xaa, 5, 0, 0]);
    assert_eq!(device.read_config(usize::MAX, 2), [0, 0]);
}

/// A device of one or more pairs with its threads, and the host's ends.
fn machine(pairs: usize, features: u64) -> (Machine<Net>, Vec<OwnedFd>) {
    let (wires, hosts): (Vec<_>, Vec<_>) = (0..pairs).map(|_| wire()).map(|(wire, host, _)| (wire, host)).unzip();
    let backends = wires.into_iter().map(|wire| Box::new(wire) as _).collect();
    let net = Net::new(NetDevice::new(backends, config()));
    let features = features & net.features();
    let mut machine = Machine::new(net, driver::ram(), pairs * 2 + 1, 64);
    machine.activate(features).unwrap();
    (machine, hosts)
}

fn give(machine: &mut Machine<Net>, queue: usize, slot: u16) {
    let ring = &mut machine.rings[queue];
    let address = BUFFERS + queue as u64 * 0x4_0000 + u64::from(slot) * 2048;
    ring.describe(&machine.ram, slot, writable(address, 2048), 0);
    ring.offer(&machine.ram, slot);
}

#[test]
fn threads_carry_frames_both_ways() {
    let (mut machine, hosts) = machine(2, ALL);
    for (pair, host) in hosts.iter().enumerate() {
        let (rx, tx) = (pair * 2, pair * 2 + 1);
        // The frame is there first: the thread waits for the driver, not for the wire.
        assert!(put(host, &frame(700)));
        give(&mut machine, rx, 0);
        machine.kick(rx);
        assert_eq!(machine.wait_used(rx).1, 712);
        give(&mut machine, rx, 1);
        machine.kick(rx);
        assert!(put(host, &frame(800)));
        assert_eq!(machine.wait_used(rx).1, 812);
        machine.ram.write_slice(&frame(900), GuestAddress(TX_AREA)).unwrap();
        machine.rings[tx].submit(&machine.ram, &[readable(TX_AREA, 912)]);
        machine.kick(tx);
        machine.wait_used(tx);
        assert!(take(host).unwrap() == frame(900));
    }
}

#[test]
fn a_queue_without_sense_asks_for_a_reset_and_the_device_works_again_after_it() {
    let (mut machine, hosts) = machine(1, MERGED);
    machine.rings[1].set_available(&machine.ram, 999);
    machine.kick(1);
    machine.raised.wait_needs_reset();
    machine.kick(1);
    machine.kick(2);
    machine.device.reset();
    // In the middle of work.
    let mut machine = Machine::new(machine.device, driver::ram(), 2, 64);
    for round in 0..20 {
        machine.rings = (0..2).map(|index| Ring::new(0x1_0000 + index * 0x8000, 64)).collect();
        machine.ram = driver::ram();
        machine.activate(MERGED | 1 << 32).unwrap();
        (0..32).for_each(|slot| give(&mut machine, 0, slot));
        machine.kick(0);
        for _ in 0..round {
            put(&hosts[0], &frame(1000));
        }
        machine.device.reset();
        let used = std::iter::from_fn(|| machine.rings[0].used(&machine.ram)).count();
        put(&hosts[0], &frame(1000));
        // Nobody touches the memory any more.
        assert_eq!(std::iter::from_fn(|| machine.rings[0].used(&machine.ram)).count(), 0, "after {used} frames");
    }
}

#[test]
fn a_driver_that_sets_up_too_few_queues_is_refused() {
    let net = Net::new(NetDevice::new(vec![Box::new(wire().0)], config()));
    let mut machine = Machine::new(net, driver::ram(), 1, 64);
    assert!(machine.activate(0).unwrap_err().to_string().contains("queue 1"));
    machine.device.reset();
    assert_eq!(machine.device.queue_sizes(), [256, 256, 64]);
    assert_eq!(machine.device.features() & MQ, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever sizes frames and buffers have, frames arrive whole and in order.
    #[test]
    fn frames_arrive_whole(
        lens in proptest::collection::vec(14..9000_usize, 1..20),
        buffer in 12..4000_u32,
        batch in 1..64_u16,
    ) {
        let (mut rig, host) = rig(MERGED);
        let fits = lens.iter().filter(|len| **len + HEADER <= buffer as usize * 64).copied().collect::<Vec<_>>();
        for len in &lens {
            prop_assert!(put(&host, &frame(*len)));
        }
        let mut got = Vec::new();
        let mut free: std::collections::VecDeque<u16> = (0..64).collect();
        for _ in 0..1000 {
            for _ in 0..batch {
                if let Some(slot) = free.pop_front() {
                    rig.give(slot..slot + 1, buffer);
                }
            }
            let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
            while let Some((frame, slots)) = rig.received(buffer) {
                free.extend(slots.iter().map(|slot| *slot as u16));
                got.push(frame);
            }
            if turn.wait == Wait::Backend {
                break;
            }
        }
        prop_assert_eq!(got.iter().map(|frame| frame.len() - HEADER).collect::<Vec<_>>(), fits.clone());
        for (mut got, len) in got.into_iter().zip(fits) {
            got[10..12].fill(0);
            prop_assert!(got == frame(len));
        }
    }
}
