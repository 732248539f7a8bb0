//! What a block device stores its bytes in.

use std::fmt::Debug;
use std::io;

use crate::devices::slices::GuestSlices;

/// Storage behind a block device. Offsets and lengths are in bytes, multiples of 512, and within [`len`](Self::len):
/// the device checks them before it calls.
pub trait BlockBackend: Debug + Send + Sync {
    /// Size in bytes, a multiple of 512; constant.
    fn len(&self) -> u64;

    /// Whether writes are refused; constant.
    fn is_read_only(&self) -> bool;

    /// Whether `discard` and `write_zeroes` work; constant.
    fn can_discard(&self) -> bool {
        false
    }

    /// Fills all of `buffers`.
    fn read_at(&self, buffers: &GuestSlices<'_>, offset: u64) -> io::Result<()>;

    /// Stores all of `buffers`. Durable after the next `flush`.
    fn write_at(&self, buffers: &GuestSlices<'_>, offset: u64) -> io::Result<()>;

    /// Makes every write that has returned durable, as far as this storage promises durability.
    fn flush(&self) -> io::Result<()>;

    /// The range's content no longer matters.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The range reads as zeros; with `unmap` its space may be given back.
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// No bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
