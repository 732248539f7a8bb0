//! Saved states from anywhere: decoded, and taken over by devices of every kind.
#![no_main]

use bulkhead_vmm::devices::balloon::{Balloon, BalloonDevice};
use bulkhead_vmm::devices::net::{Net, NetDevice};
use bulkhead_vmm::devices::rng::Rng;
use bulkhead_vmm::mmio::{Transport, TransportState};
use bulkhead_vmm::state::{DeviceState, Snapshot, decode, encode, envelope};
use bulkhead_vmm_fuzz::driver::net::{config, wire};
use bulkhead_vmm_fuzz::driver::ram;
use libfuzzer_sys::fuzz_target;

fn devices() -> [Box<dyn Snapshot>; 3] {
    let net = Net::new(NetDevice::new(vec![Box::new(wire().0)], config()));
    [Box::new(net), Box::new(Balloon::new(BalloonDevice::new().unwrap())), Box::new(Rng::default())]
}

/// Either kept whole or refused, and then as after a reset.
fn registers(bytes: &[u8]) {
    let Ok(state) = decode::<TransportState>(&envelope::wrap(bytes).unwrap()) else { return };
    let mut transport = Transport::new(Box::new(Rng::default()), ram()).unwrap();
    let mut status = [0; 4];
    match transport.restore(&state) {
        Ok(()) => {
            let _ = transport.suspend().unwrap();
        }
        Err(_) => {
            transport.read(0x70, &mut status);
            assert_eq!(status, [0; 4]);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    registers(bytes);
    let _ = decode::<Vec<DeviceState>>(bytes);
    // With a checksum that is right, the body is looked at.
    let Ok(states) = decode::<Vec<DeviceState>>(&envelope::wrap(bytes).unwrap()) else { return };
    let again: Vec<DeviceState> = decode(&encode(&states).unwrap()).unwrap();
    assert_eq!(again, states);
    let (ram, mut devices) = (ram(), devices());
    for state in &states {
        for queue in &state.queues {
            let _ = queue.restore(&ram, 256);
        }
        for device in &mut devices {
            let _ = device.restore(state);
        }
    }
});
