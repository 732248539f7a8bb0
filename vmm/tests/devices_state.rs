//! Devices that are suspended in the middle of work and go on as others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::balloon::{Balloon, BalloonDevice};
use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, FlushPolicy, RawFile, VirtioBlock};
use bulkhead_vmm::devices::fs::{Fs, FsConfig};
use bulkhead_vmm::devices::net::{Net, NetDevice};
use bulkhead_vmm::devices::rate_limiter::{Limit, Limits};
use bulkhead_vmm::devices::rng::Rng;
use bulkhead_vmm::devices::virtio::VirtioDevice;
use bulkhead_vmm::devices::vsock::{VirtioVsock, VsockConfig, VsockDevice};
use bulkhead_vmm::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError, decode, encode};
use driver::net::{config, frame, put, take, wire};
use driver::transport::Machine;
use driver::{BUFFERS, HOLE, readable, writable};
use vm_memory::{Bytes, GuestAddress};

const ALL: u64 = u64::MAX;
const REPORTING: u64 = 1 << 5;

/// Through bytes, as a snapshot goes.
fn saved(device: &mut dyn Snapshot) -> DeviceState {
    let state = device.suspend().unwrap();
    let copy: DeviceState = decode(&encode(&state).unwrap()).unwrap();
    assert_eq!(copy, state);
    copy
}

fn net() -> (Machine<Net>, std::os::fd::OwnedFd) {
    let (wire, host, _) = wire();
    (Machine::new(Net::new(NetDevice::new(vec![Box::new(wire)], config())), driver::ram(), 3, 64), host)
}

#[test]
fn a_network_device_goes_on_in_another() {
    let (mut machine, host) = net();
    let features = ALL & machine.device.features();
    machine.activate(features).unwrap();
    for slot in 0..8 {
        let address = BUFFERS + u64::from(slot) * 2048;
        machine.rings[0].describe(&machine.ram, slot, writable(address, 2048), 0);
        machine.rings[0].offer(&machine.ram, slot);
    }
    machine.kick(0);
    for len in [100, 5000] {
        assert!(put(&host, &frame(len)));
        machine.wait_used(0);
    }
    machine.ram.write_slice(&[1, 1, 2, 0, 0, 0, 0, 9], GuestAddress(HOLE - 64)).unwrap();
    machine.rings[2].submit(&machine.ram, &[readable(HOLE - 64, 8), writable(HOLE - 8, 1)]);
    machine.kick(2);
    machine.wait_used(2);
    let state = saved(&mut machine.device);
    assert_eq!((state.queues.len(), state.queues[0].next_used, state.features), (3, 4, features));
    // What the driver asks for in between is found later.
    machine.ram.write_slice(&frame(60), GuestAddress(HOLE - 0x1000)).unwrap();
    machine.rings[1].submit(&machine.ram, &[readable(HOLE - 0x1000, 72)]);
    while machine.rings[0].used(&machine.ram).is_some() {}
    let (mut other, other_host) = net();
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    other.wait_used(1);
    assert!(take(&other_host).unwrap() == frame(60));
    assert!(put(&other_host, &frame(300)));
    assert_eq!(other.wait_used(0).1, 312);
    assert_eq!(other.device.read_config(0, 6), [2, 0, 0, 0, 0, 9]);
    // Suspended again, and once more without a driver.
    assert_eq!(saved(&mut other.device).queues[0].next_used, 5);
    assert_eq!(saved(&mut other.device).queues, []);
}

#[test]
fn an_entropy_device_goes_on() {
    let mut machine = Machine::new(Rng::default(), driver::ram(), 1, 64);
    machine.activate(1 << 32).unwrap();
    machine.rings[0].submit(&machine.ram, &[writable(BUFFERS, 8)]);
    machine.kick(0);
    machine.wait_used(0);
    let state = saved(&mut machine.device);
    machine.rings[0].submit(&machine.ram, &[writable(BUFFERS, 8)]);
    let mut other = Machine::new(Rng::default(), driver::ram(), 1, 64);
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    assert_eq!(other.wait_used(0), (1, 8));
}

#[test]
fn a_balloon_keeps_its_size_and_the_statistics_buffer() {
    let balloon = || Machine::new(Balloon::new(BalloonDevice::new().unwrap()), driver::ram(), 4, 64);
    let mut machine = balloon();
    let handle = machine.device.handle();
    machine.activate(machine.device.features()).unwrap();
    handle.set_target(77);
    machine.device.write_config(4, &70_u32.to_le_bytes());
    machine.rings[2].submit(&machine.ram, &[readable(BUFFERS, 10)]);
    machine.kick(2);
    while handle.stats().is_none() {
        std::thread::yield_now();
    }
    let state = saved(&mut machine.device);
    let Own::Balloon(own) = &state.own else { panic!("{state:?}") };
    assert_eq!((own.target, own.actual, own.stats_head), (77, 70, Some(0)));
    let mut other = balloon();
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    let handle = other.device.handle();
    assert_eq!((handle.target(), handle.actual()), (77, 70));
    handle.request_stats();
    assert_eq!(other.wait_used(2).0, 0);
}

#[test]
fn a_file_system_goes_on_if_nothing_is_mounted() {
    let fs = || {
        Fs::new(FsConfig { tag: "t".into(), request_queues: 1 }, Box::new(|| Err(std::io::ErrorKind::NotFound.into())))
    };
    let mut machine = Machine::new(fs(), driver::ram(), 2, 64);
    machine.activate(1 << 32).unwrap();
    let state = saved(&mut machine.device);
    assert_eq!(state.queues.len(), 2);
    let mut other = Machine::new(fs(), driver::ram(), 2, 64);
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    other.device.reset();
}

/// Block requests at these places: header, one sector, status.
fn read_sector(machine: &mut Machine<VirtioBlock>, sector: u64) {
    let mut header = [0_u8; 16];
    header[8..].copy_from_slice(&sector.to_le_bytes());
    machine.ram.write_slice(&header, GuestAddress(BUFFERS)).unwrap();
    let chain = [readable(BUFFERS, 16), writable(BUFFERS + 0x1000, 512), writable(BUFFERS + 0x2000, 1)];
    machine.rings[0].submit(&machine.ram, &chain);
}

fn drive(limits: Limits) -> Machine<VirtioBlock> {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], 0).unwrap();
    let config = BlockConfig { serial: "s".into(), queues: 1 };
    let device = BlockDevice::new(Arc::new(RawFile::new(file, FlushPolicy::Ephemeral).unwrap()), config);
    device.set_limits(limits);
    Machine::new(VirtioBlock::new("drive", Arc::new(device)), driver::ram(), 1, 64)
}

#[test]
fn a_drive_goes_on_and_keeps_its_limits() {
    let limit = Some(Limit { amount: 10, period: Duration::from_millis(100) });
    let mut machine = drive(Limits { bytes: None, operations: limit });
    machine.activate(machine.device.features()).unwrap();
    let begin = Instant::now();
    for _ in 0..20 {
        read_sector(&mut machine, 3);
        machine.kick(0);
        assert_eq!(machine.wait_used(0).1, 513);
    }
    // Ten at once, then one each ten milliseconds.
    assert!(begin.elapsed() >= Duration::from_millis(80), "{:?}", begin.elapsed());
    let state = saved(&mut machine.device);
    read_sector(&mut machine, 7);
    let mut other = drive(Limits::default());
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    assert_eq!(other.wait_used(0).1, 513);
    assert_eq!(other.ram.read_obj::<u8>(GuestAddress(BUFFERS + 0x1000)).unwrap(), 9);
}

#[test]
fn a_guest_learns_that_its_sockets_are_gone() {
    let vsock = || {
        let config = VsockConfig { guest_cid: 3, listen_path: None, connect_timeout: Duration::from_secs(5) };
        VirtioVsock::new(VsockDevice::new(config).unwrap().0)
    };
    let mut machine = Machine::new(vsock(), driver::ram(), 3, 64);
    machine.activate(1 << 32).unwrap();
    let state = saved(&mut machine.device);
    assert_eq!(state.queues.len(), 3);
    machine.ram.write_slice(&[7; 8], GuestAddress(BUFFERS)).unwrap();
    machine.rings[2].submit(&machine.ram, &[writable(BUFFERS, 8)]);
    let mut other = Machine::new(vsock(), driver::ram(), 3, 64);
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    assert_eq!(other.wait_used(2).1, 4);
    assert_eq!(other.ram.read_obj::<u32>(GuestAddress(BUFFERS)).unwrap(), 0);
}

#[test]
fn the_state_of_another_device_is_refused() {
    let mut rng = Rng::default();
    let mut balloon = Balloon::new(BalloonDevice::new().unwrap());
    let of_rng = saved(&mut rng);
    let of_balloon = saved(&mut balloon);
    assert!(matches!(balloon.restore(&of_rng), Err(SnapshotError::Other { .. })));
    assert!(matches!(rng.restore(&DeviceState { features: REPORTING, ..of_rng }), Err(SnapshotError::Other { .. })));
    let mut impossible = DeviceState { own: Own::Nothing, ..of_balloon.clone() };
    assert!(matches!(balloon.restore(&impossible), Err(SnapshotError::Value { .. })));
    impossible = of_balloon;
    let Own::Balloon(own) = &mut impossible.own else { panic!("{impossible:?}") };
    own.stats_head = Some(60_000);
    assert!(matches!(balloon.restore(&impossible), Err(SnapshotError::Value { .. })));
    // More pairs than there are: found when the driver's features are known.
    let (mut machine, _host) = net();
    let mut state = saved(&mut machine.device);
    let Own::Net(own) = &mut state.own else { panic!("{state:?}") };
    own.active_pairs = 5;
    machine.device.restore(&state).unwrap();
    assert!(machine.activate(0).unwrap_err().to_string().contains("saved state"));
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let ram = driver::ram();
    let good = QueueState::of(0, &driver::Ring::new(0x1_0000, 64).queue());
    assert_eq!(QueueState::of(0, &good.restore(&ram, 256).unwrap()), good);
    let bad = [
        QueueState { size: 0, ..good },
        QueueState { size: 63, ..good },
        QueueState { size: 512, ..good },
        QueueState { desc_table: 8, ..good },
        QueueState { avail_ring: 1, ..good },
        QueueState { used_ring: 2, ..good },
        QueueState { desc_table: HOLE - 16, ..good },
        QueueState { used_ring: u64::MAX - 3, ..good },
        QueueState { avail_ring: HOLE, ..good },
    ];
    for state in bad {
        assert!(state.restore(&ram, 256).is_err(), "{state:?}");
    }
}
