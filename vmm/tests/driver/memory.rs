//! Guest memory in files, as a monitor has it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use bulkhead_vmm::devices::GuestRam;
use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::{BUFFERS, REGIONS};

/// The regions of `ram()`, one behind the other in one memfd.
pub fn shared_ram() -> (GuestRam, File) {
    let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    let mut at = 0;
    let mut ranges = Vec::new();
    for (start, len) in REGIONS {
        ranges.push((GuestAddress(start), len, Some(FileOffset::new(file.try_clone().unwrap(), at))));
        at += len as u64;
    }
    file.set_len(at).unwrap();
    let ram = GuestRam::from_ranges_with_files(ranges).unwrap();
    // Rings and the first buffers have memory from the start, so that a test can see what else gets or loses some.
    ram.write_slice(&vec![0; BUFFERS as usize + 0x4000], GuestAddress(0)).unwrap();
    (ram, file)
}

/// Bytes of the file that have memory behind them.
pub fn allocated(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}
