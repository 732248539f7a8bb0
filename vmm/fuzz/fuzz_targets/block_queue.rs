//! A block device whose driver offers whatever the input says: descriptors, header and heads. Requests are done by io_uring or
//! by the thread, and left under way at the end or not, as the input says.
#![no_main]

use std::fs::File;
use std::sync::{Arc, LazyLock};

use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, BlockIo, FlushPolicy, ImageDrive, RawFile};
use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::{BUFFERS, Ring, ram};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

static FILE: LazyLock<File> = LazyLock::new(|| {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file
});

fn device(choice: u8) -> BlockDevice {
    let config = BlockConfig { serial: "fuzz".into(), queues: 1 };
    if choice & 1 == 0 {
        let file = FILE.try_clone().unwrap();
        return BlockDevice::new(Arc::new(RawFile::new(file, FlushPolicy::Ephemeral).unwrap()), config);
    }
    let drive = ImageDrive::new();
    drive.map("a", vec![(FILE.try_clone().unwrap(), 4096), (FILE.try_clone().unwrap(), 2 << 20)]).unwrap();
    BlockDevice::new(Arc::new(drive), config)
}

fn run(bytes: &[u8]) -> Option<()> {
    let mut input = Input(bytes);
    let [choice, descriptors, heads] = input.take()?;
    let (ram, device) = (ram(), device(choice));
    let mut ring = Ring::new(0x1_0000, 64);
    let mut queue = ring.queue();
    let header: [u8; 16] = input.take()?;
    for at in 0..16 {
        ram.write_slice(&header, GuestAddress(BUFFERS + at * 0x1000)).unwrap();
    }
    for index in 0..u16::from(descriptors % 65) {
        let (buffer, next) = input.buffer()?;
        ring.describe(&ram, index, buffer, next);
    }
    for _ in 0..heads % 65 {
        let [head] = input.take()?;
        ring.offer(&ram, u16::from(head));
    }
    let mut io = if choice & 2 == 0 { BlockIo::synchronous() } else { BlockIo::new() };
    // A write of the device may land on the ring and offer more, for ever.
    for _ in 0..64 {
        match device.process(&ram, &mut queue, 0, &mut io) {
            Ok(turn) if turn.more => {}
            Ok(_) if io.in_flight() > 0 && choice & 4 == 0 => io.wait().unwrap(),
            _ => break,
        }
    }
    if choice & 8 == 0 {
        let _ = device.finish(&ram, &mut queue, 0, &mut io);
    }
    drop(ram);
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = run(bytes);
});
