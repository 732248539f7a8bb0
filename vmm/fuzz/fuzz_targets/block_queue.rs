//! A block device whose driver offers whatever the input says: descriptors, header and heads.
#![no_main]

#[path = "../../tests/driver/mod.rs"]
mod driver;

use std::fs::File;
use std::sync::{Arc, LazyLock};

use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, FlushPolicy, ImageDrive, Progress, RawFile};
use driver::{BUFFERS, Buffer, HOLE, Ring};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

static FILE: LazyLock<File> = LazyLock::new(|| {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file
});

/// Takes fixed pieces off the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
}

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

/// Most addresses should lead somewhere: near the header, a hole's edge, the rings, or anywhere.
fn address(kind: u8, value: u64) -> u64 {
    match kind & 7 {
        0 => value,
        1 => HOLE - (value & 0xfff),
        2 => 0x1_0000 + (value & 0x7fff),
        _ => BUFFERS + (value & 0x1_ffff),
    }
}

fn run(bytes: &[u8]) -> Option<()> {
    let mut input = Input(bytes);
    let [choice, descriptors, heads] = input.take()?;
    let (ram, device) = (driver::ram(), device(choice));
    let mut ring = Ring::new(0x1_0000, 64);
    let mut queue = ring.queue();
    let header: [u8; 16] = input.take()?;
    for at in 0..16 {
        ram.write_slice(&header, GuestAddress(BUFFERS + at * 0x1000)).unwrap();
    }
    for index in 0..u16::from(descriptors % 65) {
        let [kind, flags, next, len_kind] = input.take()?;
        let value = u64::from_le_bytes(input.take()?);
        let len = u32::from_le_bytes(input.take()?);
        let len = match len_kind & 7 {
            0 => len,
            1 => 16,
            2 => 1,
            3 => len & 0xffff,
            _ => (len & 0xff) * 512,
        };
        ring.describe(
            &ram,
            index,
            Buffer { address: address(kind, value), len, flags: u16::from(flags & 7) },
            u16::from(next),
        );
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
