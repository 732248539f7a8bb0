//! Guest memory: one sealed memfd, shared with whoever serves the guest.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress};

use crate::boot::layout;
use crate::devices::GuestRam;

/// Makes `bytes` of memory, a multiple of the page size. Nothing of it is allocated before it is touched; nobody who gets
/// the descriptor can make it shorter, which would kill this process.
///
/// # Errors
/// When the kernel has no address space or descriptor for it.
pub fn create(bytes: u64) -> io::Result<GuestRam> {
    let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let file = Arc::new(File::from(file));
    let mut offset = 0;
    let mut pieces = Vec::new();
    for (start, len) in layout::memory(bytes) {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        pieces.push((GuestAddress(start), size, Some(FileOffset::from_arc(file.clone(), offset))));
        offset += len;
    }
    GuestRam::from_ranges_with_files(&pieces).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion};

    #[test]
    fn memory_is_shared_and_sealed() {
        let ram = create(4 << 20).unwrap();
        ram.write_obj(7_u64, GuestAddress(0x1000)).unwrap();
        let region = ram.iter().next().unwrap();
        let file = region.file_offset().unwrap().file();
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0x1000).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 7);
        assert!(file.set_len(0).is_err());
    }
}
