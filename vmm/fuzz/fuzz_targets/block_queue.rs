//! A block device whose driver offers whatever the input says: descriptors, header and heads.
#![no_main]

use std::fs::File;
use std::sync::{Arc, LazyLock};

use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, FlushPolicy, ImageDrive, Progress, RawFile};
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
    let mut done = 0_u32;
    while let Ok(Progress::Done { .. }) = device.process_next(&ram, &mut queue, 0) {
        done += 1;
        // A write of the device may land on the ring and offer more; it cannot go on for ever.
        assert!(done < 1 << 20, "the device never comes to rest");
        if done > 4096 {
            break;
        }
    }
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = run(bytes);
});
