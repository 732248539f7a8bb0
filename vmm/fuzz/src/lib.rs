//! What the fuzz targets share: the tests' driver, and pieces of input.

#[path = "../../tests/driver/mod.rs"]
pub mod driver;

use bulkhead_vmm::devices::GuestRam;
use driver::{BUFFERS, Buffer, HOLE, Ring};

/// Takes fixed pieces off the input.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// The next bytes; `None` at the end.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    /// The next number.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// The next number.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A buffer that mostly, but not always, leads somewhere: near the first buffers, a hole's edge, the rings, or anywhere.
    pub fn buffer(&mut self) -> Option<(Buffer, u16)> {
        let [kind, flags, next, len_kind] = self.take()?;
        let (value, len) = (self.u64()?, self.u32()?);
        let address = match kind & 7 {
            0 => value,
            1 => HOLE - (value & 0xfff),
            2 => 0x1_0000 + (value & 0x1_ffff),
            _ => BUFFERS + (value & 0x1f_ffff),
        };
        let len = match len_kind & 7 {
            0 => len,
            1 => 16,
            2 => 1,
            3 => len & 0xffff,
            4 => 4096,
            _ => len & 0x7ff,
        };
        Some((Buffer { address, len, flags: u16::from(flags & 7) }, u16::from(next)))
    }

    /// Writes an entry of the ring's table, and perhaps offers it.
    pub fn describe(&mut self, ram: &GuestRam, ring: &mut Ring) -> Option<()> {
        let [index] = self.take()?;
        let (buffer, next) = self.buffer()?;
        ring.describe(ram, u16::from(index & 63), buffer, next & 127);
        if index & 128 == 0 {
            ring.offer(ram, u16::from(index & 63));
        }
        Some(())
    }
}
