//! A network device whose driver offers whatever the input says in all its queues, while frames come from the host.
#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bulkhead_vmm::devices::net::{NetDevice, NetPair};
use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::net::{config, frame, put, take, wire};
use bulkhead_vmm_fuzz::driver::{Ring, ram};
use libfuzzer_sys::fuzz_target;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

struct Rig {
    ram: bulkhead_vmm::devices::GuestRam,
    device: Arc<NetDevice>,
    pair: NetPair,
    rings: [Ring; 3],
    queues: [Queue; 3],
    host: OwnedFd,
}

fn rig(features: u64) -> Rig {
    let (wire, host, _) = wire();
    let device = Arc::new(NetDevice::new(vec![Box::new(wire)], config()));
    device.set_acked_features(features & device.features()).unwrap();
    let rings = [0x1_0000, 0x2_0000, 0x3_0000].map(|base| Ring::new(base, 64));
    let queues = rings.each_ref().map(Ring::queue);
    Rig { ram: ram(), pair: NetPair::new(device.clone(), 0), device, rings, queues, host }
}

fn step(rig: &mut Rig, input: &mut Input<'_>) -> Option<()> {
    let [what] = input.take()?;
    match what & 15 {
        0..=3 => input.describe(&rig.ram, &mut rig.rings[0])?,
        4..=6 => input.describe(&rig.ram, &mut rig.rings[1])?,
        7 => input.describe(&rig.ram, &mut rig.rings[2])?,
        8 | 9 => {
            let [low, high] = input.take()?;
            put(&rig.host, &frame(usize::from(u16::from_le_bytes([low, high]))));
        }
        10 => drop(put(&rig.host, &vec![what; usize::from(what >> 4)])),
        11 => drop(take(&rig.host)),
        12 => {
            let (command, at): ([u8; 12], u64) = (input.take()?, input.u64()? & 0x1f_ffff);
            rig.ram.write_slice(&command, GuestAddress(bulkhead_vmm_fuzz::driver::BUFFERS + at)).unwrap();
        }
        13 => drop(rig.device.set_acked_features(input.u64()? & rig.device.features())),
        14 => rig.rings[usize::from(what >> 4) % 3].set_available(&rig.ram, input.take().map(u16::from_le_bytes)?),
        _ => rig.device.reset(),
    }
    Some(())
}

/// False when a queue broke.
fn process(rig: &mut Rig) -> bool {
    let [rx, tx, control] = &mut rig.queues;
    // What the device writes may land on the rings and offer more.
    (0..8).all(|_| {
        rig.pair.process_rx(&rig.ram, rx).is_ok()
            && rig.pair.process_tx(&rig.ram, tx).is_ok()
            && rig.device.process_control(&rig.ram, control, 2).is_ok()
    })
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some(features) = input.u64() else { return };
    let mut rig = rig(features);
    for _ in 0..200 {
        if step(&mut rig, &mut input).is_none() || !process(&mut rig) {
            break;
        }
    }
});
