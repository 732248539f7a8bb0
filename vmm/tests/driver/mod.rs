//! A driver written for tests: guest memory and split virtqueues built by hand, so that they can be built wrong.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it, on memory of its own")]

pub mod memory;
pub mod net;
pub mod transport;
pub mod vsock;

use bulkhead_vmm::devices::GuestRam;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Guest memory: two regions that touch, a hole, and a third.
pub const REGIONS: [(u64, usize); 3] = [(0, 4 << 20), (4 << 20, 4 << 20), (16 << 20, 4 << 20)];
/// First address behind the regions that touch.
pub const HOLE: u64 = 8 << 20;
/// Where the two regions touch.
pub const SEAM: u64 = 4 << 20;
/// Free memory for buffers, up to the hole; rings lie below.
pub const BUFFERS: u64 = 1 << 20;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Fresh guest memory.
pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len))).unwrap()
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
}

/// For the device to read.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, flags: 0 }
}

/// For the device to fill.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, flags: WRITE }
}

/// The driver's end of a queue.
pub struct Ring {
    size: u16,
    base: u64,
    next_descriptor: u16,
    offered: u16,
    seen: u16,
}

impl Ring {
    /// Rings of at most 256 entries in the 32 KiB from `base`.
    pub fn new(base: u64, size: u16) -> Self {
        Self { size, base, next_descriptor: 0, offered: 0, seen: 0 }
    }

    fn available(&self) -> u64 {
        self.base + 0x4000
    }

    fn used_ring(&self) -> u64 {
        self.base + 0x6000
    }

    /// The device's end.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(256).unwrap();
        queue.set_size(self.size);
        queue.try_set_desc_table_address(GuestAddress(self.base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).unwrap();
        queue.set_ready(true);
        queue
    }

    /// Writes an entry of a descriptor table.
    pub fn descriptor(ram: &GuestRam, table: u64, index: u16, buffer: Buffer, next: u16) {
        let mut bytes = [0_u8; 16];
        bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&buffer.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        ram.write_slice(&bytes, GuestAddress(table + u64::from(index) * 16)).unwrap();
    }

    /// Writes an entry of the queue's own table.
    pub fn describe(&self, ram: &GuestRam, index: u16, buffer: Buffer, next: u16) {
        Self::descriptor(ram, self.base, index, buffer, next);
    }

    /// Builds a chain and offers it; its head. Descriptors are taken in turn.
    pub fn submit(&mut self, ram: &GuestRam, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (at, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            self.describe(ram, index, Buffer { flags: buffer.flags | more, ..*buffer }, self.next_descriptor);
        }
        self.offer(ram, head);
        head
    }

    /// Offers the chain that begins at `head`.
    pub fn offer(&mut self, ram: &GuestRam, head: u16) {
        let slot = self.available() + 4 + u64::from(self.offered % self.size) * 2;
        ram.write_slice(&head.to_le_bytes(), GuestAddress(slot)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.set_available(ram, self.offered);
    }

    /// Sets the index of the available ring.
    pub fn set_available(&self, ram: &GuestRam, index: u16) {
        ram.write_slice(&index.to_le_bytes(), GuestAddress(self.available() + 2)).unwrap();
    }

    /// The next chain that the device gave back: its head and the bytes written.
    pub fn used(&mut self, ram: &GuestRam) -> Option<(u32, u32)> {
        let index: u16 = ram.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let slot = self.used_ring() + 4 + u64::from(self.seen % self.size) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((ram.read_obj(GuestAddress(slot)).unwrap(), ram.read_obj(GuestAddress(slot + 4)).unwrap()))
    }
}
