//! Registers driven as a driver does, and as none should.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::transport::status;
use super::{Transport, TransportState, TransportStateError};
use crate::devices::GuestRam;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError, decode, encode, envelope};

const FEATURES: u64 = 1 << 32 | 1 << 29 | 1;

/// What happened to the device.
#[derive(Debug, Default)]
struct Seen {
    active: Option<Activation>,
    activations: usize,
    resets: usize,
    written: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct Probe(Arc<Mutex<Seen>>);

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64]
    }
    fn features(&self) -> u64 {
        FEATURES
    }
    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| offset.wrapping_add(at) as u8).collect()
    }
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.0.lock().unwrap().written.push((offset, bytes.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = self.0.lock().unwrap();
        assert!(seen.active.is_none(), "activated twice");
        seen.activations += 1;
        seen.active = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        let mut seen = self.0.lock().unwrap();
        seen.active = None;
        seen.resets += 1;
    }
}

impl Snapshot for Probe {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let active = self.0.lock().unwrap().active.take();
        let queues = active.iter().flat_map(|active| &active.queues);
        let queues = queues.map(|active| QueueState::of(active.index, &active.queue)).collect();
        let features = active.as_ref().map_or(0, |active| active.features);
        Ok(DeviceState { device_type: 42, features, queues, own: Own::Nothing })
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, "probe")
    }
}

fn probe() -> (Transport, Arc<Mutex<Seen>>) {
    let seen = Arc::<Mutex<Seen>>::default();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    (Transport::new(Box::new(Probe(seen.clone())), ram).unwrap(), seen)
}

fn read(transport: &mut Transport, offset: u64) -> u32 {
    let mut data = [0xee; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn negotiate(transport: &mut Transport, features: u64) {
    write(transport, 0x70, status::ACKNOWLEDGE);
    write(transport, 0x70, status::ACKNOWLEDGE | status::DRIVER);
    for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(transport, 0x24, half);
        write(transport, 0x20, value);
    }
    write(transport, 0x70, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
}

fn set_up_queue(transport: &mut Transport, index: u32, base: u32, size: u32) {
    write(transport, 0x30, index);
    write(transport, 0x38, size);
    for (offset, value) in [(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
        write(transport, offset, value);
        write(transport, offset + 4, 0);
    }
    write(transport, 0x44, 1);
}

fn go(transport: &mut Transport) {
    write(transport, 0x70, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
}

#[test]
fn a_driver_brings_a_device_up_and_down() {
    let (mut transport, seen) = probe();
    assert_eq!([0x00, 0x04, 0x08].map(|at| read(&mut transport, at)), [0x7472_6976, 2, 42]);
    negotiate(&mut transport, FEATURES);
    set_up_queue(&mut transport, 1, 0x1_0000, 32);
    go(&mut transport);
    let interrupt = {
        let seen = seen.lock().unwrap();
        let active = seen.active.as_ref().unwrap();
        assert_eq!((active.features, active.queues.len(), active.queues[0].index), (FEATURES, 1, 1));
        active.interrupt.clone()
    };
    write(&mut transport, 0x50, 1);
    assert_eq!(seen.lock().unwrap().active.as_ref().unwrap().queues[0].kick.read().unwrap(), 1);
    interrupt.queue(1);
    assert_eq!(read(&mut transport, 0x60), 1);
    interrupt.config();
    assert_eq!((read(&mut transport, 0x60), read(&mut transport, 0xfc)), (3, 1));
    write(&mut transport, 0x64, 1);
    assert_eq!(read(&mut transport, 0x60), 2);
    write(&mut transport, 0x70, 0);
    assert_eq!((read(&mut transport, 0x70), read(&mut transport, 0x60), read(&mut transport, 0x44)), (0, 0, 0));
    assert_eq!(seen.lock().unwrap().resets, 1);
}

#[test]
fn an_active_queue_is_frozen() {
    let (mut transport, seen) = probe();
    negotiate(&mut transport, FEATURES);
    set_up_queue(&mut transport, 0, 0x1_0000, 32);
    go(&mut transport);
    write(&mut transport, 0x44, 0);
    write(&mut transport, 0x80, 0x5_0000);
    assert_eq!(read(&mut transport, 0x44), 1);
    go(&mut transport);
    write(&mut transport, 0x20, 0);
    assert_eq!(seen.lock().unwrap().activations, 1);
}

#[test]
fn what_was_not_offered_is_not_agreed_on() {
    for features in [FEATURES | 2, FEATURES & 0xffff_ffff, 0, u64::MAX] {
        let (mut transport, seen) = probe();
        negotiate(&mut transport, features);
        assert_eq!(read(&mut transport, 0x70) & status::FEATURES_OK, 0, "{features:#x}");
        go(&mut transport);
        assert_eq!(seen.lock().unwrap().activations, 0);
    }
}

#[test]
fn a_queue_outside_memory_stops_the_device() {
    let (mut transport, seen) = probe();
    negotiate(&mut transport, FEATURES);
    set_up_queue(&mut transport, 0, 0xf_f000, 256);
    go(&mut transport);
    assert_eq!(seen.lock().unwrap().activations, 0);
    assert_ne!(read(&mut transport, 0x70) & status::NEEDS_RESET, 0);
    assert_eq!(read(&mut transport, 0x60), 2);
}

#[test]
fn registers_have_one_width_and_configuration_any() {
    let (mut transport, _) = probe();
    for len in [1, 2, 8] {
        let mut data = vec![0xee; len];
        transport.read(0, &mut data);
        assert_eq!(data, vec![0; len]);
        transport.read(0x105, &mut data);
        assert_eq!(data[0], 5);
    }
    let mut data = [0xee; 4];
    transport.read(0x2, &mut data);
    assert_eq!(data, [0; 4]);
}

proptest! {
    /// Whatever a driver writes wherever: no panic, and never a queue that is not inside memory.
    #[test]
    fn no_driver_breaks_the_registers(
        steps in proptest::collection::vec((0_u64..0x200, any::<u32>(), 0_usize..9, any::<bool>()), 0..200)
    ) {
        let (mut transport, seen) = probe();
        for (offset, value, len, is_write) in steps {
            // Half of the writes are such that devices are brought up.
            let value = if value % 2 == 0 { value % 16 } else { value };
            let bytes = [value.to_le_bytes(), value.to_le_bytes()].concat();
            if is_write {
                transport.write(offset, &bytes[..len.min(8)]);
                transport.write(offset / 4 * 4, &value.to_le_bytes());
            } else {
                transport.read(offset, &mut vec![0; len.min(8)]);
            }
            if let Some(active) = &seen.lock().unwrap().active {
                prop_assert_eq!(active.features & !FEATURES, 0);
            }
        }
    }
}

fn saved(transport: &mut Transport) -> TransportState {
    let state = transport.suspend().unwrap();
    let copy: TransportState = decode(&encode(&state).unwrap()).unwrap();
    assert_eq!(copy, state);
    copy
}

#[test]
fn registers_and_device_go_on_in_another() {
    let (mut transport, seen) = probe();
    negotiate(&mut transport, FEATURES);
    set_up_queue(&mut transport, 1, 0x1_0000, 32);
    go(&mut transport);
    seen.lock().unwrap().active.as_ref().unwrap().interrupt.config();
    let state = saved(&mut transport);
    let (mut other, seen) = probe();
    other.restore(&state).unwrap();
    assert_eq!([0x70, 0x60, 0xfc, 0x44].map(|at| read(&mut other, at)), [15, 2, 1, 1]);
    // The interrupt that the driver has not acknowledged comes once more.
    assert_eq!(other.line().event().read().unwrap(), 1);
    write(&mut other, 0x50, 1);
    {
        let seen = seen.lock().unwrap();
        let active = seen.active.as_ref().unwrap();
        assert_eq!((active.features, active.queues.len(), active.queues[0].index), (FEATURES, 1, 1));
        assert_eq!(active.queues[0].kick.read().unwrap(), 1);
    }
    assert_eq!(saved(&mut other), state);
}

#[test]
fn a_driver_goes_on_in_the_middle_of_its_set_up() {
    let (mut transport, _) = probe();
    negotiate(&mut transport, FEATURES);
    write(&mut transport, 0x30, 1);
    write(&mut transport, 0x80, 0x1_0000);
    let state = saved(&mut transport);
    assert!(!state.is_active);
    let (mut other, seen) = probe();
    other.restore(&state).unwrap();
    assert!(seen.lock().unwrap().active.is_none());
    for (offset, value) in [(0x38, 32), (0x90, 0x1_1000), (0xa0, 0x1_2000), (0x44, 1)] {
        write(&mut other, offset, value);
    }
    go(&mut other);
    assert_eq!(seen.lock().unwrap().active.as_ref().unwrap().queues[0].index, 1);
}

proptest! {
    #[test]
    fn no_state_breaks_a_device(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let (mut transport, _) = probe();
        negotiate(&mut transport, FEATURES);
        set_up_queue(&mut transport, 1, 0x1_0000, 32);
        go(&mut transport);
        let mut body = postcard::to_stdvec(&transport.suspend().unwrap()).unwrap();
        for (at, byte) in changes {
            let at = at % body.len();
            body[at] = byte;
        }
        let (mut other, seen) = probe();
        if let Ok(state) = decode::<TransportState>(&envelope::wrap(&body).unwrap()) {
            match other.restore(&state) {
                Ok(()) => prop_assert_eq!(seen.lock().unwrap().active.is_some(), state.is_active),
                Err(_) => prop_assert_eq!(read(&mut other, 0x70), 0),
            }
        }
    }
}

#[test]
fn registers_that_no_driver_left_are_refused() {
    let (mut transport, _) = probe();
    negotiate(&mut transport, FEATURES);
    set_up_queue(&mut transport, 1, 0x1_0000, 32);
    go(&mut transport);
    let good = saved(&mut transport);
    let changes: [fn(&mut TransportState); 8] = [
        |state| state.queues.truncate(1),
        |state| state.status = 3,
        |state| state.status |= 0x100,
        |state| state.pending = 4,
        |state| state.accepted ^= 1,
        |state| state.queues[1].ready = false,
        |state| state.device.queues[0].index = 2,
        |state| state.device.queues[0].used_ring = 1 << 40,
    ];
    for (which, change) in changes.iter().enumerate() {
        let (mut other, seen) = probe();
        let mut state = good.clone();
        change(&mut state);
        let refused: Result<(), TransportStateError> = other.restore(&state);
        assert!(refused.is_err(), "{which}");
        assert!(seen.lock().unwrap().active.is_none() && read(&mut other, 0x70) == 0, "{which}");
    }
}
