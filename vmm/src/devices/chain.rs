//! Descriptor chains from the guest, checked.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemory;

use super::GuestRam;
use super::slices::GuestSlices;

/// Most descriptors a chain may have; Linux uses at most the queue's size.
const MAX_DESCRIPTORS: usize = 1024;

/// A chain that breaks the rules of virtio 1.2, section 2.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A loop, an index outside the table, a table or chain outside memory, or nested indirect tables.
    #[error("its descriptors loop, leave the table or cannot be read")]
    Truncated,
    /// More than any honest driver uses.
    #[error("it has more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// Buffers for the device must follow all buffers from the driver (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// A buffer outside guest memory.
    #[error("buffer of {len} bytes at {address:#x} is outside guest memory")]
    OutOfRange {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// No descriptor at all.
    #[error("it is empty")]
    Empty,
}

/// A chain's buffers, all inside guest memory.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// What the driver sent.
    pub readable: GuestSlices<'a>,
    /// What the device may fill.
    pub writable: GuestSlices<'a>,
}

impl<'a> Buffers<'a> {
    /// Walks the chain once. An error leaves nothing touched.
    pub fn parse(ram: &'a GuestRam, chain: DescriptorChain<&GuestRam>) -> Result<Self, ChainError> {
        let mut buffers = Self { readable: GuestSlices::default(), writable: GuestSlices::default() };
        let mut open_end = None;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            open_end = Some(descriptor.has_next());
            let (address, len) = (descriptor.addr(), descriptor.len());
            let target = match descriptor.is_write_only() {
                true => &mut buffers.writable,
                false if buffers.writable.is_empty() => &mut buffers.readable,
                false => return Err(ChainError::Order),
            };
            if len == 0 {
                continue;
            }
            // A buffer may span memory regions; the whole of it must be there.
            for piece in ram.get_slices(address, len as usize) {
                target.push(piece.map_err(|_| ChainError::OutOfRange { address: address.0, len })?);
            }
        }
        match open_end {
            None => Err(ChainError::Empty),
            Some(true) => Err(ChainError::Truncated),
            Some(false) => Ok(buffers),
        }
    }
}
