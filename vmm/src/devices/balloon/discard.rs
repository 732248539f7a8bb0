//! Gives guest memory back to the host.
#![allow(unsafe_code)]

use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryRegion, GuestRegionMmap};

use super::PAGE;
use crate::devices::GuestRam;

/// Frees the whole pages in the range; they read as zeros afterwards. The bytes freed.
///
/// # Errors
/// When a part of it is outside guest memory, or the kernel refuses. A part may have been freed.
pub fn discard(ram: &GuestRam, address: u64, len: u64) -> io::Result<u64> {
    let outside =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes at {address:#x} are outside guest memory"));
    let end = address.checked_add(len).ok_or_else(outside)?;
    let (mut at, end) = (address.next_multiple_of(PAGE), end / PAGE * PAGE);
    let mut freed = 0;
    while at < end {
        let region = ram.find_region(GuestAddress(at)).ok_or_else(outside)?;
        let offset = at - region.start_addr().raw_value();
        let take = (region.len() - offset).min(end - at) / PAGE * PAGE;
        if take == 0 {
            return Err(outside());
        }
        free(region, offset, take)?;
        freed += take;
        at += take;
    }
    Ok(freed)
}

/// Frees part of one region.
fn free(region: &GuestRegionMmap<()>, offset: u64, len: u64) -> io::Result<()> {
    if let Some(file) = region.file_offset() {
        let at = file.start().checked_add(offset).ok_or(io::ErrorKind::InvalidInput)?;
        // Of a file, this frees the pages for every process that maps it.
        return Ok(fallocate(file.file(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?);
    }
    let slice = region.get_slice(vm_memory::MemoryRegionAddress(offset), len as usize).map_err(io::Error::other)?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range lies in one mapping of this process that stays while `region` is borrowed. What is there is guest
    // memory, which no Rust reference points to and which may change at any time.
    let done = unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), libc::MADV_DONTNEED) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
