//! Guest memory: one sealed memfd, shared with whoever serves the guest.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::boot::layout;
use crate::devices::GuestRam;

const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SHARED: i32 = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// Makes `bytes` of memory, a multiple of the page size. Nothing of it is allocated before it is touched; nobody who gets
/// the descriptor can make it shorter, which would kill this process. It stays mapped until the process ends, which is when
/// its machine ends.
///
/// # Errors
/// When the kernel has no address space or descriptor for it.
pub fn create(bytes: u64) -> io::Result<GuestRam> {
    let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let file = Arc::new(File::from(file));
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in layout::memory(bytes) {
        regions.push(region(start, len, FileOffset::from_arc(file.clone(), offset))?);
        offset += len;
    }
    GuestRam::from_regions(regions).map_err(io::Error::other)
}

/// Maps a piece. Pieces begin at multiples of a huge page in the guest and in the file, and so they do here: what is one huge
/// page of the host can be one of the guest's.
fn region(start: u64, len: u64, place: FileOffset) -> io::Result<GuestRegionMmap<()>> {
    let size = usize::try_from(len).map_err(io::Error::other)?;
    let align = layout::HUGE_PAGE as usize;
    let reserved = size.checked_add(2 * align).ok_or(io::ErrorKind::OutOfMemory)?;
    // What is left of it on both sides stays without access. Otherwise a thread's stack would come to lie just below, where it
    // is aligned too, and be a huge page itself.
    // SAFETY: a new mapping without access, at an address of the kernel's choice.
    let hole =
        unsafe { map(ptr::null_mut(), reserved, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)? };
    let skip = (hole as usize + 1).next_multiple_of(align) - hole as usize;
    // SAFETY: `skip` is at most `align`, so this lies within the hole, as does its end.
    let at = unsafe { hole.add(skip) };
    // SAFETY: replaces a part of the hole, which nothing refers to.
    unsafe { map(at, size, PROTECTION, SHARED | libc::MAP_FIXED, Some(&place))? };
    let region =
        MmapRegionBuilder::new(size).with_mmap_prot(PROTECTION).with_mmap_flags(SHARED).with_file_offset(place);
    // SAFETY: `at` is a mapping of `size` bytes that nobody else knows, and it is never unmapped.
    let region = unsafe { region.with_raw_mmap_pointer(at) }.build().map_err(io::Error::other)?;
    GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// # Safety
/// With MAP_FIXED, nothing may refer to what was mapped there.
unsafe fn map(at: *mut u8, len: usize, protection: i32, flags: i32, file: Option<&FileOffset>) -> io::Result<*mut u8> {
    let (fd, offset) = file.map_or((-1, 0), |file| (file.file().as_raw_fd(), file.start()));
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the caller's promise; `fd` is open, or -1 for an anonymous mapping.
    let mapped = unsafe { libc::mmap(at.cast(), len, protection, flags, fd, offset) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion};

    #[test]
    fn memory_is_shared_sealed_and_aligned() {
        let ram = create(4 << 20).unwrap();
        ram.write_obj(7_u64, GuestAddress(0x1000)).unwrap();
        let region = ram.iter().next().unwrap();
        assert_eq!((region.as_ptr() as u64 % layout::HUGE_PAGE, region.len()), (0, 4 << 20));
        let file = region.file_offset().unwrap().file();
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0x1000).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 7);
        assert!(file.set_len(0).is_err());
        ram.write_obj(7_u64, GuestAddress((4 << 20) - 8)).unwrap();
    }
}
